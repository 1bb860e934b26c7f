"""Quantize an IR, and write the result only if it keeps the accuracy limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert.ir import check_structure, publish_ir, save_ir
from edgeface.errors import InputError
from edgeface.evaluate.calibration import calibrate_model
from edgeface.files import sha256_of, staging_folder, stopwatch
from edgeface.model.contract import ModelContract, Precision
from edgeface.model.ir_file import check_weights, read_ir
from edgeface.model.lineage import Lineage
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.quantize.calibration import CalibrationSet, gather, to_inputs
from edgeface.quantize.calibration_checks import find_flaws
from edgeface.quantize.compress import QuantizationRecipe, check_recipe, compress
from edgeface.quantize.gate import (
    Fidelity,
    HintResult,
    QuantizationLimits,
    embed,
    judge_fidelity,
    measure_fidelity,
    measure_hints,
)
from edgeface.quantize.sensitivity import groups_of, rank, revert
from edgeface.quantize.verification import LabelledPairs, VerificationChange, judge_verification
from edgeface.recognize.threshold import save_thresholds
from edgeface.vision.crops import find_photos
from edgeface.vision.detector import Detector, load_detector

__all__ = ["Outcome", "QuantizationReport", "Trial", "open_parent", "quantize", "quantize_photos"]

_FEW_FACES = 32
"""Held-out faces for measurements that are repeated often: the ranking of layers and the precisions of devices."""

_PRECISIONS: dict[str, Precision] = {
    "int8-mixed": "INT8",
    "int8-performance": "INT8",
    "weights": "INT8",
    "fp16": "FP16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Measurements of one compressed model; true if it keeps the limits.

    Attributes
    ----------
    in_float
        Friendly names of the layers that stayed in floating point.
    share_in_float
        Their share of the layers with weights, in [0, 1].
    bytes
        Size of the .bin file.
    fidelity
        Agreement with FP32 on held-out faces.
    verifications
        Verification on labelled pairs; empty if there are none, or if the faces were enough to refuse the model.
    reasons
        Why it is refused; empty if it is accepted.
    """

    in_float: tuple[str, ...]
    share_in_float: float
    bytes: int
    fidelity: Fidelity
    verifications: tuple[VerificationChange, ...]
    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "in_float": list(self.in_float),
            "share_in_float": self.share_in_float,
            "bytes": self.bytes,
            "fidelity": self.fidelity.to_dict(),
            "verification": [each.to_dict() for each in self.verifications],
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of quantizing one model; true if an IR was written, false if it was refused.

    Attributes
    ----------
    ir
        The compressed IR; None if it was refused, and then nothing was written.
    contract
        Contract of `ir`, or of the parent if it was refused.
    recipe
        Recipe, with the number of images that were used.
    reasons
        Why it was refused; empty if it passed.
    trials
        All measured models in order; the last one is `ir`. More than one if the search put layers back into floating
        point.
    bytes_before, bytes_after
        Sizes of the .bin files; the second is 0 if it was refused.
    seconds
        Wall time of the compression alone, and of everything.
    """

    ir: Path | None
    contract: ModelContract
    recipe: QuantizationRecipe
    reasons: tuple[str, ...]
    trials: tuple[Trial, ...]
    bytes_before: int
    bytes_after: int
    seconds: tuple[float, float]

    def __bool__(self) -> bool:
        return self.ir is not None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        last = self.trials[-1].to_dict() if self.trials else {"fidelity": None, "verification": []}
        lineage = self.contract.lineage
        return {
            "passed": bool(self),
            "ir": None if self.ir is None else str(self.ir),
            "contract_id": self.contract.contract_id,
            "parent_id": lineage.parent_id if lineage else self.contract.contract_id,
            "method": self.recipe.method,
            "settings": lineage.settings if lineage else self.recipe.settings,
            "reasons": list(self.reasons),
            "fidelity": last["fidelity"],
            "verification": last["verification"],
            "trials": [each.to_dict() for each in self.trials],
            "bytes": {
                "before": self.bytes_before,
                "after": self.bytes_after or None,
                "ratio": self.bytes_after / self.bytes_before if self.bytes_after else None,
            },
            "seconds": {"compression": round(self.seconds[0], 3), "all": round(self.seconds[1], 3)},
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizationReport:
    """Result of `quantize_photos`; true if an IR was written.

    Attributes
    ----------
    outcome
        The IR, or the reasons why there is none.
    calibration
        Crops that were used.
    hints
        Agreement of lower inference precisions with FP32, on every device.
    thresholds
        File of the thresholds that were calibrated for the IR; None if none were.
    """

    outcome: Outcome
    calibration: CalibrationSet
    hints: tuple[HintResult, ...]
    thresholds: Path | None

    def __bool__(self) -> bool:
        return bool(self.outcome)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface quantize`."""
        return self.outcome.to_dict() | {
            "calibration": self.calibration.to_dict() | {"seed": self.outcome.recipe.seed},
            "hints": [each.to_dict() for each in self.hints],
            "thresholds": None if self.thresholds is None else str(self.thresholds),
        }


