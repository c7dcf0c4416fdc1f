"""The build as a whole: the same bytes however the input lay, however often it was stopped, however many workers."""

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from tests.corpus.conftest import NO_RULES, content, rows, words, write_jsonl

from hepta.catalog.documents import iter_documents
from hepta.config import HeptaError
from hepta.config import build as make_config
from hepta.corpus import inputs, pool
from hepta.corpus.build import build_corpus
from hepta.corpus.config import CorpusConfig


def bytes_of(corpus: Path) -> dict[str, str]:
    """Every file a build wrote, manifest aside (it holds times)."""
    files = sorted(f for f in corpus.rglob("*") if f.is_file() and f.name not in ("manifest.json", ".lock"))
    return {str(f.relative_to(corpus)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def lines_of(path: Path, count: int) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()[:count]


def test_files_order_names_and_packing_change_nothing(corpus, tmp_path, wiki_en, sanguo_zh):
    """trap C5: 1 file, 4 files, shuffled and renamed, .gz and .zst: the same kept ids, splits and parts."""
    lines = lines_of(wiki_en, 400) + lines_of(sanguo_zh, 10)
    lines += lines[:20]  # repeats, so that which copy is kept matters too
    whole = tmp_path / "whole.jsonl"
    whole.write_text("\n".join(lines) + "\n", encoding="utf-8")
    results = [content(Path(corpus([whole], name="whole").output))]
    for seed, packed in ((1, ""), (2, ".gz"), (3, ".zst")):
        random.Random(seed).shuffle(lines)
        folder = tmp_path / f"split-{seed}"
        folder.mkdir()
        for part in range(4):
            data = "\n".join(lines[part::4]).encode()  # and no newline at the end
            file = folder / f"{random.Random(seed * part).random()}.jsonl{packed}"
            file.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed](data))
        results.append(content(Path(corpus([folder], name=f"corpus-{seed}").output)))
    assert all(result == results[0] for result in results)


def test_ids_come_from_the_source_name_and_the_record_not_from_the_place(corpus, tmp_path):
    """trap C5: a native id survives a change of the text; another source name makes another id."""
    row = {"id": "doc 7", "text": "The first version of the text stands here for all to read."}
    before = corpus([write_jsonl(tmp_path / "a.jsonl", [row])], name="a", id_column="id")
    longer = {**row, "text": row["text"] + " And more of it."}
    after = corpus([write_jsonl(tmp_path / "b.jsonl", [longer])], name="b", id_column="id")
    ids = [rows(Path(done.output))[0]["doc_id"] for done in (before, after)]
    assert ids[0] == ids[1]
    config = {"input": [f"books={tmp_path / 'a.jsonl'}"], "output": tmp_path / "named", "id_column": "id"}
    named = build_corpus(make_config(CorpusConfig, config))
    assert rows(Path(named.output))[0]["doc_id"] != ids[0]
    assert rows(Path(named.output))[0]["source"] == "books"


def test_large_files_are_cut_into_units_without_losing_a_line(tmp_path, wiki_en, monkeypatch):
    """trap C5, C8: byte ranges that fall inside lines; every record is met once."""
    source = tmp_path / "wiki.jsonl"
    source.write_text("\n".join(lines_of(wiki_en, 200)) + "\n", encoding="utf-8")
    seen = []
    for number, unit in enumerate((1 << 30, 20_011, 2_503)):
        monkeypatch.setattr(inputs, "UNIT_BYTES", (unit, unit))
        config = {"input": [str(source)], "output": tmp_path / f"units-{number}", "workers": 1}
        done = build_corpus(make_config(CorpusConfig, config))
        seen.append((done.read, content(Path(done.output)), [row["origin"] for row in rows(Path(done.output))]))
    assert seen[0][0] == 200
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


def test_workers_change_no_byte(tmp_path, wiki_en, monkeypatch):
    """trap C8: in this process, and in two spawned ones."""
    monkeypatch.setattr(inputs, "UNIT_BYTES", (50_000, 50_000))
    source = tmp_path / "wiki.jsonl"
    source.write_text("\n".join(lines_of(wiki_en, 500)) + "\n", encoding="utf-8")
    found = []
    for workers, pays_from in ((1, 1 << 40), (2, 0)):
        monkeypatch.setattr(pool, "POOL_PAYS_FROM", pays_from)
        config = {"input": [str(source)], "output": tmp_path / f"w{workers}", "workers": workers}
        build_corpus(make_config(CorpusConfig, config))
        found.append(bytes_of(tmp_path / f"w{workers}"))
    assert found[0] == found[1]
    assert len(found[0]) >= 5


