"""Configure the service: one YAML file, each key also an environment variable, everything checked before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeface.errors import GalleryError, InputError
from edgeface.gallery.address import is_on_server
from edgeface.gallery.records import check_labels
from edgeface.limits import usable_cores
from edgeface.untrusted import YAML_BYTES, read_text, reading
from edgeface.zoo.catalog import Document

PREFIX = "EDGEFACE_SERVE"
"""Begins the name of each environment variable, e.g. EDGEFACE_SERVE_LISTEN__PORT."""

Positive = Annotated[int, Field(ge=1)]
S = TypeVar("S", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]


class Section(BaseModel):
    """Keys of a configuration, each with a docstring that `describe_settings` prints; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Listen(Section):
    """Where the service listens."""

    host: str = "127.0.0.1"
    """Address of the interface; 0.0.0.0 for all, which needs tls unless insecure is true."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Of HTTP; 0: any free one."""
    socket: Path | None = None
    """Unix socket on which this user's programs are served besides, plain, e.g. for EDGEFACE_SERVER; null: none."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Of KServe V2 over gRPC (extra grpc), with the same keys and TLS; 0: any free one; null: there is no gRPC."""
    insecure: bool = False
    """Serve other machines without TLS: keys and faces can be read on the way."""
    root_path: Annotated[str, Field(pattern=r"^(/[^/\s?#]+)*$")] = ""
    """Path below which a proxy shows the service."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For is believed."""


class Tls(Section):
    """Files of TLS, as `edgeface serve certificates` makes them."""

    certificate: Path
    """Chain in PEM."""
    key: Path
    """Private key in PEM."""
    client_ca: Path | None = None
    """Authority of client certificates, which are then needed; null: none are asked for."""


class Model(Section):
    """One model and the detector before it."""

    model: str | None = None
    """An IR (.xml), a zoo name, or a folder with a folder for each version (1, 2, ...), of which the highest is
    loaded; null: the default model of this machine."""
    device: str = "CPU"
    """OpenVINO device."""
    detector: Literal["auto", "mtcnn", "yunet", "retail-0004"] | None = "auto"
    """What finds the faces; auto: what the galleries were made with, else YuNet if it is downloaded, else MTCNN; null:
    every photo is one aligned crop."""
    min_size: Positive | None = None
    """Smallest face that is looked for, in pixels; null: the smallest that the quality gate lets pass where one
    decides, else a fifth of the model's input, but at least 20."""
    hint: Literal["latency", "throughput"] = "throughput"
    """latency: all cores embed one face, for a service that few ask at a time; throughput: each embeds its own."""
    allow_seeded: bool = False
    """Take a model of random weights, which recognises no one."""


