"""`edgeface bench compare`, `report` and `sweep`: what becomes of results; `edgeface.cli.bench` adds them."""

from __future__ import annotations

import typer


def add_to(group: typer.Typer) -> None:
    """Add this module's commands to the group ``bench``."""
