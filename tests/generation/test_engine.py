"""The engine: cached = full, batch = alone, the same greedy tokens as transformers, stops, seeds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from hepta.config import HeptaError
from hepta.generation.engine import Engine
from hepta.model.cache import KVCache
from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder
from hepta.model.families import network_class
from hepta.model.learned import BertShape, GPT2Shape
from hepta.model.load import load_model, save_model
from hepta.model.network import Network
from hepta.model.shape import Shape
from hepta.tokenizer.load import Tokenizer, load_tokenizer

FAMILIES = {
    "grouped": ModelConfig(
        vocab_size=640, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16),
    "sliding window": ModelConfig(
        vocab_size=640, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2,
        head_dim=16, family="mistral", sliding_window=6),
    "qk norm, windows in some layers": ModelConfig(
        vocab_size=640, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=1,
        head_dim=32, family="qwen3", qk_norm=True, sliding_window=5, window_layers=(True, False, True)),
    "biases, untied": ModelConfig(
        vocab_size=640, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=4,
        head_dim=16, family="qwen2", attention_bias=True, tied=False),
    "gpt2": GPT2Shape(
        vocab_size=640, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, max_positions=128),
}  # fmt: skip
LONG = "A long prompt, much longer than the others, about a river in the north."
TEXTS = ["The", "今天天气怎么样？我们去", LONG, "第三回", "It"]


def noisy(config: Shape, scale: float = 0.15) -> Network:
    """Random weights large enough that every detail of attention decides the next token."""
    model, generator = network_class(config)(config), torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * scale if parameter.ndim > 1 else 1 + noise * scale)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_dir)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chunks", [(1,) * 24, (10, 1, 1, 12), (23, 1)])
def test_cached_decoding_equals_the_full_forward(name: str, chunks: tuple[int, ...]) -> None:
    """Trap G1."""
    model = noisy(FAMILIES[name])
    ids = torch.randint(0, 640, (3, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cache = KVCache(model.config, 3, 24, torch.float32, torch.device("cpu"))
        pieces, start = [], 0
        for size in chunks:
            positions = torch.arange(start, start + size).expand(3, -1)
            pieces.append(model(ids[:, start : start + size], positions=positions, cache=cache))
            start += size
        torch.testing.assert_close(torch.cat(pieces, 1), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_ragged_rows_are_as_if_alone(name: str) -> None:
    """Trap G1: rows of different lengths share one cache; a row freed in between leaves the others alone."""
    model, lengths = noisy(FAMILIES[name]), [3, 17, 1, 9]
    rows = [torch.randint(0, 640, (n + 6,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    cache = KVCache(model.config, 4, 24, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        padded = torch.zeros(4, 17, dtype=torch.long)
        for row, (ids, n) in enumerate(zip(rows, lengths, strict=True)):
            padded[row, :n] = ids[:n]
        got = model(padded, positions=torch.arange(17).expand(4, -1), cache=cache)
        for row, (ids, n) in enumerate(zip(rows, lengths, strict=True)):
            torch.testing.assert_close(got[row, :n], model(ids[None, :n])[0], rtol=1e-5, atol=1e-5)
        live = [0, 1, 2, 3]
        for step in range(6):
            if step == 3:
                cache.drop(1)
                live = [0, 3, 2]
            ids = torch.stack([rows[i][lengths[i] + step] for i in live])[:, None]
            positions = torch.tensor([[lengths[i] + step] for i in live])
            got = model(ids, positions=positions, cache=cache)
            for row, i in enumerate(live):
                full = model(rows[i][None, : lengths[i] + step + 1])[0, -1]
                torch.testing.assert_close(got[row, -1], full, rtol=1e-5, atol=1e-5)


def slow_greedy(model: Decoder, prompt: list[int], count: int, allowed: Callable[[Tensor], Tensor]) -> list[int]:
    """No cache, no batch: the whole sequence again for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(allowed(model(torch.tensor([ids]))[0, -1]).argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_is_the_same_alone_in_a_batch_and_without_a_cache(
    name: str, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """Trap G2."""
    model = noisy(FAMILIES[name])
    engine = Engine(model, tokenizer)
    hidden = torch.tensor(sorted(tokenizer.special_ids))
    together = engine.generate(prompts * 7, max_new_tokens=15, stop_ids=[])
    for row, prompt in enumerate(prompts):
        expected = slow_greedy(model, prompt, 15, lambda logits: logits.index_fill(0, hidden, -1e9))
        assert [together[row + 5 * i].ids for i in range(7)] == [expected] * 7
        assert engine.generate([prompt], max_new_tokens=15, stop_ids=[])[0].ids == expected
    small = Engine(model, tokenizer, batch_size=2).generate(prompts, max_new_tokens=15, stop_ids=[])
    assert [c.ids for c in small] == [c.ids for c in together[:5]]


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(
    name: str, tokenizer: Tokenizer, tokenizer_dir: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    save_model(noisy(FAMILIES[name]), tmp_path, tokenizer_dir)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    engine = Engine(load_model(tmp_path), tokenizer)
    hidden = sorted(tokenizer.special_ids - set(tokenizer.stop_ids))
    for prompt, ours in zip(prompts, engine.generate(prompts, max_new_tokens=40), strict=True):
        output = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=40,
            suppress_tokens=hidden,
        )  # fmt: skip
        expected = output[0, len(prompt) :].tolist()
        if ours.finish_reason == "stop":  # transformers took the stop ids from generation_config.json
            assert expected.pop() in tokenizer.stop_ids
        assert ours.ids == expected


def test_learned_positions_end_a_text(tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    model = noisy(FAMILIES["gpt2"].replace(max_positions=30))
    short, long = prompts[0], (prompts[2] * 9)[:29]
    some = Engine(model, tokenizer).generate([short, long], max_new_tokens=90, stop_ids=[])
    assert [len(prompt) + len(one.ids) for prompt, one in zip([short, long], some, strict=True)] == [30, 30]
    assert [one.finish_reason for one in some] == ["length", "length"]
    with pytest.raises(HeptaError, match="prompt 1: has 30 tokens, the model reads 30; shorten it"):
        Engine(model, tokenizer).generate([(prompts[2] * 9)[:30]])


def test_a_masked_model_is_refused_with_the_verb_that_fits(tokenizer: Tokenizer) -> None:
    shape = BertShape(vocab_size=640, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2)
    with pytest.raises(HeptaError, match="does not continue text; fill its masks with hepta generate --fill"):
        Engine(noisy(shape), tokenizer)


def test_sampling_depends_on_the_requests_seed_alone(tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    engine = Engine(noisy(FAMILIES["grouped"], 0.08), tokenizer)
    options = {"max_new_tokens": 12, "temperature": 0.9, "top_p": 0.95, "stop_ids": []}
    alone = [engine.generate([p], seed=5, **options)[0].ids for p in prompts]
    assert [c.ids for c in engine.generate(prompts, seed=5, **options)] == alone
    assert [c.ids for c in engine.generate(prompts[::-1], seed=5, **options)] == alone[::-1]
    many = engine.generate([prompts[0]] * 8, seed=[5, 6, 7, 8, 9, 10, 11, 5], **options)
    assert many[0].ids == many[7].ids == alone[0]
    assert len({tuple(c.ids) for c in many}) > 5
    assert engine.generate([prompts[0]], seed=5, **{**options, "temperature": 0.0})[0].ids != alone[0]


def test_sampled_frequencies_follow_the_models_probabilities(tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    """Trap G11: 2,000 first tokens against the model's own distribution, cut to its top 5."""
    model = noisy(FAMILIES["grouped"], 0.08)
    with torch.no_grad():
        logits = model(torch.tensor([prompts[1]]))[0, -1]
    logits[sorted(tokenizer.special_ids)] = -torch.inf
    top = logits.topk(5)
    found = torch.zeros(640)
    engine = Engine(model, tokenizer, batch_size=500)
    for c in engine.generate([prompts[1]] * 2000, 1, temperature=1, top_k=5, seed=range(2000), stop_ids=[]):
        found[c.ids[0]] += 1
    assert found.sum() == found[top.indices].sum() == 2000
    p = top.values.softmax(-1)
    assert ((found[top.indices] - 2000 * p).abs() <= 4 * (2000 * p * (1 - p)).sqrt()).all()


def test_stop_ids_end_a_text_and_other_specials_are_never_chosen(
    tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    model = noisy(FAMILIES["biases, untied"])
    assert model.lm_head is not None
    engine = Engine(model, tokenizer)
    free = engine.generate(prompts[:1], max_new_tokens=8, stop_ids=[])[0]
    cut = engine.generate(prompts[:1], max_new_tokens=8, stop_ids=[free.ids[3]])[0]
    first = free.ids.index(free.ids[3])
    assert (cut.ids, cut.finish_reason) == (free.ids[:first], "stop")
    assert (free.finish_reason, len(free.ids)) == ("length", 8)
    with torch.no_grad():  # now the model wants specials and padded rows only
        model.lm_head.weight[: tokenizer.size - 4] *= 1e-3
    wishes = engine.generate(prompts, max_new_tokens=8, stop_ids=[])
    assert not {i for c in wishes for i in c.ids} & tokenizer.special_ids


def test_padded_rows_of_the_vocabulary_are_never_chosen(tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    model = noisy(ModelConfig(
        vocab_size=704, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=16, tied=False))
    assert model.lm_head is not None
    with torch.no_grad():
        model.lm_head.weight[tokenizer.size :] *= 50
    for temperature in (0.0, 1.5):
        for c in Engine(model, tokenizer).generate(prompts, max_new_tokens=10, temperature=temperature):
            assert all(i < tokenizer.size for i in c.ids)


def test_streams_join_to_the_text_and_stop_strings_never_show(
    tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """Traps G3 and G4, with a model of random weights that emits broken UTF-8."""
    engine = Engine(noisy(FAMILIES["grouped"]), tokenizer)
    broken = 0
    for seed in range(12):
        options = {"max_new_tokens": 40, "temperature": 1.0, "seed": seed}
        whole = engine.generate([prompts[seed % 5]], **options)[0]
        pieces = list(engine.stream(prompts[seed % 5], **options))
        assert "".join(pieces) == whole.text == tokenizer.decode(whole.ids)
        broken += "\ufffd" in whole.text
        stop = whole.text[7:10]
        cut = engine.generate([prompts[seed % 5]], stop=[stop], **options)[0]
        assert (cut.text, cut.finish_reason) == (whole.text.split(stop)[0], "stop")
        assert "".join(engine.stream(prompts[seed % 5], stop=[stop], **options)) == cut.text
    assert broken > 0


def test_logprobs_are_the_models_own(tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    model = noisy(FAMILIES["grouped"])
    for options in ({}, {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.5}):
        for prompt, c in zip(prompts, Engine(model, tokenizer).generate(prompts, 9, **options), strict=True):
            with torch.no_grad():
                logprobs = model(torch.tensor([prompt + c.ids]))[0].log_softmax(-1)
            expected = logprobs[len(prompt) - 1 : -1].gather(-1, torch.tensor(c.ids)[:, None]).squeeze(-1)
            assert len(c.logprobs) == len(c.ids)
            torch.testing.assert_close(torch.tensor(c.logprobs), expected, rtol=0, atol=1e-4)


def test_a_model_in_training_is_left_as_it_was(tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    model = noisy(FAMILIES["grouped"])
    expected = Engine(model, tokenizer).generate(prompts, 5)
    model.train()
    model.compute_dtype = torch.bfloat16
    model(torch.tensor([prompts[1]])).float().sum().backward()
    assert Engine(model, tokenizer).generate(prompts, 5) == expected
    assert model.training
    assert model.compute_dtype is torch.bfloat16
    assert model.output_weight.grad is not None
    model(torch.tensor([prompts[1]])).float().sum().backward()  # nothing was left in inference mode


def test_wrong_requests_are_told(tokenizer: Tokenizer) -> None:
    engine = Engine(noisy(FAMILIES["grouped"]), tokenizer)
    for prompts, options, words in [
        ([[1], []], {}, "prompt 2: is empty"),
        ([[640]], {}, "id 640 is outside the vocabulary"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens: must be at least 1"),
        ([[1]], {"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ([[1]], {"top_p": 0}, "top_p: must be"),
    ]:
        with pytest.raises(HeptaError, match=words):
            engine.generate(prompts, **options)
    with pytest.raises(HeptaError, match="use the tokenizer that belongs"):
        Engine(noisy(ModelConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=1,
            head_dim=16)), tokenizer)
    assert engine.generate([]) == []
