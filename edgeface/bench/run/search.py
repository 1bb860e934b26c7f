"""Search a made gallery, one probe at a time: what finding a person adds to a decision."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeface.bench.run.load_generator import Recording, RunLimits, Stopper, measuring
from edgeface.bench.schema import SearchResult
from edgeface.errors import InputError
from edgeface.gallery.index.approximate import ApproximateIndex
from edgeface.gallery.index.exact import ExactIndex, Storage, exact_index
from edgeface.gallery.index.memory import MemoryIndex
from edgeface.gallery.records import TemplateBlock
from edgeface.model.embedding import Embedding
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.recognize.index import rank_people

Floats = NDArray[np.float32]

_EACH = 3
"""Templates of a person."""
_PROBES = 512
_WARM_UP = 4
"""Probes that are searched before the measurement."""
_AT_ONCE = 20_000
"""People that are drawn together."""
_DIRECTIONS, _DECAY = 112, 20.0
"""Directions that embeddings vary in, and how fast the variances fall: exp(-i / 20)."""
_GROUPS, _ALIKE = 25, 0.35
"""Groups of people who look alike, and the share of a person's direction that the group has."""
_LIKENESS = (5.0, 2.0)
"""Of the Beta distribution of the share of an image that shows its person."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MadeGallery:
    """Templates that were made, three a person, and another image of some of these people.

    Attributes
    ----------
    block
        The templates.
    person_ids : (P,) int64
        Of the probes.
    probes : (P, D) float32
        Of unit length.
    """

    block: TemplateBlock
    person_ids: NDArray[np.int64]
    probes: Floats


def make_gallery(templates: int, *, dim: int, contract_id: str, probes: int = _PROBES, seed: int = 0) -> MadeGallery:
    """Draw a gallery whose templates lie as embeddings of faces do.

    How templates lie decides what a graph of neighbours finds. All variance is in 112 directions, falling as
    exp(-i/20): FaceNet 20180408-102900's embeddings of LFW have theirs in as many. A person is one of 25 groups of
    people who look alike and something of their own, in shares of 0.35 and 0.65; an image is its person and something
    of its own, in shares of Beta(5, 2). The five numbers are fitted to that model's false accepts and rejects on LFW
    (its shipped thresholds at FAR 1e-2 to 1e-5): of made images FAR is 0.9 to 1.4 times those, and FRR 0.023, 0.082,
    0.19 and 0.34 where LFW's are 0.021, 0.073, 0.19 and 0.36 (`benchmarks/gallery.py --only faces`).

    `InputError` is raised if there is no template.

    Examples
    --------
    >>> made = make_gallery(300, dim=128, contract_id="0123456789abcdef", probes=10)
    >>> made.block.vectors.shape, made.probes.shape, int(made.block.person_ids[-1])
    ((300, 128), (10, 128), 100)
    """
    if templates < 1:
        raise InputError(f"templates: expected 1 or more, found {templates}")
    rng = np.random.default_rng(seed)
    width = min(_DIRECTIONS, dim)
    axes = np.linalg.qr(rng.standard_normal((dim, width)))[0].T.astype(np.float32)
    spread = np.exp(-np.arange(width) / (2 * _DECAY)).astype(np.float32)

    def directions(count: int) -> Floats:
        return _unit(rng.standard_normal((count, width), dtype=np.float32) * spread)

    def mixed(common: Floats, share: Any) -> Any:
        return np.sqrt(share) * common + np.sqrt(1 - share) * directions(len(common))

    def images(people: Floats) -> Floats:
        return _unit(mixed(people, rng.beta(*_LIKENESS, (len(people), 1)).astype(np.float32)) @ axes)

    groups = directions(_GROUPS)
    count = -(-templates // _EACH)
    wanted = np.sort(rng.choice(count, min(probes, count), replace=False))
    vectors, probed = np.empty((templates, dim), np.float32), []
    for start in range(0, count, _AT_ONCE):
        people = _unit(mixed(groups[rng.integers(_GROUPS, size=min(_AT_ONCE, count - start))], np.float32(_ALIKE)))
        rows = vectors[_EACH * start : _EACH * (start + _AT_ONCE)]
        rows[:] = images(np.repeat(people, _EACH, axis=0)[: len(rows)])
        probed.append(images(people[wanted[(wanted >= start) & (wanted < start + len(people))] - start]))
    ids = np.arange(1, templates + 1)
    block = TemplateBlock(
        ids=ids, person_ids=(ids - 1) // _EACH + 1, vectors=vectors, contract_id=contract_id, generation=1
    )
    return MadeGallery(block=block, person_ids=wanted + 1, probes=np.concatenate(probed))


def _unit(rows: Floats) -> Floats:
    units: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return units


def make_index(block: TemplateBlock, storage: Storage | Literal["graph"] | None) -> MemoryIndex:
    """Return an exact index of this storage, a graph of neighbours, or for None what a gallery's index is."""
    if storage == "graph":
        return ApproximateIndex(block)
    return exact_index(block) if storage is None else ExactIndex(block, storage=storage)


def run_search(
    templates: int,
    storage: Literal["float32", "int8", "graph"] | None,
    limits: RunLimits,
    *,
    dim: int,
    contract_id: str,
    seed: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> tuple[SearchResult, Recording]:
    """Find the two most similar people, as identification does, of one probe after the other.

    A query of the recording is one probe. Errors are those of `make_gallery` and `make_index`.
    """
    made = make_gallery(templates, dim=dim, contract_id=contract_id, seed=seed)
    started = time.process_time()
    index = make_index(made.block, storage)
    built = time.process_time() - started
    probes = [Embedding(row, contract_id) for row in made.probes]
    for probe in probes[:_WARM_UP]:
        rank_people(index, probe)
    clock, right = time.perf_counter_ns, 0
    with measuring() as recorder:
        rows, enough = recorder.rows, Stopper(limits, progress, recorder)
        now = clock()
        while not enough(now, len(rows)):
            turn = len(rows) % len(probes)
            began = clock()
            found = rank_people(index, probes[turn])
            now = clock()
            rows.append((began, now))
            right += int(found.person_ids[0] == made.person_ids[turn])
    search = SearchResult(
        templates=templates,
        people=int(made.block.person_ids[-1]),
        storage=index.storage if isinstance(index, ExactIndex) else "graph",
        dim=dim,
        index_bytes=index.nbytes,
        build_cpu_s=built,
        found=right / len(recorder.rows),
    )
    return search, recorder.recording(1)
