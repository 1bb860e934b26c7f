"""ONNX recognisers against ONNX Runtime, and the files that are refused."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray

from edgeface.cli import main
from edgeface.convert import adopt, check_parity, convert
from edgeface.convert.onnx import load_onnx
from edgeface.convert.parity import embed_with_ir
from edgeface.convert.recipe import RecipeParts, parse_recipe
from edgeface.errors import ConversionError, EdgeFaceError, InputError, ModelFormatError, NegativeResult
from edgeface.model.contract import ModelContract
from edgeface.zoo.catalog import Catalog, load_catalog

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime  # noqa: E402
from tiny_onnx import write_arcface, write_face_transformer  # noqa: E402

RECIPE = {"name": "mine", "color": "RGB", "mean": "127.5", "scale": "127.5", "alignment": "five-point-112"}
SIZE = 112


def recipe(**parts: Any) -> RecipeParts:
    return parse_recipe(**{**RECIPE, **parts})


def photos(count: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def expected(path: Path, images: NDArray[Any], *, layout: str = "NCHW", name: str = "embedding") -> NDArray[np.float32]:
    """What ONNX Runtime computes of standardised images (N, H, W, 3), one by one."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    images = images.astype(np.float32) if layout == "NHWC" else images.transpose(0, 3, 1, 2).astype(np.float32)
    rows = [session.run([name], {port.name: np.ascontiguousarray(image[None])})[0] for image in images]
    return np.stack([row.ravel() for row in rows])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the frontend in this process: what it makes is the same, and half a second sooner."""

    def convert_here(_: None, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        model, found = function(*arguments)
        return model, json.loads(json.dumps(found))

    monkeypatch.setattr("edgeface.convert.onnx.process_apart", contextlib.nullcontext)
    monkeypatch.setattr("edgeface.convert.onnx.convert_apart", convert_here)


def difference(ir: Path, images: NDArray[np.uint8], rows: NDArray[np.float32]) -> float:
    """Largest difference, relative to the largest number."""
    return float(np.abs(embed_with_ir(ir, images) - rows).max() / np.abs(rows).max())


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"layout": "NHWC"},
        {"batch": 1},
        {"batch": 1, "last": "shape"},
        {"batch": 1, "last": "token"},
        {"last": "unit"},
        {"last": "maps"},
        {"first": "reversed"},
        {"size": "side"},
        {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 64},
    ],
    ids=str,
)
@pytest.mark.slow
def test_the_ir_computes_what_onnx_runtime_computes(tmp_path: Path, form: dict[str, Any]) -> None:
    path = write_arcface(tmp_path / "model.onnx", **form)

    result = convert(path, tmp_path / "out", recipe=recipe(size="112"))

    rows = expected(path, (photos() - 127.5) / 127.5, layout=form.get("layout", "NCHW"))
    assert difference(result.ir, photos(), rows) <= 1e-5
    assert result.inputs == {"image_batch/placeholder_port_0": "[?,3,112,112]"}
    contract = result.contract
    assert (contract.framework, contract.embedding_dim) == ("onnx", 16)
    assert contract.normalized == (form.get("last") == "unit")


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_rows_are_normalised_or_raw_as_the_recipe_says(tmp_path: Path) -> None:
    raw, unit = write_arcface(tmp_path / "raw.onnx"), write_arcface(tmp_path / "unit.onnx", last="unit")

    result = convert(raw, tmp_path / "out", recipe=recipe(normalized=True))

    rows = expected(raw, (photos() - 127.5) / 127.5)
    assert difference(result.ir, photos(), rows / np.linalg.norm(rows, axis=1, keepdims=True)) <= 1e-5
    assert result.contract.normalized
    with pytest.raises(ConversionError, match="found one that normalises them"):
        convert(unit, tmp_path / "out", recipe=recipe(normalized=False))


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_one_of_two_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    path = write_arcface(tmp_path / "model.onnx", outputs=2)

    with pytest.raises(InputError, match=r"found 2 \(attributes, embedding\); choose one with --output"):
        load_onnx(path, recipe().complete())
    with pytest.raises(InputError, match="expected an output 'age'"):
        load_onnx(path, recipe(output="age").complete())
    result = convert(path, tmp_path / "out", recipe=recipe(output="embedding"))

    assert difference(result.ir, photos(), expected(path, (photos() - 127.5) / 127.5)) <= 1e-5


@pytest.mark.parametrize(("first", "done"), [("arithmetic", "(x - 127.5) / 128"), ("norm", "(x - 127.5) / 64")])
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_preprocessing_inside_is_noticed_and_not_repeated(
    tmp_path: Path, first: str, done: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_arcface(tmp_path / "model.onnx", first=first)

    with pytest.raises(InputError) as caught:
        load_onnx(path, recipe().complete())
    assert done in str(caught.value)
    assert "pass --mean 0 --scale 1" in str(caught.value)
    with pytest.raises(InputError, match="would repeat"):
        load_onnx(path, recipe(scale="1").complete())
    with caplog.at_level(logging.INFO, "edgeface"):
        result = convert(path, tmp_path / "out", recipe=recipe(mean="0", scale="1"))

    assert done in caplog.text
    assert difference(result.ir, photos(), expected(path, photos())) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("first", ["constant first", "clipped", "split", "depthwise"])
@pytest.mark.usefixtures("here")
def test_preprocessing_inside_is_noticed_however_it_is_written(tmp_path: Path, first: str) -> None:
    with pytest.raises(InputError, match=r"compute \(x - 127.5\) / 128 .*pass --mean 0 --scale 1"):
        load_onnx(write_arcface(tmp_path / "model.onnx", first=first), recipe().complete())


@pytest.mark.slow
def test_the_identity_of_weights_does_not_depend_on_how_the_file_holds_them(tmp_path: Path) -> None:
    """Layout, fixed batch, weights beside the file, numbers in typed fields: the arrays are the same."""
    one = write_arcface(tmp_path / "one.onnx")
    beside = write_arcface(tmp_path / "two.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    typed = onnx.load(str(one))
    for tensor in typed.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).ravel()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values)
    onnx.save(typed, str(tmp_path / "three.onnx"))
    sources = [
        load_onnx(path, recipe().complete())
        for path in (one, beside, tmp_path / "three.onnx", write_arcface(tmp_path / "four.onnx", layout="NHWC"))
    ]

    assert len({source.weights_id for source in sources}) == 1
    assert len({source.sha256 for source in sources}) == 4
    other = load_onnx(write_arcface(tmp_path / "five.onnx", last="maps"), recipe().complete())
    assert other.weights_id != sources[0].weights_id


@pytest.mark.parametrize(
    ("form", "error", "told"),
    [
        ({"channels": 1}, ConversionError, "expected an image of 3 channels"),
        ({"size": "side"}, InputError, "it takes images of any size; pass the size of its crops with --size"),
    ],
)
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_wrong_shape_is_named(tmp_path: Path, form: dict[str, Any], error: type[EdgeFaceError], told: str) -> None:
    with pytest.raises(error, match=told):
        load_onnx(write_arcface(tmp_path / "model.onnx", **form), recipe().complete())


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["batch", 3])
@pytest.mark.usefixtures("here")
def test_rows_that_depend_on_the_rest_of_the_batch_are_refused(tmp_path: Path, batch: Any) -> None:
    with pytest.raises(ConversionError, match="rows that do not depend on the other images of a batch"):
        load_onnx(write_arcface(tmp_path / "model.onnx", last="mixed", batch=batch), recipe().complete())


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_batch_that_the_graph_holds_fixed_stays_fixed(tmp_path: Path) -> None:
    path = write_arcface(tmp_path / "model.onnx", last="vector", batch=1)

    with pytest.raises(ConversionError, match="export it with a dynamic batch, or pass --batch 1"):
        convert(path, tmp_path / "out", recipe=recipe())
    assert convert(path, tmp_path / "out", recipe=recipe(), batch=1).inputs == {
        "image_batch/placeholder_port_0": "[1,3,112,112]"
    }


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_batch_that_cannot_be_freed_without_changing_the_numbers_stays_fixed(tmp_path: Path) -> None:
    path = write_arcface(tmp_path / "model.onnx", last="tall", batch=1)

    with pytest.raises(ConversionError, match="pass --batch 1"):
        convert(path, tmp_path / "out", recipe=recipe())
    ir = convert(path, tmp_path / "out", recipe=recipe(), batch=1).ir

    assert difference(ir, photos(), expected(path, (photos() - 127.5) / 127.5)) <= 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_an_input_of_whole_numbers_gets_raw_images_or_is_refused(tmp_path: Path) -> None:
    path = write_arcface(tmp_path / "model.onnx", dtype=onnx.TensorProto.UINT8)

    with pytest.raises(InputError, match=r"mean 0 and scale 1.*u8.*pass --mean 0 --scale 1"):
        load_onnx(path, recipe().complete())
    ir = convert(path, tmp_path / "out", recipe=recipe(mean="0", scale="1")).ir

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = np.concatenate([session.run(None, {"image": each[None].transpose(0, 3, 1, 2)})[0] for each in photos()])
    assert difference(ir, photos(), rows) <= 1e-5
    signed = write_arcface(tmp_path / "signed.onnx", dtype=onnx.TensorProto.INT8)
    with pytest.raises(ConversionError, match="holds values of 0-255"):
        load_onnx(signed, recipe(mean="0", scale="1").complete())


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_size_that_the_file_contradicts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"expected a model of 96 x 96 images .*found one of 112 x 112"):
        load_onnx(write_arcface(tmp_path / "model.onnx"), recipe(size="96").complete())


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["1e30", "1e-38"])
@pytest.mark.usefixtures("here")
def test_a_scale_that_leaves_one_embedding_of_every_image_is_refused(tmp_path: Path, scale: str) -> None:
    with pytest.raises(ConversionError, match=r"expected (another|finite) embedding"):
        convert(write_arcface(tmp_path / "model.onnx"), tmp_path / "out", recipe=recipe(scale=scale))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_golden_vectors_decide_about_an_onnx_model(tmp_path: Path) -> None:
    path = write_arcface(tmp_path / "model.onnx")
    golden, rows = tmp_path / "golden.npz", expected(path, (photos() - 127.5) / 127.5)
    np.savez(golden, images=photos(), embeddings=rows)

    result = convert(path, tmp_path / "out", recipe=recipe(), parity=functools.partial(check_parity, golden=golden))

    assert result.parity
    assert result.parity.against == "golden.npz"
    with pytest.raises(NegativeResult, match="differs from the original"):
        convert(
            path, tmp_path / "bad", recipe=recipe(color="BGR"), parity=functools.partial(check_parity, golden=golden)
        )
    with pytest.raises(InputError, match="pass --golden"):
        convert(path, tmp_path / "bad", recipe=recipe(), parity=check_parity)
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_layout_that_the_file_contradicts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is NCHW, found --layout NHWC"):
        load_onnx(write_arcface(tmp_path / "model.onnx"), recipe(layout="NHWC").complete())


@pytest.mark.slow
def test_the_command_converts_a_model_of_ones_own_with_a_recipe_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_arcface(tmp_path / "model.onnx", batch=1)
    (tmp_path / "recipe.yml").write_text("size: 112\nmean: 127.5\nscale: 127.5\nalignment: five-point-112\n")
    command = ["convert", str(path), "-o", str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.yml")]

    assert main(command) == 2
    assert "pass --color" in capsys.readouterr().err
    assert main([*command, "--color", "BGR", "--name", "mine", "--normalized"]) == 0

    ir = tmp_path / "out" / "mine.xml"
    rows = expected(path, (photos()[..., ::-1] - 127.5) / 127.5)
    assert difference(ir, photos(), rows / np.linalg.norm(rows, axis=1, keepdims=True)) <= 1e-5
    contract = ModelContract.read_from(ov.Core().read_model(ir))
    assert (contract.alignment.recipe, contract.normalized) == ("five-point-112", True)


@pytest.mark.slow
def test_a_non_commercial_model_is_converted_only_once_its_licence_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    path = write_arcface(tmp_path / "w600k_mbf.onnx", batch=1)
    command = ["convert", str(path), "--name", "insightface-w600k-mbf", "-o", str(tmp_path / "out")]

    assert main(command) == 2
    assert "allows non-commercial use only" in (told := capsys.readouterr().err)
    assert "--accept-licence" in told
    assert not (tmp_path / "out").exists()
    assert main([*command, "--accept-licence"]) == 0
    assert main(command) == 0
    rows = expected(path, (photos() - 127.5) / 127.5)
    assert difference(tmp_path / "out" / "insightface-w600k-mbf.xml", photos(), rows) <= 1e-5


def test_a_non_commercial_file_is_known_by_its_digest_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    path = write_arcface(tmp_path / "mine.onnx")
    entry = load_catalog()["insightface-w600k-mbf"]
    digest = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    published = entry.model_copy(update={"files": (entry.files[0].model_copy(update=digest),)})
    catalog = Catalog([published], source="test.yml")

    with pytest.raises(InputError, match="allows non-commercial use only"):
        convert(path, tmp_path / "out", recipe=recipe(), catalog=catalog)
    with pytest.raises(InputError, match="allows non-commercial use only"):
        adopt(tmp_path / "ir.xml", tmp_path / "out", name=entry.name, catalog=catalog)
    assert not (tmp_path / "out").exists()


# --- damaged and hostile files --------------------------------------------------------------------------------------


def set_stride(model: Any) -> None:
    next(each for each in model.graph.node[2].attribute if each.name == "strides").ints[:] = [1, 1]


def leave_out_the_relu(model: Any) -> None:
    relu = next(each for each in model.graph.node if each.op_type == "Relu")
    relu.op_type = "Abs"


@pytest.mark.slow
@pytest.mark.parametrize("edit", [set_stride, leave_out_the_relu])
@pytest.mark.usefixtures("here")
def test_the_same_weights_in_another_network_are_another_model(tmp_path: Path, edit: Callable[[Any], None]) -> None:
    plain = load_onnx(write_arcface(tmp_path / "one.onnx"), recipe().complete())
    other = load_onnx(edited(write_arcface(tmp_path / "two.onnx"), edit), recipe().complete())

    assert other.weights_id != plain.weights_id


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_two_outputs_of_one_file_are_two_models(tmp_path: Path) -> None:
    path = write_arcface(tmp_path / "two.onnx", outputs=2)
    one, other = (load_onnx(path, recipe(output=name).complete()) for name in ("embedding", "attributes"))

    assert one.sha256 == other.sha256
    assert one.weights_id != other.weights_id


def edited(path: Path, edit: Callable[[Any], None]) -> Path:
    model = onnx.load(str(path), load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


def set_external(model: Any, **entries: str) -> None:
    tensor = next(each for each in model.graph.initializer if each.data_location == 1)
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"location": "../weights.bin"}, "expected weights in a file of the model's folder, found '../weights.bin'"),
        ({"location": "/etc/passwd"}, "expected weights in a file of the model's folder, found '/etc/passwd'"),
        ({"location": "link.bin"}, "expected weights in a file of the model's folder, found 'link.bin'"),
        ({"location": ""}, "expected weights in a file of the model's folder, found ''"),
        ({"location": "absent.bin"}, "absent.bin, found no such file; copy it beside the model"),
        ({"offset": "999999999"}, "the file is truncated or another model's"),
        ({"length": "99999999999999"}, "the file is truncated or another model's"),
        ({"offset": "-8"}, "the file is truncated or another model's"),
        ({"offset": "many"}, "expected an offset in bytes"),
        ({"length": "4"}, "the file is truncated or damaged"),
    ],
)
def test_weights_beside_the_file_stay_in_its_folder(tmp_path: Path, entries: dict[str, str], told: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = write_arcface(folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    (tmp_path / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")

    with pytest.raises(ModelFormatError) as caught:
        load_onnx(edited(path, lambda model: set_external(model, **entries)), recipe().complete())
    assert told in str(caught.value)


def enlarge(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 1 << 60


def make_negative(model: Any) -> None:
    model.graph.initializer[0].dims[0] = -1


def make_strings(model: Any) -> None:
    model.graph.initializer[0].data_type = onnx.TensorProto.STRING


def add_a_condition(model: Any) -> None:
    model.graph.node.add(op_type="If", name="training")


def remove_nodes(model: Any) -> None:
    del model.graph.node[:]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (enlarge, "the file is truncated or damaged"),
        (make_negative, "expected a shape, found [-1"),
        (make_strings, "expected numbers, found ONNX data type 8"),
        (add_a_condition, "expected a network without control flow, found If 'training'"),
        (remove_nodes, "found one without nodes"),
    ],
)
def test_a_damaged_graph_is_named_before_anything_is_allocated(
    tmp_path: Path, edit: Callable[[Any], None], told: str
) -> None:
    path = edited(write_arcface(tmp_path / "model.onnx"), edit)

    with pytest.raises(EdgeFaceError) as caught:
        load_onnx(path, recipe().complete())
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "found an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer"),
        (b"<!DOCTYPE html>", "found an HTML page"),
        (os.urandom(64) * 40, "expected an ONNX"),
        (bytes(5000), "expected an ONNX"),
    ],
    ids=["empty", "pointer", "html", "random", "zeros"],
)
def test_what_is_no_onnx_file_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)

    with pytest.raises(ModelFormatError, match=told):
        load_onnx(tmp_path / "model.onnx", recipe().complete())


def grow_at_run_time(model: Any) -> None:
    """Tile the image a hundred million times: 15 TB."""
    tensor = onnx.numpy_helper.from_array(np.array([1, 1, 10_000, 10_000], np.int64), "repeats")
    model.graph.initializer.append(tensor)
    first = model.graph.node[0]
    model.graph.node.insert(0, onnx.helper.make_node("Tile", ["image", "repeats"], ["huge"]))
    model.graph.node[1].input[0] = "huge"
    assert first is not None


@pytest.mark.slow
def test_a_graph_that_needs_more_memory_than_its_weights_explain_is_refused(tmp_path: Path) -> None:
    path = edited(write_arcface(tmp_path / "model.onnx"), grow_at_run_time)

    with pytest.raises(ConversionError):
        load_onnx(path, recipe().complete())


def mutations(seed: int) -> Iterator[bytes]:
    """Change, drop, insert and cut bytes, most of them outside the weights."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"edgeface-{os.getpid()}.onnx"
    chance = random.Random(seed)
    originals = [
        write_arcface(path, batch=1, last="shape", first="arithmetic").read_bytes(),
        write_arcface(path, last="unit", layout="NHWC").read_bytes(),
    ]
    path.unlink()
    while True:
        content = bytearray(chance.choice(originals))
        for _ in range(chance.choice([1, 1, 2, 4])):
            place = chance.choice([chance.randrange(len(content)), chance.randrange(min(len(content), 1800))])
            kind = chance.random()
            if kind < 0.5:
                content[place] = chance.randrange(256)
            elif kind < 0.7:
                del content[place : place + chance.randrange(1, 9)]
            elif kind < 0.9:
                content[place:place] = chance.randbytes(chance.randrange(1, 9))
            else:
                del content[place + 1 :]
        yield bytes(content)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(10, marks=pytest.mark.slow),
        pytest.param(2000, marks=[pytest.mark.nightly, pytest.mark.timeout(9000)]),
    ],
)
def test_a_mutated_file_is_read_or_named(tmp_path: Path, count: int) -> None:
    path = tmp_path / "model.onnx"
    for content in itertools.islice(mutations(count), count):
        path.write_bytes(content)
        try:
            load_onnx(path, recipe(mean="0", scale="1").complete())
        except EdgeFaceError as error:
            assert str(error)  # noqa: PT017
    assert list(tmp_path.iterdir()) == [path]


