"""An IR's path on stdin, exit code out: what `edgeface.convert.ir.FreshProcessCheck` runs.

A process of its own, because the fault it looks for (converted FaceNets whose first inferences were silently
wrong) shows only before anything has run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import openvino as ov

from edgeface.contract import ModelContract
from edgeface.convert.ir import check_structure, random_images
from edgeface.errors import ConversionError, EdgeFaceError

BATCHES = (1, 2, 5)
TOLERANCE = 1e-5
"""Largest difference between two runs of the same FP32 network; summation order may change with the batch."""


def check_inference(path: Path) -> None:
    """Compare the first inference at each batch size with the later ones, and with the rows taken alone.

    Raises
    ------
    ConversionError
        If they differ, are not finite, or lack unit length though the contract promises it.
    """
    core = ov.Core()
    model = core.read_model(path)
    check_structure(model, source=str(path))
    contract = ModelContract.read_from(model, source=str(path))
    static = model.input(0).get_partial_shape()[0]
    batches = BATCHES if static.is_dynamic else (static.get_length(),)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    images = {batch: random_images(contract, batch) for batch in batches}
    first = {batch: request.infer({0: images[batch]})[0].copy() for batch in batches}
    for batch in batches:
        again = request.infer({0: images[batch]})[0]
        if first[batch].shape != (batch, contract.embedding_dim):
            raise ConversionError(
                f"expected embeddings of {(batch, contract.embedding_dim)}, found {first[batch].shape}"
            )
        difference = float(np.abs(first[batch] - again).max())
        if not difference <= TOLERANCE:  # also catches NaN
            raise ConversionError(
                f"the first inference at batch {batch} differs from the second by {difference:.3g}"
            )
        lengths = np.linalg.norm(again, axis=1)
        if contract.normalized and not np.allclose(lengths, 1, atol=1e-3):
            raise ConversionError(
                f"expected embeddings of unit length, found {lengths.min():.4f}..{lengths.max():.4f}"
            )
    if 1 in batches and 2 in batches:
        alone = request.infer({0: images[2][:1]})[0]
        difference = float(np.abs(alone - first[2][:1]).max())
        if not difference <= TOLERANCE:
            raise ConversionError(f"an image alone and in a batch of 2 differ by {difference:.3g}")


def main() -> int:
    """Check the IR whose path comes on stdin; say on stderr why it failed."""
    path = sys.stdin.readline().strip()
    if not path:
        return 0  # the conversion failed before there was an IR
    try:
        check_inference(Path(path))
    except EdgeFaceError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
