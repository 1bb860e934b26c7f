"""An FP32 model, calibration inputs and a recipe in, the compressed model out: all that knows NNCF.

Post-training quantization puts a FakeQuantize in front of every operation that has an 8-bit kernel and takes its
limits from what flows there when calibration images pass (Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). Which layers stay in floating point, and how
biases are corrected, is the recipe.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import ConversionError, ExtraNotInstalledError, InputError
from edgeface.lineage import Method

__all__ = ["WEIGHTED", "BiasCorrection", "HalfRange", "Progress", "Recipe", "compress", "is_transformer", "tail_of"]

BiasCorrection = Literal["fast", "accurate", "none"]
HalfRange = Literal["none", "first-layer", "all"]
Progress = Callable[[str, int, int], None]
"""Called with the name of what is going on, how far it is and of how many (0: not known)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is compressed.

    Attributes
    ----------
    method
        See `Lineage.method`.
    subset
        Calibration inputs that are used, the first ones.
    bias_correction
        ``fast`` corrects each bias by statistics of the FP32 network, ``accurate`` by the quantized network up to
        that layer (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019).
    half_range
        Layers whose weights use 7 of the 8 bits. AVX2, and AVX-512 without VNNI, add two products of bytes into 16
        bits, which saturate where both are large (``vpmaddubsw``); with halved weights they cannot. FaceNet on
        AVX2: mean cosine against FP32 0.973 without, 0.998 with; computed exactly, both are 0.998. So it is the
        default: an IR does not know where it will run.
    ignored
        Friendly names of operations that stay in floating point, besides those of `tail_of`.
    seed
        Of what NNCF draws at random.
    """

    method: Method = "int8-mixed"
    subset: int = 300
    bias_correction: BiasCorrection = "fast"
    half_range: HalfRange = "all"
    ignored: tuple[str, ...] = ()
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

    @property
    def needs_images(self) -> bool:
        """Whether calibration inputs are looked at."""
        return self.method.startswith("int8")

    @property
    def settings(self) -> str:
        """All but the method that the numbers depend on: `Lineage.settings`."""
        if self.method == "fp16":
            return "OpenVINO's compression to half precision"
        import nncf

        parts = [f"nncf {nncf.__version__}"]
        if self.needs_images:
            parts += [f"{self.subset} images", f"{self.bias_correction} bias correction"]
            parts += [f"half-range weights: {self.half_range}", f"seed {self.seed}"]
        if self.ignored:
            parts.append("in floating point: " + ", ".join(sorted(self.ignored)))
        return "; ".join(parts)


def compress(
    model: ov.Model,
    inputs: Sequence[NDArray[np.float32]],
    recipe: Recipe,
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
        With the same inputs and outputs. ``fp16`` gives the model back unchanged, since it is a way of storing it.

    Raises
    ------
    ExtraNotInstalledError
        If NNCF is not installed.
    InputError
        If there are no calibration inputs, or an ignored name is none of the model's.
    ConversionError
        If NNCF cannot quantize the model.
    """
    _require_names(model, recipe.ignored)
    if recipe.method == "fp16":
        return model
    if recipe.needs_images and not inputs:
        raise InputError("calibration: expected at least one image, found none")
    tell: Progress = progress or (lambda what, done, total: None)
    with _quiet_nncf() as nncf, _seeded(recipe.seed):
        try:
            if recipe.method == "weights":
                tell("weights", 0, 0)
                scope = nncf.IgnoredScope(names=sorted(recipe.ignored)) if recipe.ignored else None
                return nncf.compress_weights(
                    model.clone(), mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=scope
                )
            scope = nncf.IgnoredScope(names=sorted({*recipe.ignored, *tail_of(model)}))
            return nncf.quantize(
                model.clone(),
                _dataset(nncf, inputs[: recipe.subset], recipe, tell),
                preset=nncf.QuantizationPreset(recipe.method.removeprefix("int8-")),
                subset_size=min(recipe.subset, len(inputs)),
                fast_bias_correction=recipe.bias_correction != "accurate",
                model_type=nncf.ModelType.TRANSFORMER if is_transformer(model) else None,
                ignored_scope=scope,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=_OVERFLOW_FIX[recipe.half_range],
                    disable_bias_correction=recipe.bias_correction == "none",
                ),
            )
        except (RuntimeError, nncf.InternalError, nncf.ValidationError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConversionError(f"NNCF cannot quantize this model: {reason[-1]}") from error


def tail_of(model: ov.Model) -> tuple[str, ...]:
    """Friendly names of what follows the last layer with weights: scaling to unit length, a softmax.

    It is no work to speak of, and 8 bits there go straight into the answer: FaceNet's embeddings came out with
    lengths from 0.83 to 1.17.
    """
    ordered = [op for op in model.get_ordered_ops() if op.get_type_name() not in ("Constant", "Parameter", "Result")]
    weighted = [index for index, op in enumerate(ordered) if op.get_type_name() in WEIGHTED]
    return tuple(op.get_friendly_name() for op in ordered[weighted[-1] + 1 :]) if weighted else ()


def is_transformer(model: ov.Model) -> bool:
    """Whether attention is computed: a Softmax, or OpenVINO's fused operation, whose result is multiplied by values.

    NNCF then quantizes by a scheme of its own, with SmoothQuant (Xiao et al., "SmoothQuant: Accurate and Efficient
    Post-Training Quantization for Large Language Models", ICML 2023).
    """
    for op in model.get_ops():
        if op.get_type_name() == "ScaledDotProductAttention":
            return True
        if op.get_type_name() == "Softmax":
            readers = [port.get_node() for port in op.output(0).get_target_inputs()]
            if any(reader.get_type_name() == "MatMul" for reader in readers):
                return True
    return False


WEIGHTED = frozenset({"Convolution", "GroupConvolution", "MatMul"})
"""Operations that carry weights and nearly all of the work."""
_OVERFLOW_FIX = {"none": "disable", "first-layer": "first_layer_only", "all": "enable"}


def _require_names(model: ov.Model, names: Sequence[str]) -> None:
    known = {op.get_friendly_name() for op in model.get_ops()}
    if unknown := sorted(set(names) - known):
        raise InputError(f"layers kept in floating point: the model has none called {', '.join(unknown[:5])}")


def _dataset(nncf: Any, inputs: Sequence[NDArray[np.float32]], recipe: Recipe, tell: Progress) -> Any:
    passed = 0

    def count(item: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal passed
        tell("calibration", passed % len(inputs) + 1, len(inputs))
        passed += 1
        if passed % len(inputs) == 0:
            tell("bias correction", 0, 0)
        return item

    return nncf.Dataset(inputs, count)


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
