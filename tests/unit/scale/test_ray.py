"""Bulk work on Ray: the rows of the plain function, each once, whoever is killed; with the real Ray where it is."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from tiny_ir import tiny_crop, write_tiny_ir

import edgeface
from edgeface.cli import main
from edgeface.errors import ContractError, ImageError, InputError, MissingError
from edgeface.files import staging_folders
from edgeface.pipeline.batch import embed_folder
from edgeface.pipeline.table import EmbeddingTable, read_notes
from edgeface.progress import Progress
from edgeface.scale.ray import ActorPlan, RayResult, _discard, _divide, _Worker, embed_on_ray
from edgeface.scale.sources import PhotoPlace, list_places

pytest.importorskip("pyarrow")
BLOCK = 5
real_ray = pytest.mark.usefixtures("_nodes")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty crops, three of them damaged or without a face, and tiny.xml."""
    folder = tmp_path_factory.mktemp("ray")
    write_tiny_ir(folder)
    (folder / "crops" / "sub").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(28):
        path = folder / "crops" / ("sub" if number % 3 else "") / f"{number:02}.png"
        cv2.imwrite(str(path), tiny_crop(random.integers(20, 250, 3)))
    (folder / "crops" / "04.jpg").write_bytes(b"\xff\xd8\xff")
    cv2.imwrite(str(folder / "crops" / "sub" / "blank.png"), np.zeros((32, 32, 3), np.uint8))
    return folder


def load_of(work: Path) -> dict[str, Any]:
    return {"model": work / "tiny.xml", "detector": None}


def run(work: Path, output: Path, **options: Any) -> RayResult:
    places = options.pop("places", [work / "crops"])
    return embed_on_ray(places, output, load=options.pop("load", load_of(work)), block=BLOCK, **options)


@pytest.fixture(scope="module")
def plain(work: Path) -> EmbeddingTable:
    with edgeface.load(**load_of(work)) as app:
        return embed_folder([work / "crops"], app.pipeline(faces="largest"), work / "plain.parquet").table


def same(a: EmbeddingTable, b: EmbeddingTable) -> bool:
    names = ("paths", "faces", "sizes", "modified", "digests", "boxes", "scores", "landmarks", "qualities")
    rows = all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name in names[5:]) for name in names)
    cosines = (a.vectors * b.vectors).sum(axis=1)  # of unit length
    return rows and a.settings == b.settings and a.contract_id == b.contract_id and cosines.min() >= 0.999999


# Without Ray: what an actor does


@pytest.fixture
def worker(work: Path, tmp_path: Path) -> _Worker:
    return make_worker(work, tmp_path / "out.parquet")


def make_worker(work: Path, folder: Path, **load: Any) -> _Worker:
    folder.mkdir(exist_ok=True)
    return _Worker(folder=folder, run="r", threads=1, faces="largest", load=load_of(work) | load)


def ask(worker: _Worker, *blocks: Sequence[PhotoPlace]) -> list[dict[str, Any]]:
    return [worker.embed(number, list(block)) for number, block in enumerate(blocks)]


def test_actors_write_the_rows_of_the_plain_function(
    worker: _Worker, work: Path, plain: EmbeddingTable, tmp_path: Path
) -> None:
    blocks = list(_divide(list_places([work / "crops"]).photos, BLOCK))
    answers = ask(worker, *blocks)
    assert [answer["photos"] for answer in answers] == [5, 5, 5, 5, 5, 5]
    assert sum(answer["rows"] for answer in answers) == len(plain) == 28
    failures = {Path(source).name: reason for answer in answers for source, reason in answer["failures"].items()}
    assert failures.keys() == {"04.jpg", "blank.png"}
    assert failures["04.jpg"] == "truncated JPEG: its end marker is missing"
    table = EmbeddingTable.load(tmp_path / "out.parquet")
    assert same(table, plain)
    assert [answer["reused"] for answer in ask(worker, *blocks)] == [True] * 6
    assert read_notes(tmp_path / "out.parquet" / "part-00000001.parquet")["contract_id"] == plain.contract_id


