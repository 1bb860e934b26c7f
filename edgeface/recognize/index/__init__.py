"""Templates in memory, and the most similar ones to a probe: exact or approximate, in step with a gallery."""

from edgeface.recognize.index.approximate import ApproximateIndex
from edgeface.recognize.index.base import MemoryIndex
from edgeface.recognize.index.exact import ExactIndex
from edgeface.recognize.index.follow import LiveIndex, follow
from edgeface.recognize.index.protocol import Hits, Index

__all__ = ["ApproximateIndex", "ExactIndex", "Hits", "Index", "LiveIndex", "MemoryIndex", "follow"]
