"""Options of the commands about a gallery, and the gallery and keys that they name."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeface.cli.output import emit_json, print_line, print_note
from edgeface.errors import GalleryKeyError, InputError, NegativeResult
from edgeface.text import printable

if TYPE_CHECKING:
    from edgeface.gallery.store.sqlite import SqliteStore

group = typer.Typer(no_args_is_help=True, help="People and their faces: enrol, list, forget, export, import.")


def _key_option(flag: str, text: str) -> Any:
    return typer.Option(flag, metavar="file:PATH|env:NAME|command:WORDS", help=text, show_default=False)


GalleryArgument = Annotated[Path, typer.Argument(metavar="GALLERY", help="The gallery's file.")]
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
    bool, typer.Option("--unencrypted", help="Do not encrypt: anyone who has the file can read names and embeddings.")
]
RulesOption = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        metavar="FILE|VALUE",
        help="File written by 'edgeface calibrate', or a cosine similarity; faces that score above it are the same "
        "person's. Default: shipped with the model.",
        show_default=False,
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force", help="Enrol a face even if it matches another enrolled person, or photos of one name do not match."
    ),
]


def open_gallery(path: Path, key: str | None, *, contract_id: str | None = None) -> SqliteStore:
    """Open a gallery's file with the key that an option names."""
    from edgeface.gallery.keys import find_key
    from edgeface.gallery.store.sqlite import SqliteStore

    return SqliteStore(path, key=find_key(key, beside=path), contract_id=contract_id)


def choose_key(key: str | None, gallery: Path, *, unencrypted: bool) -> bytes | None:
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
