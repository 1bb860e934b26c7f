"""A classifier of scikit-learn as plain arrays, and the gallery's answers to the same photos beside it."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import edgeface
from tiny_trainable import write_net, write_photos

pytest.importorskip("sklearn", reason="the extra 'train' is not installed")

from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from edgeface.errors import ContractError, InputError
from edgeface.model.embedding import Embedding
from edgeface.recognize.metrics import unit_rows
from edgeface.train.classifier import ClassifierOutcome, train_classifier
from edgeface.train.classify import TrainedHead


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_net(tmp_path_factory.mktemp("net") / "model")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five people with ten photos, and a hundred strangers with two."""
    folder = write_photos(tmp_path_factory.mktemp("people"), 5, 10)
    return write_photos(folder, 100, 2, seed=7)


@pytest.fixture(scope="module")
def outcome(ir: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> ClassifierOutcome:
    folder = tmp_path_factory.mktemp("svm")
    return train_classifier(people, folder / "out", ir, cache=folder)


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_the_arrays_answer_as_scikit_learn_does(ir: Path, tmp_path: Path, kind: str, count: int) -> None:
    people = write_photos(tmp_path / "people", count, 8)
    done = train_classifier(people, tmp_path / "out", ir, kind=kind, cache=tmp_path)
    faces, rows, held = done.faces, done.parts["train"], done.parts["held_out"]
    scale = faces.embeddings.shape[1] ** 0.5 if kind == "logistic" else 1.0
    oracle = LinearSVC(random_state=0, max_iter=20_000) if kind == "svm" else LogisticRegression(max_iter=2_000)
    oracle.fit(faces.embeddings[rows].astype(np.float64) * scale, faces.people[rows])
    head = dataclasses.replace(done.head, temperature=1.0)
    found = head.probabilities(faces.embeddings)
    assert np.array_equal(found.argmax(axis=1), oracle.predict(faces.embeddings * scale))
    if kind == "logistic":
        np.testing.assert_allclose(found, oracle.predict_proba(faces.embeddings * scale), atol=1e-4)
    assert len(held) == len(done.classifier.right)


def test_what_is_written_is_plain_arrays_that_answer_embeddings_of_the_contract_alone(
    outcome: ClassifierOutcome,
) -> None:
    with zipfile.ZipFile(outcome.file) as archive:
        assert sorted(archive.namelist()) == ["bias.npy", "description.npy", "weights.npy"]
    head = TrainedHead.load(outcome.file)  # reads no pickle
    faces = outcome.faces
    row = int(outcome.parts["train"][0])
    contract_id = faces.contract.contract_id
    name, sure = head.classify(Embedding(faces.embeddings[row], contract_id))
    assert sure >= head.threshold or name is None
    with pytest.raises(ContractError):
        head.classify(Embedding(faces.embeddings[row], "0" * 16))


def test_both_leave_strangers_unnamed_by_thresholds_of_other_strangers(outcome: ClassifierOutcome) -> None:
    assert "100 photos" in outcome.head.threshold_from
    for answers in (outcome.classifier, outcome.gallery):
        assert len(answers.taken) == 100
        assert answers.taken.mean() <= 0.1
        assert not (answers.right & answers.wrong).any()


def test_the_gallery_answers_by_the_highest_cosine_of_the_same_photos(outcome: ClassifierOutcome) -> None:
    faces, parts = outcome.faces, outcome.parts
    rows = np.concatenate([parts["train"], parts["validation"]])
    cosines = unit_rows(faces.embeddings[parts["held_out"]]) @ unit_rows(faces.embeddings[rows]).T
    named = cosines.max(axis=1) > outcome.search_threshold.value
    right = faces.people[rows][cosines.argmax(axis=1)] == faces.people[parts["held_out"]]
    assert np.array_equal(outcome.gallery.right, named & right)
    assert np.array_equal(outcome.gallery.wrong, named & ~right)
    strangers = unit_rows(faces.strangers[100:]) @ unit_rows(faces.embeddings[rows]).T
    assert np.array_equal(outcome.gallery.taken, strangers.max(axis=1) > outcome.search_threshold.value)


def test_the_advice_is_a_gallery_unless_the_classifier_is_clearly_better(outcome: ClassifierOutcome) -> None:
    assert "use the gallery" in dataclasses.replace(outcome, lost=0, won=3, p_value=0.25).advice
    assert "use the gallery" in dataclasses.replace(outcome, lost=12, won=1, p_value=0.003).advice
    assert "classifier names more" in dataclasses.replace(outcome, lost=1, won=12, p_value=0.003).advice


def test_a_kind_or_c_that_makes_no_sense_is_refused(ir: Path, people: Path, tmp_path: Path) -> None:
    for wrong in ({"kind": "forest"}, {"c": 0.0}, {"c": float("inf")}, {"held_out": 0.0}):
        with pytest.raises(InputError, match="expected"):
            train_classifier(people, tmp_path / "out", ir, cache=tmp_path, **wrong)


def test_the_command_compares_both_and_tells_what_to_use(
    ir: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    words = ["train", "classifier", people, "-o", tmp_path / "out", "--model", ir, "--crops"]
    done = edgeface(*words, "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert answer["people"] == 5
    assert "gallery" in answer["advice"]
    assert answer["classifier"]["strangers_named"]["interval"][0] == 0 or answer["classifier"]["strangers"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Beside the gallery" in page
    refused = edgeface(*words)
    assert refused.returncode == 2
    assert "expected a folder without a finished training, found classifier.json" in refused.stderr
    shown = edgeface(*words, "-o", tmp_path / "shown")
    assert "strangers given a name" in shown.stdout
    assert edgeface(*words, "--c", "-1").returncode == 2
