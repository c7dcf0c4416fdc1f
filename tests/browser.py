"""A real Chromium, for the tests of pages."""

import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0",
]  # fmt: skip


def chromium(profile: Path) -> list[str]:
    """The browser's command with its flags; a test without a browser is skipped."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return [found, *FLAGS, f"--user-data-dir={profile}"]
    pytest.skip("no Chromium here")


def visit(profile: Path, url: str, milliseconds: int) -> subprocess.CompletedProcess[str]:
    """Open a page and print what it has become after so many milliseconds of its own time."""
    flags = ["--allow-file-access-from-files", f"--virtual-time-budget={milliseconds}", "--dump-dom"]
    return subprocess.run([*chromium(profile), *flags, url], capture_output=True, text=True, timeout=120)


def console(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the page said on its console."""
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]
