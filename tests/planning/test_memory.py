"""Memory by class against closed forms, the textbook's numbers, and what autograd really keeps."""

import pytest

from hepta.model.config import ModelConfig
from hepta.model.families import preset
from hepta.planning.memory import (
    METHODS,
    Setting,
    StateBytes,
    adapter_parameters,
    kv_cache_bytes,
    layer_activation_bytes,
    layer_matrix_parameters,
    memory,
    weight_bytes,
)

LLAMA = ModelConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32, num_kv_heads=32,
    head_dim=128, tied=False)  # Llama-2-7B
SETTING = Setting(2048)


def test_llama_2_7b_weighs_what_the_textbook_says():
    assert LLAMA.num_parameters == 6_738_415_616
    assert weight_bytes(LLAMA, "bf16") / 1e9 == pytest.approx(13.5, abs=0.03)
    state = memory(LLAMA, "full", SETTING)
    assert (state.weights + state.gradients + state.optimizer) / 1e9 == pytest.approx(107.8, abs=0.05)
    assert weight_bytes(LLAMA, "4-bit") / 1e9 >= 3.4


def test_classes_of_full_training_are_4_4_and_8_bytes_a_parameter():
    found = memory(LLAMA, "full", SETTING)
    N = LLAMA.num_parameters
    assert (found.weights, found.gradients, found.optimizer, found.copies) == (4 * N, 4 * N, 8 * N, 2 * N)


def test_lora_parameters_are_rank_times_inputs_plus_outputs():
    D, F = 4096, 11008
    assert adapter_parameters(LLAMA, 16) == 16 * 32 * (4 * (D + D) + 3 * (D + F))
    found = memory(LLAMA, "lora", SETTING)
    assert found.gradients == 4 * adapter_parameters(LLAMA, 16)
    assert found.weights == 2 * LLAMA.num_parameters + 4 * adapter_parameters(LLAMA, 16)


@pytest.mark.parametrize(("method", "bits"), [("int8", 8), ("4-bit", 4)])
@pytest.mark.parametrize("tied", [True, False])
def test_quantised_weights_are_as_large_as_those_that_compress_quantize_writes(tmp_path, method, bits, tied):
    from hepta.compression.config import QuantizeConfig
    from hepta.compression.quantize import quantize
    from hepta.model.decoder import Decoder
    from hepta.model.load import save_model

    shape = preset("nano", 512).replace(tied=tied, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = Decoder(shape)
    model.init_weights(0)
    save_model(model, tmp_path / "model")
    made = quantize(QuantizeConfig(model=str(tmp_path / "model"), bits=bits, output=tmp_path / "small"))
    norms = 2 * shape.parameters()["norm"]  # float32 there as in the model, bf16 in a plan
    shapes = 16 * 6 * shape.num_layers * (bits == 4) + 2 * 512 * tied  # and a tied head's copy of the scales
    assert made.bytes_after == weight_bytes(shape, method) + norms + shapes


def test_qlora_leaves_embedding_and_head_in_bf16():
    rest = LLAMA.num_parameters - 32 * layer_matrix_parameters(LLAMA)
    assert rest == 2 * 32000 * 4096 + 65 * 4096
    assert weight_bytes(LLAMA, "qlora") == pytest.approx(32 * layer_matrix_parameters(LLAMA) * 4.127 / 8 + 2 * rest)


def test_kv_cache_of_llama_2_7b_is_half_a_megabyte_a_token():
    assert kv_cache_bytes(LLAMA, 1) == 2 * 2 * 32 * 32 * 128 == 524_288
    grouped = preset("7b")
    assert kv_cache_bytes(grouped, 100, sequences=3) == 3 * 100 * 2 * 2 * 32 * 8 * 128


def test_a_sliding_layer_keeps_its_window_only():
    mixed = LLAMA.replace(family="mistral", sliding_window=128)
    assert kv_cache_bytes(mixed, 4096) == kv_cache_bytes(LLAMA, 128)


def test_recomputation_and_devices_lower_what_each_device_holds():
    plain = memory(LLAMA, "full", SETTING)
    again = memory(LLAMA, "full", Setting(2048, recompute=True))
    split = memory(LLAMA, "full", Setting(2048, shards=8))
    assert again.activations < plain.activations / 5
    assert (again.weights, again.optimizer) == (plain.weights, plain.optimizer)
    assert split.optimizer == plain.optimizer / 8
    assert split.activations == plain.activations


@pytest.mark.parametrize("method", METHODS)
def test_memory_grows_with_the_micro_batch(method):
    assert memory(LLAMA, method, Setting(2048, 4)).total > memory(LLAMA, method, SETTING).total


@pytest.mark.parametrize("name", ["nano", "mini"])
def test_activations_are_within_5_percent_of_what_autograd_keeps(name):
    import torch

    from hepta.model.decoder import Decoder

    B, T = 2, 384

    def kept(config: ModelConfig) -> int:
        model = Decoder(config)
        model.init_weights(0)
        model.compute_dtype = torch.bfloat16
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ids = torch.zeros(B, T, dtype=torch.long)
            out = model(ids, head=lambda hidden, weight, bias: hidden.float().sum())
            total = sum(storages.values())  # while the graph holds them
            del out
        return total

    shape = preset(name)
    layer = (kept(shape.replace(num_layers=3)) - kept(shape.replace(num_layers=1))) / 2
    copies = 2 * layer_matrix_parameters(shape)  # bf16 copies of the weights are kept too
    expected = layer_activation_bytes(shape, Setting(T, B, cpu=True)) + copies
    assert layer == pytest.approx(expected, rel=0.05)


def test_adamws_row_is_the_state_that_torch_keeps():
    import torch

    from hepta.model.decoder import Decoder
    from hepta.training.optimizer import make_optimizer, optimizer_tensors

    shape = preset("nano", 512)
    model = Decoder(shape)
    model.init_weights(0)
    optimizer = make_optimizer(model, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = sum(t.nbytes for name, t in optimizer_tensors(model, optimizer).items() if not name.endswith(".step"))
    assert kept == memory(shape, "full", SETTING).optimizer


def test_a_factored_optimizer_counts_rows_and_columns():
    state = StateBytes(matrix=1.0, other=8.0, line=4.0)
    assert state.total([(10, 20), (3, 4)], 7) == 200 + 12 + 4 * (30 + 7) + 8 * 7


def test_update_in_backward_keeps_the_gradients_of_the_largest_part_only():
    once = memory(LLAMA, "full", Setting(2048, update_in_backward=True))
    assert once.gradients == 4 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
