"""Decide once a visit who stands before a camera; whatever is missing or wrong, the answer is not `known`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeface.kiosk.decision import Decider
from edgeface.kiosk.outcome import VisitEvent, VisitKind
from edgeface.model.embedding import Embedding
from edgeface.pipeline.observation import Face
from edgeface.pipeline.pipeline import CAMERA_GAP
from edgeface.recognize.identify import Identification, Verdict
from edgeface.vision.image import Image
from edgeface.vision.liveness import Liveness
from edgeface.vision.liveness_track import TrackLiveness, decide_track

_MARGIN = 0.2
"""Part of the face's sides that an event's crop shows around it."""


@dataclass(slots=True, eq=False)
class _Answer:
    """What was said of a face at one camera, and when that face was last there; no vector if nobody was compared."""

    kind: VisitKind
    person_id: int | None
    vector: NDArray[np.float32] | None
    seen: float


@dataclass(slots=True, eq=False)
class _Visit:
    """One face before a camera, from its first frame to the answer."""

    began: float
    seen: float
    looks: deque[Embedding]
    liveness: deque[Liveness]
    last: NDArray[np.float32] | None = None  # vector of the track; it stays the same until the track is embedded again
    fresh: bool = False  # whether the track was embedded in this very frame
    usable: float | None = None  # when the first usable face was seen
    found: Identification | None = None
    reason: str = "no usable face"
    crop: NDArray[np.uint8] | None = None
    answer: _Answer | None = None
    answered: float = 0.0

    @property
    def vector(self) -> NDArray[np.float32] | None:
        """Mean of the looks, of unit length; None if nobody was compared."""
        if self.found is None:
            return None
        mean = np.mean([look.vector for look in self.looks], axis=0)
        return np.asarray(mean / max(np.linalg.norm(mean), 1e-12), np.float32)

    def shows(self, vector: NDArray[np.float32] | None) -> bool:
        """Whether a vector is of this face; true if that cannot be said."""
        own = self.vector
        return own is None or vector is None or self.found is None or self.found.threshold.accepts(float(own @ vector))


class Visits:
    """Follows the faces before one camera, and decides once about each; use it from one thread.

    A look counts only if its own frame shows the face live: a person cannot lend a photo a live face. ``known`` and
    ``spoof`` are said as soon as they are certain, ``unknown`` when the patience ends or the face leaves. After
    ``inconclusive`` it is tried again at once, after ``unknown`` and ``spoof`` when the cooldown is over; the same
    answer about the same face is not said again while it stays.

    Parameters
    ----------
    camera
        Its name.
    decider
        What all cameras share.
    """

    def __init__(self, camera: str, decider: Decider) -> None:
        self._camera, self._decider = camera, decider
        self._settings = decider.settings
        self._visits: dict[int, _Visit] = {}
        self._answers: list[_Answer] = []

    def see(self, image: Image, faces: Sequence[Face], timestamp: float, *, age: float = 0.0) -> None:
        """Take the faces of the next frame, and emit what is certain.

        Parameters
        ----------
        image : (H, W, 3) uint8, BGR
            The whole frame.
        faces
            Of `Pipeline.for_camera`; without its liveness models nobody is known, if that is needed.
        timestamp
            Seconds, rising.
        age
            Seconds since the frame was taken.
        """
        self._decider.check_clock()
        for track, visit in list(self._visits.items()):
            if timestamp - visit.seen > CAMERA_GAP:
                self._judge(self._visits.pop(track), visit.seen, left=True)
        present = [(self._visit(face, timestamp), face) for face in faces]
        pending = [(visit, face) for visit, face in present if visit.answer is None]
        for visit, face in pending:
            self._look(visit, face)
        self._identify([visit for visit, _ in pending if visit.fresh and len(visit.looks) >= self._settings.looks])
        for visit, face in pending:
            if self._settings.crop:
                visit.crop = _crop(image, face.box)
            self._judge(visit, timestamp, age=age)

    def end(self, reason: str) -> None:
        """Forget all faces, because the camera or a model failed: those without an answer are inconclusive."""
        visits, self._visits = list(self._visits.values()), {}
        for visit in visits:
            if visit.answer is None and visit.usable is not None:
                self._tell(visit, VisitKind.inconclusive, reason, visit.seen)

    def _visit(self, face: Face, timestamp: float) -> _Visit:
        """Return the visit that a face belongs to: a new one if another face took its place, or it is tried again."""
        assert face.track_id is not None
        vector = None if face.embedding is None else face.embedding.vector
        visit = self._visits.get(face.track_id)
        last = None if visit is None else visit.last
        if visit is None or self._begins_anew(visit, vector, timestamp):
            most = 2 * self._settings.looks
            visit = self._visits[face.track_id] = _Visit(timestamp, timestamp, deque(maxlen=most), deque(maxlen=most))
        visit.fresh = vector is not None and (last is None or not np.array_equal(last, vector))
        visit.last, visit.seen = last if vector is None else vector, timestamp
        if visit.answer is not None:
            visit.answer.seen = timestamp
        return visit

    def _begins_anew(self, visit: _Visit, vector: NDArray[np.float32] | None, timestamp: float) -> bool:
        if visit.answer is None or visit.answer.kind is VisitKind.inconclusive:
            return visit.answer is not None
        again = visit.answer.kind is not VisitKind.known and timestamp - visit.answered > self._settings.cooldown
        return again or not visit.shows(vector)

    def _look(self, visit: _Visit, face: Face) -> None:
        """Take what one frame says of a face."""
        live = face.liveness
        if visit.fresh and live is not None:
            visit.liveness.append(live)
        if face.embedding is None:
            visit.reason = "; ".join(face.reasons) or visit.reason
        elif visit.usable is None:
            visit.usable = visit.seen
        if visit.fresh and self._settings.liveness and not live:
            visit.fresh, visit.reason = False, _liveness_reason(live)
        if visit.fresh and face.embedding is not None:
            visit.looks.append(face.embedding)

    def _identify(self, visits: Sequence[_Visit]) -> None:
        if not visits:
            return
        found = self._decider.identify([list(visit.looks) for visit in visits])
        for visit, each in zip(visits, found, strict=True):
            if isinstance(each, str):
                visit.found, visit.reason = None, each
            else:
                visit.found = each

    def _judge(self, visit: _Visit, timestamp: float, *, left: bool = False, age: float = 0.0) -> None:
        """Say what is certain about a visit; when its time is over, say what is not."""
        if visit.answer is not None:
            return
        needed = self._settings.liveness
        live = decide_track(visit.liveness, least=self._settings.looks) if visit.liveness else None
        start = visit.began if visit.usable is None else visit.usable
        if live is not None and live.verdict == "spoof":
            self._tell(visit, VisitKind.spoof, f"liveness {live.score:.2f}", timestamp, live=live)
        elif visit.found and visit.found.score is not None and not left and (live or not needed):
            reason = f"cosine {visit.found.score:.4f} > {visit.found.threshold.value:.4f}"
            self._tell(visit, VisitKind.known, reason, timestamp, live=live, age=age)
        elif timestamp - start >= self._settings.patience or (left and visit.usable is not None):
            kind, reason = self._why_not_known(visit, live)
            self._tell(visit, kind, reason, timestamp, live=live)

    def _why_not_known(self, visit: _Visit, live: TrackLiveness | None) -> tuple[VisitKind, str]:
        few = f"expected {self._settings.looks} usable looks, found {len(visit.looks)}: {visit.reason}"
        if visit.usable is None:
            return VisitKind.inconclusive, few
        if self._settings.liveness and not live:
            return VisitKind.inconclusive, _liveness_reason(live)
        if visit.found is None:
            return VisitKind.inconclusive, few if len(visit.looks) < self._settings.looks else visit.reason
        if visit.found.verdict is Verdict.unknown:
            return VisitKind.unknown, "no score exceeds the threshold"
        return VisitKind.inconclusive, "left too early" if visit.found else "the next person's score is too close"

    def _tell(
        self,
        visit: _Visit,
        kind: VisitKind,
        reason: str,
        timestamp: float,
        *,
        live: TrackLiveness | None = None,
        age: float = 0.0,
    ) -> None:
        """Emit the answer about a visit, unless the same was said lately; then the visit is over."""
        found = visit.found
        with self._decider.lock:
            person_id = found.person_id if found and kind else None
            if person_id is not None and (why := self._decider.why_closed(person_id, age)):
                kind, reason, person_id = VisitKind.inconclusive, why, None
            visit.answered, visit.answer = timestamp, self._said(visit, kind, person_id, timestamp)
            if visit.answer is not None:
                return
            event = VisitEvent(
                camera=self._camera,
                kind=kind,
                person_id=person_id,
                name=(found.person or f"#{person_id}") if found and person_id is not None else None,
                score=None if found is None else found.score,
                threshold=None if found is None else found.threshold.value,
                contract_id=self._decider.contract.contract_id,
                gallery_id=self._decider.gallery_id,
                frames=len(visit.looks),
                liveness=None if live is None else live.score,
                reason=reason + self._decider.told_age(),
                crop=visit.crop,
            )
            if self._decider.emit(event):
                visit.answer = _Answer(kind, person_id, visit.vector, timestamp)
                self._answers.append(visit.answer)

    def _said(self, visit: _Visit, kind: VisitKind, person_id: int | None, timestamp: float) -> _Answer | None:
        """Return the same answer about the same face, if that was there within the cooldown."""
        self._answers = [each for each in self._answers if timestamp - each.seen <= self._settings.cooldown]
        for each in self._answers:
            if (each.kind, each.person_id) == (kind, person_id) and (person_id is not None or visit.shows(each.vector)):
                each.seen = timestamp
                return each
        return None


def _liveness_reason(live: Liveness | TrackLiveness | None) -> str:
    if live is None:
        return "liveness: there is no model to judge it"
    return "liveness: " + ("; ".join(live.reasons) or f"{live.verdict}, score {live.score:.2f}")


def _crop(image: Image, box: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = box[:2], box[2:]
    around = (high - low) * _MARGIN
    x0, y0, x1, y1 = np.clip([*(low - around), *(high + around)], 0, [*image.shape[1::-1]] * 2).astype(int).tolist()
    return np.asarray(image[y0:y1, x0:x1].copy(), np.uint8)
