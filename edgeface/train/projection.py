"""A projection of embeddings that begins as the identity, and the same at the end of an IR."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeface.model.opset import ops

_EPS = 1e-12


class Projection(nn.Module):  # type: ignore[misc]
    """Unit embeddings x to ``normalise(x + W2 relu(W1 x + b1) + b2)``, or without a hidden layer ``x + W2 x + b2``.

    W2 and b2 begin at 0: an untrained projection returns the embedding that it is given. The hidden layer lets it
    treat photos of low resolution, whose embeddings lie elsewhere, in another way than the rest.

    Parameters
    ----------
    dim
        Length of an embedding.
    hidden
        Width of the hidden layer; 0: none.
    seed
        Of W1.
    """

    def __init__(self, dim: int, hidden: int = 0, *, seed: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(dim, hidden) if hidden else None
        self.second = nn.Linear(hidden or dim, dim)
        with torch.no_grad():
            self.second.weight.zero_()
            self.second.bias.zero_()
            if self.first is not None:
                generator = torch.Generator().manual_seed(seed)
                self.first.weight.normal_(0, (2 / dim) ** 0.5, generator=generator)
                self.first.bias.zero_()

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return (N, D) of unit length."""
        x = functional.normalize(embeddings, eps=_EPS)
        inner = x if self.first is None else self.first(x).relu()
        unit: Tensor = functional.normalize(x + self.second(inner), eps=_EPS)
        return unit

    def write_into(self, model: ov.Model) -> ov.Model:
        """Return the model with the projection behind its one output, (B, D), whose names the new output takes."""
        output = model.output(0)
        names = output.get_names()
        before = model.get_results()[0].input_value(0)
        x = _unit(before)
        inner = x if self.first is None else ops.relu(_dense(x, self.first))
        unit = _unit(ops.add(x, _dense(inner, self.second)))
        before.get_tensor().set_names(set())
        made = ov.Model([ops.result(unit)], model.get_parameters(), model.get_friendly_name())
        made.output(0).set_names(names)
        return made


def _unit(x: Any) -> Any:
    return ops.normalize_l2(x, ops.constant(np.array([1])), _EPS**2, "max")


def _dense(x: Any, layer: nn.Linear) -> Any:
    product = ops.matmul(x, ops.constant(_array(layer.weight)), False, True)
    return ops.add(product, ops.constant(_array(layer.bias)[np.newaxis]))


def _array(parameter: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = parameter.detach().numpy().astype(np.float32)
    return values
