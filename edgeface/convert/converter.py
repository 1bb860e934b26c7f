"""A zoo name or a path in, a checked IR with its contract out.

Nothing appears in the output folder before the IR was read back in a fresh process and held to what it promises.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import openvino as ov

import edgeface
from edgeface.contract import Alignment, Color, Layout, ModelContract, Precision, Provenance
from edgeface.convert.ir import adapt_input, check_ir, check_structure, name_ports, save_ir
from edgeface.convert.parity import ParityReport
from edgeface.convert.tensorflow import load_tensorflow
from edgeface.errors import ConversionError, InputError, ModelNotFoundError, NegativeResult, NotSupportedError
from edgeface.files import output_errors, staging_folder
from edgeface.zoo.catalog import Catalog, ModelEntry, load_catalog
from edgeface.zoo.store import Store

__all__ = ["DEFAULT_RECIPE", "ConversionResult", "convert", "publish_ir"]

log = logging.getLogger(__name__)

DEFAULT_RECIPE = "facenet-20180408-102900"
"""Zoo entry whose preprocessing and alignment a FaceNet of the user's own gets, unless its name says otherwise."""

INPUT_NAMES = ("image_batch/placeholder_port_0", "image_batch")
OUTPUT_NAMES = ("embeddings", "InceptionResnetV1/Bottleneck/BatchNorm/Reshape_1/Normalize")
"""What Open Model Zoo documented for FaceNet; the second name of each is an alias."""


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """What a conversion made.

    Attributes
    ----------
    ir
        The .xml; the .bin lies beside it.
    contract
        The contract inside it.
    seconds
        Wall time, with all checks.
    inputs, outputs
        Names and shapes as OpenVINO prints them.
    parity
        The comparison with the source model, where one was asked for.
    """

    ir: Path
    contract: ModelContract
    seconds: float
    inputs: dict[str, str]
    outputs: dict[str, str]
    parity: ParityReport | None


