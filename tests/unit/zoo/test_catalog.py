"""What a catalog says, and that a mistake in one is named with its line."""

from __future__ import annotations

import contextlib
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeface import zoo
from edgeface.errors import CatalogError, ModelNotFoundError
from edgeface.model.contract import Alignment
from edgeface.zoo.catalog import Document, default_catalog_path
from edgeface.zoo.schema import relative_path

NAMES = [
    "facenet-20180408-102900",
    "facenet-20180402-114759",
    "dlib-face-recognition-resnet-v1",
    "openface-nn4-small2",
    "facetransformer-octuplet",
    "insightface-w600k-r50",
    "insightface-w600k-mbf",
    "sface-2021dec",
    "inception-resnet-v1-vggface2",
    "mtcnn",
    "yunet",
    "face-detection-retail-0004",
    "landmarks-regression-retail-0009",
    "minifasnet-v2",
    "minifasnet-v1se",
]

# Open Model Zoo's own form (2023): SHA-384 as a bare checksum, a regular expression, no keys of ours.
OMZ = """
description: >-
  The "p" part of a cascade.
task_type: detection
files:
  - name: mtcnn-p.prototxt
    size: 2353
    checksum: 372af5af8ba5c1820b587b64670ef957e40c5118f7775381d46e4eb88ec8f9cadb7abdeadfa3863459e17bf7b87318fd
    source: https://example.org/det1.prototxt
  - name: mtcnn-p.caffemodel
    size: 28163
    checksum:
      $type: sha256
      value: d6085e7f48ba7e6b6f1b58964595f6bce5b97bcc4866751f7b4bdc98f920c096
    original_source: https://example.org/original
    source:
      $type: google_drive
      id: 1R77HmFADxe87GmoLwzfgMu_HY0IhcyBz
postprocessing:
  - $type: regex_replace
    file: mtcnn-p.prototxt
    pattern: 'dim: 12'
    replacement: 'dim: 720'
    count: 1
input_info:
  - name: data
    shape: [1, 3, 720, 1280]
    layout: NCWH
model_optimizer_args:
  - --mean_values=data[127.5,127.5,127.5]
  - --input_model=$dl_dir/mtcnn-p.caffemodel
quantizable: yes
framework: caffe
license: https://example.org/LICENSE
"""


@pytest.fixture(scope="module")
def catalog() -> zoo.Catalog:
    return zoo.load_catalog()


def test_the_catalog_has_these_models(catalog: zoo.Catalog) -> None:
    assert list(catalog) == NAMES


def test_facenet_is_described_the_way_it_was_published(catalog: zoo.Catalog) -> None:
    entry = catalog["facenet-20180408-102900"]
    file = entry.files[0]
    assert file.size == 195_479_980
    assert file.digests["sha256"] == "2a32a4d6b797b0e35e065c674dfa2d60e9eb2372aa10728bd0b221abe12490ac"
    assert file.digests["sha384"].startswith("f394011bacf7b191bdc7fd0157a0f6cb")
    assert entry.alignment == Alignment(recipe="mtcnn-box-margin", margin=32)
    assert entry.preprocessing is not None
    assert (entry.preprocessing.color, entry.preprocessing.mean, entry.preprocessing.scale) == (
        "RGB",
        (127.5, 127.5, 127.5),
        (128.0, 128.0, 128.0),
    )
    assert entry.embedding is not None
    assert (entry.embedding.dim, entry.embedding.normalized) == (512, True)
    assert [number.value for number in entry.published] == [0.9905, 0.9914]


def test_every_model_says_where_it_comes_from_and_what_it_was_trained_on(catalog: zoo.Catalog) -> None:
    for entry in catalog.values():
        free = ("MIT", "Apache-2.0", "CC0-1.0")
        assert (entry.license_name not in free) == entry.non_commercial
        assert entry.preprocessing is not None
        assert entry.conversion is not None
        assert entry.input_info
        assert all(file.digests or file.trust_on_first_use for file in entry.files)
        assert (entry.embedding is None) == (entry.alignment is None)


def test_a_file_that_nobody_published_a_digest_for_says_so(catalog: zoo.Catalog) -> None:
    assert catalog["facenet-20180402-114759"].files[0].trust_on_first_use


@pytest.mark.real
def test_digests_in_the_catalog_are_those_of_the_real_files(catalog: zoo.Catalog, data: Path) -> None:
    from edgeface.files import digests_of

    folders = {"yunet": data / "yunet"} | {name: data / "omz" / name for name in NAMES if "retail" in name}
    for name, folder in folders.items():
        for file in catalog[name].files:
            path = folder / file.name
            assert path.stat().st_size == file.size
            assert digests_of(path, file.digests) == file.digests


def test_an_unknown_model_is_answered_with_the_nearest_names(catalog: zoo.Catalog) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean facenet-20180408-102900") as caught:
        catalog["facenet-20180408-102901"]
    assert caught.value.exit_code == 3


def test_patterns_and_commas_choose_models_in_the_catalogs_order(catalog: zoo.Catalog) -> None:
    assert [entry.name for entry in catalog.match("yunet,facenet-*")] == [*NAMES[:2], "yunet"]


