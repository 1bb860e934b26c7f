"""Write what came of a training: its answer as JSON, and a report as one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeface.drawing import Axes, Plot, categories, linear, percent, write_page
from edgeface.evaluate.plots import resolution_plot
from edgeface.files import output_errors, write_atomically

if TYPE_CHECKING:  # they need torch, and this does not
    from edgeface.train.loop import Epoch
    from edgeface.train.outcome import HeadJudgement, HeadOutcome, MetricOutcome

_MOST_SHOWN = 40
"""People whose recall the page lists, the lowest first; and confusions."""
_MOST_CELLS = 24
"""People in the plot of confusions: those who are confused."""


def write_report(outcome: HeadOutcome, output: Path) -> None:
    """Write ``training.json`` and ``report.html`` of a head, whole or not at all; raise OutputError if that fails."""
    judged, names = outcome.judgement, outcome.head.labels
    recalls = [(names[each], right, of) for each, (right, of) in enumerate(judged.recalls(len(names))) if of]
    recalls.sort(key=lambda each: (each[1] / each[2], -each[2]))
    plots = [*curves(outcome.history.epochs, outcome.history.best), reliability_plot(judged)]
    if mistakes := judged.mistakes():
        plots.append(confusion_plot(judged, names))
    write_answer(
        outcome.to_dict(),
        output / "training.json",
        "report.html.j2",
        outcome=outcome,
        contract=outcome.contract,
        judged=judged,
        plots=plots,
        recalls=recalls[:_MOST_SHOWN],
        left=max(0, len(recalls) - _MOST_SHOWN),
        mistakes=[(names[truth], names[answer], count) for truth, answer, count in mistakes[:_MOST_SHOWN]],
    )


def write_metric_report(outcome: MetricOutcome, output: Path) -> None:
    """Write those of an embedder that was trained by a metric loss."""
    plots = curves(outcome.history.epochs, outcome.history.best)
    if len(outcome.changes) > 1:
        after = {pixels: change.accuracy.after for pixels, change in outcome.changes.items()}
        before = {pixels: change.accuracy.before for pixels, change in outcome.changes.items()}
        plots.append(resolution_plot({"after": after, "before": before}))
    write_answer(
        outcome.to_dict(),
        output / "training.json",
        "metric.html.j2",
        outcome=outcome,
        contract=outcome.contract,
        plots=plots,
        size=min(outcome.contract.input_size),
    )


def write_answer(answer: Mapping[str, Any], path: Path, template: str, **shown: Any) -> None:
    """Write the answer of a training as JSON, and ``report.html`` beside it, for the owner alone: they name people."""
    with write_atomically(path, private=True) as partial, output_errors(path.parent):
        partial.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    page = path.with_name("report.html")
    write_page(page, "edgeface.train", template=template, private=True, answer=answer, **shown)


def curves(epochs: Sequence[Epoch], best: int) -> list[Plot]:
    """Draw the losses, and every other figure of the validation, over the epochs."""
    numbers = np.array([epoch.number + 1 for epoch in epochs])
    losses = np.array([[epoch.loss, epoch.validation["loss"]] for epoch in epochs])
    last = float(max(2, numbers[-1]))
    frame = Axes(linear("epoch", 1, last), linear("loss", 0, float(losses.max())))
    shapes = (
        frame.line(numbers, losses[:, 0], "curve"),
        frame.line(numbers, losses[:, 1], "whisker other"),
        frame.upright(best + 1, "cut"),
    )
    legend = (("curve", "training"), ("other", "validation"), ("cut", f"best epoch, {best + 1}"))
    plots = [Plot("Loss", frame, shapes, legend=legend)]
    for name in epochs[0].validation:
        if name == "loss":
            continue
        values = np.array([epoch.validation[name] for epoch in epochs])
        low = min(0.9, max(0.0, float(np.floor(values.min() * 10) / 10)))
        frame = Axes(linear("epoch", 1, last), linear(f"validation {name}", low, max(1.0, float(values.max()))))
        plots.append(
            Plot(name.capitalize(), frame, (frame.line(numbers, values, "curve"), frame.upright(best + 1, "cut")))
        )
    return plots


def reliability_plot(judged: HeadJudgement) -> Plot:
    """Draw the share of right answers over the probability that the head gave them."""
    frame = Axes(
        linear("probability of the answer", 0, 1, words=percent), linear("share of right answers", 0, 1, words=percent)
    )
    bins = judged.reliability()
    sure, right = [each[0] for each in bins], [each[1] for each in bins]
    titles = [f"{share:.1%} of the photos: {a:.1%} sure, {b:.1%} right" for a, b, share in bins]
    shapes = (
        frame.line([0, 1], [0, 1], "guide"),
        frame.line(sure, right, "curve"),
        *frame.dots(sure, right, "dot", radius=4.0, titles=titles),
    )
    return Plot("Calibration", frame, shapes, note=f"Expected calibration error {judged.calibration_error:.3f}")


def confusion_plot(judged: HeadJudgement, names: Sequence[str]) -> Plot:
    """Draw how often each person who is confused was taken for whom."""
    chosen = list(dict.fromkeys(each for a, b, _ in judged.mistakes() for each in (a, b)))[:_MOST_CELLS]
    place = {person: index for index, person in enumerate(chosen)}
    shown = [names[person].replace("_", " ") for person in chosen]
    x, y = categories("answer", [str(index + 1) for index in range(len(chosen))]), categories("person", shown[::-1])
    frame = Axes(x, y, height=max(120.0, 18.0 * len(chosen)), left=150.0, grid=False)
    counts = np.zeros((len(chosen), len(chosen)), np.intp)
    for truth, answer in zip(judged.truth.tolist(), judged.answers.tolist(), strict=True):
        if truth in place and answer in place:
            counts[place[truth], place[answer]] += 1
    cells = [
        frame.cell(
            column,
            len(chosen) - 1 - row,
            "heat",
            strength=float(counts[row, column] / max(counts[row].sum(), 1)),
            title=f"{shown[row]} taken for {shown[column]}: {counts[row, column]}",
        )
        for row in range(len(chosen))
        for column in range(len(chosen))
        if counts[row, column]
    ]
    return Plot("Confusion", frame, tuple(cells), note="Columns are in the order of the rows, from the top.")
