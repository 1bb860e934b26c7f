"""A compiled model or an embedder in, what a scenario can time out: one inference at a time, or many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
import openvino as ov

from edgeface.errors import InferenceError
from edgeface.runtime import Embedder
from edgeface.runtime.schedule import reason_of

__all__ = ["EmbedderTarget", "OpenVinoTarget", "Target", "random_inputs"]

Done = Callable[[int], None]


class Target(Protocol):
    """What is measured.

    Attributes
    ----------
    slots
        Inferences that may be under way at one time.
    items
        Of one inference: its batch.
    """

    slots: int
    items: int

    def infer(self) -> None:
        """Make one inference in this thread, and wait for it."""

    def listen(self, done: Done) -> None:
        """Have `done(slot)` called, in any thread, whenever an inference of `start` is complete."""

    def start(self, slot: int) -> None:
        """Begin an inference in a slot, from 0, that has none under way."""

    def failure(self) -> Exception | None:
        """Why an inference will never be complete; asked when one is overdue."""


class OpenVinoTarget:
    """Infer requests whose inputs are filled once, as benchmark_app has them: no copies, in or out.

    Parameters
    ----------
    compiled : openvino.CompiledModel
        What is measured.
    requests
        Infer requests.
    inputs
        One array for each input; every request gets a copy.
    items
        Of one inference.
    """

    def __init__(
        self, compiled: ov.CompiledModel, *, requests: int, inputs: Sequence[np.ndarray], items: int
    ) -> None:
        self.slots, self.items = requests, items
        self._requests = [compiled.create_infer_request() for _ in range(requests)]
        for request in self._requests:
            for index, array in enumerate(inputs):
                request.get_input_tensor(index).data[...] = array

    def infer(self) -> None:
        """Compute in this thread; outputs are looked at in place."""
        self._requests[0].infer(share_outputs=True)

    def listen(self, done: Done) -> None:
        """Set the callback of every request."""
        for slot, request in enumerate(self._requests):
            request.set_callback(done, slot)

    def start(self, slot: int) -> None:
        """Start a request as it is."""
        self._requests[slot].start_async()

    def failure(self) -> Exception | None:
        """Ask every request: OpenVINO calls no callback after an error."""
        for request in self._requests:
            try:
                request.wait_for(0)
            except RuntimeError as error:
                return InferenceError(f"inference failed: {reason_of(error)}")
        return None


class EmbedderTarget:
    """An `edgeface.runtime.Embedder`: a crop goes in and an embedding comes out of every inference.

    Parameters
    ----------
    embedder
        What is measured; not closed by this.
    crop
        As its `image_format` says.
    slots
        Crops that may be under way at one time, those in its queue included.
    """

    items = 1

    def __init__(self, embedder: Embedder, crop: np.ndarray, *, slots: int) -> None:
        self.slots = slots
        self._embedder, self._crop = embedder, crop
        self._done: Done = lambda slot: None
        self._failed: Exception | None = None

    def infer(self) -> None:
        """Embed one crop and wait."""
        self._embedder.infer(self._crop)

    def listen(self, done: Done) -> None:
        """Remember whom to call."""
        self._done = done

    def start(self, slot: int) -> None:
        """Submit one crop."""
        self._embedder.submit(self._crop).add_done_callback(lambda future: self._finish(future, slot))

    def failure(self) -> Exception | None:
        """What the first failed future said."""
        return self._failed

    def _finish(self, future: Future[np.ndarray], slot: int) -> None:
        if (error := future.exception()) is None:
            self._done(slot)
        elif isinstance(error, Exception):
            self._failed = error


def random_inputs(model: Any, *, seed: int) -> list[np.ndarray]:
    """Make one array for each input of a static model.

    Pictures, which are inputs of four dimensions with one or three channels, get whole numbers of 0-255; other
    floating-point inputs 0 to 1; integers and booleans 0 and 1, which are indices into anything.

    Parameters
    ----------
    model : openvino.Model or openvino.CompiledModel
        With static shapes.
    seed
        Of the generator.
    """
    random = np.random.default_rng(seed)
    return [_random(port, random) for port in model.inputs]


def _random(port: Any, random: np.random.Generator) -> np.ndarray:
    shape, dtype = tuple(port.shape), np.dtype(port.element_type.to_dtype())
    picture = len(shape) == 4 and bool({1, 3} & {shape[1], shape[3]})
    if picture and (dtype.kind == "f" or dtype == np.uint8):
        return random.integers(0, 256, shape).astype(dtype)
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)
