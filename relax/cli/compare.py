"""``python -m relax compare``: which explanation of these pictures is the most faithful?"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from relax.cli._app import Section, make_command, show

if TYPE_CHECKING:
    from relax.cli._problem import Sample
    from relax.evaluation import Table

RULES = ("epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box")
METHODS = ("gradient_x_input", "integrated_gradients(steps=20)", "random")
_MEASURES = "ABPC"


@make_command(
    "compare",
    [
        click.Argument(["pictures"], nargs=-1, required=True),
        Section(
            ["--rules"],
            section="Methods",
            metavar="NAME[(...)]",
            multiple=True,
            help=f"A composite or a rule; may be given several times. Default: {', '.join(RULES)}.",
        ),
        Section(
            ["--method"],
            section="Methods",
            metavar="NAME[(...)]",
            multiple=True,
            help=f"Another method; may be given several times. Default: {', '.join(METHODS)}.",
        ),
        Section(
            ["--target"],
            section="Methods",
            metavar="CLASS",
            help="What is explained, by number or name. Default: of each the largest output.",
        ),
        Section(
            ["--seed"],
            section="Methods",
            default=0,
            show_default=True,
            help="Of all that is random.",
        ),
        Section(
            ["--steps"],
            section="Measures",
            type=click.IntRange(1),
            default=10,
            show_default=True,
            help="In how many steps a picture is painted over.",
        ),
        Section(
            ["--side"],
            section="Measures",
            type=click.IntRange(1),
            metavar="PIXELS",
            help="Of the squares that are painted over. Default: a 14th of the picture.",
        ),
        Section(
            ["--output", "-o"],
            section="Result",
            multiple=True,
            metavar="FILE",
            help="The heatmaps, .png; the table, .md; the numbers, .npz; may be given several "
            "times. Default: compare.png.",
        ),
    ],
    short_help="Compare methods on pictures: which is the most faithful?",
    epilog="names",
)
def command(
    pictures: Sequence[str],
    rules: Sequence[str],
    method: Sequence[str],
    target: str | None,
    seed: int,
    steps: int,
    side: int | None,
    output: Sequence[str],
    **model_options: Any,
) -> None:
    """Explain PICTURES by several methods, and rank them by how faithful they are.

    Squares of each picture are painted over, the most relevant first (MoRF) and the least relevant
    first (LeRF). The area between the two curves (ABPC) is large if an explanation knows what the
    output needs; sensitivity-n is how well the relevance of random sets of squares tells what
    painting them over changes.
    """
    import jax

    from relax import evaluation
    from relax.cli import _methods, _problem
    from relax.cli._errors import InputError
    from relax.cli._load import load_model
    from relax.cli._output import check_output

    paths = [check_output(path, (".png", ".md", ".npz")) for path in output or ("compare.png",)]
    model = load_model(**model_options)
    if not rules and not method:
        rules, method = RULES, METHODS
    chosen = [_methods.by_rules(text, model.bounds) for text in rules]
    chosen += [_methods.by_method(text, model.bounds, seed) for text in method]
    twice = {c.name for c in chosen if sum(c.name == other.name for other in chosen) > 1}
    if twice:
        raise InputError(f"{', '.join(sorted(twice))}: given twice")
    samples = [_problem.load_sample(model, path) for path in pictures]
    shapes = {sample.x.shape for sample in samples}
    if len(shapes) > 1 or len(samples[0].x.shape) not in (2, 3):
        raise InputError(
            f"the pictures have shapes {', '.join(map(str, shapes))}; all should have one: "
            "(height, width[, channels])"
        )
    shape = samples[0].x.shape
    function = _problem.bare(model, shape, samples[0].x.dtype)
    index = _problem.find_target(model, function, target)
    wanted = "max" if index is None else index

    explain = {c.name: c.explain(function.f, target=wanted) for c in chosen}
    side = max(1, round(min(shape[:2]) / 14)) if side is None else side
    measures = functools.partial(
        evaluation.faithfulness,
        groups=evaluation.patches(shape, side),
        target=wanted,
        steps=steps,
        subsets=5 * steps,
        batch_size=4,
    )
    table = evaluation.compare(
        explain,
        function.f,
        model.params,
        [sample.x[None] for sample in samples],  # one by one: memory does not grow with them
        key=jax.random.key(seed),
        measures=measures,
    ).sorted_by(_MEASURES)
    many = "s" if len(samples) > 1 else ""
    click.echo(f"{model.name}, {len(samples)} picture{many}, squares of {side}\n")
    show(table)
    click.echo()
    kept = [path.suffix.lower() for path in paths]
    found = {}
    if ".png" in kept or ".npz" in kept:
        compiled = {name: jax.jit(explain[name]) for name in table.methods}
        found = {
            name: [np.asarray(one(model.params, sample.x[None]))[0] for sample in samples]
            for name, one in compiled.items()
        }
    for path, suffix in zip(paths, kept, strict=True):
        if suffix == ".md":
            path.write_text(f"{table.markdown()}\n", encoding="utf-8")
        elif suffix == ".npz":
            _save(path, table, found)
        else:
            _draw(path, samples, found)
        click.echo(f"written  {path}")


def _save(path: Path, table: Table, found: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Relevance ``(methods, pictures, ...)`` and scores ``(methods, pictures)`` by measure."""
    relevance = np.stack([np.stack(each) for each in found.values()])
    scores: dict[str, Any] = {name: np.asarray(score) for name, score in table.scores.items()}
    np.savez(path, methods=np.array(table.methods), relevance=relevance, **scores)


def _draw(path: Path, samples: Sequence[Sample], found: Mapping[str, Sequence[np.ndarray]]) -> None:
    """A row for each picture: itself, and a heatmap of each method, the most faithful first."""
    from matplotlib.figure import Figure

    from relax import viz

    tile, columns = 1.7, 1 + len(found)
    figure = Figure(
        figsize=(tile * columns, tile * len(samples) + 0.5), dpi=120, layout="constrained"
    )
    panels = figure.subplots(len(samples), columns, squeeze=False)
    for i, sample in enumerate(samples):
        picture = sample.picture if sample.picture is not None else viz.picture(sample.x)
        shown = {sample.path.name: picture}
        shown |= {name: viz.heatmap(each[i]) for name, each in found.items()}
        for panel, (name, image) in zip(panels[i], shown.items(), strict=True):
            panel.imshow(image, cmap="gray")
            panel.set_axis_off()
            if i == 0 or image is picture:
                panel.set_title(name.replace("(", "\n("), fontsize=7)
    figure.savefig(path)
