"""What `read_pickle` reads, and that nothing else in a pickle is run, built or expanded."""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from edgeface.errors import InputError
from edgeface.pickles import read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

atoms = st.none() | st.booleans() | st.integers(-(2**63), 2**100) | st.floats(allow_nan=False) | st.text() | st.binary()
keys = st.text() | st.integers(-(2**63), 2**63 - 1)
plain = st.recursive(
    atoms,
    lambda inner: st.lists(inner) | st.tuples(inner, inner, inner, inner) | st.dictionaries(keys, inner),
    max_leaves=12,
)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Any]:
    def of_bytes(content: bytes) -> Any:
        path = tmp_path / "x.pkl"
        path.write_bytes(content)
        return read_pickle(path)

    return of_bytes


@settings(max_examples=60)
@given(value=plain, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_come_back_as_pickle_wrote_them(
    value: Any, protocol: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_pickle(path) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).standard_normal(128),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
        np.array([True, False]),
        np.zeros((0, 128)),
        np.array(["Ann", "Zoë"]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_come_back_with_type_shape_and_values(read: Callable, array: np.ndarray, protocol: int) -> None:
    found = read(pickle.dumps({"encodings": [array, array]}, protocol))["encodings"]
    for each in found:
        assert each.dtype == array.dtype
        assert_array_equal(each, array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_objects_and_special_dictionaries_become_plain(read: Callable, protocol: int) -> None:
    value = {
        "scalar": np.float32(0.5),
        "text": np.str_("Zoë"),
        "objects": np.array(["Ann", None], dtype=object),
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, b=[1]),
        "empty": b"",
    }
    expected = {
        "scalar": 0.5,
        "text": "Zoë",
        "objects": ["Ann", None],
        "ordered": {"a": 1},
        "default": {"b": [1]},
        "empty": b"",
    }
    found = read(pickle.dumps(value, protocol))
    assert found == expected
    assert type(found["ordered"]) is dict


def test_an_array_that_python_2_wrote_is_read(read: Callable) -> None:
    """Its values are a `str` there, which newer protocols have no operation for."""
    raw = np.arange(3.0).tobytes()
    content = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x03tcnumpy\ndtype\n"
        b"(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbI00\nU"
        + bytes([len(raw)])
        + raw
        + b"tb."
    )
    assert_array_equal(pickle.loads(content, encoding="latin1"), [0, 1, 2])  # it is what it is said to be
    assert_array_equal(read(content), [0, 1, 2])


# Hostile files


class _Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _touch(canary: Path) -> str:
    return f"import pathlib; pathlib.Path({str(canary)!r}).touch()"


def _programs(canary: Path) -> dict[str, bytes]:
    """Pickles each of which makes the canary when Python's `pickle` loads it, or calls some gadget."""
    code = _touch(canary).encode()
    return {
        "os.system": pickle.dumps(_Calls(os.system, f"touch {canary}")),
        "posix.system by protocol 0": b"cposix\nsystem\n(Vtouch " + str(canary).encode() + b"\ntR.",
        "builtins.eval": pickle.dumps(_Calls(eval, f"open({str(canary)!r}, 'w')")),
        "builtins.exec": pickle.dumps(_Calls(exec, _touch(canary))),
        "a chain of getattr": pickle.dumps(_Calls(getattr, _Calls(__import__, "os"), "system")),
        "a class by INST": b"(V" + code + b"\nibuiltins\nexec\n.",
        "a class by OBJ": b"(cbuiltins\nexec\nV" + code + b"\no.",
        "a class by NEWOBJ": b"\x80\x02cbuiltins\nobject\n)\x81.",
        "a class by NEWOBJ_EX": b"\x80\x04cbuiltins\nobject\n)}\x92.",
        "a code of the extension registry": b"\x80\x02\x82\x01.",
        "a name in parts": pickle.dumps(_Calls(exec, _touch(canary)), 4),
        "a name with a dotted path": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
        "numpy's loader": b"cnumpy\nload\n(V" + str(canary).encode() + b"\ntR.",
        "numpy's ctypes": b"cnumpy.ctypeslib\nload_library\n(Vx\nV.\ntR.",
        "numpy's f2py": b"cnumpy.f2py.diagnose\nrun_command\n(V" + code + b"\ntR.",
        "a state that sets a method": b"\x80\x02cnumpy\nndarray\n}U\x0c__setstate__cos\nsystem\nsb.",
        "a state for an allowed name": b"\x80\x02cnumpy\nndarray\n}b.",
        "a call of an allowed class": b"cnumpy\nndarray\n(K\x01tR.",
        "a call of a value": b"\x80\x02U\x01a)R.",
        "an encoder that is no encoder": b"c_codecs\nencode\n(Vx\nVzlib_codec\ntR.",
        "a persistent id": b"Pos.system\n.",
        "a persistent id on the stack": b"\x80\x02U\x01aQ.",
        "an out-of-band buffer": b"\x80\x05\x97.",
        "a name itself": b"cnumpy\nndarray\n.",
        "an array without a state": b"cnumpy.core.multiarray\n_reconstruct\n)R.",
        "an array of Python objects": pickle.dumps(np.array([[_Calls(os.system, "true")]], dtype=object)),
        "a structured array": pickle.dumps(np.zeros(2, [("a", "f4")])),
        "dates": pickle.dumps(np.zeros(2, "M8[s]")),
        "sets": pickle.dumps({1, 2}),
    }


@pytest.mark.parametrize("name", _programs(Path("x")))
def test_a_program_in_a_pickle_is_refused_and_not_run(read: Callable, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(InputError, match="nothing in the file was run"):
        read(_programs(canary)[name])
    assert not canary.exists()


def test_the_canary_is_made_by_pythons_own_pickle(tmp_path: Path) -> None:
    """Otherwise the test above could not fail."""
    canary = tmp_path / "canary"
    pickle.loads(_programs(canary)["a class by INST"])
    assert canary.exists()


def test_the_error_names_what_was_refused_and_what_to_do(read: Callable) -> None:
    with pytest.raises(InputError, match=r"x\.pkl: .* found (posix|nt)\.system; nothing .*; save it again") as caught:
        read(pickle.dumps(_Calls(os.system, "true")))
    assert caught.value.remedy


def _array_of(shape: str, raw: bytes, dtype: str = "f8") -> bytes:
    """A pickled array whose shape is given by operations."""
    content = pickletools.optimize(pickle.dumps(np.zeros(3, dtype), 2))
    head, state, tail = content.partition(b"K\x03\x85")
    assert state
    return head + shape.encode("latin-1") + tail.replace(b"\0" * 24, raw)


_LAUGHS = b"\x80\x02](X\x03\0\0\0lole" + b"".join(
    b"q" + bytes([level]) + b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"e" for level in range(30)
)


_BOMBS = {
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a billion laughs": _LAUGHS + b".",
    "one large text many times": b"\x80\x02]q\x01(X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
    + b"q\x00" + b"h\x00" * 100_000 + b"e.",
    "one text encoded many times": b"\x80\x02c_codecs\nencode\nq\x02(X" + struct.pack("<I", 1 << 20)
    + b"x" * (1 << 20) + b"X\x06\0\0\0latin1tq\x01R" + b"h\x02h\x01R" * 10_000 + b".",
    "a memo index of 4 billion": b"\x80\x02Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
    "bytes declared, not there": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "text declared, not there": b"\x80\x02X\xff\xff\xff\xffx.",
    "a number declared, not there": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "an integer of 8 million bits": b"\x80\x02\x8b" + struct.pack("<I", 1_000_000) + b"\x7f" * 1_000_000 + b".",
    "deep nesting": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
    "deep tuples": b"\x80\x02N" + b"\x85" * 300_000 + b".",
    "keys of one hash": b"\x80\x02}(" + b"".join(
            b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(2**10, 2**10 + 100_000)
        ) + b"u.",
    "an array larger than its values": _array_of("J\xff\xff\xff\x7f\x85", b"\0" * 24),
    "an array of negative size": _array_of("J\xff\xff\xff\xff\x85", b"\0" * 24),
    "characters outside Unicode": _array_of("K\x03\x85", b"\xff" * 24, "U2"),
    "a stack that runs empty": b"\x80\x02a.",
    "no stop": b"\x80\x02N",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", _BOMBS)
def test_bombs_and_damage_are_refused_in_seconds(read: Callable, name: str) -> None:
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        read(_BOMBS[name])
    assert caught.value.path is not None
    assert time.process_time() - started < 10


@pytest.mark.slow
def test_a_pickle_of_millions_of_values_is_refused_with_what_to_do(read: Callable) -> None:
    with pytest.raises(InputError, match="numpy arrays instead of lists"):
        read(b"\x80\x02(" + b"}" * 2_500_000 + b"l.")


def test_a_value_that_is_shared_a_little_is_read(read: Callable) -> None:
    encoding = np.zeros(128)
    assert len(read(pickle.dumps([encoding] * 5000))) == 5000


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.nightly)])
def test_mutations_are_read_or_refused(read: Callable, count: int) -> None:
    generator = random.Random(20260101)
    value = {"names": ["Ann", "Bob"], "encodings": [np.arange(128.0), np.arange(4, dtype=np.float32)], "n": 2}
    seeds = [pickle.dumps(value, protocol) for protocol in PROTOCOLS]
    refused = 0
    for _ in range(count):
        content = bytearray(generator.choice(seeds))
        for _ in range(generator.choice([1, 2, 8])):
            content[generator.randrange(len(content))] = generator.randrange(256)
        try:
            read(bytes(content[: generator.choice([len(content), generator.randrange(len(content))])]))
        except InputError:
            refused += 1
    assert 0.3 < refused / count < 0.98
