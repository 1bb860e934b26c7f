"""What has to be said about OpenVINO's Python binding in one place: names that moved, and one trap."""

import numpy as np
import openvino as ov

try:
    from openvino import opset8 as ops
    from openvino.op import Constant
except ImportError:  # the floor release, 2024.6
    from openvino.runtime import opset8 as ops
    from openvino.runtime.op import Constant

__all__ = ["Constant", "ops"]

# The binding looks up numpy's types at the first array it meets, and two threads that do so at the same time wait for
# each other for ever (seen with 2026.4.1). Modules are imported by one thread at a time, so it is done here.
ov.Tensor(np.zeros(1, np.float32), shared_memory=True).get_element_type().to_dtype()
