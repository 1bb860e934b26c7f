"""Every reader of foreign files as a fuzz target: `python tests/fuzz_targets.py NAME [SECONDS]`, with atheris if there.

A target may refuse a file by an error of edgeface, and nothing else may leave it. What does is printed, each kind once,
as a line for `FINDINGS` in tests/unit/test_untrusted.py; the exit code is the number of kinds, at most 100.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import itertools
import json
import os
import pickle
import random
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.errors import EdgeFaceError

FIXTURES = Path(__file__).parent / "fixtures" / "0_1"
SLOW = 5.0  # seconds that a small file may take


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader of one format: what it reads, the name of its file, and small intact files to begin with."""

    read: Callable[[Path], Any]
    file: str
    seeds: Callable[[], list[bytes]]


def _of(module: str, name: str, *arguments: Any, **options: Any) -> Callable[[Path], Any]:
    """Return a reader by name: instrumented modules are imported when atheris is ready."""

    def read(path: Path) -> Any:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found(path, *arguments, **options)

    return read


def _stored(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [(FIXTURES / name).read_bytes() for name in names]


def _graph(path: Path) -> None:
    """Prune a graph that the bytes describe: as messages, hardly any bytes are one."""
    from edgeface.convert import messages, tensorflow

    numbers = itertools.chain(path.read_bytes(), itertools.repeat(0))

    def choose(*options: Any) -> Any:
        return options[next(numbers) % len(options)]

    made = messages.GraphDef()
    for _ in range(choose(*range(9))):
        node = made.node.add(name=choose(*_NAMES), op=choose(*_OPERATIONS))
        for _ in range(choose(*range(4))):
            name = choose(*_NAMES)
            node.input.append(choose("", "^", name, f"{name}:0", f"{name}:1", f"{name}:x", f"^{name}"))
        if choose(True, False):
            tensor = node.attr["value"].tensor
            tensor.dtype = choose(*range(21))
            for _ in range(choose(*range(4))):
                tensor.tensor_shape.dim.add(size=choose(0, 1, 2, -1, 64, 4096, 2**31, 2**62, -(2**63)))
            tensor.float_val.extend(choose([], [1]))
            tensor.bool_val.extend(choose([], [True]))
            tensor.tensor_content = choose(b"", b"12345678")
            node.attr["dtype"].type = choose(*range(13))
            node.attr["is_training"].b = choose(True, False)
            node.attr["shared_name"].s = choose(b"", b"a", b"\xdf")
    tensorflow._prune(path, tensorflow._GraphSource(made, {"a": np.zeros(3, np.float32)}, ""), (160, 160))


_NAMES = ("image_batch", "embeddings", "phase_train", "a", "b", "", "x:1")
_OPERATIONS = (
    *("Const", "Identity", "Switch", "Merge", "Placeholder", "PlaceholderWithDefault", "VariableV2", "LogicalNot"),
    *("FusedBatchNorm", "Add", "QueueDequeueV2", "PartitionedCall"),
)


def _frozen(path: Path) -> None:
    from edgeface.convert import tensorflow

    tensorflow._prune(path, tensorflow._read_source(path), (160, 160))


def _checkpoint(path: Path) -> None:
    from edgeface.convert.checkpoint import read_checkpoint

    (path.parent / "m.data-00000-of-00001").write_bytes(bytes(64))
    read_checkpoint(path.with_suffix(""))


def _dlib(path: Path) -> None:
    from edgeface.convert.dlib import load_dlib
    from edgeface.convert.recipe import Recipe
    from edgeface.model.contract import Alignment

    mean = (122.782, 117.001, 104.298)
    load_dlib(path, Recipe(name="tiny", mean=mean, scale=(256.0,) * 3, alignment=Alignment("none")))


def _export(path: Path) -> None:
    from edgeface.gallery import transfer

    transfer._described(path, transfer.unpack(path, None))


def _unpacked(path: Path, *, format: Any) -> None:
    from edgeface.zoo.archive import unpack

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unpack(path, Path(folder), format=format)


def _row(path: Path) -> None:
    """Decode one of the bodies of a gallery's rows, or a header, which the first byte chooses."""
    from edgeface.gallery import codec

    content = path.read_bytes()
    decoders: list[Callable[[bytes], Any]] = [
        lambda body: codec.GalleryHeader.decode(body.decode("utf-8", "replace")),
        codec.PersonBody.decode,
        lambda body: codec.TemplateBody.decode(body, 8),
        codec.decode_image,
    ]
    decoders[(content or b"\0")[0] % 4](content[1:])


def _sealed(path: Path) -> None:
    from edgeface.cipher import header_of
    from edgeface.runtime.encryption import open_ir
    from edgeface.untrusted import DOCUMENT_BYTES, read_regular

    with contextlib.suppress(EdgeFaceError):
        header_of(read_regular(path, limit=DOCUMENT_BYTES))
    open_ir(path, bytes(32))


def _contract(path: Path) -> None:
    """Read a contract of which one field has the bytes as its text."""
    from contracts import sample_contract

    from edgeface.model.contract import ModelContract
    from edgeface.model.stored import RT_INFO_KEY

    class Model:
        rt_info: dict[str, Any]

        def set_rt_info(self, stored: Any, key: Any) -> None:
            if key == RT_INFO_KEY:
                self.rt_info = {RT_INFO_KEY: stored}

        def has_rt_info(self, place: Any) -> bool:
            return place[-1] in self.rt_info[RT_INFO_KEY]

        def get_rt_info(self, place: Any) -> Any:
            return np.array(self.rt_info[RT_INFO_KEY][place[-1]])

    content, model = path.read_bytes() or b"\0", Model()
    sample_contract().write_to(model)
    stored = model.rt_info[RT_INFO_KEY]
    stored[sorted(stored)[content[0] % len(stored)]] = content[1:].decode("utf-8", "replace")
    ModelContract.read_from(model)


def _parquet(path: Path) -> None:
    if importlib.util.find_spec("pyarrow"):
        _of("edgeface.pipeline.table", "EmbeddingTable.load")(path)


def _pb() -> list[bytes]:
    from tiny_graphs import tiny_facenet

    return [tiny_facenet().message.SerializeToString(deterministic=True)]


def _index() -> list[bytes]:
    from tiny_graphs import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder, "m"), {"weights": np.ones((3, 4), np.float32)}, checksums=False)
        return [Path(folder, "m.index").read_bytes()]


