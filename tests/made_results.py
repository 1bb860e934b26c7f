"""Benchmark results as a run would give them, from latencies that are made up."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeface import stats
from edgeface.bench.result import BenchmarkResult, Samples


def made_result(latencies: np.ndarray, *, created: str = "2026-01-01T00:00:00+00:00", **parts: Any) -> BenchmarkResult:
    """A result of queries one after the other; `parts` replaces fields, `settings` and `model` theirs."""
    ends = np.cumsum(latencies)
    starts = np.append(0, ends[:-1])
    ordered = np.sort(latencies)
    estimates = {key: float(ordered[stats.rank(len(ordered), share) - 1]) for key, share in stats.QUANTILES.items()}
    estimates |= {"mean": float(latencies.mean()), "min": float(ordered[0]), "max": float(ordered[-1])}
    rate = len(latencies) / ends[-1] * 1e3
    document = {
        "schema": "edgeface.bench/1",
        "created": created,
        "edgeface": "0.1.0",
        "model": {
            "name": "tiny", "contract_id": "0123456789abcdef", "digest": "0" * 64, "format": "ir",
            "precision": "FP32", "parameters": 1000, "gflops": 2.8, "gflops_mac2": 2.7, "int8_share": 0.0,
            "weight_bytes": 4000, "activation_bytes": 9000, "inputs": {"image": [1, 3, 16, 16]},
        } | parts.pop("model", {}),
        "environment": None,
        "settings": {"scenario": "single-stream", "device": "CPU", "duration_s": 20.0, "min_count": 64}
        | parts.pop("settings", {}),
        "execution": {
            "devices": ["CPU"], "full_names": ["a <CPU>"], "precision": "f32", "streams": 1, "requests": 1,
            "threads": 2, "affinity": None,
        } | parts.pop("execution", {}),
        "latency_ms": estimates,
        "throughput_fps": rate,
        "gflops": 2.8,
        "gflops_per_second": 2.8 * rate,
        "disturbed": False,
        "samples": Samples.pack((starts * 1e6).astype(np.int64), latencies).model_dump(),
    }  # fmt: skip
    return BenchmarkResult.from_dict(document | parts)


def made_kiosk(kept: np.ndarray, *, rng: np.random.Generator, slower: float = 1.0, **parts: Any) -> BenchmarkResult:
    """A kiosk's result: `kept`, (N,) bool, are the frames of 25 a second that were processed; times are made up."""
    numbers = np.flatnonzero(kept)
    times = slower * rng.lognormal(np.log(20), 0.2, len(numbers))
    waits, cpu = (slower * 150 * rng.lognormal(0, 0.3, 60)).tolist(), (slower * rng.normal(18, 0.3, 8)).tolist()
    kiosk = {
        "frame_rate": 25, "frames": len(kept), "dropped": int((~kept).sum()), "detected": len(numbers) // 3,
        "tracked": len(numbers) - len(numbers) // 3, "skipped": 0, "faces": 900, "identities": len(waits),
        "identity_ms": waits, "time_to_identity_ms": stats.summarize(np.array(waits))[0], "liveness": True,
        "decisions": len(waits), "spoofs": 0, "decision_ms": [3 * each for each in waits],
        "time_to_decision_ms": stats.summarize(3 * np.array(waits))[0], "cpu_parts_ms": cpu, "video_digest": "1" * 64,
    }  # fmt: skip
    samples = Samples.pack((numbers * 40_000_000).astype(np.int64), times).model_dump()
    settings = {"scenario": "kiosk"}
    return made_result(
        times, settings=settings, samples=samples, kiosk=kiosk, cpu_ms=float(np.mean(cpu)), gflops=None,
        throughput_fps=25 * float(kept.mean()),
        gflops_per_second=None, **parts,
    )  # fmt: skip


def correlated(rng: np.random.Generator, count: int, rho: float) -> np.ndarray:
    """(count,) standard normal deviates, each correlated by `rho` with the one before."""
    noise = rng.standard_normal(count) * np.sqrt(1 - rho * rho)
    noise[0] /= np.sqrt(1 - rho * rho)
    made = np.empty(count)
    last = 0.0
    for index, each in enumerate(noise):
        made[index] = last = rho * last + each
    return made


def latencies(kind: str, rng: np.random.Generator, count: int, *, median: float = 27.0) -> np.ndarray:
    """(count,) milliseconds as machines give them.

    ``independent``: lognormal, 8 % wide. ``correlated``: the same, neighbours correlated by 0.5. ``persistent``: by
    0.9, and 3 % wide. ``outliers``: 5 % wide, correlated, 2 % of them 1.5 to 5 times as long. ``boost``: two
    speeds, 6 % apart, that last 60 queries on average. ``drift``: a wander over 50 queries beside the noise.
    """
    if kind == "independent":
        logs = 0.08 * rng.standard_normal(count)
    elif kind == "correlated":
        logs = 0.08 * correlated(rng, count, 0.5)
    elif kind == "persistent":
        logs = 0.03 * correlated(rng, count, 0.9)
    elif kind == "outliers":
        logs = 0.05 * correlated(rng, count, 0.5)
        slow = rng.random(count) < 0.02
        logs[slow] += np.log(rng.uniform(1.5, 5, slow.sum()))
    elif kind == "boost":
        changes = np.cumsum(rng.random(count) < 1 / 60) % 2
        logs = 0.04 * correlated(rng, count, 0.4) + 0.06 * changes
    elif kind == "drift":
        logs = 0.05 * correlated(rng, count, 0.3) + 0.03 * correlated(rng, count, 0.98)
    else:
        raise ValueError(kind)
    return median * np.exp(logs)


LAYERS = [
    {"name": f"<layer> {index}", "kind": "Convolution", "exec_type": "jit_avx2_f32", "ms": 0.5 + index / 4,
     "count": 20, "gflops": 0.02 * (index + 1), "bytes": 200_000 * (20 - index), "precision": "f32"}
    for index in range(15)
]  # fmt: skip
"""Of a result: fifteen convolutions, the last the slowest."""

PEAK = {
    "device": "CPU", "full_name": "a <CPU>", "openvino": "2026.4.1", "streams": 1, "threads": 2,
    "products": {
        "f32": {
            "gflops_per_second": 250.0, "executed": "f32", "form": "MatMul", "kernel": "brgemm",
            "shape": [2048] * 3, "milliseconds": 68,
        },
        "bf16": {"unknown": "not computed in here"},
    },
    "bandwidth": {
        "gb_per_second": 20.0, "copy_gb_per_second": 20.0, "triad_gb_per_second": 19.0, "bytes": 1 << 28, "threads": 2,
    },
    "seconds": 3.0,
}  # fmt: skip
"""Of a machine of 250 GFLOP/s and 20 GB/s."""
