"""Queue what is asked while a gallery's server is away, send it when the server is back, and show what did not fit.

Nothing is sent twice: before an item is sent, the queue has, durably, the number that the server will give next. If it
is not known whether the server took the item, what has that number by then tells. An erasure wins: of a person who was
forgotten meanwhile nothing is sent. It is kept until the person is gone from the server, and erases nobody else.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from starlette.responses import Response

from edgeface.errors import EdgeFaceError, EnrolmentRefused, GalleryBusyError, GalleryDamagedError, GalleryError
from edgeface.gallery.codec import TemplateBody, decode_image, encode_image
from edgeface.gallery.enrolment import EnrolRules
from edgeface.gallery.enrolment_images import EnrolmentImage
from edgeface.gallery.records import NewTemplate, Person, check_name, now, unit_vector
from edgeface.gallery.retention import Consent
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.embedding import Embedding
from edgeface.serve.answers import Answer
from edgeface.serve.enrol import check_person, enrol_images, find_person, forget, note_erasure, read_templates
from edgeface.serve.faces import Options
from edgeface.serve.keys import Role
from edgeface.serve.offline_queue import ItemKind, ItemState, QueuedItem
from edgeface.serve.openapi import PREFIX, problems
from edgeface.serve.people_answers import ErasureAnswer, PersonId
from edgeface.serve.problems import NotFound, Problem, problem_of
from edgeface.serve.routing import Compute, Enrols, Served, require_role
from edgeface.serve.service import Asking, ServedGallery, Service, WithoutKey
from edgeface.serve.snapshots import UNDECIDED, SnapshotKeeper

_log = logging.getLogger(__name__)
router = APIRouter(prefix=f"{PREFIX}/galleries", tags=["people"])
_QUEUE = "/{gallery}/queue"


class _Tried(Exception):  # noqa: N818 - it is no error
    """An enrolment in the snapshot would do, and is undone."""


def is_queued_now(gallery: ServedGallery) -> bool:
    """Return whether enrolments are queued: the gallery's server is away, and the configuration allows it."""
    keeper = gallery.keeper
    return keeper is not None and keeper.away and keeper.options.offline_enrolment


def _keeper_of(gallery: ServedGallery) -> SnapshotKeeper:
    if gallery.keeper is None:
        raise Problem(404, "no-snapshot", f"gallery {gallery.name}: it has no snapshot, and so no queue")
    return gallery.keeper


def render(answer: Answer, status: int = 200) -> Response:
    """Return an answer as JSON."""
    return Response(answer.model_dump_json(), status, media_type="application/json")


def render_erasure(answer: ErasureAnswer | QueuedAnswer) -> Response:
    """Return what `forget_or_queue` answers, by its status."""
    return render(answer, 202 if isinstance(answer, QueuedAnswer) else 200)


# Queueing


def queue_photos(
    service: Service,
    gallery: ServedGallery,
    caller: Asking,
    who: str | int,
    photos: Sequence[bytes],
    *,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    consent: Consent | None = None,
    largest: bool = False,
    force: bool = False,
) -> QueuedItem:
    """Queue an enrolment of `enrol_photos`, after it was tried in the snapshot; raises what that does."""
    check_person(name=who if isinstance(who, str) else None, labels=labels, metadata=metadata)
    keeper, local = _keeper_of(gallery), gallery.searched
    keeper.require_fresh()
    known = find_person(gallery, who) if isinstance(who, int) else local.find(who)
    note = functools.partial(service.note, caller, "enrol", gallery=gallery.name)

    def tell(people: Sequence[int] = (), decision: str | None = None) -> None:
        if decision == "lookalike":
            note(people=people, decision=decision)

    with service.models.use(gallery.options.model) as model:
        images = read_templates(service, gallery, model, photos, largest=largest)
        try:
            with local.writing():
                enrol_images(gallery, model, who, images, tell, store=local, force=force)
                raise _Tried
        except _Tried:
            pass
    content = {
        "who": check_name(who) if isinstance(who, str) else known and known.name,
        "enrolled": known and known.created.isoformat(),
        "labels": None if labels is None else list(labels),
        "metadata": None if metadata is None else dict(metadata),
        "consent": None if consent is None else consent.to_dict(),
        "force": force,
        "images": [_to_json(each) for each in images if each.template is not None],
        "contract_id": gallery.info.contract_id,
        "key_id": caller.key_id,
        "request_id": caller.request_id,
    }
    item = keeper.queue.add("enrol", content, local.database, person_id=None if known is None else known.id)
    note(people=[known.id] if known else (), decision="queued")
    return item


