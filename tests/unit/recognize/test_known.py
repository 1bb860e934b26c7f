"""Which thresholds are known for a model: the user's own, those that ship, and what every answer says about them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from contracts import sample_contract

from edgeface.errors import InputError
from edgeface.recognize import Embedding, Metric, Threshold, calibrate, load_thresholds, save_thresholds, verify
from edgeface.recognize.known import (
    RATES,
    advise_calibration,
    choose_threshold,
    own_path,
    own_thresholds,
    shipped_thresholds,
    thresholds_for,
)
from edgeface.recognize.open_set import choose_search_threshold, threshold_from_pairs

FACENET = "c9c4145b201ace67"


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "store"))


def calibrate_own(impostors: int, *, shift: float = 0.0, contract_id: str = FACENET) -> tuple[Threshold, ...]:
    """Calibrate on a studio's photos, whose impostors are more alike than LFW's by `shift`."""
    rng = np.random.default_rng(0)
    made = calibrate(
        rng.normal(0.7, 0.1, 500),
        rng.normal(0.05 + shift, 0.13, impostors),
        fars=RATES,
        contract_id=contract_id,
        metric=Metric.cosine,
        measured_on="people",
    )
    save_thresholds(own_path(contract_id), made)
    return made


def test_every_file_that_ships_is_of_lfw_and_says_so_in_every_answer() -> None:
    files = sorted(Path(str(own_path.__code__.co_filename)).with_name("thresholds").glob("*.json"))
    assert FACENET in {path.stem for path in files}
    for path in files:
        known = load_thresholds(path)
        assert shipped_thresholds(path.stem) == known
        assert {each.contract_id for each in known} == {path.stem}
        assert {each.far for each in known} >= set(RATES)
        assert all(each.supported and each.measured_on == "LFW" for each in known)
        at = {each.far: each for each in known}
        face = Embedding([1.0, 0.0], path.stem)
        answer = verify(face, face, at[0.001])
        assert "far=0.001 on LFW" in repr(answer)
        assert answer.to_dict()["measured_on"] == "LFW"
        assert "up to 3.5 times as high. Calibrate on your own: edgeface calibrate PEOPLE" in answer.to_dict()["note"]
        search = threshold_from_pairs(known, fpir=0.001, gallery_size=1559)
        assert search.supported
        assert search.rate == "FPIR 0.001 on LFW"
        assert at[1e-6].frr < search.expected_fnir < 1


def test_the_users_own_thresholds_go_before_those_that_ship_where_the_photos_suffice() -> None:
    own = {each.far: each for each in calibrate_own(4000, shift=0.1)}
    shipped = {each.far: each for each in shipped_thresholds(FACENET)}
    known = {each.far: each for each in thresholds_for(FACENET)}
    assert (known[0.01], known[0.001]) == (own[0.01], own[0.001])
    assert known[0.01].value > shipped[0.01].value
    assert "LFW" not in known[0.01].note
    for far in (1e-4, 1e-5, 1e-6):  # 4,000 pairs say nothing about these
        assert known[far] == shipped[far]
    assert known[1e-6].measured_on == "LFW"
    values = [known[far].value for far in RATES]
    assert values == sorted(values)


def test_a_rate_between_own_and_shipped_thresholds_names_both() -> None:
    calibrate_own(4000)
    found = threshold_from_pairs(thresholds_for(FACENET), fpir=0.02, gallery_size=22)  # FAR 9.2e-4
    assert found.measured_on == "LFW and people"
    assert "3.5 times as high. Calibrate on more of your own" in found.note(22)


def test_a_rate_that_ones_own_photos_are_too_few_for_says_how_many_are_missing_and_nothing_else() -> None:
    calibrate_own(4000)
    found = threshold_from_pairs(thresholds_for(FACENET), fpir=0.01, gallery_size=20)  # FAR 5e-4
    assert not found.supported
    note = found.note(20)
    assert "5,972 impostor pairs (56 people with two photos each); there were 4,000, 1,972 are missing" in note
    assert "LFW" not in note
    assert "alibrate" not in note


def test_own_photos_for_a_permissive_rate_only_do_not_decide_where_the_usual_one_is_asked_for() -> None:
    contract = sample_contract()
    calibrate_own(1000, contract_id=contract.contract_id)
    assert [each.far for each in thresholds_for(contract)] == [0.01]
    with pytest.raises(InputError, match=r"rate \(0\.01\), found 0\.001; .*40 people .* 2,000 are missing"):
        choose_threshold(None, contract)
    assert choose_threshold(None, contract, far=0.01).supported


def test_own_photos_that_support_no_rate_decide_nothing() -> None:
    contract = sample_contract()
    calibrate_own(12, contract_id=contract.contract_id)  # as an earlier version stored them
    assert thresholds_for(contract) == ()
    for choose in (choose_threshold, partial(choose_search_threshold, gallery_size=3)):
        with pytest.raises(InputError, match=r"FAR 0\.01 needs .* \(13 people .*; there were 12, 288 are missing"):
            choose(None, contract)
    assert choose_threshold(0.5, contract).value == 0.5
    assert not choose_threshold(own_path(contract.contract_id), contract, far=0.001).supported  # asked for by name


def test_a_former_id_finds_what_was_stored_for_todays() -> None:
    calibrate_own(4000)
    assert own_thresholds("4c0ebb72970188bf") == own_thresholds(FACENET) != ()
    assert shipped_thresholds("../thresholds/" + FACENET) == own_thresholds("../thresholds/" + FACENET) == ()


def test_a_stored_file_that_is_damaged_is_named_and_not_passed_over() -> None:
    calibrate_own(4000)
    own_path(FACENET).write_text("{")
    with pytest.raises(InputError, match=FACENET):
        thresholds_for(FACENET)


def test_thresholds_of_0_1_say_nothing_about_where_they_were_measured(tmp_path: Path) -> None:
    calibrate_own(4000)
    document = json.loads(own_path(FACENET).read_text())
    for each in document["thresholds"]:
        del each["measured_on"], each["inherited"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert {each.measured_on for each in load_thresholds(tmp_path / "old.json")} == {""}


def test_the_advice_to_calibrate_comes_with_20_people_and_ends_when_it_was_followed() -> None:
    assert advise_calibration(FACENET, 19) == ""
    assert advise_calibration(FACENET, 20, "staff/") == "calibrate on your own photos: edgeface calibrate staff/"
    calibrate_own(4000)
    assert advise_calibration(FACENET, 20) == ""
