"""Embed archives of photos on Ray: blocks of photos in, one table in Parquet for each out.

Blocks are made before any work, of the list of photos alone, so that the rows do not depend on who computes them. Only
names and counts travel between the processes: an actor reads the bytes of its photos, decodes, detects, aligns and
embeds, and writes the block's table, whose metadata say which photos it is of and which failed. A table is whole or
absent, and so a block is done or not, whoever is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import edgeface
from edgeface import errors
from edgeface.errors import EdgeFaceError, ExtraNotInstalledError, ImageError, InputError, MissingError
from edgeface.files import output_errors, staging_folder
from edgeface.limits import usable_cores
from edgeface.model.contract import ModelContract
from edgeface.model.embedding import require_same_contract
from edgeface.model.ir_file import read_contract
from edgeface.pipeline.batch import (
    Row,
    differences,
    hold_folder,
    make_table,
    rows_of,
    settings_of,
    unwritable_names,
    why_none,
)
from edgeface.pipeline.table import PARTS, read_notes, require_format
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.runtime.address import RemoteAddress
from edgeface.scale.sources import PhotoPlace, list_places, read_place
from edgeface.untrusted import parse_json
from edgeface.vision.crops import list_some
from edgeface.vision.source import open_source

BLOCK = 256
"""Photos of a block: about ten seconds of work for one core, which is what a killed process loses."""
_ACTOR_CPUS = (4, 3, 2, 1)
"""CPUs of an actor, the most first: fewer actors hold fewer copies of the models, more keep more cores busy, because
some of a pipeline's steps are one thread's."""
_STORE_BYTES = 128 << 20
"""Of a local Ray's object store, through which names and counts go; Ray wants 75 MiB at least."""
_TRIES = 3
"""Of a block whose actors die: the third time its photos are failures, not the end of the run."""
_SECONDS = 5.0
"""To wait for a Ray's port."""
_LOCAL = "local"
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Environment of whatever of Ray starts here: it reports to nobody, and its errors are raised, not printed."""
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listens on 127.0.0.1 only, on whatever system
    "RAY_AUTH_MODE": "token",  # where other users of the machine may knock
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without which it warns of a future release's
}
"""Environment of a Ray of this process."""


@dataclass(frozen=True, slots=True)
class ActorPlan:
    """How many actors embed, and the CPUs of each, for Ray's scheduler as for OpenVINO's threads."""

    actors: int
    cpus: int

    @classmethod
    def choose(cls, nodes: Sequence[int], blocks: int) -> ActorPlan:
        """Divide the CPUs of machines among actors.

        One CPU of each machine stays free, for Ray's own processes and for tasks of others, which would wait for ever
        where actors hold all CPUs (ray-project/ray#44687). Of the rest, actors of one size get as many as can be; of
        two sizes that use equally many, the larger.

        Parameters
        ----------
        nodes
            CPUs of each machine.
        blocks
            There are no more actors than these.

        Examples
        --------
        >>> ActorPlan.choose([9], 1000), ActorPlan.choose([3], 1000), ActorPlan.choose([10, 10], 1000)
        (ActorPlan(actors=2, cpus=4), ActorPlan(actors=1, cpus=2), ActorPlan(actors=6, cpus=3))
        """
        usable = [max(1, cpus - 1) for cpus in nodes]
        counts = {size: sum(cpus // size for cpus in usable) for size in _ACTOR_CPUS}
        size = max(_ACTOR_CPUS, key=lambda each: each * counts[each])
        return cls(max(1, min(counts[size], blocks)), size)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RayResult:
    """What `embed_on_ray` did.

    Attributes
    ----------
    rows, files
        Embeddings in the output; photos that were asked for.
    reused
        Photos of blocks that an earlier run had done.
    failures
        Why a photo, a folder or a shard has no row, by its source.
    left_out
        As in `edgeface.vision.listing.PhotoList`.
    blocks
        Files of the output.
    plan
        Who embedded.
    contract
        Of all rows.
    reduced
        As in `BulkResult`.
    """

    rows: int
    files: int
    reused: int
    failures: dict[Path, str]
    left_out: dict[Path, str]
    blocks: int
    plan: ActorPlan
    contract: ModelContract
    reduced: int

    def __repr__(self) -> str:
        return f"RayResult({self.rows} embeddings of {self.files} files in {self.blocks} blocks, by {self.plan})"


def embed_on_ray(
    places: Sequence[str | Path],
    output: Path,
    *,
    load: Mapping[str, Any],
    faces: Literal["all", "largest"] = "all",
    address: str = _LOCAL,
    block: int = BLOCK,
    progress: ProgressCallback = ignore_progress,
) -> RayResult:
    """Embed the faces of many photos by actors of Ray, into a folder of tables that `EmbeddingTable.load` reads.

    The rows are those of `edgeface.pipeline.batch.embed_folder`, in the same order. A repeated run does only blocks
    that are not done, or whose photos changed: their names, sizes or modification times.

    Parameters
    ----------
    places
        As for `list_places`.
    output
        Folder, whose name ends in .parquet.
    load
        Arguments of `edgeface.load`, which each actor calls: the paths in it are read on the actors' machines.
    faces
        As for `Pipeline`.
    address
        ``host:port`` of a Ray, or ``auto``; edgeface, the model and the photos have to be at the same paths on all its
        machines. ``local``: a Ray of this process is started on this machine, which listens on 127.0.0.1 only, and
        ends with it. A Ray that this process is connected to already is used as it is.
    block
        Photos of a block. Another number makes other blocks.
    progress
        Called after each block.

    Raises
    ------
    ExtraNotInstalledError
        If Ray is absent.
    MissingError
        If no Ray answers at the address.
    InputError
        If there is no photo, or the output is a file, or of other settings or another contract.
    ImageError
        If no photo at all gave an embedding.
    OutputError
        If the output cannot be written, or another run is writing it.
    EdgeFaceError
        What `edgeface.load` and `Pipeline.run` raise in an actor.
    """
    require_format(output)
    if output.suffix != ".parquet" or output.is_file():
        raise InputError(
            path=output,
            expected="a folder of tables whose name ends in .parquet",
            found="a file" if output.is_file() else f"the suffix {output.suffix}",
            remedy="choose another name",
        )
    if block < 1:
        raise InputError(f"block: expected 1 or more photos, found {block}")
    model = edgeface.find_model(load.get("model"))
    if RemoteAddress.names(model):
        remedy = "name an IR: every actor has models of its own"
        raise InputError(path=model, expected="an IR", found="the address of a server", remedy=remedy)
    _, contract = read_contract(model)  # a model that is none is refused before Ray starts
    given = {"detector": "auto", **load, "model": model}
    if given["detector"] == "auto" and not given.get("detector_model"):  # machines may have downloaded different ones
        given["detector"] = edgeface.choose_detector()
    load = {name: each.absolute() if isinstance(each, Path) else each for name, each in given.items()}
    found = list_places(places, output=output)
    failures = found.failures | unwritable_names((Path(photo.source) for photo in found.photos), output)
    photos = [photo for photo in found.photos if Path(photo.source) not in failures]
    blocks = -(-len(photos) // block)
    done = rows = reused = 0
    reduced = 1
    if not photos:
        raise ImageError(f"no photo could be embedded: {list_some(failures)}")
    with hold_folder(output, output), _connected(address) as ray:
        plan = ActorPlan.choose(_cpus_of_nodes(ray, address), blocks)
        arguments = {"folder": output.absolute(), "run": secrets.token_hex(8), "faces": faces, "load": load}
        with contextlib.closing(_run(ray, photos, block, plan, arguments)) as answers:
            for answer in answers:
                rows, done = rows + answer["rows"], done + answer["photos"]
                reused += answer["photos"] * answer["reused"]
                reduced = answer["reduced"]
                failures |= {Path(source): reason for source, reason in answer["failures"].items()}
                progress(Progress("embedding", done=done, total=len(found.photos), unit="files"))
        _discard(output, beyond=blocks)
    if not rows:
        raise ImageError(f"no photo could be embedded: {list_some(failures)}")
    return RayResult(
        rows=rows,
        files=len(found.photos) + len(found.failures),
        reused=reused,
        failures=dict(sorted(failures.items())),
        left_out=found.left_out,
        blocks=blocks,
        plan=plan,
        contract=contract,
        reduced=reduced,
    )


def _divide(photos: Sequence[PhotoPlace], size: int) -> Iterator[Sequence[PhotoPlace]]:
    return (photos[at : at + size] for at in range(0, len(photos), size))


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:08}.parquet"


def _discard(folder: Path, *, beyond: int) -> None:
    """Remove what a run of more photos left, and marks of processes that were killed."""
    with output_errors(folder):
        for path in (*folder.glob(PARTS), *folder.glob(".tries-*")):
            if path.name.startswith(".") or path >= _part(folder, beyond):
                path.unlink(missing_ok=True)


# Ray


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Yield the module `ray`, connected; what was started or connected here is ended."""
    if "://" in address:
        raise InputError(
            path="ray",
            expected="host:port of a Ray, auto or local",
            found=address,
            remedy="run this on a machine of that Ray, with its host:port or auto",
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_QUIET | _PRIVATE if address == _LOCAL else _QUIET))
        try:
            import ray
            import ray.util
        except ImportError as error:
            raise ExtraNotInstalledError("ray", needed_for="bulk work on Ray") from error
        if not ray.is_initialized():
            options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
            if address == _LOCAL:
                temporary = stack.enter_context(staging_folder(Path(tempfile.gettempdir())))
                options |= {
                    "num_cpus": usable_cores() + 1,  # the one that stays free: to schedule by, and not a core
                    "object_store_memory": _STORE_BYTES,
                    "include_dashboard": False,
                    "_node_ip_address": "127.0.0.1",
                    "_temp_dir": str(temporary / "r"),  # which Ray opens to all users
                }
            elif ":" in address:
                _require_listener(address)
            stack.callback(ray.shutdown)
            # A thread of Ray's prints on stdout that an actor died; no public setting stops it.
            ray._private.worker._worker_logs_enabled = False
            try:
                with _kept_handler(signal.SIGTERM), _muted():  # Ray sets a handler, and says which log it keeps
                    ray.init(address, **options)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise MissingError(f"ray {address}: expected a Ray that answers, found none: {error}") from error
            except SystemExit as ended:  # by its handler
                raise SystemExit(128 + signal.SIGTERM) from ended
        yield ray


