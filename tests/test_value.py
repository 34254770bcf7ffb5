"""What the transforms return besides relevance, and what they take: values, structures, targets."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import relax
from relax import rules, select

_random = np.random.default_rng(7)
W1, B1 = _random.normal(size=(6, 8)), _random.normal(size=(1, 8))
W2, B2 = _random.normal(size=(8, 4)), _random.normal(size=(1, 4))
X = _random.normal(size=(3, 6))
PARAMS = {"hidden": {"w": W1, "b": B1}, "head": {"w": W2, "b": B2}}


def mlp(params, x):
    x = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return x @ params["head"]["w"] + params["head"]["b"]


classify = functools.partial(mlp, PARAMS)


def close(got, expected, tolerance=1e-12):
    expected = np.asarray(expected)
    assert np.shape(got) == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def same(got, expected):
    """Equal to the bit, in every leaf, with equal dtypes and structure."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert jnp.asarray(a).dtype == jnp.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# ---------------------------------------------------------------------------------- the value


def convolutional(x):
    kernel = jnp.asarray(W1[:, :3].reshape(3, 2, 3), x.dtype)
    x = x.reshape(x.shape[0], 3, 2)
    x = lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    x = jax.nn.relu(x * 1.3 - 0.2) + x
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 1, 1), "VALID")
    return jnp.concatenate([x.mean(axis=1), x.sum(axis=1)], axis=-1)


def activated(phi):
    def function(x):
        w1, b1, w2 = (jnp.asarray(a, x.dtype) for a in (W1, B1, W2))
        return phi(x @ w1 + b1) @ w2

    return function


