"""Losses against closed forms, learning rates against their recipes, and runs that are killed and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from edgeface.errors import InputError  # noqa: E402
from edgeface.train.loop import PRESETS, History, Optimisation, discard_checkpoint, fit, shuffled  # noqa: E402
from edgeface.train.losses import focal_loss, weights_of_classes  # noqa: E402


def reference_focal(logits: np.ndarray, labels: np.ndarray, gamma: float, weights: np.ndarray) -> float:
    """The definition, in float64 numpy."""
    powers = np.exp(logits.astype(np.float64))
    p = (powers / powers.sum(axis=1, keepdims=True))[np.arange(len(labels)), labels]
    return float(np.mean(-weights[labels] * (1 - p) ** gamma * np.log(p)))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 5.0])
def test_the_focal_loss_is_its_definition_and_at_gamma_0_torchs_cross_entropy(gamma: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits, labels = rng.normal(0, 3, (16, 5)), rng.integers(0, 5, 16)
        weights = rng.uniform(0.1, 2, 5)
        given = torch.from_numpy(logits), torch.from_numpy(labels)
        found = focal_loss(*given, gamma=gamma, weights=torch.from_numpy(weights))
        assert float(found) == pytest.approx(reference_focal(logits, labels, gamma, weights), rel=1e-9)
        if gamma == 0:
            assert float(focal_loss(*given, gamma=0)) == pytest.approx(
                float(torch.nn.functional.cross_entropy(*given)), rel=1e-9
            )


def test_the_gradient_of_the_focal_loss_is_that_of_finite_differences() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels), logits, eps=1e-6, atol=1e-7)


def test_a_certain_answer_has_a_finite_loss_and_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(100.0)
    assert torch.isfinite(logits.grad).all()


def test_class_weights_count_rare_people_more() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    assert weights_of_classes(labels, 3, "none").tolist() == [1, 1, 1]
    assert weights_of_classes(labels, 3, "rare") == pytest.approx([0.4, 0.7, 0.9])
    balanced = weights_of_classes(labels, 3, "balanced")
    assert balanced * [6, 3, 1] == pytest.approx(10 / 3)
    with pytest.raises(InputError, match="class 3"):
        weights_of_classes(labels, 4, "none")


def test_the_learning_rates_are_those_of_the_recipes() -> None:
    notebook = [PRESETS["finetune"].rate_at(epoch) for epoch in range(12)]
    expected = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-3)
    steps = torch.optim.lr_scheduler.MultiStepLR(expected, [5, 10], gamma=0.1)
    for rate in notebook:
        assert rate == pytest.approx(expected.param_groups[0]["lr"])
        expected.step()
        steps.step()
    restarts = [PRESETS["focal-restarts"].rate_at(epoch) for epoch in range(80)]
    assert restarts[0] == pytest.approx(1e-5)
    assert restarts[5] == pytest.approx(5e-3)
    assert restarts[14] == pytest.approx(1e-5 + (5e-3 - 1e-5) * (1 + np.cos(np.pi * 0.9)) / 2)
    assert restarts[15] == pytest.approx(1e-5)
    assert restarts[20] == pytest.approx(2.5e-3)  # half the peak of the first cycle
    assert restarts[15 + 45 - 1] < 2e-5
    assert restarts[60] == pytest.approx(1e-5)
    assert max(restarts) == restarts[5]


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"schedule": "never"}]
)
def test_an_optimisation_that_cannot_run_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Optimisation(**wrong)


class Problem:
    """Two clouds of points, and a linear layer that tells them apart."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        labels = np.arange(80) % 2
        points = rng.normal(0, 1, (80, 4)) + labels[:, None] * 2
        self.x, self.y = torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)
        self.layer = torch.nn.Linear(4, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.from_numpy(rng.normal(0, 0.1, (2, 4)).astype(np.float32)))
            self.layer.bias.zero_()

    def fit(self, folder: Path, optimisation: Optimisation, *, fingerprint: str = "a", pause: float = 0.0) -> History:
        folder.mkdir(parents=True, exist_ok=True)

        def validate() -> dict[str, float]:
            time.sleep(pause)
            return {"loss": float(focal_loss(self.layer(self.x[60:]), self.y[60:], gamma=0))}

        return fit(
            self.layer,
            lambda rows: focal_loss(self.layer(self.x[rows]), self.y[rows], gamma=0),
            shuffled(60, optimisation.batch, optimisation.seed),
            validate,
            optimisation,
            folder,
            fingerprint=fingerprint,
        )

    @property
    def weights(self) -> np.ndarray:
        return self.layer.weight.detach().numpy().copy()


