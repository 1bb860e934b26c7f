"""Evaluate 1:N identification of a model in an open set, on a folder of photos of each person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeface.errors import InputError
from edgeface.evaluate.faces import Boxes, Embedded, embed_images
from edgeface.evaluate.openset import (
    FPIRS,
    RANKS,
    Operating,
    Searches,
    Split,
    operate_at,
    search,
    split_people,
)
from edgeface.evaluate.pairs import images_of_people
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.recognize.open_set import require_fpir
from edgeface.runtime.adapter import Flip
from edgeface.stats import clopper_pearson
from edgeface.vision.detector import Detector

__all__ = ["PROTOCOL", "IdentificationEvaluation", "evaluate_identification"]

PROTOCOL = "open-set-1"
"""Name of the protocol (`split_people`, one enrolled image a person, cosine similarity)."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class IdentificationEvaluation:
    """Open-set evaluation of one model.

    Attributes
    ----------
    images
        Paths of the images relative to their folder.
    names
        Names of the people.
    split, searches
        Enrolled images and probes, and the results of the searches.
    operating
        Error rates at each target FPIR; ``threshold`` in the JSON answer is that of the first.
    embedded
        Embeddings and how they were computed.
    seed
        Seed of the split.
    flip
        How mirror images were used.
    faces
        What found the faces, as text for the report.
    """

    images: tuple[str, ...]
    names: tuple[str, ...]
    split: Split
    searches: Searches
    operating: tuple[Operating, ...]
    embedded: Embedded
    seed: int
    flip: Flip | None
    faces: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface evaluate identification`."""
        mated = len(self.split.mated)
        hits = round(self.searches.hit_rate(1) * mated)
        return {
            "protocol": PROTOCOL,
            "seed": self.seed,
            "metric": "cosine",
            "enrolled": len(self.split.enrolled),
            "mated": mated,
            "nonmated": len(self.split.nonmated),
            "rank1": hits / mated,
            "rank1_interval": list(clopper_pearson(hits, mated)),
            "cmc": {str(rank): self.searches.hit_rate(rank) for rank in RANKS},
            "fnir": {f"{each.threshold.fpir:g}": each.fnir for each in self.operating},
            "threshold": self.operating[0].threshold.value,
            "operating_points": [each.to_dict() for each in self.operating],
            "flip": self.flip,
            "faces": self.faces,
        } | self.embedded.to_dict()


def evaluate_identification(
    images: Path,
    model: Path,
    *,
    fpirs: Sequence[float] = FPIRS,
    seed: int = 0,
    flip: Flip | None = None,
    boxes: Boxes | None = None,
    detector: Detector | None = None,
    faces: str = "",
    device: str = "CPU",
    progress: ProgressCallback = ignore_progress,
) -> IdentificationEvaluation:
    """Enrol one image of each person who has several; search with all other images.

    People with one image are not enrolled: their images are the non-mated probes.

    Parameters
    ----------
    images
        Folder that holds one folder a person.
    model
        IR with a contract.
    fpirs
        Target false positive identification rates, each in (0, 1).
    seed
        Seed of the choice of the enrolled images.
    flip
        How mirror images are used.
    boxes, detector
        See `edgeface.evaluate.FaceCutter`.
    faces
        What finds the faces, as text for the report.
    device
        OpenVINO device.
    progress
        Called after every image.

    Raises
    ------
    InputError
        If there are not people with several images and people with one, images are broken, or a rate is not in (0, 1).
    """
    if not fpirs:
        raise InputError("FPIR: expected at least one target rate")
    for fpir in fpirs:
        require_fpir(fpir)
    listed, people, names = images_of_people(images)
    split = split_people(people, names, seed=seed)
    embedded = embed_images(
        [images / each for each in listed],
        listed,
        model,
        flip=flip,
        boxes=boxes,
        detector=detector,
        device=device,
        progress=progress,
    )
    searches = search(embedded.vectors, split)
    return IdentificationEvaluation(
        images=listed,
        names=names,
        split=split,
        searches=searches,
        operating=tuple(
            operate_at(
                searches,
                fpir,
                gallery_size=len(split.enrolled),
                contract_id=embedded.contract.contract_id,
            )
            for fpir in fpirs
        ),
        embedded=embedded,
        seed=seed,
        flip=flip,
        faces=faces,
    )
