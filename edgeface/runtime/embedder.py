"""Load an IR and compute embeddings of face crops: contract checked, adapter compiled in, on an engine or a pool."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import openvino as ov

from edgeface.cipher import is_sealed
from edgeface.errors import ContractError, DeviceError, EngineClosed, InputError, ModelFormatError
from edgeface.files import sha256_of
from edgeface.limits import require_room_to_compile
from edgeface.model.contract import ModelContract, current_id
from edgeface.model.embedding import what_is_wrong
from edgeface.model.ir_file import check_weights, contract_of, read_ir
from edgeface.runtime.adapter import (
    UNPACKED,
    Flip,
    ImageFormat,
    adapt,
    flip_contract,
    is_quantized,
    must_unpack,
    unpack_weights,
    with_mirror,
)
from edgeface.runtime.address import RemoteAddress
from edgeface.runtime.cache import ModelCache
from edgeface.runtime.counters import Counters
from edgeface.runtime.devices import ResolvedDevice, resolve_device, shared_core
from edgeface.runtime.encryption import open_ir
from edgeface.runtime.engine import Engine
from edgeface.runtime.plan import DevicePlan, ExecutionReport, Hint, default_plan, describe_execution, resolve_plan
from edgeface.runtime.pool import Pool, Retirement
from edgeface.runtime.schedule import reason_of
from edgeface.runtime.serving import Policy, Serving, refuse_waiting

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class _IR:
    """A model that was read, its contract, and the digests that identify both."""

    path: Path  # of the .xml, or of the sealed file
    model: ov.Model  # as it was read; it must not be changed
    contract: ModelContract
    digest: str  # SHA-256 of the .xml
    weights: Path | None  # the .bin; None if it is sealed
    weights_digest: Callable[[], str]

    @property
    def identity(self) -> str:
        """Text that identifies the model, for the key of a cache."""
        return json.dumps([self.digest, self.contract.to_dict()], sort_keys=True)

    def verify(self) -> None:
        """Raise `ModelFormatError` unless the weights are those of the contract."""
        check_weights(self.path, self.contract, self.weights_digest())


def _read(path: Path, *, core: ov.Core, key: bytes | None = None) -> _IR:
    """Read an IR, sealed or not; see `Embedder.load` for the errors."""
    try:
        if is_sealed(path) or (key is not None and path.suffix != ".xml"):
            if key is None:
                raise InputError(f"{path}: this model is encrypted; pass its key")
            xml, content = open_ir(path, key)
            model, digest = core.read_model(xml, content), lambda: hashlib.sha256(content).hexdigest()
            weights = None
        else:
            model, xml, weights = read_ir(path, core=core), path.read_bytes(), path.with_suffix(".bin")
            digest = functools.partial(sha256_of, weights)
    except OSError as error:
        raise InputError(f"{path}: expected a readable OpenVINO IR (.xml), found: {error.strerror}") from error
    except RuntimeError as error:
        raise ModelFormatError(
            f"{path}: decrypted, but this OpenVINO cannot read the IR in it; convert the model again and encrypt it"
        ) from error
    return _IR(
        path=path,
        model=model,
        contract=contract_of(model, xml, source=str(path)),
        digest=hashlib.sha256(xml).hexdigest(),
        weights=weights,
        weights_digest=digest,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """All options of `Embedder.load`, so that `swap` can load again."""

    plans: tuple[tuple[DevicePlan, ResolvedDevice], ...]
    image_format: ImageFormat
    flip: Flip | None
    cache_dir: Path | None
    cache_limit: int
    queue_depth: int | None
    policy: Policy
    on_event: Callable[[Retirement], None] | None

    def run(self, source: _IR, key: bytes | None) -> _Generation:
        """Compile for every plan while another thread computes the weights' digest."""
        engines: list[Engine] = []
        reports: list[ExecutionReport] = []
        with ThreadPoolExecutor(1) as beside:
            verified = beside.submit(source.verify)
            try:
                for plan, resolved in self.plans:
                    engine, report = self._engine(source, plan, resolved, key)
                    engines.append(engine)
                    reports.append(report)
                verified.result()
            except BaseException:
                for engine in engines:
                    engine.close(drain=False)
                verified.result()  # damaged weights explain more than the device's error
                raise
        pooled = len(engines) > 1 or self.on_event is not None
        serving = Pool(engines, policy=self.policy, on_event=self.on_event) if pooled else engines[0]
        names = tuple(tuple(sorted(port.get_names())) for port in (source.model.input(0), source.model.output(0)))
        return _Generation(serving, source.contract, tuple(reports), *names)

    def connect(self, address: RemoteAddress, *, allow_seeded: bool) -> _Generation:
        """Use a model on a server."""
        from edgeface.runtime.remote import RemoteServing  # here: it imports HTTP and TLS

        serving = RemoteServing(address, self.image_format, queue_depth=self.queue_depth, policy=self.policy)
        contract = serving.contract
        try:
            contract.refuse_seeded(source=str(address), allow_seeded=allow_seeded)
        except ContractError:
            serving.close(drain=False)
            raise
        names = (contract.input_name,), (contract.output_name,)
        return _Generation(serving, contract, (serving.report(),), *names)

    def _engine(
        self, source: _IR, plan: DevicePlan, resolved: ResolvedDevice, key: bytes | None
    ) -> tuple[Engine, ExecutionReport]:
        core, config = shared_core(), plan.compile_config()
        config.pop("CACHE_DIR", None)
        # The cache of an encrypted model is encrypted too.
        cache = ModelCache(self.cache_dir, limit=self.cache_limit, key=key) if self.cache_dir else None
        # A graph whose batch is fixed may hold it in a Reshape, or mix the rows of a larger one.
        fixed = source.model.input(0).get_partial_shape()[0].is_static
        buckets = (1,) if self.image_format.size == "any" else plan.batch_buckets[: 1 if fixed else None]
        # One model for any batch where that costs nothing: in 8 bits OpenVINO is slower with it, and rounds otherwise.
        any_batch = plan.device == "CPU" and len(buckets) > 1 and not is_quantized(source.model)
        unpack = must_unpack(source.model, plan.device)
        compiled: dict[int, ov.CompiledModel] = {}
        cached = []
        for batch in buckets[-1:] if any_batch else buckets:
            require_room_to_compile()
            size = None if any_batch else batch
            build = functools.partial(self._adapted, source, size, unpack=unpack)
            try:
                if cache is None:
                    compiled[batch], hit = core.compile_model(build(), plan.device, config), False
                else:
                    identity = f"{source.identity} {self.image_format} {self.flip} {size}{' unpacked' * unpack}"
                    # Unpacked weights are not in the .bin.
                    weights = None if unpack else source.weights
                    compiled[batch], hit = cache.compile(
                        core, build, plan.device, config, identity=identity, weights=weights
                    )
            except RuntimeError as error:
                raise DeviceError(
                    f"{source.path}: {plan.device} cannot compile this model: {reason_of(error)}"
                ) from error
            cached.append(hit)
        first = next(iter(compiled.values()))
        report = describe_execution(first, plan, resolved=resolved, core=core)
        engine = Engine(
            compiled,
            requests=plan.requests,
            queue_depth=self.queue_depth,
            policy=self.policy,
            name=f"{source.contract.name} on {plan.device}",
            check=what_is_wrong,
        )
        notes = (*report.notes, UNPACKED) if unpack else report.notes
        return engine, dataclasses.replace(report, loaded_from_cache=all(cached), notes=notes)

    def _adapted(self, source: _IR, batch: int | None, *, unpack: bool) -> ov.Model:
        model = source.model if self.flip is None else with_mirror(source.model, source.contract, self.flip)
        adapted = adapt(model, source.contract, self.image_format, batch=batch)
        return unpack_weights(adapted) if unpack else adapted


