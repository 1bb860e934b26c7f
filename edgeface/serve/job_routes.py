"""Route jobs, which enrol many people from one upload while requests are answered."""

from __future__ import annotations

import asyncio
import datetime
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from edgeface.gallery.retention import Consent
from edgeface.serve.answers import Answer
from edgeface.serve.batch import NDJSON
from edgeface.serve.bodies import media_type, require_plain
from edgeface.serve.enrol import record_consent
from edgeface.serve.job_photos import UploadKind, open_photos
from edgeface.serve.job_store import EnrolmentJob, JobUpload
from edgeface.serve.jobs import JobOptions, JobRunner
from edgeface.serve.openapi import PREFIX, job_body, problems
from edgeface.serve.people import require_force
from edgeface.serve.people_answers import Count, EnrolOptions, PageQuery
from edgeface.serve.problems import NotFound, Problem
from edgeface.serve.routing import Enrols, Served
from edgeface.serve.service import Caller, ServedGallery, Service

router = APIRouter(prefix=f"{PREFIX}/galleries", tags=["jobs"])
PATH = re.compile(f"{PREFIX}/galleries/[^/]+/jobs")
"""Where larger bodies than elsewhere are taken."""
_OPEN_JOBS = 16
"""Most jobs that wait, run, or are being uploaded."""
_KINDS: dict[str, UploadKind] = {
    "application/zip": "zip",
    "application/x-zip-compressed": "zip",
    NDJSON: "ndjson",
    "application/jsonl": "ndjson",
}


class JobQuery(EnrolOptions):
    """How the photos of a job are taken, and what all of its people agreed to."""

    consent_text_version: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """Names the text that all people of the upload agreed to; replaces the records before."""
    consent_expires: Annotated[str, Field(max_length=40)] | None = None
    """When the consent ends: a time with a zone."""

    def consent(self, key_id: str) -> Consent | None:
        """Return the record of it; `Problem` if it is malformed."""
        if self.consent_text_version is None:
            if self.consent_expires is not None:
                raise Problem(422, "bad-consent", "consent_expires: expected consent_text_version with it, found none")
            return None
        return record_consent({"text_version": self.consent_text_version, "expires": self.consent_expires}, key_id)


class JobAnswer(Answer):
    """A job."""

    id: str
    """Of the job."""
    gallery: str
    """Where people are enrolled."""
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    """queued: it waits, or was interrupted and goes on; failed: see detail. Who is enrolled stays in any case."""
    detail: str | None
    """Why it failed, or what is left of it."""
    photos: Count
    """In the upload."""
    left_out: Count
    """Files of the upload that are no photos."""
    done: Count
    """Photos that are enrolled or refused; a person's photos are done together."""
    enrolled: Count
    """Photos that their person has now."""
    already: Count
    """Of these, photos that the person had before."""
    refused: Count
    """Photos that were not enrolled."""
    created: datetime.datetime
    """UTC."""
    started: datetime.datetime | None
    """Null: not yet."""
    finished: datetime.datetime | None
    """Null: not yet. A finished job is kept for a day, unless there are 100 newer ones."""


class JobRefusalAnswer(Answer):
    """A photo that was not enrolled."""

    photo: str
    """Its path in the archive, or its line, from 1."""
    code: str
    """Why, for programs: of the photo, or of all photos of its person."""
    detail: str
    """Why, for people."""


class JobDetailAnswer(JobAnswer):
    """A job, and a page of the photos that were refused."""

    refusals: list[JobRefusalAnswer]
    """In the order in which they were refused."""
    next: int | None
    """`after` of the next page; null: this is the last one."""


class JobsAnswer(Answer):
    """The jobs of a gallery."""

    jobs: list[JobAnswer]
    """The newest first."""


def _fields(job: EnrolmentJob) -> dict[str, Any]:
    known = {name: getattr(job, name, None) for name in JobAnswer.model_fields}
    for name in ("created", "started", "finished"):
        at = known[name]
        known[name] = None if at is None else datetime.datetime.fromtimestamp(at, datetime.timezone.utc)
    stays = f"the {job.enrolled} photos that were enrolled stay" if job.state == "cancelled" else None
    return known | {"detail": job.error or stays}


def _find(service: Service, caller: Caller, gallery: str, job_id: str) -> tuple[ServedGallery, EnrolmentJob]:
    served = service.gallery(gallery, caller)
    try:
        job = service.jobs.find(job_id)
    except KeyError:
        raise NotFound("job", job_id) from None
    if job.gallery != served.name:
        raise NotFound("job", job_id)
    return served, job


