"""What a detector does: the protocol, and the faces that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import FaceError, InputError
from edgeface.vision.image import Image

if TYPE_CHECKING:
    from edgeface.vision.quality import QualityGate

SMALLEST_FACE = 20
"""Side in pixels of the smallest face that is looked for where nothing chooses another, as in davidsandberg/facenet.
YuNet finds 99 % of faces of this size, and 97 % of those of 16."""
_SHARE_OF_INPUT = 5
"""Part of the model's input that the side of a face has at least: 32 pixels for FaceNet, whose accuracy on pairs of LFW
is 0.91 with faces of this size and 0.73 with 20 pixels; 30 for dlib's model, 0.98 and 0.95 (docs/measured.md)."""

Index = int | slice | NDArray[np.integer] | NDArray[np.bool_] | list[int]


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """The N faces of one image, best score first, in pixels of that image.

    Attributes
    ----------
    boxes : (N, 4) float32
        x0, y0, x1, y1. A box may reach beyond the image.
    landmarks : (N, 5, 2) float32
        x, y of the left eye, right eye, tip of the nose, left and right corner of the mouth. Left means left *in
        the image*: the first eye is the person's right eye. NaN if the detector has no landmarks.
    scores : (N,) float32
        0 to 1. Scores of different detectors cannot be compared.
    """

    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.scores)
        for name, array, shape in (
            ("boxes", self.boxes, (count, 4)),
            ("landmarks", self.landmarks, (count, 5, 2)),
            ("scores", self.scores, (count,)),
        ):
            if array.shape != shape or array.dtype != np.float32:
                raise InputError(f"{name}: expected {shape} float32, found {array.shape} {array.dtype}")

    @classmethod
    def empty(cls) -> Faces:
        """Return no faces."""
        return cls(np.empty((0, 4), np.float32), np.empty((0, 5, 2), np.float32), np.empty(0, np.float32))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Index) -> Faces:
        """Select faces as numpy does; a single index selects one face."""
        if isinstance(index, int | np.integer):
            index = [range(len(self))[index]]
        return Faces(self.boxes[index], self.landmarks[index], self.scores[index])

    def largest(self, image_size: tuple[int, int]) -> int:
        """Choose the main face of a photo: large and near the centre.

        It has the largest ``area - 2 * d ** 2``, where d is the distance of the box's centre from the photo's
        (davidsandberg/facenet, `src/align/align_dataset_mtcnn.py`).

        Parameters
        ----------
        image_size
            (height, width) in pixels: ``image.shape[:2]``.

        Raises
        ------
        FaceError
            If there are no faces.

        Examples
        --------
        >>> boxes = np.array([[0, 0, 60, 60], [105, 105, 145, 145]], np.float32)
        >>> Faces(boxes, np.zeros((2, 5, 2), np.float32), np.ones(2, np.float32)).largest((250, 250))
        1
        """
        if not len(self):
            raise FaceError("expected at least one face, found no faces")
        boxes = self.boxes.astype(np.float64)
        sides = boxes[:, 2:] - boxes[:, :2]
        offsets = (boxes[:, :2] + boxes[:, 2:]) / 2 - np.array(image_size[::-1]) / 2
        return int(np.argmax(sides.prod(axis=1) - 2 * np.square(offsets).sum(axis=1)))


@dataclass(frozen=True, slots=True)
class FoundBy:
    """Which detector looks for faces, from which size on, and why: what answers say.

    Attributes
    ----------
    detector
        Its name; None, as the rest: every photo is one aligned crop.
    min_size
        Shorter side in pixels of the smallest box.
    min_size_from
        ``min-size``: asked for, or of a detector that was loaded by the caller. ``gate``: the smallest that the quality
        gate lets pass. ``model``: a fifth of its input's longer side. ``default``: nothing chose one, or that fifth is
        less: 20 pixels, 40 in `edgeface cluster`.
    """

    detector: str | None = None
    min_size: int | None = None
    min_size_from: Literal["min-size", "gate", "model", "default"] | None = None

    @classmethod
    def loaded(cls, detector: Detector, *, asked: bool) -> FoundBy:
        """Describe a detector that looks from its own size on; `asked`: whether someone chose it."""
        return cls(detector.name, int(detector.settings["min_size"] or 0), "min-size" if asked else "default")

    @classmethod
    def choose(cls, detector: str, input_size: tuple[int, int], gate: QualityGate | None = None) -> FoundBy:
        """Choose the smallest face by the gate, without one by the model's input, (height, width) in pixels.

        Examples
        --------
        >>> FoundBy.choose("yunet", (160, 160))
        FoundBy(detector='yunet', min_size=32, min_size_from='model')
        """
        least = -(-max(input_size) // _SHARE_OF_INPUT) if gate is None else gate.smallest_face
        if least <= SMALLEST_FACE:  # as of a gate without a limit: faces of 1 pixel take minutes and gigabytes
            return cls(detector, SMALLEST_FACE, "default")
        return cls(detector, least, "model" if gate is None else "gate")

    def no_face(self, path: str) -> FaceError:
        """Make the error of a photo in which this found no face; it says from which size on faces were looked for.

        Examples
        --------
        >>> str(FoundBy("yunet", 32, "gate").no_face("a.jpg")).partition("; faces ")[2]
        "are looked for from 32 pixels on (the quality gate's smallest)"
        """
        remedy = "use a photo with a larger or clearer face"
        if self.min_size is not None:
            why = "the quality gate's smallest" if self.min_size_from == "gate" else "--min-size; in Python min_size"
            remedy += f"; faces are looked for from {self.min_size} pixels on ({why})"
        return FaceError(path=path, expected="a face", found="none", remedy=remedy)


class Detector(Protocol):
    """Detects faces. Made by `load_detector`; a context manager; safe to call from several threads."""

    @property
    def name(self) -> str:
        """Name for `load_detector`."""

    @property
    def settings(self) -> dict[str, str | int | float | None]:
        """Everything that the detector's results depend on, as JSON values.

        Equal settings mean equal faces for equal images. Work that is resumed or reused compares them: ``name``;
        ``threshold`` and ``min_size`` in effect (defaults filled in); ``model`` and ``landmarks_model``: the first 16
        hex digits of the SHA-256 of the files that were loaded, or None where there is no such file.
        """

    def detect(self, images: Sequence[Image]) -> list[Faces]:
        """Detect the faces of every image. Images may differ in size; equal sizes are faster.

        Parameters
        ----------
        images
            Each (H, W, 3) uint8, BGR, 0-255, of any H and W.

        Returns
        -------
        list of Faces
            One for each image, in order.

        Raises
        ------
        InputError
            If an image has another shape or type.
        EngineClosed
            If the detector was closed.
        """

    def close(self) -> None:
        """Free the networks. `detect` then raises `EngineClosed`; closing again does nothing."""

    def __enter__(self) -> Detector: ...

    def __exit__(self, *_: object) -> None: ...