# --- Face Transformer -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sface_is_read_as_opencv_feeds_it(tmp_path: Path) -> None:
    """Its entry leaves raw RGB to the file, which standardises it itself and has a batch of 1."""
    path = write_arcface(tmp_path / "sface.onnx", first="arithmetic", batch=1, last="shape")

    result = convert(path, tmp_path / "out", name="sface-2021dec")

    assert difference(result.ir, photos(), expected(path, photos())) <= 1e-5
    assert result.inputs == {"image_batch/placeholder_port_0": "[?,3,112,112]"}


@pytest.mark.slow
def test_a_face_transformer_of_depth_2_equals_onnx_runtime(tmp_path: Path) -> None:
    path = write_face_transformer(tmp_path / "FaceTransformerOctupletLoss.onnx", depth=2)

    result = convert(path, tmp_path / "out", name="facetransformer-octuplet")

    rows = expected(path, photos(3), name="output")
    assert difference(result.ir, photos(3), rows) <= 1e-4
    assert (result.contract.embedding_dim, result.contract.normalized) == (512, False)
    names = ov.Core().read_model(result.ir).input(0).get_names()
    assert "input_image" in names


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_face_transformer_exported_by_torch_equals_onnx_runtime(tmp_path: Path, dynamic: bool) -> None:
    """Depth 20, by an independent implementation, also with a batch of 1 that the exporter writes into the graph."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "FaceTransformerOctupletLoss.onnx"
    axes = {"input_image": {0: "batch_size"}, "output": {0: "batch_size"}} if dynamic else None
    torch.manual_seed(0)
    torch.onnx.export(
        torch_face_transformer(torch, depth=20), (torch.randn(1, 3, 112, 112),), str(path), opset_version=13,
        input_names=["input_image"], output_names=["output"], dynamic_axes=axes, dynamo=False,
    )  # fmt: skip
    assert abs(path.stat().st_size - 253_021_036) < 1 << 20

    result = convert(path, tmp_path / "out", name="facetransformer-octuplet")

    assert difference(result.ir, photos(3), expected(path, photos(3), name="output")) <= 1e-4
    assert result.inputs == {"image_batch/placeholder_port_0": "[?,3,112,112]"}


def torch_face_transformer(torch: Any, *, depth: int) -> Any:
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(512), nn.LayerNorm(512)])
            self.qkv, self.out = nn.Linear(512, 1536, bias=False), nn.Linear(512, 512)
            self.mlp = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512))

        def forward(self, x: Any) -> Any:
            batch, tokens, _ = x.shape
            qkv = self.qkv(self.norms[0](x)).reshape(batch, tokens, 3, 8, 64).permute(2, 0, 3, 1, 4)
            weights = (qkv[0] @ qkv[1].transpose(-1, -2) * 512**-0.5).softmax(-1)
            x = x + self.out((weights @ qkv[2]).transpose(1, 2).reshape(batch, tokens, 512))
            return x + self.mlp(self.norms[1](x))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Linear(192, 512)
            self.token = nn.Parameter(torch.randn(1, 1, 512))
            self.positions = nn.Parameter(torch.randn(1, 197, 512))
            self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
            self.norm = nn.LayerNorm(512)

        def forward(self, x: Any) -> Any:
            batch = x.shape[0]
            x = x.reshape(batch, 3, 14, 8, 14, 8).permute(0, 2, 4, 3, 5, 1).reshape(batch, 196, 192)
            x = torch.cat([self.token.expand(batch, -1, -1), self.patches(x)], 1) + self.positions
            return self.norm(self.blocks(x)[:, 0])

    return Transformer().eval()
