"""One program from photo files to embeddings, in its own process: JSON lines on stdin in, one line an answer out.

    python benchmarks/_end_to_end_worker.py '{"peer": "facenet-pytorch", "model": "weights.npz", "threads": 2, ...}'

The first line says what was loaded; then each ``{"photos": [...], "smallest": 40}`` is answered by the seconds that it
took, the faces of each photo, and this process's peak memory. ``"vectors": true`` asks for the embeddings too.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from _peers_worker import DATA, Setting, load
from numpy.typing import NDArray

YUNET = DATA / "yunet" / "yunet_n_dynamic.onnx"

Vectors = NDArray[np.float32]
Contender = Callable[[Sequence[str], int], list[Vectors]]
"""Photo files, and the side of the smallest face that they hold, to the embeddings (K, D) of each photo's faces."""

_MARGIN, _SIDE, _LONGEST = 32, 160, 640


def main() -> None:
    """Load what the argument says, then answer each line."""
    setting = Setting(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    version, make = _LOADERS[setting.peer](setting)
    contenders = [make() for _ in range(setting.workers)]
    print(json.dumps({"version": version}), file=answers)
    with ThreadPoolExecutor(setting.workers) as threads:
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(_answer(contenders, threads, asked)), file=answers)


def _answer(contenders: Sequence[Contender], threads: ThreadPoolExecutor, asked: dict[str, Any]) -> dict[str, Any]:
    photos, count = asked["photos"], len(contenders)
    wall, cpu = time.perf_counter(), time.process_time()
    parts = list(threads.map(lambda number: contenders[number](photos[number::count], asked["smallest"]), range(count)))
    spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    found = [parts[index % count][index // count] for index in range(len(photos))]
    vectors = {"vectors": [each.tolist() for each in found]} if asked.get("vectors") else {}
    return {**spent, "faces": [len(each) for each in found], "peak_mb": _peak_mb(), **vectors}


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _edgeface(setting: Setting) -> tuple[str, Callable[[], Contender]]:
    """Edgeface as a folder is embedded: photos are read and searched ahead while faces are embedded."""
    import openvino as ov

    import edgeface
    from edgeface.pipeline.pipeline import Pipeline
    from edgeface.runtime import Embedder
    from edgeface.vision.source import open_source

    embedder, name = Embedder.load(setting.model), setting.variant or "yunet"

    @functools.cache
    def pipeline(smallest: int) -> Pipeline:
        model = YUNET if name == "yunet" else None
        detector = edgeface.load_detector(name, model=model, min_size=smallest)  # type: ignore[arg-type]
        return Pipeline(detector, embedder, batch_size=setting.batch, prefetch=2)

    def work(photos: Sequence[str], smallest: int) -> list[Vectors]:
        with open_source([Path(photo) for photo in photos]) as frames:
            answers = pipeline(smallest).run(frames)
            return [_stack([face.embedding.vector for face in faces if face.embedding]) for _, faces in answers]

    precision = embedder.execution.precision
    return f"edgeface {edgeface.__version__}, OpenVINO {ov.__version__.split('-')[0]} {precision}, {name}", lambda: work


def _facenet_pytorch(setting: Setting) -> tuple[str, Callable[[], Contender]]:
    """facenet-pytorch's MTCNN, photos of one size in batches, and the network of the same weights, norms folded."""
    from importlib.metadata import version

    import torch
    from _peers_networks import torch_model

    _stand_in_for_torchvision()
    from facenet_pytorch import MTCNN

    torch.set_num_threads(setting.threads)
    with np.load(setting.model) as stored:
        net = torch_model({name: stored[name] for name in stored.files})

    def work(photos: Sequence[str], smallest: int) -> list[Vectors]:
        torch.set_num_threads(setting.threads)  # OpenMP keeps the number for each thread that calls
        found = list[Vectors]()
        detector = _mtcnn(MTCNN, smallest)
        with torch.inference_mode():
            for images in _batches(photos, setting.batch):
                faces = detector([image[..., ::-1].copy() for image in images])
                kept = [each for each in faces if each is not None]
                vectors = net(torch.cat(kept)).numpy() if kept else np.empty((0, 512), np.float32)
                ends = np.cumsum([0 if each is None else len(each) for each in faces])
                found += np.split(vectors, ends[:-1])
        return found

    return f"facenet-pytorch {version('facenet-pytorch')}, PyTorch {torch.__version__}", lambda: work


def _stand_in_for_torchvision() -> None:
    """Offer the two functions that facenet-pytorch uses: a wheel of torchvision works with one build of torch only."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    import torch

    from edgeface.vision.nms import nms

    def batched_nms(boxes: Any, scores: Any, groups: Any, most: float) -> Any:
        return torch.from_numpy(nms(boxes.numpy(), scores.numpy(), most, groups=groups.numpy().astype(np.intp)))

    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops")
    made = {name: types.ModuleType(name) for name in (*names, "torchvision.ops.boxes")}
    functions = made["torchvision.transforms.functional"]
    functions.to_tensor = lambda image: torch.from_numpy(image.transpose(2, 0, 1))  # type: ignore[attr-defined]
    made["torchvision.transforms"].functional = functions  # type: ignore[attr-defined]
    made["torchvision.ops.boxes"].batched_nms = batched_nms  # type: ignore[attr-defined]
    sys.modules.update(made)


@functools.cache
def _mtcnn(kind: Any, smallest: int) -> Any:
    return kind(image_size=_SIDE, margin=_MARGIN, min_face_size=smallest, keep_all=True, device="cpu")


def _tensorflow(setting: Setting) -> tuple[str, Callable[[], Contender]]:
    """The reference's MTCNN, which takes one photo at a time, and the published graph."""
    from mtcnn_tensorflow import TensorFlowMTCNN

    net, detector = load(setting), TensorFlowMTCNN(DATA / "mtcnn", threads=setting.threads)

    def work(photos: Sequence[str], smallest: int) -> list[Vectors]:
        found = []
        for photo in photos:
            image = _read(photo)
            boxes, _ = detector.detect(np.ascontiguousarray(image[..., ::-1]), minsize=smallest)
            found.append(_embed_boxes(net.embed, image, boxes[:, :4]))
        return found

    return net.version, lambda: work


def _opencv(setting: Setting) -> tuple[str, Callable[[], Contender]]:
    """OpenCV's YuNet on photos scaled as edgeface scales them, and FaceNet through `cv2.dnn`.

    The wheels read no IR, so the network is ONNX of the same weights.
    """
    cv2.setNumThreads(setting.threads)

    def make() -> Contender:
        net = cv2.dnn.readNetFromONNX(setting.model)
        detector = cv2.FaceDetectorYN.create(str(YUNET), "", (_LONGEST, _LONGEST), 0.7, 0.3)

        def embed(crops: NDArray[np.uint8]) -> Vectors:
            found = []
            for crop in crops:  # one network for batches of every size would be planned anew for each
                net.setInput(cv2.dnn.blobFromImage(crop, 1 / 128, mean=(127.5,) * 3, swapRB=True))
                found.append(net.forward()[0].copy())
            return np.stack(found)

        def work(photos: Sequence[str], smallest: int) -> list[Vectors]:
            found = []
            for photo in photos:
                image = _read(photo)
                scale = min(1.0, _LONGEST / max(image.shape[:2]))
                small = cv2.resize(image, None, fx=scale, fy=scale) if scale < 1 else image
                detector.setInputSize(small.shape[1::-1])
                _, faces = detector.detect(small)
                boxes = np.empty((0, 4)) if faces is None else faces[:, :4] / scale
                boxes = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
                found.append(_embed_boxes(embed, image, boxes[(boxes[:, 2] - boxes[:, 0]) >= smallest]))
            return found

        return work

    return f"OpenCV {cv2.__version__}", make


def _face_recognition(setting: Setting) -> tuple[str, Callable[[], Contender]]:
    """What face_recognition calls: HOG, which sees faces from 80 pixels on, five landmarks, dlib's network."""
    import dlib
    import face_recognition_models as models

    def make() -> Contender:
        detector = dlib.get_frontal_face_detector()
        points = dlib.shape_predictor(models.pose_predictor_five_point_model_location())
        net = dlib.face_recognition_model_v1(models.face_recognition_model_location())

        def work(photos: Sequence[str], smallest: int) -> list[Vectors]:
            found = []
            for photo in photos:
                image = np.ascontiguousarray(_read(photo)[..., ::-1])
                shapes = [points(image, box) for box in detector(image, int(smallest < 40))]
                vectors = [np.array(net.compute_face_descriptor(image, shape), np.float32) for shape in shapes]
                found.append(_stack(vectors))
            return found

        return work

    return f"dlib {dlib.__version__}, {'BLAS' if dlib.DLIB_USE_BLAS else 'no BLAS'}", make


def _read(photo: str) -> NDArray[np.uint8]:
    image = cv2.imread(photo)
    assert image is not None, photo
    return np.asarray(image, np.uint8)


def _batches(photos: Sequence[str], size: int) -> Any:
    """Up to so many photos of one size at a time."""
    batch: list[NDArray[np.uint8]] = []
    for photo in photos:
        image = _read(photo)
        if batch and (len(batch) == size or batch[0].shape != image.shape):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def _embed_boxes(embed: Callable[[Any], Any], image: NDArray[np.uint8], boxes: NDArray[Any]) -> Vectors:
    """Cut the boxes with their margin, as davidsandberg's alignment does, and embed the crops."""
    height, width = image.shape[:2]
    crops = []
    for x0, y0, x1, y1 in boxes:
        left, top = max(int(x0 - _MARGIN / 2), 0), max(int(y0 - _MARGIN / 2), 0)
        right, bottom = min(int(x1 + _MARGIN / 2), width), min(int(y1 + _MARGIN / 2), height)
        if left < right and top < bottom:
            crops.append(cv2.resize(image[top:bottom, left:right], (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR))
    return np.asarray(embed(np.stack(crops)), np.float32) if crops else _stack([])


def _stack(vectors: Sequence[Any]) -> Vectors:
    return np.stack(vectors).astype(np.float32) if vectors else np.empty((0, 1), np.float32)


_LOADERS: dict[str, Callable[[Setting], tuple[str, Callable[[], Contender]]]] = {
    "edgeface": _edgeface,
    "facenet-pytorch": _facenet_pytorch,
    "face_recognition": _face_recognition,
    "tensorflow": _tensorflow,
    "opencv": _opencv,
}


if __name__ == "__main__":
    main()
