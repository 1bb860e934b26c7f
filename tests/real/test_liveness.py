"""The published liveness models on real weights: torch as an independent oracle, and upstream's three samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edgeface
from edgeface.convert import convert
from edgeface.convert.parity import run_model
from edgeface.model.ir_file import read_contract, read_liveness_contract
from edgeface.model.liveness_contract import LivenessContract
from edgeface.vision.detector import Faces
from edgeface.vision.liveness import LivenessChecker, LivenessLimits, crop_region, load_liveness

pytestmark = pytest.mark.real
MODELS = {"minifasnet-v2": "2.7_80x80_MiniFASNetV2.pth", "minifasnet-v1se": "4_0_0_80x80_MiniFASNetV1SE.pth"}


GOLDEN: dict[str, tuple[tuple[int, int, int, int], list[list[float]], str]] = {
    # Box x y w h of upstream's own detector; flat, live and other of each model, read in numpy from the same files.
    "F1": ((178, 136, 223, 225), [[0.0837, 0.0013, 0.9150], [0.3084, 0.1433, 0.5483]], "spoof"),
    "F2": ((120, 252, 252, 256), [[0.0002, 0.0006, 0.9992], [0.0030, 0.3619, 0.6351]], "spoof"),
    "T1": ((106, 147, 207, 213), [[0.0001, 0.9902, 0.0096], [0.0000, 0.9969, 0.0031]], "live"),
}
TOLERANCE = 0.01


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


@pytest.fixture
def checker(liveness_irs: Path) -> Iterator[LivenessChecker]:
    """Both models, the one of 2.7 sides of the face first."""
    with load_liveness([liveness_irs / f"{name}.xml" for name in MODELS]) as loaded:
        yield loaded


def sample(data: Path, name: str) -> tuple[Any, Any]:
    """Return an image and the published box in it, as x0, y0, x1, y1."""
    x, y, w, h = GOLDEN[name][0]
    return cv2.imread(str(data / "liveness" / f"image_{name}.jpg")), np.array([[x, y, x + w, y + h]], np.float32)


@pytest.mark.parametrize("name", GOLDEN)
def test_upstreams_samples_have_the_golden_scores_and_are_fake_fake_real(
    data: Path, checker: LivenessChecker, name: str
) -> None:
    image, boxes = sample(data, name)
    (found,) = checker.score(image, boxes)

    _, expected, verdict = GOLDEN[name]
    assert np.abs(found - expected).max() < 0.001  # a tenth of what is required
    with edgeface.load_detector() as detector:
        landmarks = detector.detect([image])[0]
    faces = Faces(boxes, landmarks.landmarks[[landmarks.largest(image.shape[:2])]], np.ones(1, np.float32))
    (answer,) = checker.check(image, faces)
    assert answer.verdict == verdict, answer
    assert answer.score == pytest.approx(np.mean(expected, axis=0)[1], abs=TOLERANCE)


def scores_of(irs: Path, image: Any, box: Any, *, cut: Any = None, prepare: Any = lambda crop: crop) -> Any:
    """Run the models without the checker, which accepts nothing wrong: the mean of their probabilities."""
    found = []
    for name in MODELS:
        model, contract = read_liveness_contract(irs / f"{name}.xml")
        region = (cut or crop_region)(box, image.shape[:2], contract.crop_scale)[0]
        crop = cv2.resize(image[region], (80, 80)).astype(np.float32)
        found.append(run_model(model, np.ascontiguousarray(prepare(crop).transpose(2, 0, 1)[None]))[0])
    return np.mean(found, axis=0)


def clipped_region(box: Any, size: tuple[int, int], scale: float) -> Any:
    """Cut as some ports do: `scale` sides around the centre, and what sticks out is lost."""
    centre, sides = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * scale
    low = np.maximum(centre - sides / 2, 0).astype(int)
    high = np.minimum(centre + sides / 2, size[::-1]).astype(int)
    return (slice(low[1], high[1]), slice(low[0], high[0])), scale


@pytest.mark.parametrize("name", ["F1", "F2"])
def test_rgb_would_open_the_door_to_a_photo(data: Path, liveness_irs: Path, name: str) -> None:
    image, (box,) = sample(data, name)
    assert scores_of(liveness_irs, image, box)[1] < 0.5
    assert scores_of(liveness_irs, image, box, prepare=lambda crop: crop[:, :, ::-1])[1] > 0.9


@pytest.mark.parametrize("name", GOLDEN)
def test_values_of_0_to_1_would_be_answered_with_one_class_whatever_the_image(
    data: Path, liveness_irs: Path, name: str
) -> None:
    image, (box,) = sample(data, name)
    found = scores_of(liveness_irs, image, box, prepare=lambda crop: crop / 255)
    assert found.argmax() == 2
    assert found[2] > 0.9
    assert abs(found - np.mean(GOLDEN[name][1], axis=0)).max() > TOLERANCE


def test_a_clipped_crop_would_be_another_score(data: Path, liveness_irs: Path) -> None:
    image, (box,) = sample(data, "F1")
    found, expected = scores_of(liveness_irs, image, box, cut=clipped_region), np.mean(GOLDEN["F1"][1], axis=0)
    assert expected[2] == pytest.approx(0.7316, abs=1e-3)
    assert found[2] < expected[2] - 5 * TOLERANCE


@pytest.mark.parametrize("detector", ["mtcnn", "yunet"])
def test_the_front_door_judges_the_samples_and_changes_no_other_answer(
    data: Path, liveness_irs: Path, real_ir: Path, detector: Any
) -> None:
    model = data / "yunet" / "yunet_n_dynamic.onnx" if detector == "yunet" else None
    photos = {name: data / "liveness" / f"image_{name}.jpg" for name in GOLDEN}
    with edgeface.load(real_ir, detector=detector, detector_model=model, liveness=liveness_irs) as app:
        found = {name: app.analyze(path) for name, path in photos.items()}
        verified = app.verify(photos["T1"], photos["F2"], threshold=0.5)
    with edgeface.load(real_ir, detector=detector, detector_model=model) as app:
        assert app.verify(photos["T1"], photos["F2"], threshold=0.5).score == verified.score
        assert all(face.liveness is None for face in app.analyze(photos["T1"]))
    for name, faces in found.items():
        (face,) = faces
        assert face.liveness is not None
        assert face.liveness.verdict == GOLDEN[name][2], face
        assert face.embedding is not None
        assert face.to_dict()["liveness"]["verdict"] == GOLDEN[name][2]


def test_a_face_without_room_around_it_is_inconclusive(data: Path, liveness_irs: Path) -> None:
    image = cv2.imread(str(data / "liveness" / "image_T1.jpg"))
    near = image[90:380, 90:320]  # the face fills it
    with edgeface.load_detector() as detector, load_liveness(liveness_irs) as checker:
        (answer,) = checker.check(near, detector.detect([near])[0])
        (whole,) = checker.check(image, detector.detect([image])[0])
    assert (answer.verdict, whole.verdict) == ("inconclusive", "live")
    assert "step back" in "; ".join(answer.reasons)
    strict = LivenessLimits(min_scale=4.0)  # no face larger than a quarter of the frame
    with edgeface.load_detector() as detector, load_liveness(liveness_irs, limits=strict) as checker:
        (answer,) = checker.check(image, detector.detect([image])[0])
    assert answer.verdict == "inconclusive"
