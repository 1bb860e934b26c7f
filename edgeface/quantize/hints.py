"""An FP32 model and faces in, what bfloat16 and half-precision arithmetic would cost on this device out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import DeviceError
from edgeface.model.contract import ModelContract
from edgeface.quantize.fidelity import Fidelity, embed, measure_fidelity
from edgeface.quantize.gate import QuantizationLimits, judge_fidelity

__all__ = ["HintResult", "measure_hints"]

_CAPABILITIES = {"bf16": "BF16", "f16": "FP16"}
"""What `INFERENCE_PRECISION_HINT` calls it, and what `OPTIMIZATION_CAPABILITIES` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HintResult:
    """One execution hint on one device.

    Attributes
    ----------
    device
        By its OpenVINO name.
    hint
        ``bf16`` or ``f16``.
    fidelity
        Against FP32; None where the device does not offer it.
    why_not
        What the device offers instead, or how it failed; empty where it was measured.
    reasons
        Why the gate refuses it; empty where it passes or is not offered.
    """

    device: str
    hint: str
    fidelity: Fidelity | None
    why_not: str = ""
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "device": self.device,
            "hint": self.hint,
            "available": self.fidelity is not None,
            "fidelity": self.fidelity.to_dict() if self.fidelity else None,
            "why_not": self.why_not,
            "reasons": list(self.reasons),
        }


def measure_hints(
    model: ov.Model,
    inputs: list[NDArray[np.float32]],
    contract: ModelContract,
    limits: QuantizationLimits,
    *,
    device: str = "CPU",
) -> tuple[HintResult, ...]:
    """Hold each hint that the device offers to the gate, against FP32 on the same inputs, as `embed` takes them.

    OpenVINO accepts a hint that the device has no instructions for and computes otherwise; so the device is asked.

    Returns
    -------
    tuple of HintResult
        Empty without inputs: there is nothing to measure.

    Raises
    ------
    DeviceError
        If the device is absent.
    """
    if not inputs:
        return ()
    core = ov.Core()
    try:
        offered = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        name = core.get_property(device, "FULL_DEVICE_NAME")
    except RuntimeError as error:
        raise DeviceError(f"device {device!r} is not available: {error}") from error
    expected: NDArray[np.float32] | None = None
    results = []
    for hint, capability in _CAPABILITIES.items():
        if capability not in offered:
            why = f"not available on {device} ({name}), which offers {', '.join(sorted(offered))}"
            results.append(HintResult(device=device, hint=hint, fidelity=None, why_not=why))
            continue
        try:
            if expected is None:
                expected = embed(model, inputs, device=device)
            found = embed(model, inputs, device=device, hint=hint)
        except RuntimeError as error:  # a driver's, on a device that was listed
            why = f"{device} ({name}) cannot run this model: {str(error).strip().splitlines()[-1]}"
            results.append(HintResult(device=device, hint=hint, fidelity=None, why_not=why))
            continue
        fidelity = measure_fidelity(expected, found)
        reasons = judge_fidelity(fidelity, contract, limits)
        results.append(HintResult(device=device, hint=hint, fidelity=fidelity, reasons=reasons))
    return tuple(results)
