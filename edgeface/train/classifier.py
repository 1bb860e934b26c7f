"""Train a support vector machine or a logistic regression on embeddings, and compare it with a gallery.

That is how davidsandberg's `classifier.py` is used. A gallery answers the same question without training and takes new
people at any time, so the report shows both on the same photos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ExtraNotInstalledError, InputError, MissingError
from edgeface.evaluate.faces import CROPS, FaceSource
from edgeface.files import staging_folder, stopwatch
from edgeface.gallery.index import ExactIndex
from edgeface.gallery.records import TemplateBlock
from edgeface.model.embedding import Embedding
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.quantize.verification import mcnemar
from edgeface.recognize.identify import Identifier
from edgeface.recognize.index import rank_people
from edgeface.recognize.metrics import unit_rows
from edgeface.recognize.open_set import SearchThreshold, choose_search_threshold, threshold_from_probes
from edgeface.stats import clopper_pearson
from edgeface.train.archive import CLASSIFIER
from edgeface.train.classify import UNKNOWN_RATE, TrainedHead
from edgeface.train.data import (
    FaceSet,
    Part,
    find_one_person,
    gather_people,
    left_out,
    require_held_out,
    require_output,
    split_photos,
)
from edgeface.train.report import write_answer

ClassifierKind = Literal["svm", "logistic"]
_FEWEST_STRANGERS = 200
"""Photos of strangers of which one half chooses thresholds and the other judges them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """How one method answers photos.

    Attributes
    ----------
    right : (N,) bool
        Of held-out photos of people it knows: whether the right name was given.
    wrong : (N,) bool
        Whether another name was; all others were answered "unknown".
    taken : (M,) bool
        Of photos of strangers that chose no threshold: whether a name was given.
    """

    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    taken: NDArray[np.bool_]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: counts, and shares with exact 95 % intervals."""
        told: dict[str, Any] = {"photos": len(self.right), "strangers": len(self.taken)}
        for name, rows in (("right", self.right), ("wrong", self.wrong), ("strangers_named", self.taken)):
            count = int(rows.sum())
            told[name] = {"count": count, "share": count / len(rows) if len(rows) else None}
            told[name]["interval"] = list(clopper_pearson(count, len(rows))) if len(rows) else None
        return told


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClassifierOutcome:
    """Result of `train_classifier`.

    Attributes
    ----------
    file, head
        The classifier as data, and what it holds.
    classifier, gallery
        How it and a gallery of the same training photos answer the same other photos.
    search_threshold
        Of the gallery.
    lost, won, p_value
        Held-out photos that only the gallery, and only the classifier names rightly; McNemar's P value.
    """

    file: Path
    head: TrainedHead
    kind: ClassifierKind
    c: float
    faces: FaceSet
    parts: Mapping[Part, NDArray[np.intp]]
    one_person: tuple[tuple[str, str, float], ...]
    classifier: Answers
    gallery: Answers
    search_threshold: SearchThreshold
    lost: int
    won: int
    p_value: float
    seconds: float

    @property
    def advice(self) -> str:
        """Whether the classifier is worth it: only if it names clearly more photos rightly."""
        if self.p_value < 0.05 and self.won > self.lost:
            return "the classifier names more photos rightly than the gallery"
        if self.p_value < 0.05:
            return "the gallery names more photos rightly: use the gallery"
        return "no clear difference: use the gallery, which takes new people without training"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface train classifier`."""
        return {
            "file": str(self.file),
            "kind": self.kind,
            "c": self.c,
            "contract_id": self.head.contract_id,
            "people": len(self.head.labels),
            "photos": {part: len(rows) for part, rows in self.parts.items()},
            **left_out(self.faces, self.one_person),
            "temperature": self.head.temperature,
            "threshold": {"probability": self.head.threshold, "from": self.head.threshold_from},
            "gallery_threshold": {"cosine": self.search_threshold.value, "basis": self.search_threshold.basis},
            "classifier": self.classifier.to_dict(),
            "gallery": self.gallery.to_dict(),
            "only_gallery_right": self.lost,
            "only_classifier_right": self.won,
            "p_value": self.p_value,
            "advice": self.advice,
            "seconds": round(self.seconds, 3),
        }


