"""What foreign files may cost: a bomb for every format, no device or pipe, and no error but edgeface's own."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib.util
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_targets
import numpy as np
import pytest
import tiny_graphs
from dlib_files import integer, small_net
from fuzz_targets import TARGETS, attempt

from edgeface.convert.messages import BundleEntry, BundleHeader, GraphDef, set_shape
from edgeface.convert.tensorflow import load_tensorflow
from edgeface.errors import ArchiveError, ConversionError, EdgeFaceError, InputError
from edgeface.files import sha256_of
from edgeface.gallery.keys import read_key
from edgeface.untrusted import DEEPEST, DOCUMENT_BYTES, parse_json, parse_npy, read_json, reading

MOST = 200 << 20  # bytes that refusing a bomb may take, pyarrow and its threads among them


def peak_of(read: Callable[[], Any]) -> int:
    """Return by how many bytes this process grew at most while `read` ran."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = _status("VmRSS")
    read()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def deflated(*members: tuple[str, bytes, int], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Zip members of (name, start, zeros after it)."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind, compresslevel=1) as archive:
        for name, start, zeros in members:
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(start)
                for _ in range(zeros >> 20):
                    member.write(bytes(1 << 20))
    return content.getvalue()


def npy_header(*shape: int, descr: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def nested_aliases(levels: int = 8) -> str:
    text = "&b0 [x,x,x,x,x,x,x,x,x,x]"
    for level in range(1, levels + 1):
        text = f"&b{level} [{text}," + ",".join([f"*b{level - 1}"] * 9) + "]"
    return text


def merged_aliases(levels: int = 30) -> str:
    lines = ["x0: &x0 {a: 1}"] + [f"x{n}: &x{n} {{<<: [*x{n - 1}, *x{n - 1}]}}" for n in range(1, levels)]
    return "\n".join(lines)


def tar_header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("a")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def gzipped_header(kind: bytes, filler: bytes) -> bytes:
    """A member that stands before another one, and holds 128 MiB of its name or its pax records."""
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=1) as file:
        file.write(tar_header(kind, 128 << 20))
        for _ in range(128):
            file.write(filler * ((1 << 20) // len(filler)))
        file.write(tar_header(tarfile.REGTYPE, 0) + bytes(1024))
    return content.getvalue()


def sparse_map() -> bytes:
    """A sparse file's map of 128 MiB, as a pax header announces it."""
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=1) as file:
        member = tarfile.TarInfo("a")
        member.size = 128 << 20
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
        file.write(member.tobuf(tarfile.PAX_FORMAT))
        file.write(b"99999999\n")
        for _ in range(128):
            file.write(b"0\n" * (1 << 19))
    return content.getvalue()


def graph_of(*shapes: tuple[int, ...]) -> bytes:
    """A graph that adds constants to its image, each of a shape and one value."""
    graph = tiny_graphs.Graph()
    y = graph.image()
    for number, shape in enumerate(shapes):
        constant = graph.message.node.add(name=f"c{number}", op="Const")
        tensor = constant.attr["value"].tensor
        tensor.dtype = constant.attr["dtype"].type = 1
        tensor.float_val.append(1)
        set_shape(tensor.tensor_shape, shape)
        y = graph.node("embeddings" if number == len(shapes) - 1 else f"add{number}", "Add", y, f"c{number}", T=1)
    return graph.message.SerializeToString()


def truths_of(count: int) -> bytes:
    """A graph of `count` times the same truth: what each operation is told is part of a model's identity."""
    graph = tiny_graphs.Graph()
    constant = graph.message.node.add(name="truths", op="Const")
    tensor = constant.attr["value"].tensor
    tensor.dtype = constant.attr["dtype"].type = 10
    tensor.bool_val.append(True)
    set_shape(tensor.tensor_shape, (count,))
    graph.node("embeddings", "Add", graph.image(), "truths", T=1)
    return graph.message.SerializeToString()


def index_of(header: Any, *entries: tuple[bytes, Any]) -> bytes:
    made = [(b"", header.SerializeToString()), *((name, entry.SerializeToString()) for name, entry in entries)]
    return tiny_graphs._table(made)


def shared_values(count: int) -> bytes:
    entry = BundleEntry(dtype=1, offset=0, size=64)
    set_shape(entry.shape, (16,))
    return index_of(BundleHeader(num_shards=1), *((f"v{n:06}".encode(), entry) for n in range(count)))


def parquet_of_zeros() -> bytes:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows, dim = 1 << 18, 128  # 128 MiB
    zeros = arrow.array(np.zeros(rows * dim, np.float32))
    columns = {name: np.zeros(rows, kind) for name, kind in (("modified", "i8"), ("faces", "i4"), ("scores", "f4"))}
    made = {name: arrow.array(values) for name, values in columns.items()}
    made |= {
        "paths": arrow.array(["a"] * rows),
        "boxes": arrow.FixedSizeListArray.from_arrays(arrow.array(np.zeros(rows * 4, np.float32)), 4),
        "vectors": arrow.FixedSizeListArray.from_arrays(zeros, dim),
    }
    file = io.BytesIO()
    parquet.write_table(arrow.table(made).replace_schema_metadata({"contract_id": "c" * 16, "settings": "{}"}), file)
    return file.getvalue()


def onnx_of(*dims: int) -> bytes:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=dims, float_data=[1.0])
    node = onnx.helper.make_node("Add", ["image", "w"], ["y"])
    return bytes(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [tensor])).SerializeToString())


