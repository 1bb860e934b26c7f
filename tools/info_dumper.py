#!/usr/bin/env python3
"""Describe models as JSON, with Open Model Zoo's flags and keys."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import _omz

from edgeface import zoo
from edgeface.zoo.catalog import default_catalog_path


def _work(options: argparse.Namespace) -> int:
    sys.stdout.write(json.dumps([_info(entry) for entry in _omz.select(options)], indent=4) + "\n")
    return 0


def _info(entry: zoo.ModelEntry) -> dict[str, Any]:
    inputs = [{"name": tensor.name, "shape": tensor.shape, "layout": tensor.layout} for tensor in entry.input_info]
    return {
        "name": entry.name,
        "composite_model_name": None,
        "description": entry.description,
        "framework": entry.framework,
        "license_url": entry.license,
        "accuracy_config": None,
        "model_config": str(default_catalog_path()),
        "precisions": list(entry.precisions),
        "quantization_output_precisions": ["FP16-INT8", "FP32-INT8"] if entry.quantizable else [],
        "subdirectory": entry.subdirectory,
        "task_type": entry.task_type,
        "input_info": inputs,
        "model_stages": [],
    }


if __name__ == "__main__":
    sys.exit(_omz.run(_omz.parser("Describe models as JSON.", "describe"), _work))
