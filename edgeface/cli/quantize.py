"""`edgeface quantize` and `edgeface pareto`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

import edgeface
from edgeface.cli.options import (
    ChosenDetectorOption,
    CropsOption,
    DetectorModelOption,
    DetectorName,
    LabelledOptions,
    LandmarksModelOption,
    with_options,
)
from edgeface.cli.output import (
    JsonOption,
    emit_json,
    escape,
    print_line,
    print_note,
    progress_bars,
    stdout,
    warn_if_seeded,
)
from edgeface.errors import InputError, NegativeResult
from edgeface.files import require_writable

if TYPE_CHECKING:
    from edgeface.quantize import Pareto


_Preset = Literal["mixed", "performance"]
_Mode = Literal["int8", "weights", "fp16"]
_Bias = Literal["fast", "accurate", "none"]
_HalfRange = Literal["all", "first-layer", "none"]


class _Precision(str, enum.Enum):  # typer takes no list of literals
    fp16 = "fp16"
    int8_mixed = "int8-mixed"
    int8_performance = "int8-performance"
    weights = "weights"


CalibrationOption = Annotated[
    Path, typer.Option(help="Folder of calibration photos, of people who are not in the pairs.")
]
SubsetOption = Annotated[int, typer.Option(min=1, help="Maximum number of calibration photos.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed for choosing the calibration photos.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(
        epilog="Example: edgeface quantize models/facenet-20180408-102900.xml --calibration photos -o models/int8"
    )(quantize)
    app.command(
        epilog="Example: edgeface pareto facenet.xml --calibration photos --images lfw --pairs pairs.txt -o pareto"
    )(with_options(pareto))


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            help="The .xml of an FP32 IR with a contract; with --as, the detector's model, or 'mtcnn'.", metavar="IR"
        ),
    ],
    calibration: CalibrationOption,
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir", "-o", help="Folder for the IR; must differ from the FP32 IR's folder.", show_default=False
        ),
    ],
    preset: Annotated[
        _Preset, typer.Option(help="Quantization of activations: mixed is asymmetric, performance symmetric.")
    ] = "mixed",
    mode: Annotated[
        _Mode, typer.Option(help="int8: weights and activations; weights: 8-bit weights only; fp16: FP16 storage.")
    ] = "int8",
    subset: SubsetOption = 300,
    max_drop: Annotated[
        float, typer.Option(help="Maximum accuracy drop on labelled pairs, 0 to 1.", min=0.0, max=1.0)
    ] = 0.001,
    min_cosine: Annotated[
        float,
        typer.Option(
            help="Minimum cosine similarity of each held-out face's embedding to the FP32 one.", min=-1.0, max=1.0
        ),
    ] = 0.97,
    validate: Annotated[
        str,
        typer.Option(
            help="Labelled pairs to compare accuracy on: 'none', 'lfw' (in EDGEFACE_DATA), or a list (with --images).",
            metavar="PAIRS",
        ),
    ] = "none",
    images: Annotated[Path | None, typer.Option(help="Folder that the names in PAIRS are relative to.")] = None,
    recalibrate: Annotated[
        Path | None,
        typer.Option(
            help="Labelled pairs (with --images) to calibrate thresholds for the new IR; written beside it.",
            metavar="PAIRS",
        ),
    ] = None,
    bias_correction: Annotated[
        _Bias, typer.Option(help="Bias correction; 'accurate' takes about four times as long.")
    ] = "fast",
    half_range: Annotated[
        _HalfRange, typer.Option(help="Layers whose weights use 7 bits, which avoids saturation on CPUs without VNNI.")
    ] = "all",
    keep: Annotated[list[str] | None, typer.Option(help="Layer to keep in floating point. Repeatable.")] = None,
    accuracy_control: Annotated[
        float | None,
        typer.Option(
            help="Let NNCF restore layers to floating point until this mean cosine is reached; takes minutes.",
            min=-1.0,
            max=1.0,
            metavar="COSINE",
        ),
    ] = None,
    search: Annotated[
        int, typer.Option(min=0, help="Maximum number of layer groups restored to floating point to meet the limits.")
    ] = 4,
    seed: SeedOption = 0,
    crops: CropsOption = False,
    detector: ChosenDetectorOption = None,
    detector_model: DetectorModelOption = None,
    landmarks_model: LandmarksModelOption = None,
    as_detector: Annotated[
        DetectorName | None,
        typer.Option("--as", help="Quantize this detector; boxes and landmarks are compared with FP32."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make an IR smaller and faster; write it only if accuracy holds."""
    from edgeface.model.ir_file import read_ir
    from edgeface.model.stored import stored_kind
    from edgeface.quantize import (
        QuantizationLimits,
        QuantizationRecipe,
        quantize_detector,
        quantize_liveness,
        read_labelled,
    )
    from edgeface.quantize import quantize as run

    recipe = QuantizationRecipe(
        method=f"int8-{preset}" if mode == "int8" else mode,  # type: ignore[arg-type]
        subset=subset,
        bias_correction=bias_correction,
        half_range=half_range,
        ignored=tuple(keep or ()),
        control=accuracy_control,
        seed=seed,
    )
    if as_detector == "auto":
        raise InputError("--as auto: expected the detector that the model is of, e.g. --as yunet")
    if as_detector is not None:
        if validate != "none" or images or recalibrate or crops or detector or detector_model:
            raise InputError(
                "--as compares boxes and landmarks on the calibration photos; leave --validate, --images, "
                "--recalibrate, --crops, --detector and --detector-model out"
            )
        with progress_bars() as progress:
            made = quantize_detector(
                as_detector,
                None if as_detector == "mtcnn" and model == "mtcnn" else Path(model),
                output_dir,
                calibration,
                recipe=recipe,
                landmarks_model=landmarks_model,
                progress=progress,
            )
        return _finish(made.to_dict(), json=json)
    options = LabelledOptions(
        crops=crops, detector=detector, detector_model=detector_model, landmarks_model=landmarks_model
    )
    if stored_kind(read_ir(Path(model))) == "liveness":
        if validate != "none" or images or recalibrate or crops:
            raise InputError(
                "a liveness model is compared with FP32 on the calibration photos; leave --validate, --images, "
                "--recalibrate and --crops out"
            )
        with progress_bars() as progress, options.open() as faces:
            assert faces.detector is not None
            judged = quantize_liveness(
                Path(model), output_dir, calibration, faces.detector, recipe=recipe, progress=progress
            )
        return _finish(judged.to_dict(), json=json)
    with progress_bars() as progress, options.open() as faces:
        pairs, thresholds = (
            None if listed is None else read_labelled(listed, images, detector=faces.detector, seed=seed)
            for listed in (None if validate == "none" else validate, recalibrate)
        )
        outcome = run(
            Path(model),
            output_dir,
            calibration,
            recipe=recipe,
            limits=QuantizationLimits(max_drop=max_drop, min_cosine=min_cosine),
            detector=faces.detector,
            pairs=pairs,
            recalibrate=thresholds,
            search=search,
            hints=True,
            progress=progress,
        )
    _finish(outcome.to_dict(), json=json)


