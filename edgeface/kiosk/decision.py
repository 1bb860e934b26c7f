"""Say who a visitor is, and why nobody may be known now."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

import numpy as np

from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.retention import EXPIRED, withhold
from edgeface.kiosk.outcome import VisitEvent
from edgeface.kiosk.settings import DecisionSettings
from edgeface.model.contract import ModelContract
from edgeface.model.embedding import Embedding, require_same_contract
from edgeface.recognize.identify import Identification, Identifier
from edgeface.recognize.open_set import choose_search_threshold
from edgeface.serve.snapshots import AWAY_SECONDS, describe_age

_log = logging.getLogger(__name__)

STALE = 3.0
"""Seconds after which a picture, or an event that nobody took, says nothing about who is there now."""
_STEP, _SETTLING = 2.0, 60.0
"""Seconds by which the clock must be set to be wrong, and for which it then has to go on before it is believed."""
_EARLIEST = datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp()
"""A clock before this was never set."""


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
        self.gallery_id = index.gallery_id
        self._clock, self._monotonic = clock, monotonic
        self.lock = threading.RLock()
        self._passed: dict[int, tuple[str, float]] = {}  # by person: camera, and when
        self._wall, self._tick, self._wrong_until = clock(), monotonic(), -np.inf

    def identify(self, looks: Sequence[Sequence[Embedding]]) -> list[Identification | str]:
        """Identify faces by their looks, in one generation of the gallery; or say of each why that cannot be."""
        try:
            with self._index.snapshot() as index:
                threshold = choose_search_threshold(
                    self.settings.threshold, self.contract, fpir=self.settings.fpir, gallery_size=max(1, len(index))
                )
                found = Identifier(index, threshold, margin=self.settings.margin).identify_looks(looks)
                return [self._consenting(index, each) for each in found]
        except Exception as error:  # whatever it was, nobody is known
            _log.exception("nobody can be identified")
            return [f"the gallery cannot be read: {error}"] * len(looks)

    def _consenting(self, index: LiveIndex, found: Identification) -> Identification | str:
        found = withhold(index, found, datetime.fromtimestamp(self._clock(), timezone.utc))
        return "the consent has expired" if found.reason == EXPIRED else found

    def told_age(self) -> str:
        """Return what is to be said of the gallery's age; empty while its server answers, and where it has none."""
        age = self._index.age
        return "" if age is None or age <= AWAY_SECONDS else f"; by a snapshot that is {describe_age(age)} old"

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
            step = wall - self._wall - (tick - self._tick)
            if abs(step) > _STEP:
                _log.error("the clock was set by %.0f s: nobody is known for %g s", step, _SETTLING)
                self._wrong_until = tick + _SETTLING
            self._wall, self._tick = wall, tick
            if wall < _EARLIEST:
                return "the clock is not set"
            return "the clock was set" if tick < self._wrong_until else ""
