"""Measure the accuracy of a model: published protocols, curves, threshold calibration and reports."""

from edgeface.evaluate.faces import Boxes, Embedded, FaceCutter, FaceSource, embed_images, find_images, load_boxes
from edgeface.evaluate.identification import IdentificationEvaluation, evaluate_identification
from edgeface.evaluate.lfw import (
    DEFAULTS,
    EvaluationSettings,
    Result,
    ThresholdCalibration,
    calibrate_model,
    evaluate_model,
)
from edgeface.evaluate.liveness import LivenessEvaluation, evaluate_liveness
from edgeface.evaluate.low_resolution import LowResolution, parse_resolutions, reduce_resolution
from edgeface.evaluate.pairs import Pairs, pairs_from_folders, parse_pairs, read_pairs
from edgeface.evaluate.pixels import write_pixel_ir
from edgeface.evaluate.protocol import Evaluation, ProtocolName, evaluate, evaluate_distances
from edgeface.evaluate.recipe_check import RecipeCheck, check_recipe
from edgeface.evaluate.report import write_identification_report, write_liveness_report, write_report, write_results

__all__ = [
    "DEFAULTS",
    "Boxes",
    "Embedded",
    "Evaluation",
    "EvaluationSettings",
    "FaceCutter",
    "FaceSource",
    "IdentificationEvaluation",
    "LivenessEvaluation",
    "LowResolution",
    "Pairs",
    "ProtocolName",
    "RecipeCheck",
    "Result",
    "ThresholdCalibration",
    "calibrate_model",
    "check_recipe",
    "embed_images",
    "evaluate",
    "evaluate_distances",
    "evaluate_identification",
    "evaluate_liveness",
    "evaluate_model",
    "find_images",
    "load_boxes",
    "pairs_from_folders",
    "parse_pairs",
    "parse_resolutions",
    "read_pairs",
    "reduce_resolution",
    "write_identification_report",
    "write_liveness_report",
    "write_pixel_ir",
    "write_report",
    "write_results",
]
