"""Measure the accuracy of models on LFW with several face detectors. Prints JSON, and a table on stderr.

    python benchmarks/lfw.py --model IR.xml [IR.xml ...] [--faces reference mtcnn yunet retail-0004] [--cache DIR]
        [--recipes own five-point-150] [--pairs N] [--sides 20 32] [--precision f32] [--against EARLIER.json]

The 7,701 images are cut with the boxes of each source, and, with `--recipes`, by other alignments than the model's own
too. The rows are davidsandberg's protocol on one image and on image and mirror, Open Model Zoo's, and, on the reference
boxes, davidsandberg's on the pixels themselves as a baseline. dlib's model has rows of its own, on one image: its
descriptors have no unit length, and its users compare Euclidean distances with a fixed 0.6.

Every image is detected once by each detector, for all models, and crops that are alike to the last bit are embedded
once. `--cache` keeps both, so that a run that was interrupted is resumed; what was made with another detector, model,
device or inference precision is refused. `--pairs` takes the first N of each kind in each fold. `--against` ends with
1 if a row is less accurate than an earlier answer's by more than 0.001. `--sides` compares with smaller photos: the
second one of each pair is reduced, by the mean over areas, so that the shorter side of its face's box has so many
pixels, and the face is found anew. For speed see benchmarks/pipeline.py.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import openvino as ov

from edgeface.evaluate.faces import FaceCutter, FaceSource, find_images, load_boxes
from edgeface.evaluate.pairs import Pairs, read_pairs
from edgeface.evaluate.protocol import Evaluation, ProtocolName, evaluate, evaluate_distances
from edgeface.model.contract import Alignment
from edgeface.model.ir_file import read_contract
from edgeface.recognize.metrics import Metric
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.plan import DevicePlan
from edgeface.vision.detector import SMALLEST_FACE, Detector, Faces
from edgeface.vision.image import read_image
from edgeface.vision.load import load_detector

DATA = Path(os.environ.get("EDGEFACE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

PUBLISHED = {"facenet, mirror": 0.9905, "omz, mirror": 0.9914}
"""For this checkpoint: davidsandberg/facenet's README; Open Model Zoo's page of facenet-20180408-102900."""

MODELS = {
    "yunet": {"model": "yunet/yunet_n_dynamic.onnx"},
    "retail-0004": {
        "model": "omz/face-detection-retail-0004/FP32/face-detection-retail-0004.xml",
        "landmarks_model": "omz/landmarks-regression-retail-0009/FP32/landmarks-regression-retail-0009.xml",
    },
}


SAME = 0.001
"""Difference of accuracy that counts as none."""


def main() -> None:
    """Measure every row and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", required=True)
    parser.add_argument("--faces", nargs="+", default=["reference"], choices=["reference", "mtcnn", *MODELS])
    parser.add_argument("--recipes", nargs="+", default=["own"], metavar="RECIPE[:MARGIN]")
    parser.add_argument("--pairs", type=int, metavar="N", help="of each kind in each fold; by default all 300")
    parser.add_argument("--sides", type=int, nargs="+", default=[], help="of the faces of the second photos, pixels")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--precision", choices=["f32", "bf16", "f16"], help="of inference; by default the device's own")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="detections and embeddings of earlier runs")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier answer that must be reached")
    options = parser.parse_args()
    pairs = shortened(read_pairs(DATA / "lfw" / "pairs.txt"), options.pairs)
    files = find_images(DATA / "lfw" / "images", pairs.images)
    rows: list[dict[str, object]] = []
    settings = {}
    with contextlib.ExitStack() as stack:
        least = min([2 * SMALLEST_FACE, *options.sides]) // 2
        sources = {
            name: stack.enter_context(faces(name, options.device, options.cache, least)) for name in options.faces
        }
        sets = {name: (source, pairs, files) for name, source in sources.items()}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for (name, source), side in itertools.product(sources.items(), options.sides):
            sets[f"{name}, {side} pixels"] = (source, *make_smaller(pairs, files, source, side, folder))
        for path in options.model:
            rows += measure(path, options, sets, settings)
    answer = {"benchmark": "lfw", "pairs": len(pairs), "models": settings, "rows": rows}
    print(json.dumps(answer, indent=2))
    print(table(rows), file=sys.stderr)
    if options.against and (worse := worse_than(rows, json.loads(options.against.read_text())["rows"])):
        raise SystemExit("\n".join(worse))


