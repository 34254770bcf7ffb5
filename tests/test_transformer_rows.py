"""Every row of a transformer, in at least two frameworks: products, gates, positions, experts.

Oracle: the same row with each product, softmax, statistic and activation replaced by one with the
gradient that LRP's rules prescribe, then gradient times input.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_models as models
from jax import lax
from row_layers import COMPOSITES, FRAMEWORKS, AttnLRP, by_hand, error, weights
from row_models import ATTENTION, BATCH, GATED, KERNELS, MIXTURE, ONE_GROUP, TIME, WIDTH, vectors

import relax


@pytest.fixture(autouse=True)
def _rank_promotion():
    """Model authors add arrays of lower rank; that is their affair."""
    with jax.numpy_rank_promotion("allow"):
        yield


@dataclasses.dataclass(frozen=True)
class Row:
    """A body, the shapes of its weights, and the frameworks it is tried in beside bare JAX."""

    body: Callable
    dense: dict
    frameworks: tuple[str, ...]
    arrays: dict = dataclasses.field(default_factory=dict)
    inputs: tuple = ((BATCH, TIME, WIDTH),)
    conserves: bool = True


def attention(*frameworks, dense=ATTENTION, bias=None, arrays=(), **options):
    """A row of attention with the given options."""

    def body(ops, x):
        made = None if bias is None else bias(ops)
        return x + models.attention(ops, x, bias=made, **options)

    return Row(body, dense, frameworks, dict(arrays))


def mixture(body, *frameworks):
    return Row(body, MIXTURE, frameworks, KERNELS)


LEARNED = {"positions": (TIME, WIDTH)}
GATED_IN_ONE = {"both": (WIDTH, 24), "down": (12, WIDTH)}
SQUEEZE = {"squeeze": (WIDTH, 4), "excite": (4, WIDTH), "head": (WIDTH, 3)}
STEP = ((BATCH, 1, WIDTH), (BATCH, TIME, 2, 4), (BATCH, TIME, 2, 4))


def added(positions):
    """Positions added to the words in front of attention, which makes them a bias."""
    return lambda ops, x: models.attention(ops, x + positions(ops))


ROWS = {
    # Attention
    "attention": attention("linen", "nnx", "equinox", "haiku", "keras"),
    "causal": attention("haiku", mask=models.CAUSAL),
    "sliding window": attention("linen", mask=models.WINDOW),
    "sliding window in blocks": Row(models.blocked, ATTENTION, ("nnx",)),
    "queries and keys normalized": attention("equinox", norm=True),
    "logits soft-capped": attention("nnx", cap=2.0, mask=models.CAUSAL),
    "multi-query": attention("linen", "keras", dense=ONE_GROUP, groups=1),
    "grouped by einsum": Row(models.grouped, ONE_GROUP, ("equinox",)),
    "cross": Row(models.attention, ATTENTION, ("linen", "haiku"), inputs=2 * ((2, 5, 8),)),
    "KV cache": Row(models.cached, ATTENTION, ("nnx", "linen"), inputs=STEP),
    "learned query": Row(models.pooled, ATTENTION, ("linen", "haiku"), {"query": (2, 4)}),
    "additive": Row(models.additive, ATTENTION, ("haiku", "nnx"), {"scale": (1, WIDTH)}),
    # Positions
    "rotary halves": attention("linen", rotate=models.rotary_halves),
    "rotary pairs": attention("nnx", rotate=models.rotary_pairs),
    "rotary complex": attention("equinox", rotate=models.rotary_complex),
    "rotary partial": attention("haiku", rotate=models.rotary_partial),
    "sinusoidal": Row(
        added(lambda ops: models.sinusoids()), ATTENTION, ("keras",), conserves=False
    ),
    "learned": Row(
        added(lambda ops: ops.array("positions")),
        ATTENTION,
        ("linen", "haiku"),
        LEARNED,
        conserves=False,
    ),
    "alibi": attention("nnx", bias=lambda ops: models.alibi(), mask=models.CAUSAL),
    "T5": attention("linen", bias=models.relative, arrays={"relative": (6, 2)}),
    "T5 causal": attention(
        "haiku", bias=models.relative, arrays={"relative": (6, 2)}, mask=models.CAUSAL
    ),
    "Transformer-XL": Row(models.relative_keys, ATTENTION, ("equinox",), {"places": (TIME, 2, 4)}),
    # Gates
    "SwiGLU": Row(models.gated("silu"), GATED, ("linen", "nnx", "equinox", "haiku", "keras")),
    "GEGLU": Row(models.gated("gelu"), GATED, ("linen", "nnx", "keras")),
    "ReGLU": Row(models.gated("relu"), GATED, ("equinox",)),
    "SwiGLU in one": Row(models.gated_in_one, GATED_IN_ONE, ("haiku",)),
    "GLU": Row(models.glu, GATED, ("linen", "keras")),
    "squeeze-and-excite": Row(
        models.squeeze_excite, SQUEEZE, ("linen", "nnx", "keras"), inputs=((2, 3, 3, WIDTH),)
    ),
    # Experts
    "soft mixture": mixture(models.soft_mixture, "linen", "keras"),
    "top_k, gather of outputs": mixture(models.mixture_of_outputs, "linen", "nnx"),
    "top_k, gather of weights": mixture(models.mixture_of_weights, "equinox"),
    "top_k of logits": mixture(models.mixture_of_logits, "nnx"),
    "top_k, scatter of weights": mixture(models.mixture_by_scatter, "haiku"),
    "top_k of sigmoids": mixture(models.mixture_of_sigmoids, "linen"),
    "one-hot dispatch": mixture(models.switch, "linen", "equinox"),
    "sort and scatter": mixture(models.sorted_mixture(models.gathered_dot), "nnx"),
    "ragged_dot": mixture(models.sorted_mixture(lax.ragged_dot), "linen"),
}


def case(name, framework, kind):
    return pytest.param(name, framework, kind, id=f"{name}: {framework}, {kind}")


CASES = [
    case(name, framework, kind)
    for name, row in ROWS.items()
    for framework in ("bare", *row.frameworks)
    for kind in COMPOSITES
    if kind == "attn" or framework == "bare" or len(row.frameworks) > 1
]


@functools.cache
def made(name):
    """Weights, arrays and inputs of a row."""
    row = ROWS[name]
    inputs = [vectors(*shape, seed=i) for i, shape in enumerate(row.inputs, 1)]
    return weights(row.dense), weights(row.arrays, seed=9), inputs


@functools.cache
def expected(name, kind):
    """The value of the bare row, and its relevances by hand."""
    dense, arrays, inputs = made(name)
    value = jax.jit(FRAMEWORKS["bare"](ROWS[name].body, dense, arrays))(*inputs)
    return value, by_hand(kind, ROWS[name].body, dense, arrays, inputs)


@pytest.mark.parametrize(("name", "framework", "kind"), CASES)
def test_row(name, framework, kind):
    """Relevance of every input is that by hand; CP-LRP conserves exactly where no bias is."""
    row, (dense, arrays, inputs) = ROWS[name], made(name)
    function = FRAMEWORKS[framework](row.body, dense, arrays)
    explain = relax.value_and_lrp(
        lambda *inputs: function(*inputs),
        COMPOSITES[kind](),
        argnums=tuple(range(len(inputs))),
        target=1,
    )
    value, relevances = jax.jit(explain)(*inputs)
    own_value, own = expected(name, kind)
    assert error(value, own_value) < 1e-12
    scale = max(np.abs(r).max() for r in own)
    for got, by_rule in zip(relevances, own, strict=True):
        assert np.abs(got - by_rule).max() < 1e-10 * scale
    if kind == "cp" and row.conserves:
        total = sum(r.sum() for r in relevances)
        np.testing.assert_allclose(total, value[..., 1].sum(), rtol=1e-10)


@pytest.mark.parametrize("framework", ["linen", "nnx", "haiku"])
@pytest.mark.parametrize(
    ("name", "layers"), [("squeeze-and-excite", ["*squeeze", "*excite"]), ("GLU", ["*gate"])]
)
def test_gates_take_nothing(name, layers, framework):
    """What only the gate is computed from has exactly no relevance."""
    dense, arrays, inputs = made(name)
    function = FRAMEWORKS[framework](ROWS[name].body, dense, arrays)
    explain = relax.lrp(function, COMPOSITES["attn"](), target=1, at=layers)
    _, latent = jax.jit(explain)(*inputs)
    assert len(latent) == len(layers)
    for relevance in latent.values():
        np.testing.assert_array_equal(relevance, 0)


@pytest.mark.parametrize("argnums", [0, 1])
def test_cross_attention_of_one_input(argnums):
    """The other is a constant, so that q k has one operand, which takes all."""
    dense, arrays, inputs = made("cross")
    function = FRAMEWORKS["bare"](models.attention, dense, arrays)
    explain = relax.lrp(function, COMPOSITES["attn"](), argnums=argnums, target=1)
    got = jax.jit(explain)(*inputs)
    ops = (OfQueries, OfSource)[argnums](dense, arrays)
    chosen = lambda *inputs: models.attention(ops, *inputs)[..., 1].sum()
    own = inputs[argnums] * jax.jit(jax.grad(chosen, argnums))(*inputs)
    assert error(got, own) < 1e-10


class OfSource(AttnLRP):
    """Queries are constant; the weights and the values are not."""

    def product(self, spec, a, b):
        return jnp.einsum(spec, a, b)


class OfQueries(OfSource):
    """Keys and values are constant."""

    def weigh(self, spec, weights, values):
        return jnp.einsum(spec, weights, values)
