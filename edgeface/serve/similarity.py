"""Map cosines to the similarities of CompreFace, on which its clients have fixed thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgeface.errors import InputError
from edgeface.model.contract import ModelContract
from edgeface.recognize.known import thresholds_for


@dataclass(frozen=True, slots=True)
class SimilarityScale:
    """``(tanh((c0 - d) * c1) + 1) / 2``, where d is the Euclidean distance of embeddings of length 1.

    CompreFace 1.2, EuclideanDistanceClassifier.java: c0 is the distance whose similarity is one half, c1 how steep it
    is there.

    Examples
    --------
    >>> scale = PUBLISHED["20180408-102900"]
    >>> [round(scale.similarity(cosine), 3) for cosine in (0.3545, 0.5517, 0.7260)]
    [0.5, 0.9, 0.99]
    """

    c0: float
    c1: float

    def similarity(self, cosine: float) -> float:
        """Return the similarity of a cosine, 0 to 1, to five places as CompreFace gives it."""
        return round((math.tanh((self.c0 - _distance(cosine)) * self.c1) + 1) / 2, 5)

    @classmethod
    def through(cls, cosines: tuple[float, float], similarities: tuple[float, float]) -> SimilarityScale:
        """Return the scale on which two cosines, the lower one first, have two similarities."""
        far, near = map(_distance, cosines)
        low, high = (math.atanh(2 * each - 1) for each in similarities)
        c1 = (high - low) / (far - near)
        return cls(far + low / c1, c1)


PUBLISHED: Mapping[str, SimilarityScale] = MappingProxyType(
    {
        "20180408-102900": SimilarityScale(1.1362496, 5.803152427),
        "20180402-114759": SimilarityScale(1.1817961, 5.291995557),
    }
)
"""By a part of the model's name (CompreFace 1.2, embedding-calculator, facenet.py)."""

ANCHORS: Mapping[float, float] = MappingProxyType({1e-2: 0.57, 1e-4: 0.94})
"""What the thresholds of two false accept rates have on the scale of FaceNet 20180408-102900, by those that ship."""


def scale_of(contract: ModelContract) -> SimilarityScale:
    """Return the scale of a model.

    A FaceNet of `PUBLISHED` has the published one. For every other model it is chosen so that one similarity means one
    false accept rate, whatever the model: its thresholds of the rates of `ANCHORS` have the similarities there. A model
    without these thresholds has the scale of FaceNet 20180408-102900.
    """
    trained = contract.lineage is not None and contract.lineage.method == "finetuned"
    for name, scale in PUBLISHED.items():
        if name in contract.name and not trained:
            return scale
    try:
        known = {each.far: each.cosine for each in thresholds_for(contract)}
    except InputError:  # Euclidean distances of embeddings of any length have no cosine
        known = {}
    cosines = tuple(known.get(rate, math.nan) for rate in ANCHORS)
    if not -1 <= cosines[0] < cosines[1] <= 1:
        return PUBLISHED["20180408-102900"]
    return SimilarityScale.through((cosines[0], cosines[1]), (ANCHORS[1e-2], ANCHORS[1e-4]))


def _distance(cosine: float) -> float:
    return math.sqrt(max(0.0, 2 - 2 * cosine))
