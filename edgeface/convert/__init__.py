"""Convert published models into IRs with a contract, and check them."""

from typing import TYPE_CHECKING

from edgeface.lazy import exports

if TYPE_CHECKING:
    from edgeface.convert.adoption import adopt
    from edgeface.convert.converter import ConversionResult, convert, convert_module
    from edgeface.convert.parity import ParityReport, check_parity

__all__ = ["ConversionResult", "ParityReport", "adopt", "check_parity", "convert", "convert_module"]

__getattr__ = exports(  # the process that checks an IR needs none of these, and starts twice as fast
    __name__,
    {
        "adoption": ("adopt",),
        "converter": ("ConversionResult", "convert", "convert_module"),
        "parity": ("ParityReport", "check_parity"),
    },
)
