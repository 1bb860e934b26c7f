"""Align a face: cut the crop that a model was trained on out of a photo."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.errors import FaceError, InputError
from edgeface.model.contract import Alignment
from edgeface.vision.image import Image

Points = NDArray[np.floating]

_ARCFACE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where the five landmarks go in 112 x 112 (deepinsight/insightface, `utils/face_align.py`, `arcface_dst`)."""
_SPHEREFACE = _ARCFACE - [8, 0]
"""The same in 96 wide, 112 high (wy1iu/sphereface, `face_align_demo.m`, `coord5points`): ArcFace's template is
this one, widened by 8 pixels a side."""
_DLIB = np.array([[48.039, 45.989], [101.785, 45.940], [74.712, 77.571], [51.106, 104.768], [98.715, 104.766]])
"""Where the five landmarks go in the 150 x 150 chips of dlib's `get_face_chip` with padding 0.25. dlib aligns with eye
corners and the base of the nose; these are the medians of MTCNN's landmarks in its chips of LFW."""
_TEMPLATES: Mapping[str, tuple[Points, tuple[int, int]]] = MappingProxyType(
    {
        "five-point-112": (_ARCFACE, (112, 112)),
        "five-point-96x112": (_SPHEREFACE, (112, 96)),
        "five-point-150": (_DLIB, (150, 150)),
    }
)
"""Template, and the (height, width) it is drawn in."""

_OPENFACE_68 = np.array([[0.194157, 0.169267], [0.788859, 0.158171], [0.494951, 0.514441]])
"""Outer eye corners and base of the nose, in units of the crop (cmusatyalab/openface, `align_dlib.py`,
`MINMAX_TEMPLATE[[36, 45, 33]]`)."""
_OPENFACE_5 = np.array([[0.277371, 0.167284], [0.706148, 0.159000], [0.492094, 0.422107]])
"""Centres of the eyes and tip of the nose in the same template: means of its points 36-41 and 42-47, point 30."""
_OUTER_EYES_AND_NOSE = [36, 45, 33]
"""dlib's numbers of the points of `_OPENFACE_68`."""

_WARPED_SIDE = 32767
"""From this side on OpenCV 4 cannot warp an image."""
_FLATTEST = 0.01
"""Smallest area of a usable triangle of landmarks, in units of its longest side squared (0.29 in the template)."""


def align(
    image: Image, box: Points | None, landmarks: Points | None, alignment: Alignment, size: tuple[int, int]
) -> Image:
    """Cut one face out of a photo as a model's contract says.

    Parameters
    ----------
    image : (H, W, 3) uint8, BGR
        The photo; for the recipe ``none``, the crop itself.
    box : (4,) float
        x0, y0, x1, y1 in pixels; used by the box recipes only.
    landmarks : (5, 2) float
        As in `Faces.landmarks`; used by the landmark recipes only. ``outer-eyes-nose-96`` also takes dlib's 68
        points, and then equals OpenFace's alignment; of five it uses the centres of the eyes and the tip of the nose.
    alignment
        Recipe and margin: ``contract.alignment``.
    size
        (height, width) of the crop in pixels: ``contract.input_size``.

    Returns
    -------
    (height, width, 3) uint8, BGR
        Box recipes are clipped to the photo; outside of it landmark recipes see black.

    Raises
    ------
    FaceError
        If the box or the landmarks are missing, not finite, without extent, or outside the photo.
    InputError
        If `size` does not fit the recipe.

    Examples
    --------
    >>> photo, box = np.zeros((250, 250, 3), np.uint8), np.array([80.0, 70, 170, 180])
    >>> align(photo, box, None, Alignment("mtcnn-box-margin", 32), (160, 160)).shape
    (160, 160, 3)
    """
    height, width = size
    if min(size) < 1:
        raise InputError(f"size: expected a positive (height, width), found {size}")
    if alignment.recipe == "none":
        return _resize(image, size, cv2.INTER_LINEAR)
    if alignment.recipe in ("mtcnn-box-margin", "mtcnn-box-output-margin"):
        x0, y0, x1, y1 = crop_box(image, box, alignment, size)
        # facenet-pytorch resizes arrays by area; the crops of davidsandberg's published numbers are bilinear.
        by_area = alignment.recipe == "mtcnn-box-output-margin"
        return _resize(image[y0:y1, x0:x1], size, cv2.INTER_AREA if by_area else cv2.INTER_LINEAR)
    points = _check_landmarks(image, landmarks, alignment)
    if alignment.recipe == "outer-eyes-nose-96":
        template = _OPENFACE_5 if len(points) == 5 else _OPENFACE_68
        points = points[:3] if len(points) == 5 else points[_OUTER_EYES_AND_NOSE]
        matrix = _fit_affine(points, template * [width, height])
    else:
        matrix = fit_similarity(points, _five_point_template(alignment, size))
    if max(image.shape[:2]) >= _WARPED_SIDE:
        image, matrix = _cut_seen(image, matrix, size)
    return np.asarray(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR), np.uint8)