FUNCTIONS = {
    "convolution": convolutional,
    "einsum": lambda x: jnp.einsum("ni,ij->jn", x, jnp.asarray(W1, x.dtype)).sum(axis=0),
    "tree": lambda x: {"a": x @ jnp.asarray(W1, x.dtype), "b": (x.mean(), [x.max(axis=-1)])},
    **{
        phi: activated(getattr(jax.nn, phi))
        for phi in (
            "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish",
            "sigmoid", "tanh", "softplus", "hard_tanh", "hard_swish", "soft_sign",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "dtype", [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16]
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_is_the_functions_own(name, dtype):
    """Un-jitted the value is that of the function to the bit; under jit to rounding."""
    function, x = FUNCTIONS[name], jnp.asarray(X, dtype)
    expected = function(x)
    value, relevance = relax.value_and_lrp(function)(x)
    same(value, expected)
    assert relevance.dtype == dtype
    same(relax.vrp(function, x)[0], expected)
    jitted, _ = jax.jit(relax.value_and_lrp(function))(x)
    tolerance = 32 * float(jnp.finfo(dtype).eps)
    for a, b in zip(jax.tree.leaves(jitted), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        close(np.asarray(a, np.float64), np.asarray(b, np.float64), tolerance)


def test_value_of_any_rules():
    """Rules change relevance, never the value."""
    for given in (rules.Gamma(), rules.Flat(), relax.composites.epsilon_plus_flat()):
        value, _ = relax.value_and_lrp(classify, given, target=1)(X)
        same(value, classify(X))


def test_relevance_is_that_of_lrp():
    """lrp, value_and_lrp and vrp give the same relevance."""
    expected = relax.lrp(classify, rules.Gamma(), target=2)(X)
    same(relax.value_and_lrp(classify, rules.Gamma(), target=2)(X)[1], expected)
    value, relprop = relax.vrp(classify, X, rules=rules.Gamma())
    close(relprop(value * jnp.array([[0, 0, 1, 0]]))[0], expected)


def test_name_and_documentation_are_the_functions():
    """As jax.grad's, the result keeps the function's name."""
    assert relax.lrp(mlp).__name__ == "mlp"
    assert relax.value_and_lrp(mlp).__wrapped__ is mlp


# ----------------------------------------------------------------------------- auxiliary output


def marker():
    """Something that is no array."""


def with_aux(x):
    hidden = x @ W1
    aux = {
        "hidden": hidden,
        "name": "mlp",
        "nothing": None,
        "numbers": (3, 2.5, True),
        "function": marker,
        "input": x,
    }
    return jax.nn.relu(hidden) @ W2, aux


def test_has_aux():
    """Aux comes back as it is, arrays to the bit and everything else as the very object."""
    expected_value, expected_aux = with_aux(X)
    relevance, aux = relax.lrp(with_aux, has_aux=True)(X)
    (value, aux_too), relevance_too = relax.value_and_lrp(with_aux, has_aux=True)(X)
    value_three, relprop, aux_three = relax.vrp(with_aux, X, has_aux=True)
    for given in (aux, aux_too, aux_three):
        assert set(given) == set(expected_aux)
        assert given["name"] == "mlp"
        assert given["nothing"] is None
        assert given["numbers"] == (3, 2.5, True)
        assert [type(n) for n in given["numbers"]] == [int, float, bool]
        assert given["function"] is marker
        np.testing.assert_allclose(given["hidden"], expected_aux["hidden"], rtol=1e-14)
        np.testing.assert_array_equal(given["input"], X)
    same(aux_too["hidden"], expected_aux["hidden"])
    same(value, expected_value)
    same(value_three, expected_value)
    same(relevance_too, relevance)
    close(relprop(value)[0], relevance)
    close(relevance, relax.lrp(lambda x: with_aux(x)[0])(X))


def test_has_aux_under_jit_and_vmap():
    """With auxiliary arrays, the transforms go through jit and vmap."""

    def function(x):
        hidden = jax.nn.relu(x @ W1)
        return hidden @ W2, {"hidden": hidden, "count": jnp.sum(hidden > 0)}

    relevance, aux = relax.lrp(function, has_aux=True)(X[0])
    jitted, jitted_aux = jax.jit(relax.lrp(function, has_aux=True))(X[0])
    close(jitted, relevance)
    assert int(jitted_aux["count"]) == int(aux["count"])
    mapped, mapped_aux = jax.vmap(relax.lrp(function, has_aux=True))(X)
    close(mapped[0], relevance)
    close(mapped_aux["hidden"], jax.nn.relu(X @ W1))
    (_, _), also = jax.jit(relax.value_and_lrp(function, has_aux=True))(X[0])
    close(also, relevance)


def test_aux_carries_no_relevance():
    """What leaves as aux has no share in the relevance of the value."""
    doubled = lambda x: ((x @ W1).sum(), (x @ W1 * 1e6,))
    relevance, _ = relax.lrp(doubled, rules.Epsilon(0.0), has_aux=True)(X)
    close(relevance.sum(), (X @ W1).sum(), 1e-10)


# ------------------------------------------------------------------------------- inputs, outputs

Pair = collections.namedtuple("Pair", "left right")


def of_tree(tree):
    """From {"a": array, "pair": Pair} to {"sum": array, "parts": [array, array]}; no biases."""
    left, right = tree["pair"].left @ W1, tree["pair"].right @ W1
    return {"sum": tree["a"] @ W1 + left, "parts": [jax.nn.relu(right), left.mean()]}


TREE = {"a": X, "pair": Pair(X[:1] * 2, X[1:] - 1)}


def test_pytrees_in_and_out():
    """Relevance has the structure of the argument and sums to the value, leaf by leaf."""
    value, relevance = relax.value_and_lrp(of_tree, rules.Epsilon(0.0))(TREE)
    assert jax.tree.structure(relevance) == jax.tree.structure(TREE)
    assert isinstance(relevance["pair"], Pair)
    assert jax.tree.map(jnp.shape, relevance) == jax.tree.map(jnp.shape, TREE)
    total = sum(float(leaf.sum()) for leaf in jax.tree.leaves(value))
    assert sum(float(leaf.sum()) for leaf in jax.tree.leaves(relevance)) == pytest.approx(total)
    close(relevance["pair"].right.sum(), value["parts"][0].sum(), 1e-10)


def test_pytree_seeds():
    """relprop takes relevance in the structure of the value, and is linear in it."""
    value, relprop = relax.vrp(of_tree, TREE, rules=rules.Epsilon())
    only = jax.tree.map(jnp.zeros_like, value) | {"sum": value["sum"]}
    rest = value | {"sum": jnp.zeros_like(value["sum"])}
    (one,), (two,), (both,) = relprop(only), relprop(rest), relprop(value)
    jax.tree.map(lambda a, b, c: close(a + b, c, 1e-10), one, two, both)
    assert np.abs(one["pair"].right).max() == 0


def test_none_in_arguments_is_kept():
    """None is an empty pytree, as everywhere in JAX."""
    function = lambda tree: tree["x"] @ W1
    relevance = relax.lrp(function)({"x": X, "mask": None})
    assert relevance["mask"] is None
    close(relevance["x"], relax.lrp(lambda x: x @ W1)(X))


def two(x, y):
    return jax.nn.relu(x @ W1 + 0.5 * (y @ W1) + B1) @ W2


Y = _random.normal(size=(3, 6))


def test_default_argnum_is_the_last():
    same(relax.lrp(two)(X, Y), relax.lrp(two, argnums=1)(X, Y))
    same(relax.lrp(mlp)(PARAMS, X), relax.lrp(mlp, argnums=1)(PARAMS, X))


@pytest.mark.parametrize("argnums", [(0, 1), (1, 0), (-2, -1), [0, 1], (0,), 0, -2])
def test_argnums(argnums):
    """As in jax.grad: a sequence gives a tuple in its order, an int a single relevance.

    Each part of a sum explained together has the share it has in the whole.
    """
    relevance = relax.lrp(two, rules.Epsilon(0.0), argnums=argnums)(X, Y)
    gradient = jax.grad(lambda x, y: two(x, y).sum(), argnums=(0, 1))(X, Y)
    expected = [a * g for a, g in zip((X, Y), gradient, strict=True)]
    if isinstance(argnums, int):
        close(relevance, expected[argnums], 1e-10)
        return
    assert isinstance(relevance, tuple)
    for i, part in zip(argnums, relevance, strict=True):
        close(part, expected[i], 1e-10)


def test_argnums_of_pytrees():
    """Several explained arguments, one of them a tree."""
    function = lambda scale, tree, x: tree["u"] @ W1 + scale * (x @ W1)
    tree, x = relax.lrp(function, argnums=(1, 2))(2.0, {"u": X}, Y)
    assert jax.tree.structure(tree) == jax.tree.structure({"u": 0})
    close(tree["u"] + x, relax.lrp(lambda x, y: x @ W1 + 2.0 * (y @ W1), argnums=(0, 1))(X, Y)[0]
          + relax.lrp(lambda x, y: x @ W1 + 2.0 * (y @ W1), argnums=(0, 1))(X, Y)[1])  # fmt: skip


def test_parameters_can_be_explained():
    """argnums=0 explains the weights: of a bias-free linear layer they carry all of it."""
    function = lambda w, x: x @ w
    relevance = relax.lrp(function, rules.Epsilon(0.0), argnums=0)(W1, X)
    assert relevance.shape == W1.shape
    close(relevance.sum(), (X @ W1).sum(), 1e-10)


def test_keyword_arguments():
    """Keywords are passed on, arrays or not, and are never explained."""

    def function(x, *, scale, mode="plain", extra=None):
        assert mode == "other"
        assert extra is None
        return scale * (x @ W1)

    linear = rules.Epsilon(0.0)  # an epsilon acts before or behind a scale
    got = relax.lrp(function, linear)(X, scale=jnp.array(2.0), mode="other")
    close(got, relax.lrp(lambda x: 2 * (x @ W1), linear)(X), 1e-10)
    value, _ = relax.value_and_lrp(function)(X, scale=3.0, mode="other")
    close(value, 3 * (X @ W1))


def test_static_positional_arguments():
    """Strings, functions and flags go in as they are."""

    def function(phi, training, name, x):
        assert training is False
        assert name == "layer"
        return phi(x @ W1) @ W2

    got = relax.lrp(function)(jnp.tanh, False, "layer", X)
    close(got, relax.lrp(lambda x: jnp.tanh(x @ W1) @ W2)(X))


def test_numpy_and_python_numbers():
    """numpy arrays and Python floats are arguments like any other."""
    same(relax.lrp(classify)(X), relax.lrp(classify)(jnp.asarray(X)))
    relevance = relax.lrp(lambda x: 3.0 * x)(2.0)
    assert relevance.shape == ()
    assert float(relevance) == pytest.approx(6.0)


@pytest.mark.parametrize("given", [rules.Epsilon(), rules.Gamma(), rules.ZPlus(), rules.Flat()])
def test_single_sample_and_batch(given):
    """A function that takes both gives every sample the relevance it has alone."""
    shift = lambda z, b: z + b.reshape((1,) * (z.ndim - 1) + (-1,))
    function = lambda x: shift(jax.nn.relu(shift(x @ W1, B1)) @ W2, B2)
    batch = relax.lrp(function, given, target=1)(X)
    for x, expected in zip(X, batch, strict=True):
        close(relax.lrp(function, given, target=1)(x), expected)
    many = np.stack([X, 2 * X])
    close(relax.lrp(function, given, target=1)(many)[0], batch)


def test_scalar_value():
    """A function with a scalar value needs no target."""
    relevance = relax.lrp(lambda x: jax.nn.relu(x @ W1).sum(), rules.Epsilon(0.0))(X)
    close(relevance.sum(), jax.nn.relu(X @ W1).sum(), 1e-10)


# ------------------------------------------------------------------------ closed-over parameters


def test_mutated_dictionary():
    """Closed-over arrays exchanged between calls: the next call sees the new ones."""
    params = {"w": W1, "b": B1}
    function = lambda x: x @ params["w"] + params["b"]
    explain, both = relax.lrp(function, rules.ZPlus()), relax.value_and_lrp(function)
    before, _ = explain(X), both(X)
    params["w"] = -2 * W1
    fresh = lambda x: x @ (-2 * W1) + B1
    close(explain(X), relax.lrp(fresh, rules.ZPlus())(X))
    same(both(X)[0], function(X))
    assert np.abs(explain(X) - before).max() > 0.1


def test_array_mutated_in_place():
    """The same numpy array with other contents."""
    w = W1.copy()
    explain = relax.value_and_lrp(lambda x: x @ w, rules.ZPlus())
    explain(X)
    w *= -1
    value, relevance = explain(X)
    same(value, jnp.asarray(X) @ -W1)
    close(relevance, relax.lrp(lambda x: x @ -W1, rules.ZPlus())(X))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.hidden(x)))


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: lambda x: model(x)])
def test_nnx_module_updated_in_place(wrap):
    """An NNX module is one object whose parameters change under it: no stale trace."""
    model = Model(nnx.Rngs(0))
    x = jnp.asarray(X, jnp.float32)
    explain = relax.value_and_lrp(wrap(model), rules.ZPlus(), target=0)
    _, before = explain(x)
    nnx.update(model, jax.tree.map(lambda a: -1.5 * a + 0.1, nnx.state(model)))
    value, after = explain(x)
    same(value, model(x))
    graph, state = nnx.split(model)
    fresh = lambda x: nnx.merge(graph, state)(x)
    close(after, relax.lrp(fresh, rules.ZPlus(), target=0)(x), 1e-6)
    assert np.abs(after - before).max() > 1e-3


