"""What TensorFlow itself writes and computes, against our reading of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from tiny_graphs import dense_weights, tiny_expected, write_tiny_checkpoint

from edgeface.convert import check_parity, convert
from edgeface.convert.checkpoint import read_checkpoint
from edgeface.convert.graphdef import parse_message
from edgeface.convert.ir import check_structure
from edgeface.convert.messages import DTYPES, GraphDef, Tensor, tensor_to_array
from edgeface.convert.parity import embed_with_ir, run_model
from edgeface.convert.tensorflow import load_tensorflow
from edgeface.errors import ConversionError, NotSupportedError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytestmark = pytest.mark.parity

SIZE = (16, 16)


@pytest.fixture(scope="module")
def tf() -> Any:
    tensorflow = pytest.importorskip("tensorflow")
    return tensorflow.compat.v1


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, *SIZE, 3)).astype(np.float32)


# --- messages and tensors ---------------------------------------------------------------------------------------


def test_our_parser_reads_every_kind_of_tensor_that_tensorflow_writes(tf: Any) -> None:
    for number, dtype in DTYPES.items():
        for value in (np.ones((2, 3), dtype), np.arange(4).astype(dtype), np.array(1, dtype), np.zeros((0, 2), dtype)):
            for proto in (
                tf.make_tensor_proto(value),
                tf.make_tensor_proto(value[..., :1] if value.ndim else value, shape=value.shape),
            ):
                expected = tf.make_ndarray(proto)
                constant = tf.NodeDef(name="c", op="Const")
                constant.attr["value"].tensor.CopyFrom(proto)
                content = tf.GraphDef(node=[constant]).SerializeToString()
                (node,) = parse_message(GraphDef, content, Path("c.pb")).node
                found = tensor_to_array(node.attr["value"].tensor)
                assert node.attr["value"].tensor.dtype == number
                assert found.dtype == dtype
                np.testing.assert_array_equal(found, expected)


def test_a_value_stored_once_is_read_as_tensorflow_reads_it(tf: Any) -> None:
    for dtype in DTYPES.values():
        proto = tf.make_tensor_proto(np.ones(1, dtype))
        proto.tensor_shape.dim[0].size = 5
        ours = parse_message(Tensor, proto.SerializeToString(), Path("t"))
        if not proto.tensor_content:
            np.testing.assert_array_equal(tensor_to_array(ours), tf.make_ndarray(proto))


def test_a_graph_survives_our_reading_and_writing_byte_for_meaning(tf: Any, seeded_pb: Path) -> None:
    original = tf.GraphDef.FromString(seeded_pb.read_bytes())

    again = tf.GraphDef.FromString(parse_message(GraphDef, original.SerializeToString(), seeded_pb).SerializeToString())

    assert again == original


# --- checkpoints ------------------------------------------------------------------------------------------------

VARIABLES = {
    "weights": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scope.with-odd/names_1/x": np.array([1.5, -2.5]),
    "scalar": np.array(7, np.int32),
    "global_step": np.array(2**40, np.int64),
    "flags": np.array([True, False]),
    "half": np.array([0.5, 65504], np.float16),
    "bytes": np.arange(5, dtype=np.uint8),
    "empty": np.zeros((0, 3), np.float32),
    **{f"Repeat/block35_{index}/Conv/weights": np.full((2, 2), index, np.float32) for index in range(400)},
}


def save(tf: Any, prefix: Path, **saver: Any) -> None:
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        for name, value in VARIABLES.items():
            tf.get_variable(name, initializer=tf.constant(value), use_resource=saver.pop("resource", False))
        tf.get_variable("text", initializer=tf.constant("a string"), use_resource=False)
        session.run(tf.global_variables_initializer())
        tf.train.Saver(**saver).save(session, str(prefix))


def test_a_checkpoint_that_tensorflow_wrote_is_read_whole(tf: Any, tmp_path: Path) -> None:
    save(tf, tmp_path / "model.ckpt")

    found = read_checkpoint(tmp_path / "model.ckpt")

    assert found.keys() == VARIABLES.keys()
    for name, expected in VARIABLES.items():
        assert found[name].dtype == expected.dtype
        assert found[name].shape == expected.shape
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_a_sharded_checkpoint_is_read_from_all_its_files(tf: Any, tmp_path: Path) -> None:
    with (
        tf.Graph().as_default() as graph,
        tf.Session(graph=graph, config=tf.ConfigProto(device_count={"CPU": 2})) as session,
    ):
        for device in range(2):
            with tf.device(f"/cpu:{device}"):
                tf.get_variable(f"v{device}", initializer=tf.constant(float(device)), use_resource=False)
        session.run(tf.global_variables_initializer())
        tf.train.Saver(sharded=True).save(session, str(tmp_path / "model"))

    found = read_checkpoint(tmp_path / "model")

    assert {name: float(value) for name, value in found.items()} == {"v0": 0.0, "v1": 1.0}


def test_a_partitioned_variable_is_named(tf: Any, tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        tf.get_variable("sliced", (4, 2), partitioner=tf.fixed_size_partitioner(2), initializer=tf.ones_initializer())
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(tmp_path / "model"))

    with pytest.raises(NotSupportedError, match="variable 'sliced' is stored in slices"):
        read_checkpoint(tmp_path / "model")


def test_tensorflow_reads_the_checkpoints_that_other_tests_write(tf: Any, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)

    reader = tf.train.load_checkpoint(str(tmp_path / "model.ckpt-7"))

    assert reader.get_variable_to_shape_map() == {"weights": [3, 4]}
    np.testing.assert_array_equal(reader.get_tensor("weights"), dense_weights())


# --- conditions -------------------------------------------------------------------------------------------------


def batch_norm(tf: Any, x: Any, phase: Any, name: str) -> Any:
    """Slim's batch norm: statistics of the batch while training, moving averages else, under tf.cond."""
    channels = x.shape[-1]
    generator = np.random.default_rng(len(name))
    scale, offset, mean, variance = (
        tf.constant(generator.uniform(0.5, 1.5, channels).astype(np.float32)) for _ in range(4)
    )
    return tf.cond(
        phase,
        lambda: tf.nn.fused_batch_norm(x, scale, offset, epsilon=0.001, is_training=True)[0],
        lambda: tf.nn.fused_batch_norm(x, scale, offset, mean, variance, 0.001, is_training=False)[0],
        name=name,
    )


