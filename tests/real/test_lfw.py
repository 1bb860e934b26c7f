"""Two small folds of real LFW pairs through vision, runtime and protocol, against numbers computed without them.

The expectations come from plain OpenVINO on `cv2.imread`, a cut and `cv2.resize`, scikit-learn's KFold and NumPy.
The whole list takes minutes: `benchmarks/lfw.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeface.evaluate.faces import Embedded, FaceSource, embed_images, load_boxes
from edgeface.evaluate.pairs import Pairs, parse_pairs, read_pairs
from edgeface.evaluate.protocol import Evaluation, ProtocolName, evaluate, pair_scores
from edgeface.model.ir_file import read_contract
from edgeface.recognize import Metric, calibrate
from edgeface.recognize.known import shipped_thresholds

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]

ONE_PAIR = 0.0051
"""What one pair is worth in a fold of 200."""


@pytest.fixture(scope="module")
def pairs(data: Path) -> Pairs:
    """The first 100 pairs of each kind of the first two sets."""
    rows = (data / "lfw" / "pairs.txt").read_text().split("\n")[1:]
    parts = [rows[start : start + 100] for start in (0, 300, 600, 900)]
    return parse_pairs("\n".join(["2\t100", *(row for part in parts for row in part)]).encode())


@pytest.fixture(scope="module")
def embedded(data: Path, pairs: Pairs, real_ir: Path) -> Embedded:
    return embed_images(
        data / "lfw" / "images",
        pairs.images,
        real_ir,
        FaceSource(load_boxes(data / "lfw" / "mtcnn_reference.npz")),
        flip="concatenate",
    )


def means(evaluation: Evaluation) -> tuple[float, float]:
    return (float(evaluation.distances[evaluation.same].mean()), float(evaluation.distances[~evaluation.same].mean()))


def test_one_image_and_squared_l2_score_as_computed_independently(embedded: Embedded, pairs: Pairs) -> None:
    found = evaluate(embedded.vectors[:, :512], pairs, protocol=ProtocolName.facenet, metric=Metric.squared_l2)
    np.testing.assert_allclose(found.accuracies, [0.995, 0.985], atol=ONE_PAIR)
    np.testing.assert_allclose(found.thresholds, [1.29, 1.27], atol=0.02)
    assert means(found) == pytest.approx((0.61959, 1.94161), abs=1e-3)


def test_mirror_mean_and_angle_score_as_computed_independently(embedded: Embedded, pairs: Pairs) -> None:
    found = evaluate(embedded.vectors, pairs, protocol=ProtocolName.facenet, metric=Metric.arccos, subtract_mean=True)
    np.testing.assert_allclose(found.accuracies, [0.985, 0.985], atol=ONE_PAIR)
    np.testing.assert_allclose(found.thresholds, [0.38, 0.39], atol=0.02)
    assert means(found) == pytest.approx((0.25679, 0.49808), abs=1e-3)


def test_the_mirror_is_another_space_and_nothing_failed(embedded: Embedded) -> None:
    assert embedded.vectors.shape == (602, 1024)
    assert embedded.contract.embedding_dim == 1024
    np.testing.assert_allclose(np.linalg.norm(embedded.vectors, axis=1), np.sqrt(2), atol=1e-4)
    assert not embedded.cutter.failures


def test_a_threshold_from_one_half_keeps_its_rate_on_the_other(embedded: Embedded, pairs: Pairs) -> None:
    scores, half = pair_scores(embedded.vectors, pairs, Metric.cosine), np.arange(len(pairs)) < 200
    found = calibrate(
        scores[half & pairs.same],
        scores[half & ~pairs.same],
        fars=[0.05],
        contract_id=embedded.contract.contract_id,
        metric=Metric.cosine,
    )[0]
    low, high = found.far_interval
    assert low <= np.mean(scores[~half & ~pairs.same] > found.value) <= high
    assert np.mean(scores[~half & pairs.same] <= found.value) < 0.05


def test_the_shipped_thresholds_have_the_rates_they_say_on_lfw(embedded: Embedded, pairs: Pairs) -> None:
    cosine_similarity = pytest.importorskip("sklearn.metrics.pairwise").cosine_similarity
    people = np.array([name.split("/")[0] for name in pairs.images])
    scores = cosine_similarity(embedded.vectors[:, :512].astype(np.float64))
    upper = np.triu(np.ones_like(scores, bool), 1)
    same = people[:, None] == people
    impostor, genuine = scores[upper & ~same], scores[upper & same]
    assert (len(impostor), len(genuine)) == (180_354, 547)
    contract_id = read_contract(embedded.model)[1].contract_id
    for each in shipped_thresholds(contract_id)[:2]:  # 1e-2 and 1e-3: some 1,800 and 180 pairs
        assert np.mean(impostor > each.value) == pytest.approx(each.far, rel=0.35)
        assert np.mean(genuine <= each.value) == pytest.approx(each.frr, abs=0.04)


def test_the_official_list_is_what_its_header_says(data: Path) -> None:
    official = read_pairs(data / "lfw" / "pairs.txt")
    assert (len(official), len(official.images), official.folds) == (6000, 7701, 10)
    assert official.same.reshape(10, 2, 300).all(axis=2).tolist() == [[True, False]] * 10
    boxes = load_boxes(data / "lfw" / "mtcnn_reference.npz")
    assert set(official.images) == boxes.rows.keys()
    assert [name for name in boxes.rows if boxes.find(name) is None] == ["Marilyn_Monroe/Marilyn_Monroe_0001"]
