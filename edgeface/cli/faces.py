"""What finds the faces: the options that every command about photographs shares, and the detector they name."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from edgeface.errors import InputError

if TYPE_CHECKING:
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
    "FarsOption",
    "FlipName",
    "FlipOption",
    "ImagesOption",
    "LandmarksModelOption",
    "MinSizeOption",
    "ModelOption",
    "find_faces",
    "load_detector",
]


class FlipName(str, enum.Enum):
    """What is done with the mirror image of a face."""

    none = "none"
    average = "average"
    concatenate = "concatenate"


class DetectorName(str, enum.Enum):
    """The detectors that come with edgeface or its zoo."""

    mtcnn = "mtcnn"
    yunet = "yunet"
    retail_0004 = "retail-0004"


ImagesOption = Annotated[Path, typer.Option(help="Folder of images: NAME/NAME_0001.jpg.", show_default=False)]
ModelOption = Annotated[
    Path, typer.Option("--model", "-m", help="The .xml of an IR with a contract.", show_default=False)
]
DetectorOption = Annotated[DetectorName, typer.Option("--detector", help="What finds the faces.")]
ChosenDetectorOption = Annotated[
    DetectorName | None, typer.Option("--detector", help="What finds the faces; by default mtcnn.")
]
DetectorModelOption = Annotated[
    Path | None,
    typer.Option(
        "--detector-model",
        metavar="PATH",
        help="Its model; by default the downloaded one (mtcnn's is installed with edgeface).",
        show_default=False,
    ),
]
LandmarksModelOption = Annotated[
    Path | None,
    typer.Option(
        "--landmarks-model", metavar="XML", help="landmarks-regression-retail-0009.", show_default=False
    ),
]
MinSizeOption = Annotated[int, typer.Option("--min-size", min=1, help="Smallest face, in pixels.")]
DeviceOption = Annotated[str, typer.Option("--device", "-d", help="OpenVINO device.")]
FlipOption = Annotated[FlipName, typer.Option(help="What is done with the mirror image.")]
FarsOption = Annotated[
    list[float], typer.Option("--far", help="False accept rate wanted; may be given several times.")
]
BoxesOption = Annotated[
    Path | None, typer.Option(help=".npz of names, boxes and points found before, instead of a detector.")
]
CropsOption = Annotated[bool, typer.Option("--crops", help="The pictures are aligned crops: detect nothing.")]


class FaceSource(NamedTuple):
    """Where the faces of a folder come from: boxes found before, a detector, or neither for aligned crops."""

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
    """Yield what the options of a command about labelled pictures ask for.

    Raises
    ------
    InputError
        If more than one of boxes, crops and a detector is asked for.
    """
    if (boxes is not None or crops) and (
        (boxes is not None and crops) or detector or detector_model or landmarks_model
    ):
        raise InputError(
            "expected one of --boxes (found before), --crops (aligned already) and a detector, found several; "
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


def load_detector(
    name: DetectorName, model: Path | None, landmarks_model: Path | None, *, device: str, **options: Any
) -> Any:
    """Load a detector; models that were not named are those of the zoo's cache."""
    from edgeface.vision.load import load_detector as load

    if name is DetectorName.yunet:
        model = model or _downloaded("yunet", "yunet_n_dynamic.onnx")
    elif name is DetectorName.retail_0004:
        model = model or _downloaded("face-detection-retail-0004", "FP32/face-detection-retail-0004.xml")
        landmarks_model = landmarks_model or _downloaded(
            "landmarks-regression-retail-0009", "FP32/landmarks-regression-retail-0009.xml"
        )
    return load(name.value, device=device, model=model, landmarks_model=landmarks_model, **options)


def _downloaded(name: str, file: str) -> Path:
    from edgeface.zoo import ModelStore, load_catalog

    return ModelStore().model_dir(load_catalog()[name]) / file
