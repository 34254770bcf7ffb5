"""ONNX models, against ONNX Runtime and against the same networks written by hand."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("onnx", reason="extra `onnx` not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime not installed")

import onnx
from onnx import TensorProto, helper
from onnx_models import F32, I64, by_runtime, model_of, normal

import relax
from relax import rules, select
from relax.adapters.onnx import to_jax

# Whole models, against ONNX Runtime


@pytest.fixture(scope="module")
def cnn():
    """Convolutions with a shortcut and a merged shape computation, as exporters write them."""
    node = helper.make_node
    r = np.random.default_rng(0)
    weights = {
        "stem.weight": r.normal(size=(6, 3, 3, 3)),
        "stem.bias": r.normal(size=6),
        "bn.weight": r.normal(size=6),
        "bn.bias": r.normal(size=6),
        "bn.mean": r.normal(size=6),
        "bn.var": r.uniform(0.5, 2, size=6),
        "block.weight": r.normal(size=(6, 6, 3, 3)) / 5,
        "head.weight": r.normal(size=(4, 6 * 4 * 4)) / 5,
        "head.bias": r.normal(size=4),
    }
    weights = {name: w.astype(np.float32) for name, w in weights.items()}
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    bn = ["bn.weight", "bn.bias", "bn.mean", "bn.var"]
    nodes = [
        node("Conv", ["x", "stem.weight", "stem.bias"], ["a"], name="/stem/Conv", **same),
        node("BatchNormalization", ["a", *bn], ["b"], name="/bn/BatchNormalization"),
        node("Relu", ["b"], ["c"], name="/act/Relu"),
        node("Conv", ["c", "block.weight"], ["d"], name="/block/Conv", **same),
        node("Add", ["c", "d"], ["e"], name="/block/Add"),
        node("Relu", ["e"], ["f"], name="/block/Relu"),
        node("MaxPool", ["f"], ["g"], name="/pool/MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["g"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"]),
        node("Concat", ["n", "rest"], ["flat_shape"], axis=0),
        node("Reshape", ["g", "flat_shape"], ["h"], name="/Reshape"),
        node("Gemm", ["h", "head.weight", "head.bias"], ["logits"], name="/head/Gemm", transB=1),
        node("Softmax", ["logits"], ["probability"], name="/Softmax", axis=1),
    ]
    sizes = {"zero": I64([0]), "rest": I64([-1])}
    return model_of(nodes, {"x": ["n", 3, 8, 8]}, ["probability"], weights | sizes), weights


def by_hand(p, x):
    """The same network, without ONNX."""

    def conv(x, w):
        layout = ("NCHW", "OIHW", "NCHW")
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)

    def channels(v):
        return v[None, :, None, None]

    a = conv(x, p["stem.weight"]) + channels(p["stem.bias"])
    scale = p["bn.weight"] / jnp.sqrt(p["bn.var"] + 1e-5)
    b = channels(scale) * a + channels(p["bn.bias"] - p["bn.mean"] * scale)
    c = jax.nn.relu(b)
    e = jax.nn.relu(c + conv(c, p["block.weight"]))
    g = e.reshape(-1, 6, 4, 2, 4, 2).max((3, 5)).reshape(-1, 96)
    return g @ p["head.weight"].T + p["head.bias"][None]


def test_a_convolutional_network(cnn, rng):
    """Values of ONNX Runtime; parameters and layers under the names of the file."""
    model, weights = cnn
    x = rng.normal(size=(3, 3, 8, 8)).astype(np.float32)
    f, params = to_jax(model)
    assert set(params) == set(weights)
    (want,) = by_runtime(model, x=x)
    got = jax.jit(f)(params, x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7)
    plan = {layer.path: layer for layer in relax.layers(f)(params, x)}
    assert {"stem/Conv", "block/Conv", "head/Gemm"} <= set(plan)
    assert plan["head/Gemm"].weight_path == "head.weight"


# Without optimization, as tests are compiled, XLA's gradients of convolutions in float64 with
# channels first are wrong on a CPU: jax.grad of `by_hand` gives NaN.
COMPILED = {"compiler_options": {"xla_backend_optimization_level": 1}}


def test_its_relevance(cnn, rng):
    """What relax gives for the same network by hand, under rules for layers; float64 throughout."""
    f, params = to_jax(cnn[0], output="logits")
    params = {name: jnp.asarray(p, jnp.float64) for name, p in params.items()}
    x = rng.normal(size=(2, 3, 8, 8))
    np.testing.assert_allclose(f(params, x), by_hand(params, x), rtol=1e-10, atol=1e-10)
    given = {select.conv: rules.ZPlus(), select.dense: rules.Epsilon(0.1)}
    by_name = {
        "stem/Conv": rules.ZPlus(),
        "block/Conv": rules.ZPlus(),
        "head/Gemm": rules.Epsilon(0.1),
    }
    got = jax.jit(relax.lrp(f, by_name, target=2), **COMPILED)(params, x)
    want = jax.jit(relax.lrp(by_hand, given, target=2), **COMPILED)(params, x)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10 * np.abs(want).max())


def test_a_transformer(rng):
    """Ids, an embedding, a layer norm and an attention in pieces, as exporters write them."""
    node, d, t = helper.make_node, 8, 5
    shapes = {"wte": (11, d), "wpe": (t, d), "ln.g": (d,), "ln.b": (d,), "out": (d, 3)}
    shapes |= dict.fromkeys(("q", "k", "v", "o"), (d, d))
    weights = {n: (rng.normal(size=s) / s[-1] ** 0.5).astype(np.float32) for n, s in shapes.items()}

    def heads(name, perm):
        return [
            node("MatMul", ["ln", name], [f"{name}0"], name=f"/attn/{name}/MatMul"),
            node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            node("Transpose", [f"{name}1"], [f"{name}2"], perm=perm),
        ]

    nodes = [
        node("Gather", ["wte", "ids"], ["e"], name="/wte/Gather"),
        node("Add", ["e", "wpe"], ["h"]),
        # A layer norm in pieces, with its square as a power.
        node("ReduceMean", ["h", "last"], ["mean"], keepdims=1),
        node("Sub", ["h", "mean"], ["centered"]),
        node("Pow", ["centered", "two"], ["square"]),
        node("ReduceMean", ["square", "last"], ["var"], keepdims=1),
        node("Add", ["var", "eps"], ["var_eps"]),
        node("Sqrt", ["var_eps"], ["std"]),
        node("Div", ["centered", "std"], ["normed"]),
        node("Mul", ["normed", "ln.g"], ["scaled"]),
        node("Add", ["scaled", "ln.b"], ["ln"]),
        *heads("q", [0, 2, 1, 3]),
        *heads("k", [0, 2, 3, 1]),
        *heads("v", [0, 2, 1, 3]),
        node("MatMul", ["q2", "k2"], ["scores"]),
        node("Div", ["scores", "root"], ["scores1"]),
        node("Where", ["causal", "scores1", "minus"], ["scores2"]),
        node("Softmax", ["scores2"], ["p"], axis=-1),
        node("MatMul", ["p", "v2"], ["c"]),
        node("Transpose", ["c"], ["c1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["c1", "join"], ["c2"]),
        node("MatMul", ["c2", "o"], ["c3"]),
        node("Add", ["h", "c3"], ["r"]),
        node("Gather", ["r", "end"], ["final"], axis=1),
        node("MatMul", ["final", "out"], ["logits"]),
    ]
    constants = {
        "last": I64([-1]), "two": F32(2), "eps": F32(1e-5), "root": F32(2), "minus": F32(-1e9),
        "split": I64([0, 0, 2, 4]), "join": I64([0, 0, d]), "end": I64(-1),
        "causal": np.tril(np.ones((t, t), bool)),
    }  # fmt: skip
    model = model_of(nodes, {"ids": (["n", t], TensorProto.INT64)}, ["logits"], weights | constants)
    ids = rng.integers(0, 11, size=(2, t))
    f, params = to_jax(model)
    assert set(params) == set(weights)
    np.testing.assert_allclose(
        jax.jit(f)(params, ids), by_runtime(model, ids=ids)[0], rtol=2e-5, atol=1e-6
    )
    kinds = [layer.kind for layer in relax.layers(f)(params, ids)]
    for kind in ("embedding", "normalization", "softmax", "product"):
        assert any(k.startswith(kind) for k in kinds), kinds
    relevance = jax.jit(relax.lrp(f, target=1))(params, ids)
    assert relevance.shape == ids.shape
    assert np.isfinite(relevance).all()
    assert np.abs(relevance).max() > 0


# The face


def test_outputs_by_name(cnn, rng):
    """Any value of the graph; nodes behind it need not be known."""
    model, _ = cnn
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    probability = jax.nn.softmax(to_jax(model, output="logits")[0](to_jax(model)[1], x), -1)
    f, params = to_jax(model)
    np.testing.assert_allclose(f(params, x), probability, rtol=1e-5)
    pair, params = to_jax(model, output=["logits", "c"])
    logits, hidden = pair(params, x)
    assert logits.shape == (1, 4)
    assert hidden.shape == (1, 6, 8, 8)
    stem, some = to_jax(model, output="c")
    np.testing.assert_array_equal(stem(some, x), hidden)
    assert set(some) == {n for n in params if n.startswith(("stem", "bn"))}
    np.testing.assert_array_equal(to_jax(model, output="logit")[0](params, x), logits)
    np.testing.assert_array_equal(stem(params, x), hidden)  # it may have those of the whole model
    with pytest.raises(relax.ArgumentError, match="no such value; did you mean `logits`"):
        to_jax(model, output="logitz")
    with pytest.raises(relax.ArgumentError, match=r"did you mean `y`\?\n.*relax\.logits\(f\)"):
        to_jax(simple(), output="logits")


def test_inputs_by_name(rng):
    """As ONNX Runtime takes them; relevance is by name as well."""
    model = model_of([helper.make_node("Sub", ["a", "b"], ["y"])], {"a": [2], "b": [2]}, ["y"])
    f, params = to_jax(model)
    a, b = rng.normal(size=(2, 2)).astype(np.float32)
    np.testing.assert_array_equal(f(params, {"b": b, "a": a}), by_runtime(model, a=a, b=b)[0])
    relevance = relax.lrp(f, rules.Epsilon(0.0), target=0)(params, {"a": a, "b": b})
    np.testing.assert_allclose(relevance["a"], [a[0], 0], rtol=1e-6)
    np.testing.assert_allclose(relevance["b"], [-b[0], 0], rtol=1e-6)
    one, _ = to_jax(simple(shape=(2,)))
    np.testing.assert_array_equal(one({}, {"x": a}), np.maximum(a, 0))
    for given, words in (({"a": a}, "a given"), ({"a": a, "c": b}, "a, c given"), ({}, "none")):
        with pytest.raises(relax.ArgumentError, match=f"takes the inputs a, b; {words}"):
            f(params, given)


def test_params_that_are_not_those_of_the_model():
    """What is missing, unknown or of another shape, by name; a scalar is a constant."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "temperature"], ["y"]),
    ]
    weights = {"w": F32([[1, 2], [3, 4]]), "temperature": F32(2)}
    f, params = to_jax(model_of(nodes, {"x": [1, 2]}, ["y"], weights))
    x, w = np.ones((1, 2), np.float32), params["w"]
    assert list(params) == ["w"]
    for given, words in (
        (x, "params is a ndarray; expected the dict"),
        ({}, r"params lacks `w`.\n  It has nothing\."),
        ({"v": w}, r"params lacks `w`.\n  It has v\."),
        ({"w": w, "head.w": w}, r"has `head.w`, which is no weight of the model.\n.*has w\."),
        ({"w": w, "temperature": F32(1)}, "has `temperature`, which is no weight"),
        ({"w": w[:1]}, r"params\['w'\] has shape \(1, 2\); the model has \(2, 2\)"),
        ({"w": w.astype(int)}, r"params\['w'\] is of int64; the model has float32"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            f(given, x)


def test_definitions_and_functions(rng):
    """Functions that a file defines, branches that are known, an operator that ONNX defines."""
    node = helper.make_node
    own = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    branches = [
        helper.make_graph(
            [node(op, ["w"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, [3])],
        )
        for op in ("Neg", "Abs")
    ]
    nodes = [
        node("Twice", ["x"], ["y"], domain="mine"),
        node("If", ["yes"], ["z"], then_branch=branches[0], else_branch=branches[1]),
        node("Mul", ["y", "z"], ["u"]),
        node("Shrink", ["u"], ["out"], lambd=0.1, bias=0.05),
    ]
    w = F32([1.0, -2.0, 3.0])
    model = model_of(
        nodes, {"x": [2, 3]}, ["out"], {"w": w, "yes": np.array(True)},
        opsets=[helper.make_opsetid("mine", 1)], functions=[own],
    )  # fmt: skip
    f, params = to_jax(model)
    assert list(params) == ["w"]
    x = rng.normal(size=(2, 3)).astype(np.float32)
    u = -2 * x * w
    want = np.where(u < -0.1, u + 0.05, np.where(u > 0.1, u - 0.05, 0))
    np.testing.assert_allclose(f(params, x), want, rtol=1e-6)


def simple(op="Relu", shape=(2, 3), opset=18, **attributes):
    return model_of(
        [helper.make_node(op, ["x"], ["y"], name="n", **attributes)],
        {"x": list(shape)},
        ["y"],
        opset=opset,
    )


def test_errors(tmp_path):
    """What is wrong, of what, and what to do."""
    node = helper.make_node
    ints = model_of([node("Cast", ["x"], ["y"], to=1)], {"x": ([2], TensorProto.INT64)}, ["y"])
    dynamic = model_of(
        [node("Cast", ["s"], ["i"], to=7), node("Reshape", ["x", "i"], ["y"], name="r")],
        {"x": [2, 3], "s": [1]},
        ["y"],
    )
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"\x99 no protobuf")
    invalid = simple()
    invalid.graph.node[0].input[0] = "missing"
    called = to_jax(simple())[0]
    noise = node("RandomNormal", [], ["e"], name="noise", shape=[2, 3])
    noisy = model_of([noise, node("Add", ["x", "e"], ["y"])], {"x": [2, 3]}, ["y"])
    foreign = model_of(
        [node("Gelu", ["x"], ["y"], domain="com.microsoft")],
        {"x": [2]},
        ["y"],
        opsets=[helper.make_opsetid("com.microsoft", 1)],
    )
    for error, call, words in (
        (
            relax.UnsupportedOperationError,
            lambda: to_jax(simple("NonZero")),
            r"node `n` \(NonZero, opset 18\)\.\n.*output=",
        ),
        (
            relax.UnsupportedOperationError,
            lambda: to_jax(simple("Det", (3, 3), 22)),
            r"node `n` \(Det",
        ),
        (
            relax.UnsupportedOperationError,
            lambda: to_jax(dynamic)[0]({}, np.ones((2, 3)), np.ones(1)),
            r"node `r` \(Reshape, opset 18\): its shape depends",
        ),
        (relax.UnsupportedOperationError, lambda: to_jax(noisy), r"node `noise` \(RandomNormal"),
        (relax.UnsupportedOperationError, lambda: to_jax(foreign), r"`y` \(com.microsoft::Gelu"),
        (relax.ArgumentError, lambda: to_jax(simple(opset=6)), "opset 6; known are 7 to 28"),
        (relax.ArgumentError, lambda: to_jax(garbage), "garbage.onnx is no ONNX model"),
        (relax.ArgumentError, lambda: to_jax(invalid), "not valid ONNX"),
        (relax.ArgumentError, lambda: to_jax(3), "a int is neither"),
        (
            relax.ArgumentError,
            lambda: called({}, np.ones((3, 3))),
            r"`x` has shape \(3, 3\); the model declares \(2, 3\)",
        ),
        (relax.ArgumentError, lambda: called({}), r"takes 1 inputs \(x\); 0 given"),
        (
            relax.ArgumentError,
            lambda: to_jax(ints)[0]({}, np.ones(2)),
            "`x` is of float64; the model declares int64",
        ),
    ):
        with pytest.raises(error, match=words):
            call()
    with pytest.raises(FileNotFoundError):
        to_jax(tmp_path / "nothing.onnx")


def test_external_data(tmp_path):
    """Read from beside the model, and from nowhere else."""
    weight = normal(64, 64)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 64]}, ["y"], {"w": weight}
    )
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    f, params = to_jax(path)
    np.testing.assert_array_equal(params["w"], weight)
    x = normal(1, 64)
    np.testing.assert_allclose(f(params, x), x @ weight, rtol=1e-4, atol=1e-5)
    with pytest.raises(relax.ArgumentError, match=r"in another file, `weights.bin`.\n.*path"):
        to_jax(onnx.load(path, load_external_data=False))
    data = path.parent / "weights.bin"
    whole = data.read_bytes()
    data.write_bytes(whole[:100])
    with pytest.raises(relax.ArgumentError, match="it is cut off"):
        to_jax(path)
    data.rename(tmp_path / "weights.bin")
    with pytest.raises(relax.ArgumentError, match="which is not there"):
        to_jax(path)
    (tmp_path / "weights.bin").write_bytes(whole)
    data.symlink_to(tmp_path / "weights.bin")
    with pytest.raises(relax.ArgumentError, match="below the folder of the model"):
        to_jax(path)
    proto = onnx.load(path, load_external_data=False)
    for location in ("../weights.bin", str(tmp_path / "weights.bin")):
        proto.graph.initializer[0].external_data[0].value = location
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(relax.ArgumentError, match="below the folder of the model"):
            to_jax(path)


def test_onnx_is_needed_only_for_its_models(monkeypatch):
    """Importing relax and its adapters does not import it; without it the error names the extra."""
    code = "import sys, relax.adapters.onnx; sys.exit('onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"relax-lrp\[onnx\]"):
        to_jax("model.onnx")
