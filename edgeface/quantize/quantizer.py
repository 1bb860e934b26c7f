"""Quantize an IR, and write the result only if it keeps the accuracy limits."""

from __future__ import annotations

import contextlib
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
from edgeface.evaluate.lfw import calibrate_model
from edgeface.files import sha256_of, staging_folder, stopwatch
from edgeface.model.contract import Lineage, ModelContract, Precision
from edgeface.model.ir_file import check_weights, read_contract, read_ir
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.quantize.calibration import CalibrationSet, find_flaws, gather, to_inputs
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
from edgeface.recognize.known import RATES
from edgeface.recognize.threshold import save_thresholds
from edgeface.vision.detector import Detector
from edgeface.vision.load import load_detector

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
    in_float, share_in_float
        Friendly names of the layers that stayed in floating point, and their share of the layers with weights.
    bytes
        Size of the .bin file.
    fidelity, verification
        Agreement with FP32 on held-out faces, and on labelled pairs; the latter is empty if there are none, or if the
        faces were enough to refuse the model.
    reasons
        Why it is refused; empty if it is accepted.
    """

    in_float: tuple[str, ...]
    share_in_float: float
    bytes: int
    fidelity: Fidelity
    verification: tuple[VerificationChange, ...]
    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.reasons


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Result of quantizing one model; true if an IR was written, false if it was refused.

    Attributes
    ----------
    ir, contract
        The compressed IR and its contract; None and the parent's if it was refused, and then nothing was written.
    recipe, calibration
        Recipe, with the number of images that were used, and their crops.
    reasons
        Why it was refused; empty if it passed.
    trials
        All measured models in order; the last one is `ir`. More than one if layers were put back into floating point.
    hints
        Agreement of lower inference precisions with FP32, on every device.
    thresholds
        File of the thresholds calibrated for `ir`; None if none were.
    bytes_before, bytes_after
        Sizes of the .bin files; the second is 0 if it was refused.
    seconds
        Wall time of the compression alone, and of everything.
    """

    ir: Path | None
    contract: ModelContract
    recipe: QuantizationRecipe
    calibration: CalibrationSet
    reasons: tuple[str, ...]
    trials: tuple[Trial, ...] = ()
    hints: tuple[HintResult, ...] = ()
    thresholds: Path | None = None
    bytes_before: int
    bytes_after: int = 0
    seconds: tuple[float, float]

    def __bool__(self) -> bool:
        return self.ir is not None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface quantize`."""
        trials = [dataclasses.asdict(each) for each in self.trials]
        last = trials[-1] if trials else {"fidelity": None, "verification": []}
        lineage = self.contract.lineage
        return {
            "passed": bool(self),
            "ir": None if self.ir is None else str(self.ir),
            "contract_id": self.contract.contract_id,
            "provenance": self.contract.provenance,
            "parent_id": lineage.parent_id if lineage else self.contract.contract_id,
            "method": self.recipe.method,
            "settings": lineage.settings if lineage else self.recipe.settings,
            "agrees": lineage.agrees if lineage else None,
            "reasons": list(self.reasons),
            "fidelity": last["fidelity"],
            "verification": last["verification"],
            "trials": trials,
            "bytes": {
                "before": self.bytes_before,
                "after": self.bytes_after or None,
                "ratio": self.bytes_after / self.bytes_before if self.bytes_after else None,
            },
            "seconds": {"compression": round(self.seconds[0], 3), "all": round(self.seconds[1], 3)},
            "calibration": self.calibration.to_dict() | {"seed": self.recipe.seed},
            "hints": [each.to_dict() for each in self.hints],
            "thresholds": None if self.thresholds is None else str(self.thresholds),
        }


def quantize(
    ir: Path,
    output: Path,
    calibration: CalibrationSet | Path,
    *,
    recipe: QuantizationRecipe | None = None,
    limits: QuantizationLimits | None = None,
    detector: Detector | None = None,
    pairs: LabelledPairs | None = None,
    recalibrate: LabelledPairs | None = None,
    search: int = 4,
    hints: bool = False,
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
        Folder of photos of faces, or crops for the contract of `ir`; see `gather`.
    recipe, limits
        How to compress, and what it may cost.
    detector
        Finds the faces in a folder of photos; None if the photos are aligned crops, which MTCNN then checks for faces.
    pairs
        Labelled pairs on which verification is compared, in addition to the held-out faces.
    recalibrate
        Labelled pairs to calibrate thresholds for the new IR, which are written beside it.
    search
        Greatest number of groups of layers to put back into floating point if the model is refused, the most sensitive
        first.
    hints, progress
        Whether to measure lower inference precisions on all devices too; called as the work proceeds.

    Raises
    ------
    EdgeFaceError
        See `open_parent`, `gather` and `compress`; not if the model is refused.
    """
    recipe, limits = recipe or QuantizationRecipe(), limits or QuantizationLimits()
    with stopwatch() as elapsed, contextlib.ExitStack() as stack:
        parent, contract = open_parent(ir, output, recipe)
        checker = None
        if isinstance(calibration, Path):
            calibration = gather(
                calibration, contract, subset=recipe.subset, detector=detector, seed=recipe.seed, progress=progress
            )
            checker = detector or stack.enter_context(load_detector("mtcnn"))
        outcome = Outcome(
            ir=None,
            contract=contract,
            recipe=recipe,
            calibration=calibration,
            reasons=tuple(flaw.reason for flaw in find_flaws(calibration, detector=checker)),
            bytes_before=ir.with_suffix(".bin").stat().st_size,
            seconds=(0.0, elapsed()),
        )
        if not outcome.reasons:
            outcome = _search(outcome, ir, output, parent, limits, pairs, search, progress)
        found: list[HintResult] = []
        if hints:
            faces = to_inputs(calibration.held_out[:_FEW_FACES], contract)
            for device in ov.Core().available_devices:
                found += measure_hints(parent, faces, contract, limits, device=device)
        thresholds = None
        if outcome.ir is not None and recalibrate is not None:
            thresholds = _recalibrate(outcome.ir, recalibrate, progress)
        seconds = outcome.seconds[0], elapsed()
        return dataclasses.replace(outcome, hints=tuple(found), thresholds=thresholds, seconds=seconds)


def open_parent(ir: Path, output: Path, recipe: QuantizationRecipe) -> tuple[ov.Model, ModelContract]:
    """Read an IR and its contract, and check everything that `quantize` checks before it needs faces.

    Raises
    ------
    InputError
        If the IR is damaged or not FP32, `output` is its folder, or the recipe does not fit the model.
    OutputError
        If `output` cannot be written.
    ExtraNotInstalledError
        If the recipe needs NNCF and it is not installed.
    """
    parent, contract = read_contract(ir)
    check_weights(ir, contract, sha256_of(ir.with_suffix(".bin")))
    check_structure(parent, source=str(ir))
    if contract.precision != "FP32":
        raise InputError(
            f"{ir}: expected an IR of precision FP32 to compress and to compare with, found {contract.precision}; "
            "convert the model with --precision fp32"
        )
    if output.resolve() == ir.resolve().parent and ir.stem == contract.name:
        raise InputError(f"{output}: the compressed IR would replace its parent {ir.name}; choose another folder")
    check_recipe(parent, recipe)
    with staging_folder(output):
        pass
    return parent, contract


def _search(
    outcome: Outcome,
    ir: Path,
    output: Path,
    parent: ov.Model,
    limits: QuantizationLimits,
    pairs: LabelledPairs | None,
    search: int,
    progress: ProgressCallback,
) -> Outcome:
    """Compress, and put layers back into floating point until a trial keeps the limits; publish that one."""
    contract, calibration = outcome.contract, outcome.calibration
    if not len(calibration.held_out):
        raise InputError("calibration: expected held-out faces to judge the model, but there are none")
    used = calibration.crops[: outcome.recipe.subset]
    recipe = dataclasses.replace(outcome.recipe, subset=len(used))
    inputs = to_inputs(used, contract) if recipe.needs_images else []
    digest = dataclasses.replace(calibration, crops=used).digest if recipe.needs_images else ""
    with stopwatch() as elapsed:
        compressed = compress(parent, inputs, recipe, progress=progress)
        outcome = dataclasses.replace(outcome, recipe=recipe, seconds=(elapsed(), 0.0))
    faces = to_inputs(calibration.held_out, contract)
    progress(Progress("FP32 embeddings", 0))
    expected = embed(parent, faces)
    layers = {name for group in groups_of(parent) for name in group}
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
            fidelity = measure_fidelity(expected, embed(read_ir(staged), faces))  # of the file, as it was written
            reasons = judge_fidelity(fidelity, child, limits)
            verification: tuple[VerificationChange, ...] = ()
            if not reasons and pairs is not None:
                verification = pairs.compare(ir, staged, progress=progress)
                reasons = judge_verification(verification, limits)
            trials.append(
                Trial(
                    in_float=kept,
                    share_in_float=len(layers & set(kept)) / len(layers) if layers else 0.0,
                    bytes=staged.with_suffix(".bin").stat().st_size,
                    fidelity=fidelity,
                    verification=verification,
                    reasons=reasons,
                )
            )
            if trials[-1]:
                measured = dataclasses.replace(
                    lineage,
                    mean_cosine=fidelity.mean_cosine,
                    p01_cosine=fidelity.p01_cosine,
                    min_cosine=fidelity.min_cosine,
                    accuracy_drop=max((each.accuracy.drop for each in verification), default=None),
                )
                staged, child = save_ir(model, staging, dataclasses.replace(child, lineage=measured))
                final = publish_ir(staged, output)
                size = final.with_suffix(".bin").stat().st_size
                return dataclasses.replace(outcome, ir=final, contract=child, trials=tuple(trials), bytes_after=size)
    return dataclasses.replace(outcome, reasons=trials[0].reasons, trials=tuple(trials))


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


def _recalibrate(ir: Path, labelled: LabelledPairs, progress: ProgressCallback) -> Path:
    """Calibrate thresholds for an IR and write them beside it."""
    data = (labelled.images, labelled.pairs, ir, labelled.faces)
    calibrated = calibrate_model(*data, fars=RATES, created_from=labelled.source, progress=progress)
    path = ir.with_suffix(".thresholds.json")
    save_thresholds(path, calibrated.thresholds)
    return path
