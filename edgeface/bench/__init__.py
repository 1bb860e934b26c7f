"""Measure how fast a model is: load scenarios, statistics, environment, comparison and reports."""

from edgeface.lazy import exports

__all__ = ["BenchmarkResult", "RunSettings", "ScenarioOptions", "benchmark", "measure_peak", "read_any"]

__getattr__ = exports(
    __name__,
    {
        "compare.comparable": ("read_any",),
        "schema": ("RunSettings",),
        "machine.peak": ("measure_peak",),
        "result": ("BenchmarkResult",),
        "run.runner": ("ScenarioOptions", "benchmark"),
    },
)
