"""Add a contract to an IR that another tool made.

Layout and colour order of such an IR are not recorded reliably: Open Model Zoo's 2021 FaceNet is NCHW and BGR,
`mo`'s of 2024 is NHWC and FP16, `ovc`'s expects standardised RGB. Where the embeddings of some images are known, each
reading of its input is tried, and exactly one has to give them; else the caller says what the IR expects.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert.converter import (
    INPUT_NAMES,
    OUTPUT_NAMES,
    ConversionResult,
    RecipeChecker,
    describe,
    finish_output,
    measure_recipe,
    require_licence,
    require_plain_name,
    size_of,
)
from edgeface.convert.inside import notice_preprocessing
from edgeface.convert.ir import (
    FreshProcessCheck,
    check_structure,
    flatten_output,
    keep_output,
    name_ports,
    prepend_preprocessing,
    publish_ir,
    save_ir,
    take_floats,
)
from edgeface.convert.parity import (
    MIN_COSINE,
    Embeddings,
    Images,
    ParityReport,
    compare,
    draw_faces,
    embed_with_ir,
    fingerprint_of,
    load_golden,
    recognise,
    run_model,
    to_input,
    unit_rows,
)
from edgeface.convert.recipe import Recipe, RecipeParts, is_raw, parts_of
from edgeface.convert.source import SourceModel, weights_id_of
from edgeface.errors import ContractError, ConversionError, InputError, MissingError, ModelNotFoundError, NegativeResult
from edgeface.files import require_writable, sha256_of, staging_folder, stopwatch
from edgeface.model.contract import Color, Layout, ModelContract, Precision
from edgeface.model.ir_file import read_ir
from edgeface.model.stored import RT_INFO_KEY
from edgeface.zoo.catalog import Catalog, load_catalog
from edgeface.zoo.schema import ModelEntry
from edgeface.zoo.store import ModelStore

READING_COSINE = 0.999
"""FP16 weights stay above 0.9999; swapped colours, a wrong range or another checkpoint are far below."""


@dataclass(frozen=True, slots=True)
class _Known:
    """Images, and the embeddings that the model gives for them, or as many of their first numbers as are known."""

    images: Images
    embeddings: Embeddings
    dim: int
    origin: str


@dataclass(frozen=True, slots=True)
class _Reading:
    """One reading of an IR's input, and how close its embeddings are to the known ones."""

    color: Color
    raw: bool
    min_cosine: float = 1.0

    def __str__(self) -> str:
        values = "0-255" if self.raw else "standardised"
        return f"{self.color} {values}: cosine {self.min_cosine:.4f}"


