"""The commands `edgeface devices` and `edgeface doctor`."""

from __future__ import annotations

import typer
from rich.table import Table

from edgeface.cli.output import JsonOption, emit_json, escape, stdout

_SIGNS = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "problem": "[red]problem[/red]"}


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("devices")(devices)
    app.command("doctor")(doctor)


def devices(*, as_json: JsonOption = False) -> None:
    """List the devices that can run models, and say why others are missing.

    Example: edgeface devices --json
    """
    from edgeface.runtime.devices import list_devices
    from edgeface.runtime.probe import missing_devices

    present = list_devices()
    missing = missing_devices([device.name for device in present])
    if as_json:
        emit_json({"devices": [d.to_dict() for d in present], "missing": [m.to_dict() for m in missing]})
        return
    for device in present:
        table = Table.grid(padding=(0, 2))
        for what, value in (
            ("kind", device.kind),
            ("capabilities", ", ".join(device.capabilities)),
            ("streams", f"{device.streams[0]} to {device.streams[1]}" if device.streams else None),
            ("architecture", device.architecture),
            ("driver", device.driver),
            ("memory", f"{device.memory_bytes / 2**30:.1f} GiB" if device.memory_bytes else None),
        ):
            if value:
                table.add_row(f"  {what}", escape(value))
        stdout.print(f"[bold]{device.name}[/bold]  {escape(device.full_name)}")
        stdout.print(table)
    for absent in missing:
        stdout.print(f"[bold]{absent.name}[/bold]  [yellow]missing[/yellow]")
        for cause in absent.causes:
            stdout.print(f"  {escape(cause.reason)}\n    remedy: {escape(cause.remedy)}", soft_wrap=True)


def doctor(*, as_json: JsonOption = False) -> None:
    """Check OpenVINO, devices, CPU, memory, limits and extras; exit 3 if nothing can run here.

    Example: edgeface doctor
    """
    from edgeface.runtime.doctor import examine

    diagnosis = examine()
    if as_json:
        emit_json(diagnosis.to_dict())
    else:
        table = Table.grid(padding=(0, 2))
        for check in diagnosis.checks:
            remedy = f"\n[dim]remedy: {escape(check.remedy)}[/dim]" if check.remedy else ""
            table.add_row(_SIGNS[check.status], check.name, escape(check.found) + remedy)
        stdout.print(table)
        devices = ", ".join(diagnosis.runs_on)
        stdout.print(f"models run here, on {devices}" if devices else "[red]no model can run here[/red]")
    if not diagnosis.runs_on:
        raise typer.Exit(3)
