"""``hepta plan``: right against closed forms, plain about what fits, one line for a slip."""

import json
import subprocess
import sys

import pytest

from hepta.config import HeptaError, load_config
from hepta.model.config import ModelConfig
from hepta.model.families import preset, to_hf
from hepta.planning import devices
from hepta.planning.config import PlanConfig
from hepta.planning.plan import count_text, plan, show_plan, time_text

LLAMA = ModelConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32, num_kv_heads=32,
    head_dim=128, tied=False)


@pytest.fixture(autouse=True)
def fixed_machine(monkeypatch):
    monkeypatch.setattr(devices, "cached_peak", {"bf16": 800.0, "fp32": 170.0}.get)
    monkeypatch.setattr(devices, "memory_limit", lambda: (25_000_000_000, 20_000_000_000))


@pytest.fixture
def llama(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_hf(LLAMA)))
    return str(tmp_path)


def test_llama_2_7b_has_the_textbooks_numbers(llama):
    result = plan(PlanConfig(model=llama, devices=["1080ti", "3070", "8xH100"], sequence_length=2048))
    assert result.parameters == 6_738_415_616
    assert result.weights_gb["bf16"] == pytest.approx(13.5, abs=0.03)
    assert result.weights_gb["4 bits"] == pytest.approx(3.4, abs=0.04)
    assert result.full_state_gb == pytest.approx(107.8, abs=0.05)
    assert result.tokens == pytest.approx(135e9, rel=0.002)
    assert result.rule_of_thumb_flops == pytest.approx(5.45e21, rel=1e-3)
    assert result.training_flops == pytest.approx(5.45e21, rel=0.03)
    old, small, many = result.devices
    assert many.seconds / 86400 == pytest.approx(20, abs=0.7)
    assert many.tokens_per_second == pytest.approx(result.tokens / many.seconds, rel=0.01)
    assert [v.fits for v in old.verdicts if v.method in ("full", "lora", "bf16")] == [False, False, False]
    assert not small.verdicts[0].fits
    assert all(v.fits for v in many.verdicts)


def test_the_7b_preset_is_between_6_5_and_7_2_billion():
    result = plan(PlanConfig(model="7b", devices=[]))
    assert 6.5e9 <= result.parameters <= 7.2e9
    assert result.parameters == sum(result.parameters_by_class.values()) == preset("7b").num_parameters


def test_every_verdict_says_plainly_what_it_needs_and_has():
    result = plan(PlanConfig(model="7b", devices=["1080ti", "4090"]))
    text = show_plan(result)
    assert "does not fit: needs 109" in text
    assert "has 11 GB" in text
    for entry in result.devices:
        for verdict in entry.verdicts:
            assert verdict.fits == (verdict.needs_gb <= verdict.has_gb)
            assert verdict.text.startswith("fits") == verdict.fits
            assert verdict.needs_gb == pytest.approx(verdict.classes_gb["total"], abs=0.01)
    for line in result.assumptions:
        assert line in text


def test_recomputation_is_used_only_where_it_is_needed_and_costs_a_forward():
    wide, tight = (plan(PlanConfig(model="small", devices=["4090"], micro_batch=b)).devices[0] for b in (1, 32))
    assert not wide.verdicts[0].recompute
    assert tight.verdicts[0].recompute
    assert tight.tokens_per_second == pytest.approx(wide.tokens_per_second * 3 / 4, rel=0.01)


def test_training_that_fits_says_how_fast_and_how_long():
    entry = plan(PlanConfig(model="7b", devices=["4090"], tokens=1e7)).devices[0]
    full, lora, qlora, *inference = entry.verdicts
    assert "tokens/s" not in full.text
    assert (entry.tokens_per_second, entry.seconds) == (full.tokens_per_second, full.seconds)
    for verdict, forwards in ((lora, 3), (qlora, 2)):  # LoRA recomputes its layers here, QLoRA need not
        assert verdict.recompute == (forwards == 3)
        expected = 0.4 * 165.2e12 / (forwards * 2 * 6.44e9)  # embedding and norms do not multiply
        assert verdict.tokens_per_second == pytest.approx(expected, rel=0.1)  # attention and adapters are the rest
        assert verdict.seconds == pytest.approx(1e7 / verdict.tokens_per_second, rel=0.01)
        assert "tokens/s" in verdict.text
    assert [v.tokens_per_second for v in inference] == [None] * 3


