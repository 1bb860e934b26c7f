"""An FP32 IR, calibration crops and limits in; a compressed IR with its lineage out if it keeps them, else reasons."""

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
from edgeface.files import sha256_of, staging_folder, stopwatch
from edgeface.model.contract import ModelContract, Precision
from edgeface.model.ir_file import check_weights, read_ir
from edgeface.model.lineage import Lineage
from edgeface.quantize.calibration import CalibrationSet, to_inputs
from edgeface.quantize.calibration_checks import find_flaws
from edgeface.quantize.compress import Progress, QuantizationRecipe, check_recipe, compress
from edgeface.quantize.fidelity import Fidelity, embed, measure_fidelity
from edgeface.quantize.fusing import fuse
from edgeface.quantize.gate import QuantizationLimits, judge_fidelity, judge_verification
from edgeface.quantize.labelled import LabelledPairs
from edgeface.quantize.sensitivity import groups_of, rank, revert
from edgeface.quantize.verification import VerificationChange
from edgeface.vision.detector import Detector

__all__ = ["Outcome", "Trial", "open_parent", "quantize"]

_RANKED_BY = 32
"""Held-out faces that rank groups of layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One compressed model that was measured.

    Attributes
    ----------
    in_float
        Layers that stayed in floating point, by friendly name.
    share_in_float
        Of the layers with weights.
    fidelity
        On held-out faces.
    verifications
        On labelled pairs; empty if there are none, or if the faces were enough to refuse it.
    bytes
        Of the .bin: what putting layers back costs.
    reasons
        Why it was refused; empty if it passed.
    """

    in_float: tuple[str, ...]
    share_in_float: float
    bytes: int
    fidelity: Fidelity
    verifications: tuple[VerificationChange, ...]
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
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
    """What became of one model.

    Attributes
    ----------
    ir
        The compressed IR; None if it was refused, and then nothing was written.
    contract
        Its contract, or that of the parent if it was refused.
    recipe
        As it was asked for.
    reasons
        Why it was refused; empty if it passed.
    trials
        Everything that was measured, in order; the last one is the IR's. More than one if the first was refused
        and the search put layers back into floating point.
    bytes_before, bytes_after
        Of the .bin; the second is 0 if it was refused.
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

    @property
    def passed(self) -> bool:
        """Whether there is an IR."""
        return self.ir is not None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: the answer of `edgeface quantize`."""
        last = self.trials[-1].to_dict() if self.trials else {"fidelity": None, "verification": []}
        return {
            "passed": self.passed,
            "ir": None if self.ir is None else str(self.ir),
            "contract_id": self.contract.contract_id,
            "parent_id": self.contract.lineage.parent_id
            if self.contract.lineage
            else self.contract.contract_id,
            "method": self.recipe.method,
            "settings": self.contract.lineage.settings if self.contract.lineage else self.recipe.settings,
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
    progress: Progress | None = None,
) -> Outcome:
    """Compress an IR, and write the result only if it is proven to keep the limits.

    Parameters
    ----------
    ir
        FP32, with a contract.
    output
        Folder for the compressed IR, which has the same name: not the parent's own.
    calibration
        Crops for this contract; see `edgeface.quantize.calibration.gather`.
    recipe, limits
        How, and what it may cost.
    pairs
        Labelled pairs to compare verification on, besides the held-out faces.
    detector
        Looks for faces in a calibration set that came as crops.
    search
        Groups of layers that may be put back into floating point, the most sensitive first, if the model is refused.
    progress
        Called with what is going on.

    Returns
    -------
    Outcome
        Refusal is no exception: it comes with its reasons and with what was measured.

    Raises
    ------
    InputError
        If the IR is not FP32, the output folder is the parent's, or nothing was held out.
    EdgeFaceError
        As `compress`, `save_ir`.
    """
    recipe, limits = recipe or QuantizationRecipe(), limits or QuantizationLimits()
    tell: Progress = progress or (lambda what, done, total: None)
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
            raise InputError("calibration: expected faces that are held out to judge the model, found none")
        used = calibration.crops[: recipe.subset]
        inputs = to_inputs(used, contract) if recipe.needs_images else []
        recipe = dataclasses.replace(recipe, subset=len(used))
        digest = dataclasses.replace(calibration, crops=used).digest if recipe.needs_images else ""
        compressed = compress(parent, inputs, recipe, progress=progress)
        compression = elapsed()
        faces = to_inputs(calibration.held_out, contract)
        tell("FP32 embeddings", 0, 0)
        expected = embed(parent, faces)
        trials: list[Trial] = []
        with staging_folder(output) as staging:
            for kept, model in _candidates(compressed, parent, faces, expected, recipe, search, tell):
                model = fuse(model) if recipe.needs_images else model
                tell("compressed embeddings", 0, 0)
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
                trial = _try(staged, child, kept, faces, expected, ir, pairs, limits, parent, tell)
                trials.append(trial)
                if not trial.reasons:
                    staged, child = save_ir(model, staging, _measured(child, trial))
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


_PRECISIONS: dict[str, Precision] = {
    "int8-mixed": "INT8",
    "int8-performance": "INT8",
    "weights": "INT8",
    "fp16": "FP16",
}


def open_parent(ir: Path, output: Path, recipe: QuantizationRecipe) -> tuple[ov.Model, ModelContract]:
    """Read an IR and its contract, and raise whatever `quantize` would before it looks at any face.

    Raises
    ------
    InputError
        If the IR is not FP32, the output folder is the parent's, or a layer that is to stay in floating point is none
        of the model's.
    OutputError
        If the output folder cannot be written.
    ExtraNotInstalledError
        If the recipe needs NNCF and it is not installed.
    EdgeFaceError
        If the IR is damaged, or no model of one image and one embedding.
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
    tell: Progress,
) -> Iterator[tuple[tuple[str, ...], ov.Model]]:
    """Yield the compressed model, then the same with more and more sensitive groups back in floating point."""
    yield recipe.ignored, compressed
    if search < 1 or recipe.method == "fp16":
        return

    def score(model: ov.Model) -> float:
        return measure_fidelity(expected[:_RANKED_BY], embed(model, faces[:_RANKED_BY])).mean_cosine

    ranked = rank(
        compressed,
        parent,
        groups_of(parent),
        score,
        progress=lambda done, total: tell("sensitivity", done, total),
    )
    kept = recipe.ignored
    for _, group in ranked[:search]:
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
    tell: Progress,
) -> Trial:
    """Measure what was written, not what was in memory."""
    fidelity = measure_fidelity(expected, embed(read_ir(staged), faces))
    reasons = judge_fidelity(fidelity, child, limits)
    verifications: tuple[VerificationChange, ...] = ()
    if not reasons and pairs is not None:
        verifications = pairs.compare(ir, staged, progress=tell)
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


def _measured(child: ModelContract, trial: Trial) -> ModelContract:
    if child.lineage is None:
        raise AssertionError("a compressed model has a lineage")
    drops = [each.accuracy.drop for each in trial.verifications]
    lineage = dataclasses.replace(
        child.lineage,
        mean_cosine=trial.fidelity.mean_cosine,
        p01_cosine=trial.fidelity.p01_cosine,
        min_cosine=trial.fidelity.min_cosine,
        accuracy_drop=max(drops) if drops else None,
    )
    return dataclasses.replace(child, lineage=lineage)
