"""A package's exports and their modules in, a `__getattr__` (PEP 562) that imports each on first use out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["exports"]


def exports(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package whose parts are not all needed by all who import it.

    Parameters
    ----------
    package
        Its `__name__`.
    modules
        Names by the submodule that defines them. No name may be that of a submodule: importing one puts it where
        the name should be.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return find
