"""`edgeface detect` and `edgeface align`."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeface.cli.faces import (
    DetectorModelOption,
    DetectorName,
    DetectorOption,
    DeviceOption,
    LandmarksModelOption,
    MinSizeOption,
    load_detector,
)
from edgeface.cli.output import JsonOption, StrictOption, counting, emit_json, finish, list_failures, stdout
from edgeface.errors import FaceError, ImageError, InputError, OutputError
from edgeface.model.contract import Alignment

__all__ = ["register"]


class _Recipe(str, enum.Enum):
    mtcnn_box_margin = "mtcnn-box-margin"
    mtcnn_box_output_margin = "mtcnn-box-output-margin"
    five_point_112 = "five-point-112"
    five_point_96x112 = "five-point-96x112"
    outer_eyes_nose_96 = "outer-eyes-nose-96"


_SIZES = {
    _Recipe.mtcnn_box_margin: (160, 160),
    _Recipe.mtcnn_box_output_margin: (160, 160),
    _Recipe.five_point_112: (112, 112),
    _Recipe.five_point_96x112: (112, 96),
    _Recipe.outer_eyes_nose_96: (96, 96),
}

ThresholdOption = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, help="Lowest score.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: edgeface detect photos/ --draw marked --json")(detect)
    app.command(epilog="Example: edgeface align lfw -o lfw_160 --recipe mtcnn-box-margin --margin 32")(align)


def detect(
    images: Annotated[list[str], typer.Argument(metavar="IMG...", help="Files, folders or patterns.")],
    detector: DetectorOption = DetectorName.mtcnn,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    device: DeviceOption = "CPU",
    min_size: MinSizeOption = 20,
    threshold: ThresholdOption = None,
    draw: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write marked with the faces marked.")
    ] = None,
    strict: StrictOption = False,
    json: JsonOption = False,
) -> None:
    """Find faces: boxes, five landmarks and scores, in pixels of each image."""
    from edgeface.vision.crops import ImageFolder, detect_photos, draw_faces, find_photos, list_some

    photos = find_photos(images, output=draw)
    marked = ImageFolder(draw, photos) if draw else None
    failures: dict[Path, str] = {}
    answers: list[dict[str, Any]] = []
    with load_detector(
        detector, detector_model, landmarks_model, device=device, min_size=min_size, threshold=threshold
    ) as model:
        for found in detect_photos(photos, model, failures=failures):
            if marked:
                try:
                    marked.write(found.photo, draw_faces(found.image, found.faces))
                except OutputError:
                    raise
                except InputError as error:
                    failures[found.photo.path] = str(error)
            answers.append(_answer(found))
            if not json:
                _show(answers[-1])
    if not answers:
        raise ImageError(f"no image could be read: {list_some(failures)}")
    if json:
        emit_json({"detector": detector.value, "images": answers, "failures": list_failures(failures)})
    finish(failures, strict=strict)


def align(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Photographs, in any depth of folders.")],
    output_dir: Annotated[
        Path,
        typer.Option("--output-dir", "-o", help="Folder for the crops; made if absent.", show_default=False),
    ],
    recipe: Annotated[_Recipe, typer.Option(help="How the model was trained.")] = _Recipe.mtcnn_box_margin,
    margin: Annotated[
        int | None, typer.Option(min=0, help="Pixels, for the box recipes; 32 there.", show_default=False)
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Of the crop; by default the recipe's.")
    ] = None,
    detector: DetectorOption = DetectorName.mtcnn,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    device: DeviceOption = "CPU",
    min_size: MinSizeOption = 20,
    threshold: ThresholdOption = None,
    strict: StrictOption = False,
    json: JsonOption = False,
) -> None:
    """Cut the face out of every photograph of a folder, and keep the folders' structure."""
    from edgeface.vision.crops import CropReport, align_photos, find_photos, list_some

    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of photographs, found none")
    if output_dir.resolve() == folder.resolve():
        raise InputError(f"{output_dir}: expected a folder apart from the photographs, found theirs")
    by_box = recipe in (_Recipe.mtcnn_box_margin, _Recipe.mtcnn_box_output_margin)
    if margin is not None and not by_box:
        raise InputError(f"--margin: {recipe.value} has none")
    alignment = Alignment(recipe.value, (32 if margin is None else margin) if by_box else 0)
    crop_size = _parse_size(size) if size else _SIZES[recipe]
    photos = find_photos([folder], output=output_dir)
    report = CropReport()
    with (
        load_detector(
            detector, detector_model, landmarks_model, device=device, min_size=min_size, threshold=threshold
        ) as model,
        counting("aligning", unit="photos") as progress,
    ):
        for report in align_photos(photos, output_dir, model, alignment, crop_size):
            progress(len(report.written) + len(report.failures), len(photos))
    if not report.written:
        raise FaceError(f"no photo gave a crop: {list_some(report.failures)}")
    if json:
        emit_json(
            {
                "output_dir": str(output_dir),
                "recipe": recipe.value,
                "margin": alignment.margin,
                "size": list(crop_size),
                "written": len(report.written),
                "failures": list_failures(report.failures),
            }
        )
    else:
        stdout.print(f"{len(report.written)} crops written to {output_dir}", markup=False, soft_wrap=True)
    finish(report.failures, strict=strict)


def _answer(found: Any) -> dict[str, Any]:
    height, width = found.image.shape[:2]
    faces = [
        {
            "box": [round(float(value), 2) for value in box],
            "landmarks": [[round(float(value), 2) for value in point] for point in points]
            if not math.isnan(points[0, 0])
            else None,
            "score": round(float(score), 6),
        }
        for box, points, score in zip(
            found.faces.boxes, found.faces.landmarks, found.faces.scores, strict=True
        )
    ]
    return {"path": str(found.photo.path), "width": width, "height": height, "faces": faces}


def _show(answer: dict[str, Any]) -> None:
    faces = answer["faces"]
    counted = f"{len(faces)} {'face' if len(faces) == 1 else 'faces'}"
    stdout.print(f"{answer['path']}: {counted}", markup=False, soft_wrap=True)
    for face in faces:
        x0, y0, x1, y1 = face["box"]
        stdout.print(f"  {face['score']:.4f}  {x1 - x0:.0f}x{y1 - y0:.0f} at ({x0:.0f}, {y0:.0f})")


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--size: expected N or HxW in pixels, found {text!r}")
    return int(parts[0]), int(parts[-1])
