"""Load a detector by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from edgeface.errors import InputError
from edgeface.vision.detector import SMALLEST_FACE, Detector
from edgeface.vision.mtcnn import MTCNN
from edgeface.vision.networks import NetworkDetector, Observer
from edgeface.vision.ssd import RetailSSD
from edgeface.vision.yunet import YuNet

DetectorName = Literal["mtcnn", "yunet", "retail-0004"]


def load_detector(
    name: DetectorName = "mtcnn",
    *,
    device: str = "CPU",
    model: Path | None = None,
    landmarks_model: Path | None = None,
    min_size: int | None = None,
    threshold: float | None = None,
    observe: Observer | None = None,
    cache_dir: Path | None = None,
) -> Detector:
    """Load a detector by name.

    Parameters
    ----------
    name
        ``mtcnn``, ``yunet``, or ``retail-0004`` for face-detection-retail-0004.
    device
        An OpenVINO device.
    model
        ``mtcnn``: a folder with det1.npz, det2.npz and det3.npz; None: the weights of the `mtcnn` package.
        ``yunet``: the .onnx. ``retail-0004``: the .xml. The last two have no default.
    landmarks_model
        ``retail-0004`` only: the .xml of landmarks-regression-retail-0009. Without it landmarks are NaN.
    min_size
        Smallest face to find: shorter side of its box in pixels; None: 20.
    threshold
        Lowest score of a face, 0 to 1; None: the detector's published one.
    observe
        Called with a network's name and each batch that is about to be computed: how quantization collects its
        calibration data. The batch must not be kept or changed; copy it.
    cache_dir
        Folder of compiled models; None: no cache. See `edgeface.runtime.cache`.

    Raises
    ------
    InputError
        If the name or the device's is unknown, or an option does not belong to the detector.
    MissingError
        If a model file is not there.
    ModelFormatError
        If a file is not this detector's model.
    DeviceError
        If the device is absent or cannot compile the networks.
    """
    if min_size is None:
        min_size = SMALLEST_FACE
    if min_size < 1:
        raise InputError(f"min_size: expected 1 or more pixels, found {min_size}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold: expected 0 to 1, found {threshold}")
    if landmarks_model is not None and name != "retail-0004":
        raise InputError(f"landmarks_model belongs to retail-0004; {name} finds landmarks without it")
    if name not in _DETECTORS:
        raise InputError(f"detector: expected one of {', '.join(_DETECTORS)}, found {name!r}")
    return _DETECTORS[name](
        model,
        landmarks_model,
        device=device,
        min_size=min_size,
        threshold=threshold,
        observe=observe,
        cache_dir=cache_dir,
    )


_DETECTORS: Mapping[str, type[NetworkDetector]] = MappingProxyType(
    {kind.name: kind for kind in (MTCNN, YuNet, RetailSSD)}
)
