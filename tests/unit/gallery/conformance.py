"""What every store must do, whatever keeps its data: run against SQLite, and against PostgreSQL.

A test module makes it its own so::

    from unit.gallery.conformance import Place, StoreConformance

    class TestSqlite(StoreConformance):
        @pytest.fixture
        def place(self, tmp_path):
            return Place(create=..., open=...)
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from edgeface.errors import ContractError, EdgeFaceError, GalleryError
from edgeface.gallery.index import ExactIndex, Hits, LiveIndex
from edgeface.gallery.records import KeptImage, NewTemplate
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.embedding import Embedding
from edgeface.recognize.identify import Identifier
from edgeface.recognize.open_set import SearchThreshold

CONTRACT = "0123456789abcdef"
OTHER_CONTRACT = "fedcba9876543210"
DIM = 16


@dataclass(frozen=True)
class Place:
    """Somewhere a gallery can be made, and opened again.

    create(contract_id=..., dim=..., keep_images=...) makes an empty gallery and opens it; open(contract_id=...)
    opens it once more, as another process would. Both refuse what does not fit with the errors of a `GalleryStore`.
    """

    create: Callable[..., GalleryStore]
    open: Callable[..., GalleryStore]
    source: str
    """A Python expression that opens it in another process."""


def vectors(count: int, *, seed: int = 0, dim: int = DIM) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def template(row: np.ndarray, **more: object) -> NewTemplate:
    return NewTemplate(embedding=Embedding(row, CONTRACT), **more)


def templates(count: int, *, seed: int = 0) -> list[NewTemplate]:
    return [template(row) for row in vectors(count, seed=seed)]


def kept(pixels: bytes = b"\x89PNG and so on") -> KeptImage:
    box = np.array([1, 2, 30, 40], np.float32)
    return KeptImage(png=pixels, box=box, landmarks=np.arange(10, dtype=np.float32).reshape(5, 2))


class Renaming(ExactIndex):
    """An index beside which somebody else writes after every search and every comparison."""

    write: Callable[[], object]

    def search(self, probe: Embedding, *, k: int = 1) -> Hits:
        hits = super().search(probe, k=k)
        self.write()
        return hits

    def compare(self, probe: Embedding, person_ids: Sequence[int]) -> Hits:
        hits = super().compare(probe, person_ids)
        self.write()
        return hits


COSINES = 400
"""The writer's n-th generation names a person n, and gives this person a template of the cosine n / COSINES."""


def turn(number: int) -> list[NewTemplate]:
    row = np.zeros(DIM)
    row[0] = number / COSINES
    row[1 + number % (DIM - 1)] = np.sqrt(1 - row[0] ** 2)
    return [template(row.astype(np.float32))]


def write_turns(store: GalleryStore, person_id: int, *, last: int, until: Callable[[], bool]) -> None:
    for number in range(2, last + 1):
        if until():
            return
        with store.writing():
            store.add_templates(person_id, turn(number))
            store.update_person(person_id, name=str(number))


WRITER = """
import sys, threading
from unit.gallery.conformance import write_turns
{imports}
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
with {source} as store:
    print("ready", flush=True)
    write_turns(store, {person_id}, last={last}, until=stop.is_set)
"""


