"""Enrol two people, and name them in other photos, beside a person who is not enrolled."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import edgeface
from edgeface.convert import convert
from edgeface.errors import ImageError, MissingError, OutputError, install_line
from edgeface.files import sha256_of, write_atomically
from edgeface.gallery.enrolment import EnrolRules
from edgeface.gallery.enrolment_images import enrol_folder
from edgeface.gallery.opening import create_gallery, open_gallery
from edgeface.model.contract import ModelContract
from edgeface.recognize.identify import Identification
from edgeface.vision.crops import draw_faces, write_png
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image, read_image
from edgeface.zoo import default_model

_DOOR_HEIGHT = 600
"""Most rows of a door photo with its answers drawn on it."""
_KNOWN, _UNKNOWN = (80, 200, 60), (90, 150, 245)
"""Colours of boxes, BGR."""


@dataclass(frozen=True, slots=True)
class DemoPhotos:
    """Photos of real people, (H, W, 3) uint8 BGR.

    Attributes
    ----------
    enrolled
        One photo each of the people who are enrolled, by name.
    door
        Other photos with their names: of the enrolled people, and of one who is not enrolled, whose name is None.
    origin
        Where they are from, and their licence.
    kind
        Name of the folder that they are written into, so that another run with other photos finds none of these.
    """

    enrolled: Mapping[str, Image]
    door: Sequence[tuple[str | None, Image]]
    origin: str
    kind: str

    def write(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Write all photos below `folder`, as PNG; return the files of the enrolled people and those of the door.

        Raises OutputError if a file is there that has other pixels; then nothing is written.
        """
        people = {folder / "people" / name / "1.png": photo for name, photo in self.enrolled.items()}
        door = {folder / "door" / f"{number}.png": photo for number, (_, photo) in enumerate(self.door, 1)}
        new = {path: photo for path, photo in {**people, **door}.items() if not path.exists()}
        for path, photo in {**people, **door}.items():
            if path not in new and not _shows(path, photo):
                raise OutputError(
                    path=path,
                    expected="no file, or the demo's photo from an earlier run",
                    found="another file",
                    remedy=f"move {folder} away, or choose another --output-dir",
                )
        for path, photo in new.items():
            write_png(path, photo)
        return list(people), list(door)


@dataclass(frozen=True, slots=True)
class NamedFace:
    """What the demo says about one face of a door photo, and who it is; None for a person who is not enrolled."""

    photo: Path
    answer: Identification
    truth: str | None

    def __bool__(self) -> bool:
        return (self.answer.person if self.answer else None) == self.truth


@dataclass(frozen=True, slots=True)
class Recognition:
    """People who were enrolled from one photo each, and named in other photos.

    Attributes
    ----------
    contract
        Of the model that named them.
    photos
        What was enrolled and shown.
    pictures
        The door photos, at most 600 pixels high, with a box and a name on each face.
    faces
        Photo by photo, from left to right.
    gallery, door
        The gallery, and the folder of the door photos.
    """

    contract: ModelContract
    photos: DemoPhotos
    pictures: tuple[Image, ...]
    faces: tuple[NamedFace, ...]
    gallery: Path
    door: Path

    def __bool__(self) -> bool:
        return all(self.faces) and len(self.faces) >= len(self.photos.door)

    @property
    def threshold_origin(self) -> str:
        """Where the threshold is from, to follow "which"."""
        if not self.faces:
            return "no face needed"
        threshold = self.faces[0].answer.threshold
        rate = f"for a false positive identification rate of {threshold.fpir:g}" if threshold.fpir else "by hand"
        where = f"; it was calibrated on {threshold.measured_on}" if threshold.measured_on else ""
        return f"was chosen {rate} in a gallery of {threshold.gallery_size} templates{where}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "model": self.contract.name,
            "contract_id": self.contract.contract_id,
            "provenance": self.contract.provenance,
            "photos": self.photos.origin,
            "enrolled": sorted(self.photos.enrolled),
            "answers": [
                {"photo": str(each.photo), "truth": each.truth, "right": bool(each), **each.answer.to_dict()}
                for each in self.faces
            ],
            "gallery": str(self.gallery),
        }


