"""Sentences of commands, the same whether a model of this process or a service answers; imports next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number of things, with the noun in the singular for one: "1 face", "2 faces"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def list_failures(failures: Mapping[Path, str]) -> list[dict[str, str]]:
    """List files and folders that failed or are left out, and why, for a command's JSON."""
    return [{"path": str(path), "error": reason} for path, reason in failures.items()]


def describe_box(box: Iterable[float]) -> str:
    """Return the size and place of a box (x0, y0, x1, y1) in pixels, in words."""
    x0, y0, x1, y1 = box
    return f"{x1 - x0:.0f}x{y1 - y0:.0f} at ({x0:.0f}, {y0:.0f})"


def model_words(name: str, contract_id: str, weights: str, precision: str | None) -> str:
    """Name the model that answered, with its precisions unless it is an FP32 model that computes in FP32."""
    usual = weights == "FP32" and precision == "f32"
    computed = f"computed in {precision}" if precision else "computed as its server or device does"
    precisions = "" if usual else f", {weights} weights, {computed}"
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


def found_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Say which faces were detected in a photo; `answer` is `Detection.to_dict`."""
    yield f"{answer['path']}: {counted(len(answer['faces']), 'face')}"
    for face in answer["faces"]:
        yield f"  {face['score']:.4f}  {describe_box(face['box'])}"


FOUND_BY = ("detector", "min_size", "min_size_from")
"""Fields of answers that say which detector found the faces, from which size in pixels on, and why: those of
`edgeface.vision.detector.FoundBy`."""
_MIN_SIZE_FROM = {
    "gate": " (the quality gate's smallest; --no-gate and --min-size for smaller ones)",
    "model": " (a fifth of the model's input; --min-size for smaller ones)",
    "default": " (--min-size for smaller ones)",
}


def detector_lines(answer: Mapping[str, Any]) -> list[str]:
    """Say these fields of an answer in a line; crops have none."""
    if answer["detector"] is None:
        return []
    why = _MIN_SIZE_FROM.get(answer["min_size_from"], "")
    return [f"faces of {answer['min_size']} pixels and more{why}, found by {answer['detector']}"]


def embedded_words(answer: Mapping[str, Any]) -> str:
    """Say what was embedded into which file; `answer` is the command's JSON."""
    reused = f"; {counted(answer['reused'], 'file')} from an earlier run" if answer["reused"] else ""
    return (
        f"{counted(answer['rows'], 'embedding')} of {counted(answer['files'], 'file')} in {answer['output']}, "
        f"by {answer['model']}{reused}"
    )


def reduced_words(reduced: int) -> str:
    """Say that photos were not embedded from all of their pixels."""
    return f"JPEGs were read at down to 1/{reduced} of their size, where each face looked for has a crop's pixels"


def search_words(limit: Mapping[str, Any]) -> str:
    """Say by which threshold people are identified, and what it costs; `limit` has the fields of the command's JSON."""
    where = f" on {limit['measured_on']}" if limit["measured_on"] else ""
    rate = "by hand" if limit["fpir"] is None else f"FPIR {limit['fpir']:g}{where}"
    missed = limit["expected_fnir"]
    cost = f", where {missed:.1%} of photos of enrolled people are missed" if missed else ""
    return f"threshold: cosine > {limit['threshold']:.4f}, {rate}, {counted(limit['templates'], 'template')}{cost}"


def identified_lines(path: object, faces: Sequence[Mapping[str, Any]], *, margin: float) -> Iterator[str]:
    """Say who the faces of a photo are; `faces` are those of the command's JSON."""
    yield f"{path}: {counted(len(faces), 'face')}"
    for face in faces:
        yield f"  {describe_box(face['box'])}: {_identity_words(face, margin)}"


def _identity_words(face: Mapping[str, Any], margin: float) -> str:
    if face.get("reasons"):
        return f"unusable: {'; '.join(face['reasons'])}"
    if face.get("reason"):
        return f"unknown ({face['reason'].replace('-', ' ')})"
    score = "nobody is enrolled" if face["score"] is None else f"{face['score']:.4f}"
    score += ", of a person who is another face in this photo" if face["taken"] else ""
    next_one = f", next {face['runner_up']} {face['runner_up_score']:.4f}" if face["runner_up"] else ""
    why = f"the lead is under --margin {margin:g}" if margin else "the next person's score is the same"
    word = {"accepted": "", "unknown": "unknown"}.get(face["verdict"], f"inconclusive, {why}; take another photo: ")
    return f"{word}{face['person'] or ''} ({score}{next_one})"
