"""Read result files for comparison or a report, and check whether two of them measure the same thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeface.bench.compare.imported import read_any
from edgeface.bench.machine.reading import known
from edgeface.bench.result import FILE_NAME, BenchmarkResult
from edgeface.errors import InputError

__all__ = [
    "ReportEntry",
    "Side",
    "doubts",
    "read_entries",
    "read_side",
    "require_comparable",
]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two things that are compared.

    Attributes
    ----------
    name
        What it is called: its file or folder.
    runs
        Runs of one configuration, in the order in which they were made.
    """

    name: str
    runs: tuple[BenchmarkResult, ...]

    @property
    def first(self) -> BenchmarkResult:
        """The run that says for all what was measured."""
        return self.runs[0]


def read_side(path: Path) -> Side:
    """Read a result file, a run's folder, a folder with the folders of repeated runs in it, or benchmark_app's report.

    Raises
    ------
    InputError
        If there is no result, or if those below a folder are not all of one configuration.
    """
    files = [path]
    if path.is_dir() and not (path / FILE_NAME).is_file():
        files = sorted(path.rglob(FILE_NAME))
        if not files:
            raise InputError(f"{path}: expected a {FILE_NAME}, or folders with one in each, found none")
    read = sorted(((read_any(file), file) for file in files), key=lambda each: each[0].created)
    first = read[0][0]
    for run, file in read[1:]:
        if (run.model.digest, run.settings) != (first.model.digest, first.settings):
            raise InputError(
                f"{path}: expected repeated runs of one model with the same settings, found others in {file}; "
                "compare them as two sides"
            )
    name = path.parent.name if path.name == FILE_NAME else path.stem if path.is_file() else path.name
    return Side(name or str(path), tuple(run for run, _ in read))


def require_comparable(
    baseline: Side, candidate: Side, *, across_models: bool
) -> tuple[tuple[tuple[str, str, str], ...], tuple[str, ...]]:
    """Refuse what measures different things; say what was set differently, and what makes it doubtful.

    Returns
    -------
    differences
        Name, the baseline's and the candidate's, of settings and of what executed.
    warnings
        Sentences.

    Raises
    ------
    InputError
        If scenario, batch or what the scenario was given differ; or the model, unless `across_models`.
    """
    old, new = baseline.first, candidate.first
    for what, first, second in _essentials(old, new):
        if first != second:
            raise InputError(
                f"{baseline.name}, {candidate.name}: expected the same {what}, found {first} and {second}: "
                "they measure different things"
            )
    same = (
        old.model.contract_id == new.model.contract_id
        if old.model.contract_id or new.model.contract_id
        else None in (old.model.digest, new.model.digest) or old.model.digest == new.model.digest
    )
    if not same and not across_models:
        raise InputError(
            f"{baseline.name}, {candidate.name}: expected the same model, found {_identity(old)} and "
            f"{_identity(new)}; to compare them all the same, add --across-models"
        )
    warnings = [] if same else [f"different models: {_identity(old)} and {_identity(new)}"]
    if same and None in (old.model.digest, new.model.digest):
        warnings.append("one of the results does not say which model file it is of")
    if old.settings.end_to_end != new.settings.end_to_end:
        warnings.append("one of them includes the copies in and out (end to end), the other does not")
    if (first := _machine(old)) != (second := _machine(new)):
        warnings.append(f"different machines: {first} and {second}")
    for side in (baseline, candidate):
        for index, run in enumerate(side.runs):
            name = side.name if len(side.runs) == 1 else f"{side.name}, run {index + 1}"
            warnings += [f"{name}: {doubt}" for doubt in doubts(run)]
    return tuple(_settings(old, new)), tuple(warnings)


def doubts(run: BenchmarkResult) -> list[str]:
    """Say what makes the figures of one run doubtful."""
    found = []
    if run.partial:
        found.append("it was interrupted and is partial")
    if run.disturbed:
        found.append(f"it was disturbed: {'; '.join(run.disturbances) or 'it does not say by what'}")
    if run.validity is not None:
        if not run.validity.warmed_up:
            found.append("times were not stable yet when measuring began")
        if run.validity.stationary is False:
            found.append("times changed while it was measured")
        if not run.partial and not run.validity.count_met:
            found.append("it has fewer queries than the scenario asks for")
    return found


def _essentials(old: BenchmarkResult, new: BenchmarkResult) -> Iterator[tuple[str, object, object]]:
    essentials: dict[str, Callable[[BenchmarkResult], object]] = {
        "scenario": lambda run: run.settings.scenario,
        "batch": lambda run: run.settings.batch,
        "samples a query": lambda run: run.multi_stream and run.multi_stream.samples_per_query,
        "latency bound": lambda run: run.server and (run.server.bound_ms, run.server.percentile),
        "video": lambda run: run.kiosk and run.kiosk.video_digest,
    }
    for what, read in essentials.items():
        yield what, read(old), read(new)


def _settings(old: BenchmarkResult, new: BenchmarkResult) -> Iterator[tuple[str, str, str]]:
    before, after = _said(old), _said(new)
    for name in before:
        if before[name] != after[name]:
            yield name, before[name], after[name]


def _said(run: BenchmarkResult) -> dict[str, str]:
    """What may explain a difference, as words."""
    environment = run.environment
    said: dict[str, object] = {
        "model": _identity(run),
        **{name: getattr(run.settings, name) for name in type(run.settings).model_fields},
        **{
            f"executed {name}": getattr(run.execution, name)
            for name in ("devices", "precision", "streams", "requests", "threads")
        },
        "openvino": None if environment is None else environment.software.openvino,
        "edgeface": run.edgeface,
        "measured by": run.source,
    }
    return {name: _text(value) for name, value in said.items()}


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "default" if value is None else str(value)


def _identity(run: BenchmarkResult) -> str:
    return f"{run.model.name} ({run.model.contract_id or (run.model.digest or 'unknown')[:16]})"


def _machine(run: BenchmarkResult) -> str | None:
    return None if run.environment is None else known(run.environment.machine.cpu_model)


@dataclass(frozen=True, slots=True)
class ReportEntry:
    """A result under the name that a report gives it, and the folder of several that it was found in."""

    name: str
    result: BenchmarkResult
    folder: str = ""

    @property
    def doubts(self) -> list[str]:
        """What makes its figures doubtful."""
        return doubts(self.result)


def read_entries(paths: Sequence[Path]) -> list[ReportEntry]:
    """Read result files, runs' folders and folders of those, in that order; names are told apart.

    Raises
    ------
    InputError
        If one of them is no result, or a folder holds none.
    """
    found: list[tuple[str, Path, str]] = []
    for path in paths:
        if path.is_dir() and not (path / FILE_NAME).is_file():
            files = sorted(path.rglob(FILE_NAME))
            if not files:
                raise InputError(f"{path}: expected a {FILE_NAME}, or folders with one in each, found none")
            folder = path.name or str(path)
            inside = [(str(file.parent.relative_to(path)), file) for file in files]
            found += [(f"{folder}/{name}" if len(paths) > 1 else name, file, folder) for name, file in inside]
        else:
            of = path.parent if path.name == FILE_NAME else path
            name = of.name if of.is_dir() else path.stem
            found.append((name or str(path), path, ""))
    entries: list[ReportEntry] = []
    for name, file, within in found:
        taken = {each.name for each in entries}
        number = next(
            n for n in range(1, len(taken) + 2) if (name if n == 1 else f"{name} ({n})") not in taken
        )
        entries.append(ReportEntry(name if number == 1 else f"{name} ({number})", read_any(file), within))
    return entries