def find_photos(
    folder: Path, *, data: Path | None, offline: bool, say: Callable[[str], None] = lambda line: None
) -> DemoPhotos:
    """Find photos of two people to enrol, other photos of them, and one of a person who is not enrolled.

    They come from ``lfw/images`` of `data`; else from packages: scikit-image's astronaut (extra `demo`), and the
    source archive of face_recognition, which pip downloads unless `offline`, and which is kept in `folder`.

    Raises MissingError if there are neither; OutputError if another file is where the archive is kept.
    """
    if data is not None and (lfw := data / "lfw" / "images").is_dir():
        photos = {name: [read_image(path) for path in sorted((lfw / name).glob("*.jpg"))[:2]] for name in _LFW_NAMES}
        (first, second), (third, fourth), (stranger, _) = photos.values()
        one, other, _ = (name.replace("_", " ") for name in _LFW_NAMES)
        return DemoPhotos(
            enrolled={one: first, other: third},
            door=[(one, second), (None, stranger), (other, fourth)],
            origin="Labeled Faces in the Wild, in EDGEFACE_DATA",
            kind="lfw",
        )
    if importlib.util.find_spec("skimage") is None:
        raise MissingError(expected="photos of people", found="no scikit-image", remedy=f"run: {install_line('demo')}")
    from skimage.data import astronaut

    archive = _photo_archive(folder, offline=offline, say=say)
    obama, again, stranger = (_from_archive(archive, name) for name in ("obama", "obama2", "biden"))
    collins = np.ascontiguousarray(astronaut()[..., ::-1])
    # scikit-image has one photo of her: at the door she is mirrored, in dim light.
    return DemoPhotos(
        enrolled={"Barack Obama": obama, "Eileen Collins": collins},
        door=[("Barack Obama", again), (None, stranger), ("Eileen Collins", (collins[:, ::-1] * 0.6).astype(np.uint8))],
        origin=(
            "official portraits of the United States government, public domain, from the packages scikit-image and "
            "face_recognition; Eileen Collins's second one is her first, mirrored and darkened"
        ),
        kind="portraits",
    )


_LFW_NAMES = ("Serena_Williams", "Colin_Powell", "Hans_Blix")
"""Two who are enrolled, and one who is not."""
_ARCHIVE = "face-recognition==1.3.0"
_ARCHIVE_SHA256 = "5e5efdd1686aa566af0d3cc1313b131e4b197657a8ffd03669e6d3fad92705ec"


