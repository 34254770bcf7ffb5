"""Relevance through scans, branches and checkpoints: what the same program gives without them.

A scan is its unrolled loop, a cond its branch, a checkpoint none: to 1e-12 in float64, under every
transformation, in both currencies.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from benchmarks import loops
from benchmarks.counting import count, gradient_times_input
from relax import composites, rules, select

SHAPES = {"w": (4, 4), "u": (4, 4), "b": (1, 4), "v": (4, 3)}
_random = np.random.default_rng(3)
PARAMS = {name: 0.8 * _random.normal(size=shape) for name, shape in SHAPES.items()}
STACK = jax.tree.map(
    lambda *a: np.stack(a),
    *[{name: 0.8 * _random.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(3)],
)
X = _random.normal(size=(5, 2, 4))  # time first
RULES = {
    "Epsilon": rules.Epsilon(0.05),
    "LRP-0": rules.Epsilon(0.0),
    "ZPlus": rules.ZPlus(0.05),
    "AlphaBeta": rules.AlphaBeta(epsilon=0.05),
    "Gamma": rules.Gamma(0.3, 0.05),
    "Flat": rules.Flat(0.05),
    "WSquare": rules.WSquare(0.05),
    "sums": relax.Composite(((select.sums, rules.Epsilon(0.05)),), strict=False),
    "attnlrp": composites.attnlrp(),
}


def close(got, expected, tolerance=1e-12):
    limit = tolerance * max(float(np.abs(expected).max()), 1.0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=limit)


def cell(p, h, x):
    """A recurrent step that is residual, gated, and bent in several ways."""
    z = h @ p["w"] + x @ p["u"] + p["b"]
    gate = jax.nn.sigmoid(x @ p["w"])
    return gate * jnp.tanh(z) + (1 - gate) * h


def unrolled(step, carry, xs):
    outputs = []
    for x in xs:
        carry, y = step(carry, x)
        outputs.append(y)
    return carry, jax.tree.map(lambda *a: jnp.stack(a), *outputs)


def recurrent(scan):
    """The last state, and a pooling of all outputs."""

    def function(p, x):
        def step(h, x):
            h = cell(p, h, x)
            return h, jax.nn.relu(h @ p["u"])

        h, ys = scan(step, x[0], x[1:])
        return (h + ys.mean(0)) @ p["v"]

    return function


def two_carries(scan):
    """One is carried along, one is rotated into the other, and an integer counts."""

    def function(p, x):
        def step(carry, x):
            i, a, b = carry
            return (i + 1, jnp.tanh(b @ p["w"]), cell(p, a, x) * (1 + 0.1 * i)), a

        start = (0, x[0], x[0] @ p["u"])
        (_, a, b), ys = scan(step, start, x[1:])
        return (a + b) @ p["v"] + ys.sum(0)[:, :3]

    return function


def over_layers(scan):
    """A deep network whose layers are scanned over."""

    def function(p, x):
        def step(h, layer):
            return jax.nn.relu(h @ layer["w"] + layer["b"][None]) + h, None

        h, _ = scan(step, x, STACK if scan is lax.scan else unstacked(STACK))
        return h @ p["v"]

    return function


def unstacked(tree):
    return [jax.tree.map(lambda a, i=i: a[i], tree) for i in range(3)]


def deep_loop(step, carry, layers):
    for layer in layers:
        carry, _ = step(carry, layer)
    return carry, None


def nested(scan):
    """A scan in a scan."""

    def function(p, x):
        def outer(h, x):
            inner = lambda g, layer: (jnp.tanh(g @ layer["w"] + x @ layer["u"]), None)
            h, _ = scan(inner, h, STACK if scan is lax.scan else unstacked(STACK))
            return h, None

        if scan is lax.scan:
            return scan(outer, x[0], x[1:])[0] @ p["v"]
        return deep_loop(outer, x[0], x[1:])[0] @ p["v"]

    return function


def attention_over_layers(scan):
    """Transformer blocks under a scan."""

    def function(p, x):
        def step(h, layer):
            y = h * lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6)
            scores = (y @ layer["w"]) @ jnp.swapaxes(y @ layer["u"], 1, 2)
            return h + jax.nn.softmax(scores) @ y, None

        h, _ = scan(step, x, STACK if scan is lax.scan else unstacked(STACK))
        return h @ p["v"]

    return function


part = functools.partial
PAIRS = {
    "recurrent": (recurrent(lax.scan), recurrent(unrolled)),
    "reverse": (
        recurrent(part(lax.scan, reverse=True)),
        recurrent(lambda step, h, xs: (lambda h, y: (h, y[::-1]))(*unrolled(step, h, xs[::-1]))),
    ),
    "unroll": (recurrent(part(lax.scan, unroll=2)), recurrent(unrolled)),
    "two carries": (two_carries(lax.scan), two_carries(unrolled)),
    "over layers": (over_layers(lax.scan), over_layers(deep_loop)),
    "nested": (nested(lax.scan), nested(deep_loop)),
    "attention over layers": (attention_over_layers(lax.scan), attention_over_layers(deep_loop)),
    "map": (
        lambda p, x: lax.map(lambda y: jnp.tanh(y @ p["w"]) @ p["v"], x),
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"],
    ),
    "fori_loop": (
        lambda p, x: lax.fori_loop(0, 3, lambda i, h: bend(p, h), x) @ p["v"],
        lambda p, x: bend(p, bend(p, bend(p, x))) @ p["v"],
    ),
    "cond": (
        lambda p, x: lax.cond(x.sum() > -1e9, part(branch, p), lambda x: x @ p["u"], x) @ p["v"],
        lambda p, x: branch(p, x) @ p["v"],
    ),
    "switch": (
        lambda p, x: lax.switch(1, [jnp.sin, part(branch, p), jnp.cos], x) @ p["v"],
        lambda p, x: branch(p, x) @ p["v"],
    ),
    "a branch that ignores the input": (
        lambda p, x: lax.cond(x.sum() > -1e9, part(branch, p), jnp.zeros_like, x) @ p["v"],
        lambda p, x: branch(p, x) @ p["v"],
    ),
    "cond in scan": (
        recurrent(
            lambda step, h, xs: lax.scan(
                lambda h, x: lax.cond(x.sum() > -1e9, step, lambda h, x: (h, h), h, x), h, xs
            )
        ),
        recurrent(unrolled),
    ),
    "checkpoint": (
        lambda p, x: jax.checkpoint(part(branch, p))(x) @ p["v"],
        lambda p, x: branch(p, x) @ p["v"],
    ),
    "checkpoint with a policy": (
        lambda p, x: jax.checkpoint(
            part(branch, p), policy=jax.checkpoint_policies.dots_saveable
        )(x) @ p["v"],
        lambda p, x: branch(p, x) @ p["v"],
    ),
    "checkpoint in scan": (
        recurrent(lambda step, h, xs: lax.scan(jax.checkpoint(step), h, xs)),
        recurrent(unrolled),
    ),
    "associative_scan": (
        lambda p, x: lax.associative_scan(lambda a, b: a + jnp.tanh(b), x @ p["w"]) @ p["v"],
        None,
    ),
}  # fmt: skip


def bend(p, h):
    return jnp.tanh(h @ p["w"] + p["b"][None])


def branch(p, x):
    return jax.nn.relu(x @ p["w"] + p["b"][None]) @ p["u"] + x


COMPARED = [name for name, (_, plain) in PAIRS.items() if plain is not None]


LONG = ("unroll", "reverse", "two carries", "attention over layers", "cond in scan")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in COMPARED]
)
def test_relevance_is_that_of_the_program_without_it(name):
    """For all rules at once, and what is compiled is the same as what is not."""
    looped, plain = PAIRS[name]
    each = lambda f: [relax.lrp(f, rule, target=1)(PARAMS, X) for rule in RULES.values()]
    for got, expected in zip(
        jax.jit(part(each, looped))(), jax.jit(part(each, plain))(), strict=True
    ):
        assert np.isfinite(got).all()
        assert np.abs(got).max() > 1e-4
        close(got, expected)


FAST = ("over layers", "cond")
FIRST = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in COMPARED]


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("rule", ["Gamma", pytest.param("Flat", marks=pytest.mark.slow)])
def test_derivatives_and_vmap(name, rule):
    """Gradients of the relevance in parameters, input and hyper-parameters; samples by vmap."""
    noise = np.random.default_rng(1).normal(size=X.shape)

    def loss(function, rule, p, x):
        return jnp.sum(jnp.sin(relax.lrp(function, rule, target=1)(p, x)) * noise)

    both = [
        jax.jit(jax.grad(part(loss, f), argnums=(0, 1, 2)))(
            jax.tree.map(jnp.asarray, RULES[rule]), PARAMS, X
        )
        for f in PAIRS[name]
    ]
    jax.tree.map(part(close, tolerance=1e-10), *both)
    one = lambda f: lambda x: relax.lrp(f, RULES[rule], target=1)(PARAMS, x[:, None])[:, 0]
    looped, plain = (jax.jit(jax.vmap(one(f), in_axes=1, out_axes=1))(X) for f in PAIRS[name])
    close(looped, plain)


@pytest.mark.parametrize("name", ["recurrent", "nested", "cond", "checkpoint in scan"])
def test_derivative_against_differences(name):
    """And not only against the unrolled program: central differences in float64."""
    loss = jax.jit(lambda x: jnp.sum(jnp.sin(relax.lrp(PAIRS[name][0], RULES["Gamma"])(PARAMS, x))))
    direction, step = np.random.default_rng(2).normal(size=X.shape), 1e-5
    expected = (loss(X + step * direction) - loss(X - step * direction)) / (2 * step)
    got = float(jnp.vdot(jax.grad(loss)(X), direction))
    assert got == pytest.approx(float(expected), rel=1e-6)


def test_names_and_latent_relevance_inside_of_a_scan():
    """Weights are named by their place in the arguments; latent relevance has the scan's axis."""

    def function(p, x):
        return lax.scan(lambda h, layer: (jnp.tanh(h @ layer["w"]), None), x, p["layers"])[0]

    p, x = {"layers": {"w": STACK["w"]}}, X[0]
    (dense, tanh) = relax.layers(function)(p, x)
    assert (dense.weight_path, dense.kind, tanh.kind) == ("layers/w", "dense", "activation")
    assert not dense.first  # in the second round it is behind itself
    relevance, latent = jax.jit(relax.lrp(function, {"layers/*": rules.Epsilon()}, at="*"))(p, x)
    assert {path: r.shape for path, r in latent.items()} == {"layers": (3, 2, 4), "tanh": (3, 2, 4)}
    close(latent["tanh"][-1], function(p, x))
    close(latent["tanh"][0], relax.lrp(lambda x: x)(latent["tanh"][0]))
    assert relevance.shape == x.shape


