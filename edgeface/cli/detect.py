"""The commands `edgeface detect` and `edgeface align`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeface.cli import output as out
from edgeface.cli.options import DetectorOptions, with_options
from edgeface.cli.words import found_lines
from edgeface.errors import FaceError, ImageError, InputError
from edgeface.files import require_writable
from edgeface.model.contract import Alignment, CropRecipe

_SIZES = {
    "five-point-112": (112, 112),
    "five-point-96x112": (112, 96),
    "five-point-150": (150, 150),
    "outer-eyes-nose-96": (96, 96),
}
_BY_BOX = ("mtcnn-box-margin", "mtcnn-box-output-margin")

_ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", min=0, max=1, help="Minimum detection score, 0 to 1. Default: the detector's own."),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: edgeface detect photos/ --draw marked --json")(with_options(detect))
    app.command(epilog="Example: edgeface align lfw -o lfw_160 --recipe mtcnn-box-margin --margin 32")(
        with_options(align)
    )


def detect(
    images: Annotated[list[str], typer.Argument(metavar="IMG...", help="Photos, folders or shell patterns.")],
    options: DetectorOptions,
    threshold: _ThresholdOption = None,
    draw: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for copies of the photos with the faces marked.")
    ] = None,
    strict: out.StrictOption = False,
    json: out.JsonOption = False,
) -> None:
    """Detect faces: boxes and five landmarks in pixels, and scores."""
    from edgeface.vision.crops import ImageFolder, detect_photos, list_some
    from edgeface.vision.detector import FoundBy
    from edgeface.vision.listing import list_photos

    listed = list_photos(images, output=draw)
    photos, failures = listed.photos, dict(listed.failures)
    drawn = ImageFolder(draw, photos) if draw else None
    if draw:
        require_writable(draw)
    answers: list[dict[str, Any]] = []
    with options.load_detector(threshold=threshold) as model:
        for found in detect_photos(photos, model, failures=failures, drawn=drawn):
            answers.append(found.to_dict())
            for line in () if json else found_lines(answers[-1]):
                out.print_line(line)
    if not answers:
        raise ImageError(f"no photo could be read: {list_some(failures)}")
    found_by = FoundBy.loaded(model, asked=options.min_size is not None)
    if not json:
        out.print_detector(found_by)
    else:
        about = {"failures": out.list_failures(failures), "left_out": out.list_failures(listed.left_out)}
        out.emit_json({**asdict(found_by), "images": answers, **about})
    out.finish(failures, strict=strict, left_out=listed.left_out)


def align(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of photos; its subfolders are searched.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the crops.")],
    *,
    recipe: Annotated[
        CropRecipe, typer.Option(help="Alignment of the model, as 'edgeface inspect' prints.")
    ] = "mtcnn-box-margin",
    margin: Annotated[
        int | None, typer.Option(min=0, help="Margin in pixels, for mtcnn-box recipes. Default: 32.")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="N|HxW", help="Crop size, pixels. Default: the recipe's.")] = None,
    options: DetectorOptions,
    threshold: _ThresholdOption = None,
    strict: out.StrictOption = False,
    json: out.JsonOption = False,
) -> None:
    """Write an aligned face crop for every photo in a folder, keeping the subfolders."""
    from edgeface.vision.crops import align_photos, list_some
    from edgeface.vision.detector import FoundBy
    from edgeface.vision.listing import list_photos

    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of photos; there is no such folder")
    if output_dir.resolve() == folder.resolve():
        raise InputError(f"{output_dir}: this is the folder of the photos; choose another output folder")
    by_box = recipe in _BY_BOX
    if margin is not None and not by_box:
        raise InputError(f"--margin: the recipe {recipe} has no margin; leave it out")
    alignment = Alignment(recipe, (32 if margin is None else margin) if by_box else 0)
    crop_size = _parse_size(size) if size else _SIZES.get(recipe, (160, 160))
    listed = list_photos([folder], output=output_dir)
    require_writable(output_dir)
    with options.load_detector(threshold=threshold) as model, out.progress_bars() as progress:
        report = align_photos(listed.photos, output_dir, model, alignment, crop_size, progress=progress)
    failures = report.failures | listed.failures
    if not report.written:
        raise FaceError(f"no face could be cropped from any photo: {list_some(failures)}")
    found_by = FoundBy.loaded(model, asked=options.min_size is not None)
    if json:
        out.emit_json(
            {
                "output_dir": str(output_dir),
                "recipe": recipe,
                "margin": alignment.margin,
                "size": list(crop_size),
                **asdict(found_by),
                "written": len(report.written),
                "failures": out.list_failures(failures),
                "left_out": out.list_failures(listed.left_out),
            }
        )
    else:
        out.print_line(f"{len(report.written)} crops written to {output_dir}")
        out.print_detector(found_by)
    out.finish(failures, strict=strict, left_out=listed.left_out)


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--size: expected N or HxW in pixels, found {text!r}")
    return int(parts[0]), int(parts[-1])
