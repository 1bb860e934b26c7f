"""Source models in, checked IRs with a contract out."""

from edgeface.convert.adopt import adopt
from edgeface.convert.converter import ConversionResult, convert
from edgeface.convert.parity import ParityReport, check_parity

__all__ = ["ConversionResult", "ParityReport", "adopt", "check_parity", "convert"]
