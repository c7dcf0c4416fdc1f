"""Quantised models: packing, products, directories that transformers opens, and what is refused."""

import json
import subprocess
import sys

import pytest
import torch

from hepta.compression.calibrate import calibration_batches
from hepta.compression.config import QuantizeConfig
from hepta.compression.drift import drift
from hepta.compression.quantize import quantize
from hepta.compression.rounding import nearest_bytes, nearest_half_bytes, repaired
from hepta.compression.stream import write_stream
from hepta.config import HeptaError, build
from hepta.model.adapters import adapter_parameters, attach_lora, save_adapter
from hepta.model.families import network_class, preset
from hepta.model.integers import Bytes, HalfBytes, pack, unpack
from hepta.model.load import build_model, load_model, read_tensors, resolve_model, save_model
from hepta.model.quantized import is_quantized
from hepta.runner.verbs import VERBS
from hepta.tokenizer.load import load_tokenizer

IDS = torch.arange(40)[None] * 7 % 500


def fresh(tmp_path, name="nano", vocab=512):
    shape = preset(name, vocab).replace(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = network_class(shape)(shape)
    model.init_weights(3)
    save_model(model, tmp_path / name)
    return tmp_path / name


def drawn(place, tokenizer):
    """Fresh weights beside a real tokenizer; the MLP's 48 neurons fit no group of 32."""
    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1}
    shape = preset("nano", 640).replace(**sizes, head_dim=32)
    model = network_class(shape)(shape)
    model.init_weights(3)
    save_model(model, place, tokenizer)
    return place


def made(model, output, **keys):
    config = build(VERBS["compress quantize"].load_config_class(), {"model": str(model), "output": output, **keys})
    assert isinstance(config, QuantizeConfig)
    return quantize(config)


