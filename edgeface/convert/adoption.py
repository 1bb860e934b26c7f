"""Add a contract to an IR that another tool made, after measuring what input it expects.

Layout and colour order of such an IR are not recorded reliably: Open Model Zoo's 2021 FaceNet is NCHW and BGR,
`mo`'s of 2024 is NHWC and FP16, `ovc`'s expects standardised RGB. Each reading of its input is tried on golden images,
and exactly one has to give the golden embeddings.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov

from edgeface.convert.converter import INPUT_NAMES, OUTPUT_NAMES, ConversionResult
from edgeface.convert.ir import (
    FreshProcessCheck,
    check_structure,
    name_ports,
    prepend_preprocessing,
    publish_ir,
    save_ir,
)
from edgeface.convert.parity import Embeddings, Images, compare, embed_with_ir, load_golden, run_model, to_input
from edgeface.convert.recipe import Recipe, recipe_of
from edgeface.convert.source import digest_of_arrays, float_constants
from edgeface.errors import ConversionError, InputError, NegativeResult
from edgeface.files import sha256_of, staging_folder, stopwatch
from edgeface.model.contract import Color, Layout, ModelContract, Precision
from edgeface.model.ir_file import read_ir
from edgeface.version import __version__
from edgeface.zoo.catalog import Catalog, load_catalog

MIN_COSINE = 0.999
"""FP16 weights stay above 0.9999; swapped colours, a wrong range or another checkpoint are far below."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """One reading of an IR's input, and how close its embeddings are to the golden ones."""

    color: Color
    raw: bool
    min_cosine: float

    def __str__(self) -> str:
        values = "0-255" if self.raw else "standardised"
        return f"{self.color} {values}: cosine {self.min_cosine:.4f}"


def adopt(ir: Path, output_dir: Path, *, name: str, golden: Path, catalog: Catalog | None = None) -> ConversionResult:
    """Add a contract to an IR (.xml) that was converted elsewhere; the given files stay as they are.

    Parameters
    ----------
    ir, output_dir
        The .xml, with its .bin beside it, and the folder that receives ``<name>.xml`` and ``<name>.bin``.
    name, catalog
        Zoo name of the model, and where it is looked up.
    golden
        .npz of ``images`` (N, H, W, 3) uint8 RGB aligned crops and ``embeddings`` (N, D) float32 of that model.

    Raises
    ------
    ModelFormatError, ConversionError
        If the file is no readable IR with one image as input and one embedding as output.
    InputError
        If the golden images have another size than the IR's input.
    NegativeResult
        If no reading of its input gives the golden embeddings, or more than one does.
    """
    with stopwatch() as elapsed, FreshProcessCheck() as check:
        recipe = recipe_of((catalog or load_catalog())[name])
        images, expected = load_golden(golden)
        model = read_ir(ir)
        check_structure(model, source=str(ir))
        layout = _layout_of(model, recipe, ir)
        if images.shape[1:3] != recipe.size:
            raise InputError(f"{golden}: expected images of {recipe.size}, found {images.shape[1:3]}")
        reading = _read_input(model, layout, recipe, images, expected, ir)
        model = _free_the_batch(model, layout, reading, recipe, images, expected)
        if not reading.raw:
            same = reading.color == recipe.color
            model = prepend_preprocessing(
                model,
                layout=layout,
                color=reading.color,
                mean=recipe.mean if same else _reversed(recipe.mean),
                scale=recipe.scale if same else _reversed(recipe.scale),
                model_layout=layout,
                model_color=reading.color,
            )
        outputs = dict.fromkeys((OUTPUT_NAMES[0], *model.output(0).get_names(), OUTPUT_NAMES[1]))
        name_ports(model, inputs=(*INPUT_NAMES, *model.input(0).get_names()), outputs=outputs, layout=layout)
        contract = ModelContract(
            name=name,
            framework="openvino",
            weights_id=digest_of_arrays(float_constants(model)),
            input_size=(images.shape[1], images.shape[2]),
            value_range=(0.0, 255.0),
            mean=recipe.mean,
            scale=recipe.scale,
            metric="cosine",
            normalized=bool(recipe.normalized),
            alignment=recipe.alignment,
            source_sha256=hashlib.sha256((sha256_of(ir) + sha256_of(ir.with_suffix(".bin"))).encode()).hexdigest(),
            provenance="published",
            input_name=INPUT_NAMES[0],
            output_name=OUTPUT_NAMES[0],
            layout=layout,
            color=reading.color,
            embedding_dim=expected.shape[1],
            precision=_precision_of(model),
            converter_version=__version__,
            openvino_version=ov.get_version(),
        )
        with staging_folder(output_dir) as staging:
            staged, contract = save_ir(model, staging, contract)
            check(staged)
            report = compare(expected, embed_with_ir(staged, images), against=golden.name, precision=contract.precision)
            if report.min_cosine < MIN_COSINE:
                raise ConversionError(f"{ir}: the adopted IR lost accuracy: {report.summary}")
            final = publish_ir(staged, output_dir)
    return ConversionResult(
        ir=final,
        contract=contract,
        seconds=elapsed(),
        inputs={contract.input_name: str(model.input(0).get_partial_shape())},
        outputs={contract.output_name: str(model.output(0).get_partial_shape())},
        parity=report,
    )


