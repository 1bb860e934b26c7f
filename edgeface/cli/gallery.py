"""The commands `edgeface gallery create|enrol|list|show|forget`, and the group that all gallery commands belong to."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import edgeface
from edgeface.cli import gallery_files  # noqa: F401 - it adds commands to the group
from edgeface.cli.gallery_options import (
    ForceOption,
    GalleryArgument,
    KeyOption,
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
from edgeface.cli.options import (
    AllowSeededOption,
    GalleryAnalyzerOptions,
    ModelOption,
    NoGateOption,
    parse_threshold,
    with_options,
)
from edgeface.cli.output import (
    JsonOption,
    counted,
    emit_json,
    escape,
    mention_left_out,
    print_detector,
    print_line,
    print_note,
    progress_bars,
    stdout,
)
from edgeface.errors import GalleryError, InputError

if TYPE_CHECKING:
    from edgeface.gallery import Enrolment, GalleryStore, Person

EventsOption = Annotated[
    list[Path] | None, typer.Option(help="Event log of a kiosk, in which people are forgotten too. Repeatable.")
]
_ADVICE = "close other programs that have the gallery open, then run 'edgeface gallery check'"
_PLAIN: dict[str, Any] = {"box": None, "pad_edge": False, "header_style": "bold"}

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A person's name, or #ID.")]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="gallery")


def _find_person(store: GalleryStore, gallery: str, name: str) -> Person:
    """Return a person by name; by ``#ID`` if nobody has that name, which edgeface 0.1 allowed."""
    person = store.find(name)
    if person is None and re.fullmatch(r"#[0-9]{1,18}", name):
        return store.person(int(name[1:]))
    if person is None:
        raise GalleryError(f"{gallery}: no person is named {name!r}; list the people with: edgeface gallery list")
    return person


@group.command(epilog="Example: edgeface gallery create people.gallery --model facenet.xml --key file:/run/secrets/key")
def create(
    gallery: GalleryArgument,
    model: ModelOption = None,
    key: KeyOption = None,
    unencrypted: UnencryptedOption = False,
    keep_images: Annotated[
        bool,
        typer.Option(
            "--keep-images",
            help="Store an image of each face, so that 'gallery rebuild' can embed it with another model.",
        ),
    ] = False,
    allow_seeded: AllowSeededOption = False,
    json: JsonOption = False,
) -> None:
    """Create an empty gallery for the embeddings of one model."""
    from edgeface.gallery.opening import create_gallery
    from edgeface.runtime.replica import contract_at

    with create_gallery(
        gallery,
        contract=contract_at(edgeface.find_model(model)),
        key=choose_key(key, gallery, unencrypted=unencrypted),
        keep_images=keep_images,
        allow_seeded=allow_seeded,
    ) as store:
        info = store.info
    how = "encrypted" if info.encrypted else "not encrypted: names and embeddings can be read without a key"
    text = f"{gallery}: a gallery of {info.model}, contract {info.contract_id}, {how}"
    answer({"gallery": gallery, **info.to_dict()}, text, json=json)


