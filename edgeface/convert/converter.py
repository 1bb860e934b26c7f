"""Convert a published model into an IR with a contract.

Nothing appears in the output folder before the IR was read back and checked in a fresh process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import openvino as ov

from edgeface.convert.ir import FreshProcessCheck, adapt_input, check_structure, name_ports, publish_ir, save_ir
from edgeface.convert.parity import ParityReport
from edgeface.convert.tensorflow import TensorFlowModel, load_tensorflow
from edgeface.errors import InputError, ModelNotFoundError, NegativeResult, NotSupportedError
from edgeface.files import staging_folder, stopwatch
from edgeface.model.contract import Alignment, Color, Layout, ModelContract, Precision, Provenance
from edgeface.version import __version__
from edgeface.zoo.catalog import Catalog, load_catalog
from edgeface.zoo.default import record_first_default
from edgeface.zoo.schema import ModelEntry
from edgeface.zoo.store import ModelStore

log = logging.getLogger(__name__)

DEFAULT_RECIPE = "facenet-20180408-102900"
"""Zoo entry whose preprocessing and alignment a FaceNet from a file gets, unless its name is a zoo name."""

INPUT_NAMES = ("image_batch/placeholder_port_0", "image_batch")
OUTPUT_NAMES = ("embeddings", "InceptionResnetV1/Bottleneck/BatchNorm/Reshape_1/Normalize")
"""What Open Model Zoo documented for FaceNet; the second name of each is an alias."""

_OTHER_FRAMEWORKS = {
    ".onnx": "ONNX",
    ".pt": "PyTorch",
    ".pth": "PyTorch",
    ".h5": "Keras",
    ".keras": "Keras",
    ".tflite": "TensorFlow Lite",
}


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """Result of a conversion.

    Attributes
    ----------
    ir
        The .xml; the .bin lies beside it.
    seconds
        Wall time until the IR was written and checked, without the parity comparison.
    inputs, outputs
        Names and shapes as OpenVINO prints them.
    parity
        The comparison with the source model, if requested.
    """

    ir: Path
    contract: ModelContract
    seconds: float
    inputs: dict[str, str]
    outputs: dict[str, str]
    parity: ParityReport | None


def convert(
    model: str | Path,
    output_dir: Path | None = None,
    *,
    precision: Literal["fp32", "fp16"] = "fp32",
    layout: Literal["nchw", "nhwc"] = "nchw",
    color: Literal["bgr", "rgb"] = "bgr",
    batch: int | None = None,
    name: str | None = None,
    provenance: Provenance | None = None,
    parity: Callable[[Path, Path], ParityReport] | None = None,
    store: ModelStore | None = None,
    catalog: Catalog | None = None,
) -> ConversionResult:
    """Convert a model and check the result.

    Parameters
    ----------
    model
        Zoo name, or path of a frozen .pb, .meta, checkpoint folder or SavedModel. For a file or folder in the
        working directory whose name is a zoo name, write ``./name``.
    output_dir
        Receives ``<name>.xml`` and ``<name>.bin``, made if absent. By default the model store, where the first
        IR becomes the default model; only an IR with the default layout, colour and batch goes there.
    precision
        Precision of the stored weights.
    layout, color
        Layout and channel order of the IR's input, float32 0-255.
    batch
        Static batch; None leaves it dynamic.
    name
        Name of the IR. A zoo name also picks that entry's preprocessing and alignment.
    provenance
        Provenance of the weights; by default ``seeded`` where the graph says so, ``published`` for a zoo name or
        a file whose digest the zoo knows, else ``unknown``.
    parity
        Called with (source path, IR path); a report that did not pass fails the conversion.
    store, catalog
        The store and the catalog for zoo names.

    Raises
    ------
    ModelNotFoundError
        If a zoo name is unknown or not downloaded, or a path does not exist.
    ModelFormatError, ConversionError, OutputError
        If the source is bad, the IR fails a check, or it cannot be written. The folder is then unchanged.
    NegativeResult
        If the IR does not compute what the source model computes.
    """
    catalog = catalog or load_catalog()
    path, entry = _find_source(model, store, catalog)
    if name is None:
        name = entry.name if entry else _name_of(path)
    if Path(name).name != name or name in ("", ".", ".."):
        raise InputError(f"name: expected a plain file name, found {name!r}")
    in_store = output_dir is None
    if output_dir is None:
        if (layout, color, batch) != ("nchw", "bgr", None):
            raise InputError(
                expected="an output folder",
                found="none",
                remedy="pass --output-dir; the model store keeps only IRs of the default layout, colour and batch",
            )
        output_dir = (store or ModelStore()).ir_path(name, precision=precision).parent
    recipe = recipe_of(entry or (catalog[name] if name in catalog else catalog[DEFAULT_RECIPE]))
    if entry is None:
        log.info("%s: preprocessing and alignment are those of %s", path, recipe.name)
    with stopwatch() as elapsed, FreshProcessCheck() as check:
        source = load_tensorflow(path, size=recipe.size)
        converted = adapt_input(
            source.model,
            layout=_LAYOUTS[layout],
            color=_COLORS[color],
            mean=recipe.mean,
            scale=recipe.scale,
            size=recipe.size,
            batch=batch,
        )
        outputs = (OUTPUT_NAMES[0], source.output, OUTPUT_NAMES[1])
        name_ports(converted, inputs=(*INPUT_NAMES, source.input), outputs=outputs, layout=_LAYOUTS[layout])
        check_structure(converted, source=str(path))
        contract = ModelContract(
            **recipe.contract_fields(),
            name=name,
            source_sha256=source.sha256,
            provenance=_provenance_of(source, entry, catalog, told=provenance),
            input_name=INPUT_NAMES[0],
            output_name=OUTPUT_NAMES[0],
            layout=_LAYOUTS[layout],
            color=_COLORS[color],
            embedding_dim=converted.output(0).get_partial_shape()[1].get_length(),
            precision=_PRECISIONS[precision],
            converter_version=__version__,
            openvino_version=ov.get_version(),
        )
        with staging_folder(output_dir) as staging:
            staged, contract = save_ir(converted, staging, contract)
            check(staged)
            seconds = elapsed()
            report = parity(path, staged) if parity else None
            if report is not None and not report.passed:
                raise NegativeResult(f"{path}: the IR's output differs from the original model's: {report.summary}")
            ir = publish_ir(staged, output_dir)
    if in_store and contract.provenance != "seeded":
        record_first_default(ir, store=store)
    return ConversionResult(
        ir=ir,
        contract=contract,
        seconds=seconds,
        inputs={contract.input_name: str(converted.input(0).get_partial_shape())},
        outputs={contract.output_name: str(converted.output(0).get_partial_shape())},
        parity=report,
    )


_LAYOUTS: dict[str, Layout] = {"nchw": "NCHW", "nhwc": "NHWC"}
_COLORS: dict[str, Color] = {"bgr": "BGR", "rgb": "RGB"}
_PRECISIONS: dict[str, Precision] = {"fp32": "FP32", "fp16": "FP16"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a contract needs to know about an embedding model beyond its file; units as in `ModelContract`."""

    name: str
    framework: str
    size: tuple[int, int]
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    normalized: bool
    alignment: Alignment

    def contract_fields(self) -> dict[str, Any]:
        """Return the contract's fields that follow from the recipe."""
        same = {key: getattr(self, key) for key in ("framework", "mean", "scale", "normalized", "alignment")}
        return {**same, "input_size": self.size, "value_range": (0.0, 255.0), "metric": "cosine"}


