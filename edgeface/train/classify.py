"""Answer who a face is by a classifier that was trained on embeddings; numpy alone."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.files import write_atomically
from edgeface.model.embedding import Embedding, require_same_contract
from edgeface.untrusted import parse_json, read_npz, reading

UNKNOWN_RATE = 0.01
"""Share of strangers' photos that a head may take for someone it knows."""
_ENOUGH_STRANGERS = 100
"""Photos of strangers from which a threshold is chosen; of fewer, one alone would exceed the rate."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainedHead:
    """A linear classifier of people on the embeddings of one contract.

    Attributes
    ----------
    labels
        Name of each class.
    weights, bias : (C, D) and (C,) float32
        Logits are ``weights @ embedding + bias``.
    contract_id
        Of the embeddings.
    temperature
        Divides the logits before they become probabilities, so that these are as often right as they say (Guo et al.,
        "On Calibration of Modern Neural Networks", ICML 2017).
    threshold, threshold_from
        Probability below which the answer is "unknown", and what it was chosen on.

    Examples
    --------
    >>> weights, bias = 10 * np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    >>> head = TrainedHead(labels=("Ada", "Bob"), weights=weights, bias=bias, contract_id="c")
    >>> head.classify(Embedding(np.array([0.9, 0.1], np.float32), "c"))
    ('Ada', 0.99966...)
    """

    labels: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    contract_id: str
    temperature: float = 1.0
    threshold: float = 0.5
    threshold_from: str = "not measured: there were no photos of other people"

    def __post_init__(self) -> None:
        shape, classes = np.shape(self.weights), len(self.labels)
        if len(shape) != 2 or shape[0] != classes or np.shape(self.bias) != (classes,) or classes < 2:
            raise InputError(
                expected="a classifier of two people or more, with weights (C, D) and bias (C,)",
                found=f"{classes} labels, weights {shape} and bias {np.shape(self.bias)}",
            )
        finite = np.isfinite(self.weights).all() and np.isfinite(self.bias).all()
        if not finite or not 0 < self.temperature < np.inf or not 0 <= self.threshold <= 1:
            raise InputError(
                expected="finite weights, a positive temperature and a threshold from 0 to 1",
                found=f"temperature {self.temperature} and threshold {self.threshold}",
            )

    def __repr__(self) -> str:
        return (
            f"TrainedHead({len(self.labels)} people, unknown below {self.threshold:.3f}, contract {self.contract_id})"
        )

    def probabilities(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the probability of each person, (N, C), for embeddings (N, D)."""
        logits = (embeddings.astype(np.float64) @ self.weights.T + self.bias) / self.temperature
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def classify(self, embedding: Embedding) -> tuple[str | None, float]:
        """Return the most probable person and the probability; no name if that is below the threshold.

        Raises ContractError if the embedding is of another contract.
        """
        require_same_contract(self.contract_id, embedding.contract_id, what="head and embedding")
        (row,) = self.probabilities(embedding.vector[np.newaxis])
        best = int(row.argmax())
        return (self.labels[best] if row[best] >= self.threshold else None), float(row[best])

    def calibrated(self, embeddings: NDArray[np.floating], truth: NDArray[np.intp]) -> TrainedHead:
        """Return the head with the temperature that makes these answers, (N, D) and (N,), most probable.

        Each answer counts as right with probability (N + 1) / (N + 2), or a few right ones would give certainty (Platt,
        "Probabilistic Outputs for Support Vector Machines", 1999, section 2.2).
        """
        from scipy.optimize import minimize_scalar

        plain = dataclasses.replace(self, temperature=1.0)
        sure = (len(truth) + 1) / (len(truth) + 2)

        def cost(log_temperature: float) -> float:
            tempered = dataclasses.replace(plain, temperature=float(np.exp(log_temperature)))
            right = tempered.probabilities(embeddings)[np.arange(len(truth)), truth]
            logs = sure * np.log(np.maximum(right, 1e-300)) + (1 - sure) * np.log(np.maximum(1 - right, 1e-300))
            return float(-logs.mean())

        found = minimize_scalar(cost, bounds=(np.log(0.2), np.log(20.0)), method="bounded")
        return dataclasses.replace(plain, temperature=float(np.exp(found.x)))

    def with_threshold(self, strangers: NDArray[np.floating], *, rate: float = UNKNOWN_RATE) -> TrainedHead:
        """Return the head with the lowest threshold that at most this share of strangers' photos, (M, D), reaches.

        Of fewer than 100 photos none is chosen.
        """
        if len(strangers) < _ENOUGH_STRANGERS:
            return self
        sure = np.sort(self.probabilities(strangers).max(axis=1))[::-1]
        threshold = float(np.nextafter(sure[int(rate * len(sure))], 2.0))
        told = f"{len(strangers):,} photos of people with too few of them to train on, of which {rate:.0%} reach it"
        return dataclasses.replace(self, threshold=min(threshold, 1.0), threshold_from=told)

    def save(self, path: Path) -> None:
        """Write the head as an .npz of plain arrays that only its owner may read; raise OutputError if that fails."""
        told = {name: getattr(self, name) for name in ("contract_id", "temperature", "threshold", "threshold_from")} | {
            "labels": list(self.labels),
            "schema_version": 1,
        }
        with write_atomically(path, private=True) as partial, partial.open("wb") as file:
            np.savez(file, weights=self.weights, bias=self.bias, description=np.array(json.dumps(told)))

    @classmethod
    def load(cls, path: Path) -> TrainedHead:
        """Read a head that `save` wrote; raise InputError if the file is none, or damaged."""
        expected = "a head that 'edgeface train head' wrote"
        with reading(path, expected, remedy="train it again"):
            stored = read_npz(path, expected, names=("weights", "bias", "description"))
            weights, bias = stored["weights"], stored["bias"]
            told = parse_json(str(stored["description"]))
            if told.pop("schema_version") != 1 or {weights.dtype, bias.dtype} != {np.dtype(np.float32)}:
                raise ValueError("another version")
            labels = told.pop("labels")
            texts = [told["contract_id"], told["threshold_from"], *labels]
            if not isinstance(labels, list) or not all(isinstance(each, str) for each in texts):
                raise ValueError("labels are no list of texts")
            return cls(labels=tuple(labels), weights=weights, bias=bias, **told)
