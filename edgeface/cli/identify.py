"""`edgeface identify`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgeface.cli.faces import (
    CropsOption,
    DetectorModelOption,
    DetectorName,
    DetectorOption,
    DeviceOption,
    LandmarksModelOption,
    MinSizeOption,
    ModelOption,
    load_detector,
)
from edgeface.cli.gallery import KeyOption, open_gallery
from edgeface.cli.output import JsonOption, StrictOption, emit_json, finish, list_failures, stderr, stdout
from edgeface.cli.thresholds import ThresholdOption, known_thresholds, parse_similarity
from edgeface.errors import ImageError, InputError, NegativeResult

if TYPE_CHECKING:
    from edgeface.pipeline.pipeline import Face, Pipeline
    from edgeface.recognize.identify import Identifier
    from edgeface.recognize.open_set import SearchThreshold

__all__ = ["register"]

_USUAL_FPIR = 0.01
_WORDS = {"accepted": "", "unknown": "unknown", "ask-again": "not sure, look again: "}


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(
        epilog="Example: edgeface identify door.jpg --gallery people.gallery --model facenet.xml --fpir 0.001"
    )(identify)


def identify(
    images: Annotated[list[str], typer.Argument(metavar="IMG...", help="Files, folders or patterns.")],
    gallery: Annotated[Path, typer.Option("--gallery", "-g", help="Who is enrolled.", show_default=False)],
    model: ModelOption,
    fpir: Annotated[
        float | None,
        typer.Option(
            help="Of the people who are not enrolled, the share that may be taken for somebody.",
            show_default=f"{_USUAL_FPIR:g}",
        ),
    ] = None,
    threshold: ThresholdOption = None,
    rule: Annotated[
        str, typer.Option(metavar="max|mean-of-best-N", help="How a person's templates become one score.")
    ] = "max",
    margin: Annotated[
        float, typer.Option(min=0, help="How far, in cosine, the next person must be behind to be sure.")
    ] = 0.05,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Look at faces of any quality.")] = False,
    crops: CropsOption = False,
    detector: DetectorOption = DetectorName.mtcnn,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    min_size: MinSizeOption = 20,
    device: DeviceOption = "CPU",
    key: KeyOption = None,
    strict: StrictOption = False,
    json: JsonOption = False,
) -> None:
    """Say who the faces of pictures are, or that they are nobody enrolled. Exit code 1: nobody was recognised."""
    from edgeface.gallery.index import LiveIndex
    from edgeface.pipeline.pipeline import Pipeline
    from edgeface.recognize.identify import Identifier
    from edgeface.recognize.people import PersonRule
    from edgeface.runtime import Embedder
    from edgeface.vision.quality import QualityGate
    from edgeface.vision.source import find_files

    files = list(dict.fromkeys(path for place in images for path in find_files(place)))
    scored = PersonRule.parse(rule)
    failures: dict[Path, str] = {}
    answers: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        embedder = stack.enter_context(Embedder.load(model, device=device))
        contract_id = embedder.contract.contract_id
        store = stack.enter_context(open_gallery(gallery, key, contract_id=contract_id))
        index = LiveIndex(store)
        limit = _choose_threshold(threshold, fpir, contract_id, max(1, len(index)), model)
        identifier = Identifier(index, limit, rule=scored, margin=margin)
        finder = None
        if not crops:
            finder = stack.enter_context(
                load_detector(detector, detector_model, landmarks_model, device=device, min_size=min_size)
            )
        pipeline = Pipeline(finder, embedder, gate=None if no_gate or crops else QualityGate())
        if note := limit.note(len(index)):
            stderr.print(note, markup=False, soft_wrap=True)
        for path, faces in _look_at(files, pipeline, failures):
            answers.append({"path": str(path), "faces": _identify(faces, identifier)})
            if not json:
                _show(answers[-1])
    if not answers:
        raise ImageError("no image could be read: " + "; ".join(f"{p}: {why}" for p, why in failures.items()))
    recognised = sum(face["verdict"] == "accepted" for answer in answers for face in answer["faces"])
    if json:
        emit_json(
            {
                "gallery": str(gallery),
                "contract_id": contract_id,
                "templates": limit.gallery_size,
                "threshold": limit.value,
                "fpir": limit.fpir,
                "expected_fpir": limit.expected_fpir,
                "rule": scored.name,
                "margin": margin,
                "recognised": recognised,
                "images": answers,
                "failures": list_failures(failures),
            }
        )
    finish(failures, strict=strict)
    if not recognised:
        raise typer.Exit(NegativeResult.exit_code)


def _choose_threshold(
    given: str | None, fpir: float | None, contract_id: str, size: int, model: Path
) -> SearchThreshold:
    from edgeface.recognize.open_set import SearchThreshold, far_for_fpir, threshold_from_pairs

    if given is not None and (value := parse_similarity(given)) is not None:
        if fpir is not None:
            raise InputError(
                "--fpir: a threshold given as a number was calibrated for no rate; leave one of them out"
            )
        return SearchThreshold.by_hand(value, contract_id=contract_id, gallery_size=size)
    fpir = _USUAL_FPIR if fpir is None else fpir
    known = known_thresholds(given, contract_id, model, far=far_for_fpir(fpir, size))
    return threshold_from_pairs(known, fpir=fpir, gallery_size=size)


def _look_at(
    files: list[Path], pipeline: Pipeline, failures: dict[Path, str]
) -> Iterator[tuple[Path, list[Face]]]:
    from edgeface.vision.image import read_image

    for path in files:
        try:
            faces = pipeline.process(read_image(path))
        except ImageError as error:
            failures[path] = str(error).removeprefix(f"{path}: ")
            continue
        yield path, sorted(faces, key=lambda face: float(face.box[0]))


def _identify(faces: list[Face], identifier: Identifier) -> list[dict[str, Any]]:
    """Answers from left to right; a face that cannot be embedded is told with the reason."""
    probes = [face.embedding for face in faces if face.embedding is not None]
    found = iter(identifier.identify_frame(probes))
    return [
        {
            "face": number,
            "box": [round(float(value), 1) for value in face.box],
            **(
                {"verdict": "unusable", "reasons": list(face.reasons)}
                if face.embedding is None
                else next(found).to_dict()
            ),
        }
        for number, face in enumerate(faces, start=1)
    ]


def _show(answer: dict[str, Any]) -> None:
    faces = answer["faces"]
    stdout.print(
        f"{answer['path']}: {len(faces)} {'face' if len(faces) == 1 else 'faces'}",
        markup=False,
        soft_wrap=True,
    )
    for face in faces:
        x0, y0, x1, y1 = face["box"]
        place = f"{x1 - x0:.0f}x{y1 - y0:.0f} at ({x0:.0f}, {y0:.0f})"
        if face["verdict"] == "unusable":
            stdout.print(f"  {place}: unusable: {'; '.join(face['reasons'])}", markup=False, soft_wrap=True)
            continue
        who = f"[bold]{escape(face['person'])}[/]" if face["person"] else ""
        score = "nobody is enrolled" if face["score"] is None else f"{face['score']:.4f}"
        behind = (
            f", next {escape(face['runner_up'])} {face['runner_up_score']:.4f}" if face["runner_up"] else ""
        )
        stdout.print(f"  {place}: {_WORDS[face['verdict']]}{who} ({score}{behind})", soft_wrap=True)
