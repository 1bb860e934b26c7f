"""Seeded weights: a stand-in on which a wrong pipeline shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeface.convert.facenet_graph import build_graph, main, read_weights, write_graph
from edgeface.convert.parity import run_model
from edgeface.convert.seeded import seeded_weights
from edgeface.convert.tensorflow import load_tensorflow
from edgeface.errors import InputError

pytestmark = pytest.mark.slow  # a whole FaceNet
EMBEDDING = 128


@pytest.fixture
def weights(seeded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return seeded


def random_images() -> np.ndarray:
    """Two of uniform noise and two of blotches of 20 pixels, (4, 160, 160, 3) standardised; not the generator's own."""
    generator = np.random.default_rng(2024)
    noise = generator.uniform(0, 255, (2, 160, 160, 3))
    blotches = generator.uniform(0, 255, (2, 8, 8, 3)).repeat(20, axis=1).repeat(20, axis=2)
    return ((np.concatenate([noise, blotches]) - 127.5) / 128).astype(np.float32)


def cosines(path: Path) -> np.ndarray:
    """Cosine of each pair of different random images, embedded with a graph."""
    rows = run_model(load_tensorflow(path, size=(160, 160)).model, random_images())
    return (rows @ rows.T)[np.triu_indices(len(rows), 1)]


@pytest.mark.parametrize("seed", [1, pytest.param(7, marks=pytest.mark.nightly)])
def test_different_images_lie_far_apart(seed: int, seeded_pb: Path, tmp_path: Path) -> None:
    path = seeded_pb if seed == 1 else write_graph(seeded_weights(seed, EMBEDDING), tmp_path / "x.pb", seeded=True)
    assert cosines(path).max() < 0.9


def test_with_naive_random_weights_they_would_not(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    naive = {
        name: np.ones_like(value)
        if name.endswith("moving_variance")
        else np.zeros_like(value)
        if name.endswith(("beta", "biases", "moving_mean"))
        else (generator.standard_normal(value.shape) * 0.1).astype(np.float32)
        for name, value in weights.items()
    }

    assert cosines(write_graph(naive, tmp_path / "naive.pb")).min() > 0.99


def test_a_seed_makes_the_same_bytes_each_time(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    again = seeded_weights(1, EMBEDDING)

    assert again.keys() == weights.keys()
    assert all(np.array_equal(again[name], weights[name]) for name in weights)
    first = write_graph(weights, tmp_path / "first.pb", seeded=True).read_bytes()
    assert write_graph(again, tmp_path / "second.pb", seeded=True).read_bytes() == first


def test_a_seeded_graph_says_so_and_another_does_not(
    weights: dict[str, np.ndarray], seeded_pb: Path, tmp_path: Path
) -> None:
    assert load_tensorflow(seeded_pb, size=(160, 160)).seeded
    assert not load_tensorflow(write_graph(weights, tmp_path / "file.pb"), size=(160, 160)).seeded


def test_the_weights_are_those_of_the_published_model(weights: dict[str, np.ndarray]) -> None:
    # 490 arrays in the released checkpoint; 23,497,424 values with 512 outputs, 1792 + 3 a further output.
    assert len(weights) == 490
    assert sum(value.size for value in weights.values()) == 23_497_424 - (512 - EMBEDDING) * (1792 + 3)


# --- bad weights ------------------------------------------------------------------------------------------------


def test_a_missing_weight_is_named(weights: dict[str, np.ndarray]) -> None:
    partial = {name: value for name, value in weights.items() if "block17_3/Branch_1/Conv2d_0b_1x7/weights" not in name}

    with pytest.raises(InputError, match=r"expected '.*block17_3/Branch_1/Conv2d_0b_1x7/weights' of shape"):
        build_graph(partial)


def test_a_weight_of_another_shape_is_named(weights: dict[str, np.ndarray]) -> None:
    name = "InceptionResnetV1/Conv2d_1a_3x3/weights"

    with pytest.raises(InputError, match=rf"expected '{name}' of shape \(3, 3, 3, 32\), found shape \(32, 3, 3, 3\)"):
        build_graph({**weights, name: weights[name].transpose(3, 0, 1, 2)})


def test_a_superfluous_weight_is_named(weights: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="1 arrays belong to no layer, the first is 'Logits/weights'"):
        build_graph({**weights, "Logits/weights": np.zeros(1, np.float32)})


@pytest.mark.parametrize("kind", ["absent", "text", "truncated", "npy", "objects", "other"])
def test_a_bad_weights_file_gets_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.npz"
    if kind == "text":
        path.write_text("<html>")
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "objects":
        np.savez(path, a=np.array([{}]))
    elif kind != "absent":
        np.savez(path, a=np.zeros(1000))
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])

    code = main(["--weights", str(path), "-o", str(tmp_path / "out" / "x.pb")])

    stderr = capsys.readouterr().err
    assert code == 2
    assert stderr.count("\n") == 1
    assert "expected" in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--seed", "0", "--embedding-size", "0"]])
def test_an_impossible_seed_or_size_gets_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*arguments, "-o", str(tmp_path / "x.pb")])

    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_that_weights_are_seeded(
    weights: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeface.convert.facenet_graph.seeded_weights", lambda seed, size: weights)

    assert main(["--seed", "7", "-o", str(tmp_path / "x.pb")]) == 0

    assert "SEEDED weights: this model recognises no one" in capsys.readouterr().err


def test_weights_read_from_a_file_are_those_that_were_saved(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **weights)

    read = read_weights(tmp_path / "w.npz")

    assert all(np.array_equal(read[name], weights[name]) for name in weights)
