"""A model entry in, its checked files in the cache out, whatever the network does."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from edgeface.errors import ArchiveError, ChecksumError, InputError
from edgeface.zoo.fetch import Event, Fetch, Policy, Progress
from edgeface.zoo.schema import ModelEntry
from edgeface.zoo.store import Blob, ModelStore

MIRROR_VARIABLE = "EDGEFACE_MIRROR"


def _ignore(event: Event) -> None:
    """Progress for callers that do not care."""


@dataclass(frozen=True, slots=True)
class Download:
    """What `download` did: the model's folder, its files, and whether they were there and intact already."""

    folder: Path
    blobs: tuple[Blob, ...]
    already_there: bool


def download(
    entry: ModelEntry,
    store: ModelStore,
    *,
    mirror: str | None = None,
    policy: Policy = Policy(),  # noqa: B008 - frozen
    progress: Progress = _ignore,
) -> Download:
    """Bring a model into the cache; what is there and intact is left alone.

    Parameters
    ----------
    entry, store
        What, and where to.
    mirror
        Tried before the published sources: an ``http(s)://`` address or a folder that holds
        ``<model>/<file name>``. By default EDGEFACE_MIRROR.
    policy
        Attempts, time-outs, parallel files.
    progress
        Called from several threads, one call at a time.

    Raises
    ------
    DownloadError
        If no source delivered a file; what arrived is kept, and the next call resumes there.
    ChecksumError
        If the bytes are not those that were published or recorded.
    ArchiveError, OutputError, InputError
        If an archive is unsafe, the cache cannot be written, or the mirror is not one.
    """
    serial = _one_at_a_time(progress)
    serial(Event(kind="model_download_begin", model=entry.name, num_files=len(entry.files)))
    successful = False
    try:
        result = _download(entry, store, _mirror(mirror), policy, serial)
        successful = True
    finally:
        serial(Event(kind="model_download_end", model=entry.name, successful=successful))
    return result


def _download(
    entry: ModelEntry, store: ModelStore, mirror: str | None, policy: Policy, progress: Progress
) -> Download:
    if store.has(entry) and all(check.intact for check in store.verify(entry)):
        present = [blob for file in entry.files if (blob := store.blob(entry, file))]
        return Download(store.model_dir(entry), tuple(present), already_there=True)
    cancel = threading.Event()
    fetches = [Fetch(entry, file, store, mirror, policy, progress, cancel) for file in entry.files]
    with concurrent.futures.ThreadPoolExecutor(max_workers=policy.jobs) as pool:
        futures = [pool.submit(fetch.run) for fetch in fetches]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            cancel.set()  # one file failed, or somebody pressed Ctrl-C: the others keep their partial files
            raise
    progress(Event(kind="model_postprocessing_begin", model=entry.name))
    try:
        folder = store.materialise(entry)
    except (ArchiveError, ChecksumError):
        store.forget_first_use(entry)
        raise
    progress(Event(kind="model_postprocessing_end", model=entry.name))
    return Download(folder, tuple(future.result() for future in futures), already_there=False)


def _mirror(mirror: str | None) -> str | None:
    chosen = mirror or os.environ.get(MIRROR_VARIABLE) or None
    if chosen is None or chosen.startswith(("http://", "https://")):
        return chosen
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise InputError(f"mirror: expected an http(s):// address or a folder, found {chosen!r}")
    return str(folder)


def _one_at_a_time(progress: Progress) -> Progress:
    lock = threading.Lock()

    def serial(event: Event) -> None:
        with lock:
            progress(event)

    return serial