@group.command(epilog="Example: edgeface gallery enrol people.gallery ada1.jpg ada2.jpg --name 'Ada Lovelace'")
@with_options
def enrol(
    gallery: GalleryArgument,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Folders with one folder of photos for each person; with --name also photos; or files that 'edgeface "
            "embed' wrote.",
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the person in all photos. Default: the names of the folders directly below PATH."),
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label for each enrolled person. Repeatable.")] = None,
    meta: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Metadata for each enrolled person. Repeatable.")
    ] = None,
    force: ForceOption = False,
    largest: Annotated[
        bool,
        typer.Option(
            "--largest",
            help="Enrol the largest face of a photo with several faces; by default such a photo is refused.",
        ),
    ] = False,
    threshold: RulesOption = None,
    no_gate: NoGateOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show people, photos and what is left out; read no photo, enrol no one.")
    ] = False,
    options: GalleryAnalyzerOptions,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Enrol people. Exit code 1: a person was refused.

    A person is refused if no photo is usable, if the photos show several people, or if the face matches another
    enrolled person.
    """
    if dry_run:
        return _show_plan(gallery, paths, name, json=json)
    from edgeface.gallery.enrolment import EnrolRules
    from edgeface.gallery.enrolment_images import are_tables, enrol_folder, plan_enrolment
    from edgeface.gallery.records import check_name, detector_note
    from edgeface.recognize.known import advise_calibration
    from edgeface.vision.detector import FoundBy
    from edgeface.vision.quality import QualityGate

    metadata = dict(map(_pair, meta)) if meta else None
    parse_threshold(threshold)
    if name is not None:
        check_name(name)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_gallery(gallery, key))
        pipeline, found_by = None, FoundBy()
        if not are_tables(paths):
            plan_enrolment(paths, name=name)  # what is wrong with the paths is told before the model is loaded
            gate = None if no_gate else QualityGate()
            app = stack.enter_context(options.load(made_with=store.detectors()))
            pipeline, found_by = app.pipeline(gate=gate), app.found_by(gate)
            if found_by.detector and (note := detector_note(store.detectors(), found_by.detector)):
                print_note(note)
        rules = EnrolRules.choose(threshold, pipeline.contract if pipeline else store.info.contract_id)
        done = enrol_folder(
            store,
            paths,
            rules=rules,
            pipeline=pipeline,
            name=name,
            labels=label,
            metadata=metadata,
            largest=largest,
            force=force,
            progress=stack.enter_context(progress_bars()),
        )
        folder = paths[0] if len(paths) == 1 and Path(paths[0]).is_dir() else "PEOPLE"
        advice = advise_calibration(store.info.contract_id, len(store.people()), folder)
    if json:
        emit_json({"gallery": gallery, **asdict(found_by), **done.to_dict()})
    mention_left_out(done.left_out)
    warn(f"{path}: {why}" for path, why in done.refused.items())
    if pipeline is None and not no_gate:
        print_note(
            "stored embeddings are enrolled as 'edgeface embed' chose the faces: of any quality, also of photos with "
            "several faces"
        )
    for each in done.enrolled:
        warn(_doubts(each))
        if not json:
            known = f", {each.already} known already" if each.already else ""
            print_line(
                f"{each.person.name} (#{each.person.id}): {len(each.template_ids)} new, "
                f"{counted(each.person.template_count, 'template')} in all{known}"
            )
    if not json:
        print_detector(found_by)
    if advice:
        print_note(advice)
    warn(done.not_enrolled.values(), fail=True)


def _show_plan(gallery: str, paths: list[str], name: str | None, *, json: bool) -> None:
    from edgeface.gallery.enrolment_images import plan_enrolment

    plan = plan_enrolment(paths, name=name)
    if json:
        emit_json({"gallery": gallery, "dry_run": True, **plan.to_dict()})
    else:
        for person, files in plan.people.items():
            print_line(f"{person}: {counted(len(files), 'photo')}")
            for path in files:
                print_line(f"  {path}")
    mention_left_out(plan.left_out)
    warn(f"{path}: {why}" for path, why in plan.refused.items())
    warn((f"{person}: no photo can be read" for person, files in plan.people.items() if not files), fail=True)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--meta: expected KEY=VALUE, found {text!r}")
    return key, value


def _doubts(done: Enrolment) -> Iterator[str]:
    name = done.person.name
    for each in done.lookalikes:
        yield f"{name}: enrolled by force, and looks like {each.person.name!r} (similarity {each.similarity:.3f})"
    for odd in done.disagreements:
        other = done.sources[odd.other] if isinstance(odd.other, int) else f"template {odd.other.id}"
        yield (
            f"{name}: {done.sources[odd.new]} and {other} do not look like one person (similarity "
            f"{odd.similarity:.3f}); check them"
        )


def _shown(person: Person) -> dict[str, Any]:
    from edgeface.gallery.retention import without_hashes

    return {**person.to_dict(), "metadata": without_hashes(person)}


@group.command("list", epilog="Example: edgeface gallery list people.gallery --label staff --json")
def list_people(
    gallery: GalleryArgument,
    label: Annotated[str | None, typer.Option(help="Only people who have this label.")] = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """List the people of a gallery."""
    with open_gallery(gallery, key) as store:
        info, people, detectors = store.info, store.people(label=label), store.detectors()
    if json:
        told = {name: getattr(info, name) for name in ("contract_id", "model", "encrypted", "keeps_images")}
        told["detectors"] = list(detectors)
        emit_json({"gallery": gallery, **told, "people": [_shown(person) for person in people]})
        return
    table = Table("id", "name", "templates", "labels", "since", **_PLAIN)
    for person in people:
        since = f"{person.created:%Y-%m-%d %H:%M}"
        labels = escape(", ".join(person.labels))
        table.add_row(str(person.id), escape(person.name), str(person.template_count), labels, since)
    stdout.print(table)


@group.command(epilog="Example: edgeface gallery show people.gallery 'Ada Lovelace'")
def show(gallery: GalleryArgument, name: NameArgument, key: KeyOption = None, json: JsonOption = False) -> None:
    """Show a person and the person's templates."""
    with open_gallery(gallery, key) as store:
        person = _find_person(store, gallery, name)
        templates = store.templates_of(person.id)
    if json:
        emit_json({**_shown(person), "templates": [each.to_dict() for each in templates]})
        return
    print_line(f"{person.name} (#{person.id}), since {person.created:%Y-%m-%d %H:%M} UTC")
    if person.labels:
        print_line(f"labels: {', '.join(person.labels)}")
    for field, value in _shown(person)["metadata"].items():
        print_line(f"{field}: {value}")
    table = Table("template", "quality", "since", "photo", "kept", **_PLAIN)
    for each in templates:
        quality = "" if each.quality != each.quality else f"{each.quality:.2f}"
        kept = "yes" if each.has_image else "no"
        table.add_row(str(each.id), quality, f"{each.created:%Y-%m-%d %H:%M}", each.source_sha256[:12], kept)
    stdout.print(table)


