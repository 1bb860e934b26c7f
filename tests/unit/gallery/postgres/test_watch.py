"""Services on one gallery hear of each other's commits, also across a restart of the server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.gallery.conformance import CONTRACT, template, vectors
from unit.gallery.postgres.test_postgres import KEY, create, open_store

from edgeface.errors import GalleryServerError
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.store.postgres.watch import PostgresWatch
from edgeface.model.embedding import Embedding

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

OTHER_SERVICE = """
import sys, time
from unit.gallery.conformance import template, vectors
from edgeface.gallery.store.postgres import PostgresStore
with PostgresStore({url!r}, {gallery!r}, key={key!r}) as store:
    print("ready", flush=True)
    for number, row in enumerate(vectors({count}, seed=12)):
        sys.stdin.readline()
        store.add_person(f"p{{number}}", templates=[template(row)])
        print(time.monotonic(), flush=True)
"""


@pytest.fixture
def other_service(cluster: Any, gallery: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, which enrols one person for each line that it reads, and says when it was acknowledged."""
    create(cluster.url, gallery, key=KEY).close()
    program = OTHER_SERVICE.format(url=cluster.url, gallery=gallery, key=KEY, count=20)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.stdin.close()
            process.wait(30)


def ask(process: subprocess.Popen[str]) -> float:
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def test_an_enrolment_in_another_process_is_searched_at_once_and_announced_within_a_second(
    cluster: Any, gallery: str, other_service: subprocess.Popen[str]
) -> None:
    late = []
    with open_store(cluster.url, gallery, key=KEY) as store, store.watch() as watch:
        live = LiveIndex(store)
        for row in vectors(10, seed=12):
            acknowledged = ask(other_service)
            hits = live.search(Embedding(row, CONTRACT))  # no waiting: the next search has it
            assert hits.scores[0] > 0.999
            assert watch.wait(5)
            late.append(time.monotonic() - acknowledged)
    assert max(late) < 1, late


def test_a_commit_wakes_who_waits_and_the_pause_does_not(
    cluster: Any, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresWatch, "longest_pause", 60.0)
    with (
        create(cluster.url, gallery, key=KEY) as store,
        open_store(cluster.url, gallery, key=KEY) as other,
        other.watch() as watch,
    ):
        for number in range(3):
            timer = threading.Timer(0.2, store.add_person, (f"p{number}",))
            timer.start()
            begin = time.monotonic()
            assert watch.wait(30)
            assert time.monotonic() - begin < 5
            timer.join()


def test_a_commit_that_nobody_announced_is_known_within_a_second(
    cluster: Any, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create(cluster.url, gallery, key=KEY) as store, store.watch() as watch:
        monkeypatch.setattr("edgeface.gallery.store.postgres.database.PostgresDatabase._announce", lambda *_: None)
        timer = threading.Timer(0.2, store.add_person, ("Ada",))
        timer.start()
        begin = time.monotonic()
        assert watch.wait(10)
        assert time.monotonic() - begin < 1.2
        timer.join()


def test_a_message_that_anybody_may_send_is_no_commit(cluster: Any, gallery: str) -> None:
    with create(cluster.url, gallery, key=KEY) as store, store.watch() as watch:
        cluster.sql(f"NOTIFY edgeface_{gallery}, '999'")
        assert not watch.wait(0.8)


def test_a_watch_outlives_a_restart_and_has_missed_nothing(cluster: Any, gallery: str) -> None:
    with (
        create(cluster.url, gallery, key=KEY) as store,
        open_store(cluster.url, gallery, key=KEY) as other,
        other.watch() as watch,
    ):
        live = LiveIndex(other)
        row = vectors(1, seed=31)[0]
        told: list[bool] = []
        waiting = threading.Thread(target=lambda: told.append(watch.wait(60)))
        waiting.start()
        cluster.stop()
        with pytest.raises(GalleryServerError):  # an answer of an unknown generation is none
            live.search(Embedding(row, CONTRACT))
        cluster.start()
        store.add_person("Ada", templates=[template(row)])
        waiting.join(30)
        assert told == [True]
        assert live.search(Embedding(row, CONTRACT)).scores[0] > 0.999
        assert not watch.wait(0.6)
        cluster.stop()
        with pytest.raises(GalleryServerError):
            watch.wait(0.5)
        cluster.start()
        assert not watch.wait(0.6)  # nothing was written meanwhile
        store.add_person("Grace")
        assert watch.wait(2)


def test_rekeying_is_announced_and_so_are_tables_that_were_put_back(cluster: Any, gallery: str) -> None:
    schema = f"edgeface_{gallery}"
    with create(cluster.url, gallery, key=KEY) as store, store.watch() as watch:
        store.rekey(bytes(32))
        assert watch.wait(1)
        cluster.sql(f"UPDATE {schema}.commits SET history = 'another' WHERE generation = {store.generation()}")
        assert watch.wait(1)
