"""State dictionaries of PyTorch: which are taken, what is named in those that are not, modules given in Python."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from torch_states import write_legacy, write_zip

from edgeface.convert import convert, convert_module
from edgeface.convert.parity import run_model
from edgeface.convert.pytorch import inception_resnet_v1_keys, load_module, load_pytorch
from edgeface.convert.recipe import Recipe, RecipeParts
from edgeface.errors import ConversionError, InputError
from edgeface.model.contract import Alignment, ModelContract

RECIPE = Recipe(name="x", size=(80, 80), alignment=Alignment("none"))


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    """A state dictionary of the right shapes and 8 outputs; its arrays are views of one, so that its file is small."""
    whole = np.random.default_rng(0).uniform(0.1, 0.2, 900_000).astype(np.float32)
    return {key: whole[: np.prod(shape)].reshape(shape) for key, (_, shape) in inception_resnet_v1_keys(8).items()}


def changed(state: dict[str, np.ndarray], **by_key: Any) -> dict[str, np.ndarray]:
    return {key: value for key, value in (state | by_key).items() if value is not None}


@pytest.mark.slow
def test_a_prefix_the_classifier_and_the_counters_change_nothing(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    plain = load_pytorch(write_zip(tmp_path / "plain.pt", state), RECIPE)
    logits = {"logits.weight": np.zeros((5, 8), np.float32), "logits.bias": np.zeros(5, np.float32)}
    counters = {key.replace("running_var", "num_batches_tracked"): np.array(9) for key in state if "running_var" in key}

    for write, prefix in ((write_zip, "backbone."), (write_legacy, "module.backbone.")):
        wrapped = {prefix + key: value for key, value in (state | logits | counters).items()}
        found = load_pytorch(write(tmp_path / "wrapped.pt", wrapped), RECIPE)
        assert found.weights_id == plain.weights_id
        assert found.sha256 != plain.sha256


def test_missing_unexpected_and_misshaped_keys_are_named(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    other = changed(
        state,
        **{
            "last_bn.bias": None,
            "mixed_6a.branch1.2.conv.weight": None,
            "conv2d_2a.conv.weight": np.zeros((32, 32, 1, 1), np.float32),
            "conv2d_2a.bn.bias": np.zeros(32, np.int64),
            "attention.weight": np.zeros(1, np.float32),
        },
    )
    with pytest.raises(ConversionError) as caught:
        load_pytorch(write_zip(tmp_path / "x.pt", other), RECIPE)
    message = str(caught.value)
    assert "2 missing: mixed_6a.branch1.2.conv.weight, last_bn.bias;" in message
    assert "1 unexpected: attention.weight;" in message
    assert "1 of another shape: conv2d_2a.conv.weight (32, 32, 1, 1) instead of (32, 32, 3, 3);" in message
    assert "1 not of floats: conv2d_2a.bn.bias;" in message


def test_keys_are_named_as_the_file_has_them(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    wrapped = {f"module.{key}": value for key, value in state.items() if key != "last_bn.bias"}
    wrapped["head.weight"] = np.zeros(1, np.float32)
    with pytest.raises(ConversionError, match=r"1 missing: module\.last_bn\.bias; 1 unexpected: head\.weight;"):
        load_pytorch(write_zip(tmp_path / "x.pt", wrapped), RECIPE)


def test_another_network_is_sent_to_onnx(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "other.pt", {"layer1.weight": np.zeros(1, np.float32)})
    with pytest.raises(ConversionError, match=r"another network: layer1\.weight; export .* ONNX .*convert_module"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "message"), [(None, "--size"), ((160, 74), "at least 75 x 75")])
def test_a_recipe_without_a_size_or_too_small_a_size_is_refused(
    state: dict[str, np.ndarray], tmp_path: Path, size: Any, message: str
) -> None:
    recipe = Recipe(name="x", size=size, alignment=Alignment("none"))
    with pytest.raises(InputError, match=message):
        load_pytorch(write_zip(tmp_path / "x.pt", state), recipe)


# --- modules ----------------------------------------------------------------------------------------------------

PARTS = RecipeParts(
    name="mine", size=(20, 24), color="RGB", mean=(127.5,) * 3, scale=(128.0,) * 3, alignment=Alignment("none")
)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def module(torch: Any) -> Any:
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)
    )


@pytest.mark.slow
@pytest.mark.parametrize("normalized", [True, False])
def test_a_module_becomes_an_ir_that_computes_the_same(
    torch: Any, module: Any, tmp_path: Path, normalized: bool
) -> None:
    result = convert_module(module, tmp_path, recipe=PARTS.model_copy(update={"normalized": normalized}))

    assert module.training  # as it was
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 20, 24)).astype(np.float32)
    found = run_model(ov.Core().read_model(result.ir), np.ascontiguousarray(images[:, ::-1]))
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy((images - 127.5) / 128)).numpy()
    if normalized:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(found - expected).max() <= 1e-5
    contract = ModelContract.read_from(ov.Core().read_model(result.ir))
    assert (contract.name, contract.framework, contract.provenance) == ("mine", "pytorch", "unknown")
    assert (contract.normalized, contract.input_size) == (normalized, (20, 24))


@pytest.mark.slow
def test_the_identity_of_a_module_is_that_of_its_weights(torch: Any, module: Any) -> None:
    recipe = PARTS.complete()
    first, second = (load_module(module, recipe).weights_id for _ in range(2))
    with torch.no_grad():
        module[0].bias += 1
    assert first == second != load_module(module, recipe).weights_id


def test_a_module_that_cannot_take_the_images_is_refused(torch: Any, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"Linear: expected a module that takes \(B, 3, 20, 24\)"):
        convert_module(torch.nn.Linear(5, 2), tmp_path / "out", recipe=PARTS)
    assert not (tmp_path / "out").exists()


def test_a_module_needs_a_whole_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="alignment"):
        convert_module(None, tmp_path, recipe=RecipeParts(name="mine"))


# --- damaged files ----------------------------------------------------------------------------------------------

_CHILD = textwrap.dedent(
    """
    import json, os, random, resource, sys, time
    from pathlib import Path
    from edgeface.convert import convert
    from edgeface.convert.pytorch import load_pytorch
    from edgeface.convert.recipe import Recipe
    from edgeface.errors import EdgeFaceError
    from edgeface.model.contract import Alignment

    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    seeds = [path.read_bytes() for path in sorted(folder.glob("seed-*.pt"))]
    names = [b"_rebuild_tensor_v2", b"FloatStorage", b"OrderedDict", b"storage", b"PK", b"data.pkl", b"torch"]
    random.seed(20260101)
    outcomes, slowest = {}, 0.0

    def positions(data):
        # Most of a file is weights; what is worth changing is the pickle and the archive's own records.
        start = data.find(b"OrderedDict") - 40
        return random.choice([start + random.randrange(4000), random.randrange(len(data)), -1 - random.randrange(9000)])

    def mutate(data):
        data = bytearray(data)
        kind = random.randrange(4)
        if kind == 0:
            return bytes(data[: random.randrange(len(data))])
        if kind == 1:
            name = random.choice(names)
            at = data.find(name, random.randrange(len(data)) if random.random() < 0.5 else 0)
            data[at : at + len(name)] = random.randbytes(len(name))
            return bytes(data)
        for _ in range(random.choice([1, 3, 30])):
            data[positions(data) % len(data)] = random.randrange(256)
        return bytes(data)

    for index in range(count):
        path, out = folder / "mutated.pt", folder / f"out-{index}"
        path.write_bytes(mutate(random.choice(seeds)))
        started = time.process_time()
        try:
            if index % 20:
                load_pytorch(path, Recipe(name="x", size=(160, 160), alignment=Alignment("none")))
            else:
                convert(path, out)
            outcome = "converted"
        except EdgeFaceError as error:
            outcome = type(error).__name__
            assert str(path) in str(error), error
            assert not out.exists(), error
        slowest = max(slowest, time.process_time() - started)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    # Not ru_maxrss, which a new process inherits from the one that started it.
    with open("/proc/self/status") as status:
        after = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    json.dump({"outcomes": outcomes, "slowest": slowest, "megabytes": after / 1024}, sys.stdout)
    """
)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "count", [pytest.param(40, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.nightly)]
)
def test_mutated_files_give_a_named_error_in_bounded_time_and_memory(
    state: dict[str, np.ndarray], tmp_path: Path, count: int
) -> None:
    """Files of this network without one key: whatever survives the reader is refused before it is built."""
    short = changed(state, **{"last_bn.bias": None})
    write_zip(tmp_path / "seed-1.pt", short)
    write_legacy(tmp_path / "seed-2.pt", short)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path), str(count)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert set(report["outcomes"]) == {"ModelFormatError", "ConversionError"}, report
    assert report["slowest"] < 10, report
    assert report["megabytes"] < 1024, report
