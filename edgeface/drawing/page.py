"""Write a report as one self-contained HTML file, from a template of another package.

A template extends ``drawing/page.html.j2`` and draws plots with ``drawing/plot.html.j2``. The Content Security Policy
of the page allows only its own styles and embedded images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from edgeface.files import write_atomically


def write_page(
    path: Path,
    package: str,
    *,
    template: str = "report.html.j2",
    filters: Mapping[str, Callable[..., object]] | None = None,
    private: bool = False,
    **shown: Any,
) -> None:
    """Render a template of a package and write the page, whole or not at all; raise OutputError if that fails.

    `private`: only the owner may read it, because it shows faces or names.

    The template gets the variables `shown`, whose text is escaped, and `filters` beside `rounded`, `percent` and
    `counted`.
    """
    drawing = jinja2.PrefixLoader({"drawing": jinja2.PackageLoader("edgeface.drawing", ".")})
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([drawing, jinja2.PackageLoader(package, ".")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rounded": rounded, "percent": percent, "counted": counted, **(filters or {})}
    page = environment.get_template(template).render(**shown)
    with write_atomically(path, private=private) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def rounded(value: float | None, digits: int = 4) -> str:
    """Format a number with significant digits, commas and no exponent; ``-`` for None and NaN.

    Examples
    --------
    >>> rounded(0.0123456), rounded(12345.6), rounded(None)
    ('0.01235', '12,346', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    # 9.9996 has to become 10.00, not 10.000, so round first.
    value = float(f"{value:.{digits - 1}e}") if abs(value) < 10**digits else value
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def percent(share: float, digits: int = 4) -> str:
    """Format a share of 1 as a percentage: 0.125 is ``12.5 %``."""
    return f"{100 * share:.{digits}g} %"


def counted(number: int, one: str, several: str | None = None) -> str:
    """Format a number with its noun: ``1 run``, ``1,200 runs``."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
