"""Operators of ONNX, one by one: by ONNX Runtime, and by the data that onnx has for each."""

import functools
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("onnx", reason="extra `onnx` not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime not installed")

import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_models import F32, I64, by_runtime, model_of, normal, tensor

import relax
from relax.adapters.onnx import to_jax
from relax.adapters.onnx._load import OPSETS
from relax.adapters.onnx._run import OPERATORS

# An input is a shape, of numbers in (-1, 1); a constant is an array.
UNARY = (  # noqa: SIM905
    "Abs Neg Sign Exp Floor Ceil Round Erf Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Atanh "
    "Identity Relu LeakyRelu Elu Selu Celu HardSwish Mish Softplus Softsign Sigmoid HardSigmoid "
    "ThresholdedRelu Reciprocal IsNaN IsInf"
).split()
CURRENT = [
    *((op, {}, (2, 3)) for op in UNARY),
    ("Gelu", {}, (2, 3)),
    ("Gelu", {"approximate": "tanh"}, (2, 3)),
    *((op, {}, (2, 3), (3,)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum")),
    *((op, {}, (2, 1), (3,)) for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
    ("Mod", {"fmod": 1}, (2, 3), F32(0.3)),
    ("Pow", {}, (2, 3), F32(3)),
    ("Pow", {}, (2, 3), F32([2])),
    ("Clip", {}, (2, 3), F32(-0.2), F32(0.4)),
    ("PRelu", {}, (2, 3, 4), normal(3, 1)),
    ("Cast", {"to": TensorProto.INT32}, (2, 3)),
    (
        "Conv",
        {"strides": [2, 1], "pads": [1, 0, 2, 1]},
        (2, 4, 7, 8),
        normal(6, 4, 3, 2),
        normal(6),
    ),
    ("Conv", {"group": 2, "dilations": [2]}, (2, 4, 9), normal(6, 2, 3)),
    ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (1, 2, 7, 8), normal(3, 2, 4, 3)),
    ("ConvTranspose", {"group": 2, "strides": [2, 3]}, (1, 4, 3, 4), normal(4, 3, 3, 2), normal(6)),
    (
        "ConvTranspose",
        {"pads": [1, 1], "output_padding": [1], "strides": [2]},
        (1, 2, 5),
        normal(2, 3, 3),
    ),
    ("Gemm", {"transB": 1, "alpha": 0.5, "beta": 2.0}, (3, 4), normal(5, 4), normal(5)),
    ("MatMul", {}, (2, 1, 3, 4), normal(5, 4, 2)),
    ("Einsum", {"equation": "bij, bjk -> bik"}, (2, 3, 4), (2, 4, 5)),
    ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, (1, 2, 7, 6)),
    ("MaxPool", {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}, (1, 2, 5)),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, (1, 2, 4, 5)),
    (
        "AveragePool",
        {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1},
        (1, 2, 4, 5),
    ),
    ("GlobalAveragePool", {}, (1, 2, 3, 4)),
    ("GlobalMaxPool", {}, (1, 2, 3, 4)),
    ("BatchNormalization", {}, (2, 3, 4), normal(3), normal(3), normal(3), np.abs(normal(3))),
    ("LayerNormalization", {"axis": 1}, (2, 3, 4), normal(3, 4), normal(3, 4)),
    ("RMSNormalization", {}, (2, 3, 4), normal(4)),
    ("InstanceNormalization", {}, (2, 3, 5), normal(3), normal(3)),
    ("GroupNormalization", {"num_groups": 2}, (2, 4, 5), normal(4), normal(4)),
    ("LpNormalization", {"axis": 1}, (2, 3)),
    ("LRN", {"size": 3, "alpha": 0.5}, (1, 5, 2, 2)),
    *((op, {"axis": 1}, (2, 3, 4)) for op in ("Softmax", "LogSoftmax")),
    *((f"Reduce{k}", {}, (2, 3, 4), I64([1])) for k in ("Sum", "Mean", "Max", "Min", "Prod", "L1")),
    *((f"Reduce{k}", {"keepdims": 0}, (2, 3, 4), I64([-1, 0])) for k in ("L2", "SumSquare")),
    ("ReduceLogSumExp", {}, (2, 3)),
    *((op, {"axis": 1, "keepdims": 0}, (2, 3)) for op in ("ArgMax", "ArgMin")),
    *(("CumSum", {"exclusive": e, "reverse": r}, (2, 3), I64(1)) for e in (0, 1) for r in (0, 1)),
    ("TopK", {}, (2, 5), I64([2])),
    ("Reshape", {}, (2, 3, 4), I64([0, -1])),
    ("Flatten", {"axis": 2}, (2, 3, 4)),
    ("Squeeze", {}, (2, 1, 4), I64([1])),
    ("Unsqueeze", {}, (2, 4), I64([0, -1])),
    ("Transpose", {"perm": [2, 0, 1]}, (2, 3, 4)),
    ("Concat", {"axis": -1}, (2, 3), (2, 2)),
    ("Split", {"axis": 1}, (2, 5), I64([2, 3])),
    ("Split", {"axis": 1, "num_outputs": 2}, (2, 5)),
    ("Expand", {}, (3, 1), I64([2, 1, 4])),
    ("Tile", {}, (2, 3), I64([2, 1])),
    *(("Pad", {"mode": m}, (3, 4), I64([1, 0, 0, 2])) for m in ("constant", "reflect", "edge")),
    ("Pad", {}, (3, 4), I64([1, -2]), F32(0.5), I64([1])),
    *(("DepthToSpace", {"blocksize": 2, "mode": m}, (1, 8, 2, 3)) for m in ("DCR", "CRD")),
    ("SpaceToDepth", {"blocksize": 2}, (1, 2, 4, 6)),
    ("Trilu", {"upper": 0}, (3, 4), I64(1)),
    ("Slice", {}, (4, 5), I64([-1, 1]), I64([-100, 2**63 - 1]), I64([0, 1]), I64([-2, 1])),
    ("Gather", {"axis": 1}, (2, 3, 4), I64([[0, -1]])),
    ("Gather", {"axis": 1}, (2, 3, 4), I64(-1)),
    ("GatherElements", {"axis": 1}, (2, 3), I64([[0, -1], [2, 1]])),
    ("GatherND", {"batch_dims": 1}, (2, 3, 4), I64([[2], [0]])),
    ("ScatterElements", {"axis": 1, "reduction": "add"}, (2, 3), I64([[0], [-1]]), F32([[1], [2]])),
    ("ScatterND", {}, (3, 2), I64([[2], [0]]), F32([[1, 2], [3, 4]])),
    ("Resize", {"mode": "nearest"}, (1, 1, 2, 3), F32([]), F32([1, 1, 2, 2])),
    *(
        ("Resize", {"mode": m, "antialias": a}, (1, 1, 6, 4), F32([]), F32([]), I64([1, 1, 3, 9]))
        for m, a in (("linear", 0), ("cubic", 0), ("linear", 1))
    ),
    (
        "DequantizeLinear",
        {"axis": 0},
        np.int8([[-128, 3], [127, 4]]),
        F32([0.5, 2]),
        np.int8([100, -3]),
    ),
    ("RotaryEmbedding", {}, (1, 2, 3, 4), normal(1, 3, 2), normal(1, 3, 2)),
    ("Attention", {"q_num_heads": 2, "kv_num_heads": 2, "is_causal": 1}, *[(1, 3, 8)] * 3),
]
LEGACY = [
    *(
        (
            op,
            {"hidden_size": 3, "direction": "bidirectional"},
            (4, 2, 5),
            normal(2, 3 * g, 5),
            normal(2, 3 * g, 3),
            normal(2, 6 * g),
        )
        for op, g in (("RNN", 1), ("GRU", 3), ("LSTM", 4))
    ),
    ("Clip", {"min": -0.2, "max": 0.4}, (2, 3)),
    ("Squeeze", {"axes": [1]}, (2, 1, 4)),
    ("Unsqueeze", {"axes": [0, 3]}, (2, 4)),
    ("Slice", {"starts": [1], "ends": [-1], "axes": [1]}, (2, 4)),
    ("Pad", {"pads": [1, 0, 0, 2], "value": 0.5}, (3, 4)),
    ("Split", {"axis": 1, "split": [2, 3]}, (2, 5)),
    ("ReduceSum", {"axes": [1], "keepdims": 0}, (2, 3)),
    ("TopK", {"k": 2}, (2, 5)),
    ("Dropout", {}, (2, 3)),
    ("Upsample", {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}, (1, 1, 2, 2)),
    ("Softmax", {"axis": 1}, (2, 3, 4)),
    ("BatchNormalization", {}, (2, 3), normal(3), normal(3), normal(3), np.abs(normal(3))),
]


