"""What is said of a visit, who that is, and why nobody may be known now."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.gallery.index.live import LiveIndex
from edgeface.kiosk.settings import DecisionSettings
from edgeface.model.contract import ModelContract
from edgeface.model.embedding import Embedding, require_same_contract
from edgeface.recognize.identify import Identification, Identifier
from edgeface.recognize.open_set import choose_search_threshold

_log = logging.getLogger(__name__)

STALE = 3.0
"""Seconds after which a picture, or an event that nobody took, says nothing about who is there now."""
_STEP_BACK, _SETTLING = 2.0, 60.0
"""Seconds by which the clock must go back to be wrong, and for which it then has to go on before it is believed."""
_EARLIEST = datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp()
"""A clock before this was never set."""


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
        """Return JSON types, without the crop."""
        told = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "crop"}
        return told | {"time": self.time.isoformat(), "kind": self.kind.value}


class Decider:
    """Says who a visitor is, for all cameras, and whether anybody may be known now; safe to call from threads.

    Parameters
    ----------
    settings
        When a person is known.
    contract
        Of the embeddings.
    index
        Of the gallery.
    emit
        Takes an event, and returns whether it did: a known person whose event nobody takes was not known.
    clock, monotonic
        `time.time` and `time.monotonic`.

    Raises
    ------
    ContractError
        If the gallery is of another model.

    Attributes
    ----------
    lock
        Held while it is decided and emitted whether a person has passed: two cameras never let one person in at once.
    """

    def __init__(
        self,
        settings: DecisionSettings,
        contract: ModelContract,
        index: LiveIndex,
        emit: Callable[[VisitEvent], bool],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        require_same_contract(index.contract_id, contract.contract_id, what="watching")
        self.settings, self.contract, self._index, self._emit = settings, contract, index, emit
        self._clock, self._monotonic = clock, monotonic
        self.lock = threading.RLock()
        self._passed: dict[int, tuple[str, float]] = {}  # by person: camera, and when
        self._wall, self._tick, self._wrong_until = clock(), monotonic(), -np.inf

    def identify(self, looks: Sequence[Sequence[Embedding]]) -> list[Identification] | str:
        """Identify faces by their looks, in one generation of the gallery; or return why that failed."""
        try:
            with self._index.snapshot() as index:
                threshold = choose_search_threshold(
                    self.settings.threshold, self.contract, fpir=self.settings.fpir, gallery_size=max(1, len(index))
                )
                return Identifier(index, threshold, margin=self.settings.margin).identify_looks(looks)
        except Exception as error:  # whatever it was, nobody is known
            _log.exception("nobody can be identified")
            return f"the gallery cannot be read: {error}"

    def emit(self, event: VisitEvent) -> bool:
        """Hand an event over, and return whether it was taken; a known person has passed then. Hold `lock`."""
        taken = self._emit(event)
        if taken and event.person_id is not None:
            self._passed[event.person_id] = event.camera, self._monotonic()
        return taken

    def forget(self, person_id: int) -> None:
        """Take back that a person has passed, as of one who was not let in."""
        with self.lock:
            self._passed.pop(person_id, None)

    def why_closed(self, person_id: int, age: float) -> str:
        """Return why this person cannot be known now by a picture of `age` seconds; empty if nothing is against it."""
        with self.lock:
            if why := self.check_clock():
                return why
            if age > STALE:
                return f"the picture is {age:.1f} s old"
            camera, at = self._passed.get(person_id, ("", -np.inf))
            since = self._monotonic() - at
            if since < self.settings.anti_passback:
                return f"anti-passback: was known {since:.0f} s ago at {camera}"
            return ""

    def check_clock(self) -> str:
        """Return why the clock cannot be believed; empty if it can. Call it often: it notices steps."""
        with self.lock:
            wall, tick = self._clock(), self._monotonic()
            if self._wall + (tick - self._tick) - wall > _STEP_BACK:
                _log.error("the clock went back: nobody is known for %g s", _SETTLING)
                self._wrong_until = tick + _SETTLING
            self._wall, self._tick = wall, tick
            if wall < _EARLIEST:
                return "the clock is not set"
            return "the clock went back" if tick < self._wrong_until else ""
