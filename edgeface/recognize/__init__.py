"""Decide by embeddings: compare, calibrate thresholds, verify, identify and cluster."""

from edgeface.model.embedding import Embedding, Embeddings, require_same_contract
from edgeface.recognize.metrics import Metric, paired, pairwise
from edgeface.recognize.threshold import (
    Threshold,
    Verification,
    calibrate,
    load_thresholds,
    save_thresholds,
    threshold_at,
    verify,
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
