"""Measure the accuracy of a model on LFW by several protocols and with several face detectors. Prints JSON.

    python benchmarks/lfw.py --model IR.xml [--faces reference mtcnn yunet retail-0004] [--precision f32]

The 7,701 images are cut with the boxes of each source. The rows are davidsandberg's protocol on one image and on image
and mirror, Open Model Zoo's, and, on the reference boxes, davidsandberg's on the pixels themselves as a baseline. Crops
that several sources cut alike, to the last bit, are embedded once. dlib's model has rows of its own, on one image: its
descriptors have no unit length, and its users compare Euclidean distances with a fixed 0.6.
`--keep FILE` takes the rows of the other sources from an earlier answer, `--cache FILE` stores the embeddings so that a
run can be interrupted; both are refused if they were made with another model, device or inference precision. For speed
see benchmarks/pipeline.py.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov

from edgeface.evaluate.faces import FaceCutter, FaceSource, find_images, load_boxes
from edgeface.evaluate.pairs import Pairs, read_pairs
from edgeface.evaluate.protocol import Evaluation, ProtocolName, evaluate, evaluate_distances
from edgeface.model.ir_file import read_contract
from edgeface.recognize.metrics import Metric
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.plan import DevicePlan
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


def main() -> None:
    """Measure every row and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--faces", nargs="+", default=["reference"], choices=["reference", "mtcnn", *MODELS])
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--precision", choices=["f32", "bf16", "f16"], help="of inference; by default the device's own")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="an earlier answer to complete")
    parser.add_argument("--cache", type=Path, metavar="NPZ", help="embeddings of an interrupted run")
    options = parser.parse_args()
    pairs = read_pairs(DATA / "lfw" / "pairs.txt")
    files = find_images(DATA / "lfw" / "images", pairs.images)
    rows: list[dict[str, object]] = []
    dlib = read_contract(options.model)[1].framework == "dlib"
    plan = DevicePlan(device=options.device, precision=options.precision)
    with Embedder.load(options.model, plan=plan, flip=None if dlib else "concatenate") as embedder:
        if options.keep:
            kept = json.loads(options.keep.read_text())
            require_same(kept.get("settings"), settings_of(embedder), source=options.keep)
            rows += [row for row in kept["rows"] if row["faces"] not in options.faces]
        cache = Cache(embedder, options.cache)
        for name in options.faces:
            with faces(name, options.device) as source:
                cutter = FaceCutter(files, pairs.images, embedder.contract, source)
                vectors = cache.embed(cutter, name)
                scored = dlib_evaluations(vectors, pairs) if dlib else evaluations(vectors, pairs)
                rows += [tell_row(title, name, each, cutter) for title, each in scored]
                if dlib:
                    rows.append({"row": "dlib, fixed", "faces": name, **at_the_fixed_threshold(vectors, pairs)})
                elif name == "reference":
                    rows.append(tell_row("facenet, pixels", name, pixel_baseline(cutter, pairs), cutter))
        settings = settings_of(embedder)
    answer = {"benchmark": "lfw", "model": options.model.name, "settings": settings, "rows": rows}
    print(json.dumps(answer, indent=2))


def settings_of(embedder: Embedder) -> dict[str, object]:
    """Everything that the embedding of a crop depends on."""
    return {
        "contract_id": embedder.contract.contract_id,
        "execution_devices": list(embedder.execution.execution_devices),
        "precision": embedder.execution.precision,
        "openvino": ov.__version__,
    }


def require_same(stored: object, wanted: dict[str, object], *, source: Path) -> None:
    """Refuse the results of other settings."""
    if stored != wanted:
        raise SystemExit(f"{source}: expected results of {wanted}, found those of {stored}; leave the file out")


class Cache:
    """Embeddings of crops that were seen before, by the digest of their pixels."""

    def __init__(self, embedder: Embedder, path: Path | None) -> None:
        self._embedder, self._path = embedder, path
        self._known: dict[bytes, np.ndarray] = {}
        if path and path.is_file():
            with np.load(path) as stored:
                known = json.loads(str(stored["settings"])) if "settings" in stored else None
                require_same(known, settings_of(embedder), source=path)
                self._known = dict(zip(map(bytes, stored["digests"]), stored["vectors"], strict=True))

    def embed(self, cutter: FaceCutter, name: str) -> np.ndarray:
        """Embed what the cutter cuts: (N, D) float32, in its order."""
        digests: list[bytes] = []
        asked: list[bytes] = []

        def unknown() -> Iterator[np.ndarray]:
            for crop in cutter:
                digests.append(hashlib.sha256(crop).digest())
                if digests[-1] not in self._known:
                    asked.append(digests[-1])
                    yield crop
                if len(digests) % 500 == 0 or len(digests) == len(cutter):
                    print(f"{name}: {len(digests)} of {len(cutter)}", file=sys.stderr)

        try:
            for done, vector in enumerate(self._embedder.map(unknown())):
                self._known[asked[done]] = vector
        finally:
            if self._path:
                np.savez(
                    self._path,
                    digests=np.array([list(each) for each in self._known], np.uint8),
                    vectors=np.stack(list(self._known.values())),
                    settings=json.dumps(settings_of(self._embedder)),
                )
        return np.stack([self._known[each] for each in digests])


@contextlib.contextmanager
def faces(name: str, device: str) -> Iterator[FaceSource]:
    """Give what finds the faces."""
    if name == "reference":
        yield FaceSource(load_boxes(DATA / "lfw" / "mtcnn_reference.npz"))
    else:
        paths = {key: DATA / path for key, path in MODELS.get(name, {}).items()}
        with load_detector(name, device=device, **paths) as detector:
            yield FaceSource(detector=detector)


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


def tell_row(title: str, name: str, evaluation: Evaluation, cutter: FaceCutter) -> dict[str, object]:
    """One line of the table."""
    val = {str(each.target): round(each.mean, 4) for each in evaluation.val}
    return {
        "row": title,
        "faces": name,
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
