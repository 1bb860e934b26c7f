"""OpenFace nn4.small2 from CSV files and .h5, whole, incomplete and damaged."""

from __future__ import annotations

import os
import random
import re
import resource
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openface_files import seeded_arrays, write_csv, write_csv_folder, write_h5

from edgeface.convert import adopt, convert
from edgeface.convert.converter import DEFAULT_RECIPE, find_recipe, format_of
from edgeface.convert.hdf5 import KerasArrays, read_keras_arrays
from edgeface.convert.openface import SHAPES, load_openface, read_csv
from edgeface.convert.recipe import Recipe, RecipeParts, parts_of
from edgeface.errors import ExtraNotInstalledError, InputError, ModelFormatError, NotSupportedError, install_line
from edgeface.untrusted import HDF5_BYTES, HDF5_SECONDS
from edgeface.zoo.catalog import load_catalog

ARRAYS = seeded_arrays()


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parts_of(load_catalog()["openface-nn4-small2"]).complete()


@pytest.fixture(scope="session")
def csv_folder(made_once) -> Path:
    return made_once("openface-csv", lambda folder: write_csv_folder(folder, ARRAYS))


@pytest.fixture(scope="session")
def h5(made_once) -> Path:
    pytest.importorskip("h5py")
    return made_once("openface-h5", lambda folder: write_h5(folder / "openface.h5", ARRAYS))


def test_the_architecture_has_the_published_number_of_parameters_in_224_arrays() -> None:
    assert len(SHAPES) == 224
    trained = sum(int(np.prod(shape)) for (_, part), shape in SHAPES.items() if not part.startswith("moving"))
    assert trained == 3_733_968  # cmusatyalab.github.io/openface/models-and-accuracies


# --- whole files --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_csv_files_and_every_form_of_h5_are_the_same_model(csv_folder: Path, h5: Path, recipe: Recipe, tmp_path: Path):
    model = load_openface(csv_folder, recipe)

    others = [
        h5,
        write_h5(tmp_path / "save_weights.h5", ARRAYS, group=""),
        write_h5(tmp_path / "keras3.h5", ARRAYS, suffix=""),
    ]
    for path in others:
        other = load_openface(path, recipe)
        assert other.weights_id == model.weights_id
        assert other.sha256 != model.sha256
        assert (other.framework, other.layout, other.normalized, other.seeded) == ("keras", "NCHW", False, False)


@pytest.mark.slow
def test_the_normalisation_is_the_file_s_unless_the_recipe_says_it(h5: Path, recipe: Recipe, tmp_path: Path) -> None:
    without = write_h5(tmp_path / "without.h5", ARRAYS, others=["input_1"])

    cases = {
        "keras": load_openface(h5, recipe),
        "torch": load_openface(h5, recipe_with(recipe, "torch")),
        "none": load_openface(without, recipe),
        "told keras": load_openface(without, recipe_with(recipe, "keras")),
    }

    windows = {
        case: {op.get_attributes()["size"] for op in source.model.get_ops() if op.get_type_name() == "LRN"}
        for case, source in cases.items()
    }
    assert windows == {"keras": {11}, "torch": {5}, "none": set(), "told keras": {11}}
    ids = [source.weights_id for source in cases.values()]
    assert ids[0] == ids[3]
    assert len(set(ids)) == 3  # what changes the numbers changes the identity


def recipe_with(recipe: Recipe, lrn: str | None) -> Recipe:
    return Recipe(name=recipe.name, alignment=recipe.alignment, lrn=lrn)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_bare_h5_converts_with_the_recipe_of_the_zoo(h5: Path, tmp_path: Path) -> None:
    result = convert(h5, tmp_path / "irs", layout="nhwc", color="rgb")

    contract = result.contract
    assert (contract.input_size, contract.embedding_dim, contract.normalized) == ((96, 96), 128, True)
    assert contract.scale == (255, 255, 255)
    assert contract.alignment.recipe == "outer-eyes-nose-96"
    assert contract.provenance == "unknown"
    raw = convert(h5, tmp_path / "raw", layout="nhwc", color="rgb", recipe=RecipeParts(normalized=False))
    assert not raw.contract.normalized
    assert raw.contract.contract_id != contract.contract_id


@pytest.mark.slow
def test_other_files_keep_their_format(tmp_path: Path, csv_folder: Path) -> None:
    (tmp_path / "table.csv").write_text("1,2,3")

    assert format_of(csv_folder).default_recipe == "openface-nn4-small2"
    assert format_of(tmp_path).default_recipe == DEFAULT_RECIPE


def test_a_normalisation_of_another_model_is_refused() -> None:
    told = RecipeParts(lrn="torch")

    with pytest.raises(InputError, match="expected an OpenFace model, where a recipe says lrn, found another model"):
        find_recipe(Path("facenet.pb"), "facenet", None, told, load_catalog())
    assert find_recipe(Path("openface.h5"), "openface", None, told, load_catalog()).lrn == "torch"
    with pytest.raises(InputError, match="expected a recipe without lrn, which is in an IR's layers, found torch"):
        adopt(Path("openface.xml"), Path("irs"), name="openface-nn4-small2", recipe=told)


