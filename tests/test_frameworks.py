"""One residual network in six frameworks: unchanged, addressable, and the same relevance in all.

Oracle: the network in bare JAX with the same weights, in float64.
"""

import functools
import warnings

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import relax
from relax import rules, select

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import haiku as hk
    import keras

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
EPS = 1e-3


@pytest.fixture(autouse=True)
def _rank_promotion():
    """Frameworks add biases of lower rank; that is their affair."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def weights():
    """Kernels in HWIO, dense kernels in (in, out), BatchNorm with every second scale negative."""
    rng = np.random.default_rng(3)
    normal = lambda *shape: rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
    norm = lambda n: {
        "scale": rng.uniform(0.5, 1.5, n) * np.where(np.arange(n) % 2, -1, 1),
        "bias": 0.3 * rng.normal(size=n),
        "mean": 0.3 * rng.normal(size=n),
        "var": rng.uniform(0.5, 1.5, n),
    }
    layer = lambda *shape: {"kernel": normal(*shape), "bias": 0.3 * rng.normal(size=shape[-1])}
    return {
        "conv1": layer(3, 3, 2, 4),
        "norm1": norm(4),
        "conv2": layer(3, 3, 4, 4),
        "norm2": norm(4),
        "hidden": layer(4, 5),
        "head": layer(5, 3),
    }


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(4).uniform(-1, 1, (2, 6, 6, 2)))


# Bare JAX


def conv(p, x):
    z = lax.conv_general_dilated(
        x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return z + p["bias"]


def norm(p, x):
    return (x - p["mean"]) * (p["scale"] * lax.rsqrt(p["var"] + EPS)) + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def bare(p, x):
    x = jax.nn.relu(norm(p["norm1"], conv(p["conv1"], x)))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(x + norm(p["norm2"], conv(p["conv2"], x)))
    return dense(p["head"], jax.nn.gelu(dense(p["hidden"], x.mean((1, 2)))))


# Flax Linen


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, epsilon=EPS)
        x = nn.relu(norm(name="norm1")(nn.Conv(4, (3, 3), name="conv1")(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(x + norm(name="norm2")(nn.Conv(4, (3, 3), name="conv2")(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(3, name="head")(nn.gelu(nn.Dense(5, name="hidden")(x)))


def linen(weights):
    params = {k: v for k, v in weights.items() if "norm" not in k}
    for name in ("norm1", "norm2"):
        params[name] = {k: weights[name][k] for k in ("scale", "bias")}
    stats = {n: {k: weights[n][k] for k in ("mean", "var")} for n in ("norm1", "norm2")}
    variables = jax.tree.map(jnp.asarray, {"params": params, "batch_stats": stats})
    return LinenNet().apply, (variables,)


# Flax NNX


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(4, epsilon=EPS, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(4, epsilon=EPS, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.hidden = nnx.Linear(4, 5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        x = nnx.relu(x + self.norm2(self.conv2(x)))
        return self.head(nnx.gelu(self.hidden(self.dropout(x.mean((1, 2))))))


def nnx_model(weights):
    model = NNXNet(nnx.Rngs(0))
    model.eval()
    for name, parts in weights.items():
        for part, value in parts.items():
            variable = getattr(getattr(model, name), part)
            variable.set_value(jnp.asarray(value))
    return model


def nnx_closed(weights):
    model = nnx_model(weights)
    return (lambda x: model(x)), ()


def nnx_split(weights):
    graph, state = nnx.split(nnx_model(weights))
    return (lambda state, x: nnx.merge(graph, state)(x)), (state,)


def nnx_argument(weights):
    return (lambda model, x: model(x)), (nnx_model(weights),)


# Equinox


class EquinoxNet(eqx.Module):
    conv1: eqx.nn.Conv2d
    norm1: eqx.nn.BatchNorm
    pool: eqx.nn.MaxPool2d
    conv2: eqx.nn.Conv2d
    norm2: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        self.conv1 = eqx.nn.Conv2d(2, 4, 3, padding=1, key=key)
        self.norm1 = eqx.nn.BatchNorm(4, "batch", eps=EPS, mode="batch")
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.conv2 = eqx.nn.Conv2d(4, 4, 3, padding=1, key=key)
        self.norm2 = eqx.nn.BatchNorm(4, "batch", eps=EPS, mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.hidden = eqx.nn.Linear(4, 5, key=key)
        self.head = eqx.nn.Linear(5, 3, key=key)

    def __call__(self, x, state):
        y, state = self.norm1(self.conv1(x), state)
        y = self.pool(jax.nn.relu(y))
        z, state = self.norm2(self.conv2(y), state)
        y = self.dropout(jax.nn.relu(y + z).mean((1, 2)))
        return self.head(jax.nn.gelu(self.hidden(y))), state


def equinox(weights):
    model, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))
    put = lambda model, where, value: eqx.tree_at(where, model, jnp.asarray(value))
    for name, p in weights.items():
        get = lambda m, name=name: getattr(m, name)
        if "norm" in name:
            state = state.set(
                get(model).batch_state_index, (jnp.asarray(p["mean"]), jnp.asarray(p["var"]))
            )
            model = put(model, lambda m, get=get: get(m).weight, p["scale"])
            model = put(model, lambda m, get=get: get(m).bias, p["bias"])
            continue
        kernel, bias = p["kernel"], p["bias"]
        if "conv" in name:
            kernel, bias = kernel.transpose(3, 2, 0, 1), bias[:, None, None]
        else:
            kernel = kernel.T
        model = put(model, lambda m, get=get: get(m).weight, kernel)
        model = put(model, lambda m, get=get: get(m).bias, bias)
    model = eqx.nn.inference_mode(model)

    def fun(model, x):
        batched = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
        return batched(x.transpose(0, 3, 1, 2), state)[0]

    return fun, (model,)


# Haiku


def haiku_net(x):
    norm = functools.partial(
        hk.BatchNorm, create_scale=True, create_offset=True, decay_rate=0.9, eps=EPS
    )
    x = jax.nn.relu(norm(name="norm1")(hk.Conv2D(4, 3, name="conv1")(x), is_training=False))
    x = hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(x + norm(name="norm2")(hk.Conv2D(4, 3, name="conv2")(x), is_training=False))
    return hk.Linear(3, name="head")(jax.nn.gelu(hk.Linear(5, name="hidden")(x.mean((1, 2)))))


def haiku(weights):
    params, state = {}, {}
    for name, p in weights.items():
        if "norm" not in name:
            params[name] = {"w": jnp.asarray(p["kernel"]), "b": jnp.asarray(p["bias"])}
            continue
        wide = {k: jnp.asarray(v).reshape(1, 1, 1, -1) for k, v in p.items()}
        params[name] = {"scale": wide["scale"], "offset": wide["bias"]}
        for ours, theirs in (("mean", "mean_ema"), ("var", "var_ema")):
            state[f"{name}/~/{theirs}"] = {
                "counter": jnp.array(0),
                "hidden": wide[ours],
                "average": wide[ours],
            }
    net = hk.without_apply_rng(hk.transform_with_state(haiku_net))
    return (lambda params, x: net.apply(params, state, x)[0]), (params,)


# Keras


@functools.cache
def keras_net():
    layers = keras.layers
    options = {"dtype": "float64"}
    inputs = keras.Input((6, 6, 2), dtype="float64")
    x = layers.Conv2D(4, 3, padding="same", name="conv1", **options)(inputs)
    x = layers.BatchNormalization(epsilon=EPS, name="norm1", **options)(x)
    x = layers.MaxPooling2D(**options)(layers.ReLU(**options)(x))
    y = layers.Conv2D(4, 3, padding="same", name="conv2", **options)(x)
    y = layers.BatchNormalization(epsilon=EPS, name="norm2", **options)(y)
    x = layers.Activation("relu", **options)(layers.Add(**options)([x, y]))
    x = layers.Dropout(0.5, **options)(layers.GlobalAveragePooling2D(**options)(x))
    x = layers.Dense(5, name="hidden", **options)(x)
    x = layers.Activation(jax.nn.gelu, **options)(x)
    return keras.Model(inputs, layers.Dense(3, name="head", **options)(x))


def keras_model(weights):
    model = keras_net()
    for name, p in weights.items():
        order = ("scale", "bias", "mean", "var") if "norm" in name else ("kernel", "bias")
        model.get_layer(name).set_weights([p[k] for k in order])
    return model


def keras_closed(weights):
    model = keras_model(weights)
    return (lambda x: model(x, training=False)), ()


def keras_stateless(weights):
    model = keras_model(weights)
    trainable = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]
    return (lambda t, n, x: model.stateless_call(t, n, x, training=False)[0]), (trainable, fixed)


FRAMEWORKS = {
    "linen": linen,
    "nnx closed over": nnx_closed,
    "nnx split": nnx_split,
    "nnx argument": nnx_argument,
    "equinox": equinox,
    "haiku": haiku,
    "keras": keras_closed,
    "keras stateless": keras_stateless,
}
# Frameworks whose paths name the layer: by scope, or by the path of its weight.
NAMED = [name for name in FRAMEWORKS if name != "keras stateless"]

RULES = [
    (select.first, rules.ZBox(-1.0, 1.0)),
    (select.conv, rules.Gamma(0.25)),
    (select.dense, rules.Epsilon(0.1)),
]


def explain(fun, chosen, args):
    """Value and relevance of class 1, computed under jit with closed-over extras."""
    dynamic, static = eqx.partition(args, eqx.is_array)
    call = lambda dynamic: relax.value_and_lrp(fun, chosen, target=1)(*eqx.combine(dynamic, static))
    return quick(call)(dynamic)


@pytest.fixture(scope="module")
def expected(weights, x):
    """Value and relevance of the bare network, by the pattern that gets ZPlus (None: `RULES`)."""

    @functools.cache
    def compute(pattern=None):
        with jax.numpy_rank_promotion("allow"):
            chosen = RULES if pattern is None else {pattern: rules.ZPlus()} if pattern else ()
            return explain(bare, chosen or rules.Epsilon(), (weights, x))

    return compute


@pytest.fixture(scope="module")
def built(weights):
    """Each framework's model, built once."""
    return functools.cache(lambda name: FRAMEWORKS[name](weights))


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_relevance_is_that_of_bare_jax(name, built, expected, x):
    """Convolution + BatchNorm, pooling, residual, dropout, dense layers: no wrapper, no change."""
    fun, args = built(name)
    value, relevance = explain(fun, RULES, (*args, x))
    single = "keras" in name  # it takes a detour through float32
    np.testing.assert_allclose(value, expected()[0], rtol=1e-6 if single else 1e-12)
    np.testing.assert_allclose(
        relevance, expected()[1], rtol=1e-5 if single else 1e-9, atol=1e-7 if single else 1e-12
    )


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_batchnorm_is_merged_and_the_first_layer_found(name, built, weights, x):
    """The plan has the layers of the bare network, in the same order, whatever wrote it."""
    fun, args = built(name)
    want = lambda plan: [(row.kind, row.first) for row in plan if row.kind != "activation"]
    ours, expected = relax.layers(fun)(*args, x), relax.layers(bare)(weights, x)
    assert want(ours) == want(expected)
    assert [row.first for row in ours].count(True) == 1
    kinds = [row.kind for row in ours]
    assert kinds.count("activation") == 3
    assert kinds.count("scale_shift") == 0


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("layer", ["conv2", "head"])
def test_a_rule_by_name_changes_exactly_that_layer(name, layer, built, expected, x):
    """The glob finds the layer by scope or by weight, in every framework that names either."""
    fun, args = built(name)
    chosen = {f"*{layer}*": rules.ZPlus()}
    _, relevance = explain(fun, chosen, (*args, x))
    np.testing.assert_allclose(relevance, expected(f"*{layer}*")[1], rtol=1e-5, atol=1e-7)
    assert np.abs(relevance - expected("")[1]).max() > 1e-3
    plan = relax.layers(fun, chosen)(*args, x)
    assert [type(row.rule).__name__ for row in plan].count("ZPlus") == 1


