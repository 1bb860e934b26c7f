"""The commands `edgeface gallery export|import|rebuild|rekey|restore|check`, for a gallery as a whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from edgeface.cli.gallery_options import (
    ExportKeyOption,
    ForceOption,
    GalleryArgument,
    KeyOption,
    NewKeyOption,
    RulesOption,
    UnencryptedOption,
    YesOption,
    answer,
    choose_key,
    confirm,
    fail_with,
    group,
    open_gallery,
    warn,
)
from edgeface.cli.options import AllowSeededOption, DeviceOption
from edgeface.cli.output import JsonOption, counted, progress_bars
from edgeface.errors import InputError
from edgeface.files import output_errors


@group.command(epilog="Example: edgeface gallery export people.gallery -o people.export")
def export(
    gallery: GalleryArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Export file to write.")],
    key: KeyOption = None,
    export_key: ExportKeyOption = None,
    unencrypted: UnencryptedOption = False,
    json: JsonOption = False,
) -> None:
    """Export all people to one checksummed file, which is encrypted if the gallery is."""
    from edgeface.gallery import export_gallery, find_key

    with output_errors(output):
        if output.exists():
            raise InputError(f"{output}: this file exists already; choose another name")
    with open_gallery(gallery, key) as store:
        if unencrypted or not (export_key or store.info.encrypted):
            secret = choose_key(export_key, gallery, unencrypted=True)
        else:
            secret = find_key(export_key or key, beside=gallery)
        done = export_gallery(store, output, key=secret)
    text = f"{output}: {counted(done.people, 'person', 'people')}, {counted(done.templates, 'template')}, "
    text += f"{counted(done.images, 'image')}, {done.bytes:,} bytes"
    how = "encrypted" if done.encrypted else "not encrypted"
    answer({"output": str(output), **dataclasses.asdict(done)}, f"{text}, {how}", json=json)


@group.command("import", epilog="Example: edgeface gallery import kiosk2.gallery people.export")
def import_(
    gallery: GalleryArgument,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="File that 'edgeface gallery export' wrote, or encodings: a pickle, .json or .npy."
        ),
    ],
    face_recognition: Annotated[
        bool,
        typer.Option(
            "--face-recognition", help="FILE holds 128-number encodings of the face_recognition package, and names."
        ),
    ] = False,
    names: Annotated[
        Path | None, typer.Option(help="Names of encodings that are stored without: one on each line.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW", help="Import the person OLD of an export as NEW. Repeatable.", show_default=False
        ),
    ] = None,
    key: KeyOption = None,
    export_key: ExportKeyOption = None,
    threshold: RulesOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Import all people of an export, or of stored encodings. If one person is refused, none is imported."""
    from edgeface.cipher import is_sealed
    from edgeface.gallery import EnrolRules, find_key, import_gallery

    if face_recognition:
        if export_key or rename:
            raise InputError(
                "--export-key and --rename are for exports of edgeface; leave them out, or --face-recognition"
            )
        _import_encodings(gallery, source, names, key=key, threshold=threshold, force=force, json=json)
        return
    if names:
        raise InputError("expected --face-recognition with --names, found --names alone")
    try:
        sealed = is_sealed(source)
    except OSError as error:
        raise InputError(f"{source}: cannot read this export of a gallery: {error.strerror}") from error
    with open_gallery(gallery, key) as store:
        done = import_gallery(
            store,
            source,
            key=find_key(export_key or key, beside=gallery) if export_key or sealed else None,
            rules=EnrolRules.choose(threshold, store.info.contract_id),
            force=force,
            rename=dict(_pair(each) for each in rename or ()),
        )
    text = f"{gallery}: {counted(done.people, 'new person', 'new people')}, "
    text += f"{counted(done.templates, 'new template')}, {done.already} known already"
    answer({"gallery": gallery, **dataclasses.asdict(done)}, text, json=json)


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals:
        raise InputError(f"--rename: expected OLD=NEW, found {text!r:.80}")
    return old, new


def _import_encodings(
    gallery: str, source: Path, names: Path | None, *, key: str | None, threshold: str | None, force: bool, json: bool
) -> None:
    from edgeface.gallery.encodings import DLIB_CONTRACT_ID, import_encodings
    from edgeface.gallery.enrolment import EnrolRules

    rules = EnrolRules.choose(threshold, DLIB_CONTRACT_ID)
    with open_gallery(gallery, key) as store:
        done = import_encodings(store, source, rules=rules, names=names, force=force)
    text = f"{gallery}: {counted(done.people, 'new person', 'new people')}, "
    text += f"{counted(done.templates, 'new template')}, {done.already} known already, {len(done.skipped)} skipped"
    answer({"gallery": gallery, **dataclasses.asdict(done)}, text, json=json)
    warn(f"{source}: skipped {line}" for line in done.skipped)
    warn(done.disagreements)


