"""`edgeface bench compare`, `report` and `sweep`: what becomes of results; `edgeface.cli.bench` adds them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from edgeface.cli.output import JsonOption, emit_json, stderr, stdout
from edgeface.errors import InputError, NegativeResult

if TYPE_CHECKING:
    from edgeface.bench.compare.comparison import Comparison, Gate
    from edgeface.bench.run.sweep import Sweep


def add_to(group: typer.Typer) -> None:
    """Add this module's commands to the group ``bench``."""
    group.command(
        epilog="Example: edgeface bench compare results/before results/after --fail-on-regression 5%"
    )(compare)
    group.command(epilog="Example: edgeface bench report results/* -o report.html")(report)
    group.command(
        epilog="Example: edgeface bench sweep facenet.xml --hints latency,throughput --batches 1,4 -o sweep"
    )(sweep)


def compare(
    baseline: Annotated[
        Path,
        typer.Argument(help="A result, its folder, a folder of repeated runs, or a report of benchmark_app."),
    ],
    candidates: Annotated[list[Path], typer.Argument(help="What is compared with it.", show_default=False)],
    across_models: Annotated[
        bool, typer.Option("--across-models", help="Also compare results of different models.")
    ] = False,
    fail_on_regression: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Exit 1 if a candidate is shown to be slower, and by this much is not excluded: 5%.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say what is better, worse, or not shown to differ, and how surely.

    All verdicts together are right in 95 % of the cases in which nothing differs. Give folders of three or more
    alternating runs each to have what varies between runs in the intervals.
    """
    from edgeface.bench.compare.comparable import read_side
    from edgeface.bench.compare.comparison import compare as compare_sides
    from edgeface.bench.compare.comparison import judge

    limit = None if fail_on_regression is None else _share(fail_on_regression)
    first = read_side(baseline)
    found = [compare_sides(first, read_side(path), across_models=across_models) for path in candidates]
    gates = [None if limit is None else judge(each, limit) for each in found]
    for each in found:
        for warning in each.warnings:
            stderr.print(f"[bold yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    if json:
        emit_json(
            {
                "comparisons": [
                    each.to_dict() | ({} if gate is None else {"gate": gate.to_dict()})
                    for each, gate in zip(found, gates, strict=True)
                ]
            }
        )
    else:
        with contextlib.suppress(BrokenPipeError):  # a reader who has gone does not make a regression pass
            for each in found:
                stdout.print(_table(each))
                for name, old, new in each.settings:
                    stdout.print(f"  {escape(name)}: {escape(old)} / {escape(new)}", soft_wrap=True)
    failed = False
    for each, gate in zip(found, gates, strict=True):
        if gate is not None:
            stderr.print(escape(_gate_words(each, gate)), soft_wrap=True)
            failed |= gate.outcome == "failed"
    if failed:
        raise typer.Exit(NegativeResult.exit_code)


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Results, their folders, folders of those, reports of benchmark_app.", show_default=False
        ),
    ],
    output: Annotated[
        list[Path],
        typer.Option(
            "--output", "-o", help="FILE.html, .md or .csv; may be given several times.", show_default=False
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Write one self-contained page of tables and plots, or the tables as Markdown or CSV."""
    from edgeface.bench.report import read_entries, require_suffix, write_report

    for path in output:
        require_suffix(path)
    entries = read_entries(results)
    for path in output:
        write_report(entries, path)
    if json:
        return emit_json({"results": len(entries), "outputs": [str(path) for path in output]})
    for path in output:
        stdout.print(f"{escape(str(path))} written", soft_wrap=True)


def sweep(
    model: Annotated[Path, typer.Argument(help="Any IR (.xml) or ONNX file.", show_default=False)],
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir",
            "-o",
            help="Folder; one that holds a part of the sweep is gone on with.",
            show_default=False,
        ),
    ],
    devices: Annotated[
        str, typer.Option(help="Separated by blanks, for AUTO:GPU,CPU is one; the other lists by commas.")
    ] = "CPU",
    precisions: Annotated[str, typer.Option(help="f32, f16, bf16, or default.")] = "default",
    hints: Annotated[
        str, typer.Option(help="latency, throughput, cumulative_throughput, or none.")
    ] = "latency,throughput",
    streams: Annotated[str, typer.Option(help="Numbers, or default.")] = "default",
    requests: Annotated[str, typer.Option(help="Numbers, or default.")] = "default",
    batches: Annotated[str, typer.Option(help="Numbers.")] = "1",
    duration: Annotated[
        float, typer.Option("--duration", "-t", min=0.001, help="Seconds of each run at least.")
    ] = 20.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds to wait for stable times at most.")] = 10.0,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[1,3,H,W]",
            help="Of inputs that are dynamic, or that should be others.",
            show_default=False,
        ),
    ] = None,
    peak: Annotated[
        bool, typer.Option("--peak/--no-peak", help="Measure what each device attains, once.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Measure every combination of settings, and write the best plans for latency and for throughput.

    Each is measured alone and under full load. latency.json and throughput.json are plans that
    Embedder.load(..., plan=FILE) and bench run --plan take. Interrupted, it goes on where it stopped.
    """
    from edgeface.bench.run.benchmark_model import parse_shapes
    from edgeface.bench.run.runner import DEFAULTS
    from edgeface.bench.run.sweep import SweepAxes, SweepStep
    from edgeface.bench.run.sweep import sweep as run_sweep

    axes = SweepAxes(
        devices=devices.split(),
        precisions=[None if word == "default" else word for word in _words(precisions)],
        hints=[None if word in ("none", "default") else word.upper() for word in _words(hints)],
        streams=_numbers("--streams", streams),
        requests=_numbers("--requests", requests),
        batches=_numbers("--batches", batches),
    )
    longest = max(duration, DEFAULTS.max_duration_s or 0.0)
    settings = DEFAULTS.model_copy(
        update={"duration_s": duration, "max_duration_s": longest, "warm_up_s": warm_up}
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, refresh_per_second=1) as bars:
        task = bars.add_task("sweep", total=None)

        def tell(step: SweepStep) -> None:
            bars.update(task, description=escape(step.name), completed=step.number - 1, total=step.total)

        found = run_sweep(
            model,
            output_dir,
            axes=axes,
            settings=settings,
            shapes=parse_shapes(shape) if shape else None,
            peak=peak,
            on_step=tell,
        )
        bars.update(task, completed=len(found.results))
    for kind in ("absent", "failed", "skipped"):
        for left in getattr(found, kind):
            stderr.print(
                f"[bold yellow]{kind}:[/] {escape(left.name)}: {escape(left.reason)}", soft_wrap=True
            )
    if json:
        return emit_json(found.to_dict())
    stdout.print(_sweep_table(found))
    for what, (name, path) in found.best.items():
        doubt = "; it was disturbed" if found.results[name].disturbed else ""
        stdout.print(f"best {what}: {escape(name)}{doubt}; plan in {escape(str(path))}", soft_wrap=True)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str) -> list[int | None]:
    words = _words(text)
    if not words or not all(
        word == "default" or (word.isascii() and word.isdigit() and int(word)) for word in words
    ):
        raise InputError(
            f"{option}: expected positive numbers separated by commas, or default, found {text!r}"
        )
    return [None if word == "default" else int(word) for word in words]


def _sweep_table(found: Sweep) -> Table:
    from edgeface.bench.result import BenchmarkResult
    from edgeface.drawing import rounded

    table = Table(Column("settings", overflow="fold"), "p50 ms alone", "p90 ms alone", "items/s loaded", "")
    rows: dict[str, dict[str, BenchmarkResult]] = {}
    for name, result in found.results.items():
        configuration, _, scenario = name.rpartition("/")
        rows.setdefault(configuration, {})[scenario] = result
    best = {name: f"best {what}" for what, (name, _) in found.best.items()}
    parts = {configuration: configuration.split("_") for configuration in rows}
    shared = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    for configuration, results in rows.items():
        alone, loaded = results.get("single-stream"), results.get("offline")
        notes = [words for name, words in best.items() if name.rpartition("/")[0] == configuration]
        notes += ["disturbed"] * any(result.disturbed for result in results.values())
        table.add_row(
            escape(" ".join(part for part in parts[configuration] if part not in shared)),
            rounded(alone.latency_ms.get("p50") if alone else None),
            rounded(alone.latency_ms.get("p90") if alone else None),
            rounded(loaded.throughput_fps if loaded else None),
            ", ".join(notes),
        )
    return table


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise InputError(f"--fail-on-regression: expected a percentage such as 5% (or 0.05), found {text!r}")
    return share


def _table(found: Comparison) -> Table:
    from edgeface.bench.report.tables import slowdown_words
    from edgeface.drawing import rounded

    table = Table(
        "metric", escape(found.baseline), escape(found.candidate), "slower by",
        f"{100 * found.confidence:.4g} % interval", "verdict",
        title=f"{found.scenario}, {found.method}", title_justify="left",
    )  # fmt: skip
    colors = {"worse": "bold red", "better": "bold green", "no difference shown": "default"}
    for each in found.differences:
        by, bounds = slowdown_words(each.slowdown, each.interval)
        note = f" ({each.note})" if each.note else ""
        table.add_row(
            each.metric,
            f"{rounded(each.baseline)} {each.unit}",
            f"{rounded(each.candidate)} {each.unit}",
            by,
            bounds,
            f"[{colors[each.verdict]}]{each.verdict}[/]{note}",
        )
    return table


def _gate_words(found: Comparison, gate: Gate) -> str:
    limit = f"{100 * gate.limit:g} %"
    if gate.outcome == "failed":
        return f"{found.candidate}: FAILED: {', '.join(gate.failed)} slower, and by {limit} or more is not excluded"
    if gate.outcome == "unsure":
        return (
            f"{found.candidate}: not shown to be slower, but {limit} is not excluded for {', '.join(gate.unsure)}: "
            "the runs are too short or too noisy; run longer, or repeat them"
        )
    return f"{found.candidate}: passed, a slowdown of {limit} is excluded"
