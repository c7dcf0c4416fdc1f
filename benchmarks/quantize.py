"""Speed of quantised models against the same shape in bfloat16, taking turns in one process.

    python benchmarks/quantize.py --model 1b small [--rounds 5] [--threads 2] [--tokens 24] [--prompt 512]

Weights are random: speed does not depend on them. Each round every kind of weights decodes ``--tokens`` tokens after a
prompt of 16 (one text, hepta's own Engine, products in bfloat16), then reads a prompt of ``--prompt`` tokens. Printed:
tokens per second, and the median ratio to bfloat16 of the same round with its spread.
"""

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch
from torch import nn

from hepta.generation.engine import Engine
from hepta.model.families import network_class, preset
from hepta.model.network import Network
from hepta.model.quantized import settle, swap_layers
from hepta.model.scheme import PACKED, SCALE, Scheme

KINDS = {"bf16": None, "8 bits": Scheme(8), "4 bits": Scheme(4, 32)}
SHORT = 16  # tokens before the first that is decoded


class Vocabulary:
    """What the engine asks of a tokenizer; nothing ends a text."""

    def __init__(self, size: int) -> None:
        self.size, self.special_ids, self.stop_ids = size, set[int](), list[int]()

    def token_bytes(self, token: int) -> bytes:
        """Any text."""
        return b"a"


def build(name: str, scheme: Scheme | None) -> Network:
    """A model of a preset's shape with random weights, floats or integers."""
    shape = preset(name)
    with torch.device("meta"):
        model = network_class(shape)(shape)
        if scheme is not None:
            maps = [place for place, module in model.named_modules() if isinstance(module, nn.Linear)]
            head = "model.embed_tokens" if shape.tied else "lm_head"
            names = [place + SCALE for place in (*maps, "model.embed_tokens")]
            names += [place + PACKED for place in maps if scheme.bits == 4 and place != head]
            swap_layers(model, names, scheme)
    for place, parameter in list(model.named_parameters()):
        owner, leaf = model.get_submodule(place.rpartition(".")[0]), place.rpartition(".")[2]
        if parameter.is_floating_point():
            value = torch.empty(parameter.shape, dtype=torch.bfloat16)
            constant = 1.0 if parameter.ndim == 1 else 1e-3 if leaf == "weight_scale" else None
            value = value.uniform_(-0.03, 0.03) if constant is None else value.fill_(constant)
        else:
            value = torch.empty(parameter.shape, dtype=parameter.dtype).random_(-127, 127)
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    settle(model)
    return model.eval()


def seconds(engine: Engine, prompt: int, tokens: int) -> float:
    """Of so many tokens after a prompt of such length."""
    began = time.perf_counter()
    engine.generate([list(range(5, 5 + prompt))], max_new_tokens=tokens)
    return time.perf_counter() - began


def measure(name: str, rounds: int, tokens: int, prompt: int) -> dict[str, Any]:
    """Tokens per second of every kind of weights, and ratios to bfloat16."""
    engines = {}
    for kind, scheme in KINDS.items():
        model = build(name, scheme)
        engines[kind] = Engine(model, Vocabulary(model.config.vocab_size), 1)
        seconds(engines[kind], SHORT, 2)
    rates: dict[str, dict[str, list[float]]] = {"decode": {k: [] for k in engines}, "prefill": {k: [] for k in engines}}
    for _ in range(rounds):
        for kind, engine in engines.items():
            first = seconds(engine, SHORT, 1)
            rates["decode"][kind].append(tokens / (seconds(engine, SHORT, tokens + 1) - first))
            rates["prefill"][kind].append(prompt / seconds(engine, prompt, 1))
    found: dict[str, Any] = {"model": name, "tokens": tokens, "prompt": prompt, "rounds": rounds}
    for what, kinds in rates.items():
        for kind, values in kinds.items():
            ratios = [a / b for a, b in zip(values, kinds["bf16"], strict=True)]
            found[f"{what}, {kind}"] = {
                "tokens_per_second": round(statistics.median(values), 1), "ratio": round(statistics.median(ratios), 2),
                "spread": [round(min(ratios), 2), round(max(ratios), 2)],
            }  # fmt: skip
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["1b", "small"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    for name in arguments.model:
        found = measure(name, arguments.rounds, arguments.tokens, arguments.prompt)
        for key, value in found.items():
            if isinstance(value, dict):
                low, high = value["spread"]
                print(f"{name}: {key}: {value['tokens_per_second']:,} tok/s, {value['ratio']}× ({low}–{high}) bf16")
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
