"""An FP32 model, calibration inputs and a recipe in, the compressed model out: all that knows NNCF.

Post-training quantization puts a FakeQuantize in front of every operation that has an 8-bit kernel and takes its
limits from what flows there when calibration images pass (Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). Which layers stay in floating point, and how
biases are corrected, is the recipe.

Limits are the least and the greatest value that any calibration image gives. NNCF's default, the mean of each
image's, cuts off the unusual faces: on FaceNet the worst cosine of 100 held-out faces is 0.994 by the default and
0.996 by this, the 1st percentile 0.995 and 0.997.

Weights alone are rounded symmetrically, which is not NNCF's default either: FaceNet's mean cosine is then 0.9998, and
0.9978 with a zero point for each channel.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import ConversionError, ExtraNotInstalledError, InputError
from edgeface.model.lineage import Method
from edgeface.quantize.control import quantize_with_control
from edgeface.quantize.structure import is_transformer, residuals_of, tail_of

__all__ = ["BiasCorrection", "HalfRange", "Progress", "QuantizationRecipe", "check_recipe", "compress"]

BiasCorrection = Literal["fast", "accurate", "none"]
HalfRange = Literal["none", "first-layer", "all"]
Progress = Callable[[str, int, int], None]
"""Called with the name of what is going on, how far it is and of how many (0: not known)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRecipe:
    """How a model is compressed.

    Attributes
    ----------
    method
        See `Lineage.method`.
    subset
        CalibrationSet inputs that are used, the first ones.
    bias_correction
        ``fast`` corrects each bias by statistics of the FP32 network, ``accurate`` by the quantized network up to
        that layer (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019).
    half_range
        Layers whose weights use 7 of the 8 bits. AVX2, and AVX-512 without VNNI, add two products of bytes into 16
        bits, which saturate where both are large (``vpmaddubsw``); with halved weights they cannot. FaceNet on
        AVX2: mean cosine against FP32 0.973 without, 0.998 with; computed exactly, both are 0.998. So it is the
        default: an IR does not know where it will run.
    ignored
        Friendly names of operations that stay in floating point, besides those of `tail_of` and `residuals_of`.
    control
        Mean cosine against FP32 that NNCF's accuracy control keeps, by putting layers back into floating point; None
        leaves it out. It is for the INT8 methods, and tries every layer, which takes minutes.
    seed
        Of what NNCF draws at random.
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
                "accuracy control: expected a cosine from -1 to 1, and a method that quantizes activations, found "
                f"{self.control:g} for {self.method}"
            )

    @property
    def needs_images(self) -> bool:
        """Whether calibration inputs are looked at."""
        return self.method.startswith("int8")

    @property
    def settings(self) -> str:
        """All but the method that the numbers depend on: `Lineage.settings`."""
        if self.method == "fp16":
            return "OpenVINO's compression to half precision"
        parts = [f"nncf {_nncf_version()}"]
        if self.needs_images:
            parts += [f"{self.subset} images", "ranges: least and greatest"]
            parts += [f"{self.bias_correction} bias correction"]
            parts += [f"half-range weights: {self.half_range}", f"seed {self.seed}", "steps fused"]
            if self.control is not None:
                parts.append(f"accuracy control: mean cosine {self.control:g}")
        else:
            parts.append("symmetric")
        if self.ignored:
            parts.append("in floating point: " + ", ".join(sorted(self.ignored)))
        return "; ".join(parts)


def compress(
    model: ov.Model,
    inputs: Sequence[NDArray[np.float32]],
    recipe: QuantizationRecipe,
    *,
    progress: Progress | None = None,
) -> ov.Model:
    """Compress a model.

    While NNCF works, what is printed to stdout in this process is lost: NNCF draws its bars there.

    Parameters
    ----------
    model
        FP32, with one input; not changed.
    inputs
        What the model is calibrated with, one array of the input's shape each; may be empty if the method needs none.
    recipe
        How.
    progress
        Called as calibration inputs pass.

    Returns
    -------
    openvino.Model
        With the same inputs and outputs. ``fp16`` gives a copy: half precision is how it is stored.

    Raises
    ------
    ExtraNotInstalledError
        If NNCF is not installed.
    InputError
        If there are no calibration inputs, or an ignored name is none of the model's.
    ConversionError
        If NNCF cannot quantize the model.
    """
    check_recipe(model, recipe)
    if recipe.method == "fp16":
        return model.clone()
    if recipe.needs_images and not inputs:
        raise InputError("calibration: expected at least one image, found none")
    tell: Progress = progress or (lambda what, done, total: None)
    with _quiet_nncf() as nncf, _seeded(recipe.seed):
        try:
            if recipe.method == "weights":
                tell("weights", 0, 0)
                made = nncf.compress_weights(
                    model.clone(),
                    mode=nncf.CompressWeightsMode.INT8_SYM,
                    ignored_scope=_scope(nncf, recipe.ignored),
                )
            else:
                made = _quantize(nncf, model, inputs[: recipe.subset], recipe, tell)
        except (RuntimeError, nncf.InternalError, nncf.ValidationError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConversionError(f"NNCF cannot quantize this model: {reason[-1]}") from error
    _name_by_place(made)
    return made


_OVERFLOW_FIX = {"none": "disable", "first-layer": "first_layer_only", "all": "enable"}


def _name_by_place(model: ov.Model) -> None:
    """Name what NNCF added by its place in the model.

    OpenVINO names a node by counting all that the process has made: the same model would be saved differently.
    """
    for place, op in enumerate(model.get_ordered_ops()):
        if op.get_friendly_name() == op.get_name():
            op.set_friendly_name(f"{op.get_type_name()}_at_{place}")


def check_recipe(model: ov.Model, recipe: QuantizationRecipe) -> None:
    """Raise what `compress` would raise before it does anything.

    Raises
    ------
    ExtraNotInstalledError
        If NNCF is needed and not installed.
    InputError
        If an ignored name is none of the model's.
    """
    if recipe.method != "fp16":
        _nncf_version()
    known = {op.get_friendly_name() for op in model.get_ops()}
    if unknown := sorted(set(recipe.ignored) - known):
        raise InputError(f"layers kept in floating point: the model has none called {', '.join(unknown[:5])}")


def _quantize(
    nncf: Any,
    model: ov.Model,
    inputs: Sequence[NDArray[np.float32]],
    recipe: QuantizationRecipe,
    tell: Progress,
) -> ov.Model:
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    transformer = is_transformer(model)
    kept = {*recipe.ignored, *tail_of(model), *(() if transformer else residuals_of(model))}
    run = nncf.quantize
    if recipe.control is not None:
        run = partial(quantize_with_control, nncf, inputs=inputs, least_cosine=recipe.control)
    return run(
        model.clone(),
        calibration_dataset=_dataset(nncf, inputs, tell),
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


def _scope(nncf: Any, names: Iterable[str]) -> Any:
    return nncf.IgnoredScope(names=sorted(names)) if names else None


def _dataset(nncf: Any, inputs: Sequence[NDArray[np.float32]], tell: Progress) -> Any:
    passed = 0

    def count(item: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal passed
        tell("calibration", passed % len(inputs) + 1, len(inputs))
        passed += 1
        if passed % len(inputs) == 0:
            tell("bias correction", 0, 0)
        return item

    return nncf.Dataset(inputs, count)


def _nncf_version() -> str:
    try:
        return importlib.metadata.version("nncf")  # without importing it, which takes seconds
    except importlib.metadata.PackageNotFoundError as error:
        raise ExtraNotInstalledError("quantize", needed_for="quantizing") from error


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """Import NNCF, and let it neither print nor change the class of everybody's loggers."""
    logger_class = logging.getLoggerClass()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            import nncf
        except ModuleNotFoundError as error:
            raise ExtraNotInstalledError("quantize", needed_for="quantizing") from error
        finally:
            logging.setLoggerClass(logger_class)
        logger = logging.getLogger("nncf")
        for handler in list(logger.handlers):  # it writes to stdout
            logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(logging.NOTSET)  # what everybody else's level is
        yield nncf


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which NNCF draws from, for the block."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
