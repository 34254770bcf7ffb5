"""Figures of matplotlib: what is drawn, read back from the artists, against numpy."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import viz

matplotlib = pytest.importorskip("matplotlib", reason="extra `viz` not installed")
FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg


@pytest.fixture(autouse=True)
def defaults():
    """Matplotlib as it comes, whatever is set on this machine."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def image(axes):
    (drawn,) = axes.get_images()
    return np.asarray(drawn.get_array())


def texts(axes):
    return [t.get_text() for t in axes.texts]


def overlapping(figure):
    """Pairs of texts that lie on each other, and those beyond the edge, once all is drawn."""
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    shown = [
        (t.get_text(), t.get_window_extent(renderer))
        for t in figure.findobj(matplotlib.text.Text)
        if t.get_visible() and t.get_text().strip()
    ]
    for axes in figure.axes:  # ticks beyond the limits are not drawn
        for axis, low, high in ((axes.xaxis, *axes.get_xlim()), (axes.yaxis, *axes.get_ylim())):
            for tick in axis.get_major_ticks():
                if not min(low, high) <= tick.get_loc() <= max(low, high):
                    gone = tick.label1.get_text()
                    shown = [(t, box) for t, box in shown if t != gone]
    width, height = figure.canvas.get_width_height()
    out = [t for t, b in shown if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height]
    out += [
        (t, u)
        for i, (t, a) in enumerate(shown)
        for u, b in shown[:i]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]
    return out


