"""Who may be enrolled: another person's face may not, and pictures that disagree are said."""

from __future__ import annotations

import contextlib
import io
import json
import math
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.gallery.conformance import CONTRACT, DIM, template, vectors

from edgeface.errors import ArchiveError, ChecksumError, EdgeFaceError, EnrolmentRefused, GalleryKeyError, MissingError
from edgeface.gallery.enrolment import EnrolRules, enrol
from edgeface.gallery.records import KeptImage
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.gallery.transfer import export_gallery, import_gallery, pack, unpack
from edgeface.recognize.metrics import Metric, pairwise
from edgeface.recognize.threshold import calibrate

pytestmark = pytest.mark.timeout(120)
RULES = EnrolRules(duplicate_above=0.6, agree_above=0.3, contract_id=CONTRACT)
KEY = bytes(range(32))


def near(row: np.ndarray, cosine: float, *, seed: int = 99) -> np.ndarray:
    """A unit vector at this cosine of a unit vector."""
    other = np.random.default_rng(seed).normal(size=row.shape)
    other -= (other @ row) * row
    other /= np.linalg.norm(other)
    return (cosine * row + math.sqrt(1 - cosine**2) * other).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path):
    with SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=None, keep_images=True) as opened:
        yield opened


def test_a_new_person_is_created_and_a_known_one_gets_more_templates(store: SqliteStore) -> None:
    (row,) = vectors(1)
    first = enrol(store, "Ada", [template(row)], rules=RULES, labels=["a"], metadata={"b": 1})
    second = enrol(store, " Ada ", [template(near(row, 0.7))], rules=RULES)
    assert (first.created, second.created) == (True, False)
    assert second.person.id == first.person.id
    assert (second.person.template_count, second.person.labels, second.person.metadata) == (2, ("a",), {"b": 1})
    assert enrol(store, "Ada", [template(near(row, 0.8))], rules=RULES, labels=[]).person.labels == ()


@pytest.mark.parametrize(("cosine", "refused"), [(0.59, False), (0.61, True), (1.0, True)])
def test_a_face_of_somebody_else_is_refused_unless_forced(store: SqliteStore, cosine: float, refused: bool) -> None:
    (row,) = vectors(1)
    enrol(store, "Ada", [template(row)], rules=RULES)
    before = store.generation()
    twin = [template(near(row, cosine))]
    if not refused:
        assert enrol(store, "Grace", twin, rules=RULES).lookalikes == ()
        return
    with pytest.raises(EnrolmentRefused, match=f"'Ada' \\(similarity {cosine:.3f}\\).*--force"):
        enrol(store, "Grace", twin, rules=RULES)
    assert store.generation() == before
    done = enrol(store, "Grace", twin, rules=RULES, force=True)
    assert [(each.person.name, round(each.similarity, 3)) for each in done.lookalikes] == [("Ada", cosine)]


def test_a_lookalike_is_found_behind_many_templates_of_the_same_person(store: SqliteStore) -> None:
    (row,) = vectors(1)
    enrol(store, "Ada", [template(near(row, 0.99, seed=n)) for n in range(30)], rules=RULES)
    enrol(store, "Grace", [template(near(row, 0.7))], rules=RULES, force=True)
    with pytest.raises(EnrolmentRefused, match="Grace"):
        enrol(store, "Ada", [template(row)], rules=RULES)


def test_templates_that_disagree_are_said_by_their_similarity(store: SqliteStore) -> None:
    rows = vectors(3, seed=4)
    stored = enrol(store, "Ada", [template(rows[0])], rules=RULES)
    done = enrol(store, "Ada", [template(rows[1]), template(near(rows[1], 0.9))], rules=RULES)
    expected = pairwise(Metric.cosine, np.stack([rows[1], near(rows[1], 0.9)]), rows[:1]).ravel()
    assert [each.new for each in done.disagreements] == [0, 1]
    assert all(each.other.id == stored.template_ids[0] for each in done.disagreements)
    np.testing.assert_allclose([each.similarity for each in done.disagreements], expected, atol=1e-6)
    within = enrol(store, "Grace", [template(rows[2]), template(-rows[2])], rules=RULES)
    assert [(each.new, each.other, round(each.similarity, 6)) for each in within.disagreements] == [(1, 0, -1.0)]


