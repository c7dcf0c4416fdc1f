"""A stage's claim on its output directory: is it done, to be continued, or new?

A finished stage holds ``manifest.json`` with ``format: 1``, its verb and version, the fingerprint of
its identity fields and input digests, a digest of what it wrote, and facts for reports. An unfinished
one holds ``.stage.json`` with the same fingerprint, so a repeated command knows that it may go on.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import xxhash

from hepta.config import HeptaError, Interrupted, MachineError, StageConfig
from hepta.console import say

FORMAT = 1
MANIFEST = "manifest.json"
UNFINISHED = ".stage.json"
ASIDE_HINT = "use --fresh to move it aside, or another --output"


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def xxh3_file(path: Path) -> str:
    """Hex xxh3-128 of a file's bytes: fast, for noticing change, not for trust."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_json(value: Any) -> str:
    """Hex sha256 of a JSON value written with sorted keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of(path: Path) -> str:
    """Digest of what lies at ``path``: a finished stage's own digest, else of all bytes and names."""
    if path.is_file():
        return xxh3_file(path)
    manifest = read_manifest(path)
    if manifest and "digest" in manifest:
        return manifest["digest"]
    if (path / UNFINISHED).exists():
        raise HeptaError(f"{path}: this stage was not finished; repeat its command first")
    files = sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith("."))
    return digest_json([[str(f.relative_to(path)), xxh3_file(f)] for f in files])


def read_json(path: Path) -> Any:
    """Read a JSON file; a broken one is an error naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HeptaError(f"{path}: not readable as JSON: {error}") from None


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, or None where there is none."""
    path = directory / MANIFEST
    if not path.is_file():
        return None
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise HeptaError(f"{path}: format {manifest.get('format')!r} is unknown here; this hepta reads format {FORMAT}")
    return manifest


def fsync_directory(path: Path) -> None:
    """Make renames inside ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into one clear line with exit code 1."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM):
            fix = "free space or choose another --output"
            raise MachineError(f"{path}: cannot be written: {error.strerror}; {fix}") from None
        raise


def make_directory(path: Path) -> None:
    """Make a directory and those above it, where they are not there yet.

    Raises:
        HeptaError: none can be there, for example because something above it is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        above = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        why = f"{above} is a file" if above.is_file() else error.strerror
        raise HeptaError(f"{path}: no directory can be made there ({why}); choose another --output") from None


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename."""
    blob = data.encode("utf-8") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        make_directory(path.parent)
        try:
            with temporary.open("wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            fsync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, readable by people."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary sibling to fill; renamed to ``path`` (replacing it) only when the block succeeds."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
            fsync_directory(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _input_digest(value: Any, presets: bool = False) -> Any:
    """Digest an input field: paths and named models by content (``NAME=PATH`` keeps the name), other words as is.

    Args:
        value: of the field.
        presets: whether a preset's name is such a word even where a path has it too.
    """
    if value is None or (presets and value in _above("hepta.model.families").PRESETS):
        return value
    if isinstance(value, list | tuple):
        return [_input_digest(item) for item in value]
    if isinstance(value, dict):
        return {key: _input_digest(item) for key, item in value.items()}
    text = str(value)
    name, equals, rest = text.partition("=")
    if equals and not Path(text).exists():
        return [name, _input_digest(rest)]
    place = Path(text) if Path(text).exists() else _named_model(text)
    return text if place is None else digest_of(place)


def _named_model(word: str) -> Path | None:
    """The directory of a model given by its name, so that name and directory have one digest; None for other words."""
    return _above("hepta.catalog.models").model_path(word)


def _above(module: str) -> Any:
    """A module that stands above this one, by its import path: whoever claims an output with a name among its inputs
    must not depend on which module was imported before. Used for names of models alone."""
    return importlib.import_module(module)


@dataclass
class Stage:
    """One verb's claim on one output directory."""

    verb: str
    version: int
    output: Path
    identity: dict[str, Any]
    inputs: dict[str, Any]
    budget: dict[str, Any]
    state: Literal["new", "partial", "done"] = "new"
    manifest: dict[str, Any] | None = None
    started: float = field(default_factory=time.time)
    _lock: Any = None

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the result, budgets aside."""
        return digest_json([self.verb, self.version, self.identity, self.inputs])

    def release(self) -> None:
        """Let other processes write here."""
        if self._lock is not None:
            self._lock.close()

    def finish(self, digest: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Seal the output: write its manifest and drop the unfinished mark.

        Args:
            digest: digest of the content written, which is what later stages depend on.
            facts: JSON values for people and reports, under the key ``facts``.
        """
        now = time.time()
        manifest = {
            "format": FORMAT,
            "verb": self.verb,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "inputs": self.inputs,
            "budget": self.budget,
            "digest": digest,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            "seconds": round(now - self.started, 2),
            "facts": facts,
        }
        write_json(self.output / MANIFEST, manifest)
        (self.output / UNFINISHED).unlink(missing_ok=True)
        self.manifest, self.state = manifest, "done"
        return manifest


