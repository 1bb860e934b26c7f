"""Embeddings in, decisions out: metrics, thresholds that know their false accept rate, and verification."""

from edgeface.recognize.embedding import Embedding, Embeddings, require_same_contract
from edgeface.recognize.match import Verification, verify
from edgeface.recognize.metrics import Metric, paired, pairwise
from edgeface.recognize.threshold import (
    Threshold,
    calibrate,
    load_thresholds,
    save_thresholds,
    threshold_at,
)

__all__ = [
    "Embedding",
    "Embeddings",
    "Metric",
    "Threshold",
    "Verification",
    "calibrate",
    "load_thresholds",
    "paired",
    "pairwise",
    "require_same_contract",
    "save_thresholds",
    "threshold_at",
    "verify",
]
