"""Read an IR and its contract, and check that topology and weights are those that the contract was written for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import openvino as ov

from edgeface.errors import ContractError, ModelFormatError
from edgeface.files import sha256_of
from edgeface.model.contract import ModelContract
from edgeface.model.liveness_contract import LivenessContract
from edgeface.model.stored import FILE_SHA256, NO_DIGEST, RT_INFO_KEY, StoredContract, stored_kind


def read_ir(path: Path, *, core: ov.Core | None = None) -> ov.Model:
    """Read an IR (.xml, with its .bin beside it); `core` is the one that will compile it, by default a new one.

    Raises ModelFormatError if it is absent, unreadable, damaged, or no IR.
    """
    if not path.is_file():
        raise ModelFormatError(f"{path}: expected an IR (.xml), found nothing there")
    if path.suffix != ".xml":  # OpenVINO would read an .onnx or .pb too, and there is no .bin beside those
        found = f"a {path.suffix or 'nameless'} file"
        remedy = "convert it first: edgeface convert"
        raise ModelFormatError(path=path, expected="an IR (.xml)", found=found, remedy=remedy)
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelFormatError(f"{path}: expected an IR with its .bin beside it, found no {weights.name}")
    try:
        return (core or ov.Core()).read_model(path)
    except RuntimeError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelFormatError(
            f"{path}: expected an IR, found a file that OpenVINO cannot read: the .xml is damaged, or "
            f"{weights.name} is shorter than it should be ({reason[-1]}); convert the model again"
        ) from error


def read_contract(path: Path, *, core: ov.Core | None = None) -> tuple[ov.Model, ModelContract]:
    """Read an IR and the contract in it; parameters as for `read_ir`.

    Raises ModelFormatError as `read_ir` does; ContractError as `contract_of`.
    """
    model = read_ir(path, core=core)
    return model, contract_of(model, path.read_bytes(), source=str(path))


def read_liveness_contract(path: Path, *, core: ov.Core | None = None) -> tuple[ov.Model, LivenessContract]:
    """Read the IR of a liveness model and the contract in it, as `read_contract` does for an embedding model."""
    model = read_ir(path, core=core)
    contract = LivenessContract.read_from(model, source=str(path))
    _check_file(model, path.read_bytes(), contract, source=str(path))
    return model, contract


def any_contract_of(model: ov.Model, xml: bytes, *, source: str) -> ModelContract | LivenessContract:
    """Return the contract of a model of any kind; otherwise as `contract_of`."""
    kind = LivenessContract if stored_kind(model) == LivenessContract.kind else ModelContract
    contract = kind.read_from(model, source=source)
    _check_file(model, xml, contract, source=source)
    return contract


def contract_of(model: ov.Model, xml: bytes, *, source: str) -> ModelContract:
    """Return the contract of a model that was read from this .xml; `source` is the file's name in messages.

    Raises
    ------
    ContractError
        If there is no contract, one of another kind or of a newer version, or one that the model's outputs do not fit.
    ModelFormatError
        If the .xml was changed after it was written: its layers, its names, or the contract in it. IRs of edgeface
        0.1 have no digest that would show it.
    """
    contract = ModelContract.read_from(model, source=source)
    _check_file(model, xml, contract, source=source)
    return contract


def _check_file(model: ov.Model, xml: bytes, contract: StoredContract, *, source: str) -> None:
    """Raise as `contract_of` if the .xml was changed, or the model's ports are not those of the contract."""
    bound = model.has_rt_info([RT_INFO_KEY, FILE_SHA256])
    stored = str(model.get_rt_info([RT_INFO_KEY, FILE_SHA256]).astype(str)) if bound else ""
    if bound and (found := _xml_digest(xml, stored)) != stored:
        raise ModelFormatError(
            path=source,
            expected=f"the .xml as it was written, of SHA-256 {stored[:16]}...",
            found=f"one that was changed, of {found[:16]}...",
            remedy="convert the model again; to use an .xml of your own, remove the contract in it and run 'edgeface "
            "adopt'",
        )
    shapes = [str(port.get_partial_shape()) for port in model.outputs]
    fits = [
        port.get_partial_shape().compatible(ov.PartialShape([-1, contract.output_length])) for port in model.outputs
    ]
    if len(model.inputs) != 1 or fits != [True]:
        raise ContractError(
            path=source,
            expected=f"one input, and one output of (batch, {contract.output_length}), as the contract says",
            found=f"{len(model.inputs)} inputs, and {', '.join(shapes) or 'no output'}",
            remedy="convert the model again",
        )


def bind_xml(path: Path) -> None:
    """Store the digest of an .xml in it, in the place that ``ModelContract.write_to(bound=True)`` left.

    It has no key: it shows accidents and careless edits. Who edits the .xml on purpose can compute it again; seal the
    IR against that (`edgeface.runtime.encryption.encrypt_ir`).
    """
    xml = path.read_bytes()
    path.write_bytes(xml.replace(NO_DIGEST.encode(), _xml_digest(xml, NO_DIGEST).encode()))


def _xml_digest(xml: bytes, stored: str) -> str:
    """Return the SHA-256 of an .xml with `NO_DIGEST` in place of the digest that it stores."""
    return hashlib.sha256(xml.replace(stored.encode(), NO_DIGEST.encode())).hexdigest()


def check_weights(path: Path, contract: StoredContract, found: str | None = None) -> None:
    """Raise ModelFormatError if an IR's weights are not those that its contract was written for.

    A contract without a digest accepts any weights. `found` is the SHA-256 of the weights, where it is known already.
    """
    expected = contract.weights_sha256
    if not expected:
        return
    found = found or sha256_of(path.with_suffix(".bin"))
    if found != expected:
        raise ModelFormatError(
            f"{path}: expected weights of SHA-256 {expected[:16]}..., found {found[:16]}...: "
            f"{path.with_suffix('.bin').name} is damaged or belongs to another IR; convert the model again"
        )
