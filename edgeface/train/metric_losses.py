"""Triplet and octuplet losses: functions of embeddings and labels that return one number, with its gradient."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from edgeface.errors import InputError

DistanceKind = Literal["euclidean", "squared", "cosine"]
Mining = Literal["batch-hard", "semi-hard"]
Terms = tuple[float, float, float, float]
"""Weights of the terms of the octuplet loss, by the resolutions compared: high:high, high:low, low:high, low:low."""


def distances(a: Tensor, b: Tensor, kind: DistanceKind = "euclidean") -> Tensor:
    """Return the distance of each row of `a`, (N, D), to each of `b`, (M, D): (N, M).

    Differences are taken before they are squared, so that the distance of equal rows is 0, not the root of a rounding
    error; its gradient there is 0. ``cosine`` is one minus the cosine.

    Examples
    --------
    >>> a = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> distances(a, torch.zeros(1, 2))[:, 0].tolist(), round(distances(a, a, "cosine")[0, 1].item(), 4)
    ([5.0, 1.0], 0.2)
    """
    if kind not in get_args(DistanceKind):
        raise InputError(expected=f"a distance, one of {', '.join(get_args(DistanceKind))}", found=repr(kind))
    if kind == "cosine":
        cosines: Tensor = functional.normalize(a) @ functional.normalize(b).T
        return 1 - cosines
    apart: Tensor = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return apart if kind == "euclidean" else apart**2


def triplet_costs(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 0.2) -> Tensor:
    """Return ``max(|a - p|^2 - |a - n|^2 + margin, 0)`` of each triplet, (N,), from three (N, D).

    Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", CVPR 2015, equation 2, whose
    loss, equation 3, is their sum: ``triplet_costs(...).sum()``.

    Examples
    --------
    >>> a, p, n = torch.zeros(2, 1), torch.tensor([[1.0], [0.5]]), torch.tensor([[0.5], [2.0]])
    >>> triplet_costs(a, p, n).tolist(), triplet_costs(a, p, n).sum().item()
    ([0.949999988079071, 0.0], 0.949999988079071)
    """
    to_positive, to_negative = (anchor - positive).square().sum(dim=1), (anchor - negative).square().sum(dim=1)
    return (to_positive - to_negative + margin).relu()


def triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.2,
    mining: Mining = "semi-hard",
    kind: DistanceKind = "squared",
) -> Tensor:
    """Return the mean cost ``max(d(a, p) - d(a, n) + margin, 0)`` of the triplets that are mined from a batch.

    ``batch-hard``: of each anchor, the farthest positive and the nearest negative (Hermans et al., "In Defense of the
    Triplet Loss for Person Re-Identification", 2017, equation 5). ``semi-hard``: of each pair of an anchor and a
    positive, the nearest negative that is farther than the positive and within the margin (FaceNet, section 3.2).
    Anchors and pairs without such a negative form no triplet; without a triplet the loss is 0.

    Parameters
    ----------
    embeddings : (N, D) float
        One row a photo; FaceNet's are of unit length.
    labels : (N,) int64
        Person of each.
    margin
        FaceNet's alpha, on the scale of the distance.
    mining, kind
        Choice of triplets; distance.
    """
    if mining not in get_args(Mining):
        raise InputError(expected=f"a mining, one of {', '.join(get_args(Mining))}", found=repr(mining))
    apart = distances(embeddings, embeddings, kind)
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    far, near = apart.masked_fill(~positive, -torch.inf), apart.masked_fill(same, torch.inf)
    if mining == "batch-hard":
        farthest, nearest = far.max(dim=1).values, near.min(dim=1).values
        usable = farthest.isfinite() & nearest.isfinite()
        costs = (farthest[usable] - nearest[usable] + margin).relu()
    else:
        anchor, other = positive.nonzero(as_tuple=True)
        to_positive, to_negative = apart[anchor, other], near[anchor]
        beyond = to_negative.masked_fill(to_negative <= to_positive[:, None], torch.inf).min(dim=1).values
        costs = to_positive - beyond + margin
        costs = costs[beyond < to_positive + margin]
    return costs.mean() if len(costs) else apart.sum() * 0


def octuplet_loss(
    high: Tensor,
    low: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.5,
    kind: DistanceKind = "euclidean",
    terms: Terms = (1.0, 1.0, 1.0, 1.0),
) -> Tensor:
    """Return the mean, over the photos, of four batch-hard triplet costs between full and low resolution.

    Knoche et al., "Octuplet Loss: Make Face Recognition Robust to Image Resolution", FG 2023, as the authors' code
    (github.com/Martlgap/octuplet-loss) computes it: of each photo in one resolution, the farthest positive and the
    nearest negative in the other. A photo's own copy is no positive. A photo without a positive has a farthest one at
    0, and one without a negative a nearest one at its least distance to any photo.

    Parameters
    ----------
    high, low : (B, D) float
        Embeddings of photos, and of their copies of low resolution.
    labels : (B,) int64
        Person of each photo.
    margin, kind
        Margin, on the scale of the distance; the authors' are 0.5 and ``euclidean``.
    terms
        Weights of high:high, high:low, low:high and low:low.

    Examples
    --------
    >>> high = torch.tensor([[0.0], [1.0], [3.0], [5.0]])
    >>> octuplet_loss(high, high, torch.tensor([0, 0, 1, 1])).item()  # of each term (0 + 0 + 0.5 + 0) / 4
    0.5
    """
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    total = high.new_zeros(len(labels))
    for weight, (a, b) in zip(terms, ((high, high), (high, low), (low, high), (low, low)), strict=True):
        if not weight:
            continue
        apart = distances(a, b, kind)
        farthest = (apart * positive).max(dim=1).values
        beyond = (apart * ~same).max(dim=1, keepdim=True).values  # lifts positives above every negative
        nearest = (apart + beyond * same).min(dim=1).values
        total = total + weight * (farthest - nearest + margin).relu()
    return total.mean()
