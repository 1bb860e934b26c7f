"""How many examples property tests draw: `--hypothesis-profile` quick, default or nightly."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

SHARES = {"quick": 0.1, "default": 1.0, "nightly": 10.0}

for _name, _share in SHARES.items():
    # Time limits are pytest-timeout's: what an example takes depends on what else the machine does.
    settings.register_profile(
        _name,
        max_examples=round(100 * _share),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )
settings.load_profile("default")


def examples(count: int) -> int:
    """Return `count` scaled by the profile that is loaded: `@settings(max_examples=examples(200))`."""
    return max(5, round(count * settings.default.max_examples / 100))
