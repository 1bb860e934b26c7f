"""Convert a published model into an IR with a contract.

Nothing appears in the output folder before the IR was read back and checked in a fresh process.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import openvino as ov

from edgeface.convert.ir import (
    FreshProcessCheck,
    adapt_input,
    check_structure,
    fold_constants,
    name_ports,
    publish_ir,
    save_ir,
)
from edgeface.convert.parity import (
    ParityReport,
    draw_faces,
    fingerprint_of,
    fits_fingerprint,
    recognise,
    run_model,
    to_input,
)
from edgeface.convert.recipe import Recipe, RecipeParts, is_raw, parts_of, require_agreement
from edgeface.convert.source import SourceModel
from edgeface.errors import ConversionError, InputError, ModelNotFoundError, NegativeResult, NotSupportedError
from edgeface.files import require_writable, sha256_of, staging_folder, stopwatch
from edgeface.model.contract import Color, Layout, ModelContract, Precision, Provenance
from edgeface.model.liveness_contract import LivenessContract
from edgeface.model.opset import ops
from edgeface.version import __version__
from edgeface.zoo.catalog import Catalog, load_catalog
from edgeface.zoo.default import default_name, record_first_default
from edgeface.zoo.downloads import take_installed
from edgeface.zoo.schema import ModelEntry
from edgeface.zoo.store import ModelStore

log = logging.getLogger(__name__)

DLIB_RECIPE = "dlib-face-recognition-resnet-v1"
"""Zoo entry whose recipe a dlib network from a file gets."""

DEFAULT_RECIPE = "facenet-20180408-102900"
"""Zoo entry whose recipe a FaceNet from a file gets, unless its name is a zoo name or a recipe is given."""

INPUT_NAMES = ("image_batch/placeholder_port_0", "image_batch")
OUTPUT_NAMES = ("embeddings", "InceptionResnetV1/Bottleneck/BatchNorm/Reshape_1/Normalize")
"""What Open Model Zoo documented for FaceNet; the second name of each is an alias."""

Reader = Callable[[Path, Recipe], SourceModel]


@dataclass(frozen=True, slots=True)
class Format:
    """A format of model files: its reader, and the zoo entry whose recipe a file of it gets; None: there is none."""

    reader: Reader
    default_recipe: str | None


def format_of(path: Path) -> Format:
    """Return the format of a file or folder, by its suffix or what the folder holds.

    Raises NotSupportedError for the suffix of a framework that cannot be converted.
    """
    suffix = path.suffix.lower()
    if suffix in _OTHER_FRAMEWORKS:
        raise NotSupportedError(
            f"{path}: expected a model that can be converted, found one of {_OTHER_FRAMEWORKS[suffix]}; "
            "edgeface converts TensorFlow, ONNX, PyTorch, dlib and OpenFace models so far"
        )
    if suffix == ".xml":
        raise NotSupportedError(
            f"{path}: expected a model to convert, found an OpenVINO IR; edgeface inspect shows what it holds, and "
            "edgeface adopt adds a contract to one of another tool"
        )
    if suffix in _NO_MODELS:
        raise NotSupportedError(f"{path}: expected {_FORMATS}, found a {suffix} file")
    if suffix == ".dat":
        return Format(_read_dlib, DLIB_RECIPE)
    if suffix == ".onnx":
        return Format(_read_onnx, None)
    if suffix in (".h5", ".hdf5") or _holds_openface(path):
        return Format(_read_openface, "openface-nn4-small2")
    if suffix in (".pt", ".pth"):
        return Format(_read_pytorch, "inception-resnet-v1-vggface2")
    return Format(_read_tensorflow, DEFAULT_RECIPE)


def _read_tensorflow(path: Path, recipe: Recipe) -> SourceModel:
    from edgeface.convert.tensorflow import load_tensorflow

    if recipe.size is None:
        raise InputError(f"{path}: expected a recipe with the size of a crop, found none; pass --size")
    return load_tensorflow(path, size=recipe.size)


def _read_dlib(path: Path, recipe: Recipe) -> SourceModel:
    from edgeface.convert.dlib import load_dlib

    return load_dlib(path, recipe)


def _read_onnx(path: Path, recipe: Recipe) -> SourceModel:
    from edgeface.convert.onnx import load_onnx

    return load_onnx(path, recipe)


def _holds_openface(path: Path) -> bool:
    from edgeface.convert.openface import is_openface_folder

    return is_openface_folder(path)


def _read_openface(path: Path, recipe: Recipe) -> SourceModel:
    from edgeface.convert.openface import load_openface

    return load_openface(path, recipe)


def _read_pytorch(path: Path, recipe: Recipe) -> SourceModel:
    from edgeface.convert.pytorch import load_pytorch

    return load_pytorch(path, recipe)


_FORMATS = "a TensorFlow, ONNX (.onnx), PyTorch (.pt, .pth), dlib (.dat) or OpenFace (.h5) model"
_PICTURES = (".avi", ".bmp", ".gif", ".jpeg", ".jpg", ".mkv", ".mov", ".mp4", ".png", ".tif", ".tiff", ".webp")
_NO_MODELS = frozenset((*_PICTURES, ".bin", ".csv", ".json", ".npy", ".npz", ".py", ".toml", ".txt", ".yaml", ".yml"))
_OTHER_FRAMEWORKS = {".keras": "Keras", ".tflite": "TensorFlow Lite"}


class RecipeVerdict(Protocol):
    """Answer of a check of the recipe on photos (`edgeface.evaluate.check_recipe`); false if the recipe loses."""

    def __bool__(self) -> bool: ...

    @property
    def summary(self) -> str:
        """The answer in one line."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""


