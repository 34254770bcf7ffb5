"""NNX modules as JAX functions, against the modules themselves and against bare JAX."""

import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_network import EPS, bare, explained, is_a_jax_function, sample, weights
from flax import linen, nnx

import relax
from relax import rules
from relax.adapters.nnx import to_jax


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, epsilon=EPS, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.hidden = nnx.Linear(4, 5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def features(self, x):
        return nnx.relu(self.norm(self.conv(x))).mean((1, 2))

    def __call__(self, x, scale=1.0):
        return self.head(nnx.relu(self.hidden(self.drop(self.features(x))))) * scale


def net(seed=0):
    model = Net(nnx.Rngs(0))
    for name, parts in weights(seed).items():
        for part, value in parts.items():
            getattr(getattr(model, name), part).set_value(jnp.asarray(value))
    return model


def snapshot(model):
    """All of a module: its structure with modes, and its numbers, random state too."""
    graph, state = nnx.split(model)
    numbers = [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(state)
    ]
    return graph, [a.copy() for a in numbers]


def test_it_infers_and_explains_as_bare_jax():
    """Value of the module in its own mode of evaluation, relevance of the bare network."""
    model, x = net(), jnp.asarray(sample())
    f, state = to_jax(model)
    value, relevance = explained(f, state, x)
    want, want_relevance = explained(bare, weights(), x)
    np.testing.assert_allclose(value, want, rtol=1e-10)
    np.testing.assert_allclose(relevance, want_relevance, rtol=1e-8, atol=1e-10)
    model.eval()
    np.testing.assert_array_equal(f(state, x), model(x))


def test_layers_are_named_by_the_paths_of_modules():
    """And rules find them by name."""
    f, state = to_jax(net())
    x = sample()
    rows = list(relax.layers(f, {"hidden": rules.ZPlus()})(state, x))
    assert [row.path for row in rows if row.kind in ("conv", "dense")] == ["conv", "hidden", "head"]
    assert [row.weight_path for row in rows if row.kind in ("conv", "dense")] == [
        "conv/kernel",
        "hidden/kernel",
        "head/kernel",
    ]
    assert [row.path for row in rows if isinstance(row.rule, rules.ZPlus)] == ["hidden"]


def test_it_is_a_jax_function():
    (f, state), (_, other) = to_jax(net()), to_jax(net(1))
    is_a_jax_function(f, state, jnp.asarray(sample()), other)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(4, 8, rngs=rngs), nnx.gelu, nnx.Linear(8, 4, rngs=rngs)
        )
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.drop(self.mlp(x))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])

    def __call__(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(x)


def test_attention_and_activations_are_named_too():
    """Which NNX alone does not do; the same rule by name in both, and the same numbers."""
    model, ids = Transformer(nnx.Rngs(0)), jnp.array([[1, 2, 3]])
    f, state = to_jax(model)
    rows = list(relax.layers(f)(state, ids))
    softmax = [row.path for row in rows if row.kind == "softmax"]
    assert softmax == ["blocks/0/attention/softmax", "blocks/1/attention/softmax"]
    gelu = [row.path for row in rows if row.kind == "activation"]
    assert gelu == ["blocks/0/mlp/gelu", "blocks/1/mlp/gelu"]
    named = [row.path for row in rows if row.kind in ("dense", "embedding")]
    parts = ["attention/query", "attention/key", "attention/value", "attention/out"]
    parts += ["mlp/layers/0", "mlp/layers/2"]
    assert named == ["embed", *(f"blocks/{i}/{part}" for i in (0, 1) for part in parts), "embed#1"]


SAME = {
    "softmax": ({"blocks/1/attention/*": rules.Constant()}, {"softmax#1": rules.Constant()}),
    "dense": ({"blocks/0/mlp/*": rules.ZPlus()}, {"blocks/0/mlp/layers/*": rules.ZPlus()}),
}


@pytest.mark.parametrize("kind", ["softmax", pytest.param("dense", marks=pytest.mark.slow)])
def test_a_rule_for_a_block_is_the_rule_for_its_layers(kind):
    """By name here, by number or weight in the module as it is: the same numbers."""
    model, ids = Transformer(nnx.Rngs(0)), jnp.array([[1, 2, 3]])
    f, state = to_jax(model)
    model.eval()
    graph, plain = nnx.split(model)
    unnamed = lambda state, ids: nnx.merge(graph, state)(ids)
    ours, theirs = SAME[kind]
    want = jax.jit(relax.lrp(unnamed, theirs))(plain, ids)
    relevance = jax.jit(relax.lrp(f, ours))(state, ids)
    np.testing.assert_allclose(relevance, want, rtol=1e-6, atol=1e-9)


def test_the_module_is_not_changed():
    """Neither its mode, nor its statistics, nor its random state; nor are its classes."""
    model, x = net(), jnp.asarray(sample())
    model(x)  # random state and statistics that have moved
    graph, numbers = snapshot(model)
    f, state = to_jax(model)
    held = jax.tree.map(np.array, state)
    for mode in (True, False):
        f, _ = to_jax(model, inference=mode)
        relax.lrp(f, target=1)(state, x)
        f(state, x)
    after_graph, after = snapshot(model)
    assert graph == after_graph
    jax.tree.map(np.testing.assert_array_equal, after, numbers)
    jax.tree.map(np.testing.assert_array_equal, state, held)
    assert type(model.conv) is nnx.Conv
    assert not model.drop.deterministic


def test_training_mode_is_that_of_the_module():
    """Statistics of the batch, and a mask that is the same at each call."""
    model, x = net(), jnp.asarray(sample())
    f, state = to_jax(model, inference=False)
    first = f(state, x)
    np.testing.assert_array_equal(first, f(state, x))
    np.testing.assert_allclose(first, nnx.clone(model)(x), rtol=1e-12)
    evaluated, _ = to_jax(model)
    assert not np.allclose(first, evaluated(state, x), rtol=0.1)


def test_a_module_that_trains_on():
    """The state is that of the day; nnx.state of the trained module is as good as its own."""
    model, x = net(), jnp.asarray(sample())
    f, state = to_jax(model)
    before = f(state, x)
    nnx.update(model, *nnx.state(net(1), nnx.Param, nnx.BatchStat))
    np.testing.assert_array_equal(f(state, x), before)
    want, _ = explained(bare, weights(1), x)
    np.testing.assert_allclose(f(nnx.state(model), x), want, rtol=1e-10)
    assert len(jax.tree.leaves(nnx.state(model))) > len(jax.tree.leaves(state))


def test_other_methods_and_arguments():
    """A method by name, keyword arguments, inputs of several arrays."""
    model, x = net(), jnp.asarray(sample())
    f, state = to_jax(model, method="features")
    g, _ = to_jax(model)
    np.testing.assert_allclose(g(state, x, scale=2.0), 2 * g(state, x), rtol=1e-12)
    model.eval()
    np.testing.assert_array_equal(f(state, x), model.features(x))
    assert [row.path for row in relax.layers(f)(state, x) if row.kind == "conv"] == ["conv"]

    class Two(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(3, 2, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, inputs):
            return {"sum": self.a(inputs["a"]) + self.b(inputs["b"])}

    f, state = to_jax(Two(nnx.Rngs(0)))
    relevance = relax.lrp(f)(state, {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4))})
    assert {name: r.shape for name, r in relevance.items()} == {"a": (2, 3), "b": (2, 4)}


