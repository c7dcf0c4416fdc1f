"""The chapter that puts the textbooks right: its Python prints what it says, its numbers follow from closed forms."""

import io
import math
import re
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hepta.model.attention import attend
from hepta.model.families import from_hf, preset
from hepta.objectives.causal import IGNORE, causal_loss
from hepta.planning.cost import rule_of_thumb_flops
from hepta.planning.memory import Setting, memory, weight_bytes

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["textbook-numbers", "textbook-programs", "textbook-statements"]
BLOCK = re.compile(r"^```(python|bash|text)(?: \w+)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, content) of a page's Python, shell and text blocks, in order."""
    return [(found[1], found[2]) for found in BLOCK.finditer((DOCS / page).read_text(encoding="utf-8"))]


def python(page: str) -> list[tuple[str, str]]:
    """A page's Python blocks, each with the text that follows it."""
    found = [*blocks(page), ("", "")]
    return [(code, after if of == "text" else "") for (kind, code), (of, after) in pairwise(found) if kind == "python"]


@pytest.fixture
def place(tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which ``out/demo/tok`` is a small tokenizer."""
    (tmp_path / "out/demo").mkdir(parents=True)
    (tmp_path / "out/demo/tok").symlink_to(tokenizer_dir)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_both_languages_show_the_same_code_and_output(page):
    assert blocks(f"{page}.md") == blocks(f"{page}.zh.md")


@pytest.mark.parametrize("page", PAGES)
def test_python_prints_what_the_chapter_says(page, place):
    names: dict[str, object] = {"__name__": page}
    for code, expected in python(f"{page}.md"):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code, f"{page}.md", "exec"), names)
        assert printed.getvalue() == expected, code


def softmax(scores: list[float]) -> list[float]:
    """In plain Python, so that no line of ours checks itself."""
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def column(*values: float) -> torch.Tensor:
    """Numbers as tokens of width 1: (1, 1, T, 1)."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, -1, 1)


@pytest.mark.parametrize(("causal", "stated"), [(False, [8.5752, 8.8509, 8.9480]), (True, [7.0, 7.8808, 8.9480])])
def test_attention_of_three_numbers(causal, stated):
    q, k, v = [1, 2, 3], [4, 5, 6], [7, 8, 9]
    weights = [softmax([a * b for b in k[: t + 1 if causal else 3]]) for t, a in enumerate(q)]
    by_hand = [sum(w * x for w, x in zip(row, v, strict=False)) for row in weights]
    ours = attend(column(*q), column(*k), column(*v), None, causal).flatten().tolist()
    assert ours == pytest.approx(by_hand, abs=1e-12)
    assert ours == pytest.approx(stated, abs=5e-5)


def test_attention_of_one_key_is_its_value():
    one = [torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 3) for x in ([1, 2, 3], [4, 5, 6], [7, 8, 9])]
    assert attend(*one, None).flatten().tolist() == [7, 8, 9]
    assert 32 / math.sqrt(3) == pytest.approx(18.4752, abs=5e-5)


def test_cross_entropy_counts_the_right_class_only():
    logits = torch.tensor([[[0.1, 0.8, 0.1]]]).log().requires_grad_()
    loss = causal_loss(logits, torch.eye(3), torch.tensor([[1]])).total
    loss.backward()
    assert [loss.item(), loss.item() / math.log(2), math.exp(loss.item())] == pytest.approx(
        [0.2231, 0.3219, 1.25], abs=5e-5
    )
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([0.1, -0.2, 0.1], abs=1e-6)


def test_a_training_step_by_hand():
    W = [[0.1, 0.2, 0.3, 0.5], [0.1, 0.3, 0.4, 0.6], [0.2, 0.4, 0.5, 0.7], [0.3, 0.5, 0.6, 0.8]]
    context = [[0.2, 0.3, 0.4, 0.6], [0.3, 0.4, 0.5, 0.7], [0.4, 0.5, 0.6, 0.8], [0.5, 0.6, 0.7, 0.9]]
    right = [1, 2, 3]

    def losses(W: list[list[float]]) -> tuple[list[list[float]], float]:
        p = [softmax([sum(w * c for w, c in zip(row, context[t], strict=True)) for row in W]) for t in range(3)]
        return p, -sum(math.log(p[t][right[t]]) for t in range(3))

    p, total = losses(W)
    dW = [[sum((p[t][i] - (i == right[t])) * context[t][j] for t in range(3)) for j in range(4)] for i in range(4)]
    stepped = [[w - 0.1 * d for w, d in zip(row, slope, strict=True)] for row, slope in zip(W, dW, strict=True)]
    weight = torch.tensor(W, requires_grad=True)
    summed = causal_loss(torch.tensor([context]), weight, torch.tensor([[*right, IGNORE]]))
    loss = summed.total
    loss.backward()
    assert summed.weight == 3
    assert loss.item() == pytest.approx(total, abs=1e-5)
    assert weight.grad is not None
    assert weight.grad.tolist() == [pytest.approx(row, abs=1e-6) for row in dW]
    assert [total, total / 3, math.exp(total / 3), losses(stepped)[1]] == pytest.approx(
        [3.8797, 1.2932, 3.6445, 3.8385], abs=5e-5
    )
    assert dW[0] == pytest.approx([0.1674, 0.2239, 0.2805, 0.3936], abs=5e-5)
    assert dW[3] == pytest.approx([-0.1058, -0.1088, -0.1118, -0.1178], abs=5e-5)


def test_parameters_of_known_models():
    assert (
        preset("gpt2-small").num_parameters
        == 50257 * 768 + 1024 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768
        == 124_439_808
    )
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert llama_2_7b().num_parameters == 2 * 32000 * 4096 + 32 * layer + 4096 == 6_738_415_616


def test_what_seven_billion_cost():
    shape, N = llama_2_7b(), 6_738_415_616
    state = memory(shape, "full", Setting(sequence_length=2048))
    assert weight_bytes(shape, "bf16") == 2 * N == pytest.approx(13.5e9, rel=0.005)
    assert state.weights + state.gradients + state.optimizer == 16 * N == pytest.approx(107.8e9, rel=0.0005)
    assert round(N / 2e9, 1) == 3.4
    assert weight_bytes(shape, "4-bit") > N / 2
    flops = rule_of_thumb_flops(N, 20 * N)
    assert flops == 120 * N**2 == pytest.approx(5.45e21, rel=0.001)
    assert flops / 1e12 / (365.25 * 86400) == pytest.approx(173, abs=0.5)
    assert flops / (8 * 400e12) / 86400 == pytest.approx(20, abs=0.5)


def llama_2_7b():
    """Llama-2-7B's shape, from the sizes in its ``config.json``."""
    return from_hf({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False,
    })  # fmt: skip
