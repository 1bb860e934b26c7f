"""A command's answer in, text for people or one JSON object for machines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


def emit_json(answer: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command."""
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")
