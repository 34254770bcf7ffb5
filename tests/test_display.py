"""How results look in notebooks and in terminals; that bars are seen only where someone looks."""

import html.parser
import io
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import composites, concepts, evaluation, methods, rules, select, viz
from relax._display import html_curve, sparkline


@pytest.fixture(scope="module")
def p():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    return {"hidden": {"w": draw(4, 5)}, "head": {"w": draw(5, 3)}}


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)))


def f(p, x):
    with jax.named_scope("[bold]<i>"):  # markup of rich and of HTML, both to be shown as they are
        h = jax.nn.relu(x @ p["hidden"]["w"])
    return h @ p["head"]["w"]


@pytest.fixture(scope="module")
def results(p, x):
    """Everything that displays itself, and texts that must be seen."""
    plan = relax.layers(f)(p, x)
    _, account = relax.ledger(f, rules.Epsilon(0.1), target=1)(p, x)
    scores = {"ABPC": np.array([[1.0, 3.0], [2.0, 2.0]])}
    relevance = {"a[0]": x, "b": -x}
    biggest = lambda relevance: jnp.abs(relevance).max()
    return {
        "plan": (plan, ["head/w", "[bold]<i>", "Epsilon(1e-06)", "3 layers"]),
        "ledger": (account, ["stabilizer", "[bold]<i>", "explained", "rounding"]),
        "table": (
            evaluation.Table(("a[0]", "b"), scores, {"b": 3}),
            ["a[0]", "2 ± 1", "gradients", "2 samples, mean ± standard error"],
        ),
        "curve": (
            evaluation.deletion(f, p, x, relevance=x, target=1),
            ["Curve(morf: 6 samples, 4 steps to 1"],
        ),
        "agreement": (evaluation.agreement(relevance), ["spearman", "a[0]", "-1.00", "1.00"]),
        "randomization": (
            evaluation.randomization(relax.lrp(f, target=1), p, x, key=jax.random.key(0)),
            ["down to", "hidden/w", "similarity"],
        ),
        "tuned": (
            relax.tune(f, rules.Gamma(0.25), biggest, grid=[0.0, 1.0], target=1)(p, x),
            ["head", "score", "->"],
        ),
        "flow": (
            concepts.flow(f, at=["hidden/w", "head/w"], width=2, target=1)(p, x),
            ["concept", "hands on to"],
        ),
        "composite": (
            composites.epsilon_plus_flat(),
            ["first", "conv", "ZPlus(1e-06)", "the others keep their default"],
        ),
        "own composite": (
            relax.Composite((("[bold]<i>", rules.Gamma(0.1)), (select.dense, rules.Epsilon()))),
            ["[bold]<i>", "Gamma(0.1)", "each must match a layer"],
        ),
        "text": (viz.text(["[bold]", " <i>"], [1.0, -1.0]), ["[bold]", "<i>"]),
        "rule": (rules.Gamma(0.5), ["Gamma(0.5)", "$$", "R_k"]),
    }


NAMES = [
    "plan",
    "ledger",
    "table",
    "curve",
    "agreement",
    "randomization",
    "tuned",
    "flow",
    "composite",
    "own composite",
    "text",
    "rule",
]


class Page(html.parser.HTMLParser):
    """Reads HTML: its text, the tags that are open, the colors that it sets."""

    void = ("img", "br", "polyline", "polygon")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.styles = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.styles += [value for name, value in attrs if name in ("style", "fill", "stroke")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles.append(data)
        else:
            self.text.append(data)


@pytest.mark.parametrize("name", NAMES)
def test_html_stands_alone_and_is_escaped(name, results):
    """Well-formed, without script, link or image; a user's names are text, never tags."""
    value, words = results[name]
    page = Page(value._repr_html_())
    assert page.open == []
    assert not {"script", "link", "img", "i"} & set(page.tags)
    text = "".join(page.text)
    assert [word for word in words if word not in text] == []
    assert "url(" not in "".join(page.styles)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "text"])
def test_html_has_the_colors_of_the_page(name, results):
    """No opaque color is set, so that letters can be read on black as on white.

    A text has both, letters and ground: see tests/test_viz_text.py.
    """
    page = Page(results[name][0]._repr_html_())
    for style in page.styles:
        for color in re.findall(r"(?:^|[{;])(?:color|background|fill|stroke):([^;}]+)", style):
            assert color == "inherit" or re.fullmatch(r"rgba\(\d+,\d+,\d+,0?\.\d+\)", color), color
    assert set(re.findall(r"#[0-9a-f]{3,6}\b", "".join(page.styles))) == set()


def printed(value, width=200):
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(value)
    return stream.getvalue()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rule"])
def test_rich_prints_it(name, results):
    """With brackets as they are, which rich takes for markup elsewhere."""
    pytest.importorskip("rich", reason="extra `eval` not installed")
    value, words = results[name]
    text = printed(value)
    assert [word for word in words if word not in text] == []


def test_a_narrow_terminal_loses_nothing(results):
    """Paths are broken, not cut: all their letters are there."""
    pytest.importorskip("rich", reason="extra `eval` not installed")
    plan, _ = results["plan"]
    squeezed = re.sub(r"\s", "", printed(plan, width=60))
    for row in plan:
        for part in (row.path, row.currency, row.where):
            assert set(part) <= set(squeezed)
    assert "…" not in squeezed
    wide = printed(plan)
    assert sorted(re.sub(r"[\s─]", "", wide)) == sorted(re.sub(r"[\s─]", "", squeezed))


