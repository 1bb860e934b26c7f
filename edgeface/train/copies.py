"""What is trained on, of crops and of their copies of low resolution: computed once by the runtime, and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.evaluate.low_resolution import reduce_resolution
from edgeface.files import default_root, write_atomically
from edgeface.model.contract import ModelContract
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.quantize.calibration import to_inputs
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.plan import DevicePlan
from edgeface.train.data import Crops, FaceSet
from edgeface.train.network import TrainableTail
from edgeface.untrusted import read_npz

_CHUNK = 512
"""Crops after which what is known is stored: a run that is killed goes on from there."""


class Features:
    """Embeddings of crops, or what the unfrozen blocks take.

    Embeddings are cached by the digest of the crop's pixels, in one file for each model, which only its owner may read.

    Parameters
    ----------
    model, contract
        The embedder.
    tail
        Its unfrozen blocks; None: embeddings are wanted.
    cache
        Folder; None: ``train`` in the folder of `edgeface.files.default_root`.
    progress
        Called after each crop.
    """

    def __init__(
        self,
        model: Path,
        contract: ModelContract,
        tail: TrainableTail | None = None,
        *,
        cache: Path | None = None,
        progress: ProgressCallback = ignore_progress,
    ) -> None:
        self.contract = contract
        self._model, self._tail, self._progress = model, tail, progress
        self._file = (cache or default_root()) / "train" / f"crops-{contract.contract_id}.npz"

    def of_people(self, people: FaceSet) -> NDArray[np.float32]:
        """Return the features of people's photos, (N, ...): embeddings are known already."""
        return people.embeddings if self._tail is None else self.of(people.crops)

    def of(self, crops: Sequence[Crops] | Crops) -> NDArray[np.float32]:
        """Return the features of crops, (N, ...), N at least 1."""
        if self._tail is not None:
            return self._tail.features(to_inputs(np.asarray(crops), self.contract), progress=self._progress)
        digests = [hashlib.sha256(crop.tobytes()).digest() for crop in crops]
        known = self._read()
        todo = [row for row, digest in enumerate(digests) if digest not in known]
        if todo:
            with Embedder.load(self._model, plan=DevicePlan(device="CPU", precision="f32")) as embedder:
                for start in range(0, len(todo), _CHUNK):
                    chunk = todo[start : start + _CHUNK]
                    for done, vector in enumerate(embedder.map(crops[row] for row in chunk)):
                        known[digests[chunk[done]]] = vector
                        self._progress(Progress("embedding", start + done + 1, len(todo), "crops"))
                    self._write(known)
        return np.stack([known[digest] for digest in digests])

    def reduced(self, crops: Crops, resolutions: Sequence[int]) -> NDArray[np.float32]:
        """Return the features of the crops' copies in each resolution, (R, N, ...)."""
        found = [self.of([reduce_resolution(crop, pixels) for crop in crops]) for pixels in resolutions]
        return np.stack(found) if found else np.empty((0, len(crops)), np.float32)

    def _read(self) -> dict[bytes, NDArray[np.float32]]:
        """Return what is cached; nothing if there is nothing that can be read."""
        try:
            stored = read_npz(self._file, "digests of crops and their embeddings")
            digests, vectors = stored["digests"], stored["vectors"]
        except (InputError, KeyError):
            return {}
        if vectors.dtype != np.float32 or vectors.shape != (len(digests), self.contract.embedding_dim):
            return {}
        return {digest.tobytes(): vector for digest, vector in zip(digests, vectors, strict=True)}

    def _write(self, known: dict[bytes, NDArray[np.float32]]) -> None:
        digests = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
        with write_atomically(self._file, private=True) as partial, partial.open("wb") as file:
            np.savez(file, digests=digests, vectors=np.stack(list(known.values())))
