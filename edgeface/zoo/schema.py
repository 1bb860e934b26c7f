"""Check the entry of a model in the catalog: every key, its type and its range.

Keys are Open Model Zoo's wherever it has one (model.yml; its reader is `_configuration.py` of model_tools);
edgeface's own are beside them. An unknown key or a value of another type is an error, never ignored.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Strict, Tag, model_validator

from edgeface.model.contract import Alignment, AlignmentRecipe, Color, Layout

Text = Annotated[str, Strict()]
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
Triple = tuple[Number, Number, Number]

Framework = Literal["caffe", "dldt", "dlib", "keras", "mxnet", "onnx", "paddle", "pytorch", "tf"]

TaskType = Literal[
    "classification", "detection", "face_recognition", "feature_extraction", "head_pose_estimation", "object_attributes"
]
"""Open Model Zoo's task types that its face models have, anti-spoofing (``classification``) included."""

TRUST_ON_FIRST_USE = "trust-on-first-use"
"""`checksum` of a file without a published one: it is recorded at the first download and required from then on."""

MODEL_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")
_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


def relative_path(text: str) -> str:
    """Check that a path stays inside its folder.

    Raises ValueError if it is absolute, empty, leads to a parent, or has a backslash, colon or control
    character.
    """
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00-\x1f]", text):
        raise ValueError("expected a relative path without '..', '\\' or ':'")
    return text


def _web_address(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        raise ValueError("expected an http:// or https:// address")
    return text


RelativePath = Annotated[Text, AfterValidator(relative_path)]
WebAddress = Annotated[Text, AfterValidator(_web_address)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False, protected_namespaces=())


class HttpSource(_Strict):
    """A file at an address; in YAML, a bare address."""

    type: Literal["http"] = Field(alias="$type")
    url: WebAddress

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"$type": "http", "url": value} if isinstance(value, str) else value

    def __str__(self) -> str:
        return self.url


class GoogleDriveSource(_Strict):
    """A file that Google Drive shares under an identifier."""

    type: Literal["google_drive"] = Field(alias="$type")
    id: Annotated[Text, Field(pattern=r"^[0-9A-Za-z_-]+$")]

    def __str__(self) -> str:
        return f"Google Drive file {self.id}"


class PythonPackageSource(_Strict):
    """A file of an installed Python distribution, which is found without importing it."""

    type: Literal["python_package"] = Field(alias="$type")
    distribution: Annotated[Text, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]*$")]
    path: RelativePath  # as the distribution installs it

    def __str__(self) -> str:
        return f"{self.path} of the Python package {self.distribution}"


def _source_type(value: Any) -> Any:
    if isinstance(value, str):
        return "http"
    return value.get("$type") if isinstance(value, dict) else getattr(value, "type", None)


Source = Annotated[
    Annotated[HttpSource, Tag("http")]
    | Annotated[GoogleDriveSource, Tag("google_drive")]
    | Annotated[PythonPackageSource, Tag("python_package")],
    Discriminator(
        _source_type,
        custom_error_type="source",
        custom_error_message="expected an address, or a mapping with '$type' http, google_drive or python_package",
    ),
]


class Checksum(_Strict):
    """A digest; in YAML, bare text is a SHA-384 or ``trust-on-first-use``."""

    type: Literal["sha256", "sha384", "sha512", "trust-on-first-use"] = Field(alias="$type")
    value: Text = ""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if value == TRUST_ON_FIRST_USE:
            return {"$type": value}
        return {"$type": "sha384", "value": value} if isinstance(value, str) else value


class ModelFile(_Strict):
    """One file to download, from its sources in their order; `original_source` is a key of Open Model Zoo too."""

    name: RelativePath  # inside the model's folder
    size: Annotated[Integer, Field(ge=0)] | None = None  # bytes; None where none is published
    checksum: Checksum | None = None
    sha256: Text | None = None
    source: Source
    alternative_sources: tuple[Source, ...] = ()
    original_source: Source | None = None

    @model_validator(mode="after")
    def _checksum_is_usable(self) -> ModelFile:
        if self.checksum is None and self.sha256 is None:
            raise ValueError(f"expected 'checksum' or 'sha256' (or 'checksum: {TRUST_ON_FIRST_USE}'), found neither")
        if self.trust_on_first_use and self.sha256 is not None:
            raise ValueError(f"expected either 'sha256' or 'checksum: {TRUST_ON_FIRST_USE}', found both")
        for algorithm, digest in self.digests.items():
            if not re.fullmatch(f"[0-9a-f]{{{_DIGEST_LENGTHS[algorithm]}}}", digest):
                raise ValueError(
                    f"expected {_DIGEST_LENGTHS[algorithm]} hexadecimal digits of {algorithm.upper()} "
                    f"or '{TRUST_ON_FIRST_USE}', found {digest!r}"
                )
        return self

    @property
    def trust_on_first_use(self) -> bool:
        """Whether no digest is published, so that the first download decides."""
        return self.checksum is not None and self.checksum.type == TRUST_ON_FIRST_USE

    @property
    def digests(self) -> dict[str, str]:
        """Published digests in lower case, by algorithm; empty when the first download decides."""
        found: dict[str, str] = {}
        if self.checksum is not None and not self.trust_on_first_use:
            found[self.checksum.type] = self.checksum.value.lower()
        if self.sha256 is not None:
            found["sha256"] = self.sha256.lower()
        return found

    @property
    def sources(self) -> tuple[HttpSource | GoogleDriveSource | PythonPackageSource, ...]:
        """Every source, in the order of the attempts."""
        last = () if self.original_source is None else (self.original_source,)
        return (self.source, *self.alternative_sources, *last)

    @property
    def packages(self) -> tuple[PythonPackageSource, ...]:
        """The sources that are Python packages."""
        return tuple(source for source in self.sources if isinstance(source, PythonPackageSource))


