"""Images of relevance: colors against loops written out, identities, and what is refused."""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import relax
from relax import viz
from relax.viz import _colors

DIVERGING = ("blue_red", "cyan_orange")
SEQUENTIAL = ("heat", "glow", "gray", "gray_r")
FINITE = st.floats(-1e300, 1e300)
MAPS = arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=2), elements=FINITE)


def oklab(color):
    """Lightness and two opponent colors (Ottosson 2020) of bytes."""
    c = np.asarray(color, float) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return of_linear(linear)


def of_linear(linear):
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    opponent = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ cones.T) @ opponent.T


def by_hand(value, limit, anchors, symmetric):
    """The color of one number, from anchors at equal distances, on a table of 257."""
    share = min(max(value / limit, -1.0 if symmetric else 0.0), 1.0)
    place = (share + 1) / 2 if symmetric else share
    x = round(256 * place) / 256 * (len(anchors) - 1)
    i = min(int(x), len(anchors) - 2)
    return [round(a + (x - i) * (b - a)) for a, b in zip(anchors[i], anchors[i + 1], strict=True)]


@pytest.mark.parametrize("symmetric", [True, False])
def test_heatmap_against_a_loop(symmetric, rng):
    """Every pixel by itself; channels are summed; the limit is numpy's percentile."""
    relevance = rng.normal(size=(5, 7, 3))
    relevance = relevance if symmetric else np.abs(relevance)
    anchors = [(10, 20, 200), (250, 240, 230), (200, 30, 10)]  # of three, rounding is exact
    names = ["#" + bytes(a).hex() for a in anchors]
    total = relevance.sum(-1)
    limit = np.percentile(np.abs(total), 90)
    drawn = viz.heatmap(relevance, percentile=90, colors=names, symmetric=symmetric)
    assert drawn.dtype == np.uint8
    want = [[by_hand(r, limit, anchors, symmetric) for r in row] for row in total]
    np.testing.assert_array_equal(drawn, want)
    again = viz.heatmap(relevance, limit=limit, colors=names, symmetric=symmetric)
    np.testing.assert_array_equal(again, drawn)


@given(MAPS)
def test_signs_are_mirrored_and_zero_is_white(relevance):
    """The map of -r is the mirrored one, exactly; zeros are white, whatever stands beside them."""
    table = viz.heatmap(np.arange(-128, 129)[None], limit=128)[0]
    places = {tuple(color): i for i, color in enumerate(table)}
    assert len(places) == 257
    mirrored = lambda drawn: np.array([[places[tuple(c)] for c in row] for row in drawn])
    drawn = viz.heatmap(relevance)
    np.testing.assert_array_equal(mirrored(drawn), 256 - mirrored(viz.heatmap(-relevance)))
    assert np.all(drawn[relevance == 0] == 255)


@given(MAPS, st.floats(50, 100))
def test_clipping_keeps_the_order(relevance, percentile):
    """Of two pixels the more relevant one never has a color nearer to blue."""
    ramp = [f"#{i:02x}{i:02x}{i:02x}" for i in range(256)]
    drawn = viz.heatmap(relevance, percentile=percentile, colors=ramp)[..., 0].reshape(-1)
    assert np.all(np.diff(drawn[np.argsort(relevance.reshape(-1))].astype(int)) >= 0)


@pytest.mark.parametrize("name", DIVERGING)
def test_no_sign_looks_stronger(name):
    """Lightness is the same on both sides and falls, or rises, from zero all the way."""
    light = oklab(_colors.color_table(name, True))[:, 0]
    # The eye sees a difference of about 0.02; the side on black was made for its contrast.
    assert np.abs(light - light[::-1]).max() < (0.01 if name == "blue_red" else 0.04)
    steps = np.diff(light[128:]) * (-1 if name == "blue_red" else 1)
    assert steps.min() > -1e-3
    assert abs(light[-1] - light[128]) > 0.5


def test_equal_steps_look_alike():
    """The one-sided colors change by the same distance in Oklab at each step, within a quarter."""
    table = _colors.color_table("heat", False)
    steps = np.linalg.norm(np.diff(oklab(table)[::8], axis=0), axis=-1)
    assert steps.max() / steps.mean() < 1.25
    assert steps.min() / steps.mean() > 0.75
    for name in SEQUENTIAL:
        light = oklab(_colors.color_table(name, False))[:, 0]
        assert np.all(np.diff(light) * np.sign(light[-1] - light[0]) > -2e-3), name


