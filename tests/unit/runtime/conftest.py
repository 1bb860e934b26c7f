"""Small models, and a device whose operation is written in Python so that it can fail, wait and hang for real."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from contracts import sample_contract

from edgeface.files import sha256_of

try:
    from openvino import opset13 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset13 as ops

OLD = ov.__version__ < "2025"
WIDTH = 16


@pytest.fixture(scope="session")
def core() -> ov.Core:
    return ov.Core()


def doubling(*, batch: int = 1, shape: tuple[int, ...] = (WIDTH,)) -> ov.Model:
    image = ops.parameter([batch, *shape], np.float32, name="x")
    return ov.Model([ops.multiply(image, ops.constant(np.float32(2)))], [image], "doubling")


@pytest.fixture
def double(core: ov.Core) -> Callable[..., ov.CompiledModel]:
    """`double(batch=1, shape=(16,), device="CPU", **config)`: a compiled model that gives 2 x."""

    def compile_it(
        *, batch: int = 1, shape: tuple[int, ...] = (WIDTH,), device: str = "CPU", **config: object
    ) -> ov.CompiledModel:
        return core.compile_model(doubling(batch=batch, shape=shape), device, config)

    return compile_it


class Switchboard:
    """Decides what the device in Python does with an array, by its first number."""

    def __init__(self) -> None:
        self.fails: set[float] = set()
        self.fails_always = False
        self.gate = threading.Event()
        self.gate.set()
        self.delay = 0.0
        self.seen: list[float] = []

    def run(self, array: np.ndarray) -> None:
        number = float(array.flat[0])
        self.seen.append(number)
        assert self.gate.wait(30)
        time.sleep(self.delay)
        if self.fails_always or number in self.fails:
            raise ValueError(f"the device fails on {number:g}")


@pytest.fixture
def board() -> Iterator[Switchboard]:
    """What the `device` fixture's model obeys; one that still waits at the end is released."""
    switchboard = Switchboard()
    yield switchboard
    switchboard.gate.set()


@pytest.fixture
def device(core: ov.Core, board: Switchboard) -> Callable[..., ov.CompiledModel]:
    """`device(name="CPU", **config)`: a compiled model that gives x through an operation that obeys `board`.

    Not a mock: OpenVINO executes the operation in its own threads, and sees the exception it raises.
    """
    if OLD:
        pytest.skip("OpenVINO 2024 has no operations written in Python")

    def compile_it(name: str = "CPU", obeys: Switchboard = board, batch: int = 1, **config: object) -> ov.CompiledModel:
        class Obedient(ov.Op):
            def __init__(self, inputs: list[object] | None = None) -> None:
                super().__init__(self, inputs)

            def validate_and_infer_types(self) -> None:
                self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

            def clone_with_new_inputs(self, inputs: list[object]) -> Obedient:
                return Obedient(inputs)

            def has_evaluate(self) -> bool:
                return True

            def evaluate(self, outputs: list[ov.Tensor], inputs: list[ov.Tensor]) -> bool:
                obeys.run(inputs[0].data)
                inputs[0].copy_to(outputs[0])
                return True

        image = ops.parameter([batch, WIDTH], np.float32, name="x")
        model = ov.Model([ops.result(Obedient([image]).output(0))], [image], "obedient")
        return core.compile_model(model, name, config)

    return compile_it


@pytest.fixture
def row() -> Callable[[float], np.ndarray]:
    """`row(n)`: an item of 16 numbers n, n+1, ..."""
    return lambda n: np.arange(n, n + WIDTH, dtype=np.float32)


@pytest.fixture(scope="session")
def small_ir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`small_ir(**changes)`: the path of an IR with a contract: [?,3,12,16] BGR to [?,8], unit length.

    Changes are fields of the contract; `seed` changes the weights.
    """

    def write(*, seed: int = 0, **changes: object) -> Path:
        rng = np.random.default_rng(seed)
        image = ops.parameter([-1, 3, 12, 16], np.float32, name="image")
        image.output(0).set_names({"image"})
        flat = ops.reshape(image, ops.constant(np.array([0, -1], np.int64)), True)
        weights = ops.constant((rng.standard_normal((3 * 12 * 16, 8)) / 255).astype(np.float32))
        unit = ops.normalize_l2(
            ops.matmul(flat, weights, False, False), ops.constant(np.array([1], np.int64)), 1e-10, "max"
        )
        unit.output(0).set_names({"embeddings"})
        model = ov.Model([unit], [image], "small")
        fields = {"name": "small", "source_sha256": f"{seed:064x}"}
        shape = {"input_size": (12, 16), "embedding_dim": 8}
        path = tmp_path_factory.mktemp("ir") / "small.xml"
        # Written twice, as the converter does: the digest of the weights is part of the contract.
        ov.save_model(model, path, compress_to_fp16=False)
        digest = sha256_of(path.with_suffix(".bin"))
        sample_contract(**{**fields, **shape, "weights_sha256": digest, **changes}).write_to(model)
        ov.save_model(model, path, compress_to_fp16=False)
        return path

    return write
