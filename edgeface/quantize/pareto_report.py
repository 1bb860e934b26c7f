"""Write a comparison of precisions or models as JSON, Markdown and one self-contained HTML page with plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeface.drawing import Axes, Plot, Shape, Words, counted, linear, write_page
from edgeface.files import write_atomically
from edgeface.model.contract import SEEDED_WARNING
from edgeface.quantize.pareto import FP32, SAME_ACCURACY, SAME_SIZE, Pareto, Row

FILES = ("pareto.json", "pareto.md", "pareto.html")

NAMES = {
    FP32: "FP32",
    "fp16": "FP16 storage",
    "int8-mixed": "INT8 mixed",
    "int8-performance": "INT8 performance",
    "weights": "INT8 weights only",
}

RULE = (
    "One is optimal if no other dominates it, that is, is better in one respect and worse in none. Accuracy counts as "
    f"different if it differs by more than {SAME_ACCURACY:g} or McNemar's exact test is significant at 5 %, speed if "
    f"one was faster in every round, size if it differs by more than {100 * SAME_SIZE:g} %."
)
ALONE = "Times are those of the networks alone: finding and cutting the faces takes as long with each."

_SPEEDS = ("latency", "throughput", "CPU time", "size")
_CHARACTER, _LINE = 7.5, 18.0
"""Width of a letter and height of a line, in units of the drawing, on a narrow page."""

_DOT = 8.0
"""Half the width that a dot takes, in units of the drawing."""


def write_pareto(pareto: Pareto, folder: Path) -> None:
    """Write `FILES`, each whole or not at all; raise OutputError if one cannot be written."""
    texts = json.dumps(pareto.to_dict(), indent=2) + "\n", to_markdown(pareto)
    for name, text in zip(FILES, texts, strict=False):
        with write_atomically(folder / name) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    write_page(
        folder / "pareto.html",
        "edgeface.quantize",
        template="pareto.html.j2",
        filters={"times": "{:.3f}".format},
        pareto=pareto,
        names=names_of(pareto),
        marks=marks_of(pareto) if pareto.what == "models" else {},
        streams={row.timing.streams for row in pareto.rows},
        base=names_of(pareto)[pareto.rows[0].name],
        crops=crops_of(pareto),
        rule=f"{RULE} {ALONE}",
        plots=[accuracy_plot(pareto, each) for each in OBJECTIVES],
        ratios={row.name: pareto.ratios(row) for row in pareto.rows},
        optimal=[names_of(pareto)[row.name] for row in pareto.rows if row.optimal],
    )


def names_of(pareto: Pareto) -> dict[str, str]:
    """Return what the rows are called, by their names."""
    return {row.name: NAMES.get(row.name, row.name) for row in pareto.rows}


def marks_of(pareto: Pareto) -> dict[str, str]:
    """Return what stands beside their dots: names of models are too long for that, so they are numbered."""
    if pareto.what == "precisions":
        return names_of(pareto)
    return {row.name: str(number) for number, row in enumerate(pareto.rows, 1)}


def crops_of(pareto: Pareto) -> list[tuple[str, list[str]]]:
    """Return each way in which faces are cut, and the rows that see these crops."""
    found: dict[str, list[str]] = {}
    for row in pareto.rows:
        height, width = row.contract.input_size
        crop = f"{row.contract.alignment.recipe}, {height}x{width} pixels"
        found.setdefault(crop, []).append(names_of(pareto)[row.name])
    return list(found.items())


class Objective(NamedTuple):
    """Quantity that a plot shows accuracy over."""

    title: str
    label: str
    value: Callable[[Row], float]
    better: str


OBJECTIVES = (
    Objective("Latency", "milliseconds, one face alone", lambda row: row.timing.latency_ms, "left"),
    Objective("Throughput", "faces a second, all streams", lambda row: row.timing.images_per_second, "right"),
    Objective("Size", "megabytes of .xml and .bin", lambda row: row.file_bytes / 1e6, "left"),
)


def to_markdown(pareto: Pareto) -> str:
    """Return the table as GitHub Markdown; optimal precisions are bold."""
    names, base = names_of(pareto), names_of(pareto)[pareto.rows[0].name]
    cosines = ("mean cosine",) if pareto.what == "precisions" else ()
    heads = (pareto.what.removesuffix("s"), "accuracy", "drop, 95 % paired", *cosines, *_SPEEDS)
    lines = [
        f"# {pareto.title} compared" if pareto.what == "models" else f"# {pareto.title}: precisions compared",
        "",
        *([f"**{SEEDED_WARNING}.**", ""] if pareto.seeded else []),
        f"{pareto.pairs:,} pairs ({pareto.protocol}'s protocol; {pareto.faces}). {pareto.device}, OpenVINO "
        f"{pareto.openvino}; medians of {counted(pareto.rounds, 'alternating round')}, ratios to {base} "
        "within a round.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
    ]
    for row in pareto.rows:
        ratio = pareto.ratios(row)
        name = f"**{names[row.name]}**" if row.optimal else names[row.name]
        cosine = f"| {row.fidelity.mean_cosine:.5f} " if row.fidelity else "| 1 " if cosines else ""
        lines.append(
            f"| {name} | {row.accuracy:.4f} | {format_drop(row)} {cosine}"
            f"| {row.timing.latency_ms:.2f} ms ({ratio['latency']:.3f}) "
            f"| {row.timing.images_per_second:.1f} /s ({ratio['throughput']:.3f}) "
            f"| {row.timing.loaded.cpu_median:.2f} ms ({ratio['cpu_time']:.3f}) "
            f"| {row.file_bytes / 1e6:.1f} MB ({ratio['file']:.3f}) |"
        )
    dominated = [
        f"- {names[row.name]} is dominated by {', '.join(names[each] for each in row.dominated_by)}."
        for row in pareto.rows
        if not row.optimal
    ]
    lines += ["", f"{RULE} {ALONE}", *([""] if dominated else []), *dominated]
    if pareto.disturbance.disturbed:
        lines += ["", f"The timing was disturbed: {'; '.join(pareto.disturbance.reasons)}."]
    return "\n".join([*lines, ""])


def accuracy_plot(pareto: Pareto, objective: Objective) -> Plot:
    """Draw accuracy over one quantity; vertical lines are 95 % intervals of the drop against the first row."""
    names = names_of(pareto)
    values = [objective.value(row) for row in pareto.rows]
    accuracies = [row.accuracy for row in pareto.rows]
    spans = [_span(pareto, row) for row in pareto.rows]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    room = max(0.15 * (high - low), 0.0005)
    x = linear(objective.label, 0.0, 1.15 * max(values))
    y = linear("accuracy", low - room, min(high + room, 1.0), words="{:.4f}".format)
    frame = Axes(x, y, height=280.0, left=86.0)
    words, leaders = _labels(frame, [marks_of(pareto)[row.name] for row in pareto.rows], values, accuracies)
    shapes = list(leaders)
    for row, value, span in zip(pareto.rows, values, spans, strict=True):
        if row.verification is not None:
            shapes.append(frame.line([value, value], list(span), "guide"))
        kind = "good" if row.optimal else "other"
        state = "optimal" if row.optimal else "dominated by " + ", ".join(names[each] for each in row.dominated_by)
        title = f"{names[row.name]}: accuracy {row.accuracy:.4f}, {value:.4g} {objective.label}; {state}"
        shapes += frame.dots([value], [row.accuracy], kind, radius=6.0, titles=(title,))
    return Plot(
        objective.title,
        frame,
        tuple(shapes),
        words,
        (("good", "optimal"), ("other", "dominated"), ("guide", "95 % interval of the drop")),
        f"Up and {objective.better} is better.",
    )


def _span(pareto: Pareto, row: Row) -> tuple[float, float]:
    """Return the ends of the paired interval against the first row, as accuracies."""
    if row.verification is None:
        return row.accuracy, row.accuracy
    low, high = row.verification.accuracy.interval
    return pareto.rows[0].accuracy - high, pareto.rows[0].accuracy - low


def _labels(
    frame: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float]
) -> tuple[tuple[Words, ...], tuple[Shape, ...]]:
    """Put each name beside its dot, moved up or down until it overlaps nothing; a line leads to a moved name."""
    across, down = frame.across(x), frame.down(y) + 4
    taken = [(b, a - _DOT, a + _DOT) for a, b in zip(across, down, strict=True)]
    words, leaders = [], []
    for index in np.argsort(down, kind="stable"):
        at, beside, width = float(across[index]), float(down[index]), _CHARACTER * len(names[index])
        left = at + 10 + width > frame.width
        side = at - 10 if left else at + 10
        start = side - width if left else side
        heights = [other for other, begin, end in taken if start < end and begin < start + width]
        places = [beside + step * _LINE / 2 for step in sorted(range(-30, 31), key=abs)]
        free = (
            each
            for each in places
            if _LINE / 2 < each < frame.height and all(abs(each - other) >= _LINE - 1 for other in heights)
        )
        place = next(free, beside)
        taken.append((place, start, start + width))
        words.append(Words(round(side, 1), round(place, 1), names[index], "end" if left else "start"))
        if place != beside:
            leaders.append(Shape(f"M{at:.1f} {beside - 4:.1f}L{side:.1f} {place - 4:.1f}", "guide"))
    return tuple(words), tuple(leaders)


def format_drop(row: Row) -> str:
    """Format the drop of accuracy and its interval; a gain is negative."""
    if row.verification is None:
        return "-"
    change = row.verification.accuracy
    return f"{change.drop:+.4f} ({change.interval[0]:+.4f} to {change.interval[1]:+.4f})"
