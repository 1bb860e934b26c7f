"""Quantize a liveness model, and write it only if it takes the same faces for live as FP32 does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.convert.ir import publish_ir, save_ir
from edgeface.convert.source import weights_id_of
from edgeface.errors import FaceError, InputError
from edgeface.files import staging_folder, stopwatch
from edgeface.model.ir_file import check_weights, read_liveness_contract
from edgeface.model.liveness_contract import LIVE, LivenessContract
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.quantize.compress import QuantizationRecipe, check_recipe, compress
from edgeface.quantize.gate import embed
from edgeface.vision.crops import detect_photos
from edgeface.vision.detector import Detector
from edgeface.vision.listing import list_photos
from edgeface.vision.liveness import cut_crop

_HALF = 0.5
"""Probability above which a face counts as live here; a checker's threshold is not below."""
_FEWEST = 10
"""Least number of live faces, and of attacks, among the held-out ones."""
_REFUSED, _CHANGE = 0.02, 0.02
"""Greatest share of live faces that may become spoofs, and greatest mean change of the probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessAgreement:
    """Agreement of a compressed liveness model with FP32 on held-out faces.

    Attributes
    ----------
    live, attacks
        Number of faces that FP32 takes for live, and for attacks.
    opened, refused
        Number of FP32's attacks that become live, and of its live faces that become attacks.
    mean_change, max_change
        Of the probability of a live face.
    """

    live: int
    attacks: int
    opened: int
    refused: int
    mean_change: float
    max_change: float


def measure_liveness_agreement(expected: NDArray[np.floating], found: NDArray[np.floating]) -> LivenessAgreement:
    """Compare probabilities of a live face, (N,) each, N at least 1.

    Examples
    --------
    >>> measure_liveness_agreement(np.array([0.9, 0.2]), np.array([0.8, 0.6])).opened
    1
    """
    live, still = expected > _HALF, found > _HALF
    change = np.abs(expected - found)
    return LivenessAgreement(
        live=int(live.sum()),
        attacks=int((~live).sum()),
        opened=int((~live & still).sum()),
        refused=int((live & ~still).sum()),
        mean_change=float(change.mean()),
        max_change=float(change.max()),
    )


def judge_liveness_agreement(agreement: LivenessAgreement) -> tuple[str, ...]:
    """Return the reasons to refuse a compressed liveness model; empty if it is accepted."""
    few = min(agreement.live, agreement.attacks)
    refused = agreement.refused / max(agreement.live, 1)
    checks = (
        (
            few < _FEWEST,
            f"held-out faces: expected at least {_FEWEST} that FP32 takes for live and {_FEWEST} that it takes for "
            f"attacks, found {agreement.live} and {agreement.attacks}; calibrate with photos of both",
        ),
        (
            agreement.opened > 0,
            f"attacks: expected none of {agreement.attacks} to become live, found {agreement.opened}",
        ),
        (
            refused > _REFUSED,
            f"live faces: expected at most {_REFUSED:g} of {agreement.live} to become attacks, found {refused:.3f}",
        ),
        (
            not agreement.mean_change <= _CHANGE,  # also catches NaN
            f"probability of a live face: expected a mean change of at most {_CHANGE:g}, found "
            f"{agreement.mean_change:.4f}",
        ),
    )
    return tuple(reason for broken, reason in checks if broken)


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessOutcome:
    """Result of quantizing one liveness model; true if it was written, false if it was refused.

    Attributes
    ----------
    ir, contract
        The new IR and its contract; None if it was refused.
    agreement, reasons
        Agreement with FP32 on held-out faces, and why it was refused.
    bytes_before, bytes_after
        Sizes of the .bin files.
    unreadable
        Photos and folders that could not be read, and why.
    """

    name: str
    method: str
    settings: str
    ir: Path | None
    contract: LivenessContract | None
    agreement: LivenessAgreement
    reasons: tuple[str, ...]
    calibrated: int
    bytes_before: int
    bytes_after: int
    seconds: float
    unreadable: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface quantize` for a liveness model."""
        return {
            "passed": bool(self),
            "liveness": self.name,
            "method": self.method,
            "settings": self.settings,
            "ir": None if self.ir is None else str(self.ir),
            "contract_id": None if self.contract is None else self.contract.contract_id,
            "agreement": dataclasses.asdict(self.agreement),
            "reasons": list(self.reasons),
            "calibrated": self.calibrated,
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "seconds": round(self.seconds, 3),
            "unreadable": list(self.unreadable),
        }


