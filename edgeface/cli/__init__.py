"""The command line: `edgeface <group> <command>`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `edgeface.cli.app.main`."""
    try:
        from edgeface.cli.app import main as run
    except ImportError as error:  # Python itself would exit with 1, which means "no"
        print(f"edgeface: this installation is damaged: {error}; install edgeface again", file=sys.stderr)
        return 3
    return run(arguments)
