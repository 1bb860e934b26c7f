"""A template of some package and what it shows in, one HTML file out that needs nothing else.

A template extends ``drawing/page.html.j2``, fills its blocks and draws with ``drawing/plot.html.j2``. The page
forbids itself everything but its own styles and the pictures it contains, by a Content Security Policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from edgeface.drawing.wording import counted, percent, rounded
from edgeface.files import write_atomically

__all__ = ["write_page"]


def write_page(
    path: Path,
    package: str,
    *,
    template: str = "report.html.j2",
    filters: Mapping[str, Callable[..., object]] | None = None,
    **shown: Any,
) -> None:
    """Render a page and write it, whole or not at all.

    Parameters
    ----------
    path
        The .html file.
    package, template
        Where the template lies, and its name.
    filters
        By name, beside `rounded`, `percent` and `counted`.
    **shown
        What the template speaks of. Text is escaped.

    Raises
    ------
    OutputError
        If it cannot be written.
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
    with write_atomically(path) as partial:
        partial.write_text(page, encoding="utf-8")
