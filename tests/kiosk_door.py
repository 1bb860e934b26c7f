"""A gallery of two people whose embeddings are axes, and what a camera of theirs sees."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import sample_contract

from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.opening import create_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.gallery.store.base import GalleryStore
from edgeface.kiosk.decision import Decider
from edgeface.kiosk.outcome import VisitEvent
from edgeface.kiosk.settings import DecisionSettings
from edgeface.kiosk.visits import Visits
from edgeface.model.embedding import Embedding
from edgeface.pipeline.observation import Face
from edgeface.vision.liveness import Liveness, LivenessVerdict

CONTRACT = sample_contract(embedding_dim=3)
ADA, GRACE, NOBODY = (1, 0, 0), (0, 1, 0), (0, 0, 1)
FRAME = np.zeros((60, 60, 3), np.uint8)


def embed(vector: tuple[int, ...], shake: int = 0) -> Embedding:
    """A look at somebody; with another `shake` it is another look."""
    moved = np.array(vector, np.float32) + np.float32(0.01) * np.array([shake % 7, shake % 5, shake % 3], np.float32)
    return Embedding(moved / np.linalg.norm(moved), CONTRACT.contract_id)


class Checker:
    """Says of every face what it is told to."""

    verdict: LivenessVerdict = "live"

    def check(self) -> Liveness:
        score = 0.9 if self.verdict == "live" else 0.1
        reasons = ("too dark",) if self.verdict == "inconclusive" else ()
        return Liveness(
            verdict=self.verdict, score=score, threshold=0.5, scores={}, reasons=reasons, contract_ids=("c",)
        )


class Door:
    """One camera or more over one decider, whose time and queue are in the test's hands."""

    def __init__(self, store: GalleryStore, **settings: Any) -> None:
        self.wall, self.now, self.full = 1_800_000_000.0, 100.0, False
        self.events: list[VisitEvent] = []
        self.checker: Any = Checker()
        self.settings = DecisionSettings(threshold=0.5, **settings)
        self.decider = Decider(
            self.settings, CONTRACT, LiveIndex(store), self._emit, clock=lambda: self.wall, monotonic=lambda: self.now
        )
        self.visits: dict[str, Visits] = {}
        self.shakes = 0

    def _emit(self, event: VisitEvent) -> bool:
        if not self.full:
            self.events.append(event)
        return not self.full

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]

    def show(
        self, vector: tuple[int, ...] | None, *, frames: int = 4, track: int = 1, camera: str = "door", age: float = 0.0
    ) -> None:
        """Show a face in frames a tenth of a second apart, each of which is embedded; None: none is."""
        visits = self.visits.setdefault(camera, Visits(camera, self.decider))
        for _ in range(frames):
            self.shakes += 1
            face = Face(
                box=np.array([10, 10, 40, 40], np.float32),
                landmarks=np.zeros((5, 2), np.float32),
                score=0.9,
                quality=None,
                liveness=self.checker and vector and self.checker.check(),
                embedding=None if vector is None else embed(vector, self.shakes),
                reasons=() if vector else ("sharpness",),
                track_id=track,
            )
            visits.see(FRAME, [face], self.now, age=age)
            self.wait(0.1)

    def nobody(self, seconds: float, camera: str = "door") -> None:
        self.wait(seconds)
        self.visits[camera].see(FRAME, [], self.now)

    def wait(self, seconds: float) -> None:
        self.now, self.wall = self.now + seconds, self.wall + seconds


MakeDoor = Callable[..., Door]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GalleryStore]:
    with create_gallery(tmp_path / "people.gallery", contract=CONTRACT, key=None) as made:
        for name, vector in {"Ada": ADA, "Grace": GRACE}.items():
            made.add_person(name, templates=[NewTemplate(embedding=embed(vector))])
        yield made


@pytest.fixture
def make_door(store: GalleryStore) -> MakeDoor:
    return lambda **settings: Door(store, **settings)


@pytest.fixture
def door(make_door: MakeDoor) -> Door:
    return make_door()


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)
