"""A service on a gallery's snapshot: what it answers, queues and sends while the gallery's server is away."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tiny_ir import BLUE, GREEN, RED, TEAL, draw, write_tiny_ir
from unit.serve.conftest import OPEN, MakeService, client_of, jpeg

from edgeface.errors import (
    GalleryBusyError,
    GalleryError,
    GalleryReplacedError,
    GalleryServerError,
    InputError,
    SnapshotTooOldError,
)
from edgeface.gallery.opening import create_gallery, open_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.ir_file import read_contract
from edgeface.serve import snapshots
from edgeface.serve.keys import Role
from edgeface.serve.offline_queue import Reached
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings
from edgeface.serve.snapshots import SnapshotAge

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]
API = "/api/edgeface/v1"
PEOPLE, QUEUE = f"{API}/galleries/default/people", f"{API}/galleries/default/queue"
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def load_benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.02)


class Kiosk:
    """A service on a gallery on a server, with the network between them, and another service's view of the gallery."""

    def __init__(self, make_service: MakeService, folder: Path, cluster: Any, gallery: str, proxy: Any) -> None:
        self._make, self.proxy, self.folder = make_service, proxy, folder
        (folder / "key").write_text("5a" * 32)
        (folder / "key").chmod(0o600)
        self._key = f"file:{folder / 'key'}"
        path = f"/postgres?gallery={gallery}"
        self.place = f"postgresql://edgeface@127.0.0.1:{proxy.port}{path}"
        self._direct = f"{cluster.url}?gallery={gallery}"
        self.model = write_tiny_ir(folder)
        self.server: GalleryStore = create_gallery(self._direct, contract=read_contract(self.model)[1], key=self._key)
        self.service: Service | None = None
        self._first = ""

    def start(self, **options: Any) -> TestClient:
        snapshot = {"offline_enrolment": True} | options
        given = OPEN | {"place": self.place, "key": self._key, "snapshot": snapshot}
        self.service = self._make(galleries={"default": given})
        self._first = self.service.first_key or self._first
        client = client_of(self.service)
        client.headers["x-api-key"] = self._first
        return client

    @property
    def keeper(self) -> snapshots.SnapshotKeeper:
        assert self.service is not None
        keeper = self.service.gallery("default").keeper
        assert keeper is not None
        return keeper

    def enrol(self, name: str, *colours: Any, **more: Any) -> int:
        """Enrol by another service."""
        assert self.service is not None
        with self.service.models.use("default") as model:
            new = [NewTemplate(embedding=model.analyzer.embed(draw(each))) for each in colours]
        return self.server.add_person(name, templates=new, **more).id

    def cut(self, how: str = "refuse") -> None:
        self.proxy.cut(how)
        until(lambda: self.keeper.away)

    def mend(self) -> None:
        self.proxy.mend()
        until(lambda: not self.keeper.away)

    def followed(self) -> bool:
        return self.keeper.snapshot.position() == self.server.last_commit()


@pytest.fixture
def kiosk(make_service: MakeService, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kiosk]:
    monkeypatch.setattr(snapshots, "AWAY_SECONDS", 1.0)
    monkeypatch.setattr(snapshots, "LOOK_SECONDS", 0.02)
    with load_benchmark("_proxy").proxied(cluster.port) as proxy:
        made = Kiosk(make_service, tmp_path, cluster, f"kiosk_{time.monotonic_ns()}", proxy)
        yield made
        if made.service is not None:
            made.service.close()
        made.server.close()


def who(client: TestClient, colour: Any = BLUE) -> Any:
    """Who is found in a photo of this colour, or the code of the problem."""
    body = client.post(f"{API}/identify", files={"photo": jpeg(colour)}).json()
    return body["faces"][0]["person"] if "faces" in body else body["code"]


def send(client: TestClient, name: str, *colours: Any, **fields: Any) -> Any:
    files = [("photo", jpeg(each)) for each in colours]
    return client.post(PEOPLE, data={"name": name, **fields}, files=files)


def queue(client: TestClient) -> list[tuple[Any, ...]]:
    items = client.get(QUEUE).json()["items"]
    return [(each["kind"], each["state"], each["reason"], each["name"]) for each in items]