@pytest.mark.parametrize("name", NAMES)
def test_plain_text_is_plain(name, results):
    """What print shows has no escape codes, and is what it was before rich was there."""
    value, _ = results[name]
    assert "\x1b" not in str(value)
    assert "<td>" not in str(value)


def test_shades_of_an_agreement(results):
    """Red above zero, blue below, as strong as the number."""
    page = results["agreement"][0]._repr_html_()
    shades = re.findall(
        r'<td style="background:rgba\((\d+),\d+,(\d+),([\d.]+)\)">(-?\d\.\d\d)', page
    )
    assert [number for *_, number in shades] == ["1.00", "-1.00", "-1.00", "1.00"]
    for red, blue, strength, number in shades:
        assert (int(red) > int(blue)) == (float(number) > 0)
        assert float(strength) == pytest.approx(0.5 * abs(float(number)))


def test_what_is_traced_or_batched_is_one_line(p, x, results):
    """Without numbers there is no table."""
    curve = jax.vmap(lambda x: evaluation.deletion(f, p, x, relevance=x, target=1))(x[None])
    assert "values (1, 6, 5)" in curve._repr_html_()
    seen = []

    @jax.jit
    def trace(x):
        relevance, account = relax.ledger(f, target=1)(p, x)
        found = evaluation.agreement({"a": relevance, "b": x})
        graph = concepts.flow(f, at=["hidden/w", "head/w"], target=1)(p, x)
        seen.extend(value._repr_html_() for value in (account, found, graph))
        return relevance

    trace(x)
    assert all("<table" not in text for text in seen)
    assert "traced" in seen[0]


def test_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([7.0, 0.0, np.nan]) == "█▁?"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([np.nan]) == "?"


def test_the_line_of_a_curve():
    """From the left to the right; the largest on top; the band around it; nothing out of it."""
    text = html_curve([0, 0.5, 1], [4.0, 2.0, 0.0], [0.5, 0.0, 0.5], label="<curve>")
    line = re.search(r'polyline points="([^"]+)"', text)[1]
    band = re.search(r'polygon points="([^"]+)"', text)[1]
    read = lambda points: np.array([pair.split(",") for pair in points.split()], float)
    across, down = read(line).T
    np.testing.assert_allclose(np.diff(across), np.diff(across)[0], atol=0.11)
    assert (np.diff(down) > 0).all()
    upper, lower = read(band)[:3], read(band)[3:][::-1]
    np.testing.assert_allclose(upper[:, 1] + lower[:, 1], 2 * down, atol=0.21)
    np.testing.assert_allclose((lower - upper)[1, 1], 0, atol=0.11)
    assert (read(band) >= 0).all()
    assert (read(band) <= [240, 80]).all()
    assert "&lt;curve&gt;" in text
    assert "<svg" not in html_curve([0.0, 1.0], [np.nan, 1.0], label="")


def test_a_rule_of_ones_own_has_its_line_and_no_formula():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Mine(rules.AffineRule):
        """Half & half."""

        share: float = 0.5

    @dataclasses.dataclass(frozen=True)
    class Bare(rules.AffineRule):
        share: float = 0.5

    assert Mine()._repr_html_() == "<div><code>Mine(0.5)</code> Half &amp; half.</div>"
    assert Bare()._repr_html_() == "<div><code>Bare(0.5)</code> </div>"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def loops(p, x):
    """Everything that loops in Python: its words on the bar, and what it computes."""
    search = concepts.maximization(f, at="head/w", k=2, target=1)
    biggest = lambda relevance: jnp.abs(relevance).max()
    return {
        "tuning": lambda show: (
            relax.tune(f, rules.Gamma(0.25), biggest, grid=[0.0, 1.0], target=1, show=show)(
                p, x
            ).score
        ),
        "fitting patterns": lambda show: next(
            iter(methods.fit_patterns(f, p, data=[x[:3], x[3:]], show=show).values())
        ),
        "searching": lambda show: (
            next(iter(search.run(p, [x[:3], x[3:]], show=show).top.values())).values
        ),
        "evaluating": lambda show: evaluation.evaluate_batches(
            lambda x: x.sum(1), [x[:3], x[3:]], show=show
        ),
    }


@pytest.mark.parametrize("name", ["tuning", "fitting patterns", "searching", "evaluating"])
def test_bars(name, p, x, monkeypatch):
    """On a terminal there is one; elsewhere not a letter is written; the result is the same."""
    pytest.importorskip("rich", reason="extra `eval` not installed")
    monkeypatch.setenv("TERM", "xterm")
    run = loops(p, x)[name]
    found = []
    for stream, show, seen in (
        (io.StringIO(), None, False),
        (Terminal(), None, True),
        (Terminal(), False, False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        found.append(np.asarray(run(show)))
        assert (name in stream.getvalue()) == seen
        assert (stream.getvalue() != "") == seen
    np.testing.assert_array_equal(found[0], found[1])


def test_no_bar_while_tracing(p, x, monkeypatch):
    """Under jit the loop over the layers only writes the program."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    biggest = lambda relevance: jnp.abs(relevance).max()
    tune = relax.tune(f, {"head/w": rules.Gamma(0.25)}, biggest, grid=[0.0], target=1)
    jax.make_jaxpr(lambda x: tune(p, x).score)(x)
    assert sys.stderr.getvalue() == ""
