"""What a run says beforehand of its step and its memory, beside what both became after twenty steps.

    python benchmarks/forecast.py [--data out/demo/tokens] [--rows out/forecast.jsonl] [--rounds 2] [--only nano small]

Each round pretrains nano, mini and small until their own line after twenty steps, and stops them there. The first
round's calibrations are only those made on the way (the cache is the benchmark's own, in the folder of the rows), so
its first run is arithmetic on what ``doctor machine`` timed; from the second round on each is calibrated by itself. A
row is written per run and none is done twice. An error is predicted / measured − 1. Takes five minutes on idle
cores with two rounds; on a busy machine times say nothing, memory does.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RUNS = {  # preset → keys; a few seconds a step at most
    "nano": ["sequence_length=512", "batch_tokens=8192", "micro_batch=8"],
    "mini": ["sequence_length=512", "batch_tokens=4096", "micro_batch=4"],
    "small": ["sequence_length=256", "batch_tokens=512", "micro_batch=1"],
}
KEYS = ["max_steps=1000", "compile=false", "eval.every=1000", "eval.tokens=2048", "checkpoint.every=1000"]
PATIENCE = 150.0  # seconds a run may take to reach its line


def events(run: Path) -> dict[str, Any]:
    """The journal's last row of each kind; a line half written is not there yet."""
    found = {}
    if (run / "journal.jsonl").is_file():
        for line in (run / "journal.jsonl").read_text().split("\n")[:-1]:
            row = json.loads(line)
            found[row["event"]] = row
    return found


def measure(preset: str, data: Path, cache: Path) -> dict[str, Any]:
    """One run until its line after twenty steps.

    Raises:
        SystemExit: it ended or took too long before that.
    """
    folder = Path(tempfile.mkdtemp(prefix="forecast-"))
    run, load = folder / preset, os.getloadavg()[0]
    command = [sys.executable, "-m", "hepta", "pretrain", "--model", preset, "--data", str(data), "--output", str(run)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command + RUNS[preset] + KEYS, env={**os.environ, "HEPTA_CACHE": str(cache)}, stdout=log, stderr=log
        )
    end = time.monotonic() + PATIENCE
    while "measured" not in (found := events(run)):
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise SystemExit(f"{preset}: no line after twenty steps; {(folder / 'log').read_text()[-400:]}")
        time.sleep(0.2)
    process.kill()
    process.wait()
    shutil.rmtree(folder)
    before, after = found["forecast"], found["measured"]
    return {
        "preset": preset, "source": before["source"], "load": round(load, 1), "when": int(time.time()),
        "predicted_seconds": before["step_seconds"], "seconds": after["step_seconds"],
        "predicted_bytes": before["memory_bytes"], "bytes": after["memory_bytes"],
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':8}{'s a step':>9} {'measured':>9} {'error':>7}   {'MB':>7} {'measured':>9} {'error':>7}  load"]
    for row in rows:
        seconds, memory = (row[f"predicted_{name}"] / row[name] - 1 for name in ("seconds", "bytes"))
        line = f"{row['preset']:8}{row['predicted_seconds']:9.3f} {row['seconds']:9.3f} {seconds:+7.1%}   "
        line += f"{row['predicted_bytes'] / 1e6:7,.0f} {row['bytes'] / 1e6:9,.0f} {memory:+7.1%}  {row['load']:4.1f}  "
        lines.append(line + row["source"])
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("out/demo/tokens"))
    parser.add_argument("--rows", type=Path, default=Path("out/forecast.jsonl"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    arguments = parser.parse_args()
    cache = arguments.rows.parent.resolve() / "forecast-cache"
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "machine.json").is_file():
        probe = [sys.executable, "-m", "hepta", "doctor", "machine"]
        subprocess.run(probe, check=True, env={**os.environ, "HEPTA_CACHE": str(cache)}, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()] if arguments.rows.is_file() else []
    done = {(row["round"], row["preset"]) for row in rows}
    for number in range(arguments.rounds):
        for preset in arguments.only:
            if (number, preset) not in done:
                rows.append({"round": number, **measure(preset, arguments.data, cache)})
                with arguments.rows.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
