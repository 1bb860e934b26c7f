"""How fast is the search of a gallery, how often does it find the right one, how soon is it ready? Prints JSON.

    python benchmarks/gallery.py [--only search|recall|open|graph] [--rounds 15] [--templates 100000] [--million]

Templates are random directions, three a person; a probe is a template with noise, at a cosine of about 0.7, where the
best of 100,000 strangers is at 0.2. How right a model is, they do not say: `edgeface evaluate identification` does.

For a graph of neighbours it matters how templates lie: in 512 dimensions that are all alike nothing is near anything,
and a walk from neighbour to neighbour has no direction. Embeddings of faces lie otherwise: of 1,284 LFW images,
FaceNet 20180408-102900's have all their variance in 112 directions, falling about as exp(-i/38), an effective dimension
of 54. So the graph is given templates that are drawn so (effective dimension 68), and with --directions the others.

search    one probe, k = 1: float32, float16 and int8 with exact re-ranking, FAISS's IndexFlatIP, and a plain read
          of the float32 vectors: NumPy's largest byte, as fast as memchr, and faster than a sum. All with the same
          threads, in turn in every round; ratios are medians of those within a round, in wall time and in CPU time.
recall    10,000 probes and 200 strangers: how often int8 finds what float32 compared in float64 finds first, and how
          many templates it compares again.
open      a gallery of so many templates, in a new process: from the file to the first answer, with and without a key;
          and the first time after enrolment, when the file that makes it quick is not there yet.
graph     usearch: build time, memory, recall@1 and time a search for 200,000 templates (--million: 1,000,000), and the
          time of an exact search in int8 beside it.

Every part says under which load it ran. Needs the extras `index` and `peers`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.gallery.index import ApproximateIndex, ExactIndex, Index
from edgeface.gallery.records import NewTemplate, TemplateBlock
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.limits import usable_cores
from edgeface.model.embedding import Embedding, Embeddings

Answer = tuple[dict[str, Any], dict[str, Any]]
"""The figures that are quoted, and everything else of one part."""

_ID = "0123456789abcdef"
_DIM = 512
_NOISE = 1.0
_FACE_DIRECTIONS = 112
_FACE_DECAY = 38.0
"""Variances fall by 1/e in so many directions."""
_KEY = bytes(range(32))


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["search", "recall", "open", "graph"], action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--templates", type=int, default=100_000)
    parser.add_argument("--probes", type=int, default=10_000, help="of recall")
    parser.add_argument("--graph", type=int, default=200_000, help="templates in the graph")
    parser.add_argument("--million", action="store_true", help="the same as --graph 1000000")
    parser.add_argument("--directions", action="store_true", help="graph: random directions, not like faces")
    options = parser.parse_args()
    wanted = options.only or ["search", "recall", "open", "graph"]
    found: dict[str, Any] = {}
    parts: dict[str, Callable[[], Answer]] = {
        "search": lambda: search(options.templates, options.rounds),
        "recall": lambda: recall(options.templates, options.probes),
        "open": lambda: opening(options.templates, max(3, options.rounds // 3)),
        "graph": lambda: graph(
            1_000_000 if options.million else options.graph, 1000, like_faces=not options.directions
        ),
    }
    for name, measure in parts.items():
        if name in wanted:
            print(f"{name} ...", file=sys.stderr)
            load = round(os.getloadavg()[0], 1)
            headline, details = measure()
            found |= {**headline, name: {**details, "load": load}}
    print(json.dumps({**found, "templates": options.templates, "threads": usable_cores()}, indent=1))


Draw = Callable[[np.random.Generator, int], np.ndarray]


def directions(rng: np.random.Generator, count: int) -> np.ndarray:
    """Unit vectors, (N, D) float32, of which none is like another."""
    return _unit(rng.standard_normal((count, _DIM), dtype=np.float32))


def face_drawing(seed: int = 0) -> Draw:
    """What draws unit vectors that lie as embeddings of faces do."""
    turned = np.linalg.qr(np.random.default_rng(seed).standard_normal((_DIM, _FACE_DIRECTIONS)))[0].T
    scaled = turned * np.exp(-np.arange(_FACE_DIRECTIONS) / (2 * _FACE_DECAY))[:, np.newaxis]
    axes = scaled.astype(np.float32)
    return lambda rng, count: _unit(rng.standard_normal((count, _FACE_DIRECTIONS), dtype=np.float32) @ axes)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made(count: int, draw: Draw = directions, seed: int = 0) -> TemplateBlock:
    """Templates, three a person."""
    rng = np.random.default_rng(seed)
    vectors = np.empty((count, _DIM), np.float32)
    for start in range(0, count, 50_000):
        vectors[start : start + 50_000] = draw(rng, min(50_000, count - start))
    ids = np.arange(1, count + 1)
    return TemplateBlock(ids=ids, person_ids=ids // 3 + 1, vectors=vectors, contract_id=_ID, generation=1)


def probes_of(
    block: TemplateBlock, count: int, draw: Draw = directions, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy copies of templates: their ids, and (N, D) float32."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(block), count, replace=False)
    return block.ids[rows], block.vectors[rows] + np.float32(_NOISE) * draw(rng, count)


def search(count: int, rounds: int) -> Answer:
    """One probe at a time, every side in turn."""
    import faiss

    threads = usable_cores()
    block = made(count)
    indexes = {storage: ExactIndex(block, storage=storage) for storage in ("float32", "float16", "int8")}
    faiss.omp_set_num_threads(threads)
    flat = faiss.IndexFlatIP(_DIM)
    flat.add(block.vectors)
    ids, probes = probes_of(block, rounds + 1)
    calls: dict[str, Callable[[Embedding], int]] = {
        name: (lambda probe, index=index: int(index.search(probe).ids[0])) for name, index in indexes.items()
    }
    calls["faiss"] = lambda probe: int(flat.search(probe.vector[np.newaxis], 1)[1][0, 0]) + 1
    with memory_reader(block.vectors, threads) as read:
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ("read", *calls)}
        for number in range(rounds + 1):
            probe = Embedding(probes[number], _ID)
            for name in taken:
                wall, cpu = time.perf_counter(), time.process_time()
                answer = read() if name == "read" else calls[name](probe)
                spent = time.perf_counter() - wall, time.process_time() - cpu
                assert name == "read" or answer == ids[number], f"{name} found {answer}"
                if number:  # the first is a warm-up
                    taken[name].append(spent)
    rows = {
        name: {
            "wall_ms": round(1e3 * statistics.median(wall for wall, _ in each), 3),
            "cpu_ms": round(1e3 * statistics.median(cpu for _, cpu in each), 3),
        }
        for name, each in taken.items()
    }
    ratios = {
        "float32_to_read": ratio(taken["float32"], taken["read"]),
        "int8_speedup": ratio(taken["float32"], taken["int8"]),
        "float16_speedup": ratio(taken["float32"], taken["float16"]),
        "faiss_to_float32": ratio(taken["faiss"], taken["float32"]),
    }
    return ratios, {**rows, "rounds": rounds}


@contextlib.contextmanager
def memory_reader(vectors: np.ndarray, threads: int) -> Iterator[Callable[[], int]]:
    """Yield a function that reads every byte once, with all threads, and finds the largest."""
    parts = np.array_split(vectors.reshape(-1).view(np.uint8), 2 * threads)
    with ThreadPoolExecutor(threads) as pool:
        yield lambda: max(pool.map(lambda part: int(part.max()), parts))


def ratio(over: list[tuple[float, float]], under: list[tuple[float, float]]) -> dict[str, float]:
    """Median of the ratios within a round."""
    pairs = list(zip(over, under, strict=True))
    return {
        "wall": round(statistics.median(a[0] / b[0] for a, b in pairs), 3),
        "cpu": round(statistics.median(a[1] / b[1] for a, b in pairs), 3),
    }


def recall(count: int, probes: int) -> Answer:
    """How often the first answer is the right one."""
    block = made(count)
    wanted, vectors = probes_of(block, probes)
    vectors = np.concatenate([vectors, np.random.default_rng(2).standard_normal((200, _DIM), dtype=np.float32)])
    exact = ExactIndex(block)
    truth = np.array([hits.ids[0] for hits in exact.search_batch(Embeddings(vectors, _ID))])
    index = ExactIndex(block, storage="int8")
    answers, again = np.empty(len(vectors), np.int64), []
    for row, vector in enumerate(vectors):
        answers[row] = index.search(Embedding(vector, _ID)).ids[0]
        if row % 50 == 0:
            again.append(len(index._candidates(index.units(vector[np.newaxis], _ID), 1)))
    return {"int8_recall_at_1": float((answers == truth).mean())}, {
        "probes": probes,
        "strangers": len(vectors) - probes,
        "enrolled_first": float((truth[:probes] == wanted).mean()),
        "compared_again": statistics.mean(again),
    }


_OPEN = """
import sys, time
from pathlib import Path
import numpy as np
from edgeface.model.embedding import Embedding
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.gallery.index import LiveIndex
path, key = Path(sys.argv[1]), bytes.fromhex(sys.argv[2]) or None
probe = Embedding(np.ones(512, np.float32), "0123456789abcdef")
wall, cpu = time.perf_counter(), time.process_time()
with SqliteStore(path, key=key) as store:
    opened = LiveIndex(store)
    opened.search(probe)
    print(time.perf_counter() - wall, time.process_time() - cpu, len(opened))