# Machado, Oliveira and Fernandes 2009, table 1, severity 1: protanopia, deuteranopia, tritanopia.
VISIONS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602]],
}
THIRD = {
    "protan": [-0.003882, -0.048116, 1.051998],
    "deutan": [-0.011820, 0.042940, 0.968881],
    "tritan": [0.004733, 0.691367, 0.303900],
}


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("name", DIVERGING)
def test_signs_differ_for_every_color_vision(vision, name):
    """From a third of the limit on, r and -r are far apart: five times what is just seen."""
    table = _colors.color_table(name, True) / 255
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    seen = of_linear(np.clip(linear @ np.array([*VISIONS[vision], THIRD[vision]]).T, 0, 1))
    apart = np.linalg.norm(seen - seen[::-1], axis=-1)
    # On black the palest ends are nearly white for tritanopia, as for every bright color.
    assert apart[171:225].min() > (0.1 if name == "blue_red" else 0.07)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, np.int8, np.float64, bool])
def test_any_precision(dtype):
    """JAX's arrays, half precisions and integers give what float64 gives."""
    numbers = np.array([[0, 1], [1, 0]])
    want = viz.heatmap(numbers.astype(float))
    np.testing.assert_array_equal(viz.heatmap(jnp.asarray(numbers).astype(dtype)), want)
    large = jnp.full((2, 2, 8), 60000.0).astype(jnp.float16)  # the sum is no float16
    assert np.all(viz.heatmap(large) == viz.heatmap([[1.0]])[0, 0])


def test_zero_is_neutral():
    """Relevance that is zero everywhere: white, no lines, the pale picture, and no warning."""
    zero = np.zeros((6, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.all(viz.heatmap(zero) == 255)
        assert np.all(viz.heatmap(zero, symmetric="auto") == 255)
        assert np.all(viz.overlay(zero, zero, fade=0.6) == 153)
        assert np.all(viz.contours(zero, zero) == 0)
    assert viz.color_limit(zero) == 1


def test_auto_ignores_rounding():
    """A negative of 1e-9 of the largest does not change the colors of a saliency."""
    saliency = np.array([[1.0, 0.5, 0.0]])
    rounded = saliency - 1e-9
    drawn = viz.heatmap(saliency, symmetric=False)
    for symmetric in ("auto", False):
        np.testing.assert_array_equal(viz.heatmap(rounded, symmetric=symmetric), drawn)
    signed = np.array([[1.0, -0.5, 0.0]])
    np.testing.assert_array_equal(viz.heatmap(signed, symmetric="auto"), viz.heatmap(signed))


def test_the_limit_of_sparse_relevance():
    """A percentile that is zero falls back on the largest; of several limits the largest counts."""
    sparse = np.zeros((100, 100))
    sparse[3, 4] = -2.0
    assert viz.color_limit(sparse) == 2
    assert viz.color_limit(sparse, np.full(3, 5.0)) == 5
    assert np.percentile(np.abs(np.arange(101)), 90) == viz.color_limit(
        -np.arange(101), percentile=90
    )


def test_colormaps_of_matplotlib():
    """By name or as they are: the colors at 257 places, zero in the middle."""
    matplotlib = pytest.importorskip("matplotlib", reason="extra `viz` not installed")
    relevance = np.arange(-128, 129)[None]
    for colors in ("RdBu_r", matplotlib.colormaps["RdBu_r"]):
        want = np.rint(255 * matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, 257))[None, :, :3])
        np.testing.assert_array_equal(viz.heatmap(relevance, colors=colors, limit=128), want)


def test_overlay_against_its_formula(rng):
    """With and without gray, for each power, and against the plain overlay."""
    picture, relevance = rng.uniform(size=(4, 5, 3)), rng.normal(size=(4, 5))
    given = np.rint(255 * picture)
    color = viz.heatmap(relevance, limit=2).astype(float)
    share = np.clip(np.abs(relevance / 2), 0, 1)[..., None]
    gray = np.repeat((given @ [0.299, 0.587, 0.114])[..., None], 3, -1)
    for options, below, cover in (
        ({}, 0.4 * gray + 0.6 * 255, share**0.6),
        ({"gray": False, "fade": 0, "power": 1, "alpha": 0.8}, given, 0.8 * share),
        ({"gray": False, "fade": 0, "power": 0, "alpha": 0.5}, given, 0.5),
    ):
        drawn = viz.overlay(picture, relevance, limit=2, **options)
        want = (1 - cover) * below + cover * color
        np.testing.assert_allclose(drawn, want, atol=0.5 + 1e-6)
    dark = viz.overlay(picture, 0 * relevance, colors="cyan_orange", fade=1)
    assert np.all(dark == 0)  # pale is towards the color of zero


