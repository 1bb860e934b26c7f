"""Train a module: recipes, learning rates, early stopping, a log, and checkpoints that survive a kill.

The order of the examples of an epoch follows from the seed and the epoch alone, so that a run that was killed goes on
from its last checkpoint to the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeface.errors import InputError
from edgeface.files import write_atomically
from edgeface.progress import Progress, ProgressCallback, ignore_progress

Schedule = Literal["constant", "steps", "cosine-restarts"]
Batches = Callable[[int], Iterator[NDArray[np.intp]]]
"""Returns the batches of an epoch, each as the rows of its examples."""

_CHECKPOINT_SECONDS = 1.0
"""Seconds between two checkpoints: what a kill costs at most, beside the epoch that it interrupts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """How weights are found: Adam, its learning rates, and when to stop.

    Attributes
    ----------
    epochs, batch
        Most epochs, and examples a step.
    rate, weight_decay
        Highest learning rate, and Adam's L2 penalty.
    tail_share
        Learning rate of unfrozen blocks, as a share of that of the new layers.
    schedule
        ``constant``; ``steps``: a tenth after epochs 5 and 10 (facenet-pytorch, `examples/finetune.ipynb`);
        ``cosine-restarts``: 5 epochs of linear warm-up, then a half cosine down to 1e-5, in cycles of 15, 45, 165, ...
        epochs, each with half the peak of the one before (haidiazaman/face-recognition-model-development).
    patience
        Epochs without a better validation loss after which training stops; 0: never.
    seed
        Of the first weights and of the order of examples.
    """

    epochs: int = 60
    batch: int = 32
    rate: float = 1e-3
    weight_decay: float = 0.0
    tail_share: float = 0.1
    schedule: Schedule = "constant"
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise InputError(expected=f"a schedule, one of {', '.join(get_args(Schedule))}", found=repr(self.schedule))
        numbers = (self.rate, self.weight_decay, self.tail_share)
        if min(self.epochs, self.batch) < 1 or not all(math.isfinite(each) for each in numbers) or self.rate <= 0:
            raise InputError(
                expected="at least 1 epoch and 1 example a batch, and a positive learning rate",
                found=f"{self.epochs}, {self.batch} and {self.rate}",
            )

    def rate_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, from 0.

        Examples
        --------
        >>> steps = Optimisation(rate=1e-3, schedule="steps")
        >>> [round(steps.rate_at(epoch), 6) for epoch in (0, 4, 5, 10)]
        [0.001, 0.001, 0.0001, 1e-05]
        """
        if self.schedule == "constant":
            return self.rate
        if self.schedule == "steps":
            return self.rate * 0.1 ** sum(epoch >= milestone for milestone in _MILESTONES)
        length, cycle = _FIRST_CYCLE, 0
        while epoch >= length:  # each cycle after the warm-up is four times as long
            epoch -= length
            length = (length - _WARM_UP) * _CYCLE_GROWTH + _WARM_UP
            cycle += 1
        low, high = min(_LOWEST_RATE, self.rate), self.rate * _PEAK_DECAY**cycle
        high = max(low, high)
        if epoch < _WARM_UP:
            return low + (high - low) * epoch / _WARM_UP
        share = (epoch - _WARM_UP) / (length - _WARM_UP)
        return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


_MILESTONES = (5, 10)
_FIRST_CYCLE, _CYCLE_GROWTH, _WARM_UP, _LOWEST_RATE, _PEAK_DECAY = 15, 4, 5, 1e-5, 0.5

PRESETS: Mapping[str, Optimisation] = MappingProxyType(
    {
        "linear": Optimisation(epochs=100, rate=1e-2, weight_decay=1e-5, patience=20),
        "finetune": Optimisation(epochs=8, rate=1e-3, schedule="steps", patience=0),
        "focal-restarts": Optimisation(epochs=60, rate=5e-3, weight_decay=1e-5, schedule="cosine-restarts", patience=0),
    }
)
"""``linear``: for a head on frozen embeddings. ``finetune``: facenet-pytorch's notebook. ``focal-restarts``: that of
haidiazaman/face-recognition-model-development. For the sources see `Optimisation.schedule`."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch: its number from 0, learning rate, mean training loss, and figures of the validation."""

    number: int
    rate: float
    loss: float
    validation: Mapping[str, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: one line of the log."""
        return dataclasses.asdict(self) | {"validation": dict(self.validation)}


@dataclass(frozen=True, slots=True)
class History:
    """All epochs of a run, those before it was resumed too, and the number of the best one."""

    epochs: tuple[Epoch, ...]
    best: int
    resumed_at: int

    @property
    def seconds(self) -> float:
        """Seconds of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)


