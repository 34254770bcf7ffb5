"""Errors teach: each names what, where (this file's own line), which layer, and the remedy.

All of them are raised while tracing, so they are the same inside jit, eval_shape and the plan.
"""

import dataclasses
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import composites, rules, select
from relax.rules import Rule


def without_address(value):
    """A test's name without addresses, so that all workers collect the same."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


X = jnp.arange(1.0, 13.0).reshape(3, 4)
W = jnp.ones((4, 2))


def linear(w, x):
    return x @ w


def line(fun):
    """The line of this file on which the function marks its culprit."""
    source, start = inspect.getsourcelines(fun)
    (offset,) = [i for i, text in enumerate(source) if text.rstrip().endswith("# culprit")]
    return f"test_errors.py:{start + offset}"


def raised(error, call, *args):
    """The message of an error, which is a RelaxError with a sentence and no internal names."""
    with pytest.raises(error) as info:
        call(*args)
    assert isinstance(info.value, relax.RelaxError)
    text = str(info.value)
    assert text[0].isupper() or text[0] in "`'" or text.split("(")[0].split(" ")[0] in text
    assert text.rstrip().endswith((".", ")", "'", "`", "?"))
    assert "Traceback" not in text
    return text


# The classes


def test_every_error_is_a_relax_error_and_the_builtin_it_resembles():
    """So that both `except RelaxError` and `except ValueError` do what they say."""
    bases = {
        relax.UnsupportedOperationError: NotImplementedError,
        relax.UnmatchedSelectorError: ValueError,
        relax.TargetError: ValueError,
        relax.ArgumentError: TypeError,
        relax.RuleError: TypeError,
        relax.HyperparameterError: ValueError,
    }
    for error, builtin in bases.items():
        assert issubclass(error, relax.RelaxError)
        assert issubclass(error, builtin)
        assert error.__name__ in relax.__all__
        assert error.__doc__
    assert issubclass(relax.RelaxWarning, UserWarning)
    assert not issubclass(relax.RelaxWarning, relax.RelaxError)


# Operations that relevance cannot pass yet


def cumprod(x):
    with jax.named_scope("Block"):
        return jnp.cumprod(x, axis=1)  # culprit


def inverse(x):
    with jax.named_scope("Block"):
        return jnp.linalg.inv(x[:, :3])  # culprit


def while_loop(x):
    with jax.named_scope("Block"):
        return lax.while_loop(lambda c: c.sum() < 100, lambda c: 2 * c, x)  # culprit


def argument_of_both(x):
    with jax.named_scope("Block"):
        return jnp.arctan2(x, x[::-1])  # culprit


def power(x):
    with jax.named_scope("Block"):
        return x[0] ** x[1]  # culprit


def eigenvalues(x):
    with jax.named_scope("Block"):
        return jnp.linalg.eigvalsh(x[:, :3])  # culprit


def product_of_all(x):
    with jax.named_scope("Block"):
        return jnp.prod(x, axis=1)  # culprit


UNSUPPORTED = {
    cumprod: "cumprod",
    inverse: "lu|linear_solve",
    while_loop: "lax.while_loop",
    argument_of_both: "atan2",
    power: "pow",
    eigenvalues: "eigh",
    product_of_all: "reduce_prod",
}
EACH = pytest.mark.parametrize("fun", UNSUPPORTED, ids=lambda fun: fun.__name__)


@EACH
def test_an_unsupported_operation_is_named_with_line_path_and_remedy(fun):
    """What, where in this file, in which scope, and the rule that would let it pass."""
    text = raised(relax.UnsupportedOperationError, relax.lrp(fun), X)
    assert re.search(UNSUPPORTED[fun], text)
    assert line(fun) in text
    assert "Block" in text
    if fun is while_loop:
        assert "lax.scan" in text
    else:
        assert re.search(r"\{.*: .*relax\.rules\.\w+\(\)\}", text)
    assert "cannot propagate relevance through" in text


TRANSFORMS = {
    "value_and_lrp": lambda f: relax.value_and_lrp(f),
    "vrp": lambda f: lambda x: relax.vrp(f, x),
    "layers": lambda f: relax.layers(f),
    "jit": lambda f: jax.jit(relax.lrp(f)),
    "eval_shape": lambda f: lambda x: jax.eval_shape(relax.lrp(f), x),
    "vmap": lambda f: jax.vmap(lambda _: relax.lrp(f)(X)),
    "jit inside": lambda f: relax.lrp(jax.jit(f)),
    "vmap inside": lambda f: relax.lrp(lambda x: jax.vmap(lambda y: f(y))(x[None])),
}


CASES = [
    pytest.param(fun, transform, id=f"{fun.__name__}-{transform}")
    for fun in UNSUPPORTED
    for transform in TRANSFORMS
]


@pytest.mark.parametrize(("fun", "transform"), CASES)
def test_unsupported_operations_raise_while_tracing(fun, transform):
    """In every transform, inside jit and eval_shape, and through calls in the function."""
    text = raised(relax.UnsupportedOperationError, TRANSFORMS[transform](fun), X)
    assert line(fun) in text


# What the message offers works for these; a loop or branch cannot have a rule.
OPEN = (while_loop, inverse, eigenvalues)
REMEDIED = [fun for fun in UNSUPPORTED if fun not in OPEN]


@pytest.mark.parametrize("fun", REMEDIED, ids=lambda fun: fun.__name__)
def test_the_remedy_of_the_message_works_as_it_is_written(fun):
    """Copied into the call it gives gradient times input through the operation."""
    text = raised(relax.UnsupportedOperationError, relax.lrp(fun), X)
    remedy = re.search(r"\{.*?\(\)\}", text).group()
    chosen = eval(remedy, {"relax": relax})
    relevance = relax.lrp(fun, chosen)(X)
    assert relevance.shape == X.shape
    assert np.isfinite(relevance).all()


def test_the_first_culprit_of_several_is_named():
    """The message speaks of the operation that comes first in the function."""

    def two(x):
        x = jnp.cumprod(x, axis=1)
        return lax.cummax(jnp.cumprod(x, axis=0), axis=1)

    text = raised(relax.UnsupportedOperationError, relax.lrp(two), X)
    assert "`cumprod`" in text


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2], ids=lambda d: d.__name__)
def test_numbers_of_eight_bits_carry_no_relevance(dtype):
    """Relevance would take their type, where small numbers are zero; weights may be of it."""
    w = jnp.array([2.0, 0.5])
    with pytest.raises(
        relax.UnsupportedOperationError, match=rf"(?s){dtype.__name__}.*test_errors"
    ):
        relax.lrp(lambda x: x.astype(dtype).astype(w.dtype) * w)(jnp.ones(2))
    got = relax.lrp(lambda x: 1e-9 * x * w.astype(dtype).astype(w.dtype))(jnp.ones(2))
    np.testing.assert_allclose(got, 1e-9 * w, rtol=1e-12)


def test_operations_that_the_explained_input_does_not_reach_do_not_matter():
    """Loops, inverses and softmax of parameters are constants."""

    def fun(w, x):
        q = jnp.linalg.inv(w @ w.T + jnp.eye(4)) @ w
        q = lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c), q)
        return x @ jax.nn.softmax(q, axis=0)

    assert relax.lrp(fun)(W, X).shape == X.shape
    with pytest.raises(relax.UnsupportedOperationError):
        relax.lrp(fun, argnums=0)(W, X)


# Selectors


def named(p, x):
    with jax.named_scope("Net"):
        with jax.named_scope("hidden_layer"):
            x = jnp.tanh(x @ p["hidden"]["kernel"])
        with jax.named_scope("head"):
            return x @ p["head"]["kernel"]


P = {"hidden": {"kernel": jnp.ones((4, 3))}, "head": {"kernel": jnp.ones((3, 2))}}


@pytest.mark.parametrize(
    ("selector", "near"),
    [
        ("hiden_layer", "Net/hidden_layer"),
        ("Net/heads", "Net/head"),
        ("head/kernels", "head/kernel"),
        ("*/haed", "Net/head"),
        ("Net/head#1", "Net/head"),
        (select.conv, "Net/head"),
        (select.conv & "head", "Net/head"),
    ],
)
def test_a_selector_without_a_match_names_the_nearest_paths(selector, near):
    """A typo is corrected by the message."""
    text = raised(relax.UnmatchedSelectorError, relax.lrp(named, {selector: rules.ZPlus()}), P, X)
    assert near in text
    assert (selector if isinstance(selector, str) else selector.name) in text
    assert "relax.layers" in text


@pytest.mark.parametrize("pattern", ["hiden_layer", "Net/heads", "nothing like it"])
def test_at_without_a_match_names_the_nearest_paths(pattern):
    """The same for `at=`."""
    text = raised(relax.UnmatchedSelectorError, relax.lrp(named, at=pattern), P, X)
    assert pattern in text
    assert re.search("Nearest: '.*h(idden|ead)", text)
    for several in ([pattern], ("Net/head", pattern)):
        raised(relax.UnmatchedSelectorError, relax.lrp(named, at=several), P, X)


def test_a_selector_on_a_function_without_layers():
    """There is nothing near; the message says so."""
    text = raised(
        relax.UnmatchedSelectorError, relax.lrp(lambda x: x[::2], {"a": rules.ZPlus()}), X
    )
    assert "no layers" in text


# Targets


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (2, ("2", "(3, 2)", "out of range")),
        (-3, ("-3", "(3, 2)", "out of range")),
        (jnp.array([0, 1]), ("(2,)", "(3, 2)", "(3,)")),
        (np.array([[0, 1, 0]]), ("(1, 3)", "(3, 2)", "(3,)")),
        (np.array([0, 1, 5]), ("5", "(3, 2)", "out of range")),
        (jnp.array([0, -7, 1]), ("-7", "(3, 2)", "out of range")),
        (0.0, ("0.0", "int")),
        (jnp.array([0.0, 1.0, 0.0]), ("float64", "int")),
        (jnp.array([True, False, True]), ("bool", "int")),
        (True, ("True", "int")),
        ("min", ("'min'", '"max"')),
        ({"a": 1}, ("a", "int")),
        (object(), ("object", "callable")),
    ],
    ids=without_address,
)
def test_a_wrong_target_names_what_it_is_and_what_it_must_be(target, parts):
    """Both shapes, the word that is known, the type that is wanted."""
    text = raised(relax.TargetError, relax.lrp(linear, target=target), W, X)
    for part in parts:
        assert part in text


@pytest.mark.parametrize("target", [0, "max", jnp.array(0)])
def test_a_target_for_a_scalar_is_an_error_with_a_remedy(target):
    """There is nothing to choose: leave it out."""
    text = raised(relax.TargetError, relax.lrp(lambda x: (x @ W).sum(), target=target), X)
    assert "scalar" in text
    assert "out" in text


def test_a_target_for_a_pytree_is_an_error_with_a_remedy():
    """Which of them? A callable can say."""
    text = raised(relax.TargetError, relax.lrp(lambda x: (x @ W, x), target=0), X)
    assert "callable" in text
    assert "2" in text


def test_a_target_function_must_give_relevance_of_the_value():
    """Shape and structure of what it returns are named beside those of the value."""
    text = raised(relax.TargetError, relax.lrp(linear, target=lambda z: z[0]), W, X)
    assert "(2,)" in text
    assert "(3, 2)" in text
    text = raised(relax.TargetError, relax.lrp(linear, target=lambda z: {"a": z}), W, X)
    assert "'a'" in text
    text = raised(relax.TargetError, relax.lrp(linear, target=lambda z: z.sum()), W, X)
    assert "()" in text


def test_a_traced_target_out_of_range_is_no_crash():
    """Under jit an index cannot be checked; then nothing is chosen."""
    explained = jax.jit(lambda t: relax.lrp(linear, target=t)(W, X))
    np.testing.assert_array_equal(explained(jnp.array(5)), jnp.zeros_like(X))
    np.testing.assert_allclose(explained(jnp.array(1)), relax.lrp(linear, target=1)(W, X))


def test_relprop_of_vrp_checks_structure_and_shape():
    """As jax.vjp does."""
    value, relprop = relax.vrp(lambda x: x @ W, X)
    text = raised(relax.RelaxError, relprop, (value, value))
    assert "structure" in text
    text = raised(relax.RelaxError, relprop, value[0])
    assert "(2,)" in text
    assert "(3, 2)" in text


# Arguments


@pytest.mark.parametrize("argnums", [2, -3, (0, 2), 7])
def test_argnums_out_of_range(argnums):
    """The message says how many arguments there were."""
    text = raised(relax.ArgumentError, relax.lrp(linear, argnums=argnums), W, X)
    assert str(argnums) in text
    assert "2 positional arguments" in text


@pytest.mark.parametrize("argnums", [(0, 0), (1, -1)])
def test_argnums_twice(argnums):
    """An argument can be explained once."""
    assert "twice" in raised(relax.ArgumentError, relax.lrp(linear, argnums=argnums), W, X)


@pytest.mark.parametrize("argnums", [1.5, "x", None, (0, 1.5), (0.5,), [None]])
def test_argnums_that_are_no_integers(argnums):
    """Floats, names and booleans are no positions."""
    text = raised(relax.ArgumentError, relax.lrp(linear, argnums=argnums), W, X)
    assert repr(argnums) in text
    assert "int" in text


def test_argnums_empty():
    """Nothing to explain."""
    assert "empty" in raised(relax.ArgumentError, relax.lrp(linear, argnums=()), W, X)


def test_no_positional_argument_at_all():
    """The input was passed by keyword: say that it must be by position."""
    text = raised(relax.ArgumentError, lambda: relax.lrp(linear)(w=W, x=X))
    assert "position" in text


@pytest.mark.parametrize("argument", ["text", None, [], {"a": "text"}, object()])
def test_an_explained_argument_without_arrays(argument):
    """Its name or its content is in the message."""
    text = raised(relax.ArgumentError, relax.lrp(lambda x: X.sum()), argument)
    assert "array" in text


def test_an_explained_argument_that_is_partly_no_array():
    """Strings in a pytree of inputs."""
    text = raised(
        relax.ArgumentError, relax.lrp(lambda x: x["image"].sum()), {"image": X, "label": "cat"}
    )
    assert "label" in text
    assert "'cat'" in text
    assert "argnums" in text


def test_a_boolean_argument():
    """A mask carries no relevance."""
    text = raised(relax.ArgumentError, relax.lrp(lambda m: (X * m).sum()), X > 3)
    assert "bool" in text
    assert "`m`" in text


def test_an_integer_argument_that_looks_nothing_up():
    """Without an embedding there is no float value that could carry its relevance."""
    text = raised(
        relax.ArgumentError, relax.lrp(lambda n: jnp.ones(3) * (n > 1).sum()), jnp.arange(4)
    )
    assert "`n`" in text
    assert "integer" in text
    assert "embed" in text


@pytest.mark.parametrize("result", ["text", object(), len])
def test_a_value_that_is_no_array(result):
    """The type is named, and has_aux offered."""
    text = raised(relax.RelaxError, relax.lrp(lambda x: {"y": x.sum(), "rest": result}), X)
    assert type(result).__name__ in text
    assert "has_aux" in text


def test_a_value_without_arrays():
    """A forgotten return: there is nothing to explain, whatever argnums says."""

    def forgets(x):
        jnp.tanh(x)

    for fun in (forgets, lambda x: (), lambda x: {}):
        text = raised(relax.ArgumentError, relax.lrp(fun), X)
        assert "return" in text


@pytest.mark.parametrize(
    "result", [lambda x: x, lambda x: (x,), lambda x: (x, x, x), lambda x: [x, x]]
)
def test_has_aux_without_a_pair(result):
    """As jax.grad says it."""
    text = raised(relax.ArgumentError, relax.lrp(result, has_aux=True), X)
    assert "(value, aux)" in text


def test_integer_values_cannot_be_explained():
    """A class index is no score: warn that nothing depends on the input through floats."""
    with pytest.warns(relax.RelaxWarning, match="comparisons"):
        relevance = relax.lrp(lambda x: jnp.argmax(x, -1))(X)
    np.testing.assert_array_equal(relevance, jnp.zeros_like(X))


def test_a_users_own_error_is_not_dressed_up():
    """A wrong shape is the model's own clear error."""
    with pytest.raises(TypeError, match=r"dot_general|contract") as info:
        relax.lrp(linear)(W, jnp.ones((3, 5)))
    assert not isinstance(info.value, relax.RelaxError)

    def broken(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        relax.lrp(broken)(X)
    with pytest.raises(TypeError, match="missing"):
        relax.lrp(lambda a, b, c: a)(X)


def test_what_is_no_function():
    """A model object that cannot be called: say what is wanted."""
    with pytest.raises(TypeError):
        relax.lrp({"params": 1})(X)


# Rules


@pytest.mark.parametrize(
    ("selector", "rule", "kind"),
    [
        (select.activation, rules.ZPlus(), "activation"),
        (select.activation, rules.Flat(), "activation"),
        (select.dense, rules.GuidedBackprop(), "dense"),
        (select.dense, rules.Winner(), "dense"),
        (select.sums, rules.Pass(), "sum"),
        ("head", rules.BetaSmooth(), "dense"),
        (select.pool, rules.ZPlus(), "max_pool"),
        ("head", rules.Mask(1.0, rules.Deconvnet()), "dense"),
    ],
)
def test_a_rule_on_a_layer_that_it_cannot_serve(selector, rule, kind):
    """The rule, the layer's kind, its line and what the rule does act on."""

    def fun(p, x):
        h = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 1), "SAME")
        return named(p, h + jnp.tanh(x))

    text = raised(relax.RuleError, relax.lrp(fun, {selector: rule}), P, X)
    assert type(rule).__name__ in text
    assert kind in text
    assert "test_errors.py:" in text
    assert "acts on" in text
    by_function = lambda layer: rule if select.predicate(selector)(layer) else None
    assert "acts on" in raised(relax.RuleError, relax.lrp(fun, by_function), P, X)


