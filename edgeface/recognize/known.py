"""Find the threshold that decides for a model.

Thresholds come from the user's own photos, ship with edgeface, or are those of the model that a quantized one was made
from. Every answer says which.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeface.errors import ContractError, InputError, MissingError
from edgeface.files import default_root
from edgeface.model.contract import ModelContract, current_id, ids_of
from edgeface.model.embedding import require_same_contract
from edgeface.recognize.threshold import (
    USUAL_FAR,
    Threshold,
    load_thresholds,
    require_rate,
    require_supported,
    threshold_at,
)

RATES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""False accept rates that 'edgeface calibrate' chooses thresholds for."""

_SHIPPED = Path(__file__).with_name("thresholds")
"""One file of `save_thresholds` for each contract, named by its id; benchmarks/thresholds.py makes them."""
_HALF_CHANGES = 0.0012
"""Greatest change of a cosine by FP16 weights: FaceNet 20180408, all pairs of 963 LFW faces, FP32 arithmetic."""
_ENOUGH_PEOPLE = 20
"""Enrolled people from which it is worth calibrating on their photos: 190 impostor pairs or more."""


def shipped_thresholds(contract_id: str) -> tuple[Threshold, ...]:
    """Return the thresholds that ship for a published model; empty for every other contract."""
    return _load(_SHIPPED, contract_id)


def own_thresholds(contract_id: str) -> tuple[Threshold, ...]:
    """Return the thresholds that this user calibrated for a contract and stored at `own_path`; empty if there are none.

    Raises
    ------
    InputError
        If the file there holds no thresholds.
    """
    return _load(own_path(contract_id).parent, contract_id)


def own_path(contract_id: str) -> Path:
    """Return where 'edgeface calibrate' stores thresholds for a contract, in the folder of `default_root`."""
    return default_root() / "thresholds" / f"{current_id(contract_id)}.json"


def _load(folder: Path, contract_id: str) -> tuple[Threshold, ...]:
    paths = [folder / f"{each}.json" for each in ids_of(contract_id)] if contract_id.isalnum() else []
    return next((load_thresholds(path) for path in paths if path.is_file()), ())


def thresholds_for(model: ModelContract | str) -> tuple[Threshold, ...]:
    """Return all thresholds that are known for a model, given by its contract or its `contract_id`.

    The user's own go before those that ship, for the rates that the user's photos support; the others are not used.
    Of the rates below, those that ship follow where they are the stricter ones. A model that has neither takes those
    of the same weights in FP32, or its parent's, where `Lineage.agrees`; they carry a note.

    Returns
    -------
    tuple of Threshold
        Empty if none are known.
    """
    contract_id = model if isinstance(model, str) else model.contract_id
    own, shipped = own_thresholds(contract_id), shipped_thresholds(contract_id)
    own = tuple(each for each in own if each.supported)
    if own and shipped:
        lowest, strictest = min(each.assured_far for each in own), max(each.cosine for each in own)
        own += tuple(each for each in shipped if each.assured_far < lowest and each.cosine > strictest)
    known = own or shipped
    if isinstance(model, str):
        return known
    if not known and (related := _related(model)) is not None:
        known = thresholds_for(related[0])
    return tuple(fit_threshold(each, model) for each in known)


def known_thresholds(given: Path | None, contract: ModelContract) -> tuple[Threshold, ...]:
    """Return the thresholds of a file, or `thresholds_for` the model; raise as `choose_threshold`."""
    if given is not None:
        return tuple(fit_threshold(each, contract) for each in load_thresholds(given))
    known = thresholds_for(contract)
    if not known:
        if stored := own_thresholds(contract.contract_id):
            require_supported(stored)  # says what they lack
        differs = "" if contract.lineage is None or contract.lineage.agrees else _differs(contract) + ". "
        raise MissingError(
            f"{contract.name}: no threshold is known for its contract {contract.contract_id}. {differs}"
            "Calibrate on your own photos, in one folder for each person: edgeface calibrate PEOPLE --model IR"
        )
    return known


