"""The plan: computed from shapes alone, complete, honest about rule and place, and readable."""

import functools
import inspect
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import rules, select


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


PARAMS = {"hidden": {"kernel": shape(4, 3), "bias": shape(3)}, "head": {"kernel": shape(3, 2)}}
X = shape(5, 4)


def model(params, x):
    with jax.named_scope("Net"):
        with jax.named_scope("hidden"):
            x = x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]  # line: hidden
        x = jax.nn.sigmoid(x)  # line: sigmoid
        x = x.reshape(-1, 3)
        return x @ params["head"]["kernel"]  # line: head


def line(mark, fun=model):
    """Number of the line of this file that ends in a mark."""
    source, start = inspect.getsourcelines(fun)
    (offset,) = [i for i, text in enumerate(source) if text.rstrip().endswith(f"# line: {mark}")]
    return f"test_plan.py:{start + offset}"


CHOSEN = {select.first: rules.Flat(), "head": rules.Gamma(0.5)}


@pytest.fixture(scope="module")
def plan():
    return relax.layers(model, CHOSEN)(PARAMS, X)


def test_rows_tell_everything_about_a_layer(plan):
    """Path, kind, name, shapes, weight, rule, currency, first and place, in order of evaluation."""
    hidden, sigmoid, head = plan
    assert (hidden.path, sigmoid.path, head.path) == ("Net/hidden", "Net/sigmoid", "Net")
    assert (hidden.kind, sigmoid.kind, head.kind) == ("dense", "activation", "dense")
    assert (hidden.name, sigmoid.name, head.name) == ("dense", "sigmoid", "dense")
    assert (hidden.in_shapes, hidden.out_shapes) == (((5, 4),), ((5, 3),))
    assert (head.in_shapes, head.out_shapes) == (((5, 3),), ((5, 2),))
    assert [row.weight_path for row in plan] == ["hidden/kernel", "", "head/kernel"]
    assert [row.rule for row in plan] == [rules.Flat(), rules.Pass(), rules.Gamma(0.5)]
    assert [row.currency for row in plan] == ["relevance", "relevance", "coefficient"]
    assert [row.first for row in plan] == [True, False, False]
    assert [row.where for row in plan] == [line("hidden"), line("sigmoid"), line("head")]


def test_nothing_is_computed():
    """A model of eight exabytes has a plan: only its shapes are looked at."""
    big = shape(10**9, 10**9)
    plan = relax.layers(lambda w, x: jax.nn.relu(x @ w) @ w)(big, shape(10**6, 10**9))
    assert [row.kind for row in plan] == ["dense", "activation", "dense"]
    assert plan[0].out_shapes == ((10**6, 10**9),)


def test_arrays_and_shapes_give_the_same_plan(plan):
    """Real arguments will do as well."""
    arrays = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), (PARAMS, X))
    assert str(relax.layers(model, CHOSEN)(*arrays)) == str(plan)


def test_the_plan_is_free_of_arrays_under_jit():
    """It can be looked at while tracing, too."""
    seen = []

    @jax.jit
    def traced(x):
        seen.append(relax.layers(lambda x: jnp.tanh(x))(x))
        return x

    traced(jnp.ones(3))
    assert [row.name for row in seen[0]] == ["tanh"]


def test_the_printed_table_has_a_line_for_each_layer_and_all_columns(plan):
    """Header, rule, rows; the columns are aligned."""
    lines = str(plan).splitlines()
    assert len(lines) == 2 + len(plan)
    assert set(lines[1]) == {"-", " "}
    for title in ("path", "kind", "shapes", "weight", "rule", "where"):
        assert title in lines[0]
    for part in (
        "Net/hidden",
        "dense",
        "first",
        "5x4 -> 5x3",
        "hidden/kernel",
        "Flat(",
        "relevance",
    ):
        assert part in lines[2]
    for part in ("Net/sigmoid", "activation (sigmoid)", "5x3 -> 5x3", "Pass()", line("sigmoid")):
        assert part in lines[3]
    for part in ("head/kernel", "Gamma(0.5", "coefficient", line("head")):
        assert part in lines[4]
    starts = [match.start() for match in re.finditer(r"-+", lines[1])]
    for text in (lines[0], *lines[2:]):
        for start in starts[1:]:
            assert text[start - 1 : start] in (" ", "")
    assert all(text == text.rstrip() for text in lines)
    assert repr(plan) == str(plan)