def quantize_photos(
    ir: Path,
    output: Path,
    photos: Path,
    *,
    recipe: QuantizationRecipe | None = None,
    limits: QuantizationLimits | None = None,
    detector: Detector | None = None,
    pairs: LabelledPairs | None = None,
    recalibrate: LabelledPairs | None = None,
    search: int = 4,
    progress: ProgressCallback = ignore_progress,
) -> QuantizationReport:
    """Quantize an IR with a folder of photos, measure lower inference precisions, and calibrate thresholds.

    Parameters
    ----------
    ir, output, recipe, limits, pairs, search
        See `quantize`.
    photos
        Folder of photos of faces.
    detector
        Finds the faces; None if the photos are aligned crops.
    recalibrate
        Labelled pairs for thresholds of the new IR, which are written beside it.
    progress
        Called as the work proceeds.

    Raises
    ------
    EdgeFaceError
        See `quantize`.
    """
    recipe, limits = recipe or QuantizationRecipe(), limits or QuantizationLimits()
    parent, contract = open_parent(ir, output, recipe)
    found = find_photos([photos])
    calibration = gather(
        found, contract, subset=recipe.subset, detector=detector, seed=recipe.seed, progress=progress
    )
    options: dict[str, Any] = {"recipe": recipe, "limits": limits, "pairs": pairs, "search": search}
    if detector is None:  # nothing has looked for faces in the crops yet
        with load_detector("mtcnn") as checker:
            outcome = quantize(ir, output, calibration, detector=checker, progress=progress, **options)
    else:
        outcome = quantize(ir, output, calibration, progress=progress, **options)
    faces = to_inputs(calibration.held_out[:_FEW_FACES], contract)
    hints = [
        each
        for device in ov.Core().available_devices
        for each in measure_hints(parent, faces, contract, limits, device=device)
    ]
    thresholds = None
    if outcome.ir is not None and recalibrate is not None:
        calibrated = calibrate_model(
            recalibrate.images,
            recalibrate.pairs,
            outcome.ir,
            fars=(0.01, 0.001),
            boxes=recalibrate.boxes,
            detector=recalibrate.detector,
            created_from=recalibrate.source,
            progress=progress,
        )
        thresholds = outcome.ir.with_suffix(".thresholds.json")
        save_thresholds(thresholds, calibrated.thresholds)
    return QuantizationReport(
        outcome=outcome, calibration=calibration, hints=tuple(hints), thresholds=thresholds
    )


def quantize(
    ir: Path,
    output: Path,
    calibration: CalibrationSet,
    *,
    recipe: QuantizationRecipe | None = None,
    limits: QuantizationLimits | None = None,
    pairs: LabelledPairs | None = None,
    detector: Detector | None = None,
    search: int = 4,
    progress: ProgressCallback = ignore_progress,
) -> Outcome:
    """Compress an IR and write the result only if it keeps the limits.

    Parameters
    ----------
    ir
        FP32 IR with a contract.
    output
        Folder for the compressed IR, which keeps its file name; not the folder of `ir`.
    calibration
        Crops for the contract of `ir`; see `gather`.
    recipe, limits
        How to compress, and what it may cost.
    pairs
        Labelled pairs on which verification is compared, in addition to the held-out faces.
    detector
        Looks for faces in a calibration set that was made of crops.
    search
        Greatest number of groups of layers that are put back into floating point, the most sensitive first, if the model
        is refused.
    progress
        Called as the work proceeds.

    Returns
    -------
    Outcome
        Also if the model is refused: then it is false and holds the reasons.

    Raises
    ------
    InputError
        If the IR is not FP32, `output` is its folder, or no faces are held out.
    EdgeFaceError
        See `compress` and `save_ir`.
    """
    recipe, limits = recipe or QuantizationRecipe(), limits or QuantizationLimits()
    parent, contract = open_parent(ir, output, recipe)
    with stopwatch() as elapsed:
        refused = Outcome(
            ir=None,
            contract=contract,
            recipe=recipe,
            reasons=tuple(flaw.reason for flaw in find_flaws(calibration, detector=detector)),
            trials=(),
            bytes_before=ir.with_suffix(".bin").stat().st_size,
            bytes_after=0,
            seconds=(0.0, elapsed()),
        )
        if refused.reasons:
            return refused
        if not len(calibration.held_out):
            raise InputError("calibration: expected held-out faces to judge the model, but there are none")
        used = calibration.crops[: recipe.subset]
        inputs = to_inputs(used, contract) if recipe.needs_images else []
        recipe = dataclasses.replace(recipe, subset=len(used))
        digest = dataclasses.replace(calibration, crops=used).digest if recipe.needs_images else ""
        compressed = compress(parent, inputs, recipe, progress=progress)
        compression = elapsed()
        faces = to_inputs(calibration.held_out, contract)
        progress(Progress("FP32 embeddings", 0))
        expected = embed(parent, faces)
        trials: list[Trial] = []
        with staging_folder(output) as staging:
            for kept, model in _candidates(compressed, parent, faces, expected, recipe, search, progress):
                progress(Progress("compressed embeddings", 0))
                lineage = Lineage(
                    parent_id=contract.contract_id,
                    method=recipe.method,
                    settings=dataclasses.replace(recipe, ignored=kept).settings,
                    calibration_sha256=digest,
                    mean_cosine=0.0,
                    p01_cosine=0.0,
                    min_cosine=0.0,
                )
                child = dataclasses.replace(contract, precision=_PRECISIONS[recipe.method], lineage=lineage)
                staged, child = save_ir(model, staging, child)
                trial = _try(staged, child, kept, faces, expected, ir, pairs, limits, parent, progress)
                trials.append(trial)
                if trial:
                    staged, child = save_ir(model, staging, _measured(child, lineage, trial))
                    final = publish_ir(staged, output)
                    return dataclasses.replace(
                        refused,
                        ir=final,
                        contract=child,
                        recipe=recipe,
                        trials=tuple(trials),
                        bytes_after=final.with_suffix(".bin").stat().st_size,
                        seconds=(compression, elapsed()),
                    )
        return dataclasses.replace(
            refused,
            recipe=recipe,
            reasons=trials[0].reasons,
            trials=tuple(trials),
            seconds=(compression, elapsed()),
        )