"""


def opening(count: int, rounds: int) -> Answer:
    """From a gallery's file to the first answer, imports not counted."""
    block = made(count)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgeface-gallery-") as folder:
        for name, key in (("plain", None), ("encrypted", _KEY)):
            path = Path(folder) / f"{name}.gallery"
            with SqliteStore.create(path, contract_id=_ID, dim=_DIM, key=key) as store:
                started = time.perf_counter()
                with store.writing():
                    for start in range(0, count, 3):
                        rows = [NewTemplate(embedding=Embedding(row, _ID)) for row in block.vectors[start : start + 3]]
                        store.add_person(f"person {start}", templates=rows)
                enrolled = time.perf_counter() - started
            taken = []
            for _ in range(rounds + 1):
                command = [sys.executable, "-c", _OPEN, str(path), (key or b"").hex()]
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
                wall, cpu, size = map(float, done.stdout.split())
                assert size == count
                taken.append((wall, cpu))
            first = taken.pop(0)  # reads the rows, and writes the file beside them
            found[name] = {
                "first_s": round(first[0], 3),
                "wall_s": round(statistics.median(wall for wall, _ in taken), 3),
                "cpu_s": round(statistics.median(cpu for _, cpu in taken), 3),
                "enrol_s": round(enrolled, 1),
            }
    return {"open_s": found["plain"]["wall_s"], "open_encrypted_s": found["encrypted"]["wall_s"]}, found


