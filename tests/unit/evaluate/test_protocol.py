"""Protocols against slow readings of their sources; curves against scikit-learn and closed forms of two Gaussians."""

from __future__ import annotations

from itertools import chain
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.errors import ContractError, InputError
from edgeface.evaluate.pairs import Pairs, parse_pairs
from edgeface.evaluate.protocol import (
    ProtocolName,
    Roc,
    accept_rates,
    evaluate,
    evaluate_distances,
    exact_roc,
    pair_scores,
    split,
)
from edgeface.recognize import Metric

FACENET, OMZ = ProtocolName.facenet, ProtocolName.omz


def make_pairs(*, folds: int, per_kind: int, seed: int) -> Pairs:
    """A list of the form of LFW's, with anchors that return and a pair that is repeated."""
    rng = np.random.default_rng(seed)
    rows = [f"{folds}\t{per_kind}"]
    for _ in range(folds):
        for _ in range(per_kind):
            one, two = rng.choice(4, 2, replace=False) + 1
            rows.append(f"P{rng.integers(30)}\t{one}\t{two}")
        for _ in range(per_kind):
            one, two = rng.choice(30, 2, replace=False)
            rows.append(f"P{one}\t{rng.integers(4) + 1}\tP{two}\t{rng.integers(4) + 1}")
    return parse_pairs("\n".join(rows).encode())


def make_vectors(pairs: Pairs, *, seed: int, spread: float = 0.75) -> np.ndarray:
    """Unit vectors around one centre a person, with a mean that is not 0."""
    rng = np.random.default_rng(seed)
    people = {name: rng.normal(0.1, 1, 16) for name in dict.fromkeys(x.split("/")[0] for x in pairs.images)}
    vectors = np.array([people[x.split("/")[0]] + spread * rng.standard_normal(16) for x in pairs.images])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def slow_distance(a: np.ndarray, b: np.ndarray, metric: Metric) -> float:
    if metric is Metric.squared_l2:
        return float(sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)))
    cosine = float(a @ b) / np.sqrt(float(a @ a) * float(b @ b))
    return float(np.arccos(min(1.0, max(-1.0, cosine))) / np.pi)


def slow_distances(
    vectors: np.ndarray, rows: list[tuple[int, int, bool]], mean: np.ndarray, metric: Metric
) -> np.ndarray:
    doubles = vectors.astype(np.float64) - mean
    return np.array([slow_distance(doubles[a], doubles[b], metric) for a, b, _ in rows])


def slow_threshold(distances: np.ndarray, same: np.ndarray, grid: np.ndarray) -> float:
    return float(grid[int(np.argmax([int(((distances < t) == same).sum()) for t in grid]))])


def mean_of(vectors: np.ndarray, rows: list[tuple[int, int, bool]], subtract: bool) -> np.ndarray:
    sides = [vectors[index].astype(np.float64) for a, b, _ in rows for index in (a, b)]
    return np.mean(sides, axis=0) if subtract else np.zeros(vectors.shape[1])


def rows_of(pairs: Pairs) -> list[tuple[int, int, bool]]:
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True))


