"""Ask servers of KServe V2 for embeddings, over HTTP or gRPC, bounded in time and bytes whatever a server sends.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md and open_inference_grpc.proto;
triton-inference-server/server, docs/protocol/extension_binary_data.md; openvinotoolkit/model_server,
docs/model_server_rest_api_kfs.md. One crop a request, as FP32.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ExtraNotInstalledError, InferenceError, InputError
from edgeface.untrusted import parse_json

ANSWER_BYTES = 1 << 20
"""Most bytes of an answer: an embedding of 512 numbers has 2,048, and the metadata of a model 2,000."""
_TEXT = 200
"""Most characters of a server's own words in an error."""
_HEADER = "Inference-Header-Content-Length"


class Unanswered(Exception):  # noqa: N818 - what happened, which a caller turns into an error or asks another replica
    """A replica did not answer, and another one may.

    Attributes
    ----------
    kind
        ``away``: it cannot be reached, or broke off; ``absent``: it has no such model; ``busy``: it has too much to
        do; ``late``: it did not answer in time.
    retry_after
        Seconds after which a busy one is to be asked again.
    """

    def __init__(self, kind: Literal["away", "absent", "busy", "late"], text: str, retry_after: float = 0.05) -> None:
        super().__init__(text)
        self.kind, self.retry_after = kind, retry_after


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about one crop: names of the model and its ports, and the length of an embedding."""

    model: str
    input_name: str
    output_name: str
    length: int


@dataclass(frozen=True, slots=True)
class WireAnswer:
    """One embedding, (D,) float32, as it came: not yet looked at; the version, and the contract if the server says it.

    An empty version, and None: it does not.
    """

    vector: NDArray[np.float32]
    version: str
    contract_id: str | None


class Wire(Protocol):
    """One of the two protocols.

    Attributes
    ----------
    name
        Host and port.
    """

    name: str

    def greet(self, end: float) -> None:
        """Ask whether the server is there; raises as `infer`."""

    def infer(self, question: Question, pixels: NDArray[np.float32], end: float) -> WireAnswer:
        """Ask for the embedding of one crop, (1, ...) float32, until the time `end` of `time.monotonic`.

        Raises
        ------
        Unanswered
            If another replica may answer.
        InferenceError
            If the answer is not the embedding that was asked for, or the server refuses the crop.
        InputError
            If the server refuses the key.
        """

    def close(self) -> None:
        """Close all connections."""


def _refuse_key(server: str, said: str) -> InputError:
    return InputError(
        path=server,
        expected="a key that the server accepts in EDGEFACE_SERVER_KEY",
        found=f"it is refused, or not sent: {said}",
        remedy="make one with 'edgeface serve keys add'; to another machine it is sent with TLS only, ovms+tls://",
    )


def _wrong(server: str, expected: str, found: object) -> InferenceError:
    return InferenceError(path=server, expected=expected, found=f"{found!s:.{_TEXT}}")


def _vector_of(server: str, length: int, datatype: object, shape: object, values: Any) -> NDArray[np.float32]:
    """Return the embedding in a tensor, whose values are bytes or numbers; InferenceError unless it is [1, length]."""
    expected = f"an embedding of FP32 [1, {length}]"
    if datatype != "FP32" or not isinstance(shape, Sequence) or list(shape) != [1, length]:
        raise _wrong(server, expected, f"{datatype!s:.20} {shape!s:.80}")
    if isinstance(values, bytes | memoryview):
        if len(values) != 4 * length:
            raise _wrong(server, expected, f"{len(values):,} bytes of it")
        return np.frombuffer(values, "<f4").astype(np.float32)  # a copy: whoever gets it may write into it
    with np.errstate(over="ignore"):
        numbers = np.asarray(values, np.float64).astype(np.float32).ravel()
    if numbers.shape != (length,):
        raise _wrong(server, expected, f"{numbers.size:,} numbers")
    return numbers


def read_answer(server: str, question: Question, content: bytes, header_length: str | None) -> WireAnswer:
    """Read the body of an answer over HTTP: JSON, and the bytes of the output behind it where it has no data in it.

    Raises InferenceError, in which `server` is named, if it is anything else than the embedding that was asked for.

    Examples
    --------
    >>> body = b'{"outputs": [{"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [0.6, 0.8]}]}'
    >>> read_answer("server", Question("model", "image", "a", 2), body, None).vector
    array([0.6, 0.8], dtype=float32)
    """
    try:
        length = len(content) if header_length is None else int(header_length)
        answer = _parse(server, content[:length])
        (entry,) = (each for each in answer["outputs"] if each["name"] == question.output_name)
        values = entry.get("data", memoryview(content)[length:])
        vector = _vector_of(server, question.length, entry["datatype"], entry["shape"], values)
        return WireAnswer(vector, str(answer.get("model_version", "")), answer.get("parameters", {}).get("contract_id"))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _wrong(server, "an answer of KServe V2", f"another ({type(error).__name__}: {error})") from error


def _parse(server: str, content: bytes) -> Any:
    try:
        return parse_json(content)
    except (ValueError, InputError) as error:
        raise _wrong(server, "an answer in JSON", f"another: {error}") from error


# --- HTTP -------------------------------------------------------------------------------------------------------------


class _Bounded:
    """A socket whose every operation ends by `end`, however slowly the other side sends.

    It stays open when `http.client` closes it, which does so before it has read an answer after which the server
    closes the connection; `shut` closes it.
    """

    def __init__(self, plain: socket.socket) -> None:
        self._plain, self.end = plain, 0.0

    def _arm(self) -> socket.socket:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._plain.settimeout(left)
        return self._plain

    def sendall(self, data: Any) -> None:
        self._arm().sendall(data)  # the time-out is of all of it

    def receive(self, buffer: Any) -> int:
        return self._arm().recv_into(buffer)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self))

    def close(self) -> None:
        pass

    def shut(self) -> None:
        self._plain.close()


class _Incoming(io.RawIOBase):
    def __init__(self, bounded: _Bounded) -> None:
        self._bounded = bounded

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._bounded.receive(buffer)


class Http:
    """HTTP/1.1 to one server, over connections that are kept; from any thread.

    Parameters
    ----------
    host, port
        Of the server.
    headers
        Sent with every request.
    tls
        None: plain.

    Attributes
    ----------
    lost
        How many kept connections were found closed: the server may have started again.
    """

    def __init__(self, host: str, port: int, *, headers: Mapping[str, str], tls: ssl.SSLContext | None) -> None:
        self._host, self._port, self._headers, self._tls = host, port, dict(headers), tls
        self.name = f"{host}:{port}"
        self._idle: list[tuple[http.client.HTTPConnection, _Bounded]] = []
        self._closed = False
        self.lost = 0

    def greet(self, end: float) -> None:
        """See `Wire.greet`; `describe` has asked already."""

    def describe(self, model: str, version: str | None, end: float) -> Any:
        """Return the metadata of a model, as JSON; raises as `Wire.infer`."""
        path = _path_of(model) + (f"/versions/{urllib.parse.quote(version, safe='')}" if version else "")
        return _parse(self.name, self._ask("GET", path, (), {}, end)[0])

    def infer(self, question: Question, pixels: NDArray[np.float32], end: float) -> WireAnswer:
        """See `Wire.infer`."""
        data = np.ascontiguousarray(pixels, "<f4").tobytes()
        tensor = {"name": question.input_name, "datatype": "FP32", "shape": list(pixels.shape)}
        asked = {
            "inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}],
            "outputs": [{"name": question.output_name, "parameters": {"binary_data": True}}],
        }
        head = json.dumps(asked).encode()
        headers = {"Content-Type": "application/octet-stream", _HEADER: str(len(head))}
        content, told = self._ask("POST", f"{_path_of(question.model)}/infer", (head, data), headers, end)
        return read_answer(self.name, question, content, told)

    def _ask(
        self, method: str, path: str, parts: Sequence[Any], headers: Mapping[str, str], end: float
    ) -> tuple[bytes, str | None]:
        """Send a request, again if a kept connection was closed meanwhile; return the body and `_HEADER` of it."""
        length = {"Content-Length": str(sum(map(len, parts)))} if parts else {}
        given = self._headers | dict(headers) | length
        while True:
            with contextlib.suppress(IndexError):
                connection, bounded = self._idle.pop()
                try:
                    return self._exchange(connection, bounded, method, path, parts, given, end)
                except (ConnectionError, http.client.BadStatusLine):
                    self.lost += 1
                    continue  # all kept ones may be closed
                except (OSError, http.client.HTTPException) as error:
                    raise self._failed(error) from error
            try:
                connection, bounded = self._connect(end)
                return self._exchange(connection, bounded, method, path, parts, given, end)
            except (OSError, UnicodeError, http.client.HTTPException) as error:  # the second: a host that is none
                raise self._failed(error) from error

    def _failed(self, error: Exception) -> Unanswered:
        if isinstance(error, TimeoutError):
            return Unanswered("late", f"{self.name}: no answer in time")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
            reason = "what answers there does not speak HTTP"
        if isinstance(error, ssl.SSLCertVerificationError):
            reason += "; SSL_CERT_FILE names the certificate of another authority"
        return Unanswered("away", f"{self.name}: {reason:.{_TEXT * 2}}")

    def _connect(self, end: float) -> tuple[http.client.HTTPConnection, _Bounded]:
        plain = socket.create_connection((self._host, self._port), max(0.001, end - time.monotonic()))
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(max(0.001, end - time.monotonic()))
            if self._tls is not None:
                plain = self._tls.wrap_socket(plain, server_hostname=self._host)
        except BaseException:
            plain.close()
            raise
        connection, bounded = http.client.HTTPConnection(self._host, self._port), _Bounded(plain)
        connection.sock = bounded
        return connection, bounded

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        bounded: _Bounded,
        method: str,
        path: str,
        parts: Sequence[Any],
        headers: Mapping[str, str],
        end: float,
    ) -> tuple[bytes, str | None]:
        bounded.end, keep = end, False
        try:
            connection.request(method, path, iter(parts) if parts else None, headers)
            answer = connection.getresponse()
            size = answer.length
            content = answer.read(ANSWER_BYTES + 1) if size is None or size <= ANSWER_BYTES else b""
            if len(content) > ANSWER_BYTES or (size or 0) > ANSWER_BYTES:
                raise _wrong(self.name, f"an answer of at most {ANSWER_BYTES:,} bytes", "more")
            if size is not None and len(content) < size:
                raise ConnectionError("the answer broke off")
            if answer.status != 200:
                raise self._refusal(answer.status, answer.getheader("Retry-After"), content)
            keep = not (answer.will_close or self._closed)
            return content, answer.getheader(_HEADER)
        finally:
            if keep:
                self._idle.append((connection, bounded))
            else:
                bounded.shut()

    def _refusal(self, status: int, retry_after: str | None, content: bytes) -> Exception:
        said = str(status)
        with contextlib.suppress(ValueError, InputError, TypeError, KeyError):
            said = f"{status}: {parse_json(content)['error']!s:.{_TEXT}}"
        if status in (401, 403):
            return _refuse_key(self.name, said)
        if status == 404:
            return Unanswered("absent", f"{self.name}: {said}")
        if status in (408, 504):
            return Unanswered("late", f"{self.name}: {said}")
        if status in (429, 502, 503):
            known = retry_after is not None and retry_after.isascii() and retry_after.isdigit()
            return Unanswered("busy", f"{self.name}: {said}", float(str(retry_after)[:6]) if known else 0.05)
        return _wrong(self.name, "an embedding", said)

    def close(self) -> None:
        """Close the connections that wait; one in use closes with its request."""
        self._closed = True
        while self._idle:
            self._idle.pop()[1].shut()


def _path_of(model: str) -> str:
    return f"/v2/models/{urllib.parse.quote(model, safe='')}"


def tls_context() -> ssl.SSLContext:
    """Return what checks a server's certificate: by the system's authorities, or those in SSL_CERT_FILE."""
    return ssl.create_default_context()


# --- gRPC -------------------------------------------------------------------------------------------------------------


class Grpc:
    """GRPCInferenceService of one server, by the messages of tritonclient (extra `remote`); from any thread.

    Parameters are those of `Http`, with `secure` for TLS: gRPC brings authorities of its own, unless SSL_CERT_FILE
    names some.
    """

    def __init__(self, host: str, port: int, *, headers: Mapping[str, str], secure: bool) -> None:
        try:
            import grpc
            from tritonclient.grpc import service_pb2, service_pb2_grpc
        except ImportError as error:
            raise ExtraNotInstalledError("remote", needed_for="a model over gRPC (?grpc=PORT)") from error
        self._grpc, self._messages, self.name = grpc, service_pb2, f"{host}:{port}"
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        options = [
            ("grpc.max_receive_message_length", ANSWER_BYTES),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),  # as over HTTP
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        target = f"[{host}]:{port}" if ":" in host else self.name
        if not secure:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            authorities = os.environ.get("SSL_CERT_FILE")
            try:
                roots = Path(authorities).read_bytes() if authorities else None
            except OSError as error:
                found = error.strerror or str(error)
                raise InputError(
                    path=authorities, expected="certificates, as SSL_CERT_FILE says", found=found
                ) from error
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(roots), options=options)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._live, self._infer = stub.ServerLive, stub.ModelInfer

    def greet(self, end: float) -> None:
        """See `Wire.greet`."""
        try:
            self._live(self._messages.ServerLiveRequest(), timeout=max(0.0, end - time.monotonic()))
        except self._grpc.RpcError as error:
            raise self._refusal(error) from error

    def infer(self, question: Question, pixels: NDArray[np.float32], end: float) -> WireAnswer:
        """See `Wire.infer`."""
        request = self._messages.ModelInferRequest(model_name=question.model)
        request.inputs.add(name=question.input_name, datatype="FP32", shape=pixels.shape)
        request.outputs.add(name=question.output_name)
        request.raw_input_contents.append(np.ascontiguousarray(pixels, "<f4").tobytes())
        try:
            answer = self._infer(request, timeout=max(0.0, end - time.monotonic()), metadata=self._metadata)
        except self._grpc.RpcError as error:
            raise self._refusal(error) from error
        except ValueError as error:  # the channel was closed
            raise Unanswered("away", f"{self.name}: {error}") from error
        number, output = next(
            ((at, each) for at, each in enumerate(answer.outputs) if each.name == question.output_name), (0, None)
        )
        if output is None or (answer.raw_output_contents and len(answer.raw_output_contents) != len(answer.outputs)):
            raise _wrong(self.name, f"the output {question.output_name}", "others")
        raw = answer.raw_output_contents
        values = raw[number] if raw else list(output.contents.fp32_contents)
        vector = _vector_of(self.name, question.length, output.datatype, list(output.shape), values)
        told = answer.parameters["contract_id"].string_param if "contract_id" in answer.parameters else None
        return WireAnswer(vector, answer.model_version, told)

    def _refusal(self, error: Any) -> Exception:
        code, codes = error.code(), self._grpc.StatusCode
        said = f"{self.name}: {code.name}: {error.details()!s:.{_TEXT}}"
        if code in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED):
            return _refuse_key(self.name, said)
        if code == codes.NOT_FOUND:
            return Unanswered("absent", said)
        if code == codes.DEADLINE_EXCEEDED:
            return Unanswered("late", f"{self.name}: no answer in time")
        by_server = any(name == "x-request-id" for name, _ in error.trailing_metadata() or ())
        if code == codes.UNAVAILABLE:
            return Unanswered("busy" if by_server else "away", said)
        if code == codes.RESOURCE_EXHAUSTED and "larger than max" not in said:
            return Unanswered("busy", said)
        return _wrong(self.name, "an embedding", said)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
