"""Enrol people from photos, folders of photos, or tables of embeddings."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeface.errors import EnrolmentRefused, GalleryError, ImageError, InputError
from edgeface.gallery.enrolment import Enrolment, EnrolRules, enrol
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.records import KeptImage, NewTemplate, check_name
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.embedding import require_same_contract
from edgeface.pipeline.observation import Face, largest_face
from edgeface.pipeline.pipeline import Pipeline
from edgeface.pipeline.table import EmbeddingTable
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.vision.image import Image, ImageLimits, read_image
from edgeface.vision.source import Frame, find_files

_TABLES = (".npz", ".parquet")
_AROUND = 0.6
"""Of the box's sides: how much is kept around it. Recipes that align by landmarks reach up to half a side beyond."""
_PIXELS_AROUND = 32
"""At least: recipes by box add a margin in pixels of the photo."""

_Templates = tuple[str, list[tuple[str, NewTemplate]]]
"""A person's name, and the file and the template of each photo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderEnrolment:
    """What `enrol_folder` did, in the order of first photos; true if no person was refused.

    `not_enrolled` has the names of people who were refused, and `refused` the photos that could not be used, with why.
    """

    enrolled: tuple[Enrolment, ...]
    not_enrolled: Mapping[str, str]
    refused: Mapping[Path, str]

    def __bool__(self) -> bool:
        return not self.not_enrolled

    def __repr__(self) -> str:
        return (
            f"FolderEnrolment({len(self.enrolled)} enrolled, {len(self.not_enrolled)} not enrolled, "
            f"{len(self.refused)} photos refused)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "enrolled": [each.to_dict() for each in self.enrolled],
            "not_enrolled": [{"name": name, "error": why} for name, why in self.not_enrolled.items()],
            "refused": [{"path": str(path), "error": why} for path, why in self.refused.items()],
        }


def enrol_folder(
    store: GalleryStore,
    paths: Sequence[str | Path],
    *,
    rules: EnrolRules,
    pipeline: Pipeline | None = None,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    largest: bool = False,
    force: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> FolderEnrolment:
    """Enrol the people of photos, each in a transaction of its own; a refused person does not stop the others.

    Parameters
    ----------
    store
        The gallery.
    paths
        Photos, shell patterns, folders with one folder of photos for each person; or tables of `embed_folder`
        (.npz, .parquet), whose photos lie in such folders.
    rules
        Of the gallery's contract; see `EnrolRules.choose`.
    pipeline
        Finds and embeds the faces; with a gate, it refuses bad photos. Not needed for tables.
    name
        Of the person in all photos; None: the name of each photo's folder.
    labels, metadata
        Replace those of each person; None: keep them.
    largest
        Take the largest of several faces in a photo. Otherwise such a photo is refused.
    force
        Enrol faces that other people are enrolled with.
    progress
        Called after each photo, with the stage "enrolling".

    Raises
    ------
    InputError
        If there are no files, a photo lies in no person's folder, or photos are given without a pipeline.
    ContractError
        If pipeline, rules or a table are of another contract than the gallery.

    Examples
    --------
    >>> done = enrol_folder(store, ["people/"], rules=rules, pipeline=pipeline)  # doctest: +SKIP
    >>> done  # doctest: +SKIP
    FolderEnrolment(12 enrolled, 1 not enrolled, 3 photos refused)
    """
    places = _people_of(paths, name)
    refused: dict[Path, str] = {}
    if all(path.suffix in _TABLES for _, path in places):
        people = _from_tables([path for _, path in places], name)
    elif pipeline is None:
        raise InputError("enrolment: expected a model to embed the photos with, found none; give the gallery's IR")
    else:
        require_same_contract(store.info.contract_id, pipeline.contract.contract_id, what="gallery and model")
        keep = store.info.keeps_images
        people = _from_photos(places, pipeline, refused, progress, keep_images=keep, largest=largest)
    index, enrolled, not_enrolled = LiveIndex(store), list[Enrolment](), dict[str, str]()
    with contextlib.closing(people):
        for person, found in people:
            sources, templates = tuple(source for source, _ in found), [each for _, each in found]
            try:
                done = enrol(
                    store, person, templates, rules=rules, index=index, labels=labels, metadata=metadata, force=force
                )
            except EnrolmentRefused as error:
                not_enrolled[person] = str(error)
            else:
                enrolled.append(dataclasses.replace(done, sources=sources))
    store.load()  # writes the cache: the next one to open the gallery need not wait
    return FolderEnrolment(enrolled=tuple(enrolled), not_enrolled=not_enrolled, refused=refused)


def are_tables(paths: Sequence[str | Path]) -> bool:
    """Return whether paths name tables of embeddings only, for which `enrol_folder` needs no pipeline."""
    return all(Path(path).suffix in _TABLES for path in paths)


def _people_of(paths: Sequence[str | Path], name: str | None) -> list[tuple[str, Path]]:
    """Return every file and its person; files of one person together, in the order of the first ones."""
    people: dict[str, list[Path]] = {}
    for place in paths:
        folder = Path(place) if Path(place).is_dir() else None
        for path in find_files(str(place)):
            if name is None and path.suffix not in _TABLES and (path.parent == folder or not path.parent.name):
                raise InputError(
                    path=path,
                    expected="one folder for each person (people/NAME/photo.jpg)",
                    found="a photo in no person's folder",
                    remedy="if all photos show one person, pass --name",
                )
            people.setdefault(name or path.parent.name, []).append(path)
    for person, (photo, *_) in people.items():
        if name is not None or photo.suffix not in _TABLES:
            _require_name(person, photo)
    return [(person, path) for person, files in people.items() for path in dict.fromkeys(files)]


def _require_name(person: str, photo: Path) -> None:
    try:
        check_name(person)
    except GalleryError as error:  # before anyone is enrolled
        raise error.with_path(photo.parent) from None


def _from_tables(tables: Sequence[Path], name: str | None) -> Generator[_Templates, None, None]:
    for path in tables:
        table = EmbeddingTable.load(path)
        people: dict[str, list[tuple[str, NewTemplate]]] = {}
        embeddings = table.embeddings
        for row, photo in enumerate(table.paths.tolist()):
            person = name or Path(photo).parent.name
            people.setdefault(person, []).append((photo, NewTemplate(embedding=embeddings[row])))
        yield from people.items()


def _from_photos(
    places: Sequence[tuple[str, Path]],
    pipeline: Pipeline,
    refused: dict[Path, str],
    progress: ProgressCallback,
    *,
    keep_images: bool,
    largest: bool,
) -> Generator[_Templates, None, None]:
    images = enrolment_images([path for _, path in places], pipeline, keep_images=keep_images, largest=largest)
    with contextlib.closing(images):
        numbered = zip(itertools.count(1), places, images, strict=False)
        for person, group in itertools.groupby(numbered, key=lambda item: item[1][0]):
            templates = []
            for number, _, image in group:
                progress(Progress("enrolling", number, len(places), "photos"))
                if image.template is None:
                    refused[image.path] = image.refusal
                else:
                    templates.append((str(image.path), image.template))
            yield person, templates


# Photos


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EnrolmentImage:
    """One photo's file, and the template that was made from it, or why it cannot be used."""

    path: Path
    template: NewTemplate | None = None
    refusal: str = ""