def shuffled(count: int, batch: int, seed: int) -> Batches:
    """Return the usual batches: all examples in an order that the seed and the epoch decide.

    Examples
    --------
    >>> [rows.tolist() for rows in shuffled(3, 2, seed=0)(0)]
    [[2, 0], [1]]
    """

    def batches(epoch: int) -> Iterator[NDArray[np.intp]]:
        order = np.random.default_rng([seed, epoch]).permutation(count).astype(np.intp)
        for start in range(0, count, batch):
            yield order[start : start + batch]

    return batches


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: a step here is too small for more, which wait for each other on a busy machine.

    Measured with two blocks of FaceNet and 32 photos a step, on two cores: 0.06 s of CPU, and 0.84 s with two threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def fit(
    module: nn.Module,
    loss_of: Callable[[NDArray[np.intp]], Tensor],
    batches: Batches,
    validate: Callable[[], Mapping[str, float]],
    optimisation: Optimisation,
    folder: Path,
    *,
    fingerprint: str,
    tail: nn.Module | None = None,
    progress: ProgressCallback = ignore_progress,
) -> History:
    """Train a module in place; it ends with the weights of its best epoch.

    An unfinished run in `folder` is resumed. `discard_checkpoint` removes what it left there.

    Parameters
    ----------
    module
        All that is trained.
    loss_of
        Returns the loss of the examples of these rows.
    batches
        Batches of each epoch; see `shuffled`.
    validate
        Returns figures of the module as it is, ``loss`` among them: the lowest is the best.
    optimisation
        Learning rates and when to stop.
    folder
        Receives ``log.jsonl``, a line an epoch as it ends, and ``checkpoint.pt``.
    fingerprint
        Identifies data and settings; a checkpoint of others is refused.
    tail
        Part of the module whose learning rate is ``optimisation.tail_share`` of that of the rest.
    progress
        Called after each epoch, with the losses in its stage.

    Raises
    ------
    InputError
        If the folder has a checkpoint of other data or settings, or a damaged one, or the loss is no finite number.
    OutputError
        If the folder cannot be written.
    """
    slow = list(tail.parameters()) if tail is not None else []
    others = {id(parameter) for parameter in slow}
    fast = [parameter for parameter in module.parameters() if id(parameter) not in others]
    groups = [{"params": fast}, {"params": slow}] if slow else [{"params": fast}]
    optimiser = torch.optim.Adam(groups, lr=optimisation.rate, weight_decay=optimisation.weight_decay)
    key = hashlib.sha256(f"{fingerprint} {optimisation}".encode()).hexdigest()
    state = _Run(module, optimiser, folder, key)
    resumed_at = state.resume()
    while not state.finished(optimisation):
        started, number = time.perf_counter(), len(state.epochs)
        rate = optimisation.rate_at(number)
        for group, share in zip(optimiser.param_groups, (1.0, optimisation.tail_share), strict=False):
            group["lr"] = rate * share
        module.train()
        total, count = 0.0, 0
        for rows in batches(number):
            optimiser.zero_grad()
            loss = loss_of(rows)
            loss.backward()
            optimiser.step()
            total, count = total + float(loss.detach()) * len(rows), count + len(rows)
        module.eval()
        with torch.no_grad():
            validation = {name: float(value) for name, value in validate().items()}
        mean = total / max(count, 1)
        if not math.isfinite(mean) or not math.isfinite(validation["loss"]):
            raise InputError(
                expected="a finite loss",
                found=f"{mean:g} in epoch {number + 1}, and {validation['loss']:g} in its validation",
                remedy="pass a lower learning rate with --rate",
            )
        state.add(Epoch(number, rate, mean, validation, time.perf_counter() - started))
        text = f"training loss {mean:.4f}, validation loss {validation['loss']:.4f}"
        progress(Progress("training", number + 1, optimisation.epochs, f"epochs, {text}"))
    return History(tuple(state.epochs), state.finish(), resumed_at)