FIGURES = {
    "figure": lambda rng: viz.figure(
        rng.uniform(size=(20, 30, 3)),
        {f"epsilon_gamma_box_{i}": rng.normal(size=(20, 30)) for i in range(5)},
        title="tiger cat",
        caption="A caption.",
    ),
    "tall": lambda rng: viz.figure(
        None, {"a rather long name": np.ones((40, 5)), "another long name": np.ones((40, 5))}
    ),
    "bars": lambda rng: viz.bars(rng.normal(size=(30, 9)), title="Many samples"),
    "small bars": lambda rng: viz.bars(
        1e-3 * rng.normal(size=7), [f"a long name {i}" for i in range(7)], values=range(7)
    ),
    "series": lambda rng: viz.series(
        rng.normal(size=(90, 4)), rng.normal(size=(90, 4)), title="Four channels"
    ),
    "series alone": lambda rng: viz.series(1e5 * rng.normal(size=5000), np.ones(5000), limit=2.0),
    "spectrogram": lambda rng: viz.spectrogram(
        rng.uniform(size=(40, 70)),
        rng.normal(size=(40, 70)),
        frequencies=np.geomspace(50, 8000, 40),
        title="Speech",
    ),
    "frames": lambda rng: viz.frames(
        rng.uniform(size=(30, 9, 16)), rng.normal(size=(30, 9, 16)), title="A clip", rate=25
    ),
    "many frames": lambda rng: viz.frames(
        rng.uniform(size=(30, 16, 9)), rng.normal(size=(30, 16, 9)), number_of_frames=12
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_lies_on_another_or_is_cut(name, rng):
    """Titles, names, numbers: each is inside of the figure and apart from all others."""
    assert overlapping(FIGURES[name](rng)) == []


def test_overlaps_are_found():
    """The check above fails where it should."""
    figure = viz.bars([1.0, 2.0], ["a", "b"])
    figure.axes[0].text(0.0, 0.0, "first")
    figure.axes[0].text(0.05, 0.0, "second")
    assert ("second", "first") in overlapping(figure)
    cut = viz.bars([1.0], ["a"])
    cut.axes[0].set_title("a title " * 30)
    assert len(overlapping(cut)) == 1


def test_nothing_stays_open(rng):
    """Figures are not those of pyplot, which keeps them."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    for make in FIGURES.values():
        make(rng)
    assert pyplot.get_fignums() == before


def test_a_figure_shows_the_heatmaps(rng):
    """Picture and heatmaps are those of the functions; a shared limit is written at the bar."""
    picture, a, b = rng.uniform(size=(6, 8, 3)), rng.normal(size=(6, 8)), rng.normal(size=(6, 8, 3))
    figure = viz.figure(picture, {"a": a, "b": b}, title="seen", percentile=90)
    seen, first, second, bar = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["seen", "a", "b", ""]
    np.testing.assert_array_equal(image(seen), np.rint(255 * picture))
    np.testing.assert_array_equal(image(first), viz.heatmap(a, percentile=90))
    np.testing.assert_array_equal(image(second), viz.heatmap(b, percentile=90))
    table = viz.heatmap(np.arange(-128, 129)[None], limit=128)
    np.testing.assert_array_equal(image(bar), table)
    assert texts(bar) == ["against", "for"]
    shared = viz.figure(None, {"a": a, "b": b}, limit=2.5, overlay=False)
    assert texts(shared.axes[-1]) == ["−2.5", "2.5"]
    np.testing.assert_array_equal(image(shared.axes[0]), viz.heatmap(a, limit=2.5))
    over = viz.figure(picture, {"a": a}, overlay=True, percentile=90)
    np.testing.assert_array_equal(image(over.axes[1]), viz.overlay(picture, a, percentile=90))
    saliency = viz.figure(None, {"a": abs(a)}, symmetric="auto", ends=("nothing", "all"))
    np.testing.assert_array_equal(image(saliency.axes[0]), viz.heatmap(abs(a), symmetric=False))
    assert texts(saliency.axes[1]) == ["nothing", "all"]


@pytest.mark.parametrize("smooth", [False, True])
def test_only_the_picture_is_smoothed(smooth):
    """Of a picture in black and white the middle has grays if it is; heatmaps have two colors."""
    checks = np.indices((6, 6)).sum(0) % 2
    figure = viz.figure(checks * 1.0, {"a": 2.0 * checks - 1}, smooth=smooth, percentile=100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    seen = np.asarray(canvas.buffer_rgba())[..., :3]
    colors = []
    for axes in figure.axes[:2]:
        box = axes.get_window_extent()
        rows = slice(*(int(len(seen) - y) for y in (box.y1 - 9, box.y0 + 9)))
        inside = seen[rows, int(box.x0 + 9) : int(box.x1 - 9)]
        colors.append(len(np.unique(inside.reshape(-1, 3), axis=0)))
    assert colors[1] == 2
    assert colors[0] > 20 if smooth else colors[0] == 2


def test_tiles_have_the_proportions_of_the_picture(rng):
    """A pixel is a square: the axes are as wide to high as the picture."""
    for shape in ((10, 40), (40, 10), (20, 20)):
        figure = viz.figure(rng.uniform(size=shape), {"a": rng.normal(size=shape)})
        for axes in figure.axes[:2]:
            box, size = axes.get_position(), figure.get_size_inches()
            ratio = box.width * size[0] / (box.height * size[1])
            np.testing.assert_allclose(ratio, shape[1] / shape[0], rtol=1e-9)


def test_bars_are_relevance():
    """Widths, signs as colors, order, and names with signs of TeX as they are."""
    relevance = jnp.array([0.5, -1.0, 0.0, 0.25])
    names = ["a_1", "b [$] and $c$", "\\alpha", "d"]
    axes = viz.bars(relevance, names).axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], relevance)
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())
    assert texts(axes) == ["+0.50", "−1.00", "+0.00", "+0.25"]
    red, blue = (np.array(axes.patches[i].get_facecolor()) for i in (0, 1))
    assert red[0] > red[2] + 0.3
    assert blue[2] > blue[0] + 0.3
    top, bottom = axes.get_ylim()
    assert top > bottom  # the first is at the top
    low, high = axes.get_xlim()
    assert low < -1 < 0.5 < high
    written = viz.bars(relevance, names, values=[1.23456, -2, "x", 1e9]).axes[0].get_yticklabels()
    assert [w.get_text().split(" = ")[1] for w in written] == ["1.235", "−2", "x", "1e+09"]


@pytest.mark.parametrize("largest", [1, 3, 4, 9])
def test_the_largest_bars_conserve_the_sum(largest, rng):
    """The largest come first; the last is the sum of all others."""
    relevance = rng.normal(size=5)
    axes = viz.bars(relevance, largest=largest).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    order = np.argsort(-np.abs(relevance))
    np.testing.assert_allclose(widths[:largest], relevance[order[:largest]])
    np.testing.assert_allclose(sum(widths), relevance.sum())
    last = axes.get_yticklabels()[-1].get_text()
    assert last == {1: "4 others", 3: "2 others"}.get(largest, f"feature {order[-1]}")


def test_bars_of_many_samples(rng):
    """The bars are means, the lines go between numpy's quantiles."""
    samples = rng.normal(size=(40, 3))
    axes = viz.bars(samples, spread=(0.25, 0.75)).axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], samples.mean(0))
    (lines,) = axes.collections
    ends = np.array([segment[:, 0] for segment in lines.get_segments()])
    np.testing.assert_allclose(ends.T, np.quantile(samples, (0.25, 0.75), axis=0))
    assert axes.get_xlabel() == "mean relevance of 40 samples, lines from 25% to 75%"


