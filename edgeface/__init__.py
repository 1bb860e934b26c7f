"""Published face models in, proven OpenVINO IR out, and a runtime that is fast, exact and hard to misuse."""

import sys

# `import openvino` reports itself to Intel and Google from a forked process: nothing that a kiosk should do, and the
# child keeps pipes open and can deadlock. OpenVINO goes without where the package cannot be imported.
if "openvino" not in sys.modules:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

from edgeface.errors import EdgeFaceError
from edgeface.model.contract import Alignment, ModelContract
from edgeface.version import __version__

__all__ = ["Alignment", "EdgeFaceError", "ModelContract", "__version__"]
