"""KServe V2 (Open Inference Protocol) over HTTP: tensors in, embeddings out; and what its gRPC form shares with it.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md; Triton's extensions for binary data
and for the model repository. Every loaded model is one of the protocol: its input is the IR's own, in float32 and in
the range that the contract says, its outputs are the IR's. It computes in float32 whatever the device prefers.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import JSONResponse, Response

from edgeface.errors import EdgeFaceError, InputError
from edgeface.serve import health
from edgeface.serve.problems import NotFound, Problem, problem_of
from edgeface.serve.routing import AdministersAll, Compute, Recognises, Served
from edgeface.serve.service import Caller, ServedModel, Service
from edgeface.serve.tensors import (
    InferAnswer,
    InferRequest,
    InferTensor,
    decode_request,
    encode_answer,
    pack,
    tensor_from_bytes,
    unpack,
)
from edgeface.untrusted import parse_json
from edgeface.version import __version__

_log = logging.getLogger(__name__)
router = APIRouter(prefix="/v2", tags=["kserve"])
SERVER = {"name": "edgeface", "version": __version__, "extensions": ["binary_tensor_data", "model_repository"]}
_MODEL, _VERSION = "/models/{name}", "/models/{name}/versions/{version}"
_HEADER = "Inference-Header-Content-Length"
SMALL_BYTES = 64 << 10
"""Of a request without tensors."""


def render_problem(problem: Problem) -> Response:
    """Word a problem as KServe's clients expect it; what does not fit the protocol is 400 there."""
    status = 400 if problem.status == 422 else problem.status
    return JSONResponse({"error": str(problem)}, status, headers=problem.headers)


# What both forms of the protocol do. Nothing below may run on the event loop.


@contextlib.contextmanager
def use(service: Service, name: str, version: str | None = None) -> Iterator[ServedModel]:
    """Keep a model's version that answers now; `Problem` unless it is this one, where one is named."""
    with service.models.use(name) as model:
        if version and version != str(model.version):
            raise NotFound("version", version, remedy=f"version {model.version} of {name} answers")
        yield model


def describe(service: Service, name: str, version: str | None = None) -> dict[str, Any]:
    """Return the metadata of a model; ``rt_info`` holds the contract where OpenVINO Model Server shows it."""
    with use(service, name, version) as model:
        contract = model.contract
        return {
            "name": name,
            "versions": [str(model.version)],
            "platform": "OpenVINO",
            "inputs": [{"name": contract.input_name, "datatype": "FP32", "shape": list(contract.input_shape(-1))}],
            "outputs": [
                {"name": output, "datatype": "FP32", "shape": [-1, contract.embedding_dim]}
                for output in _outputs_of(model)
            ],
            "parameters": {"contract_id": contract.contract_id},
            "rt_info": {"model_info": {"contract_id": contract.contract_id, **contract.to_dict()}},
        }


def _outputs_of(model: ServedModel) -> list[str]:
    first = model.contract.output_name
    return [first, *(name for name in model.analyzer.embedder.output_names if name != first)]


def list_repository(service: Service, *, ready: bool = False) -> list[dict[str, str]]:
    """Return all configured models and whether they answer; only those that do, if `ready`."""
    found = []
    for name in sorted({*service.settings.models, *service.models.names()}):
        try:
            with use(service, name) as model:
                found.append({"name": name, "version": str(model.version), "state": "READY", "reason": ""})
        except NotFound:
            if not ready:
                found.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": "unloaded"})
    return found


def infer(service: Service, caller: Caller, name: str, version: str | None, request: InferRequest) -> InferAnswer:
    """Embed the crops of a request by one version of a model.

    Raises
    ------
    InputError, ImageError, Problem
        If there is no such model, version or output, or the input is not what the model takes.
    """
    with use(service, name, version) as model:
        known, asked = _outputs_of(model), request.outputs
        if wrong := [output for output in asked or () if output not in known]:
            raise InputError(f"outputs: expected some of {', '.join(known)}, found {wrong[0]!r:.80}")
        vectors = model.embed_exactly(_read_crops(service, model, request))
        contract_id = model.contract.contract_id
        service.note(caller, "infer", contract_id=contract_id)
        return InferAnswer(
            model=name,
            version=str(model.version),
            id=request.id,
            parameters={"contract_id": contract_id},
            outputs=tuple(InferTensor(output, "FP32", vectors.shape, vectors) for output in asked or known),
        )


