"""Let a service that runs answer a command: no model is loaded, and next to nothing is imported.

EDGEFACE_SERVER names the service: ``unix:/path`` of its `listen.socket`, or its address; EDGEFACE_SERVER_KEY is a key
of it. A service that does not answer is an error: no other model than the one that was asked for ever decides.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgeface.cli.streams import emit_json, guarded_streams
from edgeface.cli.words import choice_words, decision_words, model_words
from edgeface.errors import (
    EdgeFaceError,
    ImageError,
    InputError,
    MissingError,
    NegativeResult,
    OutputError,
    RequestError,
)
from edgeface.serve.problems import KINDS
from edgeface.text import hide_secrets, printable

SERVER, KEY = "EDGEFACE_SERVER", "EDGEFACE_SERVER_KEY"
_SECONDS = 30.0
_PREFIX = "/api/edgeface/v1"
_INSTEAD = f"unset {SERVER} to use a model of this process"


def run_remotely(arguments: Sequence[str]) -> int | None:
    """Run a command by the service and return its exit code; None if it is none that the service answers."""
    if arguments[:1] != ["verify"] or "--help" in arguments:
        return None
    with guarded_streams() as (stdout, stderr):
        try:
            code = _verify(_parse(arguments[1:]))
        except EdgeFaceError as error:
            message = hide_secrets(str(error))
            stderr.write(f"edgeface: {printable(message)}\n")
            if "--json" in arguments:
                emit_json({"error": {"kind": type(error).__name__, "message": message}})
            code = error.exit_code
        except KeyboardInterrupt:
            stderr.write("edgeface: interrupted\n")
            code = 130
        if reason := stdout.lost():
            stderr.write(f"edgeface: cannot write the answer to stdout: {reason}\n")
            code = OutputError.exit_code
    return code


class _Parser(argparse.ArgumentParser):
    """Raises its errors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"verify by the service in {SERVER}: {message}; {_INSTEAD}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--far", type=float)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--face-a", type=int)
    parser.add_argument("--face-b", type=int)
    parser.add_argument("--model", "-m")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def _verify(asked: argparse.Namespace) -> int:
    photos = {"photo_a": asked.a, "photo_b": asked.b}
    names = ("far", "threshold", "face_a", "face_b", "model")
    query = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    with _connected() as connection:
        answer = _ask(connection, "POST", f"{_PREFIX}/verify?{urllib.parse.urlencode(query)}", photos)
        about = _ask(connection, "GET", f"{_PREFIX}/models/{urllib.parse.quote(answer['model'], safe='')}")
        return _tell(asked, answer, about)


def _tell(asked: argparse.Namespace, answer: dict[str, Any], about: dict[str, Any]) -> int:
    """Print the service's answer and return the exit code."""
    if about["contract_id"] != answer["contract_id"]:
        raise RequestError(f"the service in {SERVER} changed its model meanwhile; ask again")
    for name, path, option in (("face_a", asked.a, "--face-a"), ("face_b", asked.b, "--face-b")):
        if getattr(asked, name) is None and (note := choice_words(path, answer[name], option)):
            sys.stderr.write(printable(note) + "\n")
    if asked.json:
        faces = {
            letter: {"path": str(path), "faces": face["total"], "face": face["number"], "box": face["box"]}
            for letter, path, face in (("a", asked.a, answer["face_a"]), ("b", asked.b, answer["face_b"]))
        }
        known = {key: value for key, value in answer.items() if "face_" not in key and key != "version"}
        by = {"same": answer["matched"], "model": about["name"], "precision": about["precision"]}
        emit_json(known | by | faces)
    else:
        model = model_words(about["name"], about["contract_id"], about["weights"], about["precision"])
        sys.stdout.write(printable(decision_words(answer)) + "\n" + printable(model) + "\n")
        if answer["note"]:
            sys.stderr.write(printable(answer["note"]) + "\n")
    return 0 if answer["matched"] else NegativeResult.exit_code


class _UnixConnection(http.client.HTTPConnection):
    """Speaks HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextlib.contextmanager
def _connected() -> Iterator[http.client.HTTPConnection]:
    """Yield a connection to the service; what fails of it in the block is an error that names the service."""
    address = os.environ[SERVER]
    try:
        url = urllib.parse.urlsplit(address)
        port = url.port
    except ValueError:  # a port that is no number, an address that is none
        url, port = urllib.parse.urlsplit(""), None
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if url.scheme == "unix":
        connection: http.client.HTTPConnection = _UnixConnection(url.path)
    elif url.scheme in kinds and url.hostname and url.path in ("", "/"):
        connection = kinds[url.scheme](url.hostname, port, timeout=_SECONDS)
    else:
        raise InputError(path=SERVER, expected="unix:/path, http://host:port or https://host:port", found=address)
    try:
        yield connection
    except EdgeFaceError:  # of which some are errors of the operating system too
        raise
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
        other = isinstance(error, KeyError | TypeError | AttributeError)
        found = (
            "an answer of another program"
            if other
            else getattr(error, "strerror", None) or str(error) or type(error).__name__
        )
        raise MissingError(
            path=SERVER,
            expected=f"a service of edgeface at {address}",
            found=found,
            remedy=f"start it with 'edgeface serve', or {_INSTEAD}",
        ) from error
    finally:
        connection.close()


def _ask(
    connection: http.client.HTTPConnection, method: str, target: str, photos: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Return the service's answer; raise its problem as the error that the command would have raised itself."""
    headers = {"x-api-key": key} if (key := os.environ.get(KEY)) else {}
    body = b""
    if photos is not None:
        boundary = os.urandom(16).hex()
        headers["content-type"] = f"multipart/form-data; boundary={boundary}"
        parts = (
            f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"; filename="photo"\r\n\r\n'.encode()
            + _read(path)
            + b"\r\n"
            for name, path in photos.items()
        )
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    connection.request(method, target, body, headers)
    with connection.getresponse() as response:
        status, content = response.status, response.read()
    try:
        answer = json.loads(content)
    except ValueError as error:
        raise TypeError("no JSON") from error
    if status == http.client.OK:
        return dict(answer)
    detail = str(answer["detail"])
    for name, path in (photos or {}).items():
        for said in (name, name.replace("_", " ")):
            detail = f"{path}{detail.removeprefix(said)}" if detail.startswith(f"{said}: ") else detail
    if status in (401, 403):
        raise InputError(f"{KEY}: {detail}")
    raise KINDS.get(answer["code"], InputError if status < 500 else RequestError)(detail)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(path=path, expected="a photo", found=error.strerror) from error
