"""Pruning by meaning, on graphs small enough to check by eye."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_graphs import Graph

from edgeface.convert.graphdef import Inference, prune
from edgeface.convert.messages import DT_BOOL, DT_FLOAT, tensor_to_array
from edgeface.errors import ConversionError


def prune_graph(graph: Graph, **known: bool) -> Inference:
    return prune(
        graph.message,
        input="image_batch",
        output="embeddings",
        shape=(-1, 160, 160, 3),
        known=known or {"phase_train": False},
        variables={},
        source="tiny.pb",
    )


def nodes_of(inference: Inference) -> dict[str, list[str]]:
    return {node.name: list(node.input) for node in inference.graph.node}


def add(graph: Graph, name: str, x: str, y: str) -> str:
    return graph.node(name, "Add", x, y, T=DT_FLOAT)


def cond(graph: Graph, scope: str, predicate: str) -> tuple[str, str]:
    """Tf.cond's scaffold: the control inputs that tie a constant to the true and to the false branch."""
    graph.node(f"{scope}/Switch", "Switch", predicate, predicate, T=DT_BOOL)
    when_true = graph.node(f"{scope}/switch_t", "Identity", f"{scope}/Switch:1", T=DT_BOOL)
    when_false = graph.node(f"{scope}/switch_f", "Identity", f"{scope}/Switch", T=DT_BOOL)
    return f"^{when_true}", f"^{when_false}"


def branches(graph: Graph, scope: str, predicate: str, x: str) -> str:
    """`cond(predicate, x + 1, x + 2)`; the constants are tied to their branches by control inputs alone."""
    when_true, when_false = cond(graph, scope, predicate)
    graph.node(f"{scope}/x", "Switch", x, predicate, T=DT_FLOAT)
    one = graph.constant(f"{scope}/one", np.float32(1), when_true)
    two = graph.constant(f"{scope}/two", np.float32(2), when_false)
    return graph.node(
        f"{scope}/Merge",
        "Merge",
        add(graph, f"{scope}/add_two", f"{scope}/x", two),
        add(graph, f"{scope}/add_one", f"{scope}/x:1", one),
        T=DT_FLOAT,
    )


@pytest.mark.parametrize(("value", "kept"), [(False, "two"), (True, "one")])
def test_only_the_branch_of_the_known_condition_stays(value: bool, kept: str) -> None:
    graph = Graph()
    merged = branches(graph, "cond", graph.phase_train(), graph.image())
    add(graph, "embeddings", merged, merged)

    pruned = nodes_of(prune_graph(graph, phase_train=value))

    add_kept = f"cond/add_{kept}"
    assert pruned == {
        "image_batch": [],
        f"cond/{kept}": [],
        add_kept: ["image_batch", f"cond/{kept}"],
        "embeddings": [add_kept, add_kept],
    }


@pytest.mark.parametrize(("value", "kept"), [(False, "five"), (True, "two")])
@pytest.mark.parametrize("negated", [False, True])
def test_branches_of_constants_alone_are_told_apart_by_their_control_inputs(
    value: bool, kept: str, negated: bool
) -> None:
    graph = Graph()
    predicate = graph.phase_train()
    if negated:
        predicate = graph.node("not", "LogicalNot", predicate)
    when_true, when_false = cond(graph, "cond", predicate)
    two = graph.constant("two", np.float32(2), when_true)
    five = graph.constant("five", np.float32(5), when_false)
    add(graph, "embeddings", graph.image(), graph.node("merge", "Merge", five, two, T=DT_FLOAT))

    pruned = nodes_of(prune_graph(graph, phase_train=value != negated))

    assert pruned["embeddings"] == ["image_batch", kept]


def test_a_condition_inside_a_condition_is_resolved_too() -> None:
    graph = Graph()
    image, phase = graph.image(), graph.phase_train()
    graph.node("outer/x", "Switch", image, phase, T=DT_FLOAT)
    graph.node("outer/p", "Switch", phase, phase, T=DT_BOOL)
    inner = branches(graph, "outer/inner", "outer/p", "outer/x")
    dead = add(graph, "dead", "outer/x:1", "outer/x:1")
    add(graph, "embeddings", graph.node("outer/Merge", "Merge", inner, dead, T=DT_FLOAT), image)

    pruned = nodes_of(prune_graph(graph))

    assert set(pruned) == {"image_batch", "outer/inner/two", "outer/inner/add_two", "embeddings"}


def test_a_condition_on_a_constant_needs_no_placeholder() -> None:
    graph = Graph()
    merged = branches(graph, "cond", graph.constant("phase_train", np.array(True)), graph.image())
    add(graph, "embeddings", merged, merged)

    pruned = nodes_of(prune_graph(graph, other=False))

    assert "cond/add_one" in pruned
    assert "cond/add_two" not in pruned


def test_what_only_training_needs_may_be_absent_from_the_file() -> None:
    graph = Graph()
    image, phase = graph.image(), graph.phase_train()
    graph.node("loss/x", "Switch", "no/such/node", phase, T=DT_FLOAT)
    merged = graph.node("merge", "Merge", image, add(graph, "training", "loss/x:1", image), T=DT_FLOAT)
    add(graph, "embeddings", merged, merged)

    assert set(nodes_of(prune_graph(graph))) == {"image_batch", "embeddings"}