@group.command(epilog="Example: edgeface gallery rebuild people.gallery --model newer.xml")
def rebuild(
    gallery: GalleryArgument,
    model: Annotated[Path, typer.Option("--model", "-m", help="The .xml of the new model.")],
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Remove templates that have no usable stored image.")
    ] = False,
    same_alignment: Annotated[
        bool,
        typer.Option(
            "--same-alignment", help="Use stored crops as they are; requires that both models use the same alignment."
        ),
    ] = False,
    device: DeviceOption = "CPU",
    allow_seeded: AllowSeededOption = False,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Embed the stored images with another model. To resume an interrupted rebuild, run the same command."""
    from edgeface.gallery.rebuild import rebuild as run
    from edgeface.runtime import Embedder

    with (
        open_gallery(gallery, key) as store,
        Embedder.load(model, device=device, allow_seeded=allow_seeded) as embedder,
        progress_bars() as progress,
    ):
        done = run(store, embedder, drop_missing=drop_missing, same_alignment=same_alignment, progress=progress)
    text = (
        f"{gallery}: contract {done.contract_id}, {counted(done.embedded, 'template')} embedded, {done.reused} from an "
    )
    text += f"interrupted run, {done.dropped} dropped"
    answer({"gallery": gallery, **dataclasses.asdict(done)}, text, json=json)
    warn(f"{name}: no template is left; enrol this person again" for name in done.without_templates)
    warn(f"not searched: {place}" for place in done.unsearched)
    fail_with([f"old bytes are still there: {place}" for place in done.remains])


@group.command(epilog="Example: edgeface gallery rekey people.gallery --key file:/keys/old --new-key file:/keys/new")
def rekey(
    gallery: GalleryArgument,
    key: KeyOption = None,
    new_key: NewKeyOption = None,
    unencrypted: UnencryptedOption = False,
    json: JsonOption = False,
) -> None:
    """Change, add or remove the encryption key, and check that no row under the old key is left in the files."""
    if new_key is None and not unencrypted:
        raise InputError("expected --new-key or --unencrypted, found neither; nothing was changed")
    with open_gallery(gallery, key) as store:
        done = store.rekey(choose_key(new_key, gallery, unencrypted=unencrypted))
    how = f"sealed with key {done.key_id}" if done.key_id else "not encrypted any more"
    answer({"gallery": gallery, **dataclasses.asdict(done)}, f"{gallery}: {done.rows} rows, {how}", json=json)
    warn(f"not searched: {place}" for place in done.unsearched)
    fail_with([f"old bytes are still there: {place}" for place in done.remains])


@group.command(epilog="Example: edgeface gallery restore people.gallery /media/backup/people.gallery")
def restore(
    gallery: GalleryArgument,
    copy: Annotated[Path, typer.Argument(metavar="COPY", help="Earlier copy of the gallery's file.")],
    yes: YesOption = False,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Replace a gallery by an earlier copy of its file. People enrolled since are lost; people forgotten since return.

    --key is the key of the copy. A gallery on a server is put back by pg_restore.
    """
    from edgeface.gallery import find_key, restore_gallery

    confirm(f"Replace the people of {gallery} by those of {copy}?", command="restore", yes=yes)
    done = restore_gallery(gallery, copy, key=find_key(key, beside=gallery))
    text = f"{gallery}: restored {counted(done.people, 'person', 'people')}, {counted(done.templates, 'template')}; "
    text += f"lost: {counted(done.lost, 'person', 'people')} enrolled since the copy was made"
    answer({"gallery": gallery, **dataclasses.asdict(done)}, text, json=json)
    warn(f"{name}: forgotten since the copy was made, and enrolled again" for name in done.returned)
    if done.former_key_id not in (None, done.key_id):
        old, new = (
            f"sealed with key {key_id}" if key_id else "not encrypted" for key_id in (done.former_key_id, done.key_id)
        )
        warn([f"{gallery}: was {old}, and is {new} again, as the copy; change that: edgeface gallery rekey {gallery}"])


@group.command(epilog="Example: edgeface gallery check people.gallery --json")
def check(gallery: GalleryArgument, key: KeyOption = None, json: JsonOption = False) -> None:
    """Verify every row, and complete an interrupted erasure or rekey. Exit code 1: damage was found."""
    with open_gallery(gallery, key) as store:
        done = store.check()
    rows = ", ".join(f"{count} {table}" for table, count in done.rows.items())
    verdict = f"{counted(len(done.problems), 'problem')} found" if done.problems else "all whole"
    found = {"gallery": gallery, "rows": done.rows, "problems": list(done.problems)}
    answer(found, f"{gallery}: {rows}: {verdict}", json=json)
    warn(done.problems, fail=True)
