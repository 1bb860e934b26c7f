"""Describe the faces of a photo or frame, and hold those whose embeddings are still being computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.model.embedding import Embedding
from edgeface.vision.detector import Faces
from edgeface.vision.liveness import Liveness
from edgeface.vision.quality import Quality, QualityGate
from edgeface.vision.source import Frame

_CLEAR = QualityGate()
_GROUP_PIXELS = 1 << 23
"""Pixels that end a group of frames: bounds memory, and large frames gain nothing from batching."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Face:
    """One face of a photo or frame.

    Attributes
    ----------
    box : (4,) float32
        x0, y0, x1, y1 in pixels of the photo.
    landmarks : (5, 2) float32
        x, y of both eyes, the nose and both corners of the mouth, as in `Faces.landmarks`; NaN if unknown.
    score
        Detection score, 0 to 1. For a face that was followed by optical flow: that of its last detection.
    quality
        Measured where the face was last detected; None for a crop, or if the box lies outside the photo.
    liveness
        Answer of the liveness models, if the analyzer or the pipeline has them; None otherwise. With a tracker, about
        the frame and the face of `embedding`.
    embedding
        Without a tracker, of this face. With one, of that crop of its track that was embedded last; see
        `EmbeddingPolicy`. None: there is none.
    reasons
        Why there is no embedding: what the quality gate found, or why the face cannot be aligned.
    number, total
        This is face `number` of `total` in the photo, counted from the left, from 1. None in videos.
    track_id
        Stays the same for one person from frame to frame; None without a tracker.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    score: float
    quality: Quality | None
    liveness: Liveness | None = None
    embedding: Embedding | None = None
    reasons: tuple[str, ...] = ()
    number: int | None = None
    total: int | None = None
    track_id: int | None = None

    @staticmethod
    def stack(faces: Sequence[Face]) -> Faces:
        """Return where these faces, at least one, are, as a detector does."""
        return Faces(
            np.stack([face.box for face in faces]),
            np.stack([face.landmarks for face in faces]),
            np.array([face.score for face in faces], np.float32),
        )

    def __repr__(self) -> str:
        x0, y0, x1, y1 = self.box.tolist()
        quality = "" if self.quality is None else f", quality={self.quality.score:.2f}"
        state = "; ".join(self.reasons) or ("embedded" if self.embedding else "not embedded")
        live = "" if self.liveness is None else f", {self.liveness.verdict} {self.liveness.score:.2f}"
        return f"Face(box=({x0:.0f}, {y0:.0f}, {x1:.0f}, {y1:.0f}), score={self.score:.3f}{quality}{live}, {state})"

    def to_dict(self) -> dict[str, Any]:
        """Return what is known of the face, without its embedding, as JSON types."""
        known = np.isfinite(self.landmarks).all()
        return {
            "box": [round(each, 2) for each in self.box.tolist()],
            "landmarks": [[round(x, 2), round(y, 2)] for x, y in self.landmarks.tolist()] if known else None,
            "score": self.score,
            "quality": None if self.quality is None else self.quality.score,
            "liveness": None if self.liveness is None else self.liveness.to_dict(),
            "reasons": list(self.reasons),
            "number": self.number,
            "total": self.total,
            "track_id": self.track_id,
        }


def from_left(faces: Sequence[Face]) -> list[Face]:
    """Order the faces of one photo from left to right, and number them."""
    ordered = sorted(faces, key=lambda face: float(face.box[0]))
    return [replace(face, number=i, total=len(ordered)) for i, face in enumerate(ordered, start=1)]


def largest_face(faces: Sequence[Face], image_size: tuple[int, int]) -> int:
    """Return the index of the face that a user means who names none; `image_size` is (height, width) in pixels.

    It is the one that `Faces.largest` chooses among the faces that pass the pipeline's gate and `QualityGate`, because
    what fails may be a false alarm of the detector; else among those that pass the former, else among all.

    Raises
    ------
    FaceError
        If there are no faces.
    """
    passed = [index for index, face in enumerate(faces) if not face.reasons]
    clear = [index for index in passed if (quality := faces[index].quality) and _CLEAR.check(quality)]
    among = clear or passed or list(range(len(faces)))
    boxes = np.array([faces[index].box for index in among], np.float32).reshape(-1, 4)
    unused = np.zeros(len(among), np.float32)
    return among[Faces(boxes, np.zeros((len(among), 5, 2), np.float32), unused).largest(image_size)]


@dataclass(frozen=True, slots=True, eq=False)
class FaceObservation:
    """A face of a frame, and its vector (D,) while that is being computed; None: it will have none, or has it."""

    face: Face
    vector: Future[NDArray[np.float32]] | None
    contract_id: str

    def finish(self) -> Face:
        """Wait for the embedding; raise what the embedder raised."""
        if self.vector is None:
            return self.face
        return replace(self.face, embedding=Embedding(self.vector.result().reshape(-1), self.contract_id))


@dataclass(frozen=True, slots=True, eq=False)
class FrameGroup:
    """Frames that are detected together, and their faces once these are known."""

    observed: Future[list[tuple[Frame, list[FaceObservation]]]]

    def is_ready(self) -> bool:
        """Whether all faces and embeddings, or an error, are there."""
        if not self.observed.done():
            return False
        return self.observed.exception() is not None or all(each.done() for each in self._embeddings())

    def results(self) -> Iterator[tuple[Frame, list[Face]]]:
        """Wait for the faces of every frame."""
        for frame, observations in self.observed.result():
            yield frame, [each.finish() for each in observations]

    def abandon(self) -> None:
        """Cancel the detection or, if that is over, the embeddings."""
        if not self.observed.cancel():
            self.observed.add_done_callback(self._cancel_embeddings)

    def _cancel_embeddings(self, observed: Future[list[tuple[Frame, list[FaceObservation]]]]) -> None:
        if observed.exception() is None:
            for future in self._embeddings():
                future.cancel()

    def _embeddings(self) -> Iterator[Future[NDArray[np.float32]]]:
        for _, observations in self.observed.result():
            yield from (each.vector for each in observations if each.vector is not None)


def group_frames(frames: Iterable[Frame], most: int) -> Iterator[list[Frame]]:
    """Split frames into lists of at most `most`, and of not many more pixels than `_GROUP_PIXELS`."""
    group: list[Frame] = []
    pixels = 0
    for frame in frames:
        group.append(frame)
        pixels += frame.image.shape[0] * frame.image.shape[1]
        if len(group) == most or pixels >= _GROUP_PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group
