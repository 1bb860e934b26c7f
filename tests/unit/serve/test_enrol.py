"""Enrol, update and forget without HTTP: what the paths of all APIs call."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny_ir import BLUE, GREEN, RED
from unit.serve.conftest import OPEN, MakeService, jpeg

from edgeface.errors import EnrolmentRefused
from edgeface.gallery.retention import Consent
from edgeface.serve.enrol import (
    enrol_photos,
    find_person,
    find_template,
    forget,
    list_people,
    record_consent,
    update_person,
)
from edgeface.serve.problems import NotFound, Problem
from edgeface.serve.service import Service

pytestmark = pytest.mark.timeout(60)
NEAR_BLUE = (220, 26, 20)
CALLER = SimpleNamespace(key_id="0badcafe", request_id="door-7")


def test_photos_make_a_person_and_later_ones_are_added_to_it(service: Service) -> None:
    gallery = service.gallery(None)
    consent = record_consent({"text_version": "2026-1", "expires": "2030-01-01T00:00:00+02:00"}, "0badcafe")
    done = enrol_photos(
        service, gallery, CALLER, "Ada", [jpeg(BLUE), b"no image", jpeg(None)], labels=["door"], consent=consent
    )
    assert done.enrolment.created
    assert [(str(each.path), each.reason) for each in done.refused] == [
        ("photo 2", "bad-image"),
        ("photo 3", "no-face"),
    ]
    again = enrol_photos(service, gallery, CALLER, done.person.id, [jpeg(NEAR_BLUE), jpeg(BLUE)], metadata={"desk": 7})
    assert (again.enrolment.created, len(again.enrolment.template_ids), again.enrolment.already) == (False, 1, 1)
    stored = find_person(gallery, done.person.id)
    assert (stored.template_count, stored.labels, stored.metadata["desk"]) == (2, ("door",), 7)
    assert Consent.of(stored) == consent
    assert again.to_dict()["metadata"] == {"desk": 7}
    assert again.to_dict()["consent"]["expires"] == "2029-12-31T22:00:00+00:00"


def test_a_face_is_enrolled_once_unless_by_force(service: Service) -> None:
    gallery = service.gallery(None)
    ada = enrol_photos(service, gallery, CALLER, "Ada", [jpeg(BLUE)]).person
    with pytest.raises(EnrolmentRefused) as refusal:
        enrol_photos(service, gallery, CALLER, "Eve", [jpeg(NEAR_BLUE)])
    assert refusal.value.reason == "lookalike"
    (found,) = refusal.value.details
    assert (found["id"], found["name"]) == (ada.id, "Ada")
    with pytest.raises(EnrolmentRefused) as refusal:
        enrol_photos(service, gallery, CALLER, "Bob", [jpeg(GREEN), jpeg(RED)])
    assert refusal.value.reason == "several-people"
    assert refusal.value.details == ({"photos": ["photo 1"]}, {"photos": ["photo 2"]})
    with pytest.raises(EnrolmentRefused) as refusal:
        enrol_photos(service, gallery, CALLER, "Bob", [jpeg(GREEN, RED)])
    assert refusal.value.reason == "no-usable-photo"
    assert refusal.value.details[0]["code"] == "several-faces"
    assert [person.name for person in gallery.store.people()] == ["Ada"]
    assert (
        enrol_photos(service, gallery, CALLER, "Bob", [jpeg(GREEN), jpeg(RED)], force=True).person.template_count == 2
    )


def test_what_cannot_be_stored_is_refused_before_photos_are_read(service: Service) -> None:
    gallery, deep = service.gallery(None), []
    for _ in range(200):
        deep = [deep]
    for changes, code in [
        ({"who": "x" * 10_000}, "bad-name"),
        ({"who": "Ada\u202e"}, "bad-name"),
        ({"who": "#7"}, "bad-name"),
        ({"labels": ["a"] * 65}, "bad-labels"),
        ({"metadata": {"consent": {}}}, "bad-metadata"),
        ({"metadata": {"a": "x" * 20_000}}, "bad-metadata"),
        ({"metadata": {"a": deep}}, "bad-metadata"),
        ({"metadata": {"a": 1 << 80}}, "bad-metadata"),
        ({"metadata": {"a": "\ud800"}}, "bad-metadata"),
        ({"photos": [b""] * 33}, "too-many-photos"),
    ]:
        with pytest.raises(Problem) as problem:
            enrol_photos(service, gallery, CALLER, **({"who": "Ada", "photos": [b""]} | changes))  # type: ignore[arg-type]
        assert problem.value.code == code
        assert problem.value.status == 422
    for given in (
        {},
        {"text_version": ""},
        {"text_version": "1", "expires": "2030-01-01"},
        {"text_version": "1", "x": 1},
    ):
        with pytest.raises(Problem, match="text_version"):
            record_consent(given, "0badcafe")


def test_forgetting_is_proved_and_what_is_gone_is_not_found(make_service: MakeService) -> None:
    service = make_service(galleries={"default": {**OPEN, "keep_images": True}})
    gallery = service.gallery(None)
    ada = enrol_photos(service, gallery, CALLER, "Ada Lovelace", [jpeg(BLUE), jpeg(NEAR_BLUE)]).person
    bob = enrol_photos(service, gallery, CALLER, "Bob", [jpeg(GREEN)]).person
    first, second = (each.id for each in gallery.store.templates_of(ada.id))
    assert find_template(gallery, ada.id, first).has_image
    with pytest.raises(NotFound, match="template"):
        forget(service, gallery, CALLER, bob.id, template_id=first)
    one = forget(service, gallery, CALLER, ada.id, template_id=first)
    assert (one.templates, one.images, one.proved) == (1, 1, True)
    assert [each.id for each in gallery.store.templates_of(ada.id)] == [second]
    assert forget(service, gallery, CALLER, ada.id).to_dict()["proved"] is True
    for call in (find_person, lambda where, who: forget(service, where, CALLER, who), update_person):
        with pytest.raises(NotFound, match="person"):
            call(gallery, ada.id)
    with pytest.raises(NotFound):
        enrol_photos(service, gallery, CALLER, ada.id, [jpeg(BLUE)])


def test_a_change_keeps_the_rest_and_a_name_is_given_once(service: Service) -> None:
    gallery = service.gallery(None)
    ada = enrol_photos(service, gallery, CALLER, "Ada", [jpeg(BLUE)], metadata={"desk": 7}).person
    bob = enrol_photos(service, gallery, CALLER, "Bob", [jpeg(GREEN)]).person
    with pytest.raises(Problem) as problem:
        update_person(gallery, ada.id, name="Bob")
    assert (problem.value.status, problem.value.code, problem.value.errors) == (409, "name-taken", ({"id": bob.id},))
    renamed = update_person(gallery, ada.id, name="Ada Lovelace", labels=["door"])
    assert (renamed.name, renamed.labels, renamed.metadata) == ("Ada Lovelace", ("door",), {"desk": 7})
    consent = record_consent({"text_version": "1"}, "0badcafe")
    assert update_person(gallery, ada.id, consent=consent).metadata.keys() == {"desk", "consent"}
    assert Consent.of(update_person(gallery, ada.id, metadata={})) == consent


def test_people_are_listed_by_page_part_of_the_name_and_label(service: Service) -> None:
    store = service.gallery(None).store
    for number in range(7):
        store.add_person(f"Élodie {number}", labels=["odd"] if number % 2 else [])
    gallery, seen, after = service.gallery(None), [], 0
    while page := list_people(gallery, after=after, limit=2):
        assert len(page) <= 2
        seen += [person.name for person in page]
        after = page[-1].id
        store.forget(page[0].id)  # does not move what follows
    assert seen == [f"Élodie {number}" for number in range(7)]
    left = [person.name for person in list_people(gallery, after=0, limit=9)]
    assert left == ["Élodie 1", "Élodie 3", "Élodie 5"]
    found = list_people(gallery, after=0, limit=9, name="e\u0301LODIE 3", label="odd")
    assert [person.name for person in found] == ["Élodie 3"]
