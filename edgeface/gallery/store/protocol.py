"""What every place that keeps a gallery can do: one file of SQLite, or a PostgreSQL server shared by many kiosks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

__all__ = ["Store"]


@runtime_checkable
class Store(Protocol):
    """People and their templates, bound to one contract.

    Every write is one transaction: when the call returns it is durable, when it raises nothing has changed. It
    raises `generation` by one (inside `writing`, the whole block by one). Ids of people and templates are
    positive and never used twice, also after `forget`. A store may be used from several threads, one at a time
    inside.

    Every method may raise `GalleryError` and its children, and `OutputError` where it cannot write.
    """

    @property
    def info(self) -> GalleryInfo:
        """What the gallery is bound to."""

    def generation(self) -> int:
        """Number of the last commit, by whichever process: an index that knows another one is stale."""

    def reading(self) -> AbstractContextManager[None]:
        """Make several reads see one generation, whatever others write meanwhile.

        Blocks may be nested, also in `writing`. Other threads that use this store wait until the block ends.
        """

    def writing(self) -> AbstractContextManager[None]:
        """Make several calls one transaction, in which nobody else writes; calls inside see what they wrote.

        Blocks may be nested; the outermost commits. An exception that leaves it undoes all of it.

        Raises
        ------
        GalleryBusyError
            If another process writes for longer than was agreed to wait.
        """

    def add_person(
        self,
        name: str,
        *,
        labels: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        templates: Sequence[NewTemplate] = (),
    ) -> Person:
        """Add somebody who is not there yet.

        Raises
        ------
        GalleryError
            If somebody has this name already.
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
        """Store more embeddings of somebody; their ids, rising, in the order given.

        Raises
        ------
        ContractError
            If an embedding is of another contract.
        GalleryError
            If nobody has this id, or an image is given that the gallery does not keep.
        """

    def person(self, person_id: int) -> Person:
        """Somebody by id; `GalleryError` if there is nobody."""

    def find(self, name: str) -> Person | None:
        """Somebody by name, compared in the form of `check_name`."""

    def people(self, *, label: str | None = None) -> tuple[Person, ...]:
        """Everybody, or those who have a label; by rising id."""

    def templates_of(self, person_id: int) -> tuple[Template, ...]:
        """Somebody's templates, by rising id."""

    def image_of(self, template_id: int) -> KeptImage | None:
        """The picture that a template was made of, if it was kept."""

    def templates(self, *, rows: int = 16384) -> Iterator[TemplateBlock]:
        """Yield every template by rising id, in blocks of at most so many; all of one generation.

        The store may be used, and written to, while the blocks are read.
        """

    def load(self) -> TemplateBlock:
        """All templates in one block, as quickly as the store can: from a file beside it, if that is current.

        Inside `writing`, after a write, it has what was written and a generation that nothing ever has: it may yet be
        undone. So has `changes_since`.
        """

    def changes_since(self, generation: int) -> Changes | None:
        """What happened to the templates after a generation; None if that is no longer known: call `load`."""

    def forget(self, person_id: int, *, template_ids: Sequence[int] | None = None) -> Erasure:
        """Erase somebody, or some of somebody's templates, for good; not inside `writing`.

        Raises
        ------
        GalleryError
            If nobody has this id, a template is not theirs, or it was called inside `writing`.
        """

    def close(self) -> None:
        """Let go of the file or the server; a second call does nothing."""

    def __enter__(self) -> Self:
        """The store itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
