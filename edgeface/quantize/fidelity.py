"""FP32 and compressed embeddings of the same faces in, how far they lie apart out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import ConversionError, InputError

__all__ = ["Fidelity", "cosines", "embed", "measure_fidelity"]

Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Agreement of two models on faces that neither was calibrated with.

    Attributes
    ----------
    faces
        How many.
    min_cosine, p01_cosine, mean_cosine
        Between the two embeddings of a face: the least, the 1st percentile and the mean.
    max_distance_change, p99_distance_change, mean_distance_change
        Of the squared Euclidean distance (0 to 4) between two faces, over all pairs of faces, in absolute value.
    shortest, longest
        Lengths of the compressed embeddings.
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)


def measure_fidelity(expected: Vectors, found: Vectors) -> Fidelity:
    """Compare two (N, D) arrays row by row, N at least 1.

    Raises
    ------
    InputError
        If their shapes differ or they are empty.
    ConversionError
        If a number is not finite, or a row of zeros has no direction: the compressed model fails.
    """
    if expected.shape != found.shape or expected.ndim != 2 or not len(expected):
        raise InputError(
            f"fidelity: expected two arrays of one shape (N, D), found {expected.shape} and {found.shape}"
        )
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


def embed(
    model: ov.Model, inputs: list[NDArray[np.float32]], *, device: str = "CPU", hint: str = "f32"
) -> NDArray[np.float32]:
    """Run a model on inputs of batch 1 each: (N, D) float32.

    Parameters
    ----------
    model
        One output.
    inputs
        As `to_inputs` makes them.
    device
        OpenVINO device.
    hint
        Precision of what is computed in floating point: ``f32``, ``bf16`` or ``f16``.
    """
    static = model.clone()
    static.reshape(list(inputs[0].shape))
    request = (
        ov.Core().compile_model(static, device, {"INFERENCE_PRECISION_HINT": hint}).create_infer_request()
    )
    return np.concatenate([request.infer({0: item})[0].copy() for item in inputs])


def cosines(expected: Vectors, found: Vectors) -> NDArray[np.float64]:
    """Cosine of each row of one (N, D) array with the same row of another: (N,)."""
    return np.asarray(np.einsum("nd,nd->n", _unit(expected), _unit(found)))


def _unit(vectors: Vectors) -> NDArray[np.float64]:
    doubles = vectors.astype(np.float64)
    return np.asarray(doubles / np.linalg.norm(doubles, axis=1, keepdims=True))
