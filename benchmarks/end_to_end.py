"""From photo files to embeddings: how many times as fast as what a user would pick instead? Prints JSON.

    python benchmarks/end_to_end.py --ir FP32_IR --int8 INT8_IR --dlib DLIB_IR --work DIR [--photos 20] [--rounds 5]

It needs the extra `peers`, and facenet-pytorch, which asks for older releases of what it needs:
``pip install --no-deps facenet-pytorch``. A table goes to stderr.

What is fair: the same photos, in turn in every round, the order turned each round; figures are medians over the
rounds of the ratio within a round. Every program runs in a process of its own with the fastest of several settings
(threads, calls at the same time, batch), tried on the first photos. All find all faces and embed each: FaceNet
20180408 everybody but face_recognition, which has dlib's own network, as its row of edgeface has. Photos say how small
their smallest face is, and every detector looks for none below. Sets: photos of LFW; photos of 12 megapixels, into
which faces of LFW are placed; group photos, two real ones and mosaics of LFW. `faces` counts what was found, and
`same_embeddings` is the median cosine to edgeface's FP32 where one photo of LFW has one face in both.

`times_as_fast` is of wall time; `cpu_times_less`, of CPU time, says more where other work shares the machine.

`lone` is one LFW photo after the other, loaded for latency, beside what reading, detection, cropping and the network
take by themselves, before or after it in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from _end_to_end_worker import YUNET
from _peers_worker import DATA, Setting
from peers import WEIGHTS, Worker, machine, workers

from edgeface.vision.image import read_image

_SCRIPT = "_end_to_end_worker.py"
_TRIED = 4
"""Photos on which a program's settings are tried."""

BASES = {
    "facenet-pytorch": "edgeface-fp32",
    "facenet-pytorch, INT8": "edgeface-int8",
    "face_recognition": "edgeface-dlib",
    "tensorflow": "edgeface-fp32",
    "opencv": "edgeface-fp32",
}
"""Comparison -> which of edgeface's models it is with; the program is named before the comma."""
AIMS = {"facenet-pytorch": 6, "facenet-pytorch, INT8": 10, "face_recognition": 12, "tensorflow": 6}
AIM_12MP = 10


@dataclass(frozen=True, slots=True)
class PhotoSet:
    """Photo files, and the side in pixels of the smallest face in them."""

    photos: Sequence[str]
    smallest: int


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ir", type=Path, required=True, help="FaceNet 20180408, FP32, with a contract")
    parser.add_argument("--int8", type=Path, help="the same, quantized by edgeface")
    parser.add_argument("--dlib", type=Path, help="IR of dlib-face-recognition-resnet-v1")
    parser.add_argument("--work", type=Path, required=True, help="folder for the peers' networks")
    parser.add_argument("--photos", type=int, help="most of each set; default: 500 of LFW, 50, and 20 groups")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", default=[], help="a row, such as tensorflow; repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON (always does; kept for uniformity)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    tried = candidates(options.work, options.ir, options.int8, options.dlib)
    tried = {name: each for name, each in tried.items() if not options.only or name in options.only}
    with tempfile.TemporaryDirectory() as folder:
        sets = make_sets(Path(folder), options.photos)
        best = {name: choose(name, settings, sets["lfw"]) for name, settings in tried.items()}
        with workers(best, _SCRIPT) as running:
            report = measure(running, sets, options.rounds)
        models = {"fp32": options.ir, "int8": options.int8}
        report["lone"] = {name: measure_lone(model, sets["lfw"]) for name, model in models.items() if model}
    report |= {"settings": {name: asdict(setting) for name, setting in best.items()}, **machine()}
    print(json.dumps(report, indent=2))


def candidates(work: Path, ir: Path, int8: Path | None, dlib: Path | None) -> dict[str, list[Setting]]:
    """List the settings worth trying, by row; the peers' networks are written where they are missing."""
    from _peers_networks import onnx_model

    from edgeface.convert.facenet_graph import read_weights, write_graph

    onnx, graph = work / "facenet.onnx", work / "facenet.pb"
    if not (onnx.is_file() and graph.is_file()):
        weights = read_weights(WEIGHTS)
        onnx_model(weights, onnx)
        write_graph(weights, graph)
    cores = len(os.sched_getaffinity(0))

    def tried(peer: str, model: Path, *batches: int) -> list[Setting]:
        whole = [Setting(peer=peer, model=str(model), workers=1, threads=cores, batch=batch) for batch in batches]
        return [*whole, replace(whole[0], workers=cores, threads=1)]

    ours = {"edgeface-fp32": ir, "edgeface-int8": int8, "edgeface-dlib": dlib, "edgeface-fp32-mtcnn": ir}
    return {
        name: [
            Setting(
                peer="edgeface",
                model=str(model),
                workers=1,
                threads=cores,
                batch=8,
                variant="mtcnn" if "mtcnn" in name else "yunet",
            )
        ]
        for name, model in ours.items()
        if model is not None
    } | {
        "facenet-pytorch": tried("facenet-pytorch", WEIGHTS, 1, 16),
        "face_recognition": tried("face_recognition", WEIGHTS, 1),
        "tensorflow": tried("tensorflow", graph, 1),
        "opencv": tried("opencv", onnx, 1),
    }