def _require_listener(address: str) -> None:
    """Raise MissingError if nobody listens: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise MissingError(f"ray {address}: expected a Ray that answers, found none: {error}") from error


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _kept_handler(number: signal.Signals) -> Iterator[None]:
    """Set a signal's handler again when the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Send to nowhere what libraries write to the stream of errors by its number."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _cpus_of_nodes(ray: Any, address: str) -> list[int]:
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    if not any(cpus):
        raise MissingError(path=f"ray {address}", expected="a node with CPUs", found="none", remedy="start one")
    return [each for each in cpus if each]


def _run(
    ray: Any, photos: Sequence[PhotoPlace], block: int, plan: ActorPlan, arguments: Mapping[str, Any]
) -> Generator[dict[str, Any], None, None]:
    """Yield what `_Worker` answers of each block, in any order; raise what it refuses with."""
    kind = ray.remote(num_cpus=plan.cpus, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")(_Worker)
    actors = [kind.remote(threads=plan.cpus, **arguments) for _ in range(plan.actors)]
    pool = ray.util.ActorPool(actors)
    coming = enumerate(_divide(photos, block))
    try:
        while True:
            if pool.has_free() and (following := next(coming, None)):
                pool.submit(lambda actor, told: actor.embed.remote(*told), following)
            elif pool.has_next():
                yield _told(pool.get_next_unordered())
            else:
                return
    finally:
        for actor in actors:
            ray.kill(actor)


def _told(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an actor's answer; raise what it refused with."""
    if not (refusal := answer.get("refusal")):
        return answer
    kind = getattr(errors, refusal["kind"], EdgeFaceError)
    error = kind.__new__(kind)
    EdgeFaceError.__init__(error, refusal["message"])  # some kinds make their text of other arguments
    raise error


class _Worker:
    """Embed blocks of photos: an actor of Ray, in a process of its own.

    Errors of edgeface are answers, because Ray would wrap them, and start an actor again that cannot load its models.
    """

    def __init__(self, *, folder: Path, run: str, threads: int, faces: Literal["all", "largest"], load: Any) -> None:
        import cv2

        from edgeface.runtime.devices import shared_core

        self._folder, self._run = folder, run
        # OpenVINO counts the machine's cores, not the actor's, and all processes would pin their threads to the same.
        cv2.setNumThreads(threads)
        shared_core().set_property("CPU", {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False})
        self._refusal: EdgeFaceError | None = None
        try:
            self._pipeline = edgeface.load(**load).pipeline(faces=faces)
            self._settings = settings_of(self._pipeline)
        except EdgeFaceError as error:
            self._refusal = error

    def embed(self, number: int, photos: list[PhotoPlace]) -> dict[str, Any]:
        """Return rows, photos and failures of a block, and whether it was done before; or why none can be."""
        try:
            if self._refusal is not None:
                raise self._refusal
            return {**self._embed(number, photos), "reduced": self._pipeline.reduction}
        except EdgeFaceError as error:
            return {"refusal": {"kind": type(error).__name__, "message": str(error)}}

    def _embed(self, number: int, photos: list[PhotoPlace]) -> dict[str, Any]:
        part = _part(self._folder, number)
        made_of = hashlib.sha256(json.dumps(photos).encode()).hexdigest()
        if (done := self._done(part, made_of)) is not None:
            return done
        rows: list[Row] = []
        failures: dict[str, str] = {}
        with self._tries(number) as tries:
            if tries < _TRIES:
                rows, failures = self._compute(photos)
            else:
                reason = f"the process that embedded its block has died {tries} times; embed it by itself"
                failures = {photo.source: reason for photo in photos}
            block = {"rows": len(rows), "photos": len(photos), "failures": failures}
            table = make_table(rows, self._pipeline.contract, json.dumps(self._settings, sort_keys=True))
            table.save(part, notes={"made_of": made_of, "block": json.dumps(block)})
        return {**block, "reused": False}

    def _done(self, part: Path, made_of: str) -> dict[str, Any] | None:
        """Return the answer of a block that an earlier run, or a killed actor, has done."""
        try:
            notes = read_notes(part)
        except InputError:  # absent, or cut off when the machine failed
            return None
        if "made_of" not in notes:
            remedy = "write to another folder"
            raise InputError(path=part, expected="a part of a run on Ray", found="another table", remedy=remedy)
        require_same_contract(notes["contract_id"], self._pipeline.contract.contract_id, what=str(part))
        if changed := "; ".join(differences(parse_json(notes["settings"]), self._settings)):
            remedy = "use those, write to another folder, or remove this one"
            raise InputError(f"{part}: written with other settings ({changed}); {remedy}")
        if notes["made_of"] != made_of:
            return None
        return {**parse_json(notes["block"]), "reused": True}

    @contextlib.contextmanager
    def _tries(self, number: int) -> Iterator[int]:
        """Yield how often this run has begun the block before: a byte in a file for each."""
        mark = self._folder / f".tries-{number}-{self._run}"
        with output_errors(mark):
            with mark.open("ab") as file:
                tries = file.tell()
                file.write(b".")
            yield tries
            mark.unlink(missing_ok=True)

    def _compute(self, photos: list[PhotoPlace]) -> tuple[list[Row], dict[str, str]]:
        rows: list[Row] = []
        failures: dict[str, str] = {}

        def fail(path: Path, error: ImageError) -> None:
            failures[str(path)] = str(error).removeprefix(f"{path}: ")

        places = {Path(photo.source): photo for photo in photos}
        reduced = self._pipeline.reduction
        with (
            open_source(
                list(places), on_bad=fail, read_photo=lambda path: read_place(places[path], reduced=reduced)
            ) as frames,
            contextlib.closing(self._pipeline.run(frames)) as answers,
        ):
            for frame, faces in answers:
                if found := rows_of(frame, faces):
                    rows += found
                else:
                    failures[frame.source] = why_none(faces)
        return rows, failures
