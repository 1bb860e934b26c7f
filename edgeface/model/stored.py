"""Store a contract in an IR as strings, and read it back: what the contracts of all kinds of models share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from edgeface.errors import ContractError, InputError
from edgeface.untrusted import parse_json

if TYPE_CHECKING:
    from typing_extensions import Self

CONTRACT_VERSION = 3
"""Version of the stored form. A newer one is refused, because its meaning is unknown.

Version 3 has the digest of the .xml (`edgeface.model.ir_file.bind_xml`); version 1 has no `weights_id` either.
"""

RT_INFO_KEY = "edgeface"
FILE_SHA256 = "file_sha256"
"""Field beside the contract's, of an IR file: SHA-256 of its .xml with `NO_DIGEST` in place of these digits."""
NO_DIGEST = hashlib.sha256(b"edgeface: digest of the .xml, known once it is written").hexdigest()
MODEL_API_KEY = "model_info"
KIND = "kind"
"""Field beside the contract's, of an IR of another kind than an embedding model's."""

Layout = Literal["NCHW", "NHWC"]
Color = Literal["BGR", "RGB"]
Precision = Literal["FP32", "FP16", "INT8"]
Provenance = Literal["published", "seeded", "unknown"]

ModelKind = Literal["embedding", "liveness"]
KIND_NAMES: dict[ModelKind, str] = {"embedding": "an embedding model", "liveness": "a liveness model"}

UNNUMBERED = frozenset(
    {"name", "input_name", "output_name", "provenance", "converter_version", "openvino_version", "weights_sha256"}
)
"""Fields that do not change the numbers, and stay out of the `contract_id` of every kind."""
_FIRST_BOUND = 3


class StoredContract:
    """Base of the contracts, which are frozen dataclasses: their form in an IR's rt_info, under ``edgeface``."""

    __slots__ = ()

    kind: ClassVar[ModelKind]
    parsers: ClassVar[Mapping[str, Callable[[Any], Any]]]
    """Parsers of the fields that are stored as JSON rather than as plain text."""
    optional: ClassVar[frozenset[str]]
    """Fields that a stored contract may lack."""

    name: str
    provenance: Provenance
    input_size: tuple[int, int]
    layout: Layout
    color: Color
    value_range: tuple[float, float]
    precision: Precision
    weights_sha256: str
    weights_id: str

    @property
    def contract_id(self) -> str:
        """Hash over everything that changes the numbers, as 16 hexadecimal digits."""
        raise NotImplementedError

    @property
    def output_length(self) -> int:
        """Numbers that the IR returns for one image."""
        raise NotImplementedError

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        """Return the shape of the IR's input for this many faces."""
        height, width = self.input_size
        return (batch, 3, height, width) if self.layout == "NCHW" else (batch, height, width, 3)

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON types, without `contract_id`, and without the optional ones that are not set."""
        stored: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]
        for name in self.optional:
            if not stored[name]:
                del stored[name]  # older versions of edgeface read the contract too, and the id stays
        return stored

    def to_text(self) -> dict[str, str]:
        """Return every field of `to_dict` as text: what is no text is JSON."""
        return {name: each if isinstance(each, str) else json.dumps(each) for name, each in self.to_dict().items()}

    @classmethod
    def from_text(cls, stored: Mapping[str, Any]) -> Self:
        """Rebuild what `to_text` wrote, or `to_dict`.

        Raises ContractError as `from_dict`, and if a text is not the JSON that it should be.
        """
        parsed = dict[str, Any]()
        for name, raw in stored.items():
            try:
                parsed[name] = parse_json(raw) if name in cls.parsers and isinstance(raw, str) else raw
            except (InputError, ValueError) as error:
                raise ContractError(f"contract field {name!r} is damaged: {raw!r:.200}") from error
        return cls.from_dict(parsed)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` wrote.

        Raises ContractError if a field is missing, unknown, or of the wrong type.
        """
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if missing := sorted(known - stored.keys() - cls.optional):
            raise ContractError(f"contract: the fields {', '.join(missing)} are missing")
        if unknown := sorted(stored.keys() - known):
            raise ContractError(f"contract: unknown fields {', '.join(unknown)}; it was written by another program")
        try:
            return cls(**{name: cls.parsers.get(name, parse_text)(value) for name, value in stored.items()})
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ContractError(f"contract: a field has the wrong type: {error}") from error

    def write_to(self, model: Any, *, bound: bool = False) -> None:
        """Store the contract in an `openvino.Model`'s rt_info, as strings.

        `bound` leaves room for the digest of the .xml, which `edgeface.model.ir_file.bind_xml` has to fill in.
        The keys that Intel's Model API also reads go under ``model_info`` too. Mean and scale do not: they
        are folded into the graph, and Model API would apply them a second time.
        """
        height, width = self.input_size
        version = CONTRACT_VERSION if bound else 2 if self.weights_id else 1
        stored = {"contract_version": str(version), "contract_id": self.contract_id}
        stored |= {FILE_SHA256: NO_DIGEST} if bound else {}
        stored |= {} if self.kind == "embedding" else {KIND: self.kind}
        stored |= self.to_text()
        model.set_rt_info(stored, RT_INFO_KEY)  # all at once, which removes what another contract left
        for key, text in {
            "model_name": self.name,
            "resize_type": "standard",
            "orig_height": str(height),
            "orig_width": str(width),
            "reverse_input_channels": str(self.color == "RGB"),
        }.items():
            model.set_rt_info(text, [MODEL_API_KEY, key])

    @classmethod
    def read_from(cls, model: Any, *, source: str = "the IR") -> Self:
        """Read the contract that `write_to` stored in an `openvino.Model`; `source` is the file's name in messages.

        It does not see that the .xml was edited: `edgeface.model.ir_file.contract_of` does.

        Raises ContractError if there is none, if it is of another kind, if a newer edgeface wrote it, or if its
        `contract_id` does not match.
        """
        if not model.has_rt_info([RT_INFO_KEY, "contract_version"]):
            raise ContractError(
                f"{source}: expected an IR with an edgeface contract, found none; convert the model with "
                "'edgeface convert', or add a contract to the IR with 'edgeface adopt'"
            )
        if (kind := stored_kind(model)) != cls.kind:
            raise ContractError(
                path=source,
                expected=KIND_NAMES[cls.kind],
                found=KIND_NAMES.get(kind, f"a contract of the kind {kind!r:.40}"),  # type: ignore[call-overload]
                remedy=f"name {KIND_NAMES[cls.kind]}; see them with: edgeface zoo list",
            )

        def text(name: str) -> str:
            if not model.has_rt_info([RT_INFO_KEY, name]):
                raise ContractError(f"{source}: the contract has no field {name!r}; convert the model again")
            return str(model.get_rt_info([RT_INFO_KEY, name]).astype(str))

        if (version := text("contract_version")) not in map(str, range(1, CONTRACT_VERSION + 1)):
            raise ContractError(
                f"{source}: expected a contract of version {CONTRACT_VERSION} or older, found version {version}; "
                "update edgeface, or convert the model again with this one"
            )
        if int(version) >= _FIRST_BOUND:
            text(FILE_SHA256)  # raises without one
        stored: dict[str, Any] = {
            field.name: text(field.name)
            for field in dataclasses.fields(cls)  # type: ignore[arg-type]
            if field.name not in cls.optional or model.has_rt_info([RT_INFO_KEY, field.name])
        }
        beside = {"contract_version", "contract_id", FILE_SHA256, KIND}
        if unknown := sorted(model.rt_info[RT_INFO_KEY].keys() - {*stored, *beside}):
            raise ContractError(
                f"{source}: the contract has unknown fields {', '.join(unknown)}; it was written by another program"
            )
        try:
            contract = cls.from_text(stored)
        except ContractError as error:
            raise ContractError(f"{source}: {error}") from error
        if contract.contract_id != text("contract_id"):
            raise ContractError(
                f"{source}: the contract says contract_id {text('contract_id')}, but its fields give "
                f"{contract.contract_id}: it was edited by hand; convert the model again"
            )
        return contract

    def check_shared_fields(self) -> None:
        """Check the fields that every kind has, and give their values one form; for ``__post_init__``."""
        require_member("provenance", self.provenance, Provenance)
        require_member("layout", self.layout, Layout)
        require_member("color", self.color, Color)
        require_member("precision", self.precision, Precision)
        for name in ("weights_sha256", "weights_id"):
            if digest := getattr(self, name):
                require_hexadecimal(name, digest, 64)


