"""Compare the precisions of one model, or several models, by accuracy, latency, throughput and size.

One is Pareto-optimal if no other dominates it, that is, is better in one of the four and worse in none (Pareto,
Manuale di economia politica, 1906). Differences count only if they are clear:

- accuracy, if it differs by more than `SAME_ACCURACY` or McNemar's exact test on the same pairs is significant at 5 %;
- latency and throughput, if one was faster in every round (`compare_rounds`);
- size, if it differs by more than `SAME_SIZE`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.bench.machine.disturbance import Disturbance, watch
from edgeface.bench.run.rounds import ModelTiming, compare_rounds, measure_in_turn
from edgeface.errors import InputError, NegativeResult
from edgeface.evaluate.faces import CROPS, FaceCutter, FaceSource, find_images
from edgeface.evaluate.lfw import DEFAULTS
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.protocol import ProtocolName
from edgeface.model.contract import Method, ModelContract
from edgeface.model.ir_file import read_contract
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.quantize.calibration import CalibrationSet, gather
from edgeface.quantize.compress import QuantizationRecipe
from edgeface.quantize.gate import Fidelity, QuantizationLimits
from edgeface.quantize.quantizer import quantize
from edgeface.quantize.verification import VerificationChange, compare_verification
from edgeface.runtime import Embedder, default_plan
from edgeface.runtime.devices import read_property
from edgeface.vision.load import load_detector

FP32 = "fp32"
METHODS: tuple[Method, ...] = ("fp16", "int8-mixed", "int8-performance", "weights")
"""Methods that FP32 is compared with by default: all of them."""

SAME_ACCURACY = 0.001
"""Difference of accuracy that counts as none."""

SAME_SIZE = 0.01
"""Relative difference of file size that counts as none."""

_SIGNIFICANT = 0.05
_BLOCK = 32
"""Faces that are cut before every model embeds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Measurements of one precision or model.

    Attributes
    ----------
    name
        ``fp32`` or a `Method`; of several models the contract's name and precision.
    file_bytes
        Size of the .xml and .bin of the IR.
    accuracy
        Verification accuracy on the labelled pairs.
    fidelity, verification
        Comparison with the first row: on held-out faces, None between different models; and on the labelled pairs,
        None for the first row.
    dominated_by
        See `find_dominated`.
    """

    name: str
    ir: Path
    contract: ModelContract
    file_bytes: int
    timing: ModelTiming
    fidelity: Fidelity | None
    accuracy: float
    verification: VerificationChange | None
    dominated_by: tuple[str, ...] = ()

    @property
    def optimal(self) -> bool:
        """Whether no other row dominates it."""
        return not self.dominated_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Pareto:
    """Comparison of the precisions of one model, or of several models, measured in one run.

    Attributes
    ----------
    what
        What the rows are.
    rows
        Measurements, those that the others are compared with first: FP32, or the model that was named first.
    pairs, protocol, faces
        Number of labelled pairs, protocol, and what found the faces.
    device, openvino
        Full name of the device, and version of OpenVINO.
    rounds, seconds, disturbance
        Rounds of the timing, duration of each measurement, and other load on the machine meanwhile.
    """

    what: Literal["precisions", "models"]
    rows: tuple[Row, ...]
    pairs: int
    protocol: str
    faces: str
    device: str
    openvino: str
    rounds: int
    seconds: float
    disturbance: Disturbance

    @property
    def contract(self) -> ModelContract:
        """Contract of the first row."""
        return self.rows[0].contract

    @property
    def title(self) -> str:
        """What is compared, as a heading."""
        return self.contract.name if self.what == "precisions" else f"{len(self.rows)} models"

    @property
    def seeded(self) -> bool:
        """Whether the weights of a model are random numbers."""
        return any(row.contract.provenance == "seeded" for row in self.rows)

    def ratios(self, row: Row) -> dict[str, float]:
        """Return the ratios of a row to the first one: latency, throughput, CPU time and file size."""
        base = self.rows[0]
        return timing_ratios(row.timing, base.timing) | {"file": row.file_bytes / base.file_bytes}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface pareto`, and pareto.json."""
        return {
            "schema": "edgeface.pareto/1",
            "model": self.contract.name,
            "contract_id": self.contract.contract_id,
            "provenance": self.contract.provenance,
            **{name: getattr(self, name) for name in ("pairs", "protocol", "faces", "device", "openvino")},
            "rounds": self.rounds,
            "seconds": self.seconds,
            "disturbed": self.disturbance.disturbed,
            "disturbances": list(self.disturbance.reasons),
            "optimal": [row.name for row in self.rows if row.optimal],
            "rows": [
                {
                    "precision": row.name,
                    "model": row.contract.name,
                    "weights": row.contract.precision,
                    "ir": str(row.ir),
                    "contract_id": row.contract.contract_id,
                    "file_bytes": row.file_bytes,
                    "accuracy": row.accuracy,
                    "verification": row.verification and dataclasses.asdict(row.verification),
                    "fidelity": row.fidelity and dataclasses.asdict(row.fidelity),
                    **row.timing.to_dict(),
                    "ratios": self.ratios(row),
                    "optimal": row.optimal,
                    "beaten_by": list(row.dominated_by),
                }
                for row in self.rows
            ],
        }


