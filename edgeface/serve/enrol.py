"""Enrol people from uploaded photos, record their consent, find them, and forget them: what all APIs have in common."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeface.errors import EnrolmentRefused, GalleryError, ImageError
from edgeface.gallery.enrolment import Enrolment, EnrolRules, enrol
from edgeface.gallery.enrolment_images import EnrolmentImage, enrolment_image
from edgeface.gallery.records import Erasure, Person, Template, check_labels, check_metadata, check_name
from edgeface.gallery.retention import CODE, CONSENT, PIN, Consent, erasure_batches, parse_time, without_hashes
from edgeface.gallery.store.base import GalleryStore
from edgeface.serve.problems import NotFound, Problem
from edgeface.serve.service import Asking, ServedGallery, ServedModel, Service
from edgeface.text import printable

RESERVED = (CONSENT, CODE, PIN)
"""Keys of a person's metadata that no client can set."""
METADATA_BYTES, LABELS = 16 << 10, 64
"""The most that the service stores with a person."""


# What a person may be called, and carries


def record_consent(given: Any, key_id: str) -> Consent:
    """Return the record of what a client sends: ``text_version`` and perhaps ``expires``; `Problem` for others."""
    try:
        if not isinstance(given, Mapping) or not {"text_version"} <= given.keys() <= {"text_version", "expires"}:
            raise ValueError("other keys")
        version = given["text_version"]
        if not isinstance(version, str) or not 1 <= len(version.strip()) == len(version) <= 100:
            raise ValueError("text_version")
        if printable(version) != version:
            raise ValueError("text_version")
        expires = None if given.get("expires") is None else parse_time(given["expires"])
    except (TypeError, ValueError, OverflowError) as error:
        raise Problem(
            422,
            "bad-consent",
            f"expected a consent of text_version, 1 to 100 characters, and expires, a time with a zone such as "
            f"2027-01-31T00:00:00Z or null, found another one: {error}",
        ) from None
    return Consent(text_version=version, recorded_by=key_id, recorded=datetime.now(timezone.utc), expires=expires)


def describe(person: Person) -> dict[str, Any]:
    """Return a person's JSON values, with the consent beside the other metadata, and without hashes."""
    consent, metadata = Consent.of(person), without_hashes(person)
    if consent is not None:
        del metadata[CONSENT]
    return {**person.to_dict(), "metadata": metadata, "consent": None if consent is None else consent.to_dict()}


@contextlib.contextmanager
def _checked(code: str) -> Iterator[None]:
    """Turn a value that a gallery refuses into a problem of the request."""
    try:
        yield
    except GalleryError as error:
        raise Problem(422, code, str(error)) from None


def check_person(
    *, name: str | None = None, labels: Sequence[str] | None = None, metadata: Mapping[str, Any] | None = None
) -> None:
    """Raise `Problem` for what no person can have, before anything is computed."""
    if name is not None:
        with _checked("bad-name"):
            check_name(name)
    if labels is not None:
        if len(labels) > LABELS:
            raise Problem(422, "bad-labels", f"expected at most {LABELS} labels, found {len(labels)}")
        with _checked("bad-labels"):
            check_labels(labels)
    if metadata is not None:
        with _checked("bad-metadata"):
            check_metadata(metadata)
        if reserved := [name for name in RESERVED if name in metadata]:
            raise Problem(422, "bad-metadata", f"expected other metadata than {reserved[0]!r}, which is reserved")
        if (size := len(json.dumps(metadata))) > METADATA_BYTES:
            raise Problem(422, "bad-metadata", f"expected at most {METADATA_BYTES} bytes of metadata, found {size}")


def _merged(
    person: Person | None, metadata: Mapping[str, Any] | None, consent: Consent | None
) -> dict[str, Any] | None:
    """Return the metadata to store: what is not given stays; None: all of it."""
    if metadata is None and consent is None:
        return None
    before = {} if person is None else dict(person.metadata)
    kept = {name: before[name] for name in RESERVED if name in before}
    new = before if metadata is None else {**metadata, **kept}
    return new if consent is None else {**new, CONSENT: consent.to_dict()}


# People


def find_person(gallery: ServedGallery, person_id: int, *, searched: bool = False) -> Person:
    """Return a person, of those among whom people are identified if `searched`; `NotFound` if there is none."""
    if searched and gallery.keeper is not None:
        gallery.keeper.require_fresh()
    store = gallery.searched if searched else gallery.readable
    with _found(store, person_id):
        return store.person(person_id)


