"""Cut the network between a kiosk and its gallery's server, and report what was lost, sent twice or came back.

The kiosk is `edgeface serve` in a process of its own, on a snapshot of a gallery in PostgreSQL. Between them is a
proxy, which in one round swallows what is sent and in the next refuses connections. In each round

- another service enrols people, whom the kiosk must recognise;
- the network is cut for --seconds. All the while a client identifies people, and a stranger, twenty times a second;
- people are enrolled at the kiosk, one of them with a face that another service enrols meanwhile by another name, one
  is forgotten at the kiosk, and one for whom photos are queued is forgotten on the server;
- the kiosk is killed (SIGKILL), once while the server is away and in every other round once more while it sends;
- the network comes back. When the queue is empty, what the server has is compared with what was acknowledged.

    python benchmarks/network_cut.py --rounds 10 --seconds 60
    python benchmarks/network_cut.py --delta 50000

--delta N measures instead what one enrolment costs a kiosk that follows a gallery of N people, and the server, in CPU
milliseconds; the first copy too.

Needs the extras `serve` and `postgres` and a PostgreSQL server's programs. Faces are colours: computing takes next to
nothing. Of --delta, templates have 512 values.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import psutil
from _proxy import Proxy, proxied

import edgeface
from edgeface.gallery.codec import PersonBody, TemplateBody
from edgeface.gallery.opening import create_gallery, open_gallery
from edgeface.gallery.records import NewTemplate, now
from edgeface.gallery.snapshot import GallerySnapshot
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.embedding import Embedding
from edgeface.model.ir_file import read_contract

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from contracts import sample_contract
from postgres_server import Cluster, binaries
from tiny_ir import tiny_crop, write_tiny_ir

API = "/api/edgeface/v1"
PEOPLE, QUEUE = f"{API}/galleries/default/people", f"{API}/galleries/default/queue"
_EVERY, _THRESHOLD, _APART = 0.05, 0.999, 0.9985
_PATIENCE = 120.0


def until(holds: Callable[[], Any], what: str) -> Any:
    """Wait for something; return what it gives."""
    deadline = time.monotonic() + _PATIENCE
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {_PATIENCE:.0f} s: {what}")
        time.sleep(0.05)
    return found


def colours(count: int, seed: int) -> list[tuple[int, int, int]]:
    """Return colours that are told apart."""
    rng, found, units = np.random.default_rng(seed), list[tuple[int, int, int]](), np.empty((0, 3))
    for each in rng.integers(25, 250, (200_000, 3)):
        unit = each / np.linalg.norm(each)
        if not len(units) or (units @ unit).max() < _APART:
            found.append((int(each[0]), int(each[1]), int(each[2])))
            units = np.vstack([units, unit])
        if len(found) == count:
            return found
    raise RuntimeError(f"only {len(found)} colours")


def photo(colour: Any) -> bytes:
    return cv2.imencode(".png", tiny_crop(np.array(colour)))[1].tobytes()


class Kiosk:
    """`edgeface serve` in a process that is killed and started again."""

    def __init__(self, folder: Path, place: str, key: str) -> None:
        self._folder, state = folder, folder / "state"
        gallery = {"place": place, "key": key, "threshold": _THRESHOLD, "gate": False}
        given = {
            "state": str(state),
            "models": {"default": {"model": str(folder / "tiny.xml"), "detector": None}},
            "galleries": {"default": gallery | {"snapshot": {"max_age_hours": 1, "offline_enrolment": True}}},
            "limits": {"workers": 2},
            "keys": {"per_key": 1000, "per_address": 1000},
            "listen": {"port": 0},
        }
        (folder / "serve.yml").write_text(json.dumps(given))  # which is YAML
        self.kills, self.client = 0, httpx.Client()
        self._process: subprocess.Popen[str] | None = None
        self.start()
        self.key = (state / "first.key").read_text().strip()

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "edgeface", "serve", "--config", str(self._folder / "serve.yml"), "--json"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        told = ""
        for line in self._process.stdout:
            told += line
            if line == "}\n":
                break
        if '"address"' not in told:
            raise RuntimeError(f"the kiosk does not start: {told}\n{(self._folder / 'log').read_text()[-3000:]}")
        self.client = httpx.Client(base_url=json.loads(told)["address"], timeout=30)

    def kill(self) -> None:
        assert self._process is not None
        self.kills += 1
        self._process.kill()
        self._process.wait()

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.client.request(method, path, headers={"x-api-key": self.key}, **options)

    def who(self, colour: Any) -> str | None:
        found = self.ask("POST", f"{API}/identify", files={"photo": photo(colour)})
        found.raise_for_status()
        name: str | None = found.json()["faces"][0]["person"]
        return name

    def enrol(self, name: str, colour: Any) -> httpx.Response:
        return self.ask("POST", PEOPLE, data={"name": name}, files={"photo": photo(colour)})

    def queue(self) -> list[tuple[str, str, int]]:
        items = self.ask("GET", QUEUE).json()["items"]
        return [(each["kind"], each["state"], each["id"]) for each in items]

    def away(self) -> bool:
        return bool(self.ask("GET", QUEUE).json()["away"])


class Client(threading.Thread):
    """Identifies people, and a stranger, and counts; what fails while the kiosk itself is down does not count."""

    def __init__(self, kiosk: Kiosk, faces: dict[str | None, Any]) -> None:
        super().__init__(daemon=True)
        self._kiosk, self._faces, self._ended = kiosk, list(faces.items()), threading.Event()
        self.down = threading.Event()
        self.seconds, self.wrong, self.failed = list[float](), list[str](), list[str]()

    def run(self) -> None:
        for turn in range(1 << 30):
            if self._ended.wait(_EVERY):
                return
            name, colour = self._faces[turn % len(self._faces)]
            began, down = time.monotonic(), self.down.is_set()
            try:
                found = self._kiosk.who(colour)
            except Exception as error:
                if not (down or self.down.is_set()):
                    self.failed.append(f"{type(error).__name__}: {error}"[:200])
                continue
            self.seconds.append(time.monotonic() - began)
            if found != name:
                self.wrong.append(f"expected {name}, found {found}")

    def end(self) -> None:
        self._ended.set()
        self.join()


class Run:
    """Rounds with one kiosk and one server."""

    def __init__(self, folder: Path, cluster: Cluster, proxy: Proxy, seed: int, rounds: int) -> None:
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_text("7c" * 32)
        key, ir = f"file:{folder / 'key'}", write_tiny_ir(folder)
        self.server = create_gallery(f"{cluster.url}?gallery=cut", contract=read_contract(ir)[1], key=key)
        self._embed = edgeface.load(ir, detector=None, allow_seeded=True)
        self.proxy, self.random = proxy, random.Random(seed)
        self.colours = iter(colours(9 * rounds + 2, seed))
        self.kiosk = Kiosk(folder, f"postgresql://edgeface@127.0.0.1:{proxy.port}/postgres?gallery=cut", key)
        self.stranger = next(self.colours)
        self.told: dict[str, Any] = {"problems": [], "identifications": 0, "acknowledged": 0, "conflicts": 0}
        self.latencies, self.drained = list[float](), list[float]()
        self.known: dict[str, Any] = {}  # who is to be enrolled, once and with one template

    def close(self) -> None:
        self.kiosk.kill()
        self.server.close()
        self._embed.close()

    def elsewhere(self, name: str, colour: Any) -> int:
        """Enrol by another service."""
        template = NewTemplate(embedding=self._embed.embed(tiny_crop(np.array(colour))))
        return self.server.add_person(name, templates=[template]).id

    def round(self, number: int, seconds: float) -> None:
        how, kiosk, fault = ("drop", "refuse")[number % 2], self.kiosk, self.told["problems"].append
        faces = {f"{name}{number}": next(self.colours) for name in ("stays", "leaves", "erased", *"abc", "mine")}
        ids = {name: self.elsewhere(name, faces[name]) for name in list(faces)[:3]}
        stays, leaves, erased, *new, mine = faces
        for name in ids:
            until(lambda name=name: kiosk.who(faces[name]) == name, f"{name} is recognised")
        client = Client(kiosk, {stays: faces[stays], None: self.stranger})
        client.start()
        began = time.monotonic()
        self.proxy.cut(how)
        until(kiosk.away, "the kiosk notices")
        answers = [kiosk.enrol(name, faces[name]) for name in (*new, mine)]
        answers += [kiosk.enrol(leaves, faces[leaves]), kiosk.ask("DELETE", f"{PEOPLE}/{ids[erased]}")]
        self.told["acknowledged"] += sum(each.status_code == 202 for each in answers)
        if strange := [each.text for each in answers if each.status_code != 202]:
            fault(f"round {number}: not queued: {strange}")
        if kiosk.who(faces[erased]) is not None:
            fault(f"round {number}: {erased} is recognised after the erasure")
        self.server.forget(ids[leaves])
        self.elsewhere(f"other{number}", faces[mine])
        time.sleep(self.random.uniform(0, max(0.0, 0.5 * (seconds - (time.monotonic() - began)))))
        self.restart(client)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        self.proxy.mend()
        back = time.monotonic()
        if number % 2:
            time.sleep(self.random.uniform(0, 1.0))
            self.restart(client)
        until(lambda: not any(state == "queued" for _, state, _ in kiosk.queue()), "the queue is sent")
        self.drained.append(time.monotonic() - back)
        self.known |= {name: faces[name] for name in (stays, *new)}
        self.known[f"other{number}"] = faces[mine]
        client.end()
        self.compare(number, {leaves: faces[leaves], erased: faces[erased]})
        self.told["identifications"] += len(client.seconds)
        self.latencies += client.seconds
        for text in (*client.wrong[:3], *client.failed[:3]):
            fault(f"round {number}: {text} ({len(client.wrong)} wrong, {len(client.failed)} failed)")

    def restart(self, client: Client) -> None:
        client.down.set()
        self.kiosk.kill()
        self.kiosk.start()
        client.down.clear()

    def compare(self, number: int, gone: dict[str, Any]) -> None:
        """Compare the server, and the kiosk, with what was acknowledged."""
        fault = self.told["problems"].append
        there = {each.name: each.template_count for each in self.server.people()}
        for name in self.known:
            if there.get(name) != 1:
                fault(f"round {number}: {name}: expected one template, found {there.get(name)}")
        if more := there.keys() - self.known.keys():
            fault(f"round {number}: nobody asked for {sorted(more)}, or they came back")
        for name, colour in self.known.items():
            until(lambda name=name, colour=colour: self.kiosk.who(colour) == name, f"{name} is recognised")
        for name, colour in gone.items():
            if self.kiosk.who(colour) is not None:
                fault(f"round {number}: {name} is recognised, who was forgotten")
        items = self.kiosk.queue()
        conflicts = [number for kind, state, number in items if state == "conflict"]
        self.told["conflicts"] += len(conflicts)
        if len(conflicts) != 1:
            fault(f"round {number}: expected one conflict, found {items}")
        for each in conflicts:
            self.kiosk.ask("DELETE", f"{QUEUE}/{each}").raise_for_status()


def run(rounds: int, seconds: float, seed: int = 1, cluster: Cluster | None = None) -> dict[str, Any]:
    """Cut the network that often, to this server or one that is started; return the figures, and what was wrong."""
    if cluster is None:
        with postgres() as cluster:
            return run(rounds, seconds, seed, cluster)
    began = time.monotonic()
    with proxied(cluster.port) as proxy, tempfile.TemporaryDirectory() as folder:
        work = Run(Path(folder), cluster, proxy, seed, rounds)
        try:
            for number in range(rounds):
                work.round(number, seconds)
        finally:
            work.close()
    slowest = sorted(work.latencies)
    return {
        "rounds": rounds,
        "cut_seconds": seconds,
        **work.told,
        "kills": work.kiosk.kills - 1,
        "identify_ms": {
            name: round(1000 * slowest[min(len(slowest) - 1, int(share * len(slowest)))], 1)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("most", 1.0))
        },
        "sent_within_seconds": {
            "median": round(statistics.median(work.drained), 1),
            "most": round(max(work.drained), 1),
        },
        "seconds": round(time.monotonic() - began, 1),
        "load": os.getloadavg()[0],
        "holds": not work.told["problems"],
    }


@contextlib.contextmanager
def postgres() -> Iterator[Cluster]:
    """Start a PostgreSQL server, and remove it."""
    programs = binaries()
    if programs is None:
        raise SystemExit("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="edgeface-cut-") as folder:
        cluster = Cluster(Path(folder), programs)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


# What following costs


def measure(people: int, deltas: int = 40) -> dict[str, Any]:
    """Return what the first copy of a gallery of so many people takes, and then each enrolment."""
    rng, key, contract = np.random.default_rng(1), bytes(range(32)), sample_contract(embedding_dim=512)
    with (
        postgres() as cluster,
        tempfile.TemporaryDirectory() as folder,
        create_gallery(f"{cluster.url}?gallery=large", contract=contract, key=key) as store,
    ):

        def add(count: int, start: int) -> None:
            rows = rng.normal(size=(count, contract.embedding_dim)).astype(np.float32)
            with store.writing():
                for number, row in enumerate(rows, start):
                    new = NewTemplate(embedding=Embedding(row, contract.contract_id))
                    store.add_person(f"person {number}", templates=[new])

        _fill(store, people, rng)
        with open_gallery(f"{cluster.url}?gallery=large", key=key) as server:
            backend = psutil.Process(_backend(server))
            snapshot = GallerySnapshot(Path(folder) / "copy", key=key)
            first = _cpu(lambda: snapshot.follow(server), backend)
            each = []
            for number in range(deltas):
                add(1, people + number)
                each.append(_cpu(lambda: snapshot.follow(server), backend))
            idle = _cpu(lambda: [snapshot.follow(server) for _ in range(100)], backend)
            snapshot.close()
    return {
        "people": people,
        "first_copy_cpu_seconds": {"kiosk": round(first[0], 2), "server": round(first[1], 2)},
        "enrolment_cpu_ms": {
            name: round(1000 * statistics.fmean(one[at] for one in each), 1)
            for at, name in enumerate(("kiosk", "server"))
        },
        "look_cpu_ms": {"kiosk": round(10 * idle[0], 2), "server": round(10 * idle[1], 2)},
        "load": os.getloadavg()[0],
    }


def _fill(store: GalleryStore, people: int, rng: np.random.Generator) -> None:
    """Write people with a template each, many rows at a time."""
    seal, rows = store.rows.seal, rng.normal(size=(people, store.info.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with store.database.writing() as connection:
        generation, ids = store.database.wrote(), store.database.take_ids(2 * people)
        named, templates = [], []
        for number, row in zip(ids[::2], rows, strict=True):
            body = PersonBody(f"filled {number}", (), {}, now())
            sealed = seal("people", (number,), body.encode())
            named.append((number, store.rows.mark_name(store.rows.cipher, body.name), sealed))
            identity = (number + 1, number, generation)
            template = TemplateBody(row, 0.9, "", now()).encode()
            templates.append((*identity, seal("templates", identity, template)))
        cursor = connection.raw.cursor()
        cursor.executemany("INSERT INTO people VALUES (%s, %s, %s)", named)
        cursor.executemany("INSERT INTO templates VALUES (%s, %s, %s, %s)", templates)


def _backend(server: GalleryStore) -> int:
    with server.database.reading() as connection:
        return int(connection.execute("SELECT pg_backend_pid()").fetchone()[0])


def _cpu(work: Callable[[], object], backend: psutil.Process) -> tuple[float, float]:
    before, mine = backend.cpu_times(), time.process_time()
    work()
    after = backend.cpu_times()
    return time.process_time() - mine, after.user + after.system - before.user - before.system


def main() -> None:
    """Run the rounds, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--delta", type=int, metavar="PEOPLE")
    options = parser.parse_args()
    if options.delta:
        print(json.dumps(measure(options.delta), indent=2))
        return
    answer = run(options.rounds, options.seconds, options.seed)
    print(json.dumps(answer, indent=2))
    sys.exit(0 if answer["holds"] else 1)


if __name__ == "__main__":
    main()
