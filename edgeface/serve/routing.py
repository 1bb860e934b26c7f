"""What routes ask for: the service, the caller's role, a thread to compute in; and how problems are worded."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import JSONResponse, Response

from edgeface.serve.keys import Role
from edgeface.serve.problems import Problem
from edgeface.serve.service import Caller, ServedGallery, Service
from edgeface.serve.work import WorkQueue


def render_problem(problem: Problem) -> Response:
    """Word a problem as RFC 9457 does."""
    return JSONResponse(
        problem.to_dict(), problem.status, headers=problem.headers, media_type="application/problem+json"
    )


# Dependencies are coroutines, though they wait for nothing: FastAPI would call functions in threads, at 0.3 ms each.


async def service_of(request: Request) -> Service:
    """Return the service that answers this request."""
    service: Service = request.app.state.service
    return service


def needs(role: Role, *, everywhere: bool = False) -> Any:
    """Return the dependency of a route that keys of this role may call, as `require_role`; it gives the `Caller`."""

    async def check(request: Request) -> Caller:
        caller: Caller | None = request.scope.get("edgeface.caller")
        if caller is None:
            raise Problem(401, "no-key", "expected a key in the header x-api-key, found none")
        return require_role(caller, role, everywhere=everywhere)

    check.role = role  # type: ignore[attr-defined]  # for the OpenAPI
    return Depends(check)


def require_role(caller: Caller, role: Role, *, everywhere: bool = False) -> Caller:
    """Return a caller whose key may do what a role may, to the whole service if `everywhere`; `Problem` for others."""
    if not caller.key.role.includes(role):
        raise Problem(
            403, "wrong-role", f"expected a key of the role {role.value}, found one of {caller.key.role.value}"
        )
    if everywhere and caller.key.gallery is not None:
        raise Problem(403, "one-gallery", "expected a key for all galleries, found one that is for one gallery only")
    return caller


Recognises = Annotated[Caller, needs(Role.recognise)]
Enrols = Annotated[Caller, needs(Role.enrol)]
Administers = Annotated[Caller, needs(Role.admin)]
AdministersAll = Annotated[Caller, needs(Role.admin, everywhere=True)]
Measures = Annotated[Caller, needs(Role.metrics, everywhere=True)]
Served = Annotated[Service, Depends(service_of)]


def address_of(scope: Mapping[str, Any]) -> str:
    """Return the address of who asks; empty where there is none, as behind a Unix socket."""
    address: str = (scope.get("client") or ("",))[0]
    return address


class Computing:
    """Computes for one request in the service's threads, by its deadline."""

    def __init__(self, work: WorkQueue, deadline: float) -> None:
        self._work, self._deadline = work, deadline

    async def __call__(self, work: Callable[[], Any], **shared: Any) -> Any:
        """Return what `work` returns; see `WorkQueue.run`, also for `same` and `state`."""
        return await self._work.run(work, deadline=self._deadline, **shared)

    async def when_free(self, work: Callable[[], Any], **shared: Any) -> Any:
        """Compute a part of an accepted request: wait, by the deadline, instead of being refused."""
        while self._work.full and time.monotonic() < self._deadline:
            await asyncio.sleep(0.02)
        return await self(work, **shared)


def shared(service: Service, reads: ServedGallery | str, what: Hashable, *photos: bytes) -> dict[str, Any]:
    """Return what lets equal requests share one computation, as options of `Computing`.

    `reads` is the gallery in which photos are searched, or the name of the model that answers without one; `what` is
    all else that the answer depends on.
    """
    gallery = None if isinstance(reads, str) else reads
    model = reads if isinstance(reads, str) else reads.options.model
    same = (what, model, gallery, *(hashlib.sha256(photo).digest() for photo in photos))
    return {"same": same, "state": functools.partial(service.state_of, model, gallery)}


async def computing_of(request: Request) -> Computing:
    """Return what computes for this request; `Overloaded` if it would be refused."""
    work: WorkQueue = request.app.state.work
    work.refuse_if_full()  # before the body is read
    return Computing(work, request.scope.get("edgeface.deadline", math.inf))


Compute = Annotated[Computing, Depends(computing_of)]
