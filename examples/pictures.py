"""Draws the pictures of docs/pictures.md: one for each function of relax.viz.

    python examples/pictures.py
    python examples/pictures.py --output my_folder

Nothing is explained here: picture, text, table, sound and video are made up, and so is their
relevance, so that it is known what should be seen. The page has the same lines. It takes a few
seconds; the packages that it needs beside relax come with

    pip install "relax-lrp[viz]"
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from command_line import InputError, run_command
from relax import viz


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A disc and a bar before a sky, ``(160, 160, 3)``; the disc speaks for, the bar against."""
    y, x = np.mgrid[-1:1:160j, -1:1:160j]
    inside = lambda distance: 1 / (1 + np.exp(60 * distance))
    disc, bar = np.hypot(x + 0.3, y + 0.25) - 0.38, np.hypot(x - 0.5, 0.4 * y - 0.1) - 0.2
    sky = np.stack([0.45 + 0.25 * y, 0.6 + 0.2 * y, 0.8 + 0 * y], -1)
    for shape, color in ((disc, (0.95, 0.75, 0.2)), (bar, (0.25, 0.45, 0.3))):
        sky += inside(shape)[..., None] * (np.array(color) - sky)
    noise = np.kron(np.random.default_rng(0).normal(size=(40, 40)), np.ones((4, 4)))
    relevance = np.exp(-((disc / 0.08) ** 2)) - 0.7 * np.exp(-((bar / 0.06) ** 2))
    return np.clip(sky, 0, 1), relevance * (1 + 0.3 * noise) + 0.03 * noise


def review() -> tuple[list[str], np.ndarray]:
    """Pieces of SentencePiece, and relevance for "positive"."""
    pieces = "▁The ▁plot ▁is ▁th in , ▁but ▁the ▁act ing ▁is ▁un for gett able ."
    relevance = [0, -0.4, -0.1, -0.9, -1.1, 0, 0.5, 0, 0.3, 0.1, 0.2, 0.4, 0.2, 0.9, 1.2, 0]
    return pieces.split(), np.array(relevance)


def applicants() -> tuple[list[str], np.ndarray]:
    """Names of features, and their relevance in 200 samples."""
    names = ["age", "income [$]", "years_employed", "debt", "rooms", "late payments"]
    mean, spread = [0.3, 1.4, 0.8, -1.1, 0.05, -1.7], [0.4, 0.5, 0.3, 0.6, 0.1, 0.5]
    return names, np.random.default_rng(0).normal(mean, spread, (200, 6))


def heartbeats() -> tuple[np.ndarray, np.ndarray]:
    """Two channels of three seconds at 100 steps a second; the third beat is late, and relevant."""
    time = np.arange(300)[:, None] / 100
    bump = lambda at, width: np.exp(-(((time - at) / width) ** 2))
    beats = sum(bump(at, 0.02) - 0.25 * bump(at + 0.06, 0.03) for at in (0.4, 1.1, 2.2))
    signal = beats * np.array([1.0, -0.6]) + 0.1 * np.sin(7 * time + np.array([0, 1]))
    return signal, (bump(2.2, 0.05) - 0.5 * bump(1.75, 0.1)) * np.array([1.0, 0.6])


def chirp() -> tuple[np.ndarray, np.ndarray]:
    """A tone that rises and one that stays, 128 frequencies in 200 frames; the first is for."""
    row, frame = np.mgrid[:128, :200]
    rising = np.exp(-(((row - 20 - 0.4 * frame) / 2) ** 2))
    steady = np.exp(-(((row - 40) / 2) ** 2))
    noise = 1e-5 * np.random.default_rng(0).exponential(size=row.shape)
    return rising + 0.3 * steady + noise, rising * np.sin(frame / 25) ** 2 - 0.4 * steady


def ball() -> tuple[np.ndarray, np.ndarray]:
    """A ball that flies and falls, 24 frames of 60 x 80; it is the most relevant where it turns."""
    frame, y, x = np.mgrid[:24, :60, :80]
    far = np.hypot(x - 6 - 3 * frame, y - 10 - 0.3 * (frame - 12.0) ** 2)
    relevance = np.exp(-((far / 4) ** 2)) * np.exp(-(((frame - 12) / 5) ** 2))
    return 0.75 - 0.5 / (1 + np.exp(2 * (far - 5))), relevance - 0.01 * (y > 50)


def _image(draw: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: viz.save(path, draw(*scene()), scale=2)


def _figure(draw: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda path: draw().savefig(path, pil_kwargs={"optimize": True})


def _beside() -> Any:
    picture, relevance = scene()
    rules = {"epsilon": relevance, "gamma": np.sign(relevance) * np.abs(relevance) ** 0.5}
    return viz.figure(picture, rules, title="disc", caption="Made up, as all pictures here.")


PICTURES: dict[str, Callable[[Path], None]] = {
    "heatmap.png": _image(lambda picture, relevance: viz.heatmap(relevance)),
    "saliency.png": _image(lambda p, r: viz.heatmap(abs(r), symmetric=False)),
    "overlay.png": _image(viz.overlay),
    "contours.png": _image(viz.contours),
    "grid.png": _image(
        lambda p, r: viz.grid(
            [p, viz.heatmap(r, colors="cyan_orange"), viz.overlay(p, r)], columns=3
        )
    ),
    "figure.png": _figure(_beside),
    "text.png": _figure(lambda: viz.text(*review()).figure(columns=44)),
    "words.png": _figure(lambda: viz.text(*review(), by_word=True).figure(columns=44)),
    "bars.png": _figure(lambda: viz.bars(applicants()[1][0], applicants()[0], largest=4)),
    "samples.png": _figure(lambda: viz.bars(applicants()[1], applicants()[0])),
    "series.png": _figure(lambda: viz.series(*heartbeats(), names=["lead I", "lead II"], rate=100)),
    "spectrogram.png": _figure(lambda: viz.spectrogram(*chirp(), rate=16000, hop=160)),
    "frames.png": _figure(lambda: viz.frames(*ball(), rate=12)),
}


def run(arguments: argparse.Namespace) -> None:
    """Writes all pictures.

    Raises:
      InputError: the folder does not exist.
      OSError: a file cannot be written.
    """
    folder = arguments.output
    if not folder.is_dir():
        raise InputError(f"--output {str(folder)!r} is a folder that does not exist")
    for name, write in PICTURES.items():
        write(folder / name)
        print(folder / name)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="pictures.py", description=str(__doc__).split("\n")[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/pictures"),
        metavar="FOLDER",
        help="where the pictures are written (default: %(default)s)",
    )
    return run_command(parser, run, argv, ImportError)


if __name__ == "__main__":
    sys.exit(main())
