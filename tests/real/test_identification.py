"""Some people of LFW identified in an open set: the same again, and as scikit-learn ranks them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from edgeface.evaluate.faces import FaceSource, load_boxes
from edgeface.evaluate.identification import IdentificationEvaluation, evaluate_identification

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]

EVERY = 60
"""One of so many people: 71 of them, 118 images."""


def identify(data: Path, ir: Path, people: Path) -> IdentificationEvaluation:
    return evaluate_identification(people, ir, FaceSource(load_boxes(data / "lfw" / "mtcnn_reference.npz")))


def test_identification_repeats_and_ranks_as_scikit_learn(data: Path, real_ir: Path, tmp_path: Path) -> None:
    (tmp_path / "people").mkdir()
    for folder in sorted((data / "lfw" / "images").iterdir())[::EVERY]:
        (tmp_path / "people" / folder.name).symlink_to(folder)
    found = identify(data, real_ir, tmp_path / "people")
    again = identify(data, real_ir, tmp_path / "people")
    assert {**found.to_dict(), "seconds": 0} == {**again.to_dict(), "seconds": 0}

    split, searches = found.split, found.searches
    vectors = found.embedded.vectors.astype(np.float64)
    oracle = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors[split.enrolled])
    distances, order = oracle.kneighbors(vectors[split.mated], len(split.enrolled))
    own = split.people[split.enrolled][order] == split.people[split.mated][:, None]
    np.testing.assert_array_equal(searches.mate_rank, own.argmax(axis=1) + 1)
    np.testing.assert_allclose(searches.mate_score, 1 - distances[own], atol=1e-9)
    distances, order = oracle.kneighbors(vectors[split.nonmated], 1)
    np.testing.assert_array_equal(searches.candidate, order[:, 0])
    np.testing.assert_allclose(searches.candidate_score, 1 - distances[:, 0], atol=1e-9)
    assert found.to_dict()["rank1"] > 0.9
    assert not found.embedded.cutter.failures
