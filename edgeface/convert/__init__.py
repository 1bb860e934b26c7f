"""Source models in, checked IRs with a contract out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeface.convert.adoption import adopt
    from edgeface.convert.converter import ConversionResult, convert
    from edgeface.convert.parity import ParityReport, check_parity

__all__ = ["ConversionResult", "ParityReport", "adopt", "check_parity", "convert"]

_HOMES = {
    "ConversionResult": "converter",
    "ParityReport": "parity",
    "adopt": "adoption",
    "check_parity": "parity",
    "convert": "converter",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the process that checks an IR needs none of this, and starts twice as fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
