"""A file in, a model and the contract it carries out, with the means to prove that its weights are the right ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import openvino as ov

from edgeface.errors import InputError, ModelFormatError
from edgeface.files import sha256_of
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import check_weights, read_ir
from edgeface.runtime.encryption import is_sealed, open_ir

__all__ = ["Source", "read_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An IR that was read.

    Attributes
    ----------
    path
        Of the .xml, or of the sealed file.
    model : openvino.Model
        As it was read; not to be changed.
    contract
        What the IR says about itself.
    digest
        SHA-256 of the .xml.
    weights
        Path of the .bin; None if it is sealed.
    weights_digest
        Computes the SHA-256 of the weights as they are now.
    """

    path: Path
    model: ov.Model
    contract: ModelContract
    digest: str
    weights: Path | None
    weights_digest: Callable[[], str]

    @property
    def identity(self) -> str:
        """Everything about the model, for the key of a cache."""
        return json.dumps([self.digest, self.contract.to_dict()], sort_keys=True)

    def verify(self) -> None:
        """Raise `ModelFormatError` unless the weights are those that the contract was written for."""
        check_weights(self.path, self.contract, self.weights_digest())


def read_source(path: Path, *, core: ov.Core, key: bytes | None = None) -> Source:
    """Read an IR, or one that `encrypt_ir` sealed.

    Raises
    ------
    InputError
        If there is no such file, or it is sealed and there is no key.
    ModelFormatError
        If it is not an IR, or is damaged.
    ContractError
        If it has no contract, or one of a newer version.
    """
    try:
        if is_sealed(path) or (key is not None and path.suffix != ".xml"):
            if key is None:
                raise InputError(f"{path}: expected a key, for this model is encrypted; found none")
            xml, content = open_ir(path, key)
            model, digest = core.read_model(xml, content), hashlib.sha256(content).hexdigest
            return _source(path, xml, model, None, digest)
        model = read_ir(path, core=core)
        weights = path.with_suffix(".bin")
        return _source(path, path.read_bytes(), model, weights, lambda: sha256_of(weights))
    except OSError as error:
        raise InputError(
            f"{path}: expected a readable OpenVINO IR (.xml), found: {error.strerror}"
        ) from error
    except RuntimeError as error:
        raise ModelFormatError(
            f"{path}: decrypted well, but this OpenVINO cannot read the IR in it; seal a newly converted one"
        ) from error


def _source(
    path: Path, xml: bytes, model: ov.Model, weights: Path | None, weights_digest: Callable[[], str]
) -> Source:
    return Source(
        path=path,
        model=model,
        contract=ModelContract.read_from(model, source=str(path)),
        digest=hashlib.sha256(xml).hexdigest(),
        weights=weights,
        weights_digest=weights_digest,
    )