@pytest.mark.parametrize("how", ["drop", pytest.param("refuse", marks=pytest.mark.nightly)])
def test_identification_goes_on_while_the_network_is_cut_and_says_how_old_the_snapshot_is(
    kiosk: Kiosk, how: str
) -> None:
    with kiosk.start() as client:
        kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        assert client.get("/health/ready").json()["degraded"] == []
        kiosk.cut(how)
        time.sleep(1.2)
        began = time.monotonic()
        answer = client.post(f"{API}/identify", files={"photo": jpeg(BLUE)}).json()
        assert time.monotonic() - began < 1
        assert (answer["faces"][0]["person"], answer["snapshot_age"] > 1) == ("Ada", True)
        face = client.post("/api/v1/recognition/recognize", files={"file": ("a.png", jpeg(BLUE))}).json()["result"][0]
        assert (face["subjects"][0]["subject"], face["snapshot_age"] > 1) == ("Ada", True)
        found = client.post("/v1/vision/face/recognize", files={"image": ("a.png", jpeg(BLUE))}).json()["predictions"]
        assert (found[0]["userid"], found[0]["snapshot_age"] > 1) == ("Ada", True)
        ready = client.get("/health/ready").json()
        assert ready["ready"]
        assert "the server of the gallery default is away; its snapshot is" in ready["degraded"][0]
        lines = [each for each in client.get("/metrics").text.splitlines() if each.startswith("edgeface_gallery_snap")]
        assert float(lines[0].partition(" ")[2]) > 1
        assert client.get(f"{API}/galleries/default").json()["people"] == 1
        assert [each["name"] for each in client.get(PEOPLE).json()["people"]] == ["Ada"]
        assert client.patch(f"{PEOPLE}/1", json={"name": "Eve"}).json()["code"] == "gallery-server-away"
        kiosk.enrol("Grace", GREEN)
        assert who(client, GREEN) is None
        kiosk.mend()
        until(lambda: who(client, GREEN) == "Grace")
        assert client.get("/health/ready").json()["degraded"] == []


def test_a_snapshot_that_is_too_old_recognises_nobody_until_the_server_is_back(kiosk: Kiosk) -> None:
    with kiosk.start(max_age_hours=1.2 / 3600) as client:
        kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        index = kiosk.service.gallery("default").index  # type: ignore[union-attr]
        kiosk.cut()
        until(lambda: who(client) == "gallery-snapshot-old")
        with pytest.raises(SnapshotTooOldError, match="at most"), index.snapshot():
            pass  # as a door does, which has held the index since before
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert "expected a snapshot of at most" in ready.json()["reasons"][0]
        assert send(client, "Grace", GREEN).json()["code"] == "gallery-snapshot-old"
        kiosk.mend()
        until(lambda: who(client) == "Ada")


def test_what_is_enrolled_meanwhile_is_encrypted_survives_the_process_and_is_sent_once(
    kiosk: Kiosk, make_service: MakeService
) -> None:
    with kiosk.start() as client:
        kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        kiosk.cut()
        answer = send(client, "Grace Hopper", GREEN, consent='{"text_version": "1"}', metadata='{"desk": 7}')
        assert (answer.status_code, answer.json()["state"], answer.json()["person_id"]) == (202, "queued", None)
        assert send(client, "Ada", (220, 40, 30)).status_code == 202
        refused = send(client, "Mallory", BLUE)
        assert (refused.status_code, refused.json()["code"]) == (409, "lookalike")
        assert send(client, "Nobody", (0, 0, 0)).json()["code"] == "no-usable-photo"
        assert who(client, GREEN) is None
        assert queue(client) == [("enrol", "queued", "", "Grace Hopper"), ("enrol", "queued", "", "Ada")]
        assert "2 enrolments or erasures wait" in str(client.get("/health/ready").json()["degraded"])
        stored = b"".join(each.read_bytes() for each in kiosk.keeper.snapshot.folder.rglob("*") if each.is_file())
        assert b"Grace" not in stored
        assert b"desk" not in stored
    assert kiosk.service is not None
    kiosk.service.close()
    with kiosk.start() as client:  # the server is still away
        assert who(client) == "Ada"
        assert len(queue(client)) == 2
        kiosk.mend()
        until(lambda: queue(client) == [])
        until(lambda: who(client, GREEN) == "Grace Hopper")
        until(kiosk.followed)
        time.sleep(0.2)
        grace = kiosk.server.find("Grace Hopper")
        assert grace is not None
        assert (grace.template_count, grace.metadata["desk"]) == (1, 7)
        assert grace.metadata["consent"]["text_version"] == "1"
        assert kiosk.server.count() == (2, 3)
        told = ["queued", "queued", "lookalike", None, None]
        assert [row.decision for row in kiosk.service.audit.rows(action="enrol")] == told  # type: ignore[union-attr]