def choose(name: str, settings: Sequence[Setting], lfw: PhotoSet) -> Setting:
    """Return the fastest of a row's settings."""
    if len(settings) == 1:
        return settings[0]
    few = PhotoSet(lfw.photos[: _TRIED * 4], lfw.smallest)
    with workers({str(index): each for index, each in enumerate(settings)}, _SCRIPT) as running:
        spent = [min(_ask(worker, few)["seconds"] for _ in range(2)) for worker in running.values()]
    best = settings[int(np.argmin(spent))]
    print(f"{name}: {best.workers} x {best.threads} threads, batch {best.batch}", file=sys.stderr)
    return best


def measure(running: Mapping[str, Worker], sets: Mapping[str, PhotoSet], rounds: int) -> dict[str, Any]:
    """Let all work in turn on each set; see the module."""
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {name: {kind: [] for kind in sets} for name in running}
    vectors: dict[str, Any] = {}
    for kind, photos in sets.items():
        for name, worker in running.items():  # shapes are prepared on first sight
            first = _ask(worker, PhotoSet(photos.photos[:_TRIED], photos.smallest), vectors=kind == "lfw")
            vectors.setdefault(name, first.get("vectors"))
        for number in range(rounds):
            names = list(running)[number % len(running) :] + list(running)[: number % len(running)]
            for name in names:
                figures[name][kind].append(_ask(running[name], photos))
    report: dict[str, Any] = {"benchmark": "end to end", "rounds": rounds}
    report |= {"times_as_fast": {}, "cpu_times_less": {}, "aims": {}}
    for row, base in BASES.items():
        peer = row.partition(",")[0]
        if peer in figures and base in figures:
            for name, spent in (("times_as_fast", "seconds"), ("cpu_times_less", "cpu_seconds")):
                report[name][row] = {
                    kind: round(_ratio(figures[peer][kind], figures[base][kind], spent), 2) for kind in sets
                }
            report["aims"][row] = {kind: AIM_12MP if kind == "12mp" else AIMS.get(row) for kind in sets}
    report["peak_mb"] = {name: max(each["peak_mb"] for each in by["12mp"]) for name, by in figures.items()}
    report["photos"] = {kind: len(each.photos) for kind, each in sets.items()}
    report["versions"] = {name: worker.about["version"] for name, worker in running.items()}
    report["ms_a_photo"] = {
        name: {kind: _row(each, sets[kind]) for kind, each in by.items()} for name, by in figures.items()
    }
    report["same_embeddings"] = {name: _likeness(vectors["edgeface-fp32"], each) for name, each in vectors.items()}
    _print_table(report)
    return report


def _ask(worker: Worker, photos: PhotoSet, *, vectors: bool = False) -> dict[str, Any]:
    return worker.ask(json.dumps({"photos": photos.photos, "smallest": photos.smallest, "vectors": vectors}))


def _ratio(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]], spent: str) -> float:
    return statistics.median(float(a[spent] / b[spent]) for a, b in zip(theirs, ours, strict=True))


def _row(rounds: Sequence[Mapping[str, Any]], photos: PhotoSet) -> dict[str, float]:
    wall, cpu = (
        1e3 * statistics.median(each[key] for each in rounds) / len(photos.photos) for key in ("seconds", "cpu_seconds")
    )
    return {"wall": round(wall, 1), "cpu": round(cpu, 1), "faces": sum(rounds[-1]["faces"])}


def _likeness(ours: Sequence[Any], theirs: Sequence[Any]) -> float | None:
    """Median cosine where both found one face and embed by one network; None where it is another network's."""
    pairs = [(a[0], b[0]) for a, b in zip(ours, theirs, strict=True) if len(a) == len(b) == 1]
    if not pairs or len(pairs[0][0]) != len(pairs[0][1]):
        return None
    cosines = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    return round(float(np.median(cosines)), 4)


