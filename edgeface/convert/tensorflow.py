"""Read a TensorFlow model and turn its inference graph into a raw OpenVINO model.

Variables become constants and training is pruned before OpenVINO's TensorFlow frontend sees the graph: the frontend
alone takes several times as long, and leaves conditions in it that compute wrong first results.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert.apart import Converted, convert_apart, import_by_frontend, process_apart
from edgeface.convert.checkpoint import find_checkpoint, read_checkpoint, shard_paths
from edgeface.convert.graphdef import Inference, parse_message, prune
from edgeface.convert.messages import DT_BOOL, DT_FLOAT, SEEDED_MARK, GraphDef, MetaGraphDef, SavedModel
from edgeface.convert.source import (
    SourceModel,
    digest_of_files,
    digest_of_weights,
    read_bytes,
    run_frontend,
    weights_id_of,
)
from edgeface.errors import ConversionError, ModelFormatError
from edgeface.files import output_errors
from edgeface.model.opset import Constant
from edgeface.untrusted import reading

_INPUTS = ("image_batch", "input", "input_1")
_OUTPUT = "embeddings"
_TRAINING_SWITCHES = ("phase_train", "is_training", "keras_learning_phase")
_PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderWithDefault"})


@dataclass(frozen=True, slots=True)
class Ports:
    """Names of a TensorFlow graph's image node, embedding node, and boolean placeholders that training sets."""

    input: str
    output: str
    training: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _GraphSource:
    graph: Any
    variables: Mapping[str, NDArray[Any]]
    sha256: str
    signature: Any = None


def load_tensorflow(path: Path, *, size: tuple[int, int]) -> SourceModel:
    """Read a TensorFlow model (.pb, .meta, checkpoint folder, SavedModel) and keep its inference graph.

    `size` is (height, width) of the images, in pixels.

    Raises ModelFormatError if the file is damaged or no TensorFlow model; ConversionError if it does not have
    one image as input and one embedding as output.
    """
    with process_apart() as process:
        return _load_graph(process, path, _read_source(path), size=size)


def load_graph(graph: Any, *, path: Path, sha256: str, framework: str, size: tuple[int, int]) -> SourceModel:
    """Keep the inference graph of a GraphDef that was made from the weights of another file.

    `path`, `sha256` and `framework` are those of that file. Raises ConversionError as `load_tensorflow`.
    """
    with process_apart() as process:
        return _load_graph(process, path, _GraphSource(graph, {}, sha256), size=size, framework=framework)


def _load_graph(
    process: subprocess.Popen[bytes], path: Path, source: _GraphSource, *, size: tuple[int, int], framework: str = "tf"
) -> SourceModel:
    names = {node.name: node for node in source.graph.node}
    if any("PartitionedCall" in node.op for node in names.values()):
        return _load_functions(process, path, source.sha256, SEEDED_MARK in names, size)
    ports, inference, weights_id = _prune(path, source, size)
    return SourceModel(
        model=_run_frontend(process, inference, path),
        layout="NHWC",
        framework=framework,
        sha256=source.sha256,
        weights_id=weights_id,
        normalized=None,
        seeded=SEEDED_MARK in names,
        input=ports.input,
        output=ports.output,
    )


def _prune(path: Path, source: _GraphSource, size: tuple[int, int]) -> tuple[Ports, Inference, str]:
    """Return the ports, the inference graph and the identity of its weights."""
    names = {node.name: node for node in source.graph.node}
    with reading(path, "the inference graph of a FaceNet", error=ModelFormatError):
        ports = _find_ports(path, names, source.signature)
        _require_size(path, _declared_shape(names.get(ports.input)), size)
        inference = prune(
            source.graph,
            input=ports.input,
            output=ports.output,
            shape=(-1, *size, 3),
            known=dict.fromkeys(ports.training, False),
            variables=source.variables,
            source=str(path),
        )
        return ports, inference, digest_of_weights(inference.arrays(), inference.structure())


def ports_of(path: Path) -> Ports:
    """Find the input and output nodes of a TensorFlow file or folder.

    Raises ModelFormatError, ConversionError as `load_tensorflow`.
    """
    source = _read_source(path)
    return _find_ports(path, {node.name: node for node in source.graph.node}, source.signature)


