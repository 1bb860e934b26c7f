"""Run `edgeface convert`, `adopt` and `inspect`."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column, Table

from edgeface.cli.options import RecipeOptions, with_options
from edgeface.cli.output import JsonOption, emit_json, escape, print_line, progress_bars, stderr, stdout, warn_if_seeded
from edgeface.errors import InputError
from edgeface.model.contract import Color, ModelContract
from edgeface.model.liveness_contract import LivenessContract

if TYPE_CHECKING:
    from edgeface.evaluate import RecipeCheck

_ORIGINS = {"published": "the published ones", "seeded": "random numbers (seeded)", "unknown": "of unknown origin"}
"""What is known of weights, by the contract's provenance."""

OutputDir = Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the IR; made if absent.")]

AcceptLicenceOption = Annotated[
    bool, typer.Option("--accept-licence", help="Accept the licence of a zoo model for non-commercial use.")
]
CheckOption = Annotated[
    Path | None,
    typer.Option(
        "--check",
        metavar="PHOTOS",
        help="Compare the recipe with its neighbours on photos, one folder a person or with pairs.txt, and write "
        "nothing if it clearly loses. A dozen photos show coarse errors, 40 of 20 people nearly all.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Write the IR even if its recipe loses the --check.")]


_Precision = Literal["fp32", "fp16"]
_Layout = Literal["nchw", "nhwc"]
_Color = Literal["bgr", "rgb"]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: edgeface convert facenet-20180408-102900 -o models --precision fp16")(
        with_options(convert)
    )
    app.command(epilog="Example: edgeface adopt omz/facenet.xml --name facenet-20180408-102900 -o models")(
        with_options(adopt)
    )
    app.command(epilog="Example: edgeface inspect models/facenet-20180408-102900.xml --json")(inspect)


def convert(
    model: Annotated[
        str,
        typer.Argument(
            help="Zoo name, or a .pb, .meta, checkpoint folder, SavedModel, .onnx, .dat, .h5 or folder of CSV files."
        ),
    ],
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "-o",
            help="Folder for the IR; made if absent. By default the model store, where the IR becomes the "
            "default model if there is none.",
        ),
    ] = None,
    precision: Annotated[_Precision, typer.Option(help="Precision of the stored weights.")] = "fp32",
    ir_layout: Annotated[
        _Layout, typer.Option("--ir-layout", case_sensitive=False, help="Layout of the IR's input.")
    ] = "nchw",
    ir_color: Annotated[
        _Color, typer.Option("--ir-color", case_sensitive=False, help="Channel order of the IR's input.")
    ] = "bgr",
    batch: Annotated[str, typer.Option(help="Batch size, or 'dynamic'.")] = "dynamic",
    parity: Annotated[
        bool, typer.Option("--parity", help="Compare the IR with TensorFlow (extra 'parity') or with --golden.")
    ] = False,
    golden: Annotated[
        Path | None, typer.Option(help="File (.npz) of RGB images and expected embeddings; implies --parity.")
    ] = None,
    recipe: RecipeOptions = RecipeOptions(),  # noqa: B008  # frozen
    accept_licence: AcceptLicenceOption = False,
    check: CheckOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Convert a published model into an OpenVINO IR with a contract."""
    from edgeface.convert import check_parity
    from edgeface.convert import convert as run
    from edgeface.convert.parity import load_golden

    if golden:
        load_golden(golden)  # refused before minutes of work
    with _tidy_when_terminated():
        result = run(
            model,
            output_dir,
            precision=precision,
            layout=ir_layout,
            color=ir_color,
            batch=_parse_batch(batch),
            name=recipe.name,
            recipe=recipe.parts(),
            accept_licence=accept_licence,
            parity=functools.partial(check_parity, golden=golden) if parity or golden else None,
            check_recipe=_recipe_checker(check),
            force=force,
        )
    _show_conversion(result, json=json)


def adopt(
    ir: Annotated[Path, typer.Argument(help="IR (.xml) made by another tool.")],
    output_dir: OutputDir,
    recipe: RecipeOptions,
    golden: Annotated[
        Path | None,
        typer.Option(
            help="File (.npz) of RGB images and that model's embeddings; by default $EDGEFACE_DATA/NAME/golden.npz."
        ),
    ] = None,
    accept_licence: AcceptLicenceOption = False,
    check: CheckOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Add a contract to an IR made by another tool; measure what its input expects, or take it from a recipe."""
    from edgeface.convert import adopt as run

    told = recipe.parts()
    name = recipe.name or told.name or ir.stem
    with _tidy_when_terminated():
        result = run(
            ir,
            output_dir,
            name=name,
            golden=golden or _default_golden(name),
            recipe=told,
            accept_licence=accept_licence,
            check_recipe=_recipe_checker(check),
            force=force,
        )
    _show_conversion(result, json=json)