def huge_samples() -> bytes:
    stored = json.loads((fuzz_targets.FIXTURES / "bench/offline/result.json").read_text())
    stored["samples"]["count"] = 1 << 26
    return json.dumps(stored).encode()


def enveloped(size: int) -> bytes:
    return b"EDGEFACE" + struct.pack("<BI", 1, size) + b"{}"


ZEROS = 96 << 20
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "aliases for the models": ("catalog", lambda: f"schema_version: 1\nmodels: {nested_aliases()}".encode()),
    "aliases for a model": ("catalog", lambda: f"schema_version: 1\nmodels:\n  m: {nested_aliases()}".encode()),
    "aliases for the version": ("catalog", lambda: f"models: {{}}\nschema_version: {nested_aliases()}".encode()),
    "aliases for a field": ("model-yml", lambda: f"description: {nested_aliases()}".encode()),
    "aliases in a recipe": ("recipe", lambda: f"size: {nested_aliases()}".encode()),
    "aliases that are merged": ("recipe", lambda: merged_aliases().encode()),
    "an alias in its anchor": ("recipe", lambda: b"size: &a [*a]"),
    "a number in base 60": ("recipe", lambda: b"size: 1" + b":1" * 200_000),
    "lists in lists": ("thresholds", lambda: b"[" * 200_000),
    "lists in lists of a plan": ("plan", lambda: b"[" * 990 + b"]" * 990),
    "a result's samples": ("result", huge_samples),
    "a long number": ("plan", lambda: b'{"streams": ' + b"9" * 4000 + b"}"),
    "an array of an .npz": ("table", lambda: deflated(("vectors.npy", npy_header(ZEROS // 4), ZEROS))),
    "an array of no values": ("boxes", lambda: deflated(("boxes.npy", npy_header(1 << 40), 0))),
    "golden images": ("golden", lambda: deflated(("images.npy", npy_header(ZEROS // 4), ZEROS))),
    "an .npy of no values": ("encodings-npy", lambda: npy_header(1 << 40)),
    "empty texts": ("encodings-npy", lambda: npy_header(1 << 40, descr="<U0")),
    "a parquet of zeros": ("parquet", parquet_of_zeros),
    "a zip of zeros": ("zip", lambda: deflated(("a", b"", 512 << 20))),
    "a zip of bzip2": ("zip", lambda: deflated(("a", b"", ZEROS), kind=zipfile.ZIP_BZIP2)),
    "a zip of lzma": ("zip", lambda: deflated(("a", b"", ZEROS), kind=zipfile.ZIP_LZMA)),
    "a long name": ("gztar", lambda: gzipped_header(tarfile.GNUTYPE_LONGNAME, b"a")),
    "a long link": ("gztar", lambda: gzipped_header(tarfile.GNUTYPE_LONGLINK, b"a")),
    "pax records": ("gztar", lambda: gzipped_header(tarfile.XHDTYPE, b"16 a=bbbbbbbbbb\n")),
    "global pax records": ("gztar", lambda: gzipped_header(tarfile.XGLTYPE, b"16 a=bbbbbbbbbb\n")),
    "a map of a sparse file": ("gztar", sparse_map),
    "a constant of a graph": ("frozen", lambda: graph_of((1 << 29,))),
    "a constant that wraps": ("frozen", lambda: graph_of((1 << 62, 16))),
    "constants of a graph": ("frozen", lambda: graph_of(*[(1 << 22,)] * 40)),
    "true values of a graph": ("frozen", lambda: truths_of(1 << 25)),
    "files of a checkpoint": ("checkpoint", lambda: index_of(BundleHeader(num_shards=2**31 - 1))),
    "variables of a checkpoint": ("checkpoint", lambda: shared_values(1000)),
    "a tensor of an .onnx": ("onnx", lambda: onnx_of(1 << 20, 1 << 20)),
    "a pickle in a .pt": ("torch", lambda: deflated(("m/data.pkl", b"", ZEROS))),
    "a tensor of a dlib network": ("dlib", lambda: small_net().to_bytes().replace(integer(8), integer(1 << 30))),
    "a header of a sealed file": ("sealed", lambda: enveloped(2**32 - 1)),
    "a vector of a gallery": ("rows", lambda: b"\0" + json.dumps({**HEADER, "dim": 10**12}).encode()),
    "a gallery's export": ("export", lambda: deflated(("vectors.npy", npy_header(ZEROS // 4), ZEROS))),
}
HEADER = {
    **dict.fromkeys(("gallery_id", "contract_id", "metric", "model", "key_id"), "a"),
    "dim": 8,
    "created": "2026-01-01T00:00:00+00:00",
    "keeps_images": False,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_that_expands_is_refused_before_it_does(tmp_path: Path, bomb: str) -> None:
    name, make = BOMBS[bomb]
    path = tmp_path / TARGETS[name].file
    path.write_bytes(make())
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(64))
    refused: list[EdgeFaceError] = []

    def read() -> None:
        with pytest.raises(EdgeFaceError) as raised:
            TARGETS[name].read(path)
        refused.append(raised.value)

    assert peak_of(read) < MOST
    assert refused[0].exit_code == 2
    assert len(str(refused[0])) < 2000


def filling(graph: tiny_graphs.Graph, image: str) -> str:
    sides = graph.constant("sides", np.array([1 << 29], np.int32))
    big = graph.node("big", "Fill", sides, graph.constant("one", np.float32(1)), T=1)
    total = graph.node("sum", "Sum", big, graph.constant("axis0", np.array([0], np.int32)), T=1, Tidx=3)
    return graph.node("plus", "Add", image, total, T=1)


def padding(graph: tiny_graphs.Graph, image: str) -> str:
    return graph.node("pad", "Pad", image, graph.constant("sides", np.full((4, 2), 1 << 14, np.int32)), T=1)


@pytest.mark.parametrize("grow", [filling, padding])
def test_a_graph_that_computes_huge_tensors_is_refused_before_it_does(tmp_path: Path, grow: Callable[..., str]) -> None:
    graph = tiny_graphs.Graph()
    graph.embed(grow(graph, graph.image()), graph.constant("weights", tiny_graphs.dense_weights()))
    path = graph.write(tmp_path / "m.pb")

    def read() -> None:
        with pytest.raises(ConversionError):
            load_tensorflow(path, size=(tiny_graphs.SIZE, tiny_graphs.SIZE))

    assert peak_of(read) < MOST


@pytest.mark.parametrize("name", ["table", "boxes", "golden"])
@pytest.mark.slow
def test_an_array_that_nobody_asks_for_is_not_unpacked(tmp_path: Path, name: str) -> None:
    (stored,) = TARGETS[name].seeds()
    content = io.BytesIO(stored)
    with (
        zipfile.ZipFile(content, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("junk.npy", "w", force_zip64=True) as junk,
    ):
        junk.write(npy_header(512 << 20, descr="|u1"))
        for _ in range(512):
            junk.write(bytes(1 << 20))
    path = tmp_path / TARGETS[name].file
    path.write_bytes(content.getvalue())

    assert peak_of(lambda: TARGETS[name].read(path)) < MOST


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    content = bytearray(deflated(("vectors.npy", npy_header(4), ZEROS)))
    directory = content.rindex(b"PK\x01\x02")
    assert struct.unpack_from("<I", content, directory + 24)[0] > ZEROS
    content[directory + 24 : directory + 28] = struct.pack("<I", 200)
    (tmp_path / "t.npz").write_bytes(content)

    def read() -> None:
        with pytest.raises(InputError, match=r"expected 200 bytes|Bad CRC-32"):
            TARGETS["table"].read(tmp_path / "t.npz")

    assert peak_of(read) < MOST


@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"graph", "rows", "contract", "kserve"}))
def test_a_file_larger_than_its_format_is_refused_unread(tmp_path: Path, name: str) -> None:
    path = tmp_path / TARGETS[name].file
    with path.open("wb") as file:
        file.truncate(1 << 42)

    def read() -> None:
        with contextlib.suppress(EdgeFaceError) if name == "tar" else pytest.raises(EdgeFaceError):  # an empty one
            TARGETS[name].read(path)

    assert peak_of(read) < MOST


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", sorted(set(TARGETS) - {"graph", "rows", "contract", "kserve"}))
def test_a_pipe_in_place_of_a_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / TARGETS[name].file
    os.mkfifo(path)

    with pytest.raises(EdgeFaceError):
        TARGETS[name].read(path)


@pytest.mark.timeout(20)
def test_no_digest_of_a_pipe_or_a_device_is_begun(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="expected a regular file"):
            sha256_of(path)


def test_of_a_key_file_without_an_end_a_page_is_read() -> None:
    with pytest.raises(InputError, match="found 4096 bytes of something else"):
        read_key("file:/dev/zero", beside=None)


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_json_is_as_deep_as_its_bound(opened: str) -> None:
    closed = {"[": "]", '{"a":': "}"}[opened]

    def nested(levels: int) -> str:
        return opened * levels + ("" if opened == "[" else "1") + closed * levels

    assert parse_json(nested(DEEPEST))
    with pytest.raises(InputError, match="levels"):
        parse_json(nested(DEEPEST + 1))


def test_json_that_names_a_key_twice_is_refused_and_none_of_it_is_lost() -> None:
    with pytest.raises(ValueError, match="expected each key once, found 'Ada' again"):
        parse_json('[{"Ada": [1], "Bob": [2], "Ada": [3]}]')


@pytest.mark.parametrize("dtype", ["<f4", ">i8", "|b1", "<U7", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_read_as_numpy_reads_it(dtype: str, order: Any) -> None:
    array = np.array(np.arange(24).reshape(2, 3, 4), dtype, order=order)
    file = io.BytesIO()
    np.save(file, array)

    found = parse_npy(file.getvalue())

    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    assert not found.flags.writeable


def test_a_fault_after_the_parser_is_no_damage_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")

    with pytest.raises(KeyError):
        read_json(tmp_path / "a.json", "an object")["absent"]


def test_an_error_keeps_its_words_and_gets_the_path() -> None:
    with (
        pytest.raises(ArchiveError, match=r"^x\.zip: expected a, found b; do c$"),
        reading("x.zip", "something", error=ArchiveError),
    ):
        raise InputError(expected="a", found="b", remedy="do c")


def test_a_document_at_its_bound_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]".ljust(DOCUMENT_BYTES))
    assert read_json(path, "a list") == [1]
    path.write_text("[1]".ljust(DOCUMENT_BYTES + 1))
    with pytest.raises(InputError, match=r"a\.json: expected at most 16,777,216 bytes, found 16,777,217"):
        read_json(path, "a list")


def test_a_name_that_the_file_system_cannot_hold_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgeface.cli import main

    monkeypatch.setattr("edgeface.bench.compare.comparable.read_any", lambda path: (tmp_path / ("n" * 300)).stat())

    assert main(["bench", "compare", "a.json", "b.json"]) == 2
    assert "names of files of at most 255 bytes" in capsys.readouterr().err


# --- fuzzing ----------------------------------------------------------------------------------------------------------


def graph(**nodes: tuple[str, list[str]]) -> bytes:
    made = GraphDef()
    made.node.add(name="image_batch", op="Placeholder").attr["dtype"].type = 1
    for name, (operation, inputs) in nodes.items():
        made.node.add(name=name, op=operation, input=inputs)
    return bytes(made.SerializeToString())


def damaged_member(kind: int) -> bytes:
    content = bytearray(deflated(("a.bin", os.urandom(5000), 0), kind=kind))
    for at in range(60, 200):
        content[at] ^= 0x5A
    return bytes(content)


def tar_of(name: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return content.getvalue()


def negative_size(kind: bytes, size: int) -> bytes:
    header = bytearray(tar_header(kind, 0))
    header[124:136] = (size & (256**12 - 1)).to_bytes(12, "big")
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    return bytes(header) + bytes(2048)


FINDINGS: list[tuple[str, bytes]] = [
    ("frozen", graph(embeddings=("Add", ["image_batch", ""]))),
    ("frozen", graph(embeddings=("Identity", []))),
    ("frozen", graph(embeddings=("Switch", []))),
    ("frozen", graph(embeddings=("Switch", ["image_batch"]))),
    ("frozen", graph(embeddings=("LogicalNot", []))),
    ("frozen", graph(embeddings=("Identity", ["x:1"]), x=("Const", ["^"]))),
    ("frozen", graph_of((-5, -5, 400))),
    ("zip", damaged_member(zipfile.ZIP_LZMA)),
    ("zip", damaged_member(zipfile.ZIP_BZIP2)),
    ("zip", damaged_member(zipfile.ZIP_DEFLATED)),
    ("tar", tar_of("/".join(["a"] * 1800))),
    ("tar", tar_of("a" * 300)),
    ("tar", tar_of("a\udcff.bin")),
    *(
        ("tar", negative_size(kind, size))
        for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE)
        for size in (-512, -1)
    ),
    ("gztar", gzip.compress(tar_of("a"))[:-3]),
    ("gztar", bz2.compress(tar_of("a"))),
    ("table", deflated(("vectors.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((\n", 0))),
    ("table", deflated(("vectors.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '''  \n", 0))),
    ("encodings-npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((\n"),
    ("encodings-json", b"[" * 5000),
    ("encodings-json", b'{"a": "\xff"}'),
    ("thresholds", b'{"format": "\\ud800"}'),
    ("plan", b'{"device": "CPU", "streams": 1e999}'),
    *(
        ("rows", b"\0" + content)
        for content in (
            b"[]",
            b"{",
            b"[" * 100_000,
            json.dumps({**HEADER, "zzz": 1}).encode(),
            json.dumps({**HEADER, "dim": -1}).encode(),
            json.dumps({**HEADER, "dim": "8"}).encode(),
            json.dumps({**HEADER, "created": "x"}).encode(),
            json.dumps({**HEADER, "contract_id": ["a"]}).encode(),
            json.dumps({**HEADER, "keeps_images": "no"}).encode(),
        )
    ),
    *(
        ("rows", b"\1" + content)
        for content in (
            b"xx",
            b"[]",
            b'{"name": "a"}',
            b'{"name": 5, "labels": [], "metadata": {}, "created": "2026-01-01T00:00:00+00:00"}',
            b'{"name": "a", "labels": 5, "metadata": {}, "created": "2026-01-01T00:00:00+00:00"}',
            b'{"name": "a", "labels": [], "metadata": "s", "created": "2026-01-01T00:00:00+00:00"}',
            b'{"name": "a", "labels": [], "metadata": ' + b"[" * 100_000,
        )
    ),
    ("rows", b"\2" + struct.pack("<dq32s", 0.5, 1 << 62, bytes(32)) + bytes(32)),
    ("rows", b"\2"),
    ("rows", b"\2" + bytes(1000)),
    ("rows", b"\3"),
    ("rows", b'\1{"name": "a", "labels": [], "metadata": {}, "created": "2026-01-01T00:00:00"}'),
]
"""Files that left a reader as another error than edgeface's, by target: the issues' and what fuzzing found."""


@pytest.mark.parametrize(("name", "content"), FINDINGS, ids=[f"{n}-{name}" for n, (name, _) in enumerate(FINDINGS)])
def test_what_fuzzing_found_ends_by_an_error_of_edgeface(tmp_path: Path, name: str, content: bytes) -> None:
    assert attempt(name, content, tmp_path) is None


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_end_by_an_error_of_edgeface(tmp_path: Path, name: str) -> None:
    seeds, rng = TARGETS[name].seeds(), random.Random(0)
    for seed in seeds:
        assert attempt(name, seed, tmp_path) is None
    for _ in range(15):
        content = fuzz_targets.mutate(rng.choice(seeds), rng)
        assert attempt(name, content, tmp_path) is None, content


@pytest.mark.nightly
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing_finds_nothing(name: str) -> None:
    script = Path(fuzz_targets.__file__)
    root = script.parents[1]
    done = subprocess.run(
        [sys.executable, str(script), name, "60"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    if importlib.util.find_spec("atheris"):
        assert "Recommended" in done.stderr or "libfuzzer" in done.stderr