def test_a_column_that_is_empty_is_left_out():
    """Activations alone have no weights."""
    text = str(relax.layers(lambda x: jnp.tanh(x))(shape(3)))
    assert "weight" not in text
    assert "tanh" in text


def test_a_function_without_layers_prints_something():
    """No layers is an answer as well."""
    plan = relax.layers(lambda x: x[::2].T)(shape(4, 2))
    assert len(plan) == 0
    assert list(plan) == []
    assert "path" in str(plan) or "no layers" in str(plan)
    assert "<table" in plan._repr_html_()


def test_html_has_the_same_cells_and_escapes_them():
    """Nothing a user's names contain becomes markup."""

    def fun(x):
        with jax.named_scope("<b>&scope"):
            return jnp.tanh(x)

    text = relax.layers(fun)(shape(3))._repr_html_()
    assert "&lt;b&gt;&amp;scope" in text
    assert "<b>" not in text
    assert text.count("<tr>") == 2
    assert "<th>rule</th>" in text


def test_html_of_every_row(plan):
    """One row per layer, one cell per column."""
    text = plan._repr_html_()
    assert text.count("<tr>") == 1 + len(plan)
    assert text.count("<td>") == text.count("<th>") * len(plan)
    for part in ("Net/hidden", "hidden/kernel", "Flat(", line("hidden"), "5x4 -&gt; 5x3"):
        assert part in text


def test_a_plan_is_a_sequence(plan):
    """len, index, slice, iteration, membership, reversal: as a tuple of rows."""
    rows = tuple(plan)
    assert len(plan) == 3
    assert plan[0] == rows[0]
    assert plan[-1] == rows[2]
    assert tuple(plan[1:]) == rows[1:]
    assert tuple(reversed(plan)) == rows[::-1]
    assert rows[1] in plan
    assert plan.index(rows[1]) == 1
    with pytest.raises(IndexError):
        plan[3]


def test_rows_are_immutable(plan):
    """A plan is a report, not a place to change rules."""
    with pytest.raises(AttributeError):
        plan[0].rule = rules.Epsilon()


def test_currencies_follow_the_rules():
    """The wish for relevance goes up from Flat and sigmoid; epsilon turns it into a coefficient."""
    fun = lambda w, x: (jnp.tanh(x.reshape(5, 2, 2).mean(1) * 2.0) @ w).sum()
    args = shape(2, 3), shape(5, 4)
    names = lambda chosen: {r.kind: r.currency for r in relax.layers(fun, chosen)(*args)}
    assert set(names(rules.Epsilon()).values()) == {"coefficient"}
    flat = names(rules.Flat())
    assert flat["dense"] == "relevance"
    assert flat["activation"] == "relevance"
    assert flat["mean"] == "coefficient"  # a mean shares in proportion: exchanged here


def test_rules_of_the_plan_show_their_hyper_parameters():
    """Numbers as they were given, arrays by type and shape, a mask with its inner rule."""
    show = lambda rule: relax.layers(lambda w, x: x @ w, rule)(shape(4, 3), shape(5, 4))[0].cells()
    text = lambda rule: " | ".join(show(rule))
    assert "AlphaBeta(3, 2" in text(rules.AlphaBeta(3.0, 2.0))
    assert "Epsilon(0.1" in text(rules.Epsilon(0.1))
    assert "'clip'" in text(rules.Epsilon(0.1, stabilizer="clip"))
    assert "float32[4]" in text(rules.ZBox(jnp.zeros(4, jnp.float32), 1.0))
    assert "Epsilon(0.1" in text(rules.Mask(jnp.ones(3), rules.Epsilon(0.1)))


