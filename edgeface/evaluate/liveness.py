"""Measure liveness models by ISO/IEC 30107-3: error rates of attacks, species by species, and of live faces.

APCER is the share of an attack species' presentations that are taken for live, BPCER the share of bona fide (live)
presentations that are taken for an attack; there is no overall accuracy, because one species that passes opens the
door. Presentations without an answer (inconclusive, or without a face) are non-responses: they have rates of their own,
APNRR and BPNRR, and count in neither error rate.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ImageError, InputError
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.stats import clopper_pearson
from edgeface.vision.crops import detect_photos
from edgeface.vision.detector import Detector
from edgeface.vision.listing import Photo, list_people
from edgeface.vision.liveness import Liveness, LivenessChecker

BONA_FIDE = "live"
"""Folder of live faces; every other folder is an attack species."""
_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """One photo of a species; `answer` and `box` (x0, y0, x1, y1) are None if it shows no face."""

    path: Path
    answer: Liveness | None
    box: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Species:
    """The presentations of one folder.

    Attributes
    ----------
    name
        The folder's; ``live`` for bona fide presentations.
    presentations
        One for each photo that can be read.
    """

    name: str
    presentations: tuple[Presentation, ...]

    @property
    def bona_fide(self) -> bool:
        """Whether these are live faces."""
        return self.name == BONA_FIDE

    @property
    def scores(self) -> NDArray[np.float64]:
        """Scores of the conclusive presentations."""
        answers = (each.answer for each in self.presentations)
        return np.array([each.score for each in answers if each is not None and each.verdict != "inconclusive"])

    def count(self, verdict: str) -> int:
        """Return the number of presentations with this answer."""
        return sum(each.answer is not None and each.answer.verdict == verdict for each in self.presentations)

    def errors(self, threshold: float) -> int:
        """Return how many conclusive presentations are misjudged at a threshold."""
        live = int((self.scores > threshold).sum())
        return len(self.scores) - live if self.bona_fide else live

    def to_dict(self, threshold: float) -> dict[str, Any]:
        """Return counts and rates as JSON types; a rate of nothing is None."""
        total, conclusive = len(self.presentations), len(self.scores)
        rate, silent = ("bpcer", "bpnrr") if self.bona_fide else ("apcer", "apnrr")
        return {
            "name": self.name,
            "presentations": total,
            "live": self.count("live"),
            "spoof": self.count("spoof"),
            "inconclusive": self.count("inconclusive"),
            "no_face": sum(each.answer is None for each in self.presentations),
            **_rate(rate, self.errors(threshold), conclusive),
            **_rate(silent, total - conclusive, total),
        }


def _rate(name: str, events: int, trials: int) -> dict[str, Any]:
    """Return a rate and its exact 95 % interval, which assumes presentations that are independent of each other."""
    if not trials:
        return {name: None, f"{name}_interval": None}
    return {name: events / trials, f"{name}_interval": list(clopper_pearson(events, trials))}


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessEvaluation:
    """Result of `evaluate_liveness`.

    Attributes
    ----------
    bona_fide
        Presentations of live faces.
    attacks
        Attack species, by name.
    threshold, models, detector
        What judged: threshold, the models' names and ids, and the settings of the detector.
    unread
        Photos that could not be read or belong to no folder, and why.
    """

    bona_fide: Species
    attacks: tuple[Species, ...]
    threshold: float
    models: tuple[dict[str, Any], ...]
    detector: dict[str, Any]
    unread: dict[Path, str]

    def worst(self, threshold: float) -> tuple[str, float] | None:
        """Return the species with the greatest APCER, and that; None if no attack has an answer."""
        rates = {each.name: each.errors(threshold) / len(each.scores) for each in self.attacks if len(each.scores)}
        return max(rates.items(), key=lambda item: item[1]) if rates else None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface evaluate liveness`."""
        worst = self.worst(self.threshold)
        return {
            "standard": "ISO/IEC 30107-3",
            "models": list(self.models),
            "detector": self.detector,
            "threshold": self.threshold,
            "bona_fide": self.bona_fide.to_dict(self.threshold),
            "attacks": [each.to_dict(self.threshold) for each in self.attacks],
            "worst_species": None if worst is None else {"name": worst[0], "apcer": worst[1]},
            "operating_points": [self._operating_point(each) for each in sorted({*_THRESHOLDS, self.threshold})],
            "unread": [{"path": str(path), "error": why} for path, why in self.unread.items()],
        }

    def _operating_point(self, threshold: float) -> dict[str, Any]:
        worst, live = self.worst(threshold), self.bona_fide
        rates = _rate("bpcer", live.errors(threshold), len(live.scores))
        return {"threshold": threshold, "apcer": None if worst is None else worst[1], **rates}


