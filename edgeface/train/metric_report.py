"""Write the report of an embedder that was trained by a metric loss as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from edgeface.drawing import write_page
from edgeface.evaluate.plots import resolution_plot
from edgeface.train.metric_outcome import MetricOutcome
from edgeface.train.report import curves


def write_metric_report(outcome: MetricOutcome, path: Path) -> None:
    """Write the page, whole or not at all; raise OutputError if that fails."""
    plots = curves(outcome.history.epochs, outcome.history.best)
    if len(outcome.changes) > 1:
        after = {pixels: change.accuracy.after for pixels, change in outcome.changes.items()}
        before = {pixels: change.accuracy.before for pixels, change in outcome.changes.items()}
        plots.append(resolution_plot({"after": after, "before": before}))
    write_page(
        path,
        "edgeface.train",
        template="metric.html.j2",
        outcome=outcome,
        answer=outcome.to_dict(),
        contract=outcome.contract,
        plots=plots,
        size=min(outcome.contract.input_size),
    )
