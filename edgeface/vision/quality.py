"""Measure how well a face can be recognised, and check it against limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.errors import FaceError, InputError
from edgeface.model.contract import Alignment
from edgeface.vision.align import crop_box
from edgeface.vision.image import Image

Points = NDArray[np.floating]

_SIDE = 112
"""Side in pixels of the crop that sharpness, exposure and occlusion are measured on."""
_NOISE = 1.0
"""Sigma in pixels of the Gaussian before the Laplacian; without it noise counts as sharpness."""

_NAMES = ("left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth")
_FACE_MODEL = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, 0.521, 0.232], [-0.4465, 1.033, 0], [0.4465, 1.033, 0]])
"""Mean face in distances between the eyes: x right, y down, z towards the camera. Factorised (Tomasi and Kanade,
"Shape and motion from image streams under orthography", IJCV 9, 1992) from the landmarks that the reference MTCNN
finds in 7,700 images of LFW, then made symmetric, which moved no point by more than 0.005."""
_LEAST_SQUARES = np.linalg.pinv(_FACE_MODEL - _FACE_MODEL.mean(axis=0))
"""Times centred landmarks: the affine map onto them of least squares, transposed."""

_PATCH = 9
"""Half side in pixels of the crop's patch around a landmark: an eye, a nostril or a lip's corner fits."""
_FLAT = 0.2
"""Contrast of a patch, relative to the whole crop's, below which it shows no eye, nose or mouth."""
_BLANK, _NO_EDGES = 2.0, 5e-5
"""Contrast, and sharpness, below which a crop shows nothing at all."""
_COARSE, _LEAST_COARSE = (14, 14), 0.62
"""Size at which noise is averaged away, and the share of the contrast that a face keeps there."""
_MOSAIC_LINES, _MOSAIC_SIDE, _LEAST_OFF_LINES = 15, 64, 0.05
"""Lines between the cells of a mosaic each way, smallest side on which they are looked for, and the share of the
squared differences of neighbouring pixels that a face has elsewhere."""
_DARK, _BRIGHT = 10, 245
"""Gray values beyond which a pixel has lost its detail to noise or saturation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Measurements of one face.

    Attributes
    ----------
    box_side
        Shorter side of the box, pixels.
    eye_distance
        Between the centres of the eyes, pixels; NaN without landmarks. A turned head brings them closer.
    sharpness
        Variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000)
        over that of the gray values, in a crop of 112 x 112, slightly smoothed: no unit, falls with blur and
        enlargement, and does not depend on brightness.
    yaw, pitch, roll
        Degrees, see `estimate_pose`; NaN without landmarks.
    brightness
        Mean gray value, 0 to 255.
    contrast
        Standard deviation of the gray values.
    clipped
        Share of the pixels that are nearly black or nearly white.
    inside
        Share of the box inside the photo.
    covered
        Landmarks with flat surroundings, which may be hidden by a hand, a mask, dark glasses or the photo's edge.
    """

    box_side: float
    eye_distance: float
    sharpness: float
    yaw: float
    pitch: float
    roll: float
    brightness: float
    contrast: float
    clipped: float
    inside: float
    covered: tuple[str, ...]

    @property
    def score(self) -> float:
        """One number from 0 to 1, to compare crops of one person.

        The product of size (saturating at 112 pixels), sharpness (at 0.04: one face of LFW in two hundred has
        more), the cosines of yaw and pitch, the share inside and, for each landmark covered, a factor of 0.8.
        An order, not a probability.
        """
        angles = [math.radians(angle) for angle in (self.yaw, self.pitch) if not math.isnan(angle)]
        frontal = math.prod(max(0.0, math.cos(angle)) for angle in angles)
        size = min(1.0, self.box_side / _SIDE)
        return float(size * min(1.0, self.sharpness / 0.04) * frontal * self.inside * 0.8 ** len(self.covered))


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a face was rejected: measurement, limit, and advice."""

    measure: str
    measured: float
    limit: float
    advice: str

    def __str__(self) -> str:
        relation = "at least" if self.measured < self.limit else "at most"
        name = self.measure.replace("_", " ")
        return f"{name}: expected {relation} {self.limit:g}, found {self.measured:.3g}; {self.advice}"


@dataclass(frozen=True, slots=True)
class QualityVerdict:
    """Whether a face passes a `QualityGate`, and if not, every reason."""

    ok: bool
    reasons: tuple[Reason, ...]

    def __bool__(self) -> bool:
        """Whether the face passes."""
        return self.ok


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityGate:
    """Limits of the quality of a face.

    With the defaults 97 % of the faces of LFW pass. Measurements that need absent landmarks are not checked.

    Units are those of `Quality`: pixels, degrees (either way), gray values, shares, and a number of landmarks.
    """

    min_box_side: float = 32
    min_eye_distance: float = 14
    min_sharpness: float = 0.004
    max_yaw: float = 60
    max_pitch: float = 50
    max_roll: float = 45
    min_brightness: float = 30
    max_brightness: float = 225
    min_contrast: float = 15
    max_clipped: float = 0.5
    min_inside: float = 0.75
    max_covered: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise InputError(f"quality gate: {field.name}: expected 0 or more, found {getattr(self, field.name)}")

    @property
    def smallest_face(self) -> int:
        """Side in pixels of the smallest box that can pass: to look for smaller faces finds none that is used."""
        return max(1, math.ceil(self.min_box_side))

    def check(self, quality: Quality) -> QualityVerdict:
        """Check a face against the limits."""
        measures = {"yaw": abs(quality.yaw), "pitch": abs(quality.pitch), "roll": abs(quality.roll)}
        measures["covered"] = len(quality.covered)
        reasons = []
        for field in fields(self):
            bound, _, measure = field.name.partition("_")
            limit, measured = getattr(self, field.name), measures.get(measure, getattr(quality, measure))
            if measured < limit if bound == "min" else measured > limit:
                advice = _ADVICE[field.name]
                if measure == "covered":
                    advice = f"show {' and '.join(quality.covered)}, or {advice}"
                reasons.append(Reason(measure, float(measured), float(limit), advice))
        return QualityVerdict(not reasons, tuple(reasons))


_ADVICE = {
    "min_box_side": "move closer, or use a photo with more pixels",
    "min_eye_distance": "move closer, or use a photo with more pixels",
    "min_sharpness": "hold still, clean or focus the lens, or shorten the exposure",
    "max_yaw": "turn the face to the camera",
    "max_pitch": "raise or lower the face, or the camera, to one height",
    "max_roll": "hold the head, or the camera, upright",
    "min_brightness": "add light in front of the face",
    "max_brightness": "take light away, or shorten the exposure",
    "min_contrast": "take away haze, glare or light from behind",
    "max_clipped": "even out the light: parts of the face are black or white",
    "min_inside": "bring the whole face into the photo",
    "max_covered": "take off what hides the face",
}


def measure_quality(image: Image, box: Points, landmarks: Points | None = None) -> Quality:
    """Measure one face.

    Parameters
    ----------
    image : (H, W, 3) uint8, BGR
        The photo.
    box : (4,) float
        x0, y0, x1, y1 in the photo's pixels.
    landmarks : (5, 2) float
        As in `Faces.landmarks`; None or NaN: unknown.

    Raises
    ------
    FaceError
        If the box has no extent or lies outside the photo.
    """
    gray = _gray_crop(image, box)
    known = landmarks is not None and bool(np.isfinite(landmarks).all())
    points = np.asarray(landmarks, np.float64) if known else np.full((5, 2), np.nan)
    yaw, pitch, roll = _try_pose(points)
    brightness, contrast = _mean_and_deviation(gray)
    low, high = np.maximum(box[:2], 0), np.minimum(box[2:], image.shape[1::-1])
    return Quality(
        box_side=float((box[2:] - box[:2]).min()),
        eye_distance=float(np.linalg.norm(points[1] - points[0])),
        sharpness=_sharpness(gray, contrast),
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        brightness=brightness,
        contrast=contrast,
        clipped=np.count_nonzero(gray - np.uint8(_DARK) > _BRIGHT - _DARK) / gray.size,  # the dark ones wrap around
        inside=min(1.0, float(np.prod(high - low) / np.prod(box[2:] - box[:2]))),  # float32 rounds
        covered=_covered(gray, (points - low) / (high - low) * _SIDE, contrast) if known else (),
    )


def find_no_face(crop: Image) -> str | None:
    """Say why an aligned crop cannot show a face: it is blank, without edges, noise or a mosaic. None: it may show one.

    A detector looks for faces; this only refuses images that certainly have none, before a network makes an embedding
    of them that resembles those of other such images. Of 7,701 aligned faces of LFW none is refused: their contrast is
    above 22, and seen at 14 x 14 they keep at least 0.68 of it; white noise keeps 0.55 or less. At least 0.16 of their
    edges are not on 15 lines each way; of mosaics up to 16 x 16, also enlarged or as JPEG of quality 90, at most 0.03.

    Parameters
    ----------
    crop : (H, W, 3) uint8, BGR
        All of it.
    """
    gray = _gray_crop(crop, np.array([0, 0, crop.shape[1], crop.shape[0]], np.float32))
    _, contrast = _mean_and_deviation(gray)
    if contrast < _BLANK:
        return "expected a face, found an image of one colour"
    if _sharpness(gray, contrast) < _NO_EDGES:
        return "expected a face, found an image without edges"
    coarse = cv2.resize(gray.astype(np.float32), _COARSE, interpolation=cv2.INTER_AREA)
    if _mean_and_deviation(coarse)[1] < _LEAST_COARSE * contrast:
        return "expected a face, found noise or a fine pattern"
    if min(crop.shape[:2]) >= _MOSAIC_SIDE and _off_lines(crop) < _LEAST_OFF_LINES:
        return f"expected a face, found a mosaic of at most {_MOSAIC_LINES + 1}x{_MOSAIC_LINES + 1} cells"
    return None


def estimate_pose(landmarks: Points) -> tuple[float, float, float]:
    """Estimate the head pose from five landmarks.

    Scaled orthography: the affine map from the mean face to the landmarks by least squares, then the nearest
    scaled rotation (the first step of POSIT: DeMenthon and Davis, "Model-based object pose in 25 lines of code",
    IJCV 15, 1995). People differ from the mean face: expect errors of some ten degrees, most in pitch.

    Parameters
    ----------
    landmarks : (5, 2) float
        As in `Faces.landmarks`.

    Returns
    -------
    yaw, pitch, roll
        Degrees: positive if the nose points to the right of the photo, if it points down, and if the head is
        rotated clockwise in the photo.

    Raises
    ------
    FaceError
        If the landmarks are not finite or all on one line.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise FaceError(f"expected five finite landmarks, found {points.shape}: {points.tolist()}")
    affine = (_LEAST_SQUARES @ (points - points.mean(axis=0))).T
    left, sizes, right = np.linalg.svd(affine, full_matrices=False)
    if sizes[1] <= 0.05 * sizes[0]:
        raise FaceError("expected landmarks that are not all on one line")
    rotation = left @ right  # the first two rows; the third is their cross product
    toward = rotation[:, 2]  # where the nose's axis goes in the picture
    depth = rotation[0, 0] * rotation[1, 1] - rotation[0, 1] * rotation[1, 0]
    yaw = np.arctan2(toward[0], depth)
    pitch = np.arctan2(toward[1], np.hypot(toward[0], depth))
    roll = np.arctan2(rotation[1, 0], rotation[0, 0])
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))