def train_classifier(
    root: Path,
    output: Path,
    model: Path,
    faces: FaceSource = CROPS,
    *,
    kind: ClassifierKind = "svm",
    c: float = 1.0,
    min_photos: int = 4,
    held_out: float = 0.2,
    validation: float = 0.1,
    seed: int = 0,
    cache: Path | None = None,
    progress: ProgressCallback = ignore_progress,
) -> ClassifierOutcome:
    """Train a linear classifier of the people of a folder on embeddings.

    Probabilities are calibrated on photos that were not trained on. Below the probability that one of a hundred photos
    of strangers reaches the answer is "unknown"; the gallery's threshold is chosen by the same photos.

    Parameters
    ----------
    root
        Folder with one folder of photos for each person; people with too few are the strangers.
    output
        Receives ``classifier.npz``, which `TrainedHead.load` reads, ``classifier.json`` and ``report.html``.
    model, faces
        IR with a contract; source of the faces.
    kind, c
        Linear support vector machine, one against the rest, or multinomial logistic regression; how little it is
        regularised.
    min_photos, held_out, validation, seed
        Fewest usable photos of a person; shares of each person's photos to judge by, and to calibrate by; of the
        division.
    cache, progress
        See `gather_people`.

    Raises
    ------
    InputError
        If the photos or settings cannot be used.
    ExtraNotInstalledError
        If scikit-learn is not installed.
    OutputError
        If the output cannot be written.
    """
    if kind not in get_args(ClassifierKind) or not 0 < c < np.inf:
        raise InputError(
            expected=f"one of {', '.join(get_args(ClassifierKind))} and a positive C", found=f"{kind!r} and {c:g}"
        )
    require_output(root, output, "classifier.json")
    with staging_folder(output):
        pass
    with stopwatch() as elapsed:
        people = gather_people(root, model, faces, min_photos=min_photos, cache=cache, progress=progress)
        parts = split_photos(people, held_out=held_out, validation=validation, seed=seed)
        require_held_out(root, parts, held_out)
        head = _fit(people, parts["train"], kind, c, seed)
        checked = parts["validation"]
        if len(checked):
            head = head.calibrated(people.embeddings[checked], people.people[checked])
        half = len(people.strangers) // 2 if len(people.strangers) >= _FEWEST_STRANGERS else 0
        chosen, others = people.strangers[:half], people.strangers[half:]
        head = head.with_threshold(chosen)
        held = parts["held_out"]
        by_gallery, threshold = _ask_gallery(people, parts, chosen, others)
        by_head = _ask(head.probabilities(people.embeddings[held]), head, people.people[held], others)
        lost = int((by_gallery.right & ~by_head.right).sum())
        won = int((by_head.right & ~by_gallery.right).sum())
        head.save(output / CLASSIFIER)
        outcome = ClassifierOutcome(
            file=output / CLASSIFIER,
            head=head,
            kind=kind,
            c=c,
            faces=people,
            parts=parts,
            one_person=find_one_person(people),
            classifier=by_head,
            gallery=by_gallery,
            search_threshold=threshold,
            lost=lost,
            won=won,
            p_value=mcnemar(lost, won),
            seconds=elapsed(),
        )
    write_answer(
        outcome.to_dict(), output / "classifier.json", "classifier.html.j2", outcome=outcome, contract=people.contract
    )
    return outcome


def _fit(people: FaceSet, rows: NDArray[np.intp], kind: ClassifierKind, c: float, seed: int) -> TrainedHead:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise ExtraNotInstalledError("train", needed_for="training a classifier") from error
    contract = people.contract
    # As long as the embeddings that classifiers are trained on, so that C means the same whatever the dimension.
    scale = np.sqrt(contract.embedding_dim) if contract.normalized and kind == "logistic" else 1.0
    x, y = people.embeddings[rows].astype(np.float64) * scale, people.people[rows]
    model = (
        LinearSVC(C=c, random_state=seed, max_iter=20_000)
        if kind == "svm"
        else LogisticRegression(C=c, max_iter=2_000, random_state=seed)
    )
    model.fit(x, y)
    weights, bias = np.asarray(model.coef_) * scale, np.asarray(model.intercept_)
    if len(weights) == 1:  # of two people: the logit of the second against the first
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return TrainedHead(
        labels=people.names,
        weights=weights.astype(np.float32),
        bias=bias.astype(np.float32),
        contract_id=contract.contract_id,
    )


def _ask(
    probabilities: NDArray[np.float64], head: TrainedHead, truth: NDArray[np.intp], strangers: NDArray[np.float32]
) -> Answers:
    named = probabilities.max(axis=1) >= head.threshold
    right = probabilities.argmax(axis=1) == truth
    taken = np.zeros(0, np.bool_)
    if len(strangers):
        taken = head.probabilities(strangers).max(axis=1) >= head.threshold
    return Answers(right=named & right, wrong=named & ~right, taken=taken)


def _ask_gallery(
    people: FaceSet, parts: Mapping[Part, NDArray[np.intp]], chosen: NDArray[np.float32], strangers: NDArray[np.float32]
) -> tuple[Answers, SearchThreshold]:
    """Enrol the photos that the classifier was trained and calibrated on, and identify the others."""
    rows, contract = np.concatenate([parts["train"], parts["validation"]]), people.contract
    index = ExactIndex(
        TemplateBlock(
            ids=np.arange(1, len(rows) + 1),
            person_ids=people.people[rows].astype(np.int64),
            vectors=unit_rows(people.embeddings[rows]).astype(np.float32),
            contract_id=contract.contract_id,
            generation=1,
        )
    )

    def probe(vector: NDArray[np.float32]) -> Embedding:
        return Embedding(vector, contract.contract_id)

    if len(chosen):
        best = np.array([rank_people(index, probe(vector), count=1).scores[0] for vector in chosen])
        threshold = threshold_from_probes(
            best, fpir=UNKNOWN_RATE, gallery_size=len(rows), contract_id=contract.contract_id
        )
    else:
        threshold = _usual_threshold(people, len(rows))
    identifier = Identifier(index, threshold)
    found = [identifier.identify(probe(vector)) for vector in people.embeddings[parts["held_out"]]]
    named = np.array([bool(each) for each in found])
    right = np.array([each.person_id for each in found], object) == people.people[parts["held_out"]]
    taken = np.array([bool(identifier.identify(probe(vector))) for vector in strangers], np.bool_)
    return Answers(right=named & right, wrong=named & ~right, taken=taken), threshold


def _usual_threshold(people: FaceSet, size: int) -> SearchThreshold:
    """Return what `edgeface identify` uses without strangers; without a known threshold, one that names everybody."""
    try:
        return choose_search_threshold(None, people.contract, fpir=UNKNOWN_RATE, gallery_size=size)
    except (InputError, MissingError):
        return SearchThreshold.by_hand(-1.0, contract_id=people.contract.contract_id, gallery_size=size)
