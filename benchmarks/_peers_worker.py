"""One peer with one setting in its own process: commands on stdin in, one JSON line an answer on stdout out.

    python benchmarks/_peers_worker.py '{"peer": "onnxruntime", "model": "facenet.onnx", "threads": 2, ...}'

The first line says what was loaded; then every line with a number of seconds is answered by what was done in them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Setting", "load"]

DATA = Path(os.environ.get("EDGEFACE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

Crops = NDArray[np.uint8]
Infer = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a peer is run.

    Attributes
    ----------
    peer
        ``edgeface``, ``onnxruntime``, ``tensorflow``, ``pytorch`` or ``dlib``.
    model
        Its file: IR, ONNX, frozen graph, the weights for PyTorch, or dlib's .dat.
    workers
        Calls at the same time; streams for edgeface.
    threads
        Of one call: intra-op threads; for edgeface of all streams together.
    batch
        Images a call.
    variant
        ``channels-last`` for PyTorch; ``fed`` for TensorFlow, which then decides about `phase_train` as it runs;
        ``f32`` for edgeface, whose default precision is the device's.
    """

    peer: str
    model: str
    workers: int
    threads: int
    batch: int = 1
    variant: str = ""


class Peer:
    """A loaded network: how a batch is prepared, what embeds it, and which release it is."""

    def __init__(self, version: str, prepare: Callable[[Crops], Any], infer: Infer) -> None:
        self.version = version
        self._prepare, self._infer = prepare, infer

    def embed(self, crops: Crops) -> NDArray[np.float32]:
        """(N, H, W, 3) uint8 BGR to (N, 512) float32."""
        return np.asarray(self._infer(self._prepare(crops)), np.float32)

    def run(self, setting: Setting, crops: Crops, seconds: float) -> int:
        """Call it from `workers` threads on inputs that are ready; the number of images that were embedded."""
        batches = [
            self._prepare(np.resize(np.roll(crops, -worker, axis=0), (setting.batch, *crops.shape[1:])))
            for worker in range(setting.workers)
        ]
        done = [0] * setting.workers
        end = time.perf_counter() + seconds

        def work(worker: int) -> None:
            while time.perf_counter() < end:
                self._infer(batches[worker])
                done[worker] += setting.batch

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(setting.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done)


class EdgefacePeer(Peer):
    """Edgeface with its own engine, which takes the crops as they are."""

    def __init__(self, setting: Setting) -> None:
        import openvino as ov

        from edgeface.runtime import Embedder, default_plan

        buckets = tuple(sorted({1, setting.batch}))
        plan = default_plan("CPU", streams=setting.workers, threads=setting.threads, batch_buckets=buckets)
        plan = dataclasses.replace(plan, precision=setting.variant or plan.precision)
        self._embedder = Embedder.load(setting.model, plan=plan)
        precision = self._embedder.execution.precision
        super().__init__(
            f"OpenVINO {ov.__version__.split('-')[0]} {precision}", lambda crops: crops, self._embedder.embed
        )

    def run(self, setting: Setting, crops: Crops, seconds: float) -> int:
        done, end = 0, time.perf_counter() + seconds
        for _ in self._embedder.map(itertools.takewhile(lambda _: time.perf_counter() < end, itertools.cycle(crops))):
            done += 1
        return done


def load(setting: Setting) -> Peer:
    """Load a peer."""
    return _LOADERS[setting.peer](setting)


def _onnxruntime(setting: Setting) -> Peer:
    import onnxruntime
    from _peers_int8 import standardised
    from _peers_networks import INPUT, OUTPUT

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = setting.threads, 1
    session = onnxruntime.InferenceSession(setting.model, options, providers=["CPUExecutionProvider"])
    version = f"ONNX Runtime {onnxruntime.__version__}"
    return Peer(version, standardised, lambda x: session.run([OUTPUT], {INPUT: x})[0])


def _tensorflow(setting: Setting) -> Peer:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    from _peers_int8 import standardised

    definition = tf.compat.v1.GraphDef.FromString(Path(setting.model).read_bytes())
    with tf.Graph().as_default() as graph:
        constant = {} if setting.variant == "fed" else {"phase_train:0": tf.constant(False)}
        tf.import_graph_def(definition, input_map=constant, name="")
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=setting.threads, inter_op_parallelism_threads=max(1, setting.workers)
    )
    session = tf.compat.v1.Session(graph=graph, config=config)
    fed = ["image_batch:0", "phase_train:0"] if setting.variant == "fed" else ["image_batch:0"]
    call = session.make_callable("embeddings:0", feed_list=fed)
    last = [False] * (len(fed) - 1)

    def prepare(crops: Crops) -> Any:
        return np.ascontiguousarray(standardised(crops).transpose(0, 2, 3, 1))

    return Peer(f"TensorFlow {tf.__version__}", prepare, lambda x: call(x, *last))


def _pytorch(setting: Setting) -> Peer:
    import torch
    from _peers_int8 import standardised
    from _peers_networks import torch_model

    torch.set_num_threads(setting.threads)
    with np.load(setting.model) as stored:
        net = torch_model({name: stored[name] for name in stored.files})
    form = torch.channels_last if setting.variant == "channels-last" else torch.contiguous_format
    net = net.to(memory_format=form)

    def infer(x: Any) -> Any:
        torch.set_num_threads(setting.threads)  # OpenMP keeps the number for each thread that calls
        with torch.inference_mode():
            return net(x).numpy()

    def prepare(crops: Crops) -> Any:
        return torch.from_numpy(standardised(crops)).contiguous(memory_format=form)

    return Peer(f"PyTorch {torch.__version__} eager", prepare, infer)


def _dlib(setting: Setting) -> Peer:
    import dlib

    own = threading.local()  # a network of dlib belongs to one thread at a time

    def infer(chips: Any) -> Any:
        if not hasattr(own, "net"):
            own.net = dlib.face_recognition_model_v1(setting.model)
        return own.net.compute_face_descriptor(chips)

    blas = "BLAS" if dlib.DLIB_USE_BLAS else "no BLAS"
    return Peer(f"dlib {dlib.__version__}, {blas}", lambda crops: list(np.ascontiguousarray(crops[..., ::-1])), infer)


def crops_for(setting: Setting) -> Crops:
    """Real faces of the size of this network: (N, H, W, 3) uint8 BGR."""
    dlib = Path(setting.model).name.startswith("dlib")
    path, key = ("dlib", "chips") if dlib else ("facenet-20180408-102900", "images")
    with np.load(DATA / path / "golden.npz") as golden:
        return np.ascontiguousarray(golden[key][:24, ..., ::-1])


_LOADERS: dict[str, Callable[[Setting], Peer]] = {
    "edgeface": EdgefacePeer,
    "onnxruntime": _onnxruntime,
    "tensorflow": _tensorflow,
    "pytorch": _pytorch,
    "dlib": _dlib,
}


def main() -> None:
    """Load what the argument says, then run whenever a number of seconds is read."""
    setting = Setting(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    crops = crops_for(setting)
    peer = load(setting)
    peer.run(setting, crops, 0.5)
    print(json.dumps({"version": peer.version, **dataclasses.asdict(setting)}), file=answers)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        images = peer.run(setting, crops, float(line))
        spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps({"images": images, **spent}), file=answers)


if __name__ == "__main__":
    main()
