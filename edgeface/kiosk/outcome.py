"""What is said of a visit: its kind, and the event that the kiosk tells."""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError


class VisitKind(str, Enum):
    """Outcome of a visit; true if the person was recognised, and live."""

    known = "known"
    unknown = "unknown"
    inconclusive = "inconclusive"
    spoof = "spoof"

    def __bool__(self) -> bool:
        return self is VisitKind.known


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisitEvent:
    """The one decision about a visit; true if it is ``known``.

    Attributes
    ----------
    id
        Of the event, a version 4 UUID in 32 hexadecimal digits.
    time
        When it was decided, UTC.
    camera
        Name of the camera.
    kind
        ``known``: `person_id`, and live. ``unknown``: nobody of the gallery. ``spoof``: a photo or a screen.
        ``inconclusive``: none of these can be said, as `reason` says.
    person_id, name
        Of the person; None unless ``known``.
    score
        Cosine similarity of the most similar person; None if nobody was compared.
    threshold
        What the score has to exceed; None if nobody was compared.
    contract_id
        Of the embeddings.
    gallery_id
        Of the gallery that `person_id` is of; not told, but kept in the log.
    frames
        Looks it rests on: crops of the face that were compared.
    liveness
        Probability that the face is live, the mean over its frames; None if it was not judged.
    reason
        What decided, in one line for people.
    crop : (H, W, 3) uint8, BGR, or None
        The face; None unless the configuration asks for it.

    Raises
    ------
    InputError
        If a person goes with another kind than ``known``, or the time has no zone.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    time: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    camera: str
    kind: VisitKind
    person_id: int | None = None
    name: str | None = None
    score: float | None = None
    threshold: float | None = None
    contract_id: str
    gallery_id: str = ""
    frames: int
    liveness: float | None = None
    reason: str
    crop: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        named = self.person_id is not None and self.name is not None
        if bool(self.kind) != named or (self.person_id is None) != (self.name is None) or self.time.tzinfo is None:
            raise InputError(
                "visit: expected a person's id and name with kind 'known' and with no other, and a time with a zone, "
                f"found {self.kind.value!r}, person {self.person_id} and {self.time}"
            )

    def __bool__(self) -> bool:
        return bool(self.kind)

    def closed(self, reason: str) -> VisitEvent:
        """Return the event without the person, ``inconclusive`` for this reason."""
        return dataclasses.replace(self, kind=VisitKind.inconclusive, person_id=None, name=None, reason=reason)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, without the crop and the gallery."""
        left_out = ("crop", "gallery_id")
        told = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in left_out}
        return told | {"time": self.time.isoformat(), "kind": self.kind.value}
