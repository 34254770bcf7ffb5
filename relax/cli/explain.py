"""``python -m relax explain``: what in a picture speaks for an output, and what against it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from relax.cli._app import Section, make_command

if TYPE_CHECKING:
    from relax.cli._methods import Chosen
    from relax.cli._problem import Sample

DEFAULT = "epsilon_plus_flat"
_STYLES = ("figure", "heatmap", "overlay")


@make_command(
    "explain",
    [
        click.Argument(["picture"]),
        Section(
            ["--rules"],
            section="Method",
            metavar="NAME[(...)]",
            help=f'A composite or a rule, such as "Gamma(0.25)"; see below. Default: {DEFAULT}.',
        ),
        Section(
            ["--method"],
            section="Method",
            metavar="NAME[(...)]",
            help='Another method instead, such as "integrated_gradients(steps=20)".',
        ),
        Section(
            ["--target"],
            section="Method",
            metavar="CLASS",
            help="What is explained, by number or name. Default: the largest output.",
        ),
        Section(
            ["--seed"],
            section="Method",
            default=0,
            show_default=True,
            help="Of methods that draw random numbers.",
        ),
        Section(
            ["--output", "-o"],
            section="Result",
            multiple=True,
            metavar="FILE",
            help="A picture, .png, or the numbers, .npz; may be given several times. "
            "Default: relevance.png.",
        ),
        Section(
            ["--style"],
            section="Result",
            type=click.Choice(_STYLES),
            default="figure",
            show_default=True,
            help="Of the .png: picture and heatmap with a title, or pixel for pixel.",
        ),
        Section(
            ["--top-k"],
            section="Result",
            type=click.IntRange(1),
            default=5,
            show_default=True,
            help="How many outputs are printed.",
        ),
    ],
    short_help="Explain a picture: what speaks for an output.",
    epilog="names",
)
def command(
    picture: str,
    rules: str | None,
    method: str | None,
    target: str | None,
    seed: int,
    output: Sequence[str],
    style: str,
    top_k: int,
    **model_options: Any,
) -> None:
    """Explain PICTURE: what in it speaks for an output of a model, and what against it.

    PICTURE is cut to the shape that the model takes. A .npy file is one sample as it is.
    """
    import jax

    from relax.cli import _methods, _problem
    from relax.cli._errors import InputError
    from relax.cli._load import load_model
    from relax.cli._output import check_output

    if rules is not None and method is not None:
        raise click.UsageError("--rules are those of LRP, --method is another method: give one.")
    paths = [check_output(path, (".png", ".npz")) for path in output or ("relevance.png",)]
    model = load_model(**model_options)
    chosen = (
        _methods.by_method(method, model.bounds, seed)
        if method is not None
        else _methods.by_rules(rules or DEFAULT, model.bounds)
    )
    sample = _problem.load_sample(model, picture)
    if sample.x.ndim not in (2, 3) and any(path.suffix == ".png" for path in paths):
        raise InputError(
            f"a sample of shape {sample.x.shape} is no picture: give --output relevance.npz"
        )
    function = _problem.bare(model, sample.x.shape, sample.x.dtype)
    wanted = _problem.find_target(model, function, target)

    x = sample.x[None]
    logits = np.asarray(jax.jit(function.f)(model.params, x))[0]
    order = np.argsort(-logits, kind="stable")
    index = int(order[0]) if wanted is None else wanted
    name = _problem.named(model, len(logits), index)
    shares = _problem.probabilities(function, logits)
    click.echo(f"{model.name} on {sample.path.name}, as {' x '.join(map(str, sample.x.shape))}\n")
    for i in order[:top_k]:
        share = "" if shares is None else f"{shares[i]:9.1%}"
        click.echo(f"{logits[i]:11.4g}{share}  {_problem.named(model, len(logits), int(i))}")

    explain = jax.jit(chosen.explain(function.f, target=index))
    relevance = np.asarray(explain(model.params, x))[0]
    click.echo(f"\nexplained  {name}, {logits[index]:.4g}" + _taken_off(function.ending))
    click.echo(f"by         {chosen.call}")
    click.echo(f"relevance  sums to {relevance.sum():.4g}")
    if chosen.rules is not None:
        click.echo("           where the rest stays: python -m relax plan --account PICTURE, with")
        click.echo("           the same options of model, rules and target")
    title = name if shares is None else f"{name}, {shares[index]:.1%}"
    for path in paths:
        if path.suffix.lower() == ".npz":
            np.savez(path, relevance=relevance, x=sample.x, logits=logits, target=index)
        else:
            _draw(path, sample, relevance, style, title, chosen, model.name)
        click.echo(f"written    {path}")


def _taken_off(ending: str) -> str:
    return f", in front of the {ending} that the model ends in" if ending else ""


def _draw(
    path: Path,
    sample: Sample,
    relevance: np.ndarray,
    style: str,
    title: str,
    chosen: Chosen,
    model: str,
) -> None:
    from relax import viz

    shown = sample.picture if sample.picture is not None else viz.picture(sample.x)
    # LRP may have either sign, and the same colors whether it has or not.
    symmetric = True if chosen.rules is not None else "auto"
    if style == "figure":
        caption = f"{model}. Picture: {sample.path.name}"
        figure = viz.figure(
            shown,
            {chosen.name: relevance},
            title=title,
            caption=caption,
            smooth=True,
            symmetric=symmetric,
        )
        figure.savefig(path, pil_kwargs={"optimize": True})
    elif style == "heatmap":
        viz.save(path, viz.heatmap(relevance, symmetric=symmetric))
    else:
        viz.save(path, viz.overlay(shown, relevance, symmetric=symmetric))
