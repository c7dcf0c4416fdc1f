"""Tables as people have them: delimiters, encodings, columns guessed, and bad rows named by file and row."""

import csv
import gzip
import io
import json

import pytest

from hepta.config import HeptaError
from hepta.data.files import RowFaults, read_rows
from hepta.data.tables import Column, load_labelled, load_table, read_text_cell

ROWS = [("a fine, long film", "pos"), ('he said "no"', "neg"), ("two\nlines; a\ttab", "pos"), ("很好看，推荐", "pos")]


def csv_bytes(rows, delimiter=",", header=("text", "label"), encoding="utf-8", bom=b"", newline="\r\n"):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=newline).writerows([header, *rows])
    return bom + out.getvalue().encode(encoding)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_any_delimiter_encoding_and_newline_reads_as_the_same_rows(tmp_path, delimiter, encoding, newline):
    """Python's csv writer is the reference; quotes, delimiters and line feeds inside cells survive."""
    file = tmp_path / "reviews.csv"
    file.write_bytes(csv_bytes(ROWS, delimiter, encoding=encoding, newline=newline))
    examples, report = load_labelled(file, "classify")
    assert [(e.text, e.label) for e in examples] == ROWS
    assert report["classes"] == {"pos": 3, "neg": 1}
    assert [e.lang for e in examples] == ["en", "en", "en", "zh"]
    assert [e.name for e in examples] == [f"reviews row {n}" for n in (2, 3, 4, 5)]  # as a spreadsheet counts


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(csv_bytes(ROWS, bom=b"\xef\xbb\xbf"))
    assert len(load_labelled(file, "classify")[0]) == 4
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": "x", "label": 1}).encode())
    assert load_labelled(lines, "classify")[0][0].label == "1"


def test_json_lines_arrays_and_packed_files_read_alike(tmp_path):
    rows = [{"text": text, "label": label} for text, label in ROWS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(csv_bytes(ROWS)))
    found = [load_labelled(file, "classify")[0] for file in sorted(tmp_path.iterdir())]
    assert [[(e.text, e.label) for e in examples] for examples in found] == [ROWS] * 3
    assert len(load_labelled(tmp_path, "classify")[0]) == 12  # a folder is all its files


def test_a_fetched_data_set_is_a_folder_of_rows(tmp_path, cli):
    from hepta.catalog.fetch import dataset_path

    examples, report = load_labelled(dataset_path("topics-en").parent, "classify")
    assert len(examples) == 9033
    assert len(report["classes"]) == 11
    assert report["columns"] == {"topics-en": {"text": "text", "label": "label"}}


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (("id", "Review Text", "Sentiment"), ("Review Text", "Sentiment")),
        (("评论内容", "类别", "日期"), ("评论内容", "类别")),
        (("sms", "label"), ("sms", "label")),  # one of two is known
        (("label", "text", "title"), ("text", "label")),
        (("content_id", "content", "category"), ("content", "category")),
    ],
)
def test_obvious_columns_are_guessed_and_shown(tmp_path, capsys, header, wanted):
    file = tmp_path / "a.csv"
    file.write_bytes(csv_bytes([[f"{name} value" for name in header]], header=header))
    examples, report = load_labelled(file, "classify")
    assert (report["columns"]["a"]["text"], report["columns"]["a"]["label"]) == wanted
    assert examples[0].text == f"{wanted[0]} value"
    shown = capsys.readouterr().err
    assert repr(wanted[0]) in shown
    assert "text=COLUMN label=COLUMN" in shown