@group.command(epilog="Example: edgeface gallery expire people.gallery --events events.sqlite --yes")
def expire(
    gallery: GalleryArgument,
    events: EventsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    yes: YesOption = False,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Erase the people whose recorded consent has expired, as forget does. Exit code 1: data was left."""
    from edgeface.gallery.records import now
    from edgeface.gallery.retention import find_expired
    from edgeface.kiosk.forgetting import forget_people

    with open_gallery(gallery, key) as store:
        expired = find_expired(store, now())
        for person_id, consent in expired.items():
            print_note(f"{store.person(person_id).name} (#{person_id}): expired {consent.expires:%Y-%m-%d %H:%M} UTC")
        if not dry_run and expired:
            confirm(f"Erase {counted(len(expired), 'person', 'people')} for good?", command="expire", yes=yes)
        done = [] if dry_run else forget_people(store, expired, events or ())
    told = {"gallery": gallery, "dry_run": dry_run, "expired": [*expired], "erased": [each.to_dict() for each in done]}
    text = "would be erased" if dry_run else "erased"
    answer(told, f"{counted(len(expired), 'person', 'people')} {text}", json=json)
    fail_with([f"still there: {place}" for each in done for place in each.remains], _ADVICE)


@group.command(epilog="Example: edgeface gallery forget people.gallery 'Ada Lovelace' --yes")
def forget(
    gallery: GalleryArgument,
    name: NameArgument,
    template: Annotated[list[int] | None, typer.Option(help="Erase only this template. Repeatable.")] = None,
    events: EventsOption = None,
    yes: YesOption = False,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Erase a person permanently, and check that no data is left in the files. Exit code 1: data was left.

    What could not be searched, such as the log of a server, is named.
    """
    from edgeface.kiosk.forgetting import forget_people

    with open_gallery(gallery, key) as store:
        person = _find_person(store, gallery, name)
        what = f"{len(template)} of {counted(person.template_count, 'template')}" if template else "everything"
        confirm(f"Erase {what} of {person.name} (#{person.id}) for good?", command="forget", yes=yes)
        if template:
            done = store.forget(person.id, template_ids=template)
        else:
            (done,) = forget_people(store, [person.id], events or ())
    answer(
        done.to_dict(),
        f"{person.name}: erased {counted(done.templates, 'template')} and {counted(done.images, 'image')}; searched "
        f"{counted(len(done.searched), 'file')}, {sum(done.searched.values()):,} bytes, "
        f"for {counted(done.needles, 'piece')}",
        json=json,
    )
    if not events and not template:
        print_note(
            "a kiosk that watches with this gallery forgets who was in its events within a minute of running; for "
            f"another event log: edgeface events purge LOG --person {person.id}"
        )
    warn(f"not searched: {place}" for place in done.unsearched)
    fail_with([f"still there: {place}" for place in done.remains], _ADVICE)
