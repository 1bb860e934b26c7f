"""An IR's path in, its model out, or one clear error; and proof that the weights beside it are the right ones."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from edgeface.errors import ModelFormatError
from edgeface.model.contract import ModelContract

__all__ = ["check_weights", "read_ir"]


def read_ir(path: Path, *, core: ov.Core | None = None) -> ov.Model:
    """Read an IR.

    Parameters
    ----------
    path
        Of the .xml; its .bin lies beside it.
    core
        That will compile it; by default one of its own.

    Raises
    ------
    ModelFormatError
        If it is absent, unreadable, damaged, or no IR.
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
            f"{path}: expected an IR, found something that OpenVINO cannot read: the .xml is damaged, or "
            f"{weights.name} is shorter than it should be ({reason[-1]}); convert the model again"
        ) from error


def check_weights(path: Path, contract: ModelContract, found: str) -> None:
    """Refuse weights that are not those that the contract was written for.

    Parameters
    ----------
    path
        Of the IR, for the message.
    contract
        What the IR says about itself. One that was never saved names no weights, and takes any.
    found
        SHA-256 of the weights as they are now.

    Raises
    ------
    ModelFormatError
        If they were damaged or exchanged.
    """
    expected = contract.weights_sha256
    if expected and found != expected:
        raise ModelFormatError(
            f"{path}: expected weights of SHA-256 {expected[:16]}..., found {found[:16]}...: "
            f"{path.with_suffix('.bin').name} is damaged or belongs to another IR; convert the model again"
        )
