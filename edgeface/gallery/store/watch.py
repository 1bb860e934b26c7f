"""Wait for what others write to a gallery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ClassVar

from edgeface.errors import GalleryServerError
from edgeface.files import Closing


class GalleryWatch(Closing):
    """Waits for commits, by any process; `GalleryStore.watch` makes it.

    It asks for the last commit five times a second. `wait` is for one thread at a time; any may call `close`, which
    ends it.

    Parameters
    ----------
    last_commit
        Reads number and id of the last commit.
    """

    longest_pause: ClassVar[float] = 0.2
    """Seconds after which it looks, whether it was told of a commit or not."""

    def __init__(self, last_commit: Callable[[], tuple[int, str]]) -> None:
        self._last_commit, self._closed, self._lock = last_commit, threading.Event(), threading.Lock()
        self._seen = last_commit()

    def wait(self, timeout: float) -> bool:
        """Wait until there is another last commit than when this last returned True, or was made.

        So no commit is missed between two calls; several together are one. False: there was none for `timeout` seconds,
        or `close` was called.

        Raises
        ------
        GalleryServerError
            If the server cannot be reached when the time is over. The next call tries again.
        GalleryError
            If the gallery is gone.
        """
        deadline = time.monotonic() + timeout
        while not self._closed.is_set():
            left = max(0.0, deadline - time.monotonic())
            pause = min(left, self.longest_pause)
            try:
                with self._lock:
                    if (last := self._last_commit()) != self._seen:
                        self._seen = last
                        return True
                    if left:
                        self._pause(pause)
            except GalleryServerError:
                if not left:
                    raise
                self._closed.wait(pause)
            if not left:
                return False
        return False

    def _pause(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def close(self) -> None:
        """End `wait`, and let go of what it holds; a second call does nothing."""
        self._closed.set()