@dataclass(frozen=True, slots=True)
class _Generation:
    """A loaded IR, from one load or swap to the next."""

    serving: Serving
    contract: ModelContract
    reports: tuple[ExecutionReport, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


class Embedder(Serving):
    """Compute embeddings of face crops, from any thread. Made by `load`; a context manager.

    Attributes
    ----------
    contract
        Contract of the embeddings. It is the IR's, except for ``flip="concatenate"``, which doubles the length and does
        not normalise, and for images of another size that nobody vouches are aligned (`ImageFormat.size`): these have
        another `contract_id`.
    image_format
        Format of the images for `embed` and `submit`.
    flip
        How each crop's mirror image is used; None: not at all.
    """

    def __init__(self, recipe: _Recipe, generation: _Generation) -> None:
        self.image_format = recipe.image_format
        self.flip = recipe.flip
        self.contract = recipe.image_format.contract_of(flip_contract(generation.contract, recipe.flip))
        self._recipe = recipe
        self._generations = [generation]
        self._past = Counters()
        self._lock = threading.Lock()
        self._swapping = threading.Lock()

    @classmethod
    def load(
        cls,
        ir: Path | str,
        *,
        device: str = "CPU",
        fallback: Sequence[str] = (),
        plan: DevicePlan | Sequence[DevicePlan] | Path | str | None = None,
        hint: Hint = "THROUGHPUT",
        image_format: ImageFormat | None = None,
        flip: Flip | None = None,
        cache_dir: Path | None = None,
        cache_limit: int = 2 << 30,
        key: bytes | None = None,
        queue_depth: int | None = None,
        policy: Policy = "block",
        on_event: Callable[[Retirement], None] | None = None,
        allow_seeded: bool = False,
    ) -> Embedder:
        """Load an IR that has a contract, or use one on a server.

        Parameters
        ----------
        ir
            The .xml with its .bin beside it, or a file of `encrypt_ir`. Or the address of a model on OpenVINO Model
            Server, `edgeface serve` or another server of KServe V2, ``ovms://host:port/model``, see
            `edgeface.runtime.address.RemoteAddress`: the server computes as it is configured, and device, hint, cache
            and `on_event` are not used. A key for the server is read from EDGEFACE_SERVER_KEY.
        device
            As for `resolve_device`. Not used if there is a plan.
        fallback
            Devices to use when `device`, or a plan's, is absent. Empty: an absent device is an error.
        plan
            How the device shall run the model, or a plan file, such as one of ``edgeface bench sweep``. Several:
            a `Pool` over all of them.
        hint
            ``LATENCY``: all cores compute one crop; ``THROUGHPUT``: each computes its own. Not used if there is a plan.
        image_format
            Format of the crops; None: as OpenCV holds them, of the contract's size.
        flip
            Whether each crop's mirror image is embedded too, in the same pass; see `Flip`.
        cache_dir
            Folder of compiled models; None: no cache.
        cache_limit
            Most bytes in the folder.
        key
            Key of a sealed IR. Its compiled form in the cache is then encrypted too.
        queue_depth, policy
            As for `Engine`, per plan.
        on_event
            Called when one of several plans is retired.
        allow_seeded
            Load a model of random weights too, which recognises no one.

        Raises
        ------
        InputError
            If there is no such file, or the options contradict each other; or if the server refuses the key.
        ModelFormatError
            If it is not an IR, its weights are not those of the contract, or it cannot be decrypted.
        ContractError
            If it has no contract, or one of a newer version; or if its weights are seeded. If replicas of a server have
            different contracts, or another than the address names.
        DeviceError, InferenceError
            If the device is absent, cannot compile the model, or cannot make its infer requests; if no server answers.
        ModelNotFoundError
            If the servers have no such model.
        """
        make = functools.partial(
            _Recipe,
            image_format=image_format or ImageFormat(),
            cache_limit=cache_limit,
            queue_depth=queue_depth,
            policy=policy,
        )
        if RemoteAddress.names(ir):
            given = {"flip": flip, "plan": plan, "key": key, "fallback": tuple(fallback) or None}
            if wrong := [name for name, value in given.items() if value is not None]:
                raise InputError(
                    path=ir,
                    expected="a model that its server runs as it is",
                    found=f"{', '.join(wrong)}, for one of this machine",
                    remedy="leave that out",
                )
            remote = make(plans=(), flip=None, cache_dir=None, on_event=None)
            return cls(remote, remote.connect(RemoteAddress.parse(ir), allow_seeded=allow_seeded))
        core = shared_core()
        with ThreadPoolExecutor(1) as beside:  # while the devices' libraries are loaded
            reading = beside.submit(_read, Path(ir), core=core, key=key)
            if isinstance(plan, (str, Path)):
                plan = DevicePlan.read(Path(plan))
            if plan is None:
                resolved = resolve_device(device, fallback=fallback, core=core)
                plans: tuple[tuple[DevicePlan, ResolvedDevice], ...] = ((default_plan(resolved, hint=hint), resolved),)
            else:
                listed = (plan,) if isinstance(plan, DevicePlan) else tuple(plan)
                plans = tuple(resolve_plan(each, fallback) for each in listed)
            source = reading.result()
            source.contract.refuse_seeded(source=str(source.path), allow_seeded=allow_seeded)
        if not plans:
            raise InputError("plan: expected at least one plan, found an empty list")
        recipe = make(plans=plans, flip=flip, cache_dir=cache_dir, on_event=on_event)
        return cls(recipe, recipe.run(source, key))

    @property
    def executions(self) -> tuple[ExecutionReport, ...]:
        """Report for every plan of what executes, read back from the compiled model."""
        return self._generations[-1].reports

    @property
    def execution(self) -> ExecutionReport:
        """Report of what executes the first plan."""
        return self.executions[0]

    @property
    def input_names(self) -> tuple[str, ...]:
        """All names of the IR's input, the contract's among them."""
        return self._generations[-1].input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """All names of the IR's output, the contract's among them."""
        return self._generations[-1].output_names

    @property
    def capacity(self) -> int:
        """Most requests that can be outstanding."""
        return self._generations[-1].serving.capacity

    def embed(self, crops: np.ndarray | Sequence[np.ndarray], *, deadline: float | None = None) -> np.ndarray:
        """Embed one crop or several, and wait.

        Parameters
        ----------
        crops : one (H, W, C), several (N, H, W, C), or a sequence of the first; as `image_format` says
            Aligned as `contract.alignment` says.
        deadline
            Seconds for each crop, from its submission.

        Returns
        -------
        (N, D) float32
            In the order of the crops. Unit length if `contract.normalized`: cosine similarity is a dot product.

        Raises
        ------
        ContractError
            If a crop's shape, dtype or memory layout is not what `image_format` says.
        RequestError
            If a crop got no result: `InferenceError`, also for an embedding that is not finite or has length 0,
            `DeadlineExceeded`, `EngineClosed`.
        """
        if isinstance(crops, np.ndarray):
            if crops.ndim == 3:
                return self.infer(crops, deadline=deadline)[np.newaxis]
            self.image_format.check_batch(crops, self.contract)
            if len(crops) == 1:
                return self.infer(crops[0], deadline=deadline)[np.newaxis]
        rows = list(self._stream(crops, deadline=deadline, copy=False))
        return np.stack(rows) if rows else np.empty((0, self.contract.embedding_dim), np.float32)

    def submit(
        self, array: np.ndarray, *, deadline: float | None = None, policy: Policy | None = None, copy: bool = True
    ) -> Future[np.ndarray]:
        """Queue one crop; the future's result is its embedding, (D,) float32. See `Engine.submit`."""
        self.image_format.check(array, self.contract)
        return self._ask(lambda serving: serving.submit(array, deadline=deadline, policy=policy, copy=copy))

    def infer(self, array: np.ndarray, *, deadline: float | None = None) -> np.ndarray:
        """Embed one crop and wait; (D,) float32. See `Engine.infer`."""
        self.image_format.check(array, self.contract)
        return self._ask(lambda serving: serving.infer(array, deadline=deadline))

    def _ask(self, question: Callable[[Serving], _Answer]) -> _Answer:
        """Ask the current generation; the next one if a swap closes it meanwhile."""
        while True:
            generation = self._generations[-1]
            try:
                return question(generation.serving)
            except EngineClosed:
                if generation is self._generations[-1]:
                    raise  # closed for good

    def swap(self, ir: Path | str, *, key: bytes | None = None) -> None:
        """Replace the IR by another one of the same contract, without losing a request; not in a future's callback.

        The new IR is loaded beside the old one and gets all new requests. This returns when the old one has finished
        its requests. On an error the old one stays in use.

        Raises
        ------
        ContractError
            If the new IR has another `contract_id`: its embeddings could not be compared with those so far.
        EdgeFaceError
            As `load`.
        RequestError
            If this is a callback, which must not wait.
        """
        refuse_waiting()
        if not self._recipe.plans or RemoteAddress.names(ir):
            raise InputError("swap: expected an IR in place of another one of this process; a server swaps its own")
        with self._swapping:
            source = _read(Path(ir), core=shared_core(), key=key)
            old = self._generations[-1]
            if current_id(source.contract.contract_id) != current_id(old.contract.contract_id):
                raise ContractError(
                    f"{source.path}: expected contract_id {old.contract.contract_id}, which is being served, found "
                    f"{source.contract.contract_id}: the two cannot be compared; load it as a second Embedder"
                )
            new = self._recipe.run(source, key)
            with self._lock:
                self._generations.append(new)
            old.serving.close()
            with self._lock:
                self._past += old.serving.counters()
                self._generations.remove(old)

    def counters(self) -> Counters:
        """Return the counters over all swaps."""
        with self._lock:
            return sum((each.serving.counters() for each in self._generations), self._past)

    def close(self, *, drain: bool = True, timeout: float = 30.0) -> None:
        """Accept no more requests, resolve every future, and release the device; see `Engine.close`."""
        for generation in reversed(list(self._generations)):
            generation.serving.close(drain=drain, timeout=timeout)
