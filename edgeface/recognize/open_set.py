"""Choose a search threshold for a target FPIR.

FPIR (false positive identification rate; ISO/IEC 19795-1, NIST FRTE 1:N): of the searches for people who are not
enrolled, the share that returns a person above the threshold. It grows with the gallery.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.model.contract import ModelContract
from edgeface.model.embedding import require_same_contract
from edgeface.recognize.known import fit_threshold, known_thresholds
from edgeface.recognize.threshold import Threshold, caution, lacking, require_rate
from edgeface.stats import clopper_pearson, trials_needed

USUAL_FPIR = 0.01
"""False positive identification rate where none is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SearchThreshold:
    """Threshold of searches in a gallery.

    Attributes
    ----------
    value
        Cosine similarity; higher scores are accepted.
    contract_id
        Contract of the embeddings; the threshold is valid for no other.
    fpir
        Target rate; None if the value was given by hand.
    gallery_size
        Comparisons of a search: templates enrolled. A larger gallery has a higher FPIR.
    basis
        ``pairs``: from a verification threshold, assuming that comparisons are independent. ``probes``: from
        searches for people who were not enrolled. ``hand``: given by hand.
    expected_fpir
        For ``pairs`` the formula at the observed FAR, for ``probes`` the observed share, for ``hand`` None.
    fpir_interval
        Clopper-Pearson interval at the basis' confidence; carried through the formula for ``pairs``.
    supported
        Whether there were enough pairs or probes to say anything about `fpir`.
    expected_fnir
        Share of searches with photos of enrolled people that will find nobody, by the genuine pairs of ``pairs``: with
        one template a person, and without those where somebody else is more similar. None otherwise.
    trials
        Impostor pairs or probes that it was made from.
    measured_on, inherited
        See `Threshold`.
    """

    value: float
    contract_id: str
    fpir: float | None
    gallery_size: int
    basis: Literal["pairs", "probes", "hand"]
    expected_fpir: float | None = None
    fpir_interval: tuple[float, float] = (0.0, 1.0)
    supported: bool = False
    expected_fnir: float | None = None
    trials: int = 0
    measured_on: str = ""
    inherited: str = ""

    @classmethod
    def by_hand(cls, value: float, *, contract_id: str, gallery_size: int) -> SearchThreshold:
        """Make a threshold from a cosine similarity whose FPIR was never measured; see `Threshold.by_hand`."""
        known = Threshold.by_hand(value, contract_id=contract_id)
        return cls(value=known.value, contract_id=contract_id, fpir=None, gallery_size=gallery_size, basis="hand")

    def __repr__(self) -> str:
        return f"SearchThreshold(cosine > {self.value:.4f}, {self.rate}, {self.gallery_size:,} templates)"

    @property
    def rate(self) -> str:
        """The target rate and the photos it was measured on, for an answer's text: "FPIR 0.01 on LFW"."""
        if self.fpir is None:
            return "by hand"
        return f"FPIR {self.fpir:g}" + (f" on {self.measured_on}" if self.measured_on else "")

    def accepts(self, score: float) -> bool:
        """Whether the score exceeds the threshold."""
        return score > self.value

    def note(self, gallery_size: int) -> str:
        """Return a warning about using it for a gallery of this size; empty if there is none."""
        if self.fpir is None:
            return "the threshold was given by hand: its false positive identification rate was never measured"
        if gallery_size > self.gallery_size:
            return (
                f"the threshold was made for {self.gallery_size:,} templates and the gallery has {gallery_size:,}: "
                "people who are not enrolled are accepted more often than the target"
            )
        if self.supported:
            said = caution(self.measured_on, "FPIR")
        else:
            needs = f"at least {trials_needed(self.fpir):,} probes; there were {self.trials:,}"
            if self.basis == "pairs":
                needs = lacking(far_for_fpir(self.fpir, self.gallery_size), self.trials)
            most = f"{self.fpir_interval[1]:.2g}"
            said = f"FPIR {self.fpir:g} is not supported by the data, and is at most {most}: it needs {needs}"
        return "; ".join(each for each in (self.inherited, said) if each)


