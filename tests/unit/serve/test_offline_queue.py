"""The file of a gallery's queue: what is in it serves for what was asked, and for nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from tiny_ir import write_tiny_ir

from edgeface.errors import GalleryDamagedError
from edgeface.gallery.opening import create_gallery
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.ir_file import read_contract
from edgeface.serve.offline_queue import OfflineQueue, Reached
from edgeface.serve.problems import NotFound


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GalleryStore]:
    contract = read_contract(write_tiny_ir(tmp_path))[1]
    with create_gallery(tmp_path / "a.gallery", contract=contract, key=b"\1" * 32) as made:
        yield made


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[OfflineQueue]:
    made = OfflineQueue(tmp_path / "queue.sqlite")
    yield made
    made.close()


def change(tmp_path: Path, query: str) -> None:
    with sqlite3.connect(tmp_path / "queue.sqlite") as connection:
        connection.execute(query)
    connection.close()


@pytest.mark.parametrize("change_to", ["person_id = 9", "kind = 'forget', person_id = 9", "kind = 'forget'"])
def test_an_item_whose_person_or_kind_was_changed_in_the_file_does_not_open(
    queue: OfflineQueue, store: GalleryStore, tmp_path: Path, change_to: str
) -> None:
    item = queue.add("enrol", {"who": "Ada"}, store.database)
    assert queue.content(item.id, store.database) == {"who": "Ada"}
    change(tmp_path, f"UPDATE items SET {change_to}")
    with pytest.raises(GalleryDamagedError):
        queue.content(item.id, store.database)


def test_an_erasure_opens_for_its_person_alone_whatever_the_key(
    queue: OfflineQueue, store: GalleryStore, tmp_path: Path
) -> None:
    enrolled = datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc)
    item = queue.add("forget", {"key_id": "k"}, store.database, person_id=4, enrolled=enrolled)
    store.rekey(b"\2" * 32)
    assert queue.content(item.id, store.database, enrolled=enrolled) == {"key_id": "k"}
    for other in (enrolled + timedelta(microseconds=1), None):
        with pytest.raises(GalleryDamagedError):
            queue.content(item.id, store.database, enrolled=other)
    change(tmp_path, "UPDATE items SET person_id = 5")
    with pytest.raises(GalleryDamagedError):
        queue.content(item.id, store.database, enrolled=enrolled)


def test_what_was_erased_has_no_mark_and_can_be_withdrawn(queue: OfflineQueue, store: GalleryStore) -> None:
    item = queue.add("enrol", {"who": "Ada"}, store.database, person_id=1)
    queue.mark(item.id, 7)
    queue.erase(item.id, "forgotten")
    assert (queue.item(item.id).state, queue.item(item.id).mark) == ("erased", None)


def test_what_was_erased_while_it_was_sent_or_decided_stays_erased(queue: OfflineQueue, store: GalleryStore) -> None:
    item = queue.add("enrol", {"who": "Ada"}, store.database, person_id=1)
    queue.conflict(item.id, "lookalike", [2])
    content = queue.content(item.id, store.database)
    queue.add("forget", {}, store.database, person_id=1)
    with pytest.raises(NotFound):
        queue.retry(item.id, content, store.database)
    queue.conflict(item.id, "lookalike", [2])
    queue.mark(item.id, 7)
    erased = queue.item(item.id)
    assert (erased.state, erased.people, erased.mark) == ("erased", (), None)
    with pytest.raises(NotFound):
        queue.content(item.id, store.database)


def test_nobody_without_the_key_writes_that_the_server_was_reached(
    queue: OfflineQueue, store: GalleryStore, tmp_path: Path
) -> None:
    told = Reached(generation=3, wall=100.0, age=5.0, boot="a", tick=7.0)
    assert queue.reached(store.database) is None
    queue.write_reached(told, store.database)
    assert queue.reached(store.database) == told
    queue.write_reached(replace(told, age=6.0), store.database)
    assert queue.reached(store.database) == replace(told, age=6.0)
    item = queue.add("enrol", {"who": "Ada"}, store.database)
    change(tmp_path, f"UPDATE reached SET body = (SELECT body FROM items WHERE id = {item.id})")
    assert queue.reached(store.database) is None
