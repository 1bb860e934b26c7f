"""--threshold and --far: which threshold decides, for every command that compares faces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeface.errors import InputError, MissingError

if TYPE_CHECKING:
    from edgeface.recognize import Threshold

__all__ = [
    "USUAL_FAR",
    "FarOption",
    "ThresholdOption",
    "choose_threshold",
    "known_thresholds",
    "parse_similarity",
]

USUAL_FAR = 1e-3

ThresholdOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|VALUE",
        help="What 'edgeface calibrate' wrote, or a cosine similarity. Default: the one shipped for this model.",
        show_default=False,
    ),
]
FarOption = Annotated[
    float | None,
    typer.Option(help="False accept rate whose threshold to take, if several are known.", show_default=False),
]


def choose_threshold(
    given: str | None, far: float | None, contract_id: str, model: Path, *, usual_far: float = USUAL_FAR
) -> Threshold | float:
    """Find a calibrated threshold, or take the bare similarity that the user wants to be the limit.

    Raises
    ------
    InputError
        If what was given is no file of thresholds and no similarity, or has none for that rate.
    MissingError
        If none was given and none is known for the contract.
    """
    from edgeface.recognize import threshold_at

    if given is not None and (value := parse_similarity(given)) is not None:
        if far is not None:
            raise InputError(
                "--far: a threshold given as a number was calibrated for no rate; leave one of them out"
            )
        return value
    wanted = usual_far if far is None else far
    known = known_thresholds(given, contract_id, model, far=wanted)
    return known[0] if far is None and len(known) == 1 else threshold_at(known, wanted)


def known_thresholds(
    given: str | None, contract_id: str, model: Path, *, far: float
) -> tuple[Threshold, ...]:
    """Thresholds of a file, or those that ship with the model.

    Raises
    ------
    MissingError
        If there are none; it says how to calibrate one for `far`.
    """
    from edgeface.recognize import load_thresholds
    from edgeface.recognize.threshold import shipped_thresholds

    known = load_thresholds(Path(given)) if given is not None else shipped_thresholds(contract_id)
    if not known:
        raise MissingError(
            f"{model}: no threshold is known for its contract {contract_id}. Calibrate one on labelled pictures: "
            f"edgeface calibrate --images PEOPLE --model {model} --far {far:g} -o thresholds.json, "
            "and give it with --threshold thresholds.json"
        )
    return known


def parse_similarity(text: str) -> float | None:
    """Read a cosine similarity; None if the text is no number, and so is a file's name."""
    try:
        value = float(text)
    except ValueError:
        return None
    if not -1 <= value <= 1:
        raise InputError(f"--threshold: expected a file, or a cosine similarity from -1 to 1, found {text}")
    return value
