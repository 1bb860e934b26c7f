"""Photographs in one folder a person and an IR in, how well it tells who somebody is, or that it is nobody, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeface.errors import InputError
from edgeface.evaluate.faces import Boxes
from edgeface.evaluate.lfw import Embedded, Progress, embed_images
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
from edgeface.evaluate.people import images_of_people
from edgeface.recognize.open_set import require_fpir
from edgeface.runtime.flip import Flip
from edgeface.stats import clopper_pearson
from edgeface.vision.detector import Detector

__all__ = ["PROTOCOL", "Identification", "evaluate_identification"]

PROTOCOL = "open-set-1"
"""`edgeface.evaluate.openset.split_people`, one image a person enrolled, cosine similarity. A change of it changes
this name."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Identification:
    """One open-set evaluation of one model.

    Attributes
    ----------
    images
        Names of the images, relative to their folder.
    names
        Of the people.
    split, searches
        Who was enrolled, and what was found.
    operating
        Error rates at each wanted FPIR; the first is the one that a single threshold is told for.
    embedded
        What was compared.
    seed
        Of the split.
    faces
        What found the faces, for people to read.
    model
        The IR.
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
    model: Path

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: the answer of `edgeface evaluate identification`."""
        mated = len(self.split.mated)
        hits = round(self.searches.hit_rate(1) * mated)
        contract, failures = self.embedded.contract, self.embedded.cutter.failures
        return {
            "protocol": PROTOCOL,
            "seed": self.seed,
            "metric": "cosine",
            "images": len(self.images),
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
            "failures": len(failures),
            "failed_images": failures,
            "model": {
                "path": str(self.model),
                "name": contract.name,
                "contract_id": contract.contract_id,
                "precision": contract.precision,
                "provenance": contract.provenance,
            },
            "device": list(self.embedded.execution.execution_devices),
            "device_name": list(self.embedded.execution.full_names),
            "arithmetic": self.embedded.execution.precision,
            "seconds": round(self.embedded.seconds, 3),
        }


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
    progress: Progress | None = None,
) -> Identification:
    """Enrol people with one image each, and search for the others and for people who are not enrolled.

    Parameters
    ----------
    images
        Folder that holds one folder a person.
    model
        IR with a contract.
    fpirs
        Wanted false positive identification rates.
    seed
        Of the choice of the enrolled images.
    flip
        What is done with mirror images.
    boxes, detector
        See `edgeface.evaluate.faces.FaceCutter`.
    faces
        What found the faces, for the record.
    device
        OpenVINO device.
    progress
        Called as images are embedded.

    Raises
    ------
    InputError
        If there are not people of both kinds, images are broken, or a rate is not in (0, 1).
    """
    if not fpirs:
        raise InputError("FPIR: expected one wanted rate or more, found none")
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
    return Identification(
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
        model=model,
    )