def recipe_of(entry: ModelEntry) -> Recipe:
    """Return the recipe of a zoo entry.

    Raises InputError if the entry is no embedding model; NotSupportedError if edgeface cannot convert its
    framework yet.
    """
    preprocessing, embedding = entry.preprocessing, entry.embedding
    if preprocessing is None or embedding is None or preprocessing.size is None:
        raise InputError(f"{entry.name}: expected a face embedding model, found one for {entry.task_type}")
    if entry.framework != "tf":
        raise NotSupportedError(
            f"{entry.name}: its framework is {entry.framework!r}; edgeface converts TensorFlow models so far"
        )
    return Recipe(
        name=entry.name,
        framework=entry.framework,
        size=preprocessing.size,
        mean=preprocessing.mean,
        scale=preprocessing.scale,
        normalized=embedding.normalized,
        alignment=entry.alignment or Alignment("none"),
    )


def _provenance_of(
    source: TensorFlowModel, entry: ModelEntry | None, catalog: Catalog, *, told: Provenance | None
) -> Provenance:
    if source.seeded:
        return "seeded"
    if told is not None:
        return told
    known = {each.conversion.sha256 for each in catalog.values() if each.conversion}
    return "published" if entry is not None or source.sha256 in known else "unknown"


def _find_source(model: str | Path, store: ModelStore | None, catalog: Catalog) -> tuple[Path, ModelEntry | None]:
    path = Path(model)
    if isinstance(model, str) and model in catalog:  # also beside a folder of that name
        entry = catalog[model]
        recipe_of(entry)  # what cannot be converted need not be downloaded first
        return (store or ModelStore()).source_path(entry), entry
    if path.suffix in _OTHER_FRAMEWORKS:
        raise NotSupportedError(
            f"{path}: expected a TensorFlow model, found one of {_OTHER_FRAMEWORKS[path.suffix]}; "
            "edgeface converts TensorFlow models so far"
        )
    if path.exists():
        return path, None
    if path.suffix or len(path.parts) > 1:
        raise ModelNotFoundError(f"{model}: expected a model file or folder, found nothing there")
    return path, catalog[str(model)]  # raises, naming close matches


def _name_of(path: Path) -> str:
    path = path.resolve()
    return path.parent.name if path.name == "saved_model.pb" else (path.name if path.is_dir() else path.stem)
