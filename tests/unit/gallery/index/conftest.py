from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeface.gallery.records import TemplateBlock

ID = "0123456789abcdef"


def unit_rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def block_of(
    vectors: np.ndarray, *, ids: Any = None, person_ids: Any = None, contract_id: str = ID, generation: int = 1
) -> TemplateBlock:
    ids = np.arange(1, len(vectors) + 1) if ids is None else np.asarray(ids)
    return TemplateBlock(
        ids=ids.astype(np.int64),
        person_ids=(ids if person_ids is None else np.asarray(person_ids)).astype(np.int64),
        vectors=np.asarray(vectors, np.float32),
        contract_id=contract_id,
        generation=generation,
    )


def brute_force(block: TemplateBlock, probe: np.ndarray) -> np.ndarray:
    """Cosine similarity of every row in extended precision."""
    rows, wanted = block.vectors.astype(np.longdouble), probe.astype(np.longdouble)
    return (rows @ wanted) / np.sqrt((rows * rows).sum(axis=1) * (wanted @ wanted))


@pytest.fixture(params=["float32", "float16", "int8", "approximate"])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Every index there is; where NumKong and usearch are not installed, float32 alone."""
    from edgeface.gallery.index import ApproximateIndex, ExactIndex

    if request.param != "float32":
        pytest.importorskip("numkong", reason="the extra 'index' is not installed")
    if request.param == "approximate":
        return ApproximateIndex
    return lambda block: ExactIndex(block, storage=request.param)
