"""One decision a visit, and every failure is closed."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from edgeface.errors import InputError
from edgeface.kiosk.outcome import VisitEvent, VisitKind

VISIT: dict[str, Any] = {"camera": "door", "contract_id": "c", "frames": 3, "reason": "r"}


def test_an_event_names_a_person_only_if_it_is_known() -> None:
    event = VisitEvent(kind=VisitKind.known, person_id=1, name="Ada", **VISIT)
    assert event
    assert json.loads(json.dumps(event.to_dict()))["time"].endswith("+00:00")
    assert not VisitEvent(kind=VisitKind.unknown, **VISIT)
    for wrong in (
        {"kind": VisitKind.spoof, "person_id": 1, "name": "Ada"},
        {"kind": VisitKind.known},
        {"kind": VisitKind.known, "person_id": 1},
        {"kind": VisitKind.unknown, "time": datetime(2026, 1, 1)},
    ):
        with pytest.raises(InputError, match="visit"):
            VisitEvent(**wrong, **VISIT)