def test_series_colors_every_step(rng):
    """Each channel its line and its colors, one scale for all, time in seconds."""
    signal, relevance = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    figure = viz.series(signal, relevance, names=["x", "y", "z"], rate=10, percentile=90)
    colors = viz.heatmap(relevance.T, limit=viz.color_limit(relevance, percentile=90))
    for i, axes in enumerate(figure.axes[:3]):
        np.testing.assert_array_equal(image(axes)[0], colors[i])
        time, values = axes.lines[0].get_data()
        np.testing.assert_allclose(time, np.arange(50) / 10)
        np.testing.assert_array_equal(values, signal[:, i])
        left, right, bottom, top = axes.get_images()[0].get_extent()
        np.testing.assert_allclose((left, right), (-0.05, 4.95))
        assert bottom < signal[:, i].min() < signal[:, i].max() < top
        assert axes.get_ylabel() == "xyz"[i]
    assert figure.axes[2].get_xlabel() == "seconds"


def test_a_long_series_sums_neighbors():
    """Colors are those of sums: signs that alternate cancel, and nothing is left out."""
    relevance = np.zeros(7000)
    relevance[1000:1010] = np.tile([1.0, -1.0], 5)
    relevance[5003] = 2.0
    drawn = image(viz.series(np.zeros(7000), relevance, percentile=100).axes[0])[0]
    assert drawn.shape == (700, 3)
    colored = np.flatnonzero((drawn != 255).any(-1))
    np.testing.assert_array_equal(colored, [500])
    np.testing.assert_array_equal(drawn[500], viz.heatmap([[1.0]])[0, 0])


def test_spectrogram_in_decibels(rng):
    """The logarithm against numpy, down to 80; relevance the right way up, time in seconds."""
    power = rng.exponential(size=(9, 12)) ** 20
    relevance = rng.normal(size=(9, 12))
    figure = viz.spectrogram(power, relevance, rate=8000, hop=400)
    loud, colored = figure.axes[:2]
    want = np.maximum(10 * np.log10(power / power.max()), -80)
    np.testing.assert_allclose(image(loud), want)
    np.testing.assert_array_equal(image(colored), viz.heatmap(relevance))
    for axes in (loud, colored):
        (drawn,) = axes.get_images()
        assert drawn.origin == "lower"
        np.testing.assert_allclose(drawn.get_extent(), (-0.025, 0.575, -0.5, 8.5))
    written = [float(t.get_text()) for t in loud.get_yticklabels()]
    labels = dict(zip(written, loud.get_yticks(), strict=True))
    np.testing.assert_allclose([labels[0], labels[4]], [0, 8])
    plain = viz.spectrogram(-power, relevance, decibels=False)
    np.testing.assert_array_equal(image(plain.axes[0]), -power)
    assert (plain.axes[1].get_xlabel(), plain.axes[1].get_ylabel()) == ("frame", "row")
    mel = viz.spectrogram(power, relevance, frequencies=np.geomspace(100, 1600, 9)).axes[0]
    assert [t.get_text() for t in mel.get_yticklabels()] == ["100", "200", "400", "800", "1.6e+03"]
    silent = viz.spectrogram(np.zeros((3, 4)), np.zeros((3, 4)))
    assert np.all(image(silent.axes[1]) == 255)


