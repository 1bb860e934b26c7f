"""MiniFASNets from state dictionaries: which are taken, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minifasnet_files import state_of_minifasnet
from torch_states import write_legacy, write_zip

from edgeface.convert import convert
from edgeface.convert.minifasnet import load_minifasnet
from edgeface.convert.parity import run_model
from edgeface.convert.recipe import RecipeParts
from edgeface.errors import ContractError, ConversionError, InputError
from edgeface.model.ir_file import read_liveness_contract
from edgeface.zoo.default import default_name
from edgeface.zoo.store import ModelStore

SIZE = {"size": (32, 32), "classes": 3}


def small(**options: Any) -> dict[str, np.ndarray]:
    return state_of_minifasnet(**({"se": True, "size": 32} | options))


def test_both_formats_and_any_prefix_give_one_network_with_one_identity(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (3, 3, 32, 32)).astype(np.float32)

    models = [
        load_minifasnet(write_legacy(tmp_path / "a.pth", small()), **SIZE),
        load_minifasnet(write_zip(tmp_path / "b.pth", small(prefix="")), **SIZE),
    ]

    first, second = (run_model(each.model, images) for each in models)
    assert np.array_equal(first, second)
    assert np.allclose(first.sum(axis=1), 1, atol=1e-6)
    assert np.ptp(first, axis=0).min() > 1e-3  # it looks at the image
    assert models[0].weights_id == models[1].weights_id
    assert models[0].sha256 != models[1].sha256


def test_other_weights_and_other_layers_are_other_models(tmp_path: Path) -> None:
    states = [small(), small(se=False), small(seed=1)]
    ids = {load_minifasnet(write_zip(tmp_path / f"{i}.pth", each), **SIZE).weights_id for i, each in enumerate(states)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module.prob.weight": None}, "expected a tensor prob.weight, found none"),
        ({"module.conv_4.model.5.project.bn.bias": None}, "conv_4.model.5.project.bn.bias"),
        ({"module.more": np.ones(3, np.float32)}, "1 tensors more: more"),
        ({"module.prob.weight": np.ones((4, 5), np.float32)}, "an output of"),
        ({"module.prob.weight": np.ones((3, 6), np.float32)}, "one without it"),
        ({"module.conv1.conv.weight": np.ones((4, 3, 3, 3), np.int64)}, "expected floats of 4 axes, found int64"),
        ({"module.conv1.prelu.weight": np.full(4, np.nan, np.float32)}, "not finite"),
        ({"module.conv_6_dw.conv.weight": np.ones((6, 1, 1, 1), np.float32)}, "leave a feature map"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_network_that_is_another_is_refused_with_what_differs(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    state = {key: value for key, value in (small() | change).items() if value is not None}
    with pytest.raises(ConversionError, match=message):
        load_minifasnet(write_zip(tmp_path / "x.pth", state), **SIZE)


def test_a_file_of_other_tensors_is_no_minifasnet(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="MiniFASNet of upstream's architecture"):
        load_minifasnet(write_zip(tmp_path / "x.pth", {"a.weight": np.ones((2, 2), np.float32)}), **SIZE)


@pytest.mark.slow
def test_a_file_under_a_zoo_name_becomes_an_ir_with_that_entrys_contract(tmp_path: Path) -> None:
    path, store = write_legacy(tmp_path / "mine.pth", state_of_minifasnet(se=True)), ModelStore(tmp_path / "store")

    result = convert(path, name="minifasnet-v1se", store=store)

    assert result.ir == store.ir_path("minifasnet-v1se")
    _, contract = read_liveness_contract(result.ir)
    assert contract == result.contract
    assert (contract.crop_scale, contract.classes, contract.color) == (4.0, ("flat", "live", "other"), "BGR")
    assert contract.provenance == "unknown"  # not the published file
    assert default_name(store=store) != "minifasnet-v1se"  # it recognises no one
    half = convert(path, tmp_path / "half", name="minifasnet-v1se", precision="fp16")
    assert half.contract.contract_id != contract.contract_id


@pytest.mark.parametrize(
    "told", [{"color": "rgb"}, {"layout": "nhwc"}, {"batch": 1}, {"recipe": RecipeParts(scale=255)}]
)
def test_its_input_cannot_be_chosen(tmp_path: Path, told: dict[str, Any]) -> None:
    path = write_legacy(tmp_path / "mine.pth", small())
    with pytest.raises(InputError, match="which its contract states"):
        convert(path, tmp_path / "out", name="minifasnet-v2", **told)
    assert not (tmp_path / "out").exists()


def test_a_liveness_model_is_no_default_model(tmp_path: Path) -> None:
    from edgeface.zoo.default import set_default_model

    with pytest.raises(InputError, match="expected a face embedding model"):
        set_default_model("minifasnet-v2", store=ModelStore(tmp_path))
    with pytest.raises((ContractError, InputError)):
        convert(write_zip(tmp_path / "x.pth", small()), tmp_path / "out", name="facenet-20180408-102900")
