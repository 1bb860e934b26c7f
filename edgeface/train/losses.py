"""Losses for training a classifier on embeddings, and the weights of its classes.

Each is a function of tensors that returns one number, so that any of them can stand in a training loop.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgeface.errors import InputError

ClassWeights = Literal["none", "balanced", "rare"]


def weights_of_classes(labels: NDArray[np.intp], classes: int, kind: ClassWeights) -> NDArray[np.float32]:
    """Return the weight of each class, (C,) float32.

    ``none``: 1. ``balanced``: N / (C n), of N examples, n of this class (King and Zeng, Political Analysis 9, 2001).
    ``rare``: one minus the class's share of the examples, the alpha of haidiazaman/face-recognition-model-development.

    Raises InputError if a class has no example.

    Examples
    --------
    >>> weights_of_classes(np.array([0, 0, 0, 1]), 2, "balanced").tolist()
    [0.6666666865348816, 2.0]
    """
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise InputError(expected="an example of each class", found=f"none of class {int(np.argmin(counts))}")
    if kind == "none":
        return np.ones(classes, np.float32)
    shares = counts / len(labels)
    return np.asarray(1 / (classes * shares) if kind == "balanced" else 1 - shares, np.float32)


def focal_loss(logits: Tensor, labels: Tensor, *, gamma: float = 2.0, weights: Tensor | None = None) -> Tensor:
    """Return the mean of ``-w (1 - p)^gamma log p``, p being the probability of the right class.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5, for several classes: a photo that is
    recognised already counts less. With gamma 0 it is the cross entropy.

    Parameters
    ----------
    logits : (N, C) float
        One row an example.
    labels : (N,) int64
        The right classes.
    gamma
        How fast the weight of recognised examples falls, from 0.
    weights : (C,) float
        Weight w of each class; None: 1.

    Examples
    --------
    >>> import torch
    >>> logits, labels = torch.zeros(1, 4), torch.tensor([2])
    >>> round(float(focal_loss(logits, labels, gamma=0.0)), 4), round(float(focal_loss(logits, labels)), 4)
    (1.3863, 0.7798)
    """
    log_p = functional.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    loss = -((1 - log_p.exp()) ** gamma) * log_p if gamma else -log_p
    return (loss if weights is None else loss * weights[labels]).mean()
