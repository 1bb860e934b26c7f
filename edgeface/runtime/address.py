"""Read the address of a model on a server."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from edgeface.errors import InputError


@dataclass(frozen=True, slots=True)
class RemoteAddress:
    """Where a model is: ``ovms://HOST:PORT[,HOST:PORT...]/MODEL[?grpc=PORT][&contract=ID]``.

    Attributes
    ----------
    replicas
        Hosts, and the ports of their HTTP, of servers with the same model.
    model
        Its name there.
    tls
        Whether the scheme is ``ovms+tls``: HTTP and gRPC are encrypted, and the server's certificate is checked.
    grpc_port
        Port for crops; None: they are sent over HTTP. Metadata always is: only there do the servers show the contract.
    contract_id
        The only contract that is accepted; None: that of the first replica.

    Examples
    --------
    >>> RemoteAddress.parse("ovms://a:8000,b:8000/facenet?grpc=9000").replicas
    (('a', 8000), ('b', 8000))
    """

    replicas: tuple[tuple[str, int], ...]
    model: str
    tls: bool = False
    grpc_port: int | None = None
    contract_id: str | None = None

    @staticmethod
    def names(model: str | os.PathLike[str]) -> bool:
        """Return whether a model is named by such an address, of which a `Path` may have taken a slash."""
        return re.match(r"ovms(\+tls)?:/", os.fspath(model)) is not None

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> RemoteAddress:
        """Read an address; InputError if it is none."""
        text = os.fspath(text)
        found = re.fullmatch(r"ovms(\+tls)?:/{1,2}([^/?#@\s]+)/([^/?#\s]+)(?:\?([^#\s]*))?", text)
        places = [_host_and_port(each) for each in found[2].split(",")] if found else []
        options = [each.partition("=")[::2] for each in (found[4] or "").split("&") if each] if found else []
        told = dict(options)
        port, contract_id = _port(told.pop("grpc", "0")), told.pop("contract", None)
        fits = port is not None and re.fullmatch("[0-9a-f]{16}", contract_id or "0" * 16)
        named = ", ".join(name for name, value in options if value)  # errors hide the query: it may hold a secret
        if found is None or None in places or told or len(options) > 2 or not fits:
            raise InputError(
                expected="ovms or ovms+tls, HOST:PORT of each replica with commas between, /MODEL, and where wanted "
                "?grpc=PORT and contract=ID of 16 hexadecimal digits",
                found=re.sub(":/+", "://", text, count=1) + (f" with {named}" if named else ""),
                remedy="see docs/scaling.md",
            )
        replicas = tuple(dict.fromkeys(each for each in places if each))
        return cls(replicas, found[3], bool(found[1]), port or None, contract_id)

    def __str__(self) -> str:
        places = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.replicas)
        return f"ovms{'+tls' if self.tls else ''}://{places}/{self.model}"


def _port(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,5}", text) and int(text) < 1 << 16 else None


def _host_and_port(text: str) -> tuple[str, int] | None:
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else "" if ":" in host else host
    number = _port(port)
    return (host, number) if host and number else None
