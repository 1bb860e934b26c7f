"""Calibrate, store and choose verification thresholds with measured false accept rates, and verify with them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, InputError
from edgeface.files import write_atomically
from edgeface.model.embedding import Embedding, require_same_contract
from edgeface.recognize.metrics import Metric, paired
from edgeface.stats import clopper_pearson, trials_needed
from edgeface.untrusted import read_json

if TYPE_CHECKING:
    from edgeface.pipeline.observation import Face

USUAL_FAR = 1e-3
"""False accept rate where none is asked for."""

SHIPPED_ON = "LFW"
"""Labeled Faces in the Wild: the photos that the thresholds which ship with edgeface were calibrated on."""

_ELSEWHERE = 3.5
"""How many times as high rates were on other photos. FaceNet 20180408 with thresholds of LFW, on 40 people photographed
in one studio (78,000 impostor pairs): a FAR of 3.4e-3 instead of 1e-3, and of 3.5e-2 instead of 1e-2."""

_FORMAT = "edgeface-thresholds"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Threshold:
    """Threshold of verification for one contract and metric, and its measured error rates.

    Attributes
    ----------
    value
        On the metric's own scale. Strictly better scores are accepted: below it for a distance, above it for a
        similarity.
    metric
        Metric of the scores.
    contract_id
        Contract of the embeddings it was calibrated on; it is valid for no other.
    far
        Target false accept rate; None if the value was given by hand.
    false_accepts, impostors
        Impostor pairs accepted at `value`, and all impostor pairs.
    false_rejects, genuines
        Genuine pairs rejected at `value`, and all genuine pairs.
    far_interval, frr_interval
        Clopper-Pearson intervals at `confidence`. They assume independent pairs; all pairs of a few people
        are not, and the true intervals are wider then.
    confidence
        Of both intervals.
    created_from, measured_on
        Description of the data, and its short name: `SHIPPED_ON` for the thresholds that ship with edgeface.
    inherited
        How the model differs from the one that it was made from, if it was calibrated on that one.
    """

    value: float
    metric: Metric
    contract_id: str
    far: float | None
    false_accepts: int = 0
    impostors: int = 0
    false_rejects: int = 0
    genuines: int = 0
    far_interval: tuple[float, float] = (0.0, 1.0)
    frr_interval: tuple[float, float] = (0.0, 1.0)
    confidence: float = 0.95
    created_from: str = ""
    measured_on: str = ""
    inherited: str = ""

    @classmethod
    def by_hand(cls, value: float, *, contract_id: str, metric: Metric = Metric.cosine) -> Threshold:
        """Make a threshold from a number whose false accept rate was never measured.

        Raises
        ------
        InputError
            If the value is not on the metric's scale, for a cosine -1 to 1.

        Examples
        --------
        >>> Threshold.by_hand(0.5, contract_id="4c0ebb72970188bf").accepts(0.6)
        True
        """
        low, high = metric.scale
        if isinstance(value, bool) or not low <= value <= high:
            raise InputError(f"threshold: expected a {metric.words} from {low:g} to {high:g}, found {value!r}")
        return cls(value=float(value), metric=metric, contract_id=contract_id, far=None)

    @property
    def observed_far(self) -> float:
        """False accept rate on the calibration data, at most `far`; NaN without data."""
        return self.false_accepts / self.impostors if self.impostors else math.nan

    @property
    def frr(self) -> float:
        """False reject rate on the calibration data; NaN without data."""
        return self.false_rejects / self.genuines if self.genuines else math.nan

    @property
    def assured_far(self) -> float:
        """False accept rate to count on: `far`, or 1 if it was never measured."""
        return 1.0 if self.far is None else self.far

    @property
    def supported(self) -> bool:
        """Whether there were enough impostor pairs to say anything about `far`: at least 3 / far."""
        return self.far is not None and self.impostors >= trials_needed(self.far)

    @property
    def note(self) -> str:
        """What to know about `far`: on which photos it holds, and what the data do not support; empty if nothing."""
        if self.far is None:
            return "the threshold was given by hand: its false accept rate was never measured"
        few = (
            f"FAR {self.far:g} needs at least {trials_needed(self.far):,} impostor pairs (rule of three); "
            f"there were {self.impostors:,}, which show no more than FAR < {self.far_interval[1]:.2g}"
        )
        said = caution(self.measured_on, "false accept rate") if self.supported else few
        return "; ".join(each for each in (self.inherited, said) if each)

    @property
    def rate(self) -> str:
        """The target rate and the photos it was measured on, for an answer's text: "FAR 0.001 on LFW"."""
        if self.far is None:
            return "by hand"
        return f"FAR {self.far:g}" + (f" on {self.measured_on}" if self.measured_on else "")

    @property
    def cosine(self) -> float:
        """The same threshold as a cosine similarity: for unit vectors |a - b|^2 = 2 - 2 cos.

        Raises
        ------
        InputError
            If it is Euclidean: that of embeddings of any length has no cosine.
        """
        if self.metric is Metric.euclidean:
            raise InputError(
                "threshold: expected one that is of angles, found a Euclidean distance, which galleries and searches "
                "do not use; calibrate with --metric cosine"
            )
        if self.metric is Metric.cosine:
            return self.value
        if self.metric is Metric.cosine_distance:
            return 1.0 - self.value
        if self.metric is Metric.squared_l2:
            return 1.0 - self.value / 2.0
        return math.cos(math.pi * self.value)

    def accepts(self, score: float) -> bool:
        """Whether a score of this metric is accepted as the same person."""
        return score > self.value if self.metric.is_similarity else score < self.value

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, and the rates that follow from them, as JSON types."""
        stored = dataclasses.asdict(self)
        stored |= {key: list(stored[key]) for key in ("far_interval", "frr_interval")}
        stored["metric"] = self.metric.value
        derived = {name: getattr(self, name) for name in _DERIVED}
        if self.far is None:
            derived["observed_far"] = derived["frr"] = None
        return stored | derived

    def __repr__(self) -> str:
        sign = ">" if self.metric.is_similarity else "<"
        return f"Threshold({self.metric.value} {sign} {self.value:.4f}, {self.rate}, contract {self.contract_id})"

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Threshold:
        """Read what `to_dict` wrote.

        Raises
        ------
        InputError
            If a field is missing, of the wrong type, or not possible: off the metric's scale, a rate that is none, a
            reversed interval, or counts that contradict each other.
        """
        try:
            complete = {"measured_on": "", "inherited": "", **stored}  # 0.1 wrote neither
            fields = {field.name: _PARSERS[field.name](complete[field.name]) for field in dataclasses.fields(cls)}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"threshold: a field is missing or has the wrong type: {error!r}") from error
        if min(fields["impostors"], fields["genuines"]) < 1:
            raise InputError(
                f"threshold: expected positive counts, found {fields['impostors']} impostor and {fields['genuines']} "
                "genuine pairs"
            )
        low, high = fields["metric"].scale
        if not low - _ROUNDING <= fields["value"] <= high + _ROUNDING:
            raise InputError(
                f"threshold: expected a {fields['metric'].words} from {low:g} to {high:g}, found {fields['value']:g}"
            )
        require_rates([fields["far"]])
        require_rate("confidence", fields["confidence"])
        for errors, pairs in (("false_accepts", "impostors"), ("false_rejects", "genuines")):
            if not 0 <= fields[errors] <= fields[pairs]:
                raise InputError(
                    f"threshold: {errors}: expected 0 to {fields[pairs]} ({pairs}), found {fields[errors]}"
                )
        return cls(**fields)


def caution(measured_on: str, rate: str) -> str:
    """Return the warning that a rate of thresholds that ship belongs with; empty for the user's own photos."""
    if SHIPPED_ON not in measured_on.split(" and "):
        return ""
    advice = "Calibrate on your own" if measured_on == SHIPPED_ON else "Calibrate on more of your own"
    return (
        f"the {rate} holds on {SHIPPED_ON}; on other photos it was up to {_ELSEWHERE:g} times as high. {advice}: "
        "edgeface calibrate PEOPLE"
    )


