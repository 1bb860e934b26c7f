"""Templates in memory, and the most similar ones to a probe: exact or approximate, in step with a gallery."""

from edgeface.gallery.index.approximate import ApproximateIndex
from edgeface.gallery.index.base import MemoryIndex
from edgeface.gallery.index.exact import ExactIndex
from edgeface.gallery.index.follow import GallerySnapshot, LiveIndex, follow
from edgeface.recognize.index import Hits, Index

__all__ = [
    "ApproximateIndex",
    "ExactIndex",
    "GallerySnapshot",
    "Hits",
    "Index",
    "LiveIndex",
    "MemoryIndex",
    "follow",
]
