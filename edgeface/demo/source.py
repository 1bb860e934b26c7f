"""The places where a FaceNet may be in, the first that has one out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeface.convert.facenet_graph import read_weights, write_graph
from edgeface.convert.seeded import seeded_weights
from edgeface.errors import MissingError
from edgeface.model.contract import Provenance
from edgeface.zoo import ModelStore, Policy, Progress, download, load_catalog

__all__ = ["MODEL", "Source", "find_source"]

MODEL = "facenet-20180408-102900"

_IMPATIENT = Policy(attempts=1, timeout=10)
"""Somebody without a network should learn so at once, not after a dozen retries."""


@dataclass(frozen=True, slots=True)
class Source:
    """What to convert, and how it was come by.

    Attributes
    ----------
    model
        Zoo name or path.
    origin
        For people: where the weights are from.
    provenance
        Of the weights.
    tried
        Places that had none, each with the reason.
    """

    model: str | Path
    origin: str
    provenance: Provenance
    tried: tuple[str, ...]


def find_source(
    folder: Path,
    *,
    data: Path | None,
    mirror: str | None,
    offline: bool,
    say: Callable[[str], None],
    progress: Progress,
) -> Source:
    """Look in the cache, at a mirror, in the data folder and at the published source; else make weights from a seed.

    Parameters
    ----------
    folder
        Receives a graph that has to be built from weights.
    data
        Folder with ``facenet-20180408-102900/weights.npz``, or None.
    mirror
        Address or folder to download from; by default EDGEFACE_MIRROR.
    offline
        Do not ask the published source.
    say, progress
        Told what happens: a line, or a download event, at a time.
    """
    entry, store = load_catalog()[MODEL], ModelStore()
    mirror = mirror or os.environ.get("EDGEFACE_MIRROR")

    def from_cache() -> Source:
        store.source_path(entry)
        return Source(MODEL, "the cache", "published", tuple(tried))

    def from_mirror() -> Source:
        if not mirror:
            raise MissingError("no mirror is set")
        return fetched(f"the mirror {mirror}")

    def from_data() -> Source:
        weights = data / MODEL / "weights.npz" if data else None
        if weights is None or not weights.is_file():
            raise MissingError(f"no {MODEL}/weights.npz in {data}" if data else "EDGEFACE_DATA is not set")
        graph = write_graph(read_weights(weights), folder / f"{MODEL}.pb")
        return Source(graph, "EDGEFACE_DATA", "published", tuple(tried))

    def from_publisher() -> Source:
        if offline:
            raise MissingError("not asked: --offline")
        return fetched("its publisher")

    def fetched(origin: str) -> Source:
        say(f"downloading {MODEL} from {origin}; licence {entry.license_name}, {entry.license}")
        download(entry, store, mirror=mirror, policy=_IMPATIENT, progress=progress)
        store.record_license(entry, "shown")
        return Source(MODEL, origin, "published", tuple(tried))

    tried: list[str] = []
    places: dict[str, Callable[[], Source]] = {
        "cache": from_cache,
        "mirror": from_mirror,
        "EDGEFACE_DATA": from_data,
        "publisher": from_publisher,
    }
    for place, look in places.items():
        try:
            return look()
        except MissingError as error:
            tried.append(f"{place}: {error}")
    say("no published weights within reach; making SEEDED ones, which recognise nobody")
    graph = write_graph(seeded_weights(0), folder / f"{MODEL}.pb", seeded=True)
    return Source(graph, "a seed", "seeded", tuple(tried))
