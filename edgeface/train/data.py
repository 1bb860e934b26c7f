"""Gather the photos to train on: one face a photo, aligned, embedded, cached, and split without leaks.

A photo is never on both sides of a split, and neither are near-duplicates: photos of one person whose embeddings have a
cosine of `SAME_SHOT` or more, or whose files are equal, stay together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ExtraNotInstalledError, GalleryError, InputError
from edgeface.evaluate.faces import CROPS, FaceCutter, FaceSource
from edgeface.evaluate.pairs import images_of_people
from edgeface.files import default_root, sha256_of, write_atomically
from edgeface.gallery.records import check_name
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import read_contract
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.recognize.metrics import unit_rows
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.plan import DevicePlan
from edgeface.untrusted import read_npz

SAME_SHOT = 0.95
"""Cosine from which two photos of a person count as one shot. No pair of the 651 photos of LFW's 70 people with eight
photos or more reaches it with FaceNet 20180408; a photo that is stored again, smaller or cut a little, does."""
_ONE_PERSON = 0.85
"""Mean cosine between the photos under two names, as a share of that under either, from which they seem to be of one
person. With FaceNet 20180408, halves of one person's photos have 0.88 or more, two of LFW's 70 people at most 0.79."""
_CHUNK = 32
"""Photos that are cut, embedded and cached together."""

Part = Literal["train", "validation", "held_out"]
PARTS: tuple[Part, ...] = ("train", "validation", "held_out")
Crops = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FaceSet:
    """Faces of people to train on.

    Attributes
    ----------
    names
        People with enough photos, in the order of their folders.
    people : (N,) intp
        Person of each photo, as an index into `names`.
    photos, digests
        Path of each photo below the folder, and the SHA-256 of its file.
    crops : (N, H, W, 3) uint8, BGR
        Aligned as the contract says.
    embeddings : (N, D) float32
        By the IR, in FP32.
    strangers, stranger_crops : (M, D) float32 and (M, H, W, 3) uint8, BGR
        Embeddings and crops of the people who were dropped: no one of them is in `names`.
    dropped
        People with too few usable photos, and how many they have.
    failures
        Photos that cannot be used, and why.
    contract, faces
        Of the IR; the source of the faces, in words.
    """

    names: tuple[str, ...]
    people: NDArray[np.intp]
    photos: tuple[str, ...]
    digests: tuple[str, ...]
    crops: Crops
    embeddings: NDArray[np.float32]
    strangers: NDArray[np.float32]
    stranger_crops: Crops
    dropped: Mapping[str, int]
    failures: Mapping[str, str]
    contract: ModelContract
    faces: str

    def __len__(self) -> int:
        return len(self.photos)

    def __repr__(self) -> str:
        return f"FaceSet({len(self)} photos of {len(self.names)} people, {len(self.dropped)} people dropped)"

    @property
    def digest(self) -> str:
        """SHA-256 over the files and their people: what was trained on."""
        rows = sorted(
            f"{digest} {self.names[person]}" for digest, person in zip(self.digests, self.people, strict=True)
        )
        return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogatepass")).hexdigest()

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """Return what a checkpoint is valid for: model, files, their names, which decide their order, and settings."""
        told = [self.contract.contract_id, self.digest, self.photos, self.faces, settings]
        return json.dumps(told, sort_keys=True)


def gather_people(
    root: Path,
    ir: Path,
    faces: FaceSource = CROPS,
    *,
    min_photos: int = 4,
    cache: Path | None = None,
    allow_seeded: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> FaceSet:
    """Cut and embed one face of each photo below a folder that holds one folder a person.

    Crops and embeddings are cached, by the file's digest and the contract, in files that only their owner may read.

    Parameters
    ----------
    root
        Folder of the people: ``root/Name/anything.jpg``.
    ir
        IR with a contract, which decides alignment and size.
    faces
        Source of the faces; of several in a photo the largest is taken.
    min_photos
        Fewest usable photos of a person, at least 2; others are dropped.
    cache
        Folder for crops and embeddings; None: ``train`` in the folder of `edgeface.files.default_root`.
    allow_seeded, progress
        Use a model of random weights too; called after each photo.

    Raises
    ------
    InputError
        If fewer than two people have enough usable photos.
    ContractError
        If the IR has no contract, or its weights are seeded.
    OutputError
        If the cache cannot be written.
    """
    if min_photos < 2:
        raise InputError(
            expected="at least 2 photos a person, one to train on and one to judge by",
            found=f"--min-photos {min_photos}",
        )
    listed = images_of_people(root)
    images, people, names = listed.images, listed.people, _check_people(root, listed.names)
    _, contract = read_contract(ir)
    contract.refuse_seeded(source=str(ir), allow_seeded=allow_seeded)
    store = _Cache((cache or default_root()) / "train", contract, faces)
    failures = {path.relative_to(root).as_posix(): why for path, why in listed.unread.items()}
    files = [root / image for image in images]
    digests = _digests(files, images, failures)
    crops: dict[int, Crops] = {}
    vectors: dict[int, NDArray[np.float32]] = {}
    for index, digest in enumerate(digests):
        if digest and (cached := store.read(digest, images[index])):
            crops[index], vectors[index] = cached
    todo = [index for index, digest in enumerate(digests) if digest and index not in vectors]
    if todo:
        cutter = FaceCutter(files, images, contract, faces)
        done = len(files) - len(todo)
        plan = DevicePlan(device="CPU", precision="f32")
        with Embedder.load(ir, plan=plan, allow_seeded=allow_seeded) as embedder:
            for start in range(0, len(todo), _CHUNK):
                cut = _cut(cutter, todo[start : start + _CHUNK], images, failures)
                for (index, crop), vector in zip(cut.items(), embedder.embed(list(cut.values())), strict=True):
                    crops[index], vectors[index] = crop, vector
                    store.write(digests[index], images[index], crop, vector)
                progress(Progress("faces", done + min(start + _CHUNK, len(todo)), len(files), "photos"))
    people_set = _collect(root, images, people, names, digests, crops, vectors, failures, contract, min_photos)
    dropped = {**people_set.dropped, **dict.fromkeys(listed.empty, 0)}
    return dataclasses.replace(people_set, faces=faces.text, dropped=dropped)


def _check_people(root: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """Return the names of people's folders as a gallery would take them: what a head answers can be enrolled.

    Raises InputError for a name that no gallery takes, such as ``unknown``, and for two folders of one name.
    """
    names: dict[str, str] = {}
    for folder in folders:
        try:
            name = check_name(folder)
        except GalleryError as error:
            raise InputError(f"{root / folder}: {error}") from error
        if name in names:
            raise InputError(
                path=root,
                expected="one folder a person",
                found=f"two of the name {name!r}: {names[name]!r} and {folder!r}",
                remedy="put their photos into one folder",
            )
        names[name] = folder
    return tuple(names)


def require_output(root: Path, output: Path, result: str, unfinished: str | None = None) -> None:
    """Raise InputError if a training must not write into a folder: it has a finished one, or is among the photos.

    `result` is the file that a training leaves there, and `unfinished` one that is beside it where it can be resumed.
    """
    if output.resolve().is_relative_to(root.resolve()):
        raise InputError(
            path=output, expected="a folder outside of the photos", found=f"one in {root}", remedy="choose another"
        )
    if (output / result).exists() and not (unfinished and (output / unfinished).exists()):
        raise InputError(
            path=output,
            expected="a folder without a finished training",
            found=result,
            remedy="choose another folder, or remove it",
        )


def _digests(files: Sequence[Path], images: Sequence[str], failures: dict[str, str]) -> list[str]:
    digests = []
    for file, image in zip(files, images, strict=True):
        try:
            digests.append(sha256_of(file))
        except OSError as error:
            failures[image] = f"cannot read: {error.strerror}"
            digests.append("")
    return digests


def _cut(cutter: FaceCutter, chunk: Sequence[int], images: Sequence[str], failures: dict[str, str]) -> dict[int, Crops]:
    """Cut the faces of some photos, two at a time; `failures` gets the photos without one, and why."""

    def crop(index: int) -> Crops | str:
        try:
            return cutter.crop(index)
        except InputError as error:  # an unreadable photo too
            return str(error)

    with ThreadPoolExecutor(2, thread_name_prefix="edgeface-cut") as pool:
        found = dict(zip(chunk, pool.map(crop, chunk), strict=True))
    failures |= {images[index]: each for index, each in found.items() if isinstance(each, str)}
    faceless = cutter.reasons
    failures |= {images[index]: faceless[images[index]] for index in chunk if images[index] in faceless}
    return {index: each for index, each in found.items() if not isinstance(each, str) and images[index] not in faceless}


def _collect(
    root: Path,
    images: tuple[str, ...],
    people: NDArray[np.intp],
    names: tuple[str, ...],
    digests: Sequence[str],
    crops: Mapping[int, Crops],
    vectors: Mapping[int, NDArray[np.float32]],
    failures: Mapping[str, str],
    contract: ModelContract,
    min_photos: int,
) -> FaceSet:
    """Keep the people with enough usable photos."""
    usable = np.array(sorted(vectors), np.intp)
    counts = np.bincount(people[usable], minlength=len(names))
    kept = np.flatnonzero(counts >= min_photos)
    dropped = {names[person]: int(counts[person]) for person in range(len(names)) if counts[person] < min_photos}
    if len(kept) < 2:
        first = "; ".join(f"{len(failures)} cannot be used, the first {each}" for each in sorted(failures.values())[:1])
        raise InputError(
            path=root,
            expected=f"at least two people with {min_photos} usable photos or more, each in a folder of their own",
            found=f"{len(kept)} such people of {len(names)}, and {len(usable)} usable photos in all"
            + (f"; {first}" if first else ""),
            remedy="add photos, or pass a lower --min-photos",
        )
    rows = usable[np.isin(people[usable], kept)]
    others = usable[~np.isin(people[usable], kept)]
    crop, vector = crops[rows[0]], vectors[rows[0]]
    return FaceSet(
        names=tuple(names[person] for person in kept),
        people=np.searchsorted(kept, people[rows]).astype(np.intp),
        photos=tuple(images[row] for row in rows),
        digests=tuple(digests[row] for row in rows),
        crops=np.stack([crops[row] for row in rows]),
        embeddings=np.stack([vectors[row] for row in rows]),
        strangers=np.array([vectors[row] for row in others], np.float32).reshape(-1, *vector.shape),
        stranger_crops=np.array([crops[row] for row in others], np.uint8).reshape(-1, *crop.shape),
        dropped=dropped,
        failures=dict(sorted(failures.items())),
        contract=contract,
        faces="",
    )


class _Cache:
    """Crops and embeddings on disk, one file a photo, in a folder for each model and source of faces."""

    def __init__(self, root: Path, contract: ModelContract, faces: FaceSource) -> None:
        boxes, detector = faces.boxes, faces.detector
        self._named = boxes is not None  # boxes go by the name of a photo
        key: dict[str, Any] = {"contract_id": contract.contract_id, "version": 1}
        if boxes is not None:
            key["boxes"] = hashlib.sha256(boxes.boxes.tobytes() + boxes.landmarks.tobytes()).hexdigest()
        if detector is not None:
            key["detector"] = dict(detector.settings)
        self._folder = root / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self._shape = (*contract.input_size, 3), (contract.embedding_dim,)

    def _path(self, digest: str, name: str) -> Path:
        entry = hashlib.sha256(f"{digest} {name}".encode()).hexdigest() if self._named else digest
        return self._folder / entry[:2] / f"{entry}.npz"

    def read(self, digest: str, name: str) -> tuple[Crops, NDArray[np.float32]] | None:
        """Return what is cached; None if there is nothing, or nothing that can be read."""
        try:
            stored = read_npz(self._path(digest, name), "a crop and its embedding")
            crop: NDArray[Any] = stored["crop"]
            vector: NDArray[Any] = stored["embedding"]
        except (InputError, KeyError):
            return None
        fits = (crop.shape, vector.shape) == self._shape and crop.dtype == np.uint8 and vector.dtype == np.float32
        return (crop, vector) if fits else None

    def write(self, digest: str, name: str, crop: Crops, vector: NDArray[np.float32]) -> None:
        path = self._path(digest, name)
        with write_atomically(path, private=True) as partial, partial.open("wb") as file:
            np.savez(file, crop=crop, embedding=vector)


def group_shots(faces: FaceSet, *, similarity: float = SAME_SHOT) -> NDArray[np.intp]:
    """Group near-duplicates: return the number of each photo's shot, (N,) intp.

    Two photos of one person are of one shot if their files are equal, or the cosine of their embeddings is at least
    `similarity`; and so are all that a chain of such pairs joins.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    unit = unit_rows(faces.embeddings)
    digests = np.array(faces.digests)
    first, second = list[int](), list[int]()
    for person in range(len(faces.names)):
        rows = np.flatnonzero(faces.people == person)
        same = (unit[rows] @ unit[rows].T >= similarity) | (digests[rows][:, np.newaxis] == digests[rows])
        a, b = np.nonzero(same)
        first += rows[a].tolist()
        second += rows[b].tolist()
    graph = coo_matrix((np.ones(len(first), np.bool_), (first, second)), shape=(len(faces), len(faces)))
    return np.asarray(connected_components(graph, directed=False)[1], np.intp)


