"""Compress a model with NNCF: INT8, 8-bit weights, or FP16 storage.

Post-training quantization puts a FakeQuantize in front of every operation that has an 8-bit kernel and takes its range
from the values that occur on calibration images (Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018). The recipe decides which layers stay in floating point and how
biases are corrected.

The range of activations is the least and the greatest value of any calibration image. NNCF's default, the mean of the
images' extremes, clips unusual faces: FaceNet's minimum cosine on 100 held-out faces is 0.994 with the default, 0.996
with this, the 1st percentile 0.995 and 0.997.

Weights alone are rounded symmetrically, also unlike NNCF's default: FaceNet's mean cosine is then 0.9998, and 0.9978
with a zero point for each channel.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import ConversionError, ExtraNotInstalledError, InputError
from edgeface.model.contract import Method
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.quantize.gate import cosines, embed

BiasCorrection = Literal["fast", "accurate", "none"]
HalfRange = Literal["none", "first-layer", "all"]

WEIGHTED = frozenset({"Convolution", "GroupConvolution", "MatMul"})
"""Operations that carry weights and nearly all of the work."""

_OVERFLOW_FIX = {"none": "disable", "first-layer": "first_layer_only", "all": "enable"}
_SCORED = 32
"""Calibration inputs on which NNCF's accuracy control scores every trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRecipe:
    """How to compress a model.

    Attributes
    ----------
    method
        See `Lineage.method`.
    subset
        Greatest number of calibration images.
    bias_correction
        ``fast`` corrects each bias by statistics of the FP32 network, ``accurate`` by the network quantized up to that
        layer (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019).
    half_range
        Layers whose weights use 7 of the 8 bits. AVX2, and AVX-512 without VNNI, add two products of bytes in 16 bits
        (``vpmaddubsw``), which can saturate; with halved weights it cannot. FaceNet's mean cosine against FP32 on AVX2
        is 0.973 without and 0.998 with it; with VNNI both are 0.998.
    ignored
        Friendly names of operations that stay in floating point, in addition to `tail_of` and `residuals_of`.
    control
        Mean cosine against FP32 that NNCF's accuracy control keeps by putting layers back into floating point; None
        turns it off. For INT8 methods only; it takes minutes.
    seed
        Seed of NNCF's random choices.
    """

    method: Method = "int8-mixed"
    subset: int = 300
    bias_correction: BiasCorrection = "fast"
    half_range: HalfRange = "all"
    ignored: tuple[str, ...] = ()
    control: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("method", self.method, Method),
            ("bias correction", self.bias_correction, BiasCorrection),
            ("half range", self.half_range, HalfRange),
        ):
            if value not in get_args(allowed):
                raise InputError(f"{what}: expected one of {', '.join(get_args(allowed))}, found {value!r}")
        if self.subset < 1:
            raise InputError(f"subset: expected at least 1 calibration image, found {self.subset}")
        if self.control is not None and not (self.needs_images and -1 <= self.control <= 1):
            raise InputError(
                "accuracy control: expected a cosine from -1 to 1 and a method that quantizes activations, found "
                f"{self.control:g} for {self.method}"
            )

    @property
    def needs_images(self) -> bool:
        """Whether the method needs calibration images."""
        return self.method.startswith("int8")

    @property
    def settings(self) -> str:
        """Everything but the method that the numbers depend on, as text for `Lineage.settings`."""
        if self.method == "fp16":
            return "OpenVINO's compression to half precision"
        text = f"nncf {_nncf_version()}; symmetric"
        if self.needs_images:
            text = (
                f"nncf {_nncf_version()}; {self.subset} images; ranges: least and greatest; "
                f"{self.bias_correction} bias correction; half-range weights: {self.half_range}; seed {self.seed}"
            )
        if self.control is not None:
            text += f"; accuracy control: mean cosine {self.control:g}"
        return text + ("; in floating point: " + ", ".join(sorted(self.ignored)) if self.ignored else "")


