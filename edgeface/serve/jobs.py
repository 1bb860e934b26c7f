"""Enrol the people of jobs, one job after another, on a thread that lets requests go first.

A person is enrolled in one transaction of the gallery, after which the job's progress is written down. If the process
is killed between the two, the person comes again, and photos that are there already are not added: nothing is enrolled
twice. What was not written down yet is computed anew.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgeface.errors import ContractError, EdgeFaceError, ImageError, MissingError
from edgeface.gallery.enrolment_images import EnrolmentImage, crowd_refusal
from edgeface.gallery.retention import Consent
from edgeface.serve.enrol import PhotoEnrolment, enrol_images, read_template
from edgeface.serve.job_photos import JobPhoto, JobPhotos, UploadKind, open_photos
from edgeface.serve.job_store import EnrolmentJob, JobRefusal
from edgeface.serve.problems import Problem, is_operators, problem_of
from edgeface.serve.service import ServedGallery, ServedModel, Service
from edgeface.serve.work import WorkQueue

_log = logging.getLogger(__name__)
_NICE = 10
_PATIENCE_SECONDS = 1.0
"""For which each photo waits for requests to be answered; a service that is never idle goes on with its jobs, too."""
_RETRIES, _PAUSE_SECONDS = 30, 2.0
"""Of what may pass: a gallery that is busy or away, a full disk."""
_CRASHES = 3
"""A job at one of whose people the process ended so often is not tried again."""
_PRUNE_SECONDS = 3600.0


class _Stopped(Exception):  # noqa: N818 - it is no error
    """The job was cancelled, or the service stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How the photos of a job are taken, as in `enrol_photos`."""

    largest: bool = False
    force: bool = False
    consent: Consent | None = None

    def to_json(self) -> str:
        """Return JSON."""
        consent = None if self.consent is None else self.consent.to_dict()
        return json.dumps({"largest": self.largest, "force": self.force, "consent": consent})

    @classmethod
    def from_json(cls, text: str) -> JobOptions:
        """Return what `to_json` wrote."""
        given: dict[str, Any] = json.loads(text)
        consent = given.pop("consent")
        return cls(**given, consent=None if consent is None else Consent.from_dict(consent))


class JobRunner:
    """Runs the jobs of a service while it serves.

    Parameters
    ----------
    service
        Its models and galleries are used, and its jobs are run.
    work
        What requests ask for; each photo of a job waits until nothing of it is under way, for a second at most.
    """

    def __init__(self, service: Service, work: WorkQueue) -> None:
        self._service, self._store, self._work = service, service.jobs, work
        self._stopping, self._awake = threading.Event(), threading.Event()
        self._step = threading.Lock()  # a person is enrolled, or a job is cancelled
        self._thread: threading.Thread | None = None
        self.uploads = 0  # that are being received

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """Count an upload while it is received; used from one event loop."""
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1

    def start(self) -> None:
        """Take up what a process before has left, and run jobs until `stop`."""
        self._store.recover()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run_all, name="edgeface-jobs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop at the next photo; the job that runs goes on with the next start."""
        self._stopping.set()
        self._awake.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Say that there is another job."""
        self._awake.set()

    def cancel(self, job: EnrolmentJob) -> None:
        """End a job, unless it is finished; who is enrolled stays, and nobody is when this has returned."""
        with self._step:
            self._store.set_state(job, "cancelled")

    def _run_all(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # Linux: of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stopping.is_set():
            self._awake.clear()
            try:
                job = self._store.next()
                if job is None:
                    self._awake.wait(_PRUNE_SECONDS)
                    self._store.prune()
                else:
                    self._run(job)
            except EdgeFaceError as error:
                _log.error("jobs wait: %s", error)
                self._stopping.wait(_PAUSE_SECONDS)

    def _run(self, job: EnrolmentJob) -> None:
        try:
            if self._store.set_state(job, "running"):
                self._enrol_all(job)
                self._store.set_state(job, "done")
        except _Stopped:
            self._store.set_state(job, "queued")  # unless it was cancelled
        except Exception as error:
            problem = problem_of(error)
            if is_operators(problem):
                _log.error("job %s failed", job.id, exc_info=error)
            self._fail(job, f"{problem.code}: {problem}")

    def _fail(self, job: EnrolmentJob, why: str) -> None:
        while True:
            try:
                self._store.set_state(job, "failed", why)
                return
            except EdgeFaceError as error:
                _log.error("job %s failed (%s), which cannot be written down: %s", job.id, why, error)
                if self._stopping.wait(_PAUSE_SECONDS):
                    return

    def _enrol_all(self, job: EnrolmentJob) -> None:
        gallery = self._service.gallery(job.gallery)
        if job.crashes >= _CRASHES:
            raise _interrupted(f"the service ended {job.crashes} times while it enrolled the same person")
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self._store.open_upload(job, gallery.store.database.cipher))
                photos = open_photos(cast("Any", file), cast("UploadKind", job.kind), self._service.settings.limits)
            except (OSError, EdgeFaceError) as error:
                raise _interrupted("what was uploaded cannot be read any more") from error
            for person, mine in list(photos.people.items())[job.people :]:
                self._enrol_patiently(job, gallery, photos, person, mine)

    def _enrol_patiently(
        self, job: EnrolmentJob, gallery: ServedGallery, photos: JobPhotos, person: str, mine: Sequence[JobPhoto]
    ) -> None:
        for attempt in range(_RETRIES):
            try:
                with self._service.models.use(gallery.options.model) as model:
                    self._enrol(job, gallery, model, photos, person, mine)
                return
            except EdgeFaceError as error:
                if problem_of(error).status not in (503, 507) or attempt == _RETRIES - 1:
                    raise
                _log.warning("job %s waits: %s", job.id, error)
                self._stopping.wait(_PAUSE_SECONDS)

    def _enrol(
        self,
        job: EnrolmentJob,
        gallery: ServedGallery,
        model: ServedModel,
        photos: JobPhotos,
        person: str,
        mine: Sequence[JobPhoto],
    ) -> None:
        options, images = JobOptions.from_json(job.options), []
        for photo in mine:
            self._give_way(job)
            images.append(self._read(gallery, model, photos, photo, largest=options.largest))
        with self._step:
            self._require_running(job)
            cipher = gallery.store.database.cipher
            try:
                note = functools.partial(self._service.note, job, "enrol", gallery=job.gallery)
                done = _enrol_person(gallery, model, person, images, options, note)
            except EdgeFaceError as error:
                problem = problem_of(error)
                if problem.status >= 500 or isinstance(error, (ContractError, MissingError)):
                    raise
                refusals = [_refusal(image, problem) for image in images]
                self._store.progress(job, enrolled=0, already=0, refusals=refusals, cipher=cipher)
                return
            refusals = [_refusal(image) for image in done.refused]
            already, enrolled = done.enrolment.already, len(images) - len(refusals)
            self._store.progress(job, enrolled=enrolled, already=already, refusals=refusals, cipher=cipher)

    def _read(
        self, gallery: ServedGallery, model: ServedModel, photos: JobPhotos, photo: JobPhoto, *, largest: bool
    ) -> EnrolmentImage:
        try:
            return read_template(self._service, gallery, model, photo.name, photos.read(photo), largest=largest)
        except ImageError as error:
            return EnrolmentImage(
                path=Path(photo.name), refusal=str(error).removeprefix(f"{photo.name}: "), reason="bad-image"
            )
        except Problem as problem:  # too many faces
            return EnrolmentImage(path=Path(photo.name), refusal=str(problem), reason=problem.code)

    def _give_way(self, job: EnrolmentJob) -> None:
        """Wait until no request is under way; `_Stopped` if the job is not to go on."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while self._work.outstanding and time.monotonic() < until and not self._stopping.wait(0.005):
            pass
        self._require_running(job)

    def _require_running(self, job: EnrolmentJob) -> None:
        if self._stopping.is_set() or self._store.find(job.id).state != "running":
            raise _Stopped
        if (state := self._service.keys.state_of(job.key_id)) != "valid":
            stays = "who is enrolled stays: send the rest again with another key"
            raise Problem(409, f"key-{state}", f"the key of the job, {job.key_id}, is {state}; {stays}")


def _enrol_person(
    gallery: ServedGallery,
    model: ServedModel,
    person: str,
    images: Sequence[EnrolmentImage],
    options: JobOptions,
    note: Callable[..., None],
) -> PhotoEnrolment:
    several, read = sum(image.faces > 1 for image in images), sum(image.faces > 0 for image in images)
    if not options.largest and not options.force and (crowd := crowd_refusal(person, several, read)):
        raise Problem(409, "several-people", crowd.replace("--largest", "largest=true"))
    return enrol_images(gallery, model, person, images, note, consent=options.consent, force=options.force)


def _refusal(image: EnrolmentImage, person: Problem | None = None) -> JobRefusal:
    """Say why a photo was refused: for itself, or with all photos of its person."""
    if image.refusal or person is None:
        return JobRefusal(str(image.path), image.reason, image.refusal.replace("--largest", "largest=true"))
    return JobRefusal(str(image.path), person.code, str(person))


def _interrupted(why: str) -> Problem:
    return Problem(409, "interrupted", f"{why}; who is enrolled stays: send the rest again")
