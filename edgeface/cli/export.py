"""Run `edgeface export`: a training as one archive, IRs as a repository of OpenVINO Model Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from edgeface.cli.output import JsonOption, counted, emit_json, print_line, print_note, warn_if_seeded


class _Export(typer.core.TyperGroup):
    """Takes what names no command for the folder of `training`, which was the only one once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["training", *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(cls=_Export, help="Write models for other programs.", no_args_is_help=True)
    group.command(epilog="Example: edgeface export trained -o kiosk.tar")(training)
    group.command(epilog="Example: edgeface export ovms facenet.xml -o models")(ovms)
    app.add_typer(group, name="export")


def training(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder of 'edgeface train head'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Archive (.tar) to write.")],
    json: JsonOption = False,
) -> None:
    """Put a trained embedder, its head with the labels, and the known thresholds into one archive."""
    from edgeface.train import export_training

    made = export_training(folder, output)
    if json:
        return emit_json(made.to_dict())
    people = counted(len(made.labels), "person", "people")
    print_line(f"{output} written: {', '.join(name for name, _ in made.files)}; {people}")


def ovms(
    irs: Annotated[list[Path], typer.Argument(metavar="IR...", help="IRs (.xml) with a contract.")],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Folder of the model repository; made if absent.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the model, for one IR. Default: the contract's.")] = None,
    json: JsonOption = False,
) -> None:
    """Write IRs as new versions into a model repository of OpenVINO Model Server, with its config.json."""
    from edgeface.scale.ovms import export_ovms

    done = export_ovms(irs, output_dir, name=name)
    for each in done:
        warn_if_seeded(each.contract.provenance)
    if json:
        return emit_json({"output": str(output_dir), "models": [each.to_dict() for each in done]})
    for each in done:
        how = "written" if each.written else "is there already"
        print_line(f"{each.name} version {each.version} {how}: {each.ir}, contract {each.contract.contract_id}")
        if not each.images:
            print_note(f"{each.name}: takes numbers only, for image files are decoded into BGR of 0-255")
