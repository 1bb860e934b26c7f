"""Describe what the IR of a liveness model expects and returns.

One mistake in the colour order, the value range or the crop makes such a model answer "live" to a photo. So a contract
states them, and accepts no other than those that a crop of `edgeface.vision.liveness` has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edgeface.errors import ContractError
from edgeface.model.stored import (
    UNNUMBERED,
    Color,
    Layout,
    ModelKind,
    Precision,
    Provenance,
    StoredContract,
    hash_fields,
    parse_as,
    parse_floats,
    parse_size,
    require_hexadecimal,
    require_member,
)

LIVE = "live"
"""Name of the class of live faces; every other class is a kind of attack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessContract(StoredContract):
    """What the IR of one liveness model expects and what it returns.

    Attributes
    ----------
    name, framework, source_sha256, provenance, input_name, output_name, input_size, layout, precision
        As in `ModelContract`; the layout is NCHW.
    converter_version, openvino_version, weights_sha256, weights_id
        As in `ModelContract`.
    color, value_range
        ``BGR``, and 0 to 255 without mean or scale.
    crop_scale
        Side of the crop in sides of the face's box.
    crop
        ``shifted``: a crop that reaches beyond the frame is moved inside, and one that is larger than the frame has a
        smaller scale (`edgeface.vision.liveness.crop_region`).
    classes
        Name of each number that the IR returns; these are probabilities and add up to 1. One is ``live``.
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
    crop_scale: float
    crop: Literal["shifted"]
    classes: tuple[str, ...]
    precision: Precision
    converter_version: str
    openvino_version: str
    weights_id: str
    weights_sha256: str = ""

    kind: ClassVar[ModelKind] = "liveness"
    optional: ClassVar[frozenset[str]] = frozenset()
    parsers: ClassVar[Mapping[str, Any]] = {
        "input_size": parse_size,
        "value_range": parse_floats,
        "crop_scale": float,
        "classes": lambda value: tuple(parse_as(str, item) for item in value),
    }

    def __post_init__(self) -> None:
        self.check_shared_fields()
        require_member("crop", self.crop, Literal["shifted"])
        require_hexadecimal("source_sha256", self.source_sha256, 64)
        require_hexadecimal("weights_id", self.weights_id, 64)
        given = (self.layout, self.color, self.value_range)
        if given != ("NCHW", "BGR", (0.0, 255.0)):
            raise ContractError(
                expected="a liveness model of NCHW images in BGR, 0 to 255, as its crops are cut", found=f"{given}"
            )
        if len(self.input_size) != 2 or min(self.input_size) < 1:
            raise ContractError(f"input_size: expected positive (height, width), found {self.input_size}")
        if not (math.isfinite(self.crop_scale) and self.crop_scale >= 1):
            raise ContractError(f"crop_scale: expected a number of 1 or more, found {self.crop_scale}")
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2 or LIVE not in self.classes:
            raise ContractError(f"classes: expected different names, one of them {LIVE!r}, found {self.classes}")

    @property
    def contract_id(self) -> str:
        """Hash over everything that changes the numbers, as 16 hexadecimal digits; see `ModelContract.contract_id`."""
        outside = UNNUMBERED | {"framework", "source_sha256"}
        return hash_fields({key: value for key, value in self.to_dict().items() if key not in outside})

    @property
    def output_length(self) -> int:
        """Number of classes."""
        return len(self.classes)