@contextlib.contextmanager
def _found(store: GalleryStore, person_id: int) -> Iterator[None]:
    """Raise `NotFound` where a block failed because there is no such person, as when it was forgotten meanwhile."""
    try:
        yield
    except GalleryError:
        if not [person for person in store.people(after=person_id - 1, limit=1) if person.id == person_id]:
            raise NotFound("person", person_id) from None
        raise


def list_people(
    gallery: ServedGallery, *, after: int, limit: int, name: str | None = None, label: str | None = None
) -> list[Person]:
    """Return the people whose id is above `after`, by rising id, at most `limit`.

    `name`: a part of it, whatever the case. A page has who is there when it is asked for: who was enrolled meanwhile
    comes on a later one, and nobody comes twice or is left out because another one was forgotten.
    """
    part = None if name is None else _folded(name)
    return list(
        gallery.readable.people(
            label=label, after=after, limit=limit, where=lambda person: part is None or part in _folded(person.name)
        )
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def update_person(
    gallery: ServedGallery,
    person_id: int,
    *,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    consent: Consent | None = None,
    reserved: Mapping[str, Any] | None = None,
) -> Person:
    """Replace what is given, and keep what is None; `Problem` 409 ``name-taken`` if another person has this name.

    `reserved` replaces metadata of these keys alone; the value None removes one.
    """
    check_person(name=name, labels=labels, metadata=metadata)
    store = gallery.store
    with _found(store, person_id), store.writing():
        person = store.person(person_id)
        if name is not None and (other := store.find(name)) is not None and other.id != person_id:
            raise Problem(409, "name-taken", f"another person has this name, id {other.id}", errors=[{"id": other.id}])
        new = _merged(person, metadata, consent)
        if reserved is not None:
            both = {**(person.metadata if new is None else new), **reserved}
            new = {name: value for name, value in both.items() if value is not None}
        return store.update_person(person_id, name=name, labels=labels, metadata=new)


# Photos


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoEnrolment:
    """What `enrol_photos` did, and the photos that it could not use; each is called by its number, ``photo 1``."""

    enrolment: Enrolment
    refused: tuple[EnrolmentImage, ...]

    @property
    def person(self) -> Person:
        """As stored now."""
        return self.enrolment.person

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        done = self.enrolment.to_dict()
        return {**done, **describe(self.person), "refused": [_refusal(each) for each in self.refused]}


def _refusal(image: EnrolmentImage) -> dict[str, Any]:
    return {"photo": str(image.path), "code": image.reason, "detail": image.refusal, "faces": image.faces}


def enrol_photos(
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
    least_score: float = 0.0,
) -> PhotoEnrolment:
    """Enrol a person by photos; one that cannot be used is left out, unless none is left.

    Parameters
    ----------
    service, gallery
        The photos are embedded by the gallery's model, and their parts with the face are kept if the gallery does so.
    caller
        Who asks, for the audit log.
    who
        Name of a person, new or known; or the id of a known one.
    photos
        Bytes of image files.
    labels, metadata, consent
        Replace those of a known person; None: keep them.
    largest, force
        As in `enrol_folder`.
    least_score
        Detection score below which a face is none.

    Raises
    ------
    EnrolmentRefused
        By its ``reason``: ``lookalike``, ``several-people``, or ``no-usable-photo``; nothing is changed.
    Problem
        If there is no such person, the name or the rest cannot be stored, or there are more photos than the limit.
    """
    check_person(name=who if isinstance(who, str) else None, labels=labels, metadata=metadata)
    store = gallery.store
    if isinstance(who, int):
        find_person(gallery, who)
    with service.models.use(gallery.options.model) as model:
        images = read_templates(service, gallery, model, photos, largest=largest, least_score=least_score)
        note = functools.partial(service.note, caller, "enrol", gallery=gallery.name)
        return enrol_images(
            gallery,
            model,
            who,
            images,
            note,
            store=store,
            labels=labels,
            metadata=metadata,
            consent=consent,
            force=force,
        )


def enrol_images(
    gallery: ServedGallery,
    model: ServedModel,
    who: str | int,
    images: Sequence[EnrolmentImage],
    note: Callable[..., None],
    *,
    store: GalleryStore | None = None,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    consent: Consent | None = None,
    force: bool = False,
) -> PhotoEnrolment:
    """Enrol a person by what `read_template` made of photos with this model; see `enrol_photos`.

    `note` writes a row of the audit log, of ``people`` and a ``decision``: of the person who was enrolled, or of those
    whose faces these are, because the refusal names them. `store` is the gallery's, or its snapshot to try it in.
    """
    store = gallery.store if store is None else store
    index, person = gallery.index if store is gallery.searched else gallery.whole_index, None
    if isinstance(who, int):
        with _found(store, who):
            person = store.person(who)
    rules = EnrolRules.choose(gallery.options.threshold, model.contract)
    usable = [(each.path, each.template) for each in images if each.template is not None]
    refused = tuple(each for each in images if each.template is None)
    name = person.name if person else str(who)
    if not usable:
        told = "; ".join(f"{each.path}: {each.refusal}" for each in refused) or "no photo"
        raise EnrolmentRefused(
            f"{name}: expected at least one usable photo, found none: {told}", details=map(_refusal, refused)
        )
    try:
        with _found(store, person.id) if person else contextlib.nullcontext(), store.writing():
            known = store.find(name) if person is None else store.person(person.id)
            done = enrol(
                store,
                name if known is None else known.name,
                [template for _, template in usable],
                rules=rules,
                index=index,
                labels=_with_group(gallery, known, labels),
                metadata=_merged(known, metadata, consent),
                force=force,
                sources=[str(path) for path, _ in usable],
            )
    except EnrolmentRefused as error:
        if error.reason == "lookalike":
            note(people=[each["id"] for each in error.details], decision=error.reason)
        raise
    note(people=[done.person.id], decision="forced" if force else None)
    return PhotoEnrolment(enrolment=done, refused=refused)


def _with_group(gallery: ServedGallery, known: Person | None, labels: Sequence[str] | None) -> Sequence[str] | None:
    """Add the group of a kiosk's snapshot to the labels of who is enrolled there, and not recognised there without."""
    options = gallery.options.snapshot
    if options is None or options.group is None:
        return labels
    return [*(known.labels if labels is None and known else labels or ()), options.group]


def read_templates(
    service: Service,
    gallery: ServedGallery,
    model: ServedModel,
    photos: Sequence[bytes],
    *,
    largest: bool,
    least_score: float = 0.0,
) -> list[EnrolmentImage]:
    """Make templates of photos as `read_template`; each is called by its number, ``photo 1``."""
    if (most := service.settings.limits.images) < len(photos):
        raise Problem(422, "too-many-photos", f"expected at most {most} photos, found {len(photos)}")
    return [
        read_template(service, gallery, model, f"photo {number}", each, largest=largest, least_score=least_score)
        for number, each in enumerate(photos, 1)
    ]


def read_template(
    service: Service,
    gallery: ServedGallery,
    model: ServedModel,
    name: str,
    photo: bytes,
    *,
    largest: bool,
    least_score: float = 0.0,
) -> EnrolmentImage:
    """Make a template of a photo with the gallery's model, or say why there is none; errors call it by this name."""
    path = Path(name)
    try:
        image = service.read_photo(photo, name)
        faces = [face for face in service.analyze(model, image, gate=gallery.gate) if face.score >= least_score]
    except ImageError as error:
        return EnrolmentImage(path=path, refusal=str(error).removeprefix(f"{path}: "), reason="bad-image")
    return enrolment_image(
        path,
        image,
        faces,
        sha256=hashlib.sha256(photo).hexdigest(),
        keep_image=gallery.info.keeps_images,
        detector=None if model.analyzer.detector is None else model.analyzer.detector.name,
        largest=largest,
    )


def find_template(gallery: ServedGallery, person_id: int, template_id: int) -> Template:
    """Return a person's template; `NotFound` if there is none of this id, or it is another person's."""
    template = gallery.store.template(template_id)
    if template is None or template.person_id != person_id:
        raise NotFound("template", template_id)
    return template


def forget(
    service: Service, gallery: ServedGallery, caller: Asking, person_id: int, *, template_id: int | None = None
) -> Erasure:
    """Erase a person, or one template, for good, prove and note it; `NotFound` if there is none."""
    if template_id is not None:
        find_template(gallery, person_id, template_id)
    with _found(gallery.store, person_id):
        (done,) = service.forget(gallery, {person_id: None if template_id is None else [template_id]})
    note_erasure(service, gallery, caller, "forget" if template_id is None else "forget-template", done)
    return done


def erase(
    service: Service,
    gallery: ServedGallery,
    caller: Asking,
    wanted: Mapping[int, Sequence[int] | None],
    *,
    action: str = "forget",
) -> None:
    """Erase people, or templates of them, for good, a bounded number at a time, and note each."""
    for batch in erasure_batches(gallery.store, wanted):
        for done in service.forget(gallery, batch):
            note_erasure(service, gallery, caller, action, done)


def note_erasure(service: Service, gallery: ServedGallery, caller: Asking, action: str, done: Erasure) -> None:
    """Write a row of the audit log about an erasure."""
    decision = "proved" if done else "not-proved"
    service.note(caller, action, gallery=gallery.name, people=[done.person_id], decision=decision)