def test_a_picture_is_enrolled_once(store: SqliteStore) -> None:
    rows = vectors(2, seed=1)
    same = [template(near(rows[0], 0.9, seed=n), source_sha256="ab" * 32) for n in range(2)]
    first = enrol(store, "Ada", [*same, template(rows[0])], rules=RULES)
    assert (len(first.template_ids), first.already) == (2, 1)
    again = enrol(store, "Ada", [*same, template(rows[0])], rules=RULES)
    assert (again.template_ids, again.already) == ((), 3)


def test_nobody_is_enrolled_without_a_picture(store: SqliteStore) -> None:
    with pytest.raises(EnrolmentRefused, match="found none"):
        enrol(store, "Ada", [], rules=RULES)
    assert store.people() == ()


def test_rules_come_from_thresholds_of_any_metric_as_cosines() -> None:
    dice = np.random.default_rng(0)
    genuine, impostor = dice.normal(0.7, 0.1, 500).clip(-1, 1), dice.normal(0.1, 0.1, 500).clip(-1, 1)
    scales = {
        Metric.cosine: lambda cosine: cosine,
        Metric.cosine_distance: lambda cosine: 1 - cosine,
        Metric.squared_l2: lambda cosine: 2 - 2 * cosine,
        Metric.arccos: lambda cosine: np.arccos(cosine) / np.pi,
    }
    found = []
    for metric, scale in scales.items():
        thresholds = calibrate(scale(genuine), scale(impostor), fars=[0.1, 0.01], contract_id=CONTRACT, metric=metric)
        rules = EnrolRules.from_thresholds(thresholds)
        found.append((rules.duplicate_above, rules.agree_above))
    np.testing.assert_allclose(found, [found[0]] * 4, atol=1e-12)
    ranked = np.sort(impostor)[::-1]
    np.testing.assert_allclose(found[0], [ranked[5], ranked[50]])
    with pytest.raises(MissingError, match="edgeface calibrate"):
        EnrolRules.shipped(CONTRACT)


def test_a_threshold_that_would_recognise_hardly_anybody_again_does_not_tell_duplicates() -> None:
    dice = np.random.default_rng(0)
    thresholds = calibrate(
        dice.normal(0.7, 0.1, 500),
        dice.normal(0.1, 0.1, 40_000),
        fars=[0.01, 1e-4, 5e-5],
        contract_id=CONTRACT,
        metric=Metric.cosine,
    )
    rules = EnrolRules.from_thresholds(thresholds)
    assert rules.duplicate_above == thresholds[1].value < thresholds[2].value


def test_one_face_is_not_enrolled_under_two_names_at_once(store: SqliteStore, tmp_path: Path) -> None:
    rows, refused = vectors(10, seed=8), []

    def run(name: str) -> None:
        with SqliteStore(tmp_path / "g") as own:
            for number, row in enumerate(rows):
                try:
                    enrol(own, f"{name} {number}", [template(row)], rules=RULES)
                except EnrolmentRefused:
                    refused.append(number)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("Ada", "Grace")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(refused) == list(range(10))
    assert len(store.people()) == 10


# Export and import


def fill(store: SqliteStore) -> None:
    from unit.gallery.conformance import kept

    rows = vectors(5, seed=2)
    pictures = [template(rows[0], quality=0.5, source_sha256="cd" * 32, image=kept()), template(rows[1])]
    store.add_person("Zo\u00eb", labels=["a"], metadata={"b": [1, None]}, templates=pictures)
    store.add_person("Grace", templates=[template(rows[2], detector="mtcnn")])
    store.add_person("Nobody yet")


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_an_export_brings_everybody_to_another_gallery(store: SqliteStore, tmp_path: Path, key: bytes | None) -> None:
    fill(store)
    done = export_gallery(store, tmp_path / "export", key=key)
    assert (done.people, done.templates, done.images, done.encrypted) == (3, 3, 1, key is not None)
    assert (b"Grace" in (tmp_path / "export").read_bytes()) is (key is None)
    with SqliteStore.create(tmp_path / "h", contract_id=CONTRACT, dim=DIM, key=KEY, keep_images=True) as other:
        taken = import_gallery(other, tmp_path / "export", key=key, rules=RULES)
        assert (taken.people, taken.templates, taken.already) == (3, 3, 0)
        np.testing.assert_array_equal(other.load().vectors, store.load().vectors)
        for person in store.people():
            twin = other.find(person.name)
            assert (twin.labels, twin.metadata, twin.template_count) == (
                person.labels,
                person.metadata,
                person.template_count,
            )
        first, twin = (each.templates_of(each.find("Zo\u00eb").id)[0] for each in (store, other))
        assert (twin.quality, twin.source_sha256, twin.created) == (first.quality, first.source_sha256, first.created)
        assert other.image_of(twin.id).png == store.image_of(first.id).png
        assert other.detectors() == store.detectors() == ("mtcnn",)
        again = import_gallery(other, tmp_path / "export", key=key, rules=RULES)
        assert (again.people, again.templates, again.already) == (0, 0, 3)


