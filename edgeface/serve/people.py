"""Route galleries and their people: enrol, list, change, record consent, forget with the proof of it.

What concerns people needs the role enrol, forgetting too: who is asked to erase somebody stands where people are
enrolled. `force`, which lets one face have two names, and the check of all rows need the role admin.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from edgeface.errors import ContractError, InputError
from edgeface.gallery.records import Person
from edgeface.serve.answers import Answer, search_fields
from edgeface.serve.bodies import media_type, read_object, read_upload
from edgeface.serve.enrol import describe, enrol_photos, find_person, find_template, forget, record_consent
from edgeface.serve.enrol import list_people as list_some
from edgeface.serve.enrol import update_person as change
from edgeface.serve.keys import Role
from edgeface.serve.offline import (
    QUEUED,
    answer_item,
    forget_or_queue,
    is_queued_now,
    queue_photos,
    render,
    render_erasure,
)
from edgeface.serve.openapi import PREFIX, json_body, person_body, problems
from edgeface.serve.people_answers import (
    CheckAnswer,
    ConsentFields,
    ConsentRecordAnswer,
    EnrolmentAnswer,
    EnrolOptions,
    ErasureAnswer,
    GalleriesAnswer,
    GalleryAnswer,
    GalleryThresholdAnswer,
    GalleryThresholdQuery,
    NewPerson,
    PeopleAnswer,
    PeopleQuery,
    PersonAnswer,
    PersonChanges,
    PersonId,
    TemplatesAnswer,
)
from edgeface.serve.problems import NotFound, Problem
from edgeface.serve.routing import Administers, Compute, Enrols, Recognises, Served
from edgeface.serve.service import Caller, ServedGallery, Service
from edgeface.untrusted import parse_json

router = APIRouter(prefix=f"{PREFIX}/galleries", tags=["people"])
Id = Annotated[PersonId, Path()]
_Fields = TypeVar("_Fields", bound=BaseModel)
_PERSON, _TEMPLATES = "/{gallery}/people/{person_id}", "/{gallery}/people/{person_id}/templates"


# Galleries


@router.get("", tags=["galleries"])
async def galleries(caller: Recognises, service: Served) -> GalleriesAnswer:
    """List the galleries that the key may use."""
    only = caller.key.gallery
    return GalleriesAnswer(galleries=[name for name in service.galleries if only in (None, name)])


@router.get("/{gallery}", tags=["galleries"])
async def gallery(gallery: str, caller: Recognises, service: Served, compute: Compute) -> GalleryAnswer:
    """Describe a gallery."""
    answer: GalleryAnswer = await compute(functools.partial(_describe, service, service.gallery(gallery, caller)))
    return answer


def _describe(service: Service, served: ServedGallery) -> GalleryAnswer:
    store = served.searched
    try:
        fits = bool(served.index)
    except ContractError:
        fits = False
    with store.reading():
        people, templates = store.count()
        return GalleryAnswer(
            name=served.name,
            people=people,
            templates=templates,
            generation=store.generation(),
            model=served.options.model,
            contract_id=store.info.contract_id,
            fits=fits,
            encrypted=store.info.encrypted,
            keeps_images=store.info.keeps_images,
            detectors=list(store.detectors()),
            detector_note=service.detector_note(served),
        )


@router.post("/{gallery}/check", tags=["galleries"])
async def check_gallery(gallery: str, caller: Administers, service: Served, compute: Compute) -> CheckAnswer:
    """Finish erasures that were interrupted, and check every row of a gallery."""
    report = await compute(service.gallery(gallery, caller).store.check)
    return CheckAnswer(intact=bool(report), rows=dict(report.rows), problems=list(report.problems))


@router.get("/{gallery}/threshold", tags=["galleries"], responses=problems(409))
async def gallery_threshold(
    gallery: str,
    caller: Recognises,
    service: Served,
    compute: Compute,
    options: Annotated[GalleryThresholdQuery, Query()],
) -> GalleryThresholdAnswer:
    """Return what decides in a gallery now, by its size; `identify` takes the same `fpir`."""
    served = service.gallery(gallery, caller)

    def choose() -> GalleryThresholdAnswer:
        with service.models.use(served.options.model) as model:
            chosen = service.search_threshold(model, served, fpir=options.fpir)
        of_gallery = {"gallery": served.name, "margin": served.options.margin}
        return GalleryThresholdAnswer.model_validate(search_fields(GalleryThresholdAnswer, chosen) | of_gallery)

    answer: GalleryThresholdAnswer = await compute(choose)
    return answer


# People


@router.get("/{gallery}/people")
async def people(
    gallery: str, caller: Enrols, service: Served, compute: Compute, query: Annotated[PeopleQuery, Query()]
) -> PeopleAnswer:
    """List people by rising id, page by page: nobody comes twice or is left out while others enrol and forget."""
    served = service.gallery(gallery, caller)
    most = min(query.limit, service.settings.limits.people_page)

    def read() -> PeopleAnswer:
        found = list_some(served, after=query.after, limit=most, name=query.name, label=query.label)
        last = found[-1].id if len(found) == most else None
        service.note(caller, "list", gallery=served.name)
        return PeopleAnswer.model_validate({"people": [describe(each) for each in found], "next": last})

    answer: PeopleAnswer = await compute(read)
    return answer


_ENROLMENT: dict[str, Any] = {"response_model": EnrolmentAnswer, "responses": problems(404, 409) | QUEUED}


@router.post(
    "/{gallery}/people",
    status_code=201,
    openapi_extra=person_body(NewPerson),
    response_model=EnrolmentAnswer,
    responses=problems(404, 409)
    | QUEUED
    | {200: {"model": EnrolmentAnswer, "description": "The photos were added to the person of this name."}},
)
async def enrol_person(
    request: Request,
    gallery: str,
    compute: Compute,
    caller: Enrols,
    service: Served,
    options: Annotated[EnrolOptions, Query()],
) -> Response:
    """Enrol a person by photos, or add photos to the person of this name; the same photos again change nothing.

    A face that another person has is refused (409 `lookalike`), and so are photos of several people (409
    `several-people`); `errors` says who, and which.
    """
    return await _enrol(request, service.gallery(gallery, caller), None, compute, caller, service, options)


@router.post(_TEMPLATES, openapi_extra=person_body(None), **_ENROLMENT)
async def add_photos(
    request: Request,
    gallery: str,
    person_id: Id,
    compute: Compute,
    caller: Enrols,
    service: Served,
    options: Annotated[EnrolOptions, Query()],
) -> Response:
    """Add photos to a person."""
    return await _enrol(request, service.gallery(gallery, caller), person_id, compute, caller, service, options)


async def _enrol(
    request: Request,
    served: ServedGallery,
    person_id: int | None,
    compute: Compute,
    caller: Caller,
    service: Service,
    options: EnrolOptions,
) -> Response:
    require_force(caller, options)
    upload = await read_upload(request, "photo")
    fields = {name: value for name, value in upload.fields.items() if name not in request.query_params}
    if media_type(request) == "multipart/form-data":
        fields = {name: _of_form(name, value) for name, value in fields.items()}
    if strange := sorted({name for name, _ in upload.photos} - {"photo"}):
        raise Problem(422, "bad-input", f"expected files in fields 'photo', found {', '.join(strange)!r:.200}")
    known = parse_fields(PersonChanges if person_id else NewPerson, fields)
    if person_id and known.model_fields_set:
        raise Problem(422, "bad-input", "expected nothing but photos; change a person with PATCH")
    consent = None if known.consent is None else record_consent(known.consent, caller.key.id)

    def enrol() -> tuple[Answer, int]:
        photos = [data for _, data in upload.photos]
        given = {"labels": known.labels, "metadata": known.metadata, "consent": consent} | options.model_dump()
        who = person_id or str(known.name)
        if is_queued_now(served):
            return answer_item(served, queue_photos(service, served, caller, who, photos, **given)), 202
        done = enrol_photos(service, served, caller, who, photos, **given)
        return EnrolmentAnswer.model_validate(done.to_dict()), 201 if done.enrolment.created else 200

    return render(*await compute(enrol))


def require_force(caller: Caller, options: EnrolOptions) -> None:
    """Raise `Problem` where force is asked for by who may not."""
    if options.force and not caller.key.role.includes(Role.admin):
        raise Problem(403, "wrong-role", f"force: expected a key of the role admin, found {caller.key.role.value}")


def _of_form(name: str, text: str) -> Any:
    """Return the value of a form's field: what is no text is JSON."""
    if name == "name":
        return text
    try:
        return parse_json(text)
    except (InputError, ValueError, RecursionError):
        raise Problem(422, "bad-input", f"{name!r:.80}: expected JSON in this field of the form") from None