def quantize_liveness(
    ir: Path,
    output: Path,
    photos: Path,
    detector: Detector,
    *,
    recipe: QuantizationRecipe | None = None,
    progress: ProgressCallback = ignore_progress,
) -> LivenessOutcome:
    """Quantize a liveness model and write it only if it decides as FP32 does on held-out faces.

    Parameters
    ----------
    ir
        FP32 IR (.xml) with a liveness contract.
    output
        Folder for the new IR.
    photos
        Folder of photos of live faces and of attacks; a fifth of their faces is held out, the others calibrate.
    detector
        Finds the faces; not closed.
    recipe, progress
        How to compress; called as the work proceeds.

    Raises
    ------
    InputError
        If the IR is not FP32 or lies in `output`, or fewer than five faces are found.
    EdgeFaceError
        If the folder cannot be written; see also `read_liveness_contract` and `compress`.
    """
    recipe = recipe or QuantizationRecipe()
    model, contract = read_liveness_contract(ir)
    check_weights(ir, contract)
    check_recipe(model, recipe)
    if contract.precision != "FP32":
        raise InputError(path=ir, expected="an IR of precision FP32", found=contract.precision)
    if output.resolve() == ir.resolve().parent:
        raise InputError(f"{output}: the quantized model would replace {ir.name}; choose another folder")
    with stopwatch() as elapsed, staging_folder(output) as staging:
        failures: dict[Path, str] = {}
        crops = _gather(photos, detector, contract, failures, progress)
        order = np.random.default_rng(recipe.seed).permutation(len(crops))
        held = [crops[index] for index in order[: len(crops) // 5]]
        calibrating = [crops[index] for index in order[len(held) :][: recipe.subset]]
        recipe = dataclasses.replace(recipe, subset=len(calibrating))
        static = model.clone()
        static.reshape(list(contract.input_shape(1)))
        made = compress(static, calibrating, recipe, progress=progress)
        made.reshape([-1, *contract.input_shape(1)[1:]])
        compressed = dataclasses.replace(
            contract,
            precision="FP16" if recipe.method == "fp16" else "INT8",
            weights_id=weights_id_of(made),
            weights_sha256="",
        )
        staged, compressed = save_ir(made, staging, compressed)
        written, _ = read_liveness_contract(staged)
        live = contract.classes.index(LIVE)
        agreement = measure_liveness_agreement(embed(model, held)[:, live], embed(written, held)[:, live])
        reasons = judge_liveness_agreement(agreement)
        after = staged.with_suffix(".bin").stat().st_size
        return LivenessOutcome(
            name=contract.name,
            method=recipe.method,
            settings=recipe.settings,
            ir=None if reasons else publish_ir(staged, output),
            contract=None if reasons else compressed,
            agreement=agreement,
            reasons=reasons,
            calibrated=len(calibrating),
            bytes_before=ir.with_suffix(".bin").stat().st_size,
            bytes_after=after,
            seconds=elapsed(),
            unreadable=tuple(f"{path}: {why}" for path, why in failures.items()),
        )


def _gather(
    photos: Path, detector: Detector, contract: LivenessContract, failures: dict[Path, str], progress: ProgressCallback
) -> list[NDArray[np.float32]]:
    """Cut the crop of every face of the photos, (1, 3, H, W) each, as the model gets it."""
    listed = list_photos([photos])
    failures |= listed.failures
    crops = []
    for done, found in enumerate(detect_photos(listed.photos, detector, failures=failures), start=1):
        for box in found.faces.boxes:
            try:
                crops.append(cut_crop(found.image, box, contract)[None])
            except FaceError as error:
                failures[found.photo.path] = str(error)
        progress(Progress("faces", done, len(listed.photos), unit="photos"))
    if len(crops) < 5:
        raise InputError(f"calibration: expected at least 5 faces in {photos}, found {len(crops)}")
    return crops