RecipeChecker = Callable[[Path, Color], RecipeVerdict]
"""Called with an IR and the channel order that its model expects."""


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
    check
        The comparison of the recipe with its neighbours, if requested.
    became_default
        Whether the model was not the default one before and is now.
    """

    ir: Path
    contract: ModelContract | LivenessContract
    seconds: float
    inputs: dict[str, str]
    outputs: dict[str, str]
    parity: ParityReport | None
    check: RecipeVerdict | None = None
    became_default: bool = False


def convert(
    model: str | Path,
    output_dir: Path | None = None,
    *,
    precision: Literal["fp32", "fp16"] = "fp32",
    layout: Literal["nchw", "nhwc"] = "nchw",
    color: Literal["bgr", "rgb"] = "bgr",
    batch: int | None = None,
    name: str | None = None,
    recipe: RecipeParts | None = None,
    parity: Callable[[Path, Path], ParityReport] | None = None,
    accept_licence: bool = False,
    check_recipe: RecipeChecker | None = None,
    force: bool = False,
    store: ModelStore | None = None,
    catalog: Catalog | None = None,
) -> ConversionResult:
    """Convert a model and check the result.

    Parameters
    ----------
    model
        Zoo name, or path of a frozen .pb, .meta, checkpoint folder, SavedModel, .onnx, PyTorch state dictionary (.pt,
        .pth), dlib's .dat, OpenFace's .h5 or folder of CSV files. For a file or folder in the working directory whose
        name is a zoo name, write ``./name``.
    output_dir
        Receives ``<name>.xml`` and ``<name>.bin``, made if absent. By default the model store, where an IR
        becomes the default model if there is none; only an IR with the default layout, colour and batch goes there.
    precision
        Precision of the stored weights.
    layout, color
        Layout and channel order of the IR's input, float32 0-255.
    batch
        Static batch; None leaves it dynamic.
    name
        Name of the IR. A zoo name also picks that entry's preprocessing and alignment.
    recipe
        Parts of the recipe that replace those of the zoo entry, or that a file without one needs.
    parity
        Called with (source path, IR path); a report that did not pass fails the conversion.
    accept_licence
        Accept the licence of a zoo model; one for non-commercial use is refused until it was.
    check_recipe, force
        Compares the recipe with its neighbours; a recipe that loses fails the conversion unless `force`.
    store, catalog
        The store and the catalog for zoo names.

    Raises
    ------
    ModelNotFoundError
        If a zoo name is unknown or not downloaded, or a path does not exist.
    ModelFormatError, ConversionError, OutputError
        If the source is bad, the IR fails a check, or it cannot be written. The folder is then unchanged.
    NegativeResult
        If the IR does not compute what the source model computes, or the recipe loses against a neighbour.
    """
    catalog = catalog or load_catalog()
    told = recipe or RecipeParts()
    path, entry = _find_source(model, store, catalog)
    name = next(each for each in (name, told.name, entry.name if entry else _name_of(path)) if each is not None)
    require_plain_name(name)
    in_store = output_dir is None
    if output_dir is None:
        if (layout, color, batch) != ("nchw", "bgr", None):
            raise InputError(
                expected="an output folder",
                found="none",
                remedy="pass --output-dir; the model store keeps only IRs of the default layout, colour and batch",
            )
        output_dir = (store or ModelStore()).ir_path(name, precision=precision).parent
    require_licence(path, entry, name, catalog, store=store, accept=accept_licence)
    if (liveness := _find_liveness(path, entry or catalog.get(name), catalog)) is not None:
        if (layout, color, batch, parity, check_recipe) != ("nchw", "bgr", None, None, None) or told.told():
            raise InputError(
                f"{path}: a liveness model has one input, which its contract states, and no recipe: pass --output-dir, "
                "--precision and --name only"
            )
        require_writable(output_dir)
        return _convert_liveness(path, liveness, name, output_dir, precision=_PRECISIONS[precision])
    complete = find_recipe(path, name, entry, told, catalog)
    require_writable(output_dir)
    before = default_name(store=store) if in_store else None
    result = _convert_source(
        format_of(path).reader,
        path,
        complete,
        output_dir,
        precision=precision,
        layout=layout,
        color=color,
        batch=batch,
        parity=parity,
        check_recipe=check_recipe,
        force=force,
        catalog=catalog,
    )
    if in_store and result.contract.provenance != "seeded":
        record_first_default(result.ir, store=store)
        return dataclasses.replace(result, became_default=default_name(store=store) == name != before)
    return result


def _find_liveness(path: Path, entry: ModelEntry | None, catalog: Catalog) -> ModelEntry | None:
    """Return the zoo entry of a liveness model, by its name or its digest; None if the file is of another kind."""
    if entry is not None or path.suffix.lower() not in (".pt", ".pth") or not path.is_file():
        return entry if entry is not None and entry.liveness is not None else None
    of_that_size = [
        each for each in catalog.values() if each.liveness and each.files[0].size in (None, path.stat().st_size)
    ]
    digest = sha256_of(path) if of_that_size else ""
    return next((each for each in of_that_size if each.conversion and each.conversion.sha256 == digest), None)


def _convert_liveness(
    path: Path, entry: ModelEntry, name: str, output_dir: Path, *, precision: Precision
) -> ConversionResult:
    """Convert a liveness model as its zoo entry describes it."""
    from edgeface.convert.minifasnet import load_minifasnet

    told, spec = entry.preprocessing, entry.liveness
    assert spec is not None
    if told is None or told.size is None or not is_raw(told):
        raise InputError(f"{entry.name}: expected preprocessing with a size, mean 0 and scale 1 of a liveness model")
    with stopwatch() as elapsed, FreshProcessCheck() as check:
        source = load_minifasnet(path, size=told.size, classes=len(spec.classes))
        name_ports(source.model, inputs=["image"], outputs=["probabilities"], layout="NCHW")
        fold_constants(source.model)
        known = entry.conversion is not None and entry.conversion.sha256 == source.sha256
        contract = LivenessContract(
            name=name,
            framework=source.framework,
            source_sha256=source.sha256,
            weights_id=source.weights_id,
            provenance="published" if known else "unknown",
            input_name="image",
            output_name="probabilities",
            input_size=told.size,
            layout=told.layout,
            color=told.color,
            value_range=told.value_range,
            crop_scale=spec.crop_scale,
            crop="shifted",
            classes=spec.classes,
            precision=precision,
            converter_version=__version__,
            openvino_version=ov.get_version(),
        )
        with staging_folder(output_dir) as staging:
            staged, contract = save_ir(source.model, staging, contract)
            check(staged)
            ir = publish_ir(staged, output_dir)
    return ConversionResult(
        ir=ir,
        contract=contract,
        seconds=elapsed(),
        inputs={contract.input_name: str(source.model.input(0).get_partial_shape())},
        outputs={contract.output_name: str(source.model.output(0).get_partial_shape())},
        parity=None,
    )


def require_licence(
    path: Path, entry: ModelEntry | None, name: str, catalog: Catalog, *, store: ModelStore | None, accept: bool
) -> None:
    """Require that the licence of the zoo model that a file is, by its name or its digest, was accepted.

    Raises InputError if it is for non-commercial use only and was not.
    """
    known = entry or catalog.get(name)
    for other in catalog.values() if known is None and path.is_file() else ():
        for file in other.files if other.non_commercial else ():
            # the size spares reading other files
            if file.size == path.stat().st_size and file.digests.get("sha256") == sha256_of(path):
                known = other
    if known is not None:
        (store or ModelStore()).require_license(known, accept=accept)


def convert_module(module: Any, output_dir: Path, *, recipe: RecipeParts) -> ConversionResult:
    """Convert a PyTorch recogniser that the caller has built in Python; torch must be installed.

    The IR is FP32, NCHW, BGR, of any batch, and is checked as that of `convert` is.

    Parameters
    ----------
    module
        A `torch.nn.Module` that takes float32 images (B, 3, H, W), or (B, H, W, 3) if the recipe's layout is NHWC, and
        returns embeddings (B, D). It is traced in evaluation mode, on the CPU.
    output_dir
        Receives ``<name>.xml`` and ``<name>.bin``, made if absent.
    recipe
        The whole recipe of the module, its name and size included.

    Raises
    ------
    ExtraNotInstalledError
        If torch is not installed.
    InputError
        If the recipe is incomplete.
    ConversionError, OutputError
        If the module cannot be traced, the IR fails a check, or it cannot be written. The folder is then unchanged.
    """
    from edgeface.convert.pytorch import load_module

    return _convert_source(
        lambda _, complete: load_module(module, complete),
        Path(type(module).__name__),
        recipe.complete(),
        output_dir,
        catalog=load_catalog(),
    )


def _convert_source(
    reader: Reader,
    path: Path,
    complete: Recipe,
    output_dir: Path,
    *,
    precision: Literal["fp32", "fp16"] = "fp32",
    layout: Literal["nchw", "nhwc"] = "nchw",
    color: Literal["bgr", "rgb"] = "bgr",
    batch: int | None = None,
    parity: Callable[[Path, Path], ParityReport] | None = None,
    check_recipe: RecipeChecker | None = None,
    force: bool = False,
    catalog: Catalog,
) -> ConversionResult:
    """Convert what `reader` returns for the complete recipe; `path` names the source in errors."""
    with stopwatch() as elapsed, FreshProcessCheck() as check:
        source = reader(path, complete)
        size = complete.size or size_of(source, path)
        if source.normalized is None and not complete.normalized:
            source = dataclasses.replace(source, normalized=_has_unit_rows(source, complete, size))
        raw, normalized = finish_output(source, complete, path=path)
        converted = adapt_input(
            raw,
            layout=_LAYOUTS[layout],
            color=_COLORS[color],
            mean=complete.mean,
            scale=complete.scale,
            size=size,
            batch=batch,
            model_layout=source.layout,
            model_color=complete.color,
        )
        outputs = (OUTPUT_NAMES[0], source.output, OUTPUT_NAMES[1])
        name_ports(converted, inputs=(*INPUT_NAMES, source.input), outputs=outputs, layout=_LAYOUTS[layout])
        check_structure(converted, source=str(path))
        contract = describe(
            source,
            complete,
            converted,
            size=size,
            layout=_LAYOUTS[layout],
            color=_COLORS[color],
            precision=_PRECISIONS[precision],
            normalized=normalized,
            catalog=catalog,
        )
        contract = _identify(contract, converted, catalog)
        with staging_folder(output_dir) as staging:
            staged, contract = save_ir(converted, staging, contract)
            check(staged)
            seconds = elapsed()
            report = parity(path, staged) if parity else None
            if report is not None and not report.passed:
                raise NegativeResult(f"{path}: the IR's output differs from the original model's: {report.summary}")
            verdict = measure_recipe(check_recipe, staged, complete.color, source=path, force=force)
            ir = publish_ir(staged, output_dir)
    return ConversionResult(
        ir=ir,
        contract=contract,
        seconds=seconds,
        inputs={contract.input_name: str(converted.input(0).get_partial_shape())},
        outputs={contract.output_name: str(converted.output(0).get_partial_shape())},
        parity=report,
        check=verdict,
    )


def describe(
    source: SourceModel,
    recipe: Recipe,
    model: ov.Model,
    *,
    size: tuple[int, int],
    layout: Layout,
    color: Color,
    precision: Precision,
    normalized: bool,
    catalog: Catalog,
) -> ModelContract:
    """Return the contract of a finished model, whose input has this size, layout and colour order."""
    return ModelContract(
        name=recipe.name,
        framework=source.framework,
        source_sha256=source.sha256,
        weights_id=source.weights_id,
        provenance=provenance_of(source, catalog),
        input_name=INPUT_NAMES[0],
        output_name=OUTPUT_NAMES[0],
        input_size=size,
        layout=layout,
        color=color,
        value_range=(0.0, 255.0),
        mean=recipe.mean,
        scale=recipe.scale,
        embedding_dim=model.output(0).get_partial_shape()[1].get_length(),
        metric="cosine",
        normalized=normalized,
        alignment=recipe.alignment,
        precision=precision,
        converter_version=__version__,
        openvino_version=ov.get_version(),
    )


def measure_recipe(
    check: RecipeChecker | None, ir: Path, color: Color, *, source: Path, force: bool
) -> RecipeVerdict | None:
    """Check the recipe of an IR that is not published yet; raise NegativeResult if it loses, unless `force`."""
    verdict = check(ir, color) if check else None
    if verdict is not None and not verdict and not force:
        raise NegativeResult(f"{source}: {verdict.summary}; correct the recipe, or pass --force to keep it")
    return verdict


_LAYOUTS: dict[str, Layout] = {"nchw": "NCHW", "nhwc": "NHWC"}
_COLORS: dict[str, Color] = {"bgr": "BGR", "rgb": "RGB"}
_PRECISIONS: dict[str, Precision] = {"fp32": "FP32", "fp16": "FP16"}


def find_recipe(path: Path, name: str, entry: ModelEntry | None, told: RecipeParts, catalog: Catalog) -> Recipe:
    """Return the recipe of a model file: its zoo entry's, or its format's default, with what the caller told.

    Raises InputError with the options that are missing, or that contradict the zoo entry of that name.
    """
    known = entry or catalog.get(name)
    if known is not None:
        require_agreement(told, known)
    elif (default := format_of(path).default_recipe) is not None:
        known = catalog[default]
        log.info("%s: preprocessing and alignment are those of %s", path, known.name)
    base = parts_of(known) if known is not None else RecipeParts()
    recipe = base.complete(told, RecipeParts(name=name))
    if recipe.lrn is not None and format_of(path).reader is not _read_openface:
        raise InputError(path=path, expected="an OpenFace model, where a recipe says lrn", found="another model")
    return recipe


def _identify(contract: ModelContract, model: ov.Model, catalog: Catalog) -> ModelContract:
    """Return the contract with the weights' published identity, if the source file or the embeddings have one."""
    for entry in catalog.values():
        if (known := entry.conversion) and known.weights_id and known.sha256 == contract.source_sha256:
            return dataclasses.replace(contract, weights_id=known.weights_id)
    if contract.provenance != "unknown" or not any(fits_fingerprint(contract, entry) for entry in catalog.values()):
        return contract
    crops = to_input(draw_faces(contract.input_size), layout=contract.layout, color=contract.color)
    return recognise(contract, fingerprint_of(run_model(model, crops)), catalog.values())