def test_traced_closure():
    """Closed-over tracers: a function made inside jit and grad is explained there."""

    def loss(w):
        return (relax.lrp(lambda x: jnp.tanh(x @ w) @ W2)(X) ** 2).sum()

    step = 1e-6 * np.ones_like(W1)
    expected = (loss(W1 + step) - loss(W1 - step)) / 2e-6
    assert float(jax.jit(jax.grad(loss))(W1).sum()) == pytest.approx(float(expected), rel=1e-6)


# ------------------------------------------------------------------------------------- targets


def masked(mask):
    """The relevance of chosen entries, by a callable target."""
    return relax.lrp(classify, rules.Gamma(), target=lambda value: value * mask)(X)


VALUE = classify(X)
ENTRIES = np.eye(4)
TARGETS = {
    "None": (None, np.ones((3, 4))),
    "int": (2, ENTRIES[[2, 2, 2]]),
    "negative int": (-1, ENTRIES[[3, 3, 3]]),
    "numpy int": (np.int32(1), ENTRIES[[1, 1, 1]]),
    "0-d array": (jnp.array(1), ENTRIES[[1, 1, 1]]),
    "array": (np.array([0, 3, 1]), ENTRIES[[0, 3, 1]]),
    "negative array": (jnp.array([-4, -1, 1]), ENTRIES[[0, 3, 1]]),
    "list": ([0, 3, 1], ENTRIES[[0, 3, 1]]),
    "small dtype": (np.array([0, 3, -1], np.int8), ENTRIES[[0, 3, 3]]),
    "max": ("max", ENTRIES[np.argmax(VALUE, axis=-1)]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_target(name):
    """Every way to choose entries is a mask on the value."""
    target, mask = TARGETS[name]
    got = relax.lrp(classify, rules.Gamma(), target=target)(X)
    close(got, masked(mask))
    assert np.abs(got).max() > 0


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("None", "max")])
def test_traced_target(name):
    """A target that is an argument of jit."""
    target, mask = TARGETS[name]
    explain = jax.jit(lambda x, t: relax.lrp(classify, rules.Gamma(), target=t)(x))
    close(explain(X, jnp.asarray(target)), masked(mask))


