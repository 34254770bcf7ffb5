"""From a file to a checked model: external data, opsets, functions of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relax._errors import ArgumentError, message

OPSETS = (7, 28)  # of the oldest and the newest operators that are tested


def load(model: Any) -> Any:
    """A ModelProto: valid, with its data, of known opsets, without functions of its own."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ImportError(
            'relax.adapters.onnx needs onnx: pip install "relax-lrp[onnx]".'
        ) from error

    if isinstance(model, onnx.ModelProto):
        proto, path = onnx.ModelProto(), None
        proto.CopyFrom(model)
    elif isinstance(model, str | os.PathLike):
        path = Path(model)
        try:
            proto = onnx.load(path, load_external_data=False)
        except DecodeError:
            raise ArgumentError(f"to_jax: {path} is no ONNX model.") from None
    else:
        raise ArgumentError(
            f"to_jax: a {type(model).__name__} is neither the path of an ONNX model nor an "
            "onnx.ModelProto."
        )
    _load_external(proto, None if path is None else path.parent)
    try:
        # By its path, if there is one: more than 2 GiB do not fit into a message.
        onnx.checker.check_model(proto if path is None else str(path))
    except onnx.checker.ValidationError as error:
        raise ArgumentError(f"to_jax: the model is not valid ONNX: {error}") from error
    _check_opset(proto)
    if proto.graph.sparse_initializer:
        raise ArgumentError("to_jax: the model has sparse initializers; expected dense ones.")
    if proto.functions:
        import onnx.inliner

        proto = onnx.inliner.inline_local_functions(proto)
    return proto


def opset_of(proto: Any) -> int:
    """The version of ONNX's own operators."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), OPSETS[1])


def _check_opset(proto: Any) -> None:
    version = opset_of(proto)
    if not OPSETS[0] <= version <= OPSETS[1]:
        raise ArgumentError(
            message(
                f"to_jax: the model is of opset {version}; known are {OPSETS[0]} to {OPSETS[1]}",
                remedy="Export it with another opset_version, or convert it by "
                "onnx.version_converter.convert_version(model, 18).",
            )
        )


def _load_external(proto: Any, folder: Path | None) -> None:
    """Reads tensors that lie in other files, which must be there, below the model's folder."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

    for tensor in _tensors(proto):
        if not uses_external_data(tensor):
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        location = place.get("location", "")
        if folder is None:
            raise ArgumentError(
                message(
                    f"to_jax: tensor `{tensor.name}` lies in another file, `{location}`",
                    remedy="Give the path of the model instead, to_jax(path).",
                )
            )
        inside = folder.resolve()
        file = (inside / location).resolve()
        if not location or Path(location).is_absolute() or not file.is_relative_to(inside):
            raise ArgumentError(
                f"to_jax: tensor `{tensor.name}` lies in `{location}`; expected a file below the "
                f"folder of the model, {folder}."
            )
        if not file.is_file():
            raise ArgumentError(
                message(
                    f"to_jax: tensor `{tensor.name}` lies in `{file}`, which is not there",
                    remedy="Put it beside the model: an export of two files is two files.",
                )
            )
        offset, length = (int(place.get(key) or 0) for key in ("offset", "length"))
        if offset < 0 or length < 0 or offset + length > file.stat().st_size:
            raise ArgumentError(
                f"to_jax: tensor `{tensor.name}` is bytes {offset} to {offset + length} of "
                f"`{file}`, which has {file.stat().st_size}: it is cut off."
            )
        load_external_data_for_tensor(tensor, str(inside))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _tensors(proto: Any) -> Iterator[Any]:
    """All tensors of a model, those in attributes and branches as well."""
    for function in proto.functions:
        yield from _of_nodes(function.node)
    yield from _of_graph(proto.graph)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _of_graph(graph)
