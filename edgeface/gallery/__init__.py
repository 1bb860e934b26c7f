"""People and their embeddings kept for years: encrypted, bound to one contract, and forgotten for good when asked."""

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
from edgeface.gallery.store.protocol import Store

__all__ = [
    "Changes",
    "Erasure",
    "GalleryInfo",
    "KeptImage",
    "NewTemplate",
    "Person",
    "Store",
    "Template",
    "TemplateBlock",
]
