"""Equinox modules as JAX functions, against the modules themselves and against bare JAX."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("equinox", reason="extra `equinox` not installed")

import equinox as eqx
from adapter_network import EPS, bare, explained, is_a_jax_function, sample, weights

import relax
from relax import rules
from relax.adapters.equinox import Stateful, to_jax


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key, mode):
        self.conv = eqx.nn.Conv2d(2, 4, 3, padding=1, key=key)
        self.norm = eqx.nn.BatchNorm(4, "samples", eps=EPS, mode=mode)
        self.drop = eqx.nn.Dropout(0.5)
        self.hidden = eqx.nn.Linear(4, 5, key=key)
        self.head = eqx.nn.Linear(5, 3, key=key)

    def __call__(self, x, state, *, key=None):
        y, state = self.norm(self.conv(x.transpose(2, 0, 1)), state)
        y = self.drop(jax.nn.relu(y).mean((1, 2)), key=key)
        return self.head(jax.nn.relu(self.hidden(y))), state


def net(seed=0, mode="ema"):
    """The statistics are where each mode of BatchNorm has them; "batch" debiases by a count."""
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0), mode)
    w = weights(seed)
    put = lambda model, where, value: eqx.tree_at(where, model, jnp.asarray(value))
    model = put(model, lambda m: m.conv.weight, w["conv"]["kernel"].transpose(3, 2, 0, 1))
    model = put(model, lambda m: m.conv.bias, w["conv"]["bias"][:, None, None])
    model = put(model, lambda m: m.norm.weight, w["norm"]["scale"])
    model = put(model, lambda m: m.norm.bias, w["norm"]["bias"])
    for name in ("hidden", "head"):
        get = lambda m, name=name: getattr(m, name)
        model = put(model, lambda m, get=get: get(m).weight, w[name]["kernel"].T)
        model = put(model, lambda m, get=get: get(m).bias, w[name]["bias"])
    mean, var = jnp.asarray(w["norm"]["mean"]), jnp.asarray(w["norm"]["var"])
    if mode == "ema":
        return model, state.set(model.norm.ema_state_index, (mean, var))
    rounds = 2 + seed
    state = state.set(model.norm.batch_counter, jnp.array(rounds))
    seen = 1 - model.norm.momentum**rounds
    return model, state.set(model.norm.batch_state_index, (mean * seen, var * seen))


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_it_infers_and_explains_as_bare_jax(mode):
    """Value of the module in inference mode under vmap, relevance of the bare network."""
    (model, state), x = net(mode=mode), jnp.asarray(sample())
    f, params = to_jax(model, state, batched=True)
    value, relevance = explained(f, params, x)
    want, want_relevance = explained(bare, weights(), x)
    np.testing.assert_allclose(value, want, rtol=1e-10)
    np.testing.assert_allclose(relevance, want_relevance, rtol=1e-8, atol=1e-10)
    inferring = lambda x: eqx.nn.inference_mode(model)(x, state)[0]
    np.testing.assert_allclose(f(params, x), jax.vmap(inferring)(x), rtol=1e-12)


@pytest.mark.slow
def test_one_sample_is_what_the_module_takes():
    """Without ``batched``; relevance as in the batch."""
    (model, state), x = net(), jnp.asarray(sample())
    f, params = to_jax(model, state)
    batched, _ = to_jax(model, state, batched=True)
    want = relax.lrp(batched, target=1)(params, x)
    np.testing.assert_allclose(relax.lrp(f, target=1)(params, x[2]), want[2], rtol=1e-9, atol=1e-12)


def test_layers_are_named_by_the_paths_of_fields():
    """And rules find them by name; params have the paths of the module."""
    f, params = to_jax(*net(), batched=True)
    rows = list(relax.layers(f, {"hidden": rules.ZPlus()})(params, sample()))
    dense = [row for row in rows if row.kind in ("conv", "dense")]
    assert [row.path for row in dense] == ["conv", "hidden", "head"]
    assert [row.weight_path for row in dense] == [
        "module/conv/weight",
        "module/hidden/weight",
        "module/head/weight",
    ]
    assert [row.path for row in rows if isinstance(row.rule, rules.ZPlus)] == ["hidden"]


@pytest.mark.parametrize("mode", ["ema", pytest.param("batch", marks=pytest.mark.slow)])
def test_it_is_a_jax_function(mode):
    (f, params), (_, other) = (to_jax(*net(seed, mode), batched=True) for seed in (0, 1))
    x = jnp.asarray(sample())
    want, _ = explained(bare, weights(1), x)
    np.testing.assert_allclose(f(other, x), want, rtol=1e-10)  # the count of rounds as well
    held, fixed = eqx.partition((params, other), eqx.is_inexact_array)
    g = lambda params, x: f(eqx.combine(params, fixed[0]), x)
    is_a_jax_function(g, held[0], x, held[1])


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    drop: eqx.nn.Dropout

    def __init__(self, key):
        self.norm = eqx.nn.LayerNorm(4)
        self.attention = eqx.nn.MultiheadAttention(2, 4, key=key)
        self.mlp = eqx.nn.MLP(4, 4, 8, 1, activation=jax.nn.gelu, key=key)
        self.drop = eqx.nn.Dropout(0.5)

    def __call__(self, x, key=None):
        y = jax.vmap(self.norm)(x)
        x = x + self.attention(y, y, y)
        return x + self.drop(jax.vmap(self.mlp)(x), key=key)


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    blocks: list

    def __init__(self, key):
        self.embed = eqx.nn.Embedding(7, 4, key=key)
        self.blocks = [Block(each) for each in jax.random.split(key)]

    def __call__(self, ids, key=None):
        x = jax.vmap(self.embed)(ids)
        for block in self.blocks:
            x = block(x, key=key)
        return x

    def first(self, ids):
        return self.blocks[0](jax.vmap(self.embed)(ids))


@pytest.fixture(scope="module")
def transformer():
    return Transformer(jax.random.key(0))


def test_attention_and_activations_are_named_too(transformer):
    """By fields, where Equinox names the classes; the same numbers under the same rule."""
    ids = jnp.array([1, 2, 3])
    f, params = to_jax(transformer)
    rows = list(relax.layers(f)(params, ids))
    softmax = [row.path for row in rows if row.kind == "softmax"]
    assert softmax == ["blocks/0/attention/softmax", "blocks/1/attention/softmax"]
    gelu = [row.path for row in rows if row.kind == "activation"]
    assert gelu == ["blocks/0/mlp/gelu", "blocks/1/mlp/gelu"]
    named = [row.path for row in rows if row.kind in ("dense", "embedding")]
    parts = [f"attention/{name}_proj" for name in ("query", "key", "value", "output")]
    parts += ["mlp/layers/0", "mlp/layers/1"]
    assert named == ["embed", *(f"blocks/{i}/{part}" for i in (0, 1) for part in parts)]
    plain = eqx.nn.inference_mode(transformer)
    last = "eqx.nn.MultiheadAttention/softmax#1"
    want = jax.jit(relax.lrp(lambda ids: plain(ids), {last: rules.Constant()}))(ids)
    ours = jax.jit(relax.lrp(f, {"blocks/1/attention/*": rules.Constant()}))(params, ids)
    np.testing.assert_allclose(ours, want, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(f(params, ids), plain(ids), rtol=1e-6)


def test_other_methods_and_modules(transformer):
    """A method by name, a bound method, a filter_jit: all modules of their own."""
    ids = jnp.array([1, 2, 3])
    want = eqx.nn.inference_mode(transformer).first(ids)
    for f, params in (to_jax(transformer, method="first"), to_jax(transformer.first)):
        np.testing.assert_allclose(f(params, ids), want, rtol=1e-6)
        assert jax.jit(relax.lrp(f))(params, ids).shape == (3,)
    f, params = to_jax(eqx.filter_jit(transformer))
    np.testing.assert_allclose(f(params, ids), eqx.nn.inference_mode(transformer)(ids), rtol=1e-6)
    named = [row.path for row in relax.layers(f)(params, ids) if row.kind == "softmax"]
    assert all(path.endswith("attention/softmax") for path in named)
    assert len(named) == 2


def test_modes_and_keys(transformer):
    """In the mode of the module Dropout wants a key; the same for all samples."""
    ids = jnp.array([[1, 2, 3], [1, 2, 3]])
    f, params = to_jax(transformer, inference=False, batched=True)
    with pytest.raises(RuntimeError, match="Dropout requires a key"):
        f(params, ids)
    key = jax.random.key(3)
    dropped = f(params, ids, key=key)
    np.testing.assert_allclose(dropped[0], dropped[1], rtol=1e-12)
    np.testing.assert_allclose(dropped[0], transformer(ids[0], key=key), rtol=1e-6)
    relevance = jax.jit(relax.lrp(f))(params, ids, key=key)
    np.testing.assert_allclose(relevance[0], relevance[1], rtol=1e-9)
    inferred = to_jax(transformer, batched=True)[0](params, ids)
    assert not np.allclose(dropped, inferred, rtol=0.1)


def test_statistics_of_the_batch():
    """In training mode BatchNorm finds the axis of samples by its name."""
    (model, state), x = net(), jnp.asarray(sample())
    model = eqx.tree_at(lambda m: m.drop, model, eqx.nn.Dropout(0.0))
    f, params = to_jax(model, state, batched=True, inference=False)
    want = jax.vmap(model, axis_name="samples", in_axes=(0, None), out_axes=(0, None))(x, state)[0]
    np.testing.assert_allclose(f(params, x), want, rtol=1e-12)
    assert not np.allclose(want, bare(weights(), x), rtol=0.1)


def test_the_module_is_not_changed():
    """Its arrays, its mode, its classes; its state can be used after."""
    (model, state), x = net(), jnp.asarray(sample())
    before = jax.tree.leaves((model, state))
    tree = jax.tree.structure((model, state))
    f, params = to_jax(model, state, batched=True)
    relax.lrp(f)(params, x)
    relax.lrp(f)(params, x)
    after = jax.tree.leaves((model, state))
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert jax.tree.structure((model, state)) == tree
    assert type(model.conv) is eqx.nn.Conv2d
    assert not model.drop.inference


def test_trained_modules_are_params(transformer):
    """As they are: only arrays are read, so the mode they are in does not matter."""
    ids = jnp.array([1, 2, 3])
    f, params = to_jax(transformer)
    trained = jax.tree.map(lambda a: a * 1.5 if eqx.is_inexact_array(a) else a, transformer)
    want = eqx.nn.inference_mode(trained)(ids)
    np.testing.assert_allclose(f(trained, ids), want, rtol=1e-6)
    np.testing.assert_allclose(f(eqx.filter(trained, eqx.is_array), ids), want, rtol=1e-6)
    assert not np.allclose(f(params, ids), want, rtol=0.1)
    (model, state), x = net(1), jnp.asarray(sample())
    g, _ = to_jax(*net(0), batched=True)
    want, _ = explained(bare, weights(1), x)
    np.testing.assert_allclose(g(Stateful(model, state), x), want, rtol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_params_of_another_width(dtype):
    """Whatever floats: also as tracers, and as shapes alone."""
    module, x = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), jnp.ones(3)
    f, params = to_jax(module)
    cast = jax.tree.map(lambda a: a.astype(dtype), params)
    np.testing.assert_allclose(f(cast, x), module(x), rtol=0.05, atol=0.02)
    assert jax.eval_shape(f, jax.eval_shape(lambda p: p, cast), x).shape == (2,)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), cast)
    assert jax.vmap(f, (0, None))(stacked, x).shape == (2, 2)


def test_modules_of_all_kinds():
    """Sequential with state, shared weights, wrapped calls, dicts and tuples of modules."""
    key = jax.random.key(0)
    linear = lambda n, m: eqx.nn.Linear(n, m, key=key)

    class Both(eqx.Module):
        shared: eqx.nn.Shared

        def __init__(self):
            two = (linear(3, 3), linear(3, 3))
            self.shared = eqx.nn.Shared(two, lambda p: p[1].weight, lambda p: p[0].weight)

        def __call__(self, x):
            first, second = self.shared()
            return second(first(x))

    class All(eqx.Module, strict=True):
        parts: dict
        ways: tuple = eqx.field(static=True, default=(eqx.filter_checkpoint, eqx.filter_jit))

        def __call__(self, x):
            for way, part in zip(self.ways, self.parts.values(), strict=True):
                x = way(part)(x)
            return x

    model, x = All({"both": Both(), "mlp": eqx.nn.MLP(3, 2, 4, 1, key=key)}), jnp.ones(3)
    f, params = to_jax(model)
    np.testing.assert_allclose(f(params, x), model(x), rtol=1e-12)
    paths = [row.path for row in relax.layers(f)(params, x) if row.kind == "dense"]
    assert paths == [
        "parts/both/shared/pytree/0",
        "parts/both/shared/pytree/1",
        "parts/mlp/layers/0",
        "parts/mlp/layers/1",
    ]
    norm = lambda: eqx.nn.BatchNorm(4, "samples", mode="batch")
    make = lambda: eqx.nn.Sequential([linear(3, 4), norm(), eqx.nn.Lambda(jax.nn.relu)])
    model, state = eqx.nn.make_with_state(make)()
    f, params = to_jax(model, state, batched=True)
    want, _ = eqx.nn.inference_mode(model)(x, state)
    np.testing.assert_allclose(f(params, x[None])[0], want, rtol=1e-12)
    paths = [row.path for row in relax.layers(f)(params, x[None])]
    assert paths == ["layers/0", "layers/2/relu"]


def test_blocks_in_a_scan():
    """Stacked weights, one path."""

    class Deep(eqx.Module):
        blocks: eqx.nn.MLP

        def __init__(self, key):
            make = lambda key: eqx.nn.MLP(4, 4, 6, 1, key=key)
            self.blocks = eqx.filter_vmap(make)(jax.random.split(key, 3))

        def __call__(self, x):
            arrays, static = eqx.partition(self.blocks, eqx.is_array)
            step = lambda x, arrays: (eqx.combine(arrays, static)(x), None)
            return jax.lax.scan(step, x, arrays)[0]

    model, x = Deep(jax.random.key(0)), jnp.ones(4)
    f, params = to_jax(model)
    np.testing.assert_array_equal(f(params, x), model(x))
    paths = [row.path for row in relax.layers(f)(params, x) if row.kind == "dense"]
    assert [path.rpartition("blocks")[2] for path in paths] == ["/layers/0", "/layers/1"]
    assert np.isfinite(relax.lrp(f)(params, x)).all()


def test_recurrent_cells_and_several_inputs(rng):
    """A cell takes its input and its state of two parts."""
    cell = eqx.nn.LSTMCell(3, 4, key=jax.random.key(0))
    x, h = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (3, 4))
    f, params = to_jax(cell)
    jax.tree.map(np.testing.assert_array_equal, f(params, x, (h, h)), cell(x, (h, h)))
    of_x, of_h = relax.lrp(f, argnums=(1, 2))(params, x, (h, h))
    assert of_x.shape == (3,)
    assert [part.shape for part in of_h] == [(4,), (4,)]


def test_errors(transformer):
    """What is wrong, and what to do."""
    model, state = net()
    f, params = to_jax(transformer)
    ids = jnp.array([1, 2, 3])
    other = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    fewer = eqx.tree_at(lambda m: m.blocks, params, params.blocks[:1])
    small, _ = to_jax(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
    counts = eqx.tree_at(lambda m: m.weight, other, jnp.ones((2, 2), jnp.int32))
    for call, words in (
        (lambda: to_jax(jnp.sin), r"is no eqx.Module.\n.*f\(params, x\)"),
        (lambda: to_jax(Net), r"Net is no eqx.Module.\n.*not its class"),
        (lambda: to_jax((model, state)), r"tuple is no eqx.Module.\n.*to_jax\(module, state\)"),
        (lambda: to_jax(model), r"Net has state.*\n.*make_with_state"),
        (lambda: to_jax(transformer, {}), r"state is a dict; expected an eqx.nn.State"),
        (lambda: to_jax(transformer, method="last"), r"method='last'.*Transformer has no such"),
        (lambda: f(other, ids), r"params has `weight` where the module has `embed/weight`"),
        (lambda: f(fewer, ids), r"(?s)params has \d+ arrays; the module has \d+.*to_jax returned"),
        (
            lambda: small(other, jnp.ones(2)),
            r"params `weight` has shape \(2, 2\); the model has \(2, 3\)",
        ),
        (lambda: to_jax(other)[0](counts, jnp.ones(2)), "params `weight` is of int32; the model"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()


def test_without_equinox_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(ImportError, match=r"relax-lrp\[equinox\]"):
        to_jax(None)