def test_this_machines_row_uses_its_measured_peak():
    entry = plan(PlanConfig(model="nano", devices=["cpu"])).devices[0]
    assert entry.peak_tflops == 0.8
    assert entry.peak_from == "bf16, measured here"
    assert entry.has_gb == 24.0
    assert entry.usd is None
    assert plan(PlanConfig(model="nano", devices=["cpu"], price=1.0)).devices[0].usd is not None


def test_utilisation_tokens_and_price_scale_time_and_cost():
    base = plan(PlanConfig(model="1b", devices=["a100"], tokens=1e9)).devices[0]
    fast = plan(PlanConfig(model="1b", devices=["a100"], tokens=2e9, utilisation=0.8, price=3.0)).devices[0]
    assert fast.seconds == pytest.approx(base.seconds, rel=1e-3)
    assert fast.usd == pytest.approx(2 * base.usd, rel=1e-3)


@pytest.mark.parametrize("word", ["4090", "RTX 4090", "rtx-4090", "RTX4090", "2x4090", "2 x RTX 4090"])
def test_device_names_are_read_as_people_write_them(word):
    found = devices.find_device(word)
    assert (found.memory_gb, found.count) == (24, 2 if word.startswith("2 ") or word.startswith("2x") else 1)


@pytest.mark.parametrize("word", ["1080ti", "3070", "3090", "4090", "5090", "a100", "h100", "8xH100", "h200"])
def test_cards_people_ask_about_are_known(word):
    found = devices.find_device(word)
    assert 8 <= found.memory_gb <= 141
    assert found.usd_per_hour


@pytest.mark.parametrize("word", ["4091", "", "0x4090", "x", "2xcpu", "h100x8y"])
def test_an_unknown_device_is_one_line_with_the_known_ones(word):
    with pytest.raises(HeptaError, match="devices: "):
        devices.find_device(word)


def test_devices_on_the_command_line_are_a_list():
    assert load_config(PlanConfig, None, [], {"model": "7b", "devices": "1080ti, 3070"}).devices == ["1080ti", "3070"]


def test_a_run_or_adapter_directory_is_planned_as_its_model(tmp_path, llama):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": llama}))
    assert plan(PlanConfig(model=str(run), devices=[])).parameters == LLAMA.num_parameters


def test_unreadable_models_are_one_line(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for model, said in [("8b", "not a preset"), (tmp_path / "bad", "JSON"), (tmp_path / "empty", "no config.json")]:
        with pytest.raises(HeptaError, match=said):
            plan(PlanConfig(model=str(model), devices=[]))


def test_times_and_counts_read_as_people_say_them():
    assert time_text(173 * 31_557_600) == "173 years"
    assert time_text(90) == "1.5 minutes"
    assert count_text(6_738_415_616) == "6.74 G"


def test_plan_prints_json_and_never_imports_torch(tmp_path):
    code = (
        "import sys\nfrom hepta.cli.app import main\n"
        "try:\n    main(['plan', '--model', '7b', '--devices', '4090,8xH100', '--json'])\n"
        "finally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "False"
    value = json.loads(done.stdout)
    assert [device["device"] for device in value["devices"]] == ["4090", "8xH100"]


def test_doctor_machine_prints_a_table_and_json(tmp_path):
    command = [sys.executable, "-m", "hepta", "doctor", "machine", "measure=false"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert "processor" in shown.stdout
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert json.loads(as_json.stdout)["cores"] >= 1
