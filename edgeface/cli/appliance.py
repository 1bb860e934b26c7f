"""The commands `edgeface appliance ...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeface.cli.output import JsonOption, counted, emit_json, print_line
from edgeface.files import sha256_of

if TYPE_CHECKING:
    from edgeface.kiosk.appliance import Appliance

group = typer.Typer(no_args_is_help=True, help="Install on machines without a network: build, verify and check.")

_MB = 1e6


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="appliance")


@group.command(epilog="Example: edgeface appliance build -o kiosk.tar")
def build(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The archive, a tar.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Configuration to install. Default: a short one."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Default model there: an IR or a zoo name. Default: the one here.")
    ] = None,
    extra: Annotated[
        list[str] | None, typer.Option(help="grpc, index, mqtt or postgres; may be repeated. Default: mqtt.")
    ] = None,
    liveness: Annotated[bool, typer.Option(help="Pack the liveness models, which cameras need.")] = True,
    wheels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of wheels of edgeface, all that it needs, and pip. Default: pip collects the versions that "
            "are installed here.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write one archive with wheels, models, configuration, unit and installer for machines like this one."""
    from edgeface.kiosk.appliance import build_appliance

    extras = ["mqtt"] if extra is None else extra
    built = build_appliance(output, config=config, model=model, extras=extras, liveness=liveness, wheels=wheels)
    _show("wrote", output, built, as_json=json)


@group.command(epilog="Example: edgeface appliance verify kiosk.tar")
def verify(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="Archive of `edgeface appliance build`.")],
    json: JsonOption = False,
) -> None:
    """Compare every byte of an archive with its SHA256SUMS; compare the printed digest with that of the build."""
    from edgeface.kiosk.appliance import read_appliance

    _show("intact", archive, read_appliance(archive), as_json=json)


@group.command(epilog="Example: edgeface appliance check --config /etc/edgeface/serve.yml")
def check(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="As of `edgeface serve`.")
    ] = None,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Let galleries be brought to this version's format.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Open models and galleries beside a service that runs, and embed one picture: the installer's test."""
    from edgeface.kiosk.appliance import check_appliance

    report = check_appliance(config, migrate=migrate)
    if json:
        emit_json(report)
        return
    for name, cosine in report["models"].items():
        print_line(f"model {name}: " + ("no vector to compare" if cosine is None else f"cosine {cosine:.4f}"))
    for name, templates in report["galleries"].items():
        print_line(f"gallery {name}: {counted(templates, 'template')}")
    print_line(f"liveness: {counted(report['liveness'], 'model')}")


def _show(verb: str, path: Path, appliance: Appliance, *, as_json: bool) -> None:
    digest, size = sha256_of(path), path.stat().st_size
    sizes = {folder: appliance.bytes_of(folder) for folder in ("wheels", "store")}
    facts = {"edgeface": appliance.edgeface, "python": appliance.python, "machine": appliance.machine}
    if as_json:
        emit_json({"archive": str(path), "bytes": size, "sha256": digest, **facts, **sizes})
        return
    print_line(
        f"{verb} {path}: {size / _MB:.0f} MB, wheels {sizes['wheels'] / _MB:.0f}, models {sizes['store'] / _MB:.0f}"
    )
    print_line(f"for Python {appliance.python} on {appliance.machine}; SHA-256 {digest}")
