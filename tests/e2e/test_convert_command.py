"""`edgeface convert`, `adopt` and `inspect` as a user meets them: exit codes, one clear line, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from profiles import examples
from tiny_graphs import EMBEDDING, Graph, dense_weights, tiny_expected, tiny_facenet, write_tiny_checkpoint
from tiny_ir import write_tiny_ir

import edgeface
from edgeface.cli import main
from edgeface.convert.messages import SEEDED_MARK
from edgeface.convert.parity import embed_with_ir
from edgeface.convert.tensorflow import load_tensorflow
from edgeface.errors import InputError, install_line
from edgeface.model.contract import ModelContract

ROOT = Path(edgeface.__file__).resolve().parent.parent


# A colon inside the name of the first input of the node `total`: "sq:are".
_POSITION_OF_A_COLON = tiny_facenet().message.SerializeToString(deterministic=True).rindex(b"square") + 2


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr."""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("edgeface: ")
        return self.err.strip()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go during a test; none may stay."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    tempfile.tempdir = None
    assert not folder.exists() or not list(folder.iterdir())


@pytest.fixture
def pb(tmp_path: Path) -> Path:
    return tiny_facenet().write(tmp_path / "tiny.pb")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


# --- what works -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "layout", "color", "precision", "batch"),
    [
        ((), "NCHW", "BGR", "FP32", None),
        (("--ir-layout", "nhwc", "--ir-color", "rgb", "--precision", "fp16", "--batch", 3), "NHWC", "RGB", "FP16", 3),
    ],
)
def test_the_json_answer_and_the_ir_say_the_same(
    run: Callable[..., Answer],
    pb: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    layout: str,
    color: str,
    precision: str,
    batch: int | None,
) -> None:
    answer = run("convert", pb, "-o", tmp_path / "out", "--json", *options)

    assert answer.code == 0
    result = json.loads(answer.out)
    ir = tmp_path / "out" / "tiny.xml"
    model = ov.Core().read_model(ir)
    contract = ModelContract.read_from(model)
    assert {*result} == {
        "ir", "contract_id", "seconds", "inputs", "outputs", "parity", "check", "provenance", "became_default",
    }  # fmt: skip
    assert result["ir"] == str(ir)
    assert result["contract_id"] == contract.contract_id
    assert result["parity"] is None
    shape = [batch or "?", 3, 160, 160] if layout == "NCHW" else [batch or "?", 160, 160, 3]
    assert result["inputs"] == {"image_batch/placeholder_port_0": f"[{','.join(map(str, shape))}]"}
    assert result["outputs"] == {"embeddings": f"[{batch or '?'},{EMBEDDING}]"}
    assert (contract.layout, contract.color, contract.precision) == (layout, color, precision)
    assert model.input("image_batch") == model.input(0) == model.input("image_batch/placeholder_port_0")
    assert model.output("embeddings") == model.output(0)
    assert model.output("InceptionResnetV1/Bottleneck/BatchNorm/Reshape_1/Normalize") == model.output(0)
    assert sorted(path.name for path in ir.parent.iterdir()) == ["tiny.bin", "tiny.xml"]

    images = np.random.default_rng(0).integers(0, 256, (4, 160, 160, 3), np.uint8)
    expected = tiny_expected((images - 127.5) / 128, dense_weights())
    np.testing.assert_allclose(embed_with_ir(ir, images), expected, atol=1e-4 if precision == "FP32" else 5e-3)


def test_a_second_conversion_replaces_the_first(run: Callable[..., Answer], pb: Path, tmp_path: Path) -> None:
    assert run("convert", pb, "-o", tmp_path / "out").code == 0
    assert run("convert", pb, "-o", tmp_path / "out", "--ir-color", "rgb").code == 0

    answer = run("inspect", tmp_path / "out" / "tiny.xml", "--json")

    assert answer.code == 0
    result = json.loads(answer.out)
    assert {*result} >= {"contract", "gflops", "mparams", "bytes"}
    assert {*result["gflops"]} == {"mac2", "omz"}
    assert {*result["mparams"]} == {"folded", "omz"}
    assert result["contract"]["color"] == "RGB"
    assert result["bytes"]["bin"] == (tmp_path / "out" / "tiny.bin").stat().st_size


