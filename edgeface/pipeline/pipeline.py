"""Find the faces of photos and videos, judge their quality, and embed them."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from operator import attrgetter
from typing import Any, Literal

import numpy as np

from edgeface.errors import ContractError, FaceError, ImageError, InputError
from edgeface.model.contract import Alignment, ModelContract
from edgeface.pipeline.motion import MotionGate
from edgeface.pipeline.observation import Face, FaceObservation, FrameGroup, group_frames, largest_face
from edgeface.pipeline.tracking import EmbeddingPolicy, Tracker
from edgeface.pipeline.video import FaceSteps, VideoFaces
from edgeface.runtime.adapter import ImageFormat
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.serving import refuse_waiting
from edgeface.vision.align import align
from edgeface.vision.crop_check import find_no_crop
from edgeface.vision.detector import Detector, Faces
from edgeface.vision.image import Image
from edgeface.vision.liveness import LivenessChecker
from edgeface.vision.networks import NetworkDetector
from edgeface.vision.quality import Quality, QualityGate, measure_quality
from edgeface.vision.source import Frame

CAMERA_GAP = 1.0
"""Seconds after which a face before a camera that is not seen has left."""
DETECT_EVERY = 4
"""Camera frames from one detection to the next: a face is found within a sixth of a second at 25 frames a second."""
_AT_ONCE = 2
"""Embeddings of one camera frame: two fit between two frames on two cores."""
_REFRESH = 1.0
"""Seconds after which a face that stays is embedded again, to notice another in its place."""


class Pipeline:
    """Detect, align, judge and embed faces.

    The detector and the embedder are not closed. With a tracker, use one `run` at a time.

    Parameters
    ----------
    detector
        Finds the faces. None: every photo is one crop, already aligned. A whole photo, a blank image, noise and a
        mosaic are refused.
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
        With a tracker: detect in every n-th frame, and follow faces by optical flow in between; sooner when a face
        cannot be followed, and while one waits to be confirmed or embedded. Only detected faces are embedded, because
        models are trained on the boxes that detectors draw. `Frame.examined` says what was done.
    motion
        With a tracker: frames in which nothing moves and nobody is are skipped; they have no faces.
    liveness
        With a tracker: judges each crop that is embedded, in its own frame; see `Face.liveness`. Not closed.
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
        motion: MotionGate | None = None,
        liveness: LivenessChecker | None = None,
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
        if tracker is None and (policy or detect_every > 1 or motion or liveness):
            raise InputError(
                "pipeline: policy, detect_every, motion and liveness need a tracker; give one, or leave them out"
            )
        if tracker is not None and detector is None:
            raise InputError("pipeline: aligned crops cannot be tracked; leave the tracker out")
        self._detector, self._embedder = detector, embedder
        self._tracker, self._gate = tracker, gate
        self._faces = faces
        self._policy = policy or EmbeddingPolicy()
        self._detect_every, self._motion, self._liveness = detect_every, motion, liveness
        self._prefetch = prefetch
        self._batch_size = batch_size if tracker is None else 1

    @classmethod
    def for_camera(
        cls,
        detector: Detector,
        embedder: Embedder,
        *,
        looks: int = 3,
        gate: QualityGate | None = None,
        motion: MotionGate | None = None,
        liveness: LivenessChecker | None = None,
    ) -> Pipeline:
        """Return a pipeline that keeps up with a camera, as `edgeface watch` and the kiosk benchmark use it.

        Each face is looked at `looks` times at any quality, twice as often where some of these may not be live, later
        when it is clearly better, and once a second, to notice another in its place. A face that is not seen for
        `CAMERA_GAP` seconds has left.
        """
        most = 2 * looks
        return cls(
            detector,
            embedder,
            tracker=Tracker(max_gap=CAMERA_GAP),
            gate=gate,
            policy=EmbeddingPolicy(
                least=looks if liveness is None else most, most=most, refresh=_REFRESH, at_once=_AT_ONCE
            ),
            detect_every=DETECT_EVERY,
            motion=motion,
            liveness=liveness,
            prefetch=1,  # a frame that was taken in advance would wait
        )

    @property
    def contract(self) -> ModelContract:
        """Contract of the embeddings."""
        return self._embedder.contract

    @property
    def policy(self) -> EmbeddingPolicy:
        """When a track is embedded; `TrackIdentifier` needs to know it."""
        return self._policy

    @property
    def reduction(self) -> int:
        """How many times fewer pixels the images of `run` may have on each side than their photos: 1, 2, 4 or 8.

        The smallest face that is looked for then still has the pixels of a crop, so that no crop is enlarged.
        """
        if not isinstance(self._detector, NetworkDetector):
            return 1
        spare = self._detector.min_size // max(self.contract.input_size)
        # The margin is in whole pixels of the photo.
        return max(
            each for each in (1, 2, 4, 8) if each == 1 or (each <= spare and not self.contract.alignment.margin % each)
        )

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
        return self.start_embedding(image, face).finish()

    def embed_all(self, image: Image, faces: Sequence[Face]) -> list[Face]:
        """Embed faces of `find` together, and wait; see `embed`."""
        return [each.finish() for each in [self.start_embedding(image, face) for face in faces]]

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
            Best score first where detected. With a tracker the frame says in `Frame.examined` what was done with it.

        Raises
        ------
        EdgeFaceError
            In place of the first frame that failed in the detector or the embedder. What the frames' iterator raises
            is raised at once, and results in progress are lost.
        """
        refuse_waiting()
        observe = self._observe_frames if self._tracker is None else self._follow_video(self._tracker).observe
        window: deque[FrameGroup] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="edgeface-pipeline") as worker:
            try:
                for group in group_frames(frames, self._batch_size):
                    window.append(FrameGroup(worker.submit(observe, group)))
                    while window and (len(window) >= self._prefetch or window[0].is_ready()):
                        yield from window[0].results()
                        window.popleft()
                while window:
                    yield from window[0].results()
                    window.popleft()
            finally:
                for each in window:
                    each.abandon()

    def _follow_video(self, tracker: Tracker) -> VideoFaces:
        return VideoFaces(
            FaceSteps(lambda image: self._detect([image])[0], self._measure, self.start_embedding),
            tracker,
            self._policy,
            contract_id=self.contract.contract_id,
            detect_every=self._detect_every,
            motion=self._motion,
            liveness=self._liveness,
        )

    def _observe_frames(self, frames: Sequence[Frame]) -> list[tuple[Frame, list[FaceObservation]]]:
        """Observe frames; one that the detector refuses is a face without an embedding, and fails no other."""
        try:
            return [
                each
                for reduced, part in itertools.groupby(frames, key=attrgetter("reduced"))
                for each in self._observe(list(part), reduced)
            ]
        except ImageError as error:
            if len(frames) > 1:
                return [self._observe_frames([frame])[0] for frame in frames]
            refused = replace(_whole(frames[0].image), reasons=(str(error),))
            return [(frames[0], [FaceObservation(refused, None, self.contract.contract_id)])]

    def _observe(self, frames: Sequence[Frame], reduced: int) -> list[tuple[Frame, list[FaceObservation]]]:
        """Detect, and hand every usable face to the embedder."""
        found = self._find([frame.image for frame in frames], reduced)
        return [
            (frame, [self.start_embedding(frame.image, face, reduced) for face in faces])
            for frame, faces in zip(frames, found, strict=True)
        ]

    def _find(self, images: Sequence[Image], reduced: int = 1) -> list[list[Face]]:
        if self._detector is None:
            return [[self._judge_crop(image)] for image in images]
        return [
            [self._measure(image, found, index, reduced) for index in range(len(found))]
            for image, found in zip(images, self._detect(images, reduced), strict=True)
        ]

    def _detect(self, images: Sequence[Image], reduced: int = 1) -> list[Faces]:
        """Detect in images of which each pixel stands for several of its photo, in whose pixels the answer is."""
        detector = self._detector
        assert detector is not None
        if reduced > 1:
            assert isinstance(detector, NetworkDetector)  # `reduction` says so
            detector = detector.with_min_size(-(-detector.min_size // reduced))
        found = [
            faces if reduced == 1 else Faces(faces.boxes * reduced, faces.landmarks * reduced, faces.scores)
            for faces in detector.detect(images)
        ]
        if self._faces == "all":
            return found
        return [self._largest(image, faces, reduced) for image, faces in zip(images, found, strict=True)]

    def _largest(self, image: Image, faces: Faces, reduced: int) -> Faces:
        """Keep the face that `largest_face` chooses."""
        if len(faces) < 2:
            return faces
        measured = [self._measure(image, faces, index, reduced) for index in range(len(faces))]
        return faces[largest_face(measured, (image.shape[0] * reduced, image.shape[1] * reduced))]

    def _measure(self, image: Image, faces: Faces, index: int, reduced: int = 1) -> Face:
        """Describe a detected face: its quality, and what the gate says to it."""
        face = Face(
            box=faces.boxes[index], landmarks=faces.landmarks[index], score=float(faces.scores[index]), quality=None
        )
        try:
            quality = measure_quality(image, face.box / reduced, face.landmarks / reduced)
        except FaceError as error:
            return replace(face, reasons=(str(error),))
        if reduced > 1:
            quality = replace(quality, box_side=quality.box_side * reduced, eye_distance=quality.eye_distance * reduced)
        return replace(face, quality=quality, reasons=self._refusals(quality))

    def _judge_crop(self, crop: Image) -> Face:
        """Describe an aligned crop; what cannot be one, or shows no face, is refused with and without a gate."""
        face = _whole(crop)
        wrong = find_no_crop(crop, self.contract.alignment, self.contract.input_size)
        if wrong or self._gate is None:
            return replace(face, reasons=(wrong,) if wrong else ())
        # Size and pose of the face in its photo are unknown, so the crop has no quality that could be compared.
        return replace(face, reasons=self._refusals(measure_quality(crop, face.box)))

    def _refusals(self, quality: Quality) -> tuple[str, ...]:
        return tuple(map(str, self._gate.check(quality).reasons)) if self._gate else ()

    def start_embedding(self, image: Image, face: Face, reduced: int = 1) -> FaceObservation:
        """Hand one face of `find` to the embedder, and do not wait; see `embed`.

        `reduced`: how many times more pixels the photo has on each side than the image; the face is the photo's.
        """
        contract = self.contract
        if face.reasons:
            return FaceObservation(face, None, contract.contract_id)
        recipe = Alignment("none") if self._detector is None else contract.alignment
        if reduced > 1 and recipe.recipe == "mtcnn-box-margin":  # whose margin is in the photo's pixels
            recipe = replace(recipe, margin=recipe.margin // reduced)
        try:
            crop = align(image, face.box / reduced, face.landmarks / reduced, recipe, contract.input_size)
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
