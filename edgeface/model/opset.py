"""Import OpenVINO's operations under one name for all releases, and work around a deadlock of its binding."""

import numpy as np
import openvino as ov

try:
    from openvino import opset8 as ops
    from openvino.op import Constant
except ImportError:  # the floor release, 2024.6
    from openvino.runtime import opset8 as ops
    from openvino.runtime.op import Constant

__all__ = ["Constant", "ops"]

# The binding looks up numpy's types at the first array, and two threads that do so at the same time deadlock (seen
# with 2026.4.1). Modules are imported by one thread at a time, so the look-up is done here.
ov.Tensor(np.zeros(1, np.float32), shared_memory=True).get_element_type().to_dtype()
