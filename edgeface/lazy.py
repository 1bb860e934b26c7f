"""Build a module `__getattr__` (PEP 562) that imports exports on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exports(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Build the `__getattr__` of a package whose parts are imported on first use.

    Parameters
    ----------
    package
        The package's `__name__`.
    modules
        Exported names by the submodule that defines them. No export may have the name of a submodule, because
        importing the submodule would hide it.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return find
