"""The converter on the published weights, against what TensorFlow computed with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest

from edgeface.cli import main
from edgeface.convert import adopt, convert
from edgeface.convert.facenet_graph import build_graph
from edgeface.convert.ir import check_structure
from edgeface.convert.messages import DT_BOOL, DT_FLOAT, DTYPES, array_to_tensor
from edgeface.convert.parity import embed_with_ir, run_model
from edgeface.convert.tensorflow import load_tensorflow
from edgeface.errors import NegativeResult
from edgeface.model.contract import ModelContract
from edgeface.model.embedding import require_same_contract
from edgeface.model.ir_file import read_contract
from edgeface.recognize.known import choose_threshold, shipped_thresholds
from edgeface.runtime import DevicePlan, Embedder

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

FACENET = "facenet-20180408-102900"
NORMALIZE = "InceptionResnetV1/Bottleneck/BatchNorm/Reshape_1/Normalize"
FEW = 4
"""Golden images where all 24 would only cost time."""


def embed(model: ov.Model, batch: np.ndarray) -> np.ndarray:
    """Plain OpenVINO, without any code of ours."""
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    size = model.input(0).get_partial_shape()[0]
    step = len(batch) if size.is_dynamic else size.get_length()
    request = compiled.create_infer_request()
    rows = [request.infer({0: batch[start : start + step]})[0].copy() for start in range(0, len(batch), step)]
    return np.concatenate(rows)


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)


def as_bgr_nchw(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2), np.float32)


# --- the numbers ------------------------------------------------------------------------------------------------


def test_the_default_ir_fed_bgr_nchw_0_to_255_gives_the_golden_embeddings(real_ir: Path, golden: Any) -> None:
    found = embed(ov.Core().read_model(real_ir), as_bgr_nchw(golden.images))

    assert np.abs(found - golden.embeddings).max() <= 1e-5
    assert cosines(found, golden.embeddings).min() >= 0.999999


@pytest.mark.slow
def test_the_nhwc_rgb_ir_with_a_static_batch_gives_the_golden_embeddings(
    real_pb: Path, golden: Any, tmp_path: Path
) -> None:
    result = convert(real_pb, tmp_path, layout="nhwc", color="rgb", batch=6)

    model = ov.Core().read_model(result.ir)
    assert model.input(0).get_shape() == ov.Shape([6, 160, 160, 3])
    found = embed(model, golden.images.astype(np.float32))
    assert np.abs(found - golden.embeddings).max() <= 1e-5
    assert cosines(found, golden.embeddings).min() >= 0.999999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "color", "feed"),
    [
        ("nchw", "bgr", as_bgr_nchw),
        pytest.param("nhwc", "rgb", lambda images: images.astype(np.float32), marks=pytest.mark.nightly),
    ],
)
def test_the_fp16_ir_is_half_as_large_and_as_good(
    converted: Callable[..., Path],
    real_ir: Path,
    golden: Any,
    layout: Any,
    color: Any,
    feed: Callable[[np.ndarray], np.ndarray],
) -> None:
    ir = converted(layout=layout, color=color, precision="fp16")

    found = embed(ov.Core().read_model(ir), feed(golden.images))
    assert cosines(found, golden.embeddings).min() >= 0.9999
    halves = ir.with_suffix(".bin").stat().st_size / real_ir.with_suffix(".bin").stat().st_size
    assert 0.49 < halves < 0.51


def test_the_ir_is_what_open_model_zoo_documented(real_ir: Path) -> None:
    model = ov.Core().read_model(real_ir)

    assert model.input(0).get_names() >= {"image_batch", "image_batch/placeholder_port_0"}
    assert model.output(0).get_names() >= {"embeddings", NORMALIZE}
    assert model.input(0).get_partial_shape() == ov.PartialShape([-1, 3, 160, 160])
    assert model.output(0).get_partial_shape() == ov.PartialShape([-1, 512])
    contract = ModelContract.read_from(model)
    assert (contract.layout, contract.color, contract.value_range) == ("NCHW", "BGR", (0.0, 255.0))
    assert (contract.name, contract.provenance) == (FACENET, "published")  # by its weights, whatever file they are in
    assert (contract.alignment.recipe, contract.alignment.margin) == ("mtcnn-box-margin", 32)


def test_an_ir_converted_today_is_the_one_whose_thresholds_and_galleries_carry_the_former_id(real_ir: Path) -> None:
    contract = ModelContract.read_from(ov.Core().read_model(real_ir))

    assert contract.former_ids == ("4c0ebb72970188bf",)
    assert shipped_thresholds("4c0ebb72970188bf") == shipped_thresholds(contract.contract_id) != ()
    assert choose_threshold(None, contract, far=0.001).far == 0.001
    require_same_contract("4c0ebb72970188bf", contract.contract_id, what="gallery and model")


def test_pairs_of_one_person_are_nearer_than_pairs_of_two(real_ir: Path, golden: Any) -> None:
    found = embed_with_ir(real_ir, golden.images)
    cosine = (found[0::2] * found[1::2]).sum(axis=1)

    assert cosine[:8].min() > cosine[8:].max()


def test_converting_again_keeps_the_id_and_the_weights(real_pb: Path, real_ir: Path, tmp_path: Path) -> None:
    again = convert(real_pb, tmp_path)

    first = ModelContract.read_from(ov.Core().read_model(real_ir))
    assert again.contract == first


# --- graphs that were frozen differently ------------------------------------------------------------------------


def node_of(graph: Any, name: str) -> Any:
    return next(node for node in graph.node if node.name == name)


def unchanged(graph: Any) -> None:
    """Only what `build_graph` was asked for."""


def phase_train_with_default(graph: Any) -> None:
    default = graph.node.add(name="phase_train/input", op="Const")
    array_to_tensor(np.array(True), default.attr["value"].tensor)
    default.attr["dtype"].type = DT_BOOL
    node = node_of(graph, "phase_train")
    node.op = "PlaceholderWithDefault"
    node.input.append("phase_train/input")


def extra_identities(graph: Any) -> None:
    """As graph transforms leave them: behind every convolution, before the predicate, after the output."""
    added = []
    for node in graph.node:
        if node.op == "Conv2D":
            node.name += "/raw"
            added.append((node.name.removesuffix("/raw"), node.name, DT_FLOAT))
    node_of(graph, "phase_train").name = "phase_train"
    for node in graph.node:
        if node.name.endswith("/pred_id"):
            added.append((f"{node.name}/again", "phase_train", DT_BOOL))
            node.input[0] = f"{node.name}/again"
    node_of(graph, "embeddings").name = "embeddings/raw"
    added.append(("embeddings", "embeddings/raw", DT_FLOAT))
    for name, source, dtype in added:
        graph.node.add(name=name, op="Identity", input=[source]).attr["T"].type = dtype


def input_is_named_input(graph: Any) -> None:
    """No image_batch: a placeholder called input."""
    node = node_of(graph, "input")
    node.op = "Placeholder"
    node.ClearField("input")
    node.attr.clear()
    node.attr["dtype"].type = DT_FLOAT
    kept = [each for each in graph.node if each.name not in ("image_batch", "label_batch")]
    del graph.node[:]
    graph.node.extend(kept)


def default_attributes_left_out(graph: Any) -> None:
    """As `strip_default_attrs` leaves them: is_training is true by default, so only False is written."""
    for node in graph.node:
        if node.op.startswith("FusedBatchNorm") and node.attr["is_training"].b:
            del node.attr["is_training"]
        if node.op == "Conv2D":
            for name in ("use_cudnn_on_gpu", "dilations", "data_format"):
                del node.attr[name]


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"batch_norm": "FusedBatchNorm"}, unchanged),
        pytest.param({"batch_norm": "FusedBatchNorm", "queue": False}, unchanged, marks=pytest.mark.nightly),
        ({"queue": False}, unchanged),
        ({}, phase_train_with_default),
        pytest.param({}, extra_identities, marks=pytest.mark.nightly),
        pytest.param({"queue": False}, input_is_named_input, marks=pytest.mark.nightly),
        ({}, default_attributes_left_out),
    ],
    ids=[
        "FusedBatchNorm",
        "FusedBatchNorm-no-queue",
        "no-queue",
        "phase_train-with-default",
        "extra-Identity-nodes",
        "input-named-input",
        "default-attributes-left-out",
    ],
)
def test_a_graph_that_was_frozen_differently_gives_the_golden_embeddings(
    weights: dict[str, Any], golden: Any, tmp_path: Path, options: dict[str, Any], change: Callable[[Any], None]
) -> None:
    graph = build_graph(weights, **options)
    change(graph)
    path = tmp_path / "other.pb"
    path.write_bytes(graph.SerializeToString())

    model = load_tensorflow(path, size=(160, 160)).model

    check_structure(model, source="other.pb")
    standardised = ((golden.images[:FEW] - 127.5) / 128).astype(np.float32)
    assert np.abs(embed(model, standardised) - golden.embeddings[:FEW]).max() <= 1e-5


# --- TensorFlow as the oracle -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


@pytest.mark.slow
@pytest.mark.parity
def test_tensorflow_agrees_on_the_built_graph_and_also_trains_it(tf: Any, real_pb: Path, golden: Any) -> None:
    standardised = (golden.images[:8] - 127.5) / 128
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        tf.import_graph_def(tf.GraphDef.FromString(real_pb.read_bytes()), name="")
        inference, training = (
            session.run("embeddings:0", {"image_batch:0": standardised, "phase_train:0": phase})
            for phase in (False, True)
        )

    assert np.abs(inference - golden.embeddings[:8]).max() <= 1e-5
    assert training.shape == inference.shape
    assert np.isfinite(training).all()
    assert cosines(training, inference).max() < 0.99


@pytest.mark.slow
@pytest.mark.parity
def test_a_checkpoint_that_tensorflow_saved_gives_the_golden_embeddings(
    tf: Any, weights: dict[str, Any], golden: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "20180408-102900"
    save_as_checkpoint(tf, weights, folder / "model-20180408-102900.ckpt")
    # The released files: model-X.meta beside model-X.ckpt-90.*
    meta = folder / "model-20180408-102900.meta"
    (folder / "model-20180408-102900.ckpt-90.meta").rename(meta)

    of_folder, of_meta = (load_tensorflow(path, size=(160, 160)) for path in (folder, meta))

    assert of_folder.sha256 == of_meta.sha256
    standardised = ((golden.images[:FEW] - 127.5) / 128).astype(np.float32)
    for each in (of_folder, of_meta):
        assert np.abs(embed(each.model, standardised) - golden.embeddings[:FEW]).max() <= 1e-5


def save_as_checkpoint(tf: Any, weights: dict[str, Any], prefix: Path) -> None:
    """The graph with real variables in place of the frozen constants, saved the way train_softmax.py does."""
    definition = tf.GraphDef.FromString(build_graph(weights).SerializeToString())
    frozen = {*weights, *(f"{name}/read" for name in weights)}
    kept = tf.GraphDef(node=[node for node in definition.node if node.name not in frozen])
    used = {each for node in kept.node for each in node.input}
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        variables = {
            name: tf.get_variable(name, value.shape, initializer=tf.zeros_initializer(), use_resource=False)
            for name, value in weights.items()
        }
        session.run(
            [variable.initializer for variable in variables.values()],
            {variable.initial_value: weights[name] for name, variable in variables.items()},
        )
        values = {name + suffix: variable.value() for name, variable in variables.items() for suffix in ("", "/read")}
        tf.import_graph_def(kept, input_map={each: values[each] for each in used & values.keys()}, name="")
        tf.train.Saver().save(session, str(prefix), global_step=90)


# --- what others convert ----------------------------------------------------------------------------------------


def bare(model: ov.Model, *, input: str, output: str) -> ov.Model:
    """The same network as another tool would have written it: no contract, its own names."""
    stripped = ov.Model(model.get_results(), model.get_parameters(), "model")
    stripped.input(0).get_tensor().set_names({input})
    stripped.output(0).get_tensor().set_names({output})
    return stripped


def strip(ir: Path, folder: Path) -> Path:
    """The IR without its contract."""
    ov.save_model(bare(ov.Core().read_model(ir), input="in", output="out"), folder / "bare.xml", compress_to_fp16=False)
    return folder / "bare.xml"


@pytest.fixture(scope="module")
def few_golden(golden: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    np.savez(path, images=golden.images[:FEW], embeddings=golden.embeddings[:FEW])
    return path


def omz_2021(same: Path, real_pb: Path) -> ov.Model:
    """Open Model Zoo's form of 2021: NCHW, BGR, static."""
    model = ov.Core().read_model(same)
    model.reshape([1, 3, 160, 160])
    return bare(model, input="image_batch/placeholder_port_0", output=NORMALIZE)