WEIGHT_PATHS = {
    "linen": ["params/conv1/kernel", "params/conv2/kernel", "params/hidden/kernel"],
    "nnx closed over": ["conv1/kernel", "conv2/kernel", "hidden/kernel"],
    "nnx split": ["conv1/kernel", "conv2/kernel", "hidden/kernel"],
    "nnx argument": ["conv1/kernel", "conv2/kernel", "hidden/kernel"],
    "equinox": ["conv1/weight", "conv2/weight", "hidden/weight"],
    "haiku": ["conv1/w", "conv2/w", "hidden/w"],
    "keras": ["conv1/kernel", "conv2/kernel", "hidden/kernel"],
}


@pytest.mark.parametrize("name", WEIGHT_PATHS)
def test_the_plan_shows_the_path_of_each_weight(name, built, x):
    """As the framework itself names it."""
    fun, args = built(name)
    plan = relax.layers(fun)(*args, x)
    paths = [row.weight_path for row in plan if row.kind in ("dense", "conv")]
    assert paths[:3] == WEIGHT_PATHS[name]


@pytest.mark.parametrize(
    ("name", "scopes"),
    [
        ("linen", ["LinenNet/conv1", "LinenNet/conv2", "LinenNet/hidden", "LinenNet/head"]),
        ("haiku", ["conv1", "conv2", "hidden", "head"]),
        ("keras", ["conv1", "conv2", "hidden", "head"]),
        ("keras stateless", ["conv1", "conv2", "hidden", "head"]),
    ],
)
def test_scope_paths_of_the_frameworks_that_have_them(name, scopes, built, x):
    """A rule by the end of the scope path reaches each layer."""
    fun, args = built(name)
    rows = [r for r in relax.layers(fun)(*args, x) if r.kind in ("dense", "conv")]
    for row, scope in zip(rows, scopes, strict=True):
        assert row.path.endswith(scope)
        plan = relax.layers(fun, {scope.rpartition("/")[2]: rules.Flat()})(*args, x)
        assert [r.path for r in plan if isinstance(r.rule, rules.Flat)] == [row.path]


