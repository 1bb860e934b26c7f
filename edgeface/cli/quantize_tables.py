"""What became of a quantized model in, the table that `edgeface quantize` prints out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from edgeface.quantize.detectors import DetectorOutcome
    from edgeface.quantize.quantizer import Outcome

__all__ = ["detector_table", "outcome_table"]


def outcome_table(outcome: Outcome, answer: dict[str, Any]) -> Table:
    """Tell what became of an IR: every trial, what it costs, and whether it was written."""
    verdict = "passed" if outcome.passed else "REFUSED, nothing was written"
    table = Table(outcome.recipe.method, verdict, title=escape(outcome.contract.name), title_justify="left")
    known = answer["calibration"]
    table.add_row("calibration", f"{known['crops']} faces, {known['held_out']} held out")
    for number, trial in enumerate(outcome.trials):
        fidelity = trial.fidelity
        if number:
            table.add_row(
                "put back into float",
                f"{trial.share_in_float:.0%} of the layers with weights; {trial.bytes:,} bytes",
            )
        table.add_row(
            "cosine against FP32",
            f"min {fidelity.min_cosine:.5f}, 1 % {fidelity.p01_cosine:.5f}, mean {fidelity.mean_cosine:.5f}",
        )
        table.add_row(
            "change of pair distances",
            f"max {fidelity.max_distance_change:.4f}, 99 % {fidelity.p99_distance_change:.4f}, "
            f"mean {fidelity.mean_distance_change:.4f} (squared, 0 to 4)",
        )
        for each in trial.verifications:
            low, high = each.accuracy.interval
            table.add_row(
                f"accuracy, {each.pairs:,} pairs",
                f"{each.setting}: {each.accuracy.before:.4f} to {each.accuracy.after:.4f}, "
                f"drop {each.accuracy.drop:.4f} ({low:.4f} to {high:.4f})",
            )
            table.add_row("VAL at FAR 0.001", f"{each.val.before:.4f} to {each.val.after:.4f}")
            table.add_row("EER", f"{each.eer.before:.4f} to {each.eer.after:.4f}")
    for hint in answer["hints"]:
        found = hint["fidelity"]
        verdict = f"refused: {hint['reasons'][0]}" if hint["reasons"] else "within the limits"
        table.add_row(
            f"{hint['hint']} arithmetic",
            f"{hint['device']}: mean cosine {found['mean_cosine']:.6f}, {verdict}"
            if found
            else hint["why_not"],
        )
    if outcome.passed:
        table.add_row(
            "weights",
            f"{outcome.bytes_after:,} of {outcome.bytes_before:,} bytes "
            f"({outcome.bytes_after / outcome.bytes_before:.3f})",
        )
        told = f"made anew: {answer['thresholds']}" if answer["thresholds"] else "the parent's are not valid"
        table.add_row("contract", outcome.contract.contract_id)
        table.add_row("thresholds", escape(told))
    table.add_row("time", f"{outcome.seconds[1]:.1f} s, of which compression {outcome.seconds[0]:.1f} s")
    return table


def detector_table(outcome: DetectorOutcome) -> Table:
    """Tell what became of a detector."""
    verdict = "passed" if outcome.passed else "REFUSED, nothing was written"
    table = Table(outcome.name, verdict, title_justify="left")
    if agreement := outcome.agreement:
        table.add_row("faces of FP32 found again", f"{agreement.recall:.4f} of {agreement.faces} at IoU 0.5")
        table.add_row("faces that FP32 has too", f"{agreement.precision:.4f}")
        table.add_row("median IoU", f"{agreement.median_iou:.4f}")
        table.add_row("landmarks, median distance", f"{agreement.landmark_pixels:.3f} pixels")
        table.add_row("weights", f"{outcome.bytes_after:,} of {outcome.bytes_before:,} bytes")
    table.add_row("time", f"{outcome.seconds:.1f} s")
    return table