def _finish(answer: dict[str, Any], *, json: bool) -> None:
    for reason in answer["reasons"]:
        print_note(f"refused: {reason}")
    for photo in answer.get("calibration", answer)["unreadable"]:
        print_note(photo)
    if json:
        emit_json(answer)
    else:
        verdict = "passed" if answer["passed"] else "REFUSED, nothing was written"
        what = answer.get("detector") or answer.get("liveness") or answer["method"]
        table = Table(escape(what), verdict, title_justify="left")
        for name, value in _rows_of(answer):
            table.add_row(name, escape(value))
        stdout.print(table)
        for path in filter(None, [answer.get("ir"), *answer.get("files", [])]):
            print_line(str(path))
    warn_if_seeded(answer.get("provenance"))
    if not answer["passed"]:
        raise typer.Exit(NegativeResult.exit_code)


def _rows_of(answer: dict[str, Any]) -> list[tuple[str, str]]:
    if "detector" in answer:
        return _detector_rows(answer)
    return _liveness_rows(answer) if "liveness" in answer else _rows(answer)


def _rows(answer: dict[str, Any]) -> list[tuple[str, str]]:
    faces, size, seconds = answer["calibration"], answer["bytes"], answer["seconds"]
    rows = [("calibration", f"{faces['crops']} faces, {faces['held_out']} held out")]
    for number, trial in enumerate(answer["trials"]):
        if number:
            kept = f"{trial['share_in_float']:.0%} of the layers with weights; {trial['bytes']:,} bytes"
            rows.append(("put back into floating point", kept))
        low, tail, mean = (trial["fidelity"][f"{name}_cosine"] for name in ("min", "p01", "mean"))
        rows.append(("cosine against FP32", f"min {low:.5f}, 1 % {tail:.5f}, mean {mean:.5f}"))
        top, tail, mean = (trial["fidelity"][f"{name}_distance_change"] for name in ("max", "p99", "mean"))
        change = f"max {top:.4f}, 99 % {tail:.4f}, mean {mean:.4f} (squared, 0 to 4)"
        rows.append(("change of pair distances", change))
        for each in trial["verification"]:
            changes = {
                name: f"{each[name]['before']:.4f} to {each[name]['after']:.4f}" for name in ("accuracy", "val", "eer")
            }
            (low, high), drop = each["accuracy"]["interval"], each["accuracy"]["drop"]
            drop = f"{each['setting']}: {changes['accuracy']}, drop {drop:.4f} ({low:.4f} to {high:.4f})"
            rows.append((f"accuracy, {each['pairs']:,} pairs", drop))
            rows += [("VAL at FAR 0.001", changes["val"]), ("EER", changes["eer"])]
    for hint in answer["hints"]:
        told = hint["why_not"]
        if hint["available"]:
            verdict = f"refused: {hint['reasons'][0]}" if hint["reasons"] else "within the limits"
            told = f"{hint['device']}: mean cosine {hint['fidelity']['mean_cosine']:.6f}, {verdict}"
        rows.append((f"{hint['hint']} inference", told))
    if answer["passed"]:
        weights = f"{size['after']:,} of {size['before']:,} bytes ({size['ratio']:.3f})"
        thresholds = answer["thresholds"] or (
            "those of the parent decide" if answer["agrees"] else "none: too far from its parent; calibrate it"
        )
        contract = f"{answer['contract_id']}, {answer['provenance']} weights"
        rows += [("weights", weights), ("contract", contract), ("thresholds", thresholds)]
    return [*rows, ("time", f"{seconds['all']:.1f} s, compression {seconds['compression']:.1f} s")]


