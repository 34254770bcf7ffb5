"""What the rows of a transformer are made of: as they are, in each framework, and by LRP's rules.

A row is a function ``body(ops, *inputs)``. `Bare` has the operations as anyone writes them, the
classes of the frameworks have the framework's own layers, and `AttnLRP` and `CPLRP` have the
gradients that make gradient * input the relevance: the oracle, `by_hand`.
"""

import functools
import warnings

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import relax

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import haiku as hk
    import keras

stop = jax.lax.stop_gradient


class Bare:
    """Operations in plain ``jax.numpy``; ``dense`` holds kernels, ``arrays`` all the rest."""

    def __init__(self, dense, arrays):
        self.dense, self.arrays = dense, arrays

    def linear(self, name, x):
        z = x @ self.dense[name]
        bias = self.arrays.get(f"{name}_bias")
        return z if bias is None else z + bias

    def array(self, name):
        return self.arrays[name]

    def embed(self, ids):
        """Words of the table."""
        return self.arrays["embed"][ids]

    def attend(self, x):
        """Logits by the same table."""
        return x @ self.arrays["embed"].T

    def activation(self, name, x):
        return getattr(jax.nn, name)(x)

    def softmax(self, z):
        return jax.nn.softmax(z, axis=-1)

    def product(self, spec, a, b):
        """The product of two values, such as queries and keys."""
        return jnp.einsum(spec, a, b)

    def weigh(self, spec, weights, values):
        """The product of a softmax and what it weighs."""
        return jnp.einsum(spec, weights, values)

    def gate(self, gate, signal):
        """The product with a gate in [0, 1]."""
        return gate * signal

    def glu(self, activated, linear):
        """The product of a gated layer."""
        return activated * linear

    def held(self, statistic):
        """A statistic, such as a norm."""
        return statistic


# The oracle


def share(x, part):
    """x itself, with a part of its gradient."""
    return part * x + stop((1 - part) * x)


def passing(activation):
    """An activation that hands on its relevance: its gradient is y / x, and any at x = 0."""

    def passes(x):
        y = activation(x)
        coefficient = stop(jnp.where(x == 0, 0, y / jnp.where(x == 0, 1, x)))
        return coefficient * x + stop(y - coefficient * x)

    return passes


class AttnLRP(Bare):
    """Half to each operand of a product, nothing to a gate; statistics are constants."""

    def activation(self, name, x):
        own = functools.partial(super().activation, name)
        return own(x) if name == "sigmoid" else passing(own)(x)

    def product(self, spec, a, b):
        return share(super().product(spec, a, b), 1 / 2)

    def weigh(self, spec, weights, values):
        return share(super().weigh(spec, weights, values), 1 / 2)

    def gate(self, gate, signal):
        return stop(gate) * signal

    def glu(self, activated, linear):
        return share(activated * linear, 1 / 2)

    def held(self, statistic):
        return stop(statistic)


class CPLRP(AttnLRP):
    """As AttnLRP, but the weights of a softmax and the activated half of a gate are constants."""

    def softmax(self, z):
        return stop(super().softmax(z))

    def weigh(self, spec, weights, values):
        return Bare.weigh(self, spec, stop(weights), values)

    def glu(self, activated, linear):
        return stop(activated) * linear


ORACLES = {"attn": AttnLRP, "cp": CPLRP}
COMPOSITES = {"attn": relax.composites.attnlrp, "cp": relax.composites.cp_lrp}


def by_hand(kind, body, dense, arrays, inputs, target=1):
    """Relevances of all inputs of a row."""
    ops = ORACLES[kind](dense, arrays)
    argnums = tuple(range(len(inputs)))
    chosen = lambda *inputs: body(ops, *inputs)[..., target].sum()
    gradients = jax.jit(jax.grad(chosen, argnums))(*inputs)
    return tuple(x * g for x, g in zip(inputs, gradients, strict=True))


# The frameworks: (body, dense, arrays) -> a function of the inputs


def bare(body, dense, arrays):
    return functools.partial(body, Bare(dense, arrays))


def linen(body, dense, arrays):
    class Ops(Bare):
        def __init__(self, module):
            super().__init__(dense, arrays)
            self.module = module
            if "embed" in arrays:
                self.table = nn.Embed(*arrays["embed"].shape, name="embed")
                self.embed, self.attend = self.table, self.table.attend

        def linear(self, name, x):
            return nn.Dense(dense[name].shape[-1], use_bias=False, name=name)(x)

        def array(self, name):
            return self.module.param(name, lambda _: arrays[name])

        def activation(self, name, x):
            return getattr(nn, name)(x)

        def softmax(self, z):
            return nn.softmax(z)

    class Row(nn.Module):
        @nn.compact
        def __call__(self, *inputs):
            return body(Ops(self), *inputs)

    params = {name: {"kernel": w} for name, w in dense.items()} | arrays
    if "embed" in arrays:
        params["embed"] = {"embedding": arrays["embed"]}
    return functools.partial(Row().apply, {"params": params})


