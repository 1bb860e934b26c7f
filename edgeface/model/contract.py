"""Describe what an IR expects, what it returns, and its identity; store that inside the IR.

Embeddings, galleries, thresholds and benchmark results carry the `contract_id`; two of them with different ids
are never compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgeface.errors import ContractError
from edgeface.model.stored import (
    UNNUMBERED,
    ModelKind,
    StoredContract,
    hash_fields,
    parse_as,
    parse_floats,
    parse_size,
    require_hexadecimal,
    require_member,
)
from edgeface.model.stored import Color as Color
from edgeface.model.stored import Layout as Layout
from edgeface.model.stored import Precision as Precision
from edgeface.model.stored import Provenance as Provenance

SEEDED_WARNING = "SEEDED WEIGHTS: random numbers; this model recognises no one"
"""What every output about such a model says."""

CropRecipe = Literal[
    "mtcnn-box-margin",
    "mtcnn-box-output-margin",
    "five-point-112",
    "five-point-96x112",
    "five-point-150",
    "outer-eyes-nose-96",
]
"""By which a crop is cut out of a photo."""
AlignmentRecipe = Literal[CropRecipe, "none"]
Method = Literal["int8-mixed", "int8-performance", "weights", "fp16", "head", "finetuned"]

MIN_AGREEING_COSINE, MAX_ACCURACY_DROP = 0.97, 0.001
"""What a compressed model must keep: the cosine of each embedding with the parent's, and accuracy on labelled pairs."""

