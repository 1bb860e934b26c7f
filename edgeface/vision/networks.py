"""What all detectors share: their networks on the runtime's engine, their settings, and the check of their images."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import openvino as ov

from edgeface.errors import InputError, MissingError, ModelFormatError
from edgeface.files import Closing
from edgeface.runtime.cache import ModelCache
from edgeface.runtime.engine import compile_engine
from edgeface.runtime.plan import DevicePlan, resolve_plan
from edgeface.runtime.schedule import Outputs
from edgeface.vision.detector import SMALLEST_FACE, Faces
from edgeface.vision.image import Image

if TYPE_CHECKING:
    from typing_extensions import Self

Observer = Callable[[str, np.ndarray], None]
"""Called with a network's name and a batch that is about to be computed."""

Networks = Mapping[Any, ov.Model | Callable[[], ov.Model]]
"""A detector's networks by name, or what makes them, which is not called if they are in the cache."""

_REQUESTS = 4
"""Infer requests for each network. On a CPU two streams serve them."""


class NetworkDetector(Closing, ABC):
    """Base of the detectors: compiles the networks, runs them, closes them. For the options see `load_detector`."""

    name: ClassVar[str]
    default_threshold: ClassVar[float]

    def __init__(
        self,
        model: Path | None,
        landmarks_model: Path | None = None,
        *,
        device: str = "CPU",
        min_size: int = SMALLEST_FACE,
        threshold: float | None = None,
        observe: Observer | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        networks, files = self._read(model, landmarks_model)
        self._min_size, self._observe = min_size, observe
        self._threshold = self.default_threshold if threshold is None else threshold
        self._digests = {
            "model": _digest(files),
            "landmarks_model": None if landmarks_model is None else _digest([landmarks_model]),
        }
        plan, cache = repeatable_plan(device), ModelCache(cache_dir) if cache_dir else None
        self._engines = {
            label: compile_engine(
                network,
                plan,
                name=label,
                requests=_REQUESTS,
                cache=cache,
                identity=f"{self.name} {label} {self._digests}",
            )
            for label, network in networks.items()
        }

    @abstractmethod
    def _read(self, model: Path | None, landmarks_model: Path | None) -> tuple[Networks, Sequence[Path]]:
        """Read and check the networks, by name, and list the files of `model`."""

    @abstractmethod
    def detect(self, images: Sequence[Image]) -> list[Faces]:
        """See `Detector.detect`."""

    @property
    def min_size(self) -> int:
        """Smallest face that is looked for: shorter side of its box in pixels."""
        return self._min_size

    @property
    def settings(self) -> dict[str, str | int | float | None]:
        """See `Detector.settings`."""
        return {"name": self.name, "threshold": self._threshold, "min_size": self._min_size, **self._digests}

    def with_min_size(self, min_size: int) -> Self:
        """Return a detector of the same networks that looks for faces from another size on; close one of the two."""
        other = copy.copy(self)
        other._min_size = min_size
        return other

    def _run(self, label: str, batches: Iterable[np.ndarray]) -> list[Outputs]:
        """Compute batches on one network; see `Engine.run_batches`."""
        return list(self._stream(label, batches))

    def _stream(self, label: str, batches: Iterable[np.ndarray]) -> Generator[Outputs, None, None]:
        """Compute batches on one network; see `Engine.stream_batches`."""
        if self._observe is not None:
            batches = _observed(label, batches, self._observe)
        return self._engines[label].stream_batches(batches)

    def close(self) -> None:
        """See `Detector.close`."""
        for engine in self._engines.values():
            engine.close()


def _observed(label: str, batches: Iterable[np.ndarray], observe: Observer) -> Iterator[np.ndarray]:
    for batch in batches:
        observe(label, batch)
        yield batch


def repeatable_plan(device: str) -> DevicePlan:
    """Return the plan for small networks whose answers must not depend on the machine: FP32, two streams on a CPU."""
    plan, _ = resolve_plan(DevicePlan(device=device, precision="f32"))
    return dataclasses.replace(plan, streams=2 if plan.device == "CPU" else None)


def read_network(path: Path | None) -> ov.Model:
    """Read an .onnx or .xml."""
    if path is None:
        raise InputError("this detector's model is missing; pass its path as model=")
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
