"""Read an IR and its contract, and check that the weights are those that the contract names."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from edgeface.errors import ModelFormatError
from edgeface.files import sha256_of
from edgeface.model.contract import ModelContract


def read_ir(path: Path, *, core: ov.Core | None = None) -> ov.Model:
    """Read an IR (.xml, with its .bin beside it); `core` is the one that will compile it, by default a new one.

    Raises ModelFormatError if it is absent, unreadable, damaged, or no IR.
    """
    if not path.is_file():
        raise ModelFormatError(f"{path}: expected an IR (.xml), found nothing there")
    if path.suffix != ".xml":  # OpenVINO would read an .onnx or .pb too, and there is no .bin beside those
        raise ModelFormatError(f"{path}: expected an IR (.xml), found a {path.suffix or 'nameless'} file")
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

    Raises ModelFormatError as `read_ir` does; ContractError if the IR has no contract, or one of a newer version.
    """
    model = read_ir(path, core=core)
    return model, ModelContract.read_from(model, source=str(path))


def check_weights(path: Path, contract: ModelContract, found: str | None = None) -> None:
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
