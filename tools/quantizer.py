#!/usr/bin/env python3
"""Quantize IRs with Open Model Zoo's flags, to <output_dir>/<subdirectory>/FP32-INT8/<model>.xml.

IRs are searched where `converter.py` put them under `--model_dir`. A model that loses accuracy is not written.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import _omz

from edgeface import zoo
from edgeface.errors import InputError, ModelNotFoundError, NegativeResult, NotSupportedError

_MADE = "FP32-INT8"


def _parser() -> argparse.ArgumentParser:
    made = _omz.parser("Quantize converted models to INT8.", "quantize")
    _omz.add_precisions(made)
    made.add_argument("--model_dir", type=Path, default=Path.cwd(), metavar="DIR", help="where converter.py put IRs")
    made.add_argument("--dataset_dir", type=Path, metavar="DIR", help="photographs to calibrate with")
    made.add_argument("-o", "--output_dir", type=Path, metavar="DIR", help="where to put IRs; --model_dir by default")
    made.add_argument("--target_device", metavar="DEVICE", help="ignored: one IR serves CPU, GPU and NPU")
    made.add_argument("-p", "--python", metavar="PYTHON", help="ignored: NNCF runs in this Python")
    made.add_argument("--pot", metavar="SCRIPT", help="ignored: NNCF took the place of that toolkit")
    _omz.add_dry_run(made)
    return made


def _work(options: argparse.Namespace) -> int:
    entries = [entry for entry in _omz.select(options) if entry.quantizable]
    if not entries:
        raise NotSupportedError("none of the chosen models is marked quantizable in the zoo")
    return _omz.each(entries, partial(_quantize, options=options), label="quantizer.py")


def _quantize(entry: zoo.ModelEntry, *, options: argparse.Namespace) -> None:
    if entry.embedding is None:
        raise NotSupportedError(
            f"{entry.name}: expected a face embedding model; quantize a detector with 'edgeface quantize --as'"
        )
    for precision in options.precisions or (_MADE,):
        if precision != _MADE:
            raise NotSupportedError(
                f"{entry.name}: expected {_MADE}, found {precision}; what stays in floating point is a thousandth of "
                "the weights, and is kept as it was calibrated"
            )
        source = options.model_dir / entry.subdirectory / "FP32" / f"{entry.name}.xml"
        folder = (options.output_dir or options.model_dir) / entry.subdirectory / precision
        if options.dry_run:
            sys.stdout.write(f"would quantize {source} to {folder / entry.name}.xml\n")
            continue
        if not source.is_file():
            raise ModelNotFoundError(
                f"{source}: expected the FP32 IR, found none; run: tools/converter.py --name {entry.name} "
                f"--precisions FP32 -o {options.model_dir}"
            )
        if options.dataset_dir is None:
            raise InputError("--dataset_dir: expected a folder of photographs to calibrate with, found none")
        sys.stdout.write(f"{_quantize_once(source, folder, options.dataset_dir)}\n")


def _quantize_once(source: Path, folder: Path, photographs: Path) -> Path:
    # these load OpenVINO, which --print_all and --dry_run need not wait for
    from edgeface.quantize import quantize
    from edgeface.vision.load import load_detector

    with load_detector("mtcnn") as detector:
        outcome = quantize(source, folder, photographs, detector=detector)
    if outcome.ir is None:
        raise NegativeResult(f"{source}: refused: {'; '.join(outcome.reasons)}")
    return outcome.ir


if __name__ == "__main__":
    sys.exit(_omz.run(_parser(), _work))