def evaluate_liveness(
    images: Path, checker: LivenessChecker, detector: Detector, *, progress: ProgressCallback = ignore_progress
) -> LivenessEvaluation:
    """Judge the photos of a folder: live faces in ``live``, attacks in one folder for each species.

    Of each photo the face is judged that `Faces.largest` chooses.

    Parameters
    ----------
    images
        Folder with ``live`` and folders such as ``print``, ``screen`` or ``mask``; their subfolders belong to them.
    checker, detector
        What judges; not closed.
    progress
        Called after each photo.

    Raises
    ------
    InputError
        If there is no such folder, or none called ``live``, or two names differ in their letters' case only.
    ImageError
        If no photo can be read.
    """
    listed = list_people(images)
    if BONA_FIDE not in listed.people:
        raise InputError(
            path=images,
            expected=f"a folder {BONA_FIDE!r} of live faces beside one folder for each kind of attack",
            found=", ".join(listed.people) or "no folder",
        )
    _refuse_twins(images, listed.people)
    unread = listed.failures | dict.fromkeys(listed.loose, "in no folder: of no kind of presentation")
    total = sum(map(len, listed.people.values()))
    species: list[Species] = []
    for name, paths in listed.people.items():
        found: list[Presentation] = []
        for detection in detect_photos([Photo(path, Path(path.name)) for path in paths], detector, failures=unread):
            faces, answer, box = detection.faces, None, None
            if len(faces):
                chosen = faces.largest(detection.image.shape[:2])
                (answer,) = checker.check(detection.image, faces[chosen])
                box = faces.boxes[chosen]
            found.append(Presentation(path=detection.photo.path, answer=answer, box=box))
            done = sum(len(each.presentations) for each in species) + len(found)
            progress(Progress("liveness", done, total, unit="photos"))
        species.append(Species(name=name, presentations=tuple(found)))
    if not any(each.presentations for each in species):
        raise ImageError(f"{images}: no photo could be read")
    return LivenessEvaluation(
        bona_fide=next(each for each in species if each.bona_fide),
        attacks=tuple(each for each in species if not each.bona_fide),
        threshold=checker.threshold,
        models=tuple(
            {"name": each.name, "contract_id": each.contract_id, "provenance": each.provenance}
            for each in checker.contracts
        ),
        detector=dict(detector.settings),
        unread=unread,
    )


def _refuse_twins(images: Path, names: Iterable[str]) -> None:
    """Refuse names of which one is the other in other letters: ``Live`` would be an attack, ``Print`` two kinds."""
    known = {BONA_FIDE: BONA_FIDE}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold().strip(" -_.")
        if (twin := known.setdefault(plain, name)) != name:
            raise InputError(
                path=images / name,
                expected=f"another name than that of {twin!r} in other letters",
                found=f"{name!r}",
                remedy="move its photos there if they are of the same kind, or rename the folder",
            )


def misjudged(result: LivenessEvaluation, *, attacks: bool, count: int) -> list[tuple[str, Presentation]]:
    """Return the conclusive presentations that came nearest to the wrong answer, or got it, with their species."""
    every: Sequence[Species] = result.attacks if attacks else (result.bona_fide,)
    rows = [
        (each.answer.score, species.name, each)
        for species in every
        for each in species.presentations
        if each.answer is not None and each.answer.verdict != "inconclusive"
    ]
    rows.sort(key=lambda row: row[0], reverse=attacks)
    return [(name, each) for _, name, each in rows[:count]]
