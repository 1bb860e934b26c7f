"""The OpenVINO names that moved between the floor release (2024.6) and today's, from one place."""

try:
    from openvino import opset8 as ops
    from openvino.op import Constant
except ImportError:  # 2024
    from openvino.runtime import opset8 as ops
    from openvino.runtime.op import Constant

__all__ = ["Constant", "ops"]
