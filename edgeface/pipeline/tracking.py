"""Faces frame by frame in, the same faces with an id that stays with each person out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.vision.detector import Faces
from edgeface.vision.nms import overlaps

__all__ = ["EmbeddingPolicy", "Track", "Tracker", "assign"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One person's face in the frame of the last `Tracker.update`.

    Attributes
    ----------
    id
        From 1; never given again by the same tracker.
    box : (4,) float32
        x0, y0, x1, y1 in pixels, where it was seen.
    landmarks : (5, 2) float32
        As in `Faces.landmarks`.
    score
        Of its last detection.
    hits
        In how many updates it was seen.
    born, seen
        Seconds: the timestamps of its first and its last update.
    velocity : (2,) float32
        Of the box's centre, pixels a second, smoothed.
    confirmed
        Whether it was seen often enough to be believed; a false detection rarely comes twice in one place.
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
    """Keeps faces apart from frame to frame: overlap with where each was expected, assigned as a whole.

    The scheme of SORT (Bewley et al., "Simple online and realtime tracking", ICIP 2016): predict each track at
    constant velocity, match boxes by the assignment with the largest total overlap, start a track for what is
    left over. A smoothed velocity stands in for its Kalman filter: detections are precise to a pixel or two, so
    that positions need no filtering.

    Not safe to use from several threads at a time.

    Parameters
    ----------
    min_overlap
        Least intersection over union of a face and a prediction that can be the same person (SORT: 0.3).
    min_hits
        Updates that see a new track before it is confirmed; unconfirmed, it dies when it is missed once.
    max_gap
        Seconds that a confirmed track may be unseen and still be found again.
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
        """Ids of all tracks that may be seen again, in sight or not."""
        return frozenset(track.id for track in self._tracks)

    def update(self, faces: Faces, timestamp: float) -> list[Track]:
        """Take in what a detector found in the next frame.

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
        unseen = [
            track
            for track in old
            if track.id not in matched and track.confirmed and timestamp - track.seen <= self._max_gap
        ]
        self._tracks = unseen + seen
        return seen

    def follow(self, ids: list[int], moved: Faces, timestamp: float) -> list[Track]:
        """Move tracks to where they were followed to without detection, as `edgeface.pipeline.flow` does.

        Following proves nothing new: it confirms no track, and one that is not followed waits to be detected.

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
        """Forget all tracks, as at the start of another video; ids go on."""
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
            track = Track(
                id=self._next_id,
                box=faces.boxes[face],
                landmarks=faces.landmarks[face],
                score=float(faces.scores[face]),
                hits=1,
                born=timestamp,
                seen=timestamp,
                velocity=np.zeros(2, np.float32),
                confirmed=self._min_hits == 1,
            )
            self._next_id += 1
            return track
        hits = track.hits + 1
        return replace(
            _move(track, faces, face, timestamp),
            score=float(faces.scores[face]),
            hits=hits,
            confirmed=track.confirmed or hits >= self._min_hits,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingPolicy:
    """When a track is worth the work of an embedding.

    The first crop that can be had is embedded; a later one replaces it only if it is clearly better, and only a
    few times: embeddings of one track say little that the best of them does not.

    Attributes
    ----------
    improvement
        How many times the quality of the best crop so far a new one must have.
    most
        Embeddings of one track, `refresh` aside.
    refresh
        Seconds after which a track is embedded again whatever its quality, should two people ever have swapped
        ids; None: never.
    """

    improvement: float = 1.2
    most: int = 3
    refresh: float | None = None

    def __post_init__(self) -> None:
        if not self.improvement >= 1 or self.most < 1 or (self.refresh is not None and not self.refresh > 0):
            raise InputError(
                "embedding policy: expected improvement of 1 or more, most of 1 or more and refresh of more than 0 "
                f"seconds, found {self.improvement}, {self.most} and {self.refresh}"
            )

    def wants(self, quality: float, *, best: float | None, count: int, age: float) -> bool:
        """Whether to embed a crop.

        Parameters
        ----------
        quality
            Of the crop at hand: `Quality.score`.
        best
            Of the crop embedded last; None: there is none.
        count
            Embeddings made of the track.
        age
            Seconds since the last of them.
        """
        if best is None or (self.refresh is not None and age >= self.refresh):
            return True
        return count < self.most and quality > best * self.improvement


def assign(likeness: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Pair rows with columns so that the sum of likeness is largest.

    The Hungarian method with potentials, O(n^2 m): each row in turn is added along the cheapest augmenting path
    (Jonker and Volgenant, Computing 38, 1987, without its initialisation).

    Parameters
    ----------
    likeness : (N, M) float
        0 or more; pairs of likeness 0 are not made.

    Returns
    -------
    list of (row, column)
        By ascending row; each row and column at most once.
    """
    if likeness.shape[0] > likeness.shape[1]:
        return sorted((row, column) for column, row in assign(likeness.T))
    rows, columns = likeness.shape
    cost = -np.asarray(likeness, np.float64)
    row_price, column_price = np.zeros(rows), np.zeros(columns + 1)
    owner = np.full(columns + 1, -1)  # row of each column; the last column is where a new row starts from
    for row in range(rows):
        owner[columns], column = row, columns
        reach, came_from = np.full(columns, np.inf), np.full(columns, columns)
        done = np.zeros(columns + 1, bool)
        while owner[column] >= 0:
            done[column] = True
            at = owner[column]
            through = cost[at] - row_price[at] - column_price[:columns]
            better = ~done[:columns] & (through < reach)
            reach[better], came_from[better] = through[better], column
            following = int(np.argmin(np.where(done[:columns], np.inf, reach)))
            step = reach[following]
            row_price[owner[done]] += step
            column_price[done] -= step
            reach[~done[:columns]] -= step
            column = following
        while column != columns:
            owner[column] = owner[came_from[column]]
            column = int(came_from[column])
    pairs = sorted((int(owner[column]), column) for column in range(columns) if owner[column] >= 0)
    return [(row, column) for row, column in pairs if likeness[row, column] > 0]


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
        track,
        box=box,
        landmarks=faces.landmarks[face],
        seen=timestamp,
        velocity=velocity.astype(np.float32),
    )
