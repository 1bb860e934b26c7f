"""OpenFace nn4.small2 as Keras computes it, and the .h5 files that Keras writes, against our reading of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openface_files import write_csv_folder

from edgeface.convert import convert
from edgeface.convert.openface import load_openface
from edgeface.convert.parity import embed_with_ir, run_model
from edgeface.convert.recipe import Recipe, RecipeParts
from edgeface.model.contract import Alignment

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytestmark = [pytest.mark.parity, pytest.mark.slow]

LRN = {"keras": {"alpha": 1e-4, "beta": 0.75}, "torch": {"depth_radius": 2, "bias": 1, "alpha": 1e-4 / 5, "beta": 0.75}}


class Reference:
    """The network in Keras, layer by layer; `kind` is that of the response normalisation."""

    def __init__(self, kind: str, *, momentum: float = 0.99) -> None:
        import keras

        self.layers, self.momentum = keras.layers, momentum
        image = keras.Input((96, 96, 3))
        x = self.unit(image, "conv1", "bn1", 64, 7, stride=2, pad=3)
        x = self.max_pool(self.pad(x, 1))
        x = self.lrn(x, kind, "lrn_1")
        x = self.unit(x, "conv2", "bn2", 64, 1)
        x = self.unit(x, "conv3", "bn3", 192, 3, pad=1)
        x = self.lrn(x, kind, "lrn_2")
        x = self.max_pool(self.pad(x, 1))
        x = self.join(
            self.two(x, "3a_3x3", 96, 128, 3),
            self.two(x, "3a_5x5", 16, 32, 5),
            self.pad(self.one(self.max_pool(x), "3a_pool", 32), ((3, 4), (3, 4))),
            self.one(x, "3a_1x1", 64),
        )
        x = self.join(
            self.two(x, "3b_3x3", 96, 128, 3),
            self.two(x, "3b_5x5", 32, 64, 5),
            self.pad(self.one(self.l2_pool(x, "3b"), "3b_pool", 64), 4),
            self.one(x, "3b_1x1", 64),
        )
        x = self.join(
            self.two(x, "3c_3x3", 128, 256, 3, stride=2),
            self.two(x, "3c_5x5", 32, 64, 5, stride=2),
            self.pad(self.max_pool(x), ((0, 1), (0, 1))),
        )
        assert x.shape[1:] == (6, 6, 640)
        x = self.join(
            self.two(x, "4a_3x3", 96, 192, 3),
            self.two(x, "4a_5x5", 32, 64, 5),
            self.pad(self.one(self.l2_pool(x, "4a"), "4a_pool", 128), 2),
            self.one(x, "4a_1x1", 256),
        )
        x = self.join(
            self.two(x, "4e_3x3", 160, 256, 3, stride=2),
            self.two(x, "4e_5x5", 64, 128, 5, stride=2),
            self.pad(self.max_pool(x), ((0, 1), (0, 1))),
        )
        assert x.shape[1:] == (3, 3, 1024)
        x = self.join(
            self.two(x, "5a_3x3", 96, 384, 3),
            self.pad(self.one(self.l2_pool(x, "5a"), "5a_pool", 96), 1),
            self.one(x, "5a_1x1", 256),
        )
        x = self.join(
            self.two(x, "5b_3x3", 96, 384, 3),
            self.pad(self.one(self.max_pool(x), "5b_pool", 96), 1),
            self.one(x, "5b_1x1", 256),
        )
        x = self.layers.Flatten()(self.layers.AveragePooling2D(3, 1)(x))
        x = self.layers.Dense(128, name="dense_layer")(x)
        # Lambdas import what they need, because Keras cannot save one that holds a module.
        normalize = lambda x: __import__("tensorflow").math.l2_normalize(x, axis=1, epsilon=1e-12)  # noqa: E731
        unit = self.layers.Lambda(normalize, name="norm_layer")(x)
        self.model = keras.Model(image, unit)

    def unit(self, x: Any, conv: str, bn: str, filters: int, side: int, *, stride: int = 1, pad: int = 0) -> Any:
        x = self.layers.Conv2D(filters, side, stride, name=conv)(self.pad(x, pad) if pad else x)
        x = self.layers.BatchNormalization(epsilon=1e-5, momentum=self.momentum, name=bn)(x)
        return self.layers.ReLU()(x)

    def one(self, x: Any, name: str, filters: int) -> Any:
        return self.unit(x, f"inception_{name}_conv", f"inception_{name}_bn", filters, 1)

    def two(self, x: Any, name: str, first: int, second: int, side: int, *, stride: int = 1) -> Any:
        x = self.unit(x, f"inception_{name}_conv1", f"inception_{name}_bn1", first, 1)
        names = f"inception_{name}_conv2", f"inception_{name}_bn2"
        return self.unit(x, *names, second, side, stride=stride, pad={3: 1, 5: 2}[side])

    def pad(self, x: Any, by: Any) -> Any:
        return self.layers.ZeroPadding2D(by)(x)

    def max_pool(self, x: Any) -> Any:
        return self.layers.MaxPooling2D(3, 2)(x)

    def l2_pool(self, x: Any, name: str) -> Any:
        x = self.layers.Lambda(lambda x: x**2, name=f"power2_{name}")(x)
        x = self.layers.Lambda(lambda x: x * 9, name=f"mult9_{name}")(self.layers.AveragePooling2D(3, 3)(x))
        return self.layers.Lambda(lambda x: x**0.5, name=f"sqrt_{name}")(x)

    def lrn(self, x: Any, kind: str, name: str) -> Any:
        if kind == "none":
            return x
        normalize = lambda x, **options: __import__("tensorflow").nn.lrn(x, **options)  # noqa: E731
        return self.layers.Lambda(normalize, arguments=LRN[kind], name=name)(x)

    def join(self, *xs: Any) -> Any:
        return self.layers.Concatenate()(list(xs))

    @property
    def arrays(self) -> dict[tuple[str, str], np.ndarray]:
        found = {}
        for layer in self.model.layers:
            for variable in layer.weights:
                found[layer.name, variable.path.rpartition("/")[2]] = variable.numpy()
        return found

    def set_arrays(self, arrays: dict[tuple[str, str], np.ndarray]) -> None:
        for layer in self.model.layers:
            layer.set_weights([arrays[layer.name, each.path.rpartition("/")[2]] for each in layer.weights])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def arrays(images: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Seeded weights whose batch norms have the statistics of these images, so that embeddings differ."""
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(1)
    reference = Reference("keras", momentum=0.0)
    rng = np.random.default_rng(2)
    for layer in reference.model.layers:
        if "bn" in layer.name:
            scale = 30 if layer.name in ("bn1", "bn3") else 1  # so that the response normalisation matters
            layer.gamma.assign(scale * rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.2, layer.beta.shape))
        elif "conv" in layer.name:
            layer.bias.assign(rng.normal(0, 0.2, layer.bias.shape))
    reference.model(images.astype(np.float32) / 255, training=True)  # momentum 0: the averages become this batch's
    return reference.arrays


