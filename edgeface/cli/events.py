"""The commands `edgeface events ...`, which work on the kiosk's event log, also while the kiosk runs."""

from __future__ import annotations

import contextlib
import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from edgeface.cli.gallery_options import YesOption, answer, confirm
from edgeface.cli.output import JsonOption, counted, emit_json, escape, print_note, stdout
from edgeface.errors import NegativeResult

if TYPE_CHECKING:
    from edgeface.kiosk.events import EventLog

group = typer.Typer(no_args_is_help=True, help="Events of the kiosk: list, export, attendance, purge, send again.")


TableFormat = Literal["csv", "ndjson"]
"""Format of an export."""
_Kind = Literal["known", "unknown", "inconclusive", "spoof"]
"""`edgeface.kiosk.outcome.VisitKind`, without importing what decides."""
LogArgument = Annotated[Path, typer.Argument(metavar="LOG", help="The event log's file.")]
FormatOption = Annotated[TableFormat, typer.Option("--format", "-f", help="Format of what is printed.")]


def _day_option(text: str) -> Any:
    return typer.Option(formats=["%Y-%m-%d"], help=text)


SinceOption = Annotated[datetime.datetime | None, _day_option("First day, UTC.")]
UntilOption = Annotated[datetime.datetime | None, _day_option("Last day, UTC.")]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="events")


@group.command("list", epilog="Example: edgeface events list events.sqlite --last 50")
def list_events(
    log: LogArgument,
    last: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 20,
    dead: Annotated[bool, typer.Option("--dead", help="List deliveries that are not tried any more instead.")] = False,
    json: JsonOption = False,
) -> None:
    """List the last events, or the deliveries that failed for good."""
    with _open(log) as opened:
        if dead:
            rows = [
                {"target": each.target, "event": each.event_id, "attempts": each.attempts, "error": each.error}
                for each in opened.deliveries(dead=True)
            ]
        else:
            rows = [each.to_dict() for each in opened.last(last)]
    if json:
        emit_json({"deliveries" if dead else "events": rows})
        return
    names = ("target", "event", "attempts", "error") if dead else ("time", "camera", "kind", "name", "score", "reason")
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(escape("" if row[name] is None else row[name]) for name in names))
    stdout.print(table)


@group.command(epilog="Example: edgeface events export events.sqlite --since 2026-11-01")
def export(
    log: LogArgument,
    since: SinceOption = None,
    until: UntilOption = None,
    kind: Annotated[_Kind | None, typer.Option(help="Events of this kind only.")] = None,
    names: Annotated[bool, typer.Option("--names/--no-names", help="With the names of people.")] = True,
    format: FormatOption = "csv",
) -> None:
    """Print events as CSV, in which no spreadsheet finds a formula, or as NDJSON."""
    from edgeface.kiosk.outcome import VisitKind

    first, end = (each and each.replace(tzinfo=datetime.timezone.utc) for each in (since, until))
    end = end and end + datetime.timedelta(days=1)
    with _open(log) as opened:
        wanted = opened.events(since=first, until=end, kind=None if kind is None else VisitKind(kind))
        _print((each.to_dict(names=names) for each in wanted), format)


@group.command(epilog="Example: edgeface events attendance events.sqlite --zone Europe/Berlin --since 2026-11-01")
def attendance(
    log: LogArgument,
    zone: Annotated[str, typer.Option(help="Time zone that days and times are of, e.g. Europe/Berlin.")],
    since: Annotated[datetime.datetime | None, _day_option("First day, of the zone.")] = None,
    until: Annotated[datetime.datetime | None, _day_option("Last day, of the zone.")] = None,
    format: FormatOption = "csv",
) -> None:
    """Print the first visit, the last one and their number of each known person on each day."""
    with _open(log) as opened:
        found = opened.attendance(zone, first=since and since.date(), last=until and until.date())
    _print((each.to_dict() for each in found), format)


@group.command(epilog="Example: edgeface events purge events.sqlite --days 90 --dry-run")
def purge(
    log: LogArgument,
    days: Annotated[float | None, typer.Option(min=0, max=36_525, help="Remove events that are older.")] = None,
    person: Annotated[int | None, typer.Option(help="Remove name, id and crops of this person; events stay.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Remove and overwrite old events, or what events say of a person whom the gallery has forgotten."""
    if (days is None) is (person is None):
        raise typer.BadParameter("expected either --days or --person")
    with _open(log) as opened:
        if person is not None:
            count = sum(1 for _ in opened.events(person_id=person))
            if dry_run:
                answer({"events": count, "dry_run": True}, f"{counted(count, 'event')} would lose the name", json=json)
                return
            confirm(f"Remove person {person} from {counted(count, 'event')} of {log}?", command="purge", yes=yes)
            proof = opened.forget(person)
            told = {"events": count, "searched": dict(proof.searched), "remains": list(proof.remains)}
            answer(told, f"person {person} is removed from {counted(count, 'event')}", json=json)
            for place in proof.remains:
                print_note(f"still found in {place}; close what reads the log, then run this again")
            if proof.remains:
                raise typer.Exit(NegativeResult.exit_code)
            return
        assert days is not None
        if not dry_run:
            confirm(f"Remove the events of {log} that are older than {days:g} days?", command="purge", yes=yes)
        count = opened.purge(days, dry_run=dry_run)
    done = "would be removed" if dry_run else "removed"
    answer({"events": count, "days": days, "dry_run": dry_run}, f"{counted(count, 'event')} {done}", json=json)


@group.command(epilog="Example: edgeface events resend events.sqlite --target webhook:office")
def resend(
    log: LogArgument,
    target: Annotated[str | None, typer.Option(help="Deliveries to this target only: webhook:NAME or mqtt.")] = None,
    event: Annotated[str | None, typer.Option(metavar="ID", help="Of this event only.")] = None,
    json: JsonOption = False,
) -> None:
    """Put deliveries that failed for good back into the outbox, from which a running kiosk sends them."""
    with _open(log) as opened:
        count = opened.resend(target=target, event_id=event)
    answer({"deliveries": count}, f"{counted(count, 'delivery', 'deliveries')} to be sent again", json=json)


def _open(path: Path) -> contextlib.closing[EventLog]:
    from edgeface.kiosk.events import EventLog

    return contextlib.closing(EventLog(path, create=False))


def _print(rows: Any, format: TableFormat) -> None:
    from edgeface.kiosk.events import write_csv, write_ndjson

    count = (write_csv if format == "csv" else write_ndjson)(rows, sys.stdout)
    print_note(counted(count, "row"))