def test_contours_are_where_the_level_is():
    """Of a cone the line is a circle of the known radius and width; inside and outside nothing."""
    side, level = 81, 0.5
    y, x = np.mgrid[:side, :side] - side // 2
    far = np.hypot(x, y)
    cone = np.maximum(0, 1 - far / 32)
    black = np.zeros((side, side))
    drawn = viz.contours(black, cone, levels=[level], smooth=0, width=2, limit=1)
    radius = 32 * (1 - level)
    assert np.all(drawn[far < radius - 4] == 0)
    assert np.all(drawn[far > radius + 4] == 0)
    on = np.abs(far - radius) < 0.5
    assert np.all(drawn[on].max(-1) > 120)
    redder = drawn[on][:, 0].astype(int) - drawn[on][:, 2]
    assert redder.min() > 80
    blue = viz.contours(black, -cone, levels=[level], smooth=0, width=2, limit=1)
    assert np.all(blue[on][:, 2].astype(int) - blue[on][:, 0] > 80)
    covered = (viz.contours(black, cone, levels=[level], smooth=0, width=2, limit=1) > 0).any(-1)
    np.testing.assert_allclose(covered.sum(), 2 * np.pi * radius * (2 + 1.5), rtol=0.35)


def test_contours_smooth_as_a_gaussian_does():
    """Smoothing with s widens a Gaussian of deviation a to sqrt(a^2 + s^2): so does its contour."""
    side, a, s = 101, 9.0, 6.0
    y, x = np.mgrid[:side, :side] - side // 2
    spot = np.exp(-(x**2 + y**2) / (2 * a**2))
    wide = np.exp(-(x**2 + y**2) / (2 * (a**2 + s**2)))
    black = np.zeros((side, side))
    options = {"levels": [0.5], "percentile": 100}
    drawn = viz.contours(black, spot, smooth=s, **options).astype(int)
    want = viz.contours(black, wide, smooth=0, **options).astype(int)
    assert np.abs(drawn - want).mean() < 0.5
    assert np.abs(viz.contours(black, spot, smooth=0, **options) - want).mean() > 2