def test_columns_that_are_not_obvious_are_an_error_that_names_those_seen(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(csv_bytes([("x", "y", "z")], header=("one", "two", "three")))
    with pytest.raises(HeptaError, match=r"columns seen: 'one', 'two', 'three'; give text=COLUMN label=COLUMN"):
        load_labelled(file, "classify")
    with pytest.raises(HeptaError, match="no column 'tow' .*did you mean 'two'"):
        load_labelled(file, "classify", text="tow")
    assert load_labelled(file, "classify", text="two", label="three")[0][0].text == "y"
    (tmp_path / "b.csv").write_text("good film\nbad film\n")
    with pytest.raises(HeptaError, match="row 1 must name the columns"):
        load_labelled(tmp_path / "b.csv", "classify")


BAD = [
    ({"text": "fine", "label": None}, "no label: 'label' is null"),
    ({"text": "fine"}, "no label: 'label' is missing"),
    ({"text": "  ", "label": "a"}, "empty text"),
    ({"text": None, "label": "a"}, "no text: 'text' is null"),
    ({"text": 7, "label": "a"}, "no text: 'text' is no text but a int"),
    ({"text": "fine", "label": ["a"]}, "no label: 'label' is no text but a list"),
    ({"text": "fine", "label": "NaN"}, "no label: 'label' is empty or null"),
    ({"text": "half \ud800", "label": "a"}, "not UTF-8"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_dropped_counted_and_named_or_ends_the_reading(tmp_path, capsys, row, reason):
    file = tmp_path / "rows.jsonl"
    good = {"text": "good", "label": "a"}
    file.write_text("".join(json.dumps(value) + "\n" for value in (good, row, good)))
    examples, report = load_labelled(file, "classify", "text", "label")
    assert len(examples) == 2
    assert sum(report["dropped"].values()) == 1
    assert next(e for kind in report["examples"].values() for e in kind).startswith(f"rows.jsonl row 2: {reason}")
    with pytest.raises(HeptaError, match=f"rows.jsonl: row 2: {reason}"):
        load_labelled(file, "classify", "text", "label", policy="error")


@pytest.mark.parametrize("cell", ["five", "1_000", "nan", "inf", "1e999", "", "4,5"])
def test_a_target_that_is_no_finite_number_is_a_bad_row(tmp_path, cell):
    file = tmp_path / "a.csv"
    file.write_bytes(csv_bytes([("x", "3.5"), ("y", cell), ("z", "-1e-3")], header=("text", "score")))
    examples, report = load_labelled(file, "regress")
    assert [e.label for e in examples] == [3.5, -0.001]
    assert sum(report["dropped"].values()) == 1


def test_broken_csv_rows_are_named_and_do_not_swallow_their_neighbours(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('text,label\ngood,a\nbad, with a comma,a\n"quo"ted,a\nfine,b\n\n"never closed,a\nlost,b\n')
    faults = RowFaults("drop")
    rows = dict(read_rows(file, faults))
    assert [number for number, row in rows.items() if row] == [2, 5]
    assert [number for number, row in rows.items() if row is None] == [3, 4, 7]
    told = [example for kind in faults.examples.values() for example in kind]
    assert told[0].startswith("a.csv row 3: too many cells: 3 cells where the header names 2")
    assert "never closed, so 2 lines" in told[-1]


def test_stray_bytes_in_a_utf8_file_spoil_their_rows_only(tmp_path):
    """A file is GB18030 only where much of it is no UTF-8; one damaged cell must not turn the rest into mojibake."""
    good = "".join(f"很好看的电影，第{n}部,好\n" for n in range(40)).encode()
    (tmp_path / "a.csv").write_bytes(b"text,label\n" + good + b"broken \xff\xfe cell,bad\n")
    examples, report = load_labelled(tmp_path / "a.csv", "classify")
    assert len(examples) == 40
    assert examples[0].text == "很好看的电影，第0部"
    assert report["dropped"] == {"not UTF-8": 1}


def test_a_column_named_twice_or_a_missing_header_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,text\na,b,c\n")
    with pytest.raises(HeptaError, match="names column 'text' twice"):
        load_labelled(tmp_path / "a.csv", "classify")
    (tmp_path / "b.csv").write_text("\na,b\n")
    with pytest.raises(HeptaError, match="row 1 is empty"):
        load_labelled(tmp_path / "b.csv", "classify")
    (tmp_path / "c.csv").write_text("")
    with pytest.raises(HeptaError, match="row 1 is empty|no row left"):
        load_labelled(tmp_path / "c.csv", "classify")


def test_any_task_names_its_own_columns(tmp_path):
    (tmp_path / "pairs.csv").write_text("English,中文,level\nHello,你好,1\n")
    read = read_text_cell
    columns = [Column("source", ("source", "中文"), read), Column("target", ("target", "english"), read)]
    rows, _ = load_table(tmp_path / "pairs.csv", columns)
    assert rows[0].values == {"source": "你好", "target": "Hello"}