def mo_2024(same: Path, real_pb: Path) -> ov.Model:
    """`mo`'s form: NHWC, BGR (reverse_input_channels)."""
    return bare(ov.Core().read_model(same), input="image_batch", output="embeddings")


def ovc_like(same: Path, real_pb: Path) -> ov.Model:
    """The network alone: NHWC, standardised RGB."""
    return bare(load_tensorflow(real_pb, size=(160, 160)).model, input="image_batch:0", output="embeddings:0")


def rgb(same: Path, real_pb: Path) -> ov.Model:
    """NCHW, RGB 0-255: reverse_input_channels forgotten."""
    return bare(ov.Core().read_model(same), input="input", output="embeddings")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "precision", "layout", "color", "golden_given"),
    [
        (omz_2021, "FP32", "NCHW", "BGR", False),
        pytest.param(mo_2024, "FP16", "NHWC", "BGR", True, marks=pytest.mark.nightly),
        (ovc_like, "FP16", "NHWC", "RGB", False),
        pytest.param(rgb, "FP32", "NCHW", "RGB", True, marks=pytest.mark.nightly),
    ],
)
def test_a_foreign_ir_gets_the_contract_that_its_answers_prove(
    make: Callable[..., ov.Model],
    precision: str,
    layout: str,
    color: str,
    golden_given: bool,
    converted: Callable[..., Path],
    real_pb: Path,
    golden: Any,
    few_golden: Path,
    tmp_path: Path,
) -> None:
    same = converted(layout=layout.lower(), color=color.lower(), precision=precision.lower())
    foreign = tmp_path / "foreign.xml"
    ov.save_model(make(same, real_pb), foreign, compress_to_fp16=precision == "FP16")
    before = foreign.read_bytes()

    result = adopt(foreign, tmp_path / "adopted", name=FACENET, golden=few_golden if golden_given else None)

    contract = ModelContract.read_from(ov.Core().read_model(result.ir))
    assert contract == result.contract
    assert (contract.layout, contract.color, contract.precision) == (layout, color, precision)
    assert contract.provenance == "published"  # by its fingerprint: other constants, but the same network
    assert contract.contract_id == read_contract(same)[1].contract_id
    assert contract.value_range == (0.0, 255.0)
    assert result.inputs == {"image_batch/placeholder_port_0": "[?,3,160,160]" if layout == "NCHW" else "[?,160,160,3]"}
    found = embed_with_ir(result.ir, golden.images[:FEW])
    assert cosines(found, golden.embeddings[:FEW]).min() >= (0.999999 if precision == "FP32" else 0.9999)
    assert foreign.read_bytes() == before


