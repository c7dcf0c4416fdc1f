"""``hf:owner/name``: what the hub's cache holds works offline; what could run code does not."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hepta
from hepta.catalog.gguf import convert
from hepta.catalog.models import model_path
from hepta.config import HeptaError, MachineError
from hepta.planning.plan import read_shape

CARD = "---\nlicense: mit\nlanguage: en\n---\n# A tiny model\n"


def put(cache: Path, repository: str, files: dict[str, bytes]) -> None:
    """A repository in the hub's cache layout: blobs, a snapshot of links into them, a ref naming its commit."""
    root = cache / f"models--{repository.replace('/', '--')}"
    commit = hashlib.sha1(repository.encode()).hexdigest()
    snapshot = root / "snapshots" / commit
    for folder in (root / "blobs", snapshot, root / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    for name, data in files.items():
        blob = root / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))


@pytest.fixture
def model_files(tiny, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    convert(tiny.write(tmp_path / "tiny.gguf"), folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, offline."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path / "cache"))
    return cache


def test_a_cached_repository_works_offline_through_the_command_line(tiny, tmp_path, model_files):
    put(tmp_path / "hub", "some/tiny", model_files | {"README.md": CARD.encode(), "model.bin": b"\x80pickle"})
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HEPTA_CACHE": str(tmp_path / "cache")}
    words = ["chat", "--model", "hf:some/tiny", "--message", "Hello", "max_new_tokens=3"]
    done = subprocess.run(
        [sys.executable, "-m", "hepta", *words], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "hf:some/tiny: commit" in done.stderr
    assert "licence mit" in done.stderr


def test_the_view_holds_no_pickle_and_gives_the_same_logits(tiny, hub_cache, model_files):
    extra = {"pytorch_model.bin": b"\x80", "onnx/model.onnx": b"x", "consolidated.safetensors": b"x", "run.py": b"x"}
    put(hub_cache, "some/tiny", model_files | extra)
    place = model_path("hf:some/tiny")
    assert {file.name for file in place.iterdir()} == {*model_files, "SOURCE.json"}
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert (hepta.load_model("hf:some/tiny")(ids) - tiny.models[True](ids).logits).abs().max() < 1e-4


def test_it_can_be_fetched_as_files_of_its_own(cli, tmp_path, hub_cache, model_files):
    put(hub_cache, "some/tiny", model_files | {"README.md": CARD.encode()})
    done = cli("fetch", "hf:some/tiny", "--output", tmp_path / "data", "--json")
    assert done.code == 0, done.err
    brought = json.loads(done.out)["names"]["some--tiny"]
    assert (brought["kind"], brought["licence"]) == ("model", "mit")
    weights = tmp_path / "data/some--tiny/model.safetensors"
    assert not weights.is_symlink()
    assert weights.read_bytes() == model_files["model.safetensors"]


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt", "tf_model.h5"])
def test_pickled_weights_alone_are_refused_with_the_reason(hub_cache, model_files, pickled):
    files = {name: data for name, data in model_files.items() if name != "model.safetensors"}
    put(hub_cache, "some/old", files | {pickled: b"\x80"})
    with pytest.raises(HeptaError, match=rf"has only {pickled} for weights; .* can run code"):
        model_path("hf:some/old")


def test_a_repository_without_a_model_is_refused(hub_cache):
    put(hub_cache, "some/notes", {"README.md": CARD.encode()})
    with pytest.raises(HeptaError, match="has no safetensors for weights"):
        model_path("hf:some/notes")


def test_not_in_the_cache_and_offline_is_one_line(hub_cache):
    with pytest.raises(MachineError, match="hf:some/absent: not in the cache, and .* cannot be reached") as caught:
        model_path("hf:some/absent")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:../x", "hf:a b", "hf:a--b"])
def test_a_name_that_cannot_be_one_is_refused(hub_cache, name):
    with pytest.raises(HeptaError, match="form is hf:owner/name"):
        model_path(name)


@pytest.mark.parametrize(
    ("error", "message"), [("GatedRepoError", "is gated; accept its terms"), ("RepositoryNotFoundError", "no such rep")]
)
def test_gated_and_missing_repositories_are_told_apart(hub_cache, monkeypatch, error, message):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(repository, local_files_only, **_):
        if local_files_only:
            raise errors.LocalEntryNotFoundError("no")
        raise getattr(errors, error).__new__(getattr(errors, error))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(HeptaError, match=message):
        model_path("hf:some/shut")


def test_an_adapter_repository_finds_its_base_and_tokenizer(tiny, tmp_path, hub_cache, model_files):
    import copy

    from peft import LoraConfig, get_peft_model

    put(hub_cache, "some/tiny", model_files)
    torch.manual_seed(3)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(tiny.models[True]), settings).eval()
    adapted.peft_config["default"].base_model_name_or_path = "some/tiny"
    adapted.save_pretrained(tmp_path / "adapter")
    put(hub_cache, "some/lora", {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()})
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert (hepta.load_model("hf:some/lora")(ids) - adapted(ids).logits).abs().max() < 1e-4
    assert read_shape("hf:some/lora").hidden_size == 64
    stored = next(hub_cache.glob("models--some--lora/snapshots/*/adapter_config.json"))
    assert json.loads(stored.read_text())["base_model_name_or_path"] == "some/tiny"  # the hub's own file is untouched
    assert hepta.load_tokenizer("hf:some/lora").encode("Paris") == hepta.load_tokenizer("hf:some/tiny").encode("Paris")
