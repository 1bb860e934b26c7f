"""`edgeface gallery ...`: who is enrolled, and forgetting them for good."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from edgeface.cli.output import JsonOption, emit_json, stderr, stdout
from edgeface.errors import GalleryError, GalleryKeyError, InputError, NegativeResult

if TYPE_CHECKING:
    from edgeface.gallery import Erasure, Person, Template
    from edgeface.gallery.store.sqlite import SqliteStore
    from edgeface.model.contract import ModelContract

__all__ = [
    "GalleryArgument",
    "KeyOption",
    "describe_person",
    "find_person",
    "group",
    "open_gallery",
    "read_contract",
    "register",
]

group = typer.Typer(no_args_is_help=True, help="People and their faces: enrol, list, forget, carry over.")

GalleryArgument = Annotated[Path, typer.Argument(metavar="GALLERY", help="The gallery's file.")]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="file:PATH|env:NAME|command:WORDS",
        help="Where the key of an encrypted gallery is; by default the environment variable EDGEFACE_GALLERY_KEY.",
        show_default=False,
    ),
]
UnencryptedOption = Annotated[
    bool, typer.Option("--unencrypted", help="Let whoever has the file read names and embeddings.")
]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    from edgeface.cli import gallery_enrol, gallery_files

    gallery_enrol.register(group)
    gallery_files.register(group)
    app.add_typer(group, name="gallery")


def fetch_key(source: str | None, gallery: Path) -> bytes | None:
    """The key that was named, or the one in the environment, if there is any."""
    from edgeface.gallery.keys import KEY_VARIABLE, read_key

    if source is None and KEY_VARIABLE in os.environ:
        source = f"env:{KEY_VARIABLE}"
    return None if source is None else read_key(source, beside=gallery)


def open_gallery(path: Path, key: str | None, *, contract_id: str | None = None) -> SqliteStore:
    """Open a gallery with the key that an option names."""
    from edgeface.gallery.store.sqlite import SqliteStore

    return SqliteStore(path, key=fetch_key(key, path), contract_id=contract_id)


def read_contract(model: Path) -> ModelContract:
    """Read the contract of an IR, without compiling it."""
    from edgeface.model.contract import ModelContract
    from edgeface.model.ir_file import read_ir

    return ModelContract.read_from(read_ir(model), source=str(model))


def find_person(store: SqliteStore, name: str) -> Person:
    """Somebody by name, or by ``#ID``."""
    if name.startswith("#") and name[1:].isascii() and name[1:].isdigit():
        return store.person(int(name[1:]))
    person = store.find(name)
    if person is None:
        raise GalleryError(
            f"{store.path}: expected somebody named {name!r}, found nobody; edgeface gallery list shows who is there"
        )
    return person


def describe_person(person: Person) -> dict[str, Any]:
    """As JSON types."""
    stored = dataclasses.asdict(person)
    return stored | {"labels": list(person.labels), "created": person.created.isoformat()}


