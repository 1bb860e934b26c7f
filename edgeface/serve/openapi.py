"""Describe the service's HTTP API as OpenAPI 3.1: bodies, keys, roles and problems of each operation."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from starlette.routing import BaseRoute

from edgeface.serve.answers import ProblemAnswer
from edgeface.serve.keys import Role
from edgeface.serve.routing import computing_of

PREFIX = "/api/edgeface/v1"
VERSION = "1"
"""Of the API; grows with a change that a client has to know of."""

_FILE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "format": "byte", "contentEncoding": "base64"}
_PROBLEM = {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}
_MEANING = {
    400: "The request is malformed: its body, or a header.",
    401: "No key, or one that is unknown, expired or revoked.",
    403: "The key's role does not include this.",
    404: "There is no such gallery, model, person, template or job, or the key is not for it.",
    408: "The body did not arrive in time.",
    409: "The request does not fit what is there, e.g. no threshold is known for the model.",
    413: "The body is too large.",
    415: "The body is of a type that is not read, or compressed.",
    422: "A value is out of range or unknown; or the photo cannot be used: damaged, too large, or without a face.",
    429: "Too many requests of this key or address; Retry-After says when to ask again.",
    501: "An optional package for this format is not installed.",
    503: "Too much work, or something the service needs is away; Retry-After says when to ask again.",
    504: "There was no result by the deadline.",
    507: "The disk is full, or cannot be written.",
}
_SECURITY = {
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "A key of the service, a UUID."},
    "bearer": {"type": "http", "scheme": "bearer", "description": "The same key as a bearer token."},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of an operation for problems of its own; those that all have are added to them."""
    described: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        described[status] = {"description": _MEANING[status], "content": {"application/problem+json": _PROBLEM}}
        if status in (429, 503):
            described[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return described


def photo_body(*names: str) -> dict[str, Any]:
    """Return the `openapi_extra` of an operation with one photo in each of these fields."""
    content = {
        "multipart/form-data": {"schema": _object(names, _FILE)},
        "application/json": {"schema": _object(names, _BASE64)},
    }
    if len(names) == 1:
        content |= {kind: {"schema": _FILE} for kind in ("image/jpeg", "image/png", "application/octet-stream")}
    return {"requestBody": {"required": True, "content": content}}


def batch_body() -> dict[str, Any]:
    """Return the `openapi_extra` of an operation with several photos."""
    line = _object(("photo",), _BASE64)
    line["properties"]["name"] = {"type": "string", "maxLength": 1000}
    line["description"] = "One line of NDJSON; there are as many lines as photos."
    content = {
        "multipart/form-data": {"schema": _object(("photo",), {"type": "array", "minItems": 1, "items": _FILE})},
        "application/json": {"schema": _object(("photo",), {"type": "array", "minItems": 1, "items": _BASE64})},
        "application/x-ndjson": {"schema": line},
    }
    return {"requestBody": {"required": True, "content": content}}


def person_body(fields: type[BaseModel] | None) -> dict[str, Any]:
    """Return the `openapi_extra` of an operation with photos of one person, and fields about them."""
    named = {} if fields is None else _schema(fields)
    required = [*named.get("required", ()), "photo"]

    def form(photo: dict[str, Any]) -> dict[str, Any]:
        properties = named.get("properties", {}) | {"photo": {"type": "array", "minItems": 1, "items": photo}}
        return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}

    content = {"multipart/form-data": {"schema": form(_FILE)}, "application/json": {"schema": form(_BASE64)}}
    return {"requestBody": {"required": True, "content": content}}


def job_body() -> dict[str, Any]:
    """Return the `openapi_extra` of an operation with the photos of many people."""
    line = _object(("photo",), _BASE64)
    line["properties"] = {"person": {"type": "string", "minLength": 1, "maxLength": 200}} | line["properties"]
    line["required"] = ["person", "photo"]
    line["description"] = "One line of NDJSON; there are as many lines as photos."
    archive = _FILE | {"description": "A ZIP archive: one folder a person, with the person's name and photos."}
    content = {"application/zip": {"schema": archive}, "application/x-ndjson": {"schema": line}}
    return {"requestBody": {"required": True, "content": content}}


def json_body(fields: Any) -> dict[str, Any]:
    """Return the `openapi_extra` of an operation that takes one JSON object."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema(fields)}}}}


def _schema(fields: Any) -> dict[str, Any]:
    return TypeAdapter(fields).json_schema(ref_template="#/components/schemas/{model}")


def _object(names: Sequence[str], value: dict[str, Any]) -> dict[str, Any]:
    properties = {name: dict(value) for name in names}
    return {"type": "object", "required": list(names), "properties": properties, "additionalProperties": False}


def describe_api(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the OpenAPI document of these routes."""
    described = [route for route in routes if isinstance(route, APIRoute) and route.include_in_schema]
    document = get_openapi(
        title="edgeface",
        version=VERSION,
        summary="Face recognition at the edge.",
        description="Every operation but those of health needs a key. Errors are problems of RFC 9457 with a `code`.",
        routes=described,
    )
    names = Counter(route.name for route in described)
    for route in described:
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            _complete(operation, route)
            if names[route.name] == 1:
                operation["operationId"] = route.name
    components = document.setdefault("components", {})
    components["securitySchemes"] = _SECURITY
    components["responses"] = {str(status): response for status, response in problems(*_MEANING).items()}
    schemas = components.setdefault("schemas", {})
    schemas["ProblemAnswer"] = ProblemAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of errors, which is never answered
        schemas.pop(name, None)
    for schema in schemas.values():  # of a documented dataclass, the first paragraph
        if "description" in schema:
            schema["description"] = re.split(r"\n\s*\n", schema["description"])[0]
    return document


def _complete(operation: dict[str, Any], route: APIRoute) -> None:
    """Add an operation's key, its role, and the problems that follow from what it takes."""
    responses = operation["responses"]
    if tags := operation.get("tags"):
        operation["tags"] = tags[-1:]  # the route's own, if it has one, else its router's
    for response in responses.values():
        if response["description"] == "Successful Response" and route.response_model is not None:
            response["description"] = inspect.getdoc(route.response_model)
    if lines := responses.get("200", {}).get("content", {}).get("application/x-ndjson"):
        lines["schema"] = {"$ref": f"#/components/schemas/{route.response_model.__name__}"}
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    roles = [role for call in _calls(route.dependant) if isinstance(role := getattr(call, "role", None), Role)]
    if not roles and "requestBody" not in operation:
        return
    statuses = {400, 429, 503}
    if roles:
        operation["security"] = [{"key": [roles[0].value]}, {"bearer": [roles[0].value]}]
        operation["description"] = (
            f"{operation.get('description', '')}\n\nNeeds a key of the role {roles[0].value}.".strip()
        )
        operation["x-role"] = roles[0].value
        statuses |= {401, 403}
    if "requestBody" in operation:
        statuses |= {408, 413, 415, 422}
    if "parameters" in operation:
        statuses |= {422}
    if "{" in route.path:
        statuses |= {404}
    if computing_of in _calls(route.dependant):
        statuses |= {501, 504, 507}
    statuses |= {int(status) for status in responses if int(status) in _MEANING}
    responses |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}
    operation["responses"] = dict(sorted(responses.items()))


def _calls(dependant: Dependant) -> list[Any]:
    return [dependant.call, *(call for each in dependant.dependencies for call in _calls(each))]
