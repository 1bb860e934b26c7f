"""`edgeface evaluate lfw|identification|liveness`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

import edgeface
from edgeface.cli.options import (
    EvaluationOptions,
    FarsOption,
    FlipOption,
    ImagesOption,
    LivenessOptions,
    MetricName,
    ModelOption,
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
from edgeface.files import require_writable

_Protocol = Literal["facenet", "omz"]
OutputOption = Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the JSON result and report.html.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="Measure the accuracy of a model by published protocols.", no_args_is_help=True)
    group.command(epilog="Example: edgeface evaluate lfw --images lfw --pairs pairs.txt --model facenet.xml -o result")(
        with_options(lfw)
    )
    group.command(epilog="Example: edgeface evaluate identification --images lfw --model facenet.xml -o result")(
        with_options(identification)
    )
    group.command(epilog="Example: edgeface evaluate liveness --images presentations -o result")(with_options(liveness))
    app.add_typer(group, name="evaluate")


def lfw(
    images: ImagesOption,
    pairs: Annotated[Path, typer.Option(help="Labelled pairs in the format of LFW's pairs.txt.")],
    output_dir: OutputOption,
    *,
    model: ModelOption = None,
    protocol: Annotated[
        _Protocol, typer.Option(help="Evaluation protocol: davidsandberg/facenet's or Open Model Zoo's.")
    ] = "facenet",
    metric: Annotated[
        MetricName | None,
        typer.Option(
            help="Metric; all but euclidean are of normalised embeddings. Default: squared-l2 for facenet, arccos for "
            "omz."
        ),
    ] = None,
    at: Annotated[
        float | None,
        typer.Option(
            "--threshold", help="A distance to score all pairs at too, e.g. 0.6 for dlib.", show_default=False
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Concatenate the mirror image's embedding. Default: only for omz."),
    ] = None,
    subtract_mean: Annotated[
        bool | None,
        typer.Option(
            "--subtract-mean/--keep-mean",
            help="Subtract the mean embedding of the training folds. Default: only for omz.",
        ),
    ] = None,
    far: FarsOption = [0.1, 0.01, 0.001],  # noqa: B006 - typer only reads it
    low_resolution: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Compare again with the second crop of each pair reduced to so many pixels, e.g. 7,14,28,56.",
        ),
    ] = None,
    options: EvaluationOptions,
    json: JsonOption = False,
) -> None:
    """Evaluate verification on labelled pairs, LFW's or a list of the same format."""
    from edgeface.evaluate import ProtocolName, evaluate_model, parse_resolutions, read_pairs
    from edgeface.evaluate.faces import find_images
    from edgeface.evaluate.pixels import ir_or_pixels
    from edgeface.model.ir_file import read_contract
    from edgeface.recognize.metrics import Metric
    from edgeface.recognize.threshold import require_rates

    require_rates(far)
    listed = read_pairs(pairs)
    find_images(images, listed.images)
    require_writable(output_dir)
    target = edgeface.find_model(model)
    reduced = parse_resolutions(low_resolution)
    with ir_or_pixels(target) as ir:
        _, contract = read_contract(ir)
    with options.open(contract) as faces, progress_bars() as progress:
        result = evaluate_model(
            images,
            listed,
            target,
            faces,
            protocol=ProtocolName(protocol),
            metric=Metric(metric) if metric else None,
            flip=flip,
            subtract_mean=subtract_mean,
            fars=far,
            at=at,
            low_resolution=reduced,
            device=options.device,
            allow_seeded=options.allow_seeded,
            progress=progress,
        )
        _finish(result, output_dir, _evaluation_table, json=json)


def identification(
    images: ImagesOption,
    output_dir: OutputOption,
    *,
    model: ModelOption = None,
    fpir: Annotated[
        list[float],
        typer.Option("--fpir", help="Target false positive identification rate; may be given several times."),
    ] = [0.01, 0.001, 0.1],  # noqa: B006 - typer only reads it
    seed: Annotated[int, typer.Option(help="Seed for choosing the enrolled images.")] = 0,
    flip: FlipOption = "none",
    options: EvaluationOptions,
    json: JsonOption = False,
) -> None:
    """Evaluate 1:N identification in an open set: people with one image are not enrolled."""
    from edgeface.evaluate import evaluate_identification
    from edgeface.model.ir_file import read_contract
    from edgeface.recognize.threshold import require_rate

    for rate in fpir:
        require_rate("fpir", rate)

    require_writable(output_dir)
    target = edgeface.find_model(model)
    _, contract = read_contract(target)
    with options.open(contract) as faces, progress_bars() as progress:
        result = evaluate_identification(
            images,
            target,
            faces,
            fpirs=fpir,
            seed=seed,
            flip=None if flip == "none" else flip,
            device=options.device,
            allow_seeded=options.allow_seeded,
            progress=progress,
        )
        _finish(result, output_dir, _identification_table, json=json)


