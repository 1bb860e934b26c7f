"""How fast is it, and how much of what it could be: work, scenarios, statistics, environment, results."""

from edgeface.lazy import exports

__all__ = [
    "BenchmarkResult",
    "Extras",
    "Settings",
    "benchmark",
    "count_work",
    "measure_peak",
    "read_any",
]

__getattr__ = exports(
    __name__,
    {
        "flops": ("count_work",),
        "imported": ("read_any",),
        "parts": ("Settings",),
        "peak": ("measure_peak",),
        "result": ("BenchmarkResult",),
        "runner": ("Extras", "benchmark"),
    },
)
