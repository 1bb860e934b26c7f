"""Is the detector the reference, and how much faster is it? Prints one JSON object.

python benchmarks/detectors.py agree [--mtcnn DIR]  # MTCNN against mtcnn_reference.npz, all 7,701 images
python benchmarks/detectors.py speed --rounds 4    # against TensorFlow (extra `parity`), alternating; --mtcnn too
python benchmarks/detectors.py small               # MTCNN and YuNet on faces of 34 to 56 pixels in 12 megapixels
python benchmarks/detectors.py lfw --images 500    # the same two on LFW: same face, overlap, CPU time
python benchmarks/detectors.py floor --rounds 4    # what MTCNN's three networks compute, and their share of its time
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeface.model.contract import Alignment
from edgeface.vision.align import crop_box
from edgeface.vision.detector import Detector
from edgeface.vision.image import read_image
from edgeface.vision.load import load_detector
from edgeface.vision.nms import overlaps

DATA = Path(os.environ.get("EDGEFACE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
_MARGIN = Alignment("mtcnn-box-margin", 32)
_NO_FACE = "Marilyn_Monroe/Marilyn_Monroe_0001"
"""Here the reference finds nothing either; the stored box is a fixed crop."""
_BOTH = {"mtcnn": "mtcnn", "yunet": "yunet/yunet_n_dynamic.onnx"}


def compare_with_reference(
    detector: Detector, data: Path, *, limit: int | None = None, batch: int = 64
) -> dict[str, Any]:
    """Compare the chosen face of each LFW image with mtcnn_reference.npz.

    The same face is one whose box overlaps the stored one by more than half; a box off by more than one pixel is
    listed as a disagreement all the same. The difference of a box is that of the side that is off most.
    """
    with np.load(data / "lfw" / "mtcnn_reference.npz") as stored:
        names, boxes, points = stored["names"], stored["boxes"], stored["points"]
    chosen = np.linspace(0, len(names) - 1, min(limit or len(names), len(names))).astype(int)
    box_differences, side_differences, landmark_differences, disagreements = [], list[int](), [], []
    same = 0
    for start in range(0, len(chosen), batch):
        rows = chosen[start : start + batch]
        images = [read_image(data / "lfw" / "images" / f"{names[row]}.jpg") for row in rows]
        for row, image, faces in zip(rows, images, detector.detect(images), strict=True):
            name = str(names[row])
            if not len(faces):
                same += name == _NO_FACE
                disagreements.append({"name": name, "found": None, "expected": boxes[row].tolist()})
                continue
            index = faces.largest(image.shape[:2])
            box = np.array(crop_box(image, faces.boxes[index], _MARGIN, (160, 160)))
            sides = np.abs(box - boxes[row])
            off = int(sides.max())
            side_differences += sides.tolist()
            box_differences.append(off)
            landmark_differences.append(float(np.abs(faces.landmarks[index].T.ravel() - points[row]).max()))
            same += _overlap(box, boxes[row]) > 0.5
            if off > 1:
                disagreements.append({"name": name, "found": box.tolist(), "expected": boxes[row].tolist()})
    return {
        "images": len(chosen),
        "same_face": int(same),
        "identical_boxes": int(np.count_nonzero(np.array(box_differences) == 0)),
        "median_box_difference": float(np.median(box_differences)),
        "median_side_difference": float(np.median(side_differences)),
        "largest_box_difference": int(max(box_differences)),
        "median_landmark_difference": float(np.median(landmark_differences)),
        "largest_landmark_difference": float(max(landmark_differences)),
        "disagreements": disagreements,
    }


def compare_speed(data: Path, mtcnn: Path, *, rounds: int, images: int) -> dict[str, Any]:
    """Milliseconds an image on LFW, ours in batches and TensorFlow's one by one, turn by turn."""
    from mtcnn_tensorflow import TensorFlowMTCNN

    paths = sorted((data / "lfw" / "images").rglob("*.jpg"))
    pictures = [read_image(path) for path in paths[:: max(1, len(paths) // images)][:images]]
    rgb = [np.ascontiguousarray(picture[:, :, ::-1]) for picture in pictures]
    reference = TensorFlowMTCNN(data / "mtcnn")
    with load_detector("mtcnn", model=mtcnn) as detector:
        contenders: dict[str, Callable[[], object]] = {
            "tensorflow": lambda: [reference.detect(picture) for picture in rgb],
            "edgeface": lambda: detector.detect(pictures),
            "edgeface, one at a time": lambda: [detector.detect([picture]) for picture in pictures],
        }
        for run in contenders.values():
            run()
        wall: dict[str, list[float]] = {name: [] for name in contenders}
        cpu: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, run in contenders.items():
                started, used = time.perf_counter(), time.process_time()
                run()
                wall[name].append((time.perf_counter() - started) / len(pictures) * 1e3)
                cpu[name].append((time.process_time() - used) / len(pictures) * 1e3)
    times = {name: statistics.median(values) for name, values in wall.items()}
    return {
        "images": len(pictures),
        "rounds": rounds,
        "ms_an_image": {name: round(value, 2) for name, value in times.items()},
        "cpu_ms_an_image": {name: round(statistics.median(values), 2) for name, values in cpu.items()},
        "times_faster": {
            name: round(statistics.median(a / b for a, b in zip(wall["tensorflow"], wall[name], strict=True)), 2)
            for name in contenders
        },
        "load_average": os.getloadavg()[0],
    }


def compare_small(data: Path, *, images: int) -> dict[str, Any]:
    """Count which faces of 34 to 56 pixels (MTCNN's boxes) each detector finds in photos of 4000x3000, 12 in each."""
    rng, photos = np.random.default_rng(1), list[tuple[np.ndarray, np.ndarray]]()
    paths = sorted((data / "lfw" / "images").rglob("*.jpg"))
    faces = [read_image(path) for path in paths[:: len(paths) // (12 * images)][: 12 * images]]
    with load_detector("mtcnn", model=data / "mtcnn") as detector:
        found = [each[each.largest((250, 250))].boxes[0] for each in detector.detect(faces)]
    for start in range(0, 12 * images, 12):
        coarse = rng.integers(40, 200, (15, 20, 3), np.uint8)
        photo, boxes = cv2.resize(coarse, (4000, 3000), interpolation=cv2.INTER_CUBIC), []
        for place, (face, box) in enumerate(zip(faces[start : start + 12], found[start : start + 12], strict=True)):
            scale = rng.uniform(34, 56) / (box[2:] - box[:2]).min()
            part = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            x, y = 1000 * (place % 4) + int(rng.integers(0, 800)), 1000 * (place // 4) + int(rng.integers(0, 800))
            photo[y : y + len(part), x : x + part.shape[1]] = part
            boxes.append(box * scale + [x, y, x, y])
        photos.append((photo, np.array(boxes)))
    answer: dict[str, Any] = {"photos": images, "faces": 12 * images}
    for name, model in _BOTH.items():
        for least in (20, 32):
            with load_detector(name, model=data / model, min_size=least) as detector:
                detector.detect([photos[0][0]])
                used, seen = time.process_time(), [detector.detect([photo])[0] for photo, _ in photos]
                spent = 1e3 * (time.process_time() - used) / images
            hits = [
                overlaps(boxes, each.boxes).max(axis=1, initial=0) > 0.4
                for each, (_, boxes) in zip(seen, photos, strict=True)
            ]
            answer[f"{name}, from {least} pixels"] = {"found": int(np.sum(hits)), "cpu_ms_a_photo": round(spent, 1)}
    return answer


def compare_lfw(data: Path, *, images: int) -> dict[str, Any]:
    """Compare the chosen faces of MTCNN and YuNet on LFW, and their CPU time in batches of 50."""
    paths = sorted((data / "lfw" / "images").rglob("*.jpg"))
    photos = [read_image(paths[row]) for row in np.linspace(0, len(paths) - 1, images).astype(int)]
    chosen, spent = list[list[np.ndarray]](), dict[str, float]()
    for name, model in _BOTH.items():
        with load_detector(name, model=data / model) as detector:
            detector.detect(photos[:8])
            used = time.process_time()
            found = [each for start in range(0, images, 50) for each in detector.detect(photos[start : start + 50])]
            spent[name] = round(1e3 * (time.process_time() - used) / images, 2)
        chosen.append([each.boxes[each.largest((250, 250))] if len(each) else np.zeros(4) for each in found])
    shared = np.array([_overlap(a, b) if a.any() and b.any() else 0 for a, b in zip(*chosen, strict=True)])
    return {
        "images": images,
        "same_face": int((shared > 0.5).sum()),
        "median_overlap": round(float(np.median(shared)), 3),
        "cpu_ms_a_photo": spent,
    }


def measure_floor(data: Path, *, rounds: int, images: int) -> dict[str, Any]:
    """Operations of MTCNN's networks on LFW, and how much of its CPU time is theirs."""
    chosen = sorted((data / "lfw" / "images").rglob("*.jpg"))[:: max(1, 7701 // images)][:images]
    pixels = [read_image(path) for path in chosen]
    done: dict[str, int] = {}

    def observe(name: str, batch: np.ndarray) -> None:
        done[name] = done.get(name, 0) + len(batch) * _multiplications(name, *batch.shape[1:3])

    with load_detector("mtcnn", model=data / "mtcnn", observe=observe) as detector:
        detector.detect(pixels)
    spent: dict[str, list[float]] = {"all": [], "python": []}
    with load_detector("mtcnn", model=data / "mtcnn") as detector:
        for number in range(rounds + 1):
            whole, python = time.process_time(), time.thread_time()
            for start in range(0, images, 16):  # which are detected in this thread
                detector.detect(pixels[start : start + 16])
            if number:  # shapes are prepared on first sight
                spent["all"].append(1e3 * (time.process_time() - whole) / images)
                spent["python"].append(1e3 * (time.thread_time() - python) / images)
    return {
        "gflop_an_image": {name: round(2e-9 * count / images, 3) for name, count in done.items()},
        "cpu_ms_an_image": {name: round(statistics.median(each), 2) for name, each in spent.items()},
        "share_of_the_networks": round(1 - statistics.median(spent["python"]) / statistics.median(spent["all"]), 2),
    }


def _multiplications(name: str, height: int, width: int) -> int:
    """Of a network on one image, with additions: the convolutions and dense layers of `mtcnn_nets`."""
    if name == "rnet":
        return 22**2 * 27 * 28 + 9**2 * 252 * 48 + 3**2 * 192 * 64 + 576 * 128 + 128 * 5
    if name == "onet":
        hidden = 46**2 * 27 * 32 + 21**2 * 288 * 64 + 8**2 * 576 * 64 + 3**2 * 256 * 128
        return hidden + 1152 * 256 + 256 * 15
    rows, columns = (-(-(side - 2) // 2) for side in (height, width))
    first = (height - 2) * (width - 2) * 27 * 10
    return first + (rows - 2) * (columns - 2) * 90 * 16 + (rows - 4) * (columns - 4) * (144 * 32 + 32 * 5)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.maximum(high - low, 0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("agree", "speed", "small", "lfw", "floor"))
    parser.add_argument(
        "--images", type=int, help="how many; all of LFW for agree, 64 for speed and floor, 500 for lfw, 8 for small"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--mtcnn", type=Path, default=DATA / "mtcnn", metavar="DIR", help="agree, speed: other networks, e.g. in INT8"
    )
    options = parser.parse_args()
    if options.question == "agree":
        with load_detector("mtcnn", model=options.mtcnn) as detector:
            answer = compare_with_reference(detector, DATA, limit=options.images)
    elif options.question == "small":
        answer = compare_small(DATA, images=options.images or 8)
    elif options.question == "lfw":
        answer = compare_lfw(DATA, images=options.images or 500)
    elif options.question == "floor":
        answer = measure_floor(DATA, rounds=options.rounds, images=options.images or 64)
    else:
        answer = compare_speed(DATA, options.mtcnn, rounds=options.rounds, images=options.images or 64)
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
