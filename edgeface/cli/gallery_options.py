"""Options of the commands about a gallery, and the gallery and keys that they name."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeface.cli.output import emit_json, print_line, print_note
from edgeface.errors import GalleryKeyError, InputError, NegativeResult
from edgeface.text import printable

if TYPE_CHECKING:
    from edgeface.gallery import GalleryStore

_PRINTED = 10
"""Most places of what was to be erased that are printed."""

group = typer.Typer(no_args_is_help=True, help="People and their faces: enrol, list, forget, export, import.")


def _key_option(flag: str, text: str) -> Any:
    return typer.Option(flag, metavar="file:PATH|env:NAME|command:WORDS", help=text)


_ADDRESS = "The gallery's file, or postgresql://USER@HOST/DATABASE?gallery=NAME."
GalleryArgument = Annotated[str, typer.Argument(metavar="GALLERY", help=_ADDRESS)]
GalleryOption = Annotated[str, typer.Option("--gallery", "-g", help=_ADDRESS)]
KeyOption = Annotated[
    str | None,
    _key_option("--key", "Encryption key: file:PATH, env:NAME or command:WORDS. Default: env:EDGEFACE_GALLERY_KEY."),
]
ExportKeyOption = Annotated[
    str | None, _key_option("--export-key", "Encryption key of the export. Default: the gallery's key.")
]
NewKeyOption = Annotated[
    str | None, _key_option("--new-key", "New encryption key: file:PATH, env:NAME or command:WORDS.")
]
UnencryptedOption = Annotated[
    bool, typer.Option("--unencrypted", help="Do not encrypt: names and embeddings can be read without a key.")
]
RulesOption = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        metavar="FILE|VALUE",
        help="File written by 'edgeface calibrate', or a cosine similarity; faces that score above it are the same "
        "person's. Default: shipped with the model.",
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force", help="Enrol a face even if it matches another enrolled person, or photos of one name do not match."
    ),
]


def open_gallery(gallery: str, key: str | None, *, contract_id: str | None = None) -> GalleryStore:
    """Open a gallery with the key that an option names."""
    from edgeface.gallery import find_key, opening

    return opening.open_gallery(gallery, key=find_key(key, beside=gallery), contract_id=contract_id)


def choose_key(key: str | None, gallery: str, *, unencrypted: bool) -> bytes | None:
    """Return the key to encrypt with; None only with --unencrypted."""
    from edgeface.gallery.keys import find_key

    if unencrypted:
        if key is not None:
            raise InputError("expected a key or --unencrypted, found both; leave one out")
        return None
    found = find_key(key, beside=gallery)
    if found is None:
        raise GalleryKeyError(
            "no encryption key was given; create one outside the gallery's folder: openssl rand -hex 32 > KEYFILE && "
            "chmod 600 KEYFILE; then pass --key file:KEYFILE; or pass --unencrypted"
        )
    return found


def confirm(question: str, *, command: str, yes: bool) -> None:
    """Ask before something is done for good, unless --yes was given."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{command}: stdin is not a terminal, and nothing was changed: pass --yes to confirm")
    typer.confirm(printable(question), abort=True, err=True)


def answer(found: Mapping[str, Any], text: str, *, json: bool) -> None:
    """Print a command's answer as one JSON object, or as text."""
    if json:
        emit_json(found)
    else:
        print_line(text)


def warn(problems: Iterable[str], *, fail: bool = False) -> None:
    """Print problems on stderr; with `fail`, exit with 1 if there are any."""
    listed = list(problems)
    for line in listed:
        print_note(line)
    if listed and fail:
        raise typer.Exit(NegativeResult.exit_code)


def fail_with(problems: Sequence[str], *advice: str) -> None:
    """Print the first problems, how many more there are, and advice; exit with 1. Without problems do nothing."""
    more = len(problems) - _PRINTED
    rest = [f"{more:,} more; --json names all"] if more > 0 else []
    warn([*problems[:_PRINTED], *rest, *advice] if problems else [], fail=True)
