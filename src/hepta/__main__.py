"""``python -m hepta`` is ``hepta``."""

from hepta.cli.app import main

main()
