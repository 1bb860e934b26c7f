"""How fast is it, and how much of what it could be: work, scenarios, statistics, environment, results."""

from edgeface.lazy import exports

__all__ = [
    "BenchmarkResult",
    "Extras",
    "RunSettings",
    "benchmark",
    "measure_peak",
    "read_any",
]

__getattr__ = exports(
    __name__,
    {
        "compare.imported": ("read_any",),
        "schema": ("Settings",),
        "machine.peak": ("measure_peak",),
        "result": ("BenchmarkResult",),
        "run.runner": ("Extras", "benchmark"),
    },
)