def test_frames_and_their_points(rng):
    """Each frame its overlay on one scale, the ring at the argmax, and the sums below."""
    video, relevance = rng.uniform(size=(10, 6, 8, 3)), rng.normal(size=(10, 6, 8, 2))
    relevance[4] = 0
    figure = viz.frames(video, relevance, chosen=[0, 4, -1], rate=2)
    total = relevance.sum(-1)
    limit = viz.color_limit(total)
    for axes, frame in zip(figure.axes[:3], (0, 4, 9), strict=True):
        assert axes.get_title() == f"{frame / 2:.2f} s"
        want = viz.overlay(video[frame], total[frame], limit=limit)
        np.testing.assert_array_equal(image(axes), want)
        if frame == 4:
            assert not axes.lines
            continue
        row, column = np.unravel_index(np.abs(total[frame]).argmax(), (6, 8))
        for ring in axes.lines:
            np.testing.assert_array_equal(ring.get_xydata(), [[column, row]])
    course = figure.axes[3]
    np.testing.assert_allclose([bar.get_height() for bar in course.patches], total.sum((1, 2)))
    np.testing.assert_allclose(course.lines[-1].get_xdata(), [0, 2, 4.5])
    assert course.get_xlabel() == "seconds"
    even = viz.frames(video, relevance, number_of_frames=4, point=False)
    assert [axes.get_title() for axes in even.axes[:4]] == ["0", "3", "6", "9"]
    assert not any(axes.lines for axes in even.axes[:4])


def test_a_figure_frames_the_answer():
    """Behind the text, bold on white, and no piece has another color for it."""
    plain, shown = (
        viz.text(["It", " is"], [-1.0, 2.0], generated=1, answer=answer).figure()
        for answer in ("", " so")
    )
    before, (*patches, frame) = plain.axes[0].patches, shown.axes[0].patches
    for one, other in zip(before, patches, strict=True):
        assert one.get_facecolor() == other.get_facecolor()
    assert frame.get_facecolor() == (1, 1, 1, 1)
    assert frame.get_edgecolor() != frame.get_facecolor()
    assert [(t.get_text(), t.get_weight()) for t in shown.axes[0].texts] == [
        ("It", "normal"),
        ("is", "normal"),
        ("so", "bold"),
    ]
    assert len(shown.axes[0].lines) == len(plain.axes[0].lines) == 1


def test_text_is_laid_out_in_lines():
    """No line is longer than its columns, words stay whole, and every letter is there."""
    pieces = ["▁The", "▁quick", "▁br", "own", "▁fox", "▁jump", "s", "<0x0A>", "▁so", "▁far"]
    relevance = np.arange(10) - 4.0
    text = viz.text(pieces, relevance, generated=2)
    axes = text.figure(columns=10).axes[0]
    rows = {}
    for t in axes.texts:
        rows.setdefault(t.get_position()[1], []).append(t.get_text())
    assert ["".join(row) for row in rows.values()] == ["Thequick", "brownfox", "jumps", "sofar"]
    grounds = [np.rint(255 * np.array(p.get_facecolor()[:3])) for p in axes.patches]
    drawn = [i for i in range(10) if i != 7]
    np.testing.assert_array_equal(grounds, viz.heatmap(relevance[None], percentile=100)[0, drawn])
    assert len(axes.lines) == 2
    assert overlapping(axes.figure) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda z: viz.figure(z, {"a": z}),
        lambda z: viz.bars(z[0]),
        lambda z: viz.bars(z),
        lambda z: viz.series(z, z),
        lambda z: viz.spectrogram(z, z),
        lambda z: viz.frames(z[None], z[None]),
        lambda z: viz.text(["a"] * 4, z[0]).figure(),
    ],
)
def test_zero_and_half_precision(make):
    """Zero everywhere is drawn without a warning, in bfloat16, and in integers."""
    for dtype in (jnp.bfloat16, jnp.int32):
        figure = make(jnp.zeros((6, 4), dtype))
        FigureCanvasAgg(figure).draw()


