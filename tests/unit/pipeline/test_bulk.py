"""Tables that come back as they were written, and bulk work that goes on where it was interrupted."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_ir import write_tiny_ir

from edgeface.errors import (
    ContractError,
    ExtraNotInstalledError,
    ImageError,
    InferenceError,
    InputError,
    OutputError,
    install_line,
)
from edgeface.files import sha256_of
from edgeface.pipeline.batch import BulkResult, embed_files
from edgeface.pipeline.pipeline import Pipeline
from edgeface.pipeline.table import EmbeddingTable
from edgeface.progress import Progress, ignore_progress
from edgeface.recognize.known import shipped_thresholds
from edgeface.runtime import Embedder
from edgeface.vision.detector import Faces
from edgeface.vision.quality import QualityGate

pytestmark = pytest.mark.timeout(60)
BRIGHT = 120
_LOWEST = [field.name for field in dataclasses.fields(QualityGate) if field.name.startswith("min_")]
_HIGHEST = {field.name: 1000 for field in dataclasses.fields(QualityGate) if field.name.startswith("max_")}


class HalfDetector:
    """Every bright half of a picture is a face; the n-th call fails if told so."""

    name = "halves"

    def __init__(self, *, fail_at: int | None = None, **settings: object) -> None:
        self.calls = 0
        self.settings = {"name": "halves", "threshold": 0.5, "min_size": 20, "model": "0a", "landmarks_model": None}
        self.settings |= settings
        self._fail_at = fail_at

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        if self.calls == self._fail_at:
            raise InferenceError("power cut")
        self.calls += 1
        return [self._find(image) for image in images]

    def _find(self, image: np.ndarray) -> Faces:
        height, width = image.shape[:2]
        halves = [(width // 2, width), (0, width // 2)]  # the right one first: rows must still go left to right
        boxes = [[x0, 0, x1, height] for x0, x1 in halves if image[:, x0:x1].max() > BRIGHT]
        count = len(boxes)
        return Faces(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.full((count, 5, 2), np.nan, np.float32),
            np.linspace(0.9, 0.8, count, dtype=np.float32),
        )


@pytest.fixture
def embedder(tmp_path: Path) -> Iterator[Embedder]:
    with Embedder.load(write_tiny_ir(tmp_path)) as loaded:
        yield loaded


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Ten pictures of two faces: blue on the left, green on the right, lighter from file to file."""
    paths = []
    for number in range(10):
        image = np.zeros((40, 80, 3), np.uint8)
        image[:, :40, 0] = image[:, 40:, 1] = 150 + number
        image[::2, :, 2] = 10 * number
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), image)
    return paths


def embed(files: Sequence[Path], embedder: Embedder, output: Path, **options: object) -> BulkResult:
    detector = options.pop("detector", None) or HalfDetector()
    progress = options.pop("progress", ignore_progress)
    return embed_files(files, Pipeline(detector, embedder, **options), output, progress=progress)