def choose_threshold(
    given: Threshold | float | Path | None, contract: ModelContract, *, far: float | None = None
) -> Threshold:
    """Choose the threshold that decides for a model.

    Parameters
    ----------
    given
        A threshold; a cosine similarity; a file that 'edgeface calibrate' wrote; or None: see `thresholds_for`.
    contract
        Contract of the model.
    far
        False accept rate to choose by. None: `USUAL_FAR`, or the rate of a file's only threshold.

    Raises
    ------
    InputError
        If a number is no cosine similarity, a threshold or number comes with `far`, a file has no thresholds, or
        none is calibrated for `far`.
    ContractError
        If the threshold is for another model.
    MissingError
        If none is given and none is known for the model.
    """
    if isinstance(given, (Threshold, float, int)):
        if far is not None:
            raise InputError(
                "far cannot be combined with a threshold that is given as a number or an object; leave one out"
            )
        if not isinstance(given, Threshold):
            return Threshold.by_hand(given, contract_id=contract.contract_id)
        return fit_threshold(given, contract)
    wanted = USUAL_FAR if far is None else far
    require_rate("far", wanted)
    known = known_thresholds(given, contract)
    only = given is not None and far is None and len(known) == 1
    return known[0] if only else threshold_at(known, wanted)


def fit_threshold(threshold: Threshold, contract: ModelContract) -> Threshold:
    """Return a threshold for a model: its own; that of the same weights in FP32, or of its parent with a note.

    It has the model's id, which for an IR of edgeface 0.1 may be another one than it was stored with.

    Raises
    ------
    ContractError
        If the threshold is of another model, or of a parent whose decisions differ from this model's.
    """
    if threshold.contract_id == contract.contract_id:
        return threshold
    if current_id(threshold.contract_id) == current_id(contract.contract_id):
        return replace(threshold, contract_id=contract.contract_id)
    related = _related(contract)
    if related is not None and current_id(threshold.contract_id) == current_id(related[0]):
        return replace(threshold, contract_id=contract.contract_id, inherited=related[1])
    if contract.lineage is not None and current_id(threshold.contract_id) == current_id(contract.lineage.parent_id):
        raise ContractError(
            f"threshold: expected one for {contract.contract_id}, the {contract.precision} model, found one for "
            f"{threshold.contract_id}, the model that it was made from. {_differs(contract)}. Calibrate again "
            "with 'edgeface calibrate PEOPLE --model' and this IR, or make the IR with "
            "'edgeface quantize --recalibrate PAIRS'"
        )
    require_same_contract(contract.contract_id, threshold.contract_id, what="threshold")
    return threshold


def _related(contract: ModelContract) -> tuple[str, str] | None:
    """Return the id of the model whose thresholds hold for this one, and how much they differ in words; None: none.

    It is the parent of a compressed model; else the same weights in FP32, in the usual layout and channel order.
    """
    lineage = contract.lineage
    if lineage is None:
        same = replace(contract, precision="FP32", layout="NCHW", color="BGR").contract_id
        half = (
            f"the threshold is that of {same}, the same weights in FP32: in half precision cosines between faces "
            f"changed by {_HALF_CHANGES:g} at most where it was measured"
        )
        return None if same == contract.contract_id else (same, half if contract.precision == "FP16" else "")
    if not lineage.agrees:
        return None
    pairs = (
        "accuracy was not compared on labelled pairs"
        if lineage.accuracy_drop is None
        else f"accuracy on labelled pairs changed by {-lineage.accuracy_drop:+.4f}"
    )
    return lineage.parent_id, (
        f"the threshold is that of {lineage.parent_id}, the model that this {contract.precision} one was made from: "
        f"the cosine between their embeddings is {lineage.mean_cosine:.4f} on average and at least "
        f"{lineage.min_cosine:.4f}, and {pairs}"
    )


def _differs(contract: ModelContract) -> str:
    lineage = contract.lineage
    assert lineage is not None
    drop = "" if lineage.accuracy_drop is None else f", and accuracy fell by {lineage.accuracy_drop:.4f}"
    return (
        f"The parent's threshold does not hold for it: the cosine between their embeddings is as low as "
        f"{lineage.min_cosine:.4f}{drop}"
    )


def advise_calibration(contract_id: str, people: int, photos: str = "PEOPLE") -> str:
    """Return how to calibrate on the photos of this many enrolled people; empty if they are few, or it was done."""
    if people < _ENOUGH_PEOPLE or own_thresholds(contract_id):
        return ""
    return f"calibrate on your own photos: edgeface calibrate {photos}"
