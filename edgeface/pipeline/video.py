"""Follow the faces of one video: which frames are searched, which faces are followed, and which crops are embedded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeface.pipeline.flow import FaceFlow
from edgeface.pipeline.motion import MotionGate
from edgeface.pipeline.observation import Face, FaceObservation
from edgeface.pipeline.tracking import EmbeddingPolicy, Track, Tracker
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image
from edgeface.vision.liveness import Liveness, LivenessChecker
from edgeface.vision.source import Frame


@dataclass(frozen=True, slots=True)
class FaceSteps:
    """What a pipeline does to a face: find it in an image, describe it, and hand its crop to the embedder."""

    detect: Callable[[Image], Faces]
    measure: Callable[[Image, Faces, int], Face]
    embed: Callable[[Image, Face], FaceObservation]


@dataclass(frozen=True, slots=True, eq=False)
class _Memory:
    """The last detected face of a track, and what is known of the crop that was embedded last."""

    face: Face
    vector: Future[NDArray[np.float32]] | None = None
    liveness: Liveness | None = None
    best: float | None = None
    count: int = 0
    at: float = -math.inf


class VideoFaces:
    """The faces of one video from frame to frame; used by one thread.

    A frame is ``skipped`` where the motion gate says so. In others the known faces are followed by optical flow
    (``tracked``), unless a detection is due (``detected``): `detect_every` frames after the last one, when a face
    cannot be followed, and while one waits to be confirmed or embedded.
    """

    def __init__(
        self,
        steps: FaceSteps,
        tracker: Tracker,
        policy: EmbeddingPolicy,
        *,
        contract_id: str,
        detect_every: int = 1,
        motion: MotionGate | None = None,
        liveness: LivenessChecker | None = None,
    ) -> None:
        tracker.clear()
        if motion is not None:
            motion.clear()
        self._steps, self._tracker, self._policy, self._contract_id = steps, tracker, policy, contract_id
        self._detect_every, self._motion, self._liveness = detect_every, motion, liveness
        self._flow = FaceFlow() if detect_every > 1 else None
        self._since = detect_every  # frames since the last detection
        self._due = -math.inf  # when the next one is due, however few they are
        self._faces, self._ids = Faces.empty(), list[int]()
        self._memories: dict[int, _Memory] = {}

    def observe(self, frames: Sequence[Frame]) -> list[tuple[Frame, list[FaceObservation]]]:
        """Return each frame with how it was examined, and its faces."""
        return [self._observe(frame) for frame in frames]

    def _observe(self, frame: Frame) -> tuple[Frame, list[FaceObservation]]:
        if self._motion is not None and not self._motion.opens(frame.image, frame.timestamp):
            self._due = -math.inf  # the frame to follow from is too old then
            return replace(frame, examined="skipped"), []
        self._since += 1
        tracks = self._follow(frame)
        frame = replace(frame, examined="detected" if tracks is None else "tracked")
        if tracks is None:
            tracks = self._detect(frame)
        self._ids = [track.id for track in tracks]
        if self._motion is not None and tracks:
            self._motion.keep_open(frame.timestamp)
        return frame, [self._observation(track) for track in tracks]

    def _follow(self, frame: Frame) -> list[Track] | None:
        """Follow all faces by optical flow; None if a detection is due, or one cannot be followed."""
        if self._flow is None:
            return None
        if self._since >= self._detect_every or frame.timestamp >= self._due:
            self._flow.see(frame.image)
            return None
        moved, kept = self._flow.follow(frame.image, self._faces)
        if len(kept) < len(self._faces):
            return None
        self._faces = moved
        return self._tracker.follow(self._ids, moved, frame.timestamp)

    def _detect(self, frame: Frame) -> list[Track]:
        self._since = 0
        self._faces = faces = self._steps.detect(frame.image)
        tracks = self._tracker.update(faces, frame.timestamp)
        alive = self._tracker.alive
        known = {key: memory for key, memory in self._memories.items() if key in alive}
        for index, track in enumerate(tracks):
            face = self._steps.measure(frame.image, faces, index)
            known[track.id] = replace(known.get(track.id, _Memory(face)), face=face)
        wanted = self._wanted(tracks, known, frame.timestamp)
        chosen = wanted[: self._policy.at_once]
        self._memories = known | self._embed(frame, {key: known[key] for key in chosen})
        settled = len(chosen) == len(wanted) and all(track.confirmed for track in tracks)
        seen = [self._memories[track.id] for track in tracks] if settled else []
        looks = [self._policy.next_look(each.count, each.at) for each in seen if not each.face.reasons]
        self._due = min(looks, default=math.inf) if settled else -math.inf
        return tracks

    def _wanted(self, tracks: Sequence[Track], known: Mapping[int, _Memory], now: float) -> list[int]:
        """Return the tracks to embed, those first that were not for longest."""
        wanted = []
        for track in tracks:
            memory = known[track.id]
            face, age = memory.face, now - memory.at
            if not track.confirmed or face.quality is None or face.reasons:
                continue
            if self._policy.wants(face.quality.score, best=memory.best, count=memory.count, age=age):
                wanted.append(track.id)
        return sorted(wanted, key=lambda key: known[key].at)

    def _embed(self, frame: Frame, chosen: Mapping[int, _Memory]) -> dict[int, _Memory]:
        """Hand the crops of these tracks to the embedder, and judge in the same frame whether they are live."""
        observed = {key: self._steps.embed(frame.image, memory.face) for key, memory in chosen.items()}
        judged: Sequence[Liveness | None] = [None] * len(chosen)
        if self._liveness is not None and chosen:
            judged = self._liveness.check(frame.image, Face.stack([each.face for each in observed.values()]))
        return {
            key: self._remember(chosen[key], each, live, frame.timestamp)
            for (key, each), live in zip(observed.items(), judged, strict=True)
        }

    def _remember(self, memory: _Memory, observed: FaceObservation, live: Liveness | None, now: float) -> _Memory:
        if observed.vector is None:
            return replace(memory, face=observed.face)
        assert observed.face.quality is not None
        quality = observed.face.quality.score
        refreshed = memory.best is not None and self._policy.is_refresh(now - memory.at)
        best = quality if refreshed or memory.best is None else max(quality, memory.best)
        return _Memory(observed.face, observed.vector, live, best, memory.count + (not refreshed), now)

    def _observation(self, track: Track) -> FaceObservation:
        memory = self._memories[track.id]
        face = replace(
            memory.face, box=track.box, landmarks=track.landmarks, track_id=track.id, liveness=memory.liveness
        )
        return FaceObservation(face, memory.vector, self._contract_id)