def a_table(rows: int = 3, **changes: object) -> EmbeddingTable:
    random = np.random.default_rng(0)
    table = EmbeddingTable(
        vectors=random.random((rows, 5), np.float32),
        paths=np.array([f"folder/é{n}.jpg" for n in range(rows)]),
        modified=np.arange(rows, dtype=np.int64) + 2**60,
        faces=np.zeros(rows, np.int32),
        boxes=random.random((rows, 4), np.float32),
        scores=random.random(rows, np.float32),
        contract_id="0123456789abcdef",
        settings=json.dumps({"detector": "mtcnn"}),
    )
    return dataclasses.replace(table, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": np.ones((3, 5), np.complex64)},
        {"vectors": np.full((3, 5), 300, np.int16)},
        {"vectors": np.zeros((3, 5), np.float32)},
        {"vectors": np.full((3, 5), np.nan, np.float32)},
        {"vectors": np.ones((3, 5), bool)},
        {"faces": np.array([0, 1, 2**32], np.int64)},
        {"faces": np.array([0, 1, 1.5])},
        {"contract_id": np.array(5)},
    ],
)
def test_a_table_of_numbers_that_no_embeddings_are_is_refused_on_reading(
    changes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    table = a_table()
    columns = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    np.savez(tmp_path / "t.npz", **(columns | changes))
    with pytest.raises(InputError, match=r"t\.npz: expected embeddings written by"):
        EmbeddingTable.load(tmp_path / "t.npz")


def test_rows_are_in_the_order_of_files_and_of_faces_from_the_left(
    pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    told: list[Progress] = []
    result = embed(pictures, embedder, tmp_path / "out.npz", progress=told.append)
    table = EmbeddingTable.load(tmp_path / "out.npz")
    assert table.paths.tolist() == [str(path) for path in pictures for _ in range(2)]
    assert table.faces.tolist() == [0, 1] * 10
    assert table.vectors.argmax(axis=1).tolist() == [0, 1] * 10
    assert table.contract_id == table.embeddings.contract_id == embedder.contract.contract_id
    assert told[-1] == Progress("embedding", done=10, total=10, unit="files")
    assert (result.files, result.reused, result.failures) == (10, 0, {})


def test_an_interrupted_run_goes_on_where_it_was(pictures: list[Path], embedder: Embedder, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    with pytest.raises(InferenceError, match="power cut"):
        embed(pictures, embedder, output, detector=HalfDetector(fail_at=6))
    assert not output.exists()
    rest = HalfDetector()
    result = embed(pictures, embedder, output, detector=rest)
    assert (result.reused, rest.calls) == (6, 4)
    assert len(EmbeddingTable.load(output)) == 20
    assert not output.with_name("out.npz.parts").exists()


def test_a_second_run_into_the_same_file_at_once_is_refused_and_the_first_is_whole(
    pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    output, refused = tmp_path / "out.npz", []

    def another(_: Progress) -> None:
        with pytest.raises(OutputError, match=r"out\.npz: another run is writing this file"):
            embed(pictures[:1], embedder, output)
        refused.append(1)

    embed(pictures, embedder, output, progress=another)
    assert refused
    assert len(EmbeddingTable.load(output)) == 20
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.npz"]
    assert embed(pictures, embedder, output).reused == 10


def test_only_new_and_changed_files_are_embedded_again(
    pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    output = tmp_path / "out.npz"
    embed(pictures[:8], embedder, output)
    dark_right = np.zeros((40, 80, 3), np.uint8)
    dark_right[:, :40, 2] = 200
    cv2.imwrite(str(pictures[3]), dark_right)
    again = HalfDetector()
    result = embed(pictures, embedder, output, detector=again)
    assert (result.reused, again.calls) == (7, 3)
    assert len(result.table) == 19
    row = result.table.paths.tolist().index(str(pictures[3]))
    assert result.table.vectors[row].argmax() == 2


def replace_unseen(path: Path, image: np.ndarray) -> None:
    """Write another picture into a file, of the same size in bytes and with the same times."""
    before = path.stat()
    encoded = cv2.imencode(".bmp", image)[1].tobytes()
    assert len(encoded) == before.st_size
    path.write_bytes(encoded)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("output", ["out.npz", "out.parquet"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_photo_that_was_replaced_is_embedded_again_though_size_and_time_are_the_same(
    output: str, interrupted: bool, embedder: Embedder, tmp_path: Path
) -> None:
    if output.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install '.[parquet]'")
    blue, red = np.zeros((2, 40, 80, 3), np.uint8)
    blue[:, :40, 0] = red[:, :40, 2] = 200
    photos = [tmp_path / f"{n}.bmp" for n in range(3)]
    for path in photos:
        cv2.imwrite(str(path), blue)
    if interrupted:
        with pytest.raises(InferenceError, match="power cut"):
            embed(photos, embedder, tmp_path / output, detector=HalfDetector(fail_at=2))
    else:
        embed(photos[:2], embedder, tmp_path / output)
    replace_unseen(photos[0], red)
    result = embed(photos, embedder, tmp_path / output)
    assert result.reused == 1
    assert EmbeddingTable.load(tmp_path / output).vectors.argmax(axis=1).tolist() == [2, 0, 0]
    assert result.table.digests.tolist() == [sha256_of(path) for path in photos]
    assert result.table.sizes.tolist() == [path.stat().st_size for path in photos]


def test_a_row_names_the_bytes_that_it_was_made_of_and_not_those_that_were_there_before(
    embedder: Embedder, tmp_path: Path
) -> None:
    blue, red = np.zeros((2, 40, 80, 3), np.uint8)
    blue[:, :40, 0] = red[:, :40, 2] = 200
    photos = [tmp_path / f"{n}.bmp" for n in range(12)]
    for path in photos:
        cv2.imwrite(str(path), blue)
    detector = HalfDetector()

    class ReplacesTheLast(HalfDetector):
        """The run has listed all photos when the first one is searched; the last is not read yet."""

        def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
            if self.calls == 0:
                replace_unseen(photos[-1], red)
            return super().detect(images)

    embed(photos, embedder, tmp_path / "out.npz", detector=ReplacesTheLast())
    replace_unseen(photos[-1], blue)
    again = embed(photos, embedder, tmp_path / "out.npz", detector=detector)
    assert (again.reused, detector.calls) == (11, 1)
    assert again.table.vectors.argmax(axis=1).tolist() == [0] * 12


def test_rows_of_a_photo_that_has_become_unusable_are_dropped(
    pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    embed(pictures, embedder, tmp_path / "out.npz")
    cv2.imwrite(str(pictures[4]), np.zeros((40, 80, 3), np.uint8))
    pictures[5].write_bytes(b"no picture")
    result = embed(pictures, embedder, tmp_path / "out.npz")
    assert set(result.failures) == {pictures[4], pictures[5]}
    assert not {str(pictures[4]), str(pictures[5])} & set(result.table.paths.tolist())


def test_rows_that_an_interruption_left_twice_are_kept_once(
    pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    output = tmp_path / "out.npz"
    embed(pictures, embedder, output)
    EmbeddingTable.load(output).save(tmp_path / "out.npz.parts" / "000000.npz")
    assert len(embed(pictures, embedder, output).table) == 20


def test_bad_files_and_pictures_without_faces_are_named_and_skipped(
    pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    pictures[2].write_bytes(b"no picture")
    cv2.imwrite(str(pictures[5]), np.zeros((40, 80, 3), np.uint8))
    absent = tmp_path / "absent.png"
    result = embed([*pictures, absent], embedder, tmp_path / "out.npz")
    assert set(result.failures) == {pictures[2], pictures[5], absent}
    assert "expected a JPEG, PNG, WebP, BMP, TIFF, PGM or PPM image" in result.failures[pictures[2]]
    assert result.failures[pictures[5]] == "expected a face, found none"
    assert len(result.table) == 16


def test_a_picture_that_the_detector_refuses_fails_no_other(
    pictures: list[Path], embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = HalfDetector()
    find, calls = detector.detect, []

    def refuse_the_second(images: Sequence[np.ndarray]) -> list[Faces]:
        calls.append(len(images))
        if len(images) > 1 or len(calls) == 3:  # all together, then the second by itself
            raise ImageError("too many places")
        return find(images)

    monkeypatch.setattr(detector, "detect", refuse_the_second)
    pipeline = Pipeline(detector, embedder, gate=None, batch_size=len(pictures), prefetch=1)  # type: ignore[arg-type]
    result = embed_files(pictures, pipeline, tmp_path / "rows.npz")
    assert result.failures == {pictures[1]: "too many places"}
    assert {*map(str, result.table.paths)} == {str(path) for path in pictures if path != pictures[1]}


def test_no_embedding_at_all_is_an_error_and_no_file(embedder: Embedder, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no photo could be embedded"):
        embed([tmp_path / "absent.png"], embedder, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_another_contract_is_refused_before_any_work(pictures: list[Path], embedder: Embedder, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    embed(pictures, embedder, output)
    before = output.read_bytes()
    idle = HalfDetector()
    with (
        Embedder.load(write_tiny_ir(tmp_path, name="other", source="b")) as other,
        pytest.raises(ContractError, match="expected one contract_id"),
    ):
        embed(pictures, other, output, detector=idle)
    assert idle.calls == 0
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"detector": {"name": "thirds"}}, "detector.name: 'halves', now 'thirds'"),
        ({"detector": {"threshold": 0.6}}, "detector.threshold: 0.5, now 0.6"),
        ({"detector": {"min_size": 40}}, "detector.min_size: 20, now 40"),
        ({"detector": {"model": "0b"}}, "detector.model: '0a', now '0b'"),
        ({"detector": {"landmarks_model": "0c"}}, "detector.landmarks_model: None, now '0c'"),
        ({"faces": "largest"}, "faces: 'all', now 'largest'"),
        ({"gate": QualityGate()}, "gate.min_box_side: None, now 32"),
        ({"crops": True}, "detector.name: 'halves', now None"),
        ({"flip": "average"}, "flip: None, now 'average'"),
    ],
)
def test_a_result_of_other_settings_is_not_reused(
    changed: dict[str, object], named: str, pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    output = tmp_path / "out.npz"
    embed(pictures[:2], embedder, output)
    before = output.read_bytes()
    options = dict(changed)
    detector = HalfDetector(**options.pop("detector", {}))
    crops, flip = options.pop("crops", False), options.pop("flip", None)
    with (
        Embedder.load(tmp_path / "tiny.xml", flip=flip) as other,
        pytest.raises(InputError, match=re.escape(named)) as raised,
    ):
        embed_files(pictures[:2], Pipeline(None if crops else detector, other, **options), output)
    assert "out.npz: written with other settings" in str(raised.value)
    assert "write to another file" in str(raised.value)
    assert detector.calls == 0
    assert output.read_bytes() == before


@pytest.mark.parametrize("limit", [field.name for field in dataclasses.fields(QualityGate)])
def test_every_limit_of_the_gate_decides_on_reuse(
    limit: str, pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    output, generous = tmp_path / "out.npz", QualityGate(**dict.fromkeys(_LOWEST, 0), **_HIGHEST)
    embed(pictures[:1], embedder, output, gate=generous)
    other = dataclasses.replace(generous, **{limit: getattr(generous, limit) + 1})
    with pytest.raises(InputError, match=rf"gate\.{limit}"):
        embed(pictures[:1], embedder, output, gate=other)


def test_rows_of_edgeface_0_1_are_computed_again(
    pictures: list[Path], embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out.npz"
    embed(pictures, embedder, output)
    old = json.dumps({"detector": "mtcnn", "min_size": 20, "faces": "all"})  # as 0.1 wrote it: no models, no gate
    dataclasses.replace(EmbeddingTable.load(output), settings=old).save(output)
    detector = HalfDetector()
    result = embed(pictures, embedder, output, detector=detector)
    assert (result.reused, detector.calls, len(result.table)) == (0, 10, 20)
    assert "written by edgeface 0.1" in caplog.text
    assert embed(pictures, embedder, output).reused == 10


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_table_knows_landmarks_and_qualities_where_they_were_written(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    random = np.random.default_rng(1)
    known = {"landmarks": random.random((3, 10), np.float32), "qualities": random.random(3, np.float32)}
    for name, table in (("known", a_table(**known)), ("unknown", a_table())):
        table.save(tmp_path / f"{name}{suffix}")
        found = EmbeddingTable.load(tmp_path / f"{name}{suffix}")
        for column, wanted in known.items():
            assert np.array_equal(
                getattr(found, column), wanted if name == "known" else wanted * np.nan, equal_nan=True
            )
    with pytest.raises(InputError, match="columns of one length"):
        a_table(landmarks=known["landmarks"][:2])


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    table = a_table()
    table.save(tmp_path / "t.npz")
    back = EmbeddingTable.load(tmp_path / "t.npz")
    for field in dataclasses.fields(table):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(table, field.name))


def test_a_parquet_comes_back_as_it_was_written(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = a_table()
    table.save(tmp_path / "t.parquet")
    back = EmbeddingTable.load(tmp_path / "t.parquet")
    for field in dataclasses.fields(table):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(table, field.name))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("pyarrow"):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExtraNotInstalledError, match=re.escape(install_line("parquet"))):
        a_table().save(tmp_path / "t.parquet")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_a_damaged_table_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.npz: expected embeddings written by 'edgeface embed'"):
        EmbeddingTable.load(path)


def test_a_table_of_other_columns_or_lengths_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", vectors=np.zeros((1, 2)))
    with pytest.raises(InputError, match="expected embeddings"):
        EmbeddingTable.load(tmp_path / "t.npz")
    with pytest.raises(InputError, match="columns of one length"):
        a_table(scores=np.zeros(2, np.float32))
    with pytest.raises(InputError, match=r"ends in \.npz or \.parquet"):
        a_table().save(tmp_path / "t.csv")


def test_a_published_model_ships_thresholds_and_an_unknown_one_has_none() -> None:
    thresholds = shipped_thresholds("4c0ebb72970188bf")
    assert [each.far for each in thresholds] == [0.01, 0.001, 1e-4, 1e-5, 1e-6]
    assert all(each.supported and each.created_from for each in thresholds)
    assert shipped_thresholds("0" * 16) == shipped_thresholds("../thresholds/4c0ebb72970188bf") == ()


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_no_damage_to_a_table_gets_past_its_reader(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"table{suffix}"
    a_table().save(path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(600):
        raw = bytearray(whole)
        for place in rng.integers(len(raw), size=rng.choice([1, 3, 20])):
            raw[place] ^= 1 << rng.integers(8)
        path.write_bytes(raw[: rng.integers(len(raw))] if rng.random() < 0.2 else raw)
        try:
            EmbeddingTable.load(path)
        except InputError as error:
            assert error.path == path or "expected columns" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 200


def test_an_output_that_cannot_be_written_is_told_before_any_work(
    pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    detector = HalfDetector()
    with pytest.raises(OutputError):
        embed(pictures, embedder, tmp_path / "file" / "out.npz", detector=detector)
    assert detector.calls == 0


def test_the_last_files_being_bad_the_progress_still_ends(
    pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    pictures[-1].write_bytes(b"no picture")
    told: list[Progress] = []
    embed(pictures, embedder, tmp_path / "out.npz", progress=told.append)
    assert (told[-1].done, told[-1].total) == (10, 10)


def test_a_film_among_the_pictures_is_a_bad_file(pictures: list[Path], embedder: Embedder, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(bytes(100))
    assert list(embed([film, *pictures], embedder, tmp_path / "a.npz").failures) == [film]
    with pytest.raises(ImageError, match=r"no photo could be embedded: .*film\.mp4: expected a JPEG"):
        embed([film], embedder, tmp_path / "b.npz")


def test_a_name_that_is_not_utf8_goes_into_a_npz_and_is_listed_for_a_parquet(
    pictures: list[Path], embedder: Embedder, tmp_path: Path
) -> None:
    strange = pictures[0].rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    files = [strange, *pictures[1:]]
    embed(files, embedder, tmp_path / "out.npz")
    assert EmbeddingTable.load(tmp_path / "out.npz").paths[0] == str(strange)
    pytest.importorskip("pyarrow")
    result = embed(files, embedder, tmp_path / "out.parquet")
    assert list(result.failures) == [strange]
    assert len(EmbeddingTable.load(tmp_path / "out.parquet")) == 18
