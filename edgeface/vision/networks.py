"""What all detectors share: their networks on the runtime's engine, their settings, and the check of their images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov

from edgeface.errors import InputError, MissingError, ModelFormatError
from edgeface.runtime.engine import compile_engine
from edgeface.runtime.plan import DevicePlan
from edgeface.runtime.schedule import Outputs
from edgeface.vision.image import Image

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NetworkDetector", "Observer", "Outputs", "check_images", "read_network"]

Observer = Callable[[str, np.ndarray], None]
"""Called with a network's name and a batch that is about to be computed."""

_REQUESTS = 4
"""Infer requests for each network. On a CPU two streams serve them."""


class NetworkDetector:
    """Base of the detectors: compiles the networks, runs them, closes them; a context manager.

    Parameters
    ----------
    networks
        By name; each has one input.
    device
        An OpenVINO device.
    min_size, threshold
        As in `load_detector`.
    files
        Files that the networks were read from, in the order of `Detector.settings`: of the detector, and of its
        landmarks model if it has one.
    observe
        Called with every batch before it is computed, in the thread that made it.

    Raises
    ------
    DeviceError
        If the device is absent or cannot compile a network.
    """

    name: str

    def __init__(
        self,
        networks: Mapping[Any, ov.Model],
        *,
        device: str,
        min_size: int,
        threshold: float,
        files: Sequence[Path],
        landmarks_file: Path | None = None,
        observe: Observer | None = None,
    ) -> None:
        self._min_size, self._threshold, self._observe = min_size, threshold, observe
        self._digests = {
            "model": _digest(files),
            "landmarks_model": None if landmarks_file is None else _digest([landmarks_file]),
        }
        # FP32 even where the device would choose bfloat16: boxes must not depend on the machine.
        plan = DevicePlan(device=device, precision="f32", streams=2 if device == "CPU" else None)
        self._engines = {
            label: compile_engine(network, plan, requests=_REQUESTS) for label, network in networks.items()
        }

    @property
    def settings(self) -> dict[str, str | int | float | None]:
        """See `Detector.settings`."""
        return {"name": self.name, "threshold": self._threshold, "min_size": self._min_size, **self._digests}

    def _run(self, label: str, batches: Iterable[np.ndarray]) -> list[Outputs]:
        """Compute batches on one network; see `Engine.run_batches`."""
        if self._observe is not None:
            batches = self._observed(label, batches, self._observe)
        return self._engines[label].run_batches(batches)

    @staticmethod
    def _observed(label: str, batches: Iterable[np.ndarray], observe: Observer) -> Iterator[np.ndarray]:
        for batch in batches:
            observe(label, batch)
            yield batch

    def close(self) -> None:
        """See `Detector.close`."""
        for engine in self._engines.values():
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
    """Raise `InputError` unless every image is (H, W, 3) uint8 with at least one pixel."""
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(
                f"image {index}: expected (H, W, 3) uint8 BGR, found {image.shape} {image.dtype}; "
                "read files with edgeface.vision.image.read_image"
            )


def _digest(files: Sequence[Path]) -> str:
    """First 16 hex digits of the SHA-256 of some files; the .bin beside an .xml is included."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
        if path.suffix == ".xml" and (weights := path.with_suffix(".bin")).is_file():
            digest.update(weights.read_bytes())
    return digest.hexdigest()[:16]
