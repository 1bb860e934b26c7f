"""Make an IR smaller and faster, and write it only if accuracy is proven to hold."""

from typing import TYPE_CHECKING

from edgeface.lazy import exports

if TYPE_CHECKING:
    from edgeface.quantize.calibration import CalibrationSet, gather
    from edgeface.quantize.compress import QuantizationRecipe
    from edgeface.quantize.detectors import DetectorOutcome, quantize_detector
    from edgeface.quantize.gate import QuantizationLimits
    from edgeface.quantize.liveness import LivenessOutcome, quantize_liveness
    from edgeface.quantize.pareto import Pareto, compare_models, measure_pareto
    from edgeface.quantize.pareto_report import write_pareto
    from edgeface.quantize.quantizer import Outcome, open_parent, quantize
    from edgeface.quantize.verification import LabelledPairs, read_labelled

__all__ = [
    "CalibrationSet",
    "DetectorOutcome",
    "LabelledPairs",
    "LivenessOutcome",
    "Outcome",
    "Pareto",
    "QuantizationLimits",
    "QuantizationRecipe",
    "compare_models",
    "gather",
    "measure_pareto",
    "open_parent",
    "quantize",
    "quantize_detector",
    "quantize_liveness",
    "read_labelled",
    "write_pareto",
]

__getattr__ = exports(  # a recipe needs no detector, and a detector no evaluation
    __name__,
    {
        "calibration": ("CalibrationSet", "gather"),
        "compress": ("QuantizationRecipe",),
        "detectors": ("DetectorOutcome", "quantize_detector"),
        "gate": ("QuantizationLimits",),
        "liveness": ("LivenessOutcome", "quantize_liveness"),
        "pareto": ("Pareto", "compare_models", "measure_pareto"),
        "pareto_report": ("write_pareto",),
        "quantizer": ("Outcome", "open_parent", "quantize"),
        "verification": ("LabelledPairs", "read_labelled"),
    },
)
