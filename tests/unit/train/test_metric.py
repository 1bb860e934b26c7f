"""An embedder that is trained by a metric loss: what is written computes what was trained, and what is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from commands import edgeface
from tiny_trainable import DIM, SIZE, write_net, write_photos

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from edgeface.convert.parity import run_model  # noqa: E402
from edgeface.errors import InputError  # noqa: E402
from edgeface.model.ir_file import read_contract, read_ir  # noqa: E402
from edgeface.train import metric as module  # noqa: E402
from edgeface.train.copies import Features  # noqa: E402
from edgeface.train.head import pairs_of_strangers  # noqa: E402
from edgeface.train.loop import Optimisation  # noqa: E402
from edgeface.train.metric import person_batches, train_metric  # noqa: E402
from edgeface.train.outcome import MetricSettings  # noqa: E402
from edgeface.train.projection import Projection  # noqa: E402

FAST = Optimisation(epochs=6, batch=24, rate=0.01, patience=0)
SETTINGS = MetricSettings(resolutions=(4, 8), mining="batch-hard")


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    return write_net(tmp_path / "model")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "people", 8, 6)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "others", 6, 6, seed=9)


def images(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("hidden", [0, 16])
def test_an_untrained_projection_is_the_identity_in_torch_and_in_the_ir(ir: Path, hidden: int) -> None:
    plain = run_model(read_ir(ir), images())
    found = run_model(Projection(DIM, hidden).write_into(read_ir(ir)), images())
    assert np.abs(found - plain).max() < 1e-6


@pytest.mark.parametrize("hidden", [0, 16])
def test_the_projection_in_the_ir_computes_what_it_does_in_torch(ir: Path, hidden: int) -> None:
    projection = Projection(DIM, hidden, seed=1)
    with torch.no_grad():
        for parameter in projection.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    made = projection.write_into(read_ir(ir))
    assert made.output(0).get_names() == {"embeddings"}
    plain = run_model(read_ir(ir), images())
    with torch.no_grad():
        expected = projection(torch.from_numpy(plain)).numpy()
    found = run_model(made, images())
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(found - plain).max() > 0.05


def test_a_batch_has_photos_of_several_people_and_the_seed_decides_it() -> None:
    owner = np.repeat(np.arange(10), 5)
    batches = person_batches(owner, np.arange(50), batch=12, photos=3, copies=4, seed=1)
    epoch = list(batches(3))
    assert np.array_equal(np.concatenate(epoch), np.concatenate(list(batches(3))))
    assert not np.array_equal(np.concatenate(epoch), np.concatenate(list(batches(4))))
    copy, photo = np.divmod(np.concatenate(epoch), 50)
    assert set(copy) == {0, 1, 2, 3}
    assert len(set(photo)) == 30  # each person is there once, with three photos
    for rows in epoch:
        assert sorted(set(np.bincount(owner[rows % 50], minlength=10))) == [0, 3]
        assert len(rows) in (9, 12)
    with pytest.raises(InputError, match="at least two people"):
        person_batches(owner, np.arange(5), batch=12, photos=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        dataclasses.replace(SETTINGS, hidden=16, pull=0.5),
        dataclasses.replace(SETTINGS, unfreeze=1),
        dataclasses.replace(SETTINGS, loss="triplet", mining="semi-hard", distance="squared", resolutions=()),
        dataclasses.replace(SETTINGS, loss="triplet", unfreeze=2),
    ],
    ids=["projection", "hidden", "unfrozen", "triplet", "triplet-copies"],
)
def test_what_is_trained_is_written_with_its_lineage_and_what_others_gain(
    ir: Path, people: Path, others: Path, tmp_path: Path, settings: MetricSettings
) -> None:
    outcome = train_metric(
        people,
        tmp_path / "out",
        ir,
        settings=settings,
        optimisation=FAST,
        strangers=pairs_of_strangers(others, people, most=60),
        cache=tmp_path / "cache",
        force=True,
    )
    assert outcome.ir is not None
    _, parent = read_contract(ir)
    trained, contract = read_contract(outcome.ir)
    assert contract.contract_id != parent.contract_id
    assert contract.lineage is not None
    assert (contract.lineage.method, contract.lineage.parent_id) == ("finetuned", parent.contract_id)
    assert f"loss {settings.loss}" in contract.lineage.settings
    assert np.abs(run_model(trained, images()) - run_model(read_ir(ir), images())).max() > 1e-4
    assert list(outcome.changes) == [*settings.resolutions, SIZE]
    told = json.loads((tmp_path / "out" / "training.json").read_text())
    assert list(told["verification"]) == [str(pixels) for pixels in outcome.changes]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "People who were not trained on" in page
    assert ("Low resolution" in page) == bool(settings.resolutions)
    losses = [epoch.loss for epoch in outcome.history.epochs]
    assert losses[-1] < losses[0] or settings.mining == "semi-hard"  # whose negatives become harder meanwhile


@pytest.mark.slow
def test_accuracy_after_is_that_of_the_ir_that_was_written(
    ir: Path, people: Path, others: Path, tmp_path: Path
) -> None:
    strangers = pairs_of_strangers(others, people, most=60)
    outcome = train_metric(
        people, tmp_path / "out", ir, settings=SETTINGS, optimisation=FAST, strangers=strangers,
        cache=tmp_path / "cache", force=True,
    )  # fmt: skip
    assert outcome.ir is not None
    full = strangers.compare(ir, outcome.ir)[0]
    assert outcome.changes[SIZE].accuracy.before == pytest.approx(full.accuracy.before, abs=0.02)
    assert outcome.changes[SIZE].accuracy.after == pytest.approx(full.accuracy.after, abs=0.02)


def test_copies_are_embedded_once_and_a_damaged_cache_is_made_again(
    ir: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, contract = read_contract(ir)
    crops = np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE, 3), np.uint8)
    first = Features(ir, contract, cache=tmp_path).reduced(crops, (4,))
    (file,) = (tmp_path / "train").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr("edgeface.train.copies.Embedder", None)
        assert np.array_equal(Features(ir, contract, cache=tmp_path).reduced(crops[::-1], (4,)), first[:, ::-1])
    file.write_bytes(file.read_bytes()[:200])
    assert np.array_equal(Features(ir, contract, cache=tmp_path).reduced(crops, (4,)), first)


def test_without_pairs_of_strangers_nothing_is_trained_unless_forced(ir: Path, people: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected labelled pairs of other people"):
        train_metric(people, tmp_path / "out", ir, settings=SETTINGS, cache=tmp_path / "cache")
    assert not list((tmp_path / "out").glob("*.xml"))
    few = write_photos(tmp_path / "few", 3, 3)
    with pytest.raises(InputError, match="at least 4 people"):
        train_metric(few, tmp_path / "out", ir, settings=SETTINGS, cache=tmp_path / "cache", force=True)


@pytest.mark.slow
def test_an_embedder_that_became_worse_is_not_written(
    ir: Path, people: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "judge_strangers", lambda change: (f"worse on {change.pairs} pairs",))
    options = {"settings": SETTINGS, "optimisation": FAST, "cache": tmp_path / "cache"}
    strangers = pairs_of_strangers(others, people, most=60)
    refused = train_metric(people, tmp_path / "out", ir, strangers=strangers, **options)
    assert not refused
    assert not list((tmp_path / "out").glob("*.xml"))
    assert "Not written." in (tmp_path / "out" / "report.html").read_text()
    assert train_metric(people, tmp_path / "out", ir, strangers=strangers, force=True, **options)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "quadruplet"},
        {"resolutions": ()},
        {"resolutions": (14, 14)},
        {"margin": -1.0},
        {"keep": float("nan")},
        {"terms": (0.0, 0.0, 0.0, 0.0)},
        {"terms": (1.0, 1.0)},
        {"photos": 1},
        {"hidden": -1},
        {"validation": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        MetricSettings(**wrong)


@pytest.mark.slow
def test_the_command_tells_gains_by_resolution_and_says_no_by_its_exit_code(
    ir: Path, people: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    words = ["train", "metric", people, "-o", tmp_path / "out", "--model", ir, "--crops", "--epochs", "2"]
    words += ["--verify", others, "--resolutions", "4,8"]
    done = edgeface(*words, "--json", "--force")
    assert done.returncode == 0
    assert list(json.loads(done.stdout)["verification"]) == ["4", "8", str(SIZE)]
    assert "8 pixels" in edgeface(*words, "--force", "-o", tmp_path / "shown").stdout
    whole = edgeface(*words, "--force", "--resolutions", f"8,{SIZE + 1}")
    assert (whole.returncode, f"at most that of the model's crops, {SIZE} pixels" in whole.stderr) == (2, True)
    monkeypatch.setattr(module, "judge_strangers", lambda change: ("it became worse",))
    refused = edgeface(*words, "-o", tmp_path / "refused")
    assert refused.returncode == 1
    assert "it became worse" in refused.stderr
    assert edgeface(*words, "--resolutions", "2").returncode == 2
