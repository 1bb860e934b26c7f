"""What every gallery store can do: one file of SQLite, or a PostgreSQL server that many kiosks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgeface.gallery.records import (
    Changes,
    Erasure,
    GalleryInfo,
    KeptImage,
    NewTemplate,
    Person,
    Template,
    TemplateBlock,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GalleryStore"]


@runtime_checkable
class GalleryStore(Protocol):
    """People and their templates, bound to one contract.

    Every write is one transaction: when the call returns it is durable, when it raises nothing has changed. It
    raises `generation` by one (inside `writing`, the whole block by one). Ids of people and templates are
    positive and never used twice, also after `forget`. A store may be used from several threads; they take turns.

    Every method may raise `GalleryError` and its children, and `OutputError` where it cannot write.
    """

    @property
    def info(self) -> GalleryInfo:
        """What the gallery is bound to."""

    def generation(self) -> int:
        """Return the number of the last commit, by any process. An index of another number is out of date."""

    def reading(self) -> AbstractContextManager[None]:
        """Make several reads see one generation, whatever others write meanwhile.

        Blocks may be nested, also in `writing`. Other threads that use this store wait until the block ends.
        """

    def writing(self) -> AbstractContextManager[None]:
        """Make several calls one transaction without other writers; calls inside see what they wrote.

        Blocks may be nested; the outermost commits. An exception that leaves a block undoes all of it.

        Raises
        ------
        GalleryBusyError
            If another process writes for longer than the store's timeout.
        """

    def add_person(
        self,
        name: str,
        *,
        labels: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        templates: Sequence[NewTemplate] = (),
    ) -> Person:
        """Add a person.

        Raises
        ------
        GalleryError
            If another person has this name.
        ContractError
            If an embedding is of another contract.
        """

    def update_person(
        self,
        person_id: int,
        *,
        name: str | None = None,
        labels: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Person:
        """Replace what is given, and keep what is None."""

    def add_templates(self, person_id: int, templates: Sequence[NewTemplate]) -> tuple[int, ...]:
        """Store more embeddings of a person. Return their ids, rising, in the order given.

        Raises
        ------
        ContractError
            If an embedding is of another contract.
        GalleryError
            If there is no person of this id, or an image is given that the gallery does not keep.
        """

    def person(self, person_id: int) -> Person:
        """Return a person by id; `GalleryError` if there is none."""

    def find(self, name: str) -> Person | None:
        """Return a person by name, compared in the form of `check_name`."""

    def people(self, *, label: str | None = None) -> tuple[Person, ...]:
        """Return all people, or those who have a label, by rising id."""

    def templates_of(self, person_id: int) -> tuple[Template, ...]:
        """Return a person's templates, by rising id."""

    def image_of(self, template_id: int) -> KeptImage | None:
        """Return the image that a template was made from, if it was kept."""

    def load(self) -> TemplateBlock:
        """Return all templates in one block, by rising id, from the store's cache if that is current.

        Inside `writing`, after a write, the block has what was written and a generation that no commit ever has: it
        may yet be undone. The same holds for `changes_since`.
        """

    def changes_since(self, generation: int) -> Changes | None:
        """Return what happened to the templates after a generation; None if that is unknown: call `load`."""

    def forget(self, person_id: int, *, template_ids: Sequence[int] | None = None) -> Erasure:
        """Erase a person, or some templates of a person, for good; not inside `writing`.

        Raises
        ------
        GalleryError
            If there is no person of this id, a template is not theirs, or it was called inside `writing`.
        """

    def close(self) -> None:
        """Let go of the file or the server; a second call does nothing."""

    def __enter__(self) -> Self:
        """Return the store itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the store."""