def adopt(
    ir: Path,
    output_dir: Path,
    *,
    name: str | None = None,
    golden: Path | None = None,
    recipe: RecipeParts | None = None,
    check_recipe: RecipeChecker | None = None,
    force: bool = False,
    accept_licence: bool = False,
    store: ModelStore | None = None,
    catalog: Catalog | None = None,
) -> ConversionResult:
    """Add a contract to an IR (.xml) that was converted elsewhere; the given files stay as they are.

    With golden vectors, or for a zoo model whose fingerprint is known, the colour order and value range of the input
    are measured. A recipe that gives colour, mean and scale of the IR as it is needs neither.

    Parameters
    ----------
    ir, output_dir
        The .xml, with its .bin beside it, and the folder that receives ``<name>.xml`` and ``<name>.bin``.
    name
        Name of the model, by default the recipe's, else the file's. A zoo name also selects that entry's recipe.
    golden
        .npz of ``images`` (N, H, W, 3) uint8 RGB aligned crops and ``embeddings`` (N, D) float32 of that model.
    recipe
        Parts of the recipe that replace those of the zoo entry, or that a model without one needs.
    check_recipe, force
        Compares the recipe with its neighbours; a recipe that loses fails the adoption unless `force`.
    accept_licence, store
        Accept the licence of a zoo model for non-commercial use, and where that is recorded.
    catalog
        Where a zoo name is looked up.

    Raises
    ------
    ModelNotFoundError
        If the name is none of the zoo and no recipe is given.
    MissingError
        If a zoo model has neither golden vectors, nor a fingerprint, nor a recipe of the IR's input.
    ContractError
        If the IR has a contract already.
    ModelFormatError, ConversionError
        If the file is no readable IR with one image as input and one embedding as output.
    InputError
        If the recipe is incomplete, or the golden images have another size than the IR's input.
    NegativeResult
        If no reading of its input gives the golden embeddings, or more than one does, or the recipe loses against a
        neighbour.
    """
    catalog = catalog or load_catalog()
    told = recipe or RecipeParts()
    name = next(each for each in (name, told.name, ir.stem) if each is not None)
    require_plain_name(name)
    entry = _find_entry(name, told, catalog)
    require_licence(ir, entry, name, catalog, store=store, accept=accept_licence)
    complete = (parts_of(entry) if entry else RecipeParts()).complete(told, RecipeParts(name=name))
    if complete.lrn is not None:
        raise InputError(path=ir, expected="a recipe without lrn, which is in an IR's layers", found=complete.lrn)
    require_writable(output_dir)
    known = _known_embeddings(entry, golden, told, ir)
    with stopwatch() as elapsed, FreshProcessCheck() as check:
        source = _read(ir, complete, told)
        take_floats(source.model, raw=known is not None or is_raw(complete), source=str(ir))
        model, layout, size = source.model, source.layout, size_of(source, ir)
        reading = _find_reading(source, complete, known, ir) if known else _Reading(complete.color, is_raw(complete))
        if known is None:
            notice_preprocessing(model, layout=layout, size=size, recipe=complete, path=ir)
        if not reading.raw:
            model = _with_preprocessing(model, layout, reading.color, complete)
        crops = to_input(draw_faces(size), layout=layout, color=reading.color)
        embeddings = run_model(model, crops)
        unit = bool(np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3))
        source = dataclasses.replace(source, model=_free_the_batch(model, crops, embeddings, ir), normalized=unit)
        model, normalized = finish_output(source, complete, path=ir)
        outputs = dict.fromkeys((OUTPUT_NAMES[0], source.output, OUTPUT_NAMES[1]))
        name_ports(model, inputs=(*INPUT_NAMES, source.input), outputs=outputs, layout=layout)
        contract = describe(
            source,
            complete,
            model,
            size=size,
            layout=layout,
            color=reading.color,
            precision=_precision_of(model),
            normalized=normalized,
            catalog=catalog,
        )
        contract = recognise(contract, fingerprint_of(embeddings), catalog.values())
        with staging_folder(output_dir) as staging:
            staged, contract = save_ir(model, staging, contract)
            check(staged)
            report = _compare_with(golden, staged, contract) if golden else None
            if report is not None and report.min_cosine < READING_COSINE:
                raise ConversionError(f"{ir}: the adopted IR lost accuracy: {report.summary}")
            verdict = measure_recipe(check_recipe, staged, complete.color, source=ir, force=force)
            final = publish_ir(staged, output_dir)
    return ConversionResult(
        ir=final,
        contract=contract,
        seconds=elapsed(),
        inputs={contract.input_name: str(model.input(0).get_partial_shape())},
        outputs={contract.output_name: str(model.output(0).get_partial_shape())},
        parity=report,
        check=verdict,
    )


def _find_entry(name: str, told: RecipeParts, catalog: Catalog) -> ModelEntry | None:
    """Return the zoo entry of a name; None for a model of the user's own, of which a recipe tells something."""
    if name not in catalog and told.told().keys() - {"name"}:
        return None
    try:
        return catalog[name]
    except ModelNotFoundError as error:
        needed = "a model of your own needs a recipe: pass --color --mean --scale --alignment"
        raise ModelNotFoundError(f"{error}; {needed}") from None


