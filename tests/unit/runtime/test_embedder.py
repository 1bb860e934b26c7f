"""The embedder: an IR with its contract in, exact embeddings out, and a clear error for everything else."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from contracts import sample_contract

from edgeface.convert.ir import save_ir
from edgeface.errors import ContractError, DeviceError, EngineClosed, InferenceError, InputError, ModelFormatError
from edgeface.model.contract import Alignment, ModelContract
from edgeface.model.embedding import require_same_contract
from edgeface.runtime import DevicePlan, Embedder, ImageFormat, encrypt_ir, share_threads
from edgeface.runtime.adapter import UNPACKED, must_unpack, unpack_weights

try:
    from openvino import opset13 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset13 as ops

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).resolve().parents[2]
SOON = 10
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def ir(small_ir) -> Path:
    return small_ir()


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (7, 12, 16, 3), np.uint8)


def bare(ir: Path, crops: np.ndarray) -> np.ndarray:
    """What the IR gives without anything of ours: float32 BGR NCHW."""
    core = ov.Core()
    compiled = core.compile_model(core.read_model(ir), "CPU")
    return compiled([crops.transpose(0, 3, 1, 2).astype(np.float32)])[0]


def test_one_several_and_a_list_give_what_the_bare_ir_gives(ir, crops):
    expected = bare(ir, crops)
    with Embedder.load(ir) as embedder:
        assert embedder.embed(crops[0]).shape == (1, 8)
        for given in (crops, list(crops), tuple(crops)):
            found = embedder.embed(given)
            assert (found.shape, found.dtype) == ((7, 8), np.float32)
            np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(embedder.submit(crops[3]).result(SOON), expected[3], atol=1e-6)
        np.testing.assert_allclose(np.stack(list(embedder.map(crops))), expected, atol=1e-6)
        assert embedder.embed([]).shape == (0, 8)
        assert embedder.execution.execution_devices == ("CPU",)
        assert embedder.execution.fallback is False
        assert embedder.counters().done == 1 + 3 * 7 + 1 + 7


def test_async_for(ir, crops):
    async def main(embedder):
        return [row async for row in embedder.amap(crops)]

    with Embedder.load(ir) as embedder:
        np.testing.assert_allclose(np.stack(asyncio.run(main(embedder))), bare(ir, crops), atol=1e-6)


@pytest.mark.parametrize("buckets", [(1,), (4,), (1, 2, 4), (1, 8)])
def test_static_buckets_are_padded_without_a_trace(ir, crops, buckets):
    plan = DevicePlan(device="CPU", batch_buckets=buckets, requests=1)
    with Embedder.load(ir, plan=plan, queue_depth=16) as embedder:
        for count in (1, 3, 7):
            np.testing.assert_allclose(embedder.embed(crops[:count]), bare(ir, crops[:count]), atol=1e-6)


def test_rows_are_the_same_to_the_bit_whatever_is_computed_with_them(ir, crops):
    plan = DevicePlan(device="CPU", batch_buckets=(1, 4), requests=1)
    with Embedder.load(ir, plan=plan) as embedder:
        alone = np.concatenate([embedder.embed(crop) for crop in crops])
        np.testing.assert_array_equal(embedder.embed(crops), alone)


@pytest.mark.parametrize("what", ["a Reshape to one row", "a norm over all rows"])
def test_an_ir_whose_batch_is_fixed_computes_one_crop_at_a_time(tmp_path, what):
    image = ops.parameter([1, 3, 12, 16], np.float32, name="image")
    rows = ops.reduce_mean(image, ops.constant(np.array([2, 3])), keep_dims=False)
    if what == "a Reshape to one row":
        rows = ops.reshape(rows, ops.constant(np.array([1, 3])), False)
    else:
        rows = ops.divide(rows, ops.reduce_l2(rows, ops.constant(np.array([0, 1])), keep_dims=True))
    model = ov.Model([rows], [image], "fixed")
    model.input(0).set_names({"image"})
    model.output(0).set_names({"embeddings"})
    ir, *_ = save_ir(model, tmp_path, sample_contract(input_size=(12, 16), embedding_dim=3))
    crops = np.stack([np.full((12, 16, 3), (n, 2, 1), np.uint8) for n in range(20)])
    for plan in (None, DevicePlan(device="CPU", batch_buckets=(1, 4), requests=1)):
        with Embedder.load(ir, plan=plan) as embedder:
            alone = np.concatenate([embedder.embed(crop) for crop in crops])
            futures = [embedder.submit(crop) for crop in crops]
            np.testing.assert_array_equal([future.result(SOON) for future in futures], alone)
    if what == "a norm over all rows":
        with Embedder.load(ir, flip="concatenate") as embedder:
            assert embedder.embed(crops).shape == (20, 6)


@pytest.mark.parametrize("buckets", [(1,), (1, 4)])
def test_flip_concatenates_like_facenets_evaluation(ir, crops, buckets):
    plan = DevicePlan(device="CPU", batch_buckets=buckets)
    with Embedder.load(ir, plan=plan, flip="concatenate") as embedder:
        both = np.hstack([bare(ir, crops), bare(ir, crops[:, :, ::-1])])
        np.testing.assert_allclose(embedder.embed(crops), both, atol=1e-6)
        assert embedder.contract.embedding_dim == 16
        assert not embedder.contract.normalized
        assert embedder.contract.contract_id != ModelContract.read_from(ov.Core().read_model(ir)).contract_id


def test_flip_averages_to_unit_length(ir, crops):
    with Embedder.load(ir, flip="average") as embedder:
        mean = (bare(ir, crops) + bare(ir, crops[:, :, ::-1])) / 2
        expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        np.testing.assert_allclose(embedder.embed(crops), expected, atol=1e-6)
        assert embedder.contract.embedding_dim == 8


def test_flip_of_a_format_that_is_resized(ir, crops):
    large = np.repeat(np.repeat(crops, 2, 1), 2, 2)
    with Embedder.load(ir, image_format=ImageFormat(size=(24, 32)), flip="concatenate") as embedder:
        one = embedder.embed(large)
        mirrored = embedder.embed(np.ascontiguousarray(large[:, :, ::-1]))
    np.testing.assert_allclose(one, np.roll(mirrored, 8, axis=1), atol=1e-5)


def test_any_size_takes_crops_of_different_sizes(ir, crops):
    with Embedder.load(ir, image_format=ImageFormat(size="any")) as embedder:
        large = np.repeat(np.repeat(crops[0], 3, 0), 3, 1)
        rows = embedder.embed([crops[0], large, crops[1]])
        np.testing.assert_allclose(rows[[0, 2]], bare(ir, crops[:2]), atol=1e-6)


@pytest.mark.parametrize("size", [(24, 32), "any"])
def test_embeddings_of_images_of_another_size_are_of_another_contract_unless_they_are_vouched_for(small_ir, size):
    own = small_ir(alignment=Alignment("mtcnn-box-margin", 32))
    contract = ModelContract.read_from(ov.Core().read_model(own), source="")
    with Embedder.load(own, image_format=ImageFormat(size=size)) as embedder:
        assert embedder.contract == dataclasses.replace(contract, alignment=Alignment("none"))
        with pytest.raises(ContractError):
            require_same_contract(embedder.contract.contract_id, contract.contract_id, what="faces")
        embedder.swap(own)
    for image_format in (ImageFormat(size=size, aligned=True), ImageFormat(size=(12, 16)), ImageFormat(color="RGB")):
        with Embedder.load(own, image_format=image_format) as embedder:
            assert embedder.contract == contract


@pytest.mark.parametrize("device", ["AUTO:CPU", "HETERO:CPU", "BATCH:CPU(4)", "cpu"])
def test_devices_agree(ir, crops, device):
    with Embedder.load(ir, device=device) as embedder:
        np.testing.assert_allclose(embedder.embed(crops), bare(ir, crops), atol=1e-6)


def test_several_plans_make_a_pool(ir, crops):
    plans = [DevicePlan(device="CPU"), DevicePlan(device="HETERO:CPU")]
    with Embedder.load(ir, plan=plans) as embedder:
        np.testing.assert_allclose(embedder.embed(crops), bare(ir, crops), atol=1e-6)
        assert [report.requested_device for report in embedder.executions] == ["CPU", "HETERO:CPU"]


def test_64_threads_each_get_their_own(ir):
    many = np.random.default_rng(2).integers(0, 256, (64, 12, 16, 3), np.uint8)
    expected, failures = bare(ir, many), []
    with Embedder.load(ir, queue_depth=8) as embedder:

        def client(n: int) -> None:
            for _ in range(10):
                if not np.allclose(embedder.embed(many[n]), expected[n], atol=1e-6):
                    failures.append(n)

        clients = [threading.Thread(target=client, args=(n,)) for n in range(64)]
        for each in clients:
            each.start()
        for each in clients:
            each.join(SOON)
    assert not failures
    assert embedder.counters().done == 640


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((12, 16), np.uint8),
        np.zeros((16, 12, 3), np.uint8),
        np.zeros((12, 16, 3), np.float32),
        np.zeros((0, 12, 16, 3), np.uint8),
        np.zeros((3, 12, 16), np.uint8),
        np.zeros((12, 16, 6), np.uint8)[..., ::2],
        [np.zeros((12, 16, 3), np.uint8), np.zeros((12, 17, 3), np.uint8)],
    ],
)
def test_wrong_crop_is_refused_with_expected_and_found(ir, wrong):
    with Embedder.load(ir) as embedder, pytest.raises(ContractError, match=r"expected .* found"):
        embedder.embed(wrong)


# What may be wrong with a file


def copy_of(ir: Path, folder: Path) -> Path:
    for path in (ir, ir.with_suffix(".bin")):
        shutil.copy(path, folder / path.name)
    return folder / ir.name


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.xml.*No such file"):
        Embedder.load(tmp_path / "nothing.xml")


def test_missing_weights(ir, tmp_path):
    path = copy_of(ir, tmp_path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(InputError, match=r"small\.bin"):
        Embedder.load(path)


def test_corrupt_xml(ir, tmp_path):
    path = copy_of(ir, tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelFormatError, match="damaged"):
        Embedder.load(path)


@pytest.mark.parametrize("damage", ["one bit", "truncated", "empty", "longer"])
@pytest.mark.parametrize("cached", [False, True])
def test_corrupt_weights(ir, tmp_path, damage, cached):
    path = copy_of(ir, tmp_path)
    cache = tmp_path / "cache" if cached else None
    if cached:
        Embedder.load(path, cache_dir=cache).close()
    weights = bytearray(path.with_suffix(".bin").read_bytes())
    if damage == "one bit":
        weights[len(weights) // 2] ^= 1
    path.with_suffix(".bin").write_bytes(
        {"one bit": weights, "truncated": weights[:-100], "empty": b"", "longer": weights + b"x"}[damage]
    )
    with pytest.raises(ModelFormatError):
        Embedder.load(path, cache_dir=cache)


@pytest.mark.parametrize(("value", "told"), [(0, "one of length 0"), (np.nan, "NaN"), (np.inf, "infinity")])
@pytest.mark.parametrize("plans", [1, 2])
def test_a_result_without_a_direction_is_an_error_and_never_a_row(tmp_path, value, told, plans):
    """Black pixels give numbers that nothing can be compared with."""
    image = ops.parameter([-1, 3, 16, 16], np.float32, name="image")
    seen = ops.reduce_mean(image, np.array([2, 3]), keep_dims=False)
    bad = ops.constant(np.full((1, 3), value, np.float32))
    rows = ops.select(ops.greater(seen, ops.constant(np.float32(0))), seen, bad)
    contract = sample_contract(embedding_dim=3, normalized=False)
    ir, _ = save_ir(ov.Model([rows], [image], "m"), tmp_path, _named(image, rows, contract))
    good, black = np.full((16, 16, 3), 7, np.uint8), np.zeros((16, 16, 3), np.uint8)
    with Embedder.load(ir, plan=[DevicePlan(device="CPU", batch_buckets=(1, 4))] * plans) as embedder:
        for ask in (
            lambda: embedder.embed(black),
            lambda: embedder.embed(np.stack([good, black, good])),
            lambda: embedder.submit(black).result(SOON),
            lambda: list(embedder.map([good, black])),
        ):
            with pytest.raises(InferenceError, match=told):
                ask()
        futures = [embedder.submit(crop) for crop in (good, black, good, good)]
        assert [future.exception(SOON) is None for future in futures] == [True, False, True, True]
        np.testing.assert_allclose(embedder.embed(good), [[7, 7, 7]])  # it serves on


def _named(image, rows, contract):
    image.output(0).set_names({contract.input_name})
    rows.output(0).set_names({contract.output_name})
    return contract


def test_ir_without_a_contract(tmp_path, core, double):
    path = tmp_path / "plain.xml"
    x = ops.parameter([1, 4], np.float32)
    ov.save_model(ov.Model([ops.add(x, ops.constant(np.ones(4, np.float32)))], [x], "plain"), path)
    with pytest.raises(ContractError, match="found none"):
        Embedder.load(path)


def test_contract_of_a_newer_version(ir, tmp_path):
    path = copy_of(ir, tmp_path)
    text = path.read_text()
    assert '<contract_version value="1"' in text
    path.write_text(text.replace('<contract_version value="1"', '<contract_version value="4"'))
    with pytest.raises(ContractError, match="found version 4; update edgeface"):
        Embedder.load(path)


def test_absent_device_and_its_fallback(ir, crops):
    with pytest.raises(DeviceError):
        Embedder.load(ir, device="GPU.7")
    with Embedder.load(ir, device="GPU.7", fallback=["CPU"]) as embedder:
        assert embedder.execution.fallback
        assert embedder.execution.execution_devices == ("CPU",)
        np.testing.assert_allclose(embedder.embed(crops), bare(ir, crops), atol=1e-6)


# Sealed models


def test_sealed_model_gives_the_same_embeddings(ir, crops, tmp_path):
    sealed = encrypt_ir(ir, KEY, tmp_path / "small.sealed")
    assert b"<net" not in sealed.read_bytes()
    cache = tmp_path / "cache"
    for hit in (False, True):
        with Embedder.load(sealed, key=KEY, cache_dir=cache) as embedder:
            np.testing.assert_allclose(embedder.embed(crops), bare(ir, crops), atol=1e-6)
            assert embedder.execution.loaded_from_cache is hit
    assert all(path.read_bytes().startswith(b"EDGEFACE") for path in cache.glob("*.blob"))


@pytest.mark.parametrize("where", [3, 8, 9, 30, 150, 5000, -1])
def test_sealed_model_that_was_changed_is_refused(ir, tmp_path, where):
    sealed = encrypt_ir(ir, KEY, tmp_path / "small.sealed")
    content = bytearray(sealed.read_bytes())
    content[where] ^= 1
    sealed.write_bytes(content)
    with pytest.raises(ModelFormatError):
        Embedder.load(sealed, key=KEY)


def test_sealed_model_needs_its_key(ir, tmp_path):
    sealed = encrypt_ir(ir, KEY, tmp_path / "small.sealed")
    with pytest.raises(ModelFormatError, match="key is another"):
        Embedder.load(sealed, key=bytes(32))
    with pytest.raises(InputError, match="encrypted"):
        Embedder.load(sealed)
    with pytest.raises(InputError, match="16, 24 or 32 bytes"):
        encrypt_ir(ir, b"short", tmp_path / "other")


def test_two_seals_of_one_model_differ(ir, tmp_path):
    first, second = (encrypt_ir(ir, KEY, tmp_path / name).read_bytes() for name in "ab")
    assert first[-200:] != second[-200:]


# Swapping


def test_swap_loses_no_request(ir, small_ir, crops):
    again = small_ir(name="the same numbers")
    expected = bare(ir, crops)
    stop, answered, failures = threading.Event(), [0], []
    with Embedder.load(ir, queue_depth=4) as embedder:

        def client() -> None:
            while not stop.is_set():
                n = answered[0] % 7
                try:
                    if not np.allclose(embedder.embed(crops[n])[0], expected[n], atol=1e-6):
                        failures.append(n)
                except Exception as error:
                    failures.append(error)
                answered[0] += 1

        clients = [threading.Thread(target=client) for _ in range(4)]
        for each in clients:
            each.start()
        for path in (again, ir) * 5:
            embedder.swap(path)
        stop.set()
        for each in clients:
            each.join(SOON)
        assert not failures
        assert embedder.counters().done == answered[0] > 0
        assert embedder.counters().queued == 0


def test_swap_to_another_contract_is_refused_and_the_old_one_serves_on(ir, small_ir, crops):
    with Embedder.load(ir) as embedder:
        with pytest.raises(ContractError, match="expected contract_id"):
            embedder.swap(small_ir(seed=1))
        with pytest.raises(InputError):
            embedder.swap(ir.with_name("nothing.xml"))
        np.testing.assert_allclose(embedder.embed(crops), bare(ir, crops), atol=1e-6)


def test_closed_embedder_says_so(ir, crops):
    embedder = Embedder.load(ir)
    embedder.close()
    with pytest.raises(EngineClosed):
        embedder.embed(crops)
    embedder.close()


def test_embedders_side_by_side_share_the_threads(ir, crops):
    plans = share_threads([DevicePlan(device="CPU"), DevicePlan(device="CPU")], total=2)
    with Embedder.load(ir, plan=plans[0]) as one, Embedder.load(ir, plan=plans[1]) as two:
        assert one.execution.threads == two.execution.threads == 1
        np.testing.assert_array_equal(one.embed(crops), two.embed(crops))


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([1, 1], 8, [4, 4]),
        ([3, 1], 8, [6, 2]),
        ([1, 1, 1], 8, [3, 3, 2]),
        ([1, 1, 1], 2, [1, 1, 1]),
        ([9, 1], 4, [3, 1]),
    ],
)
def test_threads_are_divided_by_weight(weights, total, expected):
    plans = share_threads([DevicePlan(device="CPU")] * len(weights), weights=weights, total=total)
    assert [plan.threads for plan in plans] == expected


def test_share_threads_leaves_other_devices_alone():
    plans = share_threads([DevicePlan(device="GPU"), DevicePlan(device="CPU")], total=4)
    assert [plan.threads for plan in plans] == [None, 4]
    with pytest.raises(InputError):
        share_threads(plans, weights=[1])


def test_frozen_camera_buffer_is_copied_before_the_next_frame(ir, crops):
    """A decoder that reuses its frame, as `cv2.VideoCapture.read(frame)` does."""
    frame = np.empty_like(crops[0])

    def camera():
        for crop in crops:
            frame[:] = crop
            yield frame

    with Embedder.load(ir, queue_depth=8) as embedder:
        np.testing.assert_allclose(np.stack(list(embedder.map(camera()))), bare(ir, crops), atol=1e-6)


def test_load_is_bounded_and_leaves_nothing_when_it_fails(small_ir, tmp_path):
    before = threading.active_count()
    broken = copy_of(small_ir(), tmp_path)
    weights = bytearray(broken.with_suffix(".bin").read_bytes())
    weights[7] ^= 255
    broken.with_suffix(".bin").write_bytes(weights)
    with pytest.raises(ModelFormatError):
        Embedder.load(broken)
    until = time.monotonic() + SOON
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize("cached", [False, True])
def test_compressed_weights_are_unpacked_said_and_right_on_several_streams(cached, tmp_path):
    ir = ROOT / "fixtures" / "0_1" / "models" / "weights" / "net.xml"
    one, two = (DevicePlan(device="CPU", streams=n, threads=2, precision="f32") for n in (1, 2))
    contract = ModelContract.read_from(ov.Core().read_model(ir))
    crops = np.random.default_rng(2).integers(0, 256, (12, *contract.input_size, 3), np.uint8)
    inputs = crops.astype(np.float32)
    inputs = inputs[..., ::-1] if contract.color == "RGB" else inputs
    inputs = inputs.transpose(0, 3, 1, 2) if contract.layout == "NCHW" else inputs
    plain = ov.Core().compile_model(ir, "CPU", one.compile_config())
    expected = np.concatenate([plain([item[np.newaxis]])[0] for item in inputs])

    for _ in range(3):
        with Embedder.load(ir, plan=two, cache_dir=tmp_path if cached else None, allow_seeded=True) as embedder:
            np.testing.assert_allclose(
                np.stack(list(embedder.map(crops))), expected, atol=2e-4
            )  # plain OpenVINO quantizes activations too
            assert UNPACKED in embedder.execution.notes


def test_only_compressed_weights_for_a_cpu_are_unpacked():
    def read(name: str) -> ov.Model:
        return ov.Core().read_model(ROOT / "fixtures" / "0_1" / "models" / name)

    weights = read("weights/net.xml")
    assert all(must_unpack(weights, device) for device in ("CPU", "AUTO", "AUTO:GPU,CPU", "BATCH:CPU(4)"))
    assert not any(must_unpack(weights, device) for device in ("GPU", "NPU", "AUTO:GPU,NPU"))
    assert not must_unpack(read("int8-mixed/net.xml"), "CPU")
    assert not must_unpack(read("tiny.xml"), "CPU")

    assert not must_unpack(unpack_weights(weights), "CPU")
    kinds = {op.get_element_type() for op in weights.get_ops() if op.get_type_name() == "Constant"}
    assert not kinds & {ov.Type.i8, ov.Type.u8, ov.Type.f16}