def test_conflicts_are_shown_and_decided_and_nothing_is_merged_silently(kiosk: Kiosk) -> None:
    with kiosk.start() as client:
        kiosk.cut()
        assert send(client, "Ada", BLUE).status_code == 202  # whose face is enrolled elsewhere by another name
        assert send(client, "Grace", GREEN).status_code == 202  # whose name is
        assert send(client, "Same", RED).status_code == 202  # both are
        other = kiosk.enrol("Mallory", BLUE)
        namesake = kiosk.enrol("Grace", TEAL)
        kiosk.enrol("Same", RED)
        kiosk.mend()
        until(lambda: [each[1] for each in queue(client)] == ["conflict", "conflict"])
        items = client.get(QUEUE).json()["items"]
        assert [(each["name"], each["reason"]) for each in items] == [("Ada", "lookalike"), ("Grace", "name-taken")]
        until(kiosk.followed)
        items = client.get(QUEUE).json()["items"]
        assert items[0]["with_people"] == [{"id": other, "name": "Mallory"}]
        assert items[1]["with_people"] == [{"id": namesake, "name": "Grace"}]
        assert "2 enrolments or erasures are in conflict" in str(client.get("/health/ready").json()["degraded"])
        assert 'edgeface_gallery_queue{gallery="default",state="conflict"} 2.0' in client.get("/metrics").text
        assert kiosk.server.count() == (3, 3)
        with client_of(kiosk.service, Role.enrol) as clerk:  # type: ignore[arg-type]
            path = f"{QUEUE}/{items[0]['id']}"
            assert clerk.post(path, params={"force": True}).json()["code"] == "wrong-role"
            kiosk.server.forget(other)
            assert clerk.post(path).json()["state"] == "queued"
            assert clerk.delete(f"{QUEUE}/{items[1]['id']}").status_code == 204
            assert clerk.delete(f"{QUEUE}/{items[1]['id']}").status_code == 404
        until(lambda: queue(client) == [])
        until(lambda: who(client) == "Ada")
        assert kiosk.server.count() == (3, 3)


def test_an_erasure_wins_over_what_is_queued_and_closes_the_door_at_once(kiosk: Kiosk) -> None:
    with kiosk.start() as client:
        ada, grace, linus = (kiosk.enrol(*each) for each in (("Ada", BLUE), ("Grace", GREEN), ("Linus", RED)))
        until(lambda: (who(client), who(client, GREEN), who(client, RED)) == ("Ada", "Grace", "Linus"))
        kiosk.cut()
        for name, colour in (("Ada", BLUE), ("Grace", GREEN), ("Linus", RED)):
            assert send(client, name, colour, colour).status_code == 202
        done = client.delete(f"{PEOPLE}/{ada}")
        assert (done.status_code, done.json()["kind"], done.json()["state"]) == (202, "forget", "queued")
        assert who(client) is None
        assert client.delete(f"{PEOPLE}/{ada}").status_code == 404
        assert client.get(f"{PEOPLE}/{ada}").status_code == 404
        assert queue(client)[0][:3] == ("enrol", "erased", "forgotten")
        kiosk.server.forget(grace)  # by another service
        time.sleep(0.1)
        kiosk.mend()
        until(lambda: [each[1] for each in queue(client)] == ["erased", "erased"])
        until(kiosk.followed)
        assert [each.id for each in kiosk.server.people()] == [linus]
        assert (who(client), who(client, GREEN), who(client, RED)) == (None, None, "Linus")
        rows = kiosk.service.audit.rows(action="forget")  # type: ignore[union-attr]
        assert [row.decision for row in rows] == ["queued", "proved"]


