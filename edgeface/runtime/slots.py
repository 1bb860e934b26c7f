"""A few arrays in, the same number of results out: one infer request of the pool and what it works on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
import openvino as ov

import edgeface.model.opset  # noqa: F401 - it makes arrays safe to hand over from several threads
from edgeface.runtime.counters import Outcome

__all__ = ["Job", "Slot", "item_shape"]


class _Owner(Protocol):
    def forget(self, job: Job) -> None: ...


class Job(Future[Any]):
    """One request: a future that can be cancelled until its result is there, even while the device works."""

    def __init__(self, owner: _Owner, array: np.ndarray, deadline: float | None) -> None:
        super().__init__()
        self.owner: _Owner | None = owner
        self.array: np.ndarray | None = array
        self.copied = False
        self.born = time.monotonic()
        self.deadline = deadline
        self.slot: Slot | None = None
        self.ended: Outcome | None = None

    @property
    def waiting(self) -> bool:
        """Whether it has neither been given to the device nor ended."""
        return self.slot is None and self.ended is None

    def cancel(self) -> bool:
        """Give the request up; a result that the device still computes is dropped.

        Returns
        -------
        bool
            False if a result or an error is already there.
        """
        # The state stays PENDING until the end, unlike an executor's, so this succeeds for running ones too.
        if super().cancel() and (owner := self.owner) is not None:
            owner.forget(self)
        return self.cancelled()

    def end(self, outcome: Outcome) -> bool:
        """Decide how the request ends, once: the first one to ask wins. The owner's lock is held."""
        if self.ended is not None:
            return False
        self.ended = outcome
        self.owner = self.array = None  # a future that is kept must keep neither the engine nor the image
        return True


class Slot:
    """One member of the fixed pool: an OpenVINO infer request a batch size, of which one runs at a time.

    `jobs` is the state: the slot is free exactly while it is empty. It is written under the engine's lock. `claim`
    is set while a thread computes by itself: a weak reference to something that only its frame holds, so that a
    slot is known to be over however the frame was left, also by Ctrl-C within the handling of Ctrl-C.

    Parameters
    ----------
    compiled
        A compiled model for every batch size.
    on_done
        Called in OpenVINO's thread when a result is there; not called after an error, see `verdict`.
    """

    def __init__(
        self, compiled: Mapping[int, ov.CompiledModel], on_done: Callable[[Any], None], token: object
    ) -> None:
        self.jobs: Sequence[Job] = ()
        self.claim: Callable[[], object] | None = None
        self._requests = {batch: model.create_infer_request() for batch, model in compiled.items()}
        self._active = next(iter(self._requests.values()))
        self._outputs = len(self._active.model_outputs)
        for batch, request in self._requests.items():
            if not compiled[batch].input(0).partial_shape.is_dynamic:
                request.get_input_tensor(0).data[...] = (
                    0  # what a batch is padded with must not be uninitialised
                )
            request.set_callback(on_done, token)

    @property
    def orphaned(self) -> bool:
        """Whether the frame that computed here by itself is gone."""
        return self.claim is not None and self.claim() is None

    def start(self, jobs: Sequence[Job]) -> None:
        """Copy the jobs' arrays into the smallest batch that holds them, and start the device."""
        self._fill(jobs).start_async()

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """Compute in this thread, and read."""
        self._fill(jobs).infer()
        return self.read()

    def _fill(self, jobs: Sequence[Job]) -> ov.InferRequest:
        count = len(jobs)
        request = self._active = next(r for batch, r in self._requests.items() if batch >= count)
        tensor = request.get_input_tensor(0)
        rows = tensor.data
        if rows.shape[1:] == jobs[0].array.shape:  # type: ignore[union-attr]
            for i, job in enumerate(jobs):
                rows[i] = job.array
        else:  # each image has its own size, and the batch is one
            request.set_input_tensor(0, ov.Tensor(np.ascontiguousarray(jobs[0].array)[np.newaxis]))
        return request

    def read(self) -> list[Any]:
        """Copy out one result for each of `jobs`: an array, or a tuple of arrays if there are several outputs."""
        request = self._active
        outputs = [request.get_output_tensor(i).data for i in range(self._outputs)]
        if len(outputs) == 1:
            return [row.copy() for row in outputs[0][: len(self.jobs)]]
        return [tuple(output[i].copy() for output in outputs) for i in range(len(self.jobs))]

    def verdict(self) -> Exception | str | None:
        """Whether the last run is over: None while the device or its callback is at work.

        After an error OpenVINO calls no Python callback, so this is the only way to hear of one. It is exact:
        OpenVINO keeps a run unfinished until its callback has returned, and a request that never ran, which says
        unfinished too, is the only one whose latency is 0 (2024.6 to 2026.4, on CPU, AUTO, HETERO and BATCH).
        """
        return _verdict(self._active)

    @property
    def at_rest(self) -> bool:
        """Whether every request's last run, and its callback, is over."""
        return not self.jobs and all(_verdict(request) is not None for request in self._requests.values())


def _verdict(request: ov.InferRequest) -> Exception | str | None:
    try:
        if request.wait_for(0):
            return "the device finished without a result"
        return "the device was not started" if request.latency == 0.0 else None
    except Exception as error:
        return error


def item_shape(compiled: ov.CompiledModel) -> tuple[int, ...]:
    """Shape of one item of the model's input, without the batch; -1 where it is free."""
    dimensions = list(compiled.input(0).partial_shape)[1:]
    return tuple(-1 if side.is_dynamic else side.get_length() for side in dimensions)
