"""Batches in, a network's outputs out, in order: a fixed pool of OpenVINO requests that stays busy."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgeface.errors import DeviceError, EngineClosed, InputError, MissingError, ModelFormatError
from edgeface.vision.image import Image

__all__ = ["Outputs", "Pool", "check_images", "read_network"]

Outputs = tuple[np.ndarray, ...]


class Pool:
    """One compiled network and its requests.

    Parameters
    ----------
    model
        The network; one input.
    device
        An OpenVINO device.
    requests
        How many are under way at a time. On a CPU there are two streams to serve them.

    Raises
    ------
    DeviceError
        If the device is absent or refuses the network.
    """

    def __init__(self, model: ov.Model, *, device: str, requests: int = 4) -> None:
        # FP32 even where bfloat16 would be the device's choice: boxes must not depend on the machine.
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if device == "CPU":
            config["NUM_STREAMS"] = "2"
        try:
            self._compiled = ov.Core().compile_model(model, device, config)
        except RuntimeError as error:
            raise DeviceError(f"device {device!r} cannot run {model.get_friendly_name()}: {error}") from error
        self._requests = [self._compiled.create_infer_request() for _ in range(requests)]
        self._lock = threading.Lock()

    def map(self, batches: Iterable[np.ndarray]) -> list[Outputs]:
        """Run every batch; the next ones are made, in this thread, while the last ones are computed.

        Returns
        -------
        list of tuples of arrays
            Copies of the outputs in the model's order, for each batch.

        Raises
        ------
        EngineClosed
            If the pool was closed.
        """
        with self._lock:
            if not self._requests:
                raise EngineClosed("this detector was closed; load it again")
            idle = list(self._requests)
            # A request reads its batch in place, so the batch must live as long as it is under way.
            under_way: deque[tuple[ov.InferRequest, np.ndarray]] = deque()
            results: list[Outputs] = []
            try:
                for batch in batches:
                    if not idle:
                        idle.append(_collect(under_way, results))
                    request = idle.pop()
                    request.start_async({0: batch}, share_inputs=True)
                    under_way.append((request, batch))
                while under_way:
                    _collect(under_way, results)
            finally:
                for request, _ in under_way:
                    request.cancel()
                    request.wait()
            return results

    def close(self) -> None:
        """Free the network and its requests."""
        with self._lock:
            self._requests = []
            self._compiled = None


def _collect(under_way: deque[tuple[ov.InferRequest, np.ndarray]], results: list[Outputs]) -> ov.InferRequest:
    request, _ = under_way[0]
    request.wait()
    under_way.popleft()
    results.append(tuple(tensor.data.copy() for tensor in request.output_tensors))
    return request


def read_network(path: Path) -> ov.Model:
    """Read an .onnx or .xml.

    Raises
    ------
    MissingError
        If there is no such file.
    ModelFormatError
        If OpenVINO cannot read it.
    """
    if not path.is_file():
        raise MissingError(f"{path}: expected a detector's model, found no file")
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise ModelFormatError(f"{path}: OpenVINO cannot read this model: {error}") from error


def check_images(images: Sequence[Image]) -> None:
    """Raise InputError unless every image is (H, W, 3) uint8 with at least one pixel."""
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(
                f"image {index}: expected (H, W, 3) uint8 BGR, found {image.shape} {image.dtype}; "
                "read files with edgeface.vision.image.read_image"
            )
