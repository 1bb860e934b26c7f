"""Decide liveness from several frames: by the answers for a track, or by a movement that is asked for."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from edgeface.errors import FaceError, InputError
from edgeface.vision.liveness import Liveness, LivenessVerdict
from edgeface.vision.quality import Points, estimate_pose

Movement = Literal["turn-left", "turn-right", "nod"]

_TURN, _NOD = 25.0, 15.0
"""Degrees from the pose at the start that are a turn, and a nod."""
_BACK = 12.0
"""Degrees from the pose at the start within which the head is back."""
_FRONTAL = 20.0
"""Greatest yaw at the start, in degrees."""
_STEADY = 3
"""Frames that give the pose at the start."""
_JUMP = 30.0
"""Degrees from one frame to the next that no head turns, but one photo replaced by another does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackLiveness:
    """Answer for one track from several frames; true if live, and for nothing else.

    Attributes
    ----------
    verdict, threshold
        As in `Liveness`.
    score
        Mean score of the conclusive frames; 0 if there is none.
    frames, conclusive, spoofs
        Number of frames, of those that were not inconclusive, on which the answer rests, and of spoofs among these.
    reasons
        Why the answer is inconclusive, with the commonest reason of the frames; empty otherwise.
    """

    verdict: LivenessVerdict
    score: float
    threshold: float
    frames: int
    conclusive: int
    spoofs: int
    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.verdict == "live"


