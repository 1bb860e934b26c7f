"""IRs of one network in, how fast each is beside the others out: measured in turn, so that noise falls on all alike."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from edgeface.bench.run.load import Loaded, load
from edgeface.bench.run.load_generator import Limits, Recording
from edgeface.bench.run.scenarios import offline, single_stream
from edgeface.bench.schema import Settings
from edgeface.quantize.compress import Progress

__all__ = ["Speed", "Timed", "best_streams", "compare_rounds", "time_in_turn"]

_LEAST, _LONGEST = 3, 60.0
"""Queries of one model in one round, however slow it is; but no more than so many seconds."""

_WARM_UP = Limits(duration_s=0.3, min_count=_LEAST, max_duration_s=_LONGEST)
"""Caches, clocks and threads before anything counts."""

_Turn = tuple[str, bool]
"""A model, and whether it is measured with all it can take (offline) or alone."""


@dataclass(frozen=True, slots=True)
class Speed:
    """One scenario of one model; one value a round.

    Attributes
    ----------
    milliseconds
        Of an image: median latency, or the round's wall time by the images in it.
    cpu_milliseconds
        Of an image, all threads.
    """

    milliseconds: tuple[float, ...]
    cpu_milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of `milliseconds`."""
        return statistics.median(self.milliseconds)

    @property
    def cpu_median(self) -> float:
        """Of `cpu_milliseconds`."""
        return statistics.median(self.cpu_milliseconds)


@dataclass(frozen=True, slots=True)
class Timed:
    """One model.

    Attributes
    ----------
    alone
        One image at a time, hint LATENCY.
    together
        As many as the device takes, hint THROUGHPUT.
    streams, requests
        Of `together`, as compiled.
    precision
        Of the arithmetic that is not in 8 bits, as the device tells it.
    """

    alone: Speed
    together: Speed
    streams: int | None
    requests: int | None
    precision: str | None

    @property
    def latency_ms(self) -> float:
        """Median latency of one image alone."""
        return self.alone.median

    @property
    def images_per_second(self) -> float:
        """Throughput."""
        return 1e3 / self.together.median

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "latency_ms": self.latency_ms,
            "images_per_second": self.images_per_second,
            "latency_cpu_ms": self.alone.cpu_median,
            "throughput_cpu_ms": self.together.cpu_median,
            "streams": self.streams,
            "requests": self.requests,
            "arithmetic": self.precision,
            "rounds": {
                "latency_ms": list(self.alone.milliseconds),
                "images_per_second": [1e3 / each for each in self.together.milliseconds],
            },
        }


def time_in_turn(
    models: Mapping[str, Path],
    *,
    rounds: int = 7,
    seconds: float = 1.0,
    device: str = "CPU",
    streams: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> dict[str, Timed]:
    """Time models one after the other, again and again; every other round in the opposite order.

    Parameters
    ----------
    models
        IRs by name, with what they take themselves as input: batch 1, ready tensors.
    rounds
        How often.
    seconds
        Of one scenario of one model in one round.
    device
        OpenVINO device.
    streams
        Of throughput, by model; otherwise the device's choice.
    progress
        Called before every turn.

    Raises
    ------
    EdgeFaceError
        As `edgeface.bench.run.load`.
    """
    core, wanted = ov.Core(), streams or {}
    with contextlib.ExitStack() as stack:
        alone = {name: stack.enter_context(_load(core, path, device)) for name, path in models.items()}
        together = {
            name: stack.enter_context(_load(core, path, device, offline=True, streams=wanted.get(name)))
            for name, path in models.items()
        }
        turns: dict[_Turn, Loaded] = {(name, False): each for name, each in alone.items()}
        turns |= {(name, True): each for name, each in together.items()}
        recorded = _take_turns(turns, rounds, seconds, progress)
    return {
        name: Timed(
            alone=_speed(recorded[name, False], lambda run: statistics.median(run.latencies_ms)),
            together=_speed(recorded[name, True], lambda run: 1e3 / run.items_per_second),
            streams=together[name].execution.streams,
            requests=together[name].execution.requests,
            precision=together[name].execution.precision,
        )
        for name in models
    }


def best_streams(
    models: Mapping[str, Path], choices: Sequence[int], *, device: str = "CPU", seconds: float = 0.7
) -> dict[str, int]:
    """Find the number of streams that each model's throughput is highest with, tried in turn over three rounds."""
    core = ov.Core()
    found: dict[str, int] = {}
    for name, path in models.items():
        with contextlib.ExitStack() as stack:
            turns: dict[_Turn, Loaded] = {
                (str(choice), True): stack.enter_context(
                    _load(core, path, device, offline=True, streams=choice)
                )
                for choice in choices
            }
            recorded = _take_turns(turns, 3, seconds, None)
        speeds = {
            choice: statistics.median(run.items_per_second for run in recorded[str(choice), True])
            for choice in choices
        }
        found[name] = max(choices, key=speeds.__getitem__)
    return found


def compare_rounds(first: Sequence[float], second: Sequence[float]) -> int:
    """Say which of two series of times of the same rounds is the shorter: -1 the first, 1 the second, 0 neither.

    One is shorter if it was so in every round: with 7 rounds that happens by chance once in 64 times (sign test).
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if all(each < 0 for each in differences):
        return -1
    return 1 if all(each > 0 for each in differences) else 0


def _load(
    core: ov.Core, path: Path, device: str, *, offline: bool = False, streams: int | None = None
) -> Loaded:
    scenario, hint = ("offline", "THROUGHPUT") if offline else ("single-stream", "LATENCY")
    asked = Settings(scenario=scenario, device=device, hint=hint, streams=streams, batch=1)  # type: ignore[arg-type]
    return load(path, asked, core=core)


def _take_turns(
    turns: Mapping[_Turn, Loaded], rounds: int, seconds: float, progress: Progress | None
) -> dict[_Turn, list[Recording]]:
    """Run every turn in every round, after one that is not counted."""
    recorded: dict[_Turn, list[Recording]] = {key: [] for key in turns}
    for key, loaded in turns.items():
        _run(key, loaded, _WARM_UP)
    limits = Limits(duration_s=seconds, min_count=_LEAST, max_duration_s=_LONGEST + seconds)
    for number in range(rounds):
        order = list(turns) if number % 2 == 0 else list(turns)[::-1]
        for place, key in enumerate(order):
            if progress is not None:
                progress("timing", number * len(turns) + place, rounds * len(turns))
            recorded[key].append(_run(key, turns[key], limits))
    return recorded


def _run(key: _Turn, loaded: Loaded, limits: Limits) -> Recording:
    recording = (offline if key[1] else single_stream)(loaded.target, limits)
    if recording.interrupted:
        raise KeyboardInterrupt
    return recording


def _speed(runs: Sequence[Recording], milliseconds: Callable[[Recording], float]) -> Speed:
    cpu = tuple(1e3 * run.cpu_s / (len(run) * run.items) for run in runs)
    return Speed(tuple(float(milliseconds(run)) for run in runs), cpu)
