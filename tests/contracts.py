"""The contract of the tests' small models: the fields that a test does not care about are given once, here."""

from __future__ import annotations

from edgeface.model.contract import Alignment, ModelContract


def sample_contract(**changes: object) -> ModelContract:
    """Return the contract of a model of 16 x 16 BGR pixels and 48 numbers of unit length, with `changes`."""
    fields: dict[str, object] = {
        "name": "tiny",
        "framework": "openvino",
        "source_sha256": "0" * 64,
        "provenance": "unknown",
        "input_name": "image",
        "output_name": "embeddings",
        "input_size": (16, 16),
        "layout": "NCHW",
        "color": "BGR",
        "value_range": (0.0, 255.0),
        "mean": (0.0, 0.0, 0.0),
        "scale": (1.0, 1.0, 1.0),
        "embedding_dim": 48,
        "metric": "cosine",
        "normalized": True,
        "alignment": Alignment("none"),
        "precision": "FP32",
        "converter_version": "0",
        "openvino_version": "0",
    }
    return ModelContract(**{**fields, **changes})  # type: ignore[arg-type]
