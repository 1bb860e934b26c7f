"""Size a site: how many machines of a measured kind its cameras, people and decisions need.

The model. A machine of `cores` CPUs watches k cameras of r frames a second, at which d people a second are decided
about, by a gallery of N templates. All costs are CPU time, measured by `edgeface bench run`; its load is their sum over
`cores`::

    decoding    k r decode
    watching    k (open r + (1 - open) min(r, idle)) (convert + motion)
    empty       k (open - present) r (detect + 3 follow) / 4
    glances     k (1 - open) / 5 s detect
    visits      d (detections detect + follows follow + looks (embed + liveness) + other)
    searching   d searches search(N)

- A visit is as in the measured video: numbers of detections, follows and looks a decision, people at once (g), and
  seconds that they stay (t) are the video's. `other` is what the run took beyond its stages, a decision.
- Groups of g people come at random (Poisson), l = d / (k g) a second and camera. Somebody is present in the share
  1 - exp(-l t) of the time, and frames are searched (open) in 1 - exp(-l (t + linger)), because the motion gate stays
  open for `LINGER` seconds. While it is closed, `idle` frames a second are compared and one is searched every `GLANCE`.
- A person who is enrolled is searched for once a look of three. A stranger is searched for again at each further look,
  with all looks so far, at most six.
- A frame waits for a free core as in a queue with Poisson arrivals, exponential work and `cores` servers (Erlang C).
  The load may rise until one frame in a hundred waits longer than `wait_ms`. Cameras are steadier than that and several
  cores share the work on a frame, so the limit is a cautious one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from edgeface.bench.compare.comparable import doubts, read_any
from edgeface.bench.machine.environment import Environment
from edgeface.bench.reading import known
from edgeface.bench.result import BenchmarkResult
from edgeface.bench.run.kiosk import LOOKS
from edgeface.bench.schema import KioskResult, Stage
from edgeface.errors import InputError
from edgeface.gallery.index.exact import MANY
from edgeface.model.contract import current_id
from edgeface.pipeline.motion import GLANCE, LINGER
from edgeface.pipeline.pipeline import DETECT_EVERY

EVENT_BYTES = 300
"""Bytes of one event in events.sqlite, without a picture (`python benchmarks/plan.py --only events`)."""
_NEEDED = frozenset(get_args(Stage)) - {"liveness"}
_LATE = 0.01
"""Share of the frames that may wait longer than allowed."""
_MOST = 0.95
"""Largest load that is ever planned: a measured CPU time is not exact."""
_HIGHEST = 10**12
"""Largest count of a demand."""
_FAR = 2.0
"""Times the largest measured gallery beyond which a search time is called extrapolated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDemand:
    """What a site asks for.

    Attributes
    ----------
    cameras
        Each with the frame rate and the picture size of the measured video.
    decisions
        People a second who are decided about, at all cameras together.
    people, templates
        Enrolled, and templates of each.
    strangers
        Share of the decisions about people who are not enrolled.
    wait_ms
        Time that one frame in a hundred may wait.
    idle_fps
        Frames a second that are compared while nothing moves, as in the settings of `edgeface watch`.
    """

    cameras: int
    decisions: float
    people: int
    templates: int = 3
    strangers: float = 0.0
    wait_ms: float = 100.0
    idle_fps: float = 4.0

    def __post_init__(self) -> None:
        counts = ("cameras", "people", "templates")
        wrong = [
            f"{name} of {value}"
            for name, value in dataclasses.asdict(self).items()
            if not (
                1 <= value <= _HIGHEST
                if name in counts
                else (0 <= value <= 1 if name == "strangers" else 0 < value < math.inf)
            )
        ]
        if wrong:
            raise InputError(
                f"plan: expected 1 to {_HIGHEST:,} cameras, people and templates, decisions, wait and idle frames "
                f"above 0, and a share of strangers from 0 to 1, found {', '.join(wrong):.300}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCost:
    """One part of the load of the busiest machine: `ms` of CPU time, `rate` times a second, and where `ms` is from."""

    name: str
    ms: float
    rate: float
    source: str

    @property
    def cpus(self) -> float:
        """CPUs that it keeps busy."""
        return self.ms * self.rate / 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """How many machines a site needs.

    Attributes
    ----------
    machine
        The kind that was measured.
    machines, cameras_each
        How many, and the cameras of the busiest one.
    load, limit
        CPU load of the busiest one, and the largest that keeps waiting short enough: shares of all its cores.
    decision_ms
        CPU time of one decision: visit and search.
    costs
        Parts of the load.
    memory
        Bytes of one machine by part.
    event_bytes
        Disk for the events of one day at all machines.
    unknown
        What was not measured, so that it is in no figure.
    assumed
        What the plan takes for granted.
    doubts
        Reasons why its figures are doubtful.
    """

    demand: SiteDemand
    machine: str
    cores: int
    machines: int
    cameras_each: int
    load: float
    limit: float
    decision_ms: float
    costs: tuple[PlannedCost, ...]
    memory: dict[str, int]
    event_bytes: int
    unknown: tuple[str, ...]
    assumed: tuple[str, ...]
    doubts: tuple[str, ...]

    def __str__(self) -> str:
        asked, machines = self.demand, f"{self.machines:,} machine{'s' * (self.machines > 1)} of this kind"
        cameras = f"{asked.cameras:,} camera{'s' * (asked.cameras > 1)}"
        return (
            f"{cameras} at {asked.decisions:g} decisions a second, {asked.people:,} people: {machines} at "
            f"{100 * self.load:.0f} % load"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        costs = [dataclasses.asdict(each) | {"cpus": each.cpus} for each in self.costs]
        return {**dataclasses.asdict(self), "costs": costs, "summary": str(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteBasis:
    """What `plan_site` computes from: measurements of one machine with one model.

    `searches` are, by the index's storage, numbers of templates, rising, and the CPU milliseconds of one search;
    `bytes_each` is the memory of
    one template in the index.
    """

    name: str
    kiosk: KioskResult
    frame_ms: float
    processed: int
    cores: int
    machine: str
    memory_bytes: int | None
    searches: dict[str, list[tuple[int, float]]]
    bytes_each: float
    unknown: tuple[str, ...]
    doubts: tuple[str, ...]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> SiteBasis:
        """Read one result of the kiosk scenario and any number of the search scenario.

        Raises
        ------
        InputError
            If one is no result or lacks what a plan needs, or they are of different machines, models or indexes.
        """
        named = [(str(path), read_any(path)) for path in paths]
        kiosks = [(name, run) for name, run in named if run.kiosk is not None]
        searches = [(name, run) for name, run in named if run.search is not None]
        if len(kiosks) != 1 or len(kiosks) + len(searches) != len(named):
            other = [run.settings.scenario for _, run in named if run.kiosk is None and run.search is None]
            raise InputError(
                expected="one result of the kiosk scenario, and results of the search scenario",
                found=f"{len(kiosks)} of kiosk, {len(searches)} of search" + (f", and {other[0]}" if other else ""),
                remedy="measure: edgeface bench run MODEL --scenario kiosk --video FILE -o DIR",
            )
        (name, run), kiosk = kiosks[0], kiosks[0][1].kiosk
        assert kiosk is not None
        _require_complete(name, run, kiosk)
        for other_name, each in searches:
            _require_same(name, run, other_name, each)
        points: dict[str, list[tuple[int, float]]] = {}
        sizes = [0.0]
        for _, each in searches:
            assert each.search is not None
            points.setdefault(each.search.storage, []).append((each.search.templates, each.cpu_ms or 0.0))
            sizes.append(each.search.index_bytes / each.search.templates)
        if "graph" in points and len(points) > 1:
            found = " and ".join(sorted(points))
            raise InputError(expected="searches of one kind of index", found=found, remedy="plan with each")
        environment = run.environment
        assert environment is not None
        return cls(
            name=name,
            kiosk=kiosk,
            frame_ms=run.cpu_ms or 0.0,
            processed=kiosk.frames - kiosk.dropped,
            cores=_cores(environment),
            machine=_machine(environment),
            memory_bytes=known(environment.machine.memory_bytes),
            searches={storage: sorted(each) for storage, each in points.items()},
            bytes_each=max(sizes),
            unknown=_unmeasured(run, kiosk, searches=bool(searches)),
            doubts=tuple(f"{where}: {doubt}" for where, each in named for doubt in doubts(each)),
        )

    def search_ms(self, templates: int) -> tuple[float, str]:
        """Return the CPU milliseconds of a search of so many templates, and how that is known."""
        storage, points = self._index(templates)
        if not points:
            return 0.0, "not measured"
        sizes, times = zip(*points, strict=True)
        if templates in sizes:
            return times[sizes.index(templates)], f"measured, {storage}"
        if sizes[0] < templates < sizes[-1]:
            above = next(row for row, size in enumerate(sizes) if size > templates)
            share = (templates - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
            return times[above - 1] + share * (times[above] - times[above - 1]), f"between two measured, {storage}"
        nearest = 0 if templates < sizes[0] else -1
        if nearest == 0 and storage == "graph":  # whose time hardly depends on the number
            return times[0], f"as of {sizes[0]:,}, {storage}"
        return times[nearest] * templates / sizes[nearest], f"in proportion to {sizes[nearest]:,}, {storage}"

    def largest(self, templates: int) -> int:
        """Return the largest number that was searched of the index that so many templates have; 0: none was."""
        return max((size for size, _ in self._index(templates)[1]), default=0)

    def _index(self, templates: int) -> tuple[str, list[tuple[int, float]]]:
        """Return what was measured of the index that so many templates have; of two, as `exact_index` chooses."""
        chosen = "int8" if templates > MANY else "float32"
        storage = chosen if chosen in self.searches else next(iter(self.searches), "")
        return storage, self.searches.get(storage, [])


def _require_complete(name: str, run: BenchmarkResult, kiosk: KioskResult) -> None:
    """Refuse a kiosk's result without what the model needs."""
    again = "measure again with this edgeface, on a video in which people are decided about"
    if run.partial or run.environment is None or not run.cpu_ms:
        raise InputError(path=name, expected="a complete run", found="one that was interrupted", remedy=again)
    if not kiosk.stage_ms or kiosk.detected is None or kiosk.resident_bytes is None:
        raise InputError(path=name, expected="the times of each stage", found="none", remedy=again)
    if not (kiosk.decisions and kiosk.embeddings and kiosk.faces and kiosk.frames > kiosk.dropped) or not (
        kiosk.frame_rate and kiosk.stage_ms.keys() >= _NEEDED
    ):
        found = f"{kiosk.decisions or 0} decisions, {kiosk.embeddings or 0} looks"
        raise InputError(path=name, expected="a video in which people are decided about", found=found, remedy=again)


def _require_same(name: str, run: BenchmarkResult, other_name: str, other: BenchmarkResult) -> None:
    """Refuse a result of another model or machine."""
    ids = [each.model.contract_id and current_id(each.model.contract_id) for each in (run, other)]
    if ids[0] != ids[1] or ids[0] is None:
        raise InputError(f"{name}, {other_name}: expected results of one model, found contracts {ids[0]} and {ids[1]}")
    if other.partial or other.environment is None or not other.cpu_ms:
        raise InputError(path=other_name, expected="a complete run", found="a partial one", remedy="measure again")
    assert run.environment is not None
    machines = [(_machine(each), _cores(each)) for each in (run.environment, other.environment)]
    if machines[0] != machines[1]:
        raise InputError(
            f"{name}, {other_name}: expected results of one machine, found {machines[0][0]} and {machines[1][0]}; "
            "measure both where the site will run"
        )


def _cores(environment: Environment) -> int:
    """Return the CPUs that the run could use."""
    limit, affinity = known(environment.container.cpu_limit), known(environment.container.affinity)
    counts = [len(affinity) if affinity else known(environment.machine.threads) or 1]
    return max(1, min(counts + ([math.ceil(limit)] if limit else [])))


def _machine(environment: Environment) -> str:
    memory, model = known(environment.machine.memory_bytes), known(environment.machine.cpu_model)
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    return f"{_cores(environment)} CPUs of {model or environment.machine.architecture}{size}"


def _unmeasured(run: BenchmarkResult, kiosk: KioskResult, *, searches: bool) -> tuple[str, ...]:
    """List what no given result tells."""
    found = []
    if not searches:
        found.append(
            "searching: add results of 'edgeface bench run MODEL --scenario search --templates N'; the load is too low "
            "without"
        )
    if not kiosk.liveness:
        found.append("liveness: it was not judged in the measured run; measure with --liveness if the site judges it")
    if run.execution.devices != ("CPU",):
        found.append(f"the load of {', '.join(run.execution.devices)}: only CPU time is counted")
    return (*found, "network, writing events, pages and other programs on the machine", "energy and price")


def plan_site(basis: SiteBasis, demand: SiteDemand) -> SitePlan:
    """Find the fewest machines whose load keeps waiting short enough.

    Raises
    ------
    InputError
        If one camera with its share of the decisions is too much for a machine, or the run took no longer than its
        decoding.
    """
    templates = demand.people * demand.templates
    costs = _costs(basis, demand, templates)
    limit = load_limit(basis.cores, _work_ms(costs), demand.wait_ms)
    alone = sum(cost.cpus for cost in costs) / basis.cores
    if not 0 < alone <= limit:
        raise InputError(
            expected=f"a load of at most {100 * limit:.0f} %",
            found=f"{100 * alone:.0f} % with one camera and {templates:,} templates on {basis.machine}",
            remedy="measure a faster machine, a smaller model or another index, or allow a longer wait",
        )
    machines = math.ceil(demand.cameras / int(limit / alone))
    each = math.ceil(demand.cameras / machines)
    decided = demand.decisions * each / demand.cameras
    costs = [dataclasses.replace(cost, rate=each * cost.rate) for cost in costs]
    memory = {
        "process and models": basis.kiosk.resident_bytes or 0,
        "further cameras": (each - 1) * (basis.kiosk.camera_bytes or 0),
        "gallery": round(templates * basis.bytes_each),
    }
    doubtful = list(basis.doubts)
    if (room := basis.memory_bytes) is not None and sum(memory.values()) > room:
        doubtful.append(f"memory: {sum(memory.values()) / 1e9:.1f} GB are needed, the machine has {room / 1e9:.1f} GB")
    if (largest := basis.largest(templates)) and templates > _FAR * largest:
        doubtful.append(f"the search of {templates:,} templates is extrapolated from {largest:,}")
    return SitePlan(
        demand=demand,
        machine=basis.machine,
        cores=basis.cores,
        machines=machines,
        cameras_each=each,
        load=each * alone,
        limit=limit,
        decision_ms=1e3 * sum(cost.cpus for cost in costs if cost.name in _DECIDING) / decided,
        costs=tuple(costs),
        memory=memory,
        event_bytes=round(86_400 * demand.decisions * EVENT_BYTES),
        unknown=basis.unknown,
        assumed=_assumptions(basis, demand),
        doubts=(*doubtful, *_strains(basis, demand, costs)),
    )


_DECIDING = ("detect", "follow", "embed", "liveness", "other", "search")


def _costs(basis: SiteBasis, demand: SiteDemand, templates: int) -> list[PlannedCost]:
    """List the costs of one camera with its share of the decisions; a machine's are as many times as large."""
    kiosk, rate = basis.kiosk, basis.kiosk.frame_rate
    made, ms = kiosk.decisions or 1, {str(name): each for name, each in kiosk.stage_ms.items()}
    detected, followed, looks = ((count or 0) / made for count in (kiosk.detected, kiosk.tracked, kiosk.embeddings))
    decisions = demand.decisions / demand.cameras
    groups = decisions / _together(kiosk)
    present = 1 - math.exp(-groups * _stay(basis))
    opened = 1 - math.exp(-groups * (_stay(basis) + LINGER))
    watched = opened * rate + (1 - opened) * min(rate, demand.idle_fps)
    staged = (kiosk.frames * (ms["decode"] + ms["convert"]) + basis.processed * ms["motion"]) / made
    live = ms.get("liveness", 0.0) if kiosk.liveness else 0.0
    visit = detected * ms["detect"] + followed * ms["follow"] + looks * (ms["embed"] + live)
    deciding = basis.frame_ms * basis.processed / made - staged
    if deciding <= 0:
        raise InputError(
            path=basis.name,
            expected="a run that took longer than its decoding and watching",
            found=f"{deciding:.3g} ms left of each decision",
            remedy="measure again, on a quieter machine or at fewer frames a second",
        )
    search, source = basis.search_ms(templates)
    stage, run = f"stage of {basis.name}", f"the rest of {basis.name}"
    return [
        PlannedCost(name="decode", ms=ms["decode"], rate=rate, source=stage),
        PlannedCost(name="convert, motion", ms=ms["convert"] + ms["motion"], rate=watched, source=stage),
        PlannedCost(
            name="empty frames",
            ms=(ms["detect"] + (DETECT_EVERY - 1) * ms["follow"]) / DETECT_EVERY,
            rate=(opened - present) * rate,
            source=stage,
        ),
        PlannedCost(name="glances", ms=ms["detect"], rate=(1 - opened) / GLANCE, source=stage),
        PlannedCost(name="detect", ms=ms["detect"], rate=decisions * detected, source=stage),
        PlannedCost(name="follow", ms=ms["follow"], rate=decisions * followed, source=stage),
        PlannedCost(name="embed", ms=ms["embed"], rate=decisions * looks, source=stage),
        *([PlannedCost(name="liveness", ms=live, rate=decisions * looks, source=stage)] if live else []),
        PlannedCost(name="other", ms=deciding - visit, rate=decisions, source=run),
        PlannedCost(name="search", ms=search, rate=decisions * _searches(looks, demand.strangers), source=source),
    ]


def _together(kiosk: KioskResult) -> float:
    """Return the people who are before the camera at once, while somebody is."""
    return max(1.0, kiosk.faces / max(1, (kiosk.detected or 0) + (kiosk.tracked or 0)))


def _stay(basis: SiteBasis) -> float:
    """Return the seconds that a person who is decided about is seen."""
    kept = basis.processed / basis.kiosk.frames
    return basis.kiosk.faces / (basis.kiosk.frame_rate * kept) / (basis.kiosk.decisions or 1)


def _searches(looks: float, strangers: float) -> float:
    """Return the searches a decision: of each look once, or of a stranger again at every look."""
    last = max(LOOKS, min(round(looks), 3 * LOOKS))
    again = sum(min(number, 2 * LOOKS) for number in range(LOOKS, last + 1))
    return (1 - strangers) * LOOKS + strangers * again


def _work_ms(costs: Sequence[PlannedCost]) -> float:
    """Return the mean CPU time of a frame that is looked at, the searches that it leads to included."""
    frames = next(cost.rate for cost in costs if cost.name == "convert, motion")
    return 1e3 * sum(cost.cpus for cost in costs if cost.name != "decode") / frames


def load_limit(cores: int, work_ms: float, wait_ms: float) -> float:
    """Return the largest load of `cores` at which one job in a hundred waits longer than `wait_ms`.

    Jobs come at random and take `work_ms` on one core, exponentially distributed: P(wait > t) = C exp(-(1 - load)
    cores t / work), with Erlang's C (e.g. Gross et al., Fundamentals of Queueing Theory, 4th ed., section 2.3).

    Examples
    --------
    >>> round(load_limit(2, 20.0, 100.0), 2), round(load_limit(16, 20.0, 100.0), 2)
    (0.62, 0.95)
    """
    low, high = 0.0, _MOST
    for _ in range(30):
        load = (low + high) / 2
        late = _erlang_c(cores, load * cores) * math.exp(-(1 - load) * cores * wait_ms / work_ms)
        low, high = (load, high) if late <= _LATE else (low, load)
    return low if low < _MOST - 1e-6 else _MOST


def _erlang_c(servers: int, offered: float) -> float:
    """Return the share of jobs that find all servers busy."""
    blocked = 1.0  # Erlang's B, by its recursion
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def _assumptions(basis: SiteBasis, demand: SiteDemand) -> tuple[str, ...]:
    kiosk = basis.kiosk
    size = "x".join(map(str, reversed(kiosk.frame_size or ())))
    return (
        f"cameras of {size} at {kiosk.frame_rate:g} frames a second, {demand.idle_fps:g} without motion",
        f"{_together(kiosk):.1f} people at once, each seen for {_stay(basis):.1f} s, as in the measured video",
        "everybody who comes is enrolled"
        if not demand.strangers
        else f"{100 * demand.strangers:g} % of those who come are strangers, who are searched for again at each look",
    )


def _strains(basis: SiteBasis, demand: SiteDemand, costs: Sequence[PlannedCost]) -> list[str]:
    """List where the demand or the run goes beyond what the model holds for."""
    kiosk, found = basis.kiosk, []
    crowd = demand.decisions * _stay(basis) / demand.cameras
    if crowd > _together(kiosk):
        found.append(f"{crowd:.1f} people at once before each camera, more than in the video: the load is too high")
    if kiosk.dropped_share > _LATE:
        found.append(
            f"the measured run dropped {100 * kiosk.dropped_share:.0f} % of its frames: measure on a quieter machine, "
            "or at fewer frames a second"
        )
    if (rest := next(cost.ms for cost in costs if cost.name == "other")) < 0:
        found.append(
            f"the stages of the measured run took longer than all of it, {-rest:.3g} ms a decision, which are "
            "subtracted: measure on a quieter machine"
        )
    return found


def sizing_table(
    basis: SiteBasis, demand: SiteDemand, *, cameras: Sequence[int], people: Sequence[int]
) -> list[list[SitePlan | None]]:
    """Plan every number of cameras (a row each) with every number of people; None where one camera is too much.

    Decisions a second stay in proportion to the cameras.
    """
    rows: list[list[SitePlan | None]] = []
    for count in cameras:
        row: list[SitePlan | None] = []
        for size in people:
            asked = dataclasses.replace(
                demand, cameras=count, people=size, decisions=demand.decisions * count / demand.cameras
            )
            try:
                row.append(plan_site(basis, asked))
            except InputError:
                row.append(None)
        rows.append(row)
    return rows
