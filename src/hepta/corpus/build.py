"""``hepta corpus build``: raw text to clean documents, every one of them kept, dropped or quarantined with a reason."""

import contextlib
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from hepta.config import HeptaError, Interrupted, MachineError
from hepta.console import progress, say, warn
from hepta.corpus.config import CorpusConfig
from hepta.corpus.cut import Decisions, cut
from hepta.corpus.facts import facts_of
from hepta.corpus.inputs import Found, find_files, plan_units
from hepta.corpus.parts import write_parts
from hepta.corpus.pool import run_units
from hepta.corpus.store import Store
from hepta.corpus.unit import UnitResult, finished_unit, unit_name
from hepta.stage import UNFINISHED, Stage, claim, disk_errors, go_on_hint, write_atomic

VERSION = 1
WORK = ".work"  # sealed units of an unfinished build


@dataclass(frozen=True)
class CorpusResult:
    """What a build read and what became of it."""

    output: str
    read: int
    kept: int
    dropped: int
    quarantined: int
    facts: dict[str, Any]
    already_done: bool = False

    def __str__(self) -> str:
        from hepta.corpus.ledger import render_facts

        return render_facts(self.output, self.facts)


def build_corpus(config: CorpusConfig) -> CorpusResult:
    """Read, measure, decide, write; a repeated call goes on where a stopped one was.

    Raises:
        HeptaError: nothing could be read, or more than ``max_bad`` of it is unreadable; nothing is left behind.
        MachineError: the disk is full or a worker died; finished units stay for the next try.
        Interrupted: stopped by Ctrl-C.
    """
    found = find_files(config.input, config.text_column)
    fresh_folder = not config.output.exists()
    stage = claim(config, "corpus", VERSION)
    if stage.state == "done" and stage.manifest is not None:
        shutil.rmtree(config.output / WORK, ignore_errors=True)  # killed between the seal and the tidying
        (config.output / UNFINISHED).unlink(missing_ok=True)
        say(f"{config.output}: already done")
        return _result(config.output, stage.manifest["facts"], already_done=True)
    try:
        return _build(config, stage, found)
    except KeyboardInterrupt:
        raise go_on_hint(config) from None
    except (MachineError, Interrupted):
        raise
    except HeptaError:
        _leave_nothing(config.output, fresh_folder)
        raise


def _leave_nothing(output: Path, fresh_folder: bool) -> None:
    """After wrong input: no trace, so that the corrected command starts clean."""
    shutil.rmtree(output / WORK, ignore_errors=True)
    for name in (UNFINISHED, ".lock"):
        (output / name).unlink(missing_ok=True)
    if fresh_folder:
        with contextlib.suppress(OSError):
            output.rmdir()


def _build(config: CorpusConfig, stage: Stage, found: Found) -> CorpusResult:
    units = _map(config, stage, found)
    quarantined = sorted((row for unit in units for row in unit.quarantined), key=_quarantine_key)
    read = sum(unit.read for unit in units)
    _check_readable(config, units, quarantined, read)
    store = Store(units)
    say(f"comparing {store.size:,} documents")
    columns = store.numbers()
    decisions = cut(
        config,
        store.strings("doc_id"),
        store.strings("text_hash"),
        store.strings("lang"),
        columns,
        store.signatures,
        store.texts,
    )
    for warning in decisions.warnings:
        warn(warning)
    with disk_errors(config.output):
        rows = write_parts(store, decisions, config.output)
    blob = b"".join(orjson.dumps(row) + b"\n" for row in quarantined)
    write_atomic(config.output / "quarantine.jsonl", blob)
    kept, dropped = rows["kept"], rows["dropped"]
    if read != kept + dropped + len(quarantined) or rows["signals"] != kept + dropped:
        raise AssertionError(f"read {read} ≠ kept {kept} + dropped {dropped} + quarantined {len(quarantined)}")
    facts = facts_of(store, decisions, quarantined, read, found)
    stage.finish(_digest(store, decisions), facts)
    shutil.rmtree(config.output / WORK, ignore_errors=True)
    return _result(config.output, facts)


def _map(config: CorpusConfig, stage: Stage, found: Found) -> list[UnitResult]:
    """All units' results, from sealed files of an earlier run where there are any."""
    folder = config.output / WORK
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    plan = plan_units(found.files, config.txt == "line")
    names = [unit_name(stage.fingerprint, unit) for unit in plan]
    done = {name: ready for name in names if (ready := finished_unit(folder, name)) is not None}
    if done:
        say(f"{config.output}: {len(done)} of {len(plan)} units were finished before")
    todo = [(name, unit) for name, unit in zip(names, plan, strict=True) if name not in done]
    sizes = {name: sum(piece.size for piece in unit) / 1e6 for name, unit in todo}
    with progress("corpus", sum(sizes.values()), "MB") as bar:
        for name, result in run_units(todo, config, folder):
            done[name] = result
            bar.advance(sizes[name])
    return [done[name] for name in names]


def _quarantine_key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["source"], row["file"], row["offset"]


def _check_readable(
    config: CorpusConfig, units: list[UnitResult], quarantined: list[dict[str, Any]], read: int
) -> None:
    """Refuse a corpus of which nothing, or too little, could be read.

    A file that ends in damage counts as a whole bad file: how many records it lost nobody knows.
    """
    files = {file for unit in units for file in unit.files}
    damaged = {file for unit in units for file in unit.damaged}
    shown = "; ".join(_describe(row) for row in quarantined[:3])
    if read == len(quarantined):
        raise HeptaError(f"nothing could be read: {shown or 'the files hold no records'}")
    for bad, of, what in ((len(quarantined), read, "records"), (len(damaged), len(files), "files")):
        if bad > config.max_bad * of:
            raise HeptaError(
                f"{bad:,} of {of:,} {what} could not be read ({bad / of:.1%}, more than max_bad {config.max_bad:.1%}): "
                f"{shown}; mend them or raise max_bad"
            )
    if quarantined:
        warn(f"{len(quarantined):,} unreadable records are in quarantine.jsonl; first: {_describe(quarantined[0])}")


def _describe(row: dict[str, Any]) -> str:
    place = f"line {row['line']}" if row["line"] else f"offset {row['offset']}"
    return f"{row['file']}, {place}: {row['error']}"


def _digest(store: Store, decisions: Decisions) -> str:
    """Digest of what later stages read: ids, texts, languages and splits of the kept documents."""
    digest = xxhash.xxh3_128()
    columns = [store.strings(name) for name in ("doc_id", "text_hash", "source", "lang")]
    for row in np.flatnonzero(decisions.kept).tolist():
        digest.update("\t".join([*(column[row] for column in columns), decisions.split[row]]).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _result(output: Path, facts: dict[str, Any], already_done: bool = False) -> CorpusResult:
    counts = Counter({key: facts[key] for key in ("read", "kept", "dropped", "quarantined")})
    return CorpusResult(str(output), **counts, facts=facts, already_done=already_done)