_MEASURED = ("mean_cosine", "p01_cosine", "min_cosine", "accuracy_drop")


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a crop is cut out of a photo for this model.

    Attributes
    ----------
    recipe
        ``mtcnn-box-margin``: detector box grown by ``margin / 2`` pixels of the *original* image a side,
        clipped to the image, resized bilinearly (davidsandberg/facenet, `align_dataset_mtcnn.py`).
        ``mtcnn-box-output-margin``: the margin is counted in pixels of the *output* crop
        (facenet-pytorch, `mtcnn.py`).
        ``five-point-112``, ``five-point-96x112`` and ``five-point-150``: similarity transform of five landmarks
        onto a template (ArcFace's, SphereFace's, and that of dlib's 150-pixel chips).
        ``outer-eyes-nose-96``: affine transform of outer eye corners and nose (OpenFace).
        ``none``: the caller's crop is used unchanged.
    margin
        Pixels, for the two box recipes; 0 otherwise.
    """

    recipe: AlignmentRecipe
    margin: int = 0

    def __post_init__(self) -> None:
        require_member("alignment recipe", self.recipe, AlignmentRecipe)
        if not isinstance(self.margin, int) or self.margin < 0:
            raise ContractError(f"alignment margin: expected 0 or more whole pixels, found {self.margin!r}")

    @classmethod
    def parse(cls, text: str) -> Alignment:
        """Read ``recipe`` or ``recipe:margin``; raise ContractError if it is neither.

        Examples
        --------
        >>> Alignment.parse("mtcnn-box-margin:32")
        Alignment(recipe='mtcnn-box-margin', margin=32)
        """
        recipe, _, margin = text.partition(":")
        if margin and not (margin.isascii() and margin.isdigit()):
            raise ContractError(f"alignment margin: expected 0 or more whole pixels, found {margin!r}")
        return cls(recipe, int(margin or 0))  # type: ignore[arg-type]  # checked by __post_init__

    def __str__(self) -> str:
        return f"{self.recipe}:{self.margin}" if self.margin else self.recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """How a compressed or trained IR was made from its parent, and how much accuracy that cost.

    Attributes
    ----------
    parent_id
        `contract_id` of the IR that was compressed, or trained on.
    method
        ``int8-mixed`` and ``int8-performance``: weights and activations in 8 bits, by NNCF's two presets;
        ``weights``: weights alone in 8 bits; ``fp16``: weights alone in half precision; ``finetuned``: weights
        trained further; ``head``: a classifier was trained on its embeddings, and the IR computes what its parent does.
    settings
        Everything else that the numbers depend on, as text: NNCF's version, the number of calibration images,
        bias correction, the layers left in floating point; or the recipe of the training and its epochs.
    calibration_sha256
        SHA-256 over the calibration crops in their order, or over the digests of the photos that were trained on;
        empty where the method needs none.
    mean_cosine, p01_cosine, min_cosine
        Cosine between the embeddings and the parent's on held-out faces: mean, 1st percentile, lowest.
    accuracy_drop
        Verification accuracy of the parent on labelled pairs, minus this IR's, as a fraction; None where it was
        not measured.
    """

    parent_id: str
    method: Method
    settings: str
    calibration_sha256: str
    mean_cosine: float
    p01_cosine: float
    min_cosine: float
    accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        require_member("lineage: method", self.method, Method)
        require_hexadecimal("lineage: parent_id", self.parent_id, 16)
        if self.calibration_sha256:
            require_hexadecimal("lineage: calibration_sha256", self.calibration_sha256, 64)
        for name in _MEASURED:
            value = getattr(self, name)
            if value is None and name == "accuracy_drop":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ContractError(f"lineage: {name}: expected a finite number, found {value!r}")
            object.__setattr__(self, name, float(value))

    @property
    def agrees(self) -> bool:
        """Whether the measurements show that it decides like its parent: within the limits that are usual."""
        drop = 0.0 if self.accuracy_drop is None else self.accuracy_drop
        return self.min_cosine >= MIN_AGREEING_COSINE and drop <= MAX_ACCURACY_DROP + 1e-12

    @property
    def changes_numbers(self) -> bool:
        """Whether the IR computes other embeddings than its parent."""
        return self.method != "head"

    def identity(self) -> dict[str, str]:
        """Return the fields that the IR's numbers depend on: all but the measured ones."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _MEASURED}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Lineage:
        """Rebuild what `dataclasses.asdict` gave; raise TypeError if one is missing, unknown or of another type."""
        if not isinstance(stored, Mapping):
            raise TypeError(f"expected the fields of a lineage, found {stored!r}")
        for name in ("parent_id", "method", "settings", "calibration_sha256"):
            if not isinstance(stored.get(name), str):
                raise TypeError(f"lineage: {name}: expected text, found {stored.get(name)!r}")
        return cls(**stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelContract(StoredContract):
    """What the IR of an embedding model expects and what it returns.

    Attributes
    ----------
    name
        The model's name in the zoo, or the name given at conversion.
    framework, source_sha256
        Of the source model: ``tf``, ``onnx``, ``pytorch``, ``keras``, ``dlib`` or ``openvino``, and 64 hexadecimal
        digits. For the record: they do not enter `contract_id` where `weights_id` is known.
    provenance
        ``published``: digest or weights known to be the published ones; ``seeded``: random weights, useless for
        recognition; ``unknown``: a file of the user's own.
    input_name, output_name
        Tensor names in the IR.
    input_size
        (height, width) in pixels.
    layout, color, value_range
        The IR's input: ``NCHW`` or ``NHWC``, ``BGR`` or ``RGB``, lowest and highest raw value.
    mean, scale
        Per channel, in the channel order of the training (RGB for FaceNet). For the record: they are folded into
        the IR, which computes ``(x - mean) / scale`` itself.
    embedding_dim, metric, normalized
        Length of one embedding, how two are compared, and whether rows leave the IR with unit length.
    alignment, precision
        How the crop is made, and the precision of the stored weights.
    converter_version, openvino_version
        Versions of edgeface and OpenVINO that wrote the file. They do not enter `contract_id`.
    weights_sha256
        SHA-256 of the IR's .bin, to detect a damaged or exchanged one; empty before it is written.
    lineage
        The parent of a compressed or trained IR; None for a converted one.
    weights_id
        SHA-256 over the source model's weights in a form that does not depend on the file they came in
        (`edgeface.convert.source.digest_of_weights`); a published model's is that of its zoo entry; empty in
        contracts that edgeface 0.1 wrote.
    """

    name: str
    framework: str
    source_sha256: str
    provenance: Provenance
    input_name: str
    output_name: str
    input_size: tuple[int, int]
    layout: Layout
    color: Color
    value_range: tuple[float, float]
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    embedding_dim: int
    metric: Literal["cosine"]
    normalized: bool
    alignment: Alignment
    precision: Precision
    converter_version: str
    openvino_version: str
    weights_sha256: str = ""
    lineage: Lineage | None = None
    weights_id: str = ""

    kind: ClassVar[ModelKind] = "embedding"
    optional: ClassVar[frozenset[str]] = frozenset({"lineage", "weights_id"})
    parsers: ClassVar[Mapping[str, Any]] = {
        "input_size": parse_size,
        "value_range": parse_floats,
        "mean": parse_floats,
        "scale": parse_floats,
        "embedding_dim": lambda value: parse_as(int, value),
        "normalized": lambda value: parse_as(bool, value),
        "alignment": lambda value: Alignment(**value),
        "lineage": Lineage.from_dict,
    }

    def __post_init__(self) -> None:
        self.check_shared_fields()
        require_member("metric", self.metric, Literal["cosine"])
        require_hexadecimal("source_sha256", self.source_sha256, 64)
        # One value has one form, or the same contract would have two ids: 127 and 127.0 differ in JSON.
        for name, length in {"input_size": 2, "value_range": 2, "mean": 3, "scale": 3}.items():
            number = int if name == "input_size" else float
            values = tuple(number(value) for value in getattr(self, name))
            if len(values) != length or not all(map(math.isfinite, values)):
                raise ContractError(f"{name}: expected {length} numbers, found {values}")
            object.__setattr__(self, name, values)
        if min(self.input_size) < 1:
            raise ContractError(f"input_size: expected positive (height, width), found {self.input_size}")
        if self.embedding_dim < 1:
            raise ContractError(f"embedding_dim: expected a positive number, found {self.embedding_dim}")
        if 0 in self.scale:
            raise ContractError(f"scale: expected numbers other than 0, found {self.scale}")
        if self.weights_id:
            remember_former_ids(self.contract_id, self.former_ids)

    @property
    def contract_id(self) -> str:
        """Hash over everything that changes the numbers, as 16 hexadecimal digits.

        Names and the versions of the tools that wrote the file are left out: converting the same weights again
        with a newer OpenVINO keeps every gallery valid. Quantizing again with another NNCF does not, because it
        may round differently. With a `weights_id`, the file that carried the weights is left out too: a frozen graph
        and a checkpoint of the same weights have one id.
        """
        outside = UNNUMBERED | {"framework", "source_sha256"} if self.weights_id else UNNUMBERED
        stored = {key: value for key, value in self.to_dict().items() if key not in outside}
        if self.lineage is not None and self.lineage.changes_numbers:
            stored["lineage"] = self.lineage.identity()
        else:
            stored.pop("lineage", None)
        return hash_fields(stored)

    @property
    def output_length(self) -> int:
        """Numbers of one embedding."""
        return self.embedding_dim

    @property
    def former_ids(self) -> tuple[str, ...]:
        """Ids under which edgeface 0.1 would have known this IR; embeddings, galleries and thresholds keep them.

        It hashed the digest of the source file instead of that of the weights.
        """
        if not self.weights_id:
            return ()
        former = dataclasses.replace(self, weights_id="")
        if self.lineage is not None and self.lineage.method == "finetuned":
            return ()
        if self.lineage is not None and self.lineage.changes_numbers:
            parent = dataclasses.replace(former, precision="FP32", lineage=None)
            lineage = dataclasses.replace(self.lineage, parent_id=parent.contract_id)
            former = dataclasses.replace(former, lineage=lineage)
        return (former.contract_id,)

    def refuse_seeded(self, *, source: str, allow_seeded: bool = False) -> None:
        """Raise ContractError if the weights are seeded, that is, random: the model recognises no one.

        Every function that recognises calls this when it gets its model; `allow_seeded` is for trying them out.
        """
        if self.provenance == "seeded" and not allow_seeded:
            raise ContractError(
                path=Path(source),
                expected="a model of trained weights",
                found="seeded ones: random numbers, which recognise no one",
                remedy="convert a trained model (edgeface zoo list), or allow it with --allow-seeded, in Python "
                "allow_seeded=True",
            )


def current_id(contract_id: str) -> str:
    """Return the id that an IR of these numbers has today, for an id that edgeface 0.1 wrote; others are returned."""
    return _CURRENT_IDS.get(contract_id, contract_id)


def ids_of(contract_id: str) -> tuple[str, ...]:
    """Return every known id of the same IR: `current_id`, then those that edgeface 0.1 wrote."""
    current = current_id(contract_id)
    return (current, *(former for former, known in _CURRENT_IDS.items() if known == current))


def remember_former_ids(contract_id: str, former_ids: Iterable[str]) -> None:
    """Make `current_id` return `contract_id` for each of these, in this process.

    The first claim stays: another contract that claims the same former id gets nothing of what was stored under it.
    """
    for former in former_ids:
        _CURRENT_IDS.setdefault(former, contract_id)


_CURRENT_IDS: dict[str, str] = {
    # FaceNet 20180408-102900, FP32: from a graph of the published weights, and from the published .pb itself
    "4c0ebb72970188bf": "c9c4145b201ace67",
    "4a50098f89d5372d": "c9c4145b201ace67",
    # the same, FP16
    "aabd6ac57ea4a621": "c41a484efc9868e9",
    "79268cb30e28fc95": "c41a484efc9868e9",
}
"""Today's id of each former one: of the published models, and of every contract that this process has read."""
