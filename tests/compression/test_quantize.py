"""Quantised models: packing, products, directories that transformers opens, and what is refused."""

import json

import pytest
import torch

from hepta.compression.config import QuantizeConfig
from hepta.compression.quantize import quantize
from hepta.compression.rounding import nearest_bytes, nearest_half_bytes, repaired
from hepta.config import HeptaError, build
from hepta.model.families import network_class, preset
from hepta.model.integers import Bytes, HalfBytes, pack, unpack
from hepta.model.load import build_model, load_model, save_model
from hepta.model.quantized import is_quantized
from hepta.runner.verbs import VERBS

IDS = torch.arange(40)[None] * 7 % 500


def fresh(tmp_path, name="nano", vocab=512):
    shape = preset(name, vocab)
    model = network_class(shape)(shape)
    model.init_weights(3)
    save_model(model, tmp_path / name)
    return tmp_path / name


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
        matrix = HalfBytes.of(found.values + 8, found.scale.to(dtype))
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


@pytest.mark.parametrize("keys", [{"bits": 8}, {"bits": 4}, {"bits": 4, "group": 64}])
def test_transformers_opens_the_directory_and_gives_the_same_logits(tmp_path, keys):
    transformers = pytest.importorskip("transformers")
    made(fresh(tmp_path), tmp_path / "small", **keys)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small" / "model", dtype=torch.float32).eval()
    ours = load_model(tmp_path / "small")
    assert is_quantized(ours)
    with torch.no_grad():
        a, b = ours(IDS), theirs(IDS).logits
    assert (a - b).abs().max() < 1e-4 * b.abs().max()


def test_what_cannot_be_quantised_is_told_in_one_line(tmp_path):
    directory = fresh(tmp_path)
    made(directory, tmp_path / "small")
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