@pytest.mark.parametrize(("metric", "subtract"), [(Metric.squared_l2, False), (Metric.arccos, True)])
def test_facenet_is_what_its_source_computes(metric: Metric, subtract: bool) -> None:
    splits = pytest.importorskip("sklearn.model_selection").KFold
    interpolate = pytest.importorskip("scipy.interpolate")
    pairs = make_pairs(folds=5, per_kind=40, seed=1)
    vectors, rows = make_vectors(pairs, seed=2), rows_of(pairs)
    grid, fine = np.arange(0, 4, 0.01), np.arange(0, 4, 0.001)
    accuracies, thresholds, curves, val, met = [], [], [], [], []
    for train, test in splits(5, shuffle=False).split(rows):
        mean = mean_of(vectors, [rows[k] for k in train], subtract)
        distances = slow_distances(vectors, rows, mean, metric)
        thresholds.append(slow_threshold(distances[train], pairs.same[train], grid))
        accuracies.append(np.mean((distances[test] < thresholds[-1]) == pairs.same[test]))
        near, apart = distances[test][pairs.same[test]], distances[test][~pairs.same[test]]
        curves.append([[np.mean(apart < t) for t in grid], [np.mean(near < t) for t in grid]])
        far = np.array([np.mean(distances[train][~pairs.same[train]] < t) for t in fine])
        rates, first = np.unique(far, return_index=True)
        cut = interpolate.interp1d(rates, fine[first], kind="slinear")(0.05)
        val.append(np.mean(near < cut))
        met.append(np.mean(apart < cut))
    found = evaluate(vectors, pairs, protocol=FACENET, metric=metric, subtract_mean=subtract, fars=[0.05])
    np.testing.assert_allclose(found.accuracies, accuracies)
    np.testing.assert_allclose(found.thresholds, thresholds)
    assert 0.8 < found.accuracy < 1
    assert found.accuracy_std == pytest.approx(np.std(accuracies))
    assert (found.val[0].mean, found.val[0].std) == pytest.approx((np.mean(val), np.std(val)))
    assert found.val[0].far == pytest.approx(np.mean(met))
    far, tar = np.mean(curves, axis=0)
    assert found.auc == pytest.approx(pytest.importorskip("sklearn.metrics").auc(far, tar), abs=1e-12)


