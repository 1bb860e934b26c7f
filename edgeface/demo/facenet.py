"""Get the published FaceNet or a seeded one, compare pairs of real faces with it, and time it."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert import ConversionResult
from edgeface.convert.facenet_graph import read_weights, write_graph
from edgeface.convert.ir import random_images
from edgeface.convert.parity import embed_with_ir
from edgeface.convert.seeded import seeded_weights
from edgeface.errors import ContractError, InputError, MissingError, ModelFormatError
from edgeface.model.contract import Provenance
from edgeface.model.flops import count_work
from edgeface.model.ir_file import read_contract, read_ir
from edgeface.progress import ProgressCallback
from edgeface.text import without_secrets
from edgeface.untrusted import read_npz
from edgeface.zoo import DownloadPolicy, ModelStore, download, load_catalog

MODEL = "facenet-20180408-102900"

_WARM_UP, _TIMED = 5, 40
_ONE_ATTEMPT = DownloadPolicy(attempts=1, timeout=10)
"""A machine without a network should learn so at once, not after a dozen retries."""


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """A zoo name or path to convert, where its weights are from, and the places that had none, with the reasons."""

    model: str | Path
    origin: str
    provenance: Provenance
    tried: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """Two (160, 160, 3) uint8 RGB crops, their relation, and the cosine similarity of their embeddings."""

    a: NDArray[np.uint8]
    b: NDArray[np.uint8]
    relation: str
    similarity: float


@dataclass(frozen=True, slots=True)
class DemoTiming:
    """Latency of one face at a time on the CPU, in milliseconds, and its work (10^9 operations, 2 x MAC)."""

    device: str
    median_ms: float
    p90_ms: float
    gflops: float

    @property
    def gflops_per_second(self) -> float:
        """Work of one face over the median latency."""
        return self.gflops / self.median_ms * 1000


def find_weights(
    folder: Path,
    *,
    replaces: Path,
    data: Path | None,
    mirror: str | None,
    offline: bool,
    say: Callable[[str], None],
    progress: ProgressCallback,
) -> WeightsSource:
    """Find weights in the store, at a mirror, in the data folder or at the publisher; else make seeded ones.

    A graph that has to be built from weights goes into `folder`. `replaces` is where its IR will be written: seeded
    weights are refused if the IR there is not seeded. `data` may have
    ``facenet-20180408-102900/weights.npz``. `mirror` is an address or folder, by default EDGEFACE_MIRROR. With
    `offline` the publisher is not asked. `say` is called with a line of text at a time.
    """
    entry, store = load_catalog()[MODEL], ModelStore()
    mirror = mirror or os.environ.get("EDGEFACE_MIRROR")

    def from_store() -> tuple[str | Path, str]:
        store.source_path(entry)
        return MODEL, "the store"

    def from_mirror() -> tuple[str | Path, str]:
        if not mirror:
            raise MissingError("no mirror is set")
        return fetched(f"the mirror {without_secrets(mirror)}")

    def from_data() -> tuple[str | Path, str]:
        weights = data / MODEL / "weights.npz" if data else None
        if weights is None or not weights.is_file():
            raise MissingError(f"no {MODEL}/weights.npz in {data}" if data else "EDGEFACE_DATA is not set")
        return write_graph(read_weights(weights), folder / f"{MODEL}.pb"), "EDGEFACE_DATA"

    def from_publisher() -> tuple[str | Path, str]:
        if offline:
            raise MissingError("skipped because of --offline")
        return fetched("its publisher")

    def fetched(origin: str) -> tuple[str | Path, str]:
        say(f"downloading {MODEL} from {origin}; licence {entry.license_name}, {entry.license}")
        download(entry, store, mirror=mirror, policy=_ONE_ATTEMPT, progress=progress)
        store.record_license(entry, "shown")
        return MODEL, origin

    tried: list[str] = []
    places = {"store": from_store, "mirror": from_mirror, "EDGEFACE_DATA": from_data, "publisher": from_publisher}
    for place, look in places.items():
        try:
            return WeightsSource(*look(), "published", tuple(tried))
        except MissingError as error:
            tried.append(f"{place}: {error}")
    with contextlib.suppress(ModelFormatError, ContractError):  # there is none, or it is unusable
        if read_contract(replaces)[1].provenance != "seeded":
            raise InputError(
                path=replaces,
                expected="no IR of real weights where a seeded one will be written",
                found=f"one, and no published weights ({'; '.join(tried)})",
                remedy="write the seeded one elsewhere with --output-dir, or name the weights' folder with --data",
            )
    say("no published weights found; making SEEDED ones, with which no person is recognised")
    graph = write_graph(seeded_weights(0), folder / f"{MODEL}.pb", seeded=True)
    return WeightsSource(graph, "a seed", "seeded", tuple(tried))


def compare_pairs(ir: Path, pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8], str]]) -> tuple[ComparedPair, ...]:
    if not pairs:
        return ()
    embeddings = embed_with_ir(ir, np.stack([crop for a, b, _ in pairs for crop in (a, b)]))
    similarities = (embeddings[0::2] * embeddings[1::2]).sum(axis=1)
    return tuple(ComparedPair(*pair, similarity) for pair, similarity in zip(pairs, similarities.tolist(), strict=True))


def golden_pairs(data: Path | None) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8], str]]:
    """Eight real pairs of one person and four of two people (rows of golden.npz); none without the data."""
    path = data / MODEL / "golden.npz" if data else None
    if path is None or not path.is_file():
        return []
    images = read_npz(path, "golden images")["images"]
    return [
        (images[row], images[row + 1], "same person" if row < 16 else "different people") for row in range(0, 24, 2)
    ]


def time_one_face(conversion: ConversionResult) -> DemoTiming:
    model = read_ir(conversion.ir)
    core = ov.Core()
    static = model.clone()
    static.reshape(list(conversion.contract.input_shape(1)))
    request = core.compile_model(static, "CPU", {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
    image = random_images(conversion.contract, 1)
    milliseconds = []
    for index in range(_WARM_UP + _TIMED):
        started = time.perf_counter()
        request.infer({0: image})
        if index >= _WARM_UP:
            milliseconds.append((time.perf_counter() - started) * 1000)
    return DemoTiming(
        device=str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        median_ms=statistics.median(milliseconds),
        p90_ms=statistics.quantiles(milliseconds, n=10)[-1],
        gflops=count_work(model).gflops_mac2,
    )
