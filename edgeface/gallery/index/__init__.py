"""Search the templates of a gallery: exactly or approximately, in memory, in step with a store."""

from edgeface.gallery.index.approximate import ApproximateIndex
from edgeface.gallery.index.exact import ExactIndex
from edgeface.gallery.index.live import LiveIndex, follow
from edgeface.gallery.index.memory import MemoryIndex
from edgeface.recognize.index import Hits, Index

__all__ = ["ApproximateIndex", "ExactIndex", "Hits", "Index", "LiveIndex", "MemoryIndex", "follow"]
