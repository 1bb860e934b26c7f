"""Know a server of a model: read its contract, and take no embedding of a version whose contract was not looked at."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, DeviceError, EdgeFaceError, InferenceError, InputError, ModelNotFoundError
from edgeface.model.contract import ModelContract, current_id
from edgeface.model.embedding import what_is_wrong
from edgeface.model.ir_file import read_contract
from edgeface.runtime.address import RemoteAddress
from edgeface.runtime.wire import Grpc, Http, Question, Unanswered, Wire, tls_context
from edgeface.text import is_loopback

KEY_VARIABLE = "EDGEFACE_SERVER_KEY"
"""Environment variable with the key for `edgeface serve`."""
_LOAD_SECONDS = 10.0
"""For the metadata of one replica."""
_LOOK_SECONDS = 1.0
"""For which the contract of a version is known, where answers do not say theirs: a server that starts again with
another model counts its versions from 1 again."""
_UNIT_ERROR = 0.02
"""Largest distance of an embedding's length from 1 where the contract says 1; in bfloat16 it is 0.004."""
_FIELDS = frozenset(field.name for field in dataclasses.fields(ModelContract))
_REST_SECONDS = 5.0
"""For which a replica that did not answer is asked after the others."""


def contract_at(model: str | Path) -> ModelContract:
    """Return the contract of an IR, or of the model at an address of `RemoteAddress`; raises as `Embedder.load`."""
    if not RemoteAddress.names(model):
        return read_contract(Path(model))[1]
    replicas, contract = connect(RemoteAddress.parse(model))
    for replica in replicas:
        replica.close()
    return contract


class Replica:
    """One server: what its model's ports are called, and which versions have the contract.

    Attributes
    ----------
    name
        Host and port.
    rests_until
        Time of `time.monotonic` until which it is asked after the others.
    """

    def __init__(self, address: RemoteAddress, host: str, port: int) -> None:
        private = address.tls or is_loopback(host)
        key = os.environ.get(KEY_VARIABLE) if private else None  # never plain to another machine
        if key and not (key.isascii() and key.isprintable()):
            raise InputError(path=KEY_VARIABLE, expected="a key of printable characters", found="others")
        headers, tls = {"x-api-key": key} if key else {}, tls_context() if address.tls else None
        self._model, self._http = address.model, Http(host, port, headers=headers, tls=tls)
        grpc_port = address.grpc_port
        self._wire: Wire = (
            self._http if grpc_port is None else Grpc(host, grpc_port, headers=headers, secure=address.tls)
        )
        self.name = self._wire.name
        self.rests_until = 0.0
        self._looked: dict[str, tuple[float, int]] = {}  # by version: when, and after how many lost connections
        self._question: Question | None = None
        self._channels_last = False

    def learn(self, end: float, expected: ModelContract | None, version: str | None = None) -> ModelContract:
        """Read the contract of a version, by default that which answers.

        Raises ContractError unless it is the expected one, if there is one, and the model's ports fit it.
        """
        looked = time.monotonic(), self._http.lost
        metadata = self._http.describe(self._model, version, end)
        if self._question is None:
            self._wire.greet(end)
        try:
            contract = _contract_in(metadata)
            inputs, outputs = metadata["inputs"], metadata["outputs"]
            (given,) = inputs
            taken = next((each for each in outputs if each["name"] == contract.output_name), outputs[0])
            shape, (_, length) = list(given["shape"][1:]), taken["shape"]
            height, width = contract.input_size
            if shape not in ([3, height, width], [height, width, 3]) or length != contract.embedding_dim:
                raise ValueError(f"an input of {given['shape']} and an output of {taken['shape']}")
            if given["datatype"] != "FP32" or taken["datatype"] != "FP32":
                raise ValueError(f"{given['datatype']} and {taken['datatype']}")
            question = Question(self._model, str(given["name"]), str(taken["name"]), contract.embedding_dim)
            versions = [str(each) for each in metadata.get("versions") or []]
        except EdgeFaceError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ContractError(
                path=f"{self._http.name}/{self._model}",
                expected="metadata of one input and one output in FP32 that fit the contract",
                found=f"others: {error!s:.200}",
            ) from error
        if expected is not None:
            self._refuse_other(expected, contract.contract_id)
        self._question, self._channels_last = question, shape[2] == 3 and shape[0] != 3
        self._looked[version or max(versions, key=lambda each: (len(each), each), default="")] = looked
        return contract

    def embed(self, pixels: NDArray[np.float32], contract: ModelContract, end: float) -> NDArray[np.float32]:
        """Embed one crop in the contract's layout; raises as `Wire.infer`, and ContractError."""
        if self._question is None:  # it was away when the model was loaded
            self.learn(end, contract)
            assert self._question is not None
        if (contract.layout == "NHWC") != self._channels_last:
            pixels = pixels.transpose((1, 2, 0) if self._channels_last else (2, 0, 1))
        try:
            answer = self._wire.infer(self._question, pixels[np.newaxis], end)
        except (Unanswered, InferenceError):  # whatever answers next is looked at first
            self._question = None
            self._looked.clear()
            raise
        if answer.contract_id is not None:
            self._refuse_other(contract, answer.contract_id)
        elif not self._knows(answer.version):
            self.learn(end, contract, answer.version or None)
        vector = answer.vector
        if wrong := what_is_wrong(vector):
            raise InferenceError(f"{self.name}: {wrong}")
        if contract.normalized and abs(float(np.linalg.norm(vector)) - 1) > _UNIT_ERROR:
            raise InferenceError(
                path=self.name, expected="an embedding of length 1", found=f"{np.linalg.norm(vector):.4g}"
            )
        return vector

    def _knows(self, version: str) -> bool:
        when, lost = self._looked.get(version, (-1.0, -1))
        return when > time.monotonic() - _LOOK_SECONDS and lost == self._http.lost

    def _refuse_other(self, contract: ModelContract, found: object) -> None:
        if not isinstance(found, str) or current_id(found) != current_id(contract.contract_id):
            raise ContractError(
                path=f"{self.name}/{self._model}",
                expected=f"contract_id {contract.contract_id}",
                found=f"{found!s:.40}: its embeddings cannot be compared",
                remedy="serve the model under one name and load it by that; or give all replicas the same version",
            )

    def rest(self) -> None:
        """Be asked after the others for a while."""
        self.rests_until = time.monotonic() + _REST_SECONDS

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        self._wire.close()


