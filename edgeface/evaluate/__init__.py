"""Labelled pairs in, how right a model is out: published protocols, curves, calibration and a report."""

from edgeface.evaluate.calibration import Calibration, calibrate_model
from edgeface.evaluate.faces import Boxes, FaceCutter, load_boxes
from edgeface.evaluate.folds import ProtocolName
from edgeface.evaluate.lfw import DEFAULTS, Result, Settings, evaluate_model
from edgeface.evaluate.pairs import Pairs, pairs_from_folders, read_pairs
from edgeface.evaluate.protocol import Evaluation, evaluate, evaluate_distances
from edgeface.evaluate.report import write_report

__all__ = [
    "DEFAULTS",
    "Boxes",
    "Calibration",
    "Evaluation",
    "FaceCutter",
    "Pairs",
    "ProtocolName",
    "Result",
    "Settings",
    "calibrate_model",
    "evaluate",
    "evaluate_distances",
    "evaluate_model",
    "load_boxes",
    "pairs_from_folders",
    "read_pairs",
    "write_report",
]
