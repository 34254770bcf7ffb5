"""docs/rules.md, the catalogue: the formulas, defaults and sources of the docstrings; the costs."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import rules

PAGE = (Path(__file__).parents[1] / "docs" / "rules.md").read_text(encoding="utf-8")
ENTRIES = {text.split("\n")[0]: text for text in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]}
BASES = {
    "Rule",
    "AffineRule",
    "ActivationRule",
    "ProductRule",
    "SoftmaxRule",
    "NormalizationRule",
}
ALIASES = {"GeneralizedGamma"}


def squeezed(text):
    return " ".join(text.replace("`", "").split())


def item(entry, name):
    """The words behind a name in bold."""
    return squeezed(re.search(rf"- \*\*{name}:\*\* (.*?)(?=\n- |\n\n|\Z)", entry, re.DOTALL)[1])


def test_every_rule_is_in_the_catalogue():
    """Each rule has an entry, and each entry is a rule."""
    there = {
        name
        for name in rules.__all__
        if isinstance(getattr(rules, name), type) and issubclass(getattr(rules, name), rules.Rule)
    }
    assert set(ENTRIES) == there - BASES - ALIASES
    assert all(f"`{name}`" in PAGE for name in ALIASES)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_that_of_the_docstring(name):
    """Summary, formula and source word by word; the defaults by the rule itself."""
    entry, rule = ENTRIES[name], getattr(rules, name)
    doc = inspect.getdoc(rule)
    formula = re.search(r"\$\$.*?\$\$", doc, re.DOTALL).group()
    source = re.search(r"Source: (.*?)(?:\n\n|\Z)", doc, re.DOTALL)[1]
    assert squeezed(doc.split("\n")[0]) in squeezed(entry)
    assert squeezed(formula) in squeezed(entry)
    assert item(entry, "Source") == squeezed(source)
    assert item(entry, "For")
    if name != "Mask":
        assert item(entry, "Defaults") == repr(rule())


# A dense layer of an input of both signs; and one behind a ReLU and in front of one.
SIZES = {"w": (256, 192), "b": (192,)}
INPUT = jax.ShapeDtypeStruct((512, 256), jnp.float32)
PARAMS = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SIZES.items()}


def dense(p, x):
    y = x @ p["w"]
    return y + jnp.broadcast_to(p["b"], y.shape)


def between(p, x):
    return jax.nn.relu(dense(p, jax.nn.relu(x)))


def gradients(f):
    """FLOPs of the compiled program by those of two products: one forward, one back."""
    program = jax.jit(f).lower(PARAMS, INPUT).compile()
    return program.cost_analysis()["flops"] / (2 * 2 * 512 * 256 * 192)


@pytest.mark.parametrize(
    "name",
    [name for name in ENTRIES if issubclass(getattr(rules, name), rules.AffineRule)],
)
def test_costs_are_as_the_catalogue_says(name):
    """In gradients, for a dense layer: the first number, and the second where there is one."""
    usual, other = re.match(
        r"([\d.]+)(?:[^,]*, (?:and|or) ([\d.]+))?", item(ENTRIES[name], "Cost in gradients")
    ).groups()
    first, second = (dense, between) if name == "ZBox" else (between, dense)
    rule = getattr(rules, name)
    pairs = [(first, rule(), usual)]
    if name == "Epsilon":
        pairs.append((between, rule(bias_share=1.0), other))
    else:
        pairs.append((second, rule(), other or usual))
    for f, given, said in pairs:
        cost = gradients(relax.lrp(f, {"w": given}))
        np.testing.assert_allclose(cost, float(said.rstrip(".")), atol=0.07)
