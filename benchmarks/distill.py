"""What a teacher is worth: the same small student at equal steps, with and without one, over several seeds.

    python benchmarks/distill.py --teacher out/demo/base --data out/demo/tokens [--layers 2] [--steps 300]

Runs, each a directory under ``--output`` that is gone on with where it was stopped:

- plain: fresh weights, trained on the data alone;
- taught: the same fresh weights, trained on the data and the teacher;
- kept: the teacher's own layers, evenly spaced, trained on the data and the teacher;
- kept-plain: the same layers, trained on the data alone.

Printed: bits per byte of the validation split for each seed, their mean, smallest and largest.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from hepta.compression.config import DistillConfig
from hepta.compression.distill import distill, keep_layers
from hepta.config import build
from hepta.data.shards import read_tokens_manifest
from hepta.model.families import network_class
from hepta.model.load import load_model, save_model
from hepta.training.config import PretrainConfig
from hepta.training.pretrain import pretrain

KINDS = ("plain", "taught", "kept", "kept-plain")


def starts(teacher: Path, data: Path, layers: int, seed: int, output: Path) -> dict[str, Path]:
    """Directories of the weights that runs begin with: fresh ones of the teacher's width, and the teacher's own."""
    places = {"fresh": output / f"fresh-{seed}", "kept": output / "kept"}
    model = keep_layers(load_model(teacher), layers)
    if not places["kept"].exists():
        save_model(model, places["kept"], data / "tokenizer")
    if not places["fresh"].exists():
        fresh = network_class(model.config)(model.config)
        fresh.init_weights(seed)
        save_model(fresh, places["fresh"], data / "tokenizer")
    return places


def one(kind: str, arguments: argparse.Namespace, seed: int) -> float:
    """Bits per byte of one finished run."""
    places = starts(arguments.teacher, arguments.data, arguments.layers, seed, arguments.output)
    model = places["kept" if kind.startswith("kept") else "fresh"]
    keys: dict[str, Any] = {
        "data": arguments.data, "output": arguments.output / f"{kind}-{seed}", "seed": seed,
        "max_steps": arguments.steps, "lr": arguments.kept_lr if kind.startswith("kept") else arguments.lr,
        "sequence_length": 256, "batch_tokens": 2048, "threads": 1, "compile": False, "sample_prompts": [],
        "eval": {"every": arguments.steps, "tokens": 2048}, "checkpoint": {"every": 100, "keep": 1},
    }  # fmt: skip
    if kind in ("plain", "kept-plain"):
        result = pretrain(build(PretrainConfig, {**keys, "model": str(model)}))
    else:
        result = distill(build(DistillConfig, {**keys, "student": str(model), "teacher": str(arguments.teacher)}))
    print(f"{kind} {seed}: {result.final['val_bpb']['all']:.4f}, {result.seconds:.0f} s", flush=True)
    return result.final["val_bpb"]["all"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("out/demo/base"))
    parser.add_argument("--data", type=Path, default=Path("out/demo/tokens"))
    parser.add_argument("--output", type=Path, default=Path("out/distill"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--lr", type=float, default=0.75 / 192)
    parser.add_argument("--kept-lr", type=float, default=0.15 / 192)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    manifest = read_tokens_manifest(arguments.data)
    print(f"{manifest['facts']['splits']['val']['tokens']:,} held-out tokens, {arguments.steps} steps of 2,048")
    found = {kind: [] for kind in arguments.kinds}
    for seed in arguments.seeds:
        for kind in arguments.kinds:
            found[kind].append(one(kind, arguments, seed))
    for kind, values in found.items():
        print(f"{kind:12}{statistics.mean(values):8.4f}  ({min(values):.4f}-{max(values):.4f})")


if __name__ == "__main__":
    main()
