"""Exact search: approximate scores with a proven bound on their error, then float64 for all that may be the best.

Scores are computed by SIMD of libraries: float32 by NumPy; float16 and int8 by NumKong, the kernels of usearch (extra
``index``).

Every kernel bounds its error, so that a search can keep all rows that might belong to the answer and compare those
exactly. For a row x stored as y and a probe p stored as q, all lengths about 1, Cauchy and Schwarz give
``|x.p - y.q| <= |x - y| |p| + |y| |p - q|``. A sum of D float32 products is off by at most ``gamma_D |y| |q|``,
``gamma_D = D u / (1 - D u)``, ``u = 2^-24``, in whatever order they are added (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed. 2002, equation 3.5).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ExtraNotInstalledError, InputError
from edgeface.gallery.index.memory import UNIT_TOLERANCE, MemoryIndex, Table
from edgeface.gallery.records import TemplateBlock
from edgeface.limits import usable_cores

Storage = Literal["float32", "float16", "int8"]
Floats = NDArray[np.float32]
Columns = tuple[NDArray[Any], ...]

_BATCH_ROWS = 4096
_BATCH_PROBES = 256
_PART_ROWS = 2048
"""Fewer rows are done before a thread has woken."""
_BLOCK_ROWS = 256
"""Rows coded at a time: what is made on the way stays in the cache."""
_INT8_MAX = 127.0
MANY = 100_000
"""Templates up to which `exact_index` stays with float32."""


def kernel_for(storage: Storage) -> Kernel:
    """Return the kernel for a way of storing vectors; `ExtraNotInstalledError` if it lacks NumKong."""
    if storage == "float32":
        return Kernel()
    if storage not in ("float16", "int8"):
        raise InputError(f"index storage: expected float32, float16 or int8, found {storage!r}")
    try:
        import numkong  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ExtraNotInstalledError("index", needed_for=f"an index in {storage}") from error
    return _Int8(numkong) if storage == "int8" else _Float16(numkong)


class Kernel:
    """One way to store vectors and to multiply them with a probe: here in float32, the vectors themselves.

    `Columns` are the vectors (N, D) and, one for each row, what `encode` returned for them.
    """

    def encode(self, vectors: Floats) -> Columns:
        """Return what to store beside unit vectors (N, D)."""
        return ()

    def dot(self, rows: Columns, probe: Columns, out: Floats) -> None:
        """Write the approximate scores of all rows and the only row of `probe` to `out` (N,)."""
        # One pass in this thread alone: OpenBLAS's sgemv is slower, and its threads would fight with the caller's.
        if hasattr(np, "vecdot"):
            np.vecdot(rows[0], probe[0][0], out=out)
        else:  # NumPy 1
            np.einsum("nd,d->n", rows[0], probe[0][0], out=out)

    def bound(self, rows: Columns, probe: Columns) -> NDArray[np.floating[Any]]:
        """Return how far each score is from the cosine at most: (N,), or () for all."""
        return np.asarray(rounding_bound(rows[0].shape[1]))


class _Float16(Kernel):
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


class _Int8(_Float16):
    """Columns: vectors, codes (N, D) int8, scales (N,), lengths of the errors (N,).

    Integers add up exactly: only the coding is wrong, and the product with the scales by some units in the last place.
    """

    def encode(self, vectors: Floats) -> Columns:
        codes = np.empty(vectors.shape, np.int8)
        scales = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            scales[part] = np.abs(vectors[part]).max(axis=1) / np.float32(_INT8_MAX)
            codes[part] = np.rint(vectors[part] / scales[part, np.newaxis])
        return codes, scales, _errors(vectors, codes, scales)

    def dot(self, rows: Columns, probe: Columns, out: Floats) -> None:
        super().dot(rows, probe, out)
        np.multiply(out, rows[2] * probe[2][0], out=out)

    def bound(self, rows: Columns, probe: Columns) -> NDArray[np.floating[Any]]:
        return _coding_bound(rows[3], probe[3][0], 2 * UNIT_TOLERANCE + 8 * 2.0**-24)


def rounding_bound(length: int) -> float:
    """Return how far a float32 sum of products is from the cosine of two vectors of about unit length, at most."""
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


def contenders(scores: NDArray[np.float32], bound: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
    """Return all rows that may be among the `k` best.

    A row is left out only if `k` others are better even where their scores (N,) are too high, and its own too low, by
    all that the bound, (N,) or () for all, allows.
    """
    lowest = scores - bound
    kth = lowest.max() if k == 1 else np.partition(lowest, len(lowest) - k)[len(lowest) - k]
    return np.flatnonzero(scores + bound >= kth)


def _in_parts(work: Callable[[slice], None], rows: int, *, threads: int) -> None:
    """Call `work` for slices that cover `rows`; it must release the GIL to gain anything.

    What it raises is raised, after all parts have ended.
    """
    if threads == 1 or rows < 2 * _PART_ROWS:
        work(slice(0, rows))
        return
    # Two parts a thread: a thread that was held up leaves its second part to another.
    size = max(_PART_ROWS, -(-rows // (2 * threads)))
    parts = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    pending = [_pool(os.getpid(), threads - 1).submit(_drain, work, parts) for _ in range(threads - 1)]
    try:
        _drain(work, parts)
    finally:
        errors = [each.exception() for each in pending]
    for error in errors:
        if error is not None:
            raise error


def _drain(work: Callable[[slice], None], parts: list[slice]) -> None:
    while True:
        try:
            part = parts.pop()
        except IndexError:
            return
        work(part)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Keep one pool for each process and width: threads do not survive `os.fork`."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"edgeface-index-{process}")


class ExactIndex(MemoryIndex):
    """Every template is compared with every probe.

    Scores are first computed as the storage allows, with a bound on their error (`Kernel`); all rows that may belong to
    the answer by that bound are compared again in float64. So float16 and int8 find the same templates with the same
    scores as float32, and read a half or a quarter of the memory.

    Parameters
    ----------
    block
        Its first templates.
    storage
        ``float32``: needs nothing. ``float16``, ``int8``: codes beside the float32 vectors, which are then read
        only where candidates are; extra ``index``.
    threads
        Of one search; None: one for each core that this process may use.

    Attributes
    ----------
    storage
        As above.

    Raises
    ------
    ContractError
        If the rows are not of unit length, or a template comes twice.
    ExtraNotInstalledError, InputError
        If the storage needs the extra ``index``, or an option is out of range.
    """

    def __init__(self, block: TemplateBlock, *, storage: Storage = "float32", threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"index: expected 1 thread or more, found {threads}")
        self._kernel, self.storage = kernel_for(storage), storage
        self._threads = threads or usable_cores()
        super().__init__(block)

    def _build(self, block: TemplateBlock) -> Table:
        return Table(block, self._kernel.encode(block.vectors))

    def _add(self, block: TemplateBlock) -> None:
        self._table.put(block, self._kernel.encode(block.vectors))

    def _remove(self, rows: NDArray[np.intp]) -> None:
        self._table.remove(rows)

    def _candidates(self, probe: Floats, k: int) -> NDArray[np.intp]:
        query = (probe, *self._kernel.encode(probe))
        columns = self._table.columns
        scores = np.empty(len(self._table), np.float32)

        def score(part: slice) -> None:
            self._kernel.dot(tuple(column[part] for column in columns), query, scores[part])

        _in_parts(score, len(scores), threads=self._threads)
        return contenders(scores, self._kernel.bound(columns, query), k)

    def _batch_candidates(self, probes: Floats, k: int) -> list[NDArray[np.intp]]:
        found: list[NDArray[np.intp]] = []
        for start in range(0, len(probes), _BATCH_PROBES):
            found += self._product_candidates(probes[start : start + _BATCH_PROBES], k)
        return found

    def _product_candidates(self, probes: Floats, k: int) -> list[NDArray[np.intp]]:
        """Multiply by BLAS, which computes 40 products in the time that a pass over the rows takes for one."""
        margin = np.float32(2 * rounding_bound(self._dim))
        top = np.full((len(probes), 0), -np.inf, np.float32)
        kept: list[tuple[NDArray[np.intp], NDArray[np.intp], Floats]] = []
        for start in range(0, len(self._table), _BATCH_ROWS):
            scores = probes @ self._table.vectors[start : start + _BATCH_ROWS].T
            top = np.concatenate([top, scores], axis=1)
            if top.shape[1] > k:
                top = np.partition(top, top.shape[1] - k, axis=1)[:, -k:]
            floor = top.min(axis=1) - margin if top.shape[1] == k else np.full(len(probes), -np.inf, np.float32)
            which, rows = np.nonzero(scores >= floor[:, np.newaxis])
            kept.append((which, rows + start, scores[which, rows]))
        which, rows, values = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        late = values >= (top.min(axis=1) - margin)[which]
        order = np.argsort(which[late], kind="stable")
        counts = np.bincount(which[late], minlength=len(probes))
        return np.split(rows[late][order], np.cumsum(counts)[:-1])


def exact_index(block: TemplateBlock) -> ExactIndex:
    """Return an exact index in int8 for more than 100,000 templates, where the extra ``index`` is installed.

    Below, a search in float32 takes less than 25 ms, and an index in int8 longer to be ready. The answers are the same.
    """
    many = len(block) > MANY and importlib.util.find_spec("numkong") is not None
    return ExactIndex(block, storage="int8" if many else "float32")