def measure_pareto(
    ir: Path,
    output: Path,
    calibration: CalibrationSet | Path,
    *,
    images: Path,
    pairs: Pairs,
    faces: FaceSource = CROPS,
    methods: Sequence[Method] = METHODS,
    protocol: ProtocolName = ProtocolName.facenet,
    recipe: QuantizationRecipe | None = None,
    rounds: int = 7,
    seconds: float = 1.0,
    device: str = "CPU",
    progress: ProgressCallback = ignore_progress,
) -> Pareto:
    """Compress an IR by several methods; measure all on the same faces and in the same rounds.

    Parameters
    ----------
    ir, device
        FP32 IR with a contract, and OpenVINO device.
    output
        Folder for the compressed IRs, each in a folder named after its method. They are not checked against limits.
    calibration
        Crops for this contract, see `gather`, or a folder of photos.
    images, pairs
        Labelled pairs, and the folder that their names are relative to.
    faces
        Source of the faces in all photos. If it is boxes, they are those of the pairs, and MTCNN finds the faces in
        the photos to calibrate with.
    methods, recipe
        Methods to compare FP32 with, and the recipe of all; its method is ignored.
    protocol
        Protocol of the evaluation, with its default settings.
    rounds, seconds, progress
        See `edgeface.bench.run.rounds.measure_in_turn`.

    Raises
    ------
    InputError
        If a method is unknown or there is none, or the pairs and images do not fit.
    NegativeResult
        If the calibration set is not usable.
    """
    if unknown := [each for each in methods if each not in get_args(Method)]:
        raise InputError(f"precisions: expected some of {', '.join(METHODS)}, found {', '.join(unknown)}")
    if not methods:
        raise InputError(f"precisions: expected at least one of {', '.join(METHODS)}")
    files = find_images(images, pairs.images)
    recipe = recipe or QuantizationRecipe()
    if isinstance(calibration, Path):
        with load_detector(device=device) if faces.boxes else contextlib.nullcontext(faces.detector) as finder:
            calibration = gather(
                calibration,
                read_contract(ir)[1],
                subset=recipe.subset,
                detector=finder,
                seed=recipe.seed,
                progress=progress,
            )
    models = {FP32: ir}
    fidelities: dict[str, Fidelity] = {}
    for method in dict.fromkeys(methods):
        models[method], fidelities[method] = _compress(ir, output / method, calibration, method, recipe, progress)
    run = _Run(files, pairs, faces, protocol, rounds=rounds, seconds=seconds, device=device, progress=progress)
    return run.compare("precisions", models, fidelities)


def compare_models(
    models: Sequence[Path],
    *,
    images: Path,
    pairs: Pairs,
    faces: FaceSource = CROPS,
    protocol: ProtocolName = ProtocolName.facenet,
    rounds: int = 7,
    seconds: float = 1.0,
    device: str = "CPU",
    progress: ProgressCallback = ignore_progress,
) -> Pareto:
    """Measure several models on the same faces and in the same rounds, each cut and embedded as its contract says.

    Parameters
    ----------
    models
        IRs with contracts, two or more; all others are compared with the first one.
    images, pairs, faces, protocol, rounds, seconds, device, progress
        See `measure_pareto`. Each photo is searched for faces once, whatever the number of models.

    Raises
    ------
    InputError
        If there are fewer than two models, one is named twice, or the pairs and images do not fit.
    """
    if len(set(models)) < max(2, len(models)):
        raise InputError(f"models: expected two or more, each once, found {', '.join(map(str, models)) or 'none'}")
    files = find_images(images, pairs.images)
    run = _Run(files, pairs, faces, protocol, rounds=rounds, seconds=seconds, device=device, progress=progress)
    return run.compare("models", name_models(models), {})


