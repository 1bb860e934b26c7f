"""Counting work, checked against arithmetic that is spelled out here, one tiny model an operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.errors import InputError
from edgeface.model.flops import Work, count_work
from edgeface.model.op_rules import DATA_DEPENDENT, RULES

try:
    from openvino import opset1, opset12
    from openvino import opset13 as ops
except ImportError:  # 2024.6
    from openvino.runtime import opset1, opset12
    from openvino.runtime import opset13 as ops

IMAGE = (1, 4, 8, 6)  # 192 elements
N = 1 * 4 * 8 * 6
Build = Callable[[Any], Any]


def weights(*shape: int, dtype: Any = np.float32) -> Any:
    return ops.constant(np.full(shape, 2, dtype))


def ints(*values: int) -> Any:
    return ops.constant(np.array(values, np.int64))


def model_of(build: Build, shape: tuple[int, ...] = IMAGE) -> ov.Model:
    x = ops.parameter(list(shape), np.float32, name="x")
    return ov.Model([build(x)], [x], "tiny")


def work_of(build: Build, shape: tuple[int, ...] = IMAGE, **options: Any) -> Work:
    return count_work(model_of(build, shape), **options)


def split_heads(x: Any) -> Any:
    return ops.reshape(x, ints(1, 2, 16, 6), False)  # 2 heads, 16 tokens, width 6


# kind: (build, MACs, flops in Open Model Zoo's way, parameters), input 1 x 4 x 8 x 6.
HAND_COMPUTED: dict[str, tuple[Build, int, int, int]] = {
    # 3x3 over 4 channels into 5, padded to keep 8x6: 5*8*6 outputs of 4*9 MACs = 240 * 36.
    "Convolution": (
        lambda x: ops.convolution(x, weights(5, 4, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1]),
        240 * 36,
        2 * 240 * 36,
        5 * 4 * 3 * 3,
    ),
    # 2 groups of 2 -> 3 channels, 3x3 without padding: 6*6*4 outputs of 2*9 MACs = 144 * 18.
    "GroupConvolution": (
        lambda x: ops.group_convolution(x, weights(2, 3, 2, 3, 3), [1, 1], [0, 0], [0, 0], [1, 1]),
        144 * 18,
        2 * 144 * 18,
        2 * 3 * 2 * 3 * 3,
    ),
    # Each of 192 inputs meets 5 channels of a 2x2 kernel = 192 * 20 MACs; stride 2: 5*16*12 = 960 outputs of
    # 2 * 4 * 4 / (2*2) = 8, the same 7680.
    "ConvolutionBackpropData": (
        lambda x: ops.convolution_backprop_data(x, weights(4, 5, 2, 2), [2, 2]),
        192 * 20,
        960 * 8,
        4 * 5 * 2 * 2,
    ),
    # 2 groups of 2 -> 3 channels, 2x2, stride 2: 192 * 3*4 MACs; 6*16*12 = 1152 outputs of 2*2*4/4 = 4.
    "GroupConvolutionBackpropData": (
        lambda x: ops.group_convolution_backprop_data(x, weights(2, 2, 3, 2, 2), [2, 2]),
        192 * 12,
        1152 * 4,
        2 * 2 * 3 * 2 * 2,
    ),
    # [.., 8, 6] x [6, 7]: 4*8*7 outputs of 6 MACs.
    "MatMul": (lambda x: ops.matmul(x, weights(6, 7), False, False), 224 * 6, 2 * 224 * 6, 42),
    # 2 heads x 16 queries x 16 keys = 512 scores; 6 + 6 MACs each, and 1 scaling + 5 softmax.
    "ScaledDotProductAttention": (
        lambda x: ops.scaled_dot_product_attention(split_heads(x), split_heads(x), split_heads(x)),
        512 * 12,
        2 * 512 * 12 + 512 * 6,
        0,
    ),
    # 2x2, stride 2: 4*4*3 = 48 outputs of 4 comparisons or additions; the second output, indices, is not counted.
    "MaxPool": (lambda x: ops.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0), 0, 48 * 4, 0),
    "AvgPool": (lambda x: ops.avg_pool(x, [2, 2], [0, 0], [0, 0], [2, 2], True), 0, 48 * 4, 0),
    # Every input once; the average also divides 4 * 1 * 1 outputs.
    "AdaptiveAvgPool": (lambda x: ops.adaptive_avg_pool(x, ints(1, 1)), 0, N + 4, 0),
    "AdaptiveMaxPool": (lambda x: ops.adaptive_max_pool(x, ints(1, 1)).output(0), 0, N, 0),
    # Across channels, size 5: ROI 2*5*5 = 50, (1 + 1) * 50 + 1 = 101 an element.
    "LRN": (lambda x: ops.lrn(x, ints(1), size=5), 0, N * 101, 0),
    "MVN": (lambda x: ops.mvn(x, ints(1, 2, 3), True, 1e-5, "inside_sqrt"), 0, N * 5, 0),
    # Squared: mul + add + (2 - 1) mul = 3. Its exponent is a stored value.
    "Power": (lambda x: ops.power(x, weights(1)), 0, N * 3, 1),
    "Gelu": (lambda x: ops.gelu(x, "erf"), 0, N * 5, 0),
    # Twice the size, bilinear: 4*16*12 outputs of 9.
    "Interpolate": (lambda x: ops.interpolate(x, ints(16, 12), "linear_onnx", "sizes", axes=ints(2, 3)), 0, 768 * 9, 0),
    # Over the 48 positions: 192 additions; the mean divides 4 outputs.
    "ReduceSum": (lambda x: ops.reduce_sum(x, ints(2, 3), True), 0, N, 0),
    "ReduceProd": (lambda x: ops.reduce_prod(x, ints(2, 3), True), 0, N, 0),
    "ReduceMean": (lambda x: ops.reduce_mean(x, ints(2, 3), True), 0, N + 4, 0),
    # Open Model Zoo counts 4 an output, not an input: 4 * 4.
    "ReduceL1": (lambda x: ops.reduce_l1(x, ints(2, 3), True), 0, 4 * 4, 0),
    "ReduceL2": (lambda x: ops.reduce_l2(x, ints(2, 3), True), 0, 4 * 4, 0),
    "NormalizeL2": (lambda x: ops.normalize_l2(x, ints(1), 1e-9, "add"), 0, N * 4, 0),
    "PRelu": (lambda x: ops.prelu(x, weights(4)), 0, N * 2, 4),
    "Clamp": (lambda x: ops.clamp(x, 0.0, 6.0), 0, N * 2, 0),
    "BatchNormInference": (
        lambda x: ops.batch_norm_inference(x, weights(4), weights(4), weights(4), weights(4), 1e-3),
        0,
        N * 2,
        4 * 4,
    ),
    "GroupNormalization": (lambda x: opset12.group_normalization(x, weights(4), weights(4), 2, 1e-5), 0, N * 7, 2 * 4),
    "GRN": (lambda x: opset1.grn(x, 1e-5), 0, N * 3, 0),
    "Softmax": (lambda x: ops.softmax(x, 1), 0, N * 5, 0),
    "LogSoftmax": (lambda x: ops.log_softmax(x, 1), 0, N * 6, 0),
    "Elu": (lambda x: ops.elu(x, 1.0), 0, N * 3, 0),
    "Selu": (lambda x: ops.selu(x, weights(1), weights(1)), 0, N * 4, 2),
    "HardSigmoid": (lambda x: ops.hard_sigmoid(x, weights(), weights()), 0, N * 4, 2),
    "Swish": (lambda x: ops.swish(x, weights()), 0, N * 5, 1),
    "CumSum": (lambda x: ops.cum_sum(x, ops.constant(np.int64(1))), 0, N, 0),
    "Round": (lambda x: ops.round(x, "half_to_even"), 0, N, 0),
    "LogicalNot": (lambda x: ops.logical_not(ops.convert(x, "boolean")), 0, N, 0),
}
# One operand: flops an element.
UNARY = {
    "Relu": 2, "Sigmoid": 3, "Tanh": 6, "Exp": 1, "Log": 1, "Sqrt": 1, "Erf": 1, "Abs": 1, "Negative": 1,
    "Sign": 1, "Floor": 1, "Ceiling": 1, "Sin": 1, "Cos": 1, "Tan": 1, "Asin": 1, "Acos": 1, "Atan": 1,
    "Sinh": 1, "Cosh": 1, "Acosh": 5, "Asinh": 5, "Atanh": 5, "Mish": 10, "HSwish": 4, "HSigmoid": 4,
    "SoftPlus": 3,
}  # fmt: skip
# A constant of one value a channel as the second operand: flops an element.
BINARY = {
    "Add": 1, "Subtract": 1, "Multiply": 1, "Divide": 1, "Maximum": 1, "Minimum": 1, "Mod": 1, "FloorMod": 1,
    "SquaredDifference": 2, "Equal": 1, "NotEqual": 1, "Less": 1, "LessEqual": 1, "Greater": 1, "GreaterEqual": 1,
}  # fmt: skip
BOOLEAN = ("LogicalAnd", "LogicalOr", "LogicalXor")
NAMED_DIFFERENTLY = {"SoftPlus": "softplus", "HSwish": "hswish", "HSigmoid": "hsigmoid"}


def function_of(kind: str) -> Any:
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind).strip("_")
    return getattr(ops, NAMED_DIFFERENTLY.get(kind, snake))


CASES = (
    HAND_COMPUTED
    | {kind: (function_of(kind), 0, N * flops, 0) for kind, flops in UNARY.items()}
    | {
        kind: (lambda x, kind=kind: function_of(kind)(x, weights(1, 4, 1, 1)), 0, N * flops, 4)
        for kind, flops in BINARY.items()
    }
    | {kind: (lambda x, kind=kind: function_of(kind)(*[ops.convert(x, "boolean")] * 2), 0, N, 0) for kind in BOOLEAN}
)


@pytest.mark.parametrize("kind", CASES)
def test_operation_costs_what_hand_arithmetic_says(kind: str) -> None:
    build, macs, flops, parameters = CASES[kind]
    work = work_of(build)
    layer = work.layers[-1]
    assert layer.kind == kind
    assert (layer.macs, layer.flops_omz, layer.parameters) == (macs, flops, parameters)
    # Whatever prepares the input of the operation under test is free.
    assert sum(other.flops_omz for other in work.layers) == flops
    assert work.uncounted == ()


def test_every_operation_that_costs_something_has_a_hand_computed_case() -> None:
    free = {kind for kind, rule in RULES.items() if rule is RULES["Reshape"]}
    assert set(RULES) - free == set(CASES)
    assert not DATA_DEPENDENT & set(RULES)


FREE: dict[str, Build] = {
    "Reshape": lambda x: ops.reshape(x, ints(1, -1), False),
    "Transpose": lambda x: ops.transpose(x, ints(0, 2, 3, 1)),
    "Squeeze": lambda x: ops.squeeze(x, ints(0)),
    "Unsqueeze": lambda x: ops.unsqueeze(x, ints(0)),
    "Concat": lambda x: ops.concat([x, x], 1),
    "Split": lambda x: ops.split(x, ops.constant(np.int64(1)), 2).output(0),
    "VariadicSplit": lambda x: ops.variadic_split(x, ops.constant(np.int64(1)), ints(1, 3)).output(0),
    "StridedSlice": lambda x: ops.strided_slice(x, ints(0), ints(1), ints(1), [0], [0]),
    "Slice": lambda x: ops.slice(x, ints(0), ints(2), ints(1), ints(1)),
    "Gather": lambda x: ops.gather(x, ints(1, 2), ops.constant(np.int64(1))),
    "Pad": lambda x: ops.pad(x, ints(0, 0, 1, 1), ints(0, 0, 1, 1), "constant", ops.constant(np.float32(0))),
    "Tile": lambda x: ops.tile(x, ints(1, 2, 1, 1)),
    "Broadcast": lambda x: ops.broadcast(x, ints(2, 4, 8, 6)),
    "Convert": lambda x: ops.convert(x, "f16"),
    "ReduceMax": lambda x: ops.reduce_max(x, ints(1), True),
    "Interpolate": lambda x: ops.interpolate(x, ints(16, 12), "nearest", "sizes", axes=ints(2, 3)),
}


@pytest.mark.parametrize("kind", FREE)
def test_moving_data_costs_bytes_and_no_arithmetic(kind: str) -> None:
    (layer,) = work_of(FREE[kind]).layers
    assert layer.kind == kind
    assert (layer.macs, layer.flops_omz, layer.parameters) == (0, 0, 0)
    assert layer.activation_bytes > 4 * N


def test_power_below_one_is_a_root_and_costs_one() -> None:
    assert work_of(lambda x: ops.power(x, ops.constant(np.float32(0.5)))).layers[0].flops_omz == N


def test_lrn_inside_a_channel_follows_open_model_zoo() -> None:
    # ROI = 2 * 3 = 6, (1 + 1) * 6 + 1 = 13.
    assert work_of(lambda x: ops.lrn(x, ints(2, 3), size=3)).layers[0].flops_omz == N * 13


def test_mvn_without_variance_costs_two_and_tanh_gelu_fourteen() -> None:
    mvn = work_of(lambda x: ops.mvn(x, ints(1), False, 1e-5, "inside_sqrt"))
    gelu = work_of(lambda x: ops.gelu(x, "tanh"))
    assert (mvn.layers[0].flops_omz, gelu.layers[0].flops_omz) == (N * 2, N * 14)


def test_attention_scores_are_a_batched_product_of_two_activations() -> None:
    # Q K^T: 2 heads x [16, 6] x [6, 16] = 2*16*16 outputs of 6 MACs; softmax 5 each; x V: 2*16*6 outputs of 16.
    def attention(x: Any) -> Any:
        q = split_heads(x)
        return ops.matmul(ops.softmax(ops.matmul(q, q, False, True), 3), q, False, False)

    work = work_of(attention)
    assert work.macs == 512 * 6 + 192 * 16
    assert work.gflops_omz == pytest.approx((2 * work.macs + 512 * 5) / 1e9)
    assert work.parameters == 0


def test_transposed_first_operand_is_multiplied_over_its_rows() -> None:
    # [8, 6]^T x [8, 7]: 4*6*7 outputs of 8 MACs.
    assert work_of(lambda x: ops.matmul(x, weights(8, 7), True, False)).macs == 168 * 8


def test_l2_pooling_of_openface_is_square_average_scale_root() -> None:
    def pool(x: Any) -> Any:
        mean = ops.avg_pool(ops.power(x, weights()), [1, 1], [0, 0], [0, 0], [3, 3], True)
        return ops.power(ops.multiply(mean, ops.constant(np.float32(9))), ops.constant(np.float32(0.5)))

    # 192 squares of 3; 4*6*4 = 96 averages of 9, scalings of 1, roots of 1.
    assert sum(layer.flops_omz for layer in work_of(pool).layers) == 192 * 3 + 96 * (9 + 1 + 1)


def vision_transformer_block(x: Any) -> Any:
    """One block over 16 tokens of width 12, 2 heads of 6, hidden width 24, as the frontends make it of a ViT."""

    def layer_norm(value: Any) -> Any:
        normal = ops.mvn(value, ints(-1), True, 1e-5, "inside_sqrt")
        return ops.add(ops.multiply(normal, weights(12)), weights(12))

    def dense(value: Any, width: int, out: int) -> Any:
        return ops.add(ops.matmul(value, weights(out, width), False, True), weights(out))

    def heads(value: Any) -> Any:
        return ops.transpose(ops.reshape(value, ints(1, 16, 2, 6), False), ints(0, 2, 1, 3))

    tokens = ops.transpose(ops.reshape(x, ints(1, 12, 16), False), ints(0, 2, 1))
    joint = ops.split(dense(layer_norm(tokens), 12, 36), ops.constant(np.int64(2)), 3)
    queries, keys, values = (heads(joint.output(part)) for part in range(3))
    scores = ops.multiply(ops.matmul(queries, keys, False, True), ops.constant(np.float32(0.4)))
    mixed = ops.matmul(ops.softmax(scores, 3), values, False, False)
    merged = ops.reshape(ops.transpose(mixed, ints(0, 2, 1, 3)), ints(1, 16, 12), False)
    attended = ops.add(tokens, dense(merged, 12, 12))
    return ops.add(attended, dense(ops.gelu(dense(layer_norm(attended), 12, 24), "erf"), 24, 12))


def test_block_of_a_vision_transformer_by_hand() -> None:
    work = work_of(vision_transformer_block)
    assert work.uncounted == ()
    # Joint projection, scores and mixing in 2 heads, output projection, and the two dense layers of the MLP.
    macs = 16 * 12 * 36 + 2 * 16 * 16 * 6 * 2 + 16 * 12 * 12 + 16 * 12 * 24 * 2
    assert work.macs == macs
    norms = 2 * 16 * 12 * (5 + 1 + 1)
    biases = 16 * (36 + 12 + 24 + 12)
    softmax = 2 * 16 * 16 * (1 + 5)  # scaled by 0.4 first
    assert work.gflops_omz == pytest.approx((2 * macs + norms + biases + softmax + 16 * 24 * 5 + 2 * 16 * 12) / 1e9)
    weights_and_biases = 12 * 36 + 36 + 12 * 12 + 12 + 12 * 24 + 24 + 24 * 12 + 12
    assert work.parameters == weights_and_biases + 2 * 2 * 12 + 1


def test_layers_name_the_layers_that_they_read() -> None:
    work = work_of(lambda x: ops.add(ops.relu(x, name="a"), ops.sigmoid(x, name="b"), name="sum"))
    assert [layer.inputs for layer in work.layers] == [(), (), ("a", "b")]


# --- what is not counted -----------------------------------------------------------------------------------


def test_unknown_operation_is_listed_with_its_parameters_still_counted() -> None:
    work = work_of(lambda x: ops.einsum([x, weights(6, 7)], "abcd,de->abce"))
    (missing,) = work.uncounted
    assert (missing.kind, missing.reason) == ("Einsum", "unknown operation")
    assert (work.gflops_omz, work.parameters) == (0, 42)


def test_unknown_interpolation_mode_is_listed() -> None:
    work = work_of(lambda x: ops.interpolate(x, ints(16, 12), "cubic", "sizes", axes=ints(2, 3)))
    assert [missing.reason for missing in work.uncounted] == ["unknown mode"]


def test_work_that_depends_on_the_data_is_listed_and_so_is_what_follows_it() -> None:
    work = work_of(lambda x: ops.sqrt(ops.convert(ops.non_zero(x), "f32")))
    assert [(missing.kind, missing.reason) for missing in work.uncounted] == [
        ("NonZero", "depends on the data"),
        ("Convert", "dynamic shape"),
        ("Sqrt", "dynamic shape"),
    ]


# --- weights -----------------------------------------------------------------------------------------------


def conv(x: Any, kernel: Any) -> Any:
    return ops.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1])


def fake_quantize(x: Any, levels: int = 256) -> Any:
    return ops.fake_quantize(x, *(ops.constant(np.float32(v)) for v in (0, 1, 0, 1)), levels)


def test_fp16_weights_behind_a_decompression_convert_are_parameters_and_no_work() -> None:
    work = work_of(lambda x: conv(x, ops.convert(weights(5, 4, 1, 1, dtype=np.float16), "f32")))
    (layer,) = work.layers
    assert (layer.parameters, layer.parameters_omz, layer.weight_bytes) == (20, 20, 40)
    assert not layer.int8


def test_scales_and_zero_points_of_compressed_weights_are_bytes_and_not_parameters() -> None:
    def compressed(x: Any) -> Any:
        kernel = ops.convert(weights(5, 4, 1, 1, dtype=np.uint8), "f32")
        return conv(x, ops.multiply(ops.subtract(kernel, weights(5, 1, 1, 1)), weights(5, 1, 1, 1)))

    (layer,) = work_of(compressed).layers
    assert layer.parameters == layer.parameters_omz == 20
    assert layer.weight_bytes == 20 * 1 + 5 * 4 + 5 * 4
    # 8-bit weights alone do not make an 8-bit product: the activations are float.
    assert layer.int8_macs == 0


def test_fake_quantized_convolution_is_counted_apart_as_int8() -> None:
    def quantized(x: Any) -> Any:
        hidden = conv(fake_quantize(x), fake_quantize(weights(5, 4, 1, 1), 255))
        return conv(ops.relu(hidden), weights(1, 5, 1, 1))

    work = work_of(quantized)
    # 5*48 outputs of 4 MACs in INT8, then 48 outputs of 5 MACs on float operands.
    assert (work.int8_macs, work.macs) == (240 * 4, 240 * 4 + 48 * 5)
    assert work.parameters == 20 + 5
    # FakeQuantize of the activations is a change of format; only Relu adds to the products.
    assert work.gflops_omz == pytest.approx((2 * work.macs + 2 * 240) / 1e9)


def test_more_than_256_levels_are_not_int8() -> None:
    work = work_of(lambda x: conv(fake_quantize(x, 65536), fake_quantize(weights(5, 4, 1, 1))))
    assert work.int8_macs == 0


def test_int8_tensors_reach_a_product_through_dequantization_pooling_and_concat() -> None:
    def quantized(x: Any) -> Any:
        stored = ops.convert(ops.convert(fake_quantize(x), "u8"), "f32")
        real = ops.multiply(ops.subtract(stored, weights()), weights())
        pooled = ops.max_pool(ops.concat([real, real], 1), [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
        return conv(pooled, ops.multiply(ops.convert(weights(1, 8, 1, 1, dtype=np.int8), "f32"), weights()))

    # 4 x 3 outputs of 8 MACs.
    assert work_of(quantized).int8_macs == 12 * 8


def test_shared_weights_are_counted_once() -> None:
    kernel = weights(4, 4, 1, 1)
    work = work_of(lambda x: conv(conv(x, kernel), kernel))
    assert [layer.parameters for layer in work.layers] == [16, 0]
    assert (work.mparams_omz, work.weight_bytes) == (16 / 1e6, 64)


def test_axes_and_shapes_are_no_parameters_but_open_model_zoo_counts_axes_of_a_sum() -> None:
    work = work_of(lambda x: ops.reduce_sum(ops.reshape(x, ints(1, 4, 48), False), ints(2), True))
    assert work.parameters == 0
    assert work.mparams_omz == 1 / 1e6


def test_arithmetic_on_shapes_is_no_work() -> None:
    def flatten(x: Any) -> Any:
        size = ops.reduce_prod(ops.shape_of(x), ints(0), True)
        return ops.reshape(x, ops.concat([ops.divide(size, ints(4)), ints(4)], 0), False)

    assert [layer.kind for layer in work_of(flatten).layers] == ["Reshape"]


def test_activation_bytes_are_inputs_and_outputs_without_weights() -> None:
    (layer,) = work_of(lambda x: conv(x, weights(5, 4, 1, 1))).layers
    assert layer.activation_bytes == 4 * (192 + 240)
    assert layer.weight_bytes == 4 * 20


# --- batch -------------------------------------------------------------------------------------------------


def network(batch: int) -> ov.Model:
    def build(x: Any) -> Any:
        hidden = ops.prelu(ops.add(conv(x, weights(5, 4, 3, 3)), weights(1, 5, 1, 1)), weights(1))
        pooled = ops.max_pool(hidden, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
        features = ops.reshape(pooled, ints(0, -1), True)
        return ops.softmax(ops.matmul(features, weights(30, 7), False, False), 1)

    return model_of(build, (batch, 4, 8, 6))


@settings(max_examples=examples(20))
@given(batch=st.integers(1, 64))
def test_work_is_linear_in_the_batch_and_parameters_do_not_change(batch: int) -> None:
    model = network(-1)
    one, many = count_work(model), count_work(model, batch=batch)
    assert (many.batch, many.macs, many.activation_bytes) == (batch, batch * one.macs, batch * one.activation_bytes)
    for single, layer in zip(one.layers, many.layers, strict=True):
        assert (layer.name, layer.flops_omz) == (single.name, batch * single.flops_omz)
        assert (layer.parameters, layer.weight_bytes) == (single.parameters, single.weight_bytes)


def test_the_callers_model_stays_as_it_is() -> None:
    model = network(-1)
    before = str(model)
    count_work(model, batch=3)
    assert str(model) == before
    assert model.input(0).get_partial_shape()[0].is_dynamic


def test_layout_says_which_dimension_is_the_batch() -> None:
    model = model_of(ops.relu, (4, -1, 8))
    model.get_parameters()[0].set_layout(ov.Layout("CN..."))
    assert count_work(model, batch=3).gflops_omz == 4 * 3 * 8 * 2 / 1e9


def test_a_fixed_batch_stays_and_is_told() -> None:
    assert count_work(network(4)).batch == 4
    assert count_work(network(4)).macs == 4 * count_work(network(1)).macs


def test_another_batch_than_the_fixed_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"batch size is fixed at 4; .* batch 2"):
        count_work(network(4), batch=2)


@pytest.mark.parametrize("batch", [0, -1])
def test_batch_below_one_is_refused(batch: int) -> None:
    with pytest.raises(InputError, match=f"1 or more, not {batch}"):
        count_work(network(-1), batch=batch)


def test_dynamic_height_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"more than its batch .*model\.reshape"):
        count_work(model_of(ops.relu, (-1, 3, -1, 8)))


def test_batch_that_the_graph_does_not_take_is_refused() -> None:
    fixed_inside = model_of(lambda x: ops.add(x, ops.reshape(x, ints(1, 4, 8, 6), False)), (-1, 4, 8, 6))
    with pytest.raises(InputError, match="does not take batch 2"):
        count_work(fixed_inside, batch=2)