@pytest.mark.parametrize("rule", [rules.Epsilon, rules.Gamma, rules.Flat])
def test_a_rule_class_in_the_place_of_an_instance(rule):
    """The most frequent slip: the hint has the parentheses."""
    for wrong in (rule, {"head": rule}, [("head", rule)], lambda layer: rule):
        text = raised(relax.RuleError, lambda w=wrong: relax.lrp(named, w)(P, X))
        assert f"{rule.__name__}()" in text


@pytest.mark.parametrize("composite", [composites.epsilon_plus, composites.epsilon_gamma_box])
def test_a_composite_function_in_the_place_of_its_result(composite):
    """Composites are made by a call."""
    text = raised(relax.RuleError, relax.lrp(named, composite), P, X)
    assert composite.__name__ in text


@pytest.mark.parametrize(
    "wrong",
    [
        "epsilon",
        3,
        None,
        {"head": "epsilon"},
        {"head": 0.1},
        {"head": None},
        [("head", rules.Epsilon(), 1)],
        ["head"],
        {1: rules.Epsilon()},
        [(None, rules.Epsilon())],
        lambda layer: "epsilon",
        lambda layer: 0.25,
    ],
    ids=without_address,
)
def test_what_is_no_rule(wrong):
    """Text, numbers, None, rules without a selector: each is named and a form is offered."""
    text = raised(relax.RuleError, lambda: relax.lrp(named, wrong)(P, X))
    assert "rule" in text or "selector" in text


