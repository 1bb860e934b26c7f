"""Former place of the options that `edgeface.cli.options` has now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeface.cli.options import (
    BoxesOption,
    ChosenDetectorOption,
    CropsOption,
    DetectorModelOption,
    DetectorName,
    DetectorOption,
    DeviceOption,
    FarsOption,
    FlipName,
    FlipOption,
    ImagesOption,
    LandmarksModelOption,
    MinSizeOption,
    find_faces,
    load_detector,
)

__all__ = [
    "BoxesOption",
    "ChosenDetectorOption",
    "CropsOption",
    "DetectorModelOption",
    "DetectorName",
    "DetectorOption",
    "DeviceOption",
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

ModelOption = Annotated[
    Path, typer.Option("--model", "-m", help="The .xml of an IR with a contract.", show_default=False)
]
