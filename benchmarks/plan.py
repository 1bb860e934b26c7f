"""Is what `edgeface plan` predicts what a machine then takes? Prints JSON.

    python benchmarks/plan.py MODEL VIDEO [--yunet ONNX] [--only load|events] [--rounds 3] [--json]

MODEL is an IR, VIDEO a file with faces. YuNet detects if its file is given, else MTCNN.

load      measures VIDEO by the kiosk scenario and a made gallery by the search scenario, and plans a site that is
          another one: --cameras, a gallery of --people, and people who come for the length of VIDEO and then do not for
          --still seconds, in which the picture only has a camera's noise. Then `edgeface.kiosk.watch` watches that
          site: DoorWatch with a gallery in a file whose people are those of the video and made ones, and with files as
          cameras, of which no frame is dropped however busy the machine is. `ratio` is predicted over measured CPU time
          (a median of rounds that begin with new measurements), a second of the film; `parts` are the plan's costs.
events    bytes of one event in the log, of 20,000 that are recorded without a picture.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import edgeface
from edgeface.bench.plan import SiteBasis, SiteDemand, plan_site
from edgeface.bench.run.kiosk import VideoFile
from edgeface.bench.run.runner import ScenarioOptions, benchmark
from edgeface.bench.run.search import make_gallery
from edgeface.bench.schema import RunSettings
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.opening import create_gallery, open_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.kiosk.events import EventLog
from edgeface.kiosk.settings import WatchSettings
from edgeface.kiosk.watch import DoorWatch
from edgeface.model.embedding import Embedding
from edgeface.pipeline.pipeline import Pipeline
from edgeface.vision.source import open_source

_PLAYS = 2
"""Times that people come in the film."""
RATE = 15.0
"""Frames a second that `edgeface watch` analyses of a camera."""


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "video"):
        parser.add_argument(name, type=Path, nargs="?")
    parser.add_argument("--yunet", type=Path)
    parser.add_argument("--only", choices=("load", "events"), action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--still", type=float, default=14.0, help="seconds without anybody, after each play of VIDEO")
    parser.add_argument("--people", type=int, default=20_000)
    parser.add_argument("--work", type=Path, help="an empty folder that keeps films, gallery and results")
    parser.add_argument("--json", action="store_true", help="print the figures that are quoted alone")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as opened:
        folder = given.work or Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="edgeface-plan-")))
        if "load" in (given.only or ("load",)):
            site = Site(given, folder)
            rounds = [site.compare(number) for number in range(given.rounds)]
            found |= {"ratio": statistics.median(each["ratio"] for each in rounds), "rounds": rounds}
        if "events" in (given.only or ("events",)):
            found |= event_bytes(folder)
    print(
        json.dumps(
            {key: found[key] for key in ("ratio", "event_bytes") if key in found} if given.json else found, indent=1
        )
    )


class Site:
    """What is planned, and then watched."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.people, self.film = folder / "people.mp4", folder / "film.mp4"
        self.frames = write_films(given.video, self.people, self.film, still=given.still)

        self.finder: Any = {"detector": "yunet", "detector_model": given.yunet} if given.yunet else {}
        with edgeface.load(given.model, min_size=64, **self.finder) as app:
            self.enrol(app)

    def compare(self, number: int) -> dict[str, Any]:
        """Measure, plan, watch."""
        given, period = self.given, self.frames / RATE + self.given.still
        with edgeface.load_detector(self.finder.get("detector", "mtcnn"), model=given.yunet, min_size=64) as detector:
            kiosk = self.measure("kiosk", number, video=VideoFile.open(self.people, rate=RATE), detector=detector)
        search = self.measure("search", number, templates=3 * given.people)
        basis = SiteBasis.read([kiosk, search])
        plays = basis.kiosk.frames / self.frames
        coming = given.cameras * (basis.kiosk.decisions or 1) / plays / period
        demand = SiteDemand(cameras=given.cameras, decisions=coming, people=given.people, wait_ms=1e6, idle_fps=RATE)
        plan = plan_site(basis, demand)
        assert plan.machines == 1
        predicted = plan.load * plan.cores
        with edgeface.load(given.model, min_size=64, **self.finder) as app:
            measured = self.watch(app, seconds=_PLAYS * period)
        return {
            "ratio": round(predicted / measured["cpus"], 3),
            "predicted_cpus": round(predicted, 3),
            "measured": measured,
            "decisions_a_second": round(coming, 3),
            "parts": {each.name: round(each.cpus, 4) for each in plan.costs},
            "load_average": os.getloadavg()[0],
        }

    def measure(self, scenario: str, number: int, **options: Any) -> Path:
        """Run one scenario."""
        settings = RunSettings(scenario=scenario, device="CPU", hint="THROUGHPUT", duration_s=4 * self.frames / RATE)
        if scenario == "search":
            settings = settings.model_copy(update={"duration_s": 5.0})
        run = benchmark(self.given.model, settings, options=ScenarioOptions(**options), peak=False, layers=False)
        return run.write(self.folder / f"{scenario}-{number}")

    def enrol(self, app: Any) -> None:
        """Make a gallery of the people in the video and of made ones."""
        contract_id, dim = app.contract.contract_id, app.contract.embedding_dim
        made = make_gallery(3 * self.given.people, dim=dim, contract_id=contract_id).block
        with create_gallery(self.folder / "people.gallery", contract=app.contract, key=None) as store, store.writing():
            for number, look in enumerate(looks_of(self.people, app)):
                store.add_person(f"passer-by {number}", templates=[NewTemplate(embedding=look)])
            for start in range(0, len(made), 3):
                looks = [Embedding(row, contract_id) for row in made.vectors[start : start + 3]]
                store.add_person(f"person {start}", templates=[NewTemplate(embedding=each) for each in looks])

    def watch(self, app: Any, *, seconds: float) -> dict[str, Any]:
        """Watch the film, which lasts some seconds, by each camera; return the CPUs that it takes."""
        camera = {"source": str(self.film), "active_fps": RATE, "idle_fps": RATE}
        cameras = {f"door-{number}": camera for number in range(self.given.cameras)}
        settings = WatchSettings.model_validate({"cameras": cameras, "decision": {"liveness": False}})
        with open_gallery(self.folder / "people.gallery") as store:
            index = LiveIndex(store)
            cpu = time.process_time()
            with DoorWatch(settings, app, index) as door:
                kinds = Counter(event.kind.value for event in door)
                analyzed = sum(each.analyzed for each in door.health.values())
            cpus = (time.process_time() - cpu) / seconds
        return {"cpus": round(cpus, 3), "analyzed": analyzed, "events": dict(kinds)}