def with_batch_norms(tf: Any, x: Any, phase: Any) -> Any:
    for index in range(3):
        kernel = np.random.default_rng(index).standard_normal((3, 3, x.shape[-1], 8)).astype(np.float32)
        x = tf.nn.relu(batch_norm(tf, tf.nn.conv2d(x, kernel, 2, "SAME"), phase, f"norm_{index}"))
    return tf.reduce_mean(x, [1, 2])


def constants_in_branches(tf: Any, x: Any, phase: Any) -> Any:
    keep = tf.cond(phase, lambda: tf.constant(0.4), lambda: tf.constant(1.0))
    inverse = tf.cond(tf.logical_not(phase), lambda: tf.constant(3.0), lambda: tf.constant(5.0))
    return tf.reduce_mean(x, [1, 2]) * keep + inverse


def nested(tf: Any, x: Any, phase: Any) -> Any:
    x = tf.reduce_mean(x, [1, 2])
    inference = tf.logical_not(phase)
    return tf.cond(
        inference,
        lambda: tf.cond(phase, lambda: x - 1, lambda: tf.cond(inference, lambda: x * 2, lambda: x * 7)) + 1,
        lambda: x - tf.random.uniform([3]),
    )


def dropout(tf: Any, x: Any, phase: Any) -> Any:
    x = tf.reduce_mean(x, [1, 2])
    with tf.control_dependencies([tf.print(x)]):
        return tf.cond(phase, lambda: tf.nn.dropout(x, rate=0.6), lambda: tf.identity(x))


