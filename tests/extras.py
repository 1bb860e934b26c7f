"""Tests that need an optional package: looked for, not imported, for importing NNCF takes seconds."""

from __future__ import annotations

import importlib.util

import pytest


def need_nncf() -> None:
    """Skip the module that calls this where NNCF is not installed."""
    if importlib.util.find_spec("nncf") is None:
        pytest.skip("NNCF is not installed: pip install '.[quantize]'", allow_module_level=True)