def test_grid_places_every_picture(rng):
    """By slices written out; a smaller picture stands in the middle of its place."""
    pictures = [rng.integers(0, 256, (4, 6, 3), np.uint8) for _ in range(5)]
    small = rng.integers(0, 256, (2, 4), np.uint8)
    whole = viz.grid([*pictures, small], columns=4, gap=3, background=(1, 2, 3))
    assert whole.shape == (4 + 3 + 4, 4 * 6 + 3 * 3, 3)
    for i, picture in enumerate(pictures):
        top, left = (i // 4) * 7, (i % 4) * 9
        np.testing.assert_array_equal(whole[top : top + 4, left : left + 6], picture)
    np.testing.assert_array_equal(whole[8:10, 10:14], np.repeat(small[..., None], 3, -1))
    np.testing.assert_array_equal(whole[4:7], np.broadcast_to([1, 2, 3], (3, 33, 3)))
    np.testing.assert_array_equal(whole[7:, 18:], np.broadcast_to([1, 2, 3], (4, 15, 3)))
    assert viz.grid(pictures).shape == (2 * 4 + 4, 3 * 6 + 8, 3)


@pytest.mark.parametrize("scale", [1, 3])
def test_a_saved_picture_is_the_picture(scale, tmp_path, rng):
    """Read back, each pixel is a square of its color: no axis, no margin."""
    image = pytest.importorskip("PIL.Image", reason="extra `viz` not installed")
    drawn = viz.heatmap(rng.normal(size=(5, 7)))
    viz.save(tmp_path / "a.png", drawn, scale=scale)
    with image.open(tmp_path / "a.png") as opened:
        read = np.asarray(opened)
    np.testing.assert_array_equal(read, np.kron(drawn, np.ones((scale, scale, 1), np.uint8)))


def test_picture_stretches_any_range(rng):
    """An input normalized by mean and deviation comes back; a constant one is black."""
    seen = rng.integers(0, 256, (4, 5, 3), np.uint8)
    mean, deviation = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
    x = (seen / 255 - mean) / deviation
    np.testing.assert_array_equal(viz.picture(x * deviation + mean, low=0, high=1), seen)
    assert viz.picture(x).min() == 0
    assert viz.picture(x).max() == 255
    assert np.all(viz.picture(np.full((2, 2), 7.0)) == 0)
    assert np.all(viz.picture(np.full((2, 2, 4), 7.0), low=0, high=7) == 255)


R = np.ones((4, 5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: viz.heatmap([[1.0, np.nan]]), "1 of 2 values"),
        (lambda: viz.heatmap([[np.inf]]), "nan_to_num"),
        (lambda: viz.heatmap(R + 0j), "complex128"),
        (lambda: viz.heatmap({"x": R}), "dict"),
        (lambda: viz.heatmap([[1.0], [1.0, 2.0]]), "one array"),
        (lambda: viz.heatmap(np.ones(3)), r"shape \(3,\)"),
        (lambda: viz.heatmap(np.ones((2, 4, 5, 3))), "picture by picture"),
        (lambda: viz.heatmap(np.ones((3, 4, 5))), "moveaxis"),
        (lambda: viz.heatmap(np.ones((0, 5))), "nothing to draw"),
        (lambda: jax.jit(viz.heatmap)(R), "traced"),
        (lambda: viz.heatmap(-R, symmetric=False), "goes down to -1"),
        (lambda: viz.heatmap(R, symmetric="yes"), "symmetric='yes'"),
        (lambda: viz.heatmap(R, percentile=101), "percentile=101"),
        (lambda: viz.heatmap(R, limit=0), "limit=0"),
        (lambda: viz.heatmap(R, limit=np.nan), "limit=nan"),
        (lambda: viz.heatmap(R, colors="heat"), "one-sided.*blue_red"),
        (lambda: viz.heatmap(R, colors="blue_red", symmetric=False), "both signs.*heat"),
        (lambda: viz.heatmap(R, colors=["#ff0000"]), "two or more"),
        (lambda: viz.heatmap(R, colors=["red", "blue"]), "two or more"),
        (lambda: viz.heatmap(R, colors=lambda x: x), r"array \(257,\)"),
        (lambda: viz.color_limit(), "no relevance"),
        (lambda: viz.picture(R, low=2, high=1), "low=2 is not below"),
        (lambda: viz.overlay(255 * R, R), "should stay between 0 and 1"),
        (lambda: viz.overlay(np.full((4, 5), 256), R), "and 255"),
        (lambda: viz.overlay(np.ones((3, 4, 5)), R), "moveaxis"),
        (lambda: viz.overlay(R, np.ones((4, 6))), r"resize\(relevance, \(4, 5\)"),
        (lambda: viz.overlay(R, R, alpha=2), "alpha=2"),
        (lambda: viz.overlay(R, R, power=-1), "power=-1"),
        (lambda: viz.contours(R, R, levels=[0]), "levels=0"),
        (lambda: viz.contours(R, R, levels=[]), "levels is empty"),
        (lambda: viz.contours(R, R, smooth=-1), "smooth=-1"),
        (lambda: viz.grid([]), "no pictures"),
        (lambda: viz.grid([R], columns=0), "columns=0"),
        (lambda: viz.grid([R], gap=1.5), "gap=1.5"),
        (lambda: viz.save("a.jpg", R), ".png"),
        (lambda: viz.save("a.png", R, scale=0), "scale=0"),
    ],
)
def test_errors(call, words):
    """What is wrong with which argument, and what to do."""
    with pytest.raises(relax.ArgumentError, match=words):
        call()


def test_an_unknown_name_is_an_error():
    """Those of relax are listed."""
    pytest.importorskip("matplotlib", reason="extra `viz` not installed")
    with pytest.raises(relax.ArgumentError, match=r"neither.*blue_red, cyan_orange"):
        viz.heatmap(R, colors="no such colors")


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("PIL.Image", lambda: viz.save("a.png", R)),
        ("matplotlib", lambda: viz.bars([1.0])),
        ("matplotlib", lambda: viz.heatmap(R, colors="RdBu_r")),
    ],
)
def test_a_missing_extra_is_named(module, call, monkeypatch):
    """Says which extra to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "relax-lrp\[viz\]"'):
        call()


def test_images_and_text_need_numpy_alone():
    """Without matplotlib and pillow imported, heatmaps and pages are made."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'PIL']))\n"
        "from relax import viz\n"
        "r = [[1.0, -1.0]]; viz.contours(viz.overlay([[0, 9]], r), r); viz.heatmap(r)\n"
        "t = viz.text(['a'], [1.0]); viz.page('', {'x': t}); t.ansi(); t.bars()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