def _known_embeddings(entry: ModelEntry | None, golden: Path | None, told: RecipeParts, ir: Path) -> _Known | None:
    """Return what the readings of the input are tried on; None where the caller told the reading."""
    if golden is not None:
        images, embeddings = load_golden(golden)
        return _Known(images, embeddings, embeddings.shape[1], str(golden))
    if entry is None or told.told().keys() >= _READING:
        return None
    preprocessing, embedding, conversion = entry.preprocessing, entry.embedding, entry.conversion
    if preprocessing is None or preprocessing.size is None or embedding is None or conversion is None:
        raise InputError(f"{entry.name}: expected a face embedding model, found one for {entry.task_type}")
    if conversion.fingerprint is None:
        raise MissingError(
            f"{ir}: what the IR of {entry.name} expects has to be measured or told; pass --golden FILE.npz with RGB "
            f"images and that model's embeddings, or set EDGEFACE_DATA to a folder that has {entry.name}/golden.npz, "
            "or pass what this IR expects with --color, --mean and --scale"
        )
    images = draw_faces(preprocessing.size)
    expected = np.reshape(conversion.fingerprint, (len(images), -1))
    return _Known(images, expected, embedding.dim, f"fingerprint of {entry.name}")


_READING = {"color", "mean", "scale"}


def _read(ir: Path, recipe: Recipe, told: RecipeParts) -> SourceModel:
    """Read the IR; its output is one row a face, height and width are static."""
    model = read_ir(ir)
    if model.has_rt_info([RT_INFO_KEY, "contract_version"]):
        contract = ModelContract.read_from(model, source=str(ir))
        raise ContractError(
            path=ir,
            expected="an IR without a contract",
            found=f"one with contract {contract.contract_id} ({contract.name}, {contract.provenance} weights)",
            remedy="use it as it is, or convert its source again",
        )
    if recipe.output is not None:
        model = keep_output(model, recipe.output, source=str(ir))
    weights_id = weights_id_of(model)
    names = [min(port.get_names(), default="") for port in (*model.inputs[:1], *model.outputs[:1])]
    flatten_output(model)
    if len(model.inputs) != 1 or len(model.input(0).get_partial_shape()) != 4:
        check_structure(model, source=str(ir))
    layout = _layout_of(model, told, ir)
    if recipe.size is not None:
        height, width = recipe.size
        batch, *found = model.input(0).get_partial_shape()
        expected = [3, height, width] if layout == "NCHW" else [height, width, 3]
        if not ov.PartialShape(expected).compatible(ov.PartialShape(found)):
            raise ConversionError(
                f"{ir}: expected an input of 3 x {height} x {width} or {height} x {width} x 3, found "
                f"{model.input(0).get_partial_shape()}"
            )
        model.reshape([batch, *expected])
    source = SourceModel(
        model=model,
        layout=layout,
        framework="openvino",
        sha256=hashlib.sha256((sha256_of(ir) + sha256_of(ir.with_suffix(".bin"))).encode()).hexdigest(),
        weights_id=weights_id,
        normalized=None,
        input=names[0],
        output=names[1],
    )
    size_of(source, ir)  # raises where no size is known
    check_structure(model, source=str(ir))
    return source


def _layout_of(model: ov.Model, told: RecipeParts, ir: Path) -> Layout:
    """Return where the three channels are, which the shape says."""
    shape = model.input(0).get_partial_shape()
    fitting = fitting_layouts(shape)
    if told.layout is not None:
        fitting = [layout for layout in fitting if layout == told.layout]
    if len(fitting) != 1:
        height, width = told.size or ("height", "width")
        raise ConversionError(
            path=ir,
            expected=f"an input of 3 x {height} x {width} or {height} x {width} x 3",
            found=f"{shape}{f', and --layout {told.layout}' if told.layout else ''}",
        )
    return fitting[0]


def fitting_layouts(shape: ov.PartialShape) -> list[Layout]:
    """Return the layouts that an input of this shape can have: a dynamic axis may be the three channels."""
    axes: dict[Layout, int] = {"NCHW": 1, "NHWC": 3}
    if len(shape) != 4:
        return []
    return [layout for layout, axis in axes.items() if shape[axis].is_dynamic or shape[axis].get_length() == 3]


