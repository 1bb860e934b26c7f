"""Quantize the networks of a face detector, and write them only if boxes and landmarks agree with FP32's.

Each network of a detector sees what the networks before it let through. So the detector runs in FP32 on the calibration
photos while the batches that reach each network are recorded. The networks are quantized on these batches, and the
quantized detector is compared with the FP32 one on held-out photos.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgeface.convert.ir import publish_ir
from edgeface.errors import ConversionError, ImageError, InputError
from edgeface.files import output_errors, staging_folder, stopwatch
from edgeface.model.contract import Alignment
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.quantize.calibration import CalibrationSet, find_flaws
from edgeface.quantize.compress import QuantizationRecipe, check_recipe, compress
from edgeface.vision.align import align
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image, read_image
from edgeface.vision.listing import list_photos
from edgeface.vision.load import DetectorName, load_detector
from edgeface.vision.mtcnn_nets import build_net, load_weights
from edgeface.vision.networks import read_network
from edgeface.vision.nms import overlaps

_FACE = Alignment("mtcnn-box-margin", 0)
_BATCHES = 300
"""Greatest number of batches recorded for each network."""
_MOST_VALUES = 1 << 27
"""Greatest number of values recorded for each network: half a gigabyte."""
_IOU = 0.5
_RECALL, _PRECISION, _LANDMARKS = 0.98, 0.95, 0.02
"""Least recall and precision, and greatest median distance of landmarks in sides of the face."""
_FEW = 50
"""Number of faces of which one is as much as the share that may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of a compressed detector with the FP32 one.

    Attributes
    ----------
    photos, faces
        Number of photos, and of faces that the FP32 detector found in them.
    recall, precision
        Share of FP32's faces that the compressed detector finds, at an intersection over union of 0.5, and share of its
        faces that are FP32's.
    median_iou
        Median intersection over union of the faces that both find.
    landmark_pixels, landmark_sides
        Median distance of a landmark from FP32's, in pixels and in square roots of the face's area; NaN if there are no
        landmarks.
    """

    photos: int
    faces: int
    recall: float
    precision: float
    median_iou: float
    landmark_pixels: float
    landmark_sides: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; NaN becomes None."""
        stored = dataclasses.asdict(self)
        return {name: None if value != value else value for name, value in stored.items()}


def measure_agreement(expected: Sequence[Faces], found: Sequence[Faces]) -> Agreement:
    """Compare the results of two detectors, one `Faces` a photo from each.

    Faces are matched one to one in each photo, the pair of greatest overlap first.

    Raises
    ------
    InputError
        If `expected` has no face.
    """
    faces, others = sum(map(len, expected)), sum(map(len, found))
    if not faces:
        raise InputError("detector: expected photos with faces to compare on, but the FP32 detector found no face")
    shared, distances, sides = [], [], []
    for before, after in zip(expected, found, strict=True):
        for row, column, overlap in _match(before, after):
            shared.append(overlap)
            distances.append(np.linalg.norm(before.landmarks[row] - after.landmarks[column], axis=1))
            sides.append(distances[-1] / np.sqrt(np.prod(before.boxes[row, 2:] - before.boxes[row, :2])))
    known = bool(distances) and bool(np.isfinite(distances).all())
    return Agreement(
        photos=len(expected),
        faces=faces,
        recall=len(shared) / faces,
        precision=len(shared) / others if others else 0.0,
        median_iou=float(np.median(shared)) if shared else 0.0,
        landmark_pixels=float(np.median(distances)) if known else float("nan"),
        landmark_sides=float(np.median(sides)) if known else float("nan"),
    )


def judge_agreement(agreement: Agreement) -> tuple[str, ...]:
    """Return the reasons to refuse a compressed detector; empty if it is accepted."""
    recall, precision, sides = agreement.recall, agreement.precision, agreement.landmark_sides
    more = "" if agreement.faces >= _FEW else "; a single face decides among so few: use more photos"
    checks = (
        (
            recall < _RECALL,
            f"recall: expected at least {_RECALL:g} of FP32's {agreement.faces} faces, found {recall:.4f}{more}",
        ),
        (
            precision < _PRECISION,
            f"precision: expected at least {_PRECISION:g} of the faces to be FP32's too, found {precision:.4f}{more}",
        ),
        (
            sides > _LANDMARKS,
            f"landmarks: expected a median distance from FP32's of at most {_LANDMARKS:g} sides of the "
            f"face, found {sides:.4f}",
        ),
    )
    return tuple(reason for broken, reason in checks if broken)