def graph(count: int, probes: int, *, like_faces: bool) -> Answer:
    """An approximate index against the exact answers."""
    draw = face_drawing() if like_faces else directions
    block = made(count, draw)
    _, vectors = probes_of(block, probes, draw)
    batch = Embeddings(vectors, _ID)
    exact = ExactIndex(block, storage="int8")
    exact_ms, _ = one_by_one(exact, batch, 20)
    truth = [hits.ids[0] for hits in exact.search_batch(batch)]
    wall, cpu = time.perf_counter(), time.process_time()
    index = ApproximateIndex(block)
    built = time.perf_counter() - wall, time.process_time() - cpu
    graph_ms, found = one_by_one(index, batch, probes)
    recall_at_1 = float(np.mean(np.array(found) == np.array(truth)))
    return {"usearch_recall_at_1": recall_at_1}, {
        "templates": count,
        "like_faces": like_faces,
        "build_s": round(built[0], 1),
        "build_cpu_s": round(built[1], 1),
        "graph_mb": round(index.graph_bytes / 1e6),
        "vectors_mb": round(block.vectors.nbytes / 1e6),
        "search": graph_ms,
        "exact_int8_search": exact_ms,
    }


def one_by_one(index: Index, batch: Embeddings, probes: int) -> tuple[dict[str, float], list[int]]:
    """Mean times of single searches, and what each found first."""
    index.search(batch[0])
    wall, cpu = time.perf_counter(), time.process_time()
    first = [int(index.search(batch[row]).ids[0]) for row in range(probes)]
    took = {"wall_ms": time.perf_counter() - wall, "cpu_ms": time.process_time() - cpu}
    return {name: round(1e3 * each / probes, 3) for name, each in took.items()}, first


if __name__ == "__main__":
    main()
