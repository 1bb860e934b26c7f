"""`edgeface bench compare`, `report` and `sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeface.cli.output import (
    JsonOption,
    emit_json,
    escape,
    print_line,
    print_note,
    progress_bars,
    stderr,
    stdout,
    warn_if_seeded,
)
from edgeface.errors import InputError, NegativeResult
from edgeface.progress import Progress

ShapeOption = Annotated[
    str | None,
    typer.Option(metavar="NAME[1,3,H,W]", help="Input shapes: required for dynamic inputs, optional for static ones."),
]
WarmUpOption = Annotated[float, typer.Option(min=0.0, help="Maximum time to wait for stable latencies, seconds.")]


def compare(
    baseline: Annotated[
        Path, typer.Argument(help="A result, its folder, a folder of repeated runs, or a report of benchmark_app.")
    ],
    candidates: Annotated[list[Path], typer.Argument(help="Results to compare with the baseline.")],
    across_models: Annotated[bool, typer.Option("--across-models", help="Allow results of different models.")] = False,
    fail_on_regression: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Exit with 1 if a candidate is slower and a slowdown of PERCENT (5%) is not excluded.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare results: what is better, worse, or not shown to differ.

    If nothing differs, the probability that every verdict is correct is at least 95 %. To include the variation between
    runs in the intervals, give folders of three or more alternating runs each.
    """
    from edgeface.bench.compare.comparable import read_side
    from edgeface.bench.compare.comparison import compare as compare_sides
    from edgeface.bench.compare.comparison import judge
    from edgeface.cli.bench_table import comparison_table, gate_words

    limit = None if fail_on_regression is None else _share(fail_on_regression)
    first = read_side(baseline)
    found = [compare_sides(first, read_side(path), across_models=across_models) for path in candidates]
    gates = [None if limit is None else judge(each, limit) for each in found]
    for each in found:
        for warning in each.warnings:
            stderr.print(f"[bold yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    judged = list(zip(found, gates, strict=True))
    if json:
        emit_json({"comparisons": [e.to_dict() | ({} if g is None else {"gate": g.to_dict()}) for e, g in judged]})
    else:
        for each in found:
            stdout.print(comparison_table(each))
            for name, old, new in each.settings:
                print_line(f"  {name}: {old} / {new}")
    for each, gate in judged:
        if gate is not None:
            print_note(gate_words(each, gate))
    if any(gate is not None and gate.outcome == "failed" for gate in gates):
        raise typer.Exit(NegativeResult.exit_code)


def report(
    results: Annotated[
        list[Path], typer.Argument(help="Result files, folders that contain them, or benchmark_app reports.")
    ],
    output: Annotated[
        list[Path], typer.Option("--output", "-o", help="FILE.html, .md or .csv; may be given several times.")
    ],
    json: JsonOption = False,
) -> None:
    """Write results as one self-contained HTML page of tables and plots, or as tables in Markdown or CSV."""
    from edgeface.bench.compare.comparable import read_entries
    from edgeface.bench.report.page import require_suffix, write_report

    for path in output:
        require_suffix(path)
    entries = read_entries(results)
    for path in output:
        write_report(entries, path)
    for provenance in {each.result.model.provenance for each in entries}:
        warn_if_seeded(provenance)
    if json:
        return emit_json({"results": len(entries), "outputs": [str(path) for path in output]})
    for path in output:
        print_line(f"{path} written")


def sweep(
    model: Annotated[Path, typer.Argument(help="Any IR (.xml) or ONNX file.")],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Output folder. An unfinished sweep there is resumed.")
    ],
    devices: Annotated[
        str, typer.Option(help="Devices, separated by spaces, e.g. 'CPU AUTO:GPU,CPU'. Other lists use commas.")
    ] = "CPU",
    precisions: Annotated[str, typer.Option(help="Inference precisions: f32, f16, bf16 or default.")] = "default",
    hints: Annotated[
        str, typer.Option(help="Performance hints: latency, throughput, cumulative_throughput or none.")
    ] = "latency,throughput",
    streams: Annotated[str, typer.Option(help="Numbers of parallel streams, or default.")] = "default",
    requests: Annotated[str, typer.Option(help="Numbers of infer requests, or default.")] = "default",
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1",
    duration: Annotated[
        float, typer.Option("--duration", "-t", min=0.001, help="Minimum duration of each run, seconds.")
    ] = 20.0,
    warm_up: WarmUpOption = 10.0,
    shape: ShapeOption = None,
    peak: Annotated[
        bool,
        typer.Option("--peak/--no-peak", help="Measure each device's peak GFLOP/s once, to compute the efficiency."),
    ] = True,
    json: JsonOption = False,
) -> None:
    """Measure every combination of settings, and write the best plans for latency and for throughput.

    latency.json and throughput.json are plans for Embedder.load(..., plan=FILE) and bench run --plan. To resume
    an interrupted sweep, run the same command.
    """
    from edgeface.bench.run.benchmark_model import parse_shapes
    from edgeface.bench.run.runner import DEFAULTS
    from edgeface.bench.run.sweep import SweepAxes
    from edgeface.bench.run.sweep import sweep as run_sweep
    from edgeface.cli.bench_table import sweep_table

    axes = SweepAxes(
        devices=devices.split(),
        precisions=[None if word == "default" else word for word in _words(precisions)],
        hints=[None if word in ("none", "default") else word.upper() for word in _words(hints)],
        streams=_numbers("--streams", streams),
        requests=_numbers("--requests", requests),
        batches=_numbers("--batches", batches),
    )
    longest = max(duration, DEFAULTS.max_duration_s or 0.0)
    settings = DEFAULTS.model_copy(update={"duration_s": duration, "max_duration_s": longest, "warm_up_s": warm_up})
    with progress_bars(refresh_per_second=1) as progress:
        found = run_sweep(
            model,
            output_dir,
            axes=axes,
            settings=settings,
            shapes=parse_shapes(shape) if shape else None,
            peak=peak,
            on_step=lambda step: progress(Progress("sweep", step.number - 1, step.total, "runs")),
        )
    warn_if_seeded(found.provenance)
    for kind in ("absent", "failed", "skipped"):
        for left in getattr(found, kind):
            stderr.print(f"[bold yellow]{kind}:[/] {escape(left.name)}: {escape(left.reason)}", soft_wrap=True)
    if json:
        return emit_json(found.to_dict())
    stdout.print(sweep_table(found))
    for what, (name, path) in found.best.items():
        doubt = "; it was disturbed" if found.results[name].disturbed else ""
        stdout.print(f"best {what}: {escape(name)}{doubt}; plan in {escape(str(path))}", soft_wrap=True)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str) -> list[int | None]:
    words = _words(text)
    if not words or not all(word == "default" or (word.isascii() and word.isdigit() and int(word)) for word in words):
        raise InputError(f"{option}: expected positive numbers separated by commas, or default, found {text!r}")
    return [None if word == "default" else int(word) for word in words]


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise InputError(f"--fail-on-regression: expected a percentage such as 5% (or 0.05), found {text!r}")
    return share