def nnx_module(body, dense, arrays):
    class Ops(Bare):
        def __init__(self, module):
            super().__init__(dense, arrays)
            self.module = module

        def linear(self, name, x):
            return getattr(self.module, name)(x)

        def array(self, name):
            return getattr(self.module, name)[...]

        def embed(self, ids):
            return self.module.embed(ids)

        def attend(self, x):
            return self.module.embed.attend(x)

        def activation(self, name, x):
            return getattr(nnx, name)(x)

        def softmax(self, z):
            return nnx.softmax(z)

    class Row(nnx.Module):
        def __init__(self, rngs):
            for name, w in dense.items():
                layer = nnx.Linear(*w.shape, use_bias=False, rngs=rngs)
                layer.kernel.set_value(w)
                setattr(self, name, layer)
            for name, array in arrays.items():
                if name != "embed":
                    setattr(self, name, nnx.Param(array))
            if "embed" in arrays:
                self.embed = nnx.Embed(*arrays["embed"].shape, dtype=jnp.float64, rngs=rngs)
                self.embed.embedding.set_value(arrays["embed"])

        def __call__(self, *inputs):
            return body(Ops(self), *inputs)

    return Row(nnx.Rngs(0))


def equinox(body, dense, arrays):
    class Ops(Bare):
        def __init__(self, module):
            super().__init__(dense, module.arrays)
            self.module = module

        def linear(self, name, x):
            layer = self.module.layers[name]
            for _ in range(x.ndim - 1):
                layer = jax.vmap(layer)
            return layer(x)

        def embed(self, ids):
            return jax.vmap(jax.vmap(self.module.embed))(ids)

        def attend(self, x):
            return x @ self.module.embed.weight.T

    class Row(eqx.Module):
        layers: dict
        arrays: dict
        embed: eqx.nn.Embedding | None

        def __call__(self, *inputs):
            return body(Ops(self), *inputs)

    def layer(w):
        made = eqx.nn.Linear(*w.shape, use_bias=False, key=jax.random.key(0))
        return eqx.tree_at(lambda layer: layer.weight, made, w.T)

    embed = eqx.nn.Embedding(weight=arrays["embed"]) if "embed" in arrays else None
    return Row({name: layer(w) for name, w in dense.items()}, arrays, embed)


def haiku(body, dense, arrays):
    class Ops(Bare):
        def embed(self, ids):
            self.table = hk.Embed(*arrays["embed"].shape, name="embed")
            return self.table(ids)

        def attend(self, x):
            return x @ self.table.embeddings.T

        def linear(self, name, x):
            return hk.Linear(dense[name].shape[-1], with_bias=False, name=name)(x)

        def array(self, name):
            return hk.get_parameter(name, arrays[name].shape, arrays[name].dtype)

    row = hk.without_apply_rng(hk.transform(lambda *inputs: body(Ops(dense, arrays), *inputs)))
    params = {name: {"w": w} for name, w in dense.items()}
    if "embed" in arrays:
        params["embed"] = {"embeddings": arrays["embed"]}
    return functools.partial(row.apply, params | {"~": arrays})


def keras_layers(body, dense, arrays):
    layers = {}
    for name, w in dense.items():
        layer = keras.layers.Dense(w.shape[-1], use_bias=False, dtype="float64", name=name)
        layer.build((None, w.shape[0]))
        layer.set_weights([w])
        layers[name] = layer

    if "embed" in arrays:
        table = keras.layers.ReversibleEmbedding(
            *arrays["embed"].shape, dtype="float64", reverse_dtype="float64", name="embed"
        )
        table.build()
        table.set_weights([arrays["embed"]])

    class Ops(Bare):
        def embed(self, ids):
            return table(ids)

        def attend(self, x):
            return table(x, reverse=True)

        def linear(self, name, x):
            return layers[name](x)

        def activation(self, name, x):
            return getattr(keras.ops, name)(x)

        def softmax(self, z):
            return keras.ops.softmax(z)

        def product(self, spec, a, b):
            return keras.ops.einsum(spec, a, b)

        def weigh(self, spec, weights, values):
            return keras.ops.einsum(spec, weights, values)

    return functools.partial(body, Ops(dense, arrays))


FRAMEWORKS = {
    "bare": bare,
    "linen": linen,
    "nnx": nnx_module,
    "equinox": equinox,
    "haiku": haiku,
    "keras": keras_layers,
}


def weights(shapes, seed=0):
    """Random kernels, scaled to keep the size of what they are applied to."""
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.normal(size=s) / np.sqrt(s[-2])) for n, s in shapes.items()}


def error(got, expected):
    """The largest difference, over the largest value."""
    return np.abs(np.asarray(got) - np.asarray(expected)).max() / np.abs(expected).max()
