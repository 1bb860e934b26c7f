"""TensorFlow's messages without TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeface.convert.messages import DTYPES, Tensor, array_to_tensor, set_shape, tensor_to_array

ARRAYS = st.sampled_from(sorted(DTYPES.items())).flatmap(
    lambda item: hnp.arrays(item[1], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
VALUE_FIELDS = {
    1: "float_val", 2: "double_val", 3: "int_val", 4: "int_val", 9: "int64_val", 10: "bool_val", 19: "half_val",
}  # fmt: skip
"""tensor.proto: which repeated field holds a tensor of each type when tensor_content does not."""


@given(ARRAYS)
def test_every_tensor_survives_writing_and_reading(array: np.ndarray) -> None:
    tensor = Tensor()
    array_to_tensor(array, tensor)

    again = tensor_to_array(Tensor.FromString(tensor.SerializeToString()))

    assert again.dtype == array.dtype
    assert again.shape == array.shape
    np.testing.assert_array_equal(
        again.view(np.uint8) if again.ndim else again, array.view(np.uint8) if array.ndim else array
    )


@pytest.mark.parametrize("number", sorted(DTYPES))
def test_a_value_given_once_fills_the_whole_shape(number: int) -> None:
    dtype = DTYPES[number]
    one = np.array(1, dtype)
    tensor = Tensor(dtype=number)
    set_shape(tensor.tensor_shape, (2, 3))
    getattr(tensor, VALUE_FIELDS[number]).append(int(one.view(np.uint16)) if number == 19 else one.item())

    np.testing.assert_array_equal(tensor_to_array(tensor), np.full((2, 3), one))


def test_the_last_of_several_values_fills_the_rest() -> None:
    tensor = Tensor(dtype=1, float_val=[1.0, 2.5])
    set_shape(tensor.tensor_shape, (4,))

    np.testing.assert_array_equal(tensor_to_array(tensor), np.array([1, 2.5, 2.5, 2.5], np.float32))


def test_a_tensor_without_values_is_zeros() -> None:
    tensor = Tensor(dtype=9)
    set_shape(tensor.tensor_shape, (3,))

    np.testing.assert_array_equal(tensor_to_array(tensor), np.zeros(3, np.int64))


def test_a_tensor_of_strings_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a tensor of numbers, found TensorFlow DataType 7"):
        tensor_to_array(Tensor(dtype=7, string_val=[b"a"]))


def test_fewer_bytes_than_the_shape_needs_are_refused() -> None:
    tensor = Tensor(dtype=1, tensor_content=bytes(8))
    set_shape(tensor.tensor_shape, (3,))

    with pytest.raises(ValueError, match="cannot reshape"):
        tensor_to_array(tensor)
