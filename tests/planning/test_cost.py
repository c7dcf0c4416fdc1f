"""FLOPs of a decoder against closed forms and the textbook's numbers."""

import pytest

from hepta.model.config import ModelConfig
from hepta.model.shape import mean_keys
from hepta.planning.cost import flops_per_token, rule_of_thumb_flops, step_flops, training_flops

LLAMA = ModelConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32, num_kv_heads=32,
    head_dim=128, tied=False)


def test_flops_without_attention_are_twice_the_weights_that_multiply():
    parts = LLAMA.token_flops(1)
    embedding, norms = 32000 * 4096, (2 * 32 + 1) * 4096
    assert parts.total - parts.attention == 2 * (6_738_415_616 - embedding - norms)


@pytest.mark.parametrize(("T", "window"), [(1, None), (7, None), (7, 3), (7, 7), (7, 9), (5, 1)])
def test_mean_keys_equals_counting_each_querys_keys(T, window):
    counts = [min(t + 1, window or T) for t in range(T)]
    assert mean_keys(T, window) == pytest.approx(sum(counts) / T)


def test_attention_is_the_causal_half_of_both_products_per_layer():
    T = 512
    square = 2 * (2 * 32 * 128 * T * T)  # scores, and weighted values, of one layer and sequence
    assert LLAMA.token_flops(T).attention == pytest.approx(32 * square / T * (T + 1) / (2 * T))


def test_a_sliding_window_on_some_layers_costs_less_only_there():
    full = ModelConfig(
        vocab_size=100, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)
    all_sliding = full.replace(sliding_window=8)
    mixed = all_sliding.replace(window_layers=(False, True))
    a, b, c = (config.token_flops(64).attention for config in (full, mixed, all_sliding))
    assert b == pytest.approx((a + c) / 2)
    assert c < b < a


def test_training_costs_three_forwards():
    assert training_flops(LLAMA, 10, 128) == 30 * flops_per_token(LLAMA, 128)


def test_twenty_tokens_a_parameter_of_7b_is_the_textbooks_5_45e21():
    parameters = 6_738_415_616
    flops = rule_of_thumb_flops(parameters, 20 * parameters)
    assert flops == pytest.approx(5.45e21, rel=1e-3)
    assert flops / 1e12 / 3.156e7 == pytest.approx(173, abs=1)  # years at 1 TFLOP/s
    assert flops / (8 * 400e12) / 86400 == pytest.approx(19.7, abs=0.1)  # days on 8×H100
    exact = training_flops(LLAMA, 20 * parameters, 1)  # no attention, no input embedding: a little less
    assert 0.97 < exact / flops < 1


def test_a_frozen_base_saves_the_products_that_would_be_its_gradients():
    T, rank = 512, 16
    parts = LLAMA.token_flops(T)
    adapters = rank * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert step_flops(LLAMA, T) == 3 * parts.total == training_flops(LLAMA, 1, T)
    frozen = step_flops(LLAMA, T, adapters)
    assert step_flops(LLAMA, T) - frozen == pytest.approx(parts.total - parts.attention - 6 * adapters)
    assert step_flops(LLAMA, T, adapters, recompute=True) - frozen == parts.total
