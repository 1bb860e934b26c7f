"""Enrol people from photos, folders of photos, or tables of embeddings."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeface.errors import EnrolmentRefused, GalleryError, ImageError, InputError
from edgeface.gallery.enrolment import Enrolment, EnrolRules, enrol
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.records import KeptImage, NewTemplate, check_name, is_detector_name
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.embedding import require_same_contract
from edgeface.pipeline.observation import Face, largest_face
from edgeface.pipeline.pipeline import Pipeline
from edgeface.pipeline.table import EmbeddingTable
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.vision.image import Image
from edgeface.vision.listing import PeopleList, PhotoList, list_people, list_photos
from edgeface.vision.source import open_source

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

    `not_enrolled` has the names of people who were refused, `refused` the photos and folders that could not be used,
    and `left_out` what does not count as a photo or a person; each with why.
    """

    enrolled: tuple[Enrolment, ...]
    not_enrolled: Mapping[str, str]
    refused: Mapping[Path, str]
    left_out: Mapping[Path, str]

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
            "refused": _listed(self.refused),
            "left_out": _listed(self.left_out),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentPlan:
    """People whom `enrol_folder` would enrol; true if each of them has a photo.

    `people` has the photos of each person. `refused` are photos and folders that cannot be read, and `left_out` is what
    does not count as a photo or a person; each with why.
    """

    people: Mapping[str, tuple[Path, ...]]
    refused: Mapping[Path, str]
    left_out: Mapping[Path, str]

    def __bool__(self) -> bool:
        return all(self.people.values())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "people": [{"name": name, "photos": list(map(str, files))} for name, files in self.people.items()],
            "refused": _listed(self.refused),
            "left_out": _listed(self.left_out),
        }


def _listed(reasons: Mapping[Path, str]) -> list[dict[str, str]]:
    return [{"path": str(path), "error": why} for path, why in reasons.items()]


def plan_enrolment(paths: Sequence[str | Path], *, name: str | None = None) -> EnrolmentPlan:
    """List the people that `enrol_folder` finds in paths, and their photos, without reading or changing anything.

    Raises
    ------
    InputError
        If there are no files, or a photo lies in no person's folder.
    GalleryError
        If a person cannot have the name of a folder.

    Examples
    --------
    >>> plan_enrolment(["people/"]).people  # doctest: +SKIP
    {'Ada Lovelace': (PosixPath('people/Ada Lovelace/1.jpg'),)}
    """
    people: dict[str, dict[Path, None]] = {}
    refused: dict[Path, str] = {}
    left_out: dict[Path, str] = {}
    if name is not None:
        check_name(name)
    for place in paths:
        loose: Sequence[Path] = ()
        found: PeopleList | PhotoList
        if are_tables([place]):
            table = EmbeddingTable.load(Path(place))
            for person, photo in zip(_people_of_table(table, place, name), table.paths.tolist(), strict=True):
                people.setdefault(person, {})[Path(photo)] = None
            continue
        if name is None and not Path(place).is_file():
            found = list_people(place)
            loose, photos = found.loose, found.people
            for person in photos:
                _require_name(person, found.root / person)
        else:
            found = list_photos([place])
            loose, photos = ((), {name: tuple(found.files)}) if name else (found.files, {})
        if loose or not photos:
            raise _no_persons_folder(loose[0] if loose else place, "a photo in no person's folder" if loose else "none")
        for person, files in photos.items():
            people.setdefault(person, {}).update(dict.fromkeys(files))
        refused |= found.failures
        left_out |= found.left_out
    return EnrolmentPlan(
        people={person: tuple(files) for person, files in people.items()}, refused=refused, left_out=left_out
    )


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
        Folders with one folder of photos for each person, read by `list_people`; with `name` also photos. Or tables
        of `embed_folder` (.npz, .parquet), whose photos lie in such folders: a person is a folder directly below the
        deepest one that holds all photos of the table.
    rules
        Of the gallery's contract; see `EnrolRules.choose`.
    pipeline
        Finds and embeds the faces; with a gate, it refuses bad photos. Not needed for tables.
    name
        Of the person in all photos; None: the names of the folders.
    labels, metadata
        Replace those of each person; None: keep them.
    largest
        Take the largest of several faces in a photo. Otherwise such a photo is refused.
    force
        Enrol faces that other people are enrolled with, and photos of a person that do not look like one person.
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
    tables = [(path, EmbeddingTable.load(Path(path))) for path in paths] if are_tables(paths) else []
    for path, table in tables:  # before anyone is enrolled
        require_same_contract(store.info.contract_id, table.contract_id, what=f"gallery and {path}")
    plan = plan_enrolment(paths, name=name)
    refused = dict(plan.refused)
    crowds: dict[str, str] = {}
    if tables:
        people = _from_tables(tables, name)
    elif pipeline is None:
        raise InputError("enrolment: expected a model to embed the photos with, found none; give the gallery's IR")
    else:
        require_same_contract(store.info.contract_id, pipeline.contract.contract_id, what="gallery and model")
        keep = store.info.keeps_images
        people = _from_photos(plan, pipeline, refused, crowds, progress, keep_images=keep, largest=largest)
    index, enrolled, not_enrolled = LiveIndex(store), list[Enrolment](), dict[str, str]()
    with contextlib.closing(people):
        for person, found in people:
            if person in crowds and not force:
                not_enrolled[person] = crowds[person]
                continue
            sources, templates = tuple(source for source, _ in found), [each for _, each in found]
            try:
                done = enrol(
                    store,
                    person,
                    templates,
                    rules=rules,
                    index=index,
                    labels=labels,
                    metadata=metadata,
                    force=force,
                    sources=sources,
                )
            except EnrolmentRefused as error:
                not_enrolled[person] = str(error)
            else:
                enrolled.append(done)
    for person in [person for person, files in plan.people.items() if not files]:
        not_enrolled[person] = f"{person}: expected at least one photo, found none that can be read; not enrolled"
    store.load()  # writes the cache: the next one to open the gallery need not wait
    return FolderEnrolment(enrolled=tuple(enrolled), not_enrolled=not_enrolled, refused=refused, left_out=plan.left_out)


