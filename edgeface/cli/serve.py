"""The commands `edgeface serve ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeface.cli import serve_admin
from edgeface.cli.output import JsonOption, emit_json, print_line, print_note

group = typer.Typer(help="Serve face recognition; keep its keys.")
serve_admin.add_to(group)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="serve")


@group.callback(invoke_without_command=True, epilog="Example: edgeface serve --config serve.yml")
def serve(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file. Default: EDGEFACE_SERVE_... and defaults.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check configuration, models, galleries, keys and address; serve nothing.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all keys of the configuration with their defaults.")
    ] = False,
    openapi: Annotated[
        bool, typer.Option("--openapi", help="Print the OpenAPI document of the service's own API.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Serve face recognition over HTTP."""
    from edgeface.kiosk.doorkeeper import Doorkeeper, KioskServiceSettings
    from edgeface.serve import server
    from edgeface.serve.settings import describe_settings, load_settings

    if print_config:
        typer.echo(describe_settings(KioskServiceSettings()), nl=False)
        return
    if openapi:
        emit_json(server.describe_api())
        return
    context.obj = settings = load_settings(config, kind=KioskServiceSettings)
    if context.invoked_subcommand:
        return
    if check:
        report = server.check(settings)
        emit_json(report) if json else print_line("ready to serve: " + ", ".join(report["models"]))
        return

    def announce(address: str, grpc_address: str | None, first_key: str | None) -> None:
        if first_key is not None:
            print_note(server.tell_first_key(first_key, settings.state))
        if json:
            emit_json({"address": address, "grpc_address": grpc_address, "first_key": first_key})
        else:
            print_line(f"serving on {address}" + (f", gRPC on {grpc_address}" if grpc_address else ""))

    server.serve(lambda: load_settings(config, kind=KioskServiceSettings), announce=announce, watch=Doorkeeper)