class SnapshotOptions(Section):
    """Of the snapshot of a gallery on a server."""

    max_age_hours: Annotated[float, Field(gt=0, le=24 * 366)] = 24.0
    """Nobody is recognised any more when the server was last reached so long ago."""
    group: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Only the people of this group are copied and recognised, and whoever is enrolled here gets it; null: all."""
    offline_enrolment: bool = False
    """Queue the enrolments that come while the server is away, and send them when it is back; false: refuse them."""


class Gallery(Section):
    """One gallery."""

    place: str | None = None
    """A file, or postgresql://user@host/database?gallery=NAME; null: NAME.gallery in the state folder, made if
    missing."""
    key: str | None = None
    """Where its key is: file:PATH, env:NAME or command:WORDS; null: keys/NAME.key in the state folder, made if
    missing, for a gallery that the service makes, else EDGEFACE_GALLERY_KEY."""
    unencrypted: bool = False
    """The gallery has no key."""
    model: Name = "default"
    """Which of the models embeds its faces."""
    keep_images: bool = False
    """A gallery that the service makes keeps an image of each face, which a rebuild with another model needs."""
    gate: bool = True
    """Faces that are too small, blurred, dark or turned are not compared."""
    fpir: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Target false positive identification rate; null: 0.01."""
    threshold: float | Path | None = None
    """A cosine, or a file of thresholds; null: those known for the model."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.0
    """How far the next person's cosine must be below the best one's."""
    snapshot: SnapshotOptions | None = None
    """Recognise people from a copy of a gallery on a server, also while the server is away, for at most max_age_hours
    (24) hours; group (null) names the only group of people that is copied; offline_enrolment (false) queues enrolments
    meanwhile; {} for all defaults; null: ask the server each time."""

    @model_validator(mode="after")
    def _snapshot_fits(self) -> Gallery:
        if self.snapshot is not None and (self.place is None or not is_on_server(self.place)):
            found = self.place or "none"
            raise ValueError(f"snapshot: expected a place on a server, postgresql://..., found {found}; leave it out")
        if self.snapshot is not None and self.unencrypted:
            raise ValueError("snapshot: it lies on this machine's disk; give the gallery a key: edgeface gallery rekey")
        if self.snapshot is not None and self.snapshot.group is not None:
            try:
                check_labels([self.snapshot.group])
            except GalleryError as error:
                raise ValueError(f"snapshot.group: {error}") from None
        return self


class Limits(Section):
    """What one request, and all at once, may take."""

    body_bytes: Positive = 16 << 20
    """Of a request's body."""
    image_bytes: Positive = 10 << 20
    """Of one image file."""
    image_pixels: Positive = 25_000_000
    """Of one image, read from its header before it is decoded."""
    images: Positive = 32
    """Of one batch request."""
    faces: Positive = 64
    """Of one photo; more are an error."""
    seconds: Annotated[float, Field(gt=0)] = 10.0
    """For one request; a client may ask for less with the header X-Request-Timeout."""
    body_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Within which a request's body must have arrived."""
    job_bytes: Positive = 256 << 20
    """Of the upload of a job."""
    job_unpacked: Positive = 1 << 30
    """Bytes that such an upload may unpack to."""
    job_photos: Positive = 10_000
    """Of one job."""
    job_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Within which the upload of a job must have arrived."""
    workers: Positive = Field(default_factory=usable_cores)
    """Requests that are computed at once; default: one for each core."""
    queue: Annotated[int, Field(ge=0)] = 8
    """Requests that wait for a worker; more are refused with 503."""
    connections: Positive = 256
    """Open connections; more are refused with 503."""
    people_page: Positive = 1000
    """Most people or templates of one page."""


class Keys(Section):
    """How often a key or an address may ask."""

    per_key: Annotated[float, Field(gt=0)] = 100.0
    """Requests a second of one key, on average over ten seconds."""
    per_address: Annotated[float, Field(gt=0)] = 200.0
    """Requests a second of one address."""
    wrong_per_address: Annotated[float, Field(gt=0)] = 1.0
    """Wrong keys a second of one address, after ten."""


class Audit(Section):
    """The log of who asked what."""

    enabled: bool = True
    """Write it."""
    retention_days: Positive = 365
    """Older rows are removed."""


class ConsentText(Section):
    """What people agree to who are enrolled on the page, and what happens when a consent has expired."""

    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,80}$")] = "edgeface-1"
    """Names the texts in the record of the consent, before the language, e.g. 2026-11/de: another one for other
    texts."""
    texts: dict[Annotated[str, Field(pattern="^[a-z]{2}$")], Annotated[str, Field(min_length=1, max_length=4000)]] = (
        Field(default_factory=dict)
    )
    """What the face is used for, by language (en, de, fr, es, pl, ar); where one is missing the first one is shown;
    empty: the page's own, to be recognised at this door. What is stored, and until when, the page adds."""
    days: Positive | None = 365
    """After which the consent ends; null: not by itself."""
    expired: Literal["forget", "report"] = "forget"
    """Forget people whose consent has expired, with proof, when the notice is over; or only report them."""
    notice_days: Annotated[float, Field(ge=0, le=3650)] = 7.0
    """Days from the report that it has expired, in which a consent can be renewed."""


class Telemetry(Section):
    """Traces of requests, by OpenTelemetry (extra otel)."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s@/?#]+(/[^\s?#]*)?$")] | None = None
    """Of a collector, OTLP over HTTP, e.g. http://127.0.0.1:4318/v1/traces; null: off."""


def state_folder() -> Path:
    """Return the folder for what the service keeps: the user's data folder (``~/.local/share/edgeface/serve``)."""
    import platformdirs

    return Path(platformdirs.user_data_dir("edgeface", appauthor=False)) / "serve"


