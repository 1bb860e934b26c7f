"""KServe V2 over gRPC: what `edgeface.serve.kserve` does over HTTP, with the same keys, roles, rates, limits and log.

Source: kserve/open-inference-protocol, specification/protocol/open_inference_grpc.proto; for the repository Triton's
grpc_service.proto; grpc/grpc-proto, grpc/health/v1/health.proto; googleapis, google/rpc/{status,error_details}.proto.
Each method takes a message of one request and gives one answer. To gRPC it is a stream of requests, so that the key is
known before the message is read, and what is slow to arrive is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import traceback
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from edgeface.errors import InputError
from edgeface.protobuf import build_messages
from edgeface.serve import health, kserve
from edgeface.serve.connection import HEADER_SECONDS
from edgeface.serve.keys import Role
from edgeface.serve.metrics import choose_request_id
from edgeface.serve.problems import NotFound, Problem, is_operators, problem_of
from edgeface.serve.routing import Computing, require_role
from edgeface.serve.service import Caller, Service
from edgeface.serve.settings import Settings, Tls
from edgeface.serve.tensors import (
    MOST_DIMENSIONS,
    MOST_TENSORS,
    InferAnswer,
    InferRequest,
    InferTensor,
    check_text,
    refuse_extensions,
    tensor_from_bytes,
    tensor_from_values,
    tensor_to_bytes,
)

_log = logging.getLogger("edgeface.serve")
_SERVICE = "inference.GRPCInferenceService"
_MESSAGES = build_messages(
    """
Named         name=1:string version=2:string
Ready         ready=1:bool
Server        name=1:string version=2:string extensions=3*string
Metadata      name=1:string versions=2*string platform=3:string inputs=4*Tensor outputs=5*Tensor
Tensor        name=1:string datatype=2:string shape=3*int64 contents=5:Contents
Contents      bool_contents=1*bool int_contents=2*int32 int64_contents=3*int64 uint_contents=4*uint32
Contents      uint64_contents=5*uint64 fp32_contents=6*float fp64_contents=7*double bytes_contents=8*bytes
Infer         model_name=1:string model_version=2:string id=3:string parameters=4*bytes inputs=5*bytes outputs=6*bytes
Infer         raw_input_contents=7*bytes
Input         name=1:string datatype=2:string shape=3*int64 parameters=4*bytes contents=5:Contents
Output        name=1:string parameters=2*bytes
Inferred      model_name=1:string model_version=2:string id=3:string parameters=4*Entry outputs=5*Tensor
Inferred      raw_output_contents=6*bytes
Entry         key=1:string value=2:Parameter
Parameter     bool_param=1|bool int64_param=2|int64 string_param=3|string double_param=4|double uint64_param=5|uint64
AskIndex      repository_name=1:string ready=2:bool
Index         models=1*Indexed
Indexed       name=1:string version=2:string state=3:string reason=4:string
Change        first=1:string second=2:string parameters=3*bytes
Changed       model_name=1:string is_done=2:bool
Health        status=1:int32
Status        code=1:int32 message=2:string details=3*Detail
Detail        type_url=1:string value=2:bytes
RetryInfo     retry_delay=1:Duration
Duration      seconds=1:int64 nanos=2:int32
ErrorInfo     reason=1:string domain=2:string
""",
    "edgeface.kserve",
)
"""Messages that a request repeats are bytes here: they are counted before they are read."""

_CONTENTS = {
    **{datatype: f"{datatype.lower()}_contents" for datatype in ("BOOL", "INT64", "UINT64", "FP32", "FP64", "BYTES")},
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
}
"""Where the values of a datatype are; FP16 has no such field."""

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""Of the status that a problem has over HTTP; INTERNAL for others."""
_GRACE_SECONDS = 2
"""For answers that are being written, and models that are being loaded, when the service stops."""
_TEXT = 1000
"""Characters of an error: all metadata of an answer must stay below 8 KiB."""


