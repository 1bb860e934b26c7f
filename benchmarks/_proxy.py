"""Pass TCP connections on, until the network is cut; shared by a benchmark and tests."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Proxy:
    """Listens on 127.0.0.1:`port`, and passes on to a port of this machine.

    ``cut("drop")`` swallows what is sent, as a cable that is pulled: nobody is told, and what is sent arrives when the
    network is back. ``cut("refuse")`` ends all connections and refuses new ones. `mend` ends either.
    """

    def __init__(self, target: int) -> None:
        self._target, self._whole = target, threading.Event()
        self._whole.set()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start()

    def _start(self) -> None:
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def cut(self, how: str) -> None:
        """Cut the network."""
        self._whole.clear()
        if how == "refuse":
            _shut(self._listener)
            for each in list(self._sockets):
                _shut(each)
            self._whole.set()

    def mend(self) -> None:
        """Put the network back."""
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._start()
        self._whole.set()

    def close(self) -> None:
        """End all."""
        self.cut("refuse")

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                self._whole.wait()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                if listener.fileno() < 0:
                    return
                continue
            self._sockets |= {client, server}
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._whole.wait()
                sink.sendall(data)
        for each in (source, sink):
            _shut(each)
            self._sockets.discard(each)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


@contextlib.contextmanager
def proxied(target: int) -> Iterator[Proxy]:
    """Give a proxy in a block."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
