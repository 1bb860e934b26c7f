"""Nothing in, a real FaceNet running as an OpenVINO IR and one HTML report out."""

from edgeface.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
