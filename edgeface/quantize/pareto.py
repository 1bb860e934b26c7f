"""An FP32 IR, calibration faces and labelled pairs in; what each precision is worth beside the others out.

A precision is worth having if no other beats it: is better in one of accuracy, latency, throughput and size, and
worse in none (Pareto, Manuale di economia politica, 1906). What is measured counts as different only where it shows:

- accuracy, if it differs by more than `SAME_ACCURACY` or McNemar's exact test on the same pairs says so at 5 %;
- latency and throughput, if one was the faster in every round (`compare_rounds`);
- size, if it differs by more than `SAME_SIZE`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.bench.machine.disturbance import Disturbance, watch
from edgeface.errors import InputError, NegativeResult
from edgeface.evaluate.faces import Boxes, FaceCutter, find_images
from edgeface.evaluate.lfw import DEFAULTS
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.protocol import ProtocolName
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import read_ir
from edgeface.model.lineage import Method
from edgeface.quantize.calibration import CalibrationSet
from edgeface.quantize.compress import Progress, QuantizationRecipe
from edgeface.quantize.fidelity import Fidelity
from edgeface.quantize.gate import QuantizationLimits
from edgeface.quantize.quantizer import quantize
from edgeface.quantize.timing import Timed, compare_rounds, time_in_turn
from edgeface.quantize.verification import VerificationChange, compare_verification
from edgeface.runtime import Embedder, default_plan
from edgeface.runtime.devices import read_property
from edgeface.vision.detector import Detector

__all__ = ["FP32", "METHODS", "SAME_ACCURACY", "Pareto", "Row", "find_beaten", "measure_pareto"]

FP32 = "fp32"
METHODS: tuple[Method, ...] = ("fp16", "int8-mixed", "int8-performance", "weights")
"""What FP32 is compared with, all of `edgeface.model.lineage.Method`."""

SAME_ACCURACY = 0.001
"""Difference of accuracies that is none: the gate's limit."""

SAME_SIZE = 0.01
"""Share of a file's size that is no difference: names and the text of the .xml."""

