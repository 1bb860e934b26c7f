"""A detector and photographs in; its networks in 8 bits out, if boxes and landmarks stay where they were.

A detector has no contract, and its networks see what the ones before them let through. So it runs as it is on the
calibration photographs while every batch that reaches a network is kept; the networks are quantized on those, put
into another instance of the same detector, and the two are compared on photographs that were held out.
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
from edgeface.quantize.agreement import Agreement, judge_agreement, measure_agreement
from edgeface.quantize.calibration import CalibrationSet as Calibration
from edgeface.quantize.calibration_checks import find_flaws
from edgeface.quantize.compress import Progress, check_recipe, compress
from edgeface.quantize.compress import QuantizationRecipe as Recipe
from edgeface.vision.align import align
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image, read_image
from edgeface.vision.load import DetectorName, load_detector
from edgeface.vision.mtcnn_nets import build_net, load_weights
from edgeface.vision.networks import read_network

__all__ = ["DetectorOutcome", "quantize_detector"]

_FACE = Alignment("mtcnn-box-margin", 0)
_BATCHES = 300
"""Batches kept a network, at most."""
_MOST_VALUES = 1 << 27
"""Values of all batches kept a network, at most: half a gigabyte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorOutcome:
    """What became of one detector.

    Attributes
    ----------
    name
        Which one.
    files
        The quantized networks; empty if they were refused, and then nothing was written.
    agreement
        With FP32, on photographs that were held out; None if the photographs were not fit to calibrate with.
    reasons
        Why it was refused; empty if it passed.
    calibration_sha256
        Over the batches that each network was calibrated with.
    settings
        How.
    bytes_before, bytes_after
        Of all .bin files together; 0 where nothing was quantized.
    seconds
        Wall time.
    """

    name: str
    files: tuple[Path, ...]
    agreement: Agreement | None
    reasons: tuple[str, ...]
    calibration_sha256: str
    settings: str
    bytes_before: int
    bytes_after: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the networks were written."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: the answer of `edgeface quantize --as`."""
        return {
            "passed": self.passed,
            "detector": self.name,
            "files": [str(path) for path in self.files],
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
            "reasons": list(self.reasons),
            "calibration_sha256": self.calibration_sha256,
            "settings": self.settings,
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "seconds": round(self.seconds, 3),
        }


def quantize_detector(
    name: DetectorName,
    model: Path | None,
    output: Path,
    photos: Sequence[Path],
    *,
    recipe: Recipe | None = None,
    landmarks_model: Path | None = None,
    progress: Progress | None = None,
) -> DetectorOutcome:
    """Quantize every network of a detector, and write them only if it finds the same faces.

    Parameters
    ----------
    name, model, landmarks_model
        As `load_detector` takes them.
    output
        Folder for the IRs: pnet.xml, rnet.xml and onet.xml, or the model's own name.
    photos
        With faces; a fifth of them judges, the others calibrate.
    recipe
        How; `Recipe.subset` counts photographs.
    progress
        Called with what is going on.

    Raises
    ------
    InputError
        If fewer than five photographs can be read, or no face is found in those that judge.
    OutputError
        If the folder cannot be written.
    EdgeFaceError
        As `load_detector` and `compress`.
    """
    tell: Progress = progress or (lambda what, done, total: None)
    recipe = recipe or Recipe()
    networks = _networks(name, model, landmarks_model)
    for network in networks.values():
        check_recipe(network, recipe)
    if model is not None and output.resolve() == model.resolve().parent:
        raise InputError(f"{output}: the quantized model would replace {model.name}; choose another folder")
    calibrating, judging = _split(photos, recipe)
    recipe = dataclasses.replace(recipe, subset=len(calibrating))
    recorder = _Recorder()
    with stopwatch() as elapsed, staging_folder(output) as staging:
        with load_detector(name, model=model, landmarks_model=landmarks_model) as before:
            tell("FP32 faces", 0, 0)
            expected = before.detect(judging)
        with load_detector(
            name, model=model, landmarks_model=landmarks_model, observe=recorder.keep
        ) as observed:
            seen = []
            for done, image in enumerate(calibrating, start=1):
                seen += observed.detect([image])
                tell("faces", done, len(calibrating))
        outcome = DetectorOutcome(
            name=name,
            files=(),
            agreement=None,
            reasons=_flaws([*calibrating, *judging], [*seen, *expected]),
            calibration_sha256="",
            settings=recipe.settings,
            bytes_before=0,
            bytes_after=0,
            seconds=elapsed(),
        )
        if outcome.reasons:
            return outcome
        quantized, digest = _compress(networks, recorder.batches, recipe, progress)
        names = {"model": model, "landmarks": landmarks_model}
        staged = {
            label: staging / f"{path.stem if (path := names.get(label)) else label}.xml"
            for label in quantized
        }
        half = recipe.method == "fp16"
        tried = staging / "tried"  # OpenVINO maps the files it reads: they are not written again
        tried.mkdir()
        bytes_before = sum(_save(network, tried / "fp32.xml") for network in networks.values())
        bytes_after = sum(_save(quantized[label], tried / f"{label}.xml", half=half) for label in staged)
        tell("quantized faces", 0, 0)
        with load_detector(
            name,
            model=tried if name == "mtcnn" else tried / "model.xml",
            landmarks_model=tried / "landmarks.xml" if "landmarks" in staged else None,
        ) as after:
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
    recipe: Recipe,
    progress: Progress | None,
) -> tuple[dict[str, ov.Model], str]:
    """Compress each network on the batches that reached it; also give the SHA-256 over all of them."""
    digest, made = hashlib.sha256(), {}
    for label, network in networks.items():
        batches = records.get(label, ())
        for batch in batches:
            digest.update(repr(batch.shape).encode() + np.ascontiguousarray(batch).tobytes())
        used = dataclasses.replace(recipe, subset=max(1, len(batches)))
        made[label] = compress(network, batches, used, progress=progress)
    return made, digest.hexdigest()


