"""Parse Open Model Zoo's flags for choosing models, and turn errors into exit codes, for the four tools."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeface import zoo
from edgeface.errors import EdgeFaceError, InputError

PRECISIONS = ("FP16", "FP16-INT8", "FP32", "FP32-INT8")


def parser(description: str, verb: str) -> argparse.ArgumentParser:
    """Make a parser with the flags that choose models.

    Parameters
    ----------
    description
        What the tool does.
    verb
        What it does to the chosen models, for the flags' help.
    """
    made = argparse.ArgumentParser(description=description)
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--name", metavar="PAT[,PAT...]", help=f"{verb} models whose names match a pattern")
    which.add_argument("--list", type=Path, metavar="FILE.LST", help=f"{verb} models that match a line of FILE")
    which.add_argument("--all", action="store_true", help=f"{verb} every model")
    which.add_argument("--print_all", action="store_true", help="print the names of all models")
    return made


def add_precisions(made: argparse.ArgumentParser) -> None:
    """Add ``--precisions``."""
    made.add_argument(
        "--precisions",
        type=_precisions,
        metavar="PREC[,PREC...]",
        help=f"only these precisions, of {', '.join(PRECISIONS)}",
    )


def add_dry_run(made: argparse.ArgumentParser) -> None:
    """Add ``--dry_run``."""
    made.add_argument("--dry_run", action="store_true", help="print what would be done, and do nothing")


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def select(options: argparse.Namespace) -> list[zoo.ModelEntry]:
    """Entries that the flags choose.

    Raises
    ------
    ModelNotFoundError
        If a pattern matches none.
    InputError
        If the list cannot be read.
    """
    catalog = zoo.load_catalog()
    if options.all:
        return list(catalog.values())
    patterns = options.name if options.name is not None else ",".join(_patterns_in(options.list))
    return catalog.match(patterns)


def each(entries: Sequence[zoo.ModelEntry], work: Callable[[zoo.ModelEntry], None], *, label: str) -> int:
    """Do the work for every entry, going on after a failure as Open Model Zoo's tools do.

    Returns
    -------
    int
        0, or the exit code of the first failure.
    """
    failed: dict[str, EdgeFaceError] = {}
    for entry in entries:
        try:
            work(entry)
        except EdgeFaceError as error:
            sys.stderr.write(f"{label}: {error}\n")
            failed[entry.name] = error
    if len(failed) > 1:
        sys.stderr.write(f"{label}: FAILED: {', '.join(failed)}\n")
    return next((error.exit_code for error in failed.values()), 0)


def run(made: argparse.ArgumentParser, work: Callable[[argparse.Namespace], int]) -> int:
    """Parse the command line, answer ``--print_all``, do the work, and give its exit code."""
    options = made.parse_args()
    try:
        if options.print_all:
            sys.stdout.write("".join(f"{name}\n" for name in zoo.load_catalog()))
            return 0
        return work(options)
    except EdgeFaceError as error:
        sys.stderr.write(f"{made.prog}: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"{made.prog}: interrupted\n")
        return 130


def _precisions(text: str) -> tuple[str, ...]:
    wanted = tuple(part.strip() for part in text.split(","))
    if unknown := [part for part in wanted if part not in PRECISIONS]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PRECISIONS)}, found {', '.join(unknown)}")
    return wanted


def _patterns_in(path: Path) -> list[str]:
    """Patterns of a list: some a line, ``#`` begins a comment; Open Model Zoo's format."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a list of model names: {error}") from error
    try:
        patterns = [word for line in text.splitlines() for word in shlex.split(line, comments=True)]
    except ValueError as error:
        raise InputError(f"{path}: expected a list of model names: {error}") from error
    if not patterns:
        raise InputError(f"{path}: expected at least one model name, found none")
    return patterns
