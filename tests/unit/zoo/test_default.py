"""The model that is used where none is named."""

from __future__ import annotations

import json
from pathlib import Path

import openvino as ov
import pytest
from tiny_ir import write_tiny_ir

import edgeface
from edgeface import zoo
from edgeface.cli import main
from edgeface.errors import ContractError, InputError, ModelNotFoundError, install_line
from edgeface.zoo.default import DEFAULT_ORDER, default_name, has_default, keep_ir, record_first_default
from edgeface.zoo.transfer import PackageLocation

NAME, SECOND, DLIB = DEFAULT_ORDER


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackageLocation, "find", lambda self: None)


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    return write_tiny_ir(tmp_path)


def pretend_download(store: zoo.ModelStore, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.root / "models" / name
    folder.mkdir(parents=True)
    monkeypatch.setattr(zoo.ModelStore, "model_dir", lambda self, entry: folder)


def test_an_empty_store_has_no_default_and_says_how_to_get_one(store: zoo.ModelStore) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        zoo.default_model(store=store)
    assert install_line("demo") in str(caught.value)
    assert f"edgeface zoo download {NAME}" in str(caught.value)
    assert "EDGEFACE_MODEL" in str(caught.value)


def test_an_ir_becomes_the_default(store: zoo.ModelStore, ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ir.parent)
    zoo.set_default_model(ir.name, store=store)  # found again from another folder
    monkeypatch.chdir("/")
    assert zoo.default_model(store=store) == ir


def test_an_ir_without_a_contract_cannot_be_the_default(store: zoo.ModelStore, ir: Path) -> None:
    model = ov.Core().read_model(ir)
    model.set_rt_info({}, "edgeface")
    bare = ir.with_name("bare.xml")
    ov.save_model(model, bare)
    with pytest.raises(ContractError):
        zoo.set_default_model(bare, store=store)
    assert not has_default(store=store)


def test_a_default_that_is_gone_is_missed_by_name(store: zoo.ModelStore, ir: Path) -> None:
    zoo.set_default_model(ir, store=store)
    ir.unlink()
    with pytest.raises(ModelNotFoundError, match=r"tiny\.xml.*edgeface zoo default"):
        zoo.default_model(store=store)


def test_a_downloaded_model_is_converted_once(
    store: zoo.ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[str] = []

    def convert(name: str, *, store: zoo.ModelStore) -> None:
        converted.append(name)
        folder = store.ir_path(name).parent
        folder.mkdir(parents=True)
        write_tiny_ir(folder, name=name)

    with pytest.raises(ModelNotFoundError, match="zoo download"):
        zoo.set_default_model(NAME, store=store)
    pretend_download(store, NAME, monkeypatch)
    zoo.set_default_model(NAME, store=store)
    with pytest.raises(ModelNotFoundError, match=f"not converted.*edgeface convert {NAME}"):
        zoo.default_model(store=store)
    first = zoo.default_model(store=store, convert=convert)
    assert first == zoo.default_model(store=store, convert=convert) == zoo.default_model(store=store)
    assert converted == [NAME]


def test_a_model_is_found_by_its_zoo_name(
    store: zoo.ModelStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(store.root))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=f"not downloaded; run: edgeface zoo download {NAME}"):
        edgeface.load(NAME)
    path = store.ir_path(NAME)
    path.parent.mkdir(parents=True)
    write_tiny_ir(path.parent, name=NAME)
    with edgeface.load(NAME, detector=None, device="cpu") as app:
        assert app.contract.name == NAME
    assert edgeface.find_model("no-zoo-name") == Path("no-zoo-name")
    assert edgeface.find_model(f"./{NAME}.xml") == Path(f"{NAME}.xml")


def test_the_default_is_the_first_of_the_order_while_none_is_set(store: zoo.ModelStore) -> None:
    for name in reversed(DEFAULT_ORDER):
        path = store.ir_path(name)
        path.parent.mkdir(parents=True)
        write_tiny_ir(path.parent, name=name)
        assert not record_first_default(path, store=store)
        assert zoo.default_model(store=store) == path
        assert default_name(store=store) == name
    assert not has_default(store=store)
    zoo.set_default_model(DLIB, store=store)
    assert default_name(store=store) == DLIB


def test_an_fp16_ir_is_the_default_where_it_is_the_only_one(store: zoo.ModelStore) -> None:
    path = store.ir_path(SECOND, precision="FP16")
    path.parent.mkdir(parents=True)
    write_tiny_ir(path.parent, name=SECOND)
    assert zoo.default_model(store=store) == path


def test_a_model_in_an_installed_package_is_the_default_and_converted_at_first_use(
    store: zoo.ModelStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packaged = tmp_path / "packaged.dat"
    packaged.write_bytes(b"weights")
    monkeypatch.setattr(PackageLocation, "find", lambda self: packaged)
    entry = zoo.load_catalog()[DLIB]
    assert (zoo.presence(entry, store=store), default_name(store=store)) == ("installed", DLIB)

    def convert(name: str, *, store: zoo.ModelStore) -> None:
        folder = store.ir_path(name).parent
        folder.mkdir(parents=True)
        write_tiny_ir(folder, name=name)

    assert zoo.default_model(store=store, convert=convert) == store.ir_path(DLIB)
    assert zoo.presence(entry, store=store) == "converted"


def test_a_detector_cannot_be_the_default(store: zoo.ModelStore) -> None:
    with pytest.raises(InputError, match="face embedding model"):
        zoo.set_default_model("yunet", store=store)


def test_an_unknown_name_offers_near_ones(store: zoo.ModelStore) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean"):
        zoo.set_default_model("facenet-20180408", store=store)


def test_only_the_first_ir_becomes_the_default_by_itself(store: zoo.ModelStore, ir: Path) -> None:
    assert record_first_default(ir, store=store)
    second = write_tiny_ir(ir.parent, name="second")
    assert not record_first_default(second, store=store)
    assert zoo.default_model(store=store) == ir


@pytest.mark.parametrize("name", DEFAULT_ORDER)
def test_an_ir_of_the_users_own_does_not_displace_a_published_model_that_is_here(
    store: zoo.ModelStore, ir: Path, name: str
) -> None:
    published = store.ir_path(name)
    published.parent.mkdir(parents=True)
    write_tiny_ir(published.parent, name=name)
    assert not record_first_default(ir, store=store)
    assert zoo.default_model(store=store) == published


def test_an_ir_of_the_users_own_does_not_displace_a_model_of_an_installed_package(
    store: zoo.ModelStore, ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackageLocation, "find", lambda self: tmp_path / "packaged.dat")
    monkeypatch.setattr("edgeface.zoo.default.is_installed", lambda entry: entry.name == DLIB)
    assert not record_first_default(ir, store=store)
    assert default_name(store=store) == DLIB


def test_a_model_of_random_weights_cannot_be_the_default(store: zoo.ModelStore, tmp_path: Path) -> None:
    seeded = write_tiny_ir(tmp_path, provenance="seeded")
    with pytest.raises(InputError, match="random numbers, which recognise no one"):
        zoo.set_default_model(seeded, store=store)
    assert not has_default(store=store)


def test_the_store_keeps_a_copy_of_an_ir(store: zoo.ModelStore, ir: Path) -> None:
    kept = keep_ir(ir, store=store)
    assert kept == store.ir_path("tiny")
    assert kept.with_suffix(".bin").read_bytes() == ir.with_suffix(".bin").read_bytes()
    assert not kept.samefile(ir)


def test_command_sets_and_shows_the_default(
    store: zoo.ModelStore, ir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(store.root)]
    assert main(["zoo", "default", *cache]) == 3
    capsys.readouterr()
    assert main(["zoo", "default", str(ir), *cache]) == 0
    assert str(ir) in capsys.readouterr().out
    assert main(["zoo", "default", "--json", *cache]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["model"], answer["ir"], len(answer["contract_id"])) == ("tiny", str(ir), 16)
