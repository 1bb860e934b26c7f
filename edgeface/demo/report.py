"""A demo's result in, one self-contained HTML page out: no network, no script."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from edgeface.files import write_atomically

if TYPE_CHECKING:
    from edgeface.demo.run import DemoResult

__all__ = ["write_report"]


def write_report(result: DemoResult) -> None:
    """Write the page to `result.report`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeface.demo", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["png"] = _png
    contract = result.conversion.contract
    page = environment.get_template("report.html.j2").render(
        result=result,
        contract=contract,
        parity=result.conversion.parity,
        timing=result.timing,
        separation=result.separation,
        seeded=contract.provenance == "seeded",
    )
    with write_atomically(result.report) as partial:
        partial.write_text(page, encoding="utf-8")


def _png(image: NDArray[np.uint8]) -> str:
    """Encode an (H, W, 3) RGB image as a data URI."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()
