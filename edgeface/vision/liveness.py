"""Judge whether a face is live, or a photo or screen that is held before the camera (presentation attack detection).

Two networks look at the surroundings of the face, each in a crop of its own scale. What they need is in their contracts
(`edgeface.model.liveness_contract`). Crops and fusion are those of minivision-ai/Silent-Face-Anti-Spoofing
(`src/generate_patches.py`, `test.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, FaceError, InferenceError, InputError
from edgeface.files import Closing
from edgeface.model.ir_file import check_weights, read_liveness_contract
from edgeface.model.liveness_contract import LIVE, LivenessContract
from edgeface.runtime.engine import Engine, compile_engine
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image
from edgeface.vision.networks import check_images, repeatable_plan
from edgeface.vision.quality import QualityGate, measure_quality

LivenessVerdict = Literal["live", "spoof", "inconclusive"]
Box = NDArray[np.floating]

_REQUESTS = 2
"""Infer requests of each network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessLimits:
    """What a face must have to be judged; one that lacks it is inconclusive, never live.

    Attributes
    ----------
    min_scale
        Least side of a crop in sides of the face. A crop that is larger than the frame has a smaller scale than its
        model was made for: of 70 live faces of a video and photos, 69 were live with room for 4 sides, 66 with 2.7,
        53 with 2 and 22 with 1.2. The default is the least scale of upstream's own samples. The largest scale of the
        models, 4, refuses every face that is larger than a quarter of the frame.
    quality
        Limits of size, light, pose and of the share of the face inside the frame.
    """

    min_scale: float = 1.9
    quality: QualityGate = field(
        default_factory=lambda: QualityGate(min_box_side=64, min_brightness=40, min_inside=0.9)
    )

    def __post_init__(self) -> None:
        if not self.min_scale >= 1:
            raise InputError(f"liveness: min_scale: expected 1 or more sides of the face, found {self.min_scale}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Answer for one face; true if it is live, and for nothing else.

    Attributes
    ----------
    verdict
        ``live``: the score exceeds the threshold. ``spoof``: it does not. ``inconclusive``: the face or the frame does
        not fulfil the limits, as `reasons` says.
    score
        Probability that the face is live, the mean over the models, 0 to 1.
    threshold
        What the score has to exceed.
    scores
        The mean over the models for each class; empty if nothing was computed.
    reasons
        Why the answer is inconclusive; empty otherwise.
    contract_ids
        Of the models.
    """

    verdict: LivenessVerdict
    score: float
    threshold: float
    scores: dict[str, float]
    reasons: tuple[str, ...]
    contract_ids: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.verdict == "live"

    def __repr__(self) -> str:
        why = f", {'; '.join(self.reasons)}" if self.reasons else ""
        return f"Liveness({self.verdict}, score {self.score:.4f}, threshold {self.threshold:g}{why})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return dataclasses.asdict(self) | {"reasons": list(self.reasons), "contract_ids": list(self.contract_ids)}


def crop_region(box: Box, image_size: tuple[int, int], scale: float) -> tuple[tuple[slice, slice], float]:
    """Place a crop of `scale` sides of the face around it.

    A crop that reaches beyond the frame is moved inside. One that is larger than the frame, in either direction, gets
    the largest scale that fits, in both.

    Parameters
    ----------
    box : (4,) float
        x0, y0, x1, y1 in pixels of the frame.
    image_size
        (height, width) of the frame in pixels.
    scale
        Wanted sides of the crop in sides of the box.

    Returns
    -------
    region
        Rows and columns of the frame.
    scale
        In effect.

    Raises
    ------
    FaceError
        If the box has no area, or is not finite.

    Examples
    --------
    >>> crop_region(np.array([0, 0, 20, 30]), (240, 320), 4.0)
    ((slice(0, 121, None), slice(0, 81, None)), 4.0)
    """
    x0, y0, x1, y1 = map(float, box)
    width, height = x1 - x0, y1 - y0
    if not (np.isfinite([x0, y0, x1, y1]).all() and width > 0 and height > 0):
        raise FaceError(f"expected a box with an area, found {[x0, y0, x1, y1]}")
    scale = min(scale, (image_size[0] - 1) / height, (image_size[1] - 1) / width)
    rows = _place((y0 + y1) / 2, height * scale, image_size[0] - 1)
    return (rows, _place((x0 + x1) / 2, width * scale, image_size[1] - 1)), scale


def _place(centre: float, side: float, last: int) -> slice:
    """Return a side of the crop, moved between pixels 0 and `last`; both ends are cut to whole pixels, and inside."""
    low, high = centre - side / 2, centre + side / 2
    if low < 0:
        low, high = 0.0, high - low
    if high > last:
        low, high = low - high + last, float(last)
    return slice(max(0, int(low)), int(high) + 1)


class LivenessChecker(Closing):
    """Judges faces with all its models. Made by `load_liveness`; a context manager; safe to call from threads.

    Parameters
    ----------
    models
        Files (.xml) of IRs with a liveness contract and the same classes.
    device
        An OpenVINO device.
    threshold
        Probability that a live face has to exceed, 0.5 or more: then no other class is likelier.
    limits
        What a face needs to be judged.

    Raises
    ------
    InputError
        If there is no model, one twice, or the threshold is out of range.
    ModelFormatError, ContractError
        If a file is no IR with a liveness contract, is damaged, or the models have different classes.
    DeviceError
        If the device is absent or cannot compile the models.
    """

    def __init__(
        self,
        models: Sequence[Path],
        *,
        device: str = "CPU",
        threshold: float = 0.5,
        limits: LivenessLimits | None = None,
    ) -> None:
        if not 0.5 <= threshold < 1:
            raise InputError(f"liveness: threshold: expected 0.5 or more and less than 1, found {threshold}")
        self.threshold, self.limits = float(threshold), limits or LivenessLimits()
        networks = [read_liveness_contract(path) for path in models]
        self.contracts: tuple[LivenessContract, ...] = tuple(contract for _, contract in networks)
        if not networks or len(set(self.contract_ids)) < len(networks):
            raise InputError(f"liveness: expected different models, at least one, found {list(map(str, models))}")
        if len({contract.classes for contract in self.contracts}) > 1:
            found = " and ".join(f"{each.name} {each.classes}" for each in self.contracts)
            raise ContractError(f"liveness: expected models of the same classes, found {found}")
        for path, contract in zip(models, self.contracts, strict=True):
            check_weights(path, contract)
        plan = repeatable_plan(device)
        self._engines: list[Engine] = []
        try:
            for model, contract in networks:
                model.reshape(list(contract.input_shape(1)))
                self._engines.append(compile_engine(model, plan, requests=_REQUESTS))
        except BaseException:
            self.close()
            raise

    @property
    def contract_ids(self) -> tuple[str, ...]:
        """Ids of the models' contracts."""
        return tuple(contract.contract_id for contract in self.contracts)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, of which ``live`` is one."""
        return self.contracts[0].classes

    def score(self, image: Image, boxes: Box) -> NDArray[np.float32]:
        """Compute each model's probabilities for each face, whatever the limits say.

        Parameters
        ----------
        image : (H, W, 3) uint8, BGR, 0-255
            The whole frame, not a crop: the models look at what is around a face.
        boxes : (N, 4) float
            x0, y0, x1, y1 in pixels of the frame.

        Returns
        -------
        (N, M, C) float32
            Of M models and C classes.

        Raises
        ------
        InputError
            If the image is not of that type.
        FaceError
            If a box has no area.
        InferenceError, EngineClosed
            If the device failed, or the checker is closed.
        """
        check_images([image])
        futures = [
            engine.submit(cut_crop(image, box, contract))
            for box in boxes
            for contract, engine in zip(self.contracts, self._engines, strict=True)
        ]
        found = np.array([future.result() for future in futures], np.float32)
        if not np.isfinite(found).all():
            raise InferenceError("liveness: the device returned numbers that are not finite")
        return found.reshape(len(boxes), len(self.contracts), len(self.classes))

    def check(self, image: Image, faces: Faces) -> list[Liveness]:
        """Judge the faces of one frame, in their order; parameters and errors as for `score`."""
        check_images([image])
        reasons = [self._find_reasons(image, faces, index) for index in range(len(faces))]
        scored = [index for index, why in enumerate(reasons) if why is not None]
        means = iter(self.score(image, faces.boxes[scored]).mean(axis=1).tolist())
        return [self._judge([] if why is None else next(means), why) for why in reasons]

    def _find_reasons(self, image: Image, faces: Faces, index: int) -> tuple[str, ...] | None:
        """Return what makes a face inconclusive; None if it cannot be scored at all."""
        box, landmarks = faces.boxes[index], faces.landmarks[index]
        size = (image.shape[0], image.shape[1])
        try:
            quality = measure_quality(image, box, landmarks)
            scale = min(crop_region(box, size, each.crop_scale)[1] for each in self.contracts)
        except FaceError:
            return None
        reasons = [str(reason) for reason in self.limits.quality.check(quality).reasons]
        if scale < min(self.limits.min_scale, max(each.crop_scale for each in self.contracts)):
            reasons.append(
                f"face too large for the frame: expected room for {self.limits.min_scale:g} times its sides, found "
                f"{scale:.2f}; step back"
            )
        if not np.isfinite(landmarks).all():
            reasons.append("pose: expected landmarks, found none; use a detector that finds them")
        return tuple(reasons)

    def _judge(self, means: list[float], reasons: tuple[str, ...] | None) -> Liveness:
        scores = dict(zip(self.classes, means, strict=True)) if means else {}
        score = scores.get(LIVE, 0.0)
        if reasons is None:
            reasons = ("box: expected a face inside the frame, found none",)
        return Liveness(
            verdict="inconclusive" if reasons else "live" if score > self.threshold else "spoof",
            score=score,
            threshold=self.threshold,
            scores=scores,
            reasons=reasons,
            contract_ids=self.contract_ids,
        )

    def close(self) -> None:
        """Free the models; checking then raises `EngineClosed`, and closing again does nothing."""
        for engine in self._engines:
            engine.close()


def cut_crop(image: Image, box: Box, contract: LivenessContract) -> NDArray[np.float32]:
    """Cut out the crop of a face, (3, H, W) float32 in the form that every liveness contract has: BGR, raw 0-255.

    Raises FaceError if the box has no area.
    """
    region, _ = crop_region(box, (image.shape[0], image.shape[1]), contract.crop_scale)
    height, width = contract.input_size
    crop = cv2.resize(image[region], (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(crop.transpose(2, 0, 1), np.float32)


def load_liveness(
    models: Path | Sequence[Path], *, device: str = "CPU", threshold: float = 0.5, limits: LivenessLimits | None = None
) -> LivenessChecker:
    """Load liveness models; see `LivenessChecker`. A folder stands for all .xml files in it."""
    if isinstance(models, Path):
        models = sorted(models.glob("*.xml")) if models.is_dir() else [models]
    return LivenessChecker(models, device=device, threshold=threshold, limits=limits)
