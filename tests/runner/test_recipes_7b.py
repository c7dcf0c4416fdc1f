"""The recipes for eight GPUs: every key valid, every stage resolved, priced as ``hepta plan`` prices, no network."""

from pathlib import Path

import pytest

from hepta.catalog.known import KNOWN_CONFIGS
from hepta.config import HeptaError
from hepta.model.families import preset
from hepta.planning.config import PlanConfig
from hepta.planning.plan import count_text, plan, read_shape, time_text
from hepta.runner.config import RunConfig
from hepta.runner.recipe import plan_stages, run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
BASE = "hf:Qwen/Qwen2.5-7B"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)


def dry_run(name: str, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    run_recipe(RunConfig(recipe=RECIPES / name, overrides=list(overrides), dry_run=True))
    return capsys.readouterr().err


def test_pretraining_resolves_and_costs_what_plan_says(capsys):
    told = dry_run("7b-pretrain.yaml", capsys)
    _, _, stages = plan_stages(RunConfig(recipe=RECIPES / "7b-pretrain.yaml"))
    base = next(stage.config for stage in stages if stage.id == "base")
    (entry,) = plan(PlanConfig(model="7b", devices=["8xH100"], tokens=base.tokens)).devices
    full = entry.verdicts[0]
    assert full.fits
    assert f"7b: {preset('7b').num_parameters:,} parameters; 134 G tokens in 63,897 steps of 2,097,152" in told
    assert f"needs {full.needs_gb:.1f} GB each, has 80 GB" in told
    assert f"{count_text(entry.tokens_per_second)} tokens/s, {time_text(entry.seconds)}, {entry.usd:,.0f} USD" in told


def test_tuning_says_what_it_would_download_once_and_costs_what_plan_says(capsys):
    told = dry_run("7b-sft.yaml", capsys)
    assert told.count(f"would download {BASE}: about 15.2 GB") == 1
    (entry,) = plan(PlanConfig(model=BASE, devices=["8xH100"], tokens=1e8, sequence_length=4096)).devices
    full = entry.verdicts[0]
    assert f"full fits: needs {full.needs_gb:.1f} GB each" in told
    assert time_text(full.seconds or 0) in told


def test_overrides_reach_the_price(capsys):
    told = dry_run("7b-sft.yaml", capsys, "devices=h100", "chat.method=lora", "chat.tokens=1e7")
    (entry,) = plan(PlanConfig(model=BASE, devices=["h100"], tokens=1e7, sequence_length=4096)).devices
    lora = next(verdict for verdict in entry.verdicts if verdict.method == "lora")
    assert f"h100: lora {lora.text}" in told
    assert "10 M tokens" in told


def test_known_shapes_are_the_models_of_transformers():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, known in KNOWN_CONFIGS.items():
        values = {key: value for key, value in known.items() if key not in ("model_type", "architectures")}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(known["model_type"], **values))
        assert read_shape(name).num_parameters == sum(p.numel() for p in model.parameters())


def test_an_unknown_model_without_network_is_one_line():
    with pytest.raises(HeptaError, match=r"hf:nobody/nothing: its shape is not known here.*config\.json"):
        read_shape("hf:nobody/nothing")


def test_a_recipe_without_devices_is_not_priced(capsys):
    assert "USD" not in dry_run("demo.yaml", capsys)
