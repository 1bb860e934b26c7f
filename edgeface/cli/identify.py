"""The command `edgeface identify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeface.cli import output as out
from edgeface.cli.gallery_options import GalleryOption, KeyOption, open_gallery
from edgeface.cli.options import GalleryAnalyzerOptions, NoGateOption, ThresholdOption, parse_threshold, with_options
from edgeface.cli.words import identified_lines, search_words
from edgeface.errors import ImageError, NegativeResult

if TYPE_CHECKING:
    from edgeface.recognize.identify import Identification
    from edgeface.recognize.open_set import SearchThreshold


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog="Example: edgeface identify door.jpg --gallery people.gallery --fpir 0.001")(
        with_options(identify)
    )


def identify(
    images: Annotated[list[str], typer.Argument(metavar="IMG...", help="Photos, folders or shell patterns.")],
    gallery: GalleryOption,
    *,
    fpir: Annotated[
        float | None,
        typer.Option(
            help="Target false positive identification rate: the share of people who are not enrolled that may be "
            "accepted as someone who is. Default: 0.01."
        ),
    ] = None,
    threshold: ThresholdOption = None,
    rule: Annotated[
        str, typer.Option(metavar="max|mean-of-best-N", help="Score of a person: the best template's, or a mean.")
    ] = "max",
    margin: Annotated[
        float,
        typer.Option(
            min=0,
            help="Lead over the second person's score, in cosine similarity, below which the answer is inconclusive. "
            "What suits one model refuses everybody with another.",
        ),
    ] = 0.0,
    no_gate: NoGateOption = False,
    options: GalleryAnalyzerOptions,
    key: KeyOption = None,
    strict: out.StrictOption = False,
    json: out.JsonOption = False,
) -> None:
    """Identify the faces of photos among the people of a gallery. Exit code: 1 if no face was recognised."""
    from edgeface.gallery.index import LiveIndex
    from edgeface.gallery.records import detector_note
    from edgeface.recognize.index import PersonRule
    from edgeface.recognize.threshold import require_rate
    from edgeface.vision.crops import list_some
    from edgeface.vision.listing import list_photos
    from edgeface.vision.quality import QualityGate

    photos = list_photos(images)
    scored = PersonRule.parse(rule)
    gate = None if no_gate else QualityGate()
    given = parse_threshold(threshold)
    if fpir is not None:
        require_rate("fpir", fpir)
    with open_gallery(gallery, key) as store:  # without gallery or key no model is loaded
        made_with = store.detectors()
    failures = dict(photos.failures)
    found: dict[Path, list[dict[str, Any]]] = {}
    with options.load(photos=len(photos.files), made_with=made_with) as app:
        contract, precision, hint, found_by = app.contract, app.precision, app.hint, app.found_by(gate)
        differs = found_by.detector and detector_note(made_with, found_by.detector)
        if differs:
            out.print_note(differs)
        with open_gallery(gallery, key, contract_id=contract.contract_id) as store:
            index = LiveIndex(store)
            limit = app.search_threshold(index, fpir=fpir, threshold=given)
            decided = _describe_threshold(limit)
            if not json:
                out.print_note(search_words(decided))
            if decided["note"]:
                out.print_note(decided["note"])
            for path in photos.files:
                try:
                    answers = app.identify(path, index, threshold=limit, rule=scored, margin=margin, gate=gate)
                except ImageError as error:
                    failures[path] = str(error).removeprefix(f"{path}: ")
                    continue
                found[path] = [_describe(each) for each in answers]
                for line in () if json else identified_lines(path, found[path], margin=margin):
                    out.print_line(line)
    if not found:
        raise ImageError(f"no photo could be read: {list_some(failures)}")
    recognised = sum(each["known"] for answers in found.values() for each in answers)
    if json:
        out.emit_json(
            {
                "gallery": gallery,
                "model": contract.name,
                "contract_id": contract.contract_id,
                "precision": precision,
                "hint": hint,
                **decided,
                **asdict(found_by),
                "detector_note": differs,
                "rule": scored.name,
                "margin": margin,
                "recognised": recognised,
                "images": [{"path": str(path), "faces": answers} for path, answers in found.items()],
                "failures": out.list_failures(failures),
                "left_out": out.list_failures(photos.left_out),
            }
        )
    else:
        out.print_model(contract, precision, found_by)
    out.finish(failures, strict=strict, left_out=photos.left_out)
    if not recognised:
        raise typer.Exit(NegativeResult.exit_code)


def _describe_threshold(limit: SearchThreshold) -> dict[str, Any]:
    names = ("fpir", "expected_fpir", "expected_fnir", "supported", "measured_on")
    known = {name: getattr(limit, name) for name in names}
    return (
        {"templates": limit.gallery_size, "threshold": limit.value} | known | {"note": limit.note(limit.gallery_size)}
    )


def _describe(answer: Identification) -> dict[str, Any]:
    assert answer.face is not None
    place = {"face": answer.face.number, "box": answer.face.to_dict()["box"]}
    reasons = {"reasons": list(answer.face.reasons)} if answer.face.reasons else {}
    return answer.to_dict() | place | reasons