def inspect(
    ir: Annotated[Path, typer.Argument(help="IR (.xml), with a contract or without.")], json: JsonOption = False
) -> None:
    """Show an IR's contract, or what 'edgeface adopt' needs; FLOPs per face, number of parameters and file sizes."""
    from edgeface.convert.inspection import inspect_ir

    found = inspect_ir(ir)
    contract, needs, work = found.contract, found.adoption, found.work
    warn_if_seeded(None if contract is None else contract.provenance)
    if json:
        return emit_json(found.to_dict())
    table = Table("contract", "none", title=escape(ir.name)) if contract is None else _contract_table(contract)
    if contract is None:
        for what, ports in (("input", found.inputs), ("output", found.outputs)):
            for name, form in ports.items():
                table.add_row(what, escape(f"{name}: {form}"))
    table.add_section()
    if work is not None:
        gflops = f"{work.gflops_mac2:.4f} GFLOPs (2 x MAC), {work.gflops_omz:.4f} (Open Model Zoo)"
        table.add_row("work of one face", gflops)
        table.add_row("parameters", f"{work.mparams_folded:.3f} M (folded), {work.mparams_omz:.3f} M (Open Model Zoo)")
    sizes = (path.stat().st_size for path in (ir, ir.with_suffix(".bin")))
    table.add_row("files", ".xml {:,} bytes, .bin {:,} bytes".format(*sizes))
    stdout.print(table)
    if needs is not None:
        for problem in needs.problems:
            print_line(f"cannot be adopted: {problem}")
        command = f"edgeface adopt {shlex.quote(str(ir))} -o DIR"
        if needs.options:
            print_line(f"to give it a contract: {command} {' '.join(needs.options)} [--normalized|--raw]")
        if needs.names:
            print_line(f"if it is a model of the zoo: {command} --name {'|'.join(needs.names)} [--golden FILE.npz]")