_SIGNIFICANT = 0.05
_BLOCK = 32
"""Faces that are cut before each model embeds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One precision.

    Attributes
    ----------
    name
        ``fp32`` or a `Method`.
    ir, contract_id, file_bytes
        Its IR; the size is that of .xml and .bin.
    timed
        How fast it is.
    fidelity
        Embeddings of held-out faces against FP32's; None for FP32 itself.
    accuracy
        On the labelled pairs.
    verification
        Against FP32 on the same pairs; None for FP32 itself.
    beaten_by
        Precisions that are better in something and worse in nothing; empty for a Pareto-optimal one.
    """

    name: str
    ir: Path
    contract_id: str
    file_bytes: int
    timed: Timed
    fidelity: Fidelity | None
    accuracy: float
    verification: VerificationChange | None
    beaten_by: tuple[str, ...] = ()

    @property
    def optimal(self) -> bool:
        """Whether nothing beats it."""
        return not self.beaten_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Pareto:
    """All precisions of one model, measured in one run.

    Attributes
    ----------
    contract
        Of the FP32 IR.
    rows
        FP32 first.
    pairs, protocol, faces
        What accuracy was measured on: how many pairs, by whose protocol, and what found the faces.
    device
        Name by its maker.
    openvino
        Version.
    rounds, seconds
        Of the timing.
    disturbance
        What else the machine did meanwhile.
    """

    contract: ModelContract
    rows: tuple[Row, ...]
    pairs: int
    protocol: str
    faces: str
    device: str
    openvino: str
    rounds: int
    seconds: float
    disturbance: Disturbance

    def ratios(self, row: Row) -> dict[str, float]:
        """Latency, throughput, CPU time and size of a row by FP32's: medians of the ratios within a round."""
        base = self.rows[0]

        def ratio(a: Sequence[float], b: Sequence[float]) -> float:
            return statistics.median(x / y for x, y in zip(a, b, strict=True))

        together, fp32 = row.timed.together, base.timed.together
        return {
            "latency": ratio(row.timed.alone.milliseconds, base.timed.alone.milliseconds),
            "throughput": ratio(fp32.milliseconds, together.milliseconds),
            "cpu_time": ratio(together.cpu_milliseconds, fp32.cpu_milliseconds),
            "file": row.file_bytes / base.file_bytes,
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: pareto.json."""
        return {
            "schema": "edgeface.pareto/1",
            "model": self.contract.name,
            "contract_id": self.contract.contract_id,
            "provenance": self.contract.provenance,
            "pairs": self.pairs,
            "protocol": self.protocol,
            "faces": self.faces,
            "device": self.device,
            "openvino": self.openvino,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "disturbed": self.disturbance.disturbed,
            "disturbances": list(self.disturbance.reasons),
            "optimal": [row.name for row in self.rows if row.optimal],
            "rows": [
                {
                    "precision": row.name,
                    "ir": str(row.ir),
                    "contract_id": row.contract_id,
                    "file_bytes": row.file_bytes,
                    "accuracy": row.accuracy,
                    "verification": row.verification and row.verification.to_dict(),
                    "fidelity": row.fidelity and row.fidelity.to_dict(),
                    **row.timed.to_dict(),
                    "ratios": self.ratios(row),
                    "optimal": row.optimal,
                    "beaten_by": list(row.beaten_by),
                }
                for row in self.rows
            ],
        }


def measure_pareto(
    ir: Path,
    output: Path,
    calibration: CalibrationSet,
    *,
    images: Path,
    pairs: Pairs,
    boxes: Boxes | None = None,
    detector: Detector | None = None,
    faces: str = "",
    methods: Sequence[Method] = METHODS,
    protocol: ProtocolName = ProtocolName.facenet,
    recipe: QuantizationRecipe | None = None,
    rounds: int = 7,
    seconds: float = 1.0,
    device: str = "CPU",
    progress: Progress | None = None,
) -> Pareto:
    """Compress an IR in every way, and measure all of them on the same faces and in the same rounds.

    Parameters
    ----------
    ir
        FP32, with a contract.
    output
        Folder for the compressed IRs, each in a folder named after its method. They have passed no gate.
    calibration
        Crops for this contract; see `edgeface.quantize.calibration.gather`.
    images, pairs
        Labelled pairs, and the folder that their names are relative to.
    boxes, detector, faces
        As for `edgeface.evaluate.evaluate_model`.
    methods
        What to compare FP32 with.
    protocol
        Whose folds and settings.
    recipe
        All but its method is used.
    rounds, seconds
        As for `time_in_turn`.
    device
        OpenVINO device.
    progress
        Called with what is going on.

    Raises
    ------
    InputError
        If nothing or something unknown is to be compared, or the inputs do not fit.
    NegativeResult
        If the calibration faces are not fit to calibrate with.
    """
    if unknown := [each for each in methods if each not in get_args(Method)]:
        raise InputError(f"precisions: expected some of {', '.join(METHODS)}, found {', '.join(unknown)}")
    if not methods:
        raise InputError(f"precisions: expected at least one of {', '.join(METHODS)}, found none")
    files = find_images(images, pairs.images)
    models = {FP32: ir}
    fidelities: dict[str, Fidelity] = {}
    for method in dict.fromkeys(methods):
        models[method], fidelities[method] = _compress(
            ir, output / method, calibration, method, recipe, progress
        )
    contracts = {
        name: ModelContract.read_from(read_ir(path), source=str(path)) for name, path in models.items()
    }
    cutter = FaceCutter(files, pairs.images, contracts[FP32], boxes=boxes, detector=detector)
    vectors = _embed_all(models, cutter, device, progress)

    def compare(first: str, second: str) -> VerificationChange:
        return compare_verification(
            vectors[first], vectors[second], pairs, protocol=protocol, settings=DEFAULTS[protocol]
        )

    verified = {(a, b): compare(a, b) for a, b in itertools.combinations(models, 2)}
    accuracies = {FP32: verified[FP32, methods[0]].accuracy.before}
    accuracies |= {method: verified[FP32, method].accuracy.after for method in methods}
    with watch() as watched:
        timed = time_in_turn(models, rounds=rounds, seconds=seconds, device=device, progress=progress)
    sizes = {
        name: path.stat().st_size + path.with_suffix(".bin").stat().st_size for name, path in models.items()
    }

    def better(first: str, second: str) -> tuple[int, ...]:
        return (
            _by_accuracy(verified[first, second]),
            compare_rounds(timed[first].alone.milliseconds, timed[second].alone.milliseconds),
            compare_rounds(timed[first].together.milliseconds, timed[second].together.milliseconds),
            _by_size(sizes[first], sizes[second]),
        )

    beaten = find_beaten(list(models), better)
    core = ov.Core()
    return Pareto(
        contract=contracts[FP32],
        rows=tuple(
            Row(
                name=name,
                ir=path,
                contract_id=contracts[name].contract_id,
                file_bytes=sizes[name],
                timed=timed[name],
                fidelity=fidelities.get(name),
                accuracy=accuracies[name],
                verification=verified.get((FP32, name)),
                beaten_by=beaten[name],
            )
            for name, path in models.items()
        ),
        pairs=len(pairs),
        protocol=protocol.value,
        faces=faces,
        device=str(read_property(core, device, "FULL_DEVICE_NAME") or device).strip(),
        openvino=ov.__version__,
        rounds=rounds,
        seconds=seconds,
        disturbance=watched.verdict,
    )


def find_beaten(
    names: Sequence[str], better: Callable[[str, str], Sequence[int]]
) -> dict[str, tuple[str, ...]]:
    """Find for each of several which others beat it.

    Parameters
    ----------
    names
        At least one.
    better
        Called with two names, the earlier one first; for each objective -1 if the first is the better one, 1 if the
        second is, 0 if they are alike.

    Returns
    -------
    dict
        By name, those that are better in one objective at least and worse in none; empty for an optimal one.
    """
    beaten: dict[str, list[str]] = {name: [] for name in names}
    for first, second in itertools.combinations(names, 2):
        signs = set(better(first, second)) - {0}
        if signs == {-1}:
            beaten[second].append(first)
        elif signs == {1}:
            beaten[first].append(second)
    return {name: tuple(others) for name, others in beaten.items()}


def _by_size(first: int, second: int) -> int:
    """-1 if the first is the smaller, 1 if the second is, 0 if they are alike."""
    return 0 if abs(first - second) <= SAME_SIZE * max(first, second) else int(np.sign(first - second))


def _by_accuracy(verification: VerificationChange) -> int:
    """-1 if the model before is the more accurate one, 1 if the one after is, 0 if they are alike."""
    drop = verification.accuracy.drop
    if abs(drop) <= SAME_ACCURACY + 1e-12 and verification.p_value >= _SIGNIFICANT:
        return 0
    return -int(np.sign(drop))


def _compress(
    ir: Path,
    output: Path,
    calibration: CalibrationSet,
    method: Method,
    recipe: QuantizationRecipe | None,
    progress: Progress | None,
) -> tuple[Path, Fidelity]:
    """Compress without a limit on what it costs: that is what is to be shown."""
    outcome = quantize(
        ir,
        output,
        calibration,
        recipe=dataclasses.replace(recipe or QuantizationRecipe(), method=method),
        limits=QuantizationLimits(max_drop=1 - 1e-9, min_cosine=-1.0),
        search=0,
        progress=None
        if progress is None
        else lambda what, done, total: progress(f"{method}: {what}", done, total),
    )
    if outcome.ir is None:
        raise NegativeResult(f"{method}: {'; '.join(outcome.reasons)}")
    return outcome.ir, outcome.trials[-1].fidelity


def _embed_all(
    models: Mapping[str, Path], cutter: FaceCutter, device: str, progress: Progress | None
) -> dict[str, NDArray[np.float32]]:
    """Cut every face once, and embed it by every model: (N, D) float32 each."""
    vectors: dict[str, list[NDArray[np.float32]]] = {name: [] for name in models}
    with contextlib.ExitStack() as stack:
        crops = stack.enter_context(contextlib.closing(iter(cutter)))
        embedders = {
            name: stack.enter_context(Embedder.load(path, plan=default_plan(device)))
            for name, path in models.items()
        }
        done = 0
        while block := list(itertools.islice(crops, _BLOCK)):
            for name, embedder in embedders.items():
                vectors[name].append(embedder.embed(block))
            done += len(block)
            if progress is not None:
                progress("embedding", done, len(cutter))
    return {name: np.concatenate(blocks) for name, blocks in vectors.items()}
