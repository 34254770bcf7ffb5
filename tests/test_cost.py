"""The price of each composite, in FLOPs of the compiled program relative to the plain gradient."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import relax
from benchmarks import memory, passes
from relax import composites

CHANNELS = (16, 16, "pool", 32, 32, "pool", 64, 64, "pool")


def network(params, x):
    """A small VGG on 32x32 pictures; ReLUs throughout."""
    layers = iter(params)
    for width in CHANNELS:
        if width == "pool":
            window = (1, 2, 2, 1)
            x = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
        else:
            kernel, bias = next(layers)
            numbers = ("NHWC", "HWIO", "NHWC")
            x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
            x = jax.nn.relu(x + bias.reshape(1, 1, 1, -1))
    x = x.reshape(x.shape[0], -1)
    kernel, bias = next(layers)
    x = jax.nn.relu(x @ kernel + bias.reshape(1, -1))
    kernel, bias = next(layers)
    return x @ kernel + bias.reshape(1, -1)


def shapes():
    width, params = 3, []
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    for size in CHANNELS:
        if size != "pool":
            params.append((shape(3, 3, width, size), shape(size)))
            width = size
    params += [(shape(64 * 16, 64), shape(64)), (shape(64, 10), shape(10))]
    return params, shape(2, 32, 32, 3)


def flops(function):
    return jax.jit(function).lower(*shapes()).compile().cost_analysis()["flops"]


@pytest.fixture(scope="module")
def gradient():
    return flops(jax.grad(lambda params, x: network(params, x)[:, 0].sum(), argnums=1))


@pytest.mark.parametrize(
    ("rules", "ceiling"),
    [
        (composites.epsilon(), 1.05),
        (composites.epsilon_plus(), 1.6),
        (composites.epsilon_plus_flat(), 1.6),
        (composites.excitation_backprop(), 1.6),
        (composites.epsilon_gamma_box(), 1.75),
        (composites.epsilon_alpha2_beta1(), 2.7),
        (composites.epsilon_alpha2_beta1_flat(), 2.7),
    ],
    ids=lambda value: "" if isinstance(value, float) else None,
)
def test_flops_stay_below_the_ceiling(rules, ceiling, gradient):
    """Signs known from the graph and a reused z keep each rule at its lowest number of passes."""
    ratio = flops(relax.lrp(network, rules, target=0)) / gradient
    assert 0.95 < ratio < ceiling


def test_signs_are_what_saves_the_passes(gradient):
    """The same layers behind tanh, whose sign is not known, cost more: the ratio can rise."""

    def signed(params, x):
        (kernel, bias), (kernel2, bias2) = params
        h = jnp.tanh(x @ kernel + bias.reshape(1, -1))
        return h @ kernel2 + bias2.reshape(1, -1)

    def unsigned(params, x):
        (kernel, bias), (kernel2, bias2) = params
        h = jax.nn.relu(x @ kernel + bias.reshape(1, -1))
        return h @ kernel2 + bias2.reshape(1, -1)

    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    params = [(shape(64, 512), shape(512)), (shape(512, 64), shape(64))]
    x = shape(64, 64)
    rule = relax.rules.ZPlus()
    counted = [
        jax.jit(relax.lrp(f, {"1/*": rule})).lower(params, x).compile().cost_analysis()["flops"]
        for f in (signed, unsigned)
    ]
    assert counted[0] > 1.3 * counted[1]


def test_a_sweep_shares_the_forward_pass():
    """Sixteen gammas by vmap compile to fewer FLOPs than sixteen runs."""
    x = jnp.ones((2, 32, 32, 3), jnp.float32)
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes()[0])

    def explain(gamma):
        rules = relax.composites.epsilon_gamma_box(gamma=gamma)
        return relax.lrp(network, rules, target=0)(params, x)

    gammas = jax.ShapeDtypeStruct((16,), jnp.float32)
    swept = jax.jit(jax.vmap(explain)).lower(gammas).compile().cost_analysis()["flops"]
    one = jax.jit(explain).lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    assert swept < 0.8 * 16 * one.cost_analysis()["flops"]


@pytest.mark.parametrize("name", ["Llama, 4 blocks", "GPT-2, 4 blocks"])
def test_transformers_cost_what_their_gradient_costs(name):
    """FLOPs within a hundredth, and no more memory, at the sizes of the benchmark."""
    with jax.enable_x64(False):
        found = passes.costs(name, ("attnlrp", "cp_lrp"))
    base = found.pop("gradient")
    for cost in found.values():
        assert cost.flops / base.flops < 1.01
        assert cost.memory / base.memory < 1.1


def within(network, names, batch, digits=None):
    """FLOPs and memory of composites are within what the benchmarks allow, at 224 x 224."""
    with jax.enable_x64(False):
        found = passes.costs(network, names, batch=batch)
    base = found.pop("gradient")
    for name, cost in found.items():
        flops, bytes_ = cost.flops / base.flops, cost.memory / base.memory
        assert (flops if digits is None else round(flops, digits)) <= passes.CEILINGS[name], name
        assert bytes_ <= memory.CEILINGS[name], name


def test_ceilings_of_composites_on_vgg16():
    """As the benchmarks count them; of a batch, since one sample is less than the weights."""
    within("VGG16", passes.PICTURES, 4)


@pytest.mark.slow
def test_flops_on_vgg16_of_one_picture():
    """Memory is asserted of batches: one picture is less than the positive weights."""
    with jax.enable_x64(False):
        found = passes.costs("VGG16", passes.PICTURES)
    base = found.pop("gradient")
    for name, cost in found.items():
        assert cost.flops / base.flops <= passes.CEILINGS[name], name


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("network", ["ResNet50", "MobileNet"])
def test_ceilings_of_composites(network, batch):
    """The same on networks whose layers have inputs of one sign, to two digits.

    Excitation backprop on MobileNet is at 1.551 of 1.55, for its many clipped ReLUs.
    """
    within(network, passes.PICTURES, batch, 2)


@pytest.mark.slow
def test_memory_where_inputs_have_both_signs():
    """The narrow ends of MobileNetV2 cost passes, but no memory."""
    with jax.enable_x64(False):
        found = passes.costs("MobileNetV2", passes.PICTURES, batch=8)
    base = found.pop("gradient")
    for name, cost in found.items():
        assert cost.memory / base.memory <= memory.CEILINGS[name], name


@pytest.mark.slow
def test_ceilings_of_a_vision_transformer():
    within("ViT-B/16", ("attnlrp", "cp_lrp"), 1)
