"""The engine with models that keep no keys and values: cached = full, alone = in a batch (traps G1, G2)."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hepta.catalog.documents import iter_documents
from hepta.generation.engine import Engine
from hepta.model.families import network_class
from hepta.model.history import FeedForwardShape, LSTMShape
from hepta.model.ngram import NGram, count_ngrams
from hepta.tokenizer.load import Tokenizer, load_tokenizer

TEXTS = ["The", "今天天气怎么样？我们去", "A prompt much longer than the others, about a river.", "第三回"]
SHAPES = {
    "lstm": LSTMShape(vocab_size=640, hidden_size=32, num_layers=2, dropout=0.2),
    "feedforward": FeedForwardShape(vocab_size=640, hidden_size=24, intermediate_size=48, context=5),
}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_dir)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, wiki_en: Path, sanguo_zh: Path) -> Callable[[str], Any]:
    """A model by name: large random weights, or n-grams counted on 40 real documents."""

    def make(name: str) -> Any:
        if name == "ngram":
            texts = [d.text for path, n in ((wiki_en, 38), (sanguo_zh, 2)) for d in islice(iter_documents(path), n)]
            docs = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
            return NGram.of(count_ngrams(np.concatenate(docs), np.cumsum([len(d) for d in docs]), 640, 4)).eval()
        made, generator = network_class(SHAPES[name])(SHAPES[name]), torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return made.eval()

    return make


@pytest.mark.parametrize("name", ["lstm", "feedforward", "ngram"])
@pytest.mark.parametrize("chunks", [(1,) * 24, (10, 1, 1, 12), (23, 1)])
def test_cached_decoding_equals_the_full_forward(model: Any, name: str, chunks: tuple[int, ...]) -> None:
    made = model(name)
    ids = torch.randint(0, 640, (3, 24), generator=torch.Generator().manual_seed(0))
    cache, pieces, start = made.make_cache(3, 24, torch.float32, torch.device("cpu")), [], 0
    with torch.no_grad():
        for size in chunks:
            positions = torch.arange(start, start + size).expand(3, -1)
            pieces.append(made(ids[:, start : start + size], positions=positions, cache=cache))
            start += size
        torch.testing.assert_close(torch.cat(pieces, 1), made(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "feedforward", "ngram"])
def test_ragged_rows_are_as_if_alone(model: Any, name: str) -> None:
    """Rows of different lengths share one cache; a row freed in between leaves the others alone."""
    made, lengths = model(name), [3, 17, 1, 9]
    rows = [torch.randint(0, 640, (n + 6,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    cache = made.make_cache(4, 24, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        padded = torch.zeros(4, 17, dtype=torch.long)
        for row, (ids, n) in enumerate(zip(rows, lengths, strict=True)):
            padded[row, :n] = ids[:n]
        got = made(padded, positions=torch.arange(17).expand(4, -1), cache=cache)
        for row, (ids, n) in enumerate(zip(rows, lengths, strict=True)):
            torch.testing.assert_close(got[row, :n], made(ids[None, :n])[0], rtol=1e-5, atol=1e-5)
        live = [0, 1, 2, 3]
        for step in range(6):
            if step == 3:
                cache.drop(1)
                live = [0, 3, 2]
            ids = torch.stack([rows[i][lengths[i] + step] for i in live])[:, None]
            got = made(ids, positions=torch.tensor([[lengths[i] + step] for i in live]), cache=cache)
            for row, i in enumerate(live):
                full = made(rows[i][None, : lengths[i] + step + 1])[0, -1]
                torch.testing.assert_close(got[row, -1], full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "feedforward", "ngram"])
def test_greedy_is_the_same_alone_in_a_batch_and_without_a_cache(
    model: Any, name: str, tokenizer: Tokenizer
) -> None:
    made = model(name)
    engine, hidden = Engine(made, tokenizer), torch.tensor(sorted(tokenizer.special_ids))
    prompts = [tokenizer.encode(text) for text in TEXTS]
    together = engine.generate(prompts * 8, max_new_tokens=12, stop_ids=[])
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(12):
                logits = made(torch.tensor([ids]))[0, -1]
                ids.append(int(logits.index_fill(0, hidden, -1e9)[: tokenizer.size].argmax()))
        assert [together[row + 4 * i].ids for i in range(8)] == [ids[len(prompt) :]] * 8
        assert engine.generate([prompt], max_new_tokens=12, stop_ids=[])[0].ids == ids[len(prompt) :]