def are_tables(paths: Sequence[str | Path]) -> bool:
    """Return whether paths name tables of embeddings only, for which `enrol_folder` needs no pipeline."""
    return all(Path(path).suffix in _TABLES for path in paths)


def _require_name(person: str, folder: Path) -> None:
    try:
        check_name(person)
    except GalleryError as error:  # before anyone is enrolled
        raise error.with_path(folder) from None


def _no_persons_folder(path: str | Path, found: str) -> InputError:
    return InputError(
        path=path,
        expected="one folder for each person (people/NAME/photo.jpg), named by the folder above them",
        found=found,
        remedy="if all photos show one person, pass --name",
    )


def _people_of_table(table: EmbeddingTable, path: str | Path, name: str | None) -> list[str]:
    """Return the person of each row: the folder directly below the deepest one that holds all photos."""
    photos = list(map(Path, table.paths.tolist()))
    if name is not None:
        return [name] * len(photos)
    try:
        root = Path(os.path.commonpath([photo.parent for photo in photos]))
    except ValueError as error:  # absolute and relative paths
        raise _no_persons_folder(path, "photos that no folder holds all of") from error
    below = [photo.relative_to(root).parts for photo in photos]
    if any(len(parts) < 2 for parts in below):
        raise _no_persons_folder(path, f"photos directly in {root}, which holds all of the table's")
    return [parts[0] for parts in below]


def _from_tables(
    tables: Sequence[tuple[str | Path, EmbeddingTable]], name: str | None
) -> Generator[_Templates, None, None]:
    for path, table in tables:
        people: dict[str, list[tuple[str, NewTemplate]]] = {}
        embeddings, names = table.embeddings, _people_of_table(table, path, name)
        for row, (person, photo) in enumerate(zip(names, table.paths.tolist(), strict=True)):
            people.setdefault(person, []).append((photo, NewTemplate(embedding=embeddings[row])))
        yield from people.items()


def _from_photos(
    plan: EnrolmentPlan,
    pipeline: Pipeline,
    refused: dict[Path, str],
    crowds: dict[str, str],
    progress: ProgressCallback,
    *,
    keep_images: bool,
    largest: bool,
) -> Generator[_Templates, None, None]:
    places = [(person, path) for person, files in plan.people.items() for path in files]
    images = enrolment_images([path for _, path in places], pipeline, keep_images=keep_images, largest=largest)
    with contextlib.closing(images):
        numbered = zip(itertools.count(1), places, images, strict=False)
        for person, group in itertools.groupby(numbered, key=lambda item: item[1][0]):
            templates, several, read = [], 0, 0
            for number, _, image in group:
                several += image.faces > 1
                read += image.faces > 0
                progress(Progress("enrolling", number, len(places), "photos"))
                if image.template is None:
                    refused[image.path] = image.refusal
                else:
                    templates.append((str(image.path), image.template))
            if not largest and (crowd := crowd_refusal(person, several, read)):
                crowds[person] = crowd
            yield person, templates