@pytest.mark.parametrize(("metric", "subtract"), [(Metric.arccos, True), (Metric.squared_l2, False)])
def test_omz_is_what_its_source_computes(metric: Metric, subtract: bool) -> None:
    pairs = make_pairs(folds=5, per_kind=40, seed=3)
    vectors, rows = make_vectors(pairs, seed=4), rows_of(pairs)
    partners: dict[int, dict[tuple[int, bool], None]] = {}
    named: dict[int, None] = {}
    for wanted in (True, False):
        for a, b, same in rows:
            if same == wanted:
                partners.setdefault(a, {})[b, same] = None
                named |= {a: None, b: None}
    anchors = [image for image in named if image in partners]
    accuracies = []
    for fold in range(5):
        low, high = (k * len(anchors) // 5 for k in (fold, fold + 1))
        held, learned = (
            [(a, b, same) for a in part for b, same in partners[a]]
            for part in (anchors[low:high], anchors[:low] + anchors[high:])
        )
        mean = mean_of(vectors, learned, subtract)
        labels = np.array([same for *_, same in learned])
        cut = slow_threshold(slow_distances(vectors, learned, mean, metric), labels, np.arange(0, 4, 0.01))
        right = (slow_distances(vectors, held, mean, metric) < cut) == [same for *_, same in held]
        accuracies.append(np.mean(right))
    found = evaluate(vectors, pairs, protocol=OMZ, metric=metric, subtract_mean=subtract)
    np.testing.assert_allclose(found.accuracies, accuracies)
    assert len(found.distances) == sum(map(len, partners.values())) < len(pairs)
    assert found.val[0].std is None


@pytest.mark.parametrize("protocol", ProtocolName)
def test_folds_share_no_pair_and_leave_none_out(protocol: ProtocolName) -> None:
    pairs = make_pairs(folds=4, per_kind=25, seed=5)
    folds = split(pairs, protocol)
    tested = list(chain.from_iterable(fold.tolist() for fold in folds))
    assert len(tested) == len(set(tested))
    distinct = {(a, b, same) for a, b, same in rows_of(pairs)}
    assert len(tested) == (len(pairs) if protocol is FACENET else len(distinct))


def test_omz_keeps_an_anchor_in_one_fold_and_has_more_genuine_pairs_in_the_first() -> None:
    pairs = make_pairs(folds=4, per_kind=25, seed=6)
    folds = split(pairs, OMZ)
    anchors = [set(pairs.first[fold].tolist()) for fold in folds]
    assert sum(map(len, anchors)) == len(set.union(*anchors))
    assert pairs.same[folds[0]].mean() > pairs.same[folds[-1]].mean()


@pytest.mark.parametrize("protocol", ProtocolName)
def test_perfect_embeddings_make_no_mistake(protocol: ProtocolName) -> None:
    pairs = make_pairs(folds=4, per_kind=25, seed=7)
    found = evaluate(make_vectors(pairs, seed=8, spread=0), pairs, protocol=protocol, metric=Metric.arccos)
    assert (found.accuracy, found.accuracy_std, found.auc, found.eer) == (1, 0, 1, 0)
    assert [each.mean for each in found.val] == [1, 1, 1]


@pytest.mark.parametrize("protocol", ProtocolName)
def test_random_embeddings_know_nothing(protocol: ProtocolName) -> None:
    pairs = make_pairs(folds=10, per_kind=60, seed=9)
    vectors = np.random.default_rng(0).standard_normal((len(pairs.images), 8)).astype(np.float32)
    found = evaluate(vectors, pairs, protocol=protocol, metric=Metric.arccos)
    assert found.auc == pytest.approx(0.5, abs=0.06)
    assert found.eer == pytest.approx(0.5, abs=0.06)


def test_scaling_embeddings_changes_no_angle() -> None:
    pairs = make_pairs(folds=4, per_kind=25, seed=10)
    vectors = make_vectors(pairs, seed=11)
    one, other = (evaluate(v, pairs, protocol=FACENET, metric=Metric.arccos) for v in (vectors, vectors * 7))
    np.testing.assert_allclose(one.distances, other.distances, atol=1e-7)


def raw(vectors: np.ndarray) -> np.ndarray:
    """Embeddings of a model that does not normalise: lengths of 5 to 15."""
    return vectors * np.random.default_rng(3).uniform(5, 15, (len(vectors), 1)).astype(np.float32)


@pytest.mark.parametrize("metric", [each for each in Metric if each is not Metric.euclidean])
@pytest.mark.parametrize("subtract", [False, True])
def test_a_model_that_does_not_normalise_scores_like_its_normalised_self(metric: Metric, subtract: bool) -> None:
    pairs = make_pairs(folds=4, per_kind=25, seed=10)
    vectors = make_vectors(pairs, seed=11)
    for sides in (vectors, np.hstack([vectors, vectors[:, ::-1]])):  # with the mirror's behind it
        one, other = (
            evaluate(each, pairs, protocol=FACENET, metric=metric, subtract_mean=subtract)
            for each in (sides, raw(sides))
        )
        assert other.accuracy == pytest.approx(one.accuracy, abs=0.011)  # one pair, by rounding at a threshold
        assert other.accuracy > 0.8
        np.testing.assert_allclose(one.distances, other.distances, atol=1e-6)
        assert other.to_dict()["thresholds"] == {"from": 0.0, "to": 4.0, "steps": 400}
        assert other.to_dict()["normalized"] is True


def test_euclidean_distances_of_long_embeddings_are_scored_on_their_own_scale() -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    pairs = make_pairs(folds=4, per_kind=25, seed=10)
    vectors = 10 * make_vectors(pairs, seed=11)
    found = evaluate(vectors, pairs, protocol=FACENET, metric=Metric.euclidean)
    expected = np.linalg.norm(vectors[pairs.first].astype(float) - vectors[pairs.second], axis=1)
    np.testing.assert_allclose(found.distances, expected)
    assert found.accuracy > 0.8
    assert 4 < found.threshold < expected.max() < found.highest
    answer = found.to_dict()
    assert (answer["normalized"], answer["metric"], answer["thresholds"]["to"]) == (False, "euclidean", found.highest)
    fixed = found.at(10.0)
    assert fixed["accuracy"] == oracle.accuracy_score(pairs.same, expected < 10.0)
    assert fixed["tar"] == oracle.recall_score(pairs.same, expected < 10.0)


def test_a_cosine_similarity_is_scored_as_its_distance() -> None:
    pairs = make_pairs(folds=4, per_kind=25, seed=10)
    vectors = make_vectors(pairs, seed=11)
    one, other = (
        evaluate(vectors, pairs, protocol=FACENET, metric=metric) for metric in (Metric.cosine, Metric.cosine_distance)
    )
    assert one.to_dict() == other.to_dict()


def test_json_has_the_keys_that_were_promised() -> None:
    pairs = make_pairs(folds=4, per_kind=25, seed=12)
    answer = evaluate(make_vectors(pairs, seed=13), pairs, protocol=FACENET, metric=Metric.arccos).to_dict()
    assert {"protocol", "metric", "pairs", "accuracy", "val", "auc", "eer", "threshold"} <= answer.keys()
    assert answer["protocol"] == "facenet"
    assert answer["metric"] == "arccos"
    assert answer["pairs"] == 200
    assert answer["accuracy"].keys() == {"mean", "std"}
    assert list(answer["val"]) == ["0.1", "0.01", "0.001"]


def test_distances_from_elsewhere_are_scored_by_the_same_rules() -> None:
    pairs = make_pairs(folds=4, per_kind=25, seed=16)
    vectors = make_vectors(pairs, seed=17)
    for protocol in ProtocolName:
        whole = evaluate(vectors, pairs, protocol=protocol, metric=Metric.arccos)
        scored = evaluate_distances(
            pair_scores(vectors, pairs, Metric.arccos), pairs, protocol=protocol, metric="arccos"
        )
        assert scored.to_dict() == whole.to_dict()
        with pytest.raises(ContractError, match="expected 200 distances"):
            evaluate_distances(np.zeros(3), pairs, protocol=protocol, metric="arccos")


def test_what_does_not_fit_the_protocol_is_refused() -> None:
    pairs = make_pairs(folds=4, per_kind=5, seed=14)
    vectors = make_vectors(pairs, seed=15)
    with pytest.raises(ContractError, match=f"expected {len(vectors)} embeddings, one for each image, found 1"):
        evaluate(vectors[:1], pairs, protocol=FACENET, metric=Metric.arccos)
    for protocol in ProtocolName:
        single = parse_pairs(b"1\nA\t1\t2\nA\t1\tB\t1\n")
        with pytest.raises(InputError, match="folds, found 1"):
            evaluate(np.eye(3, dtype=np.float32), single, protocol=protocol, metric=Metric.arccos)
    sorted_by_kind = parse_pairs(b"2\t1\nA\t1\t2\nA\t1\t3\nA\t1\tB\t1\nA\t2\tB\t1\n")
    with pytest.raises(InputError, match="fold 1 of 2: expected genuine and impostor pairs"):
        evaluate(np.eye(4, dtype=np.float32), sorted_by_kind, protocol=FACENET, metric=Metric.arccos)


@pytest.mark.parametrize("protocol", ProtocolName)
@pytest.mark.parametrize("metric", [Metric.squared_l2, Metric.arccos])
def test_embeddings_that_are_not_numbers_are_refused_and_not_scored(protocol: ProtocolName, metric: Metric) -> None:
    pairs = make_pairs(folds=4, per_kind=8, seed=0)
    vectors = make_vectors(pairs, seed=0)
    vectors[3, 5] = np.nan
    with pytest.raises(ContractError, match="found NaN or infinity in 1; the inference failed"):
        evaluate(vectors, pairs, protocol=protocol, metric=metric)
    with pytest.raises(ContractError, match="finite distances"):
        evaluate_distances(np.full(len(pairs), np.inf), pairs, protocol=protocol, metric="pixel")


@pytest.mark.parametrize("far", [0.0, 1.0, 2.0, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(far: float) -> None:
    pairs = make_pairs(folds=4, per_kind=8, seed=0)
    with pytest.raises(InputError, match="far: expected a rate above 0 and below 1"):
        evaluate(make_vectors(pairs, seed=0), pairs, protocol=FACENET, metric=Metric.squared_l2, fars=(0.1, far))


@pytest.mark.parametrize("protocol", ProtocolName)
def test_a_rate_that_the_pairs_are_too_few_for_is_marked(protocol: ProtocolName) -> None:
    pairs = make_pairs(folds=4, per_kind=8, seed=0)  # 32 impostor pairs
    found = evaluate(make_vectors(pairs, seed=0), pairs, protocol=protocol, metric=Metric.squared_l2, fars=(0.1, 0.05))
    assert [val["supported"] for val in found.to_dict()["val"].values()] == [True, False]


# --- curves ---

DISTANCES = st.lists(st.integers(0, 12), min_size=1, max_size=40)


def gaussian_quantiles(d: float, count: int = 20_001) -> tuple[np.ndarray, np.ndarray]:
    """Distances at the quantiles of N(0, 1) for genuine pairs and N(d, 1) for impostors."""
    base = np.array([NormalDist().inv_cdf((k + 0.5) / count) for k in range(count)])
    return np.concatenate([base, base + d]), np.arange(2 * count) < count


@pytest.mark.parametrize("d", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_two_gaussians_have_the_area_and_error_rate_of_the_book(d: float) -> None:
    roc = exact_roc(*gaussian_quantiles(d))
    assert roc.auc == pytest.approx(NormalDist().cdf(d / np.sqrt(2)), abs=1e-4)
    assert roc.eer == pytest.approx(NormalDist().cdf(-d / 2), abs=1e-4)
    for far in (0.1, 0.01, 0.001):
        expected = NormalDist().cdf(d + NormalDist().inv_cdf(far))
        assert roc.tar_at(far) == pytest.approx(expected, abs=2e-3)


@settings(max_examples=examples(200))
@given(DISTANCES, DISTANCES)
def test_the_exact_curve_is_scikit_learns(genuine: list[int], impostor: list[int]) -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    distances = np.array(genuine + impostor, float)
    same = np.arange(len(distances)) < len(genuine)
    roc = exact_roc(distances, same)
    far, tar, _ = oracle.roc_curve(same, -distances, drop_intermediate=False)
    np.testing.assert_allclose(np.unique([roc.far, roc.tar], axis=1), np.unique([far, tar], axis=1))
    assert roc.auc == pytest.approx(oracle.roc_auc_score(same, -distances))


@settings(max_examples=examples(200))
@given(DISTANCES, DISTANCES)
def test_rates_rise_from_nothing_to_everything_and_the_eer_lies_on_the_curve(
    genuine: list[int], impostor: list[int]
) -> None:
    distances = np.array(genuine + impostor, float)
    roc = exact_roc(distances, np.arange(len(distances)) < len(genuine))
    for rates in (roc.far, roc.tar):
        assert rates[0] == 0
        assert rates[-1] == 1
        assert (np.diff(rates) >= 0).all()
    assert 0 <= roc.eer <= 1
    flat = np.interp(1 - roc.eer, roc.tar, roc.far) if len(np.unique(roc.tar)) == len(roc.tar) else roc.eer
    assert flat == pytest.approx(roc.eer, abs=1e-9)


def test_eer_is_the_root_that_scipy_finds() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    interpolate = pytest.importorskip("scipy.interpolate")
    rng = np.random.default_rng(0)
    distances = np.concatenate([rng.normal(0, 1, 400), rng.normal(1.5, 1, 300)])
    grid = np.linspace(-4, 6, 60)
    roc = Roc(grid, *accept_rates(distances, np.arange(700) < 400, grid))
    far, unique = np.unique(roc.far, return_index=True)
    tar = interpolate.interp1d(far, roc.tar[unique])
    assert roc.eer == pytest.approx(optimize.brentq(lambda x: 1 - x - tar(x), 0, 1), abs=2e-3)


def test_perfect_and_useless_scores_have_the_rates_they_must() -> None:
    same = np.array([True, True, False, False])
    perfect = exact_roc(np.array([0.0, 1, 2, 3]), same)
    assert (perfect.auc, perfect.eer) == (1, 0)
    useless = exact_roc(np.ones(4), same)
    assert (useless.auc, useless.eer) == (0.5, 0.5)
    reversed_ = exact_roc(np.array([2.0, 3, 0, 1]), same)
    assert (reversed_.auc, reversed_.eer) == (0, 1)


def test_acceptance_is_strict() -> None:
    far, tar = accept_rates(np.array([1.0, 1.0]), np.array([True, False]), np.array([1.0, np.nextafter(1, 2)]))
    assert far.tolist() == tar.tolist() == [0, 1]


def test_a_curve_that_stops_early_is_carried_to_its_end() -> None:
    assert Roc(np.zeros(1), np.array([0.0]), np.array([1.0])).auc == 1
    assert Roc(np.zeros(2), np.array([0.0, 0.5]), np.array([0.0, 0.5])).auc == 0.5
