"""Supervise engines in a thread each, close them at exit, and disable them in a forked child."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Protocol

_log = logging.getLogger(__name__)

_EXIT_PATIENCE = 5.0
"""Most seconds that the interpreter's exit waits for the devices."""


class _Engine(Protocol):
    """The part of `Engine` that its supervisor uses; importing the class would close a circle."""

    name: str

    @property
    def closed(self) -> bool: ...
    def tick(self) -> float | None: ...
    def close(self, *, drain: bool = True, timeout: float = 30.0) -> None: ...
    def disown(self) -> None: ...


_engines: weakref.WeakSet[Any] = weakref.WeakSet()
_supervisors: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_exiting = threading.Event()


def look_after(engine: _Engine, reference: Callable[[], _Engine | None], bell: SimpleQueue[Any]) -> None:
    """Start an engine's supervisor thread, which keeps the engine while that has work, and ends with it.

    Who gives work to an engine at rest puts it into the bell. So the last reference is never dropped in a completion
    callback, where an infer request cannot end the threads of its model.
    """
    _engines.add(engine)
    thread = threading.Thread(target=_supervise, args=(reference, bell), name=f"edgeface: {engine.name}", daemon=True)
    _supervisors.add(thread)
    thread.start()


def on_done(find: Callable[[], tuple[Any, Any] | None]) -> None:
    """Handle OpenVINO's callback. It refers to the engine weakly, because OpenVINO's reference is never collected."""
    try:
        if found := find():
            engine, slot = found
            engine.complete(slot)
    except BaseException:  # one that left would abort the process
        _log.critical("a completion callback failed", exc_info=True)


def _supervise(reference: Callable[[], _Engine | None], bell: SimpleQueue[Any]) -> None:
    rung: _Engine | None = None
    while (engine := rung or reference()) is not None:
        rung = None
        try:
            delay = engine.tick()
        except BaseException:
            delay = 0.02
            _log.critical("%s: the supervisor failed", engine.name, exc_info=True)
        if delay is None:
            if engine.closed:
                return
            del engine
        with contextlib.suppress(Empty):
            rung = bell.get(timeout=None if _exiting.is_set() else delay)


def _close_all() -> None:
    for engine in list(_engines):
        engine.close(drain=False, timeout=_EXIT_PATIENCE)
    # A daemon thread that returns from OpenVINO while the interpreter shuts down aborts the process. So threads that
    # finish are awaited, and a thread whose device hangs does not check it again.
    _exiting.set()
    patience = time.monotonic() + 1.0
    for supervisor in list(_supervisors):
        supervisor.join(max(0.0, patience - time.monotonic()))


def _disown_all() -> None:
    _supervisors.clear()
    for engine in list(_engines):
        engine.disown()
        # Destroying it would wait for threads that do not exist in the child.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
    _engines.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_disown_all)