RUN = Optimisation(epochs=30, batch=8, rate=0.05, patience=0)


def test_training_ends_with_the_weights_of_its_best_epoch_and_a_line_of_log_each(tmp_path: Path) -> None:
    problem = Problem()
    history = problem.fit(tmp_path, RUN)
    losses = [epoch.validation["loss"] for epoch in history.epochs]
    assert history.best == int(np.argmin(losses))
    held = float(focal_loss(problem.layer(problem.x[60:]), problem.y[60:], gamma=0).detach())
    assert held == pytest.approx(min(losses), abs=1e-7)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(30))
    assert history.epochs[0].loss > history.epochs[-1].loss
    discard_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_training_stops_when_the_validation_no_longer_improves(tmp_path: Path) -> None:
    history = Problem().fit(tmp_path, Optimisation(epochs=500, batch=8, rate=0.2, patience=3))
    assert len(history.epochs) < 500
    assert len(history.epochs) - 1 - history.best == 3


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        problem = Problem()
        problem.fit(tmp_path / name, Optimisation(epochs=5, batch=8, rate=0.05, seed=seed))
        found.append(problem.weights)
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2], atol=1e-6)


def test_a_checkpoint_of_other_data_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    Problem().fit(tmp_path, RUN)
    with pytest.raises(InputError, match="that of another one"):
        Problem().fit(tmp_path, RUN, fingerprint="b")
    with pytest.raises(InputError, match="that of another one"):
        Problem().fit(tmp_path, Optimisation(epochs=31, batch=8, rate=0.05, patience=0))
    checkpoint = tmp_path / "checkpoint.pt"
    for content in (b"", b"no checkpoint", checkpoint.read_bytes()[:500]):
        checkpoint.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            Problem().fit(tmp_path, RUN)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Mischief:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"key": Mischief()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="cannot be read"):
        Problem().fit(tmp_path, RUN)
    assert not (tmp_path / "made").exists()


def test_a_loss_that_is_no_number_ends_the_training_with_advice(tmp_path: Path) -> None:
    problem = Problem()
    problem.x *= float("nan")
    with pytest.raises(InputError, match=r"finite loss, found nan in epoch 1, and nan in its validation.*--rate"):
        problem.fit(tmp_path, RUN)


LONG = Optimisation(epochs=120, batch=8, rate=0.05, patience=0)
CHILD = f"""
import sys
sys.path[:] = {sys.path!r} + [{str(Path(__file__).parent)!r}]
from pathlib import Path
import edgeface.train.loop as loop
import test_loop
loop._CHECKPOINT_SECONDS = 0.02
problem = test_loop.Problem()
problem.fit(Path(sys.argv[1]), test_loop.LONG, pause=0.005)
"""


def kill_again_and_again(folder: Path, *, rounds: int, seed: int) -> int:
    """Train in processes that are killed at random moments after their first epoch."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    resumed = 0
    for _ in range(rounds):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
        log = folder / "log.jsonl"
        had = len(log.read_text().splitlines()) if log.exists() else 0
        while child.poll() is None and (not log.exists() or len(log.read_text().splitlines()) <= had):
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.15)))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        resumed += (folder / "checkpoint.pt").exists()
    return resumed


@pytest.mark.slow
@pytest.mark.parametrize(
    "rounds", [1, pytest.param(20, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])], ids=str
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_weights_of_one_that_is_not(
    tmp_path: Path, rounds: int
) -> None:
    whole = Problem()
    whole.fit(tmp_path / "whole", LONG)
    assert kill_again_and_again(tmp_path / "killed", rounds=rounds, seed=rounds) > 0
    resumed = Problem()
    resumed.fit(tmp_path / "killed", LONG)
    assert np.abs(resumed.weights - whole.weights).max() <= 1e-6
    lines = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(120))
