"""ONNX models as JAX functions: any exporter's graph, with the names that it gave."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from relax._errors import ArgumentError, message
from relax.adapters._params import check_params, shapes
from relax.adapters.onnx._graph import Graph, Input, read
from relax.adapters.onnx._load import load
from relax.adapters.onnx._node import dtype_of
from relax.adapters.onnx._run import check, run


def to_jax(
    model: Any | str | os.PathLike[str], *, output: str | Sequence[str] | None = None
) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    r"""An ONNX model as ``(f, params)``, so that `lrp` explains ``f``.

    $$f(\mathrm{params}, x_1, \ldots, x_n) = (y_1, \ldots, y_m)$$

    Each node becomes the operations of JAX that its definition says, in inference mode, under its
    name, so that selectors, plans and latent relevance speak of ``layer1/conv1/Conv`` as the file
    does. Shapes and other values that are known beforehand are computed by onnx itself.

    Args:
      model: path of a file, with its external data below the same folder, or an
        ``onnx.ModelProto``. Opsets 7 to 28.
      output: which values ``f`` returns: the name of any value of the graph (of the logits in
        front of a Softmax, of a hidden state), or several names. None for the outputs of the model.
        ``"logits"`` finds ``logit`` as well, and the other way round.

    Returns:
      ``f``, pure, of params and the inputs of the model in its order, or a dict of them by name.
      Their shapes must be those that the model declares, as ONNX Runtime asks too; axes that it
      names are free. ``f`` returns one array, or a tuple if there are several outputs.
      ``params``, a dict of arrays by their names in the file: the floating tensors of rank one and
      more. Integers, scalars, sizes and exponents are constants: the file does not tell a trained
      scalar from an epsilon. The arrays have the dtypes of the file; those of 64 bits are halved
      unless ``jax_enable_x64`` is set.

    Raises:
      ArgumentError: the file is no valid ONNX model or of an unknown opset, its external data is
        missing or lies elsewhere, it has no such output; when ``f`` is called: an input is missing
        or does not have the declared shape; ``params`` lacks weights, or has others, or of other
        shapes.
      UnsupportedOperationError: operators without a counterpart, all of them with their nodes.
      ImportError: onnx is not installed.

    Example:
      >>> import numpy as np, onnx, relax
      >>> from onnx import helper, numpy_helper
      >>> from relax.adapters.onnx import to_jax
      >>> weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "head.weight")
      >>> nodes = [
      ...     helper.make_node("MatMul", ["x", "head.weight"], ["logits"], name="/head/MatMul"),
      ...     helper.make_node("Softmax", ["logits"], ["p"]),
      ... ]
      >>> value = lambda *a: helper.make_tensor_value_info(a[0], onnx.TensorProto.FLOAT, a[1])
      >>> graph = helper.make_graph(
      ...     nodes, "g", [value("x", ["n", 2])], [value("p", ["n", 3])], [weight]
      ... )
      >>> f, params = to_jax(helper.make_model(graph, ir_version=10), output="logits")
      >>> x = np.ones((1, 2), np.float32)
      >>> print(f(params, x), list(params))
      [[2. 2. 2.]] ['head.weight']
      >>> print(np.round(np.asarray(relax.lrp(f, target=0)(params, x)), 3))
      [[1. 1.]]
    """
    names = (output,) if isinstance(output, str) else output
    graph = read(load(model), names)
    check(graph)
    params = {name: jnp.asarray(tensor) for name, tensor in graph.parameters.items()}
    expected = shapes(params)
    alone = isinstance(output, str) or (output is None and len(graph.outputs) == 1)

    def network(params: Any, *inputs: Any) -> Any:
        values = dict(graph.constants) | _weights(graph, params, expected)
        values |= _arguments(graph, inputs)
        run(graph.nodes, values)
        found = tuple(jnp.asarray(values[name]) for name in graph.outputs)
        return found[0] if alone else found

    return network, params


def _weights(graph: Graph, params: Any, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The params, if they are those of the model; of all of it where ``f`` is a part."""
    if isinstance(params, Mapping):
        params = {name: array for name, array in params.items() if name not in graph.spare}
    check_params(params, expected)
    return params


def _arguments(graph: Graph, inputs: Sequence[Any]) -> dict[str, jax.Array]:
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        inputs = _by_name(graph, inputs[0])
    if len(inputs) != len(graph.inputs):
        names = ", ".join(i.name for i in graph.inputs)
        raise ArgumentError(
            f"the model takes {len(graph.inputs)} inputs ({names}); {len(inputs)} given."
        )
    return {i.name: _argument(i, x) for i, x in zip(graph.inputs, inputs, strict=True)}


def _by_name(graph: Graph, given: Mapping[str, Any]) -> list[Any]:
    """Inputs in order, of a dict as ONNX Runtime takes it."""
    names = [i.name for i in graph.inputs]
    if set(given) != set(names):
        raise ArgumentError(
            f"the model takes the inputs {', '.join(names)}; "
            f"{', '.join(map(str, given)) or 'none'} given."
        )
    return [given[name] for name in names]


def _argument(declared: Input, x: Any) -> jax.Array:
    x, dtype = jnp.asarray(x), dtype_of(declared.element_type, f"input `{declared.name}`")
    shape = declared.shape
    if shape is not None and (
        len(shape) != x.ndim
        or any(isinstance(a, int) and a != b for a, b in zip(shape, x.shape, strict=True))
    ):
        sizes = ", ".join("?" if axis is None else str(axis) for axis in shape)
        raise ArgumentError(
            message(
                f"input `{declared.name}` has shape {x.shape}; the model declares ({sizes})",
                remedy="Export it with a dynamic axis, or map one sample over many by jax.vmap.",
            )
        )
    if jnp.issubdtype(dtype, jnp.floating) and jnp.issubdtype(x.dtype, jnp.floating):
        return x  # of another width: as the user wants it, with parameters to match
    if jnp.issubdtype(x.dtype, jnp.floating):
        raise ArgumentError(
            f"input `{declared.name}` is of {x.dtype}; the model declares {dtype}, which is not "
            "floating."
        )
    return x.astype(dtype)


__all__ = ["to_jax"]