def stored_kind(model: Any) -> str:
    """Return the kind of the contract in an `openvino.Model`; those of embedding models do not say it."""
    if not model.has_rt_info([RT_INFO_KEY, KIND]):
        return "embedding"
    return str(model.get_rt_info([RT_INFO_KEY, KIND]).astype(str))


def hash_fields(stored: Mapping[str, Any]) -> str:
    """Return the `contract_id` of these fields: the first 16 digits of the SHA-256 of their canonical JSON."""
    canonical = json.dumps(stored, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def require_member(what: str, value: object, allowed: Any) -> None:
    """Raise ContractError unless a value is one of a Literal's."""
    if value not in get_args(allowed):
        raise ContractError(f"{what}: expected one of {', '.join(get_args(allowed))}, found {value!r}")


def require_hexadecimal(what: str, value: str, digits: int) -> None:
    """Raise ContractError unless a text is so many lower-case hexadecimal digits."""
    if len(value) != digits or set(value) - set("0123456789abcdef"):
        raise ContractError(f"{what}: expected {digits} lower-case hexadecimal digits, found {value!r}")


def parse_as(kind: type, value: Any) -> Any:
    """Return a value that has this type; true and false are no numbers."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"expected {_TYPES[kind]}, found {value!r}")
    return value


def parse_text(value: Any) -> Any:
    """Return a value that is text."""
    return parse_as(str, value)


def parse_size(value: Any) -> tuple[int, ...]:
    """Return whole numbers."""
    return tuple(parse_as(int, item) for item in value)


def parse_floats(value: Any) -> tuple[float, ...]:
    """Return numbers."""
    return tuple(float(item) for item in value)


_TYPES: dict[type, str] = {str: "text", bool: "true or false", int: "a whole number"}
