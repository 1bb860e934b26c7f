"""Measure on labelled photos which recipe a model was made for: its own, or a neighbour of it.

An IR computes ``(x - mean) / scale`` of raw values itself. A neighbour with another mean, scale or colour order is
therefore measured on the same IR, by giving it the values that lead to the neighbour's; another alignment cuts other
crops. A model separates people best under the recipe it was trained with.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import FaceError, InputError
from edgeface.evaluate.faces import find_images
from edgeface.evaluate.pairs import images_of_people, read_pairs
from edgeface.model.contract import Alignment, Color, ModelContract
from edgeface.model.ir_file import read_contract
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.runtime.devices import shared_core
from edgeface.runtime.engine import compile_engine
from edgeface.runtime.plan import DevicePlan
from edgeface.stats import student_t
from edgeface.vision.align import align
from edgeface.vision.detector import Detector
from edgeface.vision.image import Image, read_image
from edgeface.vision.load import load_detector

Doubles = NDArray[np.float64]
Triple = tuple[float, float, float]

ERROR_PROBABILITY: Final = 0.05
"""Probability that the recipe of the largest expected separation is not among the plausible ones."""
MARGIN: Final = 0.01
"""Smallest lead, as a share of the larger separation, that counts: less is rounding, or no reason to prefer one."""
MIN_PEOPLE: Final = 3
MAX_PEOPLE, MAX_PHOTOS_EACH = 40, 4
"""More photos are not used: they would cost time and change no answer (benchmarks/recipe_check.py)."""

_RANGES: Final[Mapping[str, tuple[Triple, Triple]]] = {
    "(x - 127.5) / 128": ((127.5, 127.5, 127.5), (128.0, 128.0, 128.0)),
    "x / 255": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    "x": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "ImageNet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
"""Usual mean and scale, in the order R, G, B."""
_ALIGNMENTS: Final = (
    Alignment("mtcnn-box-margin"),
    Alignment("mtcnn-box-margin", 32),
    Alignment("five-point-112"),
    Alignment("five-point-150"),
)
_BOXES: Final = ("mtcnn-box-margin", "mtcnn-box-output-margin")
_ALIKE_MARGINS: Final = 32
"""Box recipes whose margins differ by less are one recipe here: 14 for 32 costs FaceNet 4 % of its separation."""
_ALIKE_RANGES: Final = 0.05
"""Ranges are one where black and white differ by less than this share of the range."""
_BATCH: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeCandidate:
    """One recipe to measure: the model expects ``(x - mean) / scale`` of crops in `color`, cut by `alignment`.

    Attributes
    ----------
    name
        What is different from the recipe that was told.
    mirrored
        Whether crops are mirrored left to right. No recipe can say so; it shows mirrored photos or landmarks.
    """

    name: str
    color: Color
    mean: Triple
    scale: Triple
    alignment: Alignment
    mirrored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateScore:
    """How well the model separates people under one recipe.

    Attributes
    ----------
    genuine, impostor
        Mean cosine of photos of one person, averaged over people, and of two people, averaged over pairs of people.
    separation
        ``genuine - impostor``.
    auc
        Share of all (genuine, impostor) pairs of scores in the right order.
    difference, interval
        Separation minus that of the recipe that was told, and its confidence interval; all of a check hold at once
        with a probability of 90 %, their upper ends with 95 %.
    plausible
        False if another recipe clearly separates people better than this one.
    """

    candidate: RecipeCandidate
    genuine: float
    impostor: float
    separation: float
    auc: float
    difference: float
    interval: tuple[float, float]
    plausible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeCheck:
    """Answer of `check_recipe`. It is true unless the recipe that was told clearly loses.

    Attributes
    ----------
    scores
        The recipe that was told, then its neighbours.
    people, photos
        Number of people and of photos that were measured.
    failures
        Photos without a usable face.
    """

    scores: tuple[CandidateScore, ...]
    people: int
    photos: int
    failures: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.scores[0].plausible

    @property
    def plausible(self) -> tuple[RecipeCandidate, ...]:
        """The recipes that no other one clearly beats, the best first; mirrored crops are no recipe."""
        ranked = sorted(self.scores, key=lambda score: -score.separation)
        return tuple(each.candidate for each in ranked if each.plausible and not each.candidate.mirrored)

    @property
    def verdict(self) -> Literal["confirmed", "refused", "cannot tell"]:
        """``confirmed``: every neighbour clearly loses; ``refused``: the recipe that was told does."""
        if not self:
            return "refused"
        return "confirmed" if len(self.plausible) == 1 else "cannot tell"

    @property
    def summary(self) -> str:
        """The answer in one line."""
        measured, told = f"{self.photos} photos of {self.people} people", self.scores[0].candidate.name
        names = [each.name for each in self.plausible]
        if self.verdict == "confirmed":
            return f"{measured}: the model does best with the recipe as told ({told})"
        if self.verdict == "cannot tell":
            others = ", ".join(name for name in names if name != told)
            return f"{measured}: cannot tell the recipe as told from: {others}; {names[0]} separates best; add people"
        best = " or ".join(names) or "mirrored photos"
        return f"{measured}: the recipe as told ({told}) clearly loses; of those tried the model does best with: {best}"

    def __repr__(self) -> str:
        return f"<RecipeCheck {self.verdict}: {self.summary}>"

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        rows = []
        for each in self.scores:
            candidate = {**asdict(each.candidate), "alignment": str(each.candidate.alignment)}
            rows.append({**candidate, **{key: value for key, value in asdict(each).items() if key != "candidate"}})
        return {
            "verdict": self.verdict,
            "made_for": [each.name for each in self.plausible],
            "summary": self.summary,
            "people": self.people,
            "photos": self.photos,
            "failures": list(self.failures),
            "error_probability": ERROR_PROBABILITY,
            "recipes": rows,
        }


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFace:
    """A photo (H, W, 3) uint8 BGR, its person, and its face: box (4,) and landmarks (5, 2), or None for a crop."""

    name: str
    person: str
    image: Image
    box: NDArray[np.float32] | None
    landmarks: NDArray[np.float32] | None


def check_recipe(
    ir: Path,
    color: Color,
    *,
    photos: Path,
    detector: Detector | None = None,
    progress: ProgressCallback = ignore_progress,
) -> RecipeCheck:
    """Compare the recipe in an IR's contract with its neighbours by how well the model separates people.

    The neighbours change one part each: the colour order, the range of values, the alignment, left and right. The
    measure is the mean cosine of genuine pairs minus that of impostor pairs. Two recipes are compared on the same
    photos by a t-test over people; with all comparisons corrected by Bonferroni, the best recipe is refused with a
    probability of at most `ERROR_PROBABILITY`.

    Parameters
    ----------
    ir
        The .xml, with a contract.
    color
        Channel order that the model expects, in which the contract gives mean and scale. The contract's own `color` is
        that of the IR's input.
    photos
        Folder of one folder a person, or of a ``pairs.txt`` with its images below it or below ``images``. At least 3
        people with 2 photos each; 6 people show coarse errors, 20 nearly all.
    detector
        Detects the faces, by default MTCNN; not used if the alignment is ``none``.
    progress
        Called after every recipe.

    Raises
    ------
    InputError
        If there are too few people with two photos in which a face is found, or the weights are random.
    """
    model, contract = read_contract(ir, core=shared_core())
    if contract.provenance == "seeded":
        raise InputError(path=ir, expected="a trained model to check the recipe of", found="random weights")
    candidates = recipe_candidates(contract, color)
    with contextlib.ExitStack() as stack:
        if contract.alignment.recipe == "none":
            detector = None
        elif detector is None:
            detector = stack.enter_context(load_detector())
        root, names, unread = _list_photos(photos)
        faces, failures = find_labelled_faces(root, names, detector)
    crops, faces, failed = cut_candidates(faces, candidates, contract.input_size)
    failures += failed + unread
    _require_people([face.person for face in faces], photos, failures)
    vectors = embed_candidates(model, contract, color, candidates, crops, progress=progress)
    return compare_recipes(candidates, vectors, [face.person for face in faces], failures=failures)


def recipe_candidates(contract: ModelContract, color: Color) -> list[RecipeCandidate]:
    """List the recipe of a contract, whose model expects `color`, and its neighbours."""
    mean, scale = contract.mean, contract.scale
    told = RecipeCandidate(
        name=f"{color}, {_range_name(mean, scale)}, {_alignment_name(contract.alignment)}",
        color=color,
        mean=mean,
        scale=scale,
        alignment=contract.alignment,
    )
    return [told, *neighbours_of(told, contract.input_size)]


def neighbours_of(told: RecipeCandidate, size: tuple[int, int]) -> list[RecipeCandidate]:
    """Change one part of a recipe at a time; `size` is the (height, width) of a crop.

    Examples
    --------
    >>> crops = Alignment("none")
    >>> told = RecipeCandidate(name="told", color="RGB", mean=(0.0,) * 3, scale=(255.0,) * 3, alignment=crops)
    >>> [each.name for each in neighbours_of(told, (112, 112))]
    ['BGR', '(x - 127.5) / 128', 'x', 'ImageNet', 'mirrored']
    """
    other: Color = "BGR" if told.color == "RGB" else "RGB"
    found = [replace(told, name=other, color=other)]
    for name, usual in _RANGES.items():
        mean, scale = usual if told.color == "RGB" else (_reversed(usual[0]), _reversed(usual[1]))
        ends, others = _ends(told.mean, told.scale), _ends(mean, scale)
        if np.abs(ends - others).max() > _ALIKE_RANGES * np.abs(ends[1] - ends[0]).max():
            found.append(replace(told, name=name, mean=mean, scale=scale))
    if told.alignment.recipe != "none":
        found += [
            replace(told, name=_alignment_name(alignment), alignment=alignment)
            for alignment in _ALIGNMENTS
            if not _alike(alignment, told.alignment) and (alignment.recipe in _BOXES or size[0] == size[1])
        ]
    return [*found, replace(told, name="mirrored", mirrored=True)]


def _alike(one: Alignment, other: Alignment) -> bool:
    if one.recipe in _BOXES and other.recipe in _BOXES:
        return abs(one.margin - other.margin) < _ALIKE_MARGINS
    return one.recipe == other.recipe


def _alignment_name(alignment: Alignment) -> str:
    return f"{alignment.recipe}:{alignment.margin}" if alignment.recipe in _BOXES else alignment.recipe


def _reversed(values: Triple) -> Triple:
    first, second, third = values
    return third, second, first


def _ends(mean: Triple, scale: Triple) -> Doubles:
    """What black and white become: (2, 3)."""
    return (np.array([[0.0], [255.0]]) - mean) / scale


def _range_name(mean: Triple, scale: Triple) -> str:
    for name, (usual_mean, usual_scale) in _RANGES.items():
        if (mean, scale) == (usual_mean, usual_scale):
            return name
    shown = [
        f"{each[0]:g}" if len(set(each)) == 1 else f"({', '.join(f'{x:g}' for x in each)})" for each in (mean, scale)
    ]
    return f"(x - {shown[0]}) / {shown[1]}"


def find_labelled_faces(
    root: Path, names: Sequence[str], detector: Detector | None
) -> tuple[list[LabelledFace], tuple[str, ...]]:
    """Read photos ``root/person/photo`` and find the main face of each; without a detector the photos are crops.

    Returns the faces, and the names of photos without one. Raises InputError if a photo is missing or unreadable.
    """
    faces, failures = [], []
    for name, path in zip(names, find_images(root, names), strict=True):
        person, image = name.partition("/")[0], read_image(path)
        if detector is None:
            faces.append(LabelledFace(name, person, image, None, None))
        elif len(found := detector.detect([image])[0]):
            chosen = found.largest(image.shape[:2])
            faces.append(LabelledFace(name, person, image, found.boxes[chosen], found.landmarks[chosen]))
        else:
            failures.append(name)
    return faces, tuple(failures)


def _list_photos(photos: Path) -> tuple[Path, list[str], tuple[str, ...]]:
    """Return the folder, the names ``person/photo`` below it that are used, of people with several photos; and others.

    The others cannot be read: their paths, and why.
    """
    unread: tuple[str, ...] = ()
    if (photos / "pairs.txt").is_file():
        root = photos / "images" if (photos / "images").is_dir() else photos
        listed = sorted(read_pairs(photos / "pairs.txt").images)
    else:
        found = images_of_people(photos)
        root, listed = photos, list(found.images)
        unread = tuple(f"{path}: {why}" for path, why in found.unread.items())
    people: dict[str, list[str]] = {}
    for name in listed:
        people.setdefault(name.partition("/")[0], []).append(name)
    several = [each[:MAX_PHOTOS_EACH] for each in people.values() if len(each) > 1]
    return root, [name for each in several[:MAX_PEOPLE] for name in each], unread


def cut_candidates(
    faces: Sequence[LabelledFace], candidates: Sequence[RecipeCandidate], size: tuple[int, int]
) -> tuple[dict[Alignment, list[Image]], list[LabelledFace], tuple[str, ...]]:
    """Cut the crops of every alignment; a face that one of them cannot cut is left out of all.

    Returns the crops (H, W, 3) uint8 BGR of each alignment, the faces that they are of, and the names of the others.
    """
    crops: dict[Alignment, list[Image]] = {each.alignment: [] for each in candidates}
    kept, failures = [], []
    for face in faces:
        try:
            cut = [align(face.image, face.box, face.landmarks, alignment, size) for alignment in crops]
        except FaceError:
            failures.append(face.name)
            continue
        kept.append(face)
        for images, crop in zip(crops.values(), cut, strict=True):
            images.append(crop)
    return crops, kept, tuple(failures)


def require_photos(photos: Path) -> None:
    """Refuse a folder that holds too few people for `check_recipe`, before a model is made.

    Raises `InputError`.
    """
    _, names, unread = _list_photos(photos)
    _require_people([name.partition("/")[0] for name in names], photos, unread)


def _require_people(people: Sequence[str], photos: Path, failures: Sequence[str]) -> None:
    several = sum(count > 1 for count in Counter(people).values())
    if several >= MIN_PEOPLE:
        return
    first = ", ".join(failures[:3])
    without = f", and {len(failures)} photos without a face or unreadable ({first})" if failures else ""
    raise InputError(
        path=photos,
        expected=f"at least {MIN_PEOPLE} people with 2 photos each, in one folder a person or listed in pairs.txt",
        found=f"{several} such people{without}",
        remedy="a dozen photos of 6 people show coarse errors, 40 of 20 people nearly all",
    )


def embed_candidates(
    model: ov.Model,
    contract: ModelContract,
    color: Color,
    candidates: Sequence[RecipeCandidate],
    crops: Mapping[Alignment, Sequence[Image]],
    *,
    progress: ProgressCallback = ignore_progress,
) -> list[NDArray[np.float32]]:
    """Embed the crops under every candidate with one IR, whose model expects `color`, in FP32 on the CPU: (N, D) each.

    The model's compressed weights are unpacked in place where that is needed.
    """
    batch = model.input(0).get_partial_shape()[0]
    count = _BATCH if batch.is_dynamic else batch.get_length()
    vectors = []
    with compile_engine(model, DevicePlan(device="CPU", precision="f32")) as engine:
        for done, candidate in enumerate(candidates, start=1):
            own = crops[candidate.alignment]
            outputs = engine.run_batches(_batches(own, candidate, contract, color, count))
            vectors.append(np.concatenate([each[0] for each in outputs])[: len(own)])
            progress(Progress("recipes", done, len(candidates), unit="recipes"))
    return vectors


def _batches(
    crops: Sequence[Image], candidate: RecipeCandidate, contract: ModelContract, color: Color, count: int
) -> Iterator[NDArray[np.float32]]:
    """Yield crops as the IR takes them, `count` at a time, such that it computes the candidate's recipe."""
    told_mean, told_scale, mean, scale = (
        np.array(each, np.float32) for each in (contract.mean, contract.scale, candidate.mean, candidate.scale)
    )
    rest = iter(crops)
    while batch := list(islice(rest, count)):
        batch += batch[-1:] * (count - len(batch))
        pixels = np.stack(batch).astype(np.float32)[..., :: 1 if candidate.color == "BGR" else -1]
        values = (pixels - mean) / scale * told_scale + told_mean  # exactly the pixels for the recipe itself, nearly
        values = values[:, :, ::-1] if candidate.mirrored else values
        values = values[..., :: 1 if contract.color == color else -1]
        yield np.ascontiguousarray(values.transpose(0, 3, 1, 2) if contract.layout == "NCHW" else values)


