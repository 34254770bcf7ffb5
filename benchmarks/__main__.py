"""The command line of the benchmarks.

python -m benchmarks                  lists them
python -m benchmarks passes           runs one; --small: as little as shows that it works
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import RESULTS

NAMES = (
    "passes",
    "memory",
    "compile",
    "sweep",
    "loops",
    "scaling",
    "peers",
    "throughput",
    "coverage",
    "bulk",
)


def main(argv: Sequence[str] | None = None) -> int:
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="name", metavar="NAME")
    for name, module in modules.items():
        first = module.__doc__.split("\n")[0]
        command = commands.add_parser(name, help=first, description=module.__doc__)
        command.add_argument(
            "--small", action="store_true", help="as little as shows that it works"
        )
        command.add_argument(
            "--output", type=Path, default=RESULTS, metavar="FOLDER", help="of what is written"
        )
        module.add_arguments(command)
    arguments = parser.parse_args(argv)
    if arguments.name is None:
        parser.print_help()
        return 0
    for table in modules[arguments.name].run(arguments):
        table.save(arguments.output)
        print(f"\n{arguments.output / table.name}.md, .json, .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
