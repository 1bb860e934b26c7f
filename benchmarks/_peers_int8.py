"""An ONNX file and calibration crops in, ONNX Runtime's own INT8 model out: static quantization, QDQ form."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from _peers_networks import INPUT
from numpy.typing import NDArray

__all__ = ["KINDS", "quantize_onnx", "standardised"]

KINDS: Mapping[str, tuple[str, bool]] = MappingProxyType({"u8s8": ("QInt8", True), "u8u8": ("QUInt8", False)})
"""Type of the weights, and whether they use 7 of 8 bits; activations are always unsigned.

What ONNX Runtime's documentation ("Quantize ONNX models", "When to use reduce-range and per-channel") advises for
processors with AVX2 and no VNNI: signed weights saturate there unless the range is reduced; or unsigned weights.
"""


def standardised(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn (N, H, W, 3) uint8 BGR crops into what the peers' networks take: (N, 3, H, W) RGB, (x - 127.5) / 128."""
    rgb = crops[..., ::-1].transpose(0, 3, 1, 2)
    return (np.ascontiguousarray(rgb, np.float32) - np.float32(127.5)) / np.float32(128)


def quantize_onnx(model: Path, crops: NDArray[np.uint8], kind: str, path: Path) -> Path:
    """Quantize: weights per channel, limits of activations by their minimum and maximum over the crops.

    Parameters
    ----------
    model
        FP32, from `onnx_model`.
    crops : (N, H, W, 3) uint8, BGR
        The same that edgeface calibrates with.
    kind
        One of `KINDS`.
    path
        The file to write.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inputs = iter(standardised(crops)[:, None])

        def get_next(self) -> Any:
            return {INPUT: image} if (image := next(self._inputs, None)) is not None else None

    weights, reduced = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(model, prepared, skip_symbolic_shape=True)  # also folds the residual scales
        quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType[weights],
            per_channel=True,
            reduce_range=reduced,
        )
    return path