def _net() -> list[bytes]:
    from dlib_files import small_net

    return [small_net().to_bytes()]


def _onnx() -> list[bytes]:
    if not importlib.util.find_spec("onnx"):
        return [b""]
    from tiny_onnx import write_arcface

    with tempfile.TemporaryDirectory() as folder:
        return [write_arcface(Path(folder, "m.onnx"), size=16).read_bytes()]


def _minifasnet() -> list[bytes]:
    from minifasnet_files import state_of_minifasnet
    from torch_states import write_legacy

    with tempfile.TemporaryDirectory() as folder:
        return [
            write_legacy(Path(folder, "m.pth"), state_of_minifasnet(se=se, size=32)).read_bytes()
            for se in (False, True)
        ]


def _torch() -> list[bytes]:
    from torch_states import write_legacy, write_zip

    state = {"a.weight": np.ones((2, 3), np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        return [write(Path(folder, "m.pt"), state).read_bytes() for write in (write_zip, write_legacy)]


def _npy() -> list[bytes]:
    file = io.BytesIO()
    np.save(file, np.ones((2, 3), np.float32))
    return [file.getvalue()]


def _exports() -> list[bytes]:
    with zipfile.ZipFile(FIXTURES / "galleries.zip") as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith(".export")][:2] or [b"PK"]


def _archives(kind: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "in").mkdir()
        Path(folder, "in", "a.txt").write_bytes(b"a" * 600)
        return [Path(shutil.make_archive(f"{folder}/a", kind, f"{folder}/in")).read_bytes()]


def _head() -> list[bytes]:
    from edgeface.train.classify import TrainedHead

    weights, bias = np.eye(2, 3, dtype=np.float32), np.zeros(2, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "head.npz")
        TrainedHead(labels=("Ann", "Bob"), weights=weights, bias=bias, contract_id="0" * 16).save(path)
        return [path.read_bytes()]


def _training(path: Path) -> None:
    from edgeface.train.archive import import_training

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        import_training(path, Path(folder, "there"))


def _trainings() -> list[bytes]:
    """An archive whose IR is none, and one without a manifest."""
    files = {"head.npz": _head()[0], "m.xml": b'<net name="a" version="11"><layers/><edges/></net>', "m.bin": b""}
    told = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"manifest.json": json.dumps({"schema_version": 1, "files": told}).encode()}
    made = []
    for members in (manifest | files, files):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for name, member in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(member)
                archive.addfile(info, io.BytesIO(member))
        made.append(content.getvalue())
    return made


def _rows() -> list[bytes]:
    person = {"name": "Ann", "labels": [], "metadata": {}, "created": "2026-01-01T00:00:00+00:00"}
    return [b"\1" + json.dumps(person).encode(), b"\2" + bytes(48 + 32), b"\3" + bytes(80)]


