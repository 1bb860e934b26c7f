"""Counted work of real models against what was published for them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from edgeface.model.flops import Work, count_work
from edgeface.vision.mtcnn_nets import NetName, build_net, load_weights

pytestmark = pytest.mark.real

FACENET = "facenet-20180408-102900"
# Open Model Zoo's model pages: GFLOPs and 10^6 parameters; and model_analyzer's own GFLOPs on today's IR, from
# its tests/data/IRv10_models.json.
RETAIL = {
    "face-detection-retail-0004": (1.067, 0.588, 1.0711),
    "landmarks-regression-retail-0009": (0.021, 0.191, 0.0210),
    "face-reidentification-retail-0095": (0.588, 1.107, 0.5905),
}
BIASED = {"Convolution", "GroupConvolution"}


def read(path: Path) -> ov.Model:
    return ov.Core().read_model(path)


def retail(data: Path, name: str) -> ov.Model:
    return read(data / "omz" / name / "FP16" / f"{name}.xml")


@pytest.fixture(scope="module")
def facenet_model(real_ir: Path) -> ov.Model:
    return read(real_ir)


@pytest.fixture(scope="module")
def facenet(facenet_model: ov.Model) -> Work:
    return count_work(facenet_model)


def test_facenet_has_the_published_work_and_parameters(facenet: Work) -> None:
    assert facenet.gflops_omz == pytest.approx(2.846, rel=0.005)
    assert facenet.mparams_omz == pytest.approx(23.469, rel=0.005)
    assert facenet.uncounted == ()


def test_facenet_multiplies_2_8353_gflops(facenet: Work) -> None:
    assert facenet.gflops_mac2 == pytest.approx(2.8353, abs=5e-5)
    assert facenet.int8_macs == 0


def test_facenet_stores_its_kernels_biases_and_folded_shifts(facenet: Work, data: Path) -> None:
    stored: Counter[str] = Counter()
    with np.load(data / FACENET / "weights.npz") as arrays:
        for name in arrays.files:
            stored[name.rsplit("/", 1)[1]] += arrays[name].size
    # Folding leaves one shift a channel of each batch norm; where the last one keeps its scale, 512 more, and a
    # handful of scalars.
    folded = stored["weights"] + stored["biases"] + stored["beta"]
    assert folded == 23_467_824
    assert folded <= facenet.parameters <= folded + 512 + 16


@pytest.mark.parametrize("name", RETAIL)
def test_retail_model_has_the_published_work_and_parameters(data: Path, name: str) -> None:
    gflops, mparams, on_todays_ir = RETAIL[name]
    work = count_work(retail(data, name))
    assert work.gflops_omz == pytest.approx(gflops, rel=0.02)
    assert work.mparams_omz == pytest.approx(mparams, rel=0.02)
    assert work.gflops_omz == pytest.approx(on_todays_ir, abs=5e-5)


def gflops_before_ir_v10(model: ov.Model) -> float:
    """A bias was inside its convolution, free, and an Eltwise of two activations cost 3 where it costs 1 today."""
    flops = {layer.name: layer.flops_omz for layer in count_work(model).layers}
    total = sum(flops.values())
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Add", "Multiply"):
            first, second = (node.input_value(port).get_node().get_type_name() for port in (0, 1))
            if first in BIASED and second in ("Constant", "Convert"):
                total -= flops[node.get_friendly_name()]
            elif second not in ("Constant", "Convert"):
                total += 2 * flops[node.get_friendly_name()]
    return total / 1e9


@pytest.mark.parametrize("name", RETAIL)
def test_distance_from_the_published_figure_is_biases_and_eltwise(data: Path, name: str) -> None:
    assert gflops_before_ir_v10(retail(data, name)) == pytest.approx(RETAIL[name][0], abs=5e-4)


def test_facenets_distance_from_the_published_figure_is_biases_and_eltwise(facenet_model: ov.Model) -> None:
    assert gflops_before_ir_v10(facenet_model) == pytest.approx(2.846, abs=5e-4)


def test_only_the_boxes_that_survive_are_not_counted(data: Path) -> None:
    work = count_work(retail(data, "face-detection-retail-0004"))
    assert [(missing.kind, missing.reason) for missing in work.uncounted] == [
        ("DetectionOutput", "depends on the data")
    ]


def test_fp16_and_fp32_files_differ_in_weight_bytes_alone(data: Path) -> None:
    folder = data / "omz" / "landmarks-regression-retail-0009"
    half, single = (count_work(read(next((folder / p).glob("*.xml")))) for p in ("FP16", "FP32"))
    assert single.weight_bytes == 2 * half.weight_bytes == 4 * single.parameters
    assert (single.macs, single.parameters) == (half.macs, half.parameters)


NETS = {
    # Side of the picture, and MACs by hand from the published layers (davidsandberg/facenet,
    # src/align/detect_face.py). P-Net takes any size; on 12 x 12 it gives one answer.
    "pnet": (12, 10 * 10 * 10 * 27 + 3 * 3 * 16 * 90 + 32 * 144 + 32 * 2 + 32 * 4),
    "rnet": (24, 22 * 22 * 28 * 27 + 9 * 9 * 48 * 252 + 3 * 3 * 64 * 192 + 576 * 128 + 128 * (2 + 4)),
    "onet": (48, 46 * 46 * 32 * 27 + 21 * 21 * 64 * 288 + 8 * 8 * 64 * 576 + 3 * 3 * 128 * 256 + 1152 * 256 + 256 * 16),
}


@pytest.mark.parametrize("name", NETS)
def test_mtcnn_is_counted_whole(name: NetName, data: Path) -> None:
    side, macs = NETS[name]
    net = build_net(name, load_weights(data / "mtcnn"), batch=1)
    net.reshape([1, side, side, 3])
    work = count_work(net)
    assert work.uncounted == ()
    # Heads are one product here: the logit of a face is the difference of two, so one row less.
    head = {"pnet": 32, "rnet": 128, "onet": 256}[name]
    assert work.macs == macs - head
    assert sum(layer.kind == "PRelu" for layer in work.layers) == {"pnet": 3, "rnet": 4, "onet": 5}[name]


def test_nothing_but_surviving_boxes_is_uncounted_in_any_published_file(data: Path) -> None:
    files = sorted([*data.glob("omz/*/*/*.xml"), *data.glob("yunet/*.onnx")])
    assert len(files) >= 6
    for path in files:
        model = read(path)
        if model.is_dynamic():
            model.reshape([-1, 3, 320, 320])
        assert {missing.kind for missing in count_work(model).uncounted} <= {"DetectionOutput"}, path.name


def test_yunet_counts_the_same_at_a_fixed_and_at_a_given_size(data: Path) -> None:
    fixed = count_work(read(data / "yunet" / "yunet_n_320_320.onnx"))
    dynamic = read(data / "yunet" / "yunet_n_dynamic.onnx")
    dynamic.reshape([-1, 3, 320, 320])
    work = count_work(dynamic)
    assert fixed.uncounted == work.uncounted == ()
    assert (work.macs, work.gflops_omz, work.parameters) == (fixed.macs, fixed.gflops_omz, fixed.parameters)