def test_an_erasure_that_is_queued_survives_another_key(kiosk: Kiosk) -> None:
    with kiosk.start() as client:
        ada, grace = kiosk.enrol("Ada", BLUE), kiosk.enrol("Grace", GREEN)
        until(lambda: (who(client), who(client, GREEN)) == ("Ada", "Grace"))
        kiosk.cut()
        assert client.delete(f"{PEOPLE}/{ada}").status_code == 202
        assert send(client, "Linus", RED).status_code == 202
    assert kiosk.service is not None
    kiosk.service.close()
    kiosk.server.rekey(b"\x6b" * 32)
    (kiosk.folder / "key").write_text("6b" * 32)
    kiosk.proxy.mend()
    with kiosk.start() as client:
        until(lambda: queue(client) == [("enrol", "conflict", "gallery-damaged", None)])
        until(kiosk.followed)
        assert [each.id for each in kiosk.server.people()] == [grace]
        assert (who(client), who(client, GREEN)) == (None, "Grace")
        asked, done = kiosk.service.audit.rows(action="forget")  # type: ignore[union-attr]
        assert (asked.decision, done.decision, done.key_id) == ("queued", "proved", asked.key_id)


def test_an_erasure_never_erases_who_was_given_the_id_since(kiosk: Kiosk, cluster: Any) -> None:
    with kiosk.start() as client:
        ada = kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        kiosk.cut()
        assert send(client, "Ada", (220, 40, 30)).status_code == 202
        assert client.delete(f"{PEOPLE}/{ada}").status_code == 202
        kiosk.server.forget(ada)
        cluster.sql(f"UPDATE {kiosk.server.database.schema}.gallery SET next_id = {ada}")  # a backup was restored
        assert kiosk.enrol("Grace", GREEN) == ada
        kiosk.mend()
        until(lambda: ("forget", "conflict", "another-person", None) in queue(client))
        until(kiosk.followed)
        assert who(client, GREEN) is None
        assert kiosk.server.person(ada).name == "Grace"
        assert "1 enrolments or erasures are in conflict" in str(client.get("/health/ready").json()["degraded"])
        path = f"{QUEUE}/{client.get(QUEUE).json()['items'][1]['id']}"
        assert client.post(path).json()["state"] == "queued"
        until(lambda: ("forget", "conflict", "another-person", None) in queue(client))
        with client_of(kiosk.service, Role.enrol) as clerk:  # type: ignore[arg-type]
            assert clerk.delete(path).json()["code"] == "wrong-role"
        assert client.delete(path).status_code == 204
        until(lambda: who(client, GREEN) == "Grace")


def test_who_is_forgotten_twice_at_once_is_forgotten(kiosk: Kiosk, monkeypatch: pytest.MonkeyPatch) -> None:
    with kiosk.start() as client:
        ada = kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        kiosk.cut()
        real = kiosk.keeper.queue.add

        def add(*given: Any, **options: Any) -> Any:
            kiosk.keeper.snapshot.erase(ada)
            return real(*given, **options)

        monkeypatch.setattr(kiosk.keeper.queue, "add", add)
        assert client.delete(f"{PEOPLE}/{ada}").status_code == 202


def test_a_service_does_not_start_without_the_snapshot_whose_queue_waits(kiosk: Kiosk) -> None:
    with kiosk.start() as client:
        kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        kiosk.cut()
        assert client.delete(f"{PEOPLE}/1").status_code == 202
    assert kiosk.service is not None
    kiosk.service.close()
    kiosk.proxy.mend()
    without = {"galleries": {"default": OPEN | {"place": kiosk.place, "key": kiosk._key}}}
    with pytest.raises(GalleryError, match=r"queue\.sqlite: .* found 1 enrolments or erasures; give it"):
        kiosk._make(**without)
    with kiosk.start() as client:
        until(lambda: queue(client) == [])
    kiosk.service.close()
    kiosk._make(**without).close()


def test_photos_are_not_added_to_who_was_given_the_id_since(kiosk: Kiosk, cluster: Any) -> None:
    with kiosk.start() as client:
        ada = kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        kiosk.cut()
        assert send(client, "Ada", (220, 40, 30)).status_code == 202
        kiosk.server.forget(ada)
        cluster.sql(f"UPDATE {kiosk.server.database.schema}.gallery SET next_id = {ada}")
        kiosk.enrol("Grace", GREEN)
        kiosk.mend()
        until(lambda: queue(client) == [("enrol", "erased", "forgotten", None)])
        assert kiosk.server.person(ada).template_count == 1


