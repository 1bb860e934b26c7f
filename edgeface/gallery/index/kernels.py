"""Rows and a probe in, approximate scores and how wrong they can be out; the work is done by SIMD of libraries.

float32 is NumPy's; float16 and int8 are NumKong's, the kernels of usearch (extra ``index``).

Every kernel bounds its error, so that a search can keep all rows that might belong to the answer and compare those
exactly. For a row x stored as y and a probe p stored as q, all lengths about 1, Cauchy and Schwarz give
``|x.p - y.q| <= |x - y| |p| + |y| |p - q|``. A sum of D float32 products is off by at most ``gamma_D |y| |q|``,
``gamma_D = D u / (1 - D u)``, ``u = 2^-24``, in whatever order they are added (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed. 2002, equation 3.5).
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ExtraNotInstalledError, InputError
from edgeface.gallery.index.table import UNIT_TOLERANCE

__all__ = ["Columns", "Kernel", "Storage", "kernel_for", "rounding_bound"]

Storage = Literal["float32", "float16", "int8"]
Floats = NDArray[np.float32]
Columns = tuple[NDArray[Any], ...]

_BLOCK_ROWS = 256
"""Rows coded at a time: what is made on the way stays in the cache."""
_INT8_MAX = 127.0


class Kernel(Protocol):
    """One way to store vectors and to multiply them with a probe.

    `Columns` are the vectors (N, D) and, one for each row, what `encode` returned for them.
    """

    def encode(self, vectors: Floats) -> Columns:
        """What to store beside unit vectors (N, D)."""

    def dot(self, rows: Columns, probe: Columns, out: Floats) -> None:
        """Write the approximate scores of all rows and the only row of `probe` to `out` (N,)."""

    def bound(self, rows: Columns, probe: Columns) -> NDArray[np.floating[Any]]:
        """How far at most each score is from the cosine: (N,), or one number for all as ()."""


def kernel_for(storage: Storage) -> Kernel:
    """The kernel for a way of storing.

    Raises
    ------
    ExtraNotInstalledError
        If NumKong is needed and not installed.
    InputError
        If there is no such way.
    """
    if storage == "float32":
        return _Float32()
    if storage not in ("float16", "int8"):
        raise InputError(f"index storage: expected float32, float16 or int8, found {storage!r}")
    try:
        import numkong  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ExtraNotInstalledError("index", needed_for=f"an index in {storage}") from error
    return _Int8(numkong) if storage == "int8" else _Float16(numkong)


class _Float32:
    """The vectors themselves."""

    def encode(self, vectors: Floats) -> Columns:
        return ()

    def dot(self, rows: Columns, probe: Columns, out: Floats) -> None:
        # One pass in this thread alone: OpenBLAS's sgemv is slower, and its threads would fight with the caller's.
        if hasattr(np, "vecdot"):
            np.vecdot(rows[0], probe[0][0], out=out)
        else:  # NumPy 1
            np.einsum("nd,d->n", rows[0], probe[0][0], out=out)

    def bound(self, rows: Columns, probe: Columns) -> NDArray[np.floating[Any]]:
        return np.asarray(rounding_bound(rows[0].shape[1]))


class _Float16:
    """Columns: vectors, codes (N, D) float16, lengths of the errors (N,)."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def encode(self, vectors: Floats) -> Columns:
        codes = vectors.astype(np.float16)
        return codes, _errors(vectors, codes, np.ones(len(vectors), np.float32))

    def dot(self, rows: Columns, probe: Columns, out: Floats) -> None:
        self._library.cdist(rows[1], probe[1], "dot", out=out[:, np.newaxis], out_dtype="float32")

    def bound(self, rows: Columns, probe: Columns) -> NDArray[np.floating[Any]]:
        return _coding_bound(rows[2], probe[2][0], rounding_bound(rows[0].shape[1]))


class _Int8:
    """Columns: vectors, codes (N, D) int8, scales (N,), lengths of the errors (N,).

    Integers add up exactly: only the coding is wrong, and the product with the scales by some units in the last place.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def encode(self, vectors: Floats) -> Columns:
        codes = np.empty(vectors.shape, np.int8)
        scales = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            scales[part] = np.abs(vectors[part]).max(axis=1) / np.float32(_INT8_MAX)
            codes[part] = np.rint(vectors[part] / scales[part, np.newaxis])
        return codes, scales, _errors(vectors, codes, scales)

    def dot(self, rows: Columns, probe: Columns, out: Floats) -> None:
        self._library.cdist(rows[1], probe[1], "dot", out=out[:, np.newaxis], out_dtype="float32")
        np.multiply(out, rows[2] * probe[2][0], out=out)

    def bound(self, rows: Columns, probe: Columns) -> NDArray[np.floating[Any]]:
        return _coding_bound(rows[3], probe[3][0], 2 * UNIT_TOLERANCE + 8 * 2.0**-24)


def rounding_bound(length: int) -> float:
    """How far a float32 sum of products is from the cosine of two vectors of about unit length, at most."""
    unit = length * 2.0**-24
    return unit / (1 - unit) * (1 + 3 * UNIT_TOLERANCE) + 2 * UNIT_TOLERANCE


def _coding_bound(rows: Floats, probe: np.float32, rest: float) -> Floats:
    # |y| <= |x| + |x - y|; the errors themselves were computed in float32, hence the thousandth.
    return ((rows + (1 + rows) * probe) * np.float32(1.001) + np.float32(rest)).astype(np.float32)


def _errors(vectors: Floats, codes: NDArray[Any], scales: Floats) -> Floats:
    errors = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        difference = vectors[part] - codes[part] * scales[part, np.newaxis]
        errors[part] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    return errors