@pytest.mark.real
@pytest.mark.slow
def test_actors_read_large_photos_as_small_as_the_plain_function_does(tmp_path: Path, data: Path) -> None:
    photo = cv2.imread(str(data / "photos" / "multiface.jpg"))
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "large.jpg"), cv2.resize(photo, (1600, 1600 * len(photo) // photo.shape[1])))
    write_tiny_ir(tmp_path)
    load = {"model": tmp_path / "tiny.xml", "detector": "mtcnn", "min_size": 64}
    with edgeface.load(**load) as app:
        plain = embed_folder([tmp_path / "photos"], app.pipeline(), tmp_path / "plain.parquet").table
    folder = tmp_path / "o.parquet"
    folder.mkdir()
    worker = _Worker(folder=folder, run="r", threads=1, faces="all", load=load)
    assert ask(worker, list_places([tmp_path / "photos"]).photos)[0]["rows"] == len(plain) > 1
    assert json.loads(plain.settings)["reduced"] == 2
    assert same(EmbeddingTable.load(folder), plain)


def test_only_parts_of_more_photos_are_removed(tmp_path: Path) -> None:
    names = [
        "part-00000001.parquet",
        "part-00000002.parquet",
        "part-10000000.parquet",
        ".tries-3-x",
        "part-00002-a.parquet",
    ]
    for name in names:
        (tmp_path / name).touch()
    _discard(tmp_path, beyond=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[0], names[4]]


def test_every_row_of_a_part_has_its_contract(worker: _Worker, work: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    ask(worker, *_divide(list_places([work / "crops"]).photos, BLOCK))
    table = parquet.read_table(tmp_path / "out.parquet")
    assert set(table["contract_id"].to_pylist()) == {EmbeddingTable.load(tmp_path / "out.parquet").contract_id}
    assert {"paths", "boxes", "landmarks", "qualities", "digests", "vectors"} <= set(table.column_names)


def test_a_block_of_other_photos_or_of_a_photo_that_changed_is_done_again(
    worker: _Worker, work: Path, tmp_path: Path
) -> None:
    photos = [photo for photo in list_places([work / "crops"]).photos if photo.source.endswith("png")]
    assert not ask(worker, *_divide(photos[:3], 3))[0]["reused"]
    touched = [photos[0]._replace(modified=1), *photos[1:3]]
    assert not ask(worker, *_divide(touched, 3))[0]["reused"]
    assert ask(worker, *_divide(touched, 3))[0]["reused"]


def test_a_folder_of_other_settings_is_refused(work: Path, tmp_path: Path) -> None:
    block = list(_divide(list_places([work / "crops"]).photos[:2], 2))
    ask(make_worker(work, tmp_path / "o.parquet"), *block)
    write_tiny_ir(tmp_path, name="other", source="b")
    refusal = ask(make_worker(work, tmp_path / "o.parquet", model=tmp_path / "other.xml"), *block)[0]["refusal"]
    assert refusal["kind"] == ContractError.__name__
    other = make_worker(work, tmp_path / "o.parquet", detector="mtcnn")
    refusal = ask(other, *block)[0]["refusal"]
    assert refusal["kind"] == InputError.__name__
    assert "part-00000000.parquet: written with other settings (detector" in refusal["message"]


def test_a_part_that_is_cut_off_is_made_again_and_one_of_another_program_is_refused(
    worker: _Worker, work: Path, plain: EmbeddingTable, tmp_path: Path
) -> None:
    blocks = list(_divide(list_places([work / "crops"]).photos, BLOCK))
    ask(worker, *blocks)
    part = tmp_path / "out.parquet" / "part-00000001.parquet"
    for content in (part.read_bytes()[:-9], b""):
        part.write_bytes(content)
        assert [answer["reused"] for answer in ask(worker, *blocks[:3])] == [True, False, True]
    assert same(EmbeddingTable.load(tmp_path / "out.parquet"), plain)
    plain.save(part)
    refusal = ask(worker, *blocks[:2])[1]["refusal"]
    assert "part-00000001.parquet: expected a part of a run on Ray, found another table" in refusal["message"]


def test_a_block_whose_actors_die_is_a_failure_at_the_third_time(worker: _Worker, work: Path, tmp_path: Path) -> None:
    first, second = _divide([each for each in list_places([work / "crops"]).photos if "png" in each.source][:4], 2)
    for number in range(2):
        (tmp_path / "out.parquet" / f".tries-{number}-r").write_bytes(b"..." if number else b"..")
    answers = ask(worker, first, second)
    assert [(answer["rows"], len(answer["failures"])) for answer in answers] == [(2, 0), (0, 2)]
    assert "has died 3 times" in next(iter(answers[1]["failures"].values()))
    assert not list((tmp_path / "out.parquet").glob(".tries*"))


def test_what_an_actor_cannot_load_is_its_answer(work: Path, tmp_path: Path) -> None:
    worker = make_worker(work, tmp_path / "o.parquet", model=tmp_path / "none.xml")
    refusal = ask(worker, [])[0]["refusal"]
    assert issubclass(getattr(edgeface.errors, refusal["kind"]), MissingError | InputError)
    assert "none.xml" in refusal["message"]


@pytest.mark.parametrize(
    ("nodes", "blocks", "plan"),
    [
        ([3], 99, ActorPlan(1, 2)),  # two cores, and the one that is only counted
        ([2], 99, ActorPlan(1, 1)),
        ([1], 99, ActorPlan(1, 1)),
        ([2, 2], 99, ActorPlan(2, 1)),
        ([17], 99, ActorPlan(4, 4)),
        ([16], 99, ActorPlan(5, 3)),
        ([17], 3, ActorPlan(3, 4)),
        ([64] * 10, 10**6, ActorPlan(210, 3)),
    ],
)
def test_actors_leave_a_cpu_of_every_node_free(nodes: list[int], blocks: int, plan: ActorPlan) -> None:
    assert ActorPlan.choose(nodes, blocks) == plan
    assert sum((cpus - 1) // plan.cpus for cpus in nodes) >= plan.actors or nodes == [1]


def test_an_output_that_is_no_folder_of_tables_is_refused(work: Path, tmp_path: Path) -> None:
    (tmp_path / "file.parquet").write_bytes(b"")
    for name, found in (("file.parquet", "a file"), ("out.npz", r"the suffix \.npz")):
        with pytest.raises(InputError, match=f"{name}: expected a folder of tables .* found {found}"):
            run(work, tmp_path / name)


def test_nothing_is_started_for_no_photo(work: Path, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(200))
    with pytest.raises(ImageError, match=r"no photo could be embedded: .*film\.mp4"):
        run(work, tmp_path / "o.parquet", places=[tmp_path])
    assert not (tmp_path / "o.parquet").exists()


def test_a_model_on_a_server_is_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an IR, found the address of a server"):
        run(work, tmp_path / "o.parquet", load={"model": Path("ovms://127.0.0.1:8000/facenet")})


def test_an_address_of_the_client_protocol_is_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected host:port of a Ray, auto or local, found ray://"):
        run(work, tmp_path / "o.parquet", address="ray://127.0.0.1:1")
    assert not (tmp_path / "o.parquet").exists()


@pytest.mark.alone
def test_an_address_at_which_nobody_listens_is_told_at_once(work: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(MissingError, match=r"ray 127\.0\.0\.1:1: expected a Ray that answers, found none: .*refused"):
        run(work, tmp_path / "o.parquet", address="127.0.0.1:1")
    assert not (tmp_path / "o.parquet").exists()


# With Ray


@pytest.fixture(scope="module")
def _nodes() -> Iterator[None]:
    """Two nodes of Ray on this machine, to which this process is connected."""
    ray = pytest.importorskip("ray")
    utils = pytest.importorskip("ray.cluster_utils")
    with (
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        nodes = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        nodes.add_node(num_cpus=2)
        ray.init(nodes.address, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()
        nodes.shutdown()


@real_ray
@pytest.mark.alone
def test_two_nodes_write_the_rows_of_the_plain_function_once_though_an_actor_is_killed(
    work: Path, plain: EmbeddingTable, tmp_path: Path
) -> None:
    told: list[float] = []

    def kill_one(progress: Progress) -> None:
        if not told:
            actors(psutil.Process())[0].kill()
        told.append(progress.done)

    done = run(work, tmp_path / "o.parquet", progress=kill_one)
    assert (done.rows, done.files, done.reused, done.blocks, done.plan) == (28, 30, 0, 6, ActorPlan(2, 1))
    assert [path.name for path in done.failures] == ["04.jpg", "blank.png"]
    assert told == [5, 10, 15, 20, 25, 30]
    assert same(EmbeddingTable.load(tmp_path / "o.parquet"), plain)
    assert not list((tmp_path / "o.parquet").glob(".tries*"))


@real_ray
@pytest.mark.alone
def test_the_command_says_what_it_did_and_errors_of_actors_are_its_own(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["embed", "--ray", work / "crops", "--crops", "-m", work / "tiny.xml", "-o", tmp_path / "o.parquet"]
    assert main([*map(str, words), "--json", "--strict"]) == 1
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert {key: answer[key] for key in ("model", "rows", "files", "reused", "ray")} == {
        "model": "tiny",
        "rows": 28,
        "files": 30,
        "reused": 0,
        "ray": {"blocks": 1, "actors": 1, "cpus": 1},
    }
    assert [line.partition(": ")[0] for line in said.err.splitlines()] == [each["path"] for each in answer["failures"]]
    with pytest.raises(InputError, match="min_size"):
        run(work, tmp_path / "bad.parquet", load={"model": work / "tiny.xml", "min_size": 0})
    assert not (tmp_path / "bad.parquet").exists()


_CHILD = """
import sys
from pathlib import Path
from edgeface.scale.ray import embed_on_ray
photos, output, model = map(Path, sys.argv[1:])
print(embed_on_ray([photos], output, load={"model": model, "detector": None}, faces="largest", block=1).reused)
"""


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a short name: Ray's sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.mark.alone
def test_a_local_ray_is_private_silent_and_goes_on_after_its_driver_was_killed(
    work: Path, plain: EmbeddingTable, tmp_path: Path, temporary: Path
) -> None:
    pytest.importorskip("ray")
    output = tmp_path / "o.parquet"
    command = [sys.executable, "-c", _CHILD, *map(str, (work / "crops", output, work / "tiny.xml"))]
    driver = subprocess.Popen(command)
    while driver.poll() is None and not list(output.glob("part-*")):
        time.sleep(0.01)
    family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    listening = {place.laddr.ip for each in family for place in sockets(each) if place.status == "LISTEN"}
    # Ray's agents try for a minute to tell the dead that they are dead.
    agents = {each.pid for each in family if each.name().endswith("Agent")}
    driver.kill()
    driver.wait()
    done = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert listening
    assert [folder.stat().st_mode & 0o777 for folder in staging_folders(temporary)] == [0o700]
    assert 0 < len(done) < 30

    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (again.returncode, again.stderr) == (0, "")
    assert int(again.stdout) >= len(done)  # and nothing else
    assert {name: (output / name).stat().st_mtime_ns for name in done} == done
    assert same(EmbeddingTable.load(output), plain)
    assert list(temporary.iterdir()) == []
    left = psutil.wait_procs([each for each in family if each.pid not in agents], 20)[1]
    assert left == []


def sockets(process: psutil.Process) -> list[Any]:
    with contextlib.suppress(psutil.Error):
        return process.net_connections("inet")
    return []


def actors(root: psutil.Process) -> list[psutil.Process]:
    found = []
    for each in root.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [each] * ("_Worker" in " ".join(each.cmdline()))
    return found
