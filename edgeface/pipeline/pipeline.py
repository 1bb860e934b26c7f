"""Pictures or frames in, the faces in them with quality, embedding and track out."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgeface.errors import ContractError, FaceError, InputError
from edgeface.model.contract import Alignment
from edgeface.pipeline.flow import FaceFlow
from edgeface.pipeline.observation import Face, Group, Pending, Sight, finish, in_groups
from edgeface.pipeline.tracking import EmbeddingPolicy, Track, Tracker
from edgeface.runtime.adapter import ImageFormat
from edgeface.runtime.embedder import Embedder
from edgeface.vision.align import align
from edgeface.vision.detector import Detector, Faces
from edgeface.vision.image import Image
from edgeface.vision.quality import QualityGate, measure_quality
from edgeface.vision.source import Frame

__all__ = ["Face", "Pipeline"]


class Pipeline:
    """A detector and an embedder, and what belongs between them.

    Neither is closed by it. Use one `run` at a time if there is a tracker.

    Parameters
    ----------
    detector
        Finds the faces. None: every picture is one face, already aligned.
    embedder
        Loaded with the default `ImageFormat`.
    tracker
        Keeps faces apart in `run`, so that each is embedded once or a few times and not in every frame.
    gate
        Faces that it refuses are not embedded.
    faces
        Which ones of a picture to keep; ``largest``: the one of `Faces.largest`.
    policy
        When a track is embedded again.
    detect_every
        With a tracker: detect in every n-th frame, and follow faces by optical flow in between. Only detected
        faces are embedded, because models are trained on the boxes that detectors draw.
    together
        Frames of `run` that are detected in one go: two or three times as fast for many small pictures, and later
        by as many frames for a camera. A tracker takes them one at a time.
    ahead
        Such groups under way at a time: while embeddings of one are computed, faces of the next are detected.

    Raises
    ------
    ContractError
        If the embedder takes other pictures than 8-bit BGR crops of its contract's size.
    InputError
        If the options do not fit each other.
    """

    def __init__(
        self,
        detector: Detector | None,
        embedder: Embedder,
        *,
        tracker: Tracker | None = None,
        gate: QualityGate | None = None,
        faces: Literal["all", "largest"] = "all",
        policy: EmbeddingPolicy | None = None,
        detect_every: int = 1,
        together: int = 1,
        ahead: int = 4,
    ) -> None:
        if embedder.image_format != ImageFormat():
            raise ContractError(
                f"pipeline: expected an embedder of {ImageFormat()}, found {embedder.image_format}; load it without "
                "an image_format"
            )
        if min(detect_every, together, ahead) < 1:
            raise InputError(
                "pipeline: expected detect_every, together and ahead of 1 or more, found "
                f"{detect_every}, {together} and {ahead}"
            )
        if tracker is None and (policy is not None or detect_every > 1):
            raise InputError("pipeline: policy and detect_every need a tracker; give one, or leave them out")
        if tracker is not None and detector is None:
            raise InputError("pipeline: aligned crops have no place in a frame; leave the tracker out")
        self._detector, self._embedder = detector, embedder
        self._tracker, self._gate = tracker, gate
        self._largest_only = faces == "largest"
        self._policy = policy or EmbeddingPolicy()
        self._detect_every, self._ahead = detect_every, ahead
        self._together = together if tracker is None else 1

    def process(self, image: Image) -> list[Face]:
        """Find and embed every face of one picture; the tracker is left alone.

        Parameters
        ----------
        image : (H, W, 3) uint8, BGR
            The picture.

        Returns
        -------
        list of Face
            Best score first.

        Raises
        ------
        EdgeFaceError
            What the detector and the embedder raise. A face that cannot be aligned is no error: it has `reasons`.
        """
        return finish(self._look([image])[0])

    def run(self, frames: Iterable[Frame]) -> Generator[tuple[Frame, list[Face]], None, None]:
        """Process frames in their order, several at a time.

        Frames are taken in the caller's thread and only while results are read. A result that is ready is
        yielded before the next frame is asked for. Closing the generator, an error, or Ctrl-C cancels what is
        under way; the frames' owner closes them.

        Parameters
        ----------
        frames
            A `Source`, or any iterable.

        Yields
        ------
        frame, faces
            Best score first where detected.

        Raises
        ------
        EdgeFaceError
            In place of the first frame that failed in the detector or the embedder. What the frames' iterator raises
            comes at once, and what was under way is lost.
        """
        look = self._look_at if self._tracker is None else _Watch(self, self._tracker).look_at
        window: deque[Group] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="edgeface-pipeline") as worker:
            try:
                for group in in_groups(frames, self._together):
                    window.append(Group(group, worker.submit(look, group)))
                    while window and (len(window) >= self._ahead or window[0].is_ready()):
                        yield from window[0].answers()
                        window.popleft()
                while window:
                    yield from window[0].answers()
                    window.popleft()
            finally:
                for each in window:
                    each.abandon()

    def _look_at(self, frames: Sequence[Frame]) -> list[list[Sight]]:
        return self._look([frame.image for frame in frames])

    def _look(self, images: Sequence[Image]) -> list[list[Sight]]:
        """Detect, and hand every face that is fit to the embedder."""
        if self._detector is None:
            return [[self._take_whole(image)] for image in images]
        return [
            [self._embed(image, self._measure(image, found, index)) for index in range(len(found))]
            for image, found in zip(images, self._detect(images), strict=True)
        ]

    def _detect(self, images: Sequence[Image]) -> list[Faces]:
        assert self._detector is not None
        found = self._detector.detect(images)
        if not self._largest_only:
            return found
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        return [
            faces[faces.largest(size)] if len(faces) else faces
            for faces, size in zip(found, sizes, strict=True)
        ]

    def _measure(self, image: Image, faces: Faces, index: int) -> Face:
        """A detected face with its quality and what the gate says to it, not embedded."""
        face = Face(
            box=faces.boxes[index],
            landmarks=faces.landmarks[index],
            score=float(faces.scores[index]),
            quality=None,
        )
        try:
            quality = measure_quality(image, face.box, face.landmarks)
        except FaceError as error:
            return replace(face, reasons=(str(error),))
        refused = self._gate.check(quality).reasons if self._gate else ()
        return replace(face, quality=quality, reasons=tuple(map(str, refused)))

    def _embed(self, image: Image, face: Face) -> Sight:
        if face.reasons:
            return Sight(face, None)
        contract = self._embedder.contract
        try:
            crop = align(image, face.box, face.landmarks, contract.alignment, contract.input_size)
        except FaceError as error:
            return Sight(replace(face, reasons=(str(error),)), None)
        return Sight(face, self._submit(crop))

    def _take_whole(self, crop: Image) -> Sight:
        height, width = crop.shape[:2]
        face = Face(
            box=np.array([0, 0, width, height], np.float32),
            landmarks=np.full((5, 2), np.nan, np.float32),
            score=1.0,
            quality=None,
        )
        return Sight(
            face, self._submit(align(crop, None, None, Alignment("none"), self._embedder.contract.input_size))
        )

    def _submit(self, crop: Image) -> Pending:
        return Pending(
            self._embedder.submit(crop, policy="block", copy=False), self._embedder.contract.contract_id
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Memory:
    """What is known of a track: its last detected face, and its best embedding."""

    face: Face
    pending: Pending | None = None
    best: float | None = None
    count: int = 0
    at: float = 0.0


class _Watch:
    """One run over a video: what is remembered from frame to frame. Used by the pipeline's worker alone."""

    def __init__(self, pipeline: Pipeline, tracker: Tracker) -> None:
        tracker.clear()
        self._pipeline, self._tracker = pipeline, tracker
        self._flow = FaceFlow() if pipeline._detect_every > 1 else None
        self._frames = 0
        self._faces, self._ids = Faces.empty(), list[int]()
        self._memories: dict[int, _Memory] = {}

    def look_at(self, frames: Sequence[Frame]) -> list[list[Sight]]:
        return [self._look_at(frame) for frame in frames]

    def _look_at(self, frame: Frame) -> list[Sight]:
        detects = self._frames % self._pipeline._detect_every == 0
        self._frames += 1
        tracks = self._detect(frame) if detects else self._follow(frame)
        self._ids = [track.id for track in tracks]
        return [self._sight(track) for track in tracks]

    def _detect(self, frame: Frame) -> list[Track]:
        if self._flow:
            self._flow.see(frame.image)
        (self._faces,) = self._pipeline._detect([frame.image])
        tracks = self._tracker.update(self._faces, frame.timestamp)
        alive = self._tracker.alive
        self._memories = {key: memory for key, memory in self._memories.items() if key in alive}
        for index, track in enumerate(tracks):
            self._memories[track.id] = self._remember(frame, index, track)
        return tracks

    def _follow(self, frame: Frame) -> list[Track]:
        assert self._flow is not None
        self._faces, kept = self._flow.follow(frame.image, self._faces)
        return self._tracker.follow([self._ids[index] for index in kept], self._faces, frame.timestamp)

    def _remember(self, frame: Frame, index: int, track: Track) -> _Memory:
        face = self._pipeline._measure(frame.image, self._faces, index)
        memory = self._memories.get(track.id, _Memory(face))
        memory = replace(memory, face=face)
        if not track.confirmed or face.quality is None or face.reasons:
            return memory
        quality, age = face.quality.score, frame.timestamp - memory.at
        if not self._pipeline._policy.wants(quality, best=memory.best, count=memory.count, age=age):
            return memory
        sight = self._pipeline._embed(frame.image, face)
        if sight.pending is None:
            return replace(memory, face=sight.face)
        return _Memory(sight.face, sight.pending, quality, memory.count + 1, frame.timestamp)

    def _sight(self, track: Track) -> Sight:
        memory = self._memories[track.id]
        face = replace(memory.face, box=track.box, landmarks=track.landmarks, track_id=track.id)
        return Sight(face, memory.pending)