@pytest.mark.parametrize("name", ["linen", "equinox", "haiku", "nnx argument"])
def test_relevance_of_a_single_sample(name, built, expected, x):
    """A batch of one, taken apart and put together, explains as within the batch."""
    fun, args = built(name)
    single = lambda *args: fun(*args[:-1], args[-1][None])[0]
    _, relevance = explain(single, RULES, (*args, x[0]))
    np.testing.assert_allclose(relevance, expected()[1][0], rtol=1e-9, atol=1e-12)


def test_an_nnx_module_updated_in_place_is_traced_afresh(weights, x):
    """Relevance follows the module, not the constants of the first call."""
    model = nnx_model(weights)
    call = lambda x: model(x)
    _, before = explain(call, rules.Epsilon(), (x,))
    model.head.kernel.set_value(2 * model.head.kernel[...])
    model.head.bias.set_value(2 * model.head.bias[...])
    np.testing.assert_allclose(explain(call, rules.Epsilon(), (x,))[1], 2 * before, rtol=1e-4)


def test_a_keras_model_updated_in_place_is_traced_afresh(weights, x):
    """Keras holds its variables in the model as well."""
    model = keras_model(weights)
    call = lambda x: model(x, training=False)
    _, before = explain(call, rules.Epsilon(), (x,))
    head = model.get_layer("head")
    head.set_weights([2 * w for w in head.get_weights()])
    after = explain(call, rules.Epsilon(), (x,))[1]
    np.testing.assert_allclose(after, 2 * before, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["linen", "nnx split", "haiku"])
