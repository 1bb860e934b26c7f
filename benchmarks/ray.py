"""Does bulk work on Ray keep the plain function's speed, its rows, and all of them when processes die? Prints JSON.

    python benchmarks/ray.py --model facenet.xml --json [--photos 2000] [--rounds 3] [--only faults memory]

- `throughput`: `edgeface embed` and `edgeface embed --ray` embed the same photos of LFW in turn, each in a new process
  that loads its models, on the same CPUs. `throughput_ratio` is the median of the ratios of photos a second within the
  rounds, start and end of every process included; of `--ray` with no address these are Ray's own too, some seconds.
  `running_throughput_ratio` is that of `--ray ADDRESS`, where a Ray runs already, as on a cluster. `cpu_ratio` is that
  of the CPU seconds of all processes that a run started, which says more where others share the machine.
- `faults`: in every round an actor or the driver is killed with SIGKILL while blocks are done. A killed driver's run is
  started again. `lost`, `twice`, `done_again`: rows, and blocks that were done before the kill.
- `memory`: photos of 12 megapixels: the most bytes that the object store held, and the largest process.
- `nodes`: two nodes of Ray on this machine give the rows of one.

Ray is imported in other processes only, which do not start in this folder: here, `import ray` would be this file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from edgeface.pipeline.table import EmbeddingTable

DATA = Path(os.environ.get("EDGEFACE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PARTS = ("throughput", "faults", "memory", "nodes")
_SAME = 0.999999
_CHILD = """
import json, os, sys, tempfile
from pathlib import Path
asked = json.loads(sys.argv[1])
if asked["nodes"] > 1:
    folder = tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
    os.environ["RAY_TMPDIR"] = folder.name
    Path(folder.name, "ray").mkdir()
    import ray
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(asked["nodes"] - 1):
        cluster.add_node(num_cpus=2)
    ray.init(cluster.address, log_to_driver=False)
from edgeface.scale.ray import embed_on_ray
done = embed_on_ray([asked["photos"]], Path(asked["output"]), load={"model": asked["model"]}, faces="largest",
                    block=asked["block"])
print(json.dumps({"rows": done.rows, "reused": done.reused, "actors": done.plan.actors, "cpus": done.plan.cpus}))
if asked["nodes"] > 1:
    ray.shutdown()
    cluster.shutdown()
"""


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="FaceNet's IR with its contract")
    parser.add_argument("--json", action="store_true", help="print JSON (always does; kept for uniformity)")
    parser.add_argument("--photos", type=int, default=2000, help="of LFW, for throughput")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput")
    parser.add_argument("--kills", type=int, default=20, help="rounds of faults")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    options.model = options.model.resolve()
    report: dict[str, Any] = {"cpus": len(os.sched_getaffinity(0)), "load_at_start": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory(prefix="edgeface-ray-") as folder:
        work = Path(folder)
        if "throughput" in options.only:
            report |= throughput(options.model, lfw(work / "lfw", options.photos), work, options.rounds)
        if "faults" in options.only:
            report["faults"] = faults(options.model, lfw(work / "few", 64), work, options.kills)
        if "memory" in options.only:
            report["memory"] = memory(options.model, work)
        if "nodes" in options.only:
            report["nodes"] = nodes(options.model, lfw(work / "more", 128), work)
    print(json.dumps(report, indent=2))


def lfw(folder: Path, count: int) -> Path:
    """Fill a folder with links to photos of LFW, spread evenly over its people."""
    found = sorted((DATA / "lfw" / "images").glob("*/*.jpg"))
    folder.mkdir()
    for path in found[:: max(1, len(found) // count)][:count]:
        (folder / path.name).symlink_to(path)
    return folder


def throughput(model: Path, photos: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Time the commands in turn; the first of each fills the cache of compiled models and does not count."""
    warm = lfw(work / "warm", 4)
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "ray": [], "running": []}
    with head() as address:
        for count in range(rounds + 1):
            for name in sorted(runs, reverse=bool(count % 2)):
                output = work / f"{name}-{count}.parquet"
                command = ["embed", photos if count else warm, "-o", output, "--model", model]
                command += {"plain": [], "ray": ["--ray"], "running": ["--ray", address]}[name]
                figures = watch([sys.executable, "-m", "edgeface", *map(str, command)])
                if count:
                    runs[name].append(figures)
    total = len(list(photos.iterdir()))
    plain, *others = (EmbeddingTable.load(work / f"{name}-{rounds}.parquet") for name in runs)
    return {
        "photos": total,
        "throughput_ratio": ratio(runs, "ray", "wall_seconds"),
        "running_throughput_ratio": ratio(runs, "running", "wall_seconds"),
        "cpu_ratio": ratio(runs, "ray", "cpu_seconds"),
        "rows_equal": all(equal(plain, other) for other in others),
        "rows": len(plain),
        "runs": runs,
    }


