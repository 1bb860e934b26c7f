"""Configure `edgeface watch`: cameras, and how it is decided who stands before them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from edgeface.kiosk.targets import EventSettings
from edgeface.serve.settings import Model, Name, Positive, Section, describe_settings, read_settings

PREFIX = "EDGEFACE_WATCH"
"""Begins the name of each environment variable, e.g. EDGEFACE_WATCH_DECISION__COOLDOWN."""

Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Polygon = Annotated[tuple[tuple[Share, Share], ...], Field(min_length=3)]


class CameraSettings(Section):
    """One camera."""

    source: str = "0"
    """A camera's number, an address such as rtsp://user@host/stream, or a video file; inside the service also browser:
    the page /door sends the pictures of its own camera, and whoever has a key of the role recognise can do so."""
    picture: bool = False
    """Let the page show the picture to keys of the role recognise."""
    zones: tuple[Polygon, ...] = ()
    """Polygons of [x, y] in shares of the picture's width and height, from its upper left corner: only faces whose
    centre is inside one of them count; empty: the whole picture."""
    min_face: Positive = 64
    """Shorter side of the smallest face that counts, in pixels."""
    active_fps: Annotated[float, Field(gt=0, le=60)] = 15.0
    """Most frames a second that are looked at while somebody is there."""
    idle_fps: Annotated[float, Field(gt=0, le=60)] = 4.0
    """Frames a second that are looked at for motion while nobody is there."""
    hardware_decode: bool = True
    """Let FFmpeg decode an address on the graphics processor where it can."""
    frozen_seconds: Seconds = 10.0
    """After so long without a change of a single pixel the picture is frozen, and the camera is opened again."""
    lost_seconds: Seconds = 3.0
    """After so long without a frame the camera is lost."""


class DecisionSettings(Section):
    """How it is decided who somebody is."""

    looks: Annotated[int, Field(ge=1, le=10)] = 3
    """Crops of a face that are compared, and frames that must show it live, before a person is known."""
    patience: Seconds = 3.0
    """Time from the first usable face, within which a person has to be recognised."""
    cooldown: Annotated[float, Field(ge=0)] = 10.0
    """Seconds within which the same answer about the same face is not given again at one camera."""
    anti_passback: Annotated[float, Field(ge=0)] = 0.0
    """Seconds within which a person who was known at any camera is not known again; 0: not checked."""
    liveness: bool = True
    """Whether a person has to be live to be known; false opens the door to a photo."""
    liveness_threshold: Annotated[float, Field(ge=0.5, lt=1)] = 0.5
    """Probability that a live face has to exceed."""
    liveness_models: Path | None = None
    """IR of a liveness model, or a folder of them; null: both downloaded models."""
    fpir: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Target false positive identification rate, of one picture; null: 0.01."""
    threshold: float | Path | None = None
    """A cosine, or a file of thresholds by rate; null: those known for the model."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.0
    """How far the next person's cosine must be below the best one's."""
    gate: bool = True
    """Faces that are too small, blurred, dark or turned are not compared."""
    crop: bool = False
    """Give a picture of the face with the event; so it is if the log keeps any."""

    def for_log(self, events: EventSettings) -> DecisionSettings:
        """Return the settings, with pictures of faces if a log keeps any."""
        return self.model_copy(update={"crop": self.crop or events.keeps_crops})


class WatchSettings(Section):
    """All of the configuration; see `load_watch_settings`."""

    cameras: dict[Name, CameraSettings] = Field(default_factory=lambda: {"door": CameraSettings()}, min_length=1)
    """By name."""
    decision: DecisionSettings = DecisionSettings()
    """When a person is known."""
    model: Model = Model()
    """What finds and embeds the faces."""
    gallery: str | None = None
    """A file, or postgresql://user@host/database?gallery=NAME."""
    key: str | None = None
    """Where its key is: file:PATH, env:NAME or command:WORDS; null: EDGEFACE_GALLERY_KEY."""
    log: Path | None = None
    """SQLite file in which events are recorded, and from which they are told, made if there is none; null: none."""
    events: EventSettings = EventSettings()
    """How long events are kept in the log, and who is told; needs a log."""
    queue: Positive = 64
    """Events that wait to be taken; while they are so many, nobody is known."""
    cache: Path | None = None
    """Folder of compiled models; null: they are compiled at each start."""

    @model_validator(mode="after")
    def _cameras_find_faces(self) -> WatchSettings:
        if self.model.detector is None:
            raise ValueError("model.detector: expected a detector, which finds the faces of a camera; found null")
        if self.log is None and self.events != EventSettings():
            raise ValueError("events: expected a log, from which they are told; name a file with log; found null")
        return self

    def replaced(
        self,
        *,
        sources: Sequence[str] = (),
        gallery: str | None = None,
        key: str | None = None,
        model: Path | None = None,
        log: Path | None = None,
    ) -> WatchSettings:
        """Return the settings with what is given; sources replace all cameras, and have the keys of the first one.

        They are then called ``camera-1`` and so on.
        """
        told: dict[str, object] = {"gallery": gallery, "key": key, "log": log}
        if model is not None:
            told["model"] = self.model.model_copy(update={"model": str(model)})
        if sources:
            first = next(iter(self.cameras.values()))
            named = {f"camera-{i}": each for i, each in enumerate(sources, start=1)}
            told["cameras"] = {name: first.model_copy(update={"source": each}) for name, each in named.items()}
        return self.model_copy(update={name: value for name, value in told.items() if value is not None})


def load_watch_settings(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> WatchSettings:
    """Read the configuration of `edgeface watch`; see `edgeface.serve.settings.read_settings`.

    Examples
    --------
    >>> load_watch_settings(environ={"EDGEFACE_WATCH_DECISION__LOOKS": "5"}).decision.looks
    5
    """
    return read_settings(WatchSettings, path, environ, prefix=PREFIX, command="edgeface watch")


def describe_watch_settings() -> str:
    """Return a YAML file of the defaults in which each key is explained."""
    return describe_settings(WatchSettings(), prefix=PREFIX)
