"""The command line, ``python -m relax``: explain a picture, compare methods, show a plan.

It needs click, and what draws and reads pictures: ``pip install "relax-lrp[cli]"``. A command is a
file of this package with a click command called ``command``, and a line in ``_app.COMMANDS``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from relax.cli._errors import InputError
from relax.cli._labels import find_class_index, short_name
from relax.cli._model import Model
from relax.cli._pictures import fit, load_picture


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
      argv: its words, without the name of the program; None for those of the process.

    Returns:
      The exit status: 0 if it has done its work, 2 if it was refused, with a line on stderr.
    """
    try:
        from relax.cli._app import app
    except ModuleNotFoundError as missing:
        if missing.name != "click":
            raise
        print(
            'relax: error: the command line needs click: pip install "relax-lrp[cli]"',
            file=sys.stderr,
        )
        return 2
    try:
        app.main(argv, prog_name="python -m relax")
    except SystemExit as end:  # click leaves so, also when all went well
        return end.code if isinstance(end.code, int) else 0
    return 0


__all__ = ["InputError", "Model", "find_class_index", "fit", "load_picture", "main", "short_name"]
