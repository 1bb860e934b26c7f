"""Faces of frames that are under way: what was seen of them, and the embeddings that are still being computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeface.model.embedding import Embedding
from edgeface.vision.quality import Quality
from edgeface.vision.source import Frame

__all__ = ["Face", "Group", "Pending", "Sight", "finish", "in_groups"]

_GROUP_PIXELS = 1 << 23
"""From which a group of pictures is large enough: bounds memory, and large pictures gain nothing from company."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Face:
    """One face of one picture.

    Attributes
    ----------
    box : (4,) float32
        x0, y0, x1, y1 in pixels of the picture.
    landmarks : (5, 2) float32
        As in `Faces.landmarks`.
    score
        Of its detection; where it was followed instead, of its last one.
    quality
        Where it was last detected; None where its box has no picture in it.
    reasons
        Why no embedding was made of this sight of it: what the gate says, or why it cannot be aligned.
    embedding
        Without a tracker, of this very face. With one, of its track's best crop so far. None: there is none.
    track_id
        The same for one person from frame to frame; None without a tracker.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    score: float
    quality: Quality | None
    reasons: tuple[str, ...] = ()
    embedding: Embedding | None = None
    track_id: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """An embedding that is being computed."""

    future: Future[NDArray[np.float32]]
    contract_id: str

    def result(self) -> Embedding:
        """Wait for it; raises what the embedder raised."""
        return Embedding(self.future.result().reshape(-1), self.contract_id)


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """A face of a frame, and the embedding that it will have."""

    face: Face
    pending: Pending | None

    def finish(self) -> Face:
        """Wait for the embedding."""
        return self.face if self.pending is None else replace(self.face, embedding=self.pending.result())


def finish(sights: Sequence[Sight]) -> list[Face]:
    """Wait for the embeddings of one picture."""
    return [sight.finish() for sight in sights]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Frames that are looked at in one go, and what will be seen in them."""

    frames: Sequence[Frame]
    looked: Future[list[list[Sight]]]

    def is_ready(self) -> bool:
        """Whether the answers, or the error, are there."""
        if not self.looked.done():
            return False
        return self.looked.exception() is not None or all(future.done() for future in self._embeddings())

    def answers(self) -> Iterator[tuple[Frame, list[Face]]]:
        """Wait for every frame's faces."""
        for frame, sights in zip(self.frames, self.looked.result(), strict=True):
            yield frame, finish(sights)

    def abandon(self) -> None:
        """Cancel what nobody will ask for: the look itself or, when it is over, its embeddings."""
        if not self.looked.cancel():
            self.looked.add_done_callback(self._cancel_embeddings)

    def _cancel_embeddings(self, looked: Future[list[list[Sight]]]) -> None:
        if looked.exception() is None:
            for future in self._embeddings():
                future.cancel()

    def _embeddings(self) -> Iterator[Future[NDArray[np.float32]]]:
        for sights in self.looked.result():
            yield from (sight.pending.future for sight in sights if sight.pending is not None)


def in_groups(frames: Iterable[Frame], most: int) -> Iterator[list[Frame]]:
    """Split frames into lists of at most so many, and of not many more pixels than `_GROUP_PIXELS`."""
    group: list[Frame] = []
    pixels = 0
    for frame in frames:
        group.append(frame)
        pixels += frame.image.shape[0] * frame.image.shape[1]
        if len(group) == most or pixels >= _GROUP_PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group