def _kserve(path: Path) -> None:
    """Read a request of KServe V2, with the length of its JSON in two bytes before it, and encode its inputs."""
    from edgeface.serve.tensors import InferAnswer, decode_request, encode_answer

    content = path.read_bytes()
    request = decode_request(content[2:], int.from_bytes(content[:2], "big") or None)
    if request.outputs is None:
        encode_answer(InferAnswer(model="m", version="1", outputs=request.inputs), request)


def _requests() -> list[bytes]:
    raw = b'{"inputs":[{"name":"a","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":6}}]}'
    return [
        b'\0\0{"id":"1","inputs":[{"name":"a","datatype":"FP64","shape":[2,1],"data":[[1],[2e9]]}],"outputs":[]}',
        len(raw).to_bytes(2, "big") + raw + b"\2\0\0\0ab",
    ]


TARGETS = {
    "catalog": Target(read=_of("edgeface.zoo.catalog", "load_catalog"), file="z.yml", seeds=_stored("zoo/catalog.yml")),
    "model-yml": Target(
        read=_of("edgeface.zoo.catalog", "load_model_yml"),
        file="model.yml",
        seeds=lambda: [b"description: x\ntask_type: y\nfiles:\n  - name: a\n    size: 1\n    sha256: b\n"],
    ),
    "recipe": Target(
        read=_of("edgeface.convert.recipe", "read_recipe"),
        file="r.yml",
        seeds=lambda: [b"size: 112\ncolor: RGB\nmean: [1, 2, 3]\nscale: 128\nalignment: none\n"],
    ),
    "thresholds": Target(
        read=_of("edgeface.recognize.threshold", "load_thresholds"),
        file="t.json",
        seeds=_stored("thresholds/cosine.json"),
    ),
    "plan": Target(
        read=_of("edgeface.runtime.plan", "DevicePlan.read"), file="p.json", seeds=_stored("bench/plan.json")
    ),
    "result": Target(
        read=_of("edgeface.bench.compare.comparable", "read_any"),
        file="r.json",
        seeds=_stored("bench/offline/result.json", "bench/benchmark_app-cpp.json"),
    ),
    "pairs": Target(
        read=_of("edgeface.evaluate.pairs", "read_pairs"), file="p.txt", seeds=_stored("brought/pairs.txt")
    ),
    "boxes": Target(
        read=_of("edgeface.evaluate.faces", "load_boxes"), file="b.npz", seeds=_stored("brought/boxes.npz")
    ),
    "golden": Target(
        read=_of("edgeface.convert.parity", "load_golden"), file="g.npz", seeds=_stored("brought/golden.npz")
    ),
    "table": Target(
        read=_of("edgeface.pipeline.table", "EmbeddingTable.load"), file="t.npz", seeds=_stored("tables/crops.npz")
    ),
    "parquet": Target(read=_parquet, file="t.parquet", seeds=_stored("tables/crops.parquet")),
    "encodings-npy": Target(read=_of("edgeface.gallery.encodings", "read_encodings"), file="e.npy", seeds=_npy),
    "encodings-json": Target(
        read=_of("edgeface.gallery.encodings", "read_encodings"),
        file="e.json",
        seeds=lambda: [json.dumps({"names": ["Ann"], "encodings": [[0.1] * 128]}).encode()],
    ),
    "encodings-pickle": Target(
        read=_of("edgeface.gallery.encodings", "read_encodings"),
        file="e.pkl",
        seeds=lambda: [
            pickle.dumps({"names": ["Ann"], "encodings": [np.ones(128)]}, protocol) for protocol in range(6)
        ],
    ),
    "torch": Target(read=_of("edgeface.torch_file", "read_torch"), file="m.pt", seeds=_torch),
    "minifasnet": Target(
        read=_of("edgeface.convert.minifasnet", "load_minifasnet", size=(32, 32), classes=3),
        file="m.pth",
        seeds=_minifasnet,
    ),
    "graph": Target(read=_graph, file="g.bin", seeds=lambda: [b"\0"]),
    "frozen": Target(read=_frozen, file="m.pb", seeds=_pb),
    "checkpoint": Target(read=_checkpoint, file="m.index", seeds=_index),
    "onnx": Target(read=_of("edgeface.convert.onnx", "_read", None), file="m.onnx", seeds=_onnx),
    "dlib": Target(read=_dlib, file="m.dat", seeds=_net),
    "csv": Target(read=_of("edgeface.convert.openface", "read_csv", 3), file="a.csv", seeds=lambda: [b"1.5,2,-3e4\n"]),
    "zip": Target(read=partial(_unpacked, format="zip"), file="a.zip", seeds=partial(_archives, "zip")),
    "tar": Target(read=partial(_unpacked, format="tar"), file="a.tar", seeds=partial(_archives, "tar")),
    "gztar": Target(read=partial(_unpacked, format="gztar"), file="a.tgz", seeds=partial(_archives, "gztar")),
    "bundle": Target(read=_of("edgeface.zoo.bundle", "read_manifest"), file="b.tar", seeds=_stored("zoo/models.tar")),
    "export": Target(read=_export, file="g.export", seeds=_exports),
    "head": Target(read=_of("edgeface.train.classify", "TrainedHead.load"), file="head.npz", seeds=_head),
    "training": Target(read=_training, file="t.tar", seeds=_trainings),
    "rows": Target(read=_row, file="row.bin", seeds=_rows),
    "sealed": Target(read=_sealed, file="m.sealed", seeds=_stored("models/tiny.sealed")),
    "kserve": Target(read=_kserve, file="request.bin", seeds=_requests),
    "contract": Target(read=_contract, file="c.bin", seeds=lambda: [bytes([n]) + b"[1, 2]" for n in range(24)]),
}


