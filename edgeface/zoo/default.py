"""Choose the model that is used where none is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgeface.errors import InputError, ModelNotFoundError, install_line
from edgeface.files import output_errors, staging_folder
from edgeface.model.ir_file import read_contract
from edgeface.zoo.catalog import Catalog, load_catalog
from edgeface.zoo.downloads import is_installed
from edgeface.zoo.schema import ModelEntry
from edgeface.zoo.store import JsonRecords, ModelStore, swap_folder

DEFAULT_ORDER = ("facenet-20180402-114759", "facenet-20180408-102900", "dlib-face-recognition-resnet-v1")
"""While no default has been set, it is the first of these zoo models that is here."""

Presence = Literal["converted", "downloaded", "installed"]


def default_model(*, store: ModelStore | None = None, convert: Callable[..., object] | None = None) -> Path:
    """Return the .xml of the default model.

    With `convert`, which is `edgeface.convert.convert`, a zoo model that is downloaded, or installed in a Python
    package, and not yet converted is converted into the store, once. Without it, such a model counts as missing.

    Raises ModelNotFoundError if no default is set and no model of `DEFAULT_ORDER` is here, or the default is missing.
    The text has the commands that make one.

    Examples
    --------
    Load OpenVINO's converter only if there is something to convert:

        from edgeface.convert import convert

        path = default_model(convert=convert)
    """
    store = store or ModelStore()
    chosen = _records(store).read()
    if ir := chosen.get("ir"):
        if not Path(ir).is_file():
            raise ModelNotFoundError(
                path=ir,
                expected="the default model",
                found="no such file",
                remedy="set another one with: edgeface zoo default NAME_OR_IR",
            )
        return Path(ir)
    name = default_name(store=store)
    if name is not None:
        return store.find_ir(name) or zoo_model(name, store=store, convert=convert)
    raise ModelNotFoundError(
        expected="a default model",
        found="none",
        remedy=f"run: {install_line('demo')}, or: edgeface zoo download {DEFAULT_ORDER[0]}, "
        "or set your own IR with: edgeface zoo default IR.xml, or with EDGEFACE_MODEL",
    )


def default_name(*, store: ModelStore | None = None) -> str | None:
    """Return the name of the zoo model that is the default; None if it is an IR elsewhere, or there is none."""
    store = store or ModelStore()
    chosen = _records(store).read()
    if "model" in chosen:
        return str(chosen["model"])
    if ir := chosen.get("ir"):
        kept = Path(ir).is_relative_to((store.root / "irs").resolve())
        return Path(ir).stem if kept else None
    for name in DEFAULT_ORDER:
        # Reading the catalog takes longer than loading a model, so it is read only for what may be here.
        maybe = (store.root / "models" / name).is_dir() or name == DEFAULT_ORDER[-1]
        if store.find_ir(name) or (maybe and presence(load_catalog()[name], store=store)):
            return name
    return None


def presence(entry: ModelEntry, *, store: ModelStore | None = None) -> Presence | None:
    """Return the furthest state in which a zoo model is on this machine; None: it has to be downloaded.

    ``installed`` means that a Python package has its files.
    """
    store = store or ModelStore()
    if store.find_ir(entry.name):
        return "converted"
    if store.has(entry):
        return "downloaded"
    return "installed" if is_installed(entry) else None


def zoo_model(name: str, *, store: ModelStore | None = None, convert: Callable[..., object] | None = None) -> Path:
    """Return the .xml of a zoo model, converted first with `convert` as by `default_model`.

    Raises ModelNotFoundError if the name is unknown, or the model is neither converted nor here.
    """
    store = store or ModelStore()
    path = store.ir_path(name)
    if not path.is_file():
        _require_files(load_catalog()[name], store)
        if convert is None:
            raise ModelNotFoundError(f"model {name!r} is not converted; run: edgeface convert {name}")
        with store.locked(f"convert-{name}"):
            if not path.is_file():  # another process may have converted it meanwhile
                convert(name, store=store)
    return path


def set_default_model(model: str | Path, *, store: ModelStore | None = None, catalog: Catalog | None = None) -> None:
    """Record which model `default_model` returns, in ``default.json`` of the store.

    `model` is the name of a face embedding model of the zoo, or the path of an IR (.xml) with a contract.

    Raises ModelFormatError, ContractError if a path is no IR, or an IR without a contract; ModelNotFoundError if a zoo
    name is unknown, or the model is neither downloaded nor converted; InputError if it is no face embedding model, or
    its weights are random.
    """
    store = store or ModelStore()
    catalog = catalog or load_catalog()
    if isinstance(model, str) and model in catalog:
        entry = catalog[model]
        if entry.embedding is None:
            raise InputError(expected="a face embedding model", found=f"{model}, which is for {entry.task_type}")
        if not store.find_ir(model):
            _require_files(entry, store)
        _records(store).update({"model": model, "ir": None})
        return
    path = Path(model)
    if isinstance(model, str) and not path.suffix and len(path.parts) == 1 and not path.exists():
        catalog[model]  # raises, naming close matches
    _, contract = read_contract(path)
    if contract.provenance == "seeded":
        raise InputError(
            path=path,
            expected="a model of trained weights",
            found="seeded ones: random numbers, which recognise no one",
            remedy="name a trained model (edgeface zoo list); commands that try out this one take --model",
        )
    _records(store).update({"ir": str(path.resolve()), "model": None})


def has_default(*, store: ModelStore | None = None) -> bool:
    """Whether a default model has been set."""
    return bool(_records(store or ModelStore()).read())


def record_first_default(ir: Path, *, store: ModelStore | None = None) -> bool:
    """Make an IR the default if there is no default model at all; return whether it became the default."""
    first = not has_default(store=store) and default_name(store=store) is None
    if first:
        set_default_model(ir, store=store)
    return first


def keep_ir(ir: Path, *, store: ModelStore | None = None) -> Path:
    """Copy an IR that has a contract into the model store; return the .xml there.

    Raises ModelFormatError, ContractError, OutputError if it is no IR, has no contract, or the store cannot
    be written.
    """
    store = store or ModelStore()
    _, contract = read_contract(ir)
    target = store.ir_path(contract.name, precision=contract.precision)
    with store.locked(f"convert-{contract.name}"), staging_folder(target.parent.parent) as staging:
        new = staging / target.parent.name
        with output_errors(new):
            new.mkdir()
            for suffix in (".bin", ".xml"):  # no links: the user may edit the original
                shutil.copyfile(ir.with_suffix(suffix), new / target.with_suffix(suffix).name)
        swap_folder(new, target.parent)
    return target


def _require_files(entry: ModelEntry, store: ModelStore) -> None:
    """Raise ModelNotFoundError unless a model's files are downloaded or installed."""
    if not is_installed(entry):
        store.model_dir(entry)


def _records(store: ModelStore) -> JsonRecords:
    return JsonRecords(store.root / "default.json")
