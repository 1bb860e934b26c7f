"""The store in one file: what every store does, encrypted and not."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from unit.gallery.conformance import Place, StoreConformance

from edgeface.errors import GalleryDamagedError
from edgeface.gallery.codec import TemplateBody, vectors_of
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


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_a_stored_template_that_is_no_unit_vector_is_damage_and_never_a_row(value: float) -> None:
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    good, bad = ([1.0, 0, 0, 0], [value, 0, 0, 0])
    rows = [TemplateBody(np.array(row, np.float32), 1.0, "", now).encode() for row in (good, bad)]
    assert vectors_of(rows[:1], 4).tolist() == [good]
    with pytest.raises(GalleryDamagedError, match="finite numbers and unit length"):
        vectors_of(rows, 4)
