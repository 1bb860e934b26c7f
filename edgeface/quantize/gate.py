"""Compare the embeddings of a compressed model with FP32's and decide whether the model is accepted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import ConversionError, DeviceError, InputError
from edgeface.model.contract import MAX_ACCURACY_DROP, MIN_AGREEING_COSINE, ModelContract

_NORM_TOLERANCE = 1e-3
_CAPABILITIES = {"bf16": "BF16", "f16": "FP16"}
"""Values of `INFERENCE_PRECISION_HINT`, and their names in `OPTIMIZATION_CAPABILITIES`."""

Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationLimits:
    """Limits that a compressed model must keep.

    `max_drop` is the greatest drop of verification accuracy on labelled pairs, in [0, 1), `min_cosine` the least cosine
    between the FP32 and the compressed embedding of any held-out face.
    """

    max_drop: float = MAX_ACCURACY_DROP
    min_cosine: float = MIN_AGREEING_COSINE

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1 or not -1 <= self.min_cosine <= 1:
            raise InputError(
                "limits: expected a drop of accuracy from 0 to 1 and a cosine from -1 to 1, found "
                f"{self.max_drop} and {self.min_cosine}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Agreement of two models on held-out faces.

    Attributes
    ----------
    min_cosine, p01_cosine, mean_cosine
        Minimum, 1st percentile and mean of the cosine between the two embeddings of a face.
    max_distance_change, p99_distance_change, mean_distance_change
        Absolute change of the squared Euclidean distance (0 to 4) between two faces, over all pairs of faces.
    shortest, longest
        Least and greatest norm of the compressed embeddings.
    """

    faces: int
    min_cosine: float
    p01_cosine: float
    mean_cosine: float
    max_distance_change: float
    p99_distance_change: float
    mean_distance_change: float
    shortest: float
    longest: float


def measure_fidelity(expected: Vectors, found: Vectors) -> Fidelity:
    """Compare the embeddings of two models, (N, D) each, N at least 1, row by row.

    Raises
    ------
    InputError
        If the shapes differ or there is no row.
    ConversionError
        If a value of `found` is not finite or a row is all zeros.

    Examples
    --------
    >>> measure_fidelity(np.eye(2), np.array([[1, 0], [0.6, 0.8]])).min_cosine
    0.8
    """
    if expected.shape != found.shape or expected.ndim != 2 or not len(expected):
        raise InputError(f"fidelity: expected two arrays of one shape (N, D), found {expected.shape} and {found.shape}")
    lengths = np.linalg.norm(found.astype(np.float64), axis=1)
    if not np.isfinite(found).all() or not lengths.all():
        raise ConversionError(
            "the compressed model gives embeddings that are not finite or zero; keep more layers in floating point"
        )
    cosine, a, b = cosines(expected, found), _unit(expected), _unit(found)
    upper = np.triu_indices(len(a), 1)
    change = 2 * np.abs((a @ a.T)[upper] - (b @ b.T)[upper]) if len(a) > 1 else np.zeros(1)
    return Fidelity(
        faces=len(a),
        min_cosine=float(cosine.min()),
        p01_cosine=float(np.percentile(cosine, 1)),
        mean_cosine=float(cosine.mean()),
        max_distance_change=float(change.max()),
        p99_distance_change=float(np.percentile(change, 99)),
        mean_distance_change=float(change.mean()),
        shortest=float(lengths.min()),
        longest=float(lengths.max()),
    )


def judge_fidelity(fidelity: Fidelity, contract: ModelContract, limits: QuantizationLimits) -> tuple[str, ...]:
    """Return why the embeddings of held-out faces rule a model out; empty if the model is accepted."""
    reasons = []
    if not fidelity.min_cosine >= limits.min_cosine:  # NaN is refused too
        reasons.append(
            f"cosine against FP32: expected at least {limits.min_cosine:g} for each of {fidelity.faces} held-out "
            f"faces, found {fidelity.min_cosine:.5f} (mean {fidelity.mean_cosine:.5f})"
        )
    off = max(abs(fidelity.shortest - 1), abs(fidelity.longest - 1))
    if contract.normalized and not off <= _NORM_TOLERANCE:
        reasons.append(
            f"embeddings: expected unit norm according to the contract, found {fidelity.shortest:.4f} to "
            f"{fidelity.longest:.4f}"
        )
    return tuple(reasons)


def embed(
    model: ov.Model, inputs: list[NDArray[np.float32]], *, device: str = "CPU", hint: str = "f32"
) -> NDArray[np.float32]:
    """Run a model with one output on inputs of batch 1, as `to_inputs` makes them: (N, D) float32.

    `hint` is the inference precision of what is computed in floating point: ``f32``, ``bf16`` or ``f16``.
    """
    static = model.clone()
    static.reshape(list(inputs[0].shape))
    compiled = ov.Core().compile_model(static, device, {"INFERENCE_PRECISION_HINT": hint})
    request = compiled.create_infer_request()
    return np.concatenate([request.infer({0: item})[0].copy() for item in inputs])


def cosines(expected: Vectors, found: Vectors) -> NDArray[np.float64]:
    """Return the cosine of each row of one (N, D) array with the same row of another: (N,)."""
    return np.asarray(np.einsum("nd,nd->n", _unit(expected), _unit(found)))


def _unit(vectors: Vectors) -> NDArray[np.float64]:
    doubles = vectors.astype(np.float64)
    return np.asarray(doubles / np.linalg.norm(doubles, axis=1, keepdims=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class HintResult:
    """Result of one inference precision on one device; true if it is available and keeps the limits.

    Attributes
    ----------
    hint
        ``bf16`` or ``f16``.
    fidelity, why_not
        Agreement with FP32, or why it was not measured.
    reasons
        Why it is refused; empty if it is accepted or was not measured.
    """

    device: str
    hint: str
    fidelity: Fidelity | None
    why_not: str = ""
    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.fidelity is not None and not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return dataclasses.asdict(self) | {"available": self.fidelity is not None}


def measure_hints(
    model: ov.Model,
    inputs: list[NDArray[np.float32]],
    contract: ModelContract,
    limits: QuantizationLimits,
    *,
    device: str = "CPU",
) -> tuple[HintResult, ...]:
    """Compare bf16 and f16 inference of an FP32 model with f32 on a device; the result is empty without inputs.

    OpenVINO accepts a hint that the device does not support and ignores it, so the capabilities are read first.

    Raises
    ------
    DeviceError
        If the device is not available.
    """
    if not inputs:
        return ()
    core = ov.Core()
    try:
        offered = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        name = core.get_property(device, "FULL_DEVICE_NAME")
    except RuntimeError as error:
        raise DeviceError(f"device {device!r} is not available: {error}") from error
    expected: NDArray[np.float32] | None = None
    results = []
    for hint, capability in _CAPABILITIES.items():
        result = HintResult(device=device, hint=hint, fidelity=None)
        why = f"not available on {device} ({name}), which offers {', '.join(sorted(offered))}"
        if capability in offered:
            try:
                expected = embed(model, inputs, device=device) if expected is None else expected
                fidelity = measure_fidelity(expected, embed(model, inputs, device=device, hint=hint))
                reasons, why = judge_fidelity(fidelity, contract, limits), ""
                result = dataclasses.replace(result, fidelity=fidelity, reasons=reasons)
            except RuntimeError as error:  # raised by a driver
                why = f"{device} ({name}) cannot run this model: {str(error).strip().splitlines()[-1]}"
        results.append(dataclasses.replace(result, why_not=why))
    return tuple(results)