class UnpackArchive(_Strict):
    """Unpack a downloaded archive into its own folder and drop the archive."""

    type: Literal["unpack_archive"] = Field(alias="$type")
    format: Literal["zip", "tar", "gztar"]
    file: RelativePath


class RegexReplace(_Strict):
    """Replace text in a downloaded file; `count` 0 means every occurrence."""

    type: Literal["regex_replace"] = Field(alias="$type")
    file: RelativePath
    pattern: Text
    replacement: Text
    count: Annotated[Integer, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _pattern_compiles(self) -> RegexReplace:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"expected a regular expression, found {self.pattern!r}: {error}") from None
        return self


class Tensor(_Strict):
    """An input or output of the source model; -1 stands for a dimension that varies."""

    name: Text
    shape: tuple[Integer, ...] | None = None
    layout: Text | None = None


class PreprocessingSpec(_Strict):
    """What the network expects: ``(x - mean) / scale``, per channel, in the order of `color`."""

    color: Color
    layout: Layout
    size: tuple[Integer, Integer] | None = None  # (height, width) in pixels; None for a detector that takes any
    mean: Triple
    scale: Triple
    value_range: tuple[Number, Number]  # lowest and highest raw value before `mean` and `scale`


class AlignmentSpec(_Strict):
    """YAML form of `edgeface.model.contract.Alignment`; margin in pixels."""

    recipe: AlignmentRecipe
    margin: Annotated[Integer, Field(ge=0)] = 0


class EmbeddingSpec(_Strict):
    """The output: its length, its metric, and whether rows have unit length."""

    dim: Annotated[Integer, Field(gt=0)]
    metric: Literal["cosine"]
    normalized: Flag


class LivenessSpec(_Strict):
    """The crop and the output of a liveness model, as in `LivenessContract`."""

    crop_scale: Annotated[Number, Field(ge=1)]
    classes: tuple[Text, ...]  # in the order of the output


class Conversion(_Strict):
    """The file or folder of the unpacked download that the converter reads; ``.`` is the model's folder itself.

    The published digest of that file makes an archive verifiable that has no published digest itself.
    """

    source: RelativePath
    sha256: Annotated[Text, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    weights_id: Annotated[Text, Field(pattern=r"^[0-9a-f]{64}$")] | None = None  # as in `ModelContract`
    fingerprint: Annotated[tuple[Number, ...], Field(min_length=32, max_length=32)] | None = None
    """Of the model as the entry's recipe describes it: `edgeface.convert.parity.fingerprint_of`, row by row."""


class Published(_Strict):
    """One published accuracy of this model."""

    metric: Text
    value: Number
    dataset: Text
    source: WebAddress


class ModelEntry(_Strict):
    """One model of a catalog."""

    name: Annotated[Text, Field(pattern=f"^{MODEL_NAME.pattern}$")]  # key in model_zoo.yml, or folder of a model.yml
    description: Text
    task_type: TaskType
    files: tuple[ModelFile, ...]
    postprocessing: tuple[Annotated[UnpackArchive | RegexReplace, Field(discriminator="type")], ...] = ()
    framework: Framework
    license: WebAddress  # of the text
    license_name: Text | None = None
    non_commercial: Flag = False  # downloading and converting it need an acceptance of its licence
    input_info: tuple[Tensor, ...] = ()
    output_info: tuple[Tensor, ...] = ()
    model_optimizer_args: tuple[Text, ...] | None = None
    conversion_to_onnx_args: tuple[Text, ...] | None = None
    quantizable: Flag = False
    quantized: Literal["INT8"] | None = None
    preprocessing: PreprocessingSpec | None = None  # None in a model.yml, which does not say it reliably
    alignment_spec: AlignmentSpec | None = Field(default=None, alias="alignment")
    embedding: EmbeddingSpec | None = None  # None for detectors and liveness models
    liveness: LivenessSpec | None = None  # None for all others
    conversion: Conversion | None = None
    published: tuple[Published, ...] = ()
    stages: tuple[Text, ...] = ()  # of a composite model, in order; their files live in folders of these names

    @model_validator(mode="after")
    def _files_fit_together(self) -> ModelEntry:
        names = [file.name for file in self.files]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected file names that differ, found {doubled[0]!r} twice")
        for step in self.postprocessing:
            if step.file not in names:
                raise ValueError(f"postprocessing: expected one of the entry's files, found {step.file!r}")
        return self

    @property
    def alignment(self) -> Alignment | None:
        """How a face is aligned for this model; None where the entry does not say."""
        spec = self.alignment_spec
        return None if spec is None else Alignment(recipe=spec.recipe, margin=spec.margin)

    @property
    def size(self) -> int | None:
        """Bytes of the whole download; None while a file's size is unknown."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions of a ready IR, or those that a conversion offers, in Open Model Zoo's words."""
        if self.framework != "dldt":
            return ("FP16", "FP32")
        return tuple(sorted({file.name.split("/")[0] for file in self.files if file.name.startswith("FP")}))

    @property
    def subdirectory(self) -> str:
        """Open Model Zoo's folder for it: ``intel/<name>`` for a ready IR, ``public/<name>`` for the rest."""
        return f"{'intel' if self.framework == 'dldt' else 'public'}/{self.name}"


def known_keys() -> list[str]:
    """Return every key of every mapping of an entry, to suggest one for a mistyped key."""
    models = _Strict.__subclasses__()
    return sorted({field.alias or key for model in models for key, field in model.model_fields.items()})