def split_photos(
    faces: FaceSet, *, held_out: float = 0.2, validation: float = 0.1, seed: int = 0
) -> dict[Part, NDArray[np.intp]]:
    """Divide the photos of each person at random, whole shots at a time.

    Each person has a photo in ``train``; one in ``held_out`` if there are two shots of them; one in ``validation`` if
    there are three. The largest shot of a person is trained on.

    Parameters
    ----------
    faces
        See `gather_people`.
    held_out, validation
        Shares of each person's photos to judge by, and to stop training by; each in [0, 0.5].
    seed
        Of the division.

    Returns
    -------
    dict
        Rows of the photos of each part, (n,) intp, ascending.
    """
    for name, share in (("held_out", held_out), ("validation", validation)):
        if not 0 <= share <= 0.5:
            raise InputError(expected=f"a share {name} from 0 to 0.5", found=f"{share:g}")
    shots = group_shots(faces)
    part_of = np.zeros(len(faces), np.intp)
    for person in range(len(faces.names)):
        rows = np.flatnonzero(faces.people == person)
        order = np.random.default_rng([seed, person]).permutation(np.unique(shots[rows]))
        sizes = {int(shot): int(np.sum(shots[rows] == shot)) for shot in order}
        largest = max(sizes, key=lambda shot: sizes[shot])
        left = [shot for shot in sizes if shot != largest]
        for part, share in ((2, held_out), (1, validation)):
            wanted = max(1, round(share * len(rows))) if share else 0
            while wanted > 0 and left:
                shot = left.pop(0)
                part_of[shots == shot] = part
                wanted -= sizes[shot]
    return {name: np.flatnonzero(part_of == number) for number, name in enumerate(PARTS)}


