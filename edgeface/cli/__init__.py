"""The command line: `edgeface <group> <command>`."""

from edgeface.cli.app import main

__all__ = ["main"]