def _print_table(report: Mapping[str, Any]) -> None:
    for name, by in report["ms_a_photo"].items():
        cells = (
            f"{kind} {row['wall']:8.1f} ms ({row['cpu']:.0f} CPU), {row['faces']} faces" for kind, row in by.items()
        )
        print(f"{name:16s} {' | '.join(cells)} | {report['peak_mb'][name]:.0f} MB", file=sys.stderr)
    for row, by in report["times_as_fast"].items():
        print(
            f"{BASES[row]} is {by} times as fast as {row}, by CPU time {report['cpu_times_less'][row]}; "
            f"aims {report['aims'][row]}",
            file=sys.stderr,
        )


def make_sets(folder: Path, most: int | None) -> dict[str, PhotoSet]:
    """Choose photos of LFW, spread over all, and make the other sets from them."""
    every = sorted((DATA / "lfw" / "images").rglob("*.jpg"))
    lfw = [str(every[index]) for index in np.linspace(0, len(every) - 1, min(500, most or 500)).astype(int)]
    faces, rng = itertools.cycle([read_image(Path(photo)) for photo in lfw[:200]]), np.random.default_rng(0)
    large = [_write(folder / f"large-{number}.jpg", _place(faces, rng)) for number in range(min(50, most or 50))]
    groups = [str(DATA / "photos" / f"{name}.jpg") for name in ("longoria-cooper", "multiface")]
    groups += [
        _write(
            folder / f"group-{number}.jpg", np.vstack([np.hstack([next(faces) for _ in range(4)]) for _ in range(3)])
        )
        for number in range(min(20, most or 20) - len(groups))
    ]
    return {"lfw": PhotoSet(lfw, 40), "group": PhotoSet(groups, 20), "12mp": PhotoSet(large, 80)}


def _place(faces: Any, rng: np.random.Generator) -> np.ndarray:
    """Make 4000 x 3000 pixels of coarse and fine noise, with four photos of LFW, up to three times as large."""
    coarse = rng.integers(40, 200, (15, 20, 3), np.uint8)
    photo = np.asarray(cv2.resize(coarse, (4000, 3000), interpolation=cv2.INTER_CUBIC), np.int16)
    photo += rng.integers(-6, 7, photo.shape, np.int16)
    photo = np.clip(photo, 0, 255).astype(np.uint8)
    for number in range(4):
        side = int(rng.integers(300, 750))
        x, y = 2000 * (number % 2) + int(rng.integers(0, 1200)), 1500 * (number // 2) + int(rng.integers(0, 700))
        photo[y : y + side, x : x + side] = cv2.resize(next(faces), (side, side), interpolation=cv2.INTER_CUBIC)
    return photo


def _write(path: Path, image: np.ndarray) -> str:
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return str(path)


def measure_lone(ir: Path, lfw: PhotoSet) -> dict[str, float]:
    """Compare one photo at a time, from file to embedding, with its parts; medians in ms."""
    import edgeface
    from edgeface.vision.align import align

    spent: dict[str, list[tuple[float, float]]] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        answer = work()
        taken = (1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu))
        spent.setdefault(part, []).append(taken)
        return answer

    with edgeface.load(ir, detector="yunet", detector_model=YUNET, hint="latency") as app:
        detector, contract = app.detector, app.contract
        assert detector is not None

        def whole(photo: str) -> None:
            timed("whole", lambda: app.analyze(photo))

        def parts(photo: str) -> None:
            image = timed("read", lambda: read_image(Path(photo)))
            (found,) = timed("detect", lambda: detector.detect([image]))
            where = list(zip(found.boxes, found.landmarks, strict=True))
            crops = timed(
                "crop", lambda: [align(image, *each, contract.alignment, contract.input_size) for each in where]
            )
            timed("embed", lambda: app.embedder.embed(crops))

        for number, photo in enumerate([*lfw.photos[:2], *lfw.photos[:100]]):
            if number == 2:
                spent.clear()
            for each in (whole, parts) if number % 2 else (parts, whole):
                each(photo)
    together = spent.pop("whole")
    sums = [tuple(map(sum, zip(*each, strict=True))) for each in zip(*spent.values(), strict=True)]
    answer = {part: round(statistics.median(wall for wall, _ in each), 2) for part, each in spent.items()}
    for index, name in enumerate(("whole_over_parts", "cpu_whole_over_parts")):
        answer[name] = round(statistics.median(a[index] / b[index] for a, b in zip(together, sums, strict=True)), 3)
    return answer


if __name__ == "__main__":
    main()
