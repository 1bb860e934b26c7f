"""Arithmetic that a device offers is measured and judged; what it does not offer is said so, with what it does."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from tiny_net import skin_crops, write_tiny_net

from edgeface.errors import DeviceError
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import read_ir
from edgeface.quantize import QuantizationLimits, gate
from edgeface.quantize.gate import measure_hints


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> ov.Model:
    return read_ir(write_tiny_net(tmp_path_factory.mktemp("parent")))


@pytest.fixture(scope="module")
def inputs() -> list[np.ndarray]:
    return [crop.transpose(2, 0, 1)[None].astype(np.float32) for crop in skin_crops(6)]


def test_every_hint_is_measured_or_said_not_to_be_offered(parent: ov.Model, inputs: list[np.ndarray]) -> None:
    offered = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    for found in measure_hints(parent, inputs, ModelContract.read_from(parent), QuantizationLimits()):
        assert found.device == "CPU"
        if {"bf16": "BF16", "f16": "FP16"}[found.hint] in offered:
            assert found.fidelity is not None
            assert found.fidelity.mean_cosine > 0.99
        else:
            assert found.fidelity is None
            assert f"which offers {', '.join(sorted(offered))}" in found.why_not
            assert found.to_dict()["available"] is False


def test_what_is_offered_is_held_to_the_gate(
    parent: ov.Model, inputs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_CAPABILITIES", {"f32": "FP32"})  # every CPU offers it
    contract = ModelContract.read_from(parent)

    (good,) = measure_hints(parent, inputs, contract, QuantizationLimits(min_cosine=0.9999))
    assert good.fidelity is not None
    assert good.fidelity.min_cosine == pytest.approx(1, abs=1e-6)
    assert good.reasons == ()
    assert good

    embed = gate.embed
    monkeypatch.setattr(gate, "embed", lambda *a, **k: embed(*a, **k)[::-1] if k.get("hint") else embed(*a, **k))
    (bad,) = measure_hints(parent, inputs, contract, QuantizationLimits(min_cosine=0.9999))
    assert "cosine against FP32" in bad.reasons[0]
    assert not bad


def test_a_driver_that_fails_is_quoted_and_ends_nothing(
    parent: ov.Model, inputs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_CAPABILITIES", {"f32": "FP32"})
    wrong = [np.zeros((1, 3, 4, 5, 6), np.float32)]  # OpenVINO refuses the shape, as a driver would the model

    (found,) = measure_hints(parent, wrong, ModelContract.read_from(parent), QuantizationLimits())

    assert found.fidelity is None
    assert "cannot run this model" in found.why_not
    assert not found


def test_an_absent_device_is_named(parent: ov.Model, inputs: list[np.ndarray]) -> None:
    with pytest.raises(DeviceError, match="'NPU' is not available"):
        measure_hints(parent, inputs, ModelContract.read_from(parent), QuantizationLimits(), device="NPU")
