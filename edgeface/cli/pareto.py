"""`edgeface pareto`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgeface.cli.faces import (
    BoxesOption,
    ChosenDetectorOption,
    CropsOption,
    DetectorModelOption,
    DetectorName,
    DeviceOption,
    LandmarksModelOption,
    find_faces,
    load_detector,
)
from edgeface.cli.output import JsonOption, emit_json, stderr, stdout

if TYPE_CHECKING:
    from edgeface.quantize.pareto import Pareto


class _Precision(str, enum.Enum):
    fp16 = "fp16"
    int8_mixed = "int8-mixed"
    int8_performance = "int8-performance"
    weights = "weights"


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(
        epilog="Example: edgeface pareto facenet.xml --calibration photos --images lfw --pairs pairs.txt -o pareto"
    )(pareto)


def pareto(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="The .xml of an FP32 IR with a contract.", show_default=False),
    ],
    calibration: Annotated[
        Path, typer.Option(help="Folder of photographs of faces, of people in no pair.", show_default=False)
    ],
    images: Annotated[
        Path, typer.Option(help="Folder of the pairs' images: NAME/NAME_0001.jpg.", show_default=False)
    ],
    pairs: Annotated[
        Path, typer.Option(help="Labelled pairs in the form of LFW's pairs.txt.", show_default=False)
    ],
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir",
            "-o",
            help="Folder for pareto.json, pareto.md, pareto.html and the compressed IRs.",
            show_default=False,
        ),
    ],
    precision: Annotated[
        list[_Precision] | None,
        typer.Option(
            help="To compare FP32 with; may be given several times.  [default: all]", show_default=False
        ),
    ] = None,
    subset: Annotated[int, typer.Option(min=1, help="Photographs to calibrate with, at most.")] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Alternating rounds of timing.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.05, help="Of each measurement in a round.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Draws the photographs.")] = 0,
    boxes: BoxesOption = None,
    crops: CropsOption = False,
    detector: ChosenDetectorOption = None,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    device: DeviceOption = "CPU",
    json: JsonOption = False,
) -> None:
    """Compare precisions: accuracy against latency, throughput and size, in one run, and which are worth having."""
    from edgeface.cli.stages import stages
    from edgeface.evaluate.pairs import read_pairs
    from edgeface.model.contract import ModelContract
    from edgeface.model.ir_file import read_ir
    from edgeface.quantize.calibration import gather
    from edgeface.quantize.compress import QuantizationRecipe
    from edgeface.quantize.pareto import METHODS, measure_pareto
    from edgeface.quantize.pareto_report import write_pareto
    from edgeface.vision.crops import find_photos

    contract = ModelContract.read_from(read_ir(model), source=str(model))
    listed, photos = read_pairs(pairs), find_photos([calibration])
    with (
        stages() as progress,
        find_faces(boxes, crops, detector, detector_model, landmarks_model, device=device) as faces,
    ):
        if boxes is None:
            known = gather(
                photos, contract, subset=subset, detector=faces.detector, seed=seed, progress=progress
            )
        else:  # they are the pairs' boxes; the calibration faces have yet to be found
            with load_detector(DetectorName.mtcnn, None, None, device=device) as finder:
                known = gather(photos, contract, subset=subset, detector=finder, seed=seed, progress=progress)
        found = measure_pareto(
            model,
            output_dir,
            known,
            images=images,
            pairs=listed,
            boxes=faces.boxes,
            detector=faces.detector,
            faces=faces.words,
            methods=[each.value for each in precision] if precision else METHODS,
            recipe=QuantizationRecipe(subset=subset, seed=seed),
            rounds=rounds,
            seconds=seconds,
            device=device,
            progress=progress,
        )
    write_pareto(found, output_dir)
    if found.disturbance.disturbed:
        stderr.print(
            f"timing disturbed: {'; '.join(found.disturbance.reasons)}", markup=False, soft_wrap=True
        )
    if json:
        return emit_json(found.to_dict())
    stdout.print(_table(found))
    stdout.print(f"{escape(str(output_dir / 'pareto.html'))} written", soft_wrap=True)


def _table(found: Pareto) -> Table:
    from edgeface.quantize.pareto_report import NAMES

    table = Table(
        "precision",
        "accuracy",
        "drop, 95 %",
        "latency",
        "throughput",
        "size",
        "",
        title=escape(found.contract.name),
    )
    for row in found.rows:
        ratio = found.ratios(row)
        drop = "-"
        if row.verification is not None:
            change = row.verification.accuracy
            drop = f"{change.drop:+.4f} ({change.interval[0]:+.4f} to {change.interval[1]:+.4f})"
        table.add_row(
            NAMES[row.name],
            f"{row.accuracy:.4f}",
            drop,
            f"{row.timed.latency_ms:.2f} ms (x{ratio['latency']:.2f})",
            f"{row.timed.images_per_second:.1f} /s (x{ratio['throughput']:.2f})",
            f"{row.file_bytes / 1e6:.1f} MB (x{ratio['file']:.2f})",
            "[green]optimal[/]" if row.optimal else "",
        )
    return table
