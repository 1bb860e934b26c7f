"""Kill a process at random moments of its work on a gallery, and report what was lost or kept wrongly.

Each round starts a process that works on a gallery and says on a pipe what it is about to do and what was
acknowledged, and kills it at a random moment. Then the gallery is opened by this process, which must succeed, checked,
and compared with what was acknowledged: everything enrolled is there, bit by bit; nothing of anybody forgotten is in
any file; after a rekey one of the two keys opens it and nothing sealed by the other is left; a rebuild goes on and
ends; after a restoration there is the gallery or the copy, and nothing in any file of those who were lost. In some
rounds a copy is moved over the gallery's file while the process works: it must notice before it acknowledges anything
more than what it was committing; or beside the WAL that it left: the next opening must notice where that belongs to
another state. In others the disk is full at a random moment. All the while another process opens the
gallery, lists who is there, and closes it, as somebody at another terminal does: neither may take anything from the
other.

    python benchmarks/durability.py --rounds 200
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.errors import GalleryDamagedError, GalleryError, GalleryKeyError, OutputError
from edgeface.gallery.rebuild import rebuild
from edgeface.gallery.records import KeptImage, NewTemplate
from edgeface.gallery.store.erase import files_of
from edgeface.gallery.store.restore import restore_gallery
from edgeface.gallery.store.searcher import Searcher
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.model.embedding import Embedding

DIM = 128
WORK = ("enrol", "forget", "rekey", "rebuild", "restore")
KINDS = (*WORK, "replace", "full")
MODELS = ("a" * 16, "b" * 16)
_ACKNOWLEDGED = (b"enrolled ", b"forgotten ", b"rekeyed ", b"rebuilt ", b"restored ")
_HURRY = 60.0
_DISK = 48 << 20
"""Bytes of the file system in memory that the gallery lies on, where this user may mount one."""
_MOST_ROOM = 1 << 20


def key_of(number: int) -> bytes | None:
    """Every third one is none: the gallery can be read then, and what is left of anybody would be found."""
    return None if number % 3 == 0 else hashlib.sha256(f"key {number}".encode()).digest()


def name_of(person: int) -> str:
    return f"Person Nr. {person:06d}"


def vector_of(person: int, template: int, contract_id: str) -> np.ndarray:
    """What a model of this contract sees in a picture: the same in every process."""
    seed = hashlib.sha256(f"{person} {template} {contract_id}".encode()).digest()
    row = np.random.default_rng(int.from_bytes(seed[:8], "little")).normal(size=DIM)
    return (row / np.linalg.norm(row)).astype(np.float32)


def image_of(person: int, template: int) -> KeptImage:
    """A picture that says whose it is, which is all that the model below looks at."""
    import cv2

    pixels = np.random.default_rng(person * 16 + template).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    pixels[0, :4] = [[person >> 16 & 255, person >> 8 & 255, person & 255]] + [[template, 0, 0]] * 3
    return KeptImage(
        png=cv2.imencode(".png", pixels)[1].tobytes(),
        box=np.array([0, 0, 24, 24], np.float32),
        landmarks=np.full((5, 2), np.nan, np.float32),
    )


class Model:
    """An embedder whose embeddings are known: so what a rebuild stored can be checked bit by bit."""

    def __init__(self, contract_id: str) -> None:
        from edgeface.model.contract import Alignment

        self.contract = _Contract(contract_id, Alignment("none"))

    def embed(self, crops: np.ndarray) -> np.ndarray:
        rows = []
        for crop in crops:
            high, middle, low = crop[0, 0].tolist()
            person, template = high << 16 | middle << 8 | low, int(crop[0, 1, 0])
            rows.append(vector_of(person, template, self.contract.contract_id))
        return np.stack(rows)


@dataclass(frozen=True)
class _Contract:
    contract_id: str
    alignment: Any
    name: str = "known"
    metric: str = "cosine"
    embedding_dim: int = DIM
    input_size: tuple[int, int] = (24, 24)


# The process that is killed


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def work(path: Path, kind: str, key: int, first: int, seed: int) -> None:
    """Do one kind of thing until killed, or until the disk is full or the file is another one; say which."""
    try:
        work_on(path, kind, key, first, seed)
    except OutputError as error:
        say("full", error)
    except GalleryError as error:
        if "was removed or replaced" not in str(error):
            raise
        say("replaced")


def work_on(path: Path, kind: str, key: int, first: int, seed: int) -> None:
    """Do one kind of thing without end; every line on stdout is true when it is written."""
    dice = random.Random(seed)
    store = SqliteStore(path, key=key_of(key), timeout=_HURRY)
    model = store.info.contract_id
    say("ready")
    if kind == "enrol":
        for person in range(first, first + 10_000):
            count = dice.randint(1, 4)
            say("enrolling", person, count)
            store.add_person(name_of(person), templates=[new_template(person, n, model) for n in range(count)])
            say("enrolled", person, count)
    elif kind == "forget":
        people = list(store.people())
        dice.shuffle(people)
        for each in people:
            say("forgetting", person_of(each.name))
            done = store.forget(each.id)
            assert done.proved, done.remains
            say("forgotten", person_of(each.name))
    elif kind == "rekey":
        for number in range(key + 1, key + 10_000):
            say("rekeying", number)
            assert not store.rekey(key_of(number)).remains
            say("rekeyed", number)
    elif kind == "restore":
        store.close()
        for person in range(first, first + 10_000):
            with SqliteStore(path, key=key_of(key), timeout=_HURRY) as store:
                say("enrolling", person, 1)
                store.add_person(name_of(person), templates=[new_template(person, 0, model)])
                say("enrolled", person, 1)
            say("restoring", person)
            assert restore_gallery(path, copy_of(path), key=key_of(key), timeout=_HURRY).lost == 1
            say("restored", person)
    else:
        for turn in range(10_000):
            target = MODELS[(MODELS.index(model) + 1 + turn) % 2]
            say("rebuilding", target)
            assert not rebuild(store, Model(target)).remains  # type: ignore[arg-type]
            say("rebuilt", target)


def copy_of(path: Path) -> Path:
    return path.with_name("people.copy")


def bystand(path: Path) -> None:
    """Open, read and close, again and again, until told to end; say how often the key was the right one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    say("ready")
    key, opened = 0, 0
    try:
        while True:
            try:
                with SqliteStore(path, key=key_of(key), timeout=_HURRY) as store:
                    store.people()
                    opened += 1
            except GalleryKeyError:
                key += 1  # keys are taken in turn
            except OutputError:
                pass  # the disk is full
            except GalleryError as error:
                if "open it again" not in str(error) and "was removed or replaced" not in str(error):
                    raise
            time.sleep(0.02)
    finally:
        say(opened)