def measure(
    path: Path,
    options: argparse.Namespace,
    sets: Mapping[str, tuple[FaceSource, Pairs, Sequence[Path]]],
    settings: dict[str, object],
) -> Iterator[dict[str, object]]:
    """Measure one model with all faces and recipes, and add its settings."""
    contract = read_contract(path)[1]
    dlib = contract.framework == "dlib"
    plan = DevicePlan(device=options.device, precision=options.precision)
    with Embedder.load(path, plan=plan, flip=None if dlib else "concatenate") as embedder:
        model = f"{contract.name} {contract.precision}"
        settings[model] = settings_of(embedder)
        kept = options.cache and options.cache / f"embeddings-{contract.contract_id}.npz"
        cache = Cache(embedder, kept)
        for (name, (source, pairs, files)), recipe in itertools.product(sets.items(), options.recipes):
            used = embedder.contract
            if recipe != "own":
                kind, _, margin = recipe.partition(":")
                used = dataclasses.replace(used, alignment=Alignment(kind, int(margin or 0)))
            cutter = FaceCutter(files, pairs.images, used, source)
            vectors = cache.embed(cutter, f"{model}, {name}, {recipe}")
            scored = dlib_evaluations(vectors, pairs) if dlib else evaluations(vectors, pairs)
            of = {"model": model, "faces": name, "recipe": recipe}
            yield from ({**of, **tell_row(title, each, cutter)} for title, each in scored)
            if dlib:
                yield {**of, "row": "dlib, fixed", **at_the_fixed_threshold(vectors, pairs)}
            elif name == "reference":
                yield {**of, **tell_row("facenet, pixels", pixel_baseline(cutter, pairs), cutter)}


def shortened(pairs: Pairs, most: int | None) -> Pairs:
    """Keep the first pairs of each kind in each fold, and the images that they need."""
    if most is None:
        return pairs
    chosen = [
        row
        for fold in np.array_split(np.arange(len(pairs)), pairs.folds)
        for same in (True, False)
        for row in fold[pairs.same[fold] == same][:most]
    ]
    used, places = np.unique([pairs.first[chosen], pairs.second[chosen]], return_inverse=True)
    first, second = places.reshape(2, -1)
    names = tuple(pairs.images[index] for index in used)
    return dataclasses.replace(pairs, images=names, first=first, second=second, same=pairs.same[chosen])


def make_smaller(
    pairs: Pairs, files: Sequence[Path], source: FaceSource, side: int, folder: Path
) -> tuple[Pairs, list[Path]]:
    """Return the pairs with smaller copies for their second images, and the files of all; the copies are written."""
    if source.detector is None:
        raise SystemExit("--sides needs a detector, which finds the smaller faces: --faces mtcnn or yunet")
    rows, second = np.unique(pairs.second, return_inverse=True)
    copies = []
    for row in rows:
        photo = read_image(files[row])
        (found,) = source.detector.detect([photo])
        box = found.boxes[found.largest(photo.shape[:2])]
        share = min(1.0, side / (box[2:] - box[:2]).min())
        copies.append(folder / f"{source.detector.settings['name']}-{side}-{row}.png")
        cv2.imwrite(str(copies[-1]), cv2.resize(photo, None, fx=share, fy=share, interpolation=cv2.INTER_AREA))
    images = (*pairs.images, *(pairs.images[row] for row in rows))
    return dataclasses.replace(pairs, images=images, second=len(files) + second), [*files, *copies]


def worse_than(rows: Sequence[Mapping[str, object]], earlier: Sequence[Mapping[str, object]]) -> list[str]:
    """Name the rows that are less accurate than those of an earlier answer, or are missing there."""
    keys = ("model", "faces", "recipe", "row")
    known = {tuple(row.get(key) for key in keys): float(str(row["accuracy"])) for row in earlier}
    found = {tuple(row[key] for key in keys): float(str(row["accuracy"])) for row in rows}
    return [
        f"{', '.join(map(str, key))}: {value:.4f}, earlier {known.get(key, 'not measured')}"
        for key, value in found.items()
        if value < known.get(key, np.inf) - SAME - 1e-9
    ]


