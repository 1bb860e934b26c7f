"""Run `edgeface demo`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeface.cli.output import JsonOption, emit_json, escape, print_note, progress_bars, stdout

if TYPE_CHECKING:
    from edgeface.demo import DemoResult


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog="Example: edgeface demo -o my-demo")(demo)


def demo(
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Folder for the IR, the photos, their gallery and the report.")
    ] = Path("edgeface-demo"),
    data: Annotated[Path | None, typer.Option(envvar="EDGEFACE_DATA", help="Folder of real weights and faces.")] = None,
    mirror: Annotated[
        str | None, typer.Option(envvar="EDGEFACE_MIRROR", help="Address or folder to download from.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not download from the publisher.")] = False,
    json: JsonOption = False,
) -> None:
    """Name people in photos with a real model, convert the published FaceNet, and write a report.

    Two people are enrolled and named in other photos, beside a person who is not enrolled. If FaceNet's published
    weights could be had and no default model is set, it becomes the default model.
    """
    from edgeface.demo import run_demo

    if data is not None and not data.is_dir():
        print_note(f"--data (EDGEFACE_DATA): no folder {data}; the demo goes on without it")
    with progress_bars() as progress:
        result = run_demo(output_dir, data=data, mirror=mirror, offline=offline, say=print_note, progress=progress)
    if json:
        emit_json(result.to_dict())
    else:
        for line in _lines(result):
            stdout.print(line, soft_wrap=True)
    if not result:
        raise typer.Exit(result.exit_code)


def _lines(result: DemoResult) -> Iterator[str]:
    contract, parity, timing = result.conversion.contract, result.conversion.parity, result.timing
    named = result.recognition
    if named is not None:
        yield f"[bold]Who is in the photos of {escape(str(named.door))}?[/] Answered by {escape(named.contract.name)}:"
        for each in named.faces:
            who = each.answer.person if each.answer else each.answer.verdict.value
            verdict = "[green]right[/]" if each else "[red]wrong[/]"
            score = "" if each.answer.score is None else f"score {each.answer.score:.3f}"
            limit = f"threshold {each.answer.threshold.value:.3f}"
            yield f"  {each.photo.name}: {escape(str(who)):<16} {score}, {limit}  {verdict}"
        yield f"  The threshold {named.threshold_origin}."
    else:
        yield f"[bold yellow]Nobody can be named:[/] {escape(result.missing)}"
    yield ""
    origin = f"{contract.name} {contract.precision}, weights from {result.source.origin}"
    yield f"FaceNet   {contract.contract_id} {escape(origin)}"
    if seeded := contract.provenance == "seeded":
        yield "          [bold yellow]SEEDED WEIGHTS:[/] random numbers; this FaceNet recognises no one. No weights in:"
        yield from (f"            {escape(line)}" for line in result.source.tried)
    yield f"parity    {parity.summary if parity is not None else 'not compared: no TensorFlow, no golden vectors'}"
    if result.separation and not seeded:
        same, different = result.separation
        yield f"faces     same-person pairs at least {same:.2f} similar, two-person pairs at most {different:.2f}"
    rate = f"{timing.gflops:.2f} GFLOPs, {timing.gflops_per_second:.0f} GFLOP/s"
    yield f"speed     {timing.median_ms:.1f} ms a face (median), {rate}"
    yield f"report    {escape(str(result.report.resolve()))}"
    yield ""
    yield "Next:"
    yield from (f"  {escape(command)}" for command in result.next_commands)