@pytest.fixture(scope="module")
def csv_folder(arrays: dict[tuple[str, str], np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv_folder(tmp_path_factory.mktemp("openface") / "weights", arrays)


def embed(arrays: dict[tuple[str, str], np.ndarray], kind: str, images: np.ndarray) -> np.ndarray:
    reference = Reference(kind)
    reference.set_arrays(arrays)
    return reference.model(images.astype(np.float32) / 255, training=False).numpy()


@pytest.fixture(scope="module")
def expected(arrays: dict[tuple[str, str], np.ndarray], images: np.ndarray) -> np.ndarray:
    """With the normalisation that Keras-OpenFace has."""
    return embed(arrays, "keras", images)


def test_the_ir_of_csv_files_computes_what_keras_computes(
    csv_folder: Path, expected: np.ndarray, images: np.ndarray, tmp_path: Path
) -> None:
    result = convert(csv_folder, tmp_path)  # BGR, 0-255, NCHW, unit length

    similarity = expected @ expected.T
    assert similarity[~np.eye(len(images), dtype=bool)].max() < 0.9  # else every embedding would be alike
    assert np.abs(embed_with_ir(result.ir, images) - expected).max() <= 1e-5


@pytest.mark.parametrize("kind", ["torch", "none"])
def test_the_other_normalisations_compute_what_tensorflow_computes(
    csv_folder: Path,
    arrays: dict[tuple[str, str], np.ndarray],
    expected: np.ndarray,
    images: np.ndarray,
    kind: Any,
    tmp_path: Path,
) -> None:
    result = convert(csv_folder, tmp_path, recipe=RecipeParts(lrn=kind))

    other = embed(arrays, kind, images)
    assert np.abs(other - expected).max() > 1e-2  # else the option would not be seen
    assert np.abs(embed_with_ir(result.ir, images) - other).max() <= 1e-5


@pytest.mark.parametrize("kind", ["keras", "none"])
def test_an_h5_that_keras_saved_is_the_model_of_the_csv_files(
    csv_folder: Path, arrays: dict[tuple[str, str], np.ndarray], images: np.ndarray, kind: Any, tmp_path: Path
) -> None:
    pytest.importorskip("h5py")
    reference = Reference(kind)
    reference.set_arrays(arrays)
    reference.model.save(tmp_path / "openface.h5")  # with the code of the Lambda layers
    recipe = Recipe(name="openface", alignment=Alignment("outer-eyes-nose-96"))

    source = load_openface(tmp_path / "openface.h5", recipe)

    csv = load_openface(csv_folder, Recipe(name="openface", alignment=recipe.alignment, lrn=kind))
    assert source.weights_id == csv.weights_id
    standardised = (images.astype(np.float32) / 255).transpose(0, 3, 1, 2)
    raw = run_model(source.model, np.ascontiguousarray(standardised))
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(unit - reference.model(images.astype(np.float32) / 255, training=False).numpy()).max() <= 1e-5