def test_shared_modules_have_one_weight(rng):
    """Which is changed for both uses."""

    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 3, rngs=rngs)
            self.second = self.first

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    f, state = to_jax(Tied(nnx.Rngs(0)))
    assert len(jax.tree.leaves(state)) == 2
    x = jnp.asarray(rng.normal(size=(2, 3)))
    kernel = jnp.asarray(rng.normal(size=(3, 3)))
    state["first"]["kernel"].set_value(kernel)
    np.testing.assert_allclose(f(state, x), jax.nn.relu(x @ kernel) @ kernel, rtol=1e-6)
    paths = [row.path for row in relax.layers(f)(state, x) if row.kind == "dense"]
    assert paths == ["first", "first#1"]


def test_blocks_in_a_scan():
    """Stacked weights, one path; the value is that of the module."""

    class Deep(nnx.Module):
        def __init__(self, rngs):
            @nnx.split_rngs(splits=3)
            @nnx.vmap
            def make(rngs):
                return nnx.Linear(4, 4, rngs=rngs)

            self.blocks = make(rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def run(x, block):
                return nnx.relu(block(x))

            return run(x, self.blocks)

    model, x = Deep(nnx.Rngs(0)), jnp.ones((2, 4))
    f, state = to_jax(model)
    np.testing.assert_array_equal(f(state, x), model(x))
    (row,) = (row for row in relax.layers(f)(state, x) if row.kind == "dense")
    assert row.path.endswith("blocks")
    assert row.weight_path == "blocks/kernel"
    assert np.isfinite(relax.lrp(f)(state, x)).all()


def test_recurrent_modules(rng):
    """A cell in nnx.RNN."""
    model = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
    x = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    f, state = to_jax(model)
    np.testing.assert_array_equal(f(state, x), model(x))
    assert relax.lrp(f)(state, x).shape == x.shape


def test_modules_of_all_kinds():
    """No pytrees, dataclasses, modules of Linen, wrapped calls, dicts and lists of modules."""

    class Plain(nnx.Module, pytree=False):
        def __init__(self, rngs):
            self.inside = [nnx.Linear(3, 3, rngs=rngs)]
            self.shift = jnp.ones(3)

        @nnx.remat
        def __call__(self, x):
            y = self.inside[0](x)
            return nnx.relu(y + jnp.broadcast_to(self.shift, y.shape))

    @dataclasses.dataclass
    class Data(nnx.Module):
        of: nnx.Module
        name: str = "data"

        @nnx.jit
        def __call__(self, x):
            return self.of(x)

    class All(nnx.Module):
        def __init__(self, rngs):
            dense = nnx.bridge.ToNNX(linen.Dense(3), rngs=rngs).lazy_init(jnp.ones((1, 3)))
            # By name: that is the order in which NNX goes through a Dict once it is split.
            self.parts = nnx.Dict(a=Plain(rngs), b=Data(nnx.Linear(3, 3, rngs=rngs)), c=dense)

        def __call__(self, x):
            for part in self.parts.values():
                x = part(x)
            return x

    model, x = All(nnx.Rngs(0)), jnp.ones((2, 3))
    f, state = to_jax(model)
    np.testing.assert_allclose(f(state, x), model(x), rtol=1e-12)
    paths = [row.path for row in relax.layers(f)(state, x) if row.kind == "dense"]
    assert paths == ["parts/a/inside/0", "parts/b/of", "parts/c/Dense"]
    assert relax.lrp(f)(state, x).shape == (2, 3)


def test_what_was_sown_is_no_state():
    """Values of an earlier call would have the shapes of its batch."""

    class Sown(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 2, rngs=rngs)
            self.seen = nnx.Intermediate(jnp.ones((9, 9)))

        def __call__(self, x):
            return self.dense(x)

    model = Sown(nnx.Rngs(0))
    f, state = to_jax(model)
    assert set(state) == {"dense"}
    assert f(state, jnp.ones((2, 3))).shape == (2, 2)
    assert model.seen.shape == (9, 9)


def test_errors():
    """What is wrong, and what to do."""
    model, x = net(), jnp.asarray(sample())
    f, _ = to_jax(model)
    lacking = nnx.state(model, nnx.Param)
    wide = nnx.state(nnx.clone(model))
    wide["norm"]["mean"] = nnx.BatchStat(jnp.zeros(9))
    for call, words in (
        (lambda: to_jax(linen.Dense(2)), r"a Dense is no nnx.Module.\n.*needs no adapter"),
        (lambda: to_jax(Net), r"Net is no nnx.Module.\n.*not its class"),
        (lambda: to_jax(jnp.sin), r"is no nnx.Module.\n.*f\(params, x\)"),
        (lambda: to_jax(model, method="encode"), r"method='encode'.*Net has no such"),
        (lambda: f({"conv": 1}, x), r"state is a dict; expected the nnx.State"),
        (lambda: f(model, x), r"state is a Net; .*nnx.state\(module\)"),
        (lambda: f(lacking, x), r"state lacks `norm/mean`.\n  It has .*norm"),
        (lambda: f(wide, x), r"state `norm/mean` has shape \(9,\); the model has \(4,\)"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()


def test_frameworks_are_imported_only_for_their_models():
    """Of none is anything imported with the adapters."""
    names = ("flax", "keras", "equinox", "haiku", "sklearn", "torch", "torchax", "onnx")
    code = f"import sys, relax.adapters; sys.exit(any(n in sys.modules for n in {names}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_flax_the_error_says_what_to_install(monkeypatch):
    """relax depends on it: there is no extra."""
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(ImportError, match=r'depends on: pip install "flax>=0\.12"'):
        to_jax(None)


def test_the_extras_that_adapters_name_exist():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    files = sorted((root / "relax" / "adapters").rglob("*.py"))
    named = [name for file in files for name in re.findall(r"relax-lrp\[(\w+)", file.read_text())]
    assert len(named) > 4
    assert set(named) <= set(project["optional-dependencies"])
    assert "flax>=0.12" in project["dependencies"]
