"""Photos to train on: cut once, split without leaks, and every fault of a folder told before anything is trained."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import cv2
import numpy as np
import pytest
from contracts import sample_contract
from hypothesis import given
from hypothesis import strategies as st
from tiny_net import skin_crops, write_tiny_net

from edgeface.errors import ContractError, InputError
from edgeface.evaluate.faces import FaceCutter
from edgeface.train import data as module
from edgeface.train.data import FaceSet, augment, find_one_person, gather_people, group_shots, split_photos

FAR = np.eye(8, dtype=np.float32)


def write_people(root: Path, counts: dict[str, int], *, seed: int = 0) -> Path:
    """Write so many different crops of 16 x 16 pixels for each person."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index, crop in enumerate(skin_crops(count, seed=100 * seed + number)):
            cv2.imwrite(str(root / name / f"{index}.png"), crop)
    return root


def face_set(people: list[int], vectors: np.ndarray, *, digests: list[str] | None = None) -> FaceSet:
    count = len(people)
    return FaceSet(
        names=tuple(f"P{each}" for each in sorted(set(people))),
        people=np.array(people, np.intp),
        photos=tuple(f"{row}.png" for row in range(count)),
        digests=tuple(digests or [f"{row:064}" for row in range(count)]),
        crops=np.zeros((count, 4, 4, 3), np.uint8),
        embeddings=np.asarray(vectors, np.float32),
        strangers=np.empty((0, vectors.shape[1]), np.float32),
        stranger_crops=np.empty((0, 4, 4, 3), np.uint8),
        dropped={},
        failures={},
        contract=sample_contract(),
        faces="",
    )


def random_set(counts: list[int], *, seed: int = 0) -> FaceSet:
    """People whose photos all differ: 64 random numbers each have a cosine near 0."""
    people = [person for person, count in enumerate(counts) for _ in range(count)]
    return face_set(people, np.random.default_rng(seed).normal(size=(len(people), 64)))


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    return write_tiny_net(tmp_path / "model")


def test_people_below_the_minimum_are_dropped_and_listed(tmp_path: Path, ir: Path) -> None:
    root = write_people(tmp_path / "people", {"Ada": 5, "Bob": 4, "Eve": 2, "Nobody": 0})
    found = gather_people(root, ir, min_photos=4, cache=tmp_path / "cache")
    assert found.names == ("Ada", "Bob")
    assert found.people.tolist() == [0] * 5 + [1] * 4
    assert found.dropped == {"Eve": 2, "Nobody": 0}
    assert found.strangers.shape == (2, 8)
    assert found.embeddings == pytest.approx(np.array(found.embeddings))
    assert np.array_equal(found.crops[0], cv2.imread(str(root / "Ada/0.png")))