@contextlib.asynccontextmanager
async def serving(state: Any, host: str, settings: Settings) -> AsyncIterator[str]:
    """Serve in this event loop until the block ends, which gets host and port; what was accepted is answered then.

    Parameters
    ----------
    state
        That of the application: service, work, probe and metrics.
    host
        A numeric address of this machine.
    settings
        With ``listen.grpc_port``, and TLS if there is any.

    Raises
    ------
    InputError
        If the address or the files of TLS cannot be used.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # another process must not take a part of the requests
            ("grpc.max_receive_message_length", settings.limits.body_bytes),
            ("grpc.max_allowed_incoming_connections", settings.limits.connections),
            ("grpc.server_handshake_timeout_ms", int(HEADER_SECONDS * 1000)),
            ("grpc.max_connection_idle_ms", 300_000),  # a client connects again by itself
        ],
        maximum_concurrent_rpcs=settings.limits.connections,
    )
    for service, methods in ((_SERVICE, _METHODS), ("grpc.health.v1.Health", {"Check": _check_health})):
        handlers = {
            name: grpc.stream_unary_rpc_method_handler(functools.partial(_answer, state, f"/{service}/{name}", method))
            for name, method in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    address = f"[{host}]" if ":" in host else host
    wanted, tls = f"{address}:{settings.listen.grpc_port}", settings.tls
    try:
        port = server.add_secure_port(wanted, _credentials(tls)) if tls else server.add_insecure_port(wanted)
    except (OSError, RuntimeError) as error:
        raise InputError(path="listen.grpc_port", expected=f"to serve on {wanted}", found=str(error)) from error
    await server.start()
    try:
        yield f"{address}:{port}"
    finally:
        await server.stop(_GRACE_SECONDS)


def _credentials(tls: Tls) -> Any:
    authority = None if tls.client_ca is None else tls.client_ca.read_bytes()
    pair = tls.key.read_bytes(), tls.certificate.read_bytes()
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


@dataclass(slots=True)
class _Call:
    """One request, as far as it is known before its message."""

    state: Any
    context: Any
    request_id: str
    began: float
    received: int = 0
    known: bool = False

    def require(self, role: Role, *, everywhere: bool = False) -> Caller:
        """Return who asks; `Problem` unless the key is accepted and of this role."""
        metadata = self.context.invocation_metadata() or ()
        headers = {name.encode(): value.encode() for name, value in metadata if isinstance(value, str)}
        key = self.state.service.authenticate(headers, _host_of(self.context.peer()))
        self.known = True
        return require_role(Caller(key=key, request_id=self.request_id), role, everywhere=everywhere)

    @property
    def deadline(self) -> float:
        """The client's, or the service's if that is earlier."""
        latest: float = self.began + self.state.service.settings.limits.seconds
        left: float | None = self.context.time_remaining()
        return latest if left is None else min(latest, time.monotonic() + left)

    async def read(self) -> bytes:
        """Return the message; `Problem` if it does not arrive in time."""
        until = self.began + self.state.service.settings.limits.body_seconds
        try:
            content = await asyncio.wait_for(self.context.read(), until - time.monotonic())
        except asyncio.TimeoutError:
            raise Problem(408, "too-slow", "the message did not arrive in time; send it faster, or send less") from None
        if content is grpc.aio.EOF:
            raise Problem(400, "malformed-body", "expected a message, found none")
        self.received = len(content)
        return content  # type: ignore[no-any-return]

    async def read_small(self, kind: str) -> Any:
        """Return a message of anything but tensors."""
        content = await self.read()
        if len(content) > kserve.SMALL_BYTES:
            raise Problem(413, "too-large", f"expected at most {kserve.SMALL_BYTES:,} bytes, found {len(content):,}")
        return _parse(kind, content)


_Method = Callable[[_Call], Awaitable[Any]]


async def _answer(state: Any, route: str, method: _Method, _: Any, context: Any) -> bytes:
    """Answer a request, count it, and write one line of it."""
    given = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    call = _Call(state, context, choose_request_id(given.get("x-request-id", "")), time.monotonic())
    status = 499  # the client has gone, or its time is over
    state.metrics.begin(given.get("traceparent", ""))
    try:
        answer = await method(call)
        context.set_trailing_metadata((("x-request-id", call.request_id),))
        status = 200
        return answer.SerializeToString()  # type: ignore[no-any-return]
    except Exception as error:
        problem = problem_of(error)
        status = problem.status
        if is_operators(problem):
            _log.error("request failed", exc_info=error, extra={"request_id": call.request_id})
        traceback.clear_frames(error.__traceback__)  # in a cycle with a future: they would keep the message
        await context.abort(*_word(problem, call.request_id))
        raise
    finally:
        state.metrics.end(call.request_id, "gRPC", route, status, call.began, call.received, known=call.known)


def _word(problem: Problem, request_id: str) -> tuple[Any, str, tuple[tuple[str, str | bytes], ...]]:
    """Return the code, the text and the metadata of a problem: its code word and when to try again are in details."""
    code, text = _CODES.get(problem.status, grpc.StatusCode.INTERNAL), str(problem)[:_TEXT]
    details = {"ErrorInfo": _new("ErrorInfo", reason=problem.code.upper().replace("-", "_"), domain="edgeface")}
    if problem.retry_after is not None:
        nanos = int(problem.retry_after * 1e9)
        delay = _new("Duration", seconds=nanos // 10**9, nanos=nanos % 10**9)
        details["RetryInfo"] = _new("RetryInfo", retry_delay=delay)
    packed = [
        _new("Detail", type_url=f"type.googleapis.com/google.rpc.{name}", value=each.SerializeToString())
        for name, each in details.items()
    ]
    status = _new("Status", code=code.value[0], message=text, details=packed).SerializeToString()
    return code, text, (("x-request-id", request_id), ("grpc-status-details-bin", status))


def _host_of(peer: str) -> str:
    """Return the host of what gRPC calls a peer, e.g. ``ipv6:%5B::1%5D:5000``."""
    return urllib.parse.unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _new(kind: str, **fields: Any) -> Any:
    return _MESSAGES[kind](**fields)


def _parse(kind: str, content: bytes) -> Any:
    try:
        return _MESSAGES[kind].FromString(content)
    except DecodeError:
        raise Problem(400, "malformed-body", "expected a message of KServe V2, found other bytes") from None


# Tensors


def _parse_each(where: str, kind: str, parts: Sequence[bytes]) -> list[Any]:
    if len(parts) > MOST_TENSORS:
        raise InputError(path=where, expected=f"at most {MOST_TENSORS}", found=f"{len(parts):,}")
    return [_parse(kind, part) for part in parts]


def _parameters(where: str, parts: Sequence[bytes]) -> dict[str, Any]:
    """Return parameters by name; None for a value of an unknown kind."""
    found = {}
    for entry in _parse_each(where, "Entry", parts):
        kind = entry.value.WhichOneof("value")
        found[entry.key] = kind and getattr(entry.value, kind)
    return found


def _read_request(message: Any) -> InferRequest:
    """Read what is to be computed; InputError as `tensors.decode_request`, for the same."""
    refuse_extensions("parameters", _parameters("parameters", message.parameters))
    outputs = _parse_each("outputs", "Output", message.outputs)
    for each in (*outputs, *(inputs := _parse_each("inputs", "Input", message.inputs))):
        check_text("name", each.name)
        refuse_extensions(each.name, _parameters(each.name, each.parameters))
    if len(wanted := dict.fromkeys((each.name for each in outputs), True)) != len(outputs):
        raise InputError(path="outputs", expected="each name once", found="one twice")
    raw = message.raw_input_contents
    if raw and len(raw) != len(inputs):
        raise InputError(
            path="raw_input_contents", expected=f"one for each input, {len(inputs)}", found=f"{len(raw):,}"
        )
    return InferRequest(
        inputs=tuple(_read_input(each, raw[number] if raw else None) for number, each in enumerate(inputs)),
        outputs=wanted or None,
        binary=bool(raw),
        id=check_text("id", message.id, empty=True),
    )


def _read_input(given: Any, raw: bytes | None) -> InferTensor:
    datatype, shape = check_text(f"{given.name}.datatype", given.datatype), given.shape[: MOST_DIMENSIONS + 1]
    there = {field.name for field, _ in given.contents.ListFields()}
    place = "raw_input_contents" if raw is not None else _CONTENTS.get(datatype, "raw_input_contents")
    if there - {place}:
        raise InputError(path=given.name, expected=f"values in {place}", found=", ".join(sorted(there)))
    if raw is not None:
        return tensor_from_bytes(given.name, datatype, shape, raw)
    return tensor_from_values(given.name, datatype, shape, getattr(given.contents, place, ()))


def _write_answer(answer: InferAnswer, raw: bool) -> Any:
    """Return the message of an answer, with its values as those of the request were."""
    written = _new("Inferred", model_name=answer.model, model_version=answer.version, id=answer.id)
    for name, text in answer.parameters.items():
        written.parameters.add(key=name, value=_new("Parameter", string_param=text))
    for tensor in answer.outputs:
        output = written.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            written.raw_output_contents.append(tensor_to_bytes(tensor))
        else:
            getattr(output.contents, _CONTENTS[tensor.datatype]).extend(np.ravel(tensor.values).tolist())
    return written


# Methods


async def _server_live(call: _Call) -> Any:
    return _new("Ready", ready=call.state.probe.answers)


async def _server_ready(call: _Call) -> Any:
    return _new("Ready", ready=not await health.find_reasons(call.state))


async def _check_health(call: _Call) -> Any:
    """Answer Kubernetes and load balancers; see grpc.health.v1."""
    if (name := (await call.read_small("Named")).name) not in ("", _SERVICE):
        raise NotFound("service", check_text("service", name))
    return _new("Health", status=2 if await health.find_reasons(call.state) else 1)  # NOT_SERVING, SERVING


async def _server_metadata(call: _Call) -> Any:
    call.require(Role.recognise)
    return _new("Server", **kserve.SERVER)


async def _model_ready(call: _Call) -> Any:
    call.require(Role.recognise)
    asked = await call.read_small("Named")
    try:
        with kserve.use(call.state.service, asked.name, asked.version):
            return _new("Ready", ready=True)
    except NotFound:
        return _new("Ready", ready=False)


async def _model_metadata(call: _Call) -> Any:
    call.require(Role.recognise)
    asked = await call.read_small("Named")
    found = kserve.describe(call.state.service, asked.name, asked.version)
    return _new("Metadata", **{name: found[name] for name in ("name", "versions", "platform", "inputs", "outputs")})


async def _model_infer(call: _Call) -> Any:
    caller = call.require(Role.recognise)
    call.state.work.refuse_if_full()
    content = await call.read()

    def infer() -> Any:
        message = _parse("Infer", content)
        request, name = _read_request(message), check_text("model_name", message.model_name)
        version = check_text("model_version", message.model_version, empty=True)
        return _write_answer(kserve.infer(call.state.service, caller, name, version, request), request.binary)

    return await Computing(call.state.work, call.deadline)(infer)


async def _index(call: _Call) -> Any:
    call.require(Role.recognise)
    asked = await call.read_small("AskIndex")
    return _new("Index", models=kserve.list_repository(call.state.service, ready=asked.ready))


async def _load(call: _Call) -> Any:
    return await _change(call, kserve.load)


async def _unload(call: _Call) -> Any:
    return await _change(call, lambda service, caller, name, _: kserve.unload(service, caller, name))


async def _change(call: _Call, change: Callable[[Service, Caller, str, Mapping[str, Any]], None]) -> Any:
    """Load or unload; Triton's messages have the model's name second, after the repository's, and KServe's first."""
    caller = call.require(Role.admin, everywhere=True)
    asked = await call.read_small("Change")
    name = check_text("model_name", asked.second or asked.first)
    parameters = _parameters("parameters", asked.parameters)
    await asyncio.to_thread(change, call.state.service, caller, name, parameters)
    return _new("Changed", model_name=name, is_done=True)


_METHODS: dict[str, _Method] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ModelReady": _model_ready,
    "ServerMetadata": _server_metadata,
    "ModelMetadata": _model_metadata,
    "ModelInfer": _model_infer,
    "RepositoryIndex": _index,
    "RepositoryModelLoad": _load,
    "RepositoryModelUnload": _unload,
}