class StoreConformance:
    """The tests; a subclass defines the fixture `place`."""

    @pytest.fixture
    def store(self, place: Place):
        with place.create(contract_id=CONTRACT, dim=DIM, keep_images=True) as opened:
            yield opened

    # What it is bound to

    def test_it_says_what_it_is_bound_to(self, store: GalleryStore) -> None:
        assert isinstance(store, GalleryStore)
        info = store.info
        assert (info.contract_id, info.dim, info.metric, info.keeps_images) == (CONTRACT, DIM, "cosine", True)
        assert len(info.gallery_id) == 32
        assert abs(datetime.now(timezone.utc) - info.created) < timedelta(minutes=10)

    def test_it_is_the_same_when_opened_again(self, store: GalleryStore, place: Place) -> None:
        with place.open(contract_id=CONTRACT) as again:
            assert again.info == store.info

    def test_opening_it_for_another_contract_is_refused(self, store: GalleryStore, place: Place) -> None:
        with pytest.raises(ContractError, match=f"{OTHER_CONTRACT}.*{CONTRACT}"):
            place.open(contract_id=OTHER_CONTRACT)

    # Embeddings of another contract

    @pytest.mark.parametrize(
        "alien",
        [Embedding(vectors(1)[0], OTHER_CONTRACT), Embedding(vectors(1, dim=DIM + 1)[0], CONTRACT)],
        ids=["another contract", "another length"],
    )
    def test_an_embedding_that_does_not_belong_is_refused_and_nothing_changes(
        self, store: GalleryStore, alien: Embedding
    ) -> None:
        person = store.add_person("Ada", templates=templates(1))
        before = store.generation()
        wrong = [*templates(1, seed=5), NewTemplate(embedding=alien)]
        with pytest.raises(ContractError):
            store.add_templates(person.id, wrong)
        with pytest.raises(ContractError):
            store.add_person("Grace", templates=wrong)
        assert store.generation() == before
        assert [each.name for each in store.people()] == ["Ada"]
        assert len(store.load()) == 1

    # What may yet be undone

    def test_what_was_undone_is_of_no_generation(self, store: GalleryStore) -> None:
        store.add_person("Ada", templates=templates(1))
        before, committed = store.generation(), store.history()
        with contextlib.suppress(KeyError), store.writing():
            assert store.load().generation == before
            store.add_person("Grace", templates=templates(1, seed=1))
            loaded, changes = store.load(), store.changes_since(before, committed)
            raise KeyError
        assert changes is not None
        assert (len(loaded), len(changes.added)) == (2, 1)
        store.add_person("Joan", templates=templates(1, seed=2))
        for seen in (loaded.generation, changes.generation):
            assert (
                store.changes_since(seen, loaded.history) is None
            )  # or Grace would stay for ever in whatever follows the store
            assert seen != store.generation()

    # People

    def test_a_person_comes_back_as_given(self, store: GalleryStore, place: Place) -> None:
        metadata = {"badge": 17, "team": ["a", {"b": None}], "ß": "ü\U0001f600"}
        person = store.add_person("Zoë  Ünal", labels=["staff", "day", "staff"], metadata=metadata)
        assert (person.name, person.labels, person.metadata) == ("Zoë Ünal", ("day", "staff"), metadata)
        assert person.template_count == 0
        assert person.created.utcoffset() == timedelta(0)
        with place.open(contract_id=CONTRACT) as again:
            assert again.person(person.id) == again.find("Zoë  Ünal") == person
            assert again.people() == (person,)

    def test_a_name_is_found_in_any_unicode_form(self, store: GalleryStore) -> None:
        person = store.add_person(" Zoe\u0308 ")
        assert person.name == "Zo\u00eb"
        assert store.find("Zo\u00eb") == store.find("Zoe\u0308 ") == person
        assert store.find("Zoe") is None

    def test_two_people_of_one_name_are_refused(self, store: GalleryStore) -> None:
        store.add_person("Ada")
        before = store.generation()
        with pytest.raises(GalleryError, match="Ada"):
            store.add_person("Ada")
        assert store.generation() == before

    @pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00b", "\ud800", "x" * 201])
    def test_what_is_no_name_is_refused(self, store: GalleryStore, name: str) -> None:
        with pytest.raises(GalleryError, match="name"):
            store.add_person(name)

    def test_metadata_that_json_has_no_form_for_is_refused(self, store: GalleryStore) -> None:
        for wrong in ({"a": object()}, {1: "a"}, {"a": float("nan")}):
            with pytest.raises(GalleryError, match="metadata"):
                store.add_person("Ada", metadata=wrong)
        assert store.people() == ()

    def test_an_update_replaces_what_is_given(self, store: GalleryStore) -> None:
        first = store.add_person("Ada", labels=["staff"], metadata={"a": 1}, templates=templates(2))
        assert store.update_person(first.id, name="Ada L").name == "Ada L"
        assert store.find("Ada") is None
        person = store.update_person(first.id, labels=[], metadata={"b": 2})
        assert (person.name, person.labels, person.metadata) == ("Ada L", (), {"b": 2})
        assert (person.id, person.created, person.template_count) == (first.id, first.created, 2)
        store.add_person("Grace")
        with pytest.raises(GalleryError, match="Grace"):
            store.update_person(first.id, name="Grace")
        assert store.update_person(first.id, name="Ada L") == store.person(first.id)

    def test_people_are_selected_by_label(self, store: GalleryStore) -> None:
        ada = store.add_person("Ada", labels=["staff", "day"])
        store.add_person("Grace", labels=["night"])
        assert store.people(label="day") == (ada,)
        assert store.people(label="da") == ()

    @pytest.mark.parametrize("unknown", [999, 0, -1, 2**62])
    def test_nobody_has_an_unknown_id(self, store: GalleryStore, unknown: int) -> None:
        for call in (
            lambda: store.person(unknown),
            lambda: store.templates_of(unknown),
            lambda: store.update_person(unknown, name="a"),
            lambda: store.add_templates(unknown, templates(1)),
            lambda: store.forget(unknown),
        ):
            with pytest.raises(GalleryError, match=str(unknown)):
                call()

    # Templates

    def test_the_detectors_of_templates_are_noted_with_them(self, store: GalleryStore, place: Place) -> None:
        one, two, three, four = vectors(4)
        ada = store.add_person("Ada", templates=[template(one)])
        assert store.detectors() == ()  # of crops, and of templates of earlier versions, none is known
        store.add_templates(ada.id, [template(two, detector="yunet"), template(three, detector="mtcnn")])
        generation = store.generation()
        with contextlib.suppress(ZeroDivisionError), store.writing():
            store.add_templates(ada.id, [template(four, detector="undone")])
            assert store.detectors() == ("mtcnn", "undone", "yunet")
            raise ZeroDivisionError
        with place.open(contract_id=CONTRACT) as again:
            assert (again.detectors(), again.generation()) == (("mtcnn", "yunet"), generation)
            assert again.check().problems == ()
        bob = store.add_person("Bob", templates=[template(four, detector="yunet")])
        store.forget(ada.id)
        assert store.detectors() == ("mtcnn", "yunet")  # which of them made Bob's is not known
        store.forget(bob.id)
        assert (store.detectors(), store.check().problems) == ((), ())

    @pytest.mark.parametrize("name", ["a b", "yunet\n", "\u00e9", "x" * 41])
    def test_what_is_no_name_of_a_detector_is_refused(self, name: str) -> None:
        with pytest.raises(GalleryError, match="detector: expected 1 to 40"):
            template(vectors(1)[0], detector=name)

    def test_templates_come_back_bit_by_bit(self, store: GalleryStore, place: Place) -> None:
        rows = vectors(3)
        when = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=timezone(timedelta(hours=2)))
        person = store.add_person("Ada", templates=[template(rows[0], quality=0.25, source_sha256="ab" * 32)])
        ids = store.add_templates(person.id, [template(rows[1], created=when, image=kept()), template(rows[2])])
        with place.open(contract_id=CONTRACT) as again:
            found = again.templates_of(person.id)
            assert [each.id for each in found][1:] == list(ids)
            assert all(each.person_id == person.id for each in found)
            np.testing.assert_array_equal([each.embedding.vector for each in found], rows)
            assert {each.embedding.contract_id for each in found} == {CONTRACT}
            assert (found[0].quality, found[0].source_sha256) == (0.25, "ab" * 32)
            assert np.isnan(found[1].quality)
            assert found[1].created == when
            assert [each.has_image for each in found] == [False, True, False]
            assert again.person(person.id).template_count == 3

    def test_an_embedding_of_another_length_than_1_is_stored_with_length_1(self, store: GalleryStore) -> None:
        (row,) = vectors(1)
        store.add_person("Ada", templates=[template(row * 7)])
        np.testing.assert_allclose(store.load().vectors[0], row, atol=1e-6)

    def test_a_kept_image_comes_back_bit_by_bit(self, store: GalleryStore) -> None:
        person = store.add_person("Ada", templates=[template(vectors(1)[0], image=kept(bytes(range(256)) * 90))])
        (found,) = store.templates_of(person.id)
        image = store.image_of(found.id)
        assert image is not None
        assert image.png == bytes(range(256)) * 90
        np.testing.assert_array_equal(image.box, kept().box)
        np.testing.assert_array_equal(image.landmarks, kept().landmarks)
        assert image.aligned is False

    def test_a_gallery_that_keeps_no_images_refuses_one(self, place: Place) -> None:
        with place.create(contract_id=CONTRACT, dim=DIM, keep_images=False) as store:
            with pytest.raises(GalleryError, match="keep"):
                store.add_person("Ada", templates=[template(vectors(1)[0], image=kept())])
            assert store.people() == ()

    def test_all_templates_are_loaded_once_by_rising_id(self, store: GalleryStore) -> None:
        people = [store.add_person(f"p{n}", templates=templates(3, seed=n)) for n in range(5)]
        whole = store.load()
        assert (whole.contract_id, whole.generation) == (CONTRACT, store.generation())
        assert (whole.ids.dtype, whole.person_ids.dtype, whole.vectors.dtype) == (np.int64, np.int64, np.float32)
        assert (np.diff(whole.ids) > 0).all()
        np.testing.assert_array_equal(whole.person_ids, np.repeat([person.id for person in people], 3))
        np.testing.assert_array_equal(whole.vectors, np.concatenate([vectors(3, seed=n) for n in range(5)]))
        assert not any(array.flags.writeable for array in (whole.ids, whole.person_ids, whole.vectors))

    def test_an_empty_gallery_has_an_empty_matrix(self, store: GalleryStore) -> None:
        assert store.load().vectors.shape == (0, DIM)

    def test_reads_of_one_block_are_of_one_generation_while_others_write(
        self, store: GalleryStore, place: Place
    ) -> None:
        store.add_person("Ada", templates=templates(6))
        with store.reading():
            before = store.generation()
            with place.open(contract_id=CONTRACT) as other:
                other.add_person("Grace", templates=templates(4, seed=1))
            assert (len(store.load()), len(store.people()), store.generation()) == (6, 1, before)
        store.add_person("Linus", templates=templates(1, seed=2))
        assert (len(store.load()), len(store.people()), store.generation()) == (11, 3, before + 2)

    # Generations

    def test_every_write_raises_the_generation_by_one_for_everybody(self, store: GalleryStore, place: Place) -> None:
        with place.open(contract_id=CONTRACT) as other:
            start = store.generation()
            person = store.add_person("Ada", templates=templates(2))
            assert other.generation() == start + 1
            other.add_templates(person.id, templates(1, seed=1))
            assert store.generation() == start + 2
            store.update_person(person.id, labels=["a"])
            assert store.generation() == start + 3
            assert store.add_templates(person.id, []) == ()

    def test_changes_say_what_an_index_has_to_do(self, store: GalleryStore) -> None:
        ada = store.add_person("Ada", templates=templates(3))
        old = store.load()
        store.add_person("Grace", templates=templates(2, seed=1))
        gone = store.templates_of(ada.id)[1].id
        store.forget(ada.id, template_ids=[gone])
        changes = store.changes_since(old.generation, old.history)
        assert changes is not None
        assert changes.generation == changes.added.generation == store.generation()
        assert gone in changes.removed
        keep = ~np.isin(old.ids, changes.removed)
        new = store.load()
        np.testing.assert_array_equal(np.concatenate([old.ids[keep], changes.added.ids]), new.ids)
        np.testing.assert_array_equal(np.concatenate([old.vectors[keep], changes.added.vectors]), new.vectors)
        nothing = store.changes_since(store.generation(), store.history())
        assert nothing is not None
        assert (len(nothing.removed), len(nothing.added)) == (0, 0)

    def test_merged_people_keep_their_templates_and_the_ids_of_these(
        self, store: GalleryStore, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("edgeface.gallery.store.base._CACHED_ROWS", 1)
        ada = store.add_person("Ada", templates=[template(vectors(1)[0], image=kept())], metadata={"a": 1})
        twin = store.add_person("Ada L", labels=["staff"], templates=templates(2, seed=1))
        grace = store.add_person("Grace", templates=templates(1, seed=2))
        old, index, start = store.load(), LiveIndex(store), store.generation()  # the cache has Ada's two names
        merged = store.merge(ada.id, twin.id)
        assert (merged.name, merged.labels, merged.metadata, merged.template_count) == ("Ada L", ("staff",), {}, 3)
        assert (store.find("Ada"), store.generation()) == (None, start + 1)
        with place.open(contract_id=CONTRACT) as again:
            new = again.load()
            np.testing.assert_array_equal(new.ids, old.ids)
            np.testing.assert_array_equal(new.vectors, old.vectors)
            assert new.person_ids.tolist() == [twin.id] * 3 + [grace.id]
            assert again.check()
            moved = again.template(int(old.ids[0]))
            assert moved is not None
            assert (moved.person_id, moved.has_image) == (twin.id, True)
            assert again.template(999) is None
        assert index.block().person_ids.tolist() == new.person_ids.tolist()
        assert index.search(Embedding(vectors(1)[0], CONTRACT)).person_ids.tolist() == [twin.id]

    def test_a_merger_that_names_one_person_twice_or_an_unknown_one_changes_nothing(self, store: GalleryStore) -> None:
        ada = store.add_person("Ada", templates=templates(1))
        start = store.generation()
        for person_id, into in ((ada.id, ada.id), (ada.id, 999), (999, ada.id)):
            with pytest.raises(GalleryError, match=r"two people|999"):
                store.merge(person_id, into)
        assert (store.generation(), store.person(ada.id)) == (start, ada)

    def test_a_watch_tells_of_each_commit_once_and_of_nothing_else(self, store: GalleryStore, place: Place) -> None:
        with place.open(contract_id=CONTRACT) as other, other.watch() as watch:
            assert not watch.wait(0)
            store.add_person("Ada", templates=templates(1))  # before anybody waits
            assert watch.wait(1)
            store.people()
            with contextlib.suppress(KeyError), store.writing():
                store.add_person("undone")
                raise KeyError
            assert not watch.wait(0.3)
            timer = threading.Timer(0.3, store.add_person, ("Grace",))
            timer.start()
            begin = time.monotonic()
            assert watch.wait(5)
            assert time.monotonic() - begin < 1.3
            timer.join()
            threading.Timer(0.2, watch.close).start()
            assert not watch.wait(30)
            assert time.monotonic() - begin < 10

    def test_a_generation_that_never_was_has_no_changes(self, store: GalleryStore) -> None:
        assert store.changes_since(store.generation() + 1, store.history()) is None
        assert store.changes_since(-1, store.history()) is None

    # Transactions

    def test_a_block_of_writing_is_one_commit(self, store: GalleryStore, place: Place) -> None:
        with place.open(contract_id=CONTRACT) as other:
            before = store.generation()
            with store.writing():
                person = store.add_person("Ada")
                with store.writing():
                    store.add_templates(person.id, templates(2))
                assert store.person(person.id).template_count == 2
                assert len(store.load()) == 2
                assert other.people() == ()
                assert other.generation() == before
            assert other.generation() == before + 1
            assert len(other.load()) == 2

    def test_an_exception_undoes_the_whole_block(self, store: GalleryStore) -> None:
        before = store.generation()

        def fail() -> None:
            with store.writing():
                store.add_person("Ada", templates=templates(2))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert store.people() == ()
        assert store.generation() == before
        assert len(store.load()) == 0
        assert store.add_person("Ada").name == "Ada"

    def test_an_error_caught_inside_a_block_undoes_only_its_call(self, store: GalleryStore) -> None:
        with store.writing():
            store.add_person("Ada")
            with pytest.raises(GalleryError):
                store.add_person("Ada")
            alien = NewTemplate(embedding=Embedding(vectors(1)[0], OTHER_CONTRACT))
            with pytest.raises(ContractError):
                store.add_person("Grace", templates=[*templates(1), alien])
        assert [person.name for person in store.people()] == ["Ada"]
        assert len(store.load()) == 0

    def test_writing_that_writes_nothing_changes_nothing(self, store: GalleryStore) -> None:
        before = store.generation()
        with store.writing():
            store.people()
        assert store.generation() == before

    @pytest.mark.timeout(60)
    def test_two_writers_at_once_lose_no_update(self, store: GalleryStore, place: Place) -> None:
        before, failures = store.generation(), []

        def write(name: str) -> None:
            try:
                with place.open(contract_id=CONTRACT) as own:
                    for number in range(10):
                        with own.writing():  # read, then write: the classic lost update
                            person = own.find("shared") or own.add_person("shared", metadata={"count": 0})
                            own.update_person(person.id, metadata={"count": person.metadata["count"] + 1})
                        own.add_person(f"{name}{number}", templates=templates(1, seed=number))
            except EdgeFaceError as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert failures == []
        shared = store.find("shared")
        assert shared is not None
        assert shared.metadata == {"count": 20}
        assert len(store.people()) == 21
        assert len(store.load()) == 20
        assert store.generation() == before + 40

    @pytest.mark.timeout(60)
    def test_one_store_serves_several_threads(self, store: GalleryStore) -> None:
        failures = []

        def write(name: str) -> None:
            try:
                for number in range(10):
                    with store.writing():
                        person = store.add_person(f"{name}{number}")
                        store.add_templates(person.id, templates(1, seed=number))
                    store.load()
            except EdgeFaceError as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert failures == []
        assert len(store.people()) == len(store.load()) == 30

    # Forgetting

    def test_a_forgotten_person_is_gone_for_everybody(self, store: GalleryStore, place: Place) -> None:
        ada = store.add_person("Ada", templates=[template(row, image=kept()) for row in vectors(3)])
        grace = store.add_person("Grace", templates=templates(2, seed=1))
        ids = [each.id for each in store.templates_of(ada.id)]
        with place.open(contract_id=CONTRACT) as other:
            known = other.load()
            done = store.forget(ada.id)
            assert (done.person_id, done.templates, done.images) == (ada.id, 3, 3)
            assert done.generation == other.generation() == store.generation()
            assert done.remains == ()
            assert other.find("Ada") is None
            assert other.people() == (grace,)
            assert set(other.load().person_ids.tolist()) == {grace.id}
            assert [other.image_of(each) for each in ids] == [None] * 3
            changes = other.changes_since(known.generation, known.history)
            assert changes is None or set(ids) <= set(changes.removed.tolist())

    def test_some_templates_of_a_person_can_be_forgotten(self, store: GalleryStore) -> None:
        ada = store.add_person("Ada", templates=templates(3))
        grace = store.add_person("Grace", templates=templates(1, seed=1))
        first, second, third = (each.id for each in store.templates_of(ada.id))
        done = store.forget(ada.id, template_ids=[first, third])
        assert done.templates == 2
        assert [each.id for each in store.templates_of(ada.id)] == [second]
        (foreign,) = store.templates_of(grace.id)
        before = store.generation()
        with pytest.raises(GalleryError, match=str(foreign.id)):
            store.forget(ada.id, template_ids=[second, foreign.id])
        assert store.generation() == before
        assert len(store.load()) == 2

    def test_ids_are_never_used_again(self, store: GalleryStore, place: Place) -> None:
        ada = store.add_person("Ada", templates=templates(2))
        used = {each.id for each in store.templates_of(ada.id)}
        store.forget(ada.id)
        with place.open(contract_id=CONTRACT) as other:
            again = other.add_person("Ada", templates=templates(2))
            assert again.id != ada.id
            assert used.isdisjoint(each.id for each in other.templates_of(again.id))

    def test_several_people_and_templates_are_forgotten_at_once_or_not_at_all(self, store: GalleryStore) -> None:
        ada = store.add_person("Ada", templates=templates(2))
        grace = store.add_person("Grace", templates=templates(1, seed=1))
        mary = store.add_person("Mary", templates=templates(2, seed=2))
        one, other = (each.id for each in store.templates_of(mary.id))
        start = store.generation()
        with pytest.raises(GalleryError, match="999"):
            store.forget_many({ada.id: None, 999: None})
        assert (store.generation(), store.forget_many({})) == (start, ())
        done = store.forget_many({ada.id: None, grace.id: None, mary.id: [one]})
        assert [(each.person_id, each.templates) for each in done] == [(ada.id, 2), (grace.id, 1), (mary.id, 1)]
        assert store.generation() == done[0].generation == done[2].generation == start + 1
        assert [each.name for each in store.people()] == ["Mary"]
        assert store.load().ids.tolist() == [other]

    def test_forgetting_is_no_part_of_a_larger_transaction(self, store: GalleryStore) -> None:
        ada = store.add_person("Ada")
        with pytest.raises(GalleryError, match="writing"), store.writing():
            store.forget(ada.id)
        assert store.people() == (ada,)

    def test_a_row_that_is_longer_than_any_is_neither_written_nor_read(
        self, store: GalleryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from edgeface.gallery.store import rows

        monkeypatch.setattr(rows, "_LONGEST_OTHER", 1 << 12)
        ada = store.add_person("Ada", templates=templates(1))
        with pytest.raises(GalleryError, match="expected at most 4,096 bytes for a row of people, found 10,"):
            store.add_person("Grace", metadata={"note": "x" * 10_000})
        assert store.people() == (ada,)
        forged = np.random.default_rng(0).bytes(1 << 20)
        with store.database.writing() as connection:
            store.database.wrote()
            connection.execute("UPDATE templates SET body = ?", (forged,))
        assert ["templates is not what was written" in each for each in store.check().problems] == [True]
        done = store.forget(ada.id)
        assert done.templates == 1
        assert done.needles < 1 << 13

    # The end

    def test_a_closed_store_says_so(self, store: GalleryStore) -> None:
        store.close()
        store.close()
        with pytest.raises(GalleryError, match="closed"):
            store.people()

    # One generation a decision

    def test_search_comparison_and_names_of_one_answer_are_of_one_generation(
        self, store: GalleryStore, place: Place
    ) -> None:
        probe = Embedding(np.eye(1, DIM, dtype=np.float32)[0], CONTRACT)
        person = store.add_person("1", templates=turn(1))
        numbers = iter(range(2, COSINES))
        with place.open() as other:

            def write() -> None:
                with other.writing():
                    other.add_templates(person.id, turn(number := next(numbers)))
                    other.update_person(person.id, name=str(number))

            index = LiveIndex(store, Renaming)
            index._index.write = write
            identifier = Identifier(index, by_hand(-0.5))
            for _ in range(5):
                answer = identifier.identify(probe)
                assert answer.score == pytest.approx(int(answer.person) / COSINES, abs=1e-6)
            assert next(numbers) > 10
            with index.snapshot() as snapshot:
                before = snapshot.generation, len(snapshot), snapshot.name_of(person.id)
                write()
                assert (snapshot.generation, len(snapshot), snapshot.name_of(person.id)) == before
            assert index.name_of(person.id) != before[2]

    @pytest.mark.parametrize("beside", ["thread", "process"])
    def test_no_answer_mixes_generations_while_others_write(
        self, store: GalleryStore, place: Place, beside: str
    ) -> None:
        probe = Embedding(np.eye(1, DIM, dtype=np.float32)[0], CONTRACT)
        person = store.add_person("1", templates=turn(1))
        identifier = Identifier(LiveIndex(store), by_hand(-0.5))
        seen = set()
        with writer_beside(place, person.id, beside):
            deadline = time.monotonic() + 20
            while len(seen) < 12 and time.monotonic() < deadline:
                answer = identifier.identify(probe)
                assert answer.score == pytest.approx(int(answer.person) / COSINES, abs=1e-6)
                seen.add(answer.person)
        assert len(seen) > 2


def by_hand(value: float) -> SearchThreshold:
    return SearchThreshold.by_hand(value, contract_id=CONTRACT, gallery_size=10)


@contextlib.contextmanager
def writer_beside(place: Place, person_id: int, kind: str) -> Iterator[None]:
    """Let a thread or another process write one generation after the other."""
    if kind == "thread":
        stop = threading.Event()

        def write() -> None:
            with place.open() as other:
                write_turns(other, person_id, last=COSINES, until=stop.is_set)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
        return
    program = WRITER.format(
        imports="from pathlib import Path\nfrom edgeface.gallery.store.sqlite import SqliteStore"
        if "Sqlite" in place.source
        else "from edgeface.gallery.store.postgres import PostgresStore",
        source=place.source,
        person_id=person_id,
        last=COSINES,
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.stdin.close()
            process.wait(30)