def _photo_archive(folder: Path, *, offline: bool, say: Callable[[str], None]) -> Path:
    """Return face_recognition's source archive, MIT, whose tests have the photos; pip checks its digest."""
    path = folder / "face_recognition-1.3.0.tar.gz"
    if path.exists():
        if path.is_file() and sha256_of(path) == _ARCHIVE_SHA256:
            return path
        raise OutputError(
            path=path,
            expected=f"no file, or {_ARCHIVE}",
            found="another file",
            remedy="move it away, or choose another --output-dir",
        )
    if offline:
        raise MissingError(expected="photos of people", found="--offline", remedy="run it once without, or pass --data")
    say(f"downloading photos from the package index: {_ARCHIVE}, MIT")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgeface-demo-") as scratch:
        wanted = Path(scratch, "photos.txt")
        wanted.write_text(f"{_ARCHIVE} --hash=sha256:{_ARCHIVE_SHA256}\n", encoding="utf-8")
        options = ["--quiet", "--no-deps", "--no-binary", "face-recognition", "--require-hashes", "--dest", scratch]
        command = [sys.executable, "-m", "pip", "download", *options, "-r", str(wanted)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            content = Path(scratch, path.name).read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()[-1:]
            raise MissingError(
                expected=f"photos of people in {_ARCHIVE}",
                found=f"pip cannot download it: {' '.join(said) or error}",
                remedy="name a folder of photos with --data, as EDGEFACE_DATA has them",
            ) from error
    with write_atomically(path) as partial:
        partial.write_bytes(content)
    return path


def _from_archive(archive: Path, name: str) -> Image:
    with tarfile.open(archive) as members:
        stream = members.extractfile(f"face_recognition-1.3.0/tests/test_images/{name}.jpg")
        assert stream is not None  # the archive's digest was checked
        image = read_image(stream.read())
    height, width = image.shape[:2]
    return image[: min(height, width * 5 // 4)]  # of a photo from head to foot, the upper part


def recognise(photos: DemoPhotos, folder: Path, *, say: Callable[[str], None] = lambda line: None) -> Recognition:
    """Enrol people into a gallery in `folder` and name the faces of the door photos, with the default model.

    Photos are written below ``photos`` in `folder`. The gallery is not encrypted; an earlier run's is added to. Only
    the people of `photos` are enrolled, whatever else lies in `folder`.

    Raises MissingError if there is no default model, or no threshold is known for it; OutputError if a file of another
    origin is where a photo should be written.
    """
    with edgeface.load(default_model(convert=convert)) as app:
        contract = app.contract
        say(f"enrolling {' and '.join(photos.enrolled)}, with {contract.name}")
        people, door = photos.write(folder / "photos" / photos.kind)
        place = folder / f"people-{contract.contract_id}.gallery"
        opened = (
            open_gallery(place, key=None) if place.is_file() else create_gallery(place, contract=contract, key=None)
        )
        with opened as gallery:
            rules = EnrolRules.choose(None, contract.contract_id)
            for path in people:
                done = enrol_folder(
                    gallery, [path], name=path.parent.name, rules=rules, pipeline=app.pipeline(), largest=True
                )
                for name, why in done.not_enrolled.items():
                    say(f"{name} is not enrolled: {why}")
            answers = [app.identify(photo, gallery, gate=None) for _, photo in photos.door]
    faces, pictures = [], []
    for path, (truth, photo), found in zip(door, photos.door, answers, strict=True):
        sides = [
            0.0 if answer.face is None else float(np.prod(answer.face.box[2:] - answer.face.box[:2]))
            for answer in found
        ]
        person = int(np.argmax(sides)) if sides else None  # the largest face; others are bystanders
        faces += [NamedFace(path, answer, truth if row == person else None) for row, answer in enumerate(found)]
        pictures.append(_draw(photo, found))
    return Recognition(contract, photos, tuple(pictures), tuple(faces), place, door[0].parent)


def _shows(path: Path, photo: Image) -> bool:
    """Whether a file has exactly the pixels of a photo."""
    try:
        return np.array_equal(read_image(path), photo)
    except (ImageError, OSError):
        return False


def _draw(photo: Image, answers: Sequence[Identification]) -> Image:
    """Draw a box with a name and a score on each face, on a copy of the photo in the report's height."""
    found = [answer.face for answer in answers if answer.face is not None]
    scale = min(1.0, _DOOR_HEIGHT / photo.shape[0])
    canvas = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else photo
    if not found:
        return np.asarray(canvas, np.uint8)
    boxes, landmarks = (scale * np.stack([getattr(face, name) for face in found]) for name in ("box", "landmarks"))
    scores = np.array([face.score for face in found], np.float32)
    return draw_faces(
        np.asarray(canvas, np.uint8),
        Faces(boxes.astype(np.float32), landmarks.astype(np.float32), scores),
        labels=[_label(answer) for answer in answers],
        colors=[_KNOWN if answer else _UNKNOWN for answer in answers],
    )


def _label(answer: Identification) -> str:
    score = "" if answer.score is None else f" {answer.score:.2f}"
    return f"{answer.person if answer else answer.verdict.value}{score}"
