"""Model directories: shards and index, presets, and one clear line for each thing that can be wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hepta.config import HeptaError
from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder
from hepta.model.families import PRESETS, from_hf, network_class, preset, to_hf
from hepta.model.load import build_model, load_model, read_hepta_json, save_model
from hepta.tokenizer.contract import read_specials
from hepta.tokenizer.load import load_tokenizer

TINY = ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = Decoder(TINY)
    model.init_weights(5)
    save_model(model, tmp_path / "model", provenance={"steps": 3})
    return tmp_path / "model"


def weights(model: Decoder) -> dict[str, torch.Tensor]:
    return {key: p.detach() for key, p in model.named_parameters()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(path: Path) -> str:
    with pytest.raises(HeptaError) as caught:
        load_model(path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("nano", 2.8e6, 3.3e6), ("micro", 9.5e6, 10.5e6), ("mini", 28e6, 32e6), ("small", 134_515_008, 134_515_008),
     ("1b", 0.9e9, 1.3e9), ("7b", 6.5e9, 7.2e9)],
)  # fmt: skip
def test_presets_have_the_promised_size(name: str, low: float, high: float) -> None:
    config = preset(name)
    assert low <= config.num_parameters <= high
    with torch.device("meta"):
        assert sum(p.numel() for p in Decoder(config).parameters()) == config.num_parameters
    assert all(size % 32 == 0 for size in (config.hidden_size, config.intermediate_size, config.head_dim))
    assert config.vocab_size % 64 == 0
    assert from_hf(to_hf(config)) == config
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**to_hf(config)))
    assert theirs.num_parameters() == config.num_parameters


def test_every_parameter_is_counted_in_its_class() -> None:
    config = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_kv_heads=1,
        head_dim=16, tied=False, attention_bias=True, output_bias=True, mlp_bias=True, qk_norm=True
    )
    model = Decoder(config)
    by_class = dict.fromkeys(config.parameters(), 0)
    for name, parameter in model.named_parameters():
        kinds = {"embed_tokens": "embedding", "lm_head": "head", "norm": "norm", "self_attn": "attention", "mlp": "mlp"}
        by_class[next(kind for part, kind in kinds.items() if part in name)] += parameter.numel()
    assert by_class == config.parameters()


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(HeptaError, match="did you mean 'nano'"):
        preset("nanno")
    with pytest.raises(HeptaError, match=f"not a preset \\({', '.join(PRESETS)}\\)"):
        build_model("no-such-model", 64, 0)


def test_fresh_weights_depend_on_the_seed_only() -> None:
    one, two, other = (build_model("nano", 512, seed) for seed in (1, 1, 2))
    assert_same(weights(one), weights(two))
    assert not torch.equal(one.output_weight, other.output_weight)
    loss = torch.nn.functional.cross_entropy(one(torch.arange(64)[None])[0], torch.arange(1, 65))
    assert abs(loss.item() - torch.tensor(512.0).log().item() - 0.5) < 0.2  # logits are N(0, 1) before training


def test_saved_weights_come_back_bit_for_bit(saved: Path) -> None:
    model = Decoder(TINY)
    model.init_weights(5)
    loaded = load_model(saved)
    assert_same(weights(loaded), weights(model))
    assert not loaded.training
    assert read_hepta_json(saved)["provenance"] == {"steps": 3}
    save_model(loaded, saved, dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(saved / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in load_model(saved, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_shards_and_index_are_written_and_read_like_transformers(tmp_path: Path) -> None:
    model = Decoder(TINY.replace(tied=False))
    model.init_weights(1)
    save_model(model, tmp_path, shard_bytes=10_000)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 3
    assert all(shard.stat().st_size < 14_000 for shard in shards)
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(weights(load_model(tmp_path)), weights(model))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=12_000)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    assert_same(weights(load_model(tmp_path / "theirs")), weights(model))
    save_model(model, tmp_path)  # one file again: no stale shard is left to be read
    assert sorted(f.name for f in tmp_path.glob("*.safetensors*")) == ["model.safetensors"]
    shards[0].unlink(missing_ok=True)
    assert_same(weights(load_model(tmp_path)), weights(model))


def test_a_run_directory_means_its_model(saved: Path) -> None:
    assert_same(weights(load_model(saved.parent)), weights(load_model(saved)))


def test_missing_parts_are_named(saved: Path, tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(saved)
    (saved / "pytorch_model.bin").unlink()
    assert "no weights" in refusal(saved)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors, which is missing" in refusal(saved)
    (saved / "config.json").write_text("{")
    assert "not readable as JSON" in refusal(saved)


def test_weights_that_do_not_fit_are_named(saved: Path) -> None:
    file = saved / "model.safetensors"
    tensors = load_file(file)
    shapes = tensors | {"model.norm.weight": torch.ones(7)}
    save_file(shapes, file)
    assert "model.norm.weight has shape (7,), config.json says (32,)" in refusal(saved)
    save_file({k: t for k, t in tensors.items() if "layers.1.mlp" not in k}, file)
    assert "missing model.layers.1.mlp" in refusal(saved)
    assert "and 2 more" in refusal(saved)
    save_file(tensors | {"model.layers.9.oddity": torch.ones(2)}, file)
    assert "unexpected model.layers.9.oddity" in refusal(saved)
    save_file(tensors | {"lm_head.weight": torch.ones(64, 32)}, file)  # a tied copy is harmless
    load_model(saved)
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:-100])
    assert "not readable as safetensors" in refusal(saved)


def test_other_architectures_and_options_are_refused_by_name(saved: Path) -> None:
    config = saved / "config.json"
    original = config.read_text()
    for changes, words in [
        ({"architectures": ["BloomForCausalLM"]}, "BloomForCausalLM is not supported; supported: LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "RoPE scaling 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "RoPE scaling 'dynamic'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "lacks low_freq_factor"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_key_value_heads": 3}, "num_heads 2 is no multiple of num_kv_heads 3"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ]:
        config.write_text(original)
        edit(config, **changes)
        assert words in refusal(saved)


def test_a_family_cannot_be_written_with_mathematics_transformers_would_not_compute() -> None:
    for changes in (
        {"family": "llama", "qk_norm": True}, {"family": "llama", "sliding_window": 4},
        {"family": "mistral", "attention_bias": True}, {"family": "qwen2"}, {"family": "llama", "attention_bias": True},
        {"family": "mistral", "sliding_window": 4, "window_layers": (True, False)},
    ):  # fmt: skip
        with pytest.raises(HeptaError, match="model config"):
            to_hf(TINY.replace(**changes))


@pytest.mark.parametrize("name", ["gpt2-small", "bert-base", "gpt2-nano", "bert-nano"])
def test_textbook_presets_have_the_parameters_of_transformers_classes(name: str) -> None:
    """GPT-2 small has 124,439,808 parameters."""
    shape = preset(name)
    config = transformers.AutoConfig.for_model(**to_hf(shape))
    with torch.device("meta"):
        loader = transformers.AutoModelForMaskedLM if "bert" in name else transformers.AutoModelForCausalLM
        theirs = loader.from_config(config)
        ours = network_class(shape)(shape)
    assert shape.num_parameters == theirs.num_parameters() == sum(p.numel() for p in ours.parameters())
    assert name != "gpt2-small" or shape.num_parameters == 124_439_808


def test_the_contract_kept_with_a_model_is_the_tokenizers_own(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Trap S7: chat, serve, merge and export compare what they are given with this."""
    tokenizer = load_tokenizer(tokenizer_dir)
    contract = read_specials(tokenizer_dir).contract()
    assert contract == tokenizer.contract
    model = build_model("nano", tokenizer.padded_size, 0)
    save_model(model, tmp_path, tokenizer_dir)
    assert read_hepta_json(tmp_path)["template"] == contract
    assert load_tokenizer(tmp_path).contract == tokenizer.contract
    written = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert written.eos_token_id == tokenizer.stop_ids
    assert written.pad_token_id == tokenizer.pad_id
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    assert read_specials(tmp_path / "copy").contract() == contract  # read again from a model directory


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(HeptaError, match="the model only 64 rows"):
        save_model(Decoder(TINY), tmp_path, tokenizer_dir)
    with pytest.raises(HeptaError, match="the tokenizer needs 640"):
        save_model(Decoder(TINY), tmp_path)
        build_model(tmp_path, 640, 0)