def test_lines_of_a_library_are_those_of_the_users_call():
    """A Flax module: the line is where this file calls the layer, not where Flax does."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(3)(x)  # line: first
            return nn.Dense(2)(nn.gelu(x))  # line: second

    x = shape(5, 4)
    variables = jax.eval_shape(Net().init, jax.random.key(0), x)
    plan = relax.layers(Net().apply)(variables, x)
    first, second = line("first", Net), line("second", Net)
    assert [row.where for row in plan] == [first, second, second]
    assert [row.path for row in plan if row.kind == "dense"] == ["Net/Dense_0", "Net/Dense_1"]


def test_lines_inside_jitted_and_vmapped_functions():
    """Calls keep the line of the operation itself."""

    @jax.jit
    def inner(x):
        return jnp.tanh(x)  # line: inner

    fun = lambda x: jax.vmap(inner)(x)
    assert relax.layers(fun)(shape(5, 4))[0].where == line("inner", inner.__wrapped__)


@pytest.mark.parametrize("library", [False, True])
def test_a_folder_may_have_the_name_of_a_library(library):
    """An environment called torch, a project called jax: their files are no part of either."""
    folder = "/home/someone/torch/jax/" + ("lib/python3.11/site-packages/zoo/" if library else "")
    names = {"jnp": jnp}
    exec(compile("def model(x):\n    return jnp.tanh(x)", folder + "model.py", "exec"), names)
    assert relax.layers(names["model"])(shape(5, 4))[0].where == "model.py:2"


def test_occurrences_are_numbered_in_order_of_evaluation():
    """The second use of a scope is #1, and so on, kind by kind."""

    def fun(w, x):
        for _ in range(3):
            with jax.named_scope("step"):
                x = jnp.tanh(x @ w)
        return x

    plan = relax.layers(fun)(shape(4, 4), shape(5, 4))
    assert [row.path for row in plan] == [
        "step",
        "step/tanh",
        "step#1",
        "step/tanh#1",
        "step#2",
        "step/tanh#2",
    ]


def test_a_layer_without_scope_is_named_by_its_weight():
    """Bare JAX and NNX have no scopes; the module of the weight stands in for them."""
    plan = relax.layers(lambda params, x: x @ params["hidden"]["kernel"])(PARAMS, X)
    assert plan[0].path == "hidden"
    assert relax.layers(lambda x: x @ np.ones((4, 3)))(X)[0].path == "dense"


def held_by(kind):
    """A function of x that holds its weight in one of the usual places."""
    tree = {"layer": {"kernel": jnp.ones((4, 3), jnp.float32)}}

    class Model:
        def __init__(self):
            self.layer = tree["layer"]

        def __call__(self, x):
            return x @ self.layer["kernel"]

    closed = lambda x: x @ tree["layer"]["kernel"]
    apply = lambda params, x: x @ params["layer"]["kernel"]
    model = Model()
    return {
        "closure": closed,
        "closure of a closure": lambda x: closed(x),
        "partial": functools.partial(apply, tree),
        "jax Partial": jax.tree_util.Partial(apply, tree),
        "jit": jax.jit(closed),
        "jit inside": lambda x: jax.jit(closed)(x),
        "vmap": jax.vmap(closed),
        "callable object": model,
        "method": model.__call__,
        "closure of an object": lambda x: model(x),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "closure",
        "closure of a closure",
        "partial",
        "jax Partial",
        "jit",
        "jit inside",
        "vmap",
        "callable object",
        "method",
        "closure of an object",
    ],
)
def test_a_weight_is_named_where_the_function_holds_it(kind):
    """Closures, partial arguments, objects: its path is where the user put it."""
    assert relax.layers(held_by(kind))(X)[0].weight_path == "layer/kernel"


def test_a_weight_that_is_transposed_and_cast_keeps_its_name():
    """The largest array that the effective weight is computed from."""
    fun = lambda params, x: x @ (params["v"].T.astype(jnp.float32) * params["scale"])
    plan = relax.layers(fun)({"v": shape(3, 4, dtype=jnp.bfloat16), "scale": shape()}, X)
    assert plan[0].weight_path == "v"


def test_names_never_make_a_call_fail():
    """Whatever a function closes over, at worst a weight has no name."""
    odd = {1: jnp.ones(3), "a": jnp.ones(3), (2, 3): object()}

    class Hostile:
        def __getattr__(self, name):
            raise RuntimeError(name)

    hostile = Hostile()
    fun = lambda x: jnp.tanh(x) * odd["a"] * len(type(hostile).__name__)
    np.testing.assert_allclose(relax.lrp(fun)(jnp.ones(3)), jnp.tanh(jnp.ones(3)) * 7, rtol=1e-5)


def test_argnums_kwargs_and_aux_as_in_lrp():
    """The plan takes what `lrp` takes."""

    def fun(x, params, *, scale):
        return (x @ params["hidden"]["kernel"]) * scale, {"aux": x}

    plan = relax.layers(fun, argnums=0, has_aux=True)(X, PARAMS, scale=2.0)
    assert [row.kind for row in plan] == ["dense", "linear"]
    with pytest.raises(relax.ArgumentError):
        relax.layers(fun, argnums=5)(X, PARAMS, scale=2.0)