def lacking(far: float, pairs: int) -> str:
    """Say how many impostor pairs a false accept rate needs, how many people have them, and what is missing.

    Examples
    --------
    >>> lacking(0.01, 12)
    'at least 300 impostor pairs (13 people with two photos each); there were 12, 288 are missing'
    """
    needed = trials_needed(far)
    people = math.ceil((1 + math.sqrt(1 + 2 * needed)) / 2)  # n people with two photos each have 2 n (n - 1) pairs
    return (
        f"at least {needed:,} impostor pairs ({people:,} people with two photos each); there were {pairs:,}, "
        f"{max(0, needed - pairs):,} are missing"
    )


def require_supported(thresholds: Sequence[Threshold]) -> tuple[Threshold, ...]:
    """Return the thresholds whose rates their data support.

    Raises
    ------
    InputError
        If there are none; the text says how many impostor pairs are missing for the least strict rate.
    """
    supported = tuple(each for each in thresholds if each.supported)
    if not supported:
        far, pairs = max((each.assured_far, each.impostors) for each in thresholds)
        remedy = "add people; or write the thresholds to a file with --output and give it with --threshold"
        raise InputError(
            f"calibration: the photos support no rate; FAR {far:g} needs {lacking(far, pairs)}; {remedy}", remedy=remedy
        )
    return supported


