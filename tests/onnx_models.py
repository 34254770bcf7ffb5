"""Small ONNX models, and what ONNX Runtime gives for them."""

import functools

import numpy as np
import onnx
import onnxruntime as runtime
from onnx import TensorProto, helper, numpy_helper

I64 = functools.partial(np.array, dtype=np.int64)
F32 = functools.partial(np.array, dtype=np.float32)


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def tensor(value, name):
    return numpy_helper.from_array(np.asarray(value), name)


def model_of(nodes, inputs, outputs, weights=(), opset=18, **more):
    """A model: inputs by name with their shapes, outputs by name, weights by name."""

    def value(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes,
        "graph",
        [value(name, *(s if isinstance(s, tuple) else (s,))) for name, s in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [tensor(w, name) for name, w in dict(weights).items()],
    )
    opsets = [helper.make_opsetid("", opset), *more.pop("opsets", ())]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)
    model = onnx.shape_inference.infer_shapes(model)  # types and ranks of the outputs
    for output in model.graph.output:
        if output.type.WhichOneof("value") is None:  # there is no inference for GroupNormalization
            output.CopyFrom(value(output.name, [None]))
    return model


def by_runtime(model, **inputs):
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)