def provenance_of(source: SourceModel, catalog: Catalog) -> Provenance:
    """Return ``published`` if the digest of the file is a published one, else what the file says."""
    if source.seeded:
        return "seeded"
    known = {each.conversion.sha256 for each in catalog.values() if each.conversion}
    return "published" if source.sha256 in known else "unknown"


def _has_unit_rows(source: SourceModel, recipe: Recipe, size: tuple[int, int]) -> bool:
    """Whether drawn faces, standardised as the recipe says, get embeddings of unit length."""
    crops = to_input(draw_faces(size), layout="NHWC", color=recipe.color)
    images = ((crops - np.array(recipe.mean)) / np.array(recipe.scale)).astype(np.float32)
    if source.layout == "NCHW":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return bool(np.allclose(np.linalg.norm(run_model(source.model, images), axis=1), 1, atol=1e-3))


def finish_output(source: SourceModel, recipe: Recipe, *, path: Path) -> tuple[ov.Model, bool]:
    """Normalise the output if the recipe wants it; return the model, and whether its rows have unit length.

    Raises ConversionError if the recipe says that they do not, and the source model normalises them itself.
    """
    if recipe.normalized is False and source.normalized:
        raise ConversionError(
            f"{path}: expected a model whose embeddings are not of unit length (--raw), found one that normalises them"
        )
    if recipe.normalized and source.normalized is False:
        model = source.model
        (result,) = model.get_results()
        rows = result.input_value(0)
        unit = ops.normalize_l2(rows, ops.constant(np.array([1])), 1e-12, "max")
        result.input(0).replace_source_output(unit.output(0))
        return model, True
    return source.model, bool(source.normalized) if recipe.normalized is None else recipe.normalized