def calibrate(
    genuine: NDArray[np.floating[Any]],
    impostor: NDArray[np.floating[Any]],
    *,
    fars: Sequence[float],
    contract_id: str,
    metric: Metric,
    confidence: float = 0.95,
    created_from: str = "",
    measured_on: str = "",
) -> tuple[Threshold, ...]:
    """Find, for each target false accept rate, the most permissive threshold that keeps it on these scores.

    Parameters
    ----------
    genuine, impostor : (G,), (I,) float
        Scores of pairs of one person and of two, on the metric's own scale.
    fars
        Target rates, each in (0, 1).
    contract_id, metric, confidence, created_from, measured_on
        See `Threshold`.

    Returns
    -------
    tuple of Threshold
        In the order of `fars`. A rate that the data do not support gets a threshold too (the score of the most
        similar impostors); see its `supported` and `note`.

    Raises
    ------
    InputError
        If there are no scores of a kind, they are not finite, or a rate or `confidence` is not in (0, 1).

    Examples
    --------
    >>> impostor = np.linspace(-0.2, 0.5, 1000)
    >>> calibrate(np.array([0.7, 0.8]), impostor, fars=[0.01], contract_id="id", metric=Metric.cosine)
    (Threshold(cosine > 0.4930, FAR 0.01, contract id),)
    """
    require_rates(fars)
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence: expected a number between 0 and 1, found {confidence}")
    genuines, impostors = _sorted_distances("genuine", genuine, metric), _sorted_distances("impostor", impostor, metric)
    found = []
    for far in fars:
        allowed = math.floor(far * len(impostors) + 1e-9)  # 0.29 * 100 is 28.999999999999996
        cut = impostors[allowed]
        false_accepts = int(np.searchsorted(impostors, cut, side="left"))
        false_rejects = len(genuines) - int(np.searchsorted(genuines, cut, side="left"))
        found.append(
            Threshold(
                value=float(metric.as_distance(cut)),
                metric=metric,
                contract_id=contract_id,
                far=far,
                false_accepts=false_accepts,
                impostors=len(impostors),
                false_rejects=false_rejects,
                genuines=len(genuines),
                far_interval=clopper_pearson(false_accepts, len(impostors), confidence=confidence),
                frr_interval=clopper_pearson(false_rejects, len(genuines), confidence=confidence),
                confidence=confidence,
                created_from=created_from,
                measured_on=measured_on,
            )
        )
    return tuple(found)


