"""The command `edgeface liveness`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeface.cli import output as out
from edgeface.cli.options import LivenessOptions, with_options
from edgeface.errors import ImageError, NegativeResult

if TYPE_CHECKING:
    from edgeface.vision.crops import Detection
    from edgeface.vision.liveness import Liveness


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog="Example: edgeface liveness door.jpg --json")(with_options(liveness))


def liveness(
    images: Annotated[list[str], typer.Argument(metavar="PHOTO...", help="Photos, folders or shell patterns.")],
    options: LivenessOptions,
    json: out.JsonOption = False,
) -> None:
    """Judge whether the faces of photos are live. Exit code: 0 only if every photo has a face and all are live."""
    from edgeface.vision.crops import detect_photos, list_some
    from edgeface.vision.detector import FoundBy
    from edgeface.vision.listing import list_photos

    listed = list_photos(images)
    failures = dict(listed.failures)
    found: list[tuple[Detection, list[Liveness]]] = []
    with options.load_checker() as checker, options.load_detector() as detector:
        for each in detect_photos(listed.photos, detector, failures=failures):
            found.append((each, checker.check(each.image, each.faces)))
            if not json:
                _show(*found[-1])
    if not found:
        raise ImageError(f"no photo could be read: {list_some(failures)}")
    live = not failures and all(answers and all(answers) for _, answers in found)
    if json:
        out.emit_json(
            {
                "live": live,
                "threshold": checker.threshold,
                **asdict(FoundBy.loaded(detector, asked=options.min_size is not None)),
                "models": [{"name": each.name, "contract_id": each.contract_id} for each in checker.contracts],
                "images": [_describe(*each) for each in found],
                "failures": out.list_failures(failures),
                "left_out": out.list_failures(listed.left_out),
            }
        )
    out.finish(failures, strict=False, left_out=listed.left_out)
    if not live:
        raise typer.Exit(NegativeResult.exit_code)


def _describe(detection: Detection, answers: list[Liveness]) -> dict[str, Any]:
    told = detection.to_dict()
    faces = zip(told["faces"], answers, strict=True)
    return told | {"faces": [face | {"liveness": answer.to_dict()} for face, answer in faces]}


def _show(detection: Detection, answers: list[Liveness]) -> None:
    out.print_line(f"{detection.photo.path}: {out.counted(len(answers), 'face')}")
    for box, answer in zip(detection.faces.boxes.tolist(), answers, strict=True):
        why = f": {'; '.join(answer.reasons)}" if answer.reasons else ""
        out.print_line(f"  {out.describe_box(box)}: {answer.verdict} ({answer.score:.4f}){why}")
