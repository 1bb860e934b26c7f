"""Measure several models in turn, so that noise of the machine affects all of them alike."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from edgeface.bench.run.load import LoadedModel, load
from edgeface.bench.run.load_generator import Recording, RunLimits
from edgeface.bench.run.scenarios import offline, single_stream
from edgeface.bench.schema import RunSettings
from edgeface.progress import Progress, ProgressCallback, ignore_progress

_LEAST, _LONGEST = 3, 60.0
"""Fewest queries of one model in one round, unless they take longer than this many seconds."""

_WARM_UP = RunLimits(duration_s=0.3, min_count=_LEAST, max_duration_s=_LONGEST)

_Turn = tuple[str, bool]
"""A model's name, and whether it runs the Offline scenario (else SingleStream)."""


@dataclass(frozen=True, slots=True)
class ScenarioTiming:
    """Times of one model in one scenario, one value a round, milliseconds per image.

    `milliseconds` are the median latency, or the wall time of the round divided by its images; `cpu_milliseconds`
    the CPU time of all threads.
    """

    milliseconds: tuple[float, ...]
    cpu_milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of `milliseconds`."""
        return statistics.median(self.milliseconds)

    @property
    def cpu_median(self) -> float:
        """Median of `cpu_milliseconds`."""
        return statistics.median(self.cpu_milliseconds)


@dataclass(frozen=True, slots=True)
class ModelTiming:
    """Times of one model."""

    alone: ScenarioTiming  # SingleStream: one image at a time, hint LATENCY
    loaded: ScenarioTiming  # Offline: all infer requests busy, hint THROUGHPUT
    # Of `loaded`, as compiled
    streams: int | None
    requests: int | None
    precision: str | None  # Inference precision of what is not computed in 8 bits, as the device reports it

    @property
    def latency_ms(self) -> float:
        """Median latency of one image, milliseconds."""
        return self.alone.median

    @property
    def images_per_second(self) -> float:
        """Throughput, images per second."""
        return 1e3 / self.loaded.median

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {
            "latency_ms": self.latency_ms,
            "images_per_second": self.images_per_second,
            "latency_cpu_ms": self.alone.cpu_median,
            "throughput_cpu_ms": self.loaded.cpu_median,
            "streams": self.streams,
            "requests": self.requests,
            "arithmetic": self.precision,
            "rounds": {
                "latency_ms": list(self.alone.milliseconds),
                "images_per_second": [1e3 / each for each in self.loaded.milliseconds],
            },
        }


def measure_in_turn(
    models: Mapping[str, Path],
    *,
    rounds: int = 7,
    seconds: float = 1.0,
    device: str = "CPU",
    streams: Mapping[str, int] | None = None,
    progress: ProgressCallback = ignore_progress,
) -> dict[str, ModelTiming]:
    """Measure latency and throughput of several models in alternating rounds; odd rounds run in reverse order.

    `models` are IRs by name; each runs on its own input type with batch 1. One scenario of one model takes `seconds` in
    one round. `streams` are those of the Offline scenario, by model; the device chooses where none is given. `progress`
    is called before every turn. Errors are those of `edgeface.bench.run.load.load`. Compare two of the results round
    by round, with `compare_rounds`.
    """
    core, wanted = ov.Core(), streams or {}
    with contextlib.ExitStack() as stack:
        turns: dict[_Turn, LoadedModel] = {
            (name, busy): stack.enter_context(
                _load(core, path, device, loaded=busy, streams=wanted.get(name) if busy else None)
            )
            for busy in (False, True)
            for name, path in models.items()
        }
        recorded = _take_turns(turns, rounds, seconds, progress)
    return {
        name: ModelTiming(
            alone=_timing(recorded[name, False], lambda run: statistics.median(run.latencies_ms)),
            loaded=_timing(recorded[name, True], lambda run: 1e3 / run.items_per_second),
            streams=execution.streams,
            requests=execution.requests,
            precision=execution.precision,
        )
        for name in models
        for execution in [turns[name, True].execution]
    }


def best_streams(
    models: Mapping[str, Path], choices: Sequence[int], *, device: str = "CPU", seconds: float = 0.7
) -> dict[str, int]:
    """Find the number of streams with the highest throughput for each model, tried in turn over three rounds."""
    core = ov.Core()
    found: dict[str, int] = {}
    for name, path in models.items():
        with contextlib.ExitStack() as stack:
            turns: dict[_Turn, LoadedModel] = {
                (str(choice), True): stack.enter_context(_load(core, path, device, loaded=True, streams=choice))
                for choice in choices
            }
            recorded = _take_turns(turns, 3, seconds, ignore_progress)
        speeds = {
            choice: statistics.median(run.items_per_second for run in recorded[str(choice), True]) for choice in choices
        }
        found[name] = max(choices, key=speeds.__getitem__)
    return found


def compare_rounds(first: Sequence[float], second: Sequence[float]) -> int:
    """Compare two series of times of the same rounds: -1 if the first is shorter, 1 if the second is, else 0.

    A series is shorter if it is shorter in every round: with 7 rounds chance alone gives that once in 64 times (sign
    test).
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if all(each < 0 for each in differences):
        return -1
    return 1 if all(each > 0 for each in differences) else 0


def _load(core: ov.Core, path: Path, device: str, *, loaded: bool, streams: int | None) -> LoadedModel:
    settings = RunSettings(
        scenario="offline" if loaded else "single-stream",
        device=device,
        hint="THROUGHPUT" if loaded else "LATENCY",
        streams=streams,
        batch=1,
    )
    return load(path, settings, core=core)


def _take_turns(
    turns: Mapping[_Turn, LoadedModel], rounds: int, seconds: float, progress: ProgressCallback
) -> dict[_Turn, list[Recording]]:
    """Run every turn in every round, after one warm-up turn each."""
    recorded: dict[_Turn, list[Recording]] = {key: [] for key in turns}
    for key, loaded in turns.items():
        _run(key, loaded, _WARM_UP)
    limits = RunLimits(duration_s=seconds, min_count=_LEAST, max_duration_s=_LONGEST + seconds)
    for number in range(rounds):
        order = list(turns) if number % 2 == 0 else list(turns)[::-1]
        for place, key in enumerate(order):
            progress(Progress("timing", number * len(turns) + place, rounds * len(turns), "turns"))
            recorded[key].append(_run(key, turns[key], limits))
    return recorded


def _run(key: _Turn, loaded: LoadedModel, limits: RunLimits) -> Recording:
    recording = (offline if key[1] else single_stream)(loaded.target, limits)
    if recording.interrupted:
        raise KeyboardInterrupt
    return recording


def _timing(runs: Sequence[Recording], milliseconds: Callable[[Recording], float]) -> ScenarioTiming:
    cpu = tuple(1e3 * run.cpu_s / (len(run) * run.items) for run in runs)
    return ScenarioTiming(tuple(float(milliseconds(run)) for run in runs), cpu)