def _detector_rows(answer: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if found := answer["agreement"]:
        pixels = found["landmark_pixels"]
        rows = [
            ("FP32's faces that it finds", f"{found['recall']:.4f} of {found['faces']} at IoU 0.5"),
            ("its faces that FP32 finds", f"{found['precision']:.4f}"),
            ("median IoU", f"{found['median_iou']:.4f}"),
            ("landmarks, median distance", "-" if pixels is None else f"{pixels:.3f} pixels"),
            ("weights", f"{answer['bytes']['after']:,} of {answer['bytes']['before']:,} bytes"),
        ]
    return [*rows, ("time", f"{answer['seconds']:.1f} s")]


def _liveness_rows(answer: dict[str, Any]) -> list[tuple[str, str]]:
    found = answer["agreement"]
    return [
        ("faces", f"{answer['calibrated']} calibrated; held out: {found['live']} live, {found['attacks']} attacks"),
        ("attacks that become live", str(found["opened"])),
        ("live faces that become attacks", str(found["refused"])),
        ("change of the probability", f"mean {found['mean_change']:.4f}, max {found['max_change']:.4f}"),
        ("weights", f"{answer['bytes']['after']:,} of {answer['bytes']['before']:,} bytes"),
        ("time", f"{answer['seconds']:.1f} s"),
    ]


def pareto(
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="The .xml of an FP32 IR with a contract.")
    ] = None,
    *,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to compare as it is, an IR (.xml) or a zoo name, instead of precisions of one. Repeatable; the "
            "others are compared with the first.",
            metavar="IR|NAME",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Folder of calibration photos, of people who are not in the pairs; for MODEL.", show_default=False
        ),
    ] = None,
    images: Annotated[Path, typer.Option(help="Folder of the images of the pairs: NAME/NAME_0001.jpg.")],
    pairs: Annotated[Path, typer.Option(help="Labelled pairs in the format of LFW's pairs.txt.")],
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir", "-o", help="Folder for pareto.json, pareto.md, pareto.html and the compressed IRs."
        ),
    ],
    precision: Annotated[
        list[_Precision] | None, typer.Option(help="Precision to compare with FP32. Repeatable.  [default: all]")
    ] = None,
    subset: SubsetOption = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Timing rounds; each round times each once.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.05, help="Duration of each measurement, in seconds.")] = 1.0,
    seed: SeedOption = 0,
    options: LabelledOptions,
    json: JsonOption = False,
) -> None:
    """Compare precisions of a model, or models, by accuracy, latency, throughput and size: which are Pareto-optimal?"""
    from edgeface.evaluate import read_pairs
    from edgeface.quantize import QuantizationRecipe, compare_models, measure_pareto, write_pareto
    from edgeface.quantize.pareto import METHODS

    if models and (model or calibration or precision):
        raise InputError("--models compares models as they are: leave MODEL, --calibration and --precision out")
    if not models and (model is None or calibration is None):
        raise InputError("expected MODEL and --calibration, to compare its precisions, or --models twice or more")
    listed = read_pairs(pairs)
    require_writable(output_dir)
    named = [edgeface.find_model(each) for each in models or []]
    with progress_bars() as progress, options.open() as faces:
        shared: dict[str, Any] = {"images": images, "pairs": listed, "faces": faces, "device": options.device}
        shared |= {"rounds": rounds, "seconds": seconds, "progress": progress}
        if model is None or calibration is None:
            found = compare_models(named, **shared)
        else:
            found = measure_pareto(
                model,
                output_dir,
                calibration,
                methods=[each.value for each in precision] if precision else METHODS,
                recipe=QuantizationRecipe(subset=subset, seed=seed),
                **shared,
            )
    write_pareto(found, output_dir)
    warn_if_seeded("seeded" if found.seeded else None)
    if found.disturbance.disturbed:
        print_note(f"timing disturbed: {'; '.join(found.disturbance.reasons)}")
    if json:
        return emit_json(found.to_dict())
    stdout.print(_pareto_table(found))
    print_line(f"{output_dir / 'pareto.html'} written")


def _pareto_table(found: Pareto) -> Table:
    from edgeface.quantize.pareto_report import format_drop, names_of

    names = names_of(found)
    heads = (found.what.removesuffix("s"), "accuracy", "drop, 95 %", "latency", "throughput", "size", "")
    table = Table(*heads, title=escape(found.title))
    for row in found.rows:
        ratio = found.ratios(row)
        table.add_row(
            escape(names[row.name]),
            f"{row.accuracy:.4f}",
            format_drop(row),
            f"{row.timing.latency_ms:.2f} ms (x{ratio['latency']:.2f})",
            f"{row.timing.images_per_second:.1f} /s (x{ratio['throughput']:.2f})",
            f"{row.file_bytes / 1e6:.1f} MB (x{ratio['file']:.2f})",
            "[green]optimal[/]" if row.optimal else "",
        )
    return table
