"""What does the service cost over the bare pipeline, and what happens beyond its capacity? Prints JSON.

    python benchmarks/serve.py MODEL PHOTOS [--only PART] [--rounds 7] [--seconds 8]

MODEL is an IR; PHOTOS a folder of photos with one face or a few. The server is `edgeface serve` in a process of its own
with a gallery of 100 people, this process is its client, over as many connections as there are cores.

load      identify, in a closed loop, alternating with `FaceAnalyzer.identify` in a third process with as many threads:
          throughput_ratio is the median of the ratios within a round; http_cpu_ms is the CPU time of the server for
          one request less that of the bare pipeline.
overload  requests at fixed times, at 80 % and at twice the capacity that `load` found: overload_p99_ratio is the
          accepted requests' p99 over that at 80 %, refusal_ms the p99 of what was refused.
start     from the start of the process to the first 200 of /health/ready, with a warm cache of compiled models.
flood     10,000 wrong keys a second, or as many as this machine can send and answer, from thousands of addresses:
          what an identification with a right key takes before and meanwhile, and what the server grew by.
idle      CPU time of the server in 60 s without requests, in percent of one core.
remote    an embedder of ovms:// over HTTP and over gRPC, alternating with a local one in float32, one crop at a time.
          remote_cpu_ms is the CPU time of client and server for one crop less that of the local embedder, of a model
          with MODEL's input and output that computes next to nothing: MODEL itself takes a twentieth more or less from
          process to process, which is as much. remote_difference is the largest one between embeddings of MODEL.
soak      --requests of all kinds, 3 % of them for MODEL and the others for a tiny one, with clients that leave, send
          garbage, trickle and hold connections, and models that are swapped meanwhile: what resident memory,
          descriptors and threads grew by after a warm-up, all answers by kind and status, and soak_faults, which are
          5xx but for refusals. soak_holds: no faults, at most one descriptor and one thread more (pools open their
          threads when they are first needed), and no more growth than 5 % or 30 MB of memory, from the median of
          the first five samples to that of the last five.

Wall times are of this machine under the load that is printed; ratios and CPU times mean more.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _run import side_by_side
from _soak import SWAPS, Soak, configure

PATH = "/api/edgeface/v1/identify"
PARTS = ("load", "overload", "start", "idle", "remote", "flood", "soak")
_BARE = """
import sys, threading, time
from pathlib import Path
import edgeface
from edgeface.gallery.opening import open_gallery
model, gallery, seconds, workers, *photos = sys.argv[1:]
data = [Path(each).read_bytes() for each in photos]
with edgeface.load(model, cache_dir=Path(gallery).parent / "compiled") as app, open_gallery(gallery) as store:
    app.identify(data[0], store)
    for line in sys.stdin:
        counts, until = [0] * int(workers), time.monotonic() + float(seconds)
        def work(number):
            turn = number
            while time.monotonic() < until:
                app.identify(data[turn % len(data)], store)
                counts[number] += 1
                turn += int(workers)
        threads = [threading.Thread(target=work, args=[each]) for each in range(int(workers))]
        cpu = time.process_time()
        for each in threads: each.start()
        for each in threads: each.join()
        print(sum(counts) / float(seconds), (time.process_time() - cpu) / sum(counts), flush=True)