def write_films(video: Path, people: Path, film: Path, *, still: float) -> int:
    """Write the video, and it with seconds of an empty scene after it, in one encoding; return its frames."""
    with open_source(video) as source:
        frames = [frame.image for frame in source]
    height, width = frames[0].shape[:2]
    rng = np.random.default_rng(1)
    scene = cv2.resize(rng.integers(0, 255, (9, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = [np.clip(scene + rng.normal(0, 2, scene.shape), 0, 255).astype(np.uint8) for _ in range(7)]
    empty = [noisy[3 * number % 7] for number in range(math.ceil(still * RATE))]
    for path, shown in ((people, frames), (film, _PLAYS * (frames + empty))):
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (width, height))
        for frame in shown:
            writer.write(frame)
        writer.release()
    return len(frames)


def looks_of(video: Path, app: Any) -> list[Embedding]:
    """Return one embedding of each face that is followed through the video."""
    pipeline = Pipeline.for_camera(app.detector, app.embedder)
    found: dict[int, Embedding] = {}
    with open_source(video) as source:
        for _, faces in pipeline.run(source):
            found |= {
                face.track_id: face.embedding for face in faces if face.embedding is not None and not face.reasons
            }
    return list(found.values())


def event_bytes(folder: Path) -> dict[str, float]:
    """Record events, and measure the file."""
    from edgeface.kiosk.outcome import VisitEvent, VisitKind

    path, count = folder / "events.sqlite", 20_000
    log = EventLog(path)
    began = time.process_time()
    for number in range(count):
        log.record(
            VisitEvent(
                camera=f"door {number % 20}", kind=VisitKind.known, person_id=number, name=f"Ada Lovelace {number}",
                score=0.71, threshold=0.5, contract_id="0123456789abcdef", gallery_id="0" * 32, frames=3,
                liveness=0.98, reason="cosine 0.7123 > 0.5009",
            )
        )  # fmt: skip
    spent = time.process_time() - began
    log.close()
    size = sum(each.stat().st_size for each in folder.glob("events.sqlite*"))
    return {"event_bytes": round(size / count), "event_cpu_ms": round(1e3 * spent / count, 3)}


if __name__ == "__main__":
    main()