def require_plain_name(name: str) -> None:
    """Raise InputError if a name cannot be that of an IR, in the folder that was asked for."""
    if Path(name).name != name or name in ("", ".", "..") or not name.isprintable():
        raise InputError(f"name: expected a plain file name, found {name!r}")


def _find_source(model: str | Path, store: ModelStore | None, catalog: Catalog) -> tuple[Path, ModelEntry | None]:
    path = Path(model)
    if isinstance(model, str) and model in catalog:  # also beside a folder of that name
        entry = catalog[model]
        if entry.liveness is None:
            parts_of(entry)  # what cannot be converted need not be downloaded first
        format_of(Path(entry.conversion.source if entry.conversion else entry.name))
        store = store or ModelStore()
        take_installed(entry, store)
        return store.source_path(entry), entry
    format_of(path)  # what cannot be converted need not exist
    if path.exists():
        return path, None
    if path.suffix or len(path.parts) > 1:
        raise ModelNotFoundError(f"{model}: expected a model file or folder, found nothing there")
    return path, catalog[str(model)]  # raises, naming close matches


def size_of(source: SourceModel, path: Path) -> tuple[int, int]:
    """Return the (height, width) that a source model's input has."""
    axes = list(source.model.input(0).get_partial_shape())[1:]
    height, width = axes[:2] if source.layout == "NHWC" else axes[1:]
    if height.is_dynamic or width.is_dynamic:
        raise InputError(f"{path}: it takes images of any size; pass the size of its crops with --size")
    return height.get_length(), width.get_length()


def _name_of(path: Path) -> str:
    path = path.resolve()
    return path.parent.name if path.name == "saved_model.pb" else (path.name if path.is_dir() else path.stem)