def test_what_is_queued_for_one_gallery_goes_to_no_other(kiosk: Kiosk, cluster: Any) -> None:
    with kiosk.start() as client:
        ada = kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        kiosk.cut()
        assert client.delete(f"{PEOPLE}/{ada}").status_code == 202
        assert send(client, "Linus", RED).status_code == 202
    assert kiosk.service is not None
    kiosk.service.close()
    kiosk.proxy.mend()
    schema, header = kiosk.server.database.schema, kiosk.server.database.header  # type: ignore[attr-defined]
    kiosk.server.close()
    cluster.sql(f"ALTER SCHEMA {schema} RENAME TO {schema}_moved")
    kiosk.server = create_gallery(kiosk._direct, contract=read_contract(kiosk.model)[1], key=kiosk._key)
    assert kiosk.server.database.header.gallery_id != header.gallery_id
    with kiosk.start() as client:
        until(lambda: [each[1:3] for each in queue(client)] == [("conflict", "another-gallery")] * 2)
        assert kiosk.enrol("Grace", GREEN) == ada
        until(lambda: who(client, GREEN) == "Grace")


def test_what_may_have_been_sent_is_sent_again_after_an_earlier_copy_was_put_back(kiosk: Kiosk) -> None:
    with kiosk.start() as client:
        kiosk.cut()
        assert send(client, "Grace", GREEN).status_code == 202
        kiosk.keeper.queue.mark(kiosk.keeper.queue.items()[0].id, 10)  # which the server has not come to yet
        kiosk.mend()
        until(lambda: kiosk.server.find("Grace"))
        until(lambda: queue(client) == [])


def test_erasures_are_sent_before_enrolments(kiosk: Kiosk, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeface.serve import offline

    with kiosk.start() as client:
        ada = kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        kiosk.cut()
        assert send(client, "Grace", GREEN).status_code == 202
        assert client.delete(f"{PEOPLE}/{ada}").status_code == 202

        def busy(*given: Any, **options: Any) -> Any:
            raise GalleryBusyError("another process writes")

        monkeypatch.setattr(offline, "enrol_images", busy)
        kiosk.mend()
        until(lambda: queue(client) == [("enrol", "queued", "", "Grace")])
        assert not kiosk.server.people()


def test_sending_many_items_does_not_look_like_a_server_that_is_away(
    kiosk: Kiosk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeface.serve import offline

    real = offline.enrol_images
    with kiosk.start() as client:
        kiosk.cut()
        for name, colour in (("Ada", BLUE), ("Grace", GREEN), ("Linus", RED), ("Mary", TEAL)):
            assert send(client, name, colour).status_code == 202

        def slowly(*given: Any, **options: Any) -> Any:
            time.sleep(0.6)
            return real(*given, **options)

        monkeypatch.setattr(offline, "enrol_images", slowly)
        kiosk.mend()
        while queue(client):
            assert not kiosk.keeper.away
            time.sleep(0.02)


def test_waiting_for_another_who_writes_does_not_look_like_a_server_that_is_away(kiosk: Kiosk, cluster: Any) -> None:
    import psycopg

    with kiosk.start() as client:
        kiosk.cut()
        assert send(client, "Grace", GREEN).status_code == 202
        with psycopg.connect(cluster.url) as other:
            other.execute(f"SELECT 1 FROM {kiosk.server.database.schema}.gallery FOR UPDATE")  # type: ignore[attr-defined]
            kiosk.mend()
            for _ in range(100):
                assert not kiosk.keeper.away
                time.sleep(0.02)
            assert queue(client) == [("enrol", "queued", "", "Grace")]
            other.rollback()
        until(lambda: queue(client) == [])


def test_a_model_that_is_not_loaded_makes_no_conflict(kiosk: Kiosk) -> None:
    with kiosk.start() as client:
        kiosk.cut()
        assert send(client, "Grace", GREEN).status_code == 202
        assert client.post("/v2/repository/models/default/unload").status_code == 200
        kiosk.mend()
        time.sleep(0.5)
        assert queue(client) == [("enrol", "queued", "", "Grace")]
        assert client.post("/v2/repository/models/default/load").status_code == 200
        until(lambda: queue(client) == [])


def test_what_the_server_could_not_say_yet_is_sent_later_and_no_conflict(
    kiosk: Kiosk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeface.serve import offline

    real, failed = offline._has_person, []

    def replaced(store: Any, person_id: int) -> bool:
        if not failed and store is not kiosk.service.gallery("default").searched:  # type: ignore[union-attr]
            failed.append(person_id)
            raise GalleryReplacedError("another process changed the key")
        return real(store, person_id)

    with kiosk.start() as client:
        ada = kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        kiosk.cut()
        assert client.delete(f"{PEOPLE}/{ada}").status_code == 202
        monkeypatch.setattr(offline, "_has_person", replaced)
        kiosk.mend()
        until(lambda: queue(client) == [])
        assert failed == [ada]
        assert not kiosk.server.people()


def test_a_consent_that_ends_meanwhile_is_neither_recognised_nor_sent(
    kiosk: Kiosk, monkeypatch: pytest.MonkeyPatch
) -> None:
    consent = {"text_version": "1", "recorded_by": "k", "recorded": "2026-01-01T00:00:00+00:00"}
    ends = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 3))
    with kiosk.start() as client:
        kiosk.enrol("Ada", BLUE, metadata={"consent": consent | {"expires": ends, "noticed": None}})
        until(lambda: who(client) == "Ada")
        kiosk.cut()
        asked = f'{{"text_version": "1", "expires": "{ends}"}}'
        assert send(client, "Grace", GREEN, consent=asked).status_code == 202
        until(lambda: who(client) is None)
        until(lambda: time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()) > ends)
        kiosk.mend()
        until(lambda: queue(client) == [("enrol", "erased", "consent-expired", None)])
        assert kiosk.server.find("Grace") is None