def open_parent(ir: Path, output: Path, recipe: QuantizationRecipe) -> tuple[ov.Model, ModelContract]:
    """Read an IR and its contract, and check everything that `quantize` checks before it needs faces.

    Raises
    ------
    InputError
        If the IR is not FP32, `output` is its folder, or the recipe names an operation that is not in the model.
    OutputError
        If `output` cannot be written.
    ExtraNotInstalledError
        If the recipe needs NNCF and it is not installed.
    EdgeFaceError
        If the IR is damaged, or does not have one image input and one embedding output.
    """
    parent = read_ir(ir)
    contract = ModelContract.read_from(parent, source=str(ir))
    check_weights(ir, contract, sha256_of(ir.with_suffix(".bin")))
    check_structure(parent, source=str(ir))
    if contract.precision != "FP32":
        raise InputError(
            f"{ir}: expected an IR of precision FP32 to compress and to compare with, found {contract.precision}; "
            "convert the model with --precision fp32"
        )
    if output.resolve() == ir.resolve().parent and ir.stem == contract.name:
        raise InputError(
            f"{output}: the compressed IR would replace its parent {ir.name}; choose another folder"
        )
    check_recipe(parent, recipe)
    with staging_folder(output):
        pass
    return parent, contract


def _candidates(
    compressed: ov.Model,
    parent: ov.Model,
    faces: list[NDArray[np.float32]],
    expected: NDArray[np.float32],
    recipe: QuantizationRecipe,
    search: int,
    progress: ProgressCallback,
) -> Iterator[tuple[tuple[str, ...], ov.Model]]:
    """Yield the compressed model, then the same with more and more sensitive groups back in floating point."""
    yield recipe.ignored, compressed
    if search < 1 or recipe.method == "fp16":
        return

    def score(model: ov.Model) -> float:
        return measure_fidelity(expected[:_FEW_FACES], embed(model, faces[:_FEW_FACES])).mean_cosine

    kept = recipe.ignored
    for _, group in rank(compressed, parent, groups_of(parent), score, progress=progress)[:search]:
        kept = (*kept, *group)
        yield kept, revert(compressed, parent, kept)


def _try(
    staged: Path,
    child: ModelContract,
    kept: tuple[str, ...],
    faces: list[NDArray[np.float32]],
    expected: NDArray[np.float32],
    ir: Path,
    pairs: LabelledPairs | None,
    limits: QuantizationLimits,
    parent: ov.Model,
    progress: ProgressCallback,
) -> Trial:
    """Measure the written file, not the model in memory."""
    fidelity = measure_fidelity(expected, embed(read_ir(staged), faces))
    reasons = judge_fidelity(fidelity, child, limits)
    verifications: tuple[VerificationChange, ...] = ()
    if not reasons and pairs is not None:
        verifications = pairs.compare(ir, staged, progress=progress)
        reasons = judge_verification(verifications, limits)
    layers = {name for group in groups_of(parent) for name in group}
    return Trial(
        in_float=kept,
        share_in_float=len(layers & set(kept)) / len(layers) if layers else 0.0,
        bytes=staged.with_suffix(".bin").stat().st_size,
        fidelity=fidelity,
        verifications=verifications,
        reasons=reasons,
    )


def _measured(child: ModelContract, lineage: Lineage, trial: Trial) -> ModelContract:
    """Put what was measured into the contract."""
    drops = [each.accuracy.drop for each in trial.verifications]
    measured = dataclasses.replace(
        lineage,
        mean_cosine=trial.fidelity.mean_cosine,
        p01_cosine=trial.fidelity.p01_cosine,
        min_cosine=trial.fidelity.min_cosine,
        accuracy_drop=max(drops) if drops else None,
    )
    return dataclasses.replace(child, lineage=measured)
