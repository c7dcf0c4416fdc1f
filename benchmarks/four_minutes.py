"""Bits per byte on held-out text after the same minutes of training on the same bytes: hepta, nanoGPT, nanochat.

    python benchmarks/four_minutes.py --corpus out/demo/corpus --tokens out/demo/tokens --output out/four-minutes
        --nanogpt DIR --nanochat DIR [--minutes 4] [--probe-minutes 1] [--seeds 3] [--threads 2]

``DIR`` are checkouts of the two, which are imported from there (``four_minutes_peers.py``); nanochat wants rustbpe
(``pip install rustbpe``) beside what hepta has. ``make demo`` makes corpus and tokens. About an hour, and nothing else
may run. Every finished run is a row of ``results.jsonl``; the same command goes on behind the last. ``results.md`` is
the answer.

Each system has two or three candidates (size, batch, context, tokenizer, compiled or not), among them what its own
documentation says for a CPU. Probes, scored on split ``val``: one each; then the best at twice its rate, and again as
long as that helps (three times at most); if it never did, at half. The best of all goes to the full time with each
seed, in turns, and is scored on split ``test``, which nothing was chosen by. Seed 1 makes all probes.

The same for all: raw text, threads, glibc told to keep freed memory (hepta does so itself), one run at a time; scoring
by ``hepta eval``'s definition: windows of the context a model was trained with, half overlapping, every token once and
the end of each document too, over the UTF-8 bytes. The time is from the start of making the model to the last step.
Compiling is inside, with a warm cache: whoever compiles has done so once before, and results.md has the cold seconds.
Encoding text is outside. hepta's time is that of the whole command ``hepta pretrain minutes=…``, from its start to its
last checkpoint: importing torch, one evaluation, timing a few steps and saving count against it alone.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(64 << 20)}
NEVER = 10**9  # steps between evaluations
Row = dict[str, Any]
Candidate = dict[str, Any]


def tiny(ids: str | int, rate: float, compiled: bool, **shape: int) -> Candidate:
    """A peer's candidate: whose ids it reads, its rate, its shape."""
    return {"ids": ids, "rate": rate, "shape": {**shape, "compile": compiled}}


def nano(rate: float, *keys: str) -> Candidate:
    """A candidate of hepta: keys of ``hepta pretrain``."""
    return {"rate": rate, "keys": ["--model", "nano", "sequence_length=256", "compile=true", *keys]}


CANDIDATES: dict[str, dict[str, Candidate]] = {
    "hepta": {
        "hepta plan --minutes 4": nano(0.0078, "batch_tokens=4096", "optimizer=muon", "schedule=linear"),
        "adamw": nano(0.0039, "batch_tokens=2048"),
    },
    "nanoGPT": {
        "README for a CPU": tiny("chars", 1e-3, False, layers=4, heads=4, width=128, length=64, sequences=12),
        "hepta's ids": tiny("hepta", 2e-3, False, layers=4, heads=4, width=128, length=128, sequences=8),
        "hepta's ids, wider": tiny("hepta", 2e-3, True, layers=4, heads=3, width=192, length=256, sequences=8),
    },
    "nanochat": {
        "runcpu.sh": tiny(32768, 1.0, True, layers=6, length=512, sequences=32, parts=8),
        "small": tiny(8192, 1.0, True, layers=4, length=256, sequences=8),
        "small, larger batch": tiny(8192, 8.0, True, layers=4, length=256, sequences=16),
    },
}  # fmt: skip
FLOAT32 = ("runcpu.sh",)  # as nanochat comes on a CPU; the others by its own switch in bfloat16