def test_target_is_composition():
    """target=c is the same as explaining f(x)[..., c]."""
    for target in (0, 3):
        chosen = lambda x, c=target: classify(x)[..., c]
        got = relax.lrp(classify, rules.Gamma(), target=target)(X)
        close(got, relax.lrp(chosen, rules.Gamma())(X))


def test_vmap_over_targets():
    """All classes at once; a rule linear in relevance makes them add up to the whole."""
    each = lambda t: relax.lrp(classify, rules.Gamma(), target=t)(X)
    all_classes = jax.jit(jax.vmap(each))(jnp.arange(4))
    for c in range(4):
        close(all_classes[c], each(c))
    close(all_classes.sum(axis=0), each(None), 1e-10)


def test_target_of_a_single_sample():
    """The value has one axis: an int, or an array without axes."""
    function = lambda x: classify(x[None])[0]
    expected = relax.lrp(classify, target=np.array([2, 2, 2]))(X)[1]
    for target in (2, -2, jnp.array(2)):
        close(relax.lrp(function, target=target)(X[1]), expected)
    best = int(np.argmax(function(X[1])))
    close(relax.lrp(function, target="max")(X[1]), relax.lrp(function, target=best)(X[1]))


def test_target_of_many_axes():
    """An array of the value's shape without its last axis."""
    many = np.stack([X, -X])
    function = lambda x: jax.nn.relu(x @ W1) @ W2
    target = np.array([[0, 1, 2], [3, -1, 0]])
    got = relax.lrp(function, target=target)(many)
    for i in range(2):
        close(got[i], relax.lrp(function, target=target[i])(many[i]))