def test_an_error_in_a_users_selector_is_the_users_own():
    """A predicate that fails is not hidden."""
    with pytest.raises(AttributeError, match="no_such"):
        relax.lrp(named, [(lambda layer: layer.no_such, rules.ZPlus())])(P, X)


def test_a_rule_that_is_no_dataclass():
    """The decorator is named."""

    class Plain(rules.AffineRule):
        def relevance(self, layer, x, relevance):
            return x

    text = raised(relax.RuleError, relax.lrp(linear, Plain()), W, X)
    assert "Plain" in text
    assert "dataclass(frozen=True)" in text


def test_a_rule_without_the_method():
    """The one method a rule needs."""

    @dataclasses.dataclass(frozen=True)
    class Empty(rules.AffineRule):
        pass

    text = raised(relax.RuleError, relax.lrp(linear, Empty()), W, X)
    assert "Empty" in text
    assert "relevance" in text


def test_a_rule_that_returns_the_wrong_shape():
    """What it returned and what the layer's input has."""

    @dataclasses.dataclass(frozen=True)
    class Wrong(rules.AffineRule):
        def relevance(self, layer, x, relevance):
            return relevance

    text = raised(relax.RuleError, relax.lrp(linear, Wrong()), W, X)
    assert "Wrong" in text
    assert "(3, 2)" in text
    assert "(3, 4)" in text


