"""hepta corpus on the command line: wrong input is one clear line; stats and explain answer."""

import gzip
import json
from pathlib import Path

import pytest
from tests.corpus.conftest import rows, write_jsonl

from hepta.corpus import unit

GOOD = [f"The committee met on day {n} to talk about the new bridge over the river." for n in range(40)]


def refused(cli, tmp_path: Path, source: Path, *more: str) -> str:
    """Build must exit 2 with one line and leave no output behind; returns the line."""
    done = cli("corpus", "build", "--input", source, "--output", tmp_path / "out", *more)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not (tmp_path / "out").exists()
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_an_empty_folder_says_so(cli, tmp_path):
    (tmp_path / "in").mkdir()
    line = refused(cli, tmp_path, tmp_path / "in")
    assert "nothing to read in this folder" in line
    assert ".jsonl" in line


def test_a_folder_of_other_files_names_their_types(cli, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/picture.png").write_bytes(b"\x89PNG")
    assert "1 × .png" in refused(cli, tmp_path, tmp_path / "in")


def test_a_missing_path_says_so(cli, tmp_path):
    assert "no such file" in refused(cli, tmp_path, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl", "data.csv", "data", "data.bin"])
def test_a_binary_file_is_refused_as_such(cli, tmp_path, name):
    (tmp_path / name).write_bytes(bytes(range(256)) * 50)
    assert "binary data" in refused(cli, tmp_path, tmp_path / name)


def test_a_wrong_column_names_those_that_are_there(cli, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"body": "a text", "title": "a title"}] * 3)
    line = refused(cli, tmp_path, source)
    assert "no column 'text'" in line
    assert "body, title" in line
    assert "text_column=NAME" in line
    (tmp_path / "in.csv").write_text("body,title\na,b\n")
    assert "body, title" in refused(cli, tmp_path, tmp_path / "in.csv")


def test_half_a_gzip_is_refused(cli, tmp_path):
    data = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in GOOD * 50).encode())
    (tmp_path / "half.jsonl.gz").write_bytes(data[: len(data) // 2])
    line = refused(cli, tmp_path, tmp_path / "half.jsonl.gz")
    assert "half.jsonl.gz" in line
    assert "truncated gzip" in line


def test_more_bad_records_than_allowed_are_refused_and_fewer_are_not(cli, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join([json.dumps({"text": text}) for text in GOOD] + ["broken"] * 3) + "\n")
    line = refused(cli, tmp_path, source)
    assert "3 of 43 records" in line
    assert "line 41" in line
    done = cli("corpus", "build", "--input", source, "--output", tmp_path / "out", "max_bad=0.1")
    assert done.code == 0
    assert "quarantine.jsonl" in done.err


def test_a_full_disk_is_one_line_with_exit_1_and_the_same_command_goes_on(cli, tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", GOOD)
    command = ("corpus", "build", "--input", source, "--output", tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    with monkeypatch.context() as patched:
        patched.setattr(unit.parquet, "write_table", full)
        done = cli(*command)
    assert done.code == 1
    assert "No space left" in done.err
    assert "Traceback" not in done.err
    left = [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [name for name in left if name.endswith((".parquet", ".jsonl")) or "tmp" in name]
    assert cli(*command).code == 0


@pytest.mark.parametrize(
    ("word", "expected"),
    [("text_colunm=body", "did you mean 'text_column'?"), ("max_bad=much", "max_bad"), ("rules.min_words.en=x", "en")],
)
def test_a_wrong_key_or_value_is_told_before_anything_is_read(cli, tmp_path, word, expected):
    source = write_jsonl(tmp_path / "in.jsonl", GOOD)
    assert expected in refused(cli, tmp_path, source, word)


def test_text_that_spells_special_tokens_is_text(cli, tmp_path):
    text = f"{GOOD[0]} It says <|im_end|> and <|endoftext|> in the middle of a sentence, and that is fine with us."
    source = write_jsonl(tmp_path / "in.jsonl", [text])
    assert cli("corpus", "build", "--input", source, "--output", tmp_path / "out").code == 0
    assert rows(tmp_path / "out")[0]["text"] == text


def test_a_corpus_of_which_nothing_is_left_says_so(cli, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", ["short", "also short"])
    done = cli("corpus", "build", "--input", source, "--output", tmp_path / "out")
    assert done.code == 0
    assert "every document was dropped" in done.err


def test_a_dry_run_reads_and_writes_nothing(cli, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", GOOD)
    done = cli("corpus", "build", "--input", source, "--output", tmp_path / "out", "--dry-run")
    assert done.code == 0
    assert "would write" in done.err
    assert not (tmp_path / "out").exists()


def test_stats_shows_every_stage_source_and_language(cli, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [*GOOD, "short"])
    cli("corpus", "build", "--input", f"minutes={source}", "--output", tmp_path / "out")
    shown = cli("corpus", "stats", tmp_path / "out")
    assert shown.code == 0
    assert "read 41 = kept " in shown.out
    assert "minutes" in shown.out
    assert "dropped: rules" in shown.out
    facts = json.loads(cli("corpus", "stats", tmp_path / "out", "--json").out)
    assert facts["read"] == facts["kept"] + facts["dropped"] + facts["quarantined"] == 41


def test_explain_tells_values_thresholds_and_the_twin(cli, tmp_path, wiki_en):
    with wiki_en.open(encoding="utf-8") as lines:
        long = json.loads(next(lines))["text"]
    source = write_jsonl(tmp_path / "in.jsonl", [long, long + " The end.", "Too short."])
    cli("corpus", "build", "--input", source, "--output", tmp_path / "out")
    gone = {row["text"]: row for row in rows(tmp_path / "out", "dropped")}
    by_rule = cli("corpus", "explain", tmp_path / "out", gone["Too short."]["doc_id"])
    assert by_rule.code == 0
    assert "dropped by rules: min_words is 2, threshold 8" in by_rule.out
    twin = next(row for text, row in gone.items() if text != "Too short.")
    by_twin = cli("corpus", "explain", tmp_path / "out", twin["doc_id"][:8])
    assert "near_duplicate" in by_twin.out
    assert f"kept in its place: {twin['twin']}" in by_twin.out
    assert long[:40] in by_twin.out.split("its text:")[1]
    kept = rows(tmp_path / "out")[0]
    told = json.loads(cli("corpus", "explain", tmp_path / "out", kept["doc_id"], "--json").out)
    assert told["rows"][0]["kept"]
    assert all(check["passed"] for check in told["rows"][0]["checks"])


def test_explain_without_such_a_document_or_corpus_is_one_line(cli, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", GOOD)
    cli("corpus", "build", "--input", source, "--output", tmp_path / "out")
    missing = cli("corpus", "explain", tmp_path / "out", "ffffffff")
    assert missing.code == 2
    assert "no document with id" in missing.err
    nothing = cli("corpus", "stats", tmp_path)
    assert nothing.code == 2
    assert "no finished corpus" in nothing.err
