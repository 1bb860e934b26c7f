"""The standard streams of a command, which never fail inside it, and its JSON; imports next to nothing."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO


class GuardedStream(io.TextIOBase):
    """A standard stream that never fails inside a command, so that a command always ends as its work did.

    Characters that the stream's encoding lacks are escaped. What cannot be written, because the disk is full, the
    reader has gone or the stream is closed, is dropped; `failure` is the reason.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self.failure = stream, None if stream else OSError(errno.EBADF, "it is closed")
        self.asked = False
        """Whether anything was to be written."""

    def write(self, text: str) -> int:
        self.asked |= bool(text)
        encoding = self.encoding or "utf-8"
        told = text.encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda stream: stream.write(told))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[TextIO], object]) -> None:
        if self._stream is None or self.failure:
            return
        try:
            action(self._stream)
        except (OSError, ValueError) as error:  # ValueError: closed
            self.failure = error if isinstance(error, OSError) else OSError(errno.EBADF, "it is closed")
            with contextlib.suppress(OSError, ValueError):  # what is buffered must not fail again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        return getattr(self._stream, "encoding", None)

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return io.TextIOBase().fileno() if self._stream is None else self._stream.fileno()

    def lost(self) -> str | None:
        """Return why something that was to be written was not; None if nothing was, or the reader has gone."""
        self.flush()
        if not (self.asked and self.failure) or self.failure.errno == errno.EPIPE:
            return None
        return self.failure.strerror or str(self.failure)


@contextlib.contextmanager
def guarded_streams() -> Iterator[tuple[GuardedStream, GuardedStream]]:
    """Guard stdout and stderr inside the block; yield them. A closed stdin reads as empty."""
    for number in range(3):  # a file opened as one of them would be written into by whatever prints there
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdin, sys.stdout, sys.stderr
    guarded = GuardedStream(sys.stdout), GuardedStream(sys.stderr)
    sys.stdin = sys.stdin or io.StringIO()
    sys.stdout, sys.stderr = guarded
    try:
        yield guarded
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def emit_json(answer: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command."""
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")