def require_rates(fars: Sequence[float]) -> None:
    """Raise `InputError` unless there are target false accept rates, all in (0, 1)."""
    if not fars:
        raise InputError("far: expected at least one rate above 0 and below 1, found none")
    for far in fars:
        require_rate("far", far)


def require_rate(name: str, rate: object) -> None:
    """Raise `InputError`, which names the parameter, unless its value is a number in (0, 1)."""
    if not isinstance(rate, (float, np.floating)) or not 0.0 < rate < 1.0:
        expected, found = "a rate above 0 and below 1", repr(rate) if isinstance(rate, str) else str(rate)
        raise InputError(f"{name}: expected {expected}, found {found}", expected=expected, found=found)


def save_thresholds(path: Path, thresholds: Sequence[Threshold]) -> None:
    """Write thresholds of one contract and one metric as JSON, atomically.

    Raises
    ------
    ContractError
        If they are of different contracts or metrics.
    OutputError
        If the file cannot be written.
    """
    _require_one_kind(thresholds)
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "contract_id": thresholds[0].contract_id,
        "metric": thresholds[0].metric.value,
        "thresholds": [each.to_dict() for each in thresholds],
    }
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load_thresholds(path: Path) -> tuple[Threshold, ...]:
    """Read what `save_thresholds` wrote.

    Raises
    ------
    InputError
        If the file does not exist, or holds no thresholds.
    ContractError
        If its thresholds are of different contracts.
    """
    document = read_json(path, "a file written by 'edgeface calibrate'")
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if found != _FORMAT or document.get("version") != _VERSION:
        raise InputError(f"{path}: expected {_FORMAT!r} of version {_VERSION}, found {found!r:.80}")
    entries = document.get("thresholds")
    if not isinstance(entries, list) or not entries or not all(isinstance(each, dict) for each in entries):
        raise InputError(f"{path}: expected a list of at least one threshold, found {entries!r:.80}")
    try:
        thresholds = tuple(Threshold.from_dict(each) for each in entries)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    _require_one_kind(thresholds)
    return thresholds


