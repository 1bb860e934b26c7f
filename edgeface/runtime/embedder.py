"""An IR in, face crops to embeddings out: the contract checked, the adapter compiled in, an engine behind it."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import openvino as ov

from edgeface.errors import ContractError, DeviceError, EngineClosed, InputError
from edgeface.model.contract import ModelContract
from edgeface.runtime.adapter import ImageFormat, adapt
from edgeface.runtime.cache import ModelCache
from edgeface.runtime.counters import Counters
from edgeface.runtime.devices import ResolvedDevice, resolve_device, shared_core
from edgeface.runtime.engine import Engine
from edgeface.runtime.flip import Flip, flip_contract, with_mirror
from edgeface.runtime.plan import DevicePlan, ExecutionReport, default_plan, describe_execution
from edgeface.runtime.pool import Pool, Retirement
from edgeface.runtime.schedule import reason_of
from edgeface.runtime.serving import Policy, Serving
from edgeface.runtime.source import Source, read_source

__all__ = ["Embedder", "share_threads"]

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """Everything that turns an IR into a running engine, so that `swap` can do it again."""

    plans: tuple[tuple[DevicePlan, ResolvedDevice], ...]
    image_format: ImageFormat
    flip: Flip | None
    cache_dir: Path | None
    cache_limit: int
    queue_depth: int | None
    policy: Policy
    on_event: Callable[[Retirement], None] | None

    def run(self, source: Source, key: bytes | None) -> _Generation:
        """Compile for every plan, while the weights' digest is computed beside it."""
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
                verified.result()  # damaged weights explain more than what a device says about them
                raise
        pooled = len(engines) > 1 or self.on_event is not None
        serving = Pool(engines, policy=self.policy, on_event=self.on_event) if pooled else engines[0]
        return _Generation(serving, source.contract, tuple(reports))

    def _engine(
        self, source: Source, plan: DevicePlan, resolved: ResolvedDevice, key: bytes | None
    ) -> tuple[Engine, ExecutionReport]:
        core, config = shared_core(), plan.compile_config()
        config.pop("CACHE_DIR", None)
        folder = self.cache_dir or plan.cache_dir
        # What was encrypted in the IR must not lie open in the cache.
        cache = ModelCache(folder, limit=self.cache_limit, key=key) if folder else None
        buckets = (1,) if self.image_format.size == "any" else plan.batch_buckets
        compiled: dict[int, ov.CompiledModel] = {}
        cached = []
        for batch in buckets:
            build = functools.partial(self._adapted, source, batch)
            try:
                if cache is None:
                    compiled[batch], hit = core.compile_model(build(), plan.device, config), False
                else:
                    identity = f"{source.identity} {self.image_format} {self.flip} {batch}"
                    compiled[batch], hit = cache.compile(
                        core, build, plan.device, config, identity=identity, weights=source.weights
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
        )
        return engine, dataclasses.replace(report, loaded_from_cache=all(cached))

    def _adapted(self, source: Source, batch: int) -> ov.Model:
        model = source.model if self.flip is None else with_mirror(source.model, source.contract, self.flip)
        return adapt(model, source.contract, self.image_format, batch=batch)


@dataclass(frozen=True, slots=True)
class _Generation:
    """One IR at work, from the load or the swap that brought it to the next."""

    serving: Serving
    contract: ModelContract
    reports: tuple[ExecutionReport, ...]


