"""Any model file: read, made static, described; and refused with what to do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from tiny_ir import write_tiny_ir

from edgeface.bench.run.benchmark_model import parse_image_format, parse_shapes, read_benchmark_model
from edgeface.errors import ContractError, EdgeFaceError, InputError, ModelFormatError
from edgeface.model.opset import ops
from edgeface.runtime import ImageFormat

CORE = ov.Core()


def write_convolution(path: Path, shape: list[int], *, kernels: int = 4, f16: bool = False) -> Path:
    """One 1x1 convolution of `kernels` x 3 weights over an input of this shape."""
    image = ops.parameter(shape, np.float32, name="image")
    weights = ops.constant(np.ones((kernels, 3, 1, 1), np.float32))
    convolved = ops.convolution(image, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    model = ov.Model([convolved], [image], "graph")
    model.input(0).set_names({"image"})
    ov.save_model(model, path, compress_to_fp16=f16)
    return path


def test_work_is_that_of_one_item_whatever_the_batch(tmp_path: Path) -> None:
    path = write_convolution(tmp_path / "conv.xml", [-1, 3, 10, 20])
    macs = 10 * 20 * 4 * 3
    for batch in (None, 1, 5):
        benchmark_model = read_benchmark_model(path, core=CORE, batch=batch)
        assert benchmark_model.info.gflops_mac2 == pytest.approx(2 * macs / 1e9)
        assert benchmark_model.batch == (batch or 1)
        assert benchmark_model.info.inputs == {"image": (batch or 1, 3, 10, 20)}
    assert benchmark_model.info.parameters == 12
    assert benchmark_model.info.name == "conv"
    assert (benchmark_model.info.format, benchmark_model.info.precision, benchmark_model.info.contract_id) == (
        "ir",
        "FP32",
        None,
    )
    digest = hashlib.sha256(path.read_bytes() + path.with_suffix(".bin").read_bytes())
    assert benchmark_model.info.digest == digest.hexdigest()


def test_a_fixed_batch_is_kept_unless_another_is_asked_for(tmp_path: Path) -> None:
    path = write_convolution(tmp_path / "conv.xml", [2, 3, 8, 8])
    assert read_benchmark_model(path, core=CORE).batch == 2
    assert read_benchmark_model(path, core=CORE, batch=3).batch == 3


def test_half_precision_weights_are_told(tmp_path: Path) -> None:
    path = write_convolution(tmp_path / "conv.xml", [1, 3, 8, 8], kernels=64, f16=True)
    assert read_benchmark_model(path, core=CORE).info.precision == "FP16"


def test_dynamic_sizes_need_a_shape_and_take_it(tmp_path: Path) -> None:
    path = write_convolution(tmp_path / "conv.xml", [-1, 3, -1, -1])
    with pytest.raises(InputError, match=r"--shape 'image\[1,3,224,224\]'"):
        read_benchmark_model(path, core=CORE)
    for shapes in ({"image": (1, 3, 6, 7)}, {"": (1, 3, 6, 7)}):
        benchmark_model = read_benchmark_model(path, core=CORE, shapes=shapes, batch=2)
        assert benchmark_model.info.inputs == {"image": (2, 3, 6, 7)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"picture": (1, 3, 8, 8)}, "expected the inputs image, found picture"),
        ({"image": (1, 4, 8, 8)}, r"does not take inputs of \[1,4,8,8\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    path = write_convolution(tmp_path / "conv.xml", [-1, 3, 8, 8])
    with pytest.raises(InputError, match=message):
        read_benchmark_model(path, core=CORE, shapes=shapes)


def test_a_contract_names_the_model_and_allows_image_formats(tmp_path: Path) -> None:
    path = write_tiny_ir(tmp_path)
    benchmark_model = read_benchmark_model(path, core=CORE, image_format=ImageFormat(size=(48, 64)), batch=2)
    assert benchmark_model.contract is not None
    assert benchmark_model.info.contract_id == benchmark_model.contract.contract_id
    assert benchmark_model.info.inputs == {"image": (2, 48, 64, 3)}
    bare = read_benchmark_model(path, core=CORE, batch=2)
    assert benchmark_model.info.gflops == bare.info.gflops  # the model's own, without the adapter's
    assert benchmark_model.work.gflops_omz > bare.work.gflops_omz
    plain = write_convolution(tmp_path / "conv.xml", [1, 3, 8, 8])
    with pytest.raises(ContractError, match="edgeface adopt"):
        read_benchmark_model(plain, core=CORE, image_format=ImageFormat())


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.txt", b"", InputError, r"expected an OpenVINO IR \(.xml\) or an ONNX"),
        ("a.xml", None, InputError, "a.xml: expected a model to read: No such file"),
        ("a.xml", b"<net", InputError, "a.bin: expected a model to read"),
        ("a.onnx", b"\x08\x07garbage", ModelFormatError, "cannot read this model"),
    ],
)
def test_what_is_no_model_is_named(
    tmp_path: Path, name: str, content: bytes | None, error: type[EdgeFaceError], message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_benchmark_model(tmp_path / name, core=CORE)


def test_an_ir_without_layers_is_refused_before_it_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text('<?xml version="1.0"?><net name="a" version="11"/>')
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(ModelFormatError, match="expected a model with inputs and outputs, found 0 and 0"):
        read_benchmark_model(tmp_path / "a.xml", core=ov.Core())


def test_a_truncated_ir_is_named(tmp_path: Path) -> None:
    path = write_convolution(tmp_path / "conv.xml", [1, 3, 8, 8])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelFormatError, match=r"conv\.xml: OpenVINO cannot read this model"):
        read_benchmark_model(path, core=CORE)


def test_shapes_are_read_as_benchmark_app_has_them() -> None:
    assert parse_shapes("[1,3,224,224]") == {"": (1, 3, 224, 224)}
    assert parse_shapes(" image:0[1, 3,8,8] , sizes[1,2],scalar[]") == {
        "image:0": (1, 3, 8, 8),
        "sizes": (1, 2),
        "scalar": (),
    }


@pytest.mark.parametrize("text", ["", "1,3,8,8", "[1,?]", "a[1]b[2]", "[1],[2]", "a[1", "[-1]"])
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="shape: expected"):
        parse_shapes(text)


def test_image_formats_are_read_in_any_order() -> None:
    assert parse_image_format("640x480 rgb") == ImageFormat(color="RGB", size=(480, 640))
    assert parse_image_format("NCHW f32 BGRX antialias") == ImageFormat(
        layout="NCHW", dtype="f32", color="BGRX", resize="antialias"
    )
    with pytest.raises(InputError, match="found 'CMYK'"):
        parse_image_format("u8 CMYK")