def _contract_in(metadata: Any) -> ModelContract:
    """Return the contract in a model's metadata, where both servers show it; ContractError if there is none."""
    remedy = "export the IR with 'edgeface export ovms', or serve it with 'edgeface serve'"
    try:
        told = metadata["rt_info"]["model_info"]
        stored = {"weights_sha256": ""} | {name: told[name] for name in _FIELDS & told.keys()}
        contract_id = str(told["contract_id"])
    except (LookupError, TypeError, AttributeError):
        raise ContractError(
            expected="a model with a contract in its metadata, rt_info.model_info", found="none", remedy=remedy
        ) from None
    contract = ModelContract.from_text(stored)
    if contract.contract_id != contract_id:
        found = f"the fields of {contract.contract_id}"
        raise ContractError(expected=f"the contract {contract_id!r:.40} that it names", found=found, remedy=remedy)
    return contract


def connect(address: RemoteAddress) -> tuple[list[Replica], ModelContract]:
    """Return all replicas, and the contract of those that answer; see `Embedder.load` for the errors."""
    replicas = [Replica(address, *place) for place in address.replicas]
    contract: ModelContract | None = None
    failures: list[Unanswered] = []
    try:
        for replica in replicas:
            try:
                contract = replica.learn(time.monotonic() + _LOAD_SECONDS, contract)
            except Unanswered as error:
                replica.rest()
                failures.append(error)
        if contract is None:
            raise _nothing_there(address, failures)
        if address.contract_id and current_id(address.contract_id) != current_id(contract.contract_id):
            raise ContractError(
                path=str(address), expected=f"contract_id {address.contract_id}", found=contract.contract_id
            )
    except EdgeFaceError as error:
        for replica in replicas:
            replica.close()
        if isinstance(error, InferenceError):  # what answers there is no such server
            raise DeviceError(f"{address}: {error}") from error
        if error.path is None:
            raise error.with_path(str(address)) from error
        raise
    return replicas, contract


def _nothing_there(address: RemoteAddress, failures: Sequence[Unanswered]) -> EdgeFaceError:
    found = "; ".join(map(str, failures))
    if all(each.kind == "absent" for each in failures):
        return ModelNotFoundError(path=str(address), expected=f"a model {address.model!r} there", found=found)
    remedy = "start the server, or correct the address; it is that of HTTP, and gRPC's port goes behind ?grpc="
    return DeviceError(path=str(address), expected="a server of KServe V2", found=found, remedy=remedy)