def test_linen_scan_and_remat_keep_their_paths():
    """nn.scan over layers, with and without nn.remat: the paths of the plain module."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            return nn.relu(nn.Dense(4, name="dense")(x)), None

    class Net(nn.Module):
        remat: bool

        @nn.compact
        def __call__(self, x):
            block = nn.remat(Block, prevent_cse=False) if self.remat else Block
            stack = nn.scan(
                block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return stack(name="stack")(x)[0]

    found = []
    for remat in (False, True):
        net = Net(remat)
        params = net.init(jax.random.key(0), X[0])
        dense = relax.layers(net.apply)(params, X[0])[0]
        assert dense.weight_path == "params/stack/dense/kernel"
        assert dense.path.endswith("stack/dense")
        found.append(jax.jit(relax.lrp(net.apply))(params, X[0]))
    close(*found)


def test_a_carry_known_to_be_nonnegative_needs_one_pass():
    """Signs are a fixpoint: a scan of ReLUs over a non-negative start costs what a loop costs."""

    def function(p, x):
        step = lambda h, layer: (jax.nn.relu(h @ layer["w"]), None)
        return lax.scan(step, jax.nn.relu(x), p)[0]

    loop = lambda p, x: deep_loop(
        lambda h, layer: (jax.nn.relu(h @ layer["w"]), None), jax.nn.relu(x), unstacked(p)
    )[0]
    p = {"w": STACK["w"]}
    for rule in (rules.ZPlus(), rules.Gamma()):
        close(relax.lrp(function, rule)(p, X[0]), relax.lrp(loop, rule)(p, X[0]))


def test_checkpoint_saves_memory_in_the_program_of_relevance():
    """Temporaries of 24 scanned blocks, with and without."""

    def network(wrap):
        def function(p, x):
            block = wrap(lambda h, w: (jax.nn.gelu(jax.nn.gelu(h @ w) @ w) + h, None))
            return lax.scan(block, x, p)[0]

        return function

    p, x = jnp.zeros((24, 64, 64)), jnp.zeros((256, 64))

    def size(wrap):
        explain = jax.jit(relax.lrp(network(wrap), rules.Epsilon()))
        return explain.lower(p, x).compile().memory_analysis().temp_size_in_bytes

    assert size(jax.checkpoint) < 0.6 * size(lambda f: f)


def test_checkpoint_of_48_scanned_transformer_blocks():
    """As much is saved as the gradient saves, and relevance needs no more than it."""
    sizes = {}
    for name in ("48 blocks", "checkpoint"):
        function, params, x = loops.blocks(loops.BLOCKS[name], width=32, time=32)
        explain = relax.lrp(function, composites.attnlrp(), target=0)
        own = count(explain, params, x).memory
        gradient = count(gradient_times_input(function), params, x).memory
        assert own <= 1.1 * gradient
        sizes[name] = own
    assert sizes["checkpoint"] < 0.2 * sizes["48 blocks"]


def test_the_program_does_not_grow_with_the_number_of_steps():
    """Neither what is traced nor what is compiled."""
    traced, compiled = set(), set()
    for time in (4, 400):
        function, params, x = loops.lstm(time, width=8)
        explain = relax.lrp(function, composites.arras_lstm(), target=0)
        traced.add(len(str(jax.make_jaxpr(explain)(params, x)).splitlines()))
        compiled.add(count(explain, params, x).instructions)
    assert len(traced) == len(compiled) == 1


def test_tracing_is_linear_in_the_program():
    """Twice the layers are twice the equations, in a loop unrolled by hand."""
    counts = []
    for depth in (4, 8, 16):
        p = [jnp.eye(3)] * depth

        def function(p, x):
            for w in p:
                x = x + jnp.tanh(x @ w)
            return x

        jaxpr = jax.make_jaxpr(relax.lrp(function, composites.epsilon_plus()))(p, jnp.ones((2, 3)))
        counts.append(len(str(jaxpr).splitlines()))
    assert counts[2] - counts[1] == pytest.approx(2 * (counts[1] - counts[0]), rel=0.05)


def test_inner_jit_with_donated_and_sharded_arguments():
    """What a call inside of the function promises about its arguments does not matter."""
    inner = jax.jit(lambda x, w: jnp.tanh(x @ w), donate_argnums=0)
    mesh = jax.make_mesh((1,), ("data",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = jax.jit(lambda x, w: jnp.tanh(x @ w), in_shardings=(spec, None), out_shardings=spec)
    plain = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
    for call in (inner, placed):
        function = lambda p, x, call=call: call(x * 1.0, p["w"]) @ p["v"]
        for rule in (rules.Epsilon(0.1), rules.ZPlus()):
            close(relax.lrp(function, rule)(PARAMS, X), relax.lrp(plain, rule)(PARAMS, X))


def test_linear_solves():
    """Linear in the right side; a matrix that depends on the input is a clear error."""
    matrix = np.eye(X.shape[-1]) + 0.1 * np.tri(X.shape[-1])
    solve = lambda x: jnp.linalg.solve(matrix, x)
    x = X.reshape(-1, X.shape[-1])[0]
    close(relax.lrp(solve, target=1)(x), np.linalg.inv(matrix)[1] * x)
    inverse = lambda x: jnp.linalg.solve(matrix + jnp.outer(x, x), x)
    with pytest.raises(relax.UnsupportedOperationError, match=r"test_control_flow\.py"):
        relax.lrp(inverse)(x)


def test_a_loop_without_end_is_a_clear_error():
    """`while_loop` has no reverse mode; one that does not touch the explained value is run."""

    def function(x):
        return lax.while_loop(lambda c: c.sum() < 100, lambda c: 2 * c, x)

    with pytest.raises(relax.UnsupportedOperationError, match="while_loop"):
        relax.lrp(function)(jnp.ones(3))
    beside = lambda w, x: x @ lax.while_loop(lambda c: c.sum() < 100, lambda c: 2 * c, w)
    assert relax.lrp(beside)(jnp.ones((3, 2)), jnp.ones(3)).shape == (3,)


def test_token_ids_inside_of_a_loop_are_a_clear_error():
    table = jnp.ones((7, 4))
    looked_up = lambda ids: lax.map(lambda i: table[i].sum(), ids)
    with pytest.raises(relax.UnsupportedOperationError, match="token ids"):
        relax.lrp(looked_up)(jnp.array([1, 2]))
    embedded = lambda ids: lax.map(lambda e: jnp.tanh(e).sum(), table[ids])
    assert relax.lrp(embedded)(jnp.array([1, 2])).shape == (2,)


def test_associative_scan_is_finite():
    """It is unrolled by JAX into slices."""
    assert np.isfinite(relax.lrp(PAIRS["associative_scan"][0])(PARAMS, X)).all()