def crowd_refusal(person: str, several: int, read: int) -> str:
    """Return why photos are not of one person; empty unless most have `several` faces, of those `read` with any."""
    if not 2 <= several > read / 2:
        return ""
    return (
        f"{person}: expected photos of one person, found several faces in {several} of {read} photos; use photos of "
        "this person alone, or take the largest face of each with --largest"
    )


# Photos


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EnrolmentImage:
    """One photo, and the template that was made from it, or why it cannot be used; and its usable faces.

    `reason` says why in a word for programs: ``bad-image``, ``no-face``, ``poor-quality`` or ``several-faces``.
    """

    path: Path
    template: NewTemplate | None = None
    refusal: str = ""
    reason: str = ""
    faces: int = 0


def enrolment_image(
    path: Path,
    image: Image,
    faces: Sequence[Face],
    *,
    sha256: str,
    keep_image: bool,
    detector: str | None,
    largest: bool = False,
) -> EnrolmentImage:
    """Make a template from what a pipeline found in a photo; the options are those of `enrolment_images`.

    `detector` is the name of the one that found the faces; None: the photo is one aligned crop. `sha256` is of the
    photo's file; may be empty.
    """
    reason, refusal, face = _choose(faces, image, largest=largest)
    usable = sum(each.embedding is not None for each in faces)
    if face is None or face.embedding is None:
        return EnrolmentImage(path=path, refusal=refusal, reason=reason, faces=usable)
    template = NewTemplate(
        embedding=face.embedding,
        quality=float("nan") if face.quality is None else face.quality.score,
        source_sha256=sha256,
        image=cut_out(image, face, aligned=detector is None) if keep_image else None,
        detector=detector if detector and is_detector_name(detector) else "",  # a user's own may have any name
    )
    return EnrolmentImage(path=path, template=template, faces=usable)


def enrolment_images(
    files: Sequence[Path], pipeline: Pipeline, *, keep_images: bool, largest: bool = False
) -> Generator[EnrolmentImage, None, None]:
    """Make a template from the face in each photo, in order; a pipeline without a detector takes aligned crops.

    `keep_images` keeps the part of the photo that shows the face. A photo of several usable faces is refused, or
    `largest` takes the largest one. What the pipeline's gate rejects does not count: it may be no face.
    """
    failed: dict[Path, str] = {}
    settings = pipeline.settings["detector"]

    def fail(path: Path, error: ImageError) -> None:
        failed[path] = str(error).removeprefix(f"{path}: ")

    next_index = 0
    with open_source(files, on_bad=fail) as frames, contextlib.closing(pipeline.run(frames)) as answers:
        for frame, faces in answers:
            for index in range(next_index, frame.index):
                yield EnrolmentImage(path=files[index], refusal=failed[files[index]], reason="bad-image")
            next_index = frame.index + 1
            yield enrolment_image(
                files[frame.index],
                frame.image,
                faces,
                sha256=frame.file.sha256 if frame.file else "",
                keep_image=keep_images,
                detector=settings and settings["name"],
                largest=largest,
            )
    for index in range(next_index, len(files)):
        yield EnrolmentImage(path=files[index], refusal=failed[files[index]], reason="bad-image")


def _choose(faces: Sequence[Face], image: Image, *, largest: bool) -> tuple[str, str, Face | None]:
    """Return the face of a photo, or why there is none that can be used: a word, and a sentence."""
    if not faces:
        return "no-face", "expected a face, found none; use a photo with a larger or clearer face", None
    size = (image.shape[0], image.shape[1])
    usable = [face for face in faces if face.embedding is not None]
    if not usable:
        reasons = "; ".join(faces[largest_face(faces, size)].reasons)
        several = f"found {len(faces)} faces, none of them usable; largest: " if len(faces) > 1 else ""
        return "poor-quality", several + reasons, None
    if len(usable) > 1 and not largest:
        return (
            "several-faces",
            f"expected one face, found {len(usable)}; use a photo of one person, or take the largest face of each with "
            "--largest",
            None,
        )
    return "", "", usable[largest_face(usable, size)]


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