def test_a_rule_that_serves_nothing_here():
    """A rule of the base class alone has no kinds: it must say which."""

    @dataclasses.dataclass(frozen=True)
    class Homeless(Rule):
        def relevance(self, layer, x, relevance):
            return x

    text = raised(relax.RuleError, relax.lrp(linear, {"*": Homeless()}), W, X)
    assert "Homeless" in text


def test_a_rule_of_ones_own_without_its_method():
    """It is named, and what it lacks."""

    @dataclasses.dataclass(frozen=True)
    class Unshared(rules.ProductRule):
        pass

    text = raised(relax.RuleError, relax.lrp(lambda x: x @ x.T, Unshared()), jnp.ones((2, 2)))
    assert "Unshared defines no method `shares`" in text


def test_a_mask_that_does_not_broadcast():
    """Both shapes."""
    mask = rules.Mask(jnp.ones(5), rules.Epsilon())
    text = raised(relax.RuleError, relax.lrp(linear, mask), W, X)
    assert "(5,)" in text
    assert "(3, 2)" in text


def test_a_mask_of_something_that_is_no_rule():
    """Mask(mask, rule) wraps an instance."""
    for inner in ("epsilon", rules.Epsilon, 0.5):
        assert "Mask" in raised(relax.RuleError, rules.Mask, 1.0, inner)


