"""Running the nodes of a graph: each by its operator, what is known beforehand by onnx itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import numpy as np

from relax._errors import UnsupportedOperationError, message
from relax.adapters.onnx._definitions import definition, is_defined
from relax.adapters.onnx._elementwise import ELEMENTWISE
from relax.adapters.onnx._graph import SHAPE_ONLY, Graph, nodes_of
from relax.adapters.onnx._indexing import INDEXING
from relax.adapters.onnx._linear import LINEAR
from relax.adapters.onnx._node import Node, Value, known
from relax.adapters.onnx._norms import NORMS
from relax.adapters.onnx._pools import POOLS
from relax.adapters.onnx._recurrent import RECURRENT
from relax.adapters.onnx._reductions import REDUCTIONS
from relax.adapters.onnx._resize import RESIZE
from relax.adapters.onnx._shapes import SHAPES

OPERATORS: Mapping[str, Callable[..., Value]] = {
    **ELEMENTWISE,
    **LINEAR,
    **POOLS,
    **NORMS,
    **REDUCTIONS,
    **SHAPES,
    **INDEXING,
    **RESIZE,
    **RECURRENT,
}


# What known inputs do not make known. The reference has Softmax as it is since opset 13.
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}
_RANDOM |= {"Bernoulli", "Multinomial"}
_NOT_FOLDED = SHAPE_ONLY | {"Softmax", "LogSoftmax"}


def run(nodes: Sequence[Node], values: MutableMapping[str, Value]) -> None:
    """Adds the outputs of nodes to the values, by name."""
    for node in nodes:
        with _scope(node):
            found = _outputs(node, values)
        found = found if isinstance(found, tuple) else (found,)
        values.update((n, v) for n, v in zip(node.outputs, found, strict=False) if n)


def _scope(node: Node) -> Any:
    """Layers are called as the nodes of the file are."""
    name = node.name.strip("/")
    return jax.named_scope(name) if name else contextlib.nullcontext()


def _outputs(node: Node, values: Mapping[str, Value]) -> Any:
    if node.op == "If":
        return _branch(node, values)
    inputs = [values[name] if name else None for name in node.inputs]
    if node.op not in _NOT_FOLDED and all(_is_known(v) for v in inputs):
        return _folded(node, inputs)
    if node.op in OPERATORS:
        return OPERATORS[node.op](node, *inputs)
    body = definition(node, inputs)
    if body is None:
        raise node.unsupported("has no counterpart in JAX here")
    inner = dict(zip(body.inputs, inputs, strict=False))
    inner |= dict.fromkeys(body.inputs[len(inputs) :])
    run(body.nodes, inner)
    for number, name in enumerate(body.outputs):
        if node.wants(number) and name not in inner:
            raise node.unsupported(f"its output {name} is not defined by other operators")
    return tuple(inner.get(name) for name in body.outputs)


def _is_known(value: Value) -> bool:
    return value is None or isinstance(value, np.ndarray)


def _folded(node: Node, inputs: Sequence[Value]) -> tuple[np.ndarray, ...]:
    """A node whose inputs are known, by the reference implementation of onnx, in numpy."""
    from onnx.reference import ReferenceEvaluator

    feeds = {name: v for name, v in zip(node.inputs, inputs, strict=True) if name}
    try:
        evaluator = ReferenceEvaluator(node.proto, opsets={node.proto.domain: node.opset})
        found = evaluator.run(None, feeds)
    except Exception as error:  # whatever its hundreds of operators raise
        raise node.unsupported(f"onnx cannot compute it beforehand ({error})") from error
    if any(isinstance(value, list) for value in found):
        raise node.unsupported("makes a sequence")
    return tuple(map(np.asarray, found))


def _branch(node: Node, values: Mapping[str, Value]) -> tuple[Value, ...]:
    import onnx

    condition = known(node, values[node.inputs[0]], "which branch it takes")
    graph = node.get("then_branch" if condition.item() else "else_branch")
    inner = dict(values)
    inner |= {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    run(nodes_of(graph.node, node.opset), inner)
    return tuple(inner[output.name] for output in graph.output)


def check(graph: Graph) -> None:
    """Raises for all nodes that cannot be run, before anything is."""
    known_names = set(graph.constants)
    culprits = []
    for node in graph.nodes:
        folds = node.op in SHAPE_ONLY or all(n in known_names for n in node.inputs if n)
        if node.op in _RANDOM:
            culprits.append(node)
        elif folds:
            known_names.update(node.outputs)
        elif node.op not in OPERATORS and node.op != "If" and not is_defined(node):
            culprits.append(node)
    if culprits:
        lines = "\n  ".join(f"{node}" for node in culprits[:10])
        more = f"\n  and {len(culprits) - 10} more" if len(culprits) > 10 else ""
        raise UnsupportedOperationError(
            message(
                f"to_jax: no counterpart in JAX here for\n  {lines}{more}",
                remedy="Give `output=` a value in front of them, or take the function from where "
                "the model was made.",
            )
        )
