"""What `read_torch` reads, in both formats, and what it refuses."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from torch_states import write_legacy, write_zip

from edgeface.errors import ModelFormatError
from edgeface.torch_file import read_torch

WRITERS = [write_zip, write_legacy]
_WHOLE = np.arange(24, dtype=np.float32)
STATE = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.count": np.array(7),
    "half": np.array([0.5, 2], np.float16),
    "double": np.array([np.pi]),
    "flags": np.array([True, False]),
    "shared.first": _WHOLE[:12],
    "shared.transposed": _WHOLE[4:16].reshape(3, 4).T,
}


@pytest.mark.parametrize("write", WRITERS)
def test_tensors_come_back_with_type_shape_and_values(write: Callable[..., Path], tmp_path: Path) -> None:
    found = read_torch(write(tmp_path / "x.pt", STATE))

    assert list(found) == list(STATE)
    for key, expected in STATE.items():
        assert found[key].dtype == expected.dtype
        assert_array_equal(found[key], expected)


@pytest.mark.parametrize("write", WRITERS)
def test_bfloat16_becomes_float32(write: Callable[..., Path], tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC040, 0x0000], np.uint16)  # 1, -3, 0
    assert_array_equal(read_torch(write(tmp_path / "x.pt", {"x": bits}))["x"], np.array([1, -3, 0], np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_torchs_own_files_are_read(zipped: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2).half())
    state = module.state_dict() | {
        "parameter": torch.nn.Parameter(torch.rand(2, 3).T),
        "bfloat16": torch.tensor([1.5, -2], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
    }
    path = tmp_path / "x.pt"
    for content in (state, {"epoch": 3, "state_dict": state, "best": np.float64(0.5)}):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        found = read_torch(path)
        assert list(found) == list(state)
        for key, value in state.items():
            assert_array_equal(found[key], value.detach().float().numpy() if key == "bfloat16" else value.detach())


def _refuse(path: Path, found: str) -> ModelFormatError:
    with pytest.raises(ModelFormatError, match=found) as caught:
        read_torch(path)
    assert str(caught.value).startswith(f"{path}: expected")
    assert caught.value.remedy
    return caught.value


def test_a_whole_pickled_module_is_refused_by_its_name(tmp_path: Path) -> None:
    program = b"\x80\x02cfacenet_pytorch.models.inception_resnet_v1\nInceptionResnetV1\n)\x81."
    for path in (
        write_legacy(tmp_path / "old.pt", STATE, program),
        write_zip(tmp_path / "new.pt", STATE, data__pkl=program),
    ):
        error = _refuse(path, r"found facenet_pytorch\S+\.InceptionResnetV1; nothing in the file was run")
        assert error.remedy is not None
        assert "state_dict()" in error.remedy


def test_a_module_with_its_source_code_is_refused(tmp_path: Path) -> None:
    program = b"\x80\x02(U\x06moduleU\x01aU\x01bU\x01ctQ."
    _refuse(write_legacy(tmp_path / "x.pt", STATE, program), "whole pickled module")


def test_a_torchscript_archive_is_refused_by_name(tmp_path: Path) -> None:
    error = _refuse(write_zip(tmp_path / "x.pt", STATE, constants__pkl=b"\x80\x02)."), "TorchScript")
    assert error.remedy is not None
    assert "ONNX" in error.remedy


@pytest.mark.parametrize("write", WRITERS)
def test_a_program_in_the_state_is_refused_and_not_run(write: Callable[..., Path], tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Calls:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {canary}",))

    for program in (pickle.dumps(Calls(), 2), pickle.dumps({"x": Calls()}, 2)):
        options = {"data__pkl": program} if write is write_zip else {"program": program}
        _refuse(write(tmp_path / "x.pt", STATE, **options), r"(posix|nt)\.system; nothing in the file was run")
    assert not canary.exists()


def test_a_program_in_place_of_the_magic_number_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02cos\nsystem\nU\x04true\x85R.")
    _refuse(path, r"os\.system; nothing")


def _tensor(
    offset: bytes = b"K\0", size: bytes = b"K\x02\x85", stride: bytes = b"K\x01\x85", count: bytes = b"K\x02"
) -> bytes:
    """The pickle of one tensor in the storage 0, which has two values."""
    reference = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + count + b"tQ"
    return (
        b"\x80\x02}X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n("
        + reference + offset + size + stride + b"\x89}tRs."
    )  # fmt: skip


def test_the_pickle_that_is_changed_below_is_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.pt", {"x": np.array([1, 2], np.float32)}, data__pkl=_tensor())
    assert_array_equal(read_torch(path)["x"], [1, 2])


@pytest.mark.parametrize(
    "program",
    [
        _tensor(offset=b"K\x01"),
        _tensor(offset=b"J\xff\xff\xff\xff"),
        _tensor(size=b"K\x03\x85"),
        _tensor(size=b"J\xff\xff\xff\x7f\x85", stride=b"K\0\x85"),
        _tensor(size=b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", stride=b"K\0K\0\x86"),
        _tensor(stride=b"K\x02\x85"),
        _tensor(stride=b"J\xff\xff\xff\xff\x85"),
        _tensor(stride=b")"),
        _tensor(count=b"K\x03"),
        _tensor(count=b"J\xff\xff\xff\x7f"),
        _tensor(count=b"J\xff\xff\xff\xff"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(program: bytes, tmp_path: Path) -> None:
    state = {"x": np.array([1, 2], np.float32)}
    _refuse(write_zip(tmp_path / "new.pt", state, data__pkl=program), "damage: ")
    _refuse(write_legacy(tmp_path / "old.pt", state, program), "damage: ")


def test_compressed_entries_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", _tensor(count=b"J\0\0\0\x10"))
        archive.writestr("archive/data/0", bytes(32 << 20))
    assert path.stat().st_size < 1 << 20
    _refuse(path, "compressed")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "neither"),
        (b"no pickle", "neither"),
        (b"PK\x03\x04", "damage"),
        (pickle.dumps({"a": 1}), "without PyTorch's magic number"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1000, 2), "magic number and version"),
    ],
)
def test_other_files_are_refused(content: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    _refuse(path, found)


def test_a_file_that_is_absent_or_no_state_is_refused(tmp_path: Path) -> None:
    _refuse(tmp_path / "absent.pt", "No such file")
    _refuse(write_zip(tmp_path / "x.pt", STATE, data__pkl=pickle.dumps({"x": 1}, 2)), "int at 'x' among")
    _refuse(write_zip(tmp_path / "x.pt", STATE, data__pkl=pickle.dumps([1], 2)), "a pickled list without tensors")
    other = io.BytesIO()
    np.savez(other, a=np.zeros(1))
    (tmp_path / "x.pt").write_bytes(other.getvalue())
    _refuse(tmp_path / "x.pt", r"a zip archive without data\.pkl")