class Settings(Section):
    """All of the service's configuration; see `load_settings`."""

    state: Path = Field(default_factory=state_folder)
    """Folder of keys, audit log, jobs, and of galleries that the service makes."""
    listen: Listen = Listen()
    """Where it listens."""
    tls: Tls | None = None
    """TLS; null: plain HTTP."""
    models: dict[Name, Model] = Field(default_factory=lambda: {"default": Model()}, min_length=1)
    """By name; the name is that of KServe's paths too."""
    galleries: dict[Name, Gallery] = Field(default_factory=lambda: {"default": Gallery()}, min_length=1)
    """By name; the first one is used where a request names none."""
    limits: Limits = Field(default_factory=Limits)
    """Of one request and of all at once."""
    keys: Keys = Keys()
    """Of rates."""
    audit: Audit = Audit()
    """The audit log."""
    consent: ConsentText = Field(default_factory=ConsentText)
    """What the page asks people to agree to, and when it ends."""
    telemetry: Telemetry = Telemetry()
    """Traces of requests."""
    origins: tuple[str, ...] = ()
    """Origins of pages that may call the API from a browser (CORS), e.g. https://door.example; none by default."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Of the log on stderr."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object a line, or text."""
    cache: Path | None = None
    """Folder of compiled models; null: a folder of the user's cache."""

    def require_gallery(self, name: str) -> None:
        """Raise `InputError` unless there is a gallery of this name."""
        if name not in self.galleries:
            raise InputError(
                expected=f"a gallery of the configuration: {', '.join(self.galleries)}",
                found=repr(name),
                remedy="name one of them, or add it to the configuration first",
            )

    @model_validator(mode="after")
    def _names_fit(self) -> Settings:
        for name, gallery in self.galleries.items():
            if gallery.model not in self.models:
                raise ValueError(
                    f"galleries.{name}.model: expected one of {sorted(self.models)}, found {gallery.model!r}"
                )
        if self.listen.socket is not None and self.tls is not None:
            raise ValueError("listen.socket: it is served plain, and tls is for all; leave one of them out")
        local = self.listen.host in ("127.0.0.1", "::1", "localhost")
        if not local and self.tls is None and not self.listen.insecure:
            raise ValueError(
                f"listen.host: {self.listen.host} can be reached by other machines and there is no tls; make "
                "certificates with 'edgeface serve certificates', or say insecure: true"
            )
        return self


def load_settings(
    path: Path | None = None, environ: Mapping[str, str] = os.environ, *, kind: type[Settings] = Settings
) -> Settings:
    """Read the service's configuration with `read_settings`; `kind` may know more keys.

    Examples
    --------
    >>> load_settings(environ={"EDGEFACE_SERVE_LISTEN__PORT": "8443"}).listen.port
    8443
    """
    return read_settings(kind, path, environ, prefix=PREFIX, command="edgeface serve")


def read_settings(kind: type[S], path: Path | None, environ: Mapping[str, str], *, prefix: str, command: str) -> S:
    """Read a configuration.

    Parameters
    ----------
    kind
        What its keys are.
    path
        A YAML file; None: defaults.
    environ
        Variables that begin with `prefix` and an underscore replace keys: two underscores go one level down, the
        value is YAML. ``EDGEFACE_SERVE_GALLERIES__DEFAULT__FPIR=0.001`` sets ``galleries.default.fpir``.
    prefix
        E.g. ``EDGEFACE_SERVE``.
    command
        Its option ``--print-config`` is named in errors.

    Raises
    ------
    InputError
        For a file that cannot be read, an unknown key, or a value out of range: all of them are named.
    """
    where = "environment" if path is None else str(path)
    given: Any = {} if path is None else _read(path, command)
    if not isinstance(given, dict):
        raise InputError(path=path, expected="keys and values", found=type(given).__name__)
    for name, text in sorted(environ.items()):
        if name.startswith(prefix + "_"):
            _put(given, name.removeprefix(prefix + "_").lower().split("__"), text, name)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg']}" for each in error.errors()]
        raise InputError(
            path=where, expected=f"the keys that '{command} --print-config' shows", found="; ".join(wrong)
        ) from error


def _read(path: Path, command: str) -> Any:
    text = read_text(path, f"the configuration of {command}", limit=YAML_BYTES)
    with reading(path, "YAML", remedy=f"compare it with '{command} --print-config'"):
        return Document(text, name=str(path)).data or {}


def _put(tree: dict[str, Any], keys: list[str], text: str, name: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise InputError(f"{name}: expected a variable of one value, found that {key} has no keys below it")
    try:
        tree[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        found = getattr(error, "problem", None) or "something else"  # not the value, which may be a password
        raise InputError(f"{name}: expected a YAML value, in quotes if it begins with a sign; {found}") from error


def describe_settings(settings: Section | None = None, *, prefix: str = PREFIX) -> str:
    """Return a YAML file of the defaults in which each key is explained, and its environment variable is named.

    `settings` are the defaults; None: those of the service.
    """
    return "\n".join(_describe(settings or Settings(), prefix, 0)) + "\n"


def _describe(section: BaseModel, prefix: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        variable = f"{prefix}{'__' if depth else '_'}{name.upper()}"
        value = getattr(section, name)
        yield f"{indent}# {' '.join((field.description or '').split())} [{variable}]"
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _describe(value, variable, depth + 1)
        elif isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            for key, each in value.items():
                yield f"{indent}  {key}:"
                yield from _describe(each, f"{variable}__{key.upper()}", depth + 2)
        else:
            plain = yaml.safe_dump(section.model_dump(mode="json")[name], default_flow_style=True)
            yield f"{indent}{name}: {plain.strip().removesuffix('...').strip()}"
