"""OpenVINO's exception in, the one line of it that says what happened out."""

from __future__ import annotations

__all__ = ["reason_of"]

_WHERE = ("Exception from ", "Caught exception:", "cpp:")


def reason_of(error: BaseException) -> str:
    """The innermost message, without the source lines that OpenVINO puts before it and Python behind it."""
    text = str(error).partition("\nAt:\n")[0]
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith(_WHERE)]
    return said[-1] if said else repr(error)