@contextlib.contextmanager
def _tidy_when_terminated() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that temporary files are removed."""

    def unwind(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread only
        return
    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_conversion(result: Any, *, json: bool) -> None:
    if json:
        warn_if_seeded(result.contract.provenance)
        return emit_json(
            {
                "ir": str(result.ir),
                "contract_id": result.contract.contract_id,
                "seconds": round(result.seconds, 3),
                "inputs": result.inputs,
                "outputs": result.outputs,
                "parity": result.parity.to_dict() if result.parity is not None else None,
                "check": result.check.to_dict() if result.check is not None else None,
                "provenance": result.contract.provenance,
                "became_default": result.became_default,
            }
        )
    stdout.print(_contract_table(result.contract))
    if result.parity is not None:
        stdout.print(_parity_table(result.parity))
    if result.check is not None:
        stdout.print(_check_table(result.check, forced=not result.check))
        print_line(result.check.summary)
    line = f"{result.ir} written and checked in {result.seconds:.1f} s"
    print_line(line)  # a path is copied from here: whole, brackets and all
    if result.became_default:
        print_line(f"{result.contract.name} is now the default model")
    warn_if_seeded(result.contract.provenance)


def _contract_table(contract: ModelContract | LivenessContract) -> Table:
    columns = Column("contract", no_wrap=True), Column(contract.contract_id, overflow="fold")
    table = Table(*columns, title=escape(contract.name), title_justify="left")
    height, width = contract.input_size
    low, high = contract.value_range
    form = f"{contract.layout} {height}x{width} {contract.color} {low:g}-{high:g}"
    table.add_row("input", escape(f"{contract.input_name}: {form}"))
    if isinstance(contract, LivenessContract):
        table.add_row("output", escape(f"{contract.output_name}: {', '.join(contract.classes)}"))
        table.add_row("crop", f"{contract.crop_scale:g} sides of the face, {contract.crop} into the frame")
    else:
        _add_embedding_rows(table, contract)
    origin = _ORIGINS[contract.provenance]
    table.add_row("weights", f"{contract.precision}, {origin}; source SHA-256 {contract.source_sha256[:16]}...")
    if isinstance(contract, ModelContract) and (lineage := contract.lineage):
        measured = f"cosine between both {lineage.mean_cosine:.4f} on average, at least {lineage.min_cosine:.4f}"
        drop = "" if lineage.accuracy_drop is None else f"; accuracy lower by {lineage.accuracy_drop:.4f}"
        table.add_row("made from", f"{lineage.parent_id}: {lineage.method}; {measured}{drop}")
        table.add_row("settings", escape(lineage.settings))
    table.add_row("made by", escape(f"edgeface {contract.converter_version}, OpenVINO {contract.openvino_version}"))
    return table


def _add_embedding_rows(table: Table, contract: ModelContract) -> None:
    mean, scale = (
        " ".join(f"{value:g}" for value in (each[:1] if len(set(each)) == 1 else each))
        for each in (contract.mean, contract.scale)
    )
    table.add_row("computes", f"(x - mean) / scale first; mean {mean}, scale {scale}")
    length = "of unit length" if contract.normalized else "not of unit length"
    form = f"{contract.embedding_dim} numbers, {length}, compared by {contract.metric}"
    table.add_row("output", escape(f"{contract.output_name}: {form}"))
    table.add_row("alignment", str(contract.alignment))


def _parity_table(report: Any) -> Table:
    table = Table("parity", report.verdict, title_justify="left")
    table.add_row("against", escape(report.against))
    table.add_row("images", str(report.images))
    table.add_row("max |difference|", f"{report.max_abs_diff:.2e}")
    table.add_row("cosine", f"min {report.min_cosine:.8f}, mean {report.mean_cosine:.8f}")
    return table


def _recipe_checker(photos: Path | None) -> Any:
    """Return what compares the recipe with its neighbours on photos and shows the figures; None without photos."""
    if photos is None:
        return None
    from edgeface.evaluate import check_recipe
    from edgeface.evaluate.recipe_check import require_photos

    if not photos.is_dir():
        raise InputError(path=photos, expected="a folder of photos", found="none", remedy="check the path")
    require_photos(photos)  # before minutes of work

    def run(ir: Path, color: Color) -> RecipeCheck:
        with progress_bars() as progress:
            found = check_recipe(ir, color, photos=photos, progress=progress)
        if not found:
            stderr.print(_check_table(found))
        return found

    return run


def _check_table(check: RecipeCheck, *, forced: bool = False) -> Table:
    columns = [Column(title, no_wrap=True) for title in ("separation", "genuine", "impostor", "against told", "")]
    table = Table(Column("recipe", overflow="fold"), *columns, box=None, pad_edge=False, title_justify="left")
    table.title = f"check: {check.verdict}" + (", overruled by --force" if forced else "")
    for each in check.scores:
        error = (each.interval[1] - each.interval[0]) / 2
        table.add_row(
            escape(each.candidate.name),
            f"{each.separation:.4f}",
            f"{each.genuine:.4f}",
            f"{each.impostor:.4f}",
            "" if each is check.scores[0] else f"{each.difference:+.4f} +- {error:.4f}",
            "" if each.plausible else "loses",
        )
    return table


def _parse_batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0:
        return int(text)
    raise InputError(f"--batch: expected a positive number or 'dynamic', found {text!r}")


def _default_golden(name: str) -> Path | None:
    folder = os.environ.get("EDGEFACE_DATA")
    path = Path(folder, name, "golden.npz") if folder else None
    return path if path is not None and path.is_file() else None