@pytest.mark.parametrize("year", [1970, 2118])
def test_an_export_is_written_in_years_that_a_zip_cannot_name(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    fill(store)
    monkeypatch.setattr("time.localtime", lambda *_: time.struct_time((year, 1, 1, 0, 0, 0, 3, 1, 0)))
    export_gallery(store, tmp_path / "export", key=None)
    assert len(unpack(tmp_path / "export", None)) > 2


def test_an_import_is_all_or_nothing(store: SqliteStore, tmp_path: Path) -> None:
    fill(store)
    export_gallery(store, tmp_path / "export", key=None)
    with SqliteStore.create(tmp_path / "h", contract_id=CONTRACT, dim=DIM, key=None) as other:
        other.add_person("Another name", templates=[template(vectors(5, seed=2)[2])])
        with pytest.raises(EnrolmentRefused, match="Another name"):
            import_gallery(other, tmp_path / "export", key=None, rules=RULES)
        assert [person.name for person in other.people()] == ["Another name"]
        assert import_gallery(other, tmp_path / "export", key=None, rules=RULES, force=True).people == 3


@pytest.mark.slow
def test_a_damaged_export_is_refused_and_changes_nothing(store: SqliteStore, tmp_path: Path) -> None:
    fill(store)
    dice = np.random.default_rng(6)
    for key in (None, KEY):
        path = tmp_path / f"export-{key is None}"
        export_gallery(store, path, key=key)
        original, generation = path.read_bytes(), store.generation()
        for position in [*range(0, 40), *dice.integers(0, len(original), 150).tolist()]:
            damaged = bytearray(original)
            damaged[position] ^= 1 << int(dice.integers(8))
            path.write_bytes(damaged)
            before = store.people()
            with contextlib.suppress(EdgeFaceError):
                import_gallery(store, path, key=key, rules=RULES)
            assert (store.people(), store.generation()) == (before, generation)


def test_an_export_is_read_by_other_programs_and_its_sums_are_checked(store: SqliteStore, tmp_path: Path) -> None:
    import subprocess

    fill(store)
    export_gallery(store, tmp_path / "export.zip", key=None)
    with zipfile.ZipFile(tmp_path / "export.zip") as file:
        file.extractall(tmp_path / "parts")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "parts", check=True, timeout=60)
    np.testing.assert_array_equal(np.load(tmp_path / "parts" / "vectors.npy"), store.load().vectors)
    with zipfile.ZipFile(tmp_path / "export.zip", "a") as file:
        file.writestr("images/more.png", b"smuggled in")
    with pytest.raises(ChecksumError, match=r"images/more\.png"):
        import_gallery(store, tmp_path / "export.zip", key=None, rules=RULES)


