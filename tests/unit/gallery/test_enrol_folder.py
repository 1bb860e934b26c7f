"""Enrolling whole folders and tables, and opening galleries by one function."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from contracts import sample_contract
from tiny_ir import write_tiny_ir
from unit.gallery.conformance import CONTRACT, DIM, OTHER_CONTRACT, vectors
from unit.pipeline.test_pipeline import COLORS, SquareDetector, draw

import edgeface.gallery
from edgeface.errors import ContractError, GalleryKeyError, InputError, MissingError
from edgeface.gallery import EnrolRules, create_gallery, enrol_folder, open_gallery
from edgeface.gallery.enrolment_images import are_tables, plan_enrolment
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.pipeline.pipeline import Pipeline
from edgeface.pipeline.table import EmbeddingTable
from edgeface.runtime import Embedder
from edgeface.vision.quality import QualityGate

RULES = EnrolRules(duplicate_above=0.9, agree_above=0.1, contract_id=CONTRACT)


def save_table(path: Path, rows: np.ndarray, photos: list[str], contract_id: str = CONTRACT) -> Path:
    count = len(rows)
    EmbeddingTable(
        vectors=rows,
        paths=np.array(photos),
        modified=np.zeros(count, np.int64),
        faces=np.zeros(count, np.int32),
        boxes=np.zeros((count, 4), np.float32),
        scores=np.ones(count, np.float32),
        contract_id=contract_id,
        settings="",
    ).save(path)
    return path


@pytest.fixture
def store(tmp_path: Path):
    with SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=None) as opened:
        yield opened


def test_people_of_a_table_are_enrolled_or_refused_one_by_one(store: SqliteStore, tmp_path: Path) -> None:
    rows = np.concatenate([vectors(3), vectors(1)])  # the last one is the first face again
    photos = ["in/Ada/1.jpg", "in/Ada/2.jpg", "in/Grace/1.jpg", "in/Linus/1.jpg"]
    path = save_table(tmp_path / "all.npz", rows, photos)
    done = enrol_folder(store, [path], rules=RULES, labels=["staff"])
    assert [each.person.name for each in done.enrolled] == ["Ada", "Grace"]
    assert list(done.not_enrolled) == ["Linus"]
    assert not done
    assert repr(done) == "FolderEnrolment(2 enrolled, 1 not enrolled, 0 photos refused)"
    assert all(person.labels == ("staff",) for person in store.people())
    ada = done.to_dict()["enrolled"][0]
    assert (ada["name"], ada["new_person"], len(ada["new_templates"]), ada["already"]) == ("Ada", True, 2, 0)
    assert {each["new"] for each in ada["disagreements"]} <= {"in/Ada/2.jpg"}
    store.update_person(ada["id"], metadata={"site": "Bern", "pin": "salt$hash", "forget_code": "hash"})
    again = enrol_folder(store, [path], rules=RULES)
    assert [each.already for each in again.enrolled] == [2, 1]
    assert again.to_dict()["enrolled"][0]["metadata"] == {"site": "Bern"}
    assert "hash" not in repr(again.to_dict())
    forced = enrol_folder(store, [path], rules=RULES, force=True)
    assert forced
    assert forced.to_dict()["enrolled"][2]["lookalikes"][0]["name"] == "Ada"


def test_what_does_not_fit_is_refused_before_anything_is_written(store: SqliteStore, tmp_path: Path) -> None:
    alien = save_table(tmp_path / "alien.npz", vectors(1), ["in/Ada/1.jpg"], OTHER_CONTRACT)
    photo = tmp_path / "Ada" / "1.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"")
    with pytest.raises(ContractError, match=OTHER_CONTRACT):
        enrol_folder(store, [alien], rules=RULES)
    with pytest.raises(InputError, match="expected a model"):
        enrol_folder(store, [photo], rules=RULES, name="Ada")
    with pytest.raises(InputError, match="one folder for each person"):
        enrol_folder(store, [photo.parent], rules=RULES)
    assert store.people() == ()
    assert are_tables([alien])
    assert not are_tables([alien, photo])


def test_what_the_gate_rejects_is_not_counted_among_the_faces_of_a_photo(tmp_path: Path) -> None:
    clean, two, none = draw((0, 10, 20)), draw((0, 10, 20), (2, 300, 30)), draw()
    for photo in (clean, two, none):
        photo[100:220, 150:270] = COLORS[1]  # a false alarm: larger than a face, and without any detail
    none[:, :130] = COLORS[2]
    for name, photo in (("Ada", clean), ("Grace", two), ("Desk", none)):
        (tmp_path / "people" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "people" / name / "1.png"), photo)
    with Embedder.load(write_tiny_ir(tmp_path)) as embedder:
        pipeline = Pipeline(SquareDetector(), embedder, gate=QualityGate(min_contrast=5))
        rules = EnrolRules(duplicate_above=1, agree_above=0.1, contract_id=embedder.contract.contract_id)
        with create_gallery(tmp_path / "g", contract=embedder.contract, key=None) as store:
            done = enrol_folder(store, [tmp_path / "people"], rules=rules, pipeline=pipeline)
            assert [each.person.name for each in done.enrolled] == ["Ada"]
            refused = {path.parent.name: why for path, why in done.refused.items()}
            assert refused["Grace"].startswith("expected one face, found 2;")
            assert refused["Desk"].startswith("found 2 faces, none of them usable; largest: sharpness: ")
            largest = enrol_folder(
                store, [tmp_path / "people" / "*" / "1.png"], rules=rules, pipeline=pipeline, largest=True
            )
            assert [each.person.name for each in largest.enrolled] == ["Ada", "Grace"]


def test_a_person_of_a_table_is_the_folder_below_the_one_that_holds_all_photos(
    store: SqliteStore, tmp_path: Path
) -> None:
    deep = save_table(tmp_path / "deep.npz", vectors(2), ["in/Ada/2021/1.jpg", "in/Bob/2021/1.jpg"])
    assert list(plan_enrolment([deep]).people) == ["Ada", "Bob"]
    for photos in (["dl/1.jpg"], ["in/Ada/1.jpg", "in/Ada/2021/2.jpg"], ["/in/Ada/1.jpg", "in/Bob/1.jpg"]):
        table = save_table(tmp_path / "unclear.npz", vectors(len(photos)), photos)
        with pytest.raises(InputError, match=r"one folder for each person.*pass --name"):
            enrol_folder(store, [table], rules=RULES)
        assert list(plan_enrolment([table], name="Ada").people) == ["Ada"]
    assert store.people() == ()


def test_photos_of_several_people_under_one_name_are_refused_by_name_unless_forced(
    store: SqliteStore, tmp_path: Path
) -> None:
    ada, bob = vectors(2, seed=4)
    noise = np.random.default_rng(1).normal(scale=0.02, size=(6, DIM))
    rows = np.stack([ada, ada, bob, ada, ada, bob]) + noise
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    photos = [f"in/Pat/{number}.jpg" for number in range(5)] + ["in/Bob/5.jpg"]
    rules = EnrolRules(duplicate_above=0.99999, agree_above=0.6, contract_id=CONTRACT)
    table = save_table(tmp_path / "mixed.npz", rows, photos)
    done = enrol_folder(store, [table], rules=rules)
    assert [each.person.name for each in done.enrolled] == ["Bob"]
    expected = r"Pat: .*several people.*: in/Pat/0.jpg, in/Pat/1.jpg, in/Pat/3.jpg, ...; in/Pat/2.jpg; put each"
    assert re.match(expected, done.not_enrolled["Pat"])
    above = EnrolRules(duplicate_above=0.6, agree_above=0.6, contract_id=CONTRACT)
    refused = enrol_folder(store, [table], rules=above).not_enrolled["Pat"]
    assert "several people" in refused  # rather than: this is Bob
    of_ada = save_table(tmp_path / "ada.npz", rows[:1], ["in/Bob/0.jpg"])
    later = enrol_folder(store, [of_ada], rules=rules, name="Bob")
    assert "by their faces and by those enrolled: in/Bob/0.jpg" in later.not_enrolled["Bob"]
    assert enrol_folder(store, [table], rules=rules, force=True)
    assert enrol_folder(store, [table], rules=rules)  # what is stored is not judged again
    assert enrol_folder(store, [of_ada], rules=rules, name="Pat")


def test_a_folder_of_photos_with_several_faces_is_refused_by_name(tmp_path: Path) -> None:
    both, alone = draw((0, 10, 20), (2, 300, 30)), draw((0, 10, 20))
    for name, photos in {"Party": (both, both, alone), "Ada": (alone, both)}.items():
        (tmp_path / "people" / name).mkdir(parents=True)
        for number, photo in enumerate(photos):
            cv2.imwrite(str(tmp_path / "people" / name / f"{number}.png"), photo)
    (tmp_path / "people" / "Gifs").mkdir()
    (tmp_path / "people" / "Gifs" / "a.gif").write_bytes(b"GIF89a")
    with Embedder.load(write_tiny_ir(tmp_path)) as embedder:
        rules = EnrolRules(duplicate_above=1, agree_above=0.1, contract_id=embedder.contract.contract_id)
        with create_gallery(tmp_path / "g", contract=embedder.contract, key=None) as store:
            pipeline = Pipeline(SquareDetector(), embedder)
            done = enrol_folder(store, [tmp_path / "people"], rules=rules, pipeline=pipeline)
            assert [each.person.name for each in done.enrolled] == ["Ada"]
            assert "found several faces in 2 of 3 photos" in done.not_enrolled["Party"]
            assert "none that can be read" in done.not_enrolled["Gifs"]
            assert "found a GIF" in done.refused[tmp_path / "people" / "Gifs" / "a.gif"]
            largest = enrol_folder(store, [tmp_path / "people"], rules=rules, pipeline=pipeline, largest=True)
            assert [each.person.name for each in largest.enrolled] == ["Ada", "Party"]


def test_rules_are_chosen_by_a_number_a_file_or_the_contract(tmp_path: Path) -> None:
    assert EnrolRules.choose("0.5", CONTRACT).agree_above == EnrolRules.choose(0.5, CONTRACT).agree_above == 0.5
    with pytest.raises(MissingError, match=CONTRACT):
        EnrolRules.choose(None, CONTRACT)
    with pytest.raises(InputError):
        EnrolRules.choose(tmp_path / "none.json", CONTRACT)


def test_a_gallery_is_created_and_opened_by_one_function_each(tmp_path: Path) -> None:
    contract, key = sample_contract(), tmp_path / "keys" / "key"
    key.parent.mkdir()
    key.write_text("ab" * 32)
    key.chmod(0o600)
    path = tmp_path / "galleries" / "people"
    path.parent.mkdir()
    with create_gallery(path, contract=contract, key=f"file:{key}", keep_images=True) as store:
        info = store.info
        assert (info.contract_id, info.dim) == (contract.contract_id, contract.embedding_dim)
        assert (info.encrypted, info.keeps_images) == (True, True)
    with open_gallery(str(path), key=bytes.fromhex("ab" * 32), contract_id=contract.contract_id) as store:
        assert store.info == info
    with pytest.raises(GalleryKeyError):
        open_gallery(path)
    for wrong in ("mysql://nowhere/db", Path("postgresql://nowhere/db")):
        with pytest.raises(InputError, match="postgresql://HOST/DATABASE with"):
            open_gallery(wrong)


def test_the_package_exports_what_it_names() -> None:
    for name in edgeface.gallery.__all__:
        assert getattr(edgeface.gallery, name) is not None
