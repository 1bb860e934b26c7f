"""`edgeface gallery enrol`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeface.cli.faces import (
    CropsOption,
    DetectorModelOption,
    DetectorName,
    DetectorOption,
    DeviceOption,
    LandmarksModelOption,
    MinSizeOption,
    load_detector,
)
from edgeface.cli.gallery import GalleryArgument, KeyOption, describe_person, open_gallery
from edgeface.cli.output import JsonOption, emit_json, stderr, stdout
from edgeface.errors import EnrolmentRefused, InputError, NegativeResult

if TYPE_CHECKING:
    from edgeface.gallery import NewTemplate
    from edgeface.gallery.enrol import Enrolment, EnrolRules
    from edgeface.gallery.store.sqlite import SqliteStore

    _Templates = tuple[str, list[tuple[str, NewTemplate]]]
    """A name, and a picture and its template each."""

__all__ = ["choose_rules", "register"]

_TABLES = (".npz", ".parquet")

ThresholdOption = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        metavar="FILE|VALUE",
        help="What 'edgeface calibrate' wrote, or a cosine similarity from which two faces are one person's. "
        "Default: the one shipped for this model.",
        show_default=False,
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Enrol a face that is somebody else's already.")]


def register(group: typer.Typer) -> None:
    """Add this module's command."""
    group.command(
        epilog="Example: edgeface gallery enrol people.gallery ada1.jpg ada2.jpg --name 'Ada Lovelace' --model "
        "facenet.xml"
    )(enrol)


def enrol(
    gallery: GalleryArgument,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Pictures; folders of one folder a person; or what 'edgeface embed' wrote.",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="The gallery's IR; embeddings need none.", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Whose pictures they are; by default the name of each one's folder.", show_default=False
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A label; may be given again.", show_default=False)
    ] = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Metadata; may be given again.", show_default=False),
    ] = None,
    force: ForceOption = False,
    largest: Annotated[
        bool, typer.Option("--largest", help="Of several faces in a picture take the largest one.")
    ] = False,
    threshold: ThresholdOption = None,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Take faces of any quality.")] = False,
    crops: CropsOption = False,
    detector: DetectorOption = DetectorName.mtcnn,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    min_size: MinSizeOption = 20,
    device: DeviceOption = "CPU",
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Enrol people. Exit code 1: somebody was refused, because no picture is fit or the face is somebody else's."""
    places = _people_of(paths, name)
    report = _Report()
    with open_gallery(gallery, key) as store, contextlib.ExitStack() as stack:
        rules = choose_rules(threshold, store.info.contract_id)
        if all(path.suffix in _TABLES for _, path in places):
            people = _from_tables([path for _, path in places], name)
        elif model is None:
            raise InputError(
                "expected --model, the gallery's IR, because pictures are to be embedded; found none"
            )
        else:
            finder = None
            if not crops:
                finder = stack.enter_context(
                    load_detector(detector, detector_model, landmarks_model, device=device, min_size=min_size)
                )
            people = _from_pictures(
                store, places, finder, model, device, stack, report, gate=not no_gate, largest=largest
            )
        _enrol_all(
            store,
            people,
            report,
            rules=rules,
            labels=label,
            metadata=dict(_pair(each) for each in meta) if meta else None,
            force=force,
        )
    _answer(gallery, report, json=json)


@dataclass(slots=True)
class _Report:
    """What happened so far."""

    done: list[tuple[Enrolment, list[str]]] = field(
        default_factory=list
    )  # and whose pictures the templates are of
    not_enrolled: dict[str, str] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)


def choose_rules(given: str | None, contract_id: str) -> EnrolRules:
    """Rules from a file of thresholds, a bare similarity, or what ships with the model."""
    from edgeface.gallery.enrol import EnrolRules
    from edgeface.recognize import load_thresholds

    if given is None:
        return EnrolRules.shipped(contract_id)
    try:
        value = float(given)
    except ValueError:
        return EnrolRules.from_thresholds(load_thresholds(Path(given)))
    return EnrolRules(duplicate_above=value, agree_above=value, contract_id=contract_id)


def _people_of(paths: list[str], name: str | None) -> list[tuple[str, Path]]:
    """Every file and whose it is; people of one name together, in the order of their first file."""
    from edgeface.vision.source import find_files

    people: dict[str, list[Path]] = {}
    for place in paths:
        folder = Path(place) if Path(place).is_dir() else None
        for path in find_files(place):
            if name is None and path.parent == folder:
                raise InputError(
                    f"{path}: expected folders of one person each in {place}, found a picture; say whose it "
                    "is with --name"
                )
            people.setdefault(name or path.parent.name, []).append(path)
    return [(person, path) for person, files in people.items() for path in dict.fromkeys(files)]