def test_no_tex_even_if_it_is_set():
    """Text is plain text under usetex, too, for which TeX would have to be installed."""
    with matplotlib.rc_context({"text.usetex": True}):
        figure = viz.bars([1.0, -1.0], ["$\\frac{", "b_"], title="100% of $x")
    FigureCanvasAgg(figure).draw()
    assert not any(t.get_usetex() for t in figure.findobj(matplotlib.text.Text) if t.get_text())


R = np.ones((6, 4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: viz.figure(R, {}), "no heatmap"),
        (lambda: viz.figure(None, {"a": R}, overlay=True), "needs a picture"),
        (lambda: viz.figure(R, {"a": R.T}), "'a' is 4 x 6"),
        (lambda: viz.figure(None, {"a": R, "b": R.T}), "'b' is 4 x 6"),
        (lambda: viz.figure(R, {"a": R * np.nan}), "'a' has 24 of 24"),
        (lambda: viz.figure(R, {"a": R}, rows=0), "rows=0"),
        (lambda: viz.bars(np.ones((2, 3, 4))), "reshape"),
        (lambda: viz.bars([1.0, 2.0], ["a"]), "1 names for 2"),
        (lambda: viz.bars([1.0, 2.0], "ab"), "one text"),
        (lambda: viz.bars([1.0], values=[1, 2]), "2 names for 1"),
        (lambda: viz.bars(R, values=[1] * 4), "one sample"),
        (lambda: viz.bars([1.0], largest=0), "largest=0"),
        (lambda: viz.bars(R, spread=(0.9, 0.1)), "above the second"),
        (lambda: viz.bars(R, spread=(-0.1, 0.5)), "spread=-0.1"),
        (lambda: viz.bars([np.nan]), "no number"),
        (lambda: viz.series(R, R[:, 0]), "broadcast_to"),
        (lambda: viz.series(R[None], R[None]), "signal by"),
        (lambda: viz.series(R.T, R.T), "swapped"),
        (lambda: viz.series(R, R, rate=0), "rate=0"),
        (lambda: viz.series(R, R, names=["a"]), "1 names for 4"),
        (lambda: viz.spectrogram(-R, R), "decibels=False"),
        (lambda: viz.spectrogram(R[0], R), "frequencies, frames"),
        (lambda: viz.spectrogram(R, R.T), "resize"),
        (lambda: viz.spectrogram(R, R, frequencies=[1, 2]), "each of 6 rows"),
        (lambda: viz.spectrogram(R, R, frequencies=[6, 5, 4, 3, 2, 1]), "do not rise"),
        (lambda: viz.frames(R, R), "video by video"),
        (lambda: viz.frames(R[None], R.T[None]), "resize"),
        (lambda: viz.frames(R[None] * 9, R[None]), "Frame 0 goes from 9"),
        (lambda: viz.frames(R[None], R[None], chosen=[1]), "0 to 0"),
        (lambda: viz.frames(R[None], R[None], number_of_frames=0), "number_of_frames=0"),
    ],
)
def test_errors(call, words):
    """What is wrong with which argument, and what to do."""
    with pytest.raises(relax.ArgumentError, match=words):
        call()


def test_the_script_draws_every_picture(tmp_path, capsys):
    """Those that the page shows, and no others; a folder that is missing is refused in a line."""
    pytest.importorskip("PIL", reason="extra `viz` not installed")
    import pictures

    page = (Path(__file__).resolve().parents[1] / "docs" / "pictures.md").read_text("utf-8")
    assert pictures.main(["--output", str(tmp_path)]) == 0
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == set(re.findall(r"\(pictures/(\w+\.png)\)", page))
    assert pictures.main(["--output", str(tmp_path / "missing")]) == 2
    assert "does not exist" in capsys.readouterr().err
