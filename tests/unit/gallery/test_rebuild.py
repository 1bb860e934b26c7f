"""Another model takes over from kept images, on real IRs; what is interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import cv2
import numpy as np
import pytest
from tiny_ir import tiny_crop, write_tiny_ir
from unit.gallery.conformance import template, templates

from edgeface.errors import ContractError, GalleryError, OutputError
from edgeface.gallery import create_gallery, open_gallery
from edgeface.gallery.enrolment_images import enrolment_images
from edgeface.gallery.index import ExactIndex
from edgeface.gallery.rebuild import rebuild
from edgeface.gallery.records import KeptImage, NewTemplate
from edgeface.gallery.store.base import GalleryStore
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.model.contract import ModelContract
from edgeface.model.embedding import Embedding
from edgeface.pipeline.pipeline import Pipeline
from edgeface.runtime import Embedder
from edgeface.vision.detector import Faces
from edgeface.vision.quality import QualityGate

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]
KEY = bytes(range(32))
BOX = np.array([[40.25, 30.5, 100.75, 95.5]], np.float32)


class OneFace:
    """Finds as many faces as it is told to, always in one place."""

    name = "fixed"
    settings: ClassVar[dict[str, str]] = {"name": "fixed"}

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        points = np.array([[55, 50], [85, 50], [70, 62], [60, 80], [80, 80]], np.float32)
        return [
            Faces(BOX.repeat(self.count, 0), points[None].repeat(self.count, 0), np.full(self.count, 0.9, np.float32))
            for _ in images
        ]


@pytest.fixture
def irs(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    return write_tiny_ir(tmp_path / "old"), write_tiny_ir(tmp_path / "new", source="b", margin=20)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Forty pictures in which any other crop has another mean colour, and one that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        dice = np.random.default_rng(number)
        picture = cv2.resize(dice.integers(0, 255, (12, 16, 3)).astype(np.uint8), (160, 120))
        cv2.imwrite(str(folder / f"{number:02}.png"), picture)
    (folder / "40.png").write_bytes(b"no picture")
    return sorted(folder.iterdir())


class Home:
    """Where galleries lie; each has a name."""

    def __init__(self, place: Callable[[str], str], key: bytes | None) -> None:
        self.place, self.key = place, key

    def create(self, name: str, contract: ModelContract, *, keep_images: bool = True) -> GalleryStore:
        return create_gallery(
            self.place(name), contract=contract, key=self.key, keep_images=keep_images, allow_seeded=True
        )

    def open(self, name: str, contract_id: str | None = None) -> GalleryStore:
        return open_gallery(self.place(name), key=self.key, contract_id=contract_id)


@pytest.fixture(params=["file", "server", pytest.param("server, not encrypted", marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    if request.param == "file":
        return Home(lambda name: str(tmp_path / name), KEY)
    server = request.getfixturevalue("cluster" if request.param == "server" else "pgvector")
    run = f"rebuild_{uuid4().hex[:12]}"
    return Home(lambda name: f"{server.url}?gallery={run}_{name}", KEY if request.param == "server" else None)


def fill(
    home: Home, name: str, ir: Path, photos: list[Path], *, keep_images: bool = True
) -> tuple[GalleryStore, list[str]]:
    with Embedder.load(ir) as embedder:
        store = home.create(name, embedder.contract, keep_images=keep_images)
        found = list(enrolment_images(photos, Pipeline(OneFace(), embedder), keep_images=keep_images))
    for number, each in enumerate(found):
        if each.template:
            store.add_person(f"p{number}", templates=[each.template])
    return store, [each.refusal for each in found]


def test_portraits_come_in_order_with_digest_quality_and_what_was_refused(
    home: Home, irs: tuple[Path, Path], photos: list[Path]
) -> None:
    import hashlib

    store, refusals = fill(home, "g", irs[0], [photos[40], *photos[:3], photos[40]])
    assert [bool(each) for each in refusals] == [True, False, False, False, True]
    stored = [store.templates_of(person.id)[0] for person in store.people()]
    assert [each.source_sha256 for each in stored] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in photos[:3]
    ]
    assert all(0 < each.quality <= 1 and each.has_image for each in stored)
    store.close()


def test_a_picture_of_several_or_of_no_faces_or_of_bad_ones_is_refused(
    irs: tuple[Path, Path], photos: list[Path]
) -> None:
    with Embedder.load(irs[0]) as embedder:

        def refusal(count: int, *, largest: bool = False, gate: QualityGate | None = None) -> str:
            pipeline = Pipeline(OneFace(count), embedder, gate=gate)
            (found,) = enrolment_images(photos[:1], pipeline, keep_images=False, largest=largest)
            assert (found.template is None) is bool(found.refusal)
            return found.refusal

        assert "found none" in refusal(0)
        assert "expected one face, found 2" in refusal(2)
        assert refusal(2, largest=True) == ""
        assert "box side: expected at least 80" in refusal(1, gate=QualityGate(min_box_side=80))


def test_a_rebuild_that_fails_after_the_commit_says_which_model_the_gallery_has(
    home: Home, irs: tuple[Path, Path], photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: GalleryStore) -> None:
        raise OutputError("g: undone", found="no space left", remedy="free some space")

    store, _ = fill(home, "g", irs[0], photos)
    with Embedder.load(irs[1]) as embedder:
        contract_id = embedder.contract.contract_id
        with monkeypatch.context() as patched:
            patched.setattr(type(store), "_overwrite", full)
            if isinstance(store, SqliteStore):
                with pytest.raises(OutputError, match=f"of contract {contract_id} now, but .*: no space left; free"):
                    rebuild(store, embedder)
            else:
                assert "not yet overwritten: no space left" in rebuild(store, embedder).remains[0]
    assert store.info.contract_id == contract_id
    store.close()
    with home.open("g", contract_id) as store:
        assert store.check().problems == ()
        assert store.database.outside("SELECT unscrubbed FROM gallery") == (0,)


def test_a_rebuilt_gallery_equals_one_that_was_enrolled_with_the_new_model(
    home: Home, irs: tuple[Path, Path], photos: list[Path]
) -> None:
    """The part of the picture that was kept gives the new model the very pixels that the picture would have."""
    store, _ = fill(home, "g", irs[0], photos)
    expected, _ = fill(home, "h", irs[1], photos)
    before, generation = store.load(), store.generation()
    with Embedder.load(irs[1]) as embedder:
        done = rebuild(store, embedder)
        assert (done.embedded, done.reused, done.dropped, done.remains) == (40, 0, 0, ())
        with pytest.raises(GalleryError, match="nothing to do"):
            rebuild(store, embedder)
    assert store.info.contract_id == expected.info.contract_id == done.contract_id
    np.testing.assert_allclose(store.load().vectors, expected.load().vectors, atol=1e-6)
    assert np.abs(store.load().vectors - before.vectors).max() > 1e-3
    assert [person.name for person in store.people()] == [person.name for person in expected.people()]
    assert store.changes_since(generation, before.history) is None
    assert store.check().problems == ()
    if home.key is None:  # the server compares
        from edgeface.gallery.index.postgres import PostgresIndex

        probe = Embedding(expected.load().vectors[7], expected.info.contract_id)
        hits = PostgresIndex(store).search(probe, k=3)
        np.testing.assert_array_equal(hits.ids, ExactIndex(store.load()).search(probe, k=3).ids)
    store.close()
    home.open("g", expected.info.contract_id).close()


class Interrupted(Exception):  # noqa: N818
    pass


def test_an_interrupted_rebuild_goes_on_and_the_gallery_works_meanwhile(
    home: Home, irs: tuple[Path, Path], photos: list[Path]
) -> None:
    store, _ = fill(home, "g", irs[0], photos)

    def interrupt(_: object) -> None:
        raise Interrupted

    with Embedder.load(irs[1]) as embedder:
        with pytest.raises(Interrupted):
            rebuild(store, embedder, progress=interrupt)
        old = store.info.contract_id
        assert old != embedder.contract.contract_id
        store.forget(store.find("p0").id)
        late = store.add_person("late", templates=[NewTemplate(embedding=Embedding(np.ones(3, np.float32), old))])
        with pytest.raises(GalleryError, match="no usable stored image"):
            rebuild(store, embedder)
        done = rebuild(store, embedder, drop_missing=True)
    assert (done.embedded, done.reused, done.dropped, done.without_templates) == (8, 31, 1, ("late",))
    assert store.person(late.id).template_count == 0
    assert len(store.load()) == 39
    store.close()


def test_who_is_enrolled_while_a_rebuild_runs_is_embedded_and_not_dropped(
    home: Home, irs: tuple[Path, Path], photos: list[Path]
) -> None:
    store, _ = fill(home, "g", irs[0], photos[:3])
    with Embedder.load(irs[0]) as embedder:
        (late,) = enrolment_images(photos[3:4], Pipeline(OneFace(), embedder), keep_images=True)
    enrolled = []

    def enrol(_: object) -> None:
        if not enrolled:
            with home.open("g") as other:
                enrolled.append(other.add_person("late", templates=[late.template]).id)

    with Embedder.load(irs[1]) as embedder:
        done = rebuild(store, embedder, drop_missing=True, progress=enrol)
    assert (done.embedded, done.reused, done.dropped, done.without_templates) == (4, 0, 0, ())
    assert store.person(enrolled[0]).template_count == 1
    store.close()


def test_a_kept_picture_that_cannot_be_used_is_named_and_left_out_when_asked(
    home: Home, irs: tuple[Path, Path], photos: list[Path]
) -> None:
    store, _ = fill(home, "g", irs[0], photos[:2])
    landmarks = np.full((5, 2), np.nan, np.float32)
    for number, png in enumerate((b"", b"no picture")):
        image = KeptImage(png=png, box=np.array([0, 0, 9, 9], np.float32), landmarks=landmarks)
        row = Embedding(np.eye(3, dtype=np.float32)[number], store.info.contract_id)
        store.add_person(f"bad {number}", templates=[NewTemplate(embedding=row, image=image)])
    bad = store.templates_of(store.find("bad 0").id)[0].id
    with Embedder.load(irs[1]) as embedder:
        with pytest.raises(GalleryError, match=f"template {bad}: .*--drop-missing"):
            rebuild(store, embedder)
        done = rebuild(store, embedder, drop_missing=True)
    assert (done.embedded, done.dropped, done.without_templates) == (2, 2, ("bad 0", "bad 1"))
    store.close()


def test_a_rebuild_on_the_way_to_one_model_starts_anew_for_another(
    tmp_path: Path, home: Home, irs: tuple[Path, Path], photos: list[Path]
) -> None:
    store, _ = fill(home, "g", irs[0], photos)
    (tmp_path / "third").mkdir()

    def interrupt(_: object) -> None:
        raise Interrupted

    with Embedder.load(irs[1]) as embedder, pytest.raises(Interrupted):
        rebuild(store, embedder, progress=interrupt)
    with Embedder.load(write_tiny_ir(tmp_path / "third", source="c", margin=4)) as embedder:
        assert rebuild(store, embedder).reused == 0
    store.close()


def test_crops_are_used_again_only_when_somebody_says_that_they_fit(
    tmp_path: Path, home: Home, irs: tuple[Path, Path]
) -> None:
    path = tmp_path / "crop.png"
    cv2.imwrite(str(path), tiny_crop((10, 200, 90)))
    with Embedder.load(irs[0]) as embedder:
        (found,) = enrolment_images([path], Pipeline(None, embedder), keep_images=True)
        store = home.create("g", embedder.contract)
    assert np.isnan(found.template.quality)
    store.add_person("Ada", templates=[found.template])
    with Embedder.load(irs[1]) as embedder:
        with pytest.raises(GalleryError, match="--same-alignment"):
            rebuild(store, embedder)
        assert rebuild(store, embedder, same_alignment=True).embedded == 1
    expected = np.array([10, 200, 90]) / np.linalg.norm([10, 200, 90])
    np.testing.assert_allclose(store.load().vectors[0], expected, atol=2e-3)  # whole pixels
    store.close()


def test_embeddings_of_the_earlier_model_are_refused_after_a_rebuild(
    home: Home, irs: tuple[Path, Path], photos: list[Path]
) -> None:
    store, _ = fill(home, "g", irs[0], photos[:2])
    old = store.info.contract_id
    with home.open("g") as other, Embedder.load(irs[1]) as embedder:
        rebuild(store, embedder)
        with pytest.raises(GalleryError, match="open it again"):
            other.load()
    row = np.array([1, 0, 0], np.float32)
    with pytest.raises(ContractError):
        store.add_person("late", templates=[NewTemplate(embedding=Embedding(row, old))])
    with pytest.raises(ContractError):
        store.add_person("foreign", templates=[*templates(1), template(row)])
    store.close()