# Hyper-parameters

HYPER = {
    "Epsilon(-0.1)": ("epsilon", "-0.1"),
    "Epsilon(nan)": ("epsilon", "nan"),
    "Epsilon(inf)": ("epsilon", "inf"),
    "Epsilon('a')": ("epsilon", "'a'"),
    "Epsilon(None)": ("epsilon", "None"),
    "Epsilon(True)": ("epsilon", "True"),
    "Epsilon(np.float64(-0.1))": ("epsilon", "-0.1"),
    "Epsilon(np.array([0.1, nan]))": ("epsilon", "finite"),
    "Epsilon(jnp.array(-1.0))": ("epsilon", "-1"),
    "Epsilon(0.1, stabilizer='squared')": ("'squared'", "additive", "clip", "scale"),
    "Epsilon(0.1, bias_share='a')": ("bias_share",),
    "ZPlus(-1.0)": ("epsilon", "-1"),
    "ZPlus(stabilizer='none')": ("'none'", "additive"),
    "AlphaBeta(2.0, 2.0)": ("alpha", "beta", "AlphaBeta(2, 1)"),
    "AlphaBeta(1.0, 1.0)": ("alpha", "beta", "AlphaBeta(1, 0)"),
    "AlphaBeta(1.4)": ("alpha", "beta", "AlphaBeta(1.4, 0.4)"),
    "AlphaBeta(nan, 1.0)": ("alpha", "nan"),
    "AlphaBeta(inf, inf)": ("inf",),
    "AlphaBeta(np.float64(2.0), np.float64(2.0))": ("alpha", "beta"),
    "AlphaBeta(jnp.array(2.0), jnp.array(2.0))": ("alpha", "beta"),
    "Gamma(-0.25)": ("gamma", "-0.25"),
    "Gamma(nan)": ("gamma", "nan"),
    "Gamma(inf)": ("gamma", "inf"),
    "Gamma(0.25, -1.0)": ("epsilon", "-1"),
    "Gamma(np.float32(nan))": ("gamma", "nan"),
    "TextbookGamma(-1.0)": ("gamma", "-1"),
    "ZBox(1.0, -1.0)": ("low", "high"),
    "ZBox(np.array([0.0, 2.0]), 1.0)": ("low", "high"),
    "ZBox(0.0, np.array([1.0, -1.0]))": ("low", "high"),
    "ZBox(jnp.array([0.0, 2.0]), 1.0)": ("low", "high"),
    "ZBox(-inf, 1.0)": ("low", "inf"),
    "ZBox(0.0, nan)": ("high", "nan"),
    "ZBox(0.0, None)": ("high", "None"),
    "WSquare(-1.0)": ("epsilon", "-1"),
    "WSquare(stabilizer=3)": ("stabilizer", "3"),
    "Flat(nan)": ("epsilon", "nan"),
    "BetaSmooth(nan)": ("beta", "nan"),
    "Rescale(inf)": ("reference", "inf"),
}


