"""Measure verification of photos against photos of low resolution: one crop of each pair loses its detail."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.evaluate.faces import Embedded
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.protocol import Evaluation, ProtocolName, evaluate
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.recognize.metrics import Metric
from edgeface.runtime.adapter import Flip
from edgeface.runtime.embedder import Embedder
from edgeface.vision.image import Image

FEWEST_PIXELS = 4


@dataclass(frozen=True, slots=True, eq=False)
class LowResolution:
    """Evaluation of pairs whose second crop was reduced to `pixels` on its shorter side."""

    pixels: int
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        told = self.evaluation.to_dict()
        return {name: told[name] for name in ("accuracy", "val", "auc", "eer", "threshold")}


def reduce_resolution(crop: Image, pixels: int) -> Image:
    """Return a crop, (H, W, 3) uint8, as if it had been so small: `pixels` on its shorter side.

    It is reduced by the mean over areas, as a camera's pixels do, and enlarged bicubically to its size again (Knoche
    et al., FG 2023, section III, with area means for their antialiased bicubic reduction). A crop that has no more
    pixels is returned as it is.

    Examples
    --------
    >>> crop = np.zeros((4, 4, 3), np.uint8)
    >>> crop[::2, ::2] = 200
    >>> int(reduce_resolution(crop, 2).min()), int(reduce_resolution(crop, 2).max())
    (50, 50)
    """
    height, width = crop.shape[:2]
    share = pixels / min(height, width)
    if share >= 1:
        return crop
    small = cv2.resize(
        crop, (max(1, round(width * share)), max(1, round(height * share))), interpolation=cv2.INTER_AREA
    )
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def parse_resolutions(text: str | None) -> tuple[int, ...]:
    """Read ``7,14,28``; None is no resolution. Raise InputError if it is none.

    Examples
    --------
    >>> parse_resolutions("7,14")
    (7, 14)
    """
    try:
        found = tuple(int(each) for each in text.split(",")) if text is not None else ()
    except ValueError:
        raise InputError(expected="resolutions in pixels, like 7,14,28", found=repr(text)) from None
    require_resolutions(found)
    return found


def require_resolutions(resolutions: Sequence[int], *, side: int | None = None) -> None:
    """Raise InputError unless all are at least 4 pixels, at most the `side` of a crop, and none is given twice."""
    whole = [each for each in resolutions if side and each > side]
    if whole:
        raise InputError(
            expected=f"resolutions of at most that of the model's crops, {side} pixels",
            found=", ".join(map(str, whole)),
        )
    if any(each < FEWEST_PIXELS for each in resolutions) or len(set(resolutions)) < len(resolutions):
        raise InputError(
            expected=f"different resolutions of at least {FEWEST_PIXELS} pixels, like 7,14,28",
            found=", ".join(map(str, resolutions)),
        )


def pairs_with_copies(pairs: Pairs) -> Pairs:
    """Return the same pairs, whose second images are the copies of their images: image i's is ``i + len(images)``."""
    return dataclasses.replace(pairs, images=pairs.images * 2, second=pairs.second + len(pairs.images))


def embed_low_resolution(
    embedded: Embedded,
    rows: NDArray[np.intp],
    resolutions: Sequence[int],
    *,
    flip: Flip | None = None,
    device: str = "CPU",
    allow_seeded: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> NDArray[np.float32]:
    """Embed the crops of these rows again in each resolution: (R, n, D), with faces where `embedded` found them."""
    require_resolutions(resolutions, side=min(embedded.contract.input_size))
    total = len(rows) * len(resolutions)
    found = np.empty((len(rows), len(resolutions), embedded.vectors.shape[1]), np.float32)
    crops = (
        reduce_resolution(crop, pixels) for crop in map(embedded.cutter.crop, rows.tolist()) for pixels in resolutions
    )
    with Embedder.load(embedded.model, device=device, flip=flip, allow_seeded=allow_seeded) as embedder:
        for done, vector in enumerate(embedder.map(crops)):
            found[divmod(done, len(resolutions))] = vector
            progress(Progress("low resolution", done + 1, total, unit="images"))
    return found.transpose(1, 0, 2)


def evaluate_low_resolution(
    embedded: Embedded,
    pairs: Pairs,
    resolutions: Sequence[int],
    *,
    protocol: ProtocolName,
    metric: Metric,
    subtract_mean: bool,
    fars: Sequence[float],
    flip: Flip | None = None,
    device: str = "CPU",
    allow_seeded: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> tuple[LowResolution, ...]:
    """Score the pairs in each resolution of their second crop; parameters as for `evaluate_model`."""
    if not resolutions:
        return ()
    rows = np.unique(pairs.second)
    low = embed_low_resolution(
        embedded, rows, resolutions, flip=flip, device=device, allow_seeded=allow_seeded, progress=progress
    )
    copied = pairs_with_copies(pairs)
    scored = []
    for pixels, vectors in zip(resolutions, low, strict=True):
        copies = embedded.vectors.copy()
        copies[rows] = vectors
        evaluation = evaluate(
            np.concatenate([embedded.vectors, copies]),
            copied,
            protocol=protocol,
            metric=metric,
            subtract_mean=subtract_mean,
            fars=fars,
        )
        scored.append(LowResolution(pixels, evaluation))
    return tuple(scored)
