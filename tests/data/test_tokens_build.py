"""Token shards: whole documents, exact boundaries, the same bytes whatever the order of work."""

import json
import shutil

import numpy as np
import pyarrow.parquet as parquet
import pytest

from hepta.config import HeptaError
from hepta.data import build as building
from hepta.data.build import VERSION, build_tokens
from hepta.data.config import TokensConfig
from hepta.data.shards import open_streams, pack_ids, read_tokens_manifest, token_dtype
from hepta.stage import digest_json
from hepta.tokenizer.load import load_tokenizer

DOCUMENTS = [
    *(
        (
            f"The cat number {i} sat on the mat.\n<|endoftext|> is text here.",
            "wiki",
            "en",
            ("train", "val", "test")[i % 3],
        )
        for i in range(40)
    ),
    *((f"第{i}回 今天天气很好，我们去公园。" * (i % 7 + 1), "sanguo", "zh", "train") for i in range(30)),
]


@pytest.fixture(scope="module")
def corpus(corpus_maker, tmp_path_factory):
    return corpus_maker(tmp_path_factory.mktemp("corpus") / "c", DOCUMENTS)


@pytest.fixture(scope="module")
def tokens(corpus, tokenizer_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("tokens") / "t"
    build_tokens(TokensConfig(input=corpus, tokenizer=tokenizer_dir, output=output))
    return output


def slices(directory, split):
    """(doc_id, ids) of every document, from the index alone."""
    for stream in open_streams(directory, split):
        start = 0
        for doc_id, end in zip(stream.documents[0], stream.ends.tolist(), strict=True):
            yield doc_id, stream.read(start, end).tolist()
            start = end


def test_every_document_comes_back_between_bos_and_eos(tokens, tokenizer):
    """traps K3, K4, K6: boundaries from the index; text that spells the end token does not end a document."""
    for split in ("train", "val", "test"):
        wanted = sorted(text for text, _, _, s in DOCUMENTS if s == split)
        found = []
        for _, ids in slices(tokens, split):
            assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
            assert not tokenizer.special_ids & set(ids[1:-1])
            found.append(tokenizer.decode(ids[1:-1]))
        assert sorted(found) == wanted


def test_counts_agree_between_manifest_index_and_documents(tokens):
    """trap K6: the sum of slices is the manifest's count, per split, language and source."""
    facts = read_tokens_manifest(tokens)["facts"]
    rows = parquet.read_table(tokens / "docs.parquet").to_pylist()
    for split in ("train", "val", "test"):
        mine = [row for row in rows if row["split"] == split]
        streams = open_streams(tokens, split)
        assert facts["splits"][split]["tokens"] == sum(row["tokens"] for row in mine) == sum(s.total for s in streams)
        assert facts["splits"][split]["documents"] == len(mine) == sum(len(s.ends) for s in streams)
        for key, group in (("lang", "by_language"), ("source", "by_source")):
            for name, counts in facts[group][split].items():
                assert counts["bytes"] == sum(row["bytes"] for row in mine if row[key] == name)
    assert facts["splits"]["train"]["bytes"] == sum(len(t.encode()) for t, _, _, s in DOCUMENTS if s == "train")


def test_empty_documents_produce_nothing(corpus_maker, tokenizer_dir, tmp_path):
    """trap K4."""
    corpus = corpus_maker(tmp_path / "c", [("", "a", "en", "train"), ("x", "a", "en", "train"), ("", "a", "en", "val")])
    result = build_tokens(TokensConfig(input=corpus, tokenizer=tokenizer_dir, output=tmp_path / "t"))
    assert result.splits == {"train": {"documents": 1, "tokens": 3, "bytes": 1}}
    assert result.empty == 2
    only_empty = corpus_maker(tmp_path / "d", [("", "a", "en", "train")])
    with pytest.raises(HeptaError, match="no documents with text"):
        build_tokens(TokensConfig(input=only_empty, tokenizer=tokenizer_dir, output=tmp_path / "u"))


def test_shards_do_not_depend_on_order_files_or_workers(corpus_maker, tokens, tokenizer_dir, tmp_path, monkeypatch):
    """trap C5: other files, another order, other chunks and threads, the same bytes."""
    monkeypatch.setattr(building, "CHUNK_BYTES", 300)
    shuffled = corpus_maker(tmp_path / "c", [*DOCUMENTS[::-2], *DOCUMENTS[-2::-2]], parts=3)
    build_tokens(TokensConfig(input=shuffled, tokenizer=tokenizer_dir, output=tmp_path / "t", workers=3))
    one, other = read_tokens_manifest(tokens), read_tokens_manifest(tmp_path / "t")
    assert one["facts"]["files"] == other["facts"]["files"]
    assert one["digest"] == other["digest"]
    assert (tokens / "docs.parquet").read_bytes() == (tmp_path / "t/docs.parquet").read_bytes()


def test_removing_a_document_touches_one_shard(corpus_maker, tokens, tokenizer_dir, tmp_path):
    corpus = corpus_maker(tmp_path / "c", DOCUMENTS[:-1])
    result = build_tokens(TokensConfig(input=corpus, tokenizer=tokenizer_dir, output=tmp_path / "t"))
    before = read_tokens_manifest(tokens)["facts"]["files"]
    changed = {name.rpartition(".")[0] for name in before if before[name] != result.files.get(name)}
    assert len(changed) == 1


@pytest.mark.parametrize(("size", "dtype"), [(65_535, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (70_000, "<u4")])
def test_ids_survive_on_both_sides_of_the_16_bit_edge(corpus, tokenizer_dir, tmp_path, size, dtype):
    """trap K5: uint16 iff the padded vocabulary fits; the highest id comes back as itself."""
    shutil.copytree(tokenizer_dir, tmp_path / "tok")
    spec = json.loads((tmp_path / "tok/tokenizer.json").read_text(encoding="utf-8"))
    spec["added_tokens"][0]["id"] = size - 1  # <|endoftext|>, so each document ends with the highest id
    (tmp_path / "tok/tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    result = build_tokens(TokensConfig(input=corpus, tokenizer=tmp_path / "tok", output=tmp_path / "t"))
    assert result.dtype == dtype
    assert all(ids[-1] == size - 1 == ids[0] for _, ids in slices(tmp_path / "t", "train"))


def test_an_id_that_does_not_fit_is_an_error_and_never_wraps():
    """trap K5."""
    assert (token_dtype(65_536), token_dtype(65_600)) == (np.dtype("<u2"), np.dtype("<u4"))
    assert pack_ids(np.array([65_535]), np.dtype("<u2")).tolist() == [65_535]
    with pytest.raises(ValueError, match="65536 does not fit"):
        pack_ids(np.array([1, 65_536]), np.dtype("<u2"))


def test_an_interrupted_build_starts_over_and_ends_the_same(corpus, tokens, tokenizer_dir, tmp_path, monkeypatch):
    config = TokensConfig(input=corpus, tokenizer=tokenizer_dir, output=tmp_path / "t")
    monkeypatch.setattr(building, "_write_documents", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build_tokens(config)
    assert not (tmp_path / "t/manifest.json").exists()
    with pytest.raises(HeptaError, match="no token shards there"):
        open_streams(tmp_path / "t", "train")
    monkeypatch.undo()
    build_tokens(config)
    assert read_tokens_manifest(tmp_path / "t")["digest"] == read_tokens_manifest(tokens)["digest"]
    assert not (tmp_path / "t/.building").exists()


def test_a_second_build_does_nothing(corpus, tokens, tokenizer_dir, capsys):
    before = (tokens / "docs.parquet").stat().st_mtime_ns
    again = build_tokens(TokensConfig(input=corpus, tokenizer=tokenizer_dir, output=tokens))
    assert "already done" in capsys.readouterr().err
    assert (tokens / "docs.parquet").stat().st_mtime_ns == before
    assert again.splits["train"]["documents"] == 44


def test_golden_digest_changes_only_with_the_stage_version(tokens):
    files = read_tokens_manifest(tokens)["facts"]["files"]
    assert (VERSION, digest_json(files)[:16]) == (1, "0065ee9f0345d0a1")


def test_shards_carry_their_tokenizer(tokens, tokenizer):
    assert load_tokenizer(tokens / "tokenizer").sha256 == tokenizer.sha256
    assert read_tokens_manifest(tokens)["facts"]["tokenizer_sha256"] == tokenizer.sha256


def test_plain_files_get_a_held_out_share_by_their_ids(tokenizer_dir, tmp_path):
    rows = [json.dumps({"text": f"document number {i}"}) for i in range(600)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    config = TokensConfig(input=tmp_path / "a.jsonl", tokenizer=tokenizer_dir, output=tmp_path / "t", holdout=0.1)
    counts = {split: group["documents"] for split, group in build_tokens(config).splits.items()}
    assert sum(counts.values()) == 600
    assert 30 < counts["val"] < 90
    assert 30 < counts["test"] < 90


@pytest.mark.parametrize("damage", ["truncate", "odd", "index"])
def test_damaged_shards_are_refused_by_name(tokens, tmp_path, damage):
    shutil.copytree(tokens, tmp_path / "t")
    shard = max((tmp_path / "t/train").rglob("*.bin"), key=lambda f: f.stat().st_size)
    if damage == "index":
        shard.with_suffix(".idx").unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: -2 if damage == "truncate" else -1])
    with pytest.raises(HeptaError, match=f"{shard.stem}.*--fresh"):
        open_streams(tmp_path / "t", "train")


def test_the_command_line_builds_and_answers_in_json(cli, corpus, tokenizer_dir, tmp_path):
    arguments = ("tokens", "build", "--input", corpus, "--tokenizer", tokenizer_dir, "--output", tmp_path / "t")
    done = cli(*arguments, "--json")
    assert done.code == 0
    assert json.loads(done.out)["splits"]["train"]["documents"] == 44
    assert cli(*arguments).code == 0
    wrong = cli(
        "tokens", "build", "--input", tmp_path / "nothing", "--tokenizer", tokenizer_dir, "--output", tmp_path / "u"
    )
    assert (wrong.code, wrong.out) == (2, "")
    assert "no such file" in wrong.err