def _flaws(images: Sequence[Image], found: Sequence[Faces]) -> tuple[str, ...]:
    """Say what is wrong with photographs by the faces in them, one each: `find_flaws`."""
    crops = [
        align(image, faces.boxes[best], faces.landmarks[best], _FACE, (96, 96))
        for image, faces in zip(images, found, strict=True)
        if len(faces)
        for best in [faces.largest(image.shape[:2])]
    ]
    known = Calibration(
        crops=np.stack(crops) if crops else np.empty((0, 96, 96, 3), np.uint8),
        held_out=np.empty((0, 96, 96, 3), np.uint8),
        names=(),
        without_face=("",) * (len(images) - len(crops)),
    )
    return tuple(flaw.reason for flaw in find_flaws(known))


class _Recorder:
    """Keeps a copy of the batches that reach each network, up to a limit."""

    def __init__(self) -> None:
        self.batches: dict[str, list[np.ndarray]] = {}

    def keep(self, label: str, batch: np.ndarray) -> None:
        kept = self.batches.setdefault(label, [])
        if len(kept) < _BATCHES and sum(each.size for each in kept) + batch.size <= _MOST_VALUES:
            kept.append(np.array(batch, np.float32))


def _split(photos: Sequence[Path], recipe: Recipe) -> tuple[list[Image], list[Image]]:
    readable = []
    for path in sorted(photos):
        try:
            readable.append(read_image(path))
        except ImageError:
            continue  # a folder of photographs may hold other files
    if len(readable) < 5:
        raise InputError(f"calibration: expected at least 5 photographs with faces, found {len(readable)}")
    order = np.random.default_rng(recipe.seed).permutation(len(readable))
    judges = max(1, len(readable) // 5)
    shuffled = [readable[index] for index in order]
    return shuffled[judges:][: recipe.subset], shuffled[:judges]


def _networks(name: DetectorName, model: Path | None, landmarks_model: Path | None) -> dict[str, ov.Model]:
    if name == "mtcnn":
        weights = load_weights(model)
        return {label: build_net(label, weights) for label in ("pnet", "rnet", "onet")}
    if model is None:
        raise InputError(f"detector {name}: expected the path of its model, found none")
    networks = {"model": read_network(model)}
    if name == "retail-0004" and landmarks_model is not None:
        networks["landmarks"] = read_network(landmarks_model)
    return networks


def _save(network: ov.Model, path: Path, *, half: bool = False) -> int:
    """Write an IR; return the bytes of its .bin."""
    with output_errors(path):
        try:
            ov.save_model(network, path, compress_to_fp16=half)
        except RuntimeError as error:
            raise ConversionError(f"{path}: OpenVINO could not write the IR: {error}") from error
    return path.with_suffix(".bin").stat().st_size
