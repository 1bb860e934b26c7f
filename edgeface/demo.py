"""Get FaceNet, convert it, check and time it, and write one HTML report."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert import ConversionResult, check_parity, convert
from edgeface.convert.facenet_graph import read_weights, write_graph
from edgeface.convert.ir import random_images
from edgeface.convert.parity import embed_with_ir
from edgeface.convert.seeded import seeded_weights
from edgeface.drawing import write_page
from edgeface.errors import ContractError, InputError, MissingError, ModelFormatError
from edgeface.model.contract import Provenance
from edgeface.model.flops import count_work
from edgeface.model.ir_file import read_contract, read_ir
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.zoo import DownloadPolicy, ModelStore, download, load_catalog
from edgeface.zoo.default import has_default, keep_ir, record_first_default

Crop = NDArray[np.uint8]

MODEL = "facenet-20180408-102900"

_WARM_UP, _TIMED = 5, 40
_ONE_ATTEMPT = DownloadPolicy(attempts=1, timeout=10)
"""A machine without a network should learn so at once, not after a dozen retries."""
_ASTRONAUT_FACE = (66, 186, 163, 283)
"""Rows and columns of Eileen Collins's face, with MTCNN's margin, in scikit-image's 512x512 astronaut."""


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

    a: Crop
    b: Crop
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


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Result of `run_demo`."""

    source: WeightsSource
    conversion: ConversionResult
    compared: tuple[ComparedPair, ...]
    timing: DemoTiming
    report: Path

    @property
    def separation(self) -> tuple[float, float] | None:
        """Lowest similarity of a same-person pair and highest of a two-person pair; None without real pairs."""
        same = [each.similarity for each in self.compared if each.relation == "same person"]
        different = [each.similarity for each in self.compared if each.relation == "different people"]
        return (min(same), max(different)) if same and different else None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        contract, parity = self.conversion.contract, self.conversion.parity
        return {
            "model": MODEL,
            "provenance": contract.provenance,
            "origin": self.source.origin,
            "tried": list(self.source.tried),
            "ir": str(self.conversion.ir),
            "contract_id": contract.contract_id,
            "conversion_seconds": round(self.conversion.seconds, 3),
            "parity": parity.to_dict() if parity is not None else None,
            "pairs": [{"relation": each.relation, "similarity": round(each.similarity, 6)} for each in self.compared],
            "latency_ms": {"p50": round(self.timing.median_ms, 3), "p90": round(self.timing.p90_ms, 3)},
            "gflops": round(self.timing.gflops, 4),
            "gflops_per_second": round(self.timing.gflops_per_second, 1),
            "report": str(self.report),
        }


def run_demo(
    output_dir: Path,
    *,
    data: Path | None = None,
    mirror: str | None = None,
    offline: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: ProgressCallback = ignore_progress,
) -> DemoResult:
    """Get FaceNet 20180408-102900, convert it, check and time it, and write a report.

    A model of published weights becomes the default model, in the model store, unless one is set.

    The IR and ``report.html`` go into `output_dir`, made if absent. `data` is a folder of real data (EDGEFACE_DATA);
    the other parameters are those of `find_weights`.

    Raises InputError if only a seeded IR can be made and `output_dir` has one that is not seeded.
    """
    with tempfile.TemporaryDirectory(prefix="edgeface-demo-") as scratch:
        source = find_weights(
            Path(scratch),
            replaces=output_dir / f"{MODEL}.xml",
            data=data,
            mirror=mirror,
            offline=offline,
            say=say,
            progress=progress,
        )
        golden = data / MODEL / "golden.npz" if data and source.provenance == "published" else None
        golden = golden if golden and golden.is_file() else None
        can_compare = golden is not None or importlib.util.find_spec("tensorflow") is not None
        say(f"converting, with weights from {source.origin}")
        conversion = convert(
            source.model,
            output_dir,
            name=MODEL,
            parity=functools.partial(check_parity, golden=golden) if can_compare else None,
        )
    if source.provenance == "published" and not has_default():
        record_first_default(keep_ir(conversion.ir))
        say("this model is now the default; show it with: edgeface zoo default")
    say("comparing faces")
    compared = _compare(conversion.ir, [*_golden_pairs(data), *_sample_pairs()])
    say("timing")
    result = DemoResult(source, conversion, compared, _time(conversion), output_dir / "report.html")
    write_page(
        result.report,
        "edgeface",
        template="demo.html.j2",
        filters={"png": _png},
        result=result,
        contract=conversion.contract,
        parity=conversion.parity,
        timing=result.timing,
        separation=result.separation,
        seeded=conversion.contract.provenance == "seeded",
    )
    return result


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
        return fetched(f"the mirror {mirror}")

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


def _compare(ir: Path, pairs: list[tuple[Crop, Crop, str]]) -> tuple[ComparedPair, ...]:
    embeddings = embed_with_ir(ir, np.stack([crop for a, b, _ in pairs for crop in (a, b)]))
    similarities = (embeddings[0::2] * embeddings[1::2]).sum(axis=1)
    return tuple(ComparedPair(*pair, similarity) for pair, similarity in zip(pairs, similarities.tolist(), strict=True))


def _golden_pairs(data: Path | None) -> list[tuple[Crop, Crop, str]]:
    """Eight real pairs of one person and four of two people (rows of golden.npz); none without the data."""
    path = data / MODEL / "golden.npz" if data else None
    if path is None or not path.is_file():
        return []
    with np.load(path) as stored:
        images = stored["images"]
    return [
        (images[row], images[row + 1], "same person" if row < 16 else "different people") for row in range(0, 24, 2)
    ]


def _sample_pairs() -> list[tuple[Crop, Crop, str]]:
    """A photo with itself mirrored and darkened, and with noise.

    The photo is the astronaut that scikit-image ships (extra `demo`), or blotches where that is not installed.
    """
    if importlib.util.find_spec("skimage") is None:
        face = np.random.default_rng(1).integers(0, 256, (10, 10, 3), np.uint8)
    else:
        from skimage.data import astronaut

        top, bottom, left, right = _ASTRONAUT_FACE
        face = np.ascontiguousarray(astronaut()[top:bottom, left:right])
    crop = cv2.resize(face, (160, 160), interpolation=cv2.INTER_LINEAR)
    noise = np.random.default_rng(0).integers(0, 256, crop.shape, np.uint8)
    return [
        (crop, np.ascontiguousarray(crop[:, ::-1]), "same photo, mirrored"),
        (crop, (crop * 0.6).astype(np.uint8), "same photo, darker"),
        (crop, noise, "noise"),
    ]


def _time(conversion: ConversionResult) -> DemoTiming:
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


def _png(image: Crop) -> str:
    """Encode an (H, W, 3) RGB image as a data URI."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()