def test_a_pattern_that_matches_nothing_is_an_error(catalog: zoo.Catalog) -> None:
    with pytest.raises(ModelNotFoundError, match="'nosuch\\*'"):
        catalog.match("yunet,nosuch*")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("size: 195479980", "size: big", r"model_zoo.yml:18: models.facenet-20180408-102900.files\[0\].size: "
         "expected a whole number, found 'big'"),
        ("size: 195479980", "sise: 1", r"files\[0\].sise: unknown key; did you mean 'size'\?"),
        ("size: 195479980", "size: -1", r"size: .* found -1"),
        ("$type: google_drive", "$type: ftp", r"source: expected an address, or a mapping"),
        ("format: zip", "format: rar", r"postprocessing\[0\].format: expected 'zip', 'tar' or 'gztar', found 'rar'"),
        ("mean: [127.5, 127.5, 127.5]", "mean: [127.5, 127.5]", r"mean\[2\]: expected one more item"),
        ("mean: [127.5, 127.5, 127.5]", "mean: [1, 2, '3']", r"mean\[2\]: expected a number, found '3'"),
        ("checksum: f39", "checksum: f3", r"expected 96 hexadecimal digits of SHA384"),
        ("framework: tf", "framework: tff", r":30: .*framework: expected 'caffe', .* found 'tff'"),
        ("name: 20180408-102900.zip", "name: ../escape.zip", r"relative path .* found '../escape.zip'"),
        ("normalized: true", "normalized: 1", r"normalized: expected true or false, found 1"),
        ("license: https", "license: file", r"license: expected an http:// or https:// address"),
        ("task_type: face_recognition", "task_type: x\n    task_type: y", r":14: task_type: expected each key once"),
        ("    framework: tf\n", "", r":10: models.facenet-20180408-102900.framework: expected this key, found none"),
        ("quantizable: true", "? [a]\n    : 1", r"expected a key that is text, found a sequence"),
        ("    files:", "    name: other\n    files:", r"name: unknown key"),
        ("schema_version: 1", "schema_version: 2", r":6: schema_version: expected 1, found 2"),
        ("description: >-", "description: [", r"expected YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_key(tmp_path: Path, before: str, after: str, message: str) -> None:
    text = default_catalog_path().read_text(encoding="utf-8")
    assert before in text
    path = tmp_path / "model_zoo.yml"
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(CatalogError, match=message) as caught:
        zoo.load_catalog(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_yaml_that_would_make_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model_zoo.yml"
    path.write_text("models: !!python/object/apply:os.system [true]\n", encoding="utf-8")
    with pytest.raises(CatalogError, match=r"model_zoo\.yml:1: expected YAML"):
        zoo.load_catalog(path)


def test_an_absent_catalog_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"nowhere\.yml: expected a YAML file"):
        zoo.load_catalog(tmp_path / "nowhere.yml")


def test_an_open_model_zoo_file_is_read_with_the_name_of_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "mtcnn-p" / "model.yml"
    path.parent.mkdir()
    path.write_text(OMZ, encoding="utf-8")
    entry = zoo.load_model_yml(path)
    assert entry.name == "mtcnn-p"
    assert entry.files[0].digests.keys() == {"sha384"}
    assert entry.files[1].digests.keys() == {"sha256"}
    assert [str(source) for source in entry.files[1].sources] == [
        "Google Drive file 1R77HmFADxe87GmoLwzfgMu_HY0IhcyBz",
        "https://example.org/original",
    ]
    assert entry.conversion is not None
    assert entry.conversion.source == "mtcnn-p.caffemodel"


def test_a_composite_open_model_zoo_model_brings_the_files_of_its_parts(tmp_path: Path) -> None:
    folder = tmp_path / "mtcnn"
    for stage in ("mtcnn-p", "mtcnn-r"):
        (folder / stage).mkdir(parents=True)
        (folder / stage / "model.yml").write_text(OMZ, encoding="utf-8")
    (folder / "composite-model.yml").write_text(
        "description: Two parts.\ntask_type: detection\nframework: caffe\nstages_order: [mtcnn-r, mtcnn-p]\n"
        "license: https://example.org/LICENSE\n",
        encoding="utf-8",
    )
    entry = zoo.load_model_yml(folder / "composite-model.yml")
    assert entry.stages == ("mtcnn-r", "mtcnn-p")
    assert entry.files[0].name == "mtcnn-r/mtcnn-p.prototxt"
    assert [step.file for step in entry.postprocessing] == ["mtcnn-r/mtcnn-p.prototxt", "mtcnn-p/mtcnn-p.prototxt"]


def test_a_mistake_in_an_open_model_zoo_file_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "model.yml"
    path.write_text(OMZ.replace("size: 2353", "size: 2 KB"), encoding="utf-8")
    with pytest.raises(CatalogError, match=r"^model.yml:7: files\[0\].size: expected a whole number, found '2 KB'$"):
        zoo.load_model_yml(path)


@given(st.text(alphabet=string.printable, max_size=200))
@example("!!bool maybe")
@example("!!timestamp never")
@example("2020-13-40")
@example("[" * 1500)
@example("&a [*a]")
def test_any_text_is_either_read_or_refused_in_one_way(text: str) -> None:
    with contextlib.suppress(CatalogError):
        Document(text, name="any.yml")


@given(st.text(alphabet="ab./\\:\0 é", max_size=12))
def test_a_relative_path_never_leads_out_of_its_folder(text: str) -> None:
    try:
        checked = relative_path(text)
    except ValueError:
        return
    folder = Path("/somewhere/safe")
    assert (folder / checked).resolve().is_relative_to(folder.resolve())
