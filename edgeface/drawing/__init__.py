"""Numbers in, self-contained pages with plots out: no network, no script, one look for every report.

`axes` places values, `plot` turns them into shapes, `page` puts shapes and tables on a page.
"""

from __future__ import annotations

from edgeface.drawing.axes import Axis, Mark, categories, linear, logarithmic, nines, probit
from edgeface.drawing.page import write_page
from edgeface.drawing.plot import Axes, Plot, Shape, Words
from edgeface.drawing.wording import counted, percent, rounded

__all__ = [
    "Axis",
    "Axes",
    "Mark",
    "Plot",
    "Shape",
    "Words",
    "categories",
    "counted",
    "linear",
    "logarithmic",
    "nines",
    "percent",
    "probit",
    "rounded",
    "write_page",
]
