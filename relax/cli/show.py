"""``python -m relax show``: what is in a store, and samples of it as pictures or numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from relax.cli._app import DEBUG, Command, Section
from relax.cli._errors import InputError
from relax.cli._output import check_output

_WIDTH = 40  # characters of the longest bar


def _command(
    store: str, array: str, samples: tuple[int, ...], output: str | None, top: int, verify: bool
) -> None:
    """Show what is in STORE, the folder that a job has written.

    With --sample what is kept of it: a heatmap if it is one, with --output; else its strongest
    features. Nothing in the store is run or changed.
    """
    from relax.bulk import Store

    opened = Store(store)
    if not samples:
        if output is not None:
            raise click.UsageError("--output goes with --sample.")
        click.echo(described(opened, verify))
        return
    if array not in opened.names:
        raise InputError(f"{store} has no array {array!r}; it has {', '.join(opened.names)}")
    reasons = dict(opened.bad)
    rows = []
    for index in samples:
        if not 0 <= index < opened.samples:
            raise InputError(f"--sample {index}: the store has {opened.samples}, from 0 on")
        if index in reasons:
            raise InputError(f"--sample {index}: {reasons[index]}")
        if not opened.is_there(index):
            raise InputError(f"--sample {index} has not been computed yet: run its job again")
        rows.append(np.asarray(opened[array][index], np.float64))
    if output is None:
        for index, row in zip(samples, rows, strict=True):
            click.echo(f"{array} of sample {index}, in all {row.sum():.6g}")
            click.echo("\n".join(strongest(row, top)))
        return
    write_heatmaps(rows, check_output(output, (".png",)), array)
    click.echo(output)


def described(opened: Any, verify: bool) -> str:
    """A store in lines."""
    explained, received = opened.sums()
    state = "finished" if opened.finished else "not finished: run its job again"
    bad = opened.bad
    lines = [f"{opened.path}: {opened.samples} samples, {state}"]
    lines += [f"  {name}: {_kind(opened[name])}" for name in opened.names]
    lines += [
        f"explained {explained:.6g}, received {received:.6g}, absorbed {explained - received:.6g}",
        f"{len(bad)} bad samples" + (":" if bad else ""),
        *(f"  {index}: {reason}" for index, reason in bad[:20]),
    ]
    if len(bad) > 20:
        lines.append(f"  and {len(bad) - 20} more")
    made_of = opened.made_of
    for key in ("target", "method", "version", "relax", "jax", "device"):
        if made_of.get(key):
            lines.append(f"{key}: {made_of[key]}")
    if made_of.get("rule"):
        lines += ["rules:", *(f"  {layer}: {rule}" for layer, rule in made_of["rule"].items())]
    if verify and opened.finished and not opened.as_finished:
        lines.append("records are missing, or are not those that the store was finished with")
    if verify:
        damaged = opened.damaged()
        lines.append(
            f"chunks that are missing or damaged: {', '.join(map(str, damaged)) or 'none'}"
        )
    return "\n".join(lines)


def _kind(array: Any) -> str:
    return f"{array.dtype.name} {'x'.join(map(str, array.shape))}"


def strongest(row: np.ndarray, top: int) -> list[str]:
    """The features of the largest values by size, with a bar each."""
    flat = row.reshape(-1)
    order = np.argsort(-np.abs(flat), kind="stable")[:top]
    scale = np.abs(flat[order[0]]) if len(order) and flat[order[0]] else 1.0
    lines = []
    for place in order:
        index = ", ".join(str(int(i)) for i in np.unravel_index(place, row.shape))
        bar = ("+" if flat[place] > 0 else "-") * round(_WIDTH * float(abs(flat[place]) / scale))
        lines.append(f"  [{index}]  {flat[place]:+.6g}  {bar}")
    return lines


def write_heatmaps(rows: list[np.ndarray], path: Path, array: str) -> None:
    """Samples side by side.

    Raises:
      InputError: what is kept is no picture.
    """
    from relax import viz

    maps = []
    for row in rows:
        flat = row.sum(-1) if row.ndim == 3 else row
        if flat.ndim != 2:
            shape = "x".join(map(str, row.shape)) or "one number"
            raise InputError(f"{array!r} is no picture: a sample is {shape}; leave out --output")
        maps.append(viz.heatmap(flat))
    viz.save(path, maps[0] if len(maps) == 1 else viz.grid(maps))


command = Command(
    "show",
    callback=_command,
    params=[
        click.Argument(["store"]),
        Section(
            ["--sample", "samples"],
            section="Samples",
            metavar="I",
            type=int,
            multiple=True,
            help="By number; may be given several times.",
        ),
        Section(
            ["--array"],
            section="Samples",
            metavar="NAME",
            default="relevance",
            show_default=True,
            help="Which of the arrays that are kept.",
        ),
        Section(
            ["--output"],
            section="Samples",
            metavar="FILE.png",
            help="Write heatmaps of height x width, or height x width x channels.",
        ),
        Section(
            ["--top"],
            section="Samples",
            metavar="N",
            type=click.IntRange(1),
            default=10,
            show_default=True,
            help="How many features are listed.",
        ),
        Section(
            ["--verify"],
            section="Store",
            is_flag=True,
            help="Read everything, and compare it with its checksums.",
        ),
        DEBUG,
    ],
    help=_command.__doc__,
    short_help="Show what is in the store of a job.",
)