def compare_recipes(
    candidates: Sequence[RecipeCandidate],
    vectors: Sequence[NDArray[np.floating]],
    people: Sequence[str],
    *,
    failures: Sequence[str] = (),
) -> RecipeCheck:
    """Decide between recipes by the embeddings of the same faces under each.

    The separation is ``mean_p G_p - mean_pq I_pq``: G_p the mean cosine of pairs of photos of person p, I_pq of one
    photo of p and one of q. Of the difference D between two recipes, person p's share is
    ``(G_p - mean G) - 2 (mean_q I_pq - mean I)``, the influence function of a U-statistic of degree 2 (Hoeffding,
    Annals of Mathematical Statistics 19 (1948), 293-325); the shares' variance gives D's, and D divided by its
    deviation is compared with Student's t of n - 1 degrees of freedom, n people. A recipe is plausible unless another
    one beats it at level ``ERROR_PROBABILITY / (number of others)`` and by `MARGIN` (subset selection: Gupta,
    Technometrics 7 (1965), 225-245).

    Parameters
    ----------
    candidates, vectors
        The recipes, the one that was told first, and the embeddings (N, D) under each; not normalised ones are.
    people
        The person of each face. Faces of a person with only one are not used.
    failures
        Names of photos without a usable face.

    Raises
    ------
    InputError
        If fewer than `MIN_PEOPLE` people have two faces.
    """
    labels = np.array(people)
    groups = [rows for person in dict.fromkeys(people) if len(rows := np.flatnonzero(labels == person)) > 1]
    if len(groups) < MIN_PEOPLE:
        raise InputError(f"expected at least {MIN_PEOPLE} people with two faces each, found {len(groups)}")
    measured = [_measure(each, groups) for each in vectors]
    level = ERROR_PROBABILITY / max(len(candidates) - 1, 1)
    quantile = student_t(len(groups) - 1, 1 - 2 * level)
    scores = []
    for candidate, own in zip(candidates, measured, strict=True):
        difference, error = own.separation - measured[0].separation, quantile * own.deviation_from(measured[0])
        scores.append(
            CandidateScore(
                candidate=candidate,
                genuine=own.genuine,
                impostor=own.impostor,
                separation=own.separation,
                auc=own.auc,
                difference=difference,
                interval=(difference - error, difference + error),
                plausible=not any(other.beats(own, quantile) for other in measured),
            )
        )
    return RecipeCheck(scores=tuple(scores), people=len(groups), photos=sum(map(len, groups)), failures=tuple(failures))


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """What `compare_recipes` needs of one recipe; `shares` (n,) are the people's shares of the separation."""

    genuine: float
    impostor: float
    auc: float
    shares: Doubles

    @property
    def separation(self) -> float:
        return self.genuine - self.impostor

    def deviation_from(self, other: _Measured) -> float:
        """Standard deviation of the difference of two separations."""
        shares = self.shares - other.shares
        return math.sqrt(float(shares @ shares) / (len(shares) * (len(shares) - 1)))

    def beats(self, other: _Measured, quantile: float) -> bool:
        """Whether this recipe separates people better, by the margin and beyond chance."""
        lead = self.separation - other.separation
        largest = max(abs(self.separation), abs(other.separation))
        return lead > MARGIN * largest and lead > quantile * self.deviation_from(other)


