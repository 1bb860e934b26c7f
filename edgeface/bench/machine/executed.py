"""Read which layers a compiled model executes, how long each takes, and which operations it computes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

import openvino as ov

from edgeface.bench.reading import Reading, Unknown
from edgeface.bench.schema import LayerTiming
from edgeface.errors import InputError
from edgeface.model.flops import LayerWork, Work

EIGHT_BIT = ("i8", "u8")
_CONSTANT = ("Const", "Constant")
_ENDS = ("Input", "Parameter", "Output", "Result")
_WARM_UP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutedLayer:
    """One operation of the runtime."""

    # The runtime's names
    name: str
    kind: str
    # Names of the model's operations that it computes; empty for a layout change that the runtime added
    operations: tuple[str, ...]
    precision: str  # Inference precision: ``f32``, ``u8``; empty where the plugin does not tell
    kernel: str  # The runtime's name of the implementation: ``brgconv_avx2_f32``
    bytes: int  # Weights, inputs and outputs in the types that the runtime stores them in
    weight_bytes: int  # The constant part of them
    milliseconds: float = 0.0  # Median over the measured inferences; 0 where it was not measured or takes no time


def executed_layers(compiled: ov.CompiledModel) -> Reading[tuple[ExecutedLayer, ...]]:
    """Read the runtime's own graph: its layers in order of execution, without inputs, constants and outputs.

    Dynamic shapes count no bytes. Return the reason if the plugin shows no graph.
    """
    try:
        nodes = compiled.get_runtime_model().get_ordered_ops()
    except RuntimeError as error:
        return Unknown(unknown=f"the plugin shows no executed graph: {str(error).strip().splitlines()[-1]}")
    layers = []
    constant: set[str] = set()
    for node in nodes:
        info = {key: _text(value) for key, value in node.get_rt_info().items()}
        kind = info.get("layerType", node.get_type_name())
        sources = [port.get_source_output().get_node().get_name() for port in node.inputs()]
        if kind in _CONSTANT or (sources and constant.issuperset(sources)):
            constant.add(node.get_name())
            continue
        if kind in _ENDS:
            continue
        weights = sum(_stored(port) for port, name in zip(node.inputs(), sources, strict=True) if name in constant)
        layers.append(
            ExecutedLayer(
                name=node.get_friendly_name(),
                kind=kind,
                operations=tuple(filter(None, info.get("originalLayersNames", "").split(","))),
                precision=info.get("runtimePrecision", "").lower(),
                kernel=info.get("primitiveType", ""),
                bytes=sum(_stored(port) for port in (*node.inputs(), *node.outputs())),
                weight_bytes=weights,
            )
        )
    return tuple(layers)


def time_layers(
    compiled: ov.CompiledModel, inputs: Sequence[Any], *, inferences: int = 20
) -> Reading[tuple[ExecutedLayer, ...]]:
    """Time every executed layer: medians of `inferences`, one at a time; OpenVINO reports whole microseconds.

    The model has static shapes and was compiled with ``{"PERF_COUNT": True}``; `inputs` are one array per input, in
    their order. InputError is raised if it was compiled without PERF_COUNT, or `inferences` is not positive.
    """
    if inferences < 1:
        raise InputError(f"inferences must be 1 or more, not {inferences}")
    layers = executed_layers(compiled)
    if isinstance(layers, Unknown):
        return layers
    request = compiled.create_infer_request()
    times: dict[str, list[float]] = {}
    for run in range(_WARM_UP + inferences):
        request.infer(inputs if run == 0 else None)
        for layer in _profile(request) if run >= _WARM_UP else ():
            if layer.status.name == "EXECUTED":
                times.setdefault(layer.node_name, []).append(layer.real_time.total_seconds() * 1e3)
    if not any(map(sum, times.values())):
        raise InputError("this compiled model reports no times; compile it with {'PERF_COUNT': True}")
    return tuple(
        replace(layer, milliseconds=statistics.median(times[layer.name])) if layer.name in times else layer
        for layer in layers
    )


def assign_work(
    work: Work, executed: Sequence[ExecutedLayer]
) -> tuple[tuple[tuple[LayerWork, ...], ...], tuple[str, ...]]:
    """Find the executed layer that computes each of the model's operations.

    It is the executed layer that names the operation as its own; where the runtime split an operation, the part
    that takes longest. An operation without multiplications that no layer names was fused into its input, as the
    ReLUs of 8-bit models are. Return the operations of each executed layer, in its order, and the names of
    operations with work that belong to none.
    """
    homes: dict[str, int] = {}
    for index, layer in enumerate(executed):
        for name in layer.operations:
            if name not in homes or layer.milliseconds > executed[homes[name]].milliseconds:
                homes[name] = index
    given: list[list[LayerWork]] = [[] for _ in executed]
    unmatched = []
    for part in work.layers:
        home = homes.get(part.name)
        if home is None and not part.macs and part.inputs:
            home = homes.get(part.inputs[0])
        if home is not None:
            homes[part.name] = home
            given[home].append(part)
        elif part.flops_omz:
            unmatched.append(part.name)
    return tuple(map(tuple, given)), tuple(unmatched)


def describe_layers(executed: Sequence[ExecutedLayer], work: Work, *, inferences: int) -> tuple[LayerTiming, ...]:
    """Build the result's layers from executed layers, timed over `inferences`, and the work of the same model."""
    given, _ = assign_work(work, executed)
    return tuple(
        LayerTiming(
            name=layer.name,
            kind=layer.kind,
            exec_type=layer.kernel,
            ms=layer.milliseconds,
            count=inferences,
            gflops=sum(part.flops_omz for part in parts) / 1e9 if layer.operations else None,
            bytes=layer.bytes,
            precision=layer.precision or None,
        )
        for layer, parts in zip(executed, given, strict=True)
    )


def has_eight_bit(executed: Sequence[ExecutedLayer], work: Work) -> bool:
    """Whether a layer with multiplications executed in 8 bits."""
    given, _ = assign_work(work, executed)
    return any(
        part.macs
        for layer, parts in zip(executed, given, strict=True)
        if layer.precision in EIGHT_BIT
        for part in parts
    )


def _profile(request: ov.InferRequest) -> list[Any]:
    """Return the profile of the last inference; some plugins refuse, and some report zeros, without PERF_COUNT."""
    try:
        return list(request.get_profiling_info())
    except RuntimeError:
        return []


def _text(value: Any) -> str:
    """Return a value of rt_info, which 2024 and 2026 wrap differently."""
    return str(value.astype(str)) if hasattr(value, "astype") else str(getattr(value, "value", value))


def _stored(port: Any) -> int:
    shape = port.get_partial_shape()
    if shape.is_dynamic:
        return 0
    bits: int = prod(shape.to_shape()) * port.get_element_type().bitwidth
    return ceil(bits / 8)