def compress(
    model: ov.Model,
    inputs: Sequence[NDArray[np.float32]],
    recipe: QuantizationRecipe,
    *,
    progress: ProgressCallback = ignore_progress,
) -> ov.Model:
    """Return a compressed copy of an FP32 model with one input; for ``fp16`` only the storage will differ.

    `inputs` are float32, each of the input's shape; they may be empty if the method needs none. While NNCF runs, output
    of this process to stdout is discarded, because NNCF draws progress bars there.

    Raises
    ------
    ExtraNotInstalledError
        If NNCF is not installed.
    InputError
        If there are no calibration inputs, or an ignored operation is not in the model.
    ConversionError
        If NNCF cannot quantize the model.
    """
    check_recipe(model, recipe)
    if recipe.method == "fp16":
        return model.clone()
    if recipe.needs_images and not inputs:
        raise InputError("calibration: expected at least one image, but there is none")
    with _quiet_nncf() as nncf, _seeded(recipe.seed):
        try:
            if recipe.method == "weights":
                progress(Progress("weights", 0))
                made = nncf.compress_weights(
                    model.clone(), mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=_scope(nncf, recipe.ignored)
                )
            else:
                made = _quantize(nncf, model, inputs[: recipe.subset], recipe, progress)
        except (RuntimeError, nncf.InternalError, nncf.ValidationError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConversionError(f"NNCF cannot quantize this model: {reason[-1]}") from error
    # OpenVINO's default names count all nodes of the process, so the same model would give other bytes each time.
    for place, op in enumerate(made.get_ordered_ops()):
        if op.get_friendly_name() == op.get_name():
            op.set_friendly_name(f"{op.get_type_name()}_at_{place}")
    return made


def check_recipe(model: ov.Model, recipe: QuantizationRecipe) -> None:
    """Refuse a recipe, before any work, if NNCF is needed and missing, or an ignored operation is not in the model."""
    if recipe.method != "fp16":
        _nncf_version()
    known = {op.get_friendly_name() for op in model.get_ops()}
    if unknown := sorted(set(recipe.ignored) - known):
        raise InputError(f"layers kept in floating point: the model has no operation {', '.join(unknown[:5])}")


def tail_of(model: ov.Model) -> tuple[str, ...]:
    """Return the friendly names of the operations after the last layer with weights: normalisation, a softmax.

    They take hardly any time, and 8 bits there change the output directly: FaceNet's embeddings had norms from 0.83 to
    1.17.
    """
    ordered = [op for op in model.get_ordered_ops() if op.get_type_name() not in ("Constant", "Parameter", "Result")]
    weighted = [index for index, op in enumerate(ordered) if op.get_type_name() in WEIGHTED]
    return tuple(op.get_friendly_name() for op in ordered[weighted[-1] + 1 :]) if weighted else ()


def residuals_of(model: ov.Model) -> tuple[str, ...]:
    """Return the friendly names of the additions of two computed branches.

    Quantizing them rounds the residual stream again in every block and is not faster: FaceNet's mean cosine is 0.9979
    with and 0.9982 without, its latency 15.5 and 14.9 ms.
    """
    return tuple(
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() == "Add" and not any(is_constant(port.get_node()) for port in op.input_values())
    )


def is_constant(node: Any) -> bool:
    """Whether a node is a constant, possibly behind a type conversion."""
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def is_transformer(model: ov.Model) -> bool:
    """Whether a model computes attention: OpenVINO's fused operation, or a Softmax followed by a MatMul.

    NNCF then uses its scheme for transformers, with SmoothQuant (Xiao et al., "SmoothQuant: Accurate and Efficient
    Post-Training Quantization for Large Language Models", ICML 2023).
    """
    return any(
        op.get_type_name() == "ScaledDotProductAttention"
        or (
            op.get_type_name() == "Softmax"
            and any(port.get_node().get_type_name() == "MatMul" for port in op.output(0).get_target_inputs())
        )
        for op in model.get_ops()
    )


def _quantize(
    nncf: Any,
    model: ov.Model,
    inputs: Sequence[NDArray[np.float32]],
    recipe: QuantizationRecipe,
    progress: ProgressCallback,
) -> ov.Model:
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    transformer = is_transformer(model)
    kept = {*recipe.ignored, *tail_of(model), *(() if transformer else residuals_of(model))}
    run = nncf.quantize
    if recipe.control is not None:
        run = partial(_quantize_with_control, nncf, inputs=inputs, least_cosine=recipe.control)
    return run(
        model.clone(),
        calibration_dataset=_dataset(nncf, inputs, progress),
        preset=nncf.QuantizationPreset(recipe.method.removeprefix("int8-")),
        subset_size=len(inputs),
        fast_bias_correction=recipe.bias_correction != "accurate",
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        ignored_scope=_scope(nncf, kept),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix(_OVERFLOW_FIX[recipe.half_range]),
            disable_bias_correction=recipe.bias_correction == "none",
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        ),
    )


def _quantize_with_control(
    nncf: Any,
    model: ov.Model,
    calibration_dataset: Any,
    inputs: Sequence[NDArray[np.float32]],
    least_cosine: float,
    **options: Any,
) -> ov.Model:
    """Quantize with NNCF's accuracy control, which puts layers back into floating point until the score is kept.

    The score is the mean cosine against the FP32 embeddings of some calibration inputs, so no labels are needed.
    """
    scored = list(range(min(_SCORED, len(inputs))))
    expected = embed(model, [inputs[index] for index in scored])

    def score(compiled: Any, numbers: Iterable[int]) -> tuple[float, list[float]]:
        request = compiled.create_infer_request()
        chosen = list(numbers)
        found = np.concatenate([request.infer({0: inputs[index]})[0].copy() for index in chosen])
        each = cosines(expected[chosen], found)
        return float(each.mean()), [float(one) for one in each]

    return nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=calibration_dataset,
        validation_dataset=nncf.Dataset(scored),
        validation_fn=score,
        max_drop=1 - least_cosine,
        drop_type=nncf.DropType.ABSOLUTE,
        advanced_quantization_parameters=options.pop("advanced_parameters"),
        **options,
    )


def _scope(nncf: Any, names: Iterable[str]) -> Any:
    return nncf.IgnoredScope(names=sorted(names)) if names else None


def _dataset(nncf: Any, inputs: Sequence[NDArray[np.float32]], progress: ProgressCallback) -> Any:
    passed = 0

    def count(item: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal passed
        progress(Progress("calibration", passed % len(inputs) + 1, len(inputs), unit="images"))
        passed += 1
        if passed % len(inputs) == 0:
            progress(Progress("bias correction", 0))
        return item

    return nncf.Dataset(inputs, count)


def _nncf_version() -> str:
    try:
        return importlib.metadata.version("nncf")  # without importing it, which takes seconds
    except importlib.metadata.PackageNotFoundError as error:
        raise ExtraNotInstalledError("quantize", needed_for="quantizing") from error


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """Import NNCF without letting it print or replace the logger class of the process."""
    logger_class = logging.getLoggerClass()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            import nncf
        except ModuleNotFoundError as error:
            raise ExtraNotInstalledError("quantize", needed_for="quantizing") from error
        finally:
            logging.setLoggerClass(logger_class)
        logger = logging.getLogger("nncf")
        logger.handlers.clear()  # they write to stdout
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
        yield nncf


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which NNCF uses, and restore it afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