def build_command(source: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "hepta", "corpus", "build", "--input", str(source), "--output", str(output), *more]


def kill_when(command: list[str], ready) -> bool:
    """Start the command and kill −9 its process once ``ready()``; False when it ended first."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if ready():
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.005)
    return False


def test_kill_and_repeat_ends_with_the_bytes_of_an_uninterrupted_run(tmp_path, wiki_en):
    """trap C7: killed after the first sealed unit; the repeat goes on from it and leaves nothing temporary."""
    source = tmp_path / "wiki.jsonl"
    source.write_text("\n".join(lines_of(wiki_en, 3500)) + "\n", encoding="utf-8")
    subprocess.run(build_command(source, tmp_path / "whole", "workers=1"), check=True, capture_output=True)
    again = build_command(source, tmp_path / "killed", "workers=1")
    assert kill_when(again, lambda: list((tmp_path / "killed/.work").glob("*.json")))
    write_jsonl(tmp_path / "killed/.kept.tmp-1/part-00000.parquet", ["as if killed while writing the last parts"])
    done = subprocess.run(again, check=True, capture_output=True, text=True)
    assert "units were finished before" in done.stderr
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


@pytest.mark.chaos
def test_kills_at_random_moments_change_no_byte(tmp_path, wiki_en):
    """trap C7: up to a dozen kills, with a pool of workers."""
    folder = tmp_path / "input"
    folder.mkdir()
    for copy in range(2):
        text = wiki_en.read_text(encoding="utf-8").replace("the", f"the{copy}")
        (folder / f"{copy}.jsonl").write_text(text, encoding="utf-8")
    subprocess.run(build_command(folder, tmp_path / "whole", "workers=2"), check=True, capture_output=True)
    chance = random.Random(11)
    for _ in range(12):
        deadline = time.monotonic() + chance.uniform(0.5, 6)
        again = build_command(folder, tmp_path / "killed", "workers=2")
        if not kill_when(again, lambda at=deadline: time.monotonic() > at):
            break
    subprocess.run(build_command(folder, tmp_path / "killed", "workers=2"), check=True, capture_output=True)
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_a_damaged_unit_of_an_earlier_run_is_made_again(tmp_path, wiki_en, monkeypatch):
    """trap C7: a marker alone proves nothing; the bytes must be those that were sealed."""
    from hepta.corpus import build

    monkeypatch.setattr(inputs, "UNIT_BYTES", (50_000, 50_000))
    source = tmp_path / "wiki.jsonl"
    source.write_text("\n".join(lines_of(wiki_en, 300)) + "\n", encoding="utf-8")
    config = make_config(CorpusConfig, {"input": [str(source)], "output": tmp_path / "c", "workers": 1})
    reference = build_corpus(make_config(CorpusConfig, {**config.model_dump(), "output": tmp_path / "whole"}))
    with monkeypatch.context() as stopped:
        stopped.setattr(build, "write_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(HeptaError, match="same command goes on"):
            build_corpus(config)
    data = sorted((tmp_path / "c/.work").glob("*.parquet"))[0]
    data.write_bytes(data.read_bytes()[:-100])
    assert build_corpus(config).kept == reference.kept
    assert bytes_of(tmp_path / "c") == bytes_of(tmp_path / "whole")


def test_another_threshold_is_refused_by_name_and_fresh_changes_the_output(cli, tmp_path):
    """trap C7: no stale result, no silent overwrite."""
    source = write_jsonl(tmp_path / "in.jsonl", ["one two three four five six seven eight nine of the", "short one"])
    command = ("corpus", "build", "--input", source, "--output", tmp_path / "c", "--json")
    first = cli(*command)
    assert json.loads(first.out)["kept"] == 1
    refused = cli(*command, "rules.min_words.en=1")
    assert refused.code == 2
    assert "another rules.min_words.en (8.0 before, 1.0 now)" in refused.err
    assert "--fresh" in refused.err
    fresh = cli(*command, "--fresh", "rules.min_words.en=1")
    assert json.loads(fresh.out)["kept"] == 2
    again = cli(*command, "rules.min_words.en=1")
    assert json.loads(again.out)["already_done"]


def test_every_record_is_kept_dropped_or_quarantined(corpus, tmp_path, wiki_en):
    source = tmp_path / "in.jsonl"
    good = lines_of(wiki_en, 200)
    bad = ['{"text": 7}', "not json", '{"text": "\\ud800 lone"}']
    lines = [*good[:100], *bad, '{"text": "too short"}', *good[100:], *good[:5]]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = corpus([source])
    assert done.read == 209 == done.kept + done.dropped + done.quarantined
    assert (done.dropped, done.quarantined) == (6, 3)
    stages = Counter()
    for row in done.facts["by_stage_source_lang"]:
        stages[row["stage"]] += row["documents"]
    assert stages["read"] == 209
    assert stages["read"] == sum(count for stage, count in stages.items() if stage != "read")
    faults = [json.loads(line) for line in (tmp_path / "corpus/quarantine.jsonl").read_text().splitlines()]
    assert [fault["line"] for fault in faults] == [101, 102, 103]


def test_new_documents_move_no_other_to_another_split(corpus, wiki_en):
    """trap C5: a split comes from the document's own hash, not from how many there are."""
    given = [json.loads(line) for line in lines_of(wiki_en, 400)]
    keys = {"split": {"val": 0.2, "test": 0.2}}
    splits = []
    for name, count in (("few", 200), ("many", 400)):
        done = corpus(given[:count], name=name, **keys)
        splits.append({row["doc_id"]: row["split"] for row in rows(Path(done.output))})
    assert len(splits[0]) >= 190
    assert splits[0].items() <= splits[1].items()