def require_held_out(root: Path, parts: Mapping[Part, NDArray[np.intp]], held_out: float) -> None:
    """Raise InputError if `split_photos` left no photo to judge by."""
    if not len(parts["held_out"]):
        raise InputError(
            path=root,
            expected="photos to judge by",
            found="none: the photos of each person are one shot" if held_out else "none: their share is 0",
            remedy="add photos of another day" if held_out else "pass a higher --held-out",
        )


def find_one_person(faces: FaceSet) -> tuple[tuple[str, str, float], ...]:
    """Find names that seem to be of one person: pairs of names, and the mean cosine of their photos, highest first.

    It is compared with the mean cosine of the photos under either name, without that of a photo with itself.
    """
    unit = unit_rows(faces.embeddings)
    member = np.zeros((len(faces.names), len(faces)))
    member[faces.people, np.arange(len(faces))] = 1
    counts, sums = member.sum(axis=1), member @ unit
    totals = sums @ sums.T
    own = (np.diag(totals) - counts) / (counts * (counts - 1))
    own = np.maximum(own, np.median(own) / 2)  # a folder of several people has little in common with itself
    shared = _share_a_file(faces)
    found = []
    for a, b in zip(*(each.tolist() for each in np.triu_indices(len(faces.names), 1)), strict=True):
        mean = float(totals[a, b] / (counts[a] * counts[b]))
        if mean >= _ONE_PERSON * min(own[a], own[b]) or (a, b) in shared:
            found.append((faces.names[a], faces.names[b], round(mean, 4)))
    return tuple(sorted(found, key=lambda each: -each[2]))


