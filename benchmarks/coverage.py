"""Every model and layer of the frameworks: is it explained, exactly and at what cost?

Each one is taken as its framework has it, at random weights. Checked are the value, the relevance
under two sets of rules, the plan and the account; counted are FLOPs and compile time by those of
gradient times input. What fails is a row with the reason, and so is what cannot be built; then the
exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import importlib
import io
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from benchmarks.examined import Examined, examine
from benchmarks.isolated import Died, Worker
from benchmarks.report import Table, progress
from benchmarks.zoos import ZOOS, Case, Model

COLUMNS = (
    "model",
    "input",
    "layers",
    "forward",
    "default",
    "composite",
    "account",
    "FLOPs",
    "compile",
    "result",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--zoo", choices=ZOOS, action="append", help="default: all")
    parser.add_argument(
        "--model", metavar="GLOB", action="append", help="only those of such a name"
    )
    parser.add_argument(
        "--seconds", type=float, default=1800.0, help="that one model may take (default: 1800)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="models at a time (default: 1)")


def run(arguments: argparse.Namespace) -> Iterator[Table]:
    """A table for each zoo as soon as it is through, and one of the sums at the end."""
    command = "python -m benchmarks coverage"
    columns = ("zoo", "models", "explained", "failed", "left out")
    sums = Table("coverage", "Models that are explained", command, columns, plot=("explained",))
    for zoo in arguments.zoo or ZOOS:
        chosen = [
            case
            for case in cases(ZOOS[zoo], arguments.small)
            if any(fnmatch.fnmatchcase(case.name, glob) for glob in arguments.model or ["*"])
        ]
        table = Table(
            f"coverage_{zoo.replace('.', '_')}",
            f"Coverage of {zoo}",
            f"{command} --zoo {zoo}",
            COLUMNS,
            digits=None,
            plot=("FLOPs",),
        )
        found = []
        for case, one in zip(chosen, _each(zoo, chosen, arguments), strict=True):
            found.append(one)
            table.add(*row(case, one))
        measured = [one for one in found if one is not None]
        explained = sum(not one.faults for one in measured)
        sums.add(zoo, len(found), explained, len(measured) - explained, len(found) - len(measured))
        if chosen:
            yield table
    yield sums
    failed = sum(row[columns.index("failed")] for row in sums.rows)
    if failed:
        raise SystemExit(f"{failed} models are not explained.")


def cases(module: str, small: bool) -> list[Case]:
    """The cases of a zoo; of one whose framework is not installed a single one, which says so.

    Raises:
      ValueError: two have the same name.
    """
    try:
        found = list(importlib.import_module(module).cases(small))
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] in ("", "benchmarks", "relax"):
            raise
        return [Case(module, "all of it", _absent, f"{missing} is not installed")]
    names = [case.name for case in found]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{module}: several cases are called {', '.join(twice)}.")
    return found


def _absent() -> Model:
    raise ModuleNotFoundError("its framework is not installed")


def _each(
    zoo: str, chosen: Sequence[Case], arguments: argparse.Namespace
) -> Iterator[Examined | None]:
    """What is found of each case, in order; None of those that have a reason."""
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()

    def one(case: Case) -> Examined | None:
        if case.reason:
            return None
        worker = idle.get()
        try:
            return examined(worker, zoo, case, arguments.small)
        finally:
            idle.put(worker)

    with contextlib.ExitStack() as stack:
        for _ in range(arguments.jobs):
            idle.put(stack.enter_context(Worker(examine_case, seconds=arguments.seconds)))
        yield from stack.enter_context(ThreadPoolExecutor(arguments.jobs)).map(one, chosen)


def examined(worker: Any, zoo: str, case: Case, small: bool) -> Examined:
    """The checks of a case, made in the process of a worker."""
    progress(f"{zoo}: {case.name}")
    try:
        return worker(ZOOS[zoo], case.name, small)
    except Died as error:
        return Examined(faults=[str(error)])


def examine_case(module: str, name: str, small: bool) -> Examined:
    """Builds the case of a name and checks it; an error in building it is a fault."""
    (case,) = (case for case in cases(module, small) if case.name == name)
    found = Examined()
    try:
        with found.step("build"), contextlib.redirect_stdout(io.StringIO()):
            found = examine(case.build())
    finally:
        jax.clear_caches()
        gc.collect()
    return found


def row(case: Case, found: Examined | None) -> tuple[Any, ...]:
    """Of the table: what was found, or why nothing was looked for."""
    if found is None:
        return (case.name, *[None] * 8, f"left out: {case.reason}")
    result = "; ".join(found.faults) or "explained"
    if found.double is not None and not found.faults:
        result += f"; in float64 the value differs by {found.double:.1e}"
    return (
        case.name,
        found.inputs,
        found.layers,
        found.forward,
        found.default,
        found.composite,
        found.account,
        found.flops,
        found.compile,
        result.replace("|", "/"),
    )
