"""`edgeface quantize`."""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
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
from edgeface.errors import InputError, MissingError, NegativeResult

if TYPE_CHECKING:
    from edgeface.quantize.detectors import DetectorOutcome
    from edgeface.quantize.labelled import LabelledPairs
    from edgeface.quantize.quantizer import Outcome
    from edgeface.vision.detect import Detector

Report = Callable[[str, int, int], None]


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
    from edgeface.quantize.compress import Recipe

    recipe = Recipe(
        method=f"int8-{preset.value}" if mode is _Mode.int8 else mode.value,  # type: ignore[arg-type]
        subset=subset,
        bias_correction=bias_correction.value,
        half_range=half_range.value,
        ignored=tuple(keep or ()),
        seed=seed,
    )
    with _stages() as progress:
        if as_detector is not None:
            outcome = _quantize_detector(
                as_detector, model, calibration, output_dir, recipe, landmarks_model, progress
            )
            return _finish(outcome.to_dict(), _detector_table(outcome), json=json)
        from edgeface.contract import ModelContract
        from edgeface.ir_file import read_ir
        from edgeface.quantize.calibration import gather
        from edgeface.quantize.gate import Limits
        from edgeface.quantize.quantizer import quantize as run
        from edgeface.vision.crops import find_photos

        ir = Path(model)
        contract = ModelContract.read_from(read_ir(ir), source=model)
        with find_faces(None, crops, detector, detector_model, landmarks_model, device="CPU") as faces:
            pairs = _labelled(validate, images, faces.detector, seed)
            known = gather(
                find_photos([calibration]),
                contract,
                subset=subset,
                detector=faces.detector,
                seed=seed,
                progress=progress,
            )
            with _checker(crops) as checker:
                found = run(
                    ir,
                    output_dir,
                    known,
                    recipe=recipe,
                    limits=Limits(max_drop=max_drop, min_cosine=min_cosine),
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
                "hints": _hints(ir, known.held_out[:32], contract),
                "thresholds": None,
            }
            if found.ir is not None and recalibrate is not None:
                answer["thresholds"] = str(
                    _recalibrate(found.ir, recalibrate, images, faces.detector, progress)
                )
    _finish(answer, _table(found, answer), json=json)


def _labelled(
    validate: str, images: Path | None, detector: Detector | None, seed: int
) -> LabelledPairs | None:
    if validate == "none":
        return None
    from edgeface.evaluate.faces import load_boxes
    from edgeface.evaluate.pairs import read_pairs
    from edgeface.quantize.labelled import LabelledPairs

    if validate != "lfw":
        return LabelledPairs(
            images=_require_images(images), pairs=read_pairs(Path(validate)), detector=detector, seed=seed
        )
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


def _require_images(images: Path | None) -> Path:
    if images is None:
        raise InputError(
            "--images: expected the folder that the names of the pairs list are relative to, found none"
        )
    return images


@contextlib.contextmanager
def _checker(crops: bool) -> Iterator[Detector | None]:
    """Yield what looks for faces in a calibration set of crops; photographs have been looked at already."""
    if not crops:
        yield None
        return
    with load_detector(DetectorName.mtcnn, None, None, device="CPU") as detector:
        yield detector


def _hints(ir: Path, crops: Any, contract: Any) -> list[dict[str, Any]]:
    from edgeface.ir_file import read_ir
    from edgeface.quantize.calibration import to_inputs
    from edgeface.quantize.hints import measure_hints

    return [each.to_dict() for each in measure_hints(read_ir(ir), to_inputs(crops, contract))]


def _recalibrate(
    ir: Path, pairs: Path, images: Path | None, detector: Detector | None, progress: Report
) -> Path:
    from edgeface.evaluate.calibration import calibrate_model
    from edgeface.evaluate.pairs import read_pairs
    from edgeface.recognize.threshold import save_thresholds

    found = calibrate_model(
        _require_images(images),
        read_pairs(pairs),
        ir,
        fars=(0.01, 0.001),
        detector=detector,
        created_from=str(pairs),
        progress=lambda done, total: progress("thresholds", done, total),
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


def _table(outcome: Outcome, answer: dict[str, Any]) -> Table:
    verdict = "passed" if outcome.passed else "REFUSED, nothing was written"
    table = Table(outcome.recipe.method, verdict, title=escape(outcome.contract.name), title_justify="left")
    known = answer["calibration"]
    table.add_row("calibration", f"{known['crops']} faces, {known['held_out']} held out")
    for number, trial in enumerate(outcome.trials):
        fidelity = trial.fidelity
        name = "cosine against FP32" if not number else f"with {trial.share_in_float:.0%} of layers in float"
        table.add_row(
            name,
            f"min {fidelity.min_cosine:.5f}, 1 % {fidelity.p01_cosine:.5f}, mean {fidelity.mean_cosine:.5f}",
        )
        for each in trial.verifications:
            low, high = each.accuracy.interval
            table.add_row(
                f"{each.protocol}: accuracy",
                f"{each.accuracy.before:.4f} to {each.accuracy.after:.4f}, drop {each.accuracy.drop:.4f} "
                f"({low:.4f} to {high:.4f})",
            )
            table.add_row("VAL at FAR 0.001", f"{each.val.before:.4f} to {each.val.after:.4f}")
            table.add_row("EER", f"{each.eer.before:.4f} to {each.eer.after:.4f}")
    for hint in answer["hints"]:
        found = hint["fidelity"]
        table.add_row(
            f"{hint['hint']} arithmetic",
            f"mean cosine {found['mean_cosine']:.6f}" if found else hint["why_not"],
        )
    if outcome.passed:
        table.add_row(
            "weights",
            f"{outcome.bytes_after:,} of {outcome.bytes_before:,} bytes "
            f"({outcome.bytes_after / outcome.bytes_before:.3f})",
        )
        table.add_row(
            "contract", f"{outcome.contract.contract_id}; thresholds of the parent are not valid for it"
        )
    table.add_row("time", f"{outcome.seconds[1]:.1f} s, of which compression {outcome.seconds[0]:.1f} s")
    return table


def _detector_table(outcome: DetectorOutcome) -> Table:
    verdict = "passed" if outcome.passed else "REFUSED, nothing was written"
    table = Table(outcome.name, verdict, title_justify="left")
    agreement = outcome.agreement
    table.add_row("faces of FP32 found again", f"{agreement.recall:.4f} of {agreement.faces} at IoU 0.5")
    table.add_row("faces that FP32 has too", f"{agreement.precision:.4f}")
    table.add_row("median IoU", f"{agreement.median_iou:.4f}")
    table.add_row("landmarks, median distance", f"{agreement.landmark_pixels:.3f} pixels")
    table.add_row("weights", f"{outcome.bytes_after:,} of {outcome.bytes_before:,} bytes")
    return table


@contextlib.contextmanager
def _stages() -> Iterator[Report]:
    """Yield what to call with a stage, how far it is, and of how many; a bar a stage on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, redirect_stdout=False) as bars:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield tell