@contextlib.contextmanager
def head() -> Iterator[str]:
    """Run a Ray of this machine's CPUs, and one that stays free, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    cpus = len(os.sched_getaffinity(0)) + 1
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += [f"--port={port}", f"--num-cpus={cpus}", "--include-dashboard=false", "--disable-usage-stats"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tempfile.gettempdir()}
    process = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    try:
        for _ in range(60):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.5)
        time.sleep(5)  # its node registers after it listens
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def ratio(runs: dict[str, list[dict[str, float]]], name: str, figure: str) -> float:
    """Return the median of the plain command's figure over another's within the rounds."""
    pairs = zip(runs["plain"], runs[name], strict=True)
    return round(statistics.median(plain[figure] / on_ray[figure] for plain, on_ray in pairs), 3)


def equal(a: EmbeddingTable, b: EmbeddingTable) -> bool:
    """Whether rows are of the same faces, with embeddings of the same direction."""
    same = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("paths", "faces", "digests", "modified"))
    if not same or a.contract_id != b.contract_id or a.settings != b.settings:
        return False
    lengths = np.linalg.norm(a.vectors, axis=1) * np.linalg.norm(b.vectors, axis=1)
    cosines = np.einsum("ij,ij->i", a.vectors.astype(np.float64), b.vectors) / lengths
    return bool(cosines.min() >= _SAME)


def faults(model: Path, photos: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Kill an actor and the driver in turn; every round has an output of its own."""
    chance, block = random.Random(0), 4
    whole = run(model, photos, work / "whole.parquet", block=block)
    expected = EmbeddingTable.load(work / "whole.parquet")
    told = {"rounds": rounds, "rows": whole["rows"], "lost": 0, "twice": 0, "done_again": 0, "different": 0}
    for count in range(rounds):
        output = work / f"killed-{count}.parquet"
        with started(model, photos, output, block=block) as process:
            wait_for_parts(output, chance.randint(1, 12), process)
            before = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
            family = psutil.Process(process.pid).children(recursive=True)
            victim = next(each for each in family if "_Worker" in each.name() or "_Worker" in " ".join(each.cmdline()))
            (victim if count % 2 == 0 else psutil.Process(process.pid)).kill()
            process.wait(300)
        psutil.wait_procs(family, 30)
        if count % 2:
            run(model, photos, output, block=block)
        elif process.returncode:
            raise RuntimeError(f"the run whose actor was killed ended with {process.returncode}")
        table = EmbeddingTable.load(output)
        rows = list(zip(table.paths.tolist(), table.faces.tolist(), strict=True))
        told["twice"] += len(rows) - len(set(rows))
        told["lost"] += len(expected) - len(set(rows))
        told["different"] += not equal(expected, table)
        after = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
        told["done_again"] += sum(after.get(name) != time for name, time in before.items())
        print(f"round {count}: {told}", file=sys.stderr, flush=True)
    return told


def memory(model: Path, work: Path) -> dict[str, Any]:
    """Embed photos of 12 megapixels, and watch the object store's pages and the processes."""
    folder = work / "large"
    folder.mkdir()
    photo = cv2.imread(str(DATA / "photos" / "multiface.jpg"))
    for number in range(48):
        cv2.imwrite(str(folder / f"{number}.jpg"), cv2.resize(photo, (4000 + number, 3000)))
    with started(model, folder, work / "large.parquet", block=16) as process:
        figures = follow(process)
    return {
        "photos": 48,
        "decoded_mb": 48 * 36,
        "encoded_mb": sum(p.stat().st_size for p in folder.iterdir()) >> 20,
    } | figures


def nodes(model: Path, photos: Path, work: Path) -> dict[str, Any]:
    """Compare the rows of two nodes with those of one."""
    one = run(model, photos, work / "one.parquet", block=8)
    two = run(model, photos, work / "two.parquet", block=8, nodes=2)
    tables = [EmbeddingTable.load(work / name) for name in ("one.parquet", "two.parquet")]
    return {"one": one, "two": two, "rows_equal": equal(*tables)}


# Processes


@contextlib.contextmanager
def started(model: Path, photos: Path, output: Path, *, block: int, nodes: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Start `embed_on_ray` in a process of its own."""
    asked = {"model": str(model), "photos": str(photos), "output": str(output), "block": block, "nodes": nodes}
    command = [sys.executable, "-c", _CHILD, json.dumps(asked)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=output.parent)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(model: Path, photos: Path, output: Path, *, block: int, nodes: int = 1) -> dict[str, Any]:
    """Run `embed_on_ray` to its end and return what it did."""
    with started(model, photos, output, block=block, nodes=nodes) as process:
        told, _ = process.communicate(timeout=900)
        if process.returncode:
            raise RuntimeError(f"embed_on_ray ended with {process.returncode}")
        answer: dict[str, Any] = json.loads(told)
        return answer


def wait_for_parts(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many blocks are done."""
    while process.poll() is None and sum(1 for _ in folder.glob("part-*")) < count:
        time.sleep(0.01)


def watch(command: list[str]) -> dict[str, float]:
    """Run a command to its end; wall seconds, and CPU seconds and memory of all its processes."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True, cwd=tempfile.gettempdir())
    figures = follow(process)
    return {"wall_seconds": round(time.perf_counter() - begun, 2), **figures}


def follow(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for a process; what it and all below it used, read four times a second."""
    cpu: dict[int, float] = {}
    most = store = total = 0
    while process.poll() is None:
        resident = 0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(process.pid)
            for each in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error, OSError):
                    times = each.cpu_times()
                    cpu[each.pid] = times.user + times.system
                    resident += (own := each.memory_info().rss)
                    most = max(most, own)
                    if each.name() == "raylet":
                        store = max(store, _stored(each.pid))
        total = max(total, resident)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.25)
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}")
    return {
        "cpu_seconds": round(sum(cpu.values()), 2),
        "largest_process_mb": most >> 20,
        "all_processes_mb": total >> 20,
        "object_store_mb": round(store / (1 << 20), 1),
    }


def _stored(pid: int) -> int:
    """Bytes of shared memory that a raylet's object store has touched."""
    files = [path for path in Path(f"/proc/{pid}/fd").iterdir() if "plasma" in str(path.readlink())]
    return max((path.stat().st_blocks * 512 for path in files), default=0)


if __name__ == "__main__":
    main()
