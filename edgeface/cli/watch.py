"""The command `edgeface watch`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeface.cli import output as out
from edgeface.cli.gallery_options import KeyOption
from edgeface.cli.options import ModelOption

if TYPE_CHECKING:
    from edgeface.kiosk.outcome import VisitEvent


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog="Example: edgeface watch rtsp://user@camera/1 --gallery people.gallery --json")(watch)


def watch(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...", help="Cameras by number, addresses and videos, instead of those of FILE."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file. Default: EDGEFACE_WATCH_... and defaults.")
    ] = None,
    gallery: Annotated[str | None, typer.Option("--gallery", "-g", help="Instead of the configuration's.")] = None,
    key: KeyOption = None,
    model: ModelOption = None,
    log: Annotated[
        Path | None, typer.Option(help="SQLite file to record events in, instead of the configuration's.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all keys of the configuration with their defaults.")
    ] = False,
    json: out.JsonOption = False,
) -> None:
    """Watch cameras, and say once a visit who is there. --json: one JSON object a line for each visit."""
    from edgeface.kiosk.settings import describe_watch_settings, load_watch_settings

    if print_config:
        typer.echo(describe_watch_settings(), nl=False)
        return
    settings = load_watch_settings(config).replaced(
        sources=sources or (), gallery=gallery, key=key, model=model, log=log
    )
    from edgeface.kiosk.watch import open_watch

    with open_watch(settings) as watching:
        signal.signal(signal.SIGTERM, lambda *_: watching.stop())
        out.print_note("watching " + ", ".join(watching.cameras))
        for event in watching:
            out.emit_json_line(event.to_dict()) if json else _show(event)


def _show(event: VisitEvent) -> None:
    who = f" {event.name}" if event.name else ""
    live = "" if event.liveness is None else f", live {event.liveness:.2f}"
    when = event.time.astimezone().strftime("%H:%M:%S")
    out.print_line(f"{when} {event.camera}: {event.kind.value}{who} ({event.reason}{live})")
