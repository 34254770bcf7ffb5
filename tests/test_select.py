"""Which rule reaches which layer: globs, predicates, callables, and the order they are tried in.

Nothing is computed here: the plan says who gets what.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import composites, rules, select


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float64)


PARAMS = {
    "params": {
        "stem": {"kernel": shape(3, 3, 2, 4), "bias": shape(4)},
        "block_0": {"in": {"kernel": shape(4, 4)}, "out": {"kernel": shape(4, 4)}},
        "block_1": {"in": {"kernel": shape(4, 4)}, "out": {"kernel": shape(4, 4)}},
        "norm": {"scale": shape(4), "bias": shape(4)},
        "shared": {"kernel": shape(4, 4)},
        "head": {"kernel": shape(4, 3)},
    }
}
X = shape(2, 8, 8, 2)


def dense(p, x, name):
    with jax.named_scope(name):
        return x @ p["kernel"]


def model(variables, x):
    """Convolution, pools, BatchNorm of its own, two residual blocks, a layer used twice, a head."""
    p = variables["params"]
    with jax.named_scope("Net"):
        with jax.named_scope("stem"):
            x = lax.conv_general_dilated(
                x, p["stem"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + p["stem"]["bias"][None, None, None])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = x.mean((1, 2))
        with jax.named_scope("norm"):
            x = x * p["norm"]["scale"][None] + p["norm"]["bias"][None]
        for block in ("block_0", "block_1"):
            with jax.named_scope(block):
                h = jnp.tanh(dense(p[block]["in"], x, "in"))
                x = x + dense(p[block]["out"], h, "out")
        x = jax.nn.gelu(dense(p["shared"], x, "shared"))
        x = jax.nn.gelu(dense(p["shared"], x, "shared"))
        return dense(p["head"], x, "head")


AFFINE = [
    "Net/stem",
    "Net/norm",
    "Net/block_0/in",
    "Net/block_0/out",
    "Net/block_1/in",
    "Net/block_1/out",
    "Net/shared",
    "Net/shared#1",
    "Net/head",
]
MARK = rules.Epsilon(0.123)


def plan(chosen, *, fun=model, args=(PARAMS, X), **options):
    return relax.layers(fun, chosen, **options)(*args)


def marked(chosen, **options):
    """Paths of the layers that get the rule MARK."""
    return [row.path for row in plan(chosen, **options) if row.rule == MARK]


def test_the_affine_layers_of_the_model():
    """The ground on which all tests below stand."""
    rows = [row for row in plan(MARK) if row.kind in ("dense", "conv", "scale_shift")]
    assert [row.path for row in rows] == AFFINE
    weights = [row.weight_path for row in rows]
    assert weights[0] == "params/stem/kernel"
    assert weights[2:4] == ["params/block_0/in/kernel", "params/block_0/out/kernel"]
    assert weights[6] == weights[7] == "params/shared/kernel"


GLOBS = {
    "Net/head": ["Net/head"],
    "head": ["Net/head"],
    "ea?": [],
    "hea?": ["Net/head"],
    "he[ab]d": ["Net/head"],
    "*head": ["Net/head"],
    "block_0/in": ["Net/block_0/in"],
    "block_?/in": ["Net/block_0/in", "Net/block_1/in"],
    "block_[!1]/in": ["Net/block_0/in"],
    "in": ["Net/block_0/in", "Net/block_1/in"],
    "Net/block_0/*": ["Net/block_0/in", "Net/block_0/out"],
    "block_0*": ["Net/block_0/in", "Net/block_0/out"],
    "Net/*/in": ["Net/block_0/in", "Net/block_1/in"],
    "Net/*": AFFINE,
    "*": AFFINE,
    "shared": ["Net/shared", "Net/shared#1"],
    "shared#0": ["Net/shared"],
    "shared#1": ["Net/shared#1"],
    "Net/shared#1": ["Net/shared#1"],
    "shared#2": [],
    "params/head/kernel": ["Net/head"],
    "params/head": ["Net/head"],
    "head/kernel": ["Net/head"],
    "params/*/in/kernel": ["Net/block_0/in", "Net/block_1/in"],
    "params/shared/kernel": ["Net/shared", "Net/shared#1"],
    "params/norm/scale": ["Net/norm"],
    "block_0": [],  # a block is no layer: "block_0/*" is what is in it
    "et/head": [],
    "HEAD": [],
}


@pytest.mark.parametrize("pattern", GLOBS)
def test_a_glob_matches_scope_path_or_weight_path_from_a_slash_on(pattern):
    """Whole components, case and occurrence count; `*` crosses slashes."""
    if GLOBS[pattern]:
        assert marked({pattern: MARK}) == GLOBS[pattern]
        assert marked({select.glob(pattern): MARK}) == GLOBS[pattern]
        return
    with pytest.raises(relax.RelaxError):
        plan({pattern: MARK})


def test_an_activation_is_addressed_by_the_scope_it_stands_in():
    """Its path is the scope and its own name."""
    chosen = plan({"stem/relu": rules.Gradient()})
    assert [row.path for row in chosen if row.rule == rules.Gradient()] == ["Net/stem/relu"]
    chosen = plan({"gelu#1": rules.Gradient()})
    assert [row.path for row in chosen if row.rule == rules.Gradient()] == ["Net/gelu#1"]


def test_a_glob_on_a_block_reaches_the_kinds_its_rule_is_meant_for():
    """An affine rule for all of a block leaves its activations and sums alone."""
    rows = plan({"Net/block_0/*": rules.ZPlus()})
    touched = [(row.path, row.kind) for row in rows if isinstance(row.rule, rules.ZPlus)]
    assert touched == [("Net/block_0/in", "dense"), ("Net/block_0/out", "dense")]
    rows = plan({"Net/block_0/*": rules.Gradient()})
    kinds = {row.kind for row in rows if isinstance(row.rule, rules.Gradient)}
    assert kinds == {"dense", "activation", "sum"}


PREDICATES = {
    "affine": (select.affine, {"dense", "conv", "scale_shift"}, 9),
    "dense": (select.dense, {"dense"}, 7),
    "conv": (select.conv, {"conv"}, 1),
    "scale_shift": (select.scale_shift, {"scale_shift"}, 1),
    "first": (select.first, {"conv"}, 1),
    "sums": (select.sums, {"sum", "mean"}, 3),
    "pool": (select.pool, {"max_pool"}, 1),
    "winner": (select.winner, {"max_pool"}, 1),
    "activation": (select.activation, {"activation"}, 5),
    "relu": (select.relu, {"activation"}, 1),
    "affine & ~first": (select.affine & ~select.first, {"dense", "scale_shift"}, 8),
    "conv | scale_shift": (select.conv | select.scale_shift, {"conv", "scale_shift"}, 2),
    "dense & glob": (select.dense & select.glob("*block_0*"), {"dense"}, 2),
    "dense & text": (select.dense & "in", {"dense"}, 2),
    "text & dense": ("in" & select.dense, {"dense"}, 2),
    "text | conv": ("head" | select.conv, {"conv", "dense"}, 2),
    "~text & affine": (
        ~select.glob("block_?/*") & select.affine,
        {"conv", "dense", "scale_shift"},
        5,
    ),
    "not dense nor activation": (
        ~(select.dense | select.activation),
        {"conv", "max_pool", "mean", "scale_shift", "sum"},
        6,
    ),
    "a function": (lambda layer: layer.out_shapes == ((2, 3),), {"dense"}, 1),
    "function & predicate": (
        select.dense & (lambda layer: layer.out_shapes == ((2, 3),)),
        {"dense"},
        1,
    ),
    "anything": (
        select.anything,
        {"conv", "max_pool", "mean", "scale_shift", "sum"} | {"dense", "activation"},
        18,
    ),
}


@pytest.mark.parametrize("name", PREDICATES)
def test_predicates_and_their_combinations(name):
    """Each picks the kinds it names; Gradient serves them all."""
    selector, kinds, count = PREDICATES[name]
    rows = [row for row in plan([(selector, rules.Gradient())]) if row.rule == rules.Gradient()]
    assert {row.kind for row in rows} == kinds
    assert len(rows) == count


def test_selectors_for_layers_that_are_not_there_are_errors():
    """norm, softmax and product match nothing in this model, and say so."""
    for selector in (select.norm, select.softmax, select.product, select.linear):
        with pytest.raises(relax.UnmatchedSelectorError, match=selector.name):
            plan({selector: rules.Gradient()})


def test_predicates_have_names_that_show_what_they_do():
    """They appear in composites and messages."""
    combined = ~(select.first & select.conv) | "head"
    assert repr(relax.Composite(((combined, MARK),))) == (
        "Composite((~(first & conv) | 'head'): Epsilon(0.123))"
    )
    assert select.first & select.conv == select.first & select.conv
    assert hash(select.dense) == hash(select.dense)
    assert select.dense != select.conv
    assert select.glob("a") == select.glob("a") != select.glob("b")


# The forms rules can take


def test_one_affine_rule_goes_to_every_affine_layer_and_nowhere_else():
    """The other kinds keep their defaults."""
    rows = plan(rules.ZPlus())
    assert [row.path for row in rows if isinstance(row.rule, rules.ZPlus)] == AFFINE
    others = {row.kind: row.rule for row in rows if not isinstance(row.rule, rules.ZPlus)}
    assert others == {
        "activation": rules.Pass(),
        "max_pool": rules.Winner(),
        "mean": rules.Linear(),
        "sum": rules.Linear(),
    }


def test_one_activation_rule_goes_to_every_activation():
    """A single rule goes to the kinds it is meant for."""
    rows = plan(rules.GuidedBackprop())
    assert {row.kind for row in rows if isinstance(row.rule, rules.GuidedBackprop)} == {
        "activation"
    }


def test_without_rules_every_dense_layer_and_convolution_gets_epsilon():
    """The default of `lrp`."""
    rows = relax.layers(model)(PARAMS, X)
    weighted = [row.rule for row in rows if row.kind in ("dense", "conv")]
    assert weighted == [rules.Epsilon()] * 8


def test_unnamed_layers_keep_their_defaults():
    """One named layer, all others as without rules."""
    rows = plan({"head": rules.ZPlus()})
    default = {row.path: row.rule for row in plan({"head": rules.Epsilon()})}
    for row in rows:
        assert row.rule == (rules.ZPlus() if row.path == "Net/head" else default[row.path])


ZPLUS, GAMMA, FLAT = rules.ZPlus(), rules.Gamma(0.5), rules.Flat()
SAME = {
    "mapping": {"head": ZPLUS, select.first: FLAT, select.dense: GAMMA},
    "list": [("head", ZPLUS), (select.first, FLAT), (select.dense, GAMMA)],
    "tuple": (("head", ZPLUS), (select.first, FLAT), (select.dense, GAMMA)),
    "composite": relax.Composite((("head", ZPLUS), (select.first, FLAT), (select.dense, GAMMA))),
    "composite in a list": [
        ("head", ZPLUS),
        relax.Composite(((select.first, FLAT), (select.dense, GAMMA))),
    ],
    "composites in a list": [
        relax.Composite((("head", ZPLUS),)),
        relax.Composite(((select.first, FLAT),)),
        (select.dense, GAMMA),
    ],
    "a callable and composites in a list": [
        lambda layer: ZPLUS if layer.path == "Net/head" else FLAT if layer.first else None,
        relax.Composite(((select.dense, GAMMA),)),
        lambda layer: rules.Epsilon(7.0) if layer.kind == "dense" else None,
    ],
    "callable": lambda layer: (
        ZPLUS
        if layer.path == "Net/head"
        else FLAT
        if layer.first
        else GAMMA
        if layer.kind == "dense"
        else None
    ),
}


@pytest.mark.parametrize("form", SAME)
def test_all_forms_of_rules_mean_the_same(form):
    """The first match wins in each of them, and what no entry matches keeps its default."""
    given = {row.path: row.rule for row in plan(SAME[form]) if row.path in AFFINE}
    assert given.pop("Net/head") == ZPLUS
    assert given.pop("Net/stem") == FLAT
    assert given.pop("Net/norm") == rules.Linear()
    assert set(given.values()) == {GAMMA}


def test_first_match_wins_and_later_entries_fill_the_rest():
    """Order is what counts, not how special a selector is."""
    wide_first = [(select.affine, GAMMA), ("head", ZPLUS)]
    assert ZPLUS not in [row.rule for row in plan(wide_first)]
    narrow_first = [("head", ZPLUS), (select.affine, GAMMA)]
    assert [row.path for row in plan(narrow_first) if row.rule == ZPLUS] == ["Net/head"]


def test_an_entry_before_a_builtin_composite_overrides_it():
    """The usual way to make an exception."""
    rows = plan([("head", ZPLUS), composites.epsilon_plus_flat()])
    given = {row.path: row.rule for row in rows}
    assert given["Net/head"] == ZPLUS
    assert given["Net/stem"] == FLAT
    assert given["Net/block_0/in"] == rules.Epsilon()


def test_a_rule_alone_in_a_list_fills_the_rest_of_its_kinds():
    """As if it were given alone, behind what stands before it."""
    given = {row.path: row.rule for row in plan([("head", ZPLUS), GAMMA, rules.Deconvnet()])}
    alone = {row.path: row.rule for row in plan(GAMMA)}
    assert given["Net/head"] == ZPLUS
    for path, rule in given.items():
        if path != "Net/head" and not isinstance(rule, rules.Deconvnet):
            assert rule == alone[path]
    assert rules.Deconvnet() in given.values()


def test_a_callable_sees_what_the_plan_shows():
    """Kind, path, weight, shapes and place of each layer are there to decide on."""
    seen = []

    def choose(layer):
        seen.append((layer.label, layer.kind, layer.weight_path, layer.in_shapes, layer.where))

    rows = plan(choose)
    assert seen == [(r.path, r.kind, r.weight_path, r.in_shapes, r.where) for r in rows]


def test_a_mask_goes_where_its_rule_goes():
    """Mask(m, Epsilon()) on a glob that matches activations too acts on the affine layers."""
    mask = rules.Mask(1.0, rules.Epsilon())
    rows = plan({"Net/block_0/*": mask})
    assert [row.path for row in rows if row.rule == mask] == ["Net/block_0/in", "Net/block_0/out"]


# Built-in composites


BUILT_IN = [name for name in composites.__all__ if name != "Composite"]


def perceptron(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


NETS = {
    "model": (model, (PARAMS, X)),
    "no convolution": (perceptron, ({"a": shape(4, 5), "b": shape(5, 2)}, shape(3, 4))),
    "no dense layer": (lambda x: jax.nn.relu(x).sum(), (shape(3, 4),)),
    "no layers at all": (lambda x: x.reshape(-1)[::2], (shape(3, 4),)),
}


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.filterwarnings("ignore:.*ReLUs alone:relax.RelaxWarning")
def test_builtin_composites_fit_every_network(name, net):
    """What a composite names need not be there: no error for a network without convolutions."""
    fun, args = NETS[net]
    composite = getattr(composites, name)()
    assert isinstance(composite, relax.Composite)
    rows = plan(composite, fun=fun, args=args)
    allowed = {type(rule) for _, rule in composite.entries}
    allowed |= {rules.Pass, rules.Linear, rules.Winner, rules.Epsilon}
    assert {type(row.rule) for row in rows} <= allowed


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.filterwarnings("ignore:.*ReLUs alone:relax.RelaxWarning")
def test_builtin_composites_take_a_rule_for_sums(name):
    """``sums=`` reaches residual sums and the mean."""
    rows = plan(getattr(composites, name)(sums=rules.Norm(0.5)))
    assert {r.rule for r in rows if r.kind in ("sum", "mean")} == {rules.Norm(0.5)}
    assert "sums" in inspect.signature(getattr(composites, name)).parameters


def test_epsilon_gamma_box_gives_each_kind_its_rule():
    """The composite of the literature, row by row."""
    rows = plan(composites.epsilon_gamma_box(-1.0, 2.0))
    given = {row.path: row.rule for row in rows if row.kind in ("conv", "dense")}
    assert given.pop("Net/stem") == rules.ZBox(-1.0, 2.0)
    assert set(given.values()) == {rules.Epsilon()}


def test_a_composite_is_a_pytree_of_its_rules():
    """Hyper-parameters are leaves, selectors are structure."""
    composite = relax.Composite((("head", rules.Gamma(0.25)), (select.dense, rules.Epsilon(0.1))))
    doubled = jax.tree.map(lambda a: 2 * a, composite)
    assert doubled.entries[0][1].gamma == 0.5
    assert doubled.entries[1][1].epsilon == 0.2
    assert jax.tree.structure(composite) == jax.tree.structure(doubled)
    again = relax.Composite((("head", rules.Gamma(0.25)), (select.dense, rules.Epsilon(0.1))))
    assert jax.tree.structure(again) == jax.tree.structure(composite)
    other = relax.Composite((("tail", rules.Gamma(0.25)), (select.dense, rules.Epsilon(0.1))))
    assert jax.tree.structure(other) != jax.tree.structure(composite)


def test_a_lenient_composite_skips_what_it_does_not_find():
    """strict=False is for composites that are meant for many networks."""
    entries = (("nowhere", ZPLUS), ("head", MARK))
    assert marked(relax.Composite(entries, strict=False)) == ["Net/head"]
    with pytest.raises(relax.UnmatchedSelectorError, match="nowhere"):
        plan(relax.Composite(entries))


# The first layer


def first(fun, *args, **options):
    return [row.path for row in plan(rules.Epsilon(), fun=fun, args=args, **options) if row.first]


W = {name: shape(4, 4) for name in "abcd"}


def layer(p, name, x):
    with jax.named_scope(name):
        return x @ p[name]


def test_every_branch_has_its_own_first_layer():
    """Two towers on the same input: both are first, what joins them is not."""
    fun = lambda p, x: layer(p, "c", jnp.tanh(layer(p, "a", x)) + layer(p, "b", jax.nn.relu(x)))
    assert first(fun, W, shape(2, 4)) == ["a", "b"]


def test_a_layer_that_the_input_reaches_twice_is_not_first():
    """Directly and through another layer: it sees features as well."""
    fun = lambda p, x: layer(p, "b", x + layer(p, "a", x))
    assert first(fun, W, shape(2, 4)) == ["a"]
    stacked = lambda p, x: layer(p, "b", jnp.concatenate([x, layer(p, "a", x)]))
    assert first(stacked, W, shape(2, 4)) == ["a"]


def test_what_stands_before_the_first_layer_does_not_count():
    """Preprocessing, patches, activations and a BatchNorm of its own are no first layers."""

    def fun(p, x):
        x = (x - 0.5) / 0.25
        x = jnp.tanh(x * p["d"][0][None] + p["d"][1][None])
        return layer(p, "a", x.reshape(1, 2, 4))

    assert first(fun, W, shape(2, 4)) == ["a"]


def test_a_shared_layer_is_first_only_in_its_first_use():
    """Use is what counts, not the weight."""
    fun = lambda p, x: layer(p, "a", jnp.tanh(layer(p, "a", x)))
    assert first(fun, W, shape(2, 4)) == ["a"]


def test_first_depends_on_what_is_explained():
    """A second input that enters later has its own first layer."""
    fun = lambda p, x, y: layer(p, "b", jnp.tanh(layer(p, "a", x)) + layer(p, "c", y))
    args = (W, shape(2, 4), shape(2, 4))
    assert first(fun, *args, argnums=1) == ["a"]
    assert first(fun, *args, argnums=2) == ["c"]
    assert first(fun, *args, argnums=(1, 2)) == ["a", "c"]


def test_layers_that_do_not_see_the_explained_input_are_not_in_the_plan():
    """They carry no relevance; a selector for one of them is a miss."""
    fun = lambda p, x, y: layer(p, "b", x) + layer(p, "c", y)
    args = (W, shape(2, 4), shape(2, 4))
    assert [r.path for r in plan(MARK, fun=fun, args=args, argnums=1) if r.rule == MARK] == ["b"]
    with pytest.raises(relax.UnmatchedSelectorError):
        plan({"c": MARK}, fun=fun, args=args, argnums=1)


def test_selected_rules_are_the_ones_that_act(rng):
    """The plan tells the truth: relevance follows a rule given by predicate, glob or callable."""
    p = {k: jnp.asarray(rng.normal(size=(4, 4))) for k in "ab"}
    x = jnp.asarray(rng.normal(size=(2, 4)))
    fun = lambda p, x: layer(p, "b", jnp.tanh(layer(p, "a", x)))
    flat = relax.lrp(fun, {"a": rules.Flat(0.0)})(p, x)
    np.testing.assert_allclose(flat, flat[:, :1] * np.ones((2, 4)), rtol=1e-9)
    assert np.abs(flat - relax.lrp(fun)(p, x)).max() > 1e-3
    for chosen in ({select.first: rules.Flat(0.0)}, lambda r: rules.Flat(0.0) if r.first else None):
        np.testing.assert_array_equal(relax.lrp(fun, chosen)(p, x), flat)