def _layout_of(model: ov.Model, recipe: Recipe, ir: Path) -> Layout:
    """Return where the three channels are, which the shape says."""
    shape = [axis.get_length() for axis in list(model.input(0).get_partial_shape())[1:]]
    height, width = recipe.size or (0, 0)
    if shape == [3, height, width]:
        return "NCHW"
    if shape == [height, width, 3]:
        return "NHWC"
    raise ConversionError(f"{ir}: expected an input of 3 x {height} x {width} or {height} x {width} x 3, found {shape}")


def _read_input(
    model: ov.Model, layout: Layout, recipe: Recipe, images: Images, expected: Embeddings, ir: Path
) -> _Reading:
    if (found := model.output(0).get_partial_shape()[1].get_length()) != expected.shape[1]:
        raise NegativeResult(f"{ir}: expected embeddings of {expected.shape[1]} numbers, found {found}")
    colors: tuple[Color, ...] = ("BGR", "RGB")
    readings = [
        _try_reading(model, layout, color, raw, recipe, images, expected)
        for color, raw in itertools.product(colors, (True, False))
    ]
    fitting = [reading for reading in readings if reading.min_cosine >= MIN_COSINE]
    if len(fitting) != 1:
        tried = "; ".join(str(reading) for reading in readings)
        raise NegativeResult(
            f"{ir}: expected exactly one colour order and value range of its {layout} input to reproduce the "
            f"golden embeddings of {recipe.name} (cosine at least {MIN_COSINE}), found {len(fitting)} ({tried}); "
            "this is another model, or its preprocessing differs"
        )
    return fitting[0]


def _try_reading(
    model: ov.Model, layout: Layout, color: Color, raw: bool, recipe: Recipe, images: Images, expected: Embeddings
) -> _Reading:
    batch = to_input(images, layout=layout, color=color)
    if not raw:
        axes = (1, 3, 1, 1) if layout == "NCHW" else (1, 1, 1, 3)
        order = slice(None, None, -1 if color == "BGR" else 1)
        mean, scale = (np.array(each[order], np.float32).reshape(axes) for each in (recipe.mean, recipe.scale))
        batch = (batch - mean) / scale
    found = run_model(model, batch)
    report = compare(expected, found, against="golden", precision="FP32")
    return _Reading(color, raw, float(np.nan_to_num(report.min_cosine, nan=-1.0)))


def _reversed(values: tuple[float, float, float]) -> tuple[float, float, float]:
    first, second, third = values
    return third, second, first


def _free_the_batch(
    model: ov.Model, layout: Layout, reading: _Reading, recipe: Recipe, images: Images, expected: Embeddings
) -> ov.Model:
    """Make the batch dynamic where the graph allows it; some old IRs fix it in a Reshape's constant."""
    free = model.clone()
    shape = free.input(0).get_partial_shape()
    if shape[0].is_dynamic:
        return model
    try:
        free.reshape([-1, *(axis.get_length() for axis in list(shape)[1:])])
        again = _try_reading(free, layout, reading.color, reading.raw, recipe, images, expected)
        dynamic = free.output(0).get_partial_shape()[0].is_dynamic
    except RuntimeError:
        return model
    return free if dynamic and again.min_cosine >= MIN_COSINE else model


def _precision_of(model: ov.Model) -> Precision:
    operations = model.get_ops()
    if any(op.get_type_name() == "FakeQuantize" for op in operations):
        return "INT8"
    constants = [op for op in operations if op.get_type_name() == "Constant"]
    largest = max(constants, key=lambda constant: int(np.prod(constant.get_output_shape(0))))
    return "FP16" if largest.get_element_type() == ov.Type.f16 else "FP32"
