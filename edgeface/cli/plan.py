"""`edgeface plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from edgeface.cli.output import JsonOption, emit_json, escape, print_line, print_note, stdout

if TYPE_CHECKING:
    from edgeface.bench.plan import SitePlan

_CAMERAS = (1, 5, 20, 100, 500)
_PEOPLE = (1_000, 10_000, 50_000, 300_000)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    example = "edgeface plan results/door results/search --cameras 20 --decisions 5 --people 50000"
    app.command("plan", epilog=f"Example: {example}")(plan)


def plan(
    results: Annotated[
        list[Path], typer.Argument(help="One result of the kiosk scenario, and any of the search scenario.")
    ],
    cameras: Annotated[int, typer.Option(min=1, help="Cameras.")],
    decisions: Annotated[float, typer.Option(help="People who are decided about a second, at all cameras together.")],
    people: Annotated[int, typer.Option(min=1, help="People who are enrolled.")],
    templates: Annotated[int, typer.Option(min=1, help="Templates of each of them.")] = 3,
    strangers: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the decisions about people who are not enrolled.")
    ] = 0.0,
    wait_ms: Annotated[
        float, typer.Option("--wait-ms", help="Time that one frame in a hundred may wait, milliseconds.")
    ] = 100.0,
    table: Annotated[
        bool, typer.Option("--table", help="Also for other numbers of cameras and people, at the same rate a camera.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compute how many machines of a measured kind a site needs, and where their time goes.

    Both scenarios are measured by 'edgeface bench run' on a machine of the kind that the site will have.
    """
    from edgeface.bench.plan import SiteBasis, SiteDemand, plan_site, sizing_table

    demand = SiteDemand(
        cameras=cameras, decisions=decisions, people=people, templates=templates, strangers=strangers, wait_ms=wait_ms
    )
    basis = SiteBasis.read(results)
    found = plan_site(basis, demand)
    rows = sizing_table(basis, demand, cameras=_CAMERAS, people=_PEOPLE) if table else []
    if json:
        cells = [[each and {"machines": each.machines, "load": each.load} for each in row] for row in rows]
        extra = {"table": {"cameras": _CAMERAS, "people": _PEOPLE, "plans": cells}} if table else {}
        return emit_json(found.to_dict() | extra)
    _show(found)
    if table:
        shown = Table(Column("cameras", justify="right"), *(f"{size:,} people" for size in _PEOPLE))
        for count, row in zip(_CAMERAS, rows, strict=True):
            shown.add_row(f"{count:,}", *("-" if each is None else _cell(each) for each in row))
        stdout.print(shown)
    for kind, lines in (("assumed", found.assumed), ("not known", found.unknown), ("doubtful", found.doubts)):
        for line in lines:
            print_note(f"{kind}: {line}")


def _show(found: SitePlan) -> None:
    from edgeface.drawing import rounded

    print_line(str(found))
    print_line(f"  on {found.machine}, at most {100 * found.limit:.0f} % so that frames do not wait")
    costs = Table(
        "busiest machine", Column("CPU ms", justify="right"), Column("a second", justify="right"),
        Column("% of it", justify="right"), Column("measured as", overflow="fold"),
    )  # fmt: skip
    for cost in found.costs:
        share = f"{100 * cost.cpus / found.cores:.1f}"
        costs.add_row(cost.name, rounded(cost.ms, 3), rounded(cost.rate, 3), share, escape(cost.source))
    stdout.print(costs)
    memory = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in found.memory.items())
    print_line(f"one decision: {found.decision_ms:.0f} ms CPU; memory of a machine: {memory}")
    print_line(f"events: {found.event_bytes / 1e6:,.0f} MB a day, without pictures")


def _cell(found: SitePlan) -> str:
    return f"{found.machines:,} ({100 * found.load:.0f} %)"