@pytest.mark.parametrize("text", HYPER)
def test_a_contradictory_or_non_finite_hyper_parameter(text):
    """Known values are checked when the rule is made; the name and the value are in the message."""
    names = {n: getattr(rules, n) for n in rules.__all__}
    scope = {**names, "nan": math.nan, "inf": math.inf, "np": np, "jnp": jnp}
    message = raised(relax.HyperparameterError, lambda: eval(text, scope))
    for part in (text.split("(")[0], *HYPER[text]):
        assert part in message


def test_alpha_minus_beta_is_checked_with_a_tolerance():
    """1.4 - 0.4 is not exactly 1 in floats (Zennit rejects it)."""
    assert rules.AlphaBeta(1.4, 0.4).alpha == 1.4
    assert rules.AlphaBeta(np.float32(1.4), np.float32(0.4)).beta == np.float32(0.4)


@pytest.mark.parametrize("make", [lambda t: rules.Epsilon(t), lambda t: rules.AlphaBeta(t, t)])
def test_traced_hyper_parameters_are_not_checked(make):
    """They are not known yet; a sweep may pass through what is not allowed."""
    relevance = jax.jit(lambda t: relax.lrp(linear, make(t))(W, X))(0.5)
    assert relevance.shape == X.shape


def test_rules_rebuilt_by_jax_are_not_checked():
    """tree_map over rules makes differences and placeholders, which are no hyper-parameters."""
    negative = jax.tree.map(lambda a: -a, rules.Gamma(0.25))
    assert negative.gamma == -0.25
    assert jax.tree.map(lambda _: None, rules.Epsilon()).epsilon is None