def test_another_model_under_this_name_is_refused_with_exit_1(
    seeded_pb: Path, few_golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = strip(convert(seeded_pb, tmp_path / "other").ir, tmp_path)

    code = main(["adopt", str(other), "--name", FACENET, "-o", str(tmp_path / "out"), "--golden", str(few_golden)])

    assert code == 1
    assert "expected embeddings of 512 numbers, found 128" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_network_with_other_weights_is_refused_with_exit_1(
    real_ir: Path, golden: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As good as another checkpoint: for these images it should give what it gives for others.
    path = tmp_path / "golden.npz"
    np.savez(path, images=golden.images[:FEW], embeddings=golden.embeddings[-FEW:])

    code = main(
        [
            "adopt",
            str(strip(real_ir, tmp_path)),
            "--name",
            FACENET,
            "-o",
            str(tmp_path / "out"),
            "--golden",
            str(path),
            "--json",
        ]
    )

    output = capsys.readouterr()
    assert code == 1
    assert json.loads(output.out)["error"]["kind"] == "NegativeResult"
    assert "this is another model, or its preprocessing differs" in output.err
    assert not (tmp_path / "out").exists()


def test_golden_images_that_cannot_tell_the_colours_apart_are_refused(
    real_ir: Path, golden: Any, tmp_path: Path
) -> None:
    grey = golden.images[:FEW].mean(axis=3, keepdims=True).astype(np.uint8).repeat(3, axis=3)
    path = tmp_path / "grey.npz"
    np.savez(path, images=grey, embeddings=embed_with_ir(real_ir, grey))

    with pytest.raises(NegativeResult, match=r"expected exactly one colour order.*found 2 .*BGR 0-255.*RGB 0-255"):
        adopt(strip(real_ir, tmp_path), tmp_path / "out", name=FACENET, golden=path)


REIDENTIFICATION = "face-reidentification-retail-0095"


def test_open_model_zoos_mobilefacenet_is_adopted_by_recipe(data: Path, tmp_path: Path) -> None:
    foreign = data / "omz" / REIDENTIFICATION / "FP16" / f"{REIDENTIFICATION}.xml"
    options = ("--color", "BGR", "--mean", "0", "--scale", "1", "--alignment", "five-point-112", "--normalized")

    assert main(["adopt", str(foreign), "-o", str(tmp_path), *options]) == 0

    ir = tmp_path / foreign.name
    contract = ModelContract.read_from(ov.Core().read_model(ir))
    assert (contract.name, contract.layout, contract.input_size) == (REIDENTIFICATION, "NCHW", (128, 128))
    assert (contract.precision, contract.provenance, contract.embedding_dim) == ("FP16", "unknown", 256)
    photos = [cv2.imread(str(path)) for path in sorted((data / "photos").glob("*"))]
    crops = np.stack([cv2.resize(photo, (128, 128)) for photo in (*photos, photos[0][:, ::-1])])
    original = ov.Core().read_model(foreign)
    expected = embed(original, np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32)).reshape(len(crops), 256)
    for batch in (1, 2, 5):
        plan = DevicePlan(device="CPU", precision="f32", batch_buckets=(batch,))
        with Embedder.load(ir, plan=plan) as embedder:
            found = embedder.embed(list(crops[:batch]))
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() <= 1e-5
        assert cosines(found, expected[:batch]).min() >= 0.99999


def test_every_kind_of_constant_in_the_graph_is_one_that_we_read(weights: dict[str, Any]) -> None:
    kinds = {node.attr["dtype"].type for node in build_graph(weights).node if node.op == "Const"}

    assert kinds <= DTYPES.keys()


def test_run_model_agrees_with_plain_openvino_on_a_static_batch(real_ir: Path, golden: Any) -> None:
    model = ov.Core().read_model(real_ir)
    model.reshape([3, 3, 160, 160])

    found = run_model(model, as_bgr_nchw(golden.images[:FEW]))  # 4 is no multiple of 3

    assert np.abs(found - golden.embeddings[:FEW]).max() <= 1e-5
