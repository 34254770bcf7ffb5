"""The graph of a model as plain data: what is needed for an output, what of it are parameters."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from relax._errors import ArgumentError
from relax.adapters.onnx._load import opset_of
from relax.adapters.onnx._node import Node, dtype_of, is_floating

# Inputs that have to be known before anything runs, if they are floating: sizes and exponents.
_KNOWN = {"Resize": (1, 2, 3), "Upsample": (1,), "Pow": (1,), "OneHot": (1, 2), "Range": (0, 1, 2)}
# What needs no values of its inputs, only shapes.
SHAPE_ONLY = {"Shape", "Size"}


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of the model.

    Attributes:
      name: its name.
      element_type: of ONNX.
      shape: a number, a name or None for each axis; None if the file does not say.
    """

    name: str
    element_type: int
    shape: tuple[int | str | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Graph:
    """What is needed for some values of a model.

    Attributes:
      inputs: of the model, all of them.
      outputs: names of the values that are asked for.
      nodes: in order; no others are needed.
      constants: tensors that are no parameters, by name.
      parameters: the weights, by name.
      spare: names of tensors that the outputs do not need.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    parameters: Mapping[str, np.ndarray]
    spare: frozenset[str]


def read(proto: Any, outputs: Sequence[str] | None) -> Graph:
    """The graph of a model, as far as the outputs need it; None for its own outputs."""
    import onnx

    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes = []
    for node in nodes_of(proto.graph.node, opset_of(proto)):
        if node.op == "Constant":
            tensors[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    inputs = tuple(_input(i) for i in proto.graph.input if i.name not in tensors)
    own = tuple(o.name for o in proto.graph.output)
    asked = own if outputs is None else tuple(outputs)
    made = {o for n in nodes for o in n.outputs if o} | {i.name for i in inputs} | set(tensors)
    asked = tuple(_spelled(name, made) for name in asked)
    for name in asked:
        if name not in made:
            raise _no_such_value(name, made, own)
    needed = _needed(nodes, asked)
    used = set(asked).union(*(free_names(node) for node in needed))
    known = _known_beforehand(needed)
    parameters = {
        name: tensor
        for name, tensor in tensors.items()
        if name in used
        and name not in known
        and tensor.ndim
        and is_floating(onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype))
    }
    constants = {n: t for n, t in tensors.items() if n in used and n not in parameters}
    return Graph(inputs, asked, tuple(needed), constants, parameters, frozenset(tensors) - used)


_SPELLINGS = {"logit": "logits", "logits": "logit"}


def _spelled(name: str, made: Collection[str]) -> str:
    """The name of a value; of logits in the singular if the file has it, and not the plural."""
    other = _SPELLINGS.get(name, name)
    return other if name not in made and other in made else name


def _no_such_value(name: str, made: Collection[str], own: Sequence[str]) -> ArgumentError:
    near = difflib.get_close_matches(name, made, 3, 0.4) or own
    advice = "The names are those of the file; relax.logits(f) is f in front of its softmax."
    return ArgumentError(
        f"to_jax(output={name!r}): the model has no such value; "
        f"did you mean {' or '.join(f'`{n}`' for n in near)}?"
        + (f"\n  {advice}" if name in _SPELLINGS else "")
    )


def nodes_of(protos: Iterable[Any], opset: int) -> list[Node]:
    """Nodes with their attributes read."""
    import onnx

    nodes = []
    for proto in protos:
        attributes = {}
        for attribute in proto.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            if isinstance(value, bytes):
                value = value.decode()
            elif isinstance(value, onnx.TensorProto):
                value = onnx.numpy_helper.to_array(value)
            elif attribute.type == onnx.AttributeProto.STRINGS:
                value = [v.decode() for v in value]
            attributes[attribute.name] = value
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        op = f"{domain}::{proto.op_type}" if domain else proto.op_type
        inputs, outputs = tuple(proto.input), tuple(proto.output)
        nodes.append(Node(op, opset, proto.name, inputs, outputs, attributes, proto))
    return nodes


def free_names(node: Node) -> set[str]:
    """Values that a node reads, those that its branches take from around it as well."""
    import onnx

    names = {name for name in node.inputs if name}
    for value in node.attributes.values():
        if isinstance(value, onnx.GraphProto):
            inner = {name for n in nodes_of(value.node, node.opset) for name in free_names(n)}
            names |= inner | {output.name for output in value.output}
            names -= {o for n in value.node for o in n.output}
            names -= {t.name for t in value.initializer}
    return names


def _constant(node: Node) -> np.ndarray:
    kinds = {
        "value": None,
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    for name, dtype in kinds.items():
        if name in node.attributes:
            return np.asarray(node.attributes[name], dtype)
    raise node.unsupported(f"a constant of kind {', '.join(node.attributes)}")


def _input(value: Any) -> Input:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ArgumentError(f"to_jax: input `{value.name}` of the model is no tensor.")
    dtype_of(tensor.elem_type, f"to_jax: input `{value.name}` of the model")
    if not tensor.HasField("shape"):
        return Input(value.name, tensor.elem_type, None)
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim
    )
    return Input(value.name, tensor.elem_type, shape)


def _needed(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            found.append(node)
            wanted |= free_names(node)
    return found[::-1]


def _known_beforehand(nodes: Sequence[Node]) -> set[str]:
    """Names of values from which sizes and exponents are computed: no weights, even if floating."""
    known: set[str] = set()
    for node in reversed(nodes):
        if node.op in SHAPE_ONLY:
            continue
        if known.intersection(node.outputs):
            known.update(node.inputs)
        else:
            slots = _KNOWN.get(node.op, ())
            known.update(node.inputs[i] for i in slots if i < len(node.inputs))
    return known