def choose_search_threshold(
    given: Threshold | float | Path | None, contract: ModelContract, *, fpir: float | None = None, gallery_size: int
) -> SearchThreshold:
    """Choose the threshold of searches for a model and a size of gallery.

    Parameters
    ----------
    given, contract
        As for `choose_threshold`, which also says what else is raised.
    fpir
        Target false positive identification rate; by default `USUAL_FPIR`.
    gallery_size
        Templates that a probe will be compared with, from 1.

    Raises
    ------
    InputError
        If a number comes with `fpir`, or no known threshold is strict enough.
    """
    if isinstance(given, (float, int)):
        if fpir is not None:
            raise InputError("fpir cannot be combined with a numeric threshold, which has no known rate; leave one out")
        return SearchThreshold.by_hand(given, contract_id=contract.contract_id, gallery_size=gallery_size)
    fpir = USUAL_FPIR if fpir is None else fpir
    if isinstance(given, Threshold):
        known: Sequence[Threshold] = [fit_threshold(given, contract)]
    else:
        known = known_thresholds(given, contract)
    return threshold_from_pairs(known, fpir=fpir, gallery_size=gallery_size)


def fpir_of_far(far: float, comparisons: int) -> float:
    """Compute the FPIR of a search that makes this many comparisons: ``1 - (1 - FAR)^N``.

    It assumes that the comparisons of one search are independent. They are not: people of one age, sex and origin are
    alike, so that the true FPIR is lower than this for most people and higher for some; and templates of one person
    are alike, which lowers it further. `threshold_from_probes` does not assume this.

    Parameters
    ----------
    far
        False accept rate of one comparison, in [0, 1].
    comparisons
        N, from 1.

    Examples
    --------
    >>> round(fpir_of_far(1e-4, 100), 4)
    0.01
    """
    if not 0.0 <= far <= 1.0 or comparisons < 1:
        raise InputError(f"FAR: expected a rate from 0 to 1 and 1 comparison or more, found {far:g} and {comparisons}")
    return 1.0 if far == 1.0 else -math.expm1(comparisons * math.log1p(-far))


def far_for_fpir(fpir: float, comparisons: int) -> float:
    """Compute the FAR at which `fpir_of_far` is this FPIR: ``1 - (1 - FPIR)^(1/N)``."""
    require_rate("fpir", fpir)
    if comparisons < 1:
        raise InputError(f"FPIR: expected 1 comparison a search or more, found {comparisons}")
    return -math.expm1(math.log1p(-fpir) / comparisons)


def threshold_from_pairs(thresholds: Sequence[Threshold], *, fpir: float, gallery_size: int) -> SearchThreshold:
    """Choose between verification thresholds by the formula of `fpir_of_far`.

    The FAR that the formula asks for lies between two calibrated rates. Between them the threshold is interpolated
    linearly over the normal quantile of the FAR, which is exact where impostor scores are normally distributed, and
    extrapolated for up to a decade below the strictest one, if there are enough impostor pairs for the rate. Measured
    on LFW in galleries of 10 to 1,559 people by benchmarks/thresholds.py.

    Parameters
    ----------
    thresholds
        Of `calibrate`, for one contract, of any metric.
    fpir, gallery_size
        As for `choose_search_threshold`.

    Returns
    -------
    SearchThreshold
        From the two thresholds whose FARs enclose the one needed, or are next to it; above all of them, from the most
        permissive one.

    Raises
    ------
    ContractError
        If they are of several contracts.
    InputError
        If none is strict enough; the text says which FAR to calibrate.
    """
    require_same_contract(*(each.contract_id for each in thresholds), what="thresholds")
    far = far_for_fpir(fpir, gallery_size)
    rising = sorted((each for each in thresholds if each.far is not None), key=lambda each: each.assured_far)
    below = sum(each.assured_far <= far * (1 + 1e-9) for each in rising)  # as strict as is needed
    low, high = rising[max(0, below - 1) :][:1], rising[max(1, below) :][:1]
    if not below and not (high and _reaches(rising[0], far)):
        lowest = min((each.assured_far for each in thresholds), default=math.nan)
        rounded = f"{0.995 * far:.3g}"  # never rounded up, or it would not do
        raise InputError(
            f"fpir: {fpir:g} in a gallery of {gallery_size:,} templates needs a threshold of FAR {rounded}, and the "
            f"strictest is of FAR {lowest:g}; calibrate one: edgeface calibrate --far {rounded}, which needs at least "
            f"{trials_needed(far):,} impostor pairs, or measure with people who are not enrolled"
        )
    return _between(low[0], (high or low)[0], far, fpir=fpir, gallery_size=gallery_size)


