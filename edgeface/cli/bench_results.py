"""`edgeface bench compare`, `report` and `sweep`: what becomes of results; `edgeface.cli.bench` adds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgeface.cli.output import JsonOption, emit_json, stderr, stdout
from edgeface.errors import InputError, NegativeResult

if TYPE_CHECKING:
    from edgeface.bench.compare import Comparison, Gate


def add_to(group: typer.Typer) -> None:
    """Add this module's commands to the group ``bench``."""
    group.command(
        epilog="Example: edgeface bench compare results/before results/after --fail-on-regression 5%"
    )(compare)
    group.command(epilog="Example: edgeface bench report results/* -o report.html")(report)


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
    from edgeface.bench.comparable import read_side
    from edgeface.bench.compare import compare as compare_sides
    from edgeface.bench.compare import judge

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
    from edgeface.bench.report import read_entries, write_report

    entries = read_entries(results)
    for path in output:
        write_report(entries, path)
    if json:
        return emit_json({"results": len(entries), "outputs": [str(path) for path in output]})
    for path in output:
        stdout.print(f"{escape(str(path))} written", soft_wrap=True)


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
