"""Options that several commands share, and what they ask for."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

import edgeface
from edgeface.errors import InputError

if TYPE_CHECKING:
    from edgeface.analyzer import FaceAnalyzer
    from edgeface.evaluate.faces import Boxes
    from edgeface.vision.detector import Detector

__all__ = [
    "BoxesOption",
    "ChosenDetectorOption",
    "CropsOption",
    "DetectorModelOption",
    "DetectorName",
    "DetectorOption",
    "DeviceOption",
    "FaceSource",
    "FarOption",
    "FarsOption",
    "FlipName",
    "FlipOption",
    "ImagesOption",
    "LandmarksModelOption",
    "MinSizeOption",
    "ModelOption",
    "NoGateOption",
    "ThresholdOption",
    "find_faces",
    "load_analyzer",
    "load_detector",
    "parse_threshold",
]


class FlipName(str, enum.Enum):
    """Use of the mirror image of a face."""

    none = "none"
    average = "average"
    concatenate = "concatenate"


class DetectorName(str, enum.Enum):
    """Detectors of edgeface and its zoo."""

    mtcnn = "mtcnn"
    yunet = "yunet"
    retail_0004 = "retail-0004"


ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        help="The .xml of an IR with a contract. Default: EDGEFACE_MODEL, else the model of 'edgeface zoo default'.",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", "-d", help="OpenVINO device.")]
ImagesOption = Annotated[Path, typer.Option(help="Folder of photos: NAME/NAME_0001.jpg.", show_default=False)]
CropsOption = Annotated[bool, typer.Option("--crops", help="The photos are aligned crops: detect nothing.")]
BoxesOption = Annotated[
    Path | None,
    typer.Option(help=".npz of names, boxes and points from an earlier detection, instead of a detector."),
]
DetectorOption = Annotated[DetectorName, typer.Option("--detector", help="Face detector.")]
ChosenDetectorOption = Annotated[
    DetectorName | None, typer.Option("--detector", help="Face detector. Default: mtcnn.")
]
DetectorModelOption = Annotated[
    Path | None,
    typer.Option(
        "--detector-model",
        metavar="PATH",
        help="Model of the detector. Default: the downloaded one (mtcnn's is installed with edgeface).",
        show_default=False,
    ),
]
LandmarksModelOption = Annotated[
    Path | None,
    typer.Option(
        "--landmarks-model",
        metavar="XML",
        help="landmarks-regression-retail-0009, for the detector retail-0004. Default: the downloaded one.",
        show_default=False,
    ),
]
MinSizeOption = Annotated[int, typer.Option("--min-size", min=1, help="Smallest face, in pixels.")]
NoGateOption = Annotated[bool, typer.Option("--no-gate", help="Use faces of any quality.")]
FlipOption = Annotated[FlipName, typer.Option(help="Use of the mirror image of each face.")]
FarsOption = Annotated[list[float], typer.Option("--far", help="Target false accept rate. Repeatable.")]
FarOption = Annotated[
    float | None,
    typer.Option(help="False accept rate to choose a threshold by. Default: 0.001.", show_default=False),
]
ThresholdOption = Annotated[
    str | None,
    typer.Option(
        "--threshold",
        metavar="FILE|VALUE",
        help="File that 'edgeface calibrate' wrote, or a cosine similarity. Default: shipped with the model.",
        show_default=False,
    ),
]


def parse_threshold(text: str | None) -> float | Path | None:
    """Read --threshold: a number is a cosine similarity, anything else names a file."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return Path(text)
    if not -1 <= value <= 1:
        raise InputError(f"--threshold: expected a file, or a cosine similarity from -1 to 1, found {text}")
    return value


def load_analyzer(
    model: Path | None,
    device: str,
    *,
    crops: bool = False,
    detector: DetectorName,
    detector_model: Path | None,
    landmarks_model: Path | None,
    min_size: int,
) -> FaceAnalyzer:
    """Load the model and the detector that the options name."""
    return edgeface.load(
        model,
        device=device,
        detector=None if crops else detector.value,
        detector_model=detector_model,
        landmarks_model=landmarks_model,
        min_size=min_size,
    )


def load_detector(
    name: DetectorName, model: Path | None, landmarks_model: Path | None, *, device: str, **options: Any
) -> Detector:
    """Load the detector that the options name."""
    return edgeface.load_detector(
        name.value, device=device, model=model, landmarks_model=landmarks_model, **options
    )


class FaceSource(NamedTuple):
    """Source of the faces of a folder: boxes found earlier, a detector, or neither for aligned crops."""

    boxes: Boxes | None
    detector: Detector | None
    words: str


@contextlib.contextmanager
def find_faces(
    boxes: Path | None,
    crops: bool,
    detector: DetectorName | None,
    detector_model: Path | None,
    landmarks_model: Path | None,
    *,
    device: str,
) -> Iterator[FaceSource]:
    """Yield the source of faces that the options of a command about labelled photos name.

    Raises
    ------
    InputError
        If more than one of boxes, crops and a detector is asked for.
    """
    if (boxes is not None or crops) and (
        (boxes is not None and crops) or detector or detector_model or landmarks_model
    ):
        raise InputError(
            "expected one of --boxes (found earlier), --crops (aligned already) and a detector, found several; "
            "leave the others out"
        )
    if boxes is not None:
        from edgeface.evaluate.faces import load_boxes

        yield FaceSource(load_boxes(boxes), None, f"boxes of {boxes.name}")
    elif crops:
        yield FaceSource(None, None, "images used as aligned crops")
    else:
        name = detector or DetectorName.mtcnn
        with load_detector(name, detector_model, landmarks_model, device=device) as loaded:
            yield FaceSource(None, loaded, name.value)
