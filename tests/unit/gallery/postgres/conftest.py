"""Names of galleries on the server that `postgres_server` starts."""

from __future__ import annotations

import uuid

import pytest


@pytest.fixture
def gallery() -> str:
    """A name that no other test has."""
    return f"test_{uuid.uuid4().hex[:16]}"