def test_target_of_a_nested_value():
    """One array in a structure is still one array."""
    nested = lambda x: {"logits": classify(x)}
    close(relax.lrp(nested, target=1)(X), relax.lrp(classify, target=1)(X))


def test_callable_target_of_a_tree():
    """A callable target gives relevance in the structure of the value."""
    target = lambda value: jax.tree.map(jnp.zeros_like, value) | {"sum": value["sum"]}
    got = relax.lrp(of_tree, rules.Epsilon(0.0), target=target)(TREE)
    total = float(of_tree(TREE)["sum"].sum())
    got = sum(float(leaf.sum()) for leaf in jax.tree.leaves(got))
    assert got == pytest.approx(total, rel=1e-5)  # from relevance to coefficients: epsilon 1e-6


def test_callable_target_is_relevance_itself():
    """Ones, logit differences, anything: what it returns is R of the output, not a mask."""
    single = lambda x: x @ W1
    ones = relax.lrp(single, rules.Epsilon(0.0), target=jnp.ones_like)(X)
    close(ones.sum(axis=1), np.full(3, 8.0), 1e-9)
    contrast = lambda v: jnp.stack([v[:, 0] - v[:, 1], *(v[:, 2:] * 0).T], axis=1)
    padded = lambda v: jnp.concatenate([contrast(v), jnp.zeros((3, 1))], axis=1)
    got = relax.lrp(classify, rules.Epsilon(0.0), target=padded)(X)
    _, relprop = relax.vrp(classify, X, rules=rules.Epsilon(0.0))
    close(got, relprop(padded(VALUE))[0])


