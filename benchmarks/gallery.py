"""How fast is the search of a gallery, how often does it find the right one, how soon is it ready? Prints JSON.

    python benchmarks/gallery.py [--only search|recall|open|graph|faces] [--rounds 15] [--templates 100000] [--million]

Templates are random directions, three a person; a probe is a template with noise, at a cosine of about 0.7, where the
best of 100,000 strangers is at 0.2. How right a model is, they do not say: `edgeface evaluate identification` does.

For a graph of neighbours it matters how templates lie: in 512 dimensions that are all alike nothing is near anything,
and a walk from neighbour to neighbour has no direction. So graphs are given galleries that are made to have the false
accepts and rejects of LFW (`edgeface.bench.run.search.make_gallery`), and with --directions the others.

search    one probe, k = 1: float32, float16 and int8 with exact re-ranking, FAISS's IndexFlatIP, and a plain read
          of the float32 vectors: NumPy's largest byte, as fast as memchr, and faster than a sum. All with the same
          threads, in turn in every round; ratios are medians of those within a round, in wall time and in CPU time.
recall    10,000 probes and 200 strangers: how often int8 finds what float32 compared in float64 finds first, and how
          many templates it compares again.
open      a gallery of so many templates, in a new process: from the file to the first answer, with and without a key;
          and the first time after enrolment, when the file that makes it quick is not there yet.
graph     --graph templates (--million: 1,000,000), three a person, and probes of 1,000 of the people in each of
          --engines: exact search in int8 and float32, usearch's graph, and pgvector's (HNSW over halfvec, in a server
          of its own). Recall@1 is against exact search. Then templates of new people are added, three at a time, as
          fast as they can be, while another thread searches.
faces     false accepts and rejects of made images at the thresholds that LFW's have 1e-2 to 1e-5 of.

Every part says under which load it ran. Needs the extras `index`, `peers` and `postgres`.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _pgvector import Engine, PgVector
from _run import side_by_side

from edgeface.bench.run.search import make_gallery, make_index
from edgeface.gallery.index import ExactIndex
from edgeface.gallery.records import Changes, NewTemplate, TemplateBlock
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.limits import usable_cores
from edgeface.model.embedding import Embedding, Embeddings
from edgeface.recognize.known import shipped_thresholds

Answer = tuple[dict[str, Any], dict[str, Any]]
"""The figures that are quoted, and everything else of one part."""

_ID = "0123456789abcdef"
_DIM = 512
_NOISE = 1.0
_KEY = bytes(range(32))
_FACENET = "c9c4145b201ace67"
"""FaceNet 20180408-102900's contract."""
PARTS = ["search", "recall", "open", "graph", "faces"]
ENGINES = ["int8", "float32", "usearch", "pgvector"]


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--templates", type=int, default=100_000)
    parser.add_argument("--probes", type=int, default=10_000, help="of recall")
    parser.add_argument("--graph", type=int, default=200_000, help="templates in the graph")
    parser.add_argument("--million", action="store_true", help="the same as --graph 1000000")
    parser.add_argument("--directions", action="store_true", help="graph: random directions, not like faces")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES[:3], help="of graph")
    parser.add_argument("--seconds", type=float, default=20.0, help="graph: of adding while searching")
    options = parser.parse_args()
    wanted = options.only or PARTS[:4]
    found: dict[str, Any] = {}
    parts: dict[str, Callable[[], Answer]] = {
        "search": lambda: search(options.templates, options.rounds),
        "recall": lambda: recall(options.templates, options.probes),
        "open": lambda: opening(options.templates, max(3, options.rounds // 3)),
        "graph": lambda: graph(
            1_000_000 if options.million else options.graph,
            options.engines,
            seconds=options.seconds,
            like_faces=not options.directions,
        ),
        "faces": faces,
    }
    for name, measure in parts.items():
        if name in wanted:
            print(f"{name} ...", file=sys.stderr)
            load = round(os.getloadavg()[0], 1)
            headline, details = measure()
            found |= {**headline, name: {**details, "load": load}}
    print(json.dumps({**found, "templates": options.templates, "threads": usable_cores()}, indent=1))


def made(count: int, seed: int = 0) -> TemplateBlock:
    """Templates of random directions, three a person."""
    rng = np.random.default_rng(seed)
    vectors = np.empty((count, _DIM), np.float32)
    for start in range(0, count, 50_000):
        vectors[start : start + 50_000] = _directions(rng, min(50_000, count - start))
    ids = np.arange(1, count + 1)
    return TemplateBlock(ids=ids, person_ids=ids // 3 + 1, vectors=vectors, contract_id=_ID, generation=1)


def probes_of(block: TemplateBlock, count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Noisy copies of templates: their ids, and (N, D) float32."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(block), count, replace=False)
    return block.ids[rows], block.vectors[rows] + np.float32(_NOISE) * _directions(rng, count)


def _directions(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.standard_normal((count, _DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


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


def faces() -> Answer:
    """Made images against what was measured on LFW."""
    made_images = make_gallery(300_000, dim=_DIM, contract_id=_ID, probes=4000)
    scores = made_images.probes @ made_images.block.vectors.T
    genuine = made_images.person_ids[:, np.newaxis] == made_images.block.person_ids
    same, strangers = scores[genuine], scores[~genuine]
    table = [
        {
            "cosine": round(each.value, 4),
            "lfw_far": each.far,
            "made_far": float(f"{np.mean(strangers > each.value):.2g}"),
            "lfw_frr": round(each.frr, 4),
            "made_frr": round(float(np.mean(same <= each.value)), 4),
        }
        for each in shipped_thresholds(_FACENET)
        if each.far >= 1e-5
    ]
    return {"made_to_lfw_far": [round(each["made_far"] / each["lfw_far"], 2) for each in table]}, {"table": table}


def graph(count: int, engines: Sequence[str], *, seconds: float, like_faces: bool) -> Answer:
    """Approximate indexes against the exact answers."""
    if like_faces:
        gallery = make_gallery(count, dim=_DIM, contract_id=_ID, probes=1000)
        block, vectors = gallery.block, gallery.probes
    else:
        block = made(count)
        vectors = probes_of(block, 1000)[1]
    batch = Embeddings(vectors, _ID)
    truth = np.array([hits.ids[0] for hits in ExactIndex(block).search_batch(batch)])
    headline: dict[str, Any] = {}
    found: dict[str, Any] = {
        "templates": count,
        "like_faces": like_faces,
        "vectors_mb": round(block.vectors.nbytes / 1e6),
    }
    for name in engines:
        print(f"  {name} ...", file=sys.stderr)
        with contextlib.ExitStack() as opened:
            wall, cpu = time.perf_counter(), time.process_time()
            engine: Engine = opened.enter_context(PgVector(block)) if name == "pgvector" else InMemory(block, name)
            built = time.perf_counter() - wall, time.process_time() - cpu + engine.server_cpu()
            row: dict[str, Any] = {"build_s": round(built[0], 1), "build_cpu_s": round(built[1], 1), **engine.sizes()}
            for view in engine.views:
                engine.look_at(view)
                timed, first = one_by_one(engine, batch, len(batch) if name not in ("int8", "float32") else 200)
                suffix = f"_ef{view}" if view else ""
                row |= {key + suffix: value for key, value in timed.items()}
                row[f"recall_at_1{suffix}"] = float(np.mean(first == truth[: len(first)]))
            row["while_adding"] = adding(engine, batch, count, seconds)
        found[name] = row
        headline[f"{name}_recall_at_1"] = row[f"recall_at_1{suffix}"]
        print(json.dumps({name: row}), file=sys.stderr)
    return headline, found


def one_by_one(engine: Engine, batch: Embeddings, probes: int) -> tuple[dict[str, float], np.ndarray]:
    """Times of single searches, and what each found first."""
    for row in range(5):
        engine.first(batch[row])
    walls, first = [], []
    cpu = time.process_time() + engine.server_cpu()
    for row in range(probes):
        began = time.perf_counter()
        first.append(engine.first(batch[row]))
        walls.append(1e3 * (time.perf_counter() - began))
    spent = time.process_time() + engine.server_cpu() - cpu
    return quantiles(walls) | {"cpu_ms": round(1e3 * spent / probes, 3)}, np.array(first)


def quantiles(walls: list[float]) -> dict[str, float]:
    """Median and p99."""
    return {"p50_ms": round(statistics.median(walls), 3), "p99_ms": round(float(np.percentile(walls, 99)), 3)}


def adding(engine: Engine, batch: Embeddings, count: int, seconds: float) -> dict[str, float]:
    """Add people in one thread, and search in another; the first, for whom all may be copied, is added before."""
    new = make_gallery(30_000, dim=_DIM, contract_id=_ID, probes=1, seed=9).block
    walls, added, done = list[float](), 0, False

    def add() -> None:
        nonlocal added
        part = slice(added, added + 3)
        ids, people = new.ids[part] + count, new.person_ids[part] + count
        block = TemplateBlock(
            ids=ids, person_ids=people, vectors=new.vectors[part], contract_id=_ID, generation=2 + added
        )
        engine.add(block)
        added += 3

    began = time.perf_counter()
    add()
    first = time.perf_counter() - began
    began = time.perf_counter()

    def work(number: int) -> None:
        nonlocal done
        if number == 0:
            while time.perf_counter() < began + seconds and added < len(new):
                add()
            done = True
        else:
            while not done:
                at = time.perf_counter()
                engine.first(batch[len(walls) % len(batch)])
                walls.append(1e3 * (time.perf_counter() - at))

    side_by_side(work, 2)
    took = time.perf_counter() - began
    return {
        "first_add_s": round(first, 2),
        "templates_a_second": round((added - 3) / took, 1),
        "searches_a_second": round(len(walls) / took, 1),
        **quantiles(walls),
    }


class InMemory(Engine):
    def __init__(self, block: TemplateBlock, name: str) -> None:
        self._index = make_index(block, "graph" if name == "usearch" else name)

    def first(self, probe: Embedding) -> int:
        return int(self._index.search(probe).ids[0])

    def add(self, block: TemplateBlock) -> None:
        self._index.apply(
            Changes(
                generation=block.generation, removed=np.empty(0, np.int64), added=block, history=self._index.history
            )
        )

    def sizes(self) -> dict[str, float]:
        return {"memory_mb": round(self._index.nbytes / 1e6)}


if __name__ == "__main__":
    main()
