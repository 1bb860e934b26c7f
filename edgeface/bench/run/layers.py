"""The runtime's layers and the model's work in, what each layer did and how long all must take at least out."""

from __future__ import annotations

from collections.abc import Sequence

from edgeface.bench.machine.peak import Peak
from edgeface.bench.run.executed import ExecutedLayer, assign_work
from edgeface.bench.schema import Layer
from edgeface.model.flops import Work

__all__ = ["attainable_seconds", "describe_layers", "has_eight_bit"]

_EIGHT_BIT = ("i8", "u8")


def describe_layers(executed: Sequence[ExecutedLayer], work: Work, *, inferences: int) -> tuple[Layer, ...]:
    """Give every executed layer the operations of what was fused into it.

    Parameters
    ----------
    executed
        As `edgeface.bench.run.executed.time_layers` found them.
    work
        Of the same model.
    inferences
        That the times are medians of.
    """
    given, _ = assign_work(work, executed)
    return tuple(
        Layer(
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
    """Whether products were made in 8 bits."""
    given, _ = assign_work(work, executed)
    return any(
        layer.precision in _EIGHT_BIT and any(part.macs for part in parts)
        for layer, parts in zip(executed, given, strict=True)
    )


def attainable_seconds(
    work: Work, peak: Peak, executed: Sequence[ExecutedLayer] = (), *, precision: str | None
) -> float | None:
    """Seconds that the model's products take at least, each at the peak of the precision that it executes in.

    Parameters
    ----------
    work, peak
        Of the model and of the machine.
    executed
        Tell the precision of each product; without them 8-bit ones are where the model asks for them.
    precision
        Of all products that nothing is known of.

    Returns
    -------
    float or None
        For one inference; None: the peak of a precision that is needed is not known.
    """
    given, _ = assign_work(work, executed)
    known = {
        part.name: layer.precision for layer, parts in zip(executed, given, strict=True) for part in parts
    }
    seconds = 0.0
    for layer in work.layers:
        if not layer.macs:
            continue
        found = known.get(layer.name) or ("i8" if layer.int8 and not executed else precision or "f32")
        attained = peak.gflops_per_second("i8" if found in _EIGHT_BIT else found)
        if attained is None:
            return None
        seconds += layer.flops_mac2 / (attained * 1e9)
    return seconds or None
