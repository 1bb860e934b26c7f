"""The commands `edgeface embed` and `edgeface verify`."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from edgeface.cli import output as out
from edgeface.cli.options import AnalyzerOptions, FarOption, ThresholdOption, parse_threshold, with_options
from edgeface.cli.words import choice_words, decision_words, embedded_words, reduced_words
from edgeface.errors import NegativeResult
from edgeface.files import require_writable

if TYPE_CHECKING:
    from edgeface.pipeline.batch import BulkResult
    from edgeface.pipeline.observation import Face
    from edgeface.scale.ray import RayResult
    from edgeface.vision.detector import FoundBy


_Faces = Literal["largest", "all"]
_ADDRESS = re.compile(r"auto|local|([a-z]+://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}")


class _EmbedCommand(typer.core.TyperCommand):
    """Lets --ray stand without an address: what follows it is one only if it looks like one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for at, argument in enumerate(args):
            if argument == "--ray" and not _ADDRESS.fullmatch("".join(args[at + 1 : at + 2])):
                args = [*args[: at + 1], "local", *args[at + 1 :]]
                break
            if argument == "--":
                break
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(cls=_EmbedCommand, epilog="Example: edgeface embed photos/ -o photos.npz")(with_options(embed))
    app.command(epilog="Example: edgeface verify passport.jpg door.jpg --far 0.001")(with_options(verify))


def embed(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Photos, folders or shell patterns; with --ray also lists (.csv, .parquet; column 'path') and shards "
            "(.tar).",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .npz, or .parquet (needs the extra 'parquet'). With --ray, a folder NAME.parquet.",
        ),
    ],
    *,
    faces: Annotated[_Faces, typer.Option(help="Faces to embed in each photo.")] = "largest",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Let processes of Ray embed (extra 'ray'): of the Ray at host:port, or, without an address, of one on "
            "this machine alone.",
        ),
    ] = None,
    options: AnalyzerOptions,
    strict: out.StrictOption = False,
    json: out.JsonOption = False,
) -> None:
    """Embed the faces of many photos. A repeated run embeds only new, changed or unfinished photos."""
    if ray is not None:
        _embed_on_ray(paths, output, ray, faces=faces, options=options, strict=strict, json=json)
        return
    from edgeface.pipeline.batch import embed_folder
    from edgeface.pipeline.table import require_format
    from edgeface.vision.listing import list_photos

    require_format(output)
    photos = list_photos(paths)  # what costs nothing to find is told before the model is loaded
    require_writable(output.parent)
    with options.load(photos=len(photos.files)) as app, out.progress_bars() as progress:
        result = embed_folder(paths, app.pipeline(faces=faces), output, progress=progress)
        model, found_by = app.contract.name, app.found_by()
    _tell(
        result,
        {
            "output": str(output),
            "model": model,
            "contract_id": result.table.contract_id,
            "rows": len(result.table),
            "dropped": result.dropped,
        },
        found_by,
        json=json,
    )
    if result.dropped:
        out.print_note(f"{output}: no longer has {out.counted(result.dropped, 'file')} that this run was not asked for")
    out.finish(result.failures, strict=strict, left_out=result.left_out)


def _embed_on_ray(
    paths: list[str], output: Path, address: str, *, faces: Any, options: AnalyzerOptions, strict: bool, json: bool
) -> None:
    from edgeface.scale.ray import embed_on_ray
    from edgeface.vision.detector import FoundBy

    arguments = options.arguments()
    with out.progress_bars() as progress:
        result = embed_on_ray(paths, output, load=arguments, faces=faces, address=address, progress=progress)
    out.warn_if_seeded(result.contract.provenance)
    contract, detector = result.contract, arguments["detector"]
    if detector is None:
        found_by = FoundBy()
    elif options.min_size is not None:
        found_by = FoundBy(detector, options.min_size, "min-size")
    else:
        found_by = FoundBy.choose(detector, contract.input_size)
    _tell(
        result,
        {
            "output": str(output),
            "model": contract.name,
            "contract_id": contract.contract_id,
            "rows": result.rows,
            "ray": {"blocks": result.blocks, "actors": result.plan.actors, "cpus": result.plan.cpus},
        },
        found_by,
        json=json,
    )
    if not json:
        actors = f"{out.counted(result.plan.actors, 'actor')} of {out.counted(result.plan.cpus, 'CPU')}"
        out.print_line(f"{out.counted(result.blocks, 'block')} by {actors}")
    out.finish(result.failures, strict=strict, left_out=result.left_out)


def _tell(result: BulkResult | RayResult, answer: dict[str, Any], found_by: FoundBy, *, json: bool) -> None:
    """Print what a run did."""
    answer |= {
        **asdict(found_by),
        "files": result.files,
        "reused": result.reused,
        "reduced": result.reduced,
        "failures": out.list_failures(result.failures),
        "left_out": out.list_failures(result.left_out),
    }
    if json:
        out.emit_json(answer)
    else:
        out.print_line(embedded_words(answer))
        out.print_detector(found_by)
    if result.reduced > 1:
        out.print_note(reduced_words(result.reduced))


def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="First photo.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Second photo.")],
    *,
    threshold: ThresholdOption = None,
    far: FarOption = None,
    face_a: Annotated[
        int | None, typer.Option(min=1, help="Face of photo A to compare: 1 is the leftmost. Default: the largest.")
    ] = None,
    face_b: Annotated[
        int | None, typer.Option(min=1, help="Face of photo B to compare: 1 is the leftmost. Default: the largest.")
    ] = None,
    options: AnalyzerOptions,
    json: out.JsonOption = False,
) -> None:
    """Decide whether two photos show the same person. Exit code: 0 for the same person, 1 for different people."""
    from edgeface.recognize.threshold import require_rate
    from edgeface.vision.image import require_photo

    limit = parse_threshold(threshold)
    if far is not None:
        require_rate("far", far)
    for path in (a, b):
        require_photo(path)
    with options.load(photos=2) as app:
        result = app.verify(a, b, far=far, threshold=limit, face_a=face_a, face_b=face_b)
        contract, precision, hint, found_by = app.contract, app.precision, app.hint, app.found_by()
    assert result.face_a is not None
    assert result.face_b is not None
    for path, face, asked, option in ((a, result.face_a, face_a, "--face-a"), (b, result.face_b, face_b, "--face-b")):
        if asked is None and (note := choice_words(path, face.to_dict(), option)):
            out.print_note(note)
    if json:
        about = {"precision": precision, "hint": hint, **asdict(found_by)}
        about |= {"a": _about(a, result.face_a), "b": _about(b, result.face_b)}
        out.emit_json({key: value for key, value in result.to_dict().items() if "face_" not in key} | about)
    else:
        out.print_line(decision_words(result.to_dict()))
        out.print_model(contract, precision, found_by)
        if result.threshold.note:
            out.print_note(result.threshold.note)
    if not result:
        raise typer.Exit(NegativeResult.exit_code)


def _about(path: Path, face: Face) -> dict[str, Any]:
    return {"path": str(path), "faces": face.total, "face": face.number, "box": face.to_dict()["box"]}