def test_a_second_run_takes_everything_from_the_cache(
    tmp_path: Path, ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_people(tmp_path / "people", {"Ada": 3, "Bob": 3})
    first = gather_people(root, ir, min_photos=2, cache=tmp_path / "cache")
    monkeypatch.setattr(FaceCutter, "crop", lambda *_: pytest.fail("a photo was cut again"))
    again = gather_people(root, ir, min_photos=2, cache=tmp_path / "cache")
    assert np.array_equal(first.embeddings, again.embeddings)
    assert first.digest == again.digest
    monkeypatch.undo()
    cv2.imwrite(str(root / "Ada/0.png"), skin_crops(1, seed=77)[0])
    changed = gather_people(root, ir, min_photos=2, cache=tmp_path / "cache")
    assert not np.allclose(changed.embeddings[0], first.embeddings[0])
    assert np.array_equal(changed.embeddings[1:], first.embeddings[1:])
    assert changed.digest != first.digest


def test_cached_faces_can_be_read_by_their_owner_alone_and_a_damaged_one_is_cut_again(tmp_path: Path, ir: Path) -> None:
    root = write_people(tmp_path / "people", {"Ada": 2, "Bob": 2})
    first = gather_people(root, ir, min_photos=2, cache=tmp_path / "cache")
    files = sorted((tmp_path / "cache").rglob("*.npz"))
    assert len(files) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    for file, content in zip(files, (b"", b"PK\x03\x04", files[2].read_bytes()[:-40], b"\x93NUMPY"), strict=True):
        file.write_bytes(content)
    again = gather_people(root, ir, min_photos=2, cache=tmp_path / "cache")
    assert np.array_equal(first.embeddings, again.embeddings)


def test_another_model_gets_embeddings_of_its_own(tmp_path: Path, ir: Path) -> None:
    root = write_people(tmp_path / "people", {"Ada": 2, "Bob": 2})
    other = write_tiny_net(tmp_path / "other", seed=1, source_sha256="b" * 64)
    first, second = (gather_people(root, each, min_photos=2, cache=tmp_path / "cache") for each in (ir, other))
    assert not np.allclose(first.embeddings, second.embeddings)


def test_broken_photos_and_mixed_sizes_are_named_and_the_others_are_used(tmp_path: Path, ir: Path) -> None:
    root = write_people(tmp_path / "people", {"Ada": 3, "Bob": 3})
    (root / "Ada/broken.jpg").write_bytes(b"no photo")
    (root / "Bob/cut.png").write_bytes((root / "Bob/0.png").read_bytes()[:60])
    cv2.imwrite(str(root / "Bob/blank.png"), np.full((16, 16, 3), 90, np.uint8))
    cv2.imwrite(str(root / "Bob/photo.png"), np.zeros((40, 90, 3), np.uint8))
    cv2.imwrite(str(root / "Bob/large.png"), cv2.imread(str(root / "Bob/1.png")).repeat(2, 0).repeat(2, 1))
    found = gather_people(root, ir, min_photos=3, cache=tmp_path / "cache")
    assert len(found) == 7
    assert found.crops.shape == (7, 16, 16, 3)
    assert sorted(found.failures) == ["Ada/broken.jpg", "Bob/blank.png", "Bob/cut.png", "Bob/photo.png"]
    assert "an image of one colour" in found.failures["Bob/blank.png"]
    assert "found 90x40; if it is a photo, leave out --crops" in found.failures["Bob/photo.png"]
    with pytest.raises(InputError, match=r"4 cannot be used, the first .*broken\.jpg"):
        gather_people(root, ir, min_photos=5, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"Ada": 5}, "1 such people of 1,"),
        ({"Ada": 1, "Bob": 1, "Eve": 1}, "0 such people of 3,"),
        ({"Ada": 5, "Bob": 1}, "1 such people of 2,"),
    ],
)
def test_too_few_people_are_refused_with_what_was_found(
    tmp_path: Path, ir: Path, counts: dict[str, int], expected: str
) -> None:
    with pytest.raises(InputError, match=expected) as raised:
        gather_people(write_people(tmp_path / "people", counts), ir, min_photos=2, cache=tmp_path / "cache")
    assert "min-photos" in (raised.value.remedy or "")


def test_a_seeded_model_and_a_minimum_of_one_photo_are_refused(tmp_path: Path) -> None:
    seeded = write_tiny_net(tmp_path / "seeded", provenance="seeded")
    root = write_people(tmp_path / "people", {"Ada": 2, "Bob": 2})
    with pytest.raises(ContractError, match="seeded"):
        gather_people(root, seeded, min_photos=2, cache=tmp_path / "cache")
    with pytest.raises(InputError, match="at least 2 photos"):
        gather_people(root, seeded, min_photos=1, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_every_person_is_trained_on_and_judged_by_as_far_as_the_photos_reach() -> None:
    faces = random_set([2, 3, 4, 10, 40])
    parts = split_photos(faces, held_out=0.2, validation=0.1, seed=3)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(faces)))
    counts = {part: np.bincount(faces.people[rows], minlength=5).tolist() for part, rows in parts.items()}
    assert counts == {"train": [1, 1, 2, 7, 28], "validation": [0, 1, 1, 1, 4], "held_out": [1, 1, 1, 2, 8]}
    same, other = (split_photos(faces, seed=seed)["held_out"] for seed in (3, 4))
    assert np.array_equal(parts["held_out"], same)
    assert not np.array_equal(same, other)


