"""One decision a visit; and whatever is missing or wrong, nobody is known."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from kiosk_door import ADA, GRACE, NOBODY, Door, MakeDoor

from edgeface.errors import GalleryError
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.retention import CONSENT, Consent
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.embedding import Embedding


def test_a_live_person_of_the_gallery_is_known_once_however_long_the_visit(door: Door) -> None:
    door.show(ADA, frames=2)
    assert not door.events  # two looks are not enough
    door.show(ADA, frames=300)
    (event,) = door.events
    assert (event.kind.value, event.name, event.frames) == ("known", "Ada", 3)
    assert event.liveness == pytest.approx(0.9)
    assert event.score is not None
    assert event.threshold == 0.5 < event.score
    assert event.crop is None


def test_a_decision_by_a_snapshot_whose_server_is_away_says_how_old_that_is(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    age = [3.0, 900.0]
    monkeypatch.setattr(LiveIndex, "age", property(lambda index: age[0]))
    door.show(ADA, frames=10)
    age.pop(0)
    door.show(GRACE, frames=10)
    first, second = (event.reason for event in door.events)
    assert "snapshot" not in first
    assert second.endswith("; by a snapshot that is 15 min old")


def test_one_picture_repeated_is_one_look(door: Door) -> None:
    for _ in range(20):
        door.shakes = 0  # the same embedding in every frame
        door.show(ADA, frames=1)
    assert not door.events


def test_a_stranger_is_unknown_when_the_patience_ends_or_the_face_leaves(door: Door) -> None:
    door.show(NOBODY, frames=29)
    assert not door.events
    door.show(NOBODY, frames=200)
    assert door.kinds == ["unknown"]
    assert door.events[0].person_id is None
    door.nobody(1.5)
    door.show(ADA, track=2)
    assert door.kinds == ["unknown", "known"]
    door.nobody(1.5)
    door.wait(20)
    door.show(NOBODY, track=3)
    door.nobody(1.5)
    assert door.kinds == ["unknown", "known", "unknown"]


def test_who_passes_without_a_usable_look_is_no_visit_and_who_stays_is_told_why(door: Door) -> None:
    door.show(None, frames=5)
    door.nobody(1.5)
    assert not door.events
    door.show(None, frames=40, track=2)
    (event,) = door.events
    assert event.kind.value == "inconclusive"
    assert "sharpness" in event.reason
    door.show(ADA, track=2)  # came closer
    assert door.kinds == ["inconclusive", "known"]


def test_an_answer_is_repeated_only_after_the_cooldown_in_which_the_face_was_away(door: Door) -> None:
    door.show(ADA)
    for track in range(2, 6):
        door.nobody(3)
        door.show(ADA, track=track)
    assert door.kinds == ["known"]
    door.show(GRACE, track=9)
    assert [event.name for event in door.events] == ["Ada", "Grace"]
    door.nobody(11)
    door.show(ADA, track=10)
    assert [event.name for event in door.events] == ["Ada", "Grace", "Ada"]


def test_somebody_who_takes_a_known_person_s_place_in_the_track_is_another_visit(door: Door) -> None:
    door.show(ADA)
    door.show(NOBODY, frames=40)
    assert door.kinds == ["known", "unknown"]


def test_anti_passback_holds_at_every_camera_and_ends(make_door: MakeDoor) -> None:
    door = make_door(anti_passback=60)
    door.show(ADA)
    door.show(ADA, camera="yard", frames=20)
    assert door.kinds == ["known", "inconclusive"]
    assert "anti-passback" in door.events[1].reason
    assert "door" in door.events[1].reason
    door.nobody(61, camera="yard")
    door.show(ADA, camera="yard", track=2)
    assert door.kinds == ["known", "inconclusive", "known"]


def test_a_photo_is_a_spoof_at_once_and_never_known(door: Door) -> None:
    door.checker.verdict = "spoof"
    door.show(ADA, frames=300)
    assert door.kinds == ["spoof"]
    assert door.events[0].person_id is None


def test_a_look_counts_only_if_its_own_frame_is_live(door: Door) -> None:
    door.show(NOBODY, frames=2)  # lends its liveness
    door.checker.verdict = "inconclusive"
    door.show(ADA, frames=28)  # a photo that the models do not judge
    assert "known" not in door.kinds


@pytest.mark.parametrize("verdict", ["inconclusive", None])
def test_without_liveness_nobody_is_known_unless_that_is_configured(make_door: MakeDoor, verdict: str | None) -> None:
    for needed, expected in ((True, ["inconclusive"]), (False, ["known"])):
        door = make_door(liveness=needed)
        door.checker = None if verdict is None else door.checker
        if verdict:
            door.checker.verdict = verdict
        door.show(ADA, frames=100)
        assert door.kinds == expected
        assert needed == ("liveness" in door.events[0].reason)


def test_while_the_gallery_cannot_be_read_nobody_is_known(
    door: Door, store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise GalleryError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(store, "last_commit", fail)
        door.show(ADA, frames=40)
    assert door.kinds == ["inconclusive"]
    assert "the disk is gone" in door.events[0].reason
    door.show(ADA)
    assert door.kinds == ["inconclusive", "known"]


def test_embeddings_of_another_model_make_nobody_known(door: Door) -> None:
    found = door.decider.identify([[Embedding(np.array([1, 0, 0], np.float32), "b" * 16)]])
    assert "bbbb" in str(found[0])


def test_whose_consent_has_expired_is_not_known_from_that_second_on(door: Door, store: GalleryStore) -> None:
    expires = datetime.fromtimestamp(door.wall + 60, timezone.utc)
    consent = Consent(text_version="1", recorded_by="k", recorded=expires - timedelta(days=1), expires=expires)
    store.update_person(1, metadata={CONSENT: consent.to_dict()})
    door.show(ADA)
    assert door.kinds == ["known"]
    door.wait(60)
    door.show(ADA, track=2, frames=40)
    door.show(GRACE, track=3)
    assert door.kinds == ["known", "inconclusive", "known"]
    assert (door.events[1].reason, door.events[1].person_id) == ("the consent has expired", None)
    store.update_person(1, metadata={CONSENT: replace(consent, expires=None).to_dict()})
    door.wait(60)
    door.show(ADA, track=4)
    assert door.kinds[3:] == ["known"]


def test_who_is_forgotten_while_standing_there_is_not_known(door: Door, store: GalleryStore) -> None:
    door.show(ADA, frames=2)
    store.forget(1)
    door.show(ADA, frames=40)
    assert door.kinds == ["unknown"]


@pytest.mark.parametrize("back", [3600.0, -3600.0, 2e9])
def test_while_the_clock_is_wrong_nobody_is_known(door: Door, back: float) -> None:
    door.show(ADA, frames=1)
    door.wall -= back
    door.show(ADA, frames=50)
    assert door.kinds == ["inconclusive"]
    assert "clock" in door.events[0].reason
    door.wait(60)
    door.show(ADA, track=2)
    assert door.kinds == ["inconclusive", "known" if abs(back) == 3600 else "inconclusive"]


def test_an_old_picture_makes_nobody_known(door: Door) -> None:
    door.show(ADA, age=4.0)
    assert door.kinds == ["inconclusive"]
    assert "old" in door.events[0].reason


def test_an_event_that_nobody_takes_lets_nobody_in_and_is_decided_again(make_door: MakeDoor) -> None:
    door = make_door(anti_passback=60)
    door.full = True
    door.show(ADA, frames=20)
    assert not door.events
    door.full = False
    door.show(ADA, frames=1)
    assert door.kinds == ["known"]  # and did not count as a passage before


def test_when_the_camera_or_a_model_fails_the_visit_is_inconclusive_and_its_looks_are_gone(door: Door) -> None:
    door.show(ADA, frames=2)
    door.visits["door"].end("the camera was lost")
    assert door.kinds == ["inconclusive"]
    door.show(ADA, frames=1, track=2)
    assert door.kinds == ["inconclusive"]
    door.show(ADA, frames=2, track=2)
    assert door.kinds == ["inconclusive", "known"]


def test_a_crop_is_given_only_if_configured(make_door: MakeDoor) -> None:
    door = make_door(crop=True)
    door.show(ADA)
    assert door.events[0].crop is not None
    assert door.events[0].crop.shape == (42, 42, 3)
    assert "crop" not in door.events[0].to_dict()