def test_float32_and_the_users_precision_are_kept(name, weights, expected, x):
    """In float32 the result is float32, and the bare network's to single precision."""
    single = jax.tree.map(lambda a: np.asarray(a, np.float32), weights)
    fun, args = FRAMEWORKS[name](single)
    _, relevance = explain(fun, RULES, (*args, x.astype(jnp.float32)))
    assert relevance.dtype == jnp.float32
    np.testing.assert_allclose(relevance, expected()[1], rtol=2e-3, atol=2e-6)


def test_the_bound_apply_of_linen_and_extra_arguments(weights, x):
    """Keyword arguments and bound modules are passed on as they are."""
    apply, (variables,) = linen(weights)
    bound = LinenNet().bind(variables)
    explained = relax.lrp(apply, argnums=1, target=1)
    keyword, position, method = quick(
        lambda x: (
            explained(variables, x, train=False),
            explained(variables, x, False),
            relax.lrp(lambda x: bound(x), target=1)(x),
        )
    )(x)
    np.testing.assert_allclose(position, keyword, rtol=1e-9)
    np.testing.assert_allclose(method, keyword, rtol=1e-9)


def test_an_equinox_module_is_a_function_itself(weights, x):
    """``lrp(model)`` of a callable pytree: names and relevance are found all the same."""
    model = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0))
    sample = jnp.asarray(np.random.default_rng(0).normal(size=4))
    plan = relax.layers(model)(sample)
    paths = [row.weight_path for row in plan if row.kind == "dense"]
    assert paths == ["layers/0/weight", "layers/1/weight"]
    closed = relax.lrp(lambda x: model(x), rules.ZPlus())(sample)
    np.testing.assert_array_equal(relax.lrp(model, rules.ZPlus())(sample), closed)
