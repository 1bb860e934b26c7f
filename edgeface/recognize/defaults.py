"""A contract's id in, the thresholds that were calibrated for it and ship with edgeface out."""

from __future__ import annotations

from pathlib import Path

from edgeface.recognize.threshold import Threshold, load_thresholds

__all__ = ["shipped_thresholds"]

_FOLDER = Path(__file__).with_name("thresholds")
"""One file of `save_thresholds` for each contract, named by its id; `created_from` in each says how it was made."""


def shipped_thresholds(contract_id: str) -> tuple[Threshold, ...]:
    """Thresholds of published models as published; empty for every other contract.

    A threshold never holds for another contract: another precision, alignment or colour order moves the scores.
    """
    path = _FOLDER / f"{contract_id}.json"
    return load_thresholds(path) if contract_id.isalnum() and path.is_file() else ()
