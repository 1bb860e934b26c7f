"""How right is a model on LFW, by whose protocol, with whose boxes? Prints JSON.

    python benchmarks/lfw.py --model FACENET.xml [--faces reference mtcnn yunet retail-0004] [--throughput 600]

Every source of boxes embeds the 7,701 images and their mirrors once; from that come the rows: davidsandberg's
protocol on one image and on image and mirror, Open Model Zoo's, and, on the reference boxes, that of bare pixels.
`--keep FILE` takes over an earlier answer's rows for the other sources, so that a table can be made in parts.
`--throughput N` also measures how much of the engine's own speed the evaluation keeps, on N images and their mirrors,
in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeface.evaluate.faces import Boxes, FaceCutter, find_images, load_boxes
from edgeface.evaluate.folds import ProtocolName
from edgeface.evaluate.lfw import Embedded, embed_images
from edgeface.evaluate.pairs import Pairs, read_pairs
from edgeface.evaluate.protocol import Evaluation, evaluate, evaluate_distances
from edgeface.recognize.metrics import Metric, pixel_distance
from edgeface.runtime.embedder import Embedder
from edgeface.vision.detect import Detector, load_detector

DATA = Path(os.environ.get("EDGEFACE_DATA", "../shared/data"))

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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--faces", nargs="+", default=["reference"], choices=["reference", "mtcnn", *MODELS])
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="an earlier answer to complete")
    parser.add_argument("--throughput", type=int, default=0, metavar="N")
    options = parser.parse_args()
    pairs = read_pairs(DATA / "lfw" / "pairs.txt")
    files = find_images(DATA / "lfw" / "images", pairs.images)
    rows: list[dict[str, object]] = []
    if options.keep:
        kept = json.loads(options.keep.read_text())["rows"]
        rows += [row for row in kept if row["faces"] not in options.faces]
    for name in options.faces:
        with faces(name, options.device) as (boxes, detector):
            embedded = embed_images(
                files,
                pairs.images,
                options.model,
                flip="concatenate",
                boxes=boxes,
                detector=detector,
                device=options.device,
                progress=tell(name),
            )
            rows += [tell_row(title, name, each, embedded) for title, each in evaluations(embedded, pairs)]
            if name == "reference":
                rows.append(
                    tell_row("facenet, pixels", name, pixel_baseline(embedded.cutter, pairs), embedded)
                )
    answer = {"benchmark": "lfw", "model": str(options.model), "rows": rows}
    if options.throughput:
        boxes = load_boxes(DATA / "lfw" / "mtcnn_reference.npz")
        answer["throughput"] = throughput(
            options.model, files, pairs.images, boxes, options.throughput, options.device
        )
    print(json.dumps(answer, indent=2))


@contextlib.contextmanager
def faces(name: str, device: str) -> Iterator[tuple[Boxes | None, Detector | None]]:
    """Give what finds the faces."""
    if name == "reference":
        yield load_boxes(DATA / "lfw" / "mtcnn_reference.npz"), None
    else:
        paths = {key: DATA / path for key, path in MODELS.get(name, {}).items()}
        with load_detector(name, device=device, **paths) as detector:
            yield None, detector


def evaluations(embedded: Embedded, pairs: Pairs) -> Iterator[tuple[str, Evaluation]]:
    """Score one set of embeddings in every published way."""
    alone = embedded.vectors[:, : embedded.vectors.shape[1] // 2]  # the mirror's half stands behind it
    yield (
        "facenet, one image",
        evaluate(alone, pairs, protocol=ProtocolName.facenet, metric=Metric.squared_l2),
    )
    for protocol in ProtocolName:
        yield (
            f"{protocol.value}, mirror",
            evaluate(embedded.vectors, pairs, protocol=protocol, metric=Metric.arccos, subtract_mean=True),
        )


def pixel_baseline(cutter: FaceCutter, pairs: Pairs, *, block: int = 200) -> Evaluation:
    """Score the distance of bare pixels of the same crops."""
    distances = np.empty(len(pairs))
    for start in range(0, len(pairs), block):
        part = slice(start, start + block)
        first, second = (
            np.stack([cutter.crop(index) for index in side[part]]) for side in (pairs.first, pairs.second)
        )
        distances[part] = pixel_distance(first, second)
    return evaluate_distances(distances, pairs, protocol=ProtocolName.facenet, metric="pixel")


def tell_row(title: str, name: str, evaluation: Evaluation, embedded: Embedded) -> dict[str, object]:
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
        "failures": len(embedded.cutter.failures),
        "seconds": round(embedded.seconds, 1),
    }


def throughput(
    model: Path, files: list[Path], names: tuple[str, ...], boxes: Boxes, count: int, device: str
) -> dict[str, object]:
    """Alternate the engine on crops in memory with the engine behind decoding and cutting."""
    rounds = []
    with Embedder.load(model, device=device, flip="concatenate") as embedder:
        cutter = FaceCutter(files[:count], names[:count], embedder.contract, boxes=boxes)
        crops = list(cutter)
        for arrays in (crops[:50], *([crops, cutter] * 3)):
            started = time.perf_counter()
            done = sum(1 for _ in embedder.map(arrays))
            rounds.append(done / (time.perf_counter() - started))
    alone, behind = rounds[1::2], rounds[2::2]
    ratios = [b / a for a, b in zip(alone, behind, strict=True)]
    return {
        "images": count,
        "engine_alone": round(statistics.median(alone), 2),
        "evaluation": round(statistics.median(behind), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(each, 3) for each in ratios],
    }


def tell(name: str):
    """Say on stderr, every 500 images, how far it is."""

    def progress(done: int, total: int) -> None:
        if done % 500 == 0 or done == total:
            print(f"{name}: {done} of {total}", file=sys.stderr)

    return progress


if __name__ == "__main__":
    main()