def test_packing_lays_eight_half_bytes_in_an_int32_lowest_first():
    values = torch.randint(-8, 8, (5, 19), generator=torch.Generator().manual_seed(0))
    packed = pack(values)
    for row in range(5):
        for column in range(19):
            word = int(packed[row, column // 8]) & 0xFFFFFFFF
            assert word >> 4 * (column % 8) & 15 == values[row, column] + 8
    assert torch.equal(unpack(packed, 19).to(torch.int8), (values + 8).to(torch.int8))


@pytest.mark.parametrize("rows", [1, 16, 17, 200])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_product_is_that_with_the_dequantised_matrix(rows, bits, dtype):
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(72, 96, generator=generator), torch.randn(rows, 96, generator=generator).to(dtype)
    found = nearest_bytes(weight) if bits == 8 else nearest_half_bytes(weight, 32)
    if bits == 8:
        matrix = Bytes(found.values, found.scale.to(dtype))
    else:
        matrix = HalfBytes.of(pack(found.values), 96, found.scale.to(dtype))
    expected = x.float() @ found.dequantized().T
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    assert (matrix.product(x).float() - expected).abs().max() < tolerance * expected.abs().max()
    assert (matrix.dequantized(torch.float32) - found.dequantized()).abs().max() < tolerance
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(matrix.product(x).float().square().sum() / 2, x)
    wanted = expected @ found.dequantized()
    assert (gradient.float() - wanted).abs().max() < 2 * tolerance * wanted.abs().max()


def test_repaired_rounding_changes_outputs_less_than_rounding_to_nearest():
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(48, 64, generator=generator)
    x = torch.randn(500, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    for group, nearest in ((None, nearest_bytes(weight)), (32, nearest_half_bytes(weight, 32))):
        better = repaired(weight, x.T @ x, group)
        errors = [((found.dequantized() - weight) @ x.T).norm() for found in (better, nearest)]
        assert errors[0] < 0.8 * errors[1]


OPENED = {
    "nano": "AutoModelForCausalLM", "bert-nano": "AutoModelForMaskedLM", "transformer-nano": "AutoModelForSeq2SeqLM",
}  # fmt: skip
CASES = [*((name, {"bits": bits}) for name in OPENED for bits in (8, 4)), ("nano", {"bits": 4, "group": 64})]


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_transformers_opens_the_directory_and_gives_the_same_logits(tmp_path, name, keys):
    transformers = pytest.importorskip("transformers")
    made(fresh(tmp_path, name), tmp_path / "small", **keys)
    opened = getattr(transformers, OPENED[name])
    theirs = opened.from_pretrained(tmp_path / "small" / "model", dtype=torch.float32).eval()
    ours = load_model(tmp_path / "small", torch.float32)
    assert is_quantized(ours)
    pair = name.startswith("transformer")
    with torch.no_grad():
        a = ours(IDS, source_ids=IDS) if pair else ours(IDS)
        b = theirs(input_ids=IDS, **({"decoder_input_ids": IDS} if pair else {})).logits
    assert (a - b).abs().max() < 1e-5 * b.abs().max()  # found: 4e-7


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["gpt2-nano", "feedforward", "lstm"])
def test_other_families_are_what_their_dequantised_weights_make_of_them(tmp_path, name, bits):
    directory = fresh(tmp_path, name)
    made(directory, tmp_path / "small", bits=bits)
    small, plain = load_model(tmp_path / "small", torch.float32), load_model(directory)
    for place, module in small.named_modules():
        if hasattr(module, "matrix"):
            weight = module.matrix.dequantized(torch.float32)
            old = plain.get_submodule(place).weight.data
            assert 0 < (weight - old).norm() / old.norm() < (0.02 if bits == 8 else 0.12)
            old.copy_(weight)
    with torch.no_grad():
        assert (small(IDS) - plain(IDS)).abs().max() < 1e-4 * plain(IDS).abs().max()
    if name == "gpt2-nano":  # whose maps transformers keeps in a class that nobody can quantise: refused, not misread
        transformers = pytest.importorskip("transformers")
        with pytest.raises((KeyError, ValueError), match="hepta-gpt2"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small" / "model")


@pytest.mark.parametrize("bits", [8, 4])
def test_a_rows_logits_do_not_depend_on_how_many_rows_there_are(tmp_path, bits):
    made(fresh(tmp_path), tmp_path / "small", bits=bits)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        model = load_model(tmp_path / "small", dtype)
        with torch.no_grad():
            few, many = model(IDS[:, :12]).float(), model(IDS.expand(8, -1))[0, :12].float()
        assert (few - many).abs().max() < tolerance * many.abs().max()


@pytest.mark.parametrize("kind", ["shards", "text"])
def test_calibrated_rounding_is_nearer_to_the_model_than_plain(tmp_path, tokenizer_dir, tokens, texts, kind):
    model, corpus = drawn(tmp_path / "drawn", tokenizer_dir), tokens if kind == "shards" else texts
    found = made(model, tmp_path / "nearest", bits=4)
    assert found.drift is None
    assert found.calibration_tokens == 0
    better = made(model, tmp_path / "calibrated", bits=4, calibrate=corpus, sequences=24, sequence_length=64)
    assert better.calibration_tokens == 21 * 64
    assert better.drift is not None
    assert better.drift.tokens == 3 * 63
    rows = torch.cat(calibration_batches(corpus, load_tokenizer(model), 24, 64))[21:]
    nearest = drift(load_model(model), load_model(tmp_path / "nearest", torch.float32), [rows])
    assert better.drift.kl < 0.8 * nearest.kl
    reread = made(model, tmp_path / "calibrated", bits=4, calibrate=corpus, sequences=24, sequence_length=64)
    assert reread.drift == better.drift
    assert better.kept["48 columns are no whole number of groups"] == 3 * 64 * 48 * 4  # down_proj of each layer


def test_sizes_are_those_of_the_files(tmp_path):
    directory = fresh(tmp_path)
    for bits, most in ((8, 8.2), (4, 5.0)):
        found = made(directory, tmp_path / str(bits), bits=bits)
        size = (tmp_path / str(bits) / "model" / "model.safetensors").stat().st_size
        assert 0 < size - found.bytes_after < 0.02 * size  # the file's header
        assert found.bits_per_weight < most


def test_shards_written_as_they_come_are_the_same_tensors(tmp_path):
    tensors = {f"layer.{i}": torch.full((10, 10), float(i)) for i in range(7)}
    for shard_bytes, files in ((800, 4), (10_000, 1)):
        place = tmp_path / str(shard_bytes)
        place.mkdir()
        write_stream(tensors.items(), place, shard_bytes)
        assert len(list(place.glob("*.safetensors"))) == files
        found = dict(read_tensors(place))
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_an_adapter_is_merged_before_it_is_quantised(tmp_path, tokenizer_dir):
    base = drawn(tmp_path / "drawn", tokenizer_dir)
    model = load_model(base)
    attach_lora(model, 4, 8.0)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.normal_(0, 0.1)
    save_adapter(model, tmp_path / "adapter", base)
    made(tmp_path / "adapter", tmp_path / "small")
    with torch.no_grad():
        wanted, found = model(IDS), load_model(tmp_path / "small", torch.float32)(IDS)
    assert (wanted - found).abs().max() < 0.05 * wanted.abs().max()


def test_what_cannot_be_quantised_is_told_in_one_line(tmp_path):
    directory = fresh(tmp_path)
    made(directory, tmp_path / "small")
    with pytest.raises(HeptaError, match=r"^group 64: 8 bits share a scale by row"):
        build(QuantizeConfig, {"model": str(directory), "output": str(tmp_path / "b"), "group": 64})
    for model, message in ((tmp_path / "small", "is quantised"), (tmp_path / "nothing", "no such directory")):
        with pytest.raises(HeptaError, match=message):
            made(model, tmp_path / "again")
    with pytest.raises(HeptaError, match=r"integers do not learn; start from .*nano"):
        build_model(tmp_path / "small")
    config = tmp_path / "small" / "model" / "config.json"
    value = json.loads(config.read_text())
    value["quantization_config"]["quant_method"] = "gptq"
    config.write_text(json.dumps(value))
    with pytest.raises(HeptaError, match="quantised by 'gptq'"):
        load_model(tmp_path / "small")


RSS = """
import sys, psutil, torch
from hepta.model.load import load_model
own = psutil.Process()
torch.zeros(1); before = own.memory_info().rss
model = load_model(sys.argv[1], torch.bfloat16)
with torch.no_grad(): model(torch.arange(8)[None])
print(own.memory_info().rss - before)
"""


@pytest.mark.slow  # two processes and 200 MB of weights
def test_a_quantised_model_takes_the_memory_of_its_bytes(tmp_path):
    directory = fresh(tmp_path, "mini", 65536)  # 58M parameters
    taken = {}
    for bits in (16, 8, 4):
        if bits != 16:
            made(directory, tmp_path / str(bits), bits=bits)
        place = directory if bits == 16 else tmp_path / str(bits)
        done = subprocess.run([sys.executable, "-c", RSS, str(place)], capture_output=True, text=True, check=True)
        taken[bits] = int(done.stdout) / 1e6
    assert 110 < taken[16] < 190, "58M weights of two bytes"
    assert taken[8] < taken[16] - 40
    assert taken[4] < taken[8] - 5


@pytest.fixture(scope="module")
def halves(tmp_path_factory, wiki_en):
    """English leads to calibrate with, and others to be judged on."""
    lines = wiki_en.read_text(encoding="utf-8").splitlines(keepends=True)
    place = tmp_path_factory.mktemp("halves")
    for name, part in (("learn", lines[:400]), ("judge", lines[-60:])):
        (place / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    return place


@pytest.mark.model
@pytest.mark.parametrize(("keys", "most_kl", "most_loss"), [
    ({"bits": 8}, 0.003, 0.004), ({"bits": 4}, 0.15, 0.035),
])  # fmt: skip
def test_smollm2_predicts_nearly_as_before(tmp_path, halves, keys, most_kl, most_loss):
    calibrate = {"calibrate": halves / "learn.jsonl", "sequences": 64, "sequence_length": 256}
    made("smollm2-135m", tmp_path / "small", **keys, **calibrate)
    original = load_model("smollm2-135m")
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
    found = drift(
        original, load_model(tmp_path / "small", torch.float32),
        calibration_batches(halves / "judge.jsonl", tokenizer, 16, 256),
    )  # fmt: skip
    assert found.kl < most_kl
    assert found.nats_after < found.nats_before * (1 + most_loss)