def convert(
    model: str | Path,
    output_dir: Path,
    *,
    precision: Literal["fp32", "fp16"] = "fp32",
    layout: Literal["nchw", "nhwc"] = "nchw",
    color: Literal["bgr", "rgb"] = "bgr",
    batch: int | None = None,
    name: str | None = None,
    provenance: Provenance | None = None,
    parity: Callable[[Path, Path], ParityReport] | None = None,
    store: Store | None = None,
    catalog: Catalog | None = None,
) -> ConversionResult:
    """Convert a model and prove the result.

    Parameters
    ----------
    model
        Zoo name, or path of a frozen .pb, .meta, checkpoint folder or SavedModel.
    output_dir
        Receives ``<name>.xml`` and ``<name>.bin``, made if absent.
    precision
        Of the stored weights.
    layout, color
        Of the IR's input, float32 0-255.
    batch
        Static batch; None leaves it dynamic.
    name
        Name of the IR. A zoo name also picks that entry's preprocessing and alignment.
    provenance
        What is known of the weights; by default ``published`` for a zoo name, else what the graph says.
    parity
        Called with (source path, IR path); a report that did not pass fails the conversion.
    store, catalog
        Where zoo names are looked up.

    Raises
    ------
    ModelNotFoundError
        If a zoo name is unknown or not downloaded, or a path does not exist.
    ModelFormatError, ConversionError, OutputError
        If the source is bad, the IR fails a check, or it cannot be written. The folder is then as it was.
    NegativeResult
        If the IR does not compute what the source model computes.
    """
    started = time.perf_counter()
    catalog = catalog or load_catalog()
    path, entry = _find_source(model, store, catalog)
    name = name or (entry.name if entry else _name_of(path))
    _require_file_name(name)
    recipe = entry or (catalog[name] if name in catalog else catalog[DEFAULT_RECIPE])
    if recipe.framework != "tf":
        raise NotSupportedError(
            f"{recipe.name}: expected a TensorFlow model, found one of framework {recipe.framework!r}; "
            "edgeface cannot convert these yet"
        )
    if recipe.preprocessing is None or recipe.embedding is None:
        raise InputError(f"{recipe.name}: expected a face embedding model, found a {recipe.task_type}")
    if entry is None:
        log.info("%s: preprocessing and alignment of %s", path, recipe.name)
    source = load_tensorflow(path, size=recipe.preprocessing.size)
    contract_layout: Layout = "NCHW" if layout == "nchw" else "NHWC"
    contract_color: Color = "BGR" if color == "bgr" else "RGB"
    converted = adapt_input(
        source.model,
        layout=contract_layout,
        color=contract_color,
        mean=recipe.preprocessing.mean,
        scale=recipe.preprocessing.scale,
        size=recipe.preprocessing.size,
        batch=batch,
    )
    name_ports(
        converted,
        inputs=dict.fromkeys((*INPUT_NAMES, source.input)),
        outputs=dict.fromkeys((OUTPUT_NAMES[0], source.output, OUTPUT_NAMES[1])),
        layout=contract_layout,
    )
    check_structure(converted, source=str(path))
    contract = ModelContract(
        name=name,
        framework=recipe.framework,
        source_sha256=source.sha256,
        provenance="seeded" if source.seeded else provenance or ("published" if entry else "unknown"),
        input_name=INPUT_NAMES[0],
        output_name=OUTPUT_NAMES[0],
        input_size=recipe.preprocessing.size,
        layout=contract_layout,
        color=contract_color,
        value_range=(0.0, 255.0),
        mean=recipe.preprocessing.mean,
        scale=recipe.preprocessing.scale,
        embedding_dim=converted.output(0).get_partial_shape()[1].get_length(),
        metric="cosine",
        normalized=recipe.embedding.normalized,
        alignment=recipe.alignment or Alignment("none"),
        precision=_stored_precision(precision),
        converter_version=edgeface.__version__,
        openvino_version=ov.get_version(),
    )
    with staging_folder(output_dir) as staging:
        staged, contract = save_ir(converted, staging, contract)
        check_ir(staged)
        report = parity(path, staged) if parity else None
        if report is not None and not report.passed:
            raise NegativeResult(f"{path}: the IR does not compute what the model computes: {report.summary}")
        ir = publish_ir(staged, output_dir)
    return ConversionResult(
        ir=ir,
        contract=contract,
        seconds=time.perf_counter() - started,
        inputs={port.get_any_name(): str(port.get_partial_shape()) for port in converted.inputs},
        outputs={port.get_any_name(): str(port.get_partial_shape()) for port in converted.outputs},
        parity=report,
    )


def publish_ir(staged: Path, output_dir: Path) -> Path:
    """Move a finished IR out of its staging folder.

    The old .xml goes first: should the machine stop in between, there is no IR rather than half of two.
    """
    final = output_dir / staged.name
    with output_errors(final):
        final.unlink(missing_ok=True)
        os.replace(staged.with_suffix(".bin"), final.with_suffix(".bin"))
        os.replace(staged, final)
    return final


def _find_source(model: str | Path, store: Store | None, catalog: Catalog) -> tuple[Path, ModelEntry | None]:
    path = Path(model)
    if path.exists():
        return path, None
    if str(model) in catalog:
        entry = catalog[str(model)]
        if entry.framework != "tf":
            raise NotSupportedError(
                f"{entry.name}: its framework is {entry.framework!r}; edgeface converts TensorFlow models so far"
            )
        return (store or Store()).source_path(entry), entry
    if path.suffix or len(path.parts) > 1:
        raise ModelNotFoundError(f"{model}: expected a model file or folder, found nothing there")
    return path, catalog[str(model)]  # raises, naming close matches


def _name_of(path: Path) -> str:
    return path.parent.name if path.name == "saved_model.pb" else (path.name if path.is_dir() else path.stem)


def _require_file_name(name: str) -> None:
    if Path(name).name != name or name in ("", ".", ".."):
        raise InputError(f"name: expected a plain file name, found {name!r}")


def _stored_precision(precision: str) -> Precision:
    return "FP16" if precision == "fp16" else "FP32"
