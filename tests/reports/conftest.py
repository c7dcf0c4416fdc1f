"""A recipe's output folder in the stages' own formats."""

import shutil
from pathlib import Path

import pytest
from demo_output import make_demo


@pytest.fixture(scope="session")
def whole_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``out/demo`` as the recipe leaves it, small and with hostile text; not to be changed."""
    return make_demo(tmp_path_factory.mktemp("out") / "demo")


@pytest.fixture
def demo(whole_demo: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(whole_demo, tmp_path / "out" / "demo"))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave matplotlib out where pictures are not what is tested."""
    monkeypatch.setattr("hepta.reports.outcomes.draw", lambda figure: None)