def parse_fields(model: type[_Fields], given: dict[str, Any]) -> _Fields:
    """Return checked fields; `Problem` for others, with what is wrong with each."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        wrong = [{"field": ".".join(map(str, each["loc"]))[:100], "detail": each["msg"]} for each in error.errors()]
        told = "; ".join(f"{each['field']}: {each['detail']}" for each in wrong[:10])
        raise Problem(422, "bad-input", told, errors=wrong[:10]) from None


def _note(
    service: Service, caller: Caller, served: ServedGallery, action: str, person_id: int, decision: str | None = None
) -> None:
    service.note(caller, action, gallery=served.name, people=[person_id], decision=decision)


@router.get(_PERSON)
async def person(gallery: str, person_id: Id, caller: Enrols, service: Served, compute: Compute) -> PersonAnswer:
    """Return a person."""
    found = await compute(functools.partial(_read_person, service, caller, service.gallery(gallery, caller), person_id))
    return PersonAnswer.model_validate(describe(found))


def _read_person(service: Service, caller: Caller, served: ServedGallery, person_id: int) -> Person:
    found = find_person(served, person_id)
    _note(service, caller, served, "read", person_id)
    return found


@router.patch(_PERSON, openapi_extra=json_body(PersonChanges), responses=problems(409))
async def change_person(
    request: Request, gallery: str, person_id: Id, compute: Compute, caller: Enrols, service: Served
) -> PersonAnswer:
    """Rename a person, or replace labels, metadata or the consent; what is not given stays as it is."""
    served = service.gallery(gallery, caller)
    fields = parse_fields(PersonChanges, await read_object(request))
    return await _change(served, person_id, fields, compute, caller, service)


async def _change(
    served: ServedGallery, person_id: int, fields: PersonChanges, compute: Compute, caller: Caller, service: Service
) -> PersonAnswer:
    consent = None if fields.consent is None else record_consent(fields.consent, caller.key.id)

    def update() -> PersonAnswer:
        changed = change(
            served, person_id, name=fields.name, labels=fields.labels, metadata=fields.metadata, consent=consent
        )
        _note(service, caller, served, "update", person_id, "consent" if consent else None)
        return PersonAnswer.model_validate(describe(changed))

    answer: PersonAnswer = await compute(update)
    return answer


@router.delete(_PERSON, response_model=ErasureAnswer, responses=QUEUED)
async def forget_person(gallery: str, person_id: Id, compute: Compute, caller: Enrols, service: Served) -> Response:
    """Erase a person for good: name, templates, images, consent, and who it was in events of the kiosk; and prove it.

    The files of the gallery, and of the events, are searched for what was erased.
    """
    served = service.gallery(gallery, caller)
    return render_erasure(await compute(functools.partial(forget_or_queue, service, served, caller, person_id)))


# Consent


@router.get(f"{_PERSON}/consent")
async def consent(
    gallery: str, person_id: Id, caller: Enrols, service: Served, compute: Compute
) -> ConsentRecordAnswer:
    """Return what a person agreed to."""
    found = await compute(functools.partial(_read_person, service, caller, service.gallery(gallery, caller), person_id))
    return ConsentRecordAnswer.model_validate({"person_id": person_id, "consent": describe(found)["consent"]})


@router.put(f"{_PERSON}/consent", openapi_extra=json_body(ConsentFields))
async def put_consent(
    request: Request, gallery: str, person_id: Id, compute: Compute, caller: Enrols, service: Served
) -> ConsentRecordAnswer:
    """Record what a person agrees to, in place of the record before. Who withdraws it is to be forgotten: DELETE."""
    served = service.gallery(gallery, caller)
    fields = PersonChanges(consent=await read_object(request))
    changed = await _change(served, person_id, fields, compute, caller, service)
    return ConsentRecordAnswer(person_id=person_id, consent=changed.consent)


# Templates


@router.get(_TEMPLATES)
async def templates(gallery: str, person_id: Id, caller: Enrols, service: Served, compute: Compute) -> TemplatesAnswer:
    """List a person's templates, without the embeddings."""
    served = service.gallery(gallery, caller)

    def read() -> TemplatesAnswer:
        _read_person(service, caller, served, person_id)
        found = [each.to_dict() for each in served.readable.templates_of(person_id)]
        return TemplatesAnswer.model_validate({"person_id": person_id, "templates": found})

    answer: TemplatesAnswer = await compute(read)
    return answer


@router.delete(f"{_TEMPLATES}/{{template_id}}")
async def forget_template(
    gallery: str, person_id: Id, template_id: Id, compute: Compute, caller: Enrols, service: Served
) -> ErasureAnswer:
    """Erase one template and its image for good, and prove it; the person stays."""
    served = service.gallery(gallery, caller)
    done = await compute(functools.partial(forget, service, served, caller, person_id, template_id=template_id))
    return ErasureAnswer.model_validate(done.to_dict())


@router.get(
    f"{_TEMPLATES}/{{template_id}}/image",
    response_class=Response,
    responses={
        200: {"description": "A PNG.", "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def template_image(
    gallery: str, person_id: Id, template_id: Id, compute: Compute, caller: Enrols, service: Served
) -> Response:
    """Return the part of a photo that shows the face, if the gallery keeps it."""
    served = service.gallery(gallery, caller)

    def read() -> bytes:
        find_template(served, person_id, template_id)
        image = served.store.image_of(template_id)
        if image is None:
            raise NotFound("image", template_id, remedy="this gallery keeps no images, or kept none of this template")
        _note(service, caller, served, "read-image", person_id)
        return image.png

    return Response(await compute(read), media_type="image/png")