def crop_box(
    image: Image, box: Points | None, alignment: Alignment, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Grow a detector's box by the margin of a box recipe and clip it to the photo.

    Returns
    -------
    x0, y0, x1, y1
        Whole pixels, the last two exclusive, rounded towards zero as both reference implementations do.

    Raises
    ------
    FaceError
        If the box is missing, not finite, without extent, or outside the photo.
    """
    if box is None or np.shape(box) != (4,) or not np.isfinite(box).all():
        raise FaceError(f"expected a box of four finite numbers x0, y0, x1, y1, found {box}")
    corners = np.asarray(box, np.float64).reshape(2, 2)
    sides = corners[1] - corners[0]
    if (sides <= 0).any():
        raise FaceError(f"expected a box with x0 < x1 and y0 < y1, found {_text(box)}")
    grow = np.full(2, alignment.margin / 2)
    if alignment.recipe == "mtcnn-box-output-margin":
        inside = np.array(size[::-1]) - alignment.margin
        if (inside <= 0).any():
            raise InputError(f"size: expected more than the margin of {alignment.margin} pixels, found {size}")
        grow *= sides / inside
    limits = np.array(image.shape[1::-1])
    low = np.maximum(corners[0] - grow, 0).astype(int)
    high = np.minimum(corners[1] + grow, limits).astype(int)
    if (high <= low).any():
        raise FaceError(f"expected a box inside the photo of {limits[0]}x{limits[1]} pixels, found {_text(box)}")
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def fit_similarity(source: Points, target: Points) -> Points:
    """Fit rotation, uniform scale and translation, without reflection, by least squares.

    With points as complex numbers, a similarity is ``z -> a z + b``, and the least-squares ``a`` is
    ``sum(conj(z) w) / sum(|z|^2)`` over centred points: the two-dimensional case of Umeyama, "Least-squares
    estimation of transformation parameters between two point patterns", PAMI 13(4), 1991, equations 40 to 42.

    Parameters
    ----------
    source, target : (N, 2) float
        N >= 2 points.

    Returns
    -------
    (2, 3) float64
        As `cv2.warpAffine` takes it.

    Raises `FaceError` if all source points are the same.
    """
    z, w = (np.asarray(points, np.float64) @ [1, 1j] for points in (source, target))
    centred = z - z.mean()
    extent = np.square(np.abs(centred)).sum()
    if extent < np.finfo(np.float32).eps:
        raise FaceError(f"expected distinct landmarks, found all of them at {_text(source[0])}")
    a = (centred.conj() @ (w - w.mean())) / extent
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def _fit_affine(source: Points, target: Points) -> Points:
    """Fit the affine map of three points onto three: (2, 3) float64."""
    sides = np.diff(source, axis=0, append=source[:1])
    area = abs(sides[0, 0] * sides[1, 1] - sides[0, 1] * sides[1, 0]) / 2
    if area <= _FLATTEST * np.square(sides).sum(axis=1).max():
        raise FaceError("expected eyes and nose that are not on one line")
    return np.asarray(cv2.getAffineTransform(source.astype(np.float32), target.astype(np.float32)))


def _cut_seen(image: Image, matrix: Points, size: tuple[int, int]) -> tuple[Image, Points]:
    """Cut out the part of a photo that a crop shows, and move the matrix to it."""
    corners = np.array([[0, size[1], 0, size[1]], [0, 0, size[0], size[0]], [1, 1, 1, 1]])
    seen = cv2.invertAffineTransform(matrix) @ corners
    limits = np.array(image.shape[1::-1])
    low = np.clip(np.floor(seen.min(axis=1)) - 2, 0, limits - 1).astype(int)
    high = np.clip(np.ceil(seen.max(axis=1)) + 2, low + 1, limits).astype(int)
    moved = np.column_stack([matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ low])
    return image[low[1] : high[1], low[0] : high[0]], moved


def _five_point_template(alignment: Alignment, size: tuple[int, int]) -> Points:
    template, drawn_in = _TEMPLATES[alignment.recipe]
    if size[0] * drawn_in[1] != size[1] * drawn_in[0]:
        raise InputError(f"size: {alignment.recipe} needs the aspect ratio of (height, width) {drawn_in}, found {size}")
    return template * (size[0] / drawn_in[0])


def _check_landmarks(image: Image, landmarks: Points | None, alignment: Alignment) -> Points:
    counts = (5, 68) if alignment.recipe == "outer-eyes-nose-96" else (5,)
    expected = f"{alignment.recipe}: expected {' or '.join(map(str, counts))} landmarks"
    if landmarks is None or np.isnan(landmarks).all():
        raise FaceError(f"{expected}, found none; use a detector with landmarks")
    if np.ndim(landmarks) != 2 or np.shape(landmarks) not in [(count, 2) for count in counts]:
        raise FaceError(f"{expected}, found an array of shape {np.shape(landmarks)}")
    if not np.isfinite(landmarks).all():
        raise FaceError(f"{expected} of finite numbers, found {_text(landmarks)}")
    points = np.asarray(landmarks, np.float64)
    height, width = image.shape[:2]
    if not ((points >= 0) & (points < [width, height])).all(axis=1).any():
        raise FaceError(f"{expected} inside the photo of {width}x{height} pixels, found {_text(points)}")
    return points


def _resize(image: Image, size: tuple[int, int], interpolation: int) -> Image:
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=interpolation), np.uint8)


def _text(numbers: Points) -> str:
    return np.array2string(np.asarray(numbers), precision=1, separator=", ").replace("\n", "")