"""


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8.0, help="of one round")
    parser.add_argument("--count", type=int, default=200, help="photos that are used")
    parser.add_argument("--requests", type=int, default=100_000, help="of the soak")
    parser.add_argument("--json", action="store_true", help="print the figures that are quoted alone")
    options = parser.parse_args()
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for part in options.only or PARTS[:-1]:
            print(f"{part} ...", file=sys.stderr)
            found |= getattr(bench, part)() | {f"{part}_load": round(os.getloadavg()[0], 1)}
    quoted = ("throughput_ratio", "http_cpu_ms", "overload_p99_ratio", "refusal_ms", "start_seconds", "idle_percent")
    quoted += ("remote_cpu_ms", "remote_difference")
    print(json.dumps({key: found[key] for key in quoted if key in found} if options.json else found, indent=1))


class Bench:
    """A service to measure."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
        self.files = random.Random(0).sample(files, min(options.count, len(files)))
        self.photos = [path.read_bytes() for path in self.files]
        self.workers, self.capacity = len(os.sched_getaffinity(0)), 0.0
        self.gallery = folder / "people.gallery"
        self.config = folder / "serve.json"  # JSON is YAML
        self.config.write_text(
            json.dumps(
                {
                    "state": str(folder / "state"),
                    "cache": str(folder / "compiled"),
                    "listen": {"port": 0},
                    "models": {"default": {"model": str(options.model)}},
                    "galleries": {"default": {"place": str(self.gallery), "unencrypted": True}},
                    "keys": {"per_key": 1e6, "per_address": 1e6},
                }
            )
        )
        _enrol(options.model, self.gallery, self.photos[:100], folder / "compiled")

    @contextlib.contextmanager
    def serving(self) -> Iterator[Server]:
        """Start `edgeface serve`, and stop it."""
        command = [sys.executable, "-m", "edgeface", "serve", "--config", str(self.config), "--json"]
        began = time.monotonic()
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            said = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
            key = self.folder / "key"
            if said["first_key"]:
                key.write_text(said["first_key"])
            server = Server(process, int(said["address"].rpartition(":")[2]), key.read_text())
            server.grpc_port = int((said.get("grpc_address") or ":0").rpartition(":")[2])
            while server.get("/health/ready") != 200:
                time.sleep(0.01)
            server.started = time.monotonic() - began
            yield server
        finally:
            process.terminate()
            process.wait(30)

    def load(self) -> dict[str, Any]:
        """Alternate rounds of the service and of the bare pipeline."""
        arguments = [self.options.model, self.gallery, self.options.seconds, self.workers, *self.files]
        bare = subprocess.Popen(
            [sys.executable, "-c", _BARE, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        rounds = []
        with self.serving() as server:
            self.closed_loop(server, 2.0)
            for _ in range(self.options.rounds):
                cpu, client = server.cpu(), time.process_time()
                rate = self.closed_loop(server, self.options.seconds)
                requests = rate * self.options.seconds
                cpu, client = (server.cpu() - cpu) / requests, (time.process_time() - client) / requests
                print("go", file=bare.stdin, flush=True)
                assert bare.stdout is not None
                bare_rate, bare_cpu = map(float, bare.stdout.readline().split())
                rounds.append((rate, bare_rate, cpu, bare_cpu, client))
        assert bare.stdin is not None
        bare.stdin.close()
        bare.wait(30)
        self.capacity = statistics.median(each[0] for each in rounds)
        return {
            "throughput_ratio": round(statistics.median(each[0] / each[1] for each in rounds), 3),
            "http_cpu_ms": round(1000 * statistics.median(each[2] - each[3] for each in rounds), 2),
            "requests_per_second": round(self.capacity, 1),
            "bare_per_second": round(statistics.median(each[1] for each in rounds), 1),
            "server_cpu_ms": round(1000 * statistics.median(each[2] for each in rounds), 2),
            "bare_cpu_ms": round(1000 * statistics.median(each[3] for each in rounds), 2),
            "client_cpu_ms": round(1000 * statistics.median(each[4] for each in rounds), 2),
            "throughput_ratios": [round(each[0] / each[1], 3) for each in rounds],
        }

    def closed_loop(self, server: Server, seconds: float) -> float:
        """Ask over one connection a core, and return the answers a second."""
        counts, until = [0] * self.workers, time.monotonic() + seconds

        def work(number: int) -> None:
            turn = number
            with server.connected() as client:
                while time.monotonic() < until:
                    assert client.identify(self.photos[turn % len(self.photos)]) == 200
                    counts[number] += 1
                    turn += self.workers

        side_by_side(work, self.workers)
        return sum(counts) / seconds

    def overload(self) -> dict[str, Any]:
        """Ask at fixed times, below and beyond the capacity."""
        with self.serving() as server:
            self.closed_loop(server, 2.0)
            capacity = self.capacity or self.closed_loop(server, self.options.seconds)
            rounds = []
            for _ in range(max(3, self.options.rounds // 2)):
                rounds.append([self.open_loop(server, share * capacity) for share in (0.8, 2.0)])
        below, beyond = (sum(answers, Answers()) for answers in zip(*rounds, strict=True))
        return {
            "overload_p99_ratio": round(_p99(beyond.accepted) / _p99(below.accepted), 2),
            "refusal_ms": round(1000 * _p99(beyond.refused), 1),
            "refusal_median_ms": round(1000 * statistics.median(beyond.refused), 1) if beyond.refused else None,
            "p99_ms": [round(1000 * _p99(each.accepted), 1) for each in (below, beyond)],
            "accepted": [len(below.accepted), len(beyond.accepted)],
            "refused": [len(below.refused), len(beyond.refused)],
        }

    def open_loop(self, server: Server, rate: float) -> Answers:
        """Ask at random times (a Poisson process), and return how long each answer took from when it was due."""
        dice, due, answers, lock = random.Random(1), [], Answers(), threading.Lock()
        at = time.monotonic() + 0.2
        until = at + self.options.seconds
        while at < until:
            due.append(at)
            at += dice.expovariate(rate)
        turn = iter(range(len(due)))

        def work(_: int) -> None:
            with server.connected() as client:
                while True:
                    with lock:
                        number = next(turn, None)
                    if number is None:
                        return
                    time.sleep(max(0.0, due[number] - time.monotonic()))
                    began = time.monotonic()
                    status = client.identify(self.photos[number % len(self.photos)])
                    (answers.accepted if status == 200 else answers.refused).append(time.monotonic() - began)
                    assert status in (200, 503)

        side_by_side(work, 32)
        return answers

    def start(self) -> dict[str, Any]:
        """Start with a warm cache."""
        times = []
        for _ in range(self.options.rounds + 1):
            with self.serving() as server:
                times.append(server.started)
        return {"start_seconds": round(statistics.median(times[1:]), 2)}

    def idle(self) -> dict[str, Any]:
        """Ask nothing."""
        with self.serving() as server:
            self.closed_loop(server, 2.0)
            time.sleep(2)
            cpu = server.cpu()
            time.sleep(60)
            return {"idle_percent": round((server.cpu() - cpu) / 60 * 100, 2)}

    def remote(self) -> dict[str, Any]:
        """Embed crops here and by the service, over both protocols, in turn."""
        from edgeface.runtime import Embedder, default_plan
        from edgeface.runtime.devices import resolve_device

        before = self.config.read_text()
        given = json.loads(before)
        irs = {"default": self.options.model, "light": _write_light(self.options.model, self.folder)}
        models = {name: {"model": str(ir)} for name, ir in irs.items()}
        self.config.write_text(json.dumps(given | {"listen": {"port": 0, "grpc_port": 0}, "models": models}))
        plan = default_plan(resolve_device("CPU"), precision="f32")
        with self.serving() as server, contextlib.ExitStack() as opened:
            os.environ["EDGEFACE_SERVER_KEY"] = server.key
            loaded = {}
            for name, ir in irs.items():
                address = f"ovms://127.0.0.1:{server.port}/{name}"
                places = {"local": ir, "http": address, "grpc": f"{address}?grpc={server.grpc_port}"}
                for place, each in places.items():
                    options = {"plan": plan} if place == "local" else {}
                    loaded[name, place] = opened.enter_context(Embedder.load(each, **options))
            height, width = loaded["default", "local"].contract.input_size
            crops = np.random.default_rng(0).integers(0, 256, (self.options.count, height, width, 3), np.uint8)
            vectors = {key: each.embed(crops) for key, each in loaded.items()}
            rounds: dict[str, list[float]] = {"local": [], "http": [], "grpc": []}
            for _ in range(self.options.rounds):
                for place, found in rounds.items():
                    cpu = server.cpu() + time.process_time()
                    for crop in crops:
                        loaded["light", place].infer(crop)
                    found.append(1000 * (server.cpu() + time.process_time() - cpu) / len(crops))
        self.config.write_text(before)
        local = rounds.pop("local")
        added = {place: [a - b for a, b in zip(found, local, strict=True)] for place, found in rounds.items()}
        return {
            "remote_cpu_ms": {place: round(statistics.median(each), 2) for place, each in added.items()},
            "remote_cpu_ms_range": {place: [round(min(each), 2), round(max(each), 2)] for place, each in added.items()},
            "remote_light_local_cpu_ms": round(statistics.median(local), 2),
            "remote_difference": {
                place: float(np.abs(vectors["default", place] - vectors["default", "local"]).max()) for place in rounds
            },
        }

    def flood(self) -> dict[str, Any]:
        """Send wrong keys from thousands of addresses, and ask with a right one meanwhile."""
        with self.serving() as server:
            self.closed_loop(server, 2.0)
            before, seconds = server.resources(), 2.5 * self.options.seconds
            quiet = self.ask_steadily(server, self.options.seconds)
            program = [sys.executable, str(Path(__file__).with_name("_flood.py"))]
            arguments = [str(server.port), str(seconds), "10000"]
            with subprocess.Popen([*program, *arguments], stdout=subprocess.PIPE, text=True) as flood:
                cpu = server.cpu()
                flooded = self.ask_steadily(server, seconds - 2)
                cpu = server.cpu() - cpu
                said = json.loads(flood.communicate(timeout=60)[0])
            time.sleep(1)
            after = server.resources()
        answered = {int(status): count for status, count in said["answers"].items()}
        return {
            "flood_sent_per_second": round(said["sent"] / said["seconds"]),
            "flood_answered_per_second": round(sum(count for status, count in answered.items() if status) / seconds),
            "flood_answers": answered,
            "flood_addresses": said["addresses"],
            "flood_server_cores": round(cpu / (seconds - 2), 2),
            "flood_good_key_ms": [round(1000 * statistics.median(each.accepted)) for each in (quiet, flooded)],
            "flood_good_key_p99_ms": [round(1000 * _p99(each.accepted)) for each in (quiet, flooded)],
            "flood_good_key_refused": len(flooded.refused),
            "flood_grown": {key: round(after[key] - before[key], 1) for key in before},
        }

    def ask_steadily(self, server: Server, seconds: float) -> Answers:
        """Identify with a right key, five times a second at most."""
        answers, until, number = Answers(), time.monotonic() + seconds, 0
        with server.connected() as client:
            while (began := time.monotonic()) < until:
                status, number = client.identify(self.photos[number % len(self.photos)]), number + 1
                (answers.accepted if status == 200 else answers.refused).append(time.monotonic() - began)
                time.sleep(max(0.0, began + 0.2 - time.monotonic()))
        return answers

    def soak(self) -> dict[str, Any]:
        """Ask all kinds of things in all kinds of ways."""
        self.config.write_text(json.dumps(configure(json.loads(self.config.read_text()), self.folder)))
        with self.serving() as server:
            soak = Soak(server.port, server.key, server.pid, self.photos)
            for number in range(SWAPS, SWAPS + 4):
                soak.run(max(500, self.options.requests // 80), seed=number)
                soak.change()
            time.sleep(3)
            held = [server.resources()]
            warm = Counter(soak.answers)
            for number in range(SWAPS):
                soak.run(self.options.requests // SWAPS, seed=number)
                soak.change()
                held.append(server.resources())
                print(f"soak {number + 1} of {SWAPS}: {held[-1]}", file=sys.stderr)
            time.sleep(3)
            held.append(server.resources())
        kinds: dict[str, dict[int, int]] = {}
        for (kind, status), count in sorted((soak.answers - warm).items()):
            kinds.setdefault(kind, {})[status] = count
        most = max(30.0, 0.05 * held[0]["rss_mb"])
        first, last = (
            {key: statistics.median(each[key] for each in part) for key in held[0]} for part in (held[:5], held[-5:])
        )
        grown = {key: round(last[key] - first[key], 1) for key in first}
        return {
            "soak_requests": (soak.answers - warm).total(),
            "soak_holds": grown["rss_mb"] <= most
            and max(grown["descriptors"], grown["threads"]) <= 1
            and not soak.faults,
            "soak_grown": grown,
            "soak_held": held,
            "soak_answers": kinds,
            "soak_faults": dict(soak.faults),
        }


class Answers:
    """Seconds of what was accepted, and of what was refused."""

    def __init__(self) -> None:
        self.accepted: list[float] = []
        self.refused: list[float] = []

    def __add__(self, other: Answers) -> Answers:
        both = Answers()
        both.accepted, both.refused = self.accepted + other.accepted, self.refused + other.refused
        return both


class Server:
    """`edgeface serve` in a process of its own."""

    started, grpc_port = 0.0, 0

    def __init__(self, process: subprocess.Popen[str], port: int, key: str) -> None:
        self.port, self.key, self.pid, self._process = port, key, process.pid, psutil.Process(process.pid)

    def cpu(self) -> float:
        """Return its CPU seconds."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def resources(self) -> dict[str, float]:
        """Return what it holds."""
        return {
            "rss_mb": round(self._process.memory_info().rss / 1e6, 1),
            "descriptors": self._process.num_fds(),
            "threads": self._process.num_threads(),
        }

    def get(self, path: str) -> int:
        """Return the status of a GET."""
        with self.connected() as client:
            return client.ask("GET", path)

    @contextlib.contextmanager
    def connected(self) -> Iterator[Client]:
        """Open a connection, and close it."""
        client = Client(self)
        try:
            yield client
        finally:
            client.connection.close()


class Client:
    """One connection."""

    def __init__(self, server: Server) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._headers = {"x-api-key": server.key, "content-type": "image/jpeg"}

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> int:
        """Ask, read the answer, and return its status."""
        self.connection.request(method, path, body, self._headers | headers)
        answer = self.connection.getresponse()
        answer.read()
        return answer.status

    def identify(self, photo: bytes) -> int:
        """Identify one photo."""
        return self.ask("POST", PATH, photo)


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[max(0, int(0.99 * len(seconds)) - 1)] if seconds else float("nan")


def _write_light(model: Path, folder: Path) -> Path:
    """Write an IR of the same input and output that only averages colours."""
    import openvino as ov

    from edgeface.convert.ir import save_ir
    from edgeface.model.ir_file import read_contract
    from edgeface.model.opset import ops

    contract = dataclasses.replace(read_contract(model)[1], name="light", weights_id="", lineage=None, normalized=True)
    image = ops.parameter(list(contract.input_shape(-1)), np.float32, name="image")
    axes = [contract.layout.index(each) for each in "HW"]
    mean = ops.reduce_mean(image, ops.constant(np.array(axes)), keep_dims=False)
    weights = np.random.default_rng(0).random((3, contract.embedding_dim), np.float32)
    output = ops.normalize_l2(
        ops.matmul(mean, ops.constant(weights), False, False), ops.constant(np.array([1])), 1e-10, "max"
    )
    graph = ov.Model([output], [image], "light")
    graph.input(0).set_names({contract.input_name})
    graph.output(0).set_names({contract.output_name})
    return save_ir(graph, folder, contract)[0]


def _enrol(model: Path, gallery: Path, photos: list[bytes], cache: Path) -> None:
    import edgeface
    from edgeface.errors import FaceError
    from edgeface.gallery.opening import create_gallery
    from edgeface.gallery.records import NewTemplate

    with (
        edgeface.load(model, cache_dir=cache) as app,
        create_gallery(gallery, contract=app.contract, key=None) as store,
        store.writing(),
    ):
        for number, photo in enumerate(photos):
            with contextlib.suppress(FaceError):
                store.add_person(f"Person {number}", templates=[NewTemplate(embedding=app.embed(photo))])


if __name__ == "__main__":
    main()