def _gray_crop(image: Image, box: Points) -> NDArray[np.uint8]:
    x0, y0, x1, y1 = crop_box(image, box, Alignment("mtcnn-box-margin", 0), (_SIDE, _SIDE))
    # By area where it shrinks, because alias looks sharp; never where it grows, because blocks do too.
    shrinks = min(x1 - x0, y1 - y0) > _SIDE
    crop = cv2.resize(
        image[y0:y1, x0:x1], (_SIDE, _SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return np.asarray(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), np.uint8)


def _off_lines(crop: Image) -> float:
    """Return which share of the edges is not on the strongest vertical and horizontal lines through the whole crop."""
    gray = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY).astype(np.float32)
    shares = []
    for axis in (0, 1):
        edges = np.square(np.diff(gray, axis=axis)).mean(axis=1 - axis)
        total = max(float(edges.sum()), 1e-9)
        for _ in range(_MOSAIC_LINES):
            line = int(edges.argmax())
            edges[max(0, line - 1) : line + 2] = 0  # with what enlarging and JPEG smear
        shares.append(float(edges.sum()) / total)
    return max(shares)


def _sharpness(gray: NDArray[np.uint8], contrast: float) -> float:
    edges = cv2.Laplacian(cv2.GaussianBlur(gray.astype(np.float32), (0, 0), _NOISE), cv2.CV_32F)
    return _mean_and_deviation(edges)[1] ** 2 / max(contrast, 1.0) ** 2  # 1: a crop without any contrast is not sharp


def _try_pose(points: Points) -> tuple[float, float, float]:
    try:
        return estimate_pose(points)
    except FaceError:
        return (np.nan, np.nan, np.nan)


def _covered(gray: NDArray[np.uint8], points: Points, contrast: float) -> tuple[str, ...]:
    """Name the landmarks with flat surroundings, or outside the crop."""
    return tuple(
        name
        for name, (x, y) in zip(_NAMES, np.rint(points).astype(int).tolist(), strict=True)
        if not (0 <= x < _SIDE and 0 <= y < _SIDE)
        or _mean_and_deviation(gray[max(y - _PATCH, 0) : y + _PATCH + 1, max(x - _PATCH, 0) : x + _PATCH + 1])[1]
        < _FLAT * contrast
    )


def _mean_and_deviation(values: NDArray[Any]) -> tuple[float, float]:
    """Return mean and standard deviation of (H, W), in a tenth of numpy's time."""
    mean, deviation = cv2.meanStdDev(values)
    return float(mean[0, 0]), float(deviation[0, 0])
