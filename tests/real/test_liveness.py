"""The published liveness models on real weights: torch as an independent oracle, and upstream's three samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeface.convert import convert
from edgeface.convert.parity import run_model
from edgeface.model.ir_file import read_contract, read_liveness_contract
from edgeface.model.liveness_contract import LivenessContract

pytestmark = pytest.mark.real
MODELS = {"minifasnet-v2": "2.7_80x80_MiniFASNetV2.pth", "minifasnet-v1se": "4_0_0_80x80_MiniFASNetV1SE.pth"}


@pytest.fixture(scope="session")
def liveness_irs(data: Path, made_once: Any) -> Path:
    """The folder of both IRs."""

    def make(folder: Path) -> Path:
        for name, file in MODELS.items():
            convert(data / "liveness" / file, folder, name=name)
        return folder

    return made_once("liveness", make)


def torch_network(state: dict[str, Any]) -> Any:
    """The architecture as torch modules, of the channels that the state has; `load_state_dict` is strict."""
    import torch
    from torch import nn

    def convolution(name: str, stride: int, padding: int) -> nn.Conv2d:
        out, inputs, *kernel = state[f"{name}.weight"].shape
        groups = out if inputs == 1 else 1
        return nn.Conv2d(inputs * groups, out, tuple(kernel), stride, padding, groups=groups, bias=False)

    class Linear(nn.Module):
        def __init__(self, name: str, stride: int = 1, padding: int = 0) -> None:
            super().__init__()
            self.conv = convolution(f"{name}.conv", stride, padding)
            self.bn = nn.BatchNorm2d(self.conv.out_channels)

        def forward(self, x: Any) -> Any:
            return self.bn(self.conv(x))

    class Block(Linear):
        def __init__(self, name: str, stride: int = 1, padding: int = 0) -> None:
            super().__init__(name, stride, padding)
            self.prelu = nn.PReLU(self.conv.out_channels)

        def forward(self, x: Any) -> Any:
            return self.prelu(super().forward(x))

    class Excitation(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.fc1, self.fc2 = convolution(f"{name}.fc1", 1, 0), convolution(f"{name}.fc2", 1, 0)
            self.bn1, self.bn2 = nn.BatchNorm2d(self.fc1.out_channels), nn.BatchNorm2d(self.fc2.out_channels)

        def forward(self, x: Any) -> Any:
            weight = torch.relu(self.bn1(self.fc1(nn.functional.adaptive_avg_pool2d(x, 1))))
            return x * torch.sigmoid(self.bn2(self.fc2(weight)))

    class DepthWise(nn.Module):
        def __init__(self, name: str, stride: int) -> None:
            super().__init__()
            self.residual = stride == 1
            self.conv, self.conv_dw = Block(f"{name}.conv"), Block(f"{name}.conv_dw", stride, 1)
            self.project = Linear(f"{name}.project")
            if f"{name}.se_module.fc1.weight" in state:
                self.se_module = Excitation(f"{name}.se_module")

        def forward(self, x: Any) -> Any:
            y = self.project(self.conv_dw(self.conv(x)))
            y = self.se_module(y) if hasattr(self, "se_module") else y
            return x + y if self.residual else y

    class Stage(nn.Module):
        def __init__(self, name: str, count: int) -> None:
            super().__init__()
            self.model = nn.Sequential(*(DepthWise(f"{name}.model.{index}", 1) for index in range(count)))

        def forward(self, x: Any) -> Any:
            return self.model(x)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2_dw = Block("conv1", 2, 1), Block("conv2_dw", 1, 1)
            self.conv_23, self.conv_3 = DepthWise("conv_23", 2), Stage("conv_3", 4)
            self.conv_34, self.conv_4 = DepthWise("conv_34", 2), Stage("conv_4", 6)
            self.conv_45, self.conv_5 = DepthWise("conv_45", 2), Stage("conv_5", 2)
            self.conv_6_sep, self.conv_6_dw = Block("conv_6_sep"), Linear("conv_6_dw")
            self.linear, self.bn = nn.Linear(512, 128, bias=False), nn.BatchNorm1d(128)
            self.prob = nn.Linear(128, 3, bias=False)

        def forward(self, x: Any) -> Any:
            for layer in list(self.children())[:-3]:
                x = layer(x)
            return torch.softmax(self.prob(self.bn(self.linear(x.flatten(1)))), 1)

    network = Network()
    network.load_state_dict(state)
    return network.eval()


@pytest.mark.parametrize("name", MODELS)
def test_the_ir_computes_what_torch_computes(data: Path, liveness_irs: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    state = torch.load(data / "liveness" / MODELS[name], weights_only=True, map_location="cpu")
    network = torch_network({key.removeprefix("module."): value for key, value in state.items()})
    coarse = np.random.default_rng(0).uniform(0, 255, (24, 3, 5, 5)).astype(np.float32)
    images = coarse.repeat(16, axis=2).repeat(16, axis=3)

    model, contract = read_liveness_contract(liveness_irs / f"{name}.xml")

    assert contract.provenance == "published"
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1  # the images differ to the network
    assert np.abs(run_model(model, images) - expected).max() < 1e-5


def test_the_published_files_are_recognised_by_their_digest(data: Path, tmp_path: Path) -> None:
    result = convert(data / "liveness" / MODELS["minifasnet-v2"], tmp_path)

    assert isinstance(result.contract, LivenessContract)
    assert (result.contract.crop_scale, result.contract.provenance) == (2.7, "published")
    assert result.contract.input_size == (80, 80)
    with pytest.raises(Exception, match="expected an embedding model, found a liveness model"):
        read_contract(result.ir)
