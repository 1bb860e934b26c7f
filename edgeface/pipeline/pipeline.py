"""Find the faces of photos and videos, judge their quality, and embed them."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from edgeface.errors import ContractError, FaceError, ImageError, InputError
from edgeface.model.contract import Alignment, ModelContract
from edgeface.pipeline.flow import FaceFlow
from edgeface.pipeline.observation import Face, FaceObservation, FrameGroup, group_frames, largest_face
from edgeface.pipeline.tracking import EmbeddingPolicy, Track, Tracker
from edgeface.runtime.adapter import ImageFormat
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.serving import refuse_waiting
from edgeface.vision.align import align, find_no_crop
from edgeface.vision.detector import Detector, Faces
from edgeface.vision.image import Image
from edgeface.vision.quality import Quality, QualityGate, find_no_face, measure_quality
from edgeface.vision.source import Frame


class Pipeline:
    """Detect, align, judge and embed faces.

    The detector and the embedder are not closed. With a tracker, use one `run` at a time.

    Parameters
    ----------
    detector
        Finds the faces. None: every photo is one crop, already aligned. A whole photo, a blank image and noise are
        refused.
    embedder
        Loaded with the default `ImageFormat`.
    tracker
        Identifies the same face from frame to frame in `run`, so that it is embedded once or a few times and not in
        every frame.
    gate
        Faces below its limits are not embedded; of a crop, whose landmarks are unknown, its limits of size, sharpness,
        contrast and exposure are checked.
    faces
        Which faces of a photo to keep. ``largest``: the one that `largest_face` chooses.
    policy
        When a track is embedded again.
    detect_every
        With a tracker: detect in every n-th frame, and follow faces by optical flow in between. Only detected
        faces are embedded, because models are trained on the boxes that detectors draw.
    batch_size
        Frames of `run` that are detected together: two or three times as fast for many small photos. A camera's
        faces come later by as many frames. Always 1 with a tracker.
    prefetch
        Such batches in progress: while one is embedded, the next is detected.

    Raises
    ------
    ContractError
        If the embedder takes other images than 8-bit BGR crops of its contract's size.
    InputError
        If the options contradict each other.
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
        batch_size: int = 1,
        prefetch: int = 4,
    ) -> None:
        if embedder.image_format != ImageFormat():
            raise ContractError(
                f"pipeline: expected an embedder of {ImageFormat()}, found {embedder.image_format}; load it without "
                "an image_format"
            )
        if min(detect_every, batch_size, prefetch) < 1:
            raise InputError(
                "pipeline: expected detect_every, batch_size and prefetch of 1 or more, found "
                f"{detect_every}, {batch_size} and {prefetch}"
            )
        if tracker is None and (policy is not None or detect_every > 1):
            raise InputError("pipeline: policy and detect_every need a tracker; give one, or leave them out")
        if tracker is not None and detector is None:
            raise InputError("pipeline: aligned crops cannot be tracked; leave the tracker out")
        self._detector, self._embedder = detector, embedder
        self._tracker, self._gate = tracker, gate
        self._faces = faces
        self._policy = policy or EmbeddingPolicy()
        self._detect_every, self._prefetch = detect_every, prefetch
        self._batch_size = batch_size if tracker is None else 1

    @property
    def contract(self) -> ModelContract:
        """Contract of the embeddings."""
        return self._embedder.contract

    @property
    def policy(self) -> EmbeddingPolicy:
        """When a track is embedded; `TrackIdentifier` needs to know it."""
        return self._policy

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the faces and embeddings of a photo depend on, as JSON values.

        Equal settings give equal results for equal photos. Earlier results may be reused if their settings are equal.
        """
        settings: dict[str, Any] = {"contract_id": self.contract.contract_id, "flip": self._embedder.flip}
        gate = None if self._gate is None else dataclasses.asdict(self._gate)
        if self._detector is None:
            return settings | {"detector": None} | ({"gate": gate} if gate else {})
        return settings | {"detector": dict(self._detector.settings), "faces": self._faces, "gate": gate}

    def process(self, image: Image) -> list[Face]:
        """Find and embed the faces of one photo; the tracker is not used.

        Parameters
        ----------
        image : (H, W, 3) uint8, BGR
            The photo.

        Returns
        -------
        list of Face
            Best score first.

        Raises
        ------
        EdgeFaceError
            What the detector and the embedder raise. A face that cannot be aligned is no error: it has `reasons`.
        """
        return self.embed_all(image, self.find(image))

    def find(self, image: Image) -> list[Face]:
        """Find the faces of one photo without embedding them; best score first."""
        return self._find([image])[0]

    def embed(self, image: Image, face: Face) -> Face:
        """Embed one face of `find`, and wait; without an embedding, it has `reasons`."""
        return self._embed(image, face).finish()

    def embed_all(self, image: Image, faces: Sequence[Face]) -> list[Face]:
        """Embed faces of `find` together, and wait; see `embed`."""
        return [each.finish() for each in [self._embed(image, face) for face in faces]]

    def run(self, frames: Iterable[Frame]) -> Generator[tuple[Frame, list[Face]], None, None]:
        """Process frames in their order, several at a time.

        Frames are taken in the caller's thread and only while results are read. A result that is ready is
        yielded before the next frame is asked for. Closing the generator, an error, or Ctrl-C cancels what is in
        progress. The source of the frames is not closed.

        Parameters
        ----------
        frames
            A `FrameSource`, or any iterable.

        Yields
        ------
        frame, faces
            Best score first where detected.

        Raises
        ------
        EdgeFaceError
            In place of the first frame that failed in the detector or the embedder. What the frames' iterator raises
            is raised at once, and results in progress are lost.
        """
        refuse_waiting()
        observe = self._observe_frames if self._tracker is None else _Watch(self, self._tracker).observe
        window: deque[FrameGroup] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="edgeface-pipeline") as worker:
            try:
                for group in group_frames(frames, self._batch_size):
                    window.append(FrameGroup(group, worker.submit(observe, group)))
                    while window and (len(window) >= self._prefetch or window[0].is_ready()):
                        yield from window[0].results()
                        window.popleft()
                while window:
                    yield from window[0].results()
                    window.popleft()
            finally:
                for each in window:
                    each.abandon()

    def _observe_frames(self, frames: Sequence[Frame]) -> list[list[FaceObservation]]:
        """Observe frames; one that the detector refuses is a face without an embedding, and fails no other."""
        try:
            return self._observe([frame.image for frame in frames])
        except ImageError as error:
            if len(frames) > 1:
                return [self._observe_frames([frame])[0] for frame in frames]
            refused = replace(_whole(frames[0].image), reasons=(str(error),))
            return [[FaceObservation(refused, None, self.contract.contract_id)]]

    def _observe(self, images: Sequence[Image]) -> list[list[FaceObservation]]:
        """Detect, and hand every usable face to the embedder."""
        found = self._find(images)
        return [[self._embed(image, face) for face in faces] for image, faces in zip(images, found, strict=True)]

    def _find(self, images: Sequence[Image]) -> list[list[Face]]:
        if self._detector is None:
            return [[self._judge_crop(image)] for image in images]
        return [
            [self._measure(image, found, index) for index in range(len(found))]
            for image, found in zip(images, self._detect(images), strict=True)
        ]

    def _detect(self, images: Sequence[Image]) -> list[Faces]:
        assert self._detector is not None
        found = self._detector.detect(images)
        if self._faces == "all":
            return found
        return [self._largest(image, faces) for image, faces in zip(images, found, strict=True)]

    def _largest(self, image: Image, faces: Faces) -> Faces:
        """Keep the face that `largest_face` chooses."""
        if len(faces) < 2:
            return faces
        measured = [self._measure(image, faces, index) for index in range(len(faces))]
        return faces[largest_face(measured, (image.shape[0], image.shape[1]))]

    def _measure(self, image: Image, faces: Faces, index: int) -> Face:
        """Describe a detected face: its quality, and what the gate says to it."""
        face = Face(
            box=faces.boxes[index], landmarks=faces.landmarks[index], score=float(faces.scores[index]), quality=None
        )
        try:
            quality = measure_quality(image, face.box, face.landmarks)
        except FaceError as error:
            return replace(face, reasons=(str(error),))
        return replace(face, quality=quality, reasons=self._refusals(quality))

    def _judge_crop(self, crop: Image) -> Face:
        """Describe an aligned crop; what cannot be one, or shows no face, is refused with and without a gate."""
        face = _whole(crop)
        wrong = find_no_crop(crop, self.contract.alignment, self.contract.input_size) or find_no_face(crop)
        if wrong or self._gate is None:
            return replace(face, reasons=(wrong,) if wrong else ())
        # Size and pose of the face in its photo are unknown, so the crop has no quality that could be compared.
        return replace(face, reasons=self._refusals(measure_quality(crop, face.box)))

    def _refusals(self, quality: Quality) -> tuple[str, ...]:
        return tuple(map(str, self._gate.check(quality).reasons)) if self._gate else ()

    def _embed(self, image: Image, face: Face) -> FaceObservation:
        contract = self.contract
        if face.reasons:
            return FaceObservation(face, None, contract.contract_id)
        recipe = Alignment("none") if self._detector is None else contract.alignment
        try:
            crop = align(image, face.box, face.landmarks, recipe, contract.input_size)
        except FaceError as error:
            return FaceObservation(replace(face, reasons=(str(error),)), None, contract.contract_id)
        return FaceObservation(face, self._embedder.submit(crop, policy="block", copy=False), contract.contract_id)


def _whole(crop: Image) -> Face:
    height, width = crop.shape[:2]
    return Face(
        box=np.array([0, 0, width, height], np.float32),
        landmarks=np.full((5, 2), np.nan, np.float32),
        score=1.0,
        quality=None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Memory:
    """The last detected face of a track, and the vector of the crop that was embedded last."""

    face: Face
    vector: Future[np.ndarray] | None = None
    best: float | None = None
    count: int = 0
    at: float = 0.0


class _Watch:
    """One run over a video: the tracks' faces from frame to frame. Used by the pipeline's worker alone."""

    def __init__(self, pipeline: Pipeline, tracker: Tracker) -> None:
        tracker.clear()
        self._pipeline, self._tracker = pipeline, tracker
        self._flow = FaceFlow() if pipeline._detect_every > 1 else None
        self._frames = 0
        self._faces, self._ids = Faces.empty(), list[int]()
        self._memories: dict[int, _Memory] = {}

    def observe(self, frames: Sequence[Frame]) -> list[list[FaceObservation]]:
        return [self._observe(frame) for frame in frames]

    def _observe(self, frame: Frame) -> list[FaceObservation]:
        detects = self._frames % self._pipeline._detect_every == 0
        self._frames += 1
        tracks = self._detect(frame) if detects else self._follow(frame)
        self._ids = [track.id for track in tracks]
        return [self._observation(track) for track in tracks]

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
        observed = self._pipeline._embed(frame.image, face)
        if observed.vector is None:
            return replace(memory, face=observed.face)
        refreshed = memory.best is not None and self._pipeline._policy.is_refresh(age)
        return _Memory(observed.face, observed.vector, quality, memory.count + (not refreshed), frame.timestamp)

    def _observation(self, track: Track) -> FaceObservation:
        memory = self._memories[track.id]
        face = replace(memory.face, box=track.box, landmarks=track.landmarks, track_id=track.id)
        return FaceObservation(face, memory.vector, self._pipeline.contract.contract_id)