@router.post(
    "/{gallery}/jobs", status_code=202, openapi_extra=job_body(), response_model=JobAnswer, responses=problems(507)
)
async def create_job(
    request: Request, gallery: str, caller: Enrols, service: Served, options: Annotated[JobQuery, Query()]
) -> Response:
    """Enrol many people from one upload, while requests are answered; `Location` says where to ask for the progress.

    The upload is a ZIP archive with one folder a person, or NDJSON. A photo that cannot be used is left out, with its
    reason; so are all photos of a person whose face another person has, or whose photos show several people.
    """
    require_force(caller, options)
    require_plain(request)
    kind = _KINDS.get(media_type(request))
    if kind is None:
        raise Problem(415, "media-type", f"expected application/zip or {NDJSON}, found {media_type(request)!r:.80}")
    wanted = JobOptions(largest=options.largest, force=options.force, consent=options.consent(caller.key.id))
    served = service.gallery(gallery, caller)
    runner: JobRunner = request.app.state.jobs
    with runner.receiving():
        if runner.uploads + sum((await asyncio.to_thread(service.jobs.count)).values()) > _OPEN_JOBS:
            raise Problem(
                429, "too-many-jobs", f"expected at most {_OPEN_JOBS} jobs, found more; try later", retry_after=60
            )
        upload = await asyncio.to_thread(lambda: service.jobs.new_upload(served.store.database.cipher))
        try:
            async for data in request.stream():
                await asyncio.to_thread(upload.write, data)
            job = await asyncio.to_thread(_accept, service, served, caller, upload, kind, wanted)
        finally:
            await asyncio.to_thread(upload.close)
    runner.wake()
    headers = {"Location": f"{request.scope.get('root_path', '')}{PREFIX}/galleries/{served.name}/jobs/{job.id}"}
    answer = JobAnswer.model_validate(_fields(job))
    return Response(answer.model_dump_json(), 202, headers, media_type="application/json")


def _accept(
    service: Service, served: ServedGallery, caller: Caller, upload: JobUpload, kind: UploadKind, options: JobOptions
) -> EnrolmentJob:
    with upload.read_all() as file:
        photos = open_photos(file, kind, service.settings.limits)
    job = service.jobs.add(
        upload,
        gallery=served.name,
        key_id=caller.key.id,
        request_id=caller.request_id,
        kind=kind,
        options=options.to_json(),
        photos=photos.photos,
        left_out=photos.left_out,
    )
    service.note(caller, "create-job", gallery=served.name)
    return job


@router.get("/{gallery}/jobs")
async def jobs(gallery: str, caller: Enrols, service: Served) -> JobsAnswer:
    """List the jobs of a gallery: those that wait or run, and those that finished within a day."""
    found = await asyncio.to_thread(service.jobs.of_gallery, service.gallery(gallery, caller).name)
    return JobsAnswer.model_validate({"jobs": [_fields(each) for each in found]})


@router.get("/{gallery}/jobs/{job_id}")
async def job(
    gallery: str, job_id: str, caller: Enrols, service: Served, query: Annotated[PageQuery, Query()]
) -> JobDetailAnswer:
    """Return how far a job is, and which photos were refused, page by page."""

    def read() -> JobDetailAnswer:
        served, found = _find(service, caller, gallery, job_id)
        most = min(query.limit, service.settings.limits.people_page)
        rows = service.jobs.refusals(found, served.store.database.cipher, after=query.after, limit=most)
        refusals = [{"photo": each.photo, "code": each.code, "detail": each.detail} for _, each in rows]
        last = rows[-1][0] if len(rows) == most else None
        return JobDetailAnswer.model_validate(_fields(found) | {"refusals": refusals, "next": last})

    return await asyncio.to_thread(read)


@router.delete("/{gallery}/jobs/{job_id}")
async def cancel_job(gallery: str, job_id: str, request: Request, caller: Enrols, service: Served) -> JobAnswer:
    """Cancel a job that is not finished, and remove its upload; who is enrolled stays."""
    runner: JobRunner = request.app.state.jobs

    def cancel() -> JobAnswer:
        _, found = _find(service, caller, gallery, job_id)
        runner.cancel(found)
        service.note(caller, "cancel-job", gallery=found.gallery)
        return JobAnswer.model_validate(_fields(service.jobs.find(job_id)))

    return await asyncio.to_thread(cancel)