class Embedder(Serving):
    """Face crops in, embeddings out, from any thread. Made by `load`; a context manager.

    Attributes
    ----------
    contract
        Of the embeddings that come out. It is the IR's, but for ``flip="concatenate"``, which gives embeddings
        of twice the length, not normalised, and so another `contract_id`.
    image_format
        What `embed` and `submit` take.
    flip
        Whether each crop's mirror image is embedded too.
    """

    def __init__(self, recipe: _Recipe, generation: _Generation) -> None:
        self.image_format = recipe.image_format
        self.flip = recipe.flip
        self.contract = flip_contract(generation.contract, recipe.flip)
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
        image_format: ImageFormat | None = None,
        flip: Flip | None = None,
        cache_dir: Path | None = None,
        cache_limit: int = 2 << 30,
        key: bytes | None = None,
        queue_depth: int | None = None,
        policy: Policy = "block",
        on_event: Callable[[Retirement], None] | None = None,
    ) -> Embedder:
        """Load an IR that has a contract.

        Parameters
        ----------
        ir
            The .xml with its .bin beside it, or what `encrypt_ir` made of them.
        device
            As `resolve_device` takes it. Not used if there is a plan.
        fallback
            Devices to take when `device`, or a plan's, is absent. Empty: that is an error.
        plan
            How the device is to run the model, or the file that says it, such as one of ``edgeface bench sweep``;
            several: a `Pool` over all of them.
        image_format
            What the crops are; None: as OpenCV holds them, of the contract's size.
        flip
            Whether each crop's mirror image is embedded too, in the same pass; see `Flip`.
        cache_dir
            Where compiled models are kept; None: where the plan says, or nowhere.
        cache_limit
            Bytes that the folder may hold.
        key
            For a sealed IR. What its compiled form leaves in the cache is then encrypted too.
        queue_depth, policy
            As for `Engine`, per plan.
        on_event
            Called when one of several plans is given up.

        Raises
        ------
        InputError
            If there is no such file, or the options contradict each other.
        ModelFormatError
            If it is not an IR, its weights are not those of the contract, or it cannot be decrypted.
        ContractError
            If it has no contract, or one of a newer version.
        DeviceError
            If the device is absent, or cannot compile the model.
        InferenceError
            If the device compiles the model and then cannot make its infer requests.
        """
        core = shared_core()
        with ThreadPoolExecutor(1) as beside:  # while the devices' libraries are loaded
            reading = beside.submit(read_source, Path(ir), core=core, key=key)
            if isinstance(plan, (str, Path)):
                plan = DevicePlan.read(Path(plan))
            if plan is None:
                resolved = resolve_device(device, fallback=fallback, core=core)
                plans: tuple[tuple[DevicePlan, ResolvedDevice], ...] = ((default_plan(resolved), resolved),)
            else:
                listed = (plan,) if isinstance(plan, DevicePlan) else tuple(plan)
                plans = tuple(_resolved(each, fallback) for each in listed)
            source = reading.result()
        if not plans:
            raise InputError("plan: expected at least one, found none")
        recipe = _Recipe(
            plans=plans,
            image_format=image_format or ImageFormat(),
            flip=flip,
            cache_dir=cache_dir,
            cache_limit=cache_limit,
            queue_depth=queue_depth,
            policy=policy,
            on_event=on_event,
        )
        return cls(recipe, recipe.run(source, key))

    @property
    def executions(self) -> tuple[ExecutionReport, ...]:
        """What executes, read back from the compiled model, for every plan."""
        return self._generations[-1].reports

    @property
    def execution(self) -> ExecutionReport:
        """What executes, of the first plan."""
        return self.executions[0]

    @property
    def capacity(self) -> int:
        """Requests that can be accepted and unanswered at one time."""
        return self._generations[-1].serving.capacity

    def embed(self, crops: np.ndarray | Sequence[np.ndarray], *, deadline: float | None = None) -> np.ndarray:
        """Embed one crop or several, and wait.

        Parameters
        ----------
        crops : one (H, W, C), several (N, H, W, C), or a sequence of the first; as `image_format` says
            Aligned the way `contract.alignment` says.
        deadline
            Seconds for each crop, from when it is accepted.

        Returns
        -------
        (N, D) float32
            In the order of the crops. Unit length if `contract.normalized`: cosine similarity is a dot product.

        Raises
        ------
        ContractError
            If a crop's shape, dtype or memory layout is not what `image_format` says.
        RequestError
            If a crop was not answered: `InferenceError`, `DeadlineExceeded`, `EngineClosed`.
        """
        if isinstance(crops, np.ndarray):
            if crops.ndim == 3:
                return self.infer(crops, deadline=deadline)[np.newaxis]
            self.image_format.check_batch(crops, self.contract)
        rows = list(self._stream(crops, deadline=deadline, copy=False))
        return np.stack(rows) if rows else np.empty((0, self.contract.embedding_dim), np.float32)

    def submit(
        self,
        array: np.ndarray,
        *,
        deadline: float | None = None,
        policy: Policy | None = None,
        copy: bool = True,
    ) -> Future[np.ndarray]:
        """Accept one crop; the future's result is its embedding, (D,) float32. See `Engine.submit`."""
        self.image_format.check(array, self.contract)
        return self._ask(lambda serving: serving.submit(array, deadline=deadline, policy=policy, copy=copy))

    def infer(self, array: np.ndarray, *, deadline: float | None = None) -> np.ndarray:
        """Embed one crop and wait; (D,) float32. See `Engine.infer`."""
        self.image_format.check(array, self.contract)
        return self._ask(lambda serving: serving.infer(array, deadline=deadline))

    def _ask(self, question: Callable[[Serving], _Answer]) -> _Answer:
        """Ask the generation that serves; the next one, if a swap closes this one in between."""
        while True:
            generation = self._generations[-1]
            try:
                return question(generation.serving)
            except EngineClosed:
                if generation is self._generations[-1]:
                    raise  # closed for good

    def swap(self, ir: Path | str, *, key: bytes | None = None) -> None:
        """Go on with another IR of the same contract, without losing a request.

        The new one is loaded beside the old one, takes what comes from then on, and the old one finishes what it
        has; this returns when it has. On an error the old one serves on.

        Raises
        ------
        ContractError
            If the new IR's `contract_id` is another: its embeddings could not be compared with those so far.
        EdgeFaceError
            As `load`.
        """
        with self._swapping:
            source = read_source(Path(ir), core=shared_core(), key=key)
            old = self._generations[-1]
            if source.contract.contract_id != old.contract.contract_id:
                raise ContractError(
                    f"{source.path}: expected contract_id {old.contract.contract_id}, which is being served, found "
                    f"{source.contract.contract_id}: its embeddings mean something else; load it beside this one"
                )
            new = self._recipe.run(source, key)
            with self._lock:
                self._generations.append(new)
            old.serving.close()
            with self._lock:
                self._past += old.serving.counters()
                self._generations.remove(old)

    def counters(self) -> Counters:
        """What has happened so far, over all swaps."""
        with self._lock:
            return sum((each.serving.counters() for each in self._generations), self._past)

    def close(self, *, drain: bool = True, timeout: float = 30.0) -> None:
        """Accept nothing more, resolve every future, and release the device; see `Engine.close`."""
        for generation in reversed(list(self._generations)):
            generation.serving.close(drain=drain, timeout=timeout)