@pytest.mark.parametrize("after", ["nothing", "forgotten", pytest.param("taken", marks=pytest.mark.nightly)])
def test_what_was_committed_without_the_kiosk_knowing_is_not_sent_twice(
    kiosk: Kiosk, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """The connection, or the process, ends between the server's commit and the queue."""
    from edgeface.serve import offline

    sent, real = [], offline.enrol_images

    with kiosk.start() as client:
        kiosk.cut()
        assert send(client, "Grace", GREEN, GREEN).status_code == 202
        kiosk.keeper.queue.remove, remove = (
            lambda number: (_ for _ in ()).throw(GalleryServerError("cut")),
            (kiosk.keeper.queue.remove),
        )
        if after == "taken":  # and nothing was committed: it failed before

            def fails(*given: Any, **options: Any) -> Any:
                sent.append(real(*given, **options))
                raise GalleryServerError("cut before the commit")

            monkeypatch.setattr(offline, "enrol_images", fails)
        kiosk.proxy.mend()
        until(lambda: sent if after == "taken" else kiosk.server.find("Grace"))
        if after == "forgotten":
            kiosk.server.forget(kiosk.server.find("Grace").id)  # type: ignore[union-attr]
        if after == "taken":
            kiosk.enrol("Linus", RED, TEAL)
            monkeypatch.setattr(offline, "enrol_images", real)
        kiosk.keeper.queue.remove = remove  # type: ignore[method-assign]
        expected = [("enrol", "erased", "forgotten", None)] if after == "forgotten" else []
        until(lambda: queue(client) == expected)
        people = {each.name: each.template_count for each in kiosk.server.people()}
        assert people == {"nothing": {"Grace": 1}, "forgotten": {}, "taken": {"Linus": 2, "Grace": 1}}[after]


def test_a_kiosk_of_a_group_knows_its_people_only_and_looks_for_faces_among_all(kiosk: Kiosk) -> None:
    with kiosk.start(group="bern") as client:
        kiosk.enrol("Ada", BLUE, labels=["bern"])
        kiosk.enrol("Grace", GREEN, labels=["zug"])
        until(lambda: who(client) == "Ada")
        assert who(client, GREEN) is None
        assert send(client, "Mallory", GREEN).json()["code"] == "lookalike"
        assert send(client, "Linus", RED).status_code == 201
        until(lambda: who(client, RED) == "Linus")
        assert kiosk.server.find("Linus").labels == ("bern",)  # type: ignore[union-attr]


def test_a_service_starts_without_the_server_from_its_snapshot_and_without_one_it_does_not(kiosk: Kiosk) -> None:
    kiosk.proxy.cut("refuse")
    with pytest.raises(GalleryServerError):
        kiosk.start()
    kiosk.proxy.mend()
    with kiosk.start() as client:
        kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        assert kiosk.service is not None
        done = client.delete(f"{PEOPLE}/1").json()
        assert done["proved"]
        assert any("gallery" in name for name in done["searched"]), "the snapshot was searched too"
        assert who(client) is None, "forgetting through the kiosk closes its door before it is answered"
        with open_gallery(kiosk._direct, key=kiosk._key) as other:
            other.rekey(b"\3" * 32)
        until(lambda: kiosk.keeper.away)
        assert who(client) is None


def test_who_was_to_be_forgotten_when_the_process_ended_is_not_recognised_after_a_start_without_the_server(
    kiosk: Kiosk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kiosk.start() as client:
        ada = kiosk.enrol("Ada", BLUE)
        until(lambda: who(client) == "Ada")
        kiosk.cut()
        with monkeypatch.context() as patch:  # it ends between the queue and the snapshot
            patch.setattr(kiosk.keeper.snapshot, "erase", lambda *_: (_ for _ in ()).throw(GalleryServerError("ends")))
            client.delete(f"{PEOPLE}/{ada}")
        assert [each[0] for each in queue(client)] == ["forget"]
    assert kiosk.service is not None
    kiosk.service.close()
    with kiosk.start() as client:
        assert kiosk.keeper.away
        assert who(client) is None


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_rounds_of_a_network_that_is_cut_and_of_kill_9_lose_nothing(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    answer = load_benchmark("network_cut").run(2, 12.0, seed=3, cluster=cluster)
    assert answer["problems"] == []
    assert answer["acknowledged"] == 12
    assert answer["kills"] == 3


def test_a_changed_snapshot_takes_a_restart_and_one_that_leaves_is_followed_no_more(kiosk: Kiosk) -> None:
    with kiosk.start() as client:
        service, keeper = kiosk.service, kiosk.keeper
        assert service is not None
        given = service.settings.model_dump(mode="json")
        given["galleries"]["default"]["snapshot"]["max_age_hours"] = 1
        assert service.reload(Settings.model_validate(given)) == ["galleries.default"]
        assert service.gallery("default").keeper is keeper
        assert keeper.options.max_age_hours == 24
        given["galleries"] = {"other": OPEN}
        assert service.reload(Settings.model_validate(given)) == []
        assert keeper._thread is not None
        assert not keeper._thread.is_alive()
        assert client.get(f"{API}/galleries/other/queue").json()["code"] == "no-snapshot"


def test_settings_that_do_not_fit_are_refused() -> None:
    for given, told in (
        ({"place": "people.gallery", "snapshot": {}}, "expected a place on a server, .*, found people.gallery; leave"),
        ({"snapshot": {}}, "expected a place on a server, .*, found none; leave"),
        ({"place": "postgresql://h/d", "unencrypted": True, "snapshot": {}}, "give the gallery a key"),
        ({"place": "postgresql://h/d", "snapshot": {"max_age_hours": 0}}, "greater than 0"),
        ({"place": "postgresql://h/d", "snapshot": {"max_age": 2}}, "Extra inputs"),
        ({"place": "postgresql://h/d", "snapshot": {"group": "a\u200bb"}}, "characters that are seen"),
    ):
        with pytest.raises((ValueError, InputError), match=told):
            Settings.model_validate({"galleries": {"default": given}})


def test_no_clock_makes_a_snapshot_younger() -> None:
    wall, tick = [1_800_000_000.0], [100.0]

    def made(reached: Reached | None, generation: int = 7, boot: str = "a") -> SnapshotAge:
        return SnapshotAge(reached, generation, clock=lambda: wall[0], tick=lambda: tick[0], boot=boot)

    age = made(None)
    assert age.seconds() is None
    age.confirm(at=95.0)
    assert age.seconds() == 5.0
    wall[0] -= 3600  # set back while it runs
    tick[0] += 60
    assert age.seconds() == 65.0
    written = age.to_write(7)
    tick[0] += 600  # the process starts again on the same start of the machine
    assert made(written).seconds() == 665.0
    assert made(written, 6).seconds() is None, "an earlier snapshot was put back"
    tick[0] = 10.0  # the machine starts again
    wall[0] += 1000
    assert made(written, boot="b").seconds() == 1065.0
    wall[0] -= 2000
    assert made(written, boot="b").seconds() is None, "the clock was set back meanwhile"
    wall[0] += 10 * 3600
    assert (made(written, boot="b").seconds() or 0) > 9 * 3600