def attempt(name: str, content: bytes, folder: Path) -> Exception | None:
    """Give one file to a target; return what left it, other than an error of edgeface."""
    target, path = TARGETS[name], folder / TARGETS[name].file
    path.write_bytes(content)
    started = time.process_time()
    try:
        target.read(path)
    except EdgeFaceError:
        pass
    except Exception as error:
        return error
    if (took := time.process_time() - started) > SLOW:
        return TimeoutError(f"{took:.1f} s")
    return None


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change, repeat, remove or insert bytes at a few places; cut one in five."""
    data = bytearray(content or b"\0")
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at, length = rng.randrange(len(data)), rng.choice([1, 1, 2, 4, 8, 64])
        part = data[at : at + length]
        new = rng.choice(
            [rng.randbytes(length), part * rng.choice([2, 9]), b"", b"\xff" * length, rng.choice(_WORDS), part[::-1]]
        )
        data[at : at + length] = new
        data = data or bytearray(b"\0")
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)


_WORDS = [
    b"[" * 2000,
    b"9" * 500,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b'"\\ud800"',
    b"{}",
    b"\xff\xfe",
    b"&a [*a]",
    b"0x",
]


class _Hunt:
    """Runs a target on one content after another; prints each kind of what leaves it once."""

    def __init__(self, name: str) -> None:
        self.name, self.kinds, self.runs = name, set[tuple[Any, ...]](), 0
        shared = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="edgeface-fuzz-", dir=shared if shared.is_dir() else None))

    def run(self, content: bytes) -> None:
        self.runs += 1
        if (error := attempt(self.name, content, self.folder)) is None:
            return
        frames = [each for each in traceback.extract_tb(error.__traceback__) if "/edgeface/" in each.filename]
        kind = (type(error).__name__, *((frames[-1].filename, frames[-1].lineno) if frames else ()))
        if kind not in self.kinds:
            self.kinds.add(kind)
            print(f"# {kind} {str(error)[:100]!r}\n({self.name!r}, {content!r}),", flush=True)


def _run_atheris(hunt: _Hunt, seeds: list[bytes], seconds: float) -> int:
    """Run atheris in a process of its own, which it ends; return how that ended, 0 if it found nothing."""
    import atheris

    corpus = hunt.folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    if not (child := os.fork()):
        with atheris.instrument_imports(include=["edgeface"]):
            hunt.run(seeds[0])  # imports what it reads with

        def run(content: bytes) -> None:
            hunt.run(content)
            if hunt.kinds:
                (hunt.folder / "found").touch()

        options = [f"-max_total_time={max(1, int(seconds))}", "-verbosity=0", "-rss_limit_mb=3000", "-max_len=65536"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], run)
        atheris.Fuzz()
    _, status = os.waitpid(child, 0)
    return status or (hunt.folder / "found").exists()


def main(name: str, seconds: float) -> int:
    """Run a target; print what leaves it."""
    hunt, seeds, rng = _Hunt(name), TARGETS[name].seeds(), random.Random(0)
    try:
        if importlib.util.find_spec("atheris"):  # it has no wheel for every Python
            seconds /= 2
            if status := _run_atheris(hunt, seeds, seconds):
                hunt.kinds.add(("atheris", status))
        end = time.monotonic() + seconds
        for seed in seeds:
            hunt.run(seed)
        while time.monotonic() < end:
            hunt.run(mutate(rng.choice(seeds), rng))
    finally:
        shutil.rmtree(hunt.folder, ignore_errors=True)
    print(f"# {name}: {hunt.runs:,} mutations, {len(hunt.kinds)} kinds", flush=True)
    return min(len(hunt.kinds), 100)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 30))