def test_each_language_has_documents_in_val_and_test(corpus, wiki_en, sanguo_zh):
    """A language of a hundred documents is not left without a held-out set by the luck of a hash."""
    for seed in range(3):
        given = [{**json.loads(line), "seed": seed} for line in lines_of(sanguo_zh, 40) + lines_of(wiki_en, 300)]
        done = corpus(given, name=f"s{seed}", split={"val": 0.01, "test": 0.01})
        for split in ("val", "test"):
            for lang in ("en", "zh"):
                assert done.facts["splits"][split]["by_language"][lang]["documents"] >= 3


def test_a_language_with_too_few_documents_to_hold_out_is_reported(corpus, sanguo_zh):
    done = corpus([json.loads(line) for line in lines_of(sanguo_zh, 12)])
    assert any("zh: 12 documents are too few" in warning for warning in done.facts["warnings"])


def test_documents_are_read_back_by_split_in_order(corpus, wiki_en):
    done = corpus([json.loads(line) for line in lines_of(wiki_en, 300)], split={"val": 0.1, "test": 0.1})
    everything = list(iter_documents(done.output))
    assert [doc.doc_id for doc in everything] == sorted(doc.doc_id for doc in everything)
    for split in ("train", "val", "test"):
        own = list(iter_documents(done.output, split))
        assert own == [doc for doc in everything if doc.split == split]
        assert len(own) == done.facts["splits"][split]["documents"]


def test_a_fetch_output_gives_one_source_per_name_and_says_what_it_passes_over(tmp_path, sanguo_zh, alpaca_zh):
    from hepta.catalog.config import FetchConfig
    from hepta.catalog.fetch import fetch

    fetch(FetchConfig(names=["sanguo-zh", "alpaca-zh"], output=tmp_path / "raw"))
    done = build_corpus(make_config(CorpusConfig, {"input": str(tmp_path / "raw"), "output": tmp_path / "c"}))
    assert done.facts["sources"] == ["sanguo-zh"]
    assert any(note.startswith("alpaca-zh: holds instructions") for note in done.facts["warnings"])


def test_parts_are_cut_by_id_not_by_order(corpus, monkeypatch):
    """trap C5: several parts hold disjoint id ranges whatever the input's order."""
    from hepta.corpus import parts

    monkeypatch.setattr(parts, "PART_BYTES", 5000)
    texts = [" ".join(words(seed, 40)) for seed in range(100)]
    found = []
    for name in ("a", "b"):
        done = corpus(texts, name=name, **NO_RULES)
        files = sorted(Path(done.output, "kept").iterdir())
        assert len(files) == 5
        found.append(content(Path(done.output))["kept"])
        texts.reverse()
    assert found[0] == found[1]
    ids = [row["doc_id"] for row in found[0]]
    assert len(ids) == 100
    assert ids == sorted(ids)
