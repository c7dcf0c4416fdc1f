"""Keys of ``hepta report``."""

from pathlib import Path

from hepta.config import Config, input_path, operational


class ReportConfig(Config):
    """Which run to show, and where to write the page."""

    run: Path = input_path(..., "output folder of a recipe, or one run's directory")
    output: Path | None = operational(None, "the page; RUN/report.html if empty")
