"""The command `edgeface calibrate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import edgeface
from edgeface.cli.options import EvaluationOptions, FarsOption, FlipOption, MetricName, ModelOption, with_options
from edgeface.cli.output import (
    JsonOption,
    emit_json,
    escape,
    list_failures,
    print_line,
    print_note,
    progress_bars,
    stderr,
    stdout,
)
from edgeface.errors import InputError
from edgeface.files import require_writable

if TYPE_CHECKING:
    from edgeface.recognize.threshold import Threshold


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog="Example: edgeface calibrate people")(with_options(calibrate))


def calibrate(
    people: Annotated[
        Path | None, typer.Argument(metavar="PEOPLE", help="Folder with one folder of photos for each person.")
    ] = None,
    *,
    images: Annotated[Path | None, typer.Option(help="The same as PEOPLE.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON file to write, for --threshold: also rates that the photos do not support. Default: those that "
            "they support are stored for this model; verify, identify and all other commands then use them.",
        ),
    ] = None,
    model: ModelOption = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Labelled pairs in the format of LFW's pairs.txt. Default: all pairs of the photos, which then lie "
            "in one folder for each person."
        ),
    ] = None,
    far: FarsOption = [0.01, 0.001, 1e-4, 1e-5, 1e-6],  # noqa: B006 - typer only reads it
    metric: Annotated[MetricName, typer.Option(help="Metric of the scores.")] = "cosine",
    flip: FlipOption = "none",
    options: EvaluationOptions,
    json: JsonOption = False,
) -> None:
    """Calibrate verification thresholds for target false accept rates on labelled photos."""
    from edgeface.evaluate.lfw import calibrate_model
    from edgeface.evaluate.pairs import pairs_from_folders, read_pairs
    from edgeface.model.ir_file import read_contract
    from edgeface.recognize.known import own_path
    from edgeface.recognize.metrics import Metric
    from edgeface.recognize.threshold import require_rates, require_supported, save_thresholds
    from edgeface.vision.detector import FoundBy

    require_rates(far)
    images = people or images
    if images is None:
        raise InputError("expected a folder of photos, found none; try: edgeface calibrate PEOPLE")
    if output is None and (metric == "euclidean" or flip != "none"):
        raise InputError(
            "searches and enrolment use neither Euclidean distances nor mirror images; leave --metric and --flip out, "
            "or give a file with --output"
        )
    target = edgeface.find_model(model)
    require_writable((output or own_path("0")).parent)
    _, contract = read_contract(target)
    listed = read_pairs(pairs) if pairs else pairs_from_folders(images)
    with options.open(contract) as faces, progress_bars() as progress:
        found_by = FoundBy() if faces.detector is None else FoundBy.choose(faces.detector.name, contract.input_size)
        found = calibrate_model(
            images,
            listed,
            target,
            faces,
            fars=far,
            metric=Metric(metric),
            flip=None if flip == "none" else flip,
            device=options.device,
            allow_seeded=options.allow_seeded,
            created_from=f"{pairs or images}, {len(listed.images)} images, {faces.text}",
            measured_on=(pairs or images).resolve().name,
            progress=progress,
        )
    stored = output or own_path(found.thresholds[0].contract_id)
    kept = found.thresholds if output else require_supported(found.thresholds)
    save_thresholds(stored, kept)
    for threshold in found.thresholds:
        if not threshold.supported:
            left_out = "" if output else "; not stored"
            stderr.print(f"[bold yellow]not enough data:[/] {escape(threshold.note)}{left_out}", soft_wrap=True)
    for path, why in found.unread.items():
        print_note(f"{path}: {why}")
    if found.failures:
        named = escape(", ".join(found.failures[:5]))
        stderr.print(
            f"no face found in {len(found.failures)} photos; their pairs were left out: "
            f"{named}{', ...' * (len(found.failures) > 5)}",
            soft_wrap=True,
        )
    if json:
        return emit_json(
            {
                "output": str(stored),
                "contract_id": found.thresholds[0].contract_id,
                **asdict(found_by),
                "thresholds": [each.to_dict() for each in kept],
                "failures": list(found.failures),
                "unread": list_failures(found.unread),
            }
        )
    stdout.print(_threshold_table(kept))
    used = "" if output else "; it is used for this model from now on, until the file is deleted"
    print_line(f"{stored} written{used}")
    if found_by.detector:
        print_line(f"faces of {found_by.min_size} pixels and more, found by {found_by.detector}")


def _threshold_table(thresholds: tuple[Threshold, ...]) -> Table:
    first = thresholds[0]
    table = Table("target FAR", "threshold", "FAR, 95 % interval", "FRR, 95 % interval", title=first.contract_id)
    for each in thresholds:
        (low, high), (least, most) = each.far_interval, each.frr_interval
        sign = ">" if each.metric.is_similarity else "<"
        table.add_row(
            f"{each.far:g}",
            f"{each.metric.value} {sign} {each.value:.4f}",
            f"{each.observed_far:.5f} ({low:.5f} to {high:.5f})",
            f"{each.frr:.4f} ({least:.4f} to {most:.4f})",
        )
    return table
