"""Pictures against stored ones. ``python tests/test_viz_golden.py`` stores them anew.

Images are compared byte by byte, where only whole arithmetic makes them, else within one level.
Figures hold text, which differs a little from machine to machine: they are compared in blocks of
pixels. What is drawn in them is tested exactly in test_viz_figures.py.
"""

import io
from pathlib import Path

import numpy as np
import pytest

from relax import viz

matplotlib = pytest.importorskip("matplotlib", reason="extra `viz` not installed")
Image = pytest.importorskip("PIL.Image", reason="extra `viz` not installed")

FOLDER = Path(__file__).parent / "data" / "viz"
BLOCK = 8
DPI = 60


def relevance():
    """A disc for, a square against, and steps of both signs along the edge, ``(48, 64)``."""
    y, x = np.mgrid[:48, :64]
    out = np.maximum(0, 100 - (x - 20) ** 2 - (y - 24) ** 2) / 100
    out -= 0.5 * ((np.abs(x - 48) < 8) & (np.abs(y - 22) < 10))
    out[44:] = (np.arange(64) - 32) / 32
    return out


def picture():
    """Stripes of colors, bytes ``(48, 64, 3)``."""
    y, x = np.mgrid[:48, :64]
    return np.stack([4 * x, 5 * y, 40 * ((x // 8 + y // 8) % 2) + 80], -1).astype(np.uint8)


def wave():
    time = np.arange(120)
    signal = np.stack([np.sin(time / 9), np.cos(time / 5)], -1)
    return signal, np.stack([np.where(time > 80, 1.0, 0.0), -signal[:, 1] * (time < 40)], -1)


def clip():
    frame, y, x = np.mgrid[:12, :24, :32]
    near = np.maximum(0, 30 - (x - 4 - 2 * frame) ** 2 - (y - 12) ** 2) / 30
    return 0.3 + 0.5 * near, near * (frame - 5)


EXACT = {
    "heatmap": lambda: viz.heatmap(relevance()),
    "heatmap_on_black": lambda: viz.heatmap(relevance(), colors="cyan_orange", percentile=95),
    "saliency": lambda: viz.heatmap(np.abs(relevance()), symmetric=False),
    "saliency_on_black": lambda: viz.heatmap(np.abs(relevance()), symmetric=False, colors="glow"),
    "grid": lambda: viz.grid([picture(), viz.heatmap(relevance()), picture()[:20]], columns=2),
}
WITHIN_ONE = {
    "overlay": lambda: viz.overlay(picture(), relevance()),
    "contours": lambda: viz.contours(picture(), relevance()),
}
FIGURES = {
    "figure": lambda: viz.figure(
        picture(),
        {"epsilon": relevance(), "gamma": relevance() ** 3},
        title="seen",
        caption="Below.",
    ),
    "text": lambda: viz.text(
        ["▁Not", "▁b", "ad", ",", "▁but", "▁long", "."], [-2, 3, 2, 0, 1, -1, 0.2], generated=2
    ).figure(columns=16),
    "bars": lambda: viz.bars([1.5, -2.0, 0.25, 0.5], ["age", "debt [$]", "x", "x_1"], largest=3),
    "samples": lambda: viz.bars(np.arange(12).reshape(4, 3) ** 2 / 50 - 1, title="Four samples"),
    "series": lambda: viz.series(*wave(), names=["first", "second"], rate=20),
    "spectrogram": lambda: viz.spectrogram(
        np.abs(relevance()) + 1e-4, relevance(), rate=16000, hop=160
    ),
    "frames": lambda: viz.frames(*clip(), rate=10, title="A clip"),
}


def rendered(make, **settings):
    """The pixels of a figure under matplotlib's own settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        data = io.BytesIO()
        make().savefig(data, format="png", dpi=DPI)
    return np.asarray(Image.open(data).convert("RGB"))


def stored(name):
    with Image.open(FOLDER / f"{name}.png") as opened:
        return np.asarray(opened.convert("RGB"))


def looks_like(seen, want):
    """Whether blocks agree: all within a quarter of the range, 99 of 100 within a tenth."""
    if seen.shape != want.shape:
        return False
    height, width = (size // BLOCK * BLOCK for size in want.shape[:2])
    blocks = (seen.astype(float) - want)[:height, :width]
    blocks = blocks.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3).mean((1, 3))
    apart = np.abs(blocks).max(-1)
    return bool(apart.max() < 64 and np.percentile(apart, 99) < 26 and apart.mean() < 2)


@pytest.mark.parametrize("name", EXACT)
def test_images_byte_by_byte(name):
    np.testing.assert_array_equal(EXACT[name](), stored(name))


@pytest.mark.parametrize("name", WITHIN_ONE)
def test_images_within_one_level(name):
    """Powers and averages of floats may be rounded otherwise elsewhere."""
    apart = np.abs(WITHIN_ONE[name]().astype(int) - stored(name))
    assert apart.max() <= 1
    assert np.mean(apart > 0) < 0.01


@pytest.mark.parametrize("name", FIGURES)
def test_figures_in_blocks(name):
    assert looks_like(rendered(FIGURES[name]), stored(name))


@pytest.mark.parametrize("name", FIGURES)
def test_the_comparison_sees_what_it_should(name):
    """Text without hinting passes; red for blue does not, nor what is shifted by a block."""
    want = stored(name)
    assert looks_like(rendered(FIGURES[name], **{"text.hinting": "none"}), want)
    assert not looks_like(want[..., ::-1], want)
    assert not looks_like(np.roll(want, BLOCK, 1), want)
    assert not looks_like(np.roll(want, BLOCK, 0), want)


def test_stored_pictures_are_small_and_all_used():
    files = {path.stem: path.stat().st_size for path in FOLDER.glob("*.png")}
    assert set(files) == {*EXACT, *WITHIN_ONE, *FIGURES}
    assert max(files.values()) < 40_000


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make in (EXACT | WITHIN_ONE).items():
        viz.save(FOLDER / f"{name}.png", make())
    for name, make in FIGURES.items():
        viz.save(FOLDER / f"{name}.png", rendered(make))
