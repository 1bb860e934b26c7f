"""Batches in, a network's outputs out, in order: a fixed pool of OpenVINO requests that stays busy."""

from __future__ import annotations

import contextlib
import hashlib
import queue
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov

import edgeface.model.opset  # noqa: F401 - it makes arrays safe to hand over from several threads
from edgeface.errors import DeviceError, EngineClosed, InputError, MissingError, ModelFormatError
from edgeface.vision.image import Image

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Closing", "Outputs", "Pool", "check_images", "describe", "read_network"]

Outputs = tuple[np.ndarray, ...]


class Closing:
    """A context manager that closes what it entered with; the detectors are."""

    _settings: dict[str, str | int | float | None]

    @property
    def settings(self) -> dict[str, str | int | float | None]:
        """See `Detector.settings`."""
        return dict(self._settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the networks."""
        raise NotImplementedError


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
            compiled = ov.Core().compile_model(model, device, config)
        except RuntimeError as error:
            raise DeviceError(f"device {device!r} cannot run {model.get_friendly_name()}: {error}") from error
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(requests):
            self._idle.put(compiled.create_infer_request())
        self._closed = False

    def map(self, batches: Iterable[np.ndarray]) -> list[Outputs]:
        """Run every batch; the next ones are made, in this thread, while the last ones are computed.

        Several threads may do this at a time; they share the requests.

        Returns
        -------
        list of tuples of arrays
            Copies of the outputs in the model's order, for each batch.

        Raises
        ------
        EngineClosed
            If the pool was closed.
        """
        if self._closed:
            raise EngineClosed("this detector was closed; load it again")
        # A request reads its batch in place, so the batch must live as long as it is under way.
        under_way: deque[tuple[ov.InferRequest, np.ndarray]] = deque()
        results: list[Outputs] = []
        try:
            for batch in batches:
                request = self._acquire(under_way, results)
                under_way.append((request, batch))
                # Handing it to `start_async` would do the same, after asking many questions about its type.
                request.set_input_tensor(ov.Tensor(batch, shared_memory=True))
                request.start_async()
            while under_way:
                self._idle.put(_collect(under_way, results))
        finally:
            for request, _ in under_way:  # after an error only; its own is the one to raise
                with contextlib.suppress(RuntimeError):
                    request.wait()
                self._idle.put(request)
        return results

    def _acquire(
        self, under_way: deque[tuple[ov.InferRequest, np.ndarray]], results: list[Outputs]
    ) -> ov.InferRequest:
        """Take an idle request, else the oldest of one's own; wait for other threads' only when holding none.

        Waiting for others while holding some is how two threads would wait for each other.
        """
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return _collect(under_way, results) if under_way else self._idle.get()

    def close(self) -> None:
        """Free the network and its requests, once those under way are done."""
        self._closed = True
        while not self._idle.empty():
            self._idle.get()


def _collect(under_way: deque[tuple[ov.InferRequest, np.ndarray]], results: list[Outputs]) -> ov.InferRequest:
    """Wait for the oldest request and keep a copy of what it gives."""
    request, _ = under_way[0]
    request.wait()
    results.append(tuple(tensor.data.copy() for tensor in request.output_tensors))
    under_way.popleft()
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


def describe(
    name: str, *, threshold: float, min_size: int, model: Sequence[Path], landmarks_model: Path | None = None
) -> dict[str, str | int | float | None]:
    """Build `Detector.settings`: options, and the first 16 hex digits of the SHA-256 of the files.

    Parameters
    ----------
    name, threshold, min_size
        The detector's.
    model, landmarks_model
        The files that it loaded; the .bin beside an .xml is hashed with it.
    """
    return {
        "name": name,
        "threshold": threshold,
        "min_size": min_size,
        "model": _digest(model),
        "landmarks_model": None if landmarks_model is None else _digest([landmarks_model]),
    }


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
        if path.suffix == ".xml" and (weights := path.with_suffix(".bin")).is_file():
            digest.update(weights.read_bytes())
    return digest.hexdigest()[:16]


def check_images(images: Sequence[Image]) -> None:
    """Raise InputError unless every image is (H, W, 3) uint8 with at least one pixel."""
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(
                f"image {index}: expected (H, W, 3) uint8 BGR, found {image.shape} {image.dtype}; "
                "read files with edgeface.vision.image.read_image"
            )