def _read_crops(service: Service, model: ServedModel, request: InferRequest) -> NDArray[np.float32]:
    """Return crops of float32, 0-255, in the IR's layout and colour order: from numbers, or from image files."""
    contract, most = model.contract, service.settings.limits.images
    name, shape = contract.input_name, contract.input_shape(1)
    if request.body is not None:
        exact = len(request.body) == 4 * math.prod(shape)
        tensor = (
            tensor_from_bytes(name, "FP32", shape, request.body)
            if exact
            else InferTensor(name, "BYTES", (1,), (request.body,))
        )
    elif len(request.inputs) != 1 or request.inputs[0].name not in (name, *model.analyzer.embedder.input_names):
        found = ", ".join(f"{each.name!r:.80}" for each in request.inputs) or "none"
        raise InputError(f"inputs: expected one, {name!r}, found {found}")
    else:
        tensor = request.inputs[0]
    images = isinstance(tensor.values, tuple)
    fits = tensor.shape[1:] == (() if images else shape[1:]) and tensor.datatype in ("FP32", "FP16", "UINT8", "BYTES")
    if not fits or not 0 < tensor.shape[0] <= most:
        numbers = ", ".join(map(str, shape[1:]))
        raise InputError(
            f"{name}: expected FP32, FP16 or UINT8 of [N, {numbers}], or BYTES of [N] with image files of crops, N "
            f"from 1 to {most}, found {tensor.datatype} of {list(tensor.shape)}"
        )
    if isinstance(tensor.values, tuple):
        return np.stack([_read_crop(service, model, each) for each in tensor.values])
    pixels = np.ascontiguousarray(tensor.values, np.float32)
    low, high = contract.value_range
    span = high - low  # a cubic resize overshoots the range; what is far outside overflows in the model
    if not low - span <= pixels.min() <= pixels.max() <= high + span:
        raise InputError(f"{name}: expected values from {low:g} to {high:g}, found some far outside, or not finite")
    return pixels if (low, high) == (0, 255) else (pixels - np.float32(low)) * np.float32(255 / span)


def _read_crop(service: Service, model: ServedModel, file: bytes) -> NDArray[np.float32]:
    """Decode an aligned crop and resize it to the input, as OpenVINO Model Server does; no face is looked for."""
    contract = model.contract
    height, width = contract.input_size
    image = service.read_photo(file, contract.input_name).astype(np.float32)
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, 3)
    image = image if contract.color == "BGR" else image[..., ::-1]
    return np.ascontiguousarray(image.transpose(2, 0, 1) if contract.layout == "NCHW" else image)


def load(service: Service, caller: Caller, name: str, parameters: Mapping[str, Any]) -> None:
    """Load a configured model anew; see `Service.load_model`, and `_version_wanted` for the parameters.

    Errors that a file of the server causes tell only its log where that is.
    """
    number = _version_wanted(parameters)
    try:
        model = service.load_model(name, number)
    except Problem:
        raise
    except EdgeFaceError as error:
        _log.warning("model %s was not loaded: %s", name, error)
        problem = problem_of(error)
        detail = f"model {name} was not loaded ({problem.code}), and what answered goes on answering; the log has more"
        raise Problem(problem.status, problem.code, detail, retry_after=problem.retry_after) from error
    service.note(caller, "model.load", decision=name, contract_id=model.contract.contract_id)


def unload(service: Service, caller: Caller, name: str) -> None:
    """Let a model answer no more, once the requests for it are answered."""
    service.models.unload(name)
    service.note(caller, "model.unload", decision=name)


def _version_wanted(parameters: Mapping[str, Any]) -> int | None:
    """Return the version that a load names; None: the newest.

    Triton's clients name it in a configuration in JSON, ``{"version_policy": {"specific": {"versions": [2]}}}``.
    Nothing else of a model can be changed by a request, and never is a file taken from one.
    """
    if not parameters:
        return None
    with contextlib.suppress(InputError, ValueError, TypeError, LookupError):
        config = parse_json(parameters["config"])
        (number,) = config["version_policy"]["specific"]["versions"]
        only = config == {"version_policy": {"specific": {"versions": [number]}}} and parameters.keys() == {"config"}
        if only and type(number) is int:
            return number
    expected = 'none, or config: {"version_policy": {"specific": {"versions": [N]}}}'
    raise InputError(path="parameters", expected=expected, found="others")


