"""Adding, removing and replacing templates, in step with a store, from several threads, for one contract only."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from profiles import examples
from unit.gallery.index.conftest import ID, block_of, unit_rows

from edgeface.errors import ContractError, GalleryError, InputError
from edgeface.gallery.index import ApproximateIndex, ExactIndex, Index, LiveIndex, follow
from edgeface.gallery.records import Changes, NewTemplate
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.model.embedding import Embedding, Embeddings

pytestmark = pytest.mark.alone  # the kernels of usearch have ended a process that many other libraries were loaded into
Make = Callable[..., Any]
DIM = 32


def changes(added: Any, removed: Any = (), generation: int = 2) -> Changes:
    return Changes(generation=generation, removed=np.array(removed, np.int64), added=added)


def nobody() -> Any:
    return block_of(np.empty((0, DIM), np.float32))


def test_what_is_added_is_found_and_what_is_removed_is_not(make: Make) -> None:
    rows = unit_rows(40, DIM)
    index = make(block_of(rows[:30]))
    assert isinstance(index, Index)
    index.apply(changes(block_of(rows[30:], ids=np.arange(31, 41)), removed=[1, 2, 3, 999]))
    assert (len(index), index.generation) == (37, 2)
    for number, row in enumerate(rows, 1):
        hits = index.search(Embedding(row, ID))
        assert (hits.ids[0] == number) == (number > 3)


def test_a_template_that_is_given_again_is_replaced(make: Make) -> None:
    rows = unit_rows(20, DIM)
    index = make(block_of(rows[:10]))
    index.apply(changes(block_of(rows[10:11], ids=[4], person_ids=[77])))
    assert len(index) == 10
    hits = index.search(Embedding(rows[10], ID))
    assert (hits.ids[0], hits.person_ids[0]) == (4, 77)
    assert index.search(Embedding(rows[3], ID)).ids[0] != 4 or index.search(Embedding(rows[3], ID)).scores[0] < 0.9


def test_the_block_it_was_made_of_is_not_changed(make: Make) -> None:
    block = block_of(unit_rows(10, DIM))
    before = block.vectors.copy()
    for array in (block.ids, block.person_ids, block.vectors):
        array.setflags(write=False)
    index = make(block)
    index.apply(changes(nobody(), removed=[1, 5]))
    np.testing.assert_array_equal(block.vectors, before)
    kept = index.block()
    assert kept.ids.tolist() == [2, 3, 4, 6, 7, 8, 9, 10]
    np.testing.assert_array_equal(kept.vectors, before[kept.ids - 1])


def test_changes_that_cannot_be_applied_change_nothing(make: Make) -> None:
    rows = unit_rows(6, DIM)
    index = make(block_of(rows[:4]))
    for wrong in (block_of(rows[4:] * 2, ids=[5, 6]), block_of(rows[4:], ids=[5, 5])):
        with pytest.raises(ContractError, match="index: expected"):
            index.apply(changes(wrong, removed=[1]))
    assert (index.block().ids.tolist(), index.generation) == ([1, 2, 3, 4], 1)


def test_every_template_of_a_person_is_compared(make: Make) -> None:
    rows = unit_rows(12, DIM)
    index = make(block_of(rows, person_ids=np.repeat([1, 2, 3], 4)))
    hits = index.compare(Embedding(rows[5], ID), [2, 3, 99])
    assert hits.ids[0] == 6
    assert sorted(hits.ids.tolist()) == list(range(5, 13))
    assert (np.diff(hits.scores) <= 0).all()
    assert len(index.compare(Embedding(rows[5], ID), [])) == 0
    more = block_of(unit_rows(2, DIM, seed=1), ids=[20, 21], person_ids=[3, 1])
    index.apply(changes(more, removed=[6, 9], generation=2))
    again = index.compare(Embedding(rows[5], ID), [3, 2, 3])
    assert sorted(again.ids.tolist()) == [5, 7, 8, 10, 11, 12, 20]
    assert index.compare(Embedding(rows[5], ID), [1]).person_ids.tolist() == [1] * 5


def test_removed_rows_are_overwritten_in_memory() -> None:
    index = ExactIndex(block_of(unit_rows(10, DIM)))
    index.apply(changes(nobody(), removed=np.arange(3, 11)))
    assert not index._table._arrays[2][2:].any()


def test_a_graph_of_which_most_was_removed_is_built_again() -> None:
    pytest.importorskip("usearch", reason="the extra 'index' is not installed")
    rows = unit_rows(60, DIM)
    index = ApproximateIndex(block_of(rows))
    index.apply(changes(nobody(), removed=np.arange(1, 41)))
    assert len(index._graph) == len(index) == 20
    assert all(index.search(Embedding(row, ID)).ids[0] == n for n, row in enumerate(rows, 1) if n > 40)


def test_a_graph_finds_every_template_however_many_threads_search_it() -> None:
    pytest.importorskip("usearch", reason="the extra 'index' is not installed")
    rows = unit_rows(1000, 128)
    for _ in range(3):  # usearch 2.26.6 loses some in 38 of 40 such graphs that two threads add to
        index = ApproximateIndex(block_of(rows), threads=2)
        found = index.search_batch(Embeddings(rows, ID))
        assert [int(hits.ids[0]) for hits in found] == list(range(1, 1001))


def test_a_graph_says_how_much_it_misses() -> None:
    pytest.importorskip("usearch", reason="the extra 'index' is not installed")
    rows, dice = unit_rows(3000, DIM), np.random.default_rng(1)
    block, probes = block_of(rows), Embeddings(rows[:200] + 0.2 * dice.standard_normal((200, DIM)), ID)
    truth = [set(hits.ids.tolist()) for hits in ExactIndex(block).search_batch(probes, k=5)]
    found = {}
    for expansion in (1, 200):
        index = ApproximateIndex(block, connectivity=4, expansion_add=8, expansion_search=expansion)
        hits = [set(each.ids.tolist()) for each in index.search_batch(probes, k=5)]
        expected = np.mean([len(a & b) / 5 for a, b in zip(truth, hits, strict=True)])
        found[expansion] = index.recall(probes, k=5)
        assert found[expansion] == pytest.approx(expected)
    assert found[1] < found[200] <= 1
    with pytest.raises(InputError, match="found none"):
        index.recall(Embeddings(np.empty((0, DIM)), ID))


class Mirror(RuleBasedStateMachine):
    """An index and a dictionary, changed alike."""

    storage = "float32"

    def __init__(self) -> None:
        super().__init__()
        self.index = ExactIndex(nobody(), storage=self.storage)
        self.truth: dict[int, np.ndarray] = {}
        self.seed = 0

    @rule(ids=st.lists(st.integers(1, 60), unique=True, max_size=12), gone=st.lists(st.integers(1, 60), max_size=12))
    def change(self, ids: list[int], gone: list[int]) -> None:
        self.seed += 1
        rows = unit_rows(len(ids), DIM, self.seed) if ids else np.empty((0, DIM), np.float32)
        self.index.apply(changes(block_of(rows, ids=np.array(ids, np.int64)), gone, self.seed))
        for each in gone:
            self.truth.pop(each, None)
        self.truth.update(zip(ids, rows, strict=True))

    @invariant()
    def holds_the_same(self) -> None:
        assert self.index.block().ids.tolist() == sorted(self.truth)
        for each, row in list(self.truth.items())[:5]:
            hits = self.index.search(Embedding(row, ID))
            assert hits.ids[0] == each
            assert hits.scores[0] == pytest.approx(1, abs=1e-6)


class MirrorInt8(Mirror):
    storage = "int8"


TestMirror = Mirror.TestCase
TestMirror.settings = settings(max_examples=examples(25), stateful_step_count=12)
try:
    import numkong  # noqa: F401
except ImportError:
    pass
else:
    TestMirrorInt8 = MirrorInt8.TestCase
    TestMirrorInt8.settings = TestMirror.settings


# With a store


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with SqliteStore.create(tmp_path / "people.gallery", contract_id=ID, dim=DIM, key=None) as opened:
        yield opened


def templates(rows: np.ndarray) -> list[NewTemplate]:
    return [NewTemplate(embedding=Embedding(row, ID)) for row in rows]


def test_a_live_index_knows_what_any_process_wrote(store: Any, make: Make) -> None:
    rows = unit_rows(6, DIM)
    store.add_person("Ada", templates=templates(rows[:2]))
    live = LiveIndex(store, make)
    assert isinstance(live, Index)
    with SqliteStore(store.path) as other:
        grace = other.add_person("Grace", templates=templates(rows[2:4]))
        assert live.search(Embedding(rows[2], ID)).person_ids[0] == grace.id
        other.forget(grace.id)
    assert (len(live), live.generation) == (2, store.generation())
    assert live.search(Embedding(rows[2], ID)).person_ids[0] != grace.id
    assert live.search_batch(Embeddings(rows[:1], ID))[0].scores[0] == pytest.approx(1)
    np.testing.assert_array_equal(live.block().vectors, store.load().vectors)


def test_a_person_is_read_once_a_commit_and_anew_after_it(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = store.add_person("Ada")
    live, read, person = LiveIndex(store), list[int](), store.person
    monkeypatch.setattr(store, "person", lambda number: (read.append(number), person(number))[1])
    with live.snapshot(), live.snapshot():
        assert {live.name_of(ada.id), live.person(ada.id).name} == {"Ada"}
    assert live.name_of(ada.id) == "Ada"
    assert read == [ada.id]
    with SqliteStore(store.path) as other:
        other.update_person(ada.id, name="Ada Lovelace")
    assert live.name_of(ada.id) == "Ada Lovelace"
    with contextlib.suppress(ZeroDivisionError), store.writing():
        store.update_person(ada.id, name="Countess")
        assert live.name_of(ada.id) == "Countess"
        raise ZeroDivisionError
    assert live.name_of(ada.id) == "Ada Lovelace"
    store.forget(ada.id)
    with pytest.raises(GalleryError):
        live.person(ada.id)


def test_an_index_is_filled_again_when_its_generation_is_unknown(store: Any, make: Make) -> None:
    rows = unit_rows(3, DIM)
    store.add_person("Ada", templates=templates(rows))
    index = make(block_of(unit_rows(50, DIM, seed=9), generation=10**6))
    assert follow(index, store)
    assert not follow(index, store)
    assert index.block().ids.tolist() == store.load().ids.tolist()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not say what is mapped")
@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["plain", "encrypted"])
def test_a_gallery_in_the_clear_is_searched_where_it_is_mapped(
    key: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeface.gallery.store.base._CACHED_ROWS", 1)
    rows = unit_rows(50, DIM)
    path = tmp_path / "mapped.gallery"
    with SqliteStore.create(path, contract_id=ID, dim=DIM, key=key) as store:
        store.add_person("Ada", templates=templates(rows))
        store.load()
        block = store.load()
        index = ExactIndex(block)
        assert np.shares_memory(index._table.vectors, block.vectors)
        mapped = f"{path.name}.index/templates.bin" in Path("/proc/self/maps").read_text()
        assert mapped == (key is None)
        assert index.search(Embedding(rows[7], ID)).scores[0] == pytest.approx(1)


def test_nobody_whose_enrolment_was_undone_is_ever_found(store: Any, make: Make) -> None:
    rows = unit_rows(4, DIM)
    store.add_person("Ada", templates=templates(rows[:1]))
    late = LiveIndex(store, make)
    store.add_person("Grace", templates=templates(rows[1:2]))
    with contextlib.suppress(KeyError), store.writing():
        store.add_person("Joan", templates=templates(rows[2:3]))
        inside = LiveIndex(store, make)
        assert len(late) == len(inside) == 3
        raise KeyError
    store.add_person("Mary", templates=templates(rows[3:]))
    for live in (late, inside):
        np.testing.assert_array_equal(live.block().ids, store.load().ids)
        assert live.search(Embedding(rows[2], ID)).scores[0] < 0.99


@pytest.mark.timeout(60)
def test_searching_while_others_enrol_and_forget_is_never_wrong(store: Any) -> None:
    rows = unit_rows(40, DIM)
    fixed = store.add_person("fixed", templates=templates(rows[:1]))
    live, stop, failures = LiveIndex(store), threading.Event(), list[BaseException]()

    def search() -> None:
        try:
            while not stop.is_set():
                hits = live.search(Embedding(rows[0], ID), k=3)
                assert hits.person_ids[0] == fixed.id
                assert (np.diff(hits.scores) <= 0).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1, 13):
        person = store.add_person(str(number), templates=templates(rows[number : number + 2]))
        if number % 4 == 0:
            store.forget(person.id)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len(live) == len(store.load())


@pytest.mark.timeout(60)
def test_a_search_while_writing_and_one_in_another_thread_do_not_wait_for_each_other(store: Any) -> None:
    rows = unit_rows(42, DIM)
    person = store.add_person("Ada", templates=templates(rows[:1]))
    live, stop, found = LiveIndex(store), threading.Event(), list[int]()

    def search() -> None:
        while not stop.is_set():
            found.append(len(live.search(Embedding(rows[0], ID), k=50)))

    thread = threading.Thread(target=search, daemon=True)
    thread.start()
    for row in rows[1:]:
        with store.writing():
            assert live.search(Embedding(rows[0], ID)).person_ids.tolist() == [person.id]
            store.add_templates(person.id, templates([row]))
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert found == sorted(found)
    assert len(live) == len(rows)


# Contracts


def test_two_contracts_never_meet(store: Any, make: Make) -> None:
    rows = unit_rows(3, DIM)
    index = make(block_of(rows))
    alien, aliens = Embedding(rows[0], "f" * 16), Embeddings(rows, "f" * 16)
    other = block_of(rows, contract_id="f" * 16)
    stranger = make(other)
    for call in (
        lambda: index.search(alien),
        lambda: index.search_batch(aliens),
        lambda: index.compare(alien, [1]),
        lambda: index.reset(other),
        lambda: index.apply(changes(other)),
        lambda: follow(stranger, store),
        lambda: LiveIndex(store, make).search(alien),
    ):
        with pytest.raises(ContractError, match="f" * 16):
            call()
    for short in (
        lambda: index.search(Embedding(rows[0][:-1], ID)),
        lambda: index.search_batch(Embeddings(rows[:, :-1], ID)),
        lambda: index.apply(changes(block_of(unit_rows(1, DIM - 1), ids=[9]))),
    ):
        with pytest.raises(ContractError, match=f"{DIM} values"):
            short()
    assert (len(index), index.generation) == (3, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.timeout(60)
def test_an_index_searches_in_a_forked_child_too() -> None:
    rows = unit_rows(9000, DIM)
    index = ExactIndex(block_of(rows), threads=2)
    probe = Embedding(rows[8999], ID)
    assert index.search(probe).ids[0] == 9000
    child = os.fork()
    if child == 0:
        os._exit(0 if index.search(probe).ids[0] == 9000 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
