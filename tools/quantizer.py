#!/usr/bin/env python3
"""Open Model Zoo's quantizer flags in; for now, what could be quantized out, and exit code 3 for the work itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _omz

from edgeface.errors import NotSupportedError


def _parser() -> argparse.ArgumentParser:
    made = _omz.parser("Quantize converted models to INT8.", "quantize")
    _omz.add_precisions(made)
    made.add_argument(
        "--model_dir", type=Path, default=Path.cwd(), metavar="DIR", help="where converter.py put IRs"
    )
    made.add_argument("--dataset_dir", type=Path, metavar="DIR", help="images to calibrate with")
    made.add_argument(
        "-o", "--output_dir", type=Path, metavar="DIR", help="where to put IRs; --model_dir by default"
    )
    made.add_argument("--target_device", metavar="DEVICE", help="device to quantize for")
    _omz.add_dry_run(made)
    return made


def _work(options: argparse.Namespace) -> int:
    names = [entry.name for entry in _omz.select(options) if entry.quantizable]
    chosen = ", ".join(names) or "none of the chosen models, which are not marked quantizable"
    raise NotSupportedError(f"INT8 quantization is not possible yet; it will take: {chosen}")


if __name__ == "__main__":
    sys.exit(_omz.run(_parser(), _work))