def forget_or_queue(
    service: Service, gallery: ServedGallery, caller: Asking, person_id: int
) -> ErasureAnswer | QueuedAnswer:
    """Erase a person as `forget`, or, while the gallery's server is away, from the snapshot now and there later."""
    if gallery.keeper is None or not gallery.keeper.away:
        return ErasureAnswer.model_validate(forget(service, gallery, caller, person_id).to_dict())
    return answer_item(gallery, _queue_erasure(service, gallery, gallery.keeper, caller, person_id))


def _queue_erasure(
    service: Service, gallery: ServedGallery, keeper: SnapshotKeeper, caller: Asking, person_id: int
) -> QueuedItem:
    enrolled = find_person(gallery, person_id).created
    content = {"key_id": caller.key_id, "request_id": caller.request_id}
    item = keeper.queue.add("forget", content, gallery.searched.database, person_id=person_id, enrolled=enrolled)
    proof = keeper.snapshot.erase(person_id, missing_ok=True)  # who was there a moment ago may be forgotten by another
    also = service.elsewhere(gallery, [person_id])
    decision = "queued" if not proof.remains and not (also and also.remains) else "queued-not-proved"
    service.note(caller, "forget", gallery=gallery.name, people=[person_id], decision=decision)
    return item


def _to_json(image: EnrolmentImage) -> dict[str, Any]:
    new = image.template
    assert new is not None
    vector = np.asarray(new.embedding.vector, np.float32)
    body = TemplateBody(vector, new.quality, new.source_sha256, new.created).encode()
    kept = None if new.image is None else base64.b64encode(encode_image(new.image)).decode()
    given = {"path": str(image.path), "template": base64.b64encode(body).decode(), "image": kept}
    return given | {"detector": new.detector, "faces": image.faces}


def _from_json(given: Mapping[str, Any], store: GalleryStore, contract_id: str) -> EnrolmentImage:
    body = TemplateBody.decode(base64.b64decode(given["template"]), store.info.dim)
    image = None if given["image"] is None else decode_image(base64.b64decode(given["image"]))
    template = NewTemplate(
        embedding=Embedding(body.vector, contract_id),
        quality=body.quality,
        source_sha256=body.source_sha256,
        created=body.created,
        image=image if store.info.keeps_images else None,
        detector=given["detector"],
    )
    return EnrolmentImage(path=Path(given["path"]), template=template, faces=given["faces"])


# Sending


def deliver(service: Service, gallery: ServedGallery, item: QueuedItem, store: GalleryStore) -> None:
    """Send an item to the server's gallery, and say in the queue what came of it.

    Raises what `UNDECIDED` has where it is to be tried again, also if it is not known whether the server took it.
    """
    keeper = _keeper_of(gallery)
    try:
        if item.gallery_id != store.info.gallery_id:
            raise Problem(409, "another-gallery", f"it is for the gallery {item.gallery_id}")
        if item.kind == "forget":
            _send_erasure(service, gallery, item, store)
        elif gallery.options.model not in service.models.names():
            raise GalleryBusyError(f"the model {gallery.options.model} is not loaded")
        else:
            _send_enrolment(service, gallery, item, store)
    except UNDECIDED:
        raise
    except EnrolmentRefused as error:
        people = [number for each in error.details if isinstance(number := each.get("id"), int)]
        keeper.queue.conflict(item.id, error.reason or "refused", people)
        _log.warning("gallery %s: what was queued as number %d is refused: %s", gallery.name, item.id, error.reason)
    except EdgeFaceError as error:
        keeper.queue.conflict(item.id, code := problem_of(error).code)
        _log.warning("gallery %s: what was queued as number %d is refused: %s", gallery.name, item.id, code)


def _send_erasure(service: Service, gallery: ServedGallery, item: QueuedItem, store: GalleryStore) -> None:
    queue, person_id, done = _keeper_of(gallery).queue, item.person_id, None
    assert person_id is not None
    try:
        if _has_person(store, person_id):
            enrolled = store.person(person_id).created
            try:
                content = queue.content(item.id, store.database, enrolled=enrolled)
            except GalleryDamagedError:
                raise Problem(409, "another-person", f"person {person_id} is not who was to be forgotten") from None
            (done,) = store.forget_many({person_id: None})
    except GalleryError:
        if _has_person(store, person_id):  # and was not forgotten by another service meanwhile
            raise
    queue.remove(item.id)
    if done is not None:
        note_erasure(service, gallery, WithoutKey(content["key_id"], content["request_id"]), "forget", done)


def _has_person(store: GalleryStore, person_id: int) -> bool:
    return any(each.id == person_id for each in store.people(after=person_id - 1, limit=1))


