"""A model in, one out that also looks at every face's left-right mirror image, in the same pass."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import openvino as ov

from edgeface.model.contract import ModelContract

try:
    from openvino import opset13 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset13 as ops

__all__ = ["Flip", "flip_contract", "with_mirror"]

Flip = Literal["average", "concatenate"]
"""``concatenate``: the mirror's embedding behind the face's own, twice as long and not normalised again, as
davidsandberg/facenet's evaluation does (`src/validate_on_lfw.py`, `evaluate`) and Open Model Zoo after it.
``average``: their mean, scaled to unit length again if the contract's embeddings have it; comparable with
embeddings that were made without."""

_EPSILON = 1e-10  # of TensorFlow's l2_normalize in FaceNet


def with_mirror(model: ov.Model, contract: ModelContract, flip: Flip) -> ov.Model:
    """Return a clone that runs twice the batch and joins the halves; its input and output keep their names."""
    mirrored = model.clone()
    port = mirrored.input(contract.input_name)
    consumers = port.get_target_inputs()
    axis = contract.layout.index("W")
    width = contract.input_size[1]
    backwards = ops.constant(np.arange(width - 1, -1, -1, dtype=np.int32))
    mirror = ops.gather(port, backwards, ops.constant(axis, np.int32))
    both = ops.concat([port, mirror], 0)
    for consumer in consumers:
        consumer.replace_source_output(both.output(0))

    result = mirrored.output(contract.output_name).get_node()
    embeddings = result.input_value(0)
    names = embeddings.get_names()
    halves = ops.split(embeddings, ops.constant(0, np.int32), 2)
    if flip == "concatenate":
        joined = ops.concat([halves.output(0), halves.output(1)], 1)
    else:
        joined = ops.multiply(ops.add(halves.output(0), halves.output(1)), ops.constant(np.float32(0.5)))
        if contract.normalized:
            joined = ops.normalize_l2(joined, ops.constant(np.array([1], np.int64)), _EPSILON, "max")
    embeddings.set_names(set())
    joined.output(0).set_names(names)
    result.input(0).replace_source_output(joined.output(0))
    mirrored.validate_nodes_and_infer_types()
    return mirrored


def flip_contract(contract: ModelContract, flip: Flip | None) -> ModelContract:
    """The contract of the embeddings that come out: concatenated ones are another space, with another id."""
    if flip != "concatenate":
        return contract
    return dataclasses.replace(contract, embedding_dim=2 * contract.embedding_dim, normalized=False)