# ----------------------------------------------------------------------------------------- vrp


@pytest.mark.parametrize(
    "given", [rules.Epsilon(), rules.Gamma(), rules.AlphaBeta(), rules.Flat(), rules.WSquare()]
)
def test_vrp_is_lrp(given):
    """relprop of the masked value is lrp with the target; of the value, without."""
    value, relprop = relax.vrp(classify, X, rules=given)
    same(value, classify(X))
    close(relprop(value)[0], relax.lrp(classify, given)(X))
    mask = ENTRIES[[0, 3, 1]]
    close(relprop(value * mask)[0], relax.lrp(classify, given, target=np.array([0, 3, 1]))(X))


def test_vrp_of_several_primals():
    """A tuple of relevances, one for each primal, as jax.vjp."""
    value, relprop = relax.vrp(two, X, Y, rules=rules.Epsilon())
    result = relprop(value)
    assert isinstance(result, tuple)
    expected = relax.lrp(two, rules.Epsilon(), argnums=(0, 1))(X, Y)
    for got, part in zip(result, expected, strict=True):
        close(got, part)


def test_relprop_can_be_called_again():
    """relprop is a pure function: of many seeds, in any order, under jit and vmap."""
    value, relprop = relax.vrp(classify, X, rules=rules.Gamma())
    first = relprop(value)[0]
    half = relprop(0.5 * value)[0]
    same(relprop(value)[0], first)
    close(half, 0.5 * first)
    close(jax.jit(relprop)(value)[0], first)
    seeds = value[None] * ENTRIES[:, None, :]
    close(jax.vmap(lambda r: relprop(r)[0])(seeds).sum(axis=0), first, 1e-10)


def test_vrp_under_jit():
    def run(x, r):
        value, relprop = relax.vrp(classify, x, rules=rules.Gamma())
        return value, relprop(r)[0]

    value, relevance = jax.jit(run)(X, VALUE)
    close(value, VALUE)
    close(relevance, relax.lrp(classify, rules.Gamma())(X))


def test_relprop_wants_the_structure_of_the_value():
    _, relprop = relax.vrp(of_tree, TREE)
    with pytest.raises(relax.ArgumentError, match="structure"):
        relprop(X)


def test_rules_as_mapping_and_list_are_equal():
    """The forms in which rules are given make no difference."""
    pairs = [(select.first, rules.ZBox(-3.0, 3.0)), (select.dense, rules.Gamma())]
    expected = relax.lrp(classify, relax.Composite(tuple(pairs)))(X)
    same(relax.lrp(classify, pairs)(X), expected)
    same(relax.lrp(classify, dict(pairs))(X), expected)
    chosen = lambda layer: (
        rules.ZBox(-3.0, 3.0) if layer.first else rules.Gamma() if layer.kind == "dense" else None
    )
    same(relax.lrp(classify, chosen)(X), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64])
def test_a_target_of_any_integer_type(dtype):
    """Small types hold small numbers; there may be more classes than those."""
    w, x = np.ones((3, 300)) * np.arange(300), np.ones(3)
    number = 100 if dtype is np.uint8 else -1
    expected = relax.lrp(lambda x: x @ w, target=number)(x)
    for target in (dtype(number), jnp.asarray(number, dtype)):
        got = jax.jit(lambda t: relax.lrp(lambda x: x @ w, target=t)(x))(target)
        np.testing.assert_allclose(got, expected)
