"""Sentences of commands, the same whether a model of this process or a service answers; imports next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def describe_box(box: Iterable[float]) -> str:
    """Return the size and place of a box (x0, y0, x1, y1) in pixels, in words."""
    x0, y0, x1, y1 = box
    return f"{x1 - x0:.0f}x{y1 - y0:.0f} at ({x0:.0f}, {y0:.0f})"


def model_words(name: str, contract_id: str, weights: str, precision: str | None) -> str:
    """Name the model that answered, with its precisions unless it is an FP32 model that computes in FP32."""
    usual = weights == "FP32" and precision == "f32"
    precisions = "" if usual else f", {weights} weights, computed in {precision or 'an unknown precision'}"
    return f"model: {name} ({contract_id}){precisions}"


def decision_words(answer: Mapping[str, Any]) -> str:
    """Say what a verification decided, and by which threshold; `answer` is `Verification.to_dict`, or the service's."""
    word = "same person" if answer["matched"] else "different people"
    where = f" on {answer['measured_on']}" if answer["measured_on"] else ""
    far = answer["far"]
    rate = "" if far is None else f", the threshold for a false accept rate of {far:g}{where}"
    relation = ">" if answer["score"] > answer["threshold"] else "<="
    return f"{word}: {answer['metric']} {answer['score']:.4f} {relation} {answer['threshold']:.4f}{rate}"


def choice_words(path: object, face: Mapping[str, Any], option: str) -> str | None:
    """Say which of several faces was compared, as none was asked for; None: the only one. `face` is `Face.to_dict`."""
    if not face["total"] or face["total"] < 2:
        return None
    return (
        f"{path}: {face['total']} faces; compared number {face['number']} from the left, "
        f"{describe_box(face['box'])}. Choose another with {option} N."
    )