@pytest.mark.slow
def test_crops_of_another_size_are_refused(csv_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a recipe of 96x96 crops.*found \(160, 160\)"):
        convert(csv_folder, tmp_path / "irs", recipe=RecipeParts(size=(160, 160)))
    assert not (tmp_path / "irs").exists()


# --- incomplete ones ----------------------------------------------------------------------------------------------


def damaged_copy(folder: Path, copy: Path) -> Path:
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


@pytest.mark.slow
def test_every_csv_file_that_is_missing_or_wrong_is_listed(csv_folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = damaged_copy(csv_folder, tmp_path / "weights")
    for name in ("bn1_m.csv", "inception_5b_1x1_conv_w.csv"):
        (folder / name).unlink()
    (folder / "inception_5b_1x1_conv_w.csv").mkdir()
    wrong = {
        "bn1_w.csv": (",".join(["1"] * 63), "expected 64 numbers, found 63"),
        "conv1_b.csv": (",".join(["1"] * 63 + ["x"]), "found text that is no number"),
        "conv2_b.csv": (",".join(["1"] * 63 + ["1e39"]), "found some that are not finite"),
        "dense_b.csv": ("", "expected 128 numbers, found an empty file"),
        "bn3_b.csv": ("1" * 10_000, "bytes, found 10,000"),
    }
    for name, (text, _) in wrong.items():
        (folder / name).unlink()
        (folder / name).write_text(text)

    with pytest.raises(ModelFormatError) as refusal:
        load_openface(folder, recipe)

    message = str(refusal.value)
    assert "expected the 224 arrays of OpenFace nn4.small2, found 2 missing: " in message
    assert "bn1_m.csv, inception_5b_1x1_conv_w.csv; 5 wrong: " in message
    for name, (_, reason) in wrong.items():
        assert f"{name} ({reason}" in message or (name in message and reason in message)
    assert message.count(".csv") == 7


@pytest.mark.slow
def test_files_that_belong_to_no_layer_are_reported_and_not_read(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture, csv_folder: Path
) -> None:
    folder = damaged_copy(csv_folder, tmp_path / "weights")
    for name in ("inception_5a_3x3_conv2_m.csv", "inception_5a_3x3_conv2_v.csv"):  # strays of Keras-OpenFace
        write_csv(folder / name, np.ones(96))

    with caplog.at_level("INFO", logger="edgeface"):
        load_openface(folder, recipe)

    assert "not read: inception_5a_3x3_conv2_m.csv, inception_5a_3x3_conv2_v.csv" in caplog.text


def test_every_array_that_an_h5_lacks_is_listed(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    arrays = dict(ARRAYS)
    del arrays["conv1", "bias"], arrays["dense_layer", "kernel"], arrays["dense_layer", "bias"]
    arrays["bn1", "gamma"] = np.ones(63, np.float32)
    arrays["bn2", "gamma"] = np.ones(64, np.int32)
    arrays["bn3", "gamma"] = np.full(192, np.nan, np.float32)

    with pytest.raises(ModelFormatError) as refusal:
        load_openface(write_h5(tmp_path / "a.h5", arrays), recipe)

    assert "3 missing: conv1/bias, dense_layer/kernel, dense_layer/bias; 3 wrong: " in str(refusal.value)
    for reason in (
        "bn1/gamma (expected (64,), found float32 (63,))",
        "bn2/gamma (expected (64,), found int32 (64,))",
        "bn3/gamma (found some that are not finite",
    ):
        assert reason in str(refusal.value)


# --- other files --------------------------------------------------------------------------------------------------


def test_the_h5_of_another_keras_model_is_refused_with_what_to_do(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    path = write_h5(tmp_path / "vgg.h5", {("block1_conv1", "kernel"): np.ones((3, 3, 3, 64), np.float32)})

    with pytest.raises(NotSupportedError, match=r"other layers \(input_1, .*model\.export\('FOLDER'\)"):
        load_openface(path, recipe)


def test_what_is_no_keras_h5_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "html.h5").write_text("<html>not found</html>")
    with h5py.File(tmp_path / "keras3.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.ones(3, np.float32)

    for name, reason in (
        ("html.h5", "file signature not found"),
        ("keras3.weights.h5", r"no attribute layer_names; Keras 3 writes it with model\.save\('NAME\.h5'\)"),
        ("absent.h5", "found no file"),
    ):
        with pytest.raises(ModelFormatError, match=f"expected an .h5 that Keras saved, .*{reason}"):
            load_openface(tmp_path / name, recipe)


@pytest.mark.parametrize("kind", ["link", "external", "huge-chunks", "bomb"])
def test_values_from_elsewhere_and_oversized_ones_are_not_read(kind: str, recipe: Recipe, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(256))
    path = write_h5(tmp_path / "a.h5", ARRAYS)
    with h5py.File(path, "a") as file:
        group = file["model_weights/conv1/conv1"]
        del group["bias:0"]
        if kind == "link":
            group["bias:0"] = h5py.ExternalLink("other.h5", "bias")
        elif kind == "external":
            group.create_dataset("bias:0", (64,), "f4", external=[(str(tmp_path / "secret"), 0, 256)])
        elif kind == "huge-chunks":
            group.create_dataset("bias:0", (64,), "f4", maxshape=(None,), chunks=(1 << 28,))
        else:
            group.create_dataset("bias:0", (1 << 40,), "f4", compression="gzip")

    with pytest.raises(ModelFormatError, match="bias"):
        load_openface(path, recipe)


def test_without_h5py_the_extra_is_named(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "a.h5").touch()

    with pytest.raises(ExtraNotInstalledError, match=re.escape(install_line("keras"))):
        load_openface(tmp_path / "a.h5", recipe)


# --- damaged files ------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50), st.booleans())
def test_any_float32_values_survive_a_csv_file(made_once, values: list[float], lines: bool) -> None:
    path = made_once("csv", lambda folder: folder) / f"{os.getpid()}.csv"
    path.write_text(("\n" if lines else ",").join(map(repr, values)))

    np.testing.assert_array_equal(read_csv(path, len(values)), np.array(values, np.float32))


ROUNDS = [60, pytest.param(2000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_mutated_csv_files_are_read_or_refused_by_name(rounds: int, tmp_path: Path) -> None:
    rng = random.Random(rounds)
    path, outcomes = tmp_path / "mutated.csv", Counter[str]()
    for _ in range(rounds):
        (layer, part), shape = rng.choice(list(SHAPES.items()))
        count = min(int(np.prod(shape)), 2000)
        content = ",".join(map(repr, ARRAYS[layer, part].ravel()[:count].astype(float).tolist())).encode()
        path.write_bytes(mutated(content, rng))
        started = time.perf_counter()
        try:
            values = read_csv(path, count)
            assert values.shape == (count,)
            assert np.isfinite(values).all()
            outcomes["read"] += 1
        except ModelFormatError:
            outcomes["refused"] += 1
        assert time.perf_counter() - started < 10
    assert min(outcomes["read"], outcomes["refused"]) > rounds // 20


def mutated(content: bytes, rng: random.Random) -> bytes:
    data, kind = bytearray(content), rng.randrange(6)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:
        return b"".join([content, b",", content])
    if kind == 2:
        return rng.randbytes(rng.randrange(4096))
    at = rng.randrange(len(data))
    if kind == 3:
        data[at:at] = rng.choice([b",", b"\n", b"\0", b"nan", b"9" * 400, b"\xff\xfe", b"e999", b"1_0", b";"])
    else:
        data[at] = rng.choice(b"0123456789,.-e") if kind == 4 else rng.randrange(256)
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [24, ROUNDS[1]])
def test_mutated_h5_files_are_read_or_refused_by_name(rounds: int, h5: Path, tmp_path: Path) -> None:
    wanted = {"bn1": {"gamma": (64,)}, "conv1": {"kernel": (7, 7, 3, 64), "bias": (64,)}}
    arrays = {key: ARRAYS[key] for key in ARRAYS if key[0] in ("bn1", "bn2", "conv1")}
    content = write_h5(tmp_path / "small.h5", arrays).read_bytes()
    values = content.find(ARRAYS["conv1", "kernel"].tobytes())
    structure = [*range(values), *range(values + ARRAYS["conv1", "kernel"].nbytes, len(content))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss

    def attempt(number: int) -> str:
        rng = random.Random(number)
        data = bytearray(content)
        if number % 8 == 0:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.choice([1, 3, 30])):
            at = rng.choice(structure)
            data[at : at + 1] = bytes([rng.randrange(256)])
        path = tmp_path / f"{number}.h5"
        path.write_bytes(data)
        try:
            stored = read_keras_arrays(path, wanted)
            assert isinstance(stored, KerasArrays)
            return "read"
        except ModelFormatError:
            return "refused"
        finally:
            path.unlink()

    with ThreadPoolExecutor(2) as pool:
        outcomes = Counter(pool.map(attempt, range(rounds)))
    assert min(outcomes["read"], outcomes["refused"]) > rounds // 20
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, HDF5_BYTES >> 10)  # KiB


@pytest.mark.slow
def test_a_file_that_hdf5_never_ends_on_is_refused_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    loop = tmp_path / "h5py.py"  # stands for the library on such a file, which differs between its releases
    loop.write_text("class HardLink: pass\ndef File(*args):\n    while True: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.h5").touch()

    started = time.perf_counter()
    with pytest.raises(ModelFormatError, match="HDF5 ended with -"):
        read_keras_arrays(tmp_path / "a.h5", {})
    assert HDF5_SECONDS <= time.perf_counter() - started < 10 * HDF5_SECONDS


def test_nothing_is_written_for_a_damaged_file(h5: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.h5"
    path.write_bytes(h5.read_bytes()[:100_000])

    with pytest.raises(ModelFormatError):
        convert(path, tmp_path / "irs")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cut.h5"]
