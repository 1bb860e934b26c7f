"""Export IRs as a model repository of OpenVINO Model Server.

Source: openvinotoolkit/model_server, docs/models_repository.md, docs/parameters.md, docs/binary_input_kfs.md, and
src/http_rest_api_handler.cpp for the part of an IR's rt_info that its metadata shows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from edgeface.convert.ir import name_ports, save_ir
from edgeface.errors import ContractError, InputError
from edgeface.files import locked, output_errors, staging_folder, write_atomically
from edgeface.model.contract import ModelContract, current_id
from edgeface.model.ir_file import check_weights, read_contract
from edgeface.model.stored import MODEL_API_KEY
from edgeface.runtime.adapter import must_unpack, unpack_weights
from edgeface.untrusted import read_json

_LOCK_SECONDS = 60
_MODELS, _CONFIG = "model_config_list", "config.json"
_LAST_VERSION = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OvmsExport:
    """A model in a repository.

    Attributes
    ----------
    name, version
        As clients name it.
    ir
        Its .xml in the repository.
    contract
        As in the IR.
    written
        False: the newest version there was the same IR already.
    images
        Whether it takes JPEG and PNG files of aligned crops too.
    """

    name: str
    version: int
    ir: Path
    contract: ModelContract
    written: bool
    images: bool

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        known = {"name": self.name, "version": self.version, "ir": str(self.ir), "written": self.written}
        return known | {"contract_id": self.contract.contract_id, "images": self.images}


def export_ovms(irs: Sequence[Path], output_dir: Path, *, name: str | None = None) -> list[OvmsExport]:
    """Write IRs into a model repository, each as the next version of its model, and the repository's config.json.

    Each port of an IR there has one name, that of its contract, so that it is the public one. Its ``model_info`` holds
    the contract, which `Embedder.load("ovms://...")` reads. It computes in float32, so that all servers give the same
    embeddings; weights of 4 or 8 bits alone are unpacked, as `Embedder` does. A version is written beside the others
    and renamed: a server that watches the folder never sees a part of one. What config.json says of other models, and
    of this one beyond name, folder and layout, stays; if it is a link, its target is written.

    Parameters
    ----------
    irs
        IRs with a contract.
    output_dir
        The repository; made if absent.
    name
        Name of the model, for one IR; None: the contract's.

    Returns
    -------
    list of OvmsExport
        In the order of the IRs.

    Raises
    ------
    InputError
        If a name cannot be that of a folder and a part of an address, or config.json is none.
    ModelFormatError, ContractError
        If an IR is damaged or has no contract; or if the newest version there has another `contract_id`: its clients
        would get embeddings that cannot be compared with those that they have.
    OutputError
        If the repository cannot be written.
    """
    if name is not None and len(irs) != 1:
        raise InputError(expected="one IR with a name", found=f"{len(irs)}", remedy="export each by itself, or no name")
    sources = [_read(ir, name) for ir in irs]
    done, file = [], Path(os.path.realpath(output_dir / _CONFIG))  # it has what others wrote: a link to it stays one
    with locked(output_dir / ".edgeface.lock", timeout=_LOCK_SECONDS):
        config = _read_config(file)
        for source in sources:
            done.append(_export(source, output_dir))
            _configure(config, done[-1])
            with write_atomically(file) as path, output_errors(path):
                path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return done


@dataclass(frozen=True, slots=True)
class _Source:
    """An IR that was read, and its name in the repository."""

    ir: Path
    name: str
    model: ov.Model
    contract: ModelContract


def _read(ir: Path, name: str | None) -> _Source:
    model, contract = read_contract(ir)
    check_weights(ir, contract)
    name = contract.name if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name) or name == _CONFIG:
        raise InputError(
            path=ir, expected="a name of letters, digits, '.', '_' and '-'", found=repr(name), remedy="pass --name"
        )
    if must_unpack(model, "CPU"):
        unpack_weights(model)  # the server uses several streams, see `edgeface.runtime.adapter.UNPACKED`
    return _Source(ir, name, model, contract)


def _export(source: _Source, output_dir: Path) -> OvmsExport:
    name, model, contract = source.name, source.model, source.contract
    folder = output_dir / name
    newest = max(_versions(folder), default=0)
    if (version := newest + 1) > _LAST_VERSION:
        raise InputError(path=folder, expected="a version to come", found=f"the last, {newest}", remedy="remove it")
    before = _contract_of_version(folder / str(newest)) if newest else None
    if before and current_id(before.contract_id) != current_id(contract.contract_id):
        raise ContractError(
            path=folder,
            expected=f"a model of contract_id {before.contract_id}, as version {newest}",
            found=f"{contract.contract_id} in {source.ir}: their embeddings cannot be compared",
            remedy="export it by another name, --name",
        )
    images = contract.color == "BGR" and contract.value_range == (0.0, 255.0)
    with staging_folder(output_dir) as staging:
        name_ports(model, inputs=[contract.input_name], outputs=[contract.output_name], layout=contract.layout)
        told = {"contract_id": contract.contract_id, **dataclasses.replace(contract, weights_sha256="").to_text()}
        for key, text in told.items():
            if text:  # of a model that is written again its digest may be another one
                model.set_rt_info(text, [MODEL_API_KEY, key])
        xml, written = save_ir(model, staging, contract)
        if before and before.weights_sha256 == written.weights_sha256:
            same = folder / str(newest) / f"{name}.xml"
            return OvmsExport(name=name, version=newest, ir=same, contract=before, written=False, images=images)
        part = staging / "version"
        part.mkdir()
        for suffix in (".xml", ".bin"):
            xml.with_suffix(suffix).rename(part / f"{name}{suffix}")
        read_contract(part / f"{name}.xml")  # as the server will
        folder.mkdir(exist_ok=True)
        part.rename(folder / str(version))
    final = folder / str(version) / f"{name}.xml"
    return OvmsExport(name=name, version=version, ir=final, contract=written, written=True, images=images)


def _versions(folder: Path) -> list[int]:
    """Return the numbers of the versions of a model, as the server counts them: in 64 bits."""
    with output_errors(folder):
        names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    return [int(each) for each in names if re.fullmatch("[1-9][0-9]{0,18}", each) and int(each) <= _LAST_VERSION]


def _contract_of_version(folder: Path) -> ModelContract:
    irs = sorted(folder.glob("*.xml"))
    if len(irs) != 1:
        raise InputError(
            path=folder, expected="one IR in the folder of a version", found=str(len(irs)), remedy="remove the folder"
        )
    return read_contract(irs[0])[1]


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {_MODELS: []}
    config = read_json(path, "a configuration of OpenVINO Model Server")
    models = config.get(_MODELS) if isinstance(config, dict) else None
    if not isinstance(models, list) or not all(
        isinstance(each, dict) and isinstance(each.get("config"), dict) for each in models
    ):
        raise InputError(path=path, expected=f"a configuration with a {_MODELS}", found="another", remedy="move it")
    return dict(config)


def _configure(config: dict[str, Any], done: OvmsExport) -> None:
    """Add a model to the configuration, or correct what it says of it."""
    ours = {"name": done.name, "base_path": done.name}  # relative to config.json
    # Image files become NHWC in BGR, 0-255, and are refused by an input that clients see as NCHW.
    seen, own = "NHWC" if done.images else "NCHW", done.contract.layout
    ours |= {} if seen == own else {"layout": f"{seen}:{own}"}
    entry = next((each["config"] for each in config[_MODELS] if each["config"].get("name") == done.name), None)
    if entry is None:
        numbers = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
        config[_MODELS].append({"config": ours | {"plugin_config": numbers}})
    else:
        entry.pop("layout", None)
        entry.update(ours)