def _find_reading(source: SourceModel, recipe: Recipe, known: _Known, ir: Path) -> _Reading:
    if known.images.shape[1:3] != (size := size_of(source, ir)):
        raise InputError(f"{known.origin}: expected images of {size}, found {known.images.shape[1:3]}")
    if (found := source.model.output(0).get_partial_shape()[1].get_length()) != known.dim:
        raise NegativeResult(f"{ir}: expected embeddings of {known.dim} numbers, found {found}")
    colors: tuple[Color, ...] = ("BGR", "RGB")
    readings = [
        _try_reading(source, color, raw, recipe, known) for color, raw in itertools.product(colors, (True, False))
    ]
    fitting = [reading for reading in readings if reading.min_cosine >= READING_COSINE]
    if len(fitting) != 1:
        tried = "; ".join(map(str, readings))
        raise NegativeResult(
            f"{ir}: expected exactly one colour order and value range of its {source.layout} input to reproduce the "
            f"golden embeddings of {recipe.name} (cosine at least {READING_COSINE}), found {len(fitting)} ({tried}); "
            "this is another model, or its preprocessing differs"
        )
    return fitting[0]


def _try_reading(source: SourceModel, color: Color, raw: bool, recipe: Recipe, known: _Known) -> _Reading:
    model, layout = source.model, source.layout
    batch = to_input(known.images, layout=layout, color=color)
    if not raw:
        axes = (1, 3, 1, 1) if layout == "NCHW" else (1, 1, 1, 3)
        mean, scale = (np.array(each, np.float32).reshape(axes) for each in _in_order(color, recipe))
        batch = (batch - mean) / scale
    found = run_model(model, batch)[:, : known.embeddings.shape[1]]
    report = compare(known.embeddings, found, against=known.origin, precision="FP32")
    return _Reading(color, raw, float(np.nan_to_num(report.min_cosine, nan=-1.0)))


def _in_order(color: Color, recipe: Recipe) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and scale in this order of channels."""
    if color == recipe.color:
        return recipe.mean, recipe.scale
    return recipe.mean[::-1], recipe.scale[::-1]


def _with_preprocessing(model: ov.Model, layout: Layout, color: Color, recipe: Recipe) -> ov.Model:
    mean, scale = _in_order(color, recipe)
    return prepend_preprocessing(
        model, layout=layout, color=color, mean=mean, scale=scale, model_layout=layout, model_color=color
    )


def _free_the_batch(model: ov.Model, crops: NDArray[np.float32], embeddings: Embeddings, path: Path) -> ov.Model:
    """Make the batch dynamic where the graph allows it; some old IRs fix it in a Reshape's constant."""
    batch, *rest = model.input(0).get_partial_shape()
    if batch.is_dynamic:
        alone = model.clone()
        alone.reshape([1, *rest])
        same = compare(embeddings, run_model(alone, crops), against="one at a time", precision="FP32")
        if not same.min_cosine >= MIN_COSINE["FP32"]:
            raise ConversionError(
                f"{path}: expected rows that do not depend on the other images of a batch, found some; "
                "reshape it to a batch of 1"
            )
        return model
    free = model.clone()
    try:
        free.reshape([-1, *rest])
        if free.output(0).get_partial_shape()[0].is_static:
            return model
        again = compare(embeddings, run_model(free, crops), against="the static batch", precision="FP32")
    except (RuntimeError, InputError):
        return model
    return free if again.min_cosine >= MIN_COSINE["FP32"] else model


def _compare_with(golden: Path, ir: Path, contract: ModelContract) -> ParityReport:
    images, expected = load_golden(golden)
    if contract.normalized:
        expected = unit_rows(expected)
    return compare(expected, embed_with_ir(ir, images), against=golden.name, precision=contract.precision)


def _precision_of(model: ov.Model) -> Precision:
    """Return what most weights are stored as: OpenVINO leaves those in FP32 that FP16 cannot hold."""
    operations = model.get_ops()
    if any(op.get_type_name() == "FakeQuantize" for op in operations):
        return "INT8"
    counts = {ov.Type.f16: 0, ov.Type.f32: 0}
    for op in operations:
        if op.get_type_name() == "Constant" and (kind := op.get_element_type()) in counts:
            counts[kind] += int(np.prod(op.get_output_shape(0)))
    return "FP16" if counts[ov.Type.f16] > counts[ov.Type.f32] else "FP32"