def outputs_of(op):
    return {"LSTM": 3, "GRU": 2, "RNN": 2, "Split": 2, "TopK": 2}.get(op, 1)


def all_of(cases, opset, rng):
    """A model that has a node for each case, side by side, and numbers for its inputs."""
    nodes, inputs, weights, feeds = [], {}, {}, {}
    for number, (op, attributes, *operands) in enumerate(cases):
        names = []
        for place, operand in enumerate(operands):
            name = f"{op}_{number}_{place}"
            if isinstance(operand, tuple):
                feeds[name] = rng.uniform(-1, 1, operand).astype(np.float32)
                inputs[name] = list(operand)
            else:
                weights[name] = operand
            names.append(name if np.size(operand) else "")
        made = [f"{op}_{number}_out{i}" for i in range(outputs_of(op))]
        nodes.append(helper.make_node(op, names, made, **attributes))
    used = {name for node in nodes for name in node.input}
    weights = {name: w for name, w in weights.items() if name in used}
    outputs = [o for node in nodes for o in node.output]
    return model_of(nodes, inputs, outputs, weights, opset), feeds


@pytest.mark.parametrize(("cases", "opset"), [(CURRENT, 23), (LEGACY, OPSETS[0])])
def test_operators(cases, opset, rng):
    """Each operator, with the attributes of today and of old, by ONNX Runtime."""
    model, feeds = all_of(cases, opset, rng)
    f, params = to_jax(model)
    assert not any("Resize" in name for name in params)  # sizes are no weights
    got = jax.jit(f)(params, *feeds.values())
    for output, found, want in zip(
        model.graph.output, got, by_runtime(model, **feeds), strict=True
    ):
        np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-6, err_msg=output.name)
        assert found.dtype == want.dtype, output.name