def enrolment_images(
    files: Sequence[Path], pipeline: Pipeline, *, keep_images: bool, largest: bool = False
) -> Generator[EnrolmentImage, None, None]:
    """Make a template from the face in each photo, in order; a pipeline without a detector takes aligned crops.

    `keep_images` keeps the part of the photo that shows the face. A photo of several usable faces is refused, or
    `largest` takes the largest one. What the pipeline's gate rejects does not count: it may be no face.
    """
    digests: dict[int, str] = {}
    failed: dict[int, str] = {}
    aligned = pipeline.settings["detector"] is None

    def frames() -> Iterator[Frame]:
        for index, path in enumerate(files):
            try:
                with path.open("rb") as file:
                    content = file.read(ImageLimits().max_bytes + 1)  # one more, and it is refused
                image = read_image(content)
            except (OSError, ImageError) as error:
                failed[index] = str(error)
                continue
            digests[index] = hashlib.sha256(content).hexdigest()
            yield Frame(image, index, float(index), str(path))

    next_index = 0
    with contextlib.closing(pipeline.run(frames())) as answers:
        for frame, faces in answers:
            for index in range(next_index, frame.index):
                yield EnrolmentImage(path=files[index], refusal=failed[index])
            next_index = frame.index + 1
            refusal, face = _choose(faces, frame.image, largest=largest)
            if face is None or face.embedding is None:
                yield EnrolmentImage(path=files[frame.index], refusal=refusal)
                continue
            template = NewTemplate(
                embedding=face.embedding,
                quality=float("nan") if face.quality is None else face.quality.score,
                source_sha256=digests.pop(frame.index),
                image=cut_out(frame.image, face, aligned=aligned) if keep_images else None,
            )
            yield EnrolmentImage(path=files[frame.index], template=template)
    for index in range(next_index, len(files)):
        yield EnrolmentImage(path=files[index], refusal=failed[index])


def _choose(faces: Sequence[Face], image: Image, *, largest: bool) -> tuple[str, Face | None]:
    """Return the face of a photo, or why there is none that can be used."""
    if not faces:
        return "expected a face, found none; use a photo with a larger or clearer face", None
    size = (image.shape[0], image.shape[1])
    usable = [face for face in faces if face.embedding is not None]
    if not usable:
        reasons = "; ".join(faces[largest_face(faces, size)].reasons)
        several = f"found {len(faces)} faces, none of them usable; largest: " if len(faces) > 1 else ""
        return several + reasons, None
    if len(usable) > 1 and not largest:
        return (
            f"expected one face, found {len(usable)}; use a photo of one person, or take the largest face of each with "
            "--largest",
            None,
        )
    return "", usable[largest_face(usable, size)]


def cut_out(image: Image, face: Face, *, aligned: bool) -> KeptImage:
    """Keep the part of a photo, (H, W, 3) uint8, BGR, from which any recipe can align this face, pixel by pixel.

    All of it is kept if it is an aligned crop. `ImageError` is raised if it cannot be encoded.
    """
    x0, y0, x1, y1 = map(float, face.box)
    dx, dy = (max(_PIXELS_AROUND, _AROUND * side) for side in (x1 - x0, y1 - y0))
    left, top = (int(max(0, np.floor(low))) for low in (x0 - dx, y0 - dy))
    right, bottom = int(np.ceil(x1 + dx)), int(np.ceil(y1 + dy))
    part = image if aligned else image[top:bottom, left:right]
    offset = np.array([0, 0] if aligned else [left, top], np.float32)
    encoded, png = cv2.imencode(".png", part)
    if not encoded:
        raise ImageError("gallery: expected an image that can be kept, found one that cannot be encoded as PNG")
    return KeptImage(
        png=png.tobytes(),
        box=(face.box.reshape(2, 2) - offset).reshape(4).astype(np.float32),
        landmarks=(face.landmarks - offset).astype(np.float32),
        aligned=aligned,
    )