# Warnings


def test_an_output_that_does_not_depend_on_the_input_at_all():
    """Most likely the wrong argument: zero relevance, and a warning that says why."""
    with pytest.warns(relax.RelaxWarning, match="not at all") as caught:
        relevance = relax.lrp(lambda w, x: w.sum())(W, X)
    np.testing.assert_array_equal(relevance, jnp.zeros_like(X))
    assert "argnums" in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "fun",
    [
        lambda x: (x > 3).astype(jnp.float64).sum(),
        lambda x: jnp.round(x).astype(jnp.int32).sum() * 1.0,
        lambda x: W[x.argmax(1)].sum(),
        lambda x: jnp.where(x.sum() > 0, 1.0, 2.0),
        lambda x: lax.stop_gradient(x).sum(),
    ],
    ids=["comparison", "integer", "argmax", "where", "stop_gradient"],
)
def test_an_output_that_depends_on_the_input_only_through_decisions(fun):
    """It depends on it, but nothing carries relevance."""
    with pytest.warns(relax.RelaxWarning, match="only through") as caught:
        relevance = relax.lrp(fun)(X)
    np.testing.assert_array_equal(relevance, jnp.zeros_like(X))
    assert len(caught) == 1


def test_the_warning_comes_from_every_transform():
    """value_and_lrp and vrp warn as well."""
    fun = lambda x: (x > 3).astype(jnp.float64).sum()
    for call in (
        lambda: relax.value_and_lrp(fun)(X),
        lambda: relax.vrp(fun, X),
        lambda: relax.layers(fun)(X),
    ):
        with pytest.warns(relax.RelaxWarning) as caught:
            call()
        assert len(caught) == 1
        assert caught[0].filename == __file__