def test_an_export_that_unpacks_to_more_than_it_is_is_refused_before_it_fills_the_memory(
    store: SqliteStore, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("vectors.npy", bytes(1 << 24))
    with pytest.raises(ArchiveError, match="found 16,777,216, a decompression bomb"):
        import_gallery(store, tmp_path / "bomb", key=None, rules=RULES)


def test_a_sealed_export_needs_its_key(store: SqliteStore, tmp_path: Path) -> None:
    export_gallery(store, tmp_path / "sealed", key=KEY)
    export_gallery(store, tmp_path / "plain", key=None)
    for name, key in (("sealed", None), ("sealed", bytes(32)), ("plain", KEY)):
        with pytest.raises(GalleryKeyError):
            import_gallery(store, tmp_path / name, key=key, rules=RULES)


def test_another_key_and_a_flipped_byte_of_a_sealed_export_are_told_apart(store: SqliteStore, tmp_path: Path) -> None:
    fill(store)
    path = tmp_path / "sealed"
    export_gallery(store, path, key=KEY)
    assert path.stat().st_mode & 0o777 == 0o600
    original = path.read_bytes()
    with pytest.raises(GalleryKeyError, match="the key is another one"):
        import_gallery(store, path, key=bytes(32), rules=RULES)
    dice = np.random.default_rng(7)
    body = original.index(b"}") + 1
    for position in dice.integers(body, len(original), 50).tolist():
        damaged = bytearray(original)
        damaged[position] ^= 1 << int(dice.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ArchiveError, match="the file is damaged"):
            import_gallery(store, path, key=KEY, rules=RULES)


def rewrite(path: Path, name: str, change: Any) -> None:
    """Change one file of an export, and its sums with it, as whoever makes one on purpose does."""
    parts = unpack(path, None)
    content = change(json.loads(parts[name])) if name.endswith(".json") else change(parts[name])
    parts[name] = content if isinstance(content, bytes) else json.dumps(content).encode()
    pack(path, parts, key=None, contract_id=CONTRACT)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gallery.json", lambda found: {"format": "edgeface-gallery", "version": 1}),
        ("gallery.json", lambda found: found | {"contract_id": ["a"]}),
        ("gallery.json", lambda found: found | {"detectors": "mtcnn"}),
        ("gallery.json", lambda found: found | {"detectors": ["a b"]}),
        ("gallery.json", lambda found: found | {"detectors": ["mtcnn"] * 9}),
        ("gallery.json", lambda found: [found]),
        ("gallery.json", lambda found: b"[" * 100_000),
        ("people.json", lambda found: ["Ada", *found[1:]]),
        ("people.json", lambda found: [found[0] | {"metadata": 1}, *found[1:]]),
        ("people.json", lambda found: found[:1]),
        ("people.json", lambda found: [found[0] | {"name": None}, *found[1:]]),
        ("people.json", lambda found: [found[0] | {"labels": [5]}, *found[1:]]),
        ("templates.json", lambda found: [found[0] | {"created": "0001-01-01T00:00:00+14:00"}, *found[1:]]),
        ("templates.json", lambda found: [found[0] | {"created": "yesterday"}, *found[1:]]),
        ("templates.json", lambda found: [found[0] | {"source_sha256": "x"}, *found[1:]]),
        ("templates.json", lambda found: [found[0] | {"image": "images/9.png"}, *found[1:]]),
        ("templates.json", lambda found: found[1:]),
        ("templates.json", lambda found: [7, *found[1:]]),
        ("vectors.npy", lambda found: b"PK\x05\x06" + bytes(18)),
        ("vectors.npy", lambda found: found.replace(b"(3, 16)", b"(9999999999999, 16)")),
        ("vectors.npy", lambda found: found[:-4]),
        ("vectors.npy", lambda found: saved(np.ones((3, 16), np.int64))),
        ("vectors.npy", lambda found: saved(np.full((3, 16), 1 + 1j))),
        ("vectors.npy", lambda found: saved(np.zeros((3, 16), np.float32))),
        ("vectors.npy", lambda found: found[:-4] + np.float32("nan").tobytes()),
    ],
)
def test_an_export_with_anything_else_in_it_is_refused_by_an_error_of_edgeface(
    store: SqliteStore, tmp_path: Path, name: str, change: Any
) -> None:
    fill(store)
    path = tmp_path / "export"
    export_gallery(store, path, key=None)
    rewrite(path, name, change)
    with (
        SqliteStore.create(tmp_path / "h", contract_id=CONTRACT, dim=DIM, key=None, keep_images=True) as other,
        pytest.raises(EdgeFaceError),
    ):
        import_gallery(other, path, key=None, rules=RULES)
    with SqliteStore(tmp_path / "h") as other:
        assert other.people() == ()


def test_landmarks_that_are_not_known_are_null_in_an_export_and_come_back(store: SqliteStore, tmp_path: Path) -> None:
    landmarks = np.full((5, 2), np.nan, np.float32)
    image = KeptImage(png=b"png", box=np.array([0, 0, 9, 9], np.float32), landmarks=landmarks, aligned=True)
    store.add_person("Ada", templates=[template(vectors(1)[0], image=image)])
    export_gallery(store, tmp_path / "export", key=None)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    parts = unpack(tmp_path / "export", None)
    (listed,) = json.loads(parts["templates.json"], parse_constant=refuse)
    assert listed["landmarks"] == [[None, None]] * 5
    with SqliteStore.create(tmp_path / "h", contract_id=CONTRACT, dim=DIM, key=None, keep_images=True) as other:
        import_gallery(other, tmp_path / "export", key=None, rules=RULES)
        kept = other.image_of(other.load().ids[0].item())
        assert (np.isnan(kept.landmarks).all(), kept.aligned, kept.png) == (True, True, b"png")