def test_hardly_any_operator_is_left_to_the_slow_tests():
    """What has no line above has only shapes or booleans to give, or onnx's own data below."""
    seen = {op for op, *_ in CURRENT + LEGACY}
    left = {"Acosh", "And", "CastLike", "Equal", "EyeLike", "Log", "Not", "OneHot", "Or", "Sqrt"}
    left |= {"ReduceLogSum", "Shape", "Size", "Swish", "Where", "Xor"}
    assert set(OPERATORS) - seen == left


# onnx's own data for each operator

# Names of cases, or what they begin with, that are refused, and so should be.
REFUSED = {
    "its values are of types that are not known": (
        "FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2", "E8M0", "string", "STRING",
        "dequantizelinear_e4m3fn", "dequantizelinear_e5m2", "dequantizelinear_uint4",
        "dequantizelinear_int4", "dequantizelinear_uint2", "dequantizelinear_int2",
        "dequantizelinear_float4", "identity_sequence", "identity_opt",
    ),
    "by design": (
        "training", "maxpool_with_argmax", "dequantizelinear_blocked", "tf_crop_and_resize",
        "not_2d", "not_3d", "not_4d", "if_seq", "if_opt",
    ),
}  # fmt: skip
# Inputs from this one on are sizes, which a model has as constants.
SIZES = {"OneHot": 1, "If": 0} | dict.fromkeys(
    (op for op in OPERATORS if op.startswith("Reduce")), 1
)
SIZES |= dict.fromkeys(
    ["CumSum", "Dropout", "Expand", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze"], 1
)
SIZES |= dict.fromkeys(["Tile", "TopK", "Trilu", "Unsqueeze", "Upsample"], 1)
DEFINED = ["Attention", "RotaryEmbedding", "MeanVarianceNormalization", "Shrink", "If"]


@functools.cache
def cases_of_onnx():
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own data overflows on purpose
        return [c for c in load_model_tests(kind="node") if len(c.model.graph.node) == 1]


def array(value):
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def call(model, feeds):
    f, params = to_jax(model)
    return f(params, *map(array, feeds))


@pytest.mark.slow
@pytest.mark.parametrize("op", [*OPERATORS, *DEFINED])
def test_data_of_onnx(op):
    """Each case that onnx has for an operator: the numbers it gives, or an error of ours."""
    jax.clear_caches()  # nothing compiled for one operator serves another
    mine = [c for c in cases_of_onnx() if c.model.graph.node[0].op_type == op]
    assert mine, f"no data for {op}"
    refused = [word for words in REFUSED.values() for word in words]
    for case in mine:
        for inputs, outputs in case.data_sets:
            model, feeds = onnx.ModelProto(), []
            model.CopyFrom(case.model)
            given = zip(list(model.graph.input), inputs, strict=False)
            for place, (declared, value) in enumerate(given):
                if place >= SIZES.get(op, 99):
                    model.graph.initializer.append(tensor(array(value), declared.name))
                    model.graph.input.remove(declared)
                else:
                    feeds.append(value)
            if any(word in case.name for word in refused):
                with pytest.raises((relax.ArgumentError, relax.UnsupportedOperationError)):
                    call(model, feeds)
                continue
            got = call(model, feeds)
            for found, want in zip(got if isinstance(got, tuple) else (got,), outputs, strict=True):
                want = array(want)
                assert found.dtype == want.dtype, case.name
                half = found.dtype == jnp.bfloat16
                np.testing.assert_allclose(
                    np.asarray(found, np.float64) if half else found,
                    np.asarray(want, np.float64) if half else want,
                    rtol=2e-2 if half else case.rtol,
                    atol=1e-5,
                    err_msg=case.name,
                )


DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["pytorch-converted", "pytorch-operator"])
def test_exported_by_torch(folder):
    """Small models that an old torch has exported, and what it gave for them."""
    run = 0
    for path in sorted((DATA / folder).glob("*/model.onnx")):
        if "PReLU" in str(path) and "multiparam" in str(path):
            continue  # a slope along the channels: the converter leaves it, and it means axis -1
        model = onnx.load(path)
        if model.opset_import[0].version < OPSETS[0]:
            model = onnx.version_converter.convert_version(model, OPSETS[0])
        f, params = to_jax(model)
        for data in path.parent.glob("test_data_set_*"):
            files = sorted(data.glob("input_*.pb"))
            inputs = [array(onnx.load_tensor(p)) for p in files]
            got = f(params, *inputs)
            want = array(onnx.load_tensor(data / "output_0.pb"))
            first = got[0] if isinstance(got, tuple) else got
            np.testing.assert_allclose(first, want, rtol=1e-3, atol=1e-5, err_msg=path.parent.name)
            run += 1
    assert run > 30