def checkpoint_of(path: Path) -> tuple[Path, Path] | None:
    """Return the .meta and the checkpoint prefix of a path, or None if it is no checkpoint."""
    if path.suffix == ".meta":
        beside = path.with_suffix("")
        has_same_name = beside.with_name(beside.name + ".index").is_file()
        return path, beside if has_same_name else find_checkpoint(path.parent, stem=path.stem)
    if path.is_dir() and (metas := sorted(path.glob("*.meta"))):
        prefix = find_checkpoint(path)
        return _meta_of(prefix, metas), prefix
    return None


def _read_source(path: Path) -> _GraphSource:
    if path.name == "saved_model.pb" or (path / "saved_model.pb").is_file():
        return _read_saved_model(path if path.is_dir() else path.parent)
    if checkpoint := checkpoint_of(path):
        return _read_checkpoint_source(*checkpoint)
    if path.is_dir():
        frozen = sorted(path.glob("*.pb"))
        if len(frozen) != 1:
            raise ModelFormatError(
                f"{path}: expected a folder with one .pb, a checkpoint's .meta or saved_model.pb, "
                f"found {len(frozen)} .pb files and neither of the others"
            )
        path = frozen[0]
    content = read_bytes(path)
    graph = parse_message(GraphDef, content, path)
    if not graph.node:
        raise ModelFormatError(f"{path}: expected a TensorFlow graph, found one without nodes; is it really a .pb?")
    return _GraphSource(graph, {}, hashlib.sha256(content).hexdigest())


def _meta_of(prefix: Path, metas: Sequence[Path]) -> Path:
    """Return the .meta of a checkpoint; the released FaceNets have model-X.meta and model-X.ckpt-90."""
    same = [meta for meta in metas if prefix.name.startswith(meta.stem)]
    if not same:
        raise ModelFormatError(
            f"{prefix.parent}: expected the .meta of {prefix.name}, found {', '.join(each.name for each in metas)}"
        )
    return max(same, key=lambda meta: len(meta.stem))


def _read_checkpoint_source(meta: Path, prefix: Path) -> _GraphSource:
    graph = parse_message(MetaGraphDef, read_bytes(meta), meta).graph_def
    if not graph.node:
        raise ModelFormatError(f"{meta}: expected a TensorFlow MetaGraphDef, found one without nodes")
    return _GraphSource(graph, read_checkpoint(prefix), digest_of_files([meta, *shard_paths(prefix)]))


def _read_saved_model(folder: Path) -> _GraphSource:
    path = folder / "saved_model.pb"
    saved = parse_message(SavedModel, read_bytes(path), path)
    if len(saved.meta_graphs) < 1:
        raise ModelFormatError(f"{path}: expected a SavedModel with a graph, found no graph")
    meta = saved.meta_graphs[0]
    prefix = folder / "variables" / "variables"
    has_variables = prefix.with_name("variables.index").is_file()
    files = [path, *(shard_paths(prefix) if has_variables else [])]
    signature = meta.signature_def.get("serving_default")
    return _GraphSource(
        meta.graph_def, read_checkpoint(prefix) if has_variables else {}, digest_of_files(files), signature
    )


def _find_ports(path: Path, names: Mapping[str, Any], signature: Any) -> Ports:
    """Find the image and embedding nodes: the signature's, else FaceNet's."""
    training = tuple(name for name in _TRAINING_SWITCHES if _is_placeholder(names.get(name), DT_BOOL))
    if signature is not None and len(signature.inputs) == 1 and len(signature.outputs) == 1:
        (image,), (embedding,) = signature.inputs.values(), signature.outputs.values()
        return Ports(image.name.partition(":")[0], embedding.name.partition(":")[0], training)
    if _OUTPUT not in names:
        raise ConversionError(
            f"{path}: expected a FaceNet graph with a node {_OUTPUT!r}, found {len(names)} nodes without one; "
            "this is another model, or the file is truncated"
        )
    images = [name for name in _INPUTS if name in names][:1]
    images = images or [node.name for node in names.values() if _is_placeholder(node, DT_FLOAT)]
    if len(images) != 1:
        raise ConversionError(
            f"{path}: expected an input named {' or '.join(_INPUTS)}, or a single image placeholder; "
            f"found the placeholders {images}"
        )
    return Ports(images[0], _OUTPUT, training)


