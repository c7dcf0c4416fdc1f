"""Readers: every format, plain and packed; whatever cannot be read is counted, never silently short."""

import contextlib
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from tests.corpus.conftest import NO_RULES, rows, write_jsonl

from hepta.config import HeptaError
from hepta.corpus import pages, streams
from hepta.corpus.streams import DamagedFile

TEXTS = ["The first text, with a comma.", "第二篇文章。\n有两行。", 'A third "quoted" text.', "Fourth\ttext, tabbed."]
PAGE = (
    "<html><head><title>T</title><script>var x = 1;</script></head><body><nav><a href='/'>Home</a></nav><article>"
    "<h1>The bridge</h1><p>The committee met on Tuesday to talk about the new bridge over the river.</p>"
    "<p>委员会星期二开会，讨论河上新桥的事情。大家都同意尽快动工，明年完成。</p></article></body></html>"
)


def packed(data: bytes, packing: str) -> bytes:
    return {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packing](data)


def written(folder: Path, kind: str, packing: str = "") -> Path:
    """TEXTS as one file of the given format."""
    folder.mkdir(exist_ok=True)
    path = folder / f"data.{kind}{packing}"
    if kind == "parquet":
        parquet.write_table(pa.table({"text": TEXTS, "n": [1, 2, 3, 4]}), path, row_group_size=2)
    elif kind == "jsonl":
        path.write_bytes(packed("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode(), packing))
    else:
        quoted = "".join('"' + text.replace('"', '""') + f'",{n}\r\n' for n, text in enumerate(TEXTS))
        path.write_bytes(packed(("\ufefftext,n\r\n" + quoted).encode(), packing))
    return path


@pytest.mark.parametrize(
    ("kind", "packing"),
    [("jsonl", ""), ("jsonl", ".gz"), ("jsonl", ".zst"), ("csv", ""), ("csv", ".gz"), ("csv", ".zst"), ("parquet", "")],
)
def test_each_format_gives_the_same_texts(corpus, tmp_path, kind, packing):
    done = corpus([written(tmp_path / "in", kind, packing)], **NO_RULES)
    assert sorted(row["text"] for row in rows(Path(done.output))) == sorted(TEXTS)
    assert done.quarantined == 0


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_txt_is_one_document_a_file_or_one_a_line(corpus, tmp_path, packing):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / f"a.txt{packing}").write_bytes(packed("第一行\nsecond line\n\nthird line".encode(), packing))
    by_file = corpus([folder], name="by-file", **NO_RULES)
    assert [row["text"] for row in rows(Path(by_file.output))] == ["第一行\nsecond line\n\nthird line"]
    by_line = corpus([folder], name="by-line", txt="line", **NO_RULES)
    assert sorted(row["text"] for row in rows(Path(by_line.output))) == ["second line", "third line", "第一行"]


def test_the_main_text_of_a_page_is_kept_and_its_menu_is_not(corpus, tmp_path):
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    text = rows(Path(corpus([tmp_path / "page.html"]).output))[0]["text"]
    assert "new bridge over the river" in text
    assert "讨论河上新桥的事情" in text
    assert "Home" not in text
    assert "var x" not in text


def test_other_encodings_are_read_when_named(corpus, tmp_path):
    line = json.dumps({"text": "委员会讨论新桥"}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes((line + "\n").encode("gb18030"))
    done = corpus([tmp_path / "a.jsonl"], encoding="gb18030", **NO_RULES)
    assert rows(Path(done.output))[0]["text"] == "委员会讨论新桥"
    (tmp_path / "b.txt").write_bytes("委员会讨论新桥".encode("utf-16"))
    done = corpus([tmp_path / "b.txt"], name="b", encoding="utf-16", **NO_RULES)
    assert rows(Path(done.output))[0]["text"] == "委员会讨论新桥"


def test_other_keys_of_a_record_are_kept_as_meta(corpus):
    done = corpus([{"text": "a text", "title": "标题", "n": 3}], **NO_RULES)
    assert json.loads(rows(Path(done.output))[0]["meta"]) == {"title": "标题", "n": 3}


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_cut_off_archive_keeps_what_came_before_and_is_counted(corpus, tmp_path, packing):
    """trap C13: not silently short. The half file is one bad file of 21."""
    good = [write_jsonl(tmp_path / f"good-{n}.jsonl", [f"good text {n}"]) for n in range(20)]
    lines = "".join(json.dumps({"text": f"line {n} of a long file"}) + "\n" for n in range(20_000)).encode()
    data = packed(lines, packing)
    half = tmp_path / f"half.jsonl{packing}"
    half.write_bytes(data[: len(data) // 2])
    done = corpus([*good, half], **NO_RULES)
    assert done.quarantined == 1
    fault = json.loads((tmp_path / "corpus/quarantine.jsonl").read_text())
    assert fault["file"] == half.name
    assert "truncated" in fault["error"]
    assert done.read == done.kept + done.dropped + 1
    assert fault["offset"] > 0 or packing == ".zst"


def test_a_cut_off_parquet_file_is_counted(corpus, tmp_path):
    """trap C13: its footer is gone, so nothing of it can be read."""
    good = [write_jsonl(tmp_path / f"good-{n}.jsonl", [f"good text {n}"]) for n in range(20)]
    half = written(tmp_path / "in", "parquet")
    half.write_bytes(half.read_bytes()[:-20])
    done = corpus([*good, half], **NO_RULES)
    assert (done.kept, done.quarantined) == (20, 1)


def test_bad_records_are_counted_with_their_lines(corpus, tmp_path):
    """trap C13: invalid UTF-8, a lone surrogate, broken JSON, no text: each named, none silently passed over."""
    source = tmp_path / "in.jsonl"
    bad = [b'{"text": "\xff\xfe"}', b'{"text": "\\ud83d"}', b'{"text": ', b'{"text": null}', b"[1]", b'{"other": "x"}']
    good = [json.dumps({"text": f"good text {n}"}).encode() for n in range(200)]
    source.write_bytes(b"\r\n".join([good[0], *bad, *good[1:]]) + b"\n")
    done = corpus([source], **NO_RULES)
    assert (done.kept, done.quarantined) == (200, len(bad))
    faults = [json.loads(line) for line in (tmp_path / "corpus/quarantine.jsonl").read_text().splitlines()]
    assert [fault["line"] for fault in faults] == [2, 3, 4, 5, 6, 7]
    expectations = ["utf-8", "surrogate", "not JSON", "null", "not a JSON object", "other"]
    for fault, expected in zip(faults, expectations, strict=True):
        assert expected in fault["error"]


def test_bad_lines_of_text_are_counted(corpus, tmp_path):
    """trap C13: one document a line; the build's own invariant would also break."""
    good = b"".join(f"good text {n}\n".encode() for n in range(100))
    (tmp_path / "in.txt").write_bytes(good + b"not \xff utf\n" + b"last line")
    done = corpus([tmp_path / "in.txt"], txt="line", **NO_RULES)
    assert (done.read, done.kept, done.quarantined) == (102, 101, 1)
    assert json.loads((tmp_path / "corpus/quarantine.jsonl").read_text())["line"] == 101


def test_bad_csv_rows_are_counted_with_their_lines(corpus, tmp_path):
    """trap C13."""
    good = "".join(f"good text {n},{n}\n" for n in range(100))
    bad = b'one,two,three\nnot \xff utf,1\n"never closed,5\n'
    (tmp_path / "in.csv").write_bytes(b"text,n\n" + good.encode() + bad)
    done = corpus([tmp_path / "in.csv"], **NO_RULES)
    assert (done.kept, done.quarantined) == (100, 3)
    faults = [json.loads(line) for line in (tmp_path / "corpus/quarantine.jsonl").read_text().splitlines()]
    assert [fault["line"] for fault in faults] == [102, 103, 104]


def test_a_damaged_page_of_parquet_loses_no_count(corpus, tmp_path):
    """trap C13: the second row group is overwritten; the first is kept, the file is counted as damaged."""
    path = tmp_path / "in.parquet"
    texts = [f"a text of some length, number {n}" for n in range(4000)]
    written_as = {"row_group_size": 2000, "compression": "gzip", "use_dictionary": False}
    parquet.write_table(pa.table({"text": texts}), path, **written_as)
    data = bytearray(path.read_bytes())
    begin = parquet.read_metadata(path).row_group(1).column(0).data_page_offset
    data[begin + 40 : begin + 400] = bytes(360)
    path.write_bytes(bytes(data))
    done = corpus([path], max_bad=1, **NO_RULES)
    assert done.kept == 2000
    assert done.quarantined == 1


def test_lines_beyond_the_limit_are_counted_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "RECORD_LIMIT", 3 << 20)
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"first\n" + b"x" * (7 << 20) + b"\nlast\n")
    assert [line for _, line in streams.lines(path)] == [b"first", None, b"last"]


# --- hostile pages (trap C16) ---


def test_a_page_over_the_size_cap_is_quarantined(corpus, tmp_path):
    """trap C16: a 6 MB table never reaches the extractor."""
    (tmp_path / "big.html").write_text("<table>" + "<tr><td>cell</td></tr>" * 300_000, encoding="utf-8")
    with pytest.raises(HeptaError, match="more than 5,000,000 bytes"):
        corpus([tmp_path / "big.html"])


def test_a_slow_page_is_stopped_by_the_time_limit():
    """trap C16."""
    page = "<html><body><table>" + "<tr><td>a cell</td><td>b</td></tr>" * 60_000 + "</table></body></html>"
    with pytest.raises(DamagedFile, match=r"longer than 0\.2 s"):
        pages.page_text(page.encode(), 0.2)


@pytest.mark.parametrize("page", ["<div>" * 100_000 + "text", "<html></html>", "\0\0\0", "<b>" * 5000 + "x" * 50])
def test_deep_and_empty_pages_end_in_a_line_not_a_crash(page):
    """trap C16."""
    with contextlib.suppress(DamagedFile):
        assert isinstance(pages.page_text(page.encode(), 10), str)
