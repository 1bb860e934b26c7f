"""A model, calibration inputs and a cosine that must be kept in; NNCF's accuracy control quantizes it, out comes that.

NNCF quantizes, ranks every layer by what the score wins when it alone goes back to floating point, and puts layers
back one after the other until the score is within the limit. Here the score is the mean cosine of embeddings against
the model's own before, on some of the calibration inputs: no labels are needed. The gate judges on others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.quantize.fidelity import cosines, embed

__all__ = ["quantize_with_control"]

_SCORED = 32
"""CalibrationSet inputs that every trial is scored on."""


def quantize_with_control(
    nncf: Any,
    model: ov.Model,
    calibration_dataset: Any,
    inputs: Sequence[NDArray[np.float32]],
    least_cosine: float,
    **options: Any,
) -> ov.Model:
    """Call `nncf.quantize_with_accuracy_control`.

    Parameters
    ----------
    nncf
        The module, imported quietly.
    model
        FP32; NNCF may change it.
    calibration_dataset
        `nncf.Dataset` that limits are taken from.
    inputs
        What trials are scored on: the first `_SCORED`, of batch 1.
    least_cosine
        Mean cosine that must be kept.
    options
        As `nncf.quantize` takes them.
    """
    scored = list(range(min(_SCORED, len(inputs))))
    expected = embed(model, [inputs[index] for index in scored])

    def score(compiled: Any, numbers: Iterable[int]) -> tuple[float, list[float]]:
        request = compiled.create_infer_request()
        chosen = list(numbers)
        found = np.concatenate([request.infer({0: inputs[index]})[0].copy() for index in chosen])
        each = cosines(expected[chosen], found)
        return float(each.mean()), [float(one) for one in each]

    return nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=calibration_dataset,
        validation_dataset=nncf.Dataset(scored),
        validation_fn=score,
        max_drop=1 - least_cosine,
        drop_type=nncf.DropType.ABSOLUTE,
        advanced_quantization_parameters=options.pop("advanced_parameters"),
        **options,
    )