def new_template(person: int, number: int, model: str) -> NewTemplate:
    return NewTemplate(embedding=Embedding(vector_of(person, number, model), model), image=image_of(person, number))


def person_of(name: str) -> int:
    return int(name.rsplit(" ", 1)[1])


# The process that kills and checks


@dataclass
class Truth:
    """What was acknowledged, and what may or may not have happened when the last process died."""

    people: dict[int, int] = field(default_factory=dict)
    maybe_added: dict[int, int] = field(default_factory=dict)
    maybe_gone: set[int] = field(default_factory=set)
    gone: dict[int, int] = field(default_factory=dict)
    keys: list[int] = field(default_factory=lambda: [0])
    copied: dict[int, int] = field(default_factory=dict)
    maybe_restored: bool = False
    replaced: bool = False
    next_person: int = 1
    acknowledged: int = 0

    def hear(self, line: str) -> None:
        verb, *values = line.split()
        if verb == "enrolling":
            self.maybe_added = {int(values[0]): int(values[1])}
            self.next_person = int(values[0]) + 1
        elif verb == "enrolled":
            self.people |= self.maybe_added
            self.maybe_added = {}
        elif verb == "forgetting":
            self.maybe_gone = {int(values[0])}
        elif verb == "forgotten":
            self.gone[int(values[0])] = self.people.pop(int(values[0]))
            self.maybe_gone = set()
        elif verb == "rekeying":
            self.keys = [self.keys[0], int(values[0])]
        elif verb == "rekeyed":
            self.keys = [int(values[0])]
        elif verb == "restoring":
            self.maybe_restored = True
        elif verb == "restored":
            self.restored()
        self.acknowledged += verb in ("enrolled", "forgotten", "rekeyed", "rebuilt", "restored")

    def restored(self) -> None:
        """Go back to the copy: who was enrolled since is lost, and erased."""
        self.gone |= {person: count for person, count in self.people.items() if person not in self.copied}
        self.people, self.maybe_restored = dict(self.copied), False

    def put_back(self) -> None:
        """Go back to a copy that was moved over the file: who was enrolled since is lost, who was forgotten returns."""
        self.gone = {person: count for person, count in self.gone.items() if person not in self.copied}
        self.people, self.maybe_added, self.maybe_gone, self.replaced = dict(self.copied), {}, set(), False