@pytest.mark.parametrize("build", [with_batch_norms, constants_in_branches, nested, dropout])
@pytest.mark.parametrize("default", [None, False, True])
def test_conditions_that_tensorflow_wrote_are_resolved_to_what_it_computes(
    tf: Any, build: Callable[..., Any], default: bool | None, images: np.ndarray, tmp_path: Path
) -> None:
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        tf.disable_control_flow_v2()
        x = tf.placeholder(tf.float32, (None, *SIZE, 3), "input")
        phase = (
            tf.placeholder(tf.bool, (), "phase_train")
            if default is None
            else tf.placeholder_with_default(tf.constant(default), (), "phase_train")
        )
        output = tf.identity(build(tf, x, phase), "embeddings")
        expected = session.run(output, {x: images, phase: False})
        definition = graph.as_graph_def()
    assert any(node.op == "Switch" for node in definition.node)
    path = tmp_path / "conditions.pb"
    path.write_bytes(definition.SerializeToString())

    found = run_model(load_tensorflow(path, size=SIZE).model, images)

    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_the_plain_frontend_leaves_of_a_condition_is_refused(tf: Any, tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        tf.disable_control_flow_v2()
        x = tf.placeholder(tf.float32, (None, *SIZE, 3), "input")
        phase = tf.placeholder(tf.bool, (), "phase_train")
        x = tf.reduce_mean(x, [1, 2])
        tf.identity(tf.cond(phase, lambda: x * 2, lambda: x * 3), "embeddings")
        (tmp_path / "plain.pb").write_bytes(graph.as_graph_def().SerializeToString())

    naive = ov.convert_model(str(tmp_path / "plain.pb"))

    with pytest.raises(ConversionError, match=r"expected one input, found 2 \(.*phase_train.*found 1 If operations"):
        check_structure(naive, source="plain.pb")


# --- other containers -------------------------------------------------------------------------------------------


def tiny_network(tf: Any, x: Any, weights: Any) -> Any:
    return tf.nn.l2_normalize(tf.matmul(tf.reduce_mean(x, [1, 2]), weights), 1, name="embeddings")


@pytest.mark.parametrize("resource", [False, True])
def test_a_checkpoint_of_either_kind_of_variable_converts(tf: Any, resource: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        x = tf.placeholder(tf.float32, (None, 160, 160, 3), "input")
        weights = tf.get_variable("w", initializer=tf.constant(dense_weights()), use_resource=resource)
        tiny_network(tf, x, weights)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(folder / "model.ckpt"), global_step=3)

    for path in (folder, folder / "model.ckpt-3.meta"):
        result = convert(path, tmp_path / "ir", name="tiny", parity=check_parity)
        assert result.parity is not None
        assert result.parity.against.startswith("TensorFlow ")
        assert result.parity.passed


@pytest.mark.parametrize("named", [True, False], ids=["facenets-names", "other-names"])
def test_a_saved_model_of_tensorflow_1_converts(tf: Any, named: bool, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        x = tf.placeholder(tf.float32, (None, 160, 160, 3), "image_batch" if named else "picture")
        weights = tf.get_variable("w", initializer=tf.constant(dense_weights()), use_resource=False)
        y = tiny_network(tf, x, weights) if named else tf.identity(tiny_network(tf, x, weights), "face")
        session.run(tf.global_variables_initializer())
        tf.saved_model.simple_save(session, str(folder), {"in": x}, {"out": y})

    for path in (folder, folder / "saved_model.pb"):
        result = convert(path, tmp_path / "ir", parity=check_parity)
        assert result.ir.name == "saved.xml"
        assert result.parity is not None
        assert result.parity.passed


def save_tensorflow_2(folder: Path, size: int | None) -> None:
    import tensorflow as tf2

    class Network(tf2.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf2.Variable(dense_weights())

        @tf2.function(input_signature=[tf2.TensorSpec((None, size, size, 3), tf2.float32)])
        def __call__(self, x: Any) -> Any:
            return tf2.nn.l2_normalize(tf2.matmul(tf2.reduce_mean(x, [1, 2]), self.weights), 1)

    network = Network()
    tf2.saved_model.save(network, str(folder), signatures=network.__call__)


def test_a_saved_model_of_tensorflow_2_converts(tf: Any, tmp_path: Path) -> None:
    save_tensorflow_2(tmp_path / "saved", None)

    result = convert(tmp_path / "saved", tmp_path / "ir", parity=check_parity)

    assert result.parity is not None
    assert result.parity.passed
    images = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), np.uint8)
    np.testing.assert_allclose(
        embed_with_ir(result.ir, images), tiny_expected((images - 127.5) / 128, dense_weights()), atol=1e-4
    )


@pytest.mark.parametrize("version", [1, 2])
def test_a_saved_model_for_images_of_another_size_is_refused(tf: Any, version: int, tmp_path: Path) -> None:
    # This network would run at any size: only what the file says tells that it is not for 160 x 160.
    folder = tmp_path / "saved"
    if version == 2:
        save_tensorflow_2(folder, 32)
    else:
        with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
            x = tf.placeholder(tf.float32, (None, 32, 32, 3), "x")
            y = tiny_network(tf, x, tf.constant(dense_weights()))
            tf.saved_model.simple_save(session, str(folder), {"in": x}, {"out": y})

    with pytest.raises(ConversionError, match="expected a model of 160 x 160 x 3 images, found one of 32 x 32 x 3"):
        convert(folder, tmp_path / "ir")
    assert not (tmp_path / "ir").exists()


# --- the graph that we write ------------------------------------------------------------------------------------


def test_the_census_of_our_graph_is_that_of_the_graph_frozen_by_tensorflow(tf: Any, seeded_pb: Path) -> None:
    census = Counter(node.op for node in tf.GraphDef.FromString(seeded_pb.read_bytes()).node)

    assert census["Switch"] == 2019
    assert census["Merge"] == 449
    assert census["FusedBatchNormV3"] == 224
    assert census["Sub"] == 448
    assert census["FIFOQueueV2"] == census["QueueDequeueUpToV2"] == 1
    assert census["Conv2D"] == 132