def _measure(vectors: NDArray[np.floating], groups: Sequence[NDArray[np.intp]]) -> _Measured:
    """Measure one recipe on the faces of n people, `groups` of rows of `vectors`."""
    matrix = _cosines(vectors[np.concatenate(groups)])
    people = np.repeat(np.arange(len(groups)), [len(rows) for rows in groups])
    first, second = np.triu_indices(len(people), 1)
    same = people[first] == people[second]
    genuine, impostor = matrix[first, second][same], matrix[first, second][~same]
    weights = (people == np.arange(len(groups))[:, None]) / np.bincount(people)[:, None]
    means = weights @ matrix @ weights.T  # of people p and q, a face with itself included on the diagonal
    counts = np.bincount(people)
    own = (np.diag(means) * counts - weights @ np.diag(matrix)) / (counts - 1)
    others = (means.sum(axis=1) - np.diag(means)) / (len(groups) - 1)
    return _Measured(
        genuine=float(own.mean()),
        impostor=float(others.mean()),
        auc=float(np.mean(genuine[:, None] > impostor) + np.mean(genuine[:, None] == impostor) / 2),
        shares=(own - own.mean()) - 2 * (others - others.mean()),
    )


def _cosines(vectors: NDArray[np.floating]) -> Doubles:
    """Cosine of every two rows, (N, N); 0 with a row that is zero or not finite."""
    rows = np.nan_to_num(vectors.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(rows @ rows.T)
