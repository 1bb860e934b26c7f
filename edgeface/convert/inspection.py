"""Describe an IR: its contract, work and files, or what `edgeface adopt` needs to know where it has no contract."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from edgeface.convert.adoption import fitting_layouts
from edgeface.convert.ir import embedding_axis
from edgeface.convert.parity import draw_faces, embed_with_ir, fingerprint_of
from edgeface.errors import InputError
from edgeface.model.contract import ModelContract
from edgeface.model.flops import Work, count_work
from edgeface.model.ir_file import any_contract_of, check_weights, read_ir
from edgeface.model.liveness_contract import LivenessContract
from edgeface.model.stored import RT_INFO_KEY
from edgeface.zoo.catalog import Catalog, load_catalog


@dataclass(frozen=True, slots=True)
class AdoptionNeeds:
    """What `edgeface adopt` has to be told about an IR, or why it cannot take it.

    Attributes
    ----------
    problems
        Why the IR is no model of one image and one embedding; empty if it is.
    options
        Options that have to be given, with their possible values.
    names
        Zoo models of this size and embedding length. If it is one of them, ``--name`` replaces the options, with
        ``--golden`` where the zoo knows no fingerprint of the model.
    """

    problems: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Description of an IR.

    Attributes
    ----------
    contract, adoption
        The contract, or what adopting the IR needs: one of them is None.
    inputs, outputs
        Shape and type of each, by name.
    work
        Of one face; None where a height or width is dynamic.
    """

    ir: Path
    contract: ModelContract | LivenessContract | None
    adoption: AdoptionNeeds | None
    inputs: dict[str, str]
    outputs: dict[str, str]
    work: Work | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface inspect`.

        It runs an embedding model: ``fingerprint`` is what a zoo entry holds to recognise its weights.
        """
        contract, needs, work = self.contract, self.adoption, self.work
        rows = None
        if isinstance(contract, ModelContract):
            rows = fingerprint_of(embed_with_ir(self.ir, draw_faces(contract.input_size))).ravel()
        return {
            "contract": contract and {"contract_id": contract.contract_id, **contract.to_dict()},
            "inputs": self.inputs,
            "outputs": self.outputs,
            "gflops": work and {"mac2": work.gflops_mac2, "omz": work.gflops_omz},
            "mparams": work and {"folded": work.mparams_folded, "omz": work.mparams_omz},
            "bytes": {"xml": self.ir.stat().st_size, "bin": self.ir.with_suffix(".bin").stat().st_size},
            "fingerprint": None if rows is None else [round(float(number), 7) for number in rows],
            "adopt": needs and {name: list(getattr(needs, name)) for name in ("problems", "options", "names")},
            "openvino": ov.get_version(),
        }


def inspect_ir(ir: Path, *, catalog: Catalog | None = None) -> Inspection:
    """Describe an IR (.xml), with a contract or without.

    Raises
    ------
    ModelFormatError
        If it is no readable IR, or its weights are not those of its contract.
    ContractError
        If its contract is damaged or of a newer version.
    """
    model = read_ir(ir)
    contract = None
    if model.has_rt_info([RT_INFO_KEY, "contract_version"]):
        contract = any_contract_of(model, ir.read_bytes(), source=str(ir))
        check_weights(ir, contract)
    work = None
    with contextlib.suppress(InputError):
        work = count_work(model)
    inputs, outputs = (
        {_name(port): f"{port.get_partial_shape()} {port.get_element_type().to_string()}" for port in ports}
        for ports in (model.inputs, model.outputs)
    )
    needs = None if contract else explain_adoption(model, catalog or load_catalog())
    return Inspection(ir=ir, contract=contract, adoption=needs, inputs=inputs, outputs=outputs, work=work)


def explain_adoption(model: ov.Model, catalog: Catalog) -> AdoptionNeeds:
    """Say what `edgeface.convert.adopt` has to be told about a model without a contract."""
    image = model.input(0).get_partial_shape() if len(model.inputs) == 1 else ov.PartialShape([])
    outputs = [port.get_partial_shape() for port in model.outputs]
    lengths = [shape[axis] for shape in outputs if (axis := embedding_axis(shape)) and shape[axis].is_static]
    layouts = fitting_layouts(image)
    problems = []
    if not layouts:
        found = ", ".join(str(port.get_partial_shape()) for port in model.inputs)
        problems.append(f"expected one input, an image of three channels, found {found or 'none'}")
    if not lengths:
        problems.append(f"expected an output of (batch, embedding), found {', '.join(map(str, outputs)) or 'none'}")
    if problems:
        return AdoptionNeeds(tuple(problems))
    options = ["--color RGB|BGR", "--mean X|X,X,X", "--scale X|X,X,X", "--alignment RECIPE[:MARGIN]"]
    if len(outputs) > 1:
        options.append(f"--output {'|'.join(map(_name, model.outputs))}")
    if len(layouts) > 1:
        options.append("--layout NCHW|NHWC")
    if any(axis.is_dynamic for axis in list(image)[1:]):
        options.append("--size N|HxW")
    names = []
    for entry in catalog.values():
        if entry.preprocessing is None or entry.embedding is None or entry.preprocessing.size is None:
            continue
        height, width = entry.preprocessing.size
        sides = [[3, height, width] if layout == "NCHW" else [height, width, 3] for layout in layouts]
        fits = any(ov.PartialShape([-1, *each]).compatible(image) for each in sides)
        if fits and any(length.get_length() == entry.embedding.dim for length in lengths):
            names.append(entry.name)
    return AdoptionNeeds(options=tuple(options), names=tuple(names))


def _name(port: Any) -> str:
    return min(port.get_names(), default=str(port.get_node().get_friendly_name()))