def _from_tables(tables: list[Path], name: str | None) -> Iterator[_Templates]:
    """Of each row the person is the folder of its picture."""
    from edgeface.gallery import NewTemplate
    from edgeface.pipeline.table import EmbeddingTable

    for path in tables:
        table = EmbeddingTable.load(path)
        people: dict[str, list[tuple[str, NewTemplate]]] = {}
        for row, picture in enumerate(table.paths.tolist()):
            person = name or Path(picture).parent.name
            people.setdefault(person, []).append((picture, NewTemplate(embedding=table.embeddings[row])))
        yield from people.items()


def _from_pictures(
    store: SqliteStore,
    places: list[tuple[str, Path]],
    finder: Any,
    model: Path,
    device: str,
    stack: contextlib.ExitStack,
    report: _Report,
    *,
    gate: bool,
    largest: bool,
) -> Iterator[_Templates]:
    from edgeface.cli.output import counting
    from edgeface.gallery.enrolment_images import portraits
    from edgeface.model.embedding import require_same_contract
    from edgeface.pipeline.pipeline import Pipeline
    from edgeface.runtime import Embedder
    from edgeface.vision.quality import QualityGate

    embedder = stack.enter_context(Embedder.load(model, device=device))
    require_same_contract(
        store.info.contract_id, embedder.contract.contract_id, what=f"{store.path} and {model}"
    )
    pipeline = Pipeline(finder, embedder, gate=QualityGate() if gate else None, batch_size=4, prefetch=2)
    progress = stack.enter_context(counting("enrolling", unit="files"))
    found = stack.enter_context(
        contextlib.closing(
            portraits(
                [path for _, path in places],
                pipeline,
                crops=finder is None,
                keep_images=store.info.keeps_images,
                largest=largest,
            )
        )
    )
    numbered = zip(itertools.count(1), places, found, strict=False)
    for person, group in itertools.groupby(numbered, key=lambda item: item[1][0]):
        templates = []
        for number, _, portrait in group:
            progress(number, len(places))
            if portrait.template is None:
                report.refused[portrait.path] = portrait.refusal
            else:
                templates.append((str(portrait.path), portrait.template))
        yield person, templates


def _enrol_all(store: SqliteStore, people: Iterable[_Templates], report: _Report, **options: Any) -> None:
    from edgeface.gallery.enrol import enrol as run
    from edgeface.gallery.index import LiveIndex

    index = LiveIndex(store)
    for name, found in people:
        pictures, templates = [picture for picture, _ in found], [template for _, template in found]
        try:
            report.done.append((run(store, name, templates, index=index, **options), pictures))
        except EnrolmentRefused as error:
            report.not_enrolled[name] = str(error)
    store.load()  # keeps what was added in a file beside it: the next one to open the gallery need not wait


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--meta: expected KEY=VALUE, found {text!r}")
    return key, value


def _answer(gallery: Path, report: _Report, *, json: bool) -> None:
    if json:
        emit_json(
            {
                "gallery": str(gallery),
                "enrolled": [_describe(each, pictures) for each, pictures in report.done],
                "not_enrolled": [{"name": name, "error": why} for name, why in report.not_enrolled.items()],
                "refused": [{"path": str(path), "error": why} for path, why in report.refused.items()],
            }
        )
    for path, why in report.refused.items():
        stderr.print(f"{path}: {why}", markup=False, soft_wrap=True)
    for each, pictures in report.done:
        _warn(each, pictures)
        if not json:
            known = f", {each.already} known already" if each.already else ""
            stdout.print(
                f"{each.person.name} (#{each.person.id}): {len(each.template_ids)} new, "
                f"{each.person.template_count} templates in all{known}",
                markup=False,
                soft_wrap=True,
            )
    for why in report.not_enrolled.values():
        stderr.print(why, markup=False, soft_wrap=True)
    if report.not_enrolled:
        raise typer.Exit(NegativeResult.exit_code)


def _warn(done: Enrolment, pictures: list[str]) -> None:
    name = done.person.name
    for each in done.lookalikes:
        words = f"{name}: enrolled by force, and looks like {each.person.name!r} (similarity {each.similarity:.3f})"
        stderr.print(words, markup=False, soft_wrap=True)
    for odd in done.disagreements:
        other = pictures[odd.other] if isinstance(odd.other, int) else f"template {odd.other.id}"
        stderr.print(
            f"{name}: {pictures[odd.new]} and {other} do not look like one person (similarity "
            f"{odd.similarity:.3f}); look at them",
            markup=False,
            soft_wrap=True,
        )


def _describe(done: Enrolment, pictures: list[str]) -> dict[str, Any]:
    return {
        **describe_person(done.person),
        "new_person": done.created,
        "new_templates": list(done.template_ids),
        "already": done.already,
        "lookalikes": [
            {"id": each.person.id, "name": each.person.name, "similarity": each.similarity}
            for each in done.lookalikes
        ],
        "disagreements": [
            {
                "new": pictures[each.new],
                "other": pictures[each.other] if isinstance(each.other, int) else None,
                "template": None if isinstance(each.other, int) else each.other.id,
                "similarity": each.similarity,
            }
            for each in done.disagreements
        ],
    }
