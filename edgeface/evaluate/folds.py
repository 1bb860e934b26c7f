"""Labelled pairs in, the folds of a published protocol out."""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.evaluate.pairs import Pairs

__all__ = ["Indices", "ProtocolName", "split"]

Indices = NDArray[np.intp]


class ProtocolName(str, Enum):
    """Whose rules."""

    facenet = "facenet"
    omz = "omz"


def split(pairs: Pairs, protocol: ProtocolName) -> list[Indices]:
    """Split a list as a protocol does: the pairs that each fold is tested on; the others are what it learns from.

    Raises
    ------
    InputError
        If the list's header asks for fewer than 2 folds, or the protocol cannot make so many of it.
    """
    return (_facenet_folds if protocol is ProtocolName.facenet else _omz_folds)(pairs)


def _facenet_folds(pairs: Pairs) -> list[Indices]:
    """Split the pairs into consecutive folds, in file order: scikit-learn's `KFold(n, shuffle=False)`."""
    _require_folds(pairs, len(pairs))
    folds = np.array_split(np.arange(len(pairs)), pairs.folds)
    for number, fold in enumerate(folds, start=1):
        if pairs.same[fold].all() or not pairs.same[fold].any():
            raise InputError(
                f"fold {number} of {pairs.folds}: expected pairs of one person and of two, found one kind only; "
                "the facenet protocol cuts the list into consecutive folds"
            )
    return folds


def _omz_folds(pairs: Pairs) -> list[Indices]:
    """Split the pairs by their anchor, the first image of a pair (`annotation_converters/lfw.py`, `metrics/reid.py`).

    Anchors are in the order in which the list names images, first in its genuine and then in its impostor pairs;
    fold k of n holds the pairs of anchors ``k * A // n`` to ``(k + 1) * A // n``. Folds differ in size, and most
    genuine pairs stand in the first, only impostors in the last; the accuracy is the plain mean of the folds'. A
    pair that the list repeats (same anchor, same other image) counts once.
    """
    rows = np.concatenate([np.flatnonzero(pairs.same), np.flatnonzero(~pairs.same)])
    named = np.stack([pairs.first[rows], pairs.second[rows]], axis=1).ravel()
    images, first_named = np.unique(named, return_index=True)
    order = images[np.argsort(first_named)]
    is_anchor = np.zeros(len(pairs.images), np.bool_)
    is_anchor[pairs.first] = True
    anchors = order[is_anchor[order]]
    _require_folds(pairs, len(anchors))
    position = np.empty(len(pairs.images), np.intp)
    position[anchors] = np.arange(len(anchors))
    _, once = np.unique(np.stack([pairs.first, pairs.second, pairs.same], axis=1), axis=0, return_index=True)
    once.sort()
    bounds = np.arange(pairs.folds + 1) * len(anchors) // pairs.folds
    fold_of = np.searchsorted(bounds, position[pairs.first[once]], side="right") - 1
    return [once[fold_of == fold] for fold in range(pairs.folds)]


def _require_folds(pairs: Pairs, most: int) -> None:
    if not 2 <= pairs.folds <= most:
        raise InputError(
            f"cross-validation: expected 2 to {most} folds, found {pairs.folds} in the pairs' header"
        )
