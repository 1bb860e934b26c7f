"""A server that misbehaves on request, and an empty cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeface import zoo

sys.path.insert(0, str(Path(__file__).parent))  # so that tests here share faulty_server in any import mode
from faulty_server import FaultyServer


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    running = FaultyServer()
    yield running
    running.close()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> zoo.ModelStore:
    monkeypatch.delenv("EDGEFACE_MIRROR", raising=False)
    return zoo.ModelStore(tmp_path / "cache")
