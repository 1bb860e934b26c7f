"""Similarities on CompreFace's scale."""

from __future__ import annotations

import dataclasses
import math

import pytest
from contracts import sample_contract

from edgeface.recognize import known
from edgeface.recognize.known import shipped_thresholds
from edgeface.recognize.threshold import Threshold
from edgeface.serve.similarity import ANCHORS, PUBLISHED, SimilarityScale, scale_of

FACENET = "c9c4145b201ace67"
"""Contract of FaceNet 20180408-102900, FP32."""


@pytest.mark.parametrize(("name", "scale"), PUBLISHED.items())
def test_the_facenets_have_the_published_scale(name: str, scale: SimilarityScale) -> None:
    contract = sample_contract(name=f"facenet-{name}")
    assert scale_of(contract) is scale
    distance = 0.9  # of unit vectors: |a - b|^2 = 2 - 2 cos
    expected = (math.tanh((scale.c0 - distance) * scale.c1) + 1) / 2
    assert scale.similarity(1 - distance**2 / 2) == pytest.approx(expected, abs=1e-5)
    assert (scale.similarity(1.0), scale.similarity(-1.0)) == (1.0, pytest.approx(0.0, abs=1e-3))


def test_the_anchors_are_what_facenet_s_thresholds_have_on_its_scale() -> None:
    thresholds = {each.far: each.cosine for each in shipped_thresholds(FACENET)}
    for rate, anchor in ANCHORS.items():
        assert PUBLISHED["20180408-102900"].similarity(thresholds[rate]) == pytest.approx(anchor, abs=0.006)


def test_another_model_s_thresholds_have_the_same_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = sample_contract(name="mine")
    # dlib's embeddings are all alike: without strangers above 0.9 its thresholds would mean nothing to a client.
    thresholds = {1e-2: 0.9076, 1e-3: 0.9263, 1e-4: 0.9409}
    by_hand = [
        dataclasses.replace(Threshold.by_hand(cosine, contract_id=contract.contract_id), far=rate)
        for rate, cosine in thresholds.items()
    ]
    monkeypatch.setattr("edgeface.serve.similarity.thresholds_for", lambda _: tuple(by_hand))
    scale = scale_of(contract)
    for rate, anchor in ANCHORS.items():
        assert scale.similarity(thresholds[rate]) == pytest.approx(anchor, abs=1e-5)
    assert scale.similarity(0.8) < 0.01 < 0.57 < scale.similarity(0.9263) < 0.94
    trained = dataclasses.replace(contract, name="20180408-102900")
    assert scale_of(trained) is PUBLISHED["20180408-102900"]


def test_a_model_without_thresholds_has_facenet_s_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = sample_contract(name="mine", source_sha256="e" * 64)
    assert known.thresholds_for(contract) == ()
    assert scale_of(contract) is PUBLISHED["20180408-102900"]
