"""``python -m relax run``: the attribution of a whole data set, as a file describes it."""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import click

from relax.cli._app import DEBUG, Command, Section
from relax.cli._errors import InputError


def _command(
    file: str,
    name: str,
    dry_run: bool,
    retry: bool,
    distributed: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
) -> None:
    """Explain a whole data set, as FILE describes it, which is run as a program.

    FILE is Python, and makes a relax.bulk.Job called "job", or a function of that name that returns
    one. What an earlier run has finished is not computed again.
    """
    import jax

    alone = coordinator is None and processes is None and process is None
    if not alone:
        if coordinator is None or processes is None or process is None:
            raise click.UsageError("--coordinator, --processes and --process go together.")
        jax.distributed.initialize(coordinator, processes, process)
    elif distributed:
        jax.distributed.initialize()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    logging.getLogger("relax.bulk").setLevel(logging.INFO)
    job = load_job(file, name)
    from relax.bulk import run
    from relax.bulk._job import Prepared

    if dry_run:
        click.echo(described(Prepared(job)))
        return
    summary = run(job, retry)
    if jax.process_index() == 0:
        click.echo(str(summary))


def load_job(file: str, name: str) -> Any:
    """The job that a file makes.

    Raises:
      InputError: there is no such file, or it makes no job.
    """
    from relax.bulk import Job

    path = Path(file)
    if not path.is_file():
        raise InputError(f"{file} is not there")
    sys.path.insert(0, str(path.resolve().parent))  # as if it were run by itself
    made = runpy.run_path(str(path), run_name="relax_job")
    if name not in made:
        raise InputError(f"{file} makes nothing called {name!r}; --name has another name")
    job = made[name]
    if not isinstance(job, Job) and callable(job):
        job = job()
    if not isinstance(job, Job):
        raise InputError(f"{name!r} in {file} is no relax.bulk.Job, but a {type(job).__name__}")
    return job


def described(prepared: Any) -> str:
    """What would be run, and how much would be written."""
    samples, chunk = prepared.samples.count, prepared.chunk
    lines = [
        f"{prepared.path}: {samples} samples in {-(-samples // chunk)} chunks of {chunk}, "
        f"batches of {prepared.job.batch_size}"
    ]
    import jax.numpy as jnp
    import numpy as np

    for name, array in sorted(prepared.arrays.items()):
        size = samples * int(np.prod(array.shape)) * jnp.dtype(array.dtype).itemsize
        shape = "x".join(map(str, (samples, *array.shape)))
        lines.append(f"  {name}: {array.dtype} {shape}, {size / 2**20:.4g} MiB before compression")
    return "\n".join(lines)


command = Command(
    "run",
    callback=_command,
    params=[
        click.Argument(["file"]),
        Section(
            ["--name"],
            section="Job",
            default="job",
            show_default=True,
            help="What the job is called in the file.",
        ),
        Section(
            ["--dry-run"],
            section="Job",
            is_flag=True,
            help="Check the job, and tell what would be written.",
        ),
        Section(
            ["--retry"],
            section="Job",
            is_flag=True,
            help="Try samples again that could not be read, as after an outage.",
        ),
        Section(
            ["--distributed"],
            section="Several processes",
            is_flag=True,
            help="On a TPU pod, under SLURM or Open MPI: who takes part is found out.",
        ),
        Section(
            ["--coordinator"],
            section="Several processes",
            metavar="HOST:PORT",
            help="Elsewhere: where process 0 runs, and a free port there.",
        ),
        Section(
            ["--processes"],
            section="Several processes",
            metavar="N",
            type=click.IntRange(1),
            help="How many there are.",
        ),
        Section(
            ["--process"],
            section="Several processes",
            metavar="I",
            type=click.IntRange(0),
            help="Which of them this is, from 0 on.",
        ),
        DEBUG,
    ],
    help=_command.__doc__,
    short_help="Explain a whole data set, as a file describes it.",
)
