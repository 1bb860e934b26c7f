"""The command line: `edgeface <group> <command>`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see `edgeface.cli.app.main`."""
    if os.environ.get("COLUMNS", "").strip() == "0":  # a terminal that does not know its size; rich would print nothing
        del os.environ["COLUMNS"]
    try:
        if os.environ.get("EDGEFACE_SERVER"):
            from edgeface.cli.remote import run_remotely

            if (code := run_remotely(sys.argv[1:] if arguments is None else arguments)) is not None:
                return code
        from edgeface.cli.app import main as run
    except ImportError as error:  # Python itself would exit with 1, which means "no"
        print(f"edgeface: this installation is damaged: {error}; install edgeface again", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("edgeface: interrupted", file=sys.stderr)
        return 130
    return run(arguments)
