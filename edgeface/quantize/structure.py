"""A model in, the operations that a rule of quantization is about out."""

from __future__ import annotations

from typing import Any

import openvino as ov

__all__ = ["WEIGHTED", "is_constant", "is_transformer", "residuals_of", "tail_of"]

WEIGHTED = frozenset({"Convolution", "GroupConvolution", "MatMul"})
"""Operations that carry weights and nearly all of the work."""


def tail_of(model: ov.Model) -> tuple[str, ...]:
    """Friendly names of what follows the last layer with weights: scaling to unit length, a softmax.

    It is no work to speak of, and 8 bits there go straight into the answer: FaceNet's embeddings came out with
    lengths from 0.83 to 1.17.
    """
    ordered = [
        op for op in model.get_ordered_ops() if op.get_type_name() not in ("Constant", "Parameter", "Result")
    ]
    weighted = [index for index, op in enumerate(ordered) if op.get_type_name() in WEIGHTED]
    return tuple(op.get_friendly_name() for op in ordered[weighted[-1] + 1 :]) if weighted else ()


def residuals_of(model: ov.Model) -> tuple[str, ...]:
    """Friendly names of the additions of two computed branches.

    Quantizing them rounds the same residual stream again in every block, and is not even faster: FaceNet's mean
    cosine is 0.9979 with and 0.9982 without, and one face takes 15.5 and 14.9 ms.
    """
    return tuple(
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() == "Add" and not any(is_constant(port.get_node()) for port in op.input_values())
    )


def is_constant(node: Any) -> bool:
    """Whether a node is a constant, perhaps behind a conversion of its type."""
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def is_transformer(model: ov.Model) -> bool:
    """Whether attention is computed: a Softmax, or OpenVINO's fused operation, whose result is multiplied by values.

    NNCF then quantizes by a scheme of its own, with SmoothQuant (Xiao et al., "SmoothQuant: Accurate and Efficient
    Post-Training Quantization for Large Language Models", ICML 2023).
    """
    for op in model.get_ops():
        if op.get_type_name() == "ScaledDotProductAttention":
            return True
        if op.get_type_name() == "Softmax":
            readers = [port.get_node() for port in op.output(0).get_target_inputs()]
            if any(reader.get_type_name() == "MatMul" for reader in readers):
                return True
    return False
