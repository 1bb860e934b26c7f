"""How often `edgeface bench compare` is wrong, and how often it finds a 5 % slowdown, on simulated latencies; JSON.

    python benchmarks/compare.py [--repetitions 1000] [--seconds 20] [--median-ms 27]

For each distribution (`tests/made_results.py` describes them): the share of comparisons of a thing with itself in
which some metric is called different, the share in which a true slowdown is found by some metric and by each, and
the same of the gate ``--fail-on-regression 5%``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from made_results import latencies, made_result

from edgeface.bench.compare.comparable import Side
from edgeface.bench.compare.comparison import Comparison, compare, judge

KINDS = ("independent", "correlated", "persistent", "outliers", "boost", "drift")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a run; 20 is the default of 'bench run'")
    parser.add_argument("--median-ms", type=float, default=27.0, help="of a query; FaceNet on two cores")
    parser.add_argument("--slowdown", type=float, default=0.05)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    count = int(arguments.seconds * 1e3 / arguments.median_ms)
    answer = {
        "repetitions": arguments.repetitions,
        "queries": count,
        "slowdown": arguments.slowdown,
        "same": {},
        "slower": {},
    }
    for kind in arguments.kinds:
        same, slower = Counter(), Counter()
        for seed in range(arguments.repetitions):
            rng = np.random.default_rng([seed, KINDS.index(kind)])
            first, second = (latencies(kind, rng, count, median=arguments.median_ms) for _ in range(2))
            baseline = side(first)
            same.update(found(compare(baseline, side(second)), arguments.slowdown))
            slower.update(found(compare(baseline, side(second * (1 + arguments.slowdown))), arguments.slowdown))
        for name, counted in (("same", same), ("slower", slower)):
            answer[name][kind] = {
                key: round(counted[key] / arguments.repetitions, 4)
                for key in ("any", "p50", "p90", "p99", "throughput", "gate failed", "gate unsure")
            }
    print(json.dumps(answer, indent=2))


def side(series: np.ndarray) -> Side:
    return Side("simulated", (made_result(series),))


def found(comparison: Comparison, limit: float) -> list[str]:
    """Names of what was called different, ``any`` if something was, and what the gate said."""
    called = [each.metric for each in comparison.differences if each.verdict != "no difference shown"]
    return [*called, *["any"] * bool(called), f"gate {judge(comparison, limit).outcome}"]


if __name__ == "__main__":
    main()