def test_the_path_is_printed_whole_whatever_is_in_it(run: Callable[..., Answer], pb: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[bold]a[/b]" / ("long " * 30)

    answer = run("convert", pb, "-o", folder)

    assert answer.code == 0
    assert f"{folder / 'tiny.xml'} written and checked in" in answer.out


def test_seeded_weights_are_announced_on_stderr(run: Callable[..., Answer], tmp_path: Path) -> None:
    graph = tiny_facenet()
    graph.node(SEEDED_MARK, "NoOp")
    path = graph.write(tmp_path / "facenet-20180408-102900.pb")

    answer = run("convert", path, "-o", tmp_path / "out", "--json")

    assert answer.code == 0
    assert json.loads(answer.out)["provenance"] == "seeded"
    assert "SEEDED WEIGHTS" in answer.err
    ir = tmp_path / "out" / "facenet-20180408-102900.xml"
    assert ModelContract.read_from(ov.Core().read_model(ir)).provenance == "seeded"
    assert "SEEDED WEIGHTS" in run("inspect", ir).err


@pytest.mark.usefixtures("nothing_installed")
def test_without_an_output_folder_the_ir_goes_into_the_store_and_the_first_one_becomes_the_default(
    run: Callable[..., Answer], pb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    seeded = tiny_facenet()
    seeded.node(SEEDED_MARK, "NoOp")
    assert run("convert", seeded.write(tmp_path / "seeded.pb")).code == 0
    assert run("zoo", "default").code == 3  # random weights are no default

    answer = run("convert", pb, "--json")

    assert answer.code == 0, answer.err
    ir = tmp_path / "cache" / "irs" / "tiny" / "fp32" / "tiny.xml"
    assert Path(json.loads(answer.out)["ir"]) == ir
    assert json.loads(answer.out)["became_default"] is True
    second = run("convert", pb, "--name", "second")
    assert (second.code, "is now the default model" in second.out) == (0, False)
    assert json.loads(run("zoo", "default", "--json").out)["ir"] == str(ir)
    refused = run("convert", pb, "--ir-color", "rgb")
    assert (refused.code, "--output-dir" in refused.line) == (2, True)


def test_a_model_is_named_after_its_folder_however_that_is_written(
    run: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_checkpoint(tmp_path / "my-facenet")
    monkeypatch.chdir(tmp_path / "my-facenet")

    answer = run("convert", ".", "-o", tmp_path / "out", "--json")

    assert answer.code == 0, answer.err
    assert Path(json.loads(answer.out)["ir"]).name == "my-facenet.xml"


def test_a_zoo_name_is_a_zoo_name_beside_a_folder_of_that_name(
    run: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facenet-20180408-102900").mkdir()

    answer = run("convert", "facenet-20180408-102900", "-o", "facenet-20180408-102900")

    assert answer.code == 3
    assert "edgeface zoo download facenet-20180408-102900" in answer.line


# --- bad input --------------------------------------------------------------------------------------------------

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 95745767\n"
PBTXT = b'node {\n  name: "embeddings"\n  op: "Placeholder"\n}\n'


def no_facenet() -> bytes:
    graph = Graph()
    graph.node("output", "Relu", graph.placeholder("x"))
    return graph.message.SerializeToString()


def unit_length_is_missing() -> bytes:
    return tiny_facenet(normalized=False).message.SerializeToString()


def unsupported_operation() -> bytes:
    graph = Graph()
    graph.node("embeddings", "Betainc", *[graph.image()] * 3, T=1)
    return graph.message.SerializeToString()


BAD_FILES = {
    "empty": (b"", "found an empty file"),
    "git-lfs-pointer": (LFS_POINTER, "found a Git LFS pointer; fetch the file itself with: git lfs pull"),
    "html": (b"\n <!DOCTYPE html><title>Google Drive</title>", "found an HTML page"),
    "html-without-doctype": (b"<HTML><body>404</body></HTML>", "found an HTML page"),
    "zip": (b"PK\x03\x04" + bytes(100), "found a zip archive; unpack it"),
    "text-graph": (PBTXT, "found a graph in text form"),
    "random-bytes": (np.random.default_rng(0).bytes(5000), "the file is truncated or damaged"),
    "zeros": (bytes(5000), "the file is truncated or damaged"),
    "truncated": (tiny_facenet().message.SerializeToString()[:-20], "the file is truncated or damaged"),
    "no-nodes": (b"\x22\x02\x08\x18", "found one without nodes"),
    "no-facenet": (no_facenet(), "expected a FaceNet graph with a node 'embeddings', found 2 nodes"),
    "no-unit-length": (unit_length_is_missing(), "expected embeddings of unit length"),
    "unsupported-operation": (unsupported_operation(), "OpenVINO cannot convert this graph: "),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_gets_one_line_and_leaves_the_old_ir(run: Callable[..., Answer], tmp_path: Path, kind: str) -> None:
    content, told = BAD_FILES[kind]
    path = tmp_path / "model.pb"
    path.write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.xml").write_text("the IR of yesterday")
    before = snapshot(out)

    answer = run("convert", path, "-o", out)

    assert answer.code == 2
    assert told in answer.line
    assert answer.out == ""
    assert snapshot(out) == before


def test_an_operation_that_openvino_lacks_is_named(run: Callable[..., Answer], tmp_path: Path) -> None:
    path = tmp_path / "model.pb"
    path.write_bytes(unsupported_operation())

    assert "Betainc" in run("convert", path, "-o", tmp_path / "out").line


@pytest.mark.parametrize("kind", ["truncated", "no-unit-length"])
def test_a_failed_conversion_makes_no_folder(run: Callable[..., Answer], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pb"
    path.write_bytes(BAD_FILES[kind][0])

    assert run("convert", path, "-o", tmp_path / "new" / "out").code == 2

    assert not (tmp_path / "new").exists()


def test_an_error_is_a_json_object_too(run: Callable[..., Answer], tmp_path: Path) -> None:
    path = tmp_path / "model.pb"
    path.write_bytes(LFS_POINTER)

    answer = run("convert", path, "-o", tmp_path / "out", "--json")

    error = json.loads(answer.out)["error"]
    assert error["kind"] == "ModelFormatError"
    assert answer.line == f"edgeface: {error['message']}"


def test_a_graph_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    content = tiny_facenet().message.SerializeToString(deterministic=True)
    path = tmp_path / "cut.pb"
    whole = len(content) - len(b"\x22\x02\x08\x18")  # the versions, without which a graph is still whole
    for length in range(whole):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.pb: expected "):
            load_tensorflow(path, size=(160, 160))


def test_a_facenet_truncated_between_nodes_is_refused(seeded_pb: Path, tmp_path: Path) -> None:
    content = seeded_pb.read_bytes()
    boundaries = list(_node_boundaries(content))
    assert len(boundaries) > 4000
    path = tmp_path / "cut.pb"
    for boundary in boundaries[:: len(boundaries) // 4][1:4]:
        path.write_bytes(content[:boundary])
        with pytest.raises(InputError, match=r"'embeddings', found .* nodes without one.*truncated"):
            load_tensorflow(path, size=(160, 160))
        path.write_bytes(content[: boundary - 1])
        with pytest.raises(InputError, match="truncated or damaged"):
            load_tensorflow(path, size=(160, 160))


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3))
@example(changes=[(_POSITION_OF_A_COLON, ord(":"))])
def test_a_graph_with_flipped_bytes_is_read_or_refused_but_never_an_internal_failure(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(tiny_facenet().message.SerializeToString(deterministic=True))
    for position, value in changes:
        content[position % len(content)] = value
    path = tmp_path / "damaged.pb"
    path.write_bytes(content)
    try:
        load_tensorflow(path, size=(160, 160))
    except InputError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017 - either end is right
        assert "\n" not in str(error)  # noqa: PT017


def _node_boundaries(content: bytes) -> Iterator[int]:
    """Where each NodeDef ends: tag 0x0a, the length as a varint, the message."""
    position = 0
    while position < len(content) and content[position] == 0x0A:
        position += 1
        length = shift = 0
        while True:
            byte = content[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        position += length
        yield position


@pytest.mark.parametrize(
    ("names", "told"),
    [([], "found 0 .pb files"), (["a.pb", "b.pb"], "found 2 .pb files"), (["model.ckpt-7.index"], "found 0 .pb files")],
)
def test_a_folder_of_no_one_model_is_refused(
    run: Callable[..., Answer], tmp_path: Path, names: list[str], told: str
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"x")

    answer = run("convert", folder, "-o", tmp_path / "out")

    assert answer.code == 2
    assert told in answer.line


def test_a_real_zip_is_recognised(run: Callable[..., Answer], pb: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "20180408-102900.zip", "w") as archive:
        archive.write(pb)

    answer = run("convert", tmp_path / "20180408-102900.zip", "-o", tmp_path / "out")

    assert answer.code == 2
    assert "unpack it and give the model inside" in answer.line


@pytest.mark.parametrize("fault", ["missing-shard", "truncated-shard", "truncated-index", "no-meta-graph"])
def test_a_damaged_checkpoint_is_refused(run: Callable[..., Answer], tmp_path: Path, fault: str) -> None:
    meta = write_tiny_checkpoint(tmp_path / "checkpoint")
    shard = meta.with_name("model.ckpt-7.data-00000-of-00001")
    index = meta.with_name("model.ckpt-7.index")
    if fault == "missing-shard":
        shard.unlink()
    elif fault == "truncated-shard":
        shard.write_bytes(shard.read_bytes()[:-4])
    elif fault == "truncated-index":
        index.write_bytes(index.read_bytes()[:-4])
    else:
        meta.write_bytes(b"\x22\x00")

    for path in (meta, meta.parent):
        answer = run("convert", path, "-o", tmp_path / "out")
        assert answer.code == 2
        assert "expected" in answer.line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["no/such/model.pb"], 3, "expected a model file or folder, found nothing there"),
        (["facenet-20180408-10290"], 3, "did you mean facenet-20180408-102900"),
        (["yunet"], 2, "expected a face embedding model"),
        (["{pb}", "--batch", "0"], 2, "--batch: expected a positive number or 'dynamic', found '0'"),
        (["{pb}", "--batch", "-1"], 2, "--batch: expected a positive number or 'dynamic'"),
        (["{pb}", "--batch", "1.5"], 2, "--batch: expected a positive number or 'dynamic'"),
        (["{pb}", "--batch", "many"], 2, "--batch: expected a positive number or 'dynamic'"),
        (["{pb}", "--batch", "9" * 30], 2, "--batch: expected a positive number or 'dynamic'"),
        (["{pb}", "--name", "../x"], 2, "name: expected a plain file name, found '../x'"),
        (["{pb}", "--name", "a/b"], 2, "name: expected a plain file name"),
        (["{pb}", "--name", ".."], 2, "name: expected a plain file name"),
        (["{pb}", "--name", "con\nx"], 2, "name: expected a plain file name, found 'con\\nx'"),
        (["a.jpg"], 3, "found a .jpg file"),
        (["recipe.yml"], 3, "expected a TensorFlow, ONNX (.onnx), PyTorch"),
        (["models/mine.xml"], 3, "edgeface adopt adds a contract"),
        (["{pb}", "--name", ""], 2, "name: expected a plain file name, found ''"),
        (["{pb}", "--name", "x" * 300], 2, "File name too long"),
        (["{pb}", "--golden", "no/such.npz"], 2, "expected an .npz with 'images' and 'embeddings'"),
    ],
)
def test_wrong_use_gets_one_line(
    run: Callable[..., Answer], pb: Path, tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    answer = run("convert", *(text.format(pb=pb) for text in arguments), "-o", tmp_path / "out")

    assert answer.code == code
    assert told in answer.line
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["temporary", "tiny.pb"]


@pytest.mark.parametrize("option", ["--precision", "--ir-layout", "--ir-color"])
def test_an_unknown_choice_shows_the_choices(run: Callable[..., Answer], pb: Path, tmp_path: Path, option: str) -> None:
    answer = run("convert", pb, "-o", tmp_path / "out", option, "purple")

    assert answer.code == 2
    assert "'purple' is not one of" in answer.err


@pytest.mark.parametrize(("option", "value"), [("color", "rgb"), ("color", "bgr"), ("layout", "nhwc")])
def test_an_option_that_described_the_ir_in_0_1_names_its_new_name(
    run: Callable[..., Answer], pb: Path, tmp_path: Path, option: str, value: str
) -> None:
    answer = run("convert", pb, "-o", tmp_path / "out", f"--{option}", value)

    assert answer.code == 2
    assert f"--ir-{option} {value}" in answer.line
    assert not (tmp_path / "out").exists()


def test_a_zoo_name_with_a_contradicting_recipe_is_refused(
    run: Callable[..., Answer], pb: Path, tmp_path: Path
) -> None:
    zoo = ("--name", "facenet-20180408-102900")

    answer = run("convert", pb, "-o", tmp_path / "out", *zoo, "--color", "BGR")

    assert answer.code == 2
    assert "the recipe of facenet-20180408-102900 says RGB, found BGR" in answer.line
    assert run("convert", pb, "-o", tmp_path / "out", *zoo, "--color", "RGB", "--mean", "127.5").code == 0


def test_options_and_a_recipe_file_replace_the_preprocessing_of_a_model_of_ones_own(
    run: Callable[..., Answer], pb: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yml"
    recipe.write_text("name: mine\nmean: 0\nscale: 255\ncolor: RGB\nalignment: mtcnn-box-margin:16\n")

    answer = run("convert", pb, "-o", tmp_path / "out", "--recipe", recipe, "--color", "BGR")

    assert answer.code == 0, answer.err
    ir = tmp_path / "out" / "mine.xml"
    contract = ModelContract.read_from(ov.Core().read_model(ir))
    assert (contract.mean, contract.scale) == ((0, 0, 0), (255, 255, 255))
    assert (contract.alignment.recipe, contract.alignment.margin) == ("mtcnn-box-margin", 16)
    images = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), np.uint8)
    expected = tiny_expected(images[..., ::-1] / 255.0, dense_weights())
    np.testing.assert_allclose(embed_with_ir(ir, images), expected, atol=1e-4)


# --- gates ------------------------------------------------------------------------------------------------------


def write_golden(path: Path, embeddings: np.ndarray, *, size: int = 160) -> Path:
    images = np.random.default_rng(5).integers(0, 256, (len(embeddings), size, size, 3), np.uint8)
    np.savez(path, images=images, embeddings=embeddings.astype(np.float32))
    return path


def golden_of_the_tiny_graph() -> np.ndarray:
    images = np.random.default_rng(5).integers(0, 256, (3, 160, 160, 3), np.uint8)
    return tiny_expected((images - 127.5) / 128, dense_weights())


@pytest.fixture
def without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeface.convert.parity.importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("without_tensorflow")
def test_an_ir_that_computes_something_else_is_refused_with_exit_1(
    run: Callable[..., Answer], pb: Path, tmp_path: Path
) -> None:
    golden = write_golden(tmp_path / "golden.npz", golden_of_the_tiny_graph()[::-1])

    answer = run("convert", pb, "-o", tmp_path / "out", "--golden", golden)

    assert answer.code == 1
    assert "the IR's output differs from the original model's: 3 images against golden.npz" in answer.line
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_tensorflow")
def test_an_ir_that_computes_the_golden_embeddings_says_how_close_it_is(
    run: Callable[..., Answer], pb: Path, tmp_path: Path
) -> None:
    golden = write_golden(tmp_path / "golden.npz", golden_of_the_tiny_graph())

    answer = run("convert", pb, "-o", tmp_path / "out", "--golden", golden, "--json", "--precision", "fp16")

    parity = json.loads(answer.out)["parity"]
    assert parity["verdict"] == "same"
    assert parity["images"] == 3
    assert parity["against"] == "golden.npz"
    assert parity["min_cosine"] > 0.9999


@pytest.mark.parametrize("fault", ["other-size", "other-length", "flat", "none", "text", "truncated", "one-array"])
def test_bad_golden_vectors_are_refused(
    run: Callable[..., Answer], pb: Path, tmp_path: Path, fault: str, without_tensorflow: None
) -> None:
    golden, good = tmp_path / "golden.npz", golden_of_the_tiny_graph()
    if fault == "text":
        golden.write_text("hello")
    elif fault == "one-array":
        with golden.open("wb") as file:
            np.save(file, good)
    else:
        embeddings = {"flat": good[:, 0], "none": good[:0], "other-length": good[:, :2]}.get(fault, good)
        write_golden(golden, embeddings, size=96 if fault == "other-size" else 160)
    if fault == "truncated":
        golden.write_bytes(golden.read_bytes()[:-30])

    answer = run("convert", pb, "-o", tmp_path / "out", "--golden", golden)

    assert answer.code == 2
    assert "expected" in answer.line
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_tensorflow")
def test_parity_without_tensorflow_or_golden_vectors_names_the_extra(
    run: Callable[..., Answer], pb: Path, tmp_path: Path
) -> None:
    answer = run("convert", pb, "-o", tmp_path / "out", "--parity")

    assert answer.code == 3
    assert install_line("parity") in answer.line


# --- disks and folders ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    folder: Path

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A file system of its own, of as many KiB as the test says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={request.param}k"
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("cannot mount a small tmpfs here: not root, or not allowed to")
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("disk", [8, 512], indirect=True, ids=["xml-does-not-fit", "bin-does-not-fit"])
def test_a_full_disk_is_told_and_left_as_it_was(run: Callable[..., Answer], tmp_path: Path, disk: Disk) -> None:
    graph, weights = Graph(), np.random.default_rng(0).standard_normal((3, 100_000)).astype(np.float32)
    graph.embed(graph.image(), graph.constant("weights", weights))
    (disk.folder / "mine.txt").write_text("mine")

    answer = run("convert", graph.write(tmp_path / "big.pb"), "-o", disk.folder / "out")

    assert answer.code == 2
    assert "No space left on device" in answer.line
    assert snapshot(disk.folder) == {str(disk.folder / "mine.txt"): b"mine"}


@pytest.mark.parametrize("disk", [1024], indirect=True)
@pytest.mark.parametrize("below", ["", "new/folder"])
def test_a_read_only_folder_is_told(run: Callable[..., Answer], pb: Path, disk: Disk, below: str) -> None:
    (disk.folder / "tiny.xml").write_text("the IR of yesterday")
    disk.make_read_only()

    answer = run("convert", pb, "-o", disk.folder / below)

    assert answer.code == 2
    assert "choose a folder that can be written" in answer.line
    assert snapshot(disk.folder) == {str(disk.folder / "tiny.xml"): b"the IR of yesterday"}


@pytest.mark.parametrize("disk", [64], indirect=True)
def test_a_full_folder_for_temporary_files_is_told(
    run: Callable[..., Answer], pb: Path, tmp_path: Path, disk: Disk
) -> None:
    filler = disk.folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(disk.folder))
        answer = run("convert", pb, "-o", tmp_path / "out")

    assert answer.code == 2
    assert "No space left on device" in answer.line
    assert "TMPDIR" in answer.line
    assert str(disk.folder) in answer.line
    assert list(disk.folder.iterdir()) == [filler]


def test_no_folder_for_temporary_files_is_told(run: Callable[..., Answer], pb: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
        answer = run("convert", pb, "-o", tmp_path / "out")

    assert answer.code == 2
    assert str(tmp_path / "absent") in answer.line


def test_an_output_folder_that_is_a_file_is_told(run: Callable[..., Answer], pb: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")

    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        answer = run("convert", pb, "-o", out)
        assert answer.code == 2
        assert "expected a folder, found" in answer.line
    assert (tmp_path / "out").read_text() == "mine"


# --- interruption -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["while-reading", "while-writing"])
def test_an_interrupted_conversion_leaves_nothing(
    seeded_pb: Path, tmp_path: Path, temporary: Path, number: signal.Signals, when: str
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeface", "convert", str(seeded_pb), "-o", str(out)],
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    watched, pattern = (temporary, "edgeface-*/*.pb") if when == "while-reading" else (out, ".edgeface-*/*")
    _wait_for(lambda: any(watched.glob(pattern)) if watched.is_dir() else False, process)

    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 128 + number
    assert "Traceback" not in stderr
    assert not out.exists()
    assert list(temporary.iterdir()) == []


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended before it could be interrupted: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- adopt and inspect ------------------------------------------------------------------------------------------


def test_inspect_shows_what_the_ir_computes_of_raw_values(run: Callable[..., Answer], tmp_path: Path) -> None:
    equal = write_tiny_ir(tmp_path, name="equal", mean=(127.5,) * 3, scale=(128.0,) * 3)
    text = " ".join(run("inspect", equal).out.replace("│", " ").split())
    assert "mean 127.5, scale 128" in text
    assert "3 numbers, of unit length, compared by cosine" in text
    assert "FP32, of unknown origin; source SHA-256" in text
    each = write_tiny_ir(tmp_path, name="each", mean=(123.5, 116.0, 103.0), scale=(58.0, 57.0, 58.0), normalized=False)
    text = " ".join(run("inspect", each).out.replace("│", " ").split())
    assert "mean 123.5 116 103, scale 58 57 58" in text
    assert "3 numbers, not of unit length" in text


def test_inspecting_what_is_no_ir_of_ours_gets_one_line(run: Callable[..., Answer], pb: Path, tmp_path: Path) -> None:
    assert "found nothing there" in run("inspect", tmp_path / "absent.xml").line
    assert "expected an IR (.xml), found a .pb file" in run("inspect", pb).line
    assert run("inspect", pb).code == 2


def test_inspecting_an_ir_with_another_bin_is_refused(run: Callable[..., Answer], pb: Path, tmp_path: Path) -> None:
    assert run("convert", pb, "-o", tmp_path).code == 0
    weights = tmp_path / "tiny.bin"
    content = weights.read_bytes()
    weights.write_bytes(bytes([content[0] ^ 1]) + content[1:])

    answer = run("inspect", tmp_path / "tiny.xml")

    assert answer.code == 2
    assert "is damaged or belongs to another IR" in answer.line


def test_adopting_needs_to_know_what_the_input_expects(
    run: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEFACE_DATA", raising=False)

    answer = run("adopt", tmp_path / "x.xml", "--name", "facenet-20180402-114759", "-o", tmp_path / "out")

    assert answer.code == 3
    assert "pass --golden FILE.npz" in answer.line


def test_raw_embeddings_of_a_graph_that_normalises_them_are_refused(
    run: Callable[..., Answer], pb: Path, tmp_path: Path
) -> None:
    answer = run("convert", pb, "-o", tmp_path / "out", "--raw")

    assert answer.code == 2
    assert "found one that normalises them" in answer.line
