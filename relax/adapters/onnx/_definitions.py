"""Operators that ONNX itself defines by others: what it says is what is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from relax.adapters.onnx._graph import nodes_of
from relax.adapters.onnx._node import Node, Value


class Definition(NamedTuple):
    """What an operator stands for.

    Attributes:
      inputs, outputs: names of values.
      nodes: in order; those of the outputs that are not asked for may be missing.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]


def is_defined(node: Node) -> bool:
    """Whether ONNX defines the operator of a node by others."""
    schema = _schema(node)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def definition(node: Node, inputs: Sequence[Value]) -> Definition | None:
    """The definition of a node's operator for inputs of these types, or None."""
    import onnx

    if not is_defined(node):
        return None
    schema = _schema(node)
    if schema.has_function:
        version = _version(schema.function_opset_versions, node.opset)
        body = schema.get_function_with_opset_version(version)
    else:
        version = _version(schema.context_dependent_function_opset_versions, node.opset)
        body = schema.get_context_dependent_function_with_opset_version(
            version, node.proto.SerializeToString(), [_type(value) for value in inputs]
        )
    if not body:  # it says nothing for these types
        return None
    function = onnx.FunctionProto()
    function.ParseFromString(body)
    opset = next(o.version for o in function.opset_import if o.domain == "")
    nodes = nodes_of(_with_attributes(function, node, schema), opset)
    return Definition(tuple(function.input), tuple(function.output), tuple(nodes))


def _schema(node: Node) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(node.proto.op_type, node.opset, node.proto.domain)
    except onnx.defs.SchemaError:
        return None


def _version(versions: Sequence[int], opset: int) -> int:
    """Of the operators that a definition is written in: a newer one says the same."""
    return max([v for v in versions if v <= opset], default=min(versions))


def _type(value: Value) -> bytes:
    import onnx

    if value is None:
        return b""
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return onnx.helper.make_tensor_type_proto(element, value.shape).SerializeToString()


def _with_attributes(function: Any, node: Node, schema: Any) -> list[Any]:
    """The nodes of a function, with the attributes that they take from the node."""
    import onnx

    given = {a.name: a for a in node.proto.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            given[name] = attribute.default_value
    nodes = []
    for proto in function.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(proto)
        del copy.attribute[:]
        for attribute in proto.attribute:
            if not attribute.ref_attr_name:
                copy.attribute.append(attribute)
            elif attribute.ref_attr_name in given:
                taken = onnx.AttributeProto()
                taken.CopyFrom(given[attribute.ref_attr_name])
                taken.name = attribute.name
                copy.attribute.append(taken)
        nodes.append(copy)
    return nodes