_COLUMNS = {
    "one image": ("facenet, one image", "dlib, cosine"),
    "mirror": ("facenet, mirror",),
    "Euclidean": ("dlib, Euclidean",),
    "at 0.6": ("dlib, fixed",),
}


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return the accuracies as GitHub Markdown: a line for each model, detector and recipe."""
    lines: dict[tuple[object, ...], dict[object, object]] = {}
    for row in rows:
        lines.setdefault((row["model"], row["faces"], row["recipe"]), {})[row["row"]] = row["accuracy"]
    shown = [name for name, of in _COLUMNS.items() if any(each in line for line in lines.values() for each in of)]
    texts = [["model", "faces", "recipe", *shown]]
    for key, line in lines.items():
        values = (next((line[each] for each in _COLUMNS[name] if each in line), None) for name in shown)
        texts.append([*map(str, key), *("-" if value is None else f"{value:.4f}" for value in values)])
    texts.insert(1, ["---"] * len(texts[0]))
    return "\n".join(f"| {' | '.join(each)} |" for each in texts)


def settings_of(embedder: Embedder) -> dict[str, object]:
    """Everything that the embedding of a crop depends on."""
    return {
        "contract_id": embedder.contract.contract_id,
        "execution_devices": list(embedder.execution.execution_devices),
        "precision": embedder.execution.precision,
        "openvino": ov.__version__,
    }


def require_same(stored: object, wanted: object, *, source: Path) -> None:
    """Refuse the results of other settings."""
    if stored != wanted:
        raise SystemExit(f"{source}: expected results of {wanted}, found those of {stored}; leave the file out")


def digest_of(image: np.ndarray) -> bytes:
    """Name an image by its pixels."""
    return hashlib.sha256(np.ascontiguousarray(image)).digest()


def write(path: Path | None, settings: object, digests: Iterable[bytes], **arrays: np.ndarray) -> None:
    """Write what is known of images, by their digests; whole or not at all, and nothing without a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = np.array([list(each) for each in digests], np.uint8)
        np.savez(path.with_suffix(".part.npz"), digests=names, settings=json.dumps(settings), **arrays)
        path.with_suffix(".part.npz").replace(path)


def read(path: Path | None, settings: object) -> dict[str, np.ndarray]:
    """Read what `write` wrote with the same settings; empty if there is no file."""
    if path is None or not path.is_file():
        return {}
    with np.load(path) as stored:
        require_same(json.loads(str(stored["settings"])) if "settings" in stored else None, settings, source=path)
        return dict(stored)


_PARTS = ("boxes", "landmarks", "scores")


class CachedDetector:
    """Finds the faces of images that were not seen before, by the digest of their pixels.

    Whoever needs the faces of an image only for its place and size may be given those that another run found.
    """

    def __init__(self, detector: Detector, path: Path | None) -> None:
        self._detector, self._path, self.settings = detector, path, dict(detector.settings)
        self._lock, self._known = threading.Lock(), dict[bytes, Faces]()
        if stored := read(path, self.settings):
            ends = np.cumsum(stored["counts"])[:-1]
            found = zip(*(np.split(stored[name], ends) for name in _PARTS), strict=True)
            self._known = {bytes(name): Faces(*each) for name, each in zip(stored["digests"], found, strict=True)}

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        """As `Detector.detect`."""
        digests = [digest_of(image) for image in images]
        unknown = [index for index, digest in enumerate(digests) if digest not in self._known]
        found = self._detector.detect([images[index] for index in unknown]) if unknown else []
        with self._lock:
            self._known |= {digests[index]: each for index, each in zip(unknown, found, strict=True)}
        return [self._known[digest] for digest in digests]

    def close(self) -> None:
        """Write what is known."""
        faces = list(self._known.values())
        arrays = {name: np.concatenate([getattr(each, name) for each in faces]) for name in _PARTS} if faces else {}
        counts = np.array([len(each) for each in faces])
        write(self._path, self.settings, self._known, counts=counts, **arrays)


class Cache:
    """Embeddings of crops that were seen before, by the digest of their pixels."""

    def __init__(self, embedder: Embedder, path: Path | None) -> None:
        self._embedder, self._path = embedder, path
        self._known: dict[bytes, np.ndarray] = {}
        if stored := read(path, settings_of(embedder)):
            self._known = dict(zip(map(bytes, stored["digests"]), stored["vectors"], strict=True))

    def embed(self, cutter: FaceCutter, name: str) -> np.ndarray:
        """Embed what the cutter cuts: (N, D) float32, in its order."""
        digests: list[bytes] = []
        asked: list[bytes] = []

        def unknown() -> Iterator[np.ndarray]:
            for crop in cutter:
                digests.append(digest_of(crop))
                if digests[-1] not in self._known:
                    asked.append(digests[-1])
                    yield crop
                if len(digests) % 500 == 0 or len(digests) == len(cutter):
                    print(f"{name}: {len(digests)} of {len(cutter)}", file=sys.stderr)

        try:
            for done, vector in enumerate(self._embedder.map(unknown())):
                self._known[asked[done]] = vector
        finally:
            if asked and self._known:
                write(
                    self._path, settings_of(self._embedder), self._known, vectors=np.stack(list(self._known.values()))
                )
        return np.stack([self._known[each] for each in digests])


