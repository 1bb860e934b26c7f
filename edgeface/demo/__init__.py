"""Name people in photos with a real model, convert the published FaceNet, and write one HTML report."""

from __future__ import annotations

import base64
import functools
import importlib.util
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeface.convert import ConversionResult, check_parity, convert
from edgeface.demo.facenet import (
    MODEL,
    ComparedPair,
    DemoTiming,
    WeightsSource,
    compare_pairs,
    find_weights,
    golden_pairs,
    time_one_face,
)
from edgeface.demo.people import Recognition, find_photos, recognise
from edgeface.drawing import write_page
from edgeface.errors import MissingError
from edgeface.files import require_writable
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.vision.image import Image
from edgeface.zoo.default import default_name, has_default, keep_ir
from edgeface.zoo.store import ModelStore


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Result of `run_demo`.

    Attributes
    ----------
    recognition
        Who is in the photos; None where no real model or no photos could be had, and `missing` says why.
    source, conversion, compared, timing
        Of the published FaceNet: its weights, its IR, pairs of real faces (none without the real data), its speed.
    """

    recognition: Recognition | None
    missing: str
    source: WeightsSource
    conversion: ConversionResult
    compared: tuple[ComparedPair, ...]
    timing: DemoTiming
    report: Path

    def __bool__(self) -> bool:
        return bool(self.recognition)

    @property
    def exit_code(self) -> int:
        """0 if every face was named right, 1 if not, 3 if there was no model or no photo to do it with."""
        return 3 if self.recognition is None else int(not self)

    @property
    def separation(self) -> tuple[float, float] | None:
        """Lowest similarity of a same-person pair and highest of a two-person pair; None without real pairs."""
        same = [each.similarity for each in self.compared if each.relation == "same person"]
        different = [each.similarity for each in self.compared if each.relation == "different people"]
        return (min(same), max(different)) if same and different else None

    @property
    def next_commands(self) -> tuple[str, ...]:
        """What to type next, as it can be pasted into a shell."""
        activate = Path(sys.prefix, "bin", "activate")
        first = () if shutil.which("edgeface") or not activate.is_file() else (f". {shlex.quote(str(activate))}",)
        if self.recognition is None:
            return (*first, "edgeface doctor")
        gallery, door = (shlex.quote(str(path)) for path in (self.recognition.gallery, self.recognition.door))
        return (
            *first,
            f"edgeface identify {door} --gallery {gallery}",
            f"edgeface gallery enrol {gallery} MY-PEOPLE/   # one folder of photos for each person",
            "edgeface verify ONE.jpg ANOTHER.jpg",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        contract, parity = self.conversion.contract, self.conversion.parity
        return {
            "recognition": None if self.recognition is None else self.recognition.to_dict(),
            "missing": self.missing,
            "model": MODEL,
            "provenance": contract.provenance,
            "origin": self.source.origin,
            "tried": list(self.source.tried),
            "ir": str(self.conversion.ir),
            "contract_id": contract.contract_id,
            "conversion_seconds": round(self.conversion.seconds, 3),
            "parity": parity.to_dict() if parity is not None else None,
            "pairs": [{"relation": each.relation, "similarity": round(each.similarity, 6)} for each in self.compared],
            "latency_ms": {"p50": round(self.timing.median_ms, 3), "p90": round(self.timing.p90_ms, 3)},
            "gflops": round(self.timing.gflops, 4),
            "gflops_per_second": round(self.timing.gflops_per_second, 1),
            "report": str(self.report),
        }


def run_demo(
    output_dir: Path,
    *,
    data: Path | None = None,
    mirror: str | None = None,
    offline: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: ProgressCallback = ignore_progress,
) -> DemoResult:
    """Convert FaceNet 20180408-102900, enrol two people and name them in other photos, and write a report.

    People are named with the default model: FaceNet where its published weights could be had, which then becomes the
    default unless one is set, else dlib's (extra `demo`). Photos are those of `find_photos`.

    The FaceNet IR, the photos, a gallery and ``report.html`` go into `output_dir`, made if absent. `data` is a folder
    of real data (EDGEFACE_DATA); the other parameters are those of `find_weights`.

    Raises InputError if only a seeded FaceNet can be made and `output_dir` has one that is not seeded.
    """
    require_writable(output_dir)
    with tempfile.TemporaryDirectory(prefix="edgeface-demo-") as scratch:
        source = find_weights(
            Path(scratch),
            replaces=output_dir / f"{MODEL}.xml",
            data=data,
            mirror=mirror,
            offline=offline,
            say=say,
            progress=progress,
        )
        golden = data / MODEL / "golden.npz" if data and source.provenance == "published" else None
        golden = golden if golden and golden.is_file() else None
        can_compare = golden is not None or importlib.util.find_spec("tensorflow") is not None
        say(f"converting {MODEL}, with weights from {source.origin}")
        conversion = convert(
            source.model,
            output_dir,
            name=MODEL,
            parity=functools.partial(check_parity, golden=golden) if can_compare else None,
        )
    before = default_name()
    if source.provenance == "published" and not has_default() and ModelStore().find_ir(MODEL) is None:
        keep_ir(conversion.ir)
    if default_name() == MODEL != before:
        say(f"{MODEL} is now the default; show it with: edgeface zoo default")
    recognition, missing = None, ""
    try:
        photos = find_photos(output_dir / "photos", data=data, offline=offline, say=say)
        recognition = recognise(photos, output_dir, say=say)
    except MissingError as error:
        missing = str(error)
        say(f"nobody can be named: {missing}")
    say("timing")
    result = DemoResult(
        recognition,
        missing,
        source,
        conversion,
        compare_pairs(conversion.ir, golden_pairs(data)),
        time_one_face(conversion),
        output_dir / "report.html",
    )
    contracts = [("FaceNet's contract", conversion.contract)]
    if recognition is not None and recognition.contract != conversion.contract:
        contracts.insert(0, ("The contract of the model that names people", recognition.contract))
    write_page(
        result.report,
        "edgeface.demo",
        template="demo.html.j2",
        filters={
            "picture": _jpeg,
            "small": lambda photo: _jpeg(_shrunk(photo, 320)),
            "crop": lambda crop: _jpeg(crop[..., ::-1]),
        },
        result=result,
        named=recognition,
        threshold_from="" if recognition is None else recognition.threshold_origin,
        contracts=contracts,
        contract=conversion.contract,
        parity=conversion.parity,
        timing=result.timing,
        separation=result.separation,
        seeded=conversion.contract.provenance == "seeded",
    )
    return result


def _shrunk(photo: Image, width: int) -> Image:
    height = round(photo.shape[0] * width / photo.shape[1])
    return np.asarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _jpeg(image: Image) -> str:
    """Encode a BGR image as a data URI."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
