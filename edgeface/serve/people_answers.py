"""Define what is asked and answered about galleries, people and templates."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from edgeface.serve.answers import Answer, Cosine, Rate, SearchThresholdAnswer, Share
from edgeface.serve.enrol import LABELS
from edgeface.serve.faces import Options

LARGEST = (1 << 63) - 1
PersonId = Annotated[int, Field(ge=1, le=LARGEST)]
Cursor = Annotated[int, Field(ge=0, le=LARGEST)]
Page = Annotated[int, Field(ge=1, le=10_000)]
Count = Annotated[int, Field(ge=0)]


# Requests


class PageQuery(Options):
    """Which page of a list."""

    after: Cursor = 0
    """`next` of the page before; 0: the first page."""
    limit: Page = 100
    """Most entries of the page; the configuration may allow fewer."""


class PeopleQuery(PageQuery):
    """Of a list of people."""

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """A part of the name, whatever its case."""
    label: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """A label that they have."""


class EnrolOptions(Options):
    """How photos are taken."""

    largest: bool = False
    """Take the largest face of a photo of several; by default such a photo is not used."""
    force: bool = False
    """Enrol a face that another person has, and photos that do not look like one person. Needs the role admin."""


class GalleryThresholdQuery(Options):
    """Which threshold of a gallery."""

    fpir: Rate | None = None
    """False positive identification rate; by default the gallery's."""


_CONSENT = {
    "type": "object",
    "description": "What the person agreed to; the service adds who recorded it, and when.",
    "required": ["text_version"],
    "additionalProperties": False,
    "properties": {
        "text_version": {"type": "string", "minLength": 1, "maxLength": 100, "description": "Names the text."},
        "expires": {"type": ["string", "null"], "format": "date-time", "description": "With a zone; null: never."},
    },
}
ConsentFields = Annotated[dict[str, Any], WithJsonSchema(_CONSENT)]


class PersonChanges(BaseModel):
    """What a person is called and carries; what is not given stays as it is."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Unique in the gallery."""
    labels: Annotated[list[str], Field(max_length=LABELS)] | None = None
    """Groups by which people are selected; all of them."""
    metadata: dict[str, Any] | None = None
    """JSON values by key, all of them, 16 KiB at most; the key `consent` is reserved."""
    consent: ConsentFields | None = None
    """Replaces the record before."""


class NewPerson(PersonChanges):
    """A person to enrol."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """Of a new person, or of one to whom the photos are added."""


# Answers


class GalleryAnswer(Answer):
    """A gallery."""

    name: str
    """In the configuration."""
    people: Count
    """Enrolled."""
    templates: Count
    """Of all people."""
    generation: int
    """Grows with each change."""
    model: str
    """Which of the service's models embeds its faces."""
    contract_id: str
    """Of its embeddings."""
    fits: bool
    """Whether the model that answers now is of this contract; else people can be read and forgotten only."""
    encrypted: bool
    """Whether it cannot be read without its key."""
    keeps_images: bool
    """Whether the part of each photo with the face is kept."""
    detectors: list[str]
    """That found the faces of its templates, as far as they are known."""
    detector_note: str | None
    """What it means that another detector finds the faces now; null: none does."""


class GalleriesAnswer(Answer):
    """The galleries that the key may use."""

    galleries: list[str]
    """The first one is used where a request names none."""


class CheckAnswer(Answer):
    """What a check of every row found."""

    intact: bool
    """Whether there is no problem."""
    rows: dict[str, int]
    """Whole rows of each table."""
    problems: list[str]
    """One line for each."""


class GalleryThresholdAnswer(SearchThresholdAnswer):
    """What decides in a gallery now."""

    gallery: str
    """Its name."""
    contract_id: str
    """Of its embeddings and of the threshold."""
    basis: Literal["pairs", "probes", "hand"]
    """What it follows from: pairs of photos, probes of people who are not enrolled, or a number by hand."""
    trials: int
    """How many pairs or probes."""
    margin: float
    """How far the next person's cosine must be below the best one's."""


class ConsentAnswer(Answer):
    """What a person agreed to."""

    text_version: str
    """Names the text."""
    recorded_by: str
    """Id of the key."""
    recorded: datetime.datetime
    """When."""
    expires: datetime.datetime | None
    """Null: not by itself."""
    noticed: datetime.datetime | None
    """When the service reported that it has expired; null: not yet."""


class ConsentRecordAnswer(Answer):
    """A person's consent."""

    person_id: int
    """Whose."""
    consent: ConsentAnswer | None
    """Null: none is recorded."""


class PersonAnswer(Answer):
    """A person who is enrolled."""

    id: int
    """Never given twice."""
    name: str
    """Unique in the gallery."""
    labels: list[str]
    """Sorted."""
    metadata: dict[str, Any]
    """Without the consent."""
    consent: ConsentAnswer | None
    """Null: none is recorded."""
    created: datetime.datetime
    """UTC."""
    template_count: Count
    """Photos that the person is recognised by."""


class PeopleAnswer(Answer):
    """A page of people."""

    people: list[PersonAnswer]
    """By rising id."""
    next: int | None
    """`after` of the next page; null: this is the last one."""


class LookalikeAnswer(Answer):
    """Another person with this face."""

    id: int
    """Of the person."""
    name: str | None
    """Null: forgotten since."""
    similarity: Cosine
    """Cosine."""


class DisagreementAnswer(Answer):
    """Two photos of one person that do not agree."""

    new: str
    """The photo."""
    other: str | None
    """Another photo, or null."""
    template: int | None
    """Id of a stored template, or null."""
    similarity: Cosine
    """Cosine."""


class RefusedPhotoAnswer(Answer):
    """A photo that could not be used."""

    photo: str
    """Its number, from 1."""
    code: Literal["bad-image", "no-face", "poor-quality", "several-faces"]
    """Why, for programs."""
    detail: str
    """Why, for people."""
    faces: Count
    """Usable ones."""


class EnrolmentAnswer(PersonAnswer):
    """What an enrolment did: the person, as stored now."""

    new_person: bool
    """Whether nobody had this name before."""
    new_templates: list[int]
    """Ids."""
    already: Count
    """Photos that this person was enrolled with before."""
    lookalikes: list[LookalikeAnswer]
    """In spite of whom the person was enrolled by force."""
    disagreements: list[DisagreementAnswer]
    """One of the two may be bad, or of another person."""
    refused: list[RefusedPhotoAnswer]
    """Photos that were left out."""


class TemplateAnswer(Answer):
    """One stored embedding."""

    id: int
    """Never given twice."""
    quality: Share | None
    """Of the face; null: unknown."""
    source_sha256: str | None
    """Of the photo's file; null: unknown."""
    created: datetime.datetime
    """UTC."""
    has_image: bool
    """Whether the part of the photo with the face is kept."""


class TemplatesAnswer(Answer):
    """A person's templates."""

    person_id: int
    """Whose."""
    templates: list[TemplateAnswer]
    """By rising id."""


class ErasureAnswer(Answer):
    """What was erased for good, and the proof of it."""

    person_id: int
    """Whose."""
    templates: Count
    """Erased."""
    images: Count
    """Erased."""
    generation: int
    """Of the gallery afterwards."""
    searched: dict[str, int]
    """The files of the gallery and of the events, and how many bytes of each were read."""
    needles: Count
    """Pieces of names, embeddings and images that were searched for."""
    remains: list[str]
    """Where one was found; empty if the erasure is proved."""
    unsearched: list[str]
    """What may hold it and cannot be read from here."""
    proved: bool
    """Whether files were searched, and nothing was found."""