@contextlib.contextmanager
def faces(name: str, device: str, cache: Path | None, least: int) -> Iterator[FaceSource]:
    """Give what finds the faces; it remembers them for the next model, and in the cache for the next run."""
    if name == "reference":
        yield FaceSource(load_boxes(DATA / "lfw" / "mtcnn_reference.npz"))
    else:
        paths = {key: DATA / path for key, path in MODELS.get(name, {}).items()}
        with load_detector(name, device=device, min_size=least, **paths) as detector:
            kept = cache and cache / f"faces-{name}.npz"
            with contextlib.closing(CachedDetector(detector, kept)) as known:
                yield FaceSource(detector=known)  # type: ignore[arg-type]


def evaluations(vectors: np.ndarray, pairs: Pairs) -> Iterator[tuple[str, Evaluation]]:
    """Score one set of embeddings in every published way."""
    alone = vectors[:, : vectors.shape[1] // 2]  # the mirror's half stands behind it
    yield ("facenet, one image", evaluate(alone, pairs, protocol=ProtocolName.facenet, metric=Metric.squared_l2))
    mirror = {
        "facenet, mirror": (ProtocolName.facenet, Metric.arccos),
        "facenet, mirror, cosine": (ProtocolName.facenet, Metric.cosine_distance),
        "omz, mirror": (ProtocolName.omz, Metric.arccos),
    }
    for title, (protocol, metric) in mirror.items():
        yield (title, evaluate(vectors, pairs, protocol=protocol, metric=metric, subtract_mean=True))


def dlib_evaluations(vectors: np.ndarray, pairs: Pairs) -> Iterator[tuple[str, Evaluation]]:
    """Score descriptors of dlib by davidsandberg's protocol, with thresholds of a twentieth of its steps of 0.01."""
    first, second = vectors[pairs.first].astype(np.float64), vectors[pairs.second].astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    distances = {"cosine": 20 * (1 - (first * second).sum(axis=1) / lengths), "Euclidean": euclidean(vectors, pairs)}
    for name, each in distances.items():
        metric = "20 * cosine-distance" if name == "cosine" else "l2"
        yield (f"dlib, {name}", evaluate_distances(each, pairs, protocol=ProtocolName.facenet, metric=metric))


def euclidean(vectors: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Distances of the pairs, not squared."""
    return np.linalg.norm(vectors[pairs.first].astype(np.float64) - vectors[pairs.second], axis=1)


def at_the_fixed_threshold(vectors: np.ndarray, pairs: Pairs, threshold: float = 0.6) -> dict[str, object]:
    """Accuracy and rates at the distance that dlib's users take."""
    accepted = euclidean(vectors, pairs) < threshold
    return {
        "metric": "l2",
        "threshold": threshold,
        "accuracy": round(float((accepted == pairs.same).mean()), 4),
        "tar": round(float(accepted[pairs.same].mean()), 4),
        "far": round(float(accepted[~pairs.same].mean()), 4),
    }


def pixel_baseline(cutter: FaceCutter, pairs: Pairs, *, block: int = 200) -> Evaluation:
    """Score the root mean square difference of the pixels of the same crops."""
    distances = np.empty(len(pairs))
    for start in range(0, len(pairs), block):
        part = slice(start, start + block)
        first, second = (np.stack([cutter.crop(index) for index in side[part]]) for side in (pairs.first, pairs.second))
        difference = first.astype(np.float64) - second
        distances[part] = np.sqrt((difference**2).mean(axis=(1, 2, 3))) / 255  # in [0, 1]
    return evaluate_distances(distances, pairs, protocol=ProtocolName.facenet, metric="pixel")


def tell_row(title: str, evaluation: Evaluation, cutter: FaceCutter) -> dict[str, object]:
    """One line of the table."""
    val = {str(each.target): round(each.mean, 4) for each in evaluation.val}
    return {
        "row": title,
        "metric": evaluation.metric,
        "accuracy": round(evaluation.accuracy, 4),
        "std": round(evaluation.accuracy_std, 4),
        "published": PUBLISHED.get(title),
        "val": val,
        "auc": round(evaluation.auc, 5),
        "eer": round(evaluation.eer, 4),
        "failures": len(cutter.failures),
    }


if __name__ == "__main__":
    main()
