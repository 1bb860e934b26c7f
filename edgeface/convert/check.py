"""An IR's path on stdin, exit code out: what `edgeface.convert.ir.FreshProcessCheck` runs.

A process of its own, because the fault it looks for (converted FaceNets whose first inferences were silently
wrong) shows only before anything has run.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov

from edgeface.convert.ir import check_structure, random_images
from edgeface.errors import ConversionError, EdgeFaceError
from edgeface.files import sha256_of
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import check_weights, read_ir

BATCHES = (1, 2, 5)
TOLERANCE = 1e-5
"""Largest difference between two runs of the same FP32 network; summation order may change with the batch."""


def check_inference(path: Path) -> None:
    """Compare the first inference at each batch size with a later one of the same images.

    Raises
    ------
    ConversionError
        If they differ, are not finite, or lack unit length though the contract promises it.
    ModelFormatError
        If it cannot be read, or the .bin is not the one that the contract names.
    """
    model = read_ir(path)
    check_structure(model, source=str(path))
    contract = ModelContract.read_from(model, source=str(path))
    static = model.input(0).get_partial_shape()[0]
    batches = BATCHES if static.is_dynamic else (static.get_length(),)
    with ThreadPoolExecutor(1) as beside:
        weights = beside.submit(sha256_of, path.with_suffix(".bin"))
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        check_weights(path, contract, weights.result())
    request = compiled.create_infer_request()
    images = random_images(contract, max(batches))
    first = {batch: request.infer({0: images[:batch]})[0].copy() for batch in batches}
    again = request.infer({0: images})[0]
    for batch in batches:
        if first[batch].shape != (batch, contract.embedding_dim):
            raise ConversionError(
                f"expected embeddings of {(batch, contract.embedding_dim)}, found {first[batch].shape}"
            )
        difference = float(np.abs(first[batch] - again[:batch]).max())
        if not difference <= TOLERANCE:  # also catches NaN
            raise ConversionError(
                f"the first inference at batch {batch} differs from a later one by {difference:.3g}"
            )
    lengths = np.linalg.norm(again, axis=1)
    if contract.normalized and not np.allclose(lengths, 1, atol=1e-3):
        raise ConversionError(
            f"expected embeddings of unit length, found {lengths.min():.4f}..{lengths.max():.4f}"
        )


def main() -> int:
    """Check the IR whose path comes on stdin; say on stderr why it failed."""
    ov.Core().get_property(
        "CPU", "FULL_DEVICE_NAME"
    )  # loads the plugin, and runs nothing, while there is no IR yet
    path = os.fsdecode(sys.stdin.buffer.read())
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