def _aside(path: Path) -> None:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.old-{stamp}")
    path.rename(target)
    say(f"{path}: moved aside to {target}")


def _sweep(output: Path) -> None:
    """Remove what a killed process left under temporary names; the lock is ours, so nobody is writing there."""
    for left in output.glob(".*.tmp-*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _deepest_change(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Follow nested keys to the first value that differs: ``rules`` → ``rules.min_words.en``."""
    while isinstance(before, dict) and isinstance(now, dict):
        inner = next(name for name in sorted({*before, *now}) if before.get(name) != now.get(name))
        key, before, now = f"{key}.{inner}", before.get(inner), now.get(inner)
    return key, before, now


def _refuse_change(stage: Stage, old: dict[str, Any]) -> None:
    """Raise, naming the first key that differs from what lies in the output."""
    for part in ("identity", "inputs"):
        before, now = old.get(part, {}), json.loads(json.dumps(getattr(stage, part), default=str))
        for key in sorted(set(before) | set(now)):
            if before.get(key) == now.get(key):
                continue
            change = "its content changed"
            if part == "identity":
                key, was, wanted = _deepest_change(key, before.get(key), now.get(key))
                change = f"{was!r} before, {wanted!r} now"
            raise HeptaError(f"{stage.output}: made with another {key} ({change}); {ASIDE_HINT}")
    made = f"made by {old.get('verb')} version {old.get('version')}, this is {stage.verb} version {stage.version}"
    raise HeptaError(f"{stage.output}: {made}; {ASIDE_HINT}")


def claim(config: StageConfig, verb: str, version: int) -> Stage:
    """Claim ``config.output`` for a verb and say what is to be done.

    Returns:
        a stage whose ``state`` is ``done`` (nothing to do; ``manifest`` is there), ``partial`` (same
        fingerprint, unfinished or with another budget: go on) or ``new``.

    Raises:
        HeptaError: the directory holds something else, or another process writes there.
    """
    values = config.model_dump(mode="json")
    output = config.output
    stage = Stage(
        verb=verb,
        version=version,
        output=output,
        identity={k: values[k] for k in config.fields_of_kind("identity")},
        inputs={k: _input_digest(values[k], config.takes_presets(k)) for k in config.fields_of_kind("input")},
        budget={k: values[k] for k in config.fields_of_kind("budget")},
    )
    if output.is_file():
        raise HeptaError(f"{output}: is a file; --output wants a directory")
    if config.fresh and output.exists() and any(output.iterdir()):
        _aside(output)
    with disk_errors(output):
        make_directory(output)
        lock = (output / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise HeptaError(f"{output}: another hepta process is writing here; wait or choose another --output") from None
    stage._lock = lock
    _sweep(output)
    manifest = read_manifest(output)
    if manifest is not None:
        if manifest["fingerprint"] != stage.fingerprint:
            _refuse_change(stage, manifest)
        if manifest["budget"] == json.loads(json.dumps(stage.budget, default=str)):
            stage.state, stage.manifest = "done", manifest
            return stage
        stage.state, stage.manifest = "partial", manifest
    elif (output / UNFINISHED).is_file():
        old = read_json(output / UNFINISHED)
        if old["fingerprint"] != stage.fingerprint:
            _refuse_change(stage, old)
        stage.state = "partial"
    elif any(not f.name.startswith(".") for f in output.iterdir()):
        raise HeptaError(f"{output}: not empty and not made by hepta; choose another --output")
    write_json(
        output / UNFINISHED,
        {
            "format": FORMAT,
            "verb": verb,
            "version": version,
            "fingerprint": stage.fingerprint,
            "identity": stage.identity,
            "inputs": stage.inputs,
            "budget": stage.budget,
        },
    )
    return stage


def withdraw(output: Path) -> None:
    """Remove an output that a failed verb claimed and wrote nothing into; one that holds work stays."""
    if not (output / UNFINISHED).is_file() or {f.name for f in output.iterdir()} - {UNFINISHED, ".lock"}:
        return
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # another process works here
        shutil.rmtree(output, ignore_errors=True)


@contextlib.contextmanager
def withdraw_if_refused(stage: Stage) -> Iterator[None]:
    """Around the preparing of a run: input refused there leaves nothing of a new claim, since mended input is not
    another run. What a stopped run left is kept."""
    try:
        yield
    except HeptaError:
        if stage.state == "new":
            stage.release()
            shutil.rmtree(stage.output, ignore_errors=True)
        raise


def go_on_hint(config: StageConfig) -> Interrupted:
    """The exception for a stopped stage: says that the same command goes on."""
    return Interrupted(f"{config.output}: stopped, state saved; the same command goes on from here")
