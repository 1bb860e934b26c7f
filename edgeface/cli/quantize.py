"""`edgeface quantize`."""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edgeface.cli.faces import (
    ChosenDetectorOption,
    CropsOption,
    DetectorModelOption,
    DetectorName,
    LandmarksModelOption,
    find_faces,
    load_detector,
)
from edgeface.cli.output import JsonOption, emit_json, stderr, stdout
from edgeface.cli.quantize_tables import detector_table, outcome_table
from edgeface.cli.stages import Report, stages
from edgeface.errors import InputError, MissingError, NegativeResult

if TYPE_CHECKING:
    from edgeface.evaluate.pairs import Pairs
    from edgeface.quantize.detectors import DetectorOutcome
    from edgeface.quantize.labelled import LabelledPairs
    from edgeface.vision.detector import Detector


class _Preset(str, enum.Enum):
    mixed = "mixed"
    performance = "performance"


class _Mode(str, enum.Enum):
    int8 = "int8"
    weights = "weights"
    fp16 = "fp16"


class _Bias(str, enum.Enum):
    fast = "fast"
    accurate = "accurate"
    none = "none"


class _HalfRange(str, enum.Enum):
    all = "all"
    first_layer = "first-layer"
    none = "none"


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(
        epilog="Example: edgeface quantize models/facenet-20180408-102900.xml --calibration photos -o models/int8"
    )(quantize)


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            help="The .xml of an FP32 IR with a contract; with --as, a detector's model, or 'mtcnn'.",
            metavar="IR",
        ),
    ],
    calibration: Annotated[
        Path,
        typer.Option(help="Folder of photographs of faces; no scores are made of them.", show_default=False),
    ],
    output_dir: Annotated[
        Path,
        typer.Option("--output-dir", "-o", help="Folder for the IR; not the parent's.", show_default=False),
    ],
    preset: Annotated[
        _Preset, typer.Option(help="mixed: activations asymmetric; performance: all symmetric.")
    ] = _Preset.mixed,
    mode: Annotated[
        _Mode,
        typer.Option(help="int8: weights and activations; weights: 8-bit weights alone; fp16: storage."),
    ] = _Mode.int8,
    subset: Annotated[int, typer.Option(min=1, help="Photographs to calibrate with, at most.")] = 300,
    max_drop: Annotated[float, typer.Option(help="Of accuracy on labelled pairs.", min=0.0, max=1.0)] = 0.001,
    min_cosine: Annotated[
        float, typer.Option(help="Against FP32, of every held-out face.", min=-1.0, max=1.0)
    ] = 0.97,
    validate: Annotated[
        str,
        typer.Option(
            help="'none', 'lfw' (of EDGEFACE_DATA), or a pairs list with --images.", metavar="PAIRS"
        ),
    ] = "none",
    images: Annotated[
        Path | None, typer.Option(help="Folder that the names of PAIRS are relative to.", show_default=False)
    ] = None,
    recalibrate: Annotated[
        Path | None,
        typer.Option(
            help="Pairs list (with --images) to make thresholds of for the new IR, beside it.",
            metavar="PAIRS",
            show_default=False,
        ),
    ] = None,
    bias_correction: Annotated[
        _Bias, typer.Option(help="'accurate' takes about four times as long.")
    ] = _Bias.fast,
    half_range: Annotated[
        _HalfRange,
        typer.Option(help="Layers whose weights use 7 bits: without VNNI, sums of 8-bit products saturate."),
    ] = _HalfRange.all,
    keep: Annotated[
        list[str] | None, typer.Option(help="Layer that stays in floating point; may be given several times.")
    ] = None,
    accuracy_control: Annotated[
        float | None,
        typer.Option(
            help="Let NNCF put layers back into floating point until the mean cosine is so high; takes minutes.",
            min=-1.0,
            max=1.0,
            metavar="COSINE",
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        int, typer.Option(min=0, help="Groups of layers that may go back to floating point to pass.")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Draws the photographs.")] = 0,
    crops: CropsOption = False,
    detector: ChosenDetectorOption = None,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    as_detector: Annotated[
        DetectorName | None,
        typer.Option("--as", help="The model is this detector's; boxes and landmarks are compared."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make an IR smaller and faster, and write it only if it is proven not to have lost accuracy."""
    from edgeface.quantize.compress import QuantizationRecipe

    recipe = QuantizationRecipe(
        method=f"int8-{preset.value}" if mode is _Mode.int8 else mode.value,  # type: ignore[arg-type]
        subset=subset,
        bias_correction=bias_correction.value,
        half_range=half_range.value,
        ignored=tuple(keep or ()),
        control=accuracy_control,
        seed=seed,
    )
    if as_detector is not None:
        if validate != "none" or images or recalibrate or crops or detector or detector_model:
            raise InputError(
                "--as: boxes and landmarks are compared on the photographs themselves; leave --validate, --images, "
                "--recalibrate, --crops, --detector and --detector-model out"
            )
        with stages() as progress:
            made = _quantize_detector(
                as_detector, model, calibration, output_dir, recipe, landmarks_model, progress
            )
        return _finish(made.to_dict(), detector_table(made), json=json)
    from edgeface.quantize.calibration import gather
    from edgeface.quantize.gate import QuantizationLimits
    from edgeface.quantize.quantizer import open_parent
    from edgeface.quantize.quantizer import quantize as run
    from edgeface.vision.crops import find_photos

    ir, limits = Path(model), QuantizationLimits(max_drop=max_drop, min_cosine=min_cosine)
    _, contract = open_parent(ir, output_dir, recipe)
    wanted = None if recalibrate is None else _read_labelled(recalibrate, images)
    with (
        stages() as progress,
        find_faces(None, crops, detector, detector_model, landmarks_model, device="CPU") as faces,
        _checker(crops) as checker,
    ):
        pairs = _labelled(validate, images, faces.detector, seed)
        known = gather(
            find_photos([calibration]),
            contract,
            subset=subset,
            detector=faces.detector,
            seed=seed,
            progress=progress,
        )
        found = run(
            ir,
            output_dir,
            known,
            recipe=recipe,
            limits=limits,
            pairs=pairs,
            detector=checker,
            search=search,
            progress=progress,
        )
        answer = found.to_dict() | {
            "calibration": {
                "crops": len(known.crops),
                "held_out": len(known.held_out),
                "without_face": list(known.without_face),
                "unreadable": list(known.unreadable),
                "sha256": known.digest,
                "seed": seed,
            },
            "hints": _hints(ir, known.held_out[:32], contract, limits),
            "thresholds": None,
        }
        if found.ir is not None and wanted is not None:
            answer["thresholds"] = str(
                _recalibrate(found.ir, *wanted, str(recalibrate), faces.detector, progress)
            )
    _finish(answer, outcome_table(found, answer), json=json)


def _labelled(
    validate: str, images: Path | None, detector: Detector | None, seed: int
) -> LabelledPairs | None:
    if validate == "none":
        return None
    from edgeface.evaluate.faces import load_boxes
    from edgeface.evaluate.pairs import read_pairs
    from edgeface.quantize.labelled import LabelledPairs

    if validate != "lfw":
        folder, pairs = _read_labelled(Path(validate), images)
        return LabelledPairs(images=folder, pairs=pairs, detector=detector, seed=seed)
    data = os.environ.get("EDGEFACE_DATA")
    folder = Path(data or "") / "lfw"
    if not data or not (folder / "pairs.txt").is_file():
        raise MissingError(
            "--validate lfw: expected lfw/pairs.txt and lfw/images in the folder that EDGEFACE_DATA names, found none; "
            "set it, or give a pairs list with --images"
        )
    reference = folder / "mtcnn_reference.npz"
    boxes = load_boxes(reference) if reference.is_file() else None
    return LabelledPairs(
        images=images or folder / "images",
        pairs=read_pairs(folder / "pairs.txt"),
        boxes=boxes,
        detector=None if boxes else detector,
        seed=seed,
    )


def _read_labelled(listed: Path, images: Path | None) -> tuple[Path, Pairs]:
    """Read a pairs list, and see that its images are there, before any work is done."""
    from edgeface.evaluate.faces import find_images
    from edgeface.evaluate.pairs import read_pairs

    if images is None:
        raise InputError(
            "--images: expected the folder that the names of the pairs list are relative to, found none"
        )
    pairs = read_pairs(listed)
    find_images(images, pairs.images)
    return images, pairs


@contextlib.contextmanager
def _checker(crops: bool) -> Iterator[Detector | None]:
    """Yield what looks for faces in a calibration set of crops; photographs have been looked at already."""
    if not crops:
        yield None
        return
    with load_detector(DetectorName.mtcnn, None, None, device="CPU") as detector:
        yield detector


def _hints(ir: Path, crops: Any, contract: Any, limits: Any) -> list[dict[str, Any]]:
    import openvino as ov

    from edgeface.model.ir_file import read_ir
    from edgeface.quantize.calibration import to_inputs
    from edgeface.quantize.hints import measure_hints

    parent, inputs = read_ir(ir), to_inputs(crops, contract)
    return [
        each.to_dict()
        for device in ov.Core().available_devices
        for each in measure_hints(parent, inputs, contract, limits, device=device)
    ]


def _recalibrate(
    ir: Path, images: Path, pairs: Pairs, listed: str, detector: Detector | None, progress: Report
) -> Path:
    from edgeface.evaluate.calibration import calibrate_model
    from edgeface.recognize.threshold import save_thresholds

    found = calibrate_model(
        images,
        pairs,
        ir,
        fars=(0.01, 0.001),
        detector=detector,
        created_from=listed,
        progress=lambda each: progress("thresholds", int(each.done), int(each.total or 0)),
    )
    path = ir.with_suffix(".thresholds.json")
    save_thresholds(path, found.thresholds)
    return path


def _quantize_detector(
    name: DetectorName,
    model: str,
    calibration: Path,
    output: Path,
    recipe: Any,
    landmarks_model: Path | None,
    progress: Report,
) -> DetectorOutcome:
    from edgeface.quantize.detectors import quantize_detector
    from edgeface.vision.crops import find_photos

    path = None if name is DetectorName.mtcnn and model == "mtcnn" else Path(model)
    return quantize_detector(
        name.value,
        path,
        output,
        [photo.path for photo in find_photos([calibration])],
        recipe=recipe,
        landmarks_model=landmarks_model,
        progress=progress,
    )


def _finish(answer: dict[str, Any], table: Table, *, json: bool) -> None:
    for reason in answer["reasons"]:
        stderr.print(f"refused: {reason}", markup=False, soft_wrap=True)
    if json:
        emit_json(answer)
    else:
        stdout.print(table)
        for path in filter(None, [answer.get("ir"), *answer.get("files", [])]):
            stdout.print(str(path), markup=False, soft_wrap=True)
    if not answer["passed"]:
        raise typer.Exit(NegativeResult.exit_code)
