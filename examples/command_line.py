"""What the command lines of the examples share: how they refuse, and the rules that they offer."""

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import relax
from relax.cli import InputError


def available_rules() -> dict[str, Callable[..., Any]]:
    """Name to maker, of everything that ``--rules`` may name: the functions of the composites."""
    return {
        name: maker
        for name, maker in inspect.getmembers(relax.composites, inspect.isfunction)
        if not name.startswith("_") and maker.__module__ == relax.composites.__name__
    }


def make_rules(name: str, **bounds: float) -> Any:
    """The composite of that name; one that is bounded gets the bounds of the input.

    Args:
        name: a function of ``relax.composites``.
        **bounds: ``low`` and ``high`` of the input, if it has them.

    Raises:
        InputError: there is none of that name; those that there are are listed.
    """
    makers = available_rules()
    if name not in makers:
        raise InputError(f"no composite {name!r}; there are {', '.join(makers)}")
    wanted = inspect.signature(makers[name]).parameters
    return makers[name](**{key: bound for key, bound in bounds.items() if key in wanted})


def check_output(path: Path, suffix: str) -> None:
    """Makes sure, before the work is done, that its result can be written.

    Raises:
        InputError: the name does not end as it should, or the folder does not exist.
    """
    if path.suffix.lower() != suffix:
        raise InputError(f"--output {str(path)!r} does not end in {suffix}")
    if not path.parent.is_dir():
        raise InputError(f"--output {str(path)!r} is in a folder that does not exist")


def names(text: str) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in text.split(",")]


def add_prompt(parser: argparse.ArgumentParser, prompt: str, small: str) -> None:
    """The arguments ``--prompt``, ``--small`` and ``--target``: a text, and the token after it."""
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--prompt",
        default=prompt,
        metavar="TEXT",
        help="what the model reads (default: %(default)r)",
    )
    text.add_argument(
        "--small",
        dest="prompt",
        action="store_const",
        const=small,
        help=f"the same as --prompt {small!r}: the least work that shows everything works",
    )
    parser.add_argument(
        "--target",
        metavar="TOKEN",
        help="the next token to explain (default: the most probable one)",
    )


def add_rules(parser: Any, default: Sequence[str]) -> None:
    """The argument ``--rules``, of a parser or of a group of one."""
    parser.add_argument(
        "--rules",
        type=names,
        default=default,
        metavar="NAME[,NAME...]",
        help=f"functions of relax.composites (default: {','.join(default)})",
    )


def add_output(parser: argparse.ArgumentParser, default: str, metavar: str, what: str) -> None:
    """The argument ``--output``: a file of the kind ``metavar``, which holds ``what``."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(default),
        metavar=metavar,
        help=f"the {what} to write (default: %(default)s)",
    )


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None,
    *errors: type[Exception],
) -> int:
    """Runs a program: 0 when it has done its work, 2 and a line on stderr when not.

    Args:
        parser: reads ``argv``; its ``prog`` begins the line.
        run: does the work.
        argv: the arguments, or None for those of the process.
        *errors: what ``run`` may raise beside errors of input, of files and of relax.
    """
    arguments = parser.parse_args(argv)
    try:
        run(arguments)
    except (InputError, OSError, relax.RelaxError, *errors) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