@group.command(
    epilog="Example: edgeface gallery create people.gallery --model facenet.xml --key file:/run/secrets/key"
)
def create(
    gallery: GalleryArgument,
    model: Annotated[
        Path,
        typer.Option(
            "--model", "-m", help="The .xml of the IR whose embeddings it will hold.", show_default=False
        ),
    ],
    key: KeyOption = None,
    unencrypted: UnencryptedOption = False,
    keep_images: Annotated[
        bool,
        typer.Option("--keep-images", help="Keep the faces' pictures, by which another model can take over."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a gallery with nobody in it."""
    from edgeface.gallery.store.sqlite import SqliteStore

    contract = read_contract(model)
    with SqliteStore.create(
        gallery,
        contract_id=contract.contract_id,
        dim=contract.embedding_dim,
        model=contract.name,
        key=choose_key(key, gallery, unencrypted=unencrypted),
        keep_images=keep_images,
    ) as store:
        info = store.info
    if json:
        emit_json({"gallery": str(gallery), **dataclasses.asdict(info), "created": info.created.isoformat()})
        return
    how = "encrypted" if info.encrypted else "not encrypted: whoever has the file can read it"
    stdout.print(
        f"{gallery}: a gallery of {info.model}, contract {info.contract_id}, {how}",
        markup=False,
        soft_wrap=True,
    )


def choose_key(key: str | None, gallery: Path, *, unencrypted: bool) -> bytes | None:
    """The key to encrypt with; None only if that was asked for."""
    if unencrypted:
        if key is not None:
            raise InputError("expected a key or --unencrypted, found both; leave one out")
        return None
    found = fetch_key(key, gallery)
    if found is None:
        raise GalleryKeyError(
            "expected a key, found none; make one: openssl rand -hex 32 > KEYFILE && chmod 600 KEYFILE, in another "
            "place than the gallery, and give it with --key file:KEYFILE; or say --unencrypted"
        )
    return found


@group.command("list", epilog="Example: edgeface gallery list people.gallery --label staff --json")
def list_people(
    gallery: GalleryArgument,
    label: Annotated[
        str | None, typer.Option(help="Only people who have this label.", show_default=False)
    ] = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """List who is enrolled."""
    with open_gallery(gallery, key) as store:
        info, people = store.info, store.people(label=label)
    if json:
        emit_json(
            {
                "gallery": str(gallery),
                "contract_id": info.contract_id,
                "model": info.model,
                "encrypted": info.encrypted,
                "keeps_images": info.keeps_images,
                "people": [describe_person(person) for person in people],
            }
        )
        return
    table = Table("id", "name", "templates", "labels", "since", box=None, pad_edge=False, header_style="bold")
    for person in people:
        since = f"{person.created:%Y-%m-%d %H:%M}"
        labels = escape(", ".join(person.labels))
        table.add_row(str(person.id), escape(person.name), str(person.template_count), labels, since)
    stdout.print(table)


@group.command(epilog="Example: edgeface gallery show people.gallery 'Ada Lovelace'")
def show(
    gallery: GalleryArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name, or #ID.")],
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Show one person and the templates of this person."""
    with open_gallery(gallery, key) as store:
        person = find_person(store, name)
        templates = store.templates_of(person.id)
    if json:
        emit_json({**describe_person(person), "templates": [_describe_template(each) for each in templates]})
        return
    stdout.print(f"{person.name} (#{person.id}), since {person.created:%Y-%m-%d %H:%M} UTC", markup=False)
    if person.labels:
        stdout.print(f"labels: {', '.join(person.labels)}", markup=False)
    for field, value in person.metadata.items():
        stdout.print(f"{field}: {value}", markup=False)
    table = Table(
        "template", "quality", "since", "picture", "kept", box=None, pad_edge=False, header_style="bold"
    )
    for each in templates:
        quality = "" if each.quality != each.quality else f"{each.quality:.2f}"
        kept = "yes" if each.has_image else "no"
        table.add_row(str(each.id), quality, f"{each.created:%Y-%m-%d %H:%M}", each.source_sha256[:12], kept)
    stdout.print(table)


def _describe_template(template: Template) -> dict[str, Any]:
    unknown = template.quality != template.quality
    return {
        "id": template.id,
        "quality": None if unknown else template.quality,
        "source_sha256": template.source_sha256 or None,
        "created": template.created.isoformat(),
        "has_image": template.has_image,
    }


@group.command(epilog="Example: edgeface gallery forget people.gallery 'Ada Lovelace' --yes")
def forget(
    gallery: GalleryArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name, or #ID.")],
    template: Annotated[
        list[int] | None,
        typer.Option(help="Forget only this template; may be given again.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Erase somebody for good, and search the files for what is left. Exit code 1: something was found."""
    with open_gallery(gallery, key) as store:
        person = find_person(store, name)
        what = f"{len(template)} of {person.template_count} templates" if template else "everything"
        _confirm(f"Erase {what} of {person.name} (#{person.id}) for good?", yes=yes)
        done = store.forget(person.id, template_ids=template)
    if json:
        emit_json({**dataclasses.asdict(done), "remains": list(done.remains), "proved": done.proved})
    else:
        _show_erasure(person, done)
    if done.remains:
        raise typer.Exit(NegativeResult.exit_code)


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("forget: expected --yes, for nobody can be asked here; nothing was erased")
    typer.confirm(question, abort=True, err=True)


def _show_erasure(person: Person, done: Erasure) -> None:
    stdout.print(
        f"{person.name}: erased {done.templates} templates and {done.images} pictures; searched {len(done.searched)} "
        f"files, {sum(done.searched.values()):,} bytes, for {done.needles:,} pieces",
        markup=False,
        soft_wrap=True,
    )
    for place in done.remains:
        stderr.print(f"still there: {place}", markup=False)
    if done.remains:
        stderr.print("run 'edgeface gallery check', close what else has the gallery open, and look again")