def decide_track(results: Sequence[Liveness], *, least: int = 3) -> TrackLiveness:
    """Decide from the frames of one track.

    Live if the mean score of the conclusive frames exceeds the threshold and most of them are live; inconclusive if
    fewer than `least` are conclusive. Frames that follow each other closely show the same picture, so `least` counts
    looks, not evidence. Give the last few results, not all: who leaves a track to a photo must not be carried by the
    past.

    Parameters
    ----------
    results
        At least one, of the same models and threshold.
    least
        Fewest conclusive frames.

    Raises
    ------
    InputError
        If there is no result, or they are of different models or thresholds.

    Examples
    --------
    >>> from edgeface.vision.liveness import Liveness
    >>> one = Liveness(
    ...     verdict="live", score=0.9, threshold=0.5, scores={}, reasons=(), contract_ids=()
    ... )
    >>> decide_track([one, one]).verdict, decide_track([one] * 3).verdict
    ('inconclusive', 'live')
    """
    if least < 1 or len({(each.contract_ids, each.threshold) for each in results}) != 1:
        raise InputError(
            "liveness: expected results of one set of models and one threshold, and least of 1 or more, found "
            f"{len(results)} results and least {least}"
        )
    conclusive = [each for each in results if each.verdict != "inconclusive"]
    spoofs = sum(each.verdict == "spoof" for each in conclusive)
    threshold = results[0].threshold
    score = float(np.mean([each.score for each in conclusive])) if conclusive else 0.0
    verdict: LivenessVerdict = "live" if score > threshold and 2 * spoofs < len(conclusive) else "spoof"
    reasons: tuple[str, ...] = ()
    if len(conclusive) < least:
        verdict = "inconclusive"
        few = f"expected at least {least} conclusive frames, found {len(conclusive)} of {len(results)}"
        commonest = Counter(reason for each in results for reason in each.reasons).most_common(1)
        reasons = (few, *(reason for reason, _ in commonest))
    return TrackLiveness(
        verdict=verdict,
        score=score,
        threshold=threshold,
        frames=len(results),
        conclusive=len(conclusive),
        spoofs=spoofs,
        reasons=reasons,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeProgress:
    """State of a challenge; true if it is passed, and for nothing else.

    Attributes
    ----------
    movement
        What was asked for.
    state
        ``look``: the head has to look at the camera. ``move``: it has to make the movement. ``return``: it has to come
        back. ``passed`` and ``failed`` are final.
    reason
        Why it failed; empty otherwise.
    """

    movement: Movement
    state: Literal["look", "move", "return", "passed", "failed"]
    reason: str = ""

    def __bool__(self) -> bool:
        return self.state == "passed"


class Challenge:
    """Asks for a movement of the head, and watches the five landmarks for it.

    The head looks at the camera, turns or nods, and comes back, without a jump of the pose. A photo or a still screen
    cannot do that: when it is tilted, its landmarks move together and the estimated pose stays. A video of a person who
    makes the movement can, so the movement is drawn at random, and this is no replacement for `LivenessChecker`.

    A blink cannot be asked for: it shows in the distance of the lids, and the detectors give one landmark an eye.

    Parameters
    ----------
    movement
        ``turn-left`` and ``turn-right`` are the person's own left and right, ``nod`` is down and up. None: drawn at
        random.
    seconds
        Time from the first frame within which it has to be done.

    Examples
    --------
    >>> challenge = Challenge("nod")
    >>> challenge.progress.state, bool(challenge.progress)
    ('look', False)
    """

    def __init__(self, movement: Movement | None = None, *, seconds: float = 8.0) -> None:
        chosen: Movement = secrets.choice(get_args(Movement)) if movement is None else movement
        if chosen not in get_args(Movement) or not seconds > 0:
            raise InputError(
                f"challenge: expected one of {', '.join(get_args(Movement))} and a time of more than 0 seconds, found "
                f"{chosen!r} and {seconds}"
            )
        self.progress = ChallengeProgress(movement=chosen, state="look")
        self._seconds = seconds
        self._started: float | None = None
        self._poses: list[tuple[float, float]] = []
        self._start = (0.0, 0.0)

    def update(self, landmarks: Points, timestamp: float) -> ChallengeProgress:
        """Take the landmarks of the next frame, (5, 2), and its time in seconds; return the state.

        Call it for each frame of one track. When the track ends, start a new challenge: another person, or a photo, may
        have come.
        """
        if self.progress.state in ("passed", "failed"):
            return self.progress
        self._started = timestamp if self._started is None else self._started
        if timestamp - self._started > self._seconds:
            return self._to("failed", f"expected the movement within {self._seconds:g} s")
        try:
            yaw, pitch, _ = estimate_pose(landmarks)
        except FaceError as error:
            return self._to("failed", str(error))
        if self._poses and max(abs(yaw - self._poses[-1][0]), abs(pitch - self._poses[-1][1])) > _JUMP:
            return self._to("failed", f"expected a movement, found a pose that jumps by more than {_JUMP:g} degrees")
        self._poses.append((yaw, pitch))
        return self._follow(yaw, pitch)

    def _follow(self, yaw: float, pitch: float) -> ChallengeProgress:
        movement, state = self.progress.movement, self.progress.state
        if state == "look":
            recent = self._poses[-_STEADY:]
            if len(recent) == _STEADY and all(abs(each) <= _FRONTAL for each, _ in recent):
                middle_yaw, middle_pitch = np.median(recent, axis=0).tolist()
                self._start = middle_yaw, middle_pitch
                return self._to("move")
            return self.progress
        turned, nodded = yaw - self._start[0], pitch - self._start[1]  # positive: to the person's left, and down
        if state == "return":
            return self._to("passed") if max(abs(turned), abs(nodded)) <= _BACK else self.progress
        done = {"turn-left": turned >= _TURN, "turn-right": -turned >= _TURN, "nod": nodded >= _NOD}
        if done[movement]:
            return self._to("return")
        if movement != "nod" and abs(turned) >= _TURN:
            return self._to("failed", f"expected {movement}, found a turn to the other side")
        return self.progress

    def _to(self, state: Literal["move", "return", "passed", "failed"], reason: str = "") -> ChallengeProgress:
        self.progress = ChallengeProgress(movement=self.progress.movement, state=state, reason=reason)
        return self.progress
