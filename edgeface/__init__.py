"""Published face models in, proven OpenVINO IR out, and a runtime that is fast, exact and hard to misuse."""

from edgeface.contract import Alignment, ModelContract
from edgeface.errors import EdgeFaceError

__all__ = ["Alignment", "EdgeFaceError", "ModelContract", "__version__"]

__version__ = "0.1.0"
