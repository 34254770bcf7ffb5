"""``python -m relax plan``: every layer of a model and its rule, and where relevance goes."""

from __future__ import annotations

from typing import Any

import click
import numpy as np

from relax.cli._app import Section, make_command, show

DEFAULT = "epsilon_plus_flat"


@make_command(
    "plan",
    [
        Section(
            ["--rules"],
            section="Method",
            metavar="NAME[(...)]",
            default=DEFAULT,
            show_default=True,
            help='A composite or a rule, such as "Gamma(0.25)"; see below.',
        ),
        Section(
            ["--account"],
            section="Method",
            metavar="PICTURE",
            help="Explain this picture, and tell what each layer keeps of the relevance, and why.",
        ),
        Section(
            ["--target"],
            section="Method",
            metavar="CLASS",
            help="Of the account, by number or name. Default: the largest output.",
        ),
        Section(
            ["--shape"],
            section="Model",
            metavar="N[,N...]",
            help="Of a sample, if the model does not say.",
        ),
    ],
    short_help="Show the plan of a model: every layer and its rule.",
    epilog="names",
)
def command(
    rules: str, account: str | None, target: str | None, shape: str | None, **model_options: Any
) -> None:
    """Show every layer that is found in a model, and the rule that it gets; nothing is computed.

    With --account the ledger: what each layer is given, hands on and keeps.
    """
    import jax

    import relax
    from relax.cli import _methods, _problem
    from relax.cli._load import load_model

    if target is not None and account is None:
        raise click.UsageError("--target goes with --account: a plan is the same for all outputs.")
    model = load_model(**model_options)
    chosen = _methods.by_rules(rules, model.bounds)
    if account is None:
        sizes = _shape(shape, model)
        function = _problem.bare(model, sizes)
        x = jax.ShapeDtypeStruct((1, *sizes), np.float32)
        show(relax.layers(function.f, chosen.rules)(model.params, x))
        return
    sample = _problem.load_sample(model, account)
    function = _problem.bare(model, sample.x.shape, sample.x.dtype)
    index = _problem.find_target(model, function, target)
    x = sample.x[None]
    if index is None:
        index = int(np.asarray(jax.jit(function.f)(model.params, x))[0].argmax())
    _, ledger = jax.jit(relax.ledger(function.f, chosen.rules, target=index))(model.params, x)
    click.echo(f"{_problem.named(model, function.outputs, index)} in {sample.path.name}\n")
    show(ledger)


def _shape(text: str | None, model: Any) -> tuple[int, ...]:
    """Of a sample.

    Raises:
      InputError: nobody says, or it is no shape.
    """
    from relax.cli._errors import InputError

    if text is not None:
        parts = text.split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise InputError(f"--shape {text!r}: expected sizes between commas, such as 28,28,1")
        return tuple(int(part) for part in parts)
    if model.shape is None:
        raise InputError(f"{model.name} does not say what it takes: give --shape, or --input-size")
    return model.shape