def threshold_at(thresholds: Iterable[Threshold], far: float) -> Threshold:
    """Return the threshold that was calibrated for this false accept rate.

    Raises
    ------
    ContractError
        If the thresholds are of different contracts.
    InputError
        If none was calibrated for it, or it is no rate.
    """
    require_rate("far", far)
    known = tuple(thresholds)
    rates = {each.far: each for each in known if each.far is not None}
    require_same_contract(*(each.contract_id for each in known), what="thresholds")
    if far not in rates:
        expected = f"a calibrated rate ({', '.join(f'{each:g}' for each in sorted(rates))})"
        remedy = f"choose one of them, or calibrate: edgeface calibrate PEOPLE --model IR --far {far:g}"
        pairs = max((each.impostors for each in known), default=0)
        remedy += f", which needs {lacking(far, pairs)}" if pairs < trials_needed(far) else ""
        text = f"far: expected {expected}, found {far:g}; {remedy}"
        raise InputError(text, expected=expected, found=f"{far:g}", remedy=remedy)
    return rates[far]


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """Whether two faces are of one person; true if they are.

    Attributes
    ----------
    matched
        The decision, also that of ``bool()``.
    score
        On the scale of the threshold's metric.
    threshold
        What decided, with the false accept rate it was calibrated for.
    face_a, face_b
        The faces that were compared; None where embeddings were.
    model
        Name of the model; None where embeddings were compared.
    """

    matched: bool
    score: float
    threshold: Threshold
    face_a: Face | None = None
    face_b: Face | None = None
    model: str | None = None

    def __bool__(self) -> bool:
        return self.matched

    def __repr__(self) -> str:
        relation = ">" if self.score > self.threshold.value else "<="
        where = f" on {self.threshold.measured_on}" if self.threshold.measured_on else ""
        return (
            f"Verification(matched={self.matched}, {self.threshold.metric.value} {self.score:.4f} {relation} "
            f"{self.threshold.value:.4f}, far={self.far}{where})"
        )

    @property
    def far(self) -> float | None:
        """False accept rate that the threshold was calibrated for; None if it was given by hand."""
        return self.threshold.far

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; ``same`` is the former name of ``matched``."""
        faces = {"face_a": self.face_a, "face_b": self.face_b}
        return {
            "matched": self.matched,
            "same": self.matched,
            "score": self.score,
            "metric": self.threshold.metric.value,
            "threshold": self.threshold.value,
            "far": self.far,
            "far_interval": list(self.threshold.far_interval),
            "supported": self.threshold.supported,
            **({} if self.model is None else {"model": self.model}),
            "contract_id": self.threshold.contract_id,
            "note": self.threshold.note,
            "calibrated_on": self.threshold.created_from,
            "measured_on": self.threshold.measured_on,
            **{name: face.to_dict() for name, face in faces.items() if face is not None},
        }


def verify(a: Embedding, b: Embedding, threshold: Threshold) -> Verification:
    """Decide whether two embeddings are of one person.

    Raises
    ------
    ContractError
        If the embeddings or the threshold belong to different contracts.

    Examples
    --------
    >>> from edgeface import Embedding, Threshold
    >>> a, b = Embedding([1.0, 0.0], "id"), Embedding([0.8, 0.6], "id")
    >>> verify(a, b, Threshold.by_hand(0.5, contract_id="id"))
    Verification(matched=True, cosine 0.8000 > 0.5000, far=None)
    """
    require_same_contract(a.contract_id, b.contract_id, threshold.contract_id, what="verification")
    score = float(paired(threshold.metric, a.vector[None], b.vector[None])[0])
    return Verification(matched=threshold.accepts(score), score=score, threshold=threshold)


def _sorted_distances(kind: str, scores: NDArray[Any], metric: Metric) -> NDArray[np.float64]:
    doubles = np.asarray(scores, np.float64).ravel()
    if not doubles.size:
        raise InputError(f"calibration: expected at least one score of {kind} pairs, found 0")
    if not np.isfinite(doubles).all():
        raise InputError(f"{kind} scores: expected finite numbers, found NaN or infinity")
    return np.sort(metric.as_distance(doubles))


def _require_one_kind(thresholds: Sequence[Threshold]) -> None:
    require_same_contract(*(each.contract_id for each in thresholds), what="thresholds")
    if len(metrics := {each.metric.value for each in thresholds}) != 1:
        raise ContractError(f"thresholds: expected one metric, found {sorted(metrics)}")


def _interval(stored: Any) -> tuple[float, float]:
    low, high = map(_number, stored)
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"expected an interval of rates from 0 to 1, found {low:g} to {high:g}")
    return low, high


def _text(stored: Any) -> str:
    if not isinstance(stored, str):
        raise TypeError(f"expected text, found {stored!r:.80}")
    return stored


def _number(stored: Any) -> float:
    if isinstance(stored, bool) or not isinstance(stored, (int, float)) or not math.isfinite(stored):
        raise TypeError(f"expected a finite number, found {stored!r:.80}")
    return float(stored)


def _count(stored: Any) -> int:
    if isinstance(stored, bool) or not isinstance(stored, int):
        raise TypeError(f"expected a whole number, found {stored!r:.80}")
    return stored


_ROUNDING = 1e-6
"""By how much a score may be off its metric's scale: the angle of equal vectors is not exactly 0."""


_DERIVED = ("observed_far", "frr", "supported", "note")
_PARSERS: dict[str, Any] = {
    "metric": Metric,
    **dict.fromkeys(("contract_id", "created_from", "measured_on", "inherited"), _text),
    **dict.fromkeys(("value", "far", "confidence"), _number),
    **dict.fromkeys(("false_accepts", "impostors", "false_rejects", "genuines"), _count),
    **dict.fromkeys(("far_interval", "frr_interval"), _interval),
}
