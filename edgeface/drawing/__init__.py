"""Draw plots as SVG and write self-contained HTML reports: no network, no script."""

from edgeface.drawing.axes import Axis, Mark, categories, linear, logarithmic, nines, probit
from edgeface.drawing.page import counted, percent, rounded, write_page
from edgeface.drawing.plot import Axes, Plot, Shape, Words

__all__ = [
    "Axes",
    "Axis",
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