def _send_enrolment(service: Service, gallery: ServedGallery, item: QueuedItem, store: GalleryStore) -> None:
    queue = _keeper_of(gallery).queue
    content = queue.content(item.id, store.database)
    by, contract_id = WithoutKey(content["key_id"], content["request_id"]), content["contract_id"]
    consent = None if content["consent"] is None else Consent.from_dict(content["consent"])
    images = [_from_json(each, store, contract_id) for each in content["images"]]
    done: list[dict[str, Any]] = []

    def tell(people: Sequence[int] = (), decision: str | None = None) -> None:
        done.append({"people": people, "decision": decision})

    with service.models.use(gallery.options.model) as model, store.writing():
        sent, known = _was_sent(store, item, images), None
        if not sent:
            why = "consent-expired" if consent is not None and consent.has_expired(now()) else ""
            if item.person_id is not None:
                known = store.person(item.person_id) if _has_person(store, item.person_id) else None
                why = why or ("" if known and known.created.isoformat() == content["enrolled"] else "forgotten")
            if sent is None or why:
                queue.erase(item.id, why or "forgotten")
                service.note(by, "enrol", gallery=gallery.name, decision=f"not-sent-{why or 'forgotten'}")
                return
            if known is None and (known := store.find(content["who"])) is not None and not content["force"]:
                _require_same_face(store, known, images, EnrolRules.choose(gallery.options.threshold, model.contract))
            queue.mark(item.id, store.database.state("next_id"))
            enrol_images(
                gallery,
                model,
                content["who"] if known is None else known.id,
                images,
                tell,
                store=store,
                labels=content["labels"],
                metadata=content["metadata"],
                consent=consent,
                force=content["force"],
            )
    queue.remove(item.id)
    for each in done:
        service.note(by, "enrol", gallery=gallery.name, **each)


def _was_sent(store: GalleryStore, item: QueuedItem, images: Sequence[EnrolmentImage]) -> bool | None:
    """Return whether the server has what was sent before the queue heard of it; None if it may have been erased since.

    The ids that the enrolment would have been given, from the item's mark on, were given to it, to another one, or to
    nobody yet; if nothing has them any more, what had them was erased.
    """
    if item.mark is None or store.database.state("next_id") <= item.mark:  # less, if an earlier copy was put back
        return False
    vectors = {unit_vector(each.template, store.info).tobytes() for each in images if each.template is not None}
    first, ids = store.template(item.mark), range(item.mark, item.mark + len(images) + 1)
    found = [each for each in map(store.template, ids) if each is not None]
    if any(each.embedding.vector.tobytes() in vectors for each in found):
        return True
    return False if first is not None or _has_person(store, item.mark) else None


def _require_same_face(
    store: GalleryStore, person: Person, images: Sequence[EnrolmentImage], rules: EnrolRules
) -> None:
    """Refuse to add photos to somebody of this name whom the kiosk did not know, unless it is the same face."""
    new = np.stack([unit_vector(each.template, store.info) for each in images if each.template is not None])
    theirs = [each.embedding.vector for each in store.templates_of(person.id)]
    if not theirs or float((new.astype(np.float64) @ np.stack(theirs).astype(np.float64).T).max()) <= (
        rules.duplicate_above
    ):
        raise EnrolmentRefused(
            f"{person.name}: expected a new name, found that another person was enrolled by it meanwhile",
            reason="name-taken",
            details=[{"id": person.id}],
        )


# The queue over HTTP


class OtherPersonAnswer(Answer):
    """A person of the gallery."""

    id: int
    """Of the person."""
    name: str | None
    """Null: of another group, or forgotten since."""


class QueuedAnswer(Answer):
    """What waits for the gallery's server."""

    id: int
    """In the queue."""
    kind: ItemKind
    """An enrolment, or the erasure of a person, who is not recognised here any more."""
    state: ItemState
    """queued: it is sent when the server is back; conflict: the server refused it, and somebody has to decide; erased:
    it is not sent, and nothing of it is kept."""
    reason: str
    """Of a conflict: lookalike (another person has this face), name-taken (another face has this name), another-person
    (than the one who was to be forgotten has this id on the server), another-gallery (is at the gallery's address), or
    the code of a problem; of what was erased: forgotten or consent-expired; else empty."""
    name: str | None
    """Of the person; null: erased."""
    person_id: int | None
    """Null: a new person."""
    with_people: list[OtherPersonAnswer]
    """Whom a conflict is with."""
    created: datetime
    """UTC."""


QUEUED: dict[int | str, dict[str, Any]] = {
    202: {"model": QueuedAnswer, "description": "The gallery's server is away: this is sent when it is back."}
}
"""Of operations that are queued while the server is away."""


