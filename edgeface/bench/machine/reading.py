"""A value that may not be readable on this machine in, the value or the reason why not out."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

__all__ = ["Fact", "Frozen", "Unknown", "known"]

T = TypeVar("T")


class Frozen(BaseModel):
    """A record of results: immutable, compared by value, nothing in it that it does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Unknown(Frozen):
    """Stands where a value would, and says why there is none.

    Attributes
    ----------
    unknown : str
        The reason, as a clause: ``not readable here: /sys/class/powercap does not exist``.
    """

    unknown: str

    def __str__(self) -> str:
        return self.unknown


Fact: TypeAlias = T | Unknown
"""``Fact[int]`` is an int or the reason why there is none; in JSON ``3`` or ``{"unknown": "..."}``."""


def known(fact: Fact[T]) -> T | None:
    """The value, or None where there is none."""
    return None if isinstance(fact, Unknown) else fact