def kill_once(path: Path, kind: str, truth: Truth, dice: random.Random, longest: float, *, also: str = "") -> None:
    """Start a process, kill it some time after it acknowledged so much, both drawn at random; hear what it said.

    `also` is what happens besides: the disk is "full"; the file is "replaced", which the process must notice; or the
    process "crashed" and a copy is put beside its WAL, which the next opening must notice.
    """
    words = [sys.executable, __file__, "--work", kind, str(path), str(truth.keys[0]), str(truth.next_person)]
    words += [str(dice.getrandbits(32)), str(dice.randrange(_MOST_ROOM) if also == "full" and not mounted(path) else 0)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    said, wanted = b"", dice.choice((0, 0, 1, 2))
    try:
        while sum(map(said.count, _ACKNOWLEDGED)) < wanted or b"ready\n" not in said:
            ready, _, _ = select.select([process.stdout], [], [], _HURRY)
            if ready and (more := os.read(process.stdout.fileno(), 1 << 16)):
                said += more
            elif ready and also == "full":
                break
            else:
                raise RuntimeError(f"{kind}: the process said no more than {said!r}")
        time.sleep(dice.random() * longest)
        if also in ("replaced", "crashed"):
            said += replace(path, process, crashed=also == "crashed")
        if also == "replaced":
            before = sum(map(said.count, _ACKNOWLEDGED))
            process.wait(_HURRY)
    finally:
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read()
        process.wait()
    for line in said.decode().splitlines(keepends=True):
        if line.endswith("\n"):
            truth.hear(line)
    if process.returncode not in (-signal.SIGKILL, 0):
        raise RuntimeError(f"{kind}: the process failed before it was killed: {process.returncode}")
    if b"\nfull" in said and also != "full":
        raise RuntimeError(f"{kind}: the disk was not full, and the process said {said!r}")
    truth.replaced = also in ("replaced", "crashed")
    if also == "replaced":
        late = sum(map(said.count, _ACKNOWLEDGED)) - before
        if late > 1 or b"\nreplaced\n" not in said:  # one was being committed
            raise RuntimeError(f"{kind}: {late} acknowledged after the file was replaced: {said!r}")


def replace(path: Path, process: subprocess.Popen[bytes], *, crashed: bool) -> bytes:
    """Move the copy over the gallery's file between two instructions of the process, or beside the WAL that it left."""
    assert process.stdout is not None
    process.send_signal(signal.SIGSTOP)
    said = b""
    while select.select([process.stdout], [], [], 0.05)[0]:
        said += os.read(process.stdout.fileno(), 1 << 16)
    if not crashed:
        remove_wal(path)
    copy_of(path).replace(path)
    if not crashed:
        process.send_signal(signal.SIGCONT)
    return said


def remove_wal(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def open_again(path: Path, truth: Truth) -> SqliteStore:
    """Open with the acknowledged key, or, after a rekey that nobody acknowledged, the next one."""
    for number in truth.keys:
        try:
            store = SqliteStore(path, key=key_of(number), timeout=_HURRY)
        except GalleryKeyError:
            continue
        except GalleryDamagedError as error:
            if not truth.replaced or "-wal: expected what was written after" not in str(error):
                raise
            remove_wal(path)  # as the error says
            store = SqliteStore(path, key=key_of(number), timeout=_HURRY)
            truth.put_back()
        truth.keys = [number]
        return store
    raise AssertionError(f"none of the keys {truth.keys} opens the gallery")


def judge(path: Path, truth: Truth, problems: list[str]) -> None:
    """Compare the gallery with what was acknowledged."""
    with open_again(path, truth) as store:
        problems += store.check().problems
        model = store.info.contract_id
        found = {person_of(each.name): each for each in store.people()}
        if truth.replaced and found.keys() == truth.copied.keys():
            truth.put_back()  # else the WAL goes on from the copy, to what was acknowledged
        truth.replaced = False
        if truth.maybe_restored and truth.people.keys() - truth.copied.keys() - found.keys():
            truth.restored()
        truth.maybe_restored = False
        for person in list(truth.maybe_gone):
            if person not in found:
                truth.gone[person] = truth.people.pop(person)
        truth.people |= {person: n for person, n in truth.maybe_added.items() if person in found}
        truth.maybe_added, truth.maybe_gone = {}, set()
        problems += [f"lost: {name_of(person)}" for person in truth.people.keys() - found.keys()]
        problems += [f"never enrolled or forgotten: {name_of(p)}" for p in found.keys() - truth.people.keys()]
        for person, count in truth.people.items():
            if person not in found:
                continue
            stored = store.templates_of(found[person].id)
            expected = [vector_of(person, n, model) for n in range(count)]
            if not np.array_equal([each.embedding.vector for each in stored], expected):
                problems.append(f"other embeddings than were enrolled: {name_of(person)}")
            if any(
                (image := store.image_of(each.id)) is None or image.png != image_of(person, n).png
                for n, each in enumerate(stored)
            ):
                problems.append(f"other images than were enrolled: {name_of(person)}")
    problems += [f"forgotten and still in the files: {place}" for place in remains_of(path, truth.gone)]


def remains_of(path: Path, gone: dict[int, int]) -> Iterator[str]:
    """Readable pieces of the people who are forgotten; a gallery without encryption would show them."""
    secrets: list[bytes] = []
    for person, count in gone.items():
        secrets.append(name_of(person).encode())
        for number in range(count):
            secrets += [vector_of(person, number, model).tobytes() for model in MODELS]
            secrets.append(image_of(person, number).png[40:-16])
    searcher = Searcher(secrets)
    for place in files_of(path):
        # No connection to the gallery is open here, and the other process may just have closed the last one.
        with contextlib.suppress(FileNotFoundError):
            content = place.read_bytes()
            for offset, _ in searcher.search(lambda at, length, whole=content: whole[at : at + length]):
                yield f"{place.name} at byte {offset}"


def fill(path: Path, truth: Truth, people: int) -> None:
    """Bring the gallery to so many people, by the rules of the game."""
    with open_again(path, truth) as store, store.writing():
        model = store.info.contract_id
        while len(truth.people) < people:
            person, truth.next_person = truth.next_person, truth.next_person + 1
            store.add_person(name_of(person), templates=[new_template(person, n, model) for n in range(2)])
            truth.people[person] = 2


def copy(path: Path, truth: Truth) -> None:
    """Copy the gallery as `sqlite3 people.gallery '.backup COPY'` does."""
    copy_of(path).unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(copy_of(path))) as to:
        source.backup(to)
    truth.copied = dict(truth.people)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system in memory on a folder, where this user may."""
    size = ["-o", f"size={_DISK}", "edgeface-durability"]
    done = subprocess.run(["mount", "-t", "tmpfs", *size, folder], capture_output=True, check=False)
    try:
        yield
    finally:
        if not done.returncode:
            subprocess.run(["umount", "--lazy", folder], check=True)


def mounted(path: Path) -> bool:
    return path.parent.is_mount()


@contextlib.contextmanager
def full(path: Path, dice: random.Random) -> Iterator[None]:
    """Leave little room on the gallery's file system; where it is not its own, the process limits its files' sizes."""
    rest = path.with_name("rest")
    if mounted(path):
        status = os.statvfs(path)
        rest.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - dice.randrange(_MOST_ROOM))))
    try:
        yield
    finally:
        rest.unlink(missing_ok=True)


class Bystander:
    """The process at another terminal; `opened` is how often it opened the gallery so far."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.opened, self._path, self._problems = 0, path, problems
        self.start()

    def start(self) -> None:
        words = [sys.executable, __file__, "--bystand", str(self._path)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # "ready": told to end before, it would not say how often

    def end(self) -> None:
        if self._process.stdout is None or self._process.stdout.closed:
            return
        self._process.terminate()
        self.opened += int(self._process.communicate(timeout=_HURRY)[0] or 0)
        if self._process.returncode:
            self._problems.append(f"the process at another terminal ended with {self._process.returncode}")


def play(path: Path, kind: str, truth: Truth, dice: random.Random, longest: float, bystander: Bystander) -> None:
    """Play one round of a kind."""
    doing = dice.choice(WORK) if kind == "full" else dice.choice(("enrol", "forget")) if kind == "replace" else kind
    if kind == "replace" or doing == "restore":
        copy(path, truth)
    if kind == "replace":
        bystander.end()  # it would remove the copy's WAL when it closes the file that it opened before
        kill_once(path, doing, truth, dice, longest, also=dice.choice(("replaced", "crashed")))
    elif kind == "full":
        with full(path, dice):
            kill_once(path, doing, truth, dice, longest, also="full")
    else:
        kill_once(path, doing, truth, dice, longest)


def run(rounds: int, *, seed: int, people: int = 40, longest: float = 0.3) -> dict[str, Any]:
    """So many rounds, the kinds in turn; what went wrong."""
    dice, truth, problems = random.Random(seed), Truth(), list[str]()
    acknowledged = dict.fromkeys(KINDS, 0)
    with tempfile.TemporaryDirectory(prefix="edgeface-durability-") as folder, small_disk(Path(folder)):
        path = Path(folder) / "people.gallery"
        SqliteStore.create(path, contract_id=MODELS[0], dim=DIM, key=key_of(0), keep_images=True).close()
        bystander = Bystander(path, problems)
        try:
            for number in range(rounds):
                kind = KINDS[number % len(KINDS)]
                fill(path, truth, people)
                before = truth.acknowledged
                play(path, kind, truth, dice, longest, bystander)
                acknowledged[kind] += truth.acknowledged - before
                judge(path, truth, problems)
                if kind == "replace":
                    bystander.start()
                sys.stderr.write(f"round {number + 1} of {rounds}: {kind}, {len(problems)} problems\n")
                if kind in ("enrol", "full"):  # the gallery must not grow without bounds
                    trim(path, truth, people)
        finally:
            bystander.end()
    return {
        "rounds": rounds,
        "acknowledged": acknowledged,
        "forgotten_people_searched_for": len(truth.gone),
        "opened_and_closed_by_another_process": bystander.opened,
        "problems": problems,
    }


def run_all(rounds: int, *, seed: int, jobs: int) -> dict[str, Any]:
    """So many rounds in all, on several galleries at a time."""
    started = time.monotonic()
    shares = [rounds // jobs + (job < rounds % jobs) for job in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        answers = list(pool.map(lambda job: run(shares[job], seed=seed + job), range(jobs)))

    def total(name: str) -> Any:
        return sum((each[name] for each in answers), type(answers[0][name])())

    return {
        "rounds": total("rounds"),
        "galleries": jobs,
        "seed": seed,
        "acknowledged": {kind: sum(each["acknowledged"][kind] for each in answers) for kind in KINDS},
        "forgotten_people_searched_for": total("forgotten_people_searched_for"),
        "opened_and_closed_by_another_process": total("opened_and_closed_by_another_process"),
        "problems": total("problems"),
        "seconds": round(time.monotonic() - started, 1),
    }


def trim(path: Path, truth: Truth, people: int) -> None:
    """Forget the newest until so many are left; that they are gone is checked in every later round too."""
    with open_again(path, truth) as store:
        for person in sorted(truth.people)[2 * people :]:
            found = store.find(name_of(person))
            assert found is not None
            store.forget(found.id)
            truth.gone[person] = truth.people.pop(person)


def main() -> int:
    """Run it, print JSON; exit code 1 if anything was lost or kept."""
    if sys.argv[1:2] == ["--work"]:
        kind, path, key, first, seed, room = sys.argv[2:]
        if int(room):
            limit = Path(path).stat().st_size + int(room)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        work(Path(path), kind, int(key), int(first), int(seed))
        return 0
    if sys.argv[1:2] == ["--bystand"]:
        bystand(Path(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="galleries at a time, each with a share of the rounds")
    options = parser.parse_args()
    answer = run_all(options.rounds, seed=options.seed, jobs=options.jobs)
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    return 1 if answer["problems"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