def left_out(faces: FaceSet, one_person: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    """Return, as JSON types, who and what was not trained on, and names that seem to be of one person."""
    return {
        "dropped_people": dict(faces.dropped),
        "unusable_photos": dict(faces.failures),
        "one_person": [{"names": [a, b], "mean_cosine": cosine} for a, b, cosine in one_person],
    }


def _share_a_file(faces: FaceSet) -> set[tuple[int, int]]:
    owners: dict[str, set[int]] = {}
    for digest, person in zip(faces.digests, faces.people.tolist(), strict=True):
        owners.setdefault(digest, set()).add(person)
    return {pair for each in owners.values() for pair in itertools.combinations(sorted(each), 2)}


Augmentation = Literal["none", "mirror", "light", "some-of-seven"]


def augment(crops: Crops, kind: Augmentation, *, copies: int = 1, seed: int = 0) -> Iterator[Crops]:
    """Yield altered copies of crops, (N, H, W, 3) uint8 BGR each; ``none`` yields none, ``mirror`` the mirror images.

    ``light`` mirrors and varies brightness and contrast; ``some-of-seven`` applies four of seven kinds of changes, as
    haidiazaman/face-recognition-model-development does: mirror, noise or blur, colour, place, missing parts, contrast,
    and compression. The same seed gives the same copies.

    Raises
    ------
    ExtraNotInstalledError
        If a kind needs albumentations, and it is not installed.
    """
    if kind == "none":
        return
    if kind == "mirror":
        yield np.ascontiguousarray(crops[:, :, ::-1])
        return
    for copy in range(copies):
        change = _changes(kind, seed=seed * 1000 + copy)
        yield np.stack([change(np.ascontiguousarray(crop[..., ::-1]))[..., ::-1] for crop in crops])


def _changes(kind: Augmentation, *, seed: int) -> Callable[[Crops], Crops]:
    """Return what changes one crop, (H, W, 3) uint8 RGB, another way each time."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    try:
        import albumentations as a
    except ImportError as error:
        raise ExtraNotInstalledError("train", needed_for=f"the augmentation {kind!r}") from error
    if kind == "light":
        light = a.Compose([a.HorizontalFlip(p=0.5), a.RandomBrightnessContrast(0.15, 0.15, p=0.5)], seed=seed)
        return lambda crop: np.asarray(light(image=crop)["image"])
    hole = (1, 8)
    seven: list[tuple[float, list[Any]]] = [
        (0.5, [a.HorizontalFlip(p=1)]),
        (0.1, [a.GaussNoise(p=1), a.Blur(3, p=1)]),
        (0.2, [a.RandomBrightnessContrast(p=1), a.HueSaturationValue(20, 50, 50, p=1), a.RGBShift(p=1)]),
        (0.2, [a.Affine((0.85, 1.15), translate_percent=(-0.15, 0.15), rotate=(-15, 15), border_mode=4, p=1)]),
        (0.2, [a.CoarseDropout((1, 16), hole, hole, p=1), a.PixelDropout(0.02, p=1)]),
        (0.2, [a.CLAHE(p=1), a.RandomToneCurve(p=1)]),
        (0.1, [a.Downscale((0.8, 0.95), p=1), a.ImageCompression(quality_range=(75, 95), p=1)]),
    ]
    kinds = [a.Compose([a.OneOf(each, p=1)], seed=seed + number) for number, (_, each) in enumerate(seven)]
    weights = np.array([weight for weight, _ in seven])
    rng = np.random.default_rng(seed)

    def change(crop: Crops) -> Crops:
        # Albumentations 1 chose by weight and applied all that it chose; SomeOf of release 2 applies each by chance.
        for number in rng.choice(len(kinds), 4, replace=False, p=weights / weights.sum()):
            crop = kinds[number](image=crop)["image"]
        return np.asarray(crop)

    return change
