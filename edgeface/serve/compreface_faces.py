"""Answer CompreFace's paths of subjects, which are the people of the key's gallery, and of faces, their templates."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from edgeface.errors import InputError
from edgeface.gallery.records import Person, Template
from edgeface.serve.bodies import read_upload
from edgeface.serve.compreface import (
    PREFIX,
    Wanted,
    compare_embeddings,
    image_id,
    plugin_versions,
    read_embeddings,
    read_object,
    read_parameter,
    template_of,
)
from edgeface.serve.enrol import check_person, enrol_photos, erase, update_person
from edgeface.serve.matching import FaceQuery, PairComparer, find_faces, pair_threshold
from edgeface.serve.problems import NotFound, Problem
from edgeface.serve.routing import Compute, Enrols, Recognises, Served
from edgeface.serve.service import Caller, ServedGallery, Service
from edgeface.serve.similarity import scale_of
from edgeface.untrusted import parse_json

router = APIRouter(prefix=f"{PREFIX}/recognition", include_in_schema=False)
_PAGE = 20


# Subjects


def find_subject(gallery: ServedGallery, name: str) -> Person:
    """Return the person of a name; `NotFound` if there is none."""
    person = gallery.store.find(name)
    if person is None:
        raise NotFound("subject", name)
    return person


async def _read_subject(request: Request) -> str:
    name = (await read_object(request)).get("subject")
    if not isinstance(name, str):
        raise Problem(400, "bad-parameter", "subject: expected a name, found none")
    return name


@router.get("/subjects")
@router.get("/subjects/")
async def list_subjects(caller: Enrols, service: Served) -> dict[str, Any]:
    """Name all people."""
    gallery = service.gallery(None, caller)

    def read() -> list[str]:
        people = gallery.store.people()
        service.note(caller, "list", gallery=gallery.name)
        return [person.name for person in people]

    return {"subjects": await asyncio.to_thread(read)}


@router.post("/subjects", status_code=201)
async def add_subject(request: Request, compute: Compute, caller: Enrols, service: Served) -> dict[str, Any]:
    """Add a person without photos."""
    gallery, name = service.gallery(None, caller), await _read_subject(request)

    def add() -> dict[str, Any]:
        check_person(name=name)
        with gallery.store.writing():
            if gallery.store.find(name) is not None:
                raise Problem(400, "subject-exists", f"Subject already exists: {name}")
            person = gallery.store.add_person(name)
        service.note(caller, "enrol", gallery=gallery.name, people=[person.id])
        return {"subject": person.name}

    return dict(await compute(add))


@router.put("/subjects/{subject:path}")
async def rename_subject(
    subject: str, request: Request, compute: Compute, caller: Enrols, service: Served
) -> dict[str, Any]:
    """Rename a person; if another one has the name, that one gets the photos of both."""
    gallery, name = service.gallery(None, caller), await _read_subject(request)

    def rename() -> dict[str, Any]:
        check_person(name=name)
        with gallery.store.writing():
            person, other = find_subject(gallery, subject), gallery.store.find(name)
            if other is None:
                update_person(gallery, person.id, name=name)
            elif other.id != person.id:
                gallery.store.merge(person.id, other.id)
        people = [person.id] if other is None else [person.id, other.id]
        updated = len(set(people)) == len(people)
        if updated:
            service.note(caller, "rename" if other is None else "merge", gallery=gallery.name, people=people)
        return {"updated": updated}

    return dict(await compute(rename))


@router.delete("/subjects/{subject:path}")
async def delete_subject(subject: str, compute: Compute, caller: Enrols, service: Served) -> dict[str, Any]:
    """Erase a person for good."""
    gallery = service.gallery(None, caller)

    def delete() -> dict[str, Any]:
        person = find_subject(gallery, subject)
        erase(service, gallery, caller, {person.id: None})
        return {"subject": person.name}

    return dict(await compute(delete))


@router.delete("/subjects")
async def delete_subjects(compute: Compute, caller: Enrols, service: Served) -> dict[str, Any]:
    """Erase everybody for good."""
    gallery = service.gallery(None, caller)

    def delete() -> dict[str, Any]:
        people = gallery.store.people()
        erase(service, gallery, caller, {person.id: None for person in people})
        return {"deleted": len(people)}

    return dict(await compute(delete))


# Faces


def find_image(gallery: ServedGallery, text: str) -> Template:
    """Return the template of an image id; `NotFound` if there is none."""
    template = gallery.store.template(template_of(gallery, text))
    if template is None:
        raise NotFound("image", text)
    return template


@router.post("/faces", status_code=201)
async def add_face(request: Request, query: Wanted, compute: Compute, caller: Enrols, service: Served) -> Any:
    """Enrol a photo of one face; a photo that is there already is answered with the id that it has."""
    gallery, name = service.gallery(None, caller), request.query_params.get("subject")
    if not name:
        raise Problem(400, "missing-parameter", "Required parameter 'subject' is not present")
    photo = (await read_upload(request, "file")).photo("file")

    def enrol() -> dict[str, Any]:
        done = enrol_photos(service, gallery, caller, name, [photo], least_score=query.least_score)
        ids = done.enrolment.template_ids
        if not ids:
            digest, theirs = hashlib.sha256(photo).hexdigest(), gallery.store.templates_of(done.person.id)
            ids = tuple(each.id for each in theirs if each.source_sha256 == digest) or (theirs[-1].id,)
        return {"image_id": image_id(gallery, ids[0]), "subject": done.person.name}

    return await compute(enrol)


@router.get("/faces")
async def list_faces(request: Request, caller: Enrols, service: Served) -> dict[str, Any]:
    """Page through the templates, of all people or of one, in the order of the people."""
    gallery, name = service.gallery(None, caller), request.query_params.get("subject")
    page = read_parameter(request, "page", int, 0, least=0)
    size = min(read_parameter(request, "size", int, _PAGE, least=1), service.settings.limits.people_page)

    def read() -> dict[str, Any]:
        with gallery.store.reading():
            people = gallery.store.people() if not name else [find_subject(gallery, name)]
            total = sum(person.template_count for person in people)
            faces = list(itertools.islice(_faces(gallery, people, page * size), size))
        service.note(caller, "list", gallery=gallery.name)
        pages = math.ceil(total / size)
        counts = {"page_number": page, "page_size": size, "total_pages": pages, "total_elements": total}
        return {"faces": faces, **counts}

    return await asyncio.to_thread(read)


def _faces(gallery: ServedGallery, people: Iterable[Person], skip: int) -> Iterator[dict[str, str]]:
    for person in people:
        if skip >= person.template_count:
            skip -= person.template_count
            continue
        for template in gallery.store.templates_of(person.id)[skip:]:
            yield {"image_id": image_id(gallery, template.id), "subject": person.name}
        skip = 0


@router.delete("/faces")
async def delete_faces(request: Request, compute: Compute, caller: Enrols, service: Served) -> Any:
    """Erase all templates for good, of one person or of all; the people stay."""
    gallery, name = service.gallery(None, caller), request.query_params.get("subject")

    def delete() -> dict[str, Any]:
        person = gallery.store.find(name) if name else None
        people = gallery.store.people() if not name else () if person is None else (person,)
        theirs = {each.id: [one.id for one in gallery.store.templates_of(each.id)] for each in people}
        erase(service, gallery, caller, {person_id: ids for person_id, ids in theirs.items() if ids})
        return {"deleted": sum(map(len, theirs.values()))}

    return await compute(delete)


@router.delete("/faces/{image}")
async def delete_face(image: str, compute: Compute, caller: Enrols, service: Served) -> Any:
    """Erase one template for good."""
    gallery = service.gallery(None, caller)

    def delete() -> dict[str, str]:
        find_image(gallery, image)
        return _delete_images(service, gallery, caller, [image])[0]

    return await compute(delete)


@router.post("/faces/delete")
async def delete_listed_faces(request: Request, compute: Compute, caller: Enrols, service: Served) -> Any:
    """Erase the templates of a list for good; ids of none are left out of the answer."""
    gallery = service.gallery(None, caller)
    try:
        images = parse_json(await request.body())
    except (InputError, ValueError, RecursionError) as error:
        raise Problem(400, "malformed-body", f"expected JSON, found: {error}") from error
    most = service.settings.limits.people_page
    if not isinstance(images, list) or len(images) > most or not all(isinstance(each, str) for each in images):
        raise Problem(400, "bad-argument", f"expected a list of at most {most} image ids, found another value")
    return await compute(functools.partial(_delete_images, service, gallery, caller, images))


def _delete_images(
    service: Service, gallery: ServedGallery, caller: Caller, images: Sequence[str]
) -> list[dict[str, str]]:
    deleted, wanted = list[dict[str, str]](), dict[int, list[int]]()
    for image in dict.fromkeys(images):
        try:
            template = find_image(gallery, image)
        except NotFound:
            continue
        wanted.setdefault(template.person_id, []).append(template.id)
        deleted.append({"image_id": image, "subject": gallery.store.person(template.person_id).name})
    erase(service, gallery, caller, wanted)
    return deleted


@router.get("/faces/{image}/img")
async def read_face(image: str, caller: Enrols, service: Served) -> Response:
    """Return the kept part of a photo, if the gallery keeps images."""
    gallery = service.gallery(None, caller)

    def read() -> bytes:
        template = find_image(gallery, image)
        kept = gallery.store.image_of(template.id)
        if kept is None:
            raise NotFound("image", image, remedy="this gallery keeps no images")
        service.note(caller, "read-image", gallery=gallery.name, people=[template.person_id])
        return kept.png

    png = await asyncio.to_thread(read)
    return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})


@router.post("/faces/{image}/verify")
async def verify_face(
    image: str, request: Request, query: Wanted, compute: Compute, caller: Recognises, service: Served
) -> dict[str, Any]:
    """Compare the faces of a photo with one template."""
    gallery = service.gallery(None, caller)
    photo = (await read_upload(request, "file")).photo("file")
    result = await compute(functools.partial(_verify, service, caller, gallery, image, photo, query))
    return {"result": result, **plugin_versions(service, gallery, query)}


def _verify(
    service: Service, caller: Caller, gallery: ServedGallery, image: str, photo: bytes, query: FaceQuery
) -> list[dict[str, Any]]:
    template = find_image(gallery, image)
    person = gallery.store.person(template.person_id)
    with service.models.use(gallery.options.model) as model:
        found = find_faces(service, model, photo, query)
        threshold, scale = pair_threshold(gallery, model.contract), scale_of(model.contract)
        comparer = PairComparer(template.embedding, threshold, scale, person)
    service.note(caller, "verify", gallery=gallery.name, people=[template.person_id])
    return [
        {**found.describe(face, query), "subject": person.name, **comparer.compare(face.embedding)}
        for face in found.faces
    ]


@router.post("/embeddings/faces/{image}/verify")
async def verify_face_embeddings(
    image: str, request: Request, compute: Compute, caller: Recognises, service: Served
) -> dict[str, Any]:
    """Compare embeddings with one template."""
    gallery, given = service.gallery(None, caller), (await read_object(request)).get("embeddings")

    def compare() -> list[dict[str, Any]]:
        probes, template = read_embeddings(service, gallery, given), find_image(gallery, image)
        service.note(caller, "verify", gallery=gallery.name, people=[template.person_id])
        person = gallery.store.person(template.person_id)
        return compare_embeddings(service, gallery, template.embedding, probes, person)

    return {"result": await compute(compare)}