class QueueAnswer(Answer):
    """The queue of a gallery."""

    away: bool
    """Whether the server cannot be reached."""
    snapshot_age: float | None
    """Seconds since the server confirmed the snapshot; null: not known, and nobody is recognised."""
    items: list[QueuedAnswer]
    """In the order in which they came."""


class RetryOptions(Options):
    """How a conflict is decided."""

    force: bool = False
    """Enrol in spite of it: the face that another person has, or as the person of this name. Needs the role admin."""


ItemId = PersonId


def answer_item(gallery: ServedGallery, item: QueuedItem) -> QueuedAnswer:
    """Describe an item of the queue."""
    name, local = None, gallery.searched
    if item.kind == "enrol" and item.state != "erased":
        with contextlib.suppress(GalleryDamagedError, NotFound):  # sealed with another key; or sent meanwhile
            name = _keeper_of(gallery).queue.content(item.id, local.database)["who"]

    def named(person_id: int) -> OtherPersonAnswer:
        found = local.person(person_id).name if _has_person(local, person_id) else None
        return OtherPersonAnswer(id=person_id, name=found)

    return QueuedAnswer(
        id=item.id,
        kind=item.kind,
        state=item.state,
        reason=item.reason,
        name=name,
        person_id=item.person_id,
        with_people=[named(each) for each in item.people],
        created=datetime.fromtimestamp(item.created, timezone.utc),
    )


@router.get(_QUEUE)
async def queue(gallery: str, caller: Enrols, service: Served, compute: Compute) -> QueueAnswer:
    """List what was asked while the gallery's server was away and the server has not taken; 404 without a snapshot."""
    served = service.gallery(gallery, caller)
    keeper = _keeper_of(served)

    def read() -> QueueAnswer:
        items = [answer_item(served, each) for each in keeper.queue.items()]
        service.note(caller, "list", gallery=served.name, decision="queue")
        return QueueAnswer(away=keeper.away, snapshot_age=keeper.seconds(), items=items)

    answer: QueueAnswer = await compute(read)
    return answer


@router.post(f"{_QUEUE}/{{item_id}}", responses=problems(404, 409))
async def send_again(
    gallery: str,
    item_id: ItemId,
    caller: Enrols,
    service: Served,
    compute: Compute,
    options: Annotated[RetryOptions, Query()],
) -> QueuedAnswer:
    """Send again what was in conflict, after the other person was corrected or forgotten, or an enrolment by force."""
    served = service.gallery(gallery, caller)
    keeper = _keeper_of(served)
    if options.force:
        require_role(caller, Role.admin)

    def retry() -> QueuedAnswer:
        item, database = _require(keeper, item_id, "conflict"), served.searched.database
        forced = options.force and item.kind == "enrol"
        content = keeper.queue.content(item.id, database) | {"force": True} if forced else None
        keeper.queue.retry(item.id, content, database)
        service.note(caller, item.kind, gallery=served.name, decision="queued-by-force" if forced else "queued")
        return answer_item(served, keeper.queue.item(item.id))

    answer: QueuedAnswer = await compute(retry)
    return answer


@router.delete(
    f"{_QUEUE}/{{item_id}}",
    status_code=204,
    response_description="It is not sent, and erased here.",
    responses=problems(404, 409),
)
async def withdraw(gallery: str, item_id: ItemId, caller: Enrols, service: Served, compute: Compute) -> Response:
    """Withdraw an enrolment that the server has not taken, and erase it here; or an erasure that is in conflict.

    The latter needs the role admin: who has that id on the server is recognised here again.
    """
    served = service.gallery(gallery, caller)
    keeper = _keeper_of(served)

    def remove() -> None:
        with keeper.sending:
            item = _require(keeper, item_id, "queued", "conflict", "erased")
            if item.mark is not None:
                raise Problem(409, "may-be-sent", "the server may have it already; look again when the server is back")
            if item.kind == "forget":
                require_role(caller, Role.admin)
            keeper.queue.remove(item.id)
        service.note(caller, item.kind, gallery=served.name, decision="withdrawn")

    await compute(remove)
    return Response(status_code=204)


def _require(keeper: SnapshotKeeper, item_id: int, *states: Literal["queued", "conflict", "erased"]) -> QueuedItem:
    item = keeper.queue.item(item_id)
    if item.state not in (states if item.kind == "enrol" else ("conflict",)):
        raise Problem(
            409,
            "not-that-item",
            f"expected an enrolment of the state {' or '.join(states)}, or an erasure in conflict, "
            f"found {item.kind} of {item.state}",
        )
    return item
