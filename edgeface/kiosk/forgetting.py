"""Forget in event logs the people whom a gallery forgets."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path

from edgeface.errors import EdgeFaceError
from edgeface.gallery.records import Erasure, Proof
from edgeface.gallery.retention import erasure_batches
from edgeface.gallery.store.base import GalleryStore
from edgeface.kiosk.events import EventLog

_log = logging.getLogger(__name__)


def forget_gone(log: EventLog, store: GalleryStore) -> set[int]:
    """Forget in a log whom its gallery has not any more; return their ids."""
    gallery_id = store.info.gallery_id
    named = log.people(gallery_id)
    gone = named - {person.id for person in store.people()} if named else named
    if gone:
        proof = log.forget(*gone, gallery_id=gallery_id)
        _log.info("events: forgot %d people whom the gallery has forgotten: %s", len(gone), list(proof.remains))
    return gone


def forget_in(
    path: Path, person_ids: Iterable[int], *, gallery_id: str | None = None, log: EventLog | None = None
) -> Proof:
    """Forget people in the log of a file; a failure is not raised, but is among what remains.

    `log` is this log if the process has it open. See `EventLog.forget`.
    """
    try:
        with contextlib.nullcontext(log) if log else contextlib.closing(EventLog(path, create=False)) as opened:
            return opened.forget(*person_ids, gallery_id=gallery_id)
    except EdgeFaceError as error:
        _log.error("events: %s", error)
        return Proof(searched={}, needles=0, remains=(f"{path.name}: not searched; run 'edgeface events purge'",))


def forget_people(store: GalleryStore, person_ids: Iterable[int], logs: Iterable[Path] = ()) -> list[Erasure]:
    """Erase people from a gallery, and then from event logs; each erasure has the proof of both."""
    wanted, gallery_id = dict.fromkeys(person_ids), store.info.gallery_id
    done = [each for batch in erasure_batches(store, wanted) for each in store.forget_many(batch)]
    for log in logs if wanted else ():
        proof = forget_in(log, wanted, gallery_id=gallery_id)
        done = [each.also(proof) for each in done]
    return done