def test_near_duplicates_and_equal_files_stay_on_one_side() -> None:
    rng = np.random.default_rng(5)
    base = rng.normal(size=(12, 64))
    bursts = np.repeat(base, 3, axis=0) + 0.05 * rng.normal(size=(36, 64))  # cosine 0.997 within a burst
    people = [row // 18 for row in range(36)]
    digests = [f"{row:064}" for row in range(36)]
    digests[17] = digests[0]  # joins two bursts of the first person
    digests[35] = digests[1]  # another person's: no reason to join
    faces = face_set(people, bursts, digests=digests)
    shots = group_shots(faces)
    assert len(np.unique(shots)) == 11
    assert shots[0] == shots[17]
    assert shots[1] != shots[35]
    for seed in range(20):
        parts = split_photos(faces, seed=seed)
        side = np.empty(36, object)
        for part, rows in parts.items():
            side[rows] = part
        assert all(len(set(side[shots == shot])) == 1 for shot in np.unique(shots))
        assert all(len(rows) for rows in parts.values())


@given(
    shots=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=8), min_size=2, max_size=5),
    held_out=st.floats(0, 0.5),
    validation=st.floats(0, 0.5),
    seed=st.integers(0, 1000),
)
def test_whatever_the_shots_each_photo_is_on_one_side_with_its_shot_and_each_person_is_trained_on(
    shots: list[list[int]], held_out: float, validation: float, seed: int
) -> None:
    people = [person for person, sizes in enumerate(shots) for size in sizes for _ in range(size)]
    shot_of = np.repeat(np.arange(sum(map(len, shots))), [size for sizes in shots for size in sizes])
    faces = face_set(people, np.eye(40)[shot_of])
    assert np.array_equal(np.unique(group_shots(faces), return_inverse=True)[1], shot_of)
    parts = split_photos(faces, held_out=held_out, validation=validation, seed=seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(people)))
    sides = {name: set(shot_of[rows].tolist()) for name, rows in parts.items()}
    assert sum(map(len, sides.values())) == len(set(shot_of.tolist()))
    assert set(faces.people[parts["train"]].tolist()) == set(range(len(shots)))
    several = {person for person, sizes in enumerate(shots) if len(sizes) > 1}
    assert set(faces.people[parts["held_out"]].tolist()) == (several if held_out else set())


def test_people_of_one_shot_are_trained_on_only() -> None:
    vectors = np.repeat(np.eye(2, 8), 5, axis=0)
    parts = split_photos(face_set([0] * 5 + [1] * 5, vectors))
    assert [len(parts[part]) for part in ("train", "validation", "held_out")] == [10, 0, 0]


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
def test_a_share_that_leaves_nothing_to_train_on_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="held_out"):
        split_photos(random_set([4, 4]), held_out=share)


def test_two_names_for_one_person_are_found_and_two_people_are_not() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 64))
    people = np.repeat([0, 1, 2, 3], 6)
    vectors = centres[[0, 1, 2, 1]].repeat(6, axis=0) + 0.6 * rng.normal(size=(24, 64))
    (found,) = find_one_person(face_set(people.tolist(), vectors))
    assert found[:2] == ("P1", "P3")
    assert 0.5 < found[2] < 1
    apart = centres.repeat(6, axis=0) + 0.6 * rng.normal(size=(18, 64))
    assert find_one_person(face_set(np.repeat([0, 1, 2], 6).tolist(), apart)) == ()


def test_one_file_under_two_names_is_said() -> None:
    faces = random_set([3, 3])
    shared = (*faces.digests[:5], faces.digests[0])
    (found,) = find_one_person(dataclasses.replace(faces, digests=shared))
    assert found[:2] == ("P0", "P1")


def test_a_checkpoint_is_not_valid_for_photos_of_other_names_or_faces_of_another_source() -> None:
    faces = random_set([2, 2])
    renamed = dataclasses.replace(faces, photos=faces.photos[::-1])
    cut = dataclasses.replace(faces, faces="faces that mtcnn finds")
    assert faces.fingerprint({"seed": 1}) == random_set([2, 2]).fingerprint({"seed": 1})
    assert len({each.fingerprint({"seed": 1}) for each in (faces, renamed, cut)} | {faces.fingerprint({})}) == 4


def test_a_name_that_is_no_utf_8_has_a_digest() -> None:
    faces = random_set([2, 2])
    odd = dataclasses.replace(faces, names=("P0", os.fsdecode(b"Ren\xe9")))
    assert odd.digest != faces.digest


def test_the_mirror_is_the_mirror_and_none_is_nothing() -> None:
    crops = skin_crops(3)
    assert list(augment(crops, "none", copies=3)) == []
    (mirrored,) = augment(crops, "mirror", copies=3)
    assert np.array_equal(mirrored[:, :, ::-1], crops)


@pytest.mark.parametrize("kind", ["light", "some-of-seven"])
def test_drawn_changes_follow_from_the_seed(kind: module.Augmentation) -> None:
    pytest.importorskip("albumentations", reason="the extra 'train' is not installed")
    crops = skin_crops(20)
    first, again, other = (np.stack(list(augment(crops, kind, copies=2, seed=seed))) for seed in (0, 0, 1))
    assert first.shape == (2, *crops.shape)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    changed = np.any(first[0] != crops, axis=(1, 2, 3))
    assert changed.sum() > 5


def test_colours_stay_in_their_places_when_a_crop_is_changed() -> None:
    pytest.importorskip("albumentations", reason="the extra 'train' is not installed")
    crops = np.zeros((10, 16, 16, 3), np.uint8)
    crops[..., 2] = 200  # red, in BGR
    (changed,) = augment(crops, "light")
    assert changed[..., 2].min() > 100
    assert changed[..., :2].max() < 60
