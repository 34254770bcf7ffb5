"""Names of other systems: what they stand for here, and that the page about them says so."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import composites, methods, names, rules

PAGE = Path(__file__).parents[1] / "docs" / "names.md"
GENERATOR = np.random.default_rng(0)
P = {
    "conv": jnp.asarray(GENERATOR.normal(size=(3, 3, 2, 4))),
    "bias": jnp.asarray(GENERATOR.normal(size=4)),
    "dense": jnp.asarray(GENERATOR.normal(size=(16, 3))),
}
X = jnp.asarray(GENERATOR.normal(size=(2, 6, 6, 2)))


def network(p, x):
    x = jax.lax.conv_general_dilated(
        x, p["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x + p["bias"][None, None, None])
    x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    return x.reshape(x.shape[0], -1) @ p["dense"]


def needed(entry):
    """Options without a default."""
    if "pattern" in entry.path:
        return {"patterns": methods.fit_patterns(network, P, data=[X])}
    if entry.path in ("methods.random", "methods.smoothgrad", "methods.shapley_sampling"):
        return {"key": jax.random.key(0)}
    return {"position": 0} if "rollout" in entry.path else {}


ENTRIES = [pytest.param(e, id=f"{e.system}.{e.name}") for e in names.TABLE]
NOT_HERE = {"attention_rollout", "arras_lstm", "attnlrp", "attnlrp_vit", "cp_lrp"}


@pytest.mark.parametrize("entry", [p for p in ENTRIES if p.values[0].name not in NOT_HERE])
def test_every_name_explains_a_network(entry):
    """And what it prints is the call that gives the same."""
    options = needed(entry)
    explain = relax.method(f"{entry.system}.{entry.name}", **options)
    found = explain(network, target=1)(P, X)
    assert found.shape == X.shape
    assert jnp.isfinite(found).all()
    names_of = {"relax": relax, "f": network} | options
    text = repr(relax.method(f"{entry.system}.{entry.name}", **options))
    for option, value in options.items():
        text = re.sub(rf"{option}=.*?(?=, \w+=|\)$)", f"{option}={option}", text)
        names_of[option] = value
    written = eval(text[:-1] + ", target=1)", names_of)  # our own text
    np.testing.assert_allclose(written(P, X), found, rtol=1e-12)


def same(name, expected, **options):
    found = relax.method(name, **options)(network, target=1)(P, X)
    np.testing.assert_allclose(found, expected(P, X), rtol=1e-12, atol=1e-14)


def test_the_names_of_the_issue():
    weighted = lambda rule: relax.lrp(network, rule, target=1)
    same("lrp.epsilon", weighted(rules.Epsilon(1e-6)), epsilon=1e-6)
    same("lrp.epsilon", weighted(rules.Epsilon(0.1, zero_bias=True)), epsilon=0.1, bias=False)
    preset = composites.sequential_preset_a_flat()
    same("lrp.sequential_preset_a_flat", relax.lrp(network, preset, target=1))
    bounded = methods.deep_taylor_bounded(network, low=-2, high=3, sums=rules.Flat(), target=1)
    same("deep_taylor.bounded", bounded, low=-2, high=3)
    same("elrp", methods.elrp(network, epsilon=0.5, target=1), epsilon=0.5)
    same("grad*input", methods.gradient_x_input(network, target=1))
    plus = composites.epsilon_plus_flat(sums=rules.Norm())
    same("EpsilonPlusFlat", relax.lrp(network, plus, target=1))


def test_options_in_the_words_of_the_system():
    gauss = methods.integrated_gradients(
        network, baseline=0.5, steps=7, quadrature="gauss_legendre", target=1
    )
    same("captum.IntegratedGradients", gauss, baselines=0.5, n_steps=7)
    same("captum.IntegratedGradients", gauss, baseline=0.5, steps=7)
    right = methods.integrated_gradients(network, steps=20, quadrature="right", target=1)
    same("zennit.IntegratedGradients", right)
    left = methods.integrated_gradients(network, steps=64, quadrature="left", target=1)
    same("innvestigate.integrated_gradients", left)
    windows = methods.occlusion(network, window=(3, 3, 2), strides=(3, 3, 2), target=1)
    same("deepexplain.occlusion", windows, window_shape=(3, 3, 2), step=(3, 3, 2))


def test_a_name_that_several_have_is_that_of_relax():
    assert relax.method("integrated_gradients").entry.system == "relax"
    assert relax.method("IntegratedGradients").entry.system == "zennit"
    for entry in names.TABLE:
        full = f"{entry.system}.{entry.name}"
        assert relax.method(full, **needed(entry)).entry is entry


def test_every_method_and_composite_has_its_name():
    own = {entry.name for entry in names.TABLE if entry.system == "relax"}
    assert own >= set(methods.__all__) - {"fit_patterns"}
    assert own >= {name for name in composites.__all__ if name[0].islower()}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lrp.epsilom", {}, "Nearest: 'lrp.epsilon'"),
        ("epsilonplus", {}, "Nearest: 'EpsilonPlus'"),
        ("qqqq", {}, r"see docs/names\.md"),
        ("lrp.epsilon", {"eps": 1.0}, "(?s)no option 'eps'.*bias, bias_share, epsilon"),
        ("gradient", {"steps": 3}, "no option 'steps'"),
        ("IntegratedGradients", {"n_steps": 3}, "Others of that name: .*captum"),
        ("smoothgrad", {}, "(?s)needs key.*key=jax"),
        ("pattern.net", {}, "fit_patterns"),
        ("Gradcam", {}, r"see docs/names\.md"),
        ("innvestigate.lrp.sequential_preset_b_flat_until_idx", {}, "layers have names"),
        ("captum.GradientShap", {}, "over baselines"),
    ],
)
def test_a_wrong_name_or_option(name, options, said):
    with pytest.raises(relax.ArgumentError, match=said):
        relax.method(name, **options)


def page_rows():
    """One row of the page for each entry of another system."""
    rows = []
    for entry in names.TABLE:
        if entry.system == "relax":
            continue
        options = ", ".join(
            f"{theirs}: {ours[0] if isinstance(ours, tuple) else ours}"
            for theirs, ours in entry.options.items()
            if theirs != ours
        )
        rows.append(
            f"| {entry.system} | `{entry.name}` | `{entry.call}` | {options} | {entry.note} |"
        )
    rows += [f"| `{name}` | {how} |" for name, how in names.OTHERWISE.items()]
    return rows


def test_the_page_has_every_name():
    """docs/names.md is the table, and has nothing else in its tables."""
    found = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    heads = [line for line in found if line.startswith(("| system", "| name", "| ---"))]
    assert [line for line in found if line not in heads] == page_rows(), "\n".join(page_rows())