def _is_placeholder(node: Any, dtype: int) -> bool:
    return node is not None and node.op in _PLACEHOLDERS and node.attr["dtype"].type == dtype


def _run_frontend(process: subprocess.Popen[bytes], inference: Inference, path: Path) -> ov.Model:
    folder = Path(tempfile.tempdir or os.environ.get("TMPDIR", "/tmp"))
    with (
        output_errors(folder, hint=" for temporary files through TMPDIR"),
        tempfile.TemporaryDirectory(prefix="edgeface-") as temporary,
    ):
        file = Path(temporary, "graph.pb")
        file.write_bytes(inference.graph.SerializeToString())
        model, _ = convert_apart(process, import_by_frontend, "tf", file, path, path=path, size=file.stat().st_size)
    _put_weights_in(model, inference.weights)
    return model


def _put_weights_in(model: ov.Model, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Replace the parameters that stand for weights by constants, transposed on the way where they are.

    OpenVINO would transpose FaceNet's kernels itself, and copy its constants, at a second each.
    """
    for parameter in model.get_parameters():
        value = weights.get(parameter.get_friendly_name().removesuffix(":0"))
        if value is None:
            continue
        for consumer in parameter.output(0).get_target_inputs():
            node = consumer.get_node()
            order = node.input_value(1).get_node() if node.get_type_name() == "Transpose" else None
            if order is not None and order.get_type_name() == "Constant":
                constant = _shared_constant(value.transpose(order.data))
                for user in node.output(0).get_target_inputs():
                    user.replace_source_output(constant.output(0))
            else:
                consumer.replace_source_output(_shared_constant(value).output(0))
        model.remove_parameter(parameter)


def _shared_constant(value: NDArray[np.float32]) -> Any:
    """A constant over a copy of its own, as sharing memory needs a contiguous array that may be written to."""
    return Constant(np.array(value, order="C"), shared_memory=True)


def _declared_shape(node: Any) -> list[int]:
    """Return a placeholder's declared shape, -1 where it is dynamic; empty for any other node."""
    if node is None or node.op not in _PLACEHOLDERS or "shape" not in node.attr:
        return []
    return [dim.size for dim in node.attr["shape"].shape.dim]


def _require_size(path: Path, declared: Sequence[int], size: tuple[int, int]) -> None:
    """Refuse a model for images of another size; a network without dense layers would run and be wrong."""
    wanted = (*size, 3)
    if len(declared) == 4 and any(a not in (-1, b) for a, b in zip(declared[1:], wanted, strict=True)):
        found, expected = (" x ".join(map(str, shape)) for shape in (declared[1:], wanted))
        raise ConversionError(
            f"{path}: expected a model of {expected} images, found one of {found}; "
            "pass --name with the zoo model that has the same preprocessing"
        )


def _load_functions(
    process: subprocess.Popen[bytes], path: Path, sha256: str, seeded: bool, size: tuple[int, int]
) -> SourceModel:
    """A TensorFlow 2 SavedModel keeps its network in functions, which the frontend inlines itself."""
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    model, found = convert_apart(
        process, _convert_functions, path, size, path=path, size=sum(each.stat().st_size for each in files)
    )
    return SourceModel(
        model=model, layout="NHWC", framework="tf", sha256=sha256, normalized=None, seeded=seeded, **found
    )


def _convert_functions(path: Path, size: tuple[int, int]) -> Converted:
    model = run_frontend("tf", path.parent if path.name == "saved_model.pb" else path, path)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ConversionError(
            f"{path}: expected a SavedModel with one input and one output, "
            f"found {len(model.inputs)} and {len(model.outputs)}"
        )
    shape = model.input(0).get_partial_shape()
    axes = [] if shape.rank.is_dynamic else list(shape)
    _require_size(path, [-1 if axis.is_dynamic else axis.get_length() for axis in axes], size)
    names = [port.get_any_name() if port.get_names() else "" for port in (model.input(0), model.output(0))]
    weights_id = weights_id_of(model)
    return model, {"weights_id": weights_id, "input": names[0] or _INPUTS[0], "output": names[1] or _OUTPUT}