class Race:
    """The runs of one comparison: what is done already, and how the next one is done."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.place = arguments, arguments.output.resolve()
        self.rows_file, self.cache = self.place / "results.jsonl", self.place / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        written = self.rows_file.read_text().splitlines() if self.rows_file.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in written]

    def warm(self, system: str, candidate: str) -> None:
        """Two steps of a candidate that compiles, so that later runs find its kernels and what cannot run fails now."""
        chosen = CANDIDATES[system][candidate]
        if system != "nanoGPT" or chosen["shape"]["compile"]:  # nanochat's optimizer always compiles
            self._one({"system": system, "candidate": candidate, "rate": chosen["rate"], "seed": 0, "split": "none"})

    def run(self, system: str, candidate: str, rate: float, seed: int, minutes: float, split: str) -> Row:
        """One run's row: the one on record, or that of doing it now."""
        key = {"system": system, "candidate": candidate, "rate": rate, "seed": seed, "split": split}
        return self._one({**key, "minutes": minutes})

    def _one(self, key: Row) -> Row:
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        print(f"{time.strftime('%H:%M:%S')}  " + "  ".join(map(str, key.values())), flush=True)
        load = os.getloadavg()[0]
        row = {**key, **(self._hepta if key["system"] == "hepta" else self._peer)(key), "load_before": load}
        self.rows.append(row)
        with self.rows_file.open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        told = "" if "bpb" not in row else f"{row['bpb']['all']:.4f} bits per byte, {row['steps']} steps, "
        print(
            f"          {told}{row['seconds']:.0f} s, of which {row['until_first']:.0f} before the second step",
            flush=True,
        )
        return row

    def _command(self, name: str, command: list[str], **more: str) -> str:
        """Run it alone; its standard output."""
        environment = {**os.environ, **KEEP, "OMP_NUM_THREADS": str(self.arguments.threads), **more}
        environment |= {"HEPTA_CACHE": str(self.cache), "NANOCHAT_BASE_DIR": str(self.cache)}
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(self.cache / "inductor")
        with (self.place / f"{name}.log").open("w") as log:
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}: see {self.place / name}.log\n{done.stdout[-2000:]}")
        return done.stdout

    def _peer(self, key: Row) -> Row:
        chosen = CANDIDATES[key["system"]][key["candidate"]]
        folder = self.arguments.nanogpt if key["system"] == "nanoGPT" else self.arguments.nanochat
        paths = {"corpus": self.arguments.corpus, "tokens": self.arguments.tokens, "directory": folder}
        job = {"peer": key["system"], "seed": key["seed"], "rate": key["rate"], "split": key["split"], "minutes": 10}
        job |= {name: str(path.resolve()) for name, path in paths.items()} | {
            "ids": chosen["ids"],
            "shape": chosen["shape"],
        }
        job |= {"steps": 2, "split": "val"} if key["split"] == "none" else {"minutes": key["minutes"]}
        command = [sys.executable, str(HERE / "four_minutes_peers.py"), json.dumps(job)]
        dtype = {"NANOCHAT_DTYPE": "float32" if key["candidate"] in FLOAT32 else "bfloat16"}
        return json.loads(self._command(key["system"], command, **dtype).rpartition("result ")[2])

    def _hepta(self, key: Row) -> Row:
        arguments, run = self.arguments, self.place / f"hepta-{len(self.rows)}"
        warming, began = key["split"] == "none", time.time()
        keys = [*CANDIDATES["hepta"][key["candidate"]]["keys"], f"lr={key['rate']}", f"seed={key['seed']}"]
        keys += ["max_steps=2"] if warming else [f"minutes={key['minutes']}"]
        keys += [
            f"eval.every={NEVER}",
            "eval.tokens=2048",
            f"threads={arguments.threads}",
            "--data",
            str(arguments.tokens),
            "--fresh",
        ]
        hepta = [sys.executable, "-m", "hepta"]
        self._command("hepta", [*hepta, "pretrain", *keys, "--output", str(run)])
        sealed = max((run / "checkpoints").glob("step-*/manifest.json"))
        facts, seconds = json.loads((run / "manifest.json").read_text())["facts"], sealed.stat().st_mtime - began
        found = {name: facts[name] for name in ("steps", "tokens", "tokens_per_second", "parameters")}
        found |= {"seconds": seconds, "until_first": seconds - facts["seconds"]}
        if warming:
            return found
        score = ["eval", "--model", str(run), "--text", str(arguments.corpus), "--split", key["split"]]
        self._command("hepta", [*hepta, *score, "--output", str(run / "score")])
        scores = json.loads((run / "score" / "eval.json").read_text())
        found |= {"vocabulary": scores["vocabulary"], "length": scores["sequence_length"]}
        parts = {"all": scores["total"], **scores["by_language"]}
        return {**found, "bpb": {name: part["bits_per_byte_sliding"] for name, part in parts.items()}}


def bits(row: Row) -> float:
    """What counts of a run; a run that broke down counts as the worst."""
    found = row["bpb"]["all"]
    return found if math.isfinite(found) else math.inf