# HTTP


@router.get("/health/live")
async def live(request: Request) -> JSONResponse:
    """Say whether the service lives; without a key."""
    return await health.live(request)


@router.get("/health/ready")
async def ready(request: Request) -> JSONResponse:
    """Say whether the service can answer; without a key."""
    return await health.ready(request)


@router.get("")
async def describe_server(caller: Recognises) -> dict[str, Any]:
    """Return what the server is."""
    return SERVER


@router.get("/models")
async def list_models(caller: Recognises, service: Served) -> dict[str, Any]:
    """Return the names of the models that answer."""
    return {"models": service.models.names()}


@router.get(f"{_MODEL}/ready")
@router.get(f"{_VERSION}/ready")
async def model_ready(caller: Recognises, service: Served, name: str, version: str | None = None) -> dict[str, Any]:
    """Say whether a model answers."""
    with use(service, name, version):
        return {"name": name, "ready": True}


@router.get(_MODEL)
@router.get(_VERSION)
async def describe_model(caller: Recognises, service: Served, name: str, version: str | None = None) -> dict[str, Any]:
    """Return a model's inputs, outputs and contract."""
    return describe(service, name, version)


@router.post(f"{_MODEL}/infer")
@router.post(f"{_VERSION}/infer")
async def infer_model(
    request: Request, compute: Compute, caller: Recognises, service: Served, name: str, version: str | None = None
) -> Response:
    """Embed crops: JSON with tensors in it or behind it, by the binary extension; gzip and deflate."""
    length = request.headers.get(_HEADER)
    if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
        raise Problem(400, "bad-input", f"{_HEADER}: expected a number of bytes")
    body = await request.body()

    def answer() -> Response:
        limit = service.settings.limits.body_bytes
        plain = unpack(body, request.headers.get("content-encoding", "").strip().lower(), limit=limit)
        asked = decode_request(plain, None if length is None else int(length))
        content, head = encode_answer(infer(service, caller, name, version, asked), asked)
        content, encoding = pack(content, request.headers.get("accept-encoding", ""))
        headers = {"Content-Type": "application/json" if head is None else "application/octet-stream"}
        headers |= {} if head is None else {_HEADER: str(head)}
        return Response(content, headers=headers | ({"Content-Encoding": encoding} if encoding else {}))

    answered: Response = await compute(answer)
    return answered


@router.post("/repository/index")
async def index(request: Request, caller: Recognises, service: Served) -> list[dict[str, str]]:
    """List the configured models."""
    return list_repository(service, ready=(await _fields(request)).get("ready") is True)


@router.post("/repository/models/{name}/load")
async def load_model(request: Request, caller: AdministersAll, service: Served, name: str) -> dict[str, Any]:
    """Load a configured model anew: the new version answers once it is tested, the old one ends its requests."""
    parameters = (await _fields(request)).get("parameters") or {}
    await asyncio.to_thread(functools.partial(load, service, caller, name, parameters))
    return {"name": name, "load": True}


@router.post("/repository/models/{name}/unload")
async def unload_model(caller: AdministersAll, service: Served, name: str) -> dict[str, Any]:
    """Let a model answer no more."""
    await asyncio.to_thread(unload, service, caller, name)
    return {"name": name, "unload": True}


async def _fields(request: Request) -> dict[str, Any]:
    body = await request.body()
    if len(body) > SMALL_BYTES:
        raise Problem(413, "too-large", f"expected at most {SMALL_BYTES:,} bytes, found {len(body):,}")
    try:
        given = parse_json(body.decode() or "{}")
    except (ValueError, InputError) as error:
        raise Problem(400, "malformed-body", f"expected JSON, found: {str(error)[:200]}") from error
    if not isinstance(given, dict) or not isinstance(given.get("parameters") or {}, dict):
        raise Problem(400, "bad-input", "expected a JSON object")
    return given