def test_one_of_several_explained_arguments_may_be_unused():
    """Some relevance flows, so there is no warning; the unused argument gets zeros."""
    used, unused = relax.lrp(lambda a, b: a.sum(), argnums=(0, 1))(X, X)
    np.testing.assert_allclose(used, X, rtol=1e-5)
    np.testing.assert_array_equal(unused, jnp.zeros_like(X))


def test_a_network_without_relu_under_guided_backprop_warns():
    """It is the plain gradient then, which is most likely not what was meant."""
    with pytest.warns(relax.RelaxWarning, match="ReLU"):
        relax.lrp(named, composites.guided_backprop())(P, X)


# What a wrong rule meets


@pytest.mark.parametrize(
    "rule", [rules.Norm(), rules.Winner(), rules.GuidedBackprop(), rules.Pass()], ids=repr
)
def test_a_rule_that_finds_nothing_to_act_on(rule):
    """Given alone, a rule for layers that the function does not have is a slip."""
    text = raised(relax.RuleError, relax.lrp(linear, rule), W, X)
    assert type(rule).__name__ in text
    assert "has dense" in text


def test_a_rule_of_no_kind():
    """A subclass of Rule says which layers it is for."""

    class Mine(Rule):
        pass

    text = raised(relax.RuleError, relax.lrp(linear, Mine()), W, X)
    assert "AffineRule" in text


@pytest.mark.parametrize("name", ["ZPlus", "AlphaBeta", "Gamma", "ZBox"])
def test_signs_of_complex_weights(name):
    """A complex number has none."""
    fourier = lambda x: jnp.fft.irfft(jnp.fft.rfft(x) @ jnp.ones((3, 3), complex))
    text = raised(relax.RuleError, relax.lrp(fourier, getattr(rules, name)()), X)
    assert "complex" in text
    assert "Epsilon()" in text


@pytest.mark.parametrize(
    "rule", [rules.ZBox(jnp.zeros(7), jnp.ones(7)), rules.Gamma(jnp.ones(7))], ids=["ZBox", "Gamma"]
)
def test_a_hyperparameter_of_a_wrong_shape(rule):
    """The error names the rule, the layer and the line."""

    def fun(w, x):
        return x @ w  # culprit

    text = raised(relax.RuleError, relax.lrp(fun, rule), W, X)
    assert line(fun) in text
    assert "(7,)" in text or "[7]" in text


@pytest.mark.parametrize("epsilon", [[1e-6], None, "a", 1j, (0.1,)], ids=repr)
def test_a_hyperparameter_that_is_no_number(epsilon):
    text = raised(relax.HyperparameterError, rules.Epsilon, epsilon)
    assert "Epsilon(epsilon=" in text


def test_a_function_applied_by_a_scatter():
    """`x.at[i].apply(f)` is no move of data."""

    def fun(x):
        return x.at[0].apply(jnp.abs)  # culprit

    text = raised(relax.UnsupportedOperationError, relax.lrp(fun), X)
    assert line(fun) in text


def test_shapes_where_numbers_are_needed():
    """The plan takes shapes; relevance does not."""
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    text = raised(relax.ArgumentError, relax.lrp(linear), W, shape)
    assert "relax.layers" in text


def test_relprop_with_a_wrong_shape_speaks_of_relprop():
    _, relprop = relax.vrp(lambda x: x @ W, X)
    text = raised(relax.TargetError, relprop, jnp.ones((3, 3)))
    assert "relprop" in text


def test_a_derivative_that_does_not_exist():
    """A user gives `while` a rule that needs its derivative, which JAX has not."""
    halve = lambda x: lax.while_loop(lambda c: c.sum() > 1, lambda c: c / 2, x)
    text = raised(relax.RuleError, relax.lrp(halve, {"while": rules.Linear()}), X)
    assert "while" in text


def test_a_composite_that_was_not_called():
    text = raised(relax.RuleError, relax.lrp(linear, composites.epsilon), W, X)
    assert "epsilon()" in text