def probe(race: Race, system: str) -> Row:
    """The best candidate and rate of a system by short runs: the rate doubles, or halves, as long as that helps."""
    minutes, candidates = race.arguments.probe_minutes, CANDIDATES[system].items()
    best = start = min((race.run(system, name, one["rate"], 1, minutes, "val") for name, one in candidates), key=bits)
    for factor in (2.0, 0.5):
        while best is start or best["rate"] / start["rate"] in (factor, factor**2):
            row = race.run(system, start["candidate"], best["rate"] * factor, 1, minutes, "val")
            if bits(row) >= bits(best):
                break
            best = row
    return best


def interval(values: list[float], digits: int = 3) -> str:
    """Mean, and the lowest and highest of several."""
    spread = f" ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def describe(row: Row) -> str:
    """What of a system ran, in words."""
    size = f"{row['parameters'] / 1e6:.1f} M"
    return f"{row['candidate']}: {size}, context {row['length']}, vocabulary {row['vocabulary']:,}"


def report(arguments: argparse.Namespace, finals: dict[str, list[Row]], done: list[Row]) -> str:
    """The answer as Markdown."""
    import torch

    from hepta.planning.machine import processor_name
    from hepta.training.comparison import welch

    machine = f"{processor_name()}, {arguments.threads} threads, torch {torch.__version__}"
    lines = [f"# Bits per byte after {arguments.minutes:g} minutes", ""]
    lines.append(
        f"{machine}; `{arguments.corpus.name}`, split test, {len(finals['hepta'])} seeds: mean (lowest–highest)."
    )
    lines.append("hepta's lead with 95 % by Welch's t over the seeds; below 0 it is behind.")
    columns = "all | en | zh | hepta's lead | tokens/s | steps | seconds, to the second step | rate"
    lines += ["", f"| bits per byte | {columns} |", "|---|---|---|---|---|---|---|---|---|"]
    ours = [bits(row) for row in finals["hepta"]]
    for system, rows in finals.items():
        scores = [interval([row["bpb"][name] for row in rows]) for name in ("all", "en", "zh")]
        theirs = [bits(row) for row in rows]
        around = welch(ours, theirs)[0]
        lead = f"{statistics.fmean(theirs) - statistics.fmean(ours):.3f}"
        lead = "" if system == "hepta" else lead + (f" ({around[0]:.3f} to {around[1]:.3f})" if around else "")
        speed, steps, seconds, first = (
            statistics.fmean(row[name] for row in rows)
            for name in ("tokens_per_second", "steps", "seconds", "until_first")
        )
        lines.append(
            f"| {system}, {describe(rows[0])} | {' | '.join(scores)} | {lead} | {speed:,.0f} | {steps:,.0f} |"
            f" {seconds:.0f}, {first:.0f} | {rows[0]['rate']:g} |"
        )
    lines += ["", f"Probes of {arguments.probe_minutes:g} minutes, seed 1, split val:", ""]
    lines += ["| | rate | bits per byte | steps | tokens/s |", "|---|---|---|---|---|"]
    for row in (row for row in done if row["split"] == "val"):
        figures = f"{row['rate']:g} | {bits(row):.3f} | {row['steps']:,} | {row['tokens_per_second']:,.0f}"
        lines.append(f"| {row['system']}, {describe(row)} | {figures} |")
    cold = [f"{r['system']} ({r['candidate']}) {r['until_first']:.0f}" for r in done if r["split"] == "none"]
    return "\n".join([*lines, "", "Seconds to the second step with a cold cache: " + ", ".join(cold) + ".", ""])


def main() -> None:
    """Read the arguments; probe, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "tokens", "output", "nanogpt", "nanochat"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--probe-minutes", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    race = Race(arguments)
    for system, candidates in CANDIDATES.items():
        for name in candidates:
            race.warm(system, name)
    best = {system: probe(race, system) for system in CANDIDATES}
    finals: dict[str, list[Row]] = {system: [] for system in CANDIDATES}
    answer = ""
    for seed in range(1, arguments.seeds + 1):
        for system, row in best.items():
            finals[system].append(race.run(system, row["candidate"], row["rate"], seed, arguments.minutes, "test"))
        answer = report(arguments, finals, race.rows)
        (race.place / "results.md").write_text(answer)
    print(answer)


if __name__ == "__main__":
    main()
