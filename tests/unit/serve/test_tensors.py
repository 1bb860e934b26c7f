"""The codec of KServe V2 reads what the published client writes, and refuses everything else before it allocates."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
import zlib
from typing import Any

import fuzz_targets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeface.errors import InputError
from edgeface.serve.tensors import (
    InferAnswer,
    InferRequest,
    InferTensor,
    decode_request,
    encode_answer,
    pack,
    tensor_from_bytes,
    tensor_from_values,
    tensor_to_bytes,
    unpack,
)

DTYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": "?", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT8": "i1", "INT16": "i2",
        "INT32": "i4", "INT64": "i8", "FP16": "f2", "FP32": "f4", "FP64": "f8",
    }.items()
}  # fmt: skip
GZIPPED = gzip.compress(b"a", mtime=0)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)


@st.composite
def arrays(draw: st.DrawFn, *, finite: bool = False) -> tuple[str, np.ndarray]:
    name = draw(st.sampled_from(sorted(DTYPES)))
    elements: Any = None
    if finite and DTYPES[name].kind == "f":
        width: Any = DTYPES[name].itemsize * 8
        elements = st.floats(allow_nan=False, allow_infinity=False, width=width)
    return name, draw(hnp.arrays(DTYPES[name], draw(SHAPES), elements=elements))


def request_of(*inputs: dict[str, Any], body: bytes = b"", **fields: Any) -> InferRequest:
    head = json.dumps({"inputs": inputs, **fields}).encode()
    return decode_request(head + body, len(head) if body else None)


def entry(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"name": "a", "datatype": "FP32", "shape": [2], "data": [1, 2.5]}
    return {key: value for key, value in (given | changes).items() if value is not None}


@given(arrays())
def test_bytes_of_a_tensor_become_the_same_tensor(given: tuple[str, np.ndarray]) -> None:
    datatype, array = given
    tensor = tensor_from_bytes(
        "a", datatype, array.shape, tensor_to_bytes(InferTensor("a", datatype, array.shape, array))
    )
    assert tensor.values.dtype == array.dtype
    np.testing.assert_array_equal(tensor.values, array)


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_of_elements_become_the_same_elements(elements: list[bytes]) -> None:
    shape = (len(elements),)
    content = tensor_to_bytes(InferTensor("a", "BYTES", shape, tuple(elements)))
    assert tensor_from_bytes("a", "BYTES", shape, content).values == tuple(elements)


@given(arrays(finite=True), st.booleans())
def test_flat_and_nested_json_are_the_same_tensor(given: tuple[str, np.ndarray], nested: bool) -> None:
    datatype, array = given
    data = array.tolist() if nested else array.ravel().tolist()
    item = {"name": "a", "datatype": datatype, "shape": list(array.shape), "data": data}
    if datatype == "FP16":
        with pytest.raises(InputError, match="FP16 as bytes"):
            request_of(item)
        return
    tensor = request_of(item).inputs[0]
    assert (tensor.values.dtype, tensor.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(tensor.values, array)


@given(st.lists(arrays(finite=True), min_size=1, max_size=4), st.data())
@pytest.mark.slow
def test_the_published_client_writes_requests_that_are_read_and_reads_the_answers(
    given: list[tuple[str, np.ndarray]], data: st.DataObject
) -> None:
    http = pytest.importorskip("tritonclient.http", reason="the extra 'clients' is not installed")
    utils = pytest.importorskip("tritonclient.http._utils")
    inputs, outputs = [], []
    for number, (datatype, array) in enumerate(given):
        made = http.InferInput(f"in{number}", array.shape, datatype)
        made.set_data_from_numpy(array, binary_data=datatype == "FP16" or data.draw(st.booleans()))
        inputs.append(made)
        outputs.append(http.InferRequestedOutput(f"in{number}", binary_data=data.draw(st.booleans())))
    asked = outputs if data.draw(st.booleans()) else None
    body, length = utils._get_inference_request(inputs, "id-1", asked, 0, False, False, 0, None, None)
    request = decode_request(body, length)
    assert request.id == "id-1"
    for tensor, (datatype, array) in zip(request.inputs, given, strict=True):
        assert tensor.datatype == datatype
        np.testing.assert_array_equal(tensor.values, array)
    answer = InferAnswer(model="m", version="1", outputs=request.inputs, id=request.id)
    content, head = encode_answer(answer, request)
    result = http.InferResult.from_response_body(content, header_length=head)
    for number, (_, array) in enumerate(given):
        np.testing.assert_array_equal(result.as_numpy(f"in{number}"), array)


@pytest.mark.parametrize(
    "item",
    [
        entry(shape=[3]),
        entry(shape=[-1]),
        entry(shape=[2.0]),
        entry(shape=[True, 2]),
        entry(shape="2"),
        entry(shape=[1 << 40]),
        entry(shape=[0, 1 << 31, 1 << 31], data=[]),
        entry(shape=[1] * 9),
        entry(shape=[], data=[[1]]),
        entry(shape=[2, 2], data=[[1, 2], [3]]),
        entry(shape=[2, 1], data=[[1], 2]),
        entry(shape=[2], data=[[1], [2]]),
        entry(datatype="FP8"),
        entry(datatype="FP16"),
        entry(datatype=""),
        entry(data=["1", "2"]),
        entry(data=[True, 1]),
        entry(data=[None, 1]),
        entry(data=[{}, 1]),
        entry(datatype="UINT8", data=[1, 256]),
        entry(datatype="INT8", data=[-129, 1]),
        entry(datatype="UINT8", data=[1, 2.0]),
        entry(datatype="BOOL", data=[0, 1]),
        entry(datatype="BYTES", data=["\ud800", "a"]),
        entry(data="12"),
        entry(name=""),
        entry(name="a" * 300),
        entry(name="\ud800"),
        entry(name="a\n"),
        entry(data=None),
        entry(data=None, parameters={"binary_data_size": -1}),
        entry(data=None, parameters={"binary_data_size": 8}),
        entry(parameters=[]),
        entry(data=None, parameters={"shared_memory_region": "x"}),
        [],
    ],
)
def test_an_input_that_does_not_fit_is_refused(item: Any) -> None:
    with pytest.raises(InputError):
        request_of(item)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"inputs": 1}', b"[" * 100_000, b'{"id": 1}'])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InputError):
        decode_request(body)


@pytest.mark.parametrize(
    "fields",
    [
        {"outputs": [{"name": "a"}] * 2},
        {"outputs": [{"name": str(number)} for number in range(17)]},
        {"outputs": [{"name": "a", "parameters": {"classification": 3}}]},
        {"parameters": {"binary_data_output": 1}},
        {"id": "x" * 300},
    ],
)
def test_what_is_asked_for_beside_the_inputs_is_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        request_of(entry(), **fields)


@pytest.mark.parametrize("length", [10_000, 3])
def test_the_length_of_the_json_is_compared_with_the_body(length: int) -> None:
    with pytest.raises(InputError):
        decode_request(json.dumps({"inputs": [entry()]}).encode(), length)


def test_bytes_must_be_as_many_as_the_shape_and_the_size_say_and_nothing_may_follow() -> None:
    raw = entry(data=None, parameters={"binary_data_size": 8})
    assert request_of(raw, body=bytes(8)).inputs[0].values.tolist() == [0, 0]
    assert request_of(entry(data=None), body=bytes(8)).inputs[0].values.tolist() == [0, 0]  # one input takes all
    for item, content in ((raw, bytes(7)), (raw, bytes(9)), (entry(data=None), bytes(12))):
        with pytest.raises(InputError):
            request_of(item, body=content)


def test_without_json_the_body_is_the_input_and_answers_are_bytes() -> None:
    request = decode_request(b"\xff\xd8...", 0)
    assert (request.body, request.binary, request.inputs) == (b"\xff\xd8...", True, ())


def test_a_shape_allocates_nothing() -> None:
    tracemalloc.start()
    try:
        for datatype in ("FP64", "BYTES"):
            with pytest.raises(InputError):
                request_of(entry(datatype=datatype, shape=[1 << 31, 1 << 16], data=None), body=b"abcd")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_each_output_is_sent_as_it_was_asked_for() -> None:
    tensor = tensor_from_values("x", "FP32", [2], [0.5, 1])
    half = tensor_from_bytes("h", "FP16", [1], b"\0\x3c")
    answer = InferAnswer(model="m", version="3", outputs=(tensor, half), parameters={"contract_id": "c"})
    content, head = encode_answer(answer, InferRequest(outputs={"x": False, "h": False}))
    assert head is not None
    assert content[head:] == b"\0\x3c"  # FP16 has no JSON
    assert json.loads(content[:head]) == {
        "model_name": "m",
        "model_version": "3",
        "parameters": {"contract_id": "c"},
        "outputs": [
            {"name": "x", "datatype": "FP32", "shape": [2], "data": [0.5, 1.0]},
            {"name": "h", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}},
        ],
    }


@given(st.binary(max_size=5000), st.sampled_from(["gzip", "deflate"]))
def test_packed_bytes_unpack_and_the_standard_library_reads_them(content: bytes, encoding: str) -> None:
    packed, used = pack(content, f"br, {encoding};q=0.5")
    assert used == (encoding if len(content) >= 1024 else "")
    assert unpack(packed, used, limit=5000) == content
    if used:
        assert (gzip.decompress if encoding == "gzip" else zlib.decompress)(packed) == content


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "gzip; q=0.0, identity"])
def test_an_encoding_that_is_not_accepted_is_not_used(accepted: str) -> None:
    assert pack(bytes(5000), accepted) == (bytes(5000), "")


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(50 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="at most 1,000 bytes"):
            unpack(bomb, "gzip", limit=1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (GZIPPED[:-1], "gzip"),
        (GZIPPED + b"x", "gzip"),
        (zlib.compress(b"a"), "gzip"),
        (GZIPPED, "deflate"),
        (b"", "deflate"),
        (b"a", "br"),
    ],
)
def test_a_stream_that_is_not_whole_or_of_another_encoding_is_refused(content: bytes, encoding: str) -> None:
    with pytest.raises(InputError):
        unpack(content, encoding, limit=100)


@pytest.mark.nightly
def test_two_thousand_mutated_requests_end_by_an_error_of_edgeface(tmp_path: Any) -> None:
    seeds, rng = fuzz_targets.TARGETS["kserve"].seeds(), random.Random(7)
    for _ in range(2000):
        content = fuzz_targets.mutate(rng.choice(seeds), rng)
        assert fuzz_targets.attempt("kserve", content, tmp_path) is None, content
