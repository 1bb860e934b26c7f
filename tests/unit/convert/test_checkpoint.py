"""Checkpoints read without TensorFlow, whole and damaged; the ones that TensorFlow wrote are in tests/parity."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profiles import examples
from tiny_graphs import tiny_facenet, write_checkpoint, write_tiny_checkpoint

from edgeface.convert.checkpoint import find_checkpoint, read_checkpoint, shard_paths
from edgeface.convert.tensorflow import checkpoint_of, load_tensorflow
from edgeface.errors import EdgeFaceError, ModelFormatError, NotSupportedError

VARIABLES = {
    "scope/weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scope/weights_1": np.array([-1.5], np.float32),
    "step": np.array(90, np.int64),
    "flags": np.array([True, False, True]),
    "nothing": np.zeros((0, 4), np.float32),
    "größe [0]": np.array([7], np.int32),
}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    path = tmp_path / "model.ckpt-90"
    write_checkpoint(path, VARIABLES)
    return path


def index_of(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def data_of(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".data-00000-of-00001")


def test_every_variable_comes_back(prefix: Path) -> None:
    found = read_checkpoint(prefix)

    assert found.keys() == VARIABLES.keys()
    for name, expected in VARIABLES.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_a_missing_shard_is_named(prefix: Path) -> None:
    data_of(prefix).unlink()

    with pytest.raises(ModelFormatError, match=r"expected model\.ckpt-90\.data-00000-of-00001 beside"):
        read_checkpoint(prefix)


@pytest.mark.parametrize("lost", [1, 10, None])
def test_a_truncated_shard_is_named(prefix: Path, lost: int | None) -> None:
    content = data_of(prefix).read_bytes()
    data_of(prefix).write_bytes(content[: -lost if lost else 0])

    with pytest.raises(ModelFormatError, match="the file is truncated: copy it again"):
        read_checkpoint(prefix)


def test_an_index_truncated_anywhere_is_refused(prefix: Path) -> None:
    content = index_of(prefix).read_bytes()
    for length in range(len(content)):
        index_of(prefix).write_bytes(content[:length])
        with pytest.raises(ModelFormatError, match=r"\.index"):
            read_checkpoint(prefix)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=examples(300))
@given(position=st.integers(min_value=0), value=st.integers(0, 255))
def test_a_damaged_index_is_read_or_refused_but_never_an_internal_failure(
    prefix: Path, position: int, value: int
) -> None:
    path = index_of(prefix)
    write_checkpoint(prefix, VARIABLES)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        read_checkpoint(prefix)
    except EdgeFaceError as error:
        assert str(prefix) in str(error)  # noqa: PT017 - either end is right


def test_a_big_endian_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "big", VARIABLES, endianness=1)

    with pytest.raises(NotSupportedError, match="found a big-endian one"):
        read_checkpoint(tmp_path / "big")


def test_a_compressed_index_is_refused(prefix: Path) -> None:
    # The first block's end, and with it its compression type, is where its restart array ends.
    content = bytearray(index_of(prefix).read_bytes())
    restarts = struct.pack("<II", 0, 1)
    content[content.index(restarts) + len(restarts)] = 1  # Snappy
    index_of(prefix).write_bytes(content)

    with pytest.raises(NotSupportedError, match="expected an uncompressed checkpoint index, found a compressed"):
        read_checkpoint(prefix)


def test_the_newest_checkpoint_of_a_folder_is_the_one_that_its_state_file_names(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write_checkpoint(tmp_path / f"model.ckpt-{step}", VARIABLES)
    assert find_checkpoint(tmp_path).name == "model.ckpt-100"

    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-10"\n')
    assert find_checkpoint(tmp_path).name == "model.ckpt-10"


def test_a_meta_gets_the_checkpoint_of_its_own_name_from_a_shared_folder(tmp_path: Path) -> None:
    # As when both released FaceNets are unpacked into one folder.
    first = write_tiny_checkpoint(tmp_path, stem="model-20180402-114759", seed=1, step=275)
    second = write_tiny_checkpoint(tmp_path, stem="model-20180408-102900", seed=2, step=90)

    assert checkpoint_of(first) == (first, tmp_path / "model-20180402-114759.ckpt-275")
    assert checkpoint_of(second) == (second, tmp_path / "model-20180408-102900.ckpt-90")


def test_a_meta_is_never_filled_with_another_models_checkpoint(tmp_path: Path) -> None:
    meta = write_tiny_checkpoint(tmp_path, stem="model-a")
    write_tiny_checkpoint(tmp_path, stem="model-b")
    (tmp_path / "model-a.ckpt-7.index").unlink()

    with pytest.raises(ModelFormatError, match=r"model-a\*\.index.*only those of model-b\.ckpt-7"):
        load_tensorflow(meta, size=(160, 160))


def test_the_digest_covers_every_file_whatever_the_name(tmp_path: Path) -> None:
    meta = write_tiny_checkpoint(tmp_path, stem="model[v1]")
    digest = load_tensorflow(meta, size=(160, 160)).sha256
    assert len(shard_paths(tmp_path / "model[v1].ckpt-7")) == 2

    write_tiny_checkpoint(tmp_path, stem="model[v1]", seed=1)
    assert load_tensorflow(meta, size=(160, 160)).sha256 != digest


@pytest.mark.parametrize("present", [".meta", ".data-00000-of-00001"])
def test_a_folder_without_an_index_is_refused(tmp_path: Path, present: str) -> None:
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "model.ckpt-7.index").unlink()
    if present != ".meta":
        (tmp_path / "model.meta").unlink()

    with pytest.raises(ModelFormatError, match="expected a"):
        load_tensorflow(tmp_path, size=(160, 160))


@pytest.mark.slow
def test_a_checkpoint_has_the_identity_of_the_frozen_graph_and_another_graph_of_its_weights_has_not(
    tmp_path: Path,
) -> None:
    frozen, other = tiny_facenet(), tiny_facenet()
    next(node for node in other.message.node if node.op == "Square").op = "Abs"
    paths = [
        write_tiny_checkpoint(tmp_path / "checkpoint"),
        frozen.write(tmp_path / "frozen.pb"),
        other.write(tmp_path / "other.pb"),
    ]
    checkpoint, graph, changed = (load_tensorflow(path, size=(160, 160)).weights_id for path in paths)

    assert checkpoint == graph
    assert changed != graph