def discard_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a run that is finished and written."""
    (folder / CHECKPOINT).unlink(missing_ok=True)


CHECKPOINT, _LOG = "checkpoint.pt", "log.jsonl"


class _Run:
    """The state of a run, in memory and in its checkpoint."""

    def __init__(self, module: nn.Module, optimiser: torch.optim.Optimizer, folder: Path, key: str) -> None:
        self._module, self._optimiser, self._folder, self._key = module, optimiser, folder, key
        self.epochs: list[Epoch] = []
        self._best, self._best_state = 0, copy.deepcopy(module.state_dict())
        self._saved = time.monotonic()

    def resume(self) -> int:
        path = self._folder / CHECKPOINT
        if path.exists():
            try:
                stored = torch.load(path, weights_only=True)
                found = stored["key"]
                if found == self._key:
                    self._module.load_state_dict(stored["module"])
                    self._optimiser.load_state_dict(stored["optimiser"])
                    self.epochs = [Epoch(**each) for each in json.loads(stored["epochs"])]
                    self._best, self._best_state = stored["best"], stored["best_state"]
            except Exception as error:  # whatever torch raises for a file that is none of its own
                raise InputError(
                    path=path,
                    expected="the checkpoint of an unfinished training",
                    found=f"a file that cannot be read ({type(error).__name__})",
                    remedy="remove it, and train again",
                ) from error
            if found != self._key:
                raise InputError(
                    path=path,
                    expected="the checkpoint of a training on the same photos with the same settings",
                    found="that of another one",
                    remedy="remove it, or choose another output folder",
                )
        self._write_log()
        return len(self.epochs)

    def add(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)
        if epoch.number == 0 or epoch.validation["loss"] < self.epochs[self._best].validation["loss"]:
            self._best, self._best_state = epoch.number, copy.deepcopy(self._module.state_dict())
        with (self._folder / _LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(epoch.to_dict()) + "\n")
        if time.monotonic() - self._saved >= _CHECKPOINT_SECONDS:
            self._save()

    def finished(self, optimisation: Optimisation) -> bool:
        waited = len(self.epochs) - 1 - self._best
        return len(self.epochs) >= optimisation.epochs or 0 < optimisation.patience <= waited

    def finish(self) -> int:
        self._save()
        self._module.load_state_dict(self._best_state)
        return self._best

    def _save(self) -> None:
        stored = {
            "key": self._key,
            "module": self._module.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "epochs": json.dumps([epoch.to_dict() for epoch in self.epochs]),
            "best": self._best,
            "best_state": self._best_state,
        }
        with write_atomically(self._folder / CHECKPOINT, private=True) as partial:
            torch.save(stored, partial)
        self._saved = time.monotonic()

    def _write_log(self) -> None:
        """Write the log of the epochs that the checkpoint has: those after it will be trained again."""
        with write_atomically(self._folder / _LOG) as partial:
            partial.write_text("".join(json.dumps(epoch.to_dict()) + "\n" for epoch in self.epochs), encoding="utf-8")
