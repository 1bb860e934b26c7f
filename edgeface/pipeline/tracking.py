"""Track faces from frame to frame, and choose when to embed a track."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.vision.detector import Faces
from edgeface.vision.nms import overlaps

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One tracked face in the frame of the last `Tracker.update`.

    Attributes
    ----------
    id
        From 1; never used again by the same tracker.
    box : (4,) float32
        x0, y0, x1, y1 in pixels, where it was seen.
    landmarks : (5, 2) float32
        As in `Faces.landmarks`.
    score
        Detection score, 0 to 1, of its last detection.
    hits
        Updates that saw it.
    born, seen
        Timestamps of its first and last update, in seconds.
    velocity : (2,) float32
        Smoothed velocity of the box's centre, in pixels a second.
    confirmed
        Whether it was seen often enough; a false detection rarely comes twice in one place.
    """

    id: int
    box: Floats
    landmarks: Floats
    score: float
    hits: int
    born: float
    seen: float
    velocity: Floats
    confirmed: bool


class Tracker:
    """Gives each face an id that stays the same from frame to frame.

    The scheme of SORT (Bewley et al., "Simple online and realtime tracking", ICIP 2016): predict each track at
    constant velocity, match boxes by the assignment with the largest total overlap, start a track for each box
    without a match. A smoothed velocity replaces its Kalman filter: detections are precise to a pixel or two.

    Not safe to use from several threads at a time.

    Parameters
    ----------
    min_overlap
        Lowest intersection over union of a face and a prediction that match (SORT: 0.3).
    min_hits
        Updates that must see a track to confirm it. An unconfirmed track ends when one update misses it.
    max_gap
        Seconds after which a confirmed track that is not seen ends.
    """

    def __init__(self, *, min_overlap: float = 0.3, min_hits: int = 2, max_gap: float = 1.0) -> None:
        if not 0 < min_overlap <= 1 or min_hits < 1 or not max_gap >= 0:
            raise InputError(
                "tracker: expected min_overlap in (0, 1], min_hits of 1 or more and max_gap of 0 or more seconds, "
                f"found {min_overlap}, {min_hits} and {max_gap}"
            )
        self._min_overlap, self._min_hits, self._max_gap = min_overlap, min_hits, max_gap
        self._tracks: list[Track] = []
        self._next_id = 1
        self._now = -math.inf

    @property
    def alive(self) -> frozenset[int]:
        """Ids of all tracks that may be seen again."""
        return frozenset(track.id for track in self._tracks)

    def update(self, faces: Faces, timestamp: float) -> list[Track]:
        """Match the faces of the next frame with the tracks.

        Parameters
        ----------
        faces
            In pixels of the frame.
        timestamp
            Seconds; later than the last one.

        Returns
        -------
        list of Track
            One for each face, in their order.

        Raises
        ------
        InputError
            If time does not advance.
        """
        self._advance(timestamp)
        old = self._tracks
        predicted = np.stack([_predict(track, timestamp) for track in old]) if old else np.empty((0, 4))
        likeness = overlaps(predicted, faces.boxes.astype(np.float64))
        matches = assign(np.where(likeness >= self._min_overlap, likeness, 0.0))
        owner = {face: old[row] for row, face in matches}
        seen = [self._observe(owner.get(face), faces, face, timestamp) for face in range(len(faces))]
        matched = {track.id for track in owner.values()}
        waiting = [track for track in old if track.confirmed and timestamp - track.seen <= self._max_gap]
        self._tracks = [track for track in waiting if track.id not in matched] + seen
        return seen

    def follow(self, ids: list[int], moved: Faces, timestamp: float) -> list[Track]:
        """Move tracks to where optical flow followed them, without detection; see `edgeface.pipeline.flow`.

        This confirms no track. A track that was not followed waits to be detected.

        Parameters
        ----------
        ids
            Of tracks of the last update.
        moved
            Where each is now, in the order of `ids`.
        timestamp
            Seconds; later than the last one.

        Returns
        -------
        list of Track
            In the order of `ids`.
        """
        self._advance(timestamp)
        place = {track.id: index for index, track in enumerate(self._tracks)}
        followed = []
        for face, track_id in enumerate(ids):
            track = self._tracks[place[track_id]]
            followed.append(_move(track, moved, face, timestamp))
            self._tracks[place[track_id]] = followed[-1]
        return followed

    def clear(self) -> None:
        """Forget all tracks, as before another video; ids continue."""
        self._tracks, self._now = [], -math.inf

    def _advance(self, timestamp: float) -> None:
        if not timestamp > self._now:
            raise InputError(
                f"tracker: expected a timestamp after {self._now:g} s, found {timestamp:g} s; "
                "call clear() before another video"
            )
        self._now = timestamp

    def _observe(self, track: Track | None, faces: Faces, face: int, timestamp: float) -> Track:
        if track is None:
            self._next_id += 1
            return Track(
                id=self._next_id - 1,
                box=faces.boxes[face],
                landmarks=faces.landmarks[face],
                score=float(faces.scores[face]),
                hits=1,
                born=timestamp,
                seen=timestamp,
                velocity=np.zeros(2, np.float32),
                confirmed=self._min_hits == 1,
            )
        hits = track.hits + 1
        return replace(
            _move(track, faces, face, timestamp),
            score=float(faces.scores[face]),
            hits=hits,
            confirmed=track.confirmed or hits >= self._min_hits,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingPolicy:
    """When to embed a track.

    The first usable crops are embedded. A later one is embedded only if its quality is clearly higher, and only a few
    times: the best embeddings of a track say nearly all that the others do.

    Attributes
    ----------
    improvement
        Factor by which the quality of a new crop must exceed the best so far, since the last refresh.
    most
        Embeddings of one track, those of `refresh` not counted.
    refresh
        Seconds after which a track is embedded again at any quality, in case two people swapped ids; None: never.
    least
        Embeddings that a track gets at any quality, a few frames apart; no more than `most`.
    at_once
        Embeddings of one frame, so that none takes long when many people come at once: other tracks wait for the next
        frame. None: all.
    """

    improvement: float = 1.2
    most: int = 4
    refresh: float | None = None
    least: int = 2
    at_once: int | None = None

    def __post_init__(self) -> None:
        sound = self.improvement >= 1 and min(self.most, self.least, 1 if self.at_once is None else self.at_once) >= 1
        if not sound or (self.refresh is not None and not 0 < self.refresh < math.inf):
            raise InputError(
                "embedding policy: expected improvement, most, least and at_once of 1 or more and a finite refresh of "
                f"more than 0 seconds or None, found {self}"
            )

    @property
    def looks(self) -> float:
        """Embeddings that every track gets if it is seen long enough; infinite with `refresh`."""
        return min(self.least, self.most) if self.refresh is None else math.inf

    def wants(self, quality: float, *, best: float | None, count: int, age: float) -> bool:
        """Return whether to embed a crop of this `Quality.score`.

        `best` is that of the best crop embedded so far, if any, `count` the embeddings of the track so far, those of
        `refresh` not counted, and `age` the seconds since the last of all.
        """
        if best is None or self.is_refresh(age):
            return True
        early = count < self.least and age >= _APART
        return count < self.most and (early or quality > best * self.improvement)

    def next_look(self, count: int, at: float) -> float:
        """Return when a track that was embedded `count` times, last at `at`, is due for another at any quality."""
        return at + _APART if 0 < count < min(self.least, self.most) else math.inf

    def is_refresh(self, age: float) -> bool:
        """Return whether a track that was embedded `age` seconds ago is due for `refresh`."""
        return self.refresh is not None and age >= self.refresh


def assign(gains: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Pair rows with columns so that the sum of gains is largest; a pair whose gain is not positive is never made.

    Parameters
    ----------
    gains : (N, M) float
        Gain of each pair.

    Returns
    -------
    list of (row, column)
        By ascending row; each row and column at most once.
    """
    from scipy.optimize import linear_sum_assignment  # a fifth of a second, which one photo need not wait for

    useful = np.maximum(gains, 0.0)
    rows, columns = linear_sum_assignment(useful, maximize=True)
    return [(row, column) for row, column in zip(rows.tolist(), columns.tolist(), strict=True) if useful[row, column]]


_APART = 0.15
"""Seconds between the first embeddings of a track: consecutive frames show the same photo twice."""

_MEMORY = 0.5
"""Share of the old velocity in the new one: halves the jitter of detected centres, follows a turn in two updates."""


def _predict(track: Track, timestamp: float) -> NDArray[np.float64]:
    return track.box + np.tile(track.velocity, 2).astype(np.float64) * (timestamp - track.seen)


def _move(track: Track, faces: Faces, face: int, timestamp: float) -> Track:
    box = faces.boxes[face]
    shift = (box[:2] + box[2:] - track.box[:2] - track.box[2:]) / 2
    measured = shift / np.float32(timestamp - track.seen)
    first = track.seen == track.born
    velocity = measured if first else _MEMORY * track.velocity + (1 - _MEMORY) * measured
    return replace(
        track, box=box, landmarks=faces.landmarks[face], seen=timestamp, velocity=velocity.astype(np.float32)
    )