def _reaches(strictest: Threshold, far: float) -> bool:
    """Whether a rate below the strictest one can be extrapolated: within a decade, and there are enough pairs."""
    return far >= strictest.assured_far / 10 and strictest.impostors >= trials_needed(far)


def _between(low: Threshold, high: Threshold, far: float, *, fpir: float, gallery_size: int) -> SearchThreshold:
    """Make the search threshold of a FAR by two verification thresholds that enclose it or lie above it."""
    share, impostors, accepts = 0.0, low.impostors, low.false_accepts
    if low is not high and abs(low.assured_far - far) > 1e-9 * far:
        at, start, end = (NormalDist().inv_cdf(rate) for rate in (far, low.assured_far, high.assured_far))
        share, impostors = (at - start) / (end - start), min(low.impostors, high.impostors)
        accepts = math.floor(far * impostors + 1e-9)
    least, most = (
        fpir_of_far(each, gallery_size) for each in clopper_pearson(accepts, impostors, confidence=low.confidence)
    )
    places = (each.measured_on for each in (low, high)[: 2 if share else 1])
    return SearchThreshold(
        value=min(1.0, low.cosine + share * (high.cosine - low.cosine)),
        contract_id=low.contract_id,
        fpir=fpir,
        gallery_size=gallery_size,
        basis="pairs",
        expected_fpir=fpir_of_far(accepts / impostors, gallery_size),
        fpir_interval=(least, most),
        expected_fnir=min(1.0, low.frr + share * (high.frr - low.frr)),
        supported=impostors >= trials_needed(far if share else low.assured_far),
        trials=impostors,
        measured_on=" and ".join(dict.fromkeys(place for place in places if place)),
        inherited=low.inherited,
    )


def threshold_from_probes(
    best_scores: NDArray[np.floating[Any]],
    *,
    fpir: float,
    gallery_size: int,
    contract_id: str,
    confidence: float = 0.95,
) -> SearchThreshold:
    """Find the most permissive threshold that keeps a target FPIR on searches for people who are not enrolled.

    Parameters
    ----------
    best_scores : (N,) float
        Score of the most similar person, one for each search, by the rule that will be used.
    fpir, gallery_size, contract_id
        Target, templates that were enrolled, and contract of the embeddings.
    confidence
        Of the interval, which assumes independent probes: one of each person.

    Raises
    ------
    InputError
        If there are no scores, they are not finite, or the rate is not between 0 and 1.
    """
    scores = np.sort(np.asarray(best_scores, np.float64).ravel())[::-1]
    if not scores.size or not np.isfinite(scores).all():
        raise InputError(f"FPIR: expected finite scores of at least one search, found {scores.size} scores")
    require_rate("fpir", fpir)
    allowed = math.floor(fpir * len(scores) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    value = float(scores[allowed])
    accepted = int(np.count_nonzero(scores > value))
    return SearchThreshold(
        value=value,
        contract_id=contract_id,
        fpir=fpir,
        gallery_size=gallery_size,
        basis="probes",
        expected_fpir=accepted / len(scores),
        fpir_interval=clopper_pearson(accepted, len(scores), confidence=confidence),
        supported=len(scores) >= trials_needed(fpir),
        trials=len(scores),
    )
