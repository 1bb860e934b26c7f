"""A folder in; a converted FaceNet, its proof, comparisons, timing and a report in that folder out."""

from __future__ import annotations

import functools
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgeface.convert import ConversionResult, check_parity, convert
from edgeface.convert.ir import random_images
from edgeface.convert.parity import embed_with_ir
from edgeface.demo.report import write_report
from edgeface.demo.samples import Pair, golden_pairs, sample_pairs
from edgeface.demo.source import MODEL, Source, find_source
from edgeface.model.flops import count_work
from edgeface.model.ir_file import read_ir
from edgeface.zoo import Progress
from edgeface.zoo.default import has_default, keep_ir, record_first_default

__all__ = ["ComparedPair", "DemoResult", "Timing", "run_demo"]

_WARM_UP, _TIMED = 5, 40


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """Two crops and the cosine similarity of their embeddings."""

    pair: Pair
    similarity: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of one face at a time on the CPU, in milliseconds, and the work it does."""

    device: str
    median_ms: float
    p90_ms: float
    gflops: float

    @property
    def gflops_per_second(self) -> float:
        """Work of one face, 2 x MAC, over the median latency."""
        return self.gflops / self.median_ms * 1000


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything the demo found out."""

    source: Source
    conversion: ConversionResult
    compared: tuple[ComparedPair, ...]
    timing: Timing
    report: Path

    @property
    def separation(self) -> tuple[float, float] | None:
        """Lowest similarity of one person's pairs and highest of two people's, where there are real pairs."""
        same = [each.similarity for each in self.compared if each.pair.relation == "same person"]
        different = [each.similarity for each in self.compared if each.pair.relation == "different people"]
        return (min(same), max(different)) if same and different else None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        parity = self.conversion.parity
        return {
            "model": MODEL,
            "provenance": self.conversion.contract.provenance,
            "origin": self.source.origin,
            "tried": list(self.source.tried),
            "ir": str(self.conversion.ir),
            "contract_id": self.conversion.contract.contract_id,
            "conversion_seconds": round(self.conversion.seconds, 3),
            "parity": parity.to_dict() if parity else None,
            "pairs": [
                {"relation": each.pair.relation, "similarity": round(each.similarity, 6)}
                for each in self.compared
            ],
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
    progress: Progress = lambda event: None,
) -> DemoResult:
    """Get FaceNet 20180408-102900, convert it, show that it is right, time it, and write a report.

    Parameters
    ----------
    output_dir
        Receives the IR and ``report.html``; made if absent.
    data
        Folder of real data (EDGEFACE_DATA), or None.
    mirror, offline, say, progress
        As in `edgeface.demo.source.find_source`.
    """
    with tempfile.TemporaryDirectory(prefix="edgeface-demo-") as scratch:
        source = find_source(
            Path(scratch), data=data, mirror=mirror, offline=offline, say=say, progress=progress
        )
        golden = data / MODEL / "golden.npz" if data and source.provenance == "published" else None
        golden = golden if golden and golden.is_file() else None
        can_compare = golden is not None or importlib.util.find_spec("tensorflow") is not None
        say(f"converting, with weights from {source.origin}")
        conversion = convert(
            source.model,
            output_dir,
            name=MODEL,
            provenance=source.provenance,
            parity=functools.partial(check_parity, golden=golden) if can_compare else None,
        )
    if source.provenance == "published" and not has_default():
        record_first_default(keep_ir(conversion.ir))
        say("this model is now the default; see: edgeface zoo default")
    say("comparing faces")
    compared = _compare(conversion.ir, [*golden_pairs(data), *sample_pairs()])
    say("timing")
    timing = _time(conversion.ir, conversion)
    result = DemoResult(source, conversion, compared, timing, output_dir / "report.html")
    write_report(result)
    return result


def _compare(ir: Path, pairs: list[Pair]) -> tuple[ComparedPair, ...]:
    images = np.stack([crop for pair in pairs for crop in (pair.a, pair.b)])
    embeddings = embed_with_ir(ir, images)
    similarities = (embeddings[0::2] * embeddings[1::2]).sum(axis=1)
    return tuple(ComparedPair(*each) for each in zip(pairs, similarities.tolist(), strict=True))


def _time(ir: Path, conversion: ConversionResult) -> Timing:
    model = read_ir(ir)
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
    return Timing(
        device=str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        median_ms=statistics.median(milliseconds),
        p90_ms=statistics.quantiles(milliseconds, n=10)[-1],
        gflops=count_work(model).gflops_mac2,
    )