def share_threads(
    plans: Sequence[DevicePlan], *, weights: Sequence[float] | None = None, total: int | None = None
) -> tuple[DevicePlan, ...]:
    """Divide the CPU's threads among models that run side by side, so that they do not fight for cores.

    Parameters
    ----------
    plans
        One for each model. Those on other devices are returned as they are.
    weights
        What each model needs in proportion to the others, for example its GFLOPs; None: the same.
    total
        Threads to divide; None: the cores that this process may use.

    Returns
    -------
    tuple of DevicePlan
        In the same order. Every model gets at least one thread; the sum is `total` if there are as many.
    """
    weights = [1.0] * len(plans) if weights is None else list(weights)
    if len(weights) != len(plans) or any(weight <= 0 for weight in weights):
        raise InputError(f"weights: expected {len(plans)} positive numbers, found {weights}")
    total = total or len(os.sched_getaffinity(0))
    on_cpu = [i for i, plan in enumerate(plans) if "CPU" in plan.device]
    # Largest remainder: whole parts first, then one more to those that were cut the most.
    exact = {i: total * weights[i] / sum(weights[j] for j in on_cpu) for i in on_cpu}
    threads = {i: max(1, int(exact[i])) for i in on_cpu}
    for i in sorted(on_cpu, key=lambda i: int(exact[i]) - exact[i]):
        if sum(threads.values()) < total:
            threads[i] += 1
    return tuple(
        dataclasses.replace(plan, threads=threads[i]) if i in threads else plan
        for i, plan in enumerate(plans)
    )


def _resolved(plan: DevicePlan, fallback: Sequence[str]) -> tuple[DevicePlan, ResolvedDevice]:
    resolved = resolve_device(plan.device, fallback=fallback, core=shared_core())
    if resolved.device == plan.device and not resolved.config:
        return plan, resolved
    config = dict(resolved.config)
    hint = config.pop("PERFORMANCE_HINT", plan.hint)
    return dataclasses.replace(
        plan, device=resolved.device, hint=hint, extra={**config, **plan.extra}
    ), resolved
