"""An FP32 IR and photographs in, a smaller and faster IR out that is proven not to have lost accuracy, or none."""

from typing import TYPE_CHECKING

from edgeface.lazy import exports

if TYPE_CHECKING:
    from edgeface.quantize.calibration import CalibrationSet, gather
    from edgeface.quantize.compress import QuantizationRecipe
    from edgeface.quantize.detectors import DetectorOutcome, quantize_detector
    from edgeface.quantize.gate import QuantizationLimits
    from edgeface.quantize.labelled import LabelledPairs
    from edgeface.quantize.quantizer import Outcome, open_parent, quantize

__all__ = [
    "CalibrationSet",
    "DetectorOutcome",
    "LabelledPairs",
    "Outcome",
    "QuantizationLimits",
    "QuantizationRecipe",
    "gather",
    "open_parent",
    "quantize",
    "quantize_detector",
]

__getattr__ = exports(  # a recipe needs no detector, and a detector no evaluation
    __name__,
    {
        "calibration": ("CalibrationSet", "gather"),
        "compress": ("QuantizationRecipe",),
        "detectors": ("DetectorOutcome", "quantize_detector"),
        "gate": ("QuantizationLimits",),
        "labelled": ("LabelledPairs",),
        "quantizer": ("Outcome", "open_parent", "quantize"),
    },
)