def liveness(
    images: Annotated[
        Path,
        typer.Option(
            help="Folder with live faces in 'live', and one folder for each kind of attack, e.g. 'print' and 'screen'."
        ),
    ],
    output_dir: OutputOption,
    *,
    options: LivenessOptions,
    json: JsonOption = False,
) -> None:
    """Evaluate liveness as ISO/IEC 30107-3 asks: APCER for each kind of attack, BPCER, and what got no answer."""
    from edgeface.evaluate import evaluate_liveness

    require_writable(output_dir)
    with options.load_checker() as checker, options.load_detector() as detector, progress_bars() as progress:
        result = evaluate_liveness(images, checker, detector, progress=progress)
    _finish(result, output_dir, _liveness_table, json=json)


def _finish(result: Any, output_dir: Path, table: Any, *, json: bool) -> None:
    from edgeface.evaluate import write_results

    write_results(result, output_dir)  # cuts the crops that the report shows: needs the detector
    answer = result.to_dict()
    warn_if_seeded(answer.get("model", {}).get("provenance"))
    for each in answer.get("unread", []):
        print_note(f"{each['path']}: {each['error']}")
    if json:
        return emit_json(answer)
    stdout.print(table(answer))
    print_line(f"{output_dir / 'report.html'} written")


def _evaluation_table(answer: dict[str, Any]) -> Table:
    accuracy = answer["accuracy"]
    table = Table(answer["protocol"], answer["metric"], title=escape(answer["model"]["name"]), title_justify="left")
    table.add_row("pairs", f"{answer['pairs']:,} of {answer['images']:,} images")
    table.add_row("accuracy", f"{accuracy['mean']:.4f} +- {accuracy['std']:.4f}")
    for far, val in answer["val"].items():
        spread = "" if val["std"] is None else f" +- {val['std']:.4f}"
        doubt = "" if val["supported"] else "; too few pairs for this rate"
        table.add_row(f"VAL at FAR {far}", f"{val['mean']:.4f}{spread}, measured FAR {val['far']:.5f}{doubt}")
    table.add_row("AUC, EER", f"{answer['auc']:.5f}, {answer['eer']:.4f}")
    kind = "normalised" if answer["normalized"] else "unnormalised"
    tried = f"of 0 to {answer['thresholds']['to']:g}, {kind} embeddings"
    table.add_row("threshold", f"{answer['threshold']:.3f} {tried}")
    for pixels, each in answer.get("low_resolution", {}).items():
        table.add_row(f"at {pixels} pixels", f"{each['accuracy']['mean']:.4f} +- {each['accuracy']['std']:.4f}")
    if pixel := answer.get("pixels"):
        table.add_row("pixels alone", f"{pixel['accuracy']['mean']:.4f} +- {pixel['accuracy']['std']:.4f}")
    if at := answer.get("at"):
        table.add_row(f"at {at['threshold']:g}", f"{at['accuracy']:.4f}, FAR {at['far']:.4f}, TAR {at['tar']:.4f}")
    table.add_row("faces", f"{escape(answer['faces'])}; {answer['failures']} not found")
    table.add_row("speed", f"{answer['images_per_second']:.1f} images/s on {', '.join(answer['device_name'])}")
    return table


def _identification_table(answer: dict[str, Any]) -> Table:
    low, high = answer["rank1_interval"]
    table = Table("target FPIR", "FPIR", "FNIR, 95 % interval", "threshold", title_justify="left")
    table.title = escape(
        f"{answer['model']['name']}: {answer['enrolled']:,} enrolled, {answer['mated']:,} mated and "
        f"{answer['nonmated']:,} non-mated probes; rank 1 {answer['rank1']:.4f} ({low:.4f} to {high:.4f})"
    )
    for each in answer["operating_points"]:
        low, high = each["fnir_interval"]
        table.add_row(
            f"{each['wanted']:g}{'' if each['supported'] else ' (too few probes)'}",
            f"{each['fpir']:.5f}",
            f"{each['fnir']:.4f} ({low:.4f} to {high:.4f})",
            f"{each['threshold']:.4f}",
        )
    table.caption = escape(f"{answer['faces']}; {answer['failures']} faces not found")
    return table


def _liveness_table(answer: dict[str, Any]) -> Table:
    table = Table("presentations", "live", "spoof", "no answer", "error rate, 95 % interval", title_justify="left")
    table.title = escape(", ".join(each["name"] for each in answer["models"]) + f"; threshold {answer['threshold']:g}")
    for rate, each in (("bpcer", answer["bona_fide"]), *(("apcer", attack) for attack in answer["attacks"])):
        shown = "-"
        if each[rate] is not None:
            low, high = each[f"{rate}_interval"]
            shown = f"{rate.upper()} {each[rate]:.4f} ({low:.4f} to {high:.4f})"
        table.add_row(
            escape(f"{each['name']}: {each['presentations']:,}"),
            f"{each['live']:,}",
            f"{each['spoof']:,}",
            f"{each['inconclusive']:,} inconclusive, {each['no_face']:,} without a face",
            shown,
        )
    return table
