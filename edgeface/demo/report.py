"""A demo's result in, one self-contained HTML page out: no network, no script."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.drawing import write_page

if TYPE_CHECKING:
    from edgeface.demo.run import DemoResult

__all__ = ["write_report"]


def write_report(result: DemoResult) -> None:
    """Write the page to `result.report`."""
    contract = result.conversion.contract
    write_page(
        result.report,
        __package__,
        filters={"png": _png},
        result=result,
        contract=contract,
        parity=result.conversion.parity,
        timing=result.timing,
        separation=result.separation,
        seeded=contract.provenance == "seeded",
    )


def _png(image: NDArray[np.uint8]) -> str:
    """Encode an (H, W, 3) RGB image as a data URI."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()
