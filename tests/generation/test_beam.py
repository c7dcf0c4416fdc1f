"""Beam search finds what exhaustive search finds where it can, and what transformers finds elsewhere."""

import functools
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hepta.config import HeptaError
from hepta.data.pairs import EncodedPair, batch_of
from hepta.generation.beam import beam_search
from hepta.model.load import save_model
from hepta.model.marian import TranslatorShape
from hepta.model.translator import Translator
from hepta.objectives.translation import Translation

BOS, EOS, PAD = 1, 0, 2


def some_sources(count: int, vocabulary: int, seed: int = 3) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(3, vocabulary) for _ in range(chance.randint(1, 9))] + [EOS] for _ in range(count)]


@functools.cache
def translator(vocabulary: int, steps: int = 120) -> Translator:
    """A model half-way to turning sources round: its targets end, vary, and are far from certain."""
    shape = TranslatorShape(
        vocab_size=vocabulary, hidden_size=32, num_layers=2, encoder_layers=2, intermediate_size=64, num_heads=4,
        dropout=0.0, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    model = Translator(shape)
    model.init_weights(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        examples = [
            EncodedPair(np.array(source), np.array([BOS, *source[-2::-1], EOS]), "")
            for source in some_sources(32, vocabulary, seed=100 + step)
        ]
        batch = {name: torch.from_numpy(value) for name, value in batch_of(examples, PAD).items()}
        loss = Translation()(model, batch)
        (loss.total / loss.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def exhaustive(
    model: Translator, source: list[int], length: int, penalty: float, banned: set[int]
) -> tuple[list[int], float]:
    """The best target of at most ``length`` tokens (eos included), by scoring every one with a full forward pass."""
    words = [i for i in range(model.config.vocab_size) if i not in banned and i != EOS]
    best: tuple[float, list[int]] = (-math.inf, [])
    for size in range(1, length + 1):
        targets = [[*some, EOS] for some in itertools.product(words, repeat=size - 1)]
        if size == length:
            targets += [list(some) for some in itertools.product(words, repeat=length)]
        wanted = torch.tensor(targets)
        inputs = torch.cat((torch.full((len(targets), 1), BOS), wanted[:, :-1]), 1)
        with torch.no_grad():
            logprobs = model(inputs, torch.tensor([source]).expand(len(targets), -1)).log_softmax(-1)
        totals = logprobs.gather(-1, wanted[..., None])[..., 0].sum(-1)
        top = int(totals.argmax())
        best = max(best, (float(totals[top]) / size**penalty, targets[top]))
    return [token for token in best[1] if token != EOS], best[0]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
def test_a_wide_beam_is_exhaustive_search(penalty: float) -> None:
    """A beam as wide as all targets under way misses nothing: 5 words, at most 4 tokens, every target scored."""
    model, banned = translator(8), {BOS, PAD}
    for source in some_sources(4, 8):
        [found] = beam_search(model, [source], 5**3, penalty, max_new_tokens=4, banned=banned)
        ids, score = exhaustive(model, source, 4, penalty, banned)
        assert found.ids == ids
        assert found.score == pytest.approx(score, abs=1e-5)


def test_beam_one_is_greedy() -> None:
    model = translator(60)
    for source in some_sources(12, 60):
        [found] = beam_search(model, [source], 1, max_new_tokens=15)
        ids = [BOS]
        with torch.no_grad():
            while len(ids) <= 15:
                ids.append(int(model(torch.tensor([ids]), torch.tensor([source]))[0, -1].argmax()))
                if ids[-1] == EOS:
                    break
        assert found.ids == [token for token in ids[1:] if token != EOS]


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("penalty", [0.6, 1.0])
def test_translations_are_those_of_transformers(tmp_path: Path, beam: int, penalty: float) -> None:
    """Our directory in MarianMTModel.generate: the same ids for each of 40 sources, at the same scores.

    Where two targets tie to the last bits they may differ; on these weights none does.
    """
    model = translator(60)
    save_model(model, tmp_path)
    theirs = transformers.MarianMTModel.from_pretrained(tmp_path).eval()
    sources = some_sources(40, 60)
    found = beam_search(model, sources, beam, penalty, max_new_tokens=15, banned={BOS, PAD})
    longest = max(map(len, sources))
    ids = torch.tensor([source + [PAD] * (longest - len(source)) for source in sources])
    mask = torch.tensor([[1] * len(source) + [0] * (longest - len(source)) for source in sources])
    out = theirs.generate(
        input_ids=ids, attention_mask=mask, num_beams=beam, length_penalty=penalty, max_new_tokens=15,
        do_sample=False, suppress_tokens=[BOS, PAD], return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    expected = [[i for i in row if i not in (EOS, PAD)] for row in out.sequences[:, 1:].tolist()]
    assert [one.ids for one in found] == expected
    assert len({len(ids) for ids in expected}) > 4, "targets of many lengths, so that ending is tested"
    if beam > 1:
        assert [one.score for one in found] == pytest.approx(out.sequences_scores.tolist(), abs=1e-4)


def test_a_source_is_translated_alike_alone_and_among_others() -> None:
    model, sources = translator(60), some_sources(20, 60)
    together = beam_search(model, sources, 4)
    for source, expected in zip(sources, together, strict=True):
        [alone] = beam_search(model, [source], 4)
        assert alone.ids == expected.ids
        assert alone.score == pytest.approx(expected.score, abs=1e-5)


def test_banned_tokens_are_never_chosen() -> None:
    model, banned = translator(60), set(range(1, 40))
    found = beam_search(model, some_sources(10, 60), 3, banned=banned)
    assert not {token for one in found for token in one.ids} & banned
    assert any(one.ids for one in found)


def test_wrong_arguments_are_one_line() -> None:
    with pytest.raises(HeptaError, match="beam must be at least 1"):
        beam_search(translator(8), [[5, EOS]], 0)
    with pytest.raises(HeptaError, match="no source empty"):
        beam_search(translator(8), [[]], 2)
