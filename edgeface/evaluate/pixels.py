"""The baseline that every model must beat: a crop's pixels are its embedding."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov

from edgeface.files import output_errors
from edgeface.model.contract import Alignment, ModelContract
from edgeface.model.opset import ops
from edgeface.version import __version__

PIXELS = "pixels"
_SIDE = 32
_GREY = (0.114, 0.587, 0.299)
"""Weights of blue, green and red: ITU-R BT.601."""
_LEAST = 1e-3
"""Grey value that is added, so that a crop of one colour has a direction too."""


def write_pixel_ir(folder: Path, like: ModelContract | None = None) -> Path:
    """Write an IR that embeds a crop as its own pixels; return its path, ``folder/pixels.xml``.

    The crop is made grey, averaged over 32x32 areas, its mean is subtracted, and it is scaled to unit length: the
    cosine of two is their normalised cross-correlation, and the squared Euclidean distance is two less twice that.
    Size and alignment are those of `like`, without it FaceNet's.
    """
    size, alignment = (160, 160), Alignment("mtcnn-box-margin", 32)
    if like is not None:
        size, alignment = like.input_size, like.alignment
    image = ops.parameter([-1, 3, *size], np.float32, name="image")
    weights = ops.constant(np.array(_GREY, np.float32).reshape(1, 3, 1, 1))
    grey = ops.reduce_sum(ops.multiply(image, weights), np.array([1]), keep_dims=True)
    areas = ops.reshape(ops.adaptive_avg_pool(grey, np.array([_SIDE, _SIDE])), np.array([0, _SIDE**2]), True)
    mean = ops.reduce_mean(areas, np.array([1]), keep_dims=True)
    centred = ops.add(ops.subtract(areas, mean), ops.constant(np.float32(_LEAST)))
    model = ov.Model([ops.normalize_l2(centred, np.array([1]), 1e-12, "max")], [image], PIXELS)
    model.input(0).set_names({"image"})
    model.output(0).set_names({"embeddings"})
    contract = ModelContract(
        name=PIXELS,
        framework="openvino",
        source_sha256=hashlib.sha256(f"{PIXELS} {_SIDE} {_GREY}".encode()).hexdigest(),
        provenance="published",
        input_name="image",
        output_name="embeddings",
        input_size=size,
        layout="NCHW",
        color="BGR",
        value_range=(0, 255),
        mean=(0, 0, 0),
        scale=(1, 1, 1),
        embedding_dim=_SIDE**2,
        metric="cosine",
        normalized=True,
        alignment=alignment,
        precision="FP32",
        converter_version=__version__,
        openvino_version=ov.get_version(),
    )
    contract.write_to(model)
    path = folder / f"{PIXELS}.xml"
    with output_errors(path):
        ov.save_model(model, path, compress_to_fp16=False)
    return path


@contextlib.contextmanager
def ir_or_pixels(model: Path) -> Iterator[Path]:
    """Yield the model, or while it is needed the IR that `write_pixel_ir` writes if ``pixels`` was named."""
    if str(model) != PIXELS:
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        yield write_pixel_ir(Path(folder))
