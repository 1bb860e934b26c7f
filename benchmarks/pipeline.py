"""How fast is detection, what do tracking and overlap save, what holds an LFW evaluation up? Prints JSON.

    python benchmarks/pipeline.py --model facenet.xml [--frames N] [--rounds 3] [--only mtcnn film ...]

One run, in which all that is compared takes turns.

MTCNN: LFW images in batches, and one at a time, against the TensorFlow original (`speed` of benchmarks/detectors.py;
extra `parity`).

Film: `data/video/faces.mp4`, 1920x1080. All variants share one detector (MTCNN, smallest face 20 pixels, every
setting its default) and one embedder, and take turns in one process:

- `plain`, the baseline: read a frame, detect, embed every face, wait for all of them, next frame;
- `overlap`: the same work, the next frames detected while the last one's faces are embedded;
- `tracking`: detection in every frame, each face embedded once or a few times, overlapped;
- `tracking_sparse`: the same, but detection in every n-th frame only, optical flow in between.

What is lost by looking less often is in `fidelity`: faces found and ids kept, against `tracking`.

Evaluation: how much of the engine's own speed an LFW evaluation with mirrors keeps. Turn by turn, in changing order,
the engine gets crops that lie ready in memory; the evaluation decodes and cuts as many images that no turn has had,
with the reference boxes; and it does so with MTCNN, which shares the engine's cores. Each turn is a whole evaluation,
from the first file opened to the last embedding. The turns' images are spread evenly over the 7,701, and the figure is
the median of the ratios within the rounds, with its distribution-free interval, because the speed of a machine that
others share changes from minute to minute and not from second to second. Beside it stands the CPU time an image.

Folder: `embed_files`, which `edgeface embed`, `cluster` and, but for the file, `gallery enrol` are, beside what reading
the photos with two threads, detection and the network take by themselves, one after the other; YuNet. Photos of LFW,
and photos of 12 megapixels as `end_to_end.py` makes them.

Reduced: what it saves, and what accuracy it costs, that photos are read at half of their size where only large faces
are looked for (`Pipeline.reduction`). Photos of LFW, enlarged six times, in which faces have 500 pixels; and twelve of
them enlarged to 12 megapixels, with noise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov

sys.path.insert(0, str(Path(__file__).parent))

from detectors import DATA, compare_speed
from end_to_end import YUNET, make_sets

from edgeface.evaluate.faces import FaceCutter, FaceSource, find_images, load_boxes
from edgeface.evaluate.pairs import read_pairs
from edgeface.pipeline.batch import embed_files
from edgeface.pipeline.pipeline import Face, Pipeline
from edgeface.pipeline.table import EmbeddingTable
from edgeface.pipeline.tracking import Tracker, assign
from edgeface.runtime import Embedder
from edgeface.vision.align import align
from edgeface.vision.image import read_photo_file
from edgeface.vision.load import load_detector
from edgeface.vision.nms import overlaps
from edgeface.vision.source import open_source

_SAME_FACE = 0.3
"""Intersection over union from which two boxes are of one face."""

Answers = list[list[Face]]


def main() -> None:
    """Run what was asked for and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="FaceNet's IR with its contract")
    parser.add_argument("--frames", type=int, default=None, help="of the film; default: all")
    parser.add_argument("--images", type=int, default=64, help="of LFW, for each turn of the evaluation")
    parser.add_argument("--turns", type=int, default=20, help="of the evaluation")
    parser.add_argument("--mtcnn-images", type=int, default=64, help="of LFW, for MTCNN")
    parser.add_argument("--rounds", type=int, default=3, help="of MTCNN and of the film")
    parser.add_argument("--pairs", type=int, default=1500, help="of LFW, for reduced photos")
    parser.add_argument("--every", type=int, default=4, help="detection in every n-th frame")
    parts = ["mtcnn", "film", "evaluation", "folder", "reduced"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    report: dict[str, Any] = {"openvino": ov.get_version(), "cpus": len(os.sched_getaffinity(0))}
    report["load_at_start"] = round(os.getloadavg()[0], 1)
    if "mtcnn" in options.only:
        report["mtcnn"] = compare_speed(DATA, DATA / "mtcnn", rounds=options.rounds, images=options.mtcnn_images)
    if "film" in options.only:
        report["film"] = measure_film(options.model, options.frames, options.rounds, options.every)
    if "evaluation" in options.only:
        report["evaluation"] = measure_evaluation(options.model, options.turns, options.images)
    if "folder" in options.only:
        report["folder"] = measure_folder(options.model, options.turns, options.images)
    if "reduced" in options.only:
        report["reduced"] = measure_reduced(options.model, options.pairs, options.rounds)
    print(json.dumps(report, indent=2))


def measure_film(model: Path, frames: int | None, rounds: int, every: int) -> dict[str, Any]:
    """Time the variants in turn."""
    film = DATA / "video" / "faces.mp4"
    with load_detector() as detector, Embedder.load(model) as embedder:

        def plain() -> Answers:
            pipeline = Pipeline(detector, embedder)
            with open_source(film) as source:
                return [pipeline.process(frame.image) for frame in islice(source, frames)]

        def run(**options: Any) -> Answers:
            tracker = Tracker() if options else None
            pipeline = Pipeline(detector, embedder, tracker=tracker, **options)
            with open_source(film) as source, closing(pipeline.run(islice(source, frames))) as answers:
                return [faces for _, faces in answers]

        variants: dict[str, Callable[[], Answers]] = {
            "plain": plain,
            "overlap": run,
            "tracking": lambda: run(detect_every=1),
            "tracking_sparse": lambda: run(detect_every=every),
        }
        frame = next(open_source(film))
        Pipeline(detector, embedder).process(frame.image)  # shapes are prepared on first sight
        answers: dict[str, Answers] = {}
        counted: dict[str, int] = {}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, variant in variants.items():
                before = embedder.counters().submitted
                answers[name], spent = timed(variant)
                counted[name] = embedder.counters().submitted - before
                times[name].append(spent)
    figures = {
        name: per_item(times[name], len(answers[name]), "frame")
        | {"faces": sum(map(len, answers[name])), "embedded": counted[name]}
        for name in variants
    }
    return {
        "frames": len(answers["plain"]),
        "detect_every": every,
        "variants": figures,
        "plain_over": {name: ratio(times["plain"], times[name]) for name in list(variants)[1:]},
        "fidelity": fidelity(answers["tracking"], answers["tracking_sparse"]),
    }


def fidelity(full: Answers, sparse: Answers) -> dict[str, float]:
    """How much of what full detection sees sparse detection sees, and whether ids agree."""
    partners: dict[int, list[int]] = {}
    seen, likenesses = sum(map(len, full)), []
    for all_faces, some in zip(full, sparse, strict=True):
        if all_faces and some:
            likeness = overlaps(*(np.stack([face.box for face in each]) for each in (all_faces, some)))
            for a, b in assign(np.where(likeness >= _SAME_FACE, likeness, 0)):
                likenesses.append(float(likeness[a, b]))
                partners.setdefault(some[b].track_id or 0, []).append(all_faces[a].track_id or 0)
    agreeing = sum(max(map(ids.count, set(ids))) for ids in partners.values())
    return {
        "faces_found": round(len(likenesses) / seen, 4),
        "ids_agree": round(agreeing / len(likenesses), 4),
        "median_overlap": round(statistics.median(likenesses), 4),
        "tracks_full": len({face.track_id for faces in full for face in faces}),
        "tracks_sparse": len({face.track_id for faces in sparse for face in faces}),
    }


def measure_evaluation(model: Path, turns: int, count: int) -> dict[str, Any]:
    """How much of the engine's speed an evaluation keeps."""
    boxes = load_boxes(DATA / "lfw" / "mtcnn_reference.npz")
    every = tuple(boxes.rows)
    parts = [every[number :: turns + 1][:count] for number in range(turns + 1)]
    spent: dict[str, list[tuple[float, float]]] = {"engine": [], "reference boxes": [], "mtcnn": []}
    with load_detector() as detector, Embedder.load(model, flip="concatenate") as embedder:

        def cut(part: Sequence[str], faces: FaceSource) -> FaceCutter:
            files = find_images(DATA / "lfw" / "images", part)
            return FaceCutter(files, part, embedder.contract, faces)

        def embed(crops: Iterable[np.ndarray]) -> int:
            return sum(1 for _ in embedder.map(crops))

        ready = list(cut(parts[0], FaceSource(boxes)))
        embed(ready)  # shapes are prepared on first sight
        embed(cut(parts[0], FaceSource(detector=detector)))
        for turn, part in enumerate(parts[1:]):
            contenders = {
                "engine": ready,
                "reference boxes": cut(part, FaceSource(boxes)),
                "mtcnn": cut(part, FaceSource(detector=detector)),
            }
            names = list(contenders)[turn % 3 :] + list(contenders)[: turn % 3]
            for name in names if turn % 2 else reversed(names):
                done, seconds = timed(partial(embed, contenders[name]))
                assert done == len(ready)
                spent[name].append(seconds)
    return {
        "images": turns * count,
        "turns": turns,
        "images_a_turn": count,
        "figures": {name: per_item(times, count, "image") for name, times in spent.items()},
        "of_the_engine_s_throughput": {
            name: {
                **interval([a / b for (a, _), (b, _) in zip(spent["engine"], spent[name], strict=True)]),
                "cpu": ratio(spent["engine"], spent[name])["cpu"],
            }
            for name in ("reference boxes", "mtcnn")
        },
    }


def measure_folder(model: Path, turns: int, count: int) -> dict[str, Any]:
    """How much of the speed of its parts the embedding of a folder keeps."""
    report = {}
    with tempfile.TemporaryDirectory() as folder, Embedder.load(model) as embedder, ThreadPoolExecutor(2) as readers:
        for name, photos in make_sets(Path(folder), count).items():
            spent: dict[str, list[tuple[float, float]]] = {}
            with load_detector("yunet", model=YUNET, min_size=photos.smallest) as detector:
                pipeline = Pipeline(detector, embedder, batch_size=8, prefetch=2)
                files = [Path(photo) for photo in photos.photos]
                for turn in range(turns + 1):  # shapes are prepared on first sight
                    work = partial(_folder_turn, files, pipeline, detector, embedder, readers, Path(folder))
                    for part, seconds in work(first=turn % 2 == 0).items():
                        spent.setdefault(part, []).extend([seconds] if turn else [])
            whole = spent.pop("whole")
            parts = [tuple(map(sum, zip(*each, strict=True))) for each in zip(*spent.values(), strict=True)]
            report[name] = {
                "photos": len(files),
                "figures": {part: per_item(times, len(files), "photo") for part, times in spent.items()}
                | {"whole": per_item(whole, len(files), "photo")},
                "of_the_parts_throughput": {
                    **interval([a / b for (a, _), (b, _) in zip(parts, whole, strict=True)]),
                    "cpu": ratio(parts, whole)["cpu"],
                },
            }
    return report


def _folder_turn(
    files: Sequence[Path],
    pipeline: Pipeline,
    detector: Any,
    embedder: Embedder,
    readers: ThreadPoolExecutor,
    folder: Path,
    *,
    first: bool,
) -> dict[str, tuple[float, float]]:
    """Embed the photos as a folder, before or after its parts."""
    spent = {}

    def whole() -> None:
        output = folder / "embeddings.npz"
        output.unlink(missing_ok=True)
        _, spent["whole"] = timed(lambda: embed_files(files, pipeline, output))

    if first:
        whole()
    parts: dict[str, list[tuple[float, float]]] = {"read": [], "detect": []}
    contract, crops = embedder.contract, []
    for start in range(0, len(files), 8):  # as many as the pipeline detects together
        read, seconds = timed(lambda: list(readers.map(read_photo_file, files[start : start + 8])))  # noqa: B023
        parts["read"].append(seconds)
        images = [image for image, *_ in read]
        found, seconds = timed(partial(detector.detect, images))
        parts["detect"].append(seconds)
        crops += [
            align(image, box, points, contract.alignment, contract.input_size)
            for image, faces in zip(images, found, strict=True)
            for box, points in zip(faces.boxes, faces.landmarks, strict=True)
        ]
    _, spent["embed"] = timed(partial(embedder.embed, crops))
    if not first:
        whole()
    return spent | {part: (sum(a for a, _ in each), sum(b for _, b in each)) for part, each in parts.items()}


class _Whole(Pipeline):
    """Has every photo read whole."""

    @property
    def reduction(self) -> int:
        return 1


def measure_reduced(model: Path, count: int, rounds: int) -> dict[str, Any]:
    """Compare embeddings of whole and of reduced photos."""
    listed = read_pairs(DATA / "lfw" / "pairs.txt")
    chosen = np.linspace(0, len(listed) - 1, count).astype(int)
    first, second, same = (each[chosen] for each in (listed.first, listed.second, listed.same))
    with tempfile.TemporaryDirectory() as place, Embedder.load(model) as embedder:
        folder, output = Path(place), Path(place) / "embeddings.npz"

        def embed(files: Sequence[Path], kind: type[Pipeline], min_size: int) -> tuple[EmbeddingTable, float]:
            output.unlink(missing_ok=True)
            with load_detector("yunet", model=YUNET, min_size=min_size) as detector:
                pipeline = kind(detector, embedder, faces="largest", batch_size=8, prefetch=2)
                done, (_, cpu) = timed(lambda: embed_files(files, pipeline, output))
            return done.table, 1e3 * cpu / len(files)

        used = sorted({*first.tolist(), *second.tolist()})
        names = {_enlarge(listed.images[each], 1500, folder): each for each in used}
        found, spent = {}, {}
        for kind in (_Whole, Pipeline):
            table, spent[kind.__name__] = embed(list(names), kind, 480)
            found[kind] = {names[Path(path)]: row for path, row in zip(table.paths, table.vectors, strict=True)}
        both = found[_Whole].keys() & found[Pipeline].keys()
        kept = np.array([a in both and b in both for a, b in zip(first, second, strict=True)])
        accuracy = {}
        for kind, rows in found.items():
            pairs = zip(first[kept], second[kept], strict=True)
            scores = np.array([rows[a] @ rows[b] for a, b in pairs])
            accuracy[kind.__name__] = round(max(((scores > limit) == same[kept]).mean() for limit in scores), 5)
        cosines = [found[_Whole][each] @ found[Pipeline][each] for each in both]
        large = [_enlarge(listed.images[each], 3464, folder, noise=6) for each in used[:12]]
        portraits: dict[str, list[float]] = {}
        for _ in range(rounds):
            for kind in (_Whole, Pipeline):
                portraits.setdefault(kind.__name__, []).append(embed(large, kind, 320)[1])
    return {
        "photos": len(names),
        "without_a_face": {kind.__name__: len(names) - len(rows) for kind, rows in found.items()},
        "pairs": int(kept.sum()),
        "accuracy": accuracy,
        "cosine": {"median": round(float(np.median(cosines)), 4), "least": round(float(min(cosines)), 4)},
        "cpu_ms_a_photo": spent,
        "cpu_ms_a_portrait_of_12_megapixels": {kind: statistics.median(each) for kind, each in portraits.items()},
    }


def _enlarge(name: str, side: int, folder: Path, *, noise: int = 0) -> Path:
    """Write a photo of LFW with so many pixels a side."""
    (source,) = find_images(DATA / "lfw" / "images", [name])
    image = cv2.resize(cv2.imread(str(source)), (side, side), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    image += np.random.default_rng(0).integers(-noise, noise + 1, image.shape, np.int16)
    path = folder / f"{side}-{source.name}"
    cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return path


def interval(ratios: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """Median, and the order statistics between which the true one lies whatever the distribution (sign test)."""
    ordered, count = sorted(ratios), len(ratios)
    out, tail = 0, 0.5**count
    while tail <= (1 - confidence) / 2 and out < count // 2:
        out += 1
        tail += math.comb(count, out) * 0.5**count
    low, high = (ordered[out - 1], ordered[count - out]) if out else (ordered[0], ordered[-1])
    return {
        "median": round(statistics.median(ordered), 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "least": round(ordered[0], 3),
        "most": round(ordered[-1], 3),
    }


def timed(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """A result, and the wall and CPU seconds that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def per_item(spent: Sequence[tuple[float, float]], items: int, item: str) -> dict[str, float]:
    """Medians in milliseconds."""
    wall, cpu = (1000 * statistics.median(each) / items for each in zip(*spent, strict=True))
    return {f"wall_ms_per_{item}": round(wall, 2), f"cpu_ms_per_{item}": round(cpu, 2)}


def ratio(a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Median over the rounds of a / b: what ran in the same round met the same load."""
    pairs = [(x[0] / y[0], x[1] / y[1]) for x, y in zip(a, b, strict=True)]
    wall, cpu = (statistics.median(each) for each in zip(*pairs, strict=True))
    return {"wall": round(wall, 2), "cpu": round(cpu, 2)}


if __name__ == "__main__":
    main()