def test_control_inputs_on_training_do_not_reach_the_inference_graph() -> None:
    graph = Graph()
    image = graph.image()
    graph.node("update", "AssignSub", "no/such/variable", image, T=DT_FLOAT)
    graph.node("embeddings", "Relu", image, "^update", T=DT_FLOAT)

    assert nodes_of(prune_graph(graph)) == {"image_batch": [], "embeddings": ["image_batch"]}


def test_the_input_becomes_a_placeholder_whatever_computed_it() -> None:
    graph = Graph()
    graph.node("queue", "FIFOQueueV2")
    graph.node("dequeue", "QueueDequeueUpToV2", "queue", "batch_size")
    graph.node("image_batch", "Identity", "dequeue", T=DT_FLOAT)
    graph.node("embeddings", "Relu", "image_batch", T=DT_FLOAT)

    (placeholder, _) = prune_graph(graph).graph.node

    assert placeholder.op == "Placeholder"
    assert [dim.size for dim in placeholder.attr["shape"].shape.dim] == [-1, 160, 160, 3]


def test_a_graph_deeper_than_pythons_stack_is_pruned() -> None:
    graph = Graph()
    name = graph.image()
    for index in range(5000):
        name = graph.node(f"relu_{index}", "Relu", name, T=DT_FLOAT)
    graph.node("embeddings", "Relu", name, T=DT_FLOAT)

    assert len(nodes_of(prune_graph(graph))) == 5002


def test_variables_become_the_constants_of_the_checkpoint() -> None:
    graph = Graph()
    graph.node("w", "VarHandleOp", dtype=DT_FLOAT, shape=(3,), shared_name=b"scope/w")
    add(graph, "embeddings", graph.image(), graph.node("w/read", "ReadVariableOp", "w", dtype=DT_FLOAT))
    value = np.arange(3, dtype=np.float32)

    inference = prune(
        graph.message,
        input="image_batch",
        output="embeddings",
        shape=(-1, 8, 8, 3),
        known={},
        variables={"scope/w": value},
        source="tiny",
    )

    (constant,) = (node for node in inference.graph.node if node.op == "Const")
    np.testing.assert_array_equal(tensor_to_array(constant.attr["value"].tensor), value)


# --- what is refused --------------------------------------------------------------------------------------------


def refused(graph: Graph, **known: bool) -> str:
    with pytest.raises(ConversionError) as caught:
        prune_graph(graph, **known)
    message = str(caught.value)
    assert message.startswith("tiny.pb: ")
    assert "\n" not in message
    return message


def test_a_condition_that_is_not_known_is_named() -> None:
    graph = Graph()
    merged = branches(graph, "cond", graph.placeholder("mystery", DT_BOOL), graph.image())
    add(graph, "embeddings", merged, merged)

    assert "'mystery'" in refused(graph)


def test_a_missing_node_is_named() -> None:
    graph = Graph()
    add(graph, "embeddings", graph.image(), "no/such/node")

    assert "'no/such/node', which it does not contain" in refused(graph)


def test_a_loop_is_named() -> None:
    graph = Graph()
    graph.node("merge", "Merge", graph.image(), "next", T=DT_FLOAT)
    graph.node("next", "NextIteration", "merge", T=DT_FLOAT)
    graph.node("embeddings", "Relu", "merge", T=DT_FLOAT)

    assert "a cycle through 'merge'" in refused(graph)


def test_a_second_placeholder_is_named() -> None:
    graph = Graph()
    add(graph, "embeddings", graph.image(), graph.placeholder("keep_probability"))

    assert "Placeholder 'keep_probability'" in refused(graph)


@pytest.mark.parametrize("attributes", [{"is_training": True}, {}], ids=["said", "by-default"])
def test_a_batch_norm_in_training_mode_is_named(attributes: dict[str, bool]) -> None:
    # TensorFlow leaves out attributes that have their defaults, and is_training is true by default.
    graph = Graph()
    ones = graph.constant("ones", np.ones(3, np.float32))
    graph.node("embeddings", "FusedBatchNormV3", graph.image(), ones, ones, ones, ones, T=DT_FLOAT, **attributes)

    assert "batch norm 'embeddings' is in training mode" in refused(graph)


def test_an_output_of_training_alone_is_refused() -> None:
    graph = Graph()
    graph.node("x", "Switch", graph.image(), graph.phase_train(), T=DT_FLOAT)
    graph.node("embeddings", "Relu", "x:1", T=DT_FLOAT)

    assert "only computed while training" in refused(graph)


def test_an_output_that_does_not_depend_on_the_image_is_refused() -> None:
    graph = Graph()
    graph.image()
    graph.constant("embeddings", np.ones((1, 4), np.float32))

    assert "does not depend on 'image_batch'" in refused(graph)


def test_a_merge_of_two_live_inputs_is_refused_rather_than_guessed() -> None:
    graph = Graph()
    image = graph.image()
    merged = graph.node("merge", "Merge", image, add(graph, "twice", image, image), T=DT_FLOAT)
    graph.node("embeddings", "Relu", merged, T=DT_FLOAT)

    assert "one live input of Merge 'merge'" in refused(graph)


def test_a_variable_without_value_is_named() -> None:
    graph = Graph()
    add(graph, "embeddings", graph.image(), graph.node("w", "VariableV2", dtype=DT_FLOAT, shape=(3,)))

    assert "variable 'w' has no value; expected a frozen graph" in refused(graph)