def _match(before: Faces, after: Faces) -> list[tuple[int, int, float]]:
    overlap = overlaps(before.boxes, after.boxes)
    matched = []
    while overlap.size and overlap.max() >= _IOU:
        row, column = np.unravel_index(np.argmax(overlap), overlap.shape)
        matched.append((int(row), int(column), float(overlap[row, column])))
        overlap[row], overlap[:, column] = -1, -1
    return matched


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorOutcome:
    """Result of quantizing one detector; true if the networks were written, false if they were refused.

    Attributes
    ----------
    name, settings
        Name of the detector, and recipe as text.
    reasons
        Why it was refused; empty if it passed.
    files
        IRs of the quantized networks; empty if they were refused, and then nothing was written.
    agreement
        Agreement with FP32 on held-out photos; None if the photos were not usable for calibration.
    calibration_sha256
        SHA-256 of the batches that the networks were calibrated with.
    bytes_before, bytes_after
        Total sizes of the .bin files; 0 if nothing was quantized.
    unreadable
        Photos and folders that could not be read, and why.
    """

    name: str
    settings: str
    reasons: tuple[str, ...]
    files: tuple[Path, ...] = ()
    agreement: Agreement | None = None
    calibration_sha256: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    seconds: float = 0.0
    unreadable: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface quantize --as`."""
        return {
            "passed": bool(self),
            "detector": self.name,
            "files": [str(path) for path in self.files],
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
            "reasons": list(self.reasons),
            "unreadable": list(self.unreadable),
            "calibration_sha256": self.calibration_sha256,
            "settings": self.settings,
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "seconds": round(self.seconds, 3),
        }


def quantize_detector(
    name: DetectorName,
    model: Path | None,
    output: Path,
    photos: Sequence[Path] | Path,
    *,
    recipe: QuantizationRecipe | None = None,
    landmarks_model: Path | None = None,
    progress: ProgressCallback = ignore_progress,
) -> DetectorOutcome:
    """Quantize all networks of a detector and write them only if it finds the same faces.

    Parameters
    ----------
    name, model, landmarks_model
        See `load_detector`.
    output
        Folder for the IRs: pnet.xml, rnet.xml and onet.xml, or the file name of the model.
    photos
        Photos with faces, or their folder; a fifth is held out, the others calibrate.
    recipe, progress
        How to compress (`QuantizationRecipe.subset` counts photos); called as the work proceeds.

    Raises
    ------
    InputError
        If fewer than five photos can be read, or the held-out photos show no face.
    EdgeFaceError
        If the folder cannot be written; see also `load_detector` and `compress`.
    """
    recipe = recipe or QuantizationRecipe()
    networks = _networks(name, model, landmarks_model)
    for network in networks.values():
        check_recipe(network, recipe)
    if model is not None and output.resolve() == model.resolve().parent:
        raise InputError(f"{output}: the quantized model would replace {model.name}; choose another folder")
    failures: dict[Path, str] = {}
    if isinstance(photos, Path):
        found = list_photos([photos])
        photos, failures = found.files, found.failures
    calibrating, judging = _split(photos, recipe, failures)
    recipe = dataclasses.replace(recipe, subset=len(calibrating))
    batches: dict[str, list[np.ndarray]] = {}

    def record(label: str, batch: np.ndarray) -> None:
        kept = batches.setdefault(label, [])
        if len(kept) < _BATCHES and sum(each.size for each in kept) + batch.size <= _MOST_VALUES:
            kept.append(np.array(batch, np.float32))

    with stopwatch() as elapsed, staging_folder(output) as staging:
        with load_detector(name, model=model, landmarks_model=landmarks_model) as before:
            progress(Progress("FP32 faces", 0))
            expected = before.detect(judging)
        with load_detector(name, model=model, landmarks_model=landmarks_model, observe=record) as observed:
            seen = []
            for done, image in enumerate(calibrating, start=1):
                seen += observed.detect([image])
                progress(Progress("faces", done, len(calibrating), unit="photos"))
        outcome = DetectorOutcome(
            name=name,
            settings=recipe.settings,
            reasons=_flaws([*calibrating, *judging], [*seen, *expected]),
            seconds=elapsed(),
            unreadable=tuple(f"{path}: {why}" for path, why in failures.items()),
        )
        if outcome.reasons:
            return outcome
        quantized, digest = _compress(networks, batches, recipe, progress)
        names = {"model": model, "landmarks": landmarks_model}
        staged = {label: staging / f"{path.stem if (path := names.get(label)) else label}.xml" for label in quantized}
        half = recipe.method == "fp16"
        tried = staging / "tried"  # OpenVINO maps the files that it reads, so they cannot be overwritten
        tried.mkdir()
        bytes_before = sum(_save(network, tried / "fp32.xml") for network in networks.values())
        bytes_after = sum(_save(quantized[label], tried / f"{label}.xml", half=half) for label in staged)
        progress(Progress("quantized faces", 0))
        whole = tried if name == "mtcnn" else tried / "model.xml"
        landmarks = tried / "landmarks.xml" if "landmarks" in staged else None
        with load_detector(name, model=whole, landmarks_model=landmarks) as after:
            agreement = measure_agreement(expected, after.detect(judging))
        reasons = judge_agreement(agreement)
        about = {
            "detector": name,
            "method": recipe.method,
            "settings": recipe.settings,
            "calibration_sha256": digest,
            "recall": f"{agreement.recall:.6f}",
            "landmark_pixels": f"{agreement.landmark_pixels:.6f}",
        }
        for label, path in staged.items():
            quantized[label].set_rt_info(about, "edgeface_detector")
            _save(quantized[label], path, half=half)
        return dataclasses.replace(
            outcome,
            files=() if reasons else tuple(publish_ir(path, output) for path in staged.values()),
            agreement=agreement,
            reasons=reasons,
            calibration_sha256=digest,
            bytes_before=bytes_before,
            bytes_after=bytes_after,
            seconds=elapsed(),
        )


def _compress(
    networks: Mapping[str, ov.Model],
    records: Mapping[str, Sequence[np.ndarray]],
    recipe: QuantizationRecipe,
    progress: ProgressCallback,
) -> tuple[dict[str, ov.Model], str]:
    """Compress each network on its recorded batches; also return the SHA-256 of all batches."""
    digest, made = hashlib.sha256(), {}
    for label, network in networks.items():
        batches = records.get(label, ())
        for batch in batches:
            digest.update(repr(batch.shape).encode() + np.ascontiguousarray(batch).tobytes())
        used = dataclasses.replace(recipe, subset=max(1, len(batches)))
        made[label] = compress(network, batches, used, progress=progress)
    return made, digest.hexdigest()


def _flaws(images: Sequence[Image], found: Sequence[Faces]) -> tuple[str, ...]:
    """Check the photos with `find_flaws`, by the largest face of each."""
    crops = [
        align(image, faces.boxes[best], faces.landmarks[best], _FACE, (96, 96))
        for image, faces in zip(images, found, strict=True)
        if len(faces)
        for best in [faces.largest(image.shape[:2])]
    ]
    none = np.empty((0, 96, 96, 3), np.uint8)
    without = ("",) * (len(images) - len(crops))
    known = CalibrationSet(crops=np.stack(crops) if crops else none, held_out=none, names=(), without_face=without)
    return tuple(flaw.reason for flaw in find_flaws(known))


def _split(
    photos: Sequence[Path], recipe: QuantizationRecipe, failures: dict[Path, str]
) -> tuple[list[Image], list[Image]]:
    readable = []
    for path in sorted(photos):
        try:
            readable.append(read_image(path))
        except ImageError as error:
            failures[path] = str(error).removeprefix(f"{path}: ")
    if len(readable) < 5:
        raise InputError(f"calibration: expected at least 5 photos with faces, found {len(readable)}")
    order = np.random.default_rng(recipe.seed).permutation(len(readable))
    judges = max(1, len(readable) // 5)
    shuffled = [readable[index] for index in order]
    return shuffled[judges:][: recipe.subset], shuffled[:judges]


def _networks(name: DetectorName, model: Path | None, landmarks_model: Path | None) -> dict[str, ov.Model]:
    if name == "mtcnn":
        weights = load_weights(model)
        return {label: build_net(label, weights) for label in ("pnet", "rnet", "onet")}
    if model is None:
        raise InputError(f"detector {name}: give the path of its model")
    networks = {"model": read_network(model)}
    if name == "retail-0004" and landmarks_model is not None:
        networks["landmarks"] = read_network(landmarks_model)
    return networks


def _save(network: ov.Model, path: Path, *, half: bool = False) -> int:
    """Write an IR and return the size of its .bin."""
    with output_errors(path):
        try:
            ov.save_model(network, path, compress_to_fp16=half)
        except RuntimeError as error:
            raise ConversionError(f"{path}: OpenVINO could not write the IR: {error}") from error
    return path.with_suffix(".bin").stat().st_size
