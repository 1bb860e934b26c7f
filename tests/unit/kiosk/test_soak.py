"""A short round of the soak: a kiosk that is killed once while its broker and its endpoint come and go."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("paho.mqtt.client", reason="extra 'mqtt'")
sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
import _watch_soak as watch_soak


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(not Path(watch_soak.MOSQUITTO).exists(), reason="mosquitto is not installed")
def test_a_killed_kiosk_loses_no_event_and_tells_each_person_s_in_order() -> None:
    found = watch_soak.soak(frames=500, kills=1, outage_every=1.0)
    assert found["frames"] >= 500
    assert (found["tracebacks"], found["kills"], found["ended_by_sigterm"]) == ([], 1, True)
    assert found["events"] > 5
    assert found["outages_of_broker_and_endpoint"] >= 1
    assert found["printed_and_not_in_the_log"] == found["left_undelivered"] == 0
    for target in ("webhook", "mqtt"):
        assert found[f"{target}_missing"] == found[f"{target}_not_in_the_log"] == 0
        assert found[f"{target}_out_of_order_of_a_person"] == 0