def name_models(models: Sequence[Path]) -> dict[str, Path]:
    """Name IRs by model and precision, those of one name by their folder too."""
    contracts = [read_contract(path)[1] for path in models]
    short = [f"{contract.name} {contract.precision}" for contract in contracts]
    named = {
        name if short.count(name) == 1 else f"{name} ({path.parent.name})": path
        for name, path in zip(short, models, strict=True)
    }
    if len(named) < len(models):
        raise InputError("models: expected different names or folders, found two of one name in folders of one name")
    return named


@dataclass(frozen=True, slots=True)
class _Run:
    """How models are compared: on which faces, and for how long."""

    files: Sequence[Path]
    listed: Pairs
    faces: FaceSource
    protocol: ProtocolName
    _: KW_ONLY
    rounds: int
    seconds: float
    device: str
    progress: ProgressCallback

    def compare(
        self, what: Literal["precisions", "models"], models: Mapping[str, Path], fidelities: Mapping[str, Fidelity]
    ) -> Pareto:
        """Measure all models; the others are compared with the first one."""
        contracts = {name: read_contract(path)[1] for name, path in models.items()}
        vectors = self._embed(models, contracts)
        first, *others = models
        settings = DEFAULTS[self.protocol]
        verified = {
            (a, b): compare_verification(vectors[a], vectors[b], self.listed, protocol=self.protocol, settings=settings)
            for a, b in itertools.combinations(models, 2)
        }
        accuracies = {first: verified[first, others[0]].accuracy.before}
        accuracies |= {name: verified[first, name].accuracy.after for name in others}
        with watch() as watched:
            timed = measure_in_turn(
                models, rounds=self.rounds, seconds=self.seconds, device=self.device, progress=self.progress
            )
        sizes = {name: path.stat().st_size + path.with_suffix(".bin").stat().st_size for name, path in models.items()}

        def better(first: str, second: str) -> tuple[int, ...]:
            return (
                _by_accuracy(verified[first, second]),
                compare_rounds(timed[first].alone.milliseconds, timed[second].alone.milliseconds),
                compare_rounds(timed[first].loaded.milliseconds, timed[second].loaded.milliseconds),
                _by_size(sizes[first], sizes[second]),
            )

        dominated = find_dominated(list(models), better)
        return Pareto(
            what=what,
            rows=tuple(
                Row(
                    name=name,
                    ir=path,
                    contract=contracts[name],
                    file_bytes=sizes[name],
                    timing=timed[name],
                    fidelity=fidelities.get(name),
                    accuracy=accuracies[name],
                    verification=verified.get((first, name)),
                    dominated_by=dominated[name],
                )
                for name, path in models.items()
            ),
            pairs=len(self.listed),
            protocol=self.protocol.value,
            faces=self.faces.text,
            device=str(read_property(ov.Core(), self.device, "FULL_DEVICE_NAME") or self.device).strip(),
            openvino=ov.__version__,
            rounds=self.rounds,
            seconds=self.seconds,
            disturbance=watched.verdict,
        )

    def _embed(
        self, models: Mapping[str, Path], contracts: Mapping[str, ModelContract]
    ) -> dict[str, NDArray[np.float32]]:
        """Cut every face once for all models that need the same crop, and embed it with these: (N, D) float32 each."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for name, contract in contracts.items():
            groups.setdefault((contract.alignment, contract.input_size), []).append(name)
        total = len(self.files) * len(groups)
        cutter = FaceCutter(self.files, self.listed.images, next(iter(contracts.values())), self.faces)
        vectors: dict[str, NDArray[np.float32]] = {}
        for number, names in enumerate(groups.values()):

            def tell(done: int, before: int = number * len(self.files)) -> None:
                self.progress(Progress("embedding", before + done, total, unit="images"))

            cutter = cutter.for_contract(contracts[names[0]])
            vectors |= _embed_all({name: models[name] for name in names}, cutter, self.device, tell)
        return vectors


def timing_ratios(timing: ModelTiming, base: ModelTiming) -> dict[str, float]:
    """Return the median over the rounds of the ratios to another model measured in the same rounds."""

    def ratio(a: Sequence[float], b: Sequence[float]) -> float:
        return statistics.median(x / y for x, y in zip(a, b, strict=True))

    return {
        "latency": ratio(timing.alone.milliseconds, base.alone.milliseconds),
        "throughput": ratio(base.loaded.milliseconds, timing.loaded.milliseconds),
        "cpu_time": ratio(timing.loaded.cpu_milliseconds, base.loaded.cpu_milliseconds),
        "latency_cpu_time": ratio(timing.alone.cpu_milliseconds, base.alone.cpu_milliseconds),
    }


def find_dominated(names: Sequence[str], better: Callable[[str, str], Sequence[int]]) -> dict[str, tuple[str, ...]]:
    """Return, by name, the candidates that are better in at least one objective and worse in none.

    `better` is called with two names, the earlier one first. It returns for each objective -1 if the first is better,
    1 if the second is, 0 if they are alike.

    Examples
    --------
    >>> cost = {"a": (1, 5), "b": (2, 2), "c": (2, 3)}
    >>> find_dominated("abc", lambda x, y: [(i > j) - (i < j) for i, j in zip(cost[x], cost[y])])
    {'a': (), 'b': (), 'c': ('b',)}
    """
    dominated: dict[str, list[str]] = {name: [] for name in names}
    for first, second in itertools.combinations(names, 2):
        signs = set(better(first, second)) - {0}
        if signs == {-1}:
            dominated[second].append(first)
        elif signs == {1}:
            dominated[first].append(second)
    return {name: tuple(others) for name, others in dominated.items()}


def _by_size(first: int, second: int) -> int:
    """Return -1 if the first is smaller, 1 if the second is, 0 if they are alike."""
    return 0 if abs(first - second) <= SAME_SIZE * max(first, second) else int(np.sign(first - second))


def _by_accuracy(verification: VerificationChange) -> int:
    """Return -1 if the model before is more accurate, 1 if the one after is, 0 if they are alike."""
    drop = verification.accuracy.drop
    if abs(drop) <= SAME_ACCURACY + 1e-12 and verification.p_value >= _SIGNIFICANT:
        return 0
    return -int(np.sign(drop))


def _compress(
    ir: Path,
    output: Path,
    calibration: CalibrationSet,
    method: Method,
    recipe: QuantizationRecipe,
    progress: ProgressCallback,
) -> tuple[Path, Fidelity]:
    """Compress without limits, because the comparison has to show what each method costs."""
    outcome = quantize(
        ir,
        output,
        calibration,
        recipe=dataclasses.replace(recipe, method=method),
        limits=QuantizationLimits(max_drop=1 - 1e-9, min_cosine=-1.0),
        search=0,
        progress=lambda each: progress(dataclasses.replace(each, stage=f"{method}: {each.stage}")),
    )
    if outcome.ir is None:
        raise NegativeResult(f"{method}: {'; '.join(outcome.reasons)}")
    return outcome.ir, outcome.trials[-1].fidelity


def _embed_all(
    models: Mapping[str, Path], cutter: FaceCutter, device: str, progress: Callable[[int], None]
) -> dict[str, NDArray[np.float32]]:
    """Cut every face once and embed it with every model: (N, D) float32 each."""
    vectors: dict[str, list[NDArray[np.float32]]] = {name: [] for name in models}
    with contextlib.ExitStack() as stack:
        crops = stack.enter_context(contextlib.closing(iter(cutter)))
        embedders = {
            name: stack.enter_context(Embedder.load(path, plan=default_plan(device), allow_seeded=True))
            for name, path in models.items()
        }
        done = 0
        while block := list(itertools.islice(crops, _BLOCK)):
            for name, embedder in embedders.items():
                vectors[name].append(embedder.embed(block))
            done += len(block)
            progress(done)
    return {name: np.concatenate(blocks) for name, blocks in vectors.items()}
