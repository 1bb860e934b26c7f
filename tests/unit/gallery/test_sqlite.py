"""The store in one file: what every store does, encrypted and not."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.gallery.conformance import Place, StoreConformance

from edgeface.gallery.store.sqlite import SqliteStore

KEY = bytes(range(32))


class TestSqliteStore(StoreConformance):
    @pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
    def place(self, tmp_path: Path, request: pytest.FixtureRequest) -> Place:
        path, key = tmp_path / "people.gallery", request.param
        return Place(
            create=lambda **options: SqliteStore.create(path, key=key, **options),
            open=lambda **options: SqliteStore(path, key=key, **options),
            source=f"SqliteStore(Path({str(path)!r}), key={key!r})",
        )
