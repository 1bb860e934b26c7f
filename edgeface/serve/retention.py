"""Report whose consent has expired, and forget them when the notice is over."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone

from edgeface.errors import EdgeFaceError
from edgeface.gallery.retention import CONSENT, Consent, find_expired
from edgeface.serve.enrol import erase
from edgeface.serve.service import ServedGallery, Service, WithoutKey

_log = logging.getLogger(__name__)


_ITSELF = WithoutKey("service", "consents")


def sweep_consents(
    service: Service, *, clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc)
) -> dict[str, int]:
    """Report whose consent has expired since, and forget those who were reported long enough ago.

    Each is reported once: in the log, in the audit log as ``consent-expired``, and with the consent itself, from which
    `ConsentText.notice_days` count, also over a restart. A consent that is renewed meanwhile ends that, and so does a
    clock that is put right. Then the person is forgotten, as ``forget-expired``, unless the configuration says
    otherwise. A gallery that cannot be read or written is left out until the next time.

    Returns
    -------
    dict
        How many people were forgotten, by gallery; see also `Service.expired`.
    """
    forgotten = dict[str, int]()
    for gallery in list(service.galleries.values()):
        try:
            forgotten[gallery.name] = _sweep(service, gallery, clock())
        except EdgeFaceError as error:
            _log.error("gallery %s: whose consent has expired is not known: %s", gallery.name, error)
    return forgotten


def _sweep(service: Service, gallery: ServedGallery, now: datetime) -> int:
    settings, store = service.settings.consent, gallery.store
    expired = find_expired(store, now)
    unnoticed = [person_id for person_id, consent in expired.items() if not _was_noticed(consent, now)]
    with store.writing():
        for person_id in unnoticed:
            person = store.person(person_id)
            consent = Consent.of(person)
            if consent is not None and consent.has_expired(now):  # it may have been renewed since
                noticed = replace(consent, noticed=now).to_dict()
                store.update_person(person_id, metadata={**person.metadata, CONSENT: noticed})
    for person_id in unnoticed:
        service.note(_ITSELF, "consent-expired", gallery=gallery.name, people=[person_id])
        _log.warning("gallery %s: the consent of person %d has expired", gallery.name, person_id)
    due = list[int]()
    if settings.expired == "forget":
        notice, expired = timedelta(days=settings.notice_days), find_expired(store, now)
        due = [number for number, each in expired.items() if each.noticed and each.noticed + notice <= now]
        erase(service, gallery, _ITSELF, dict.fromkeys(due), action="forget-expired")
    service.expired[gallery.name] = len(expired) - len(due)
    service.forgotten_expired += len(due)
    return len(due)


def _was_noticed(consent: Consent, now: datetime) -> bool:
    """Whether it was reported since it expired; a report of a clock that was wrong does not count."""
    return consent.noticed is not None and consent.expires is not None and consent.expires <= consent.noticed <= now
