"""Runs the notebooks of this folder, and stores or checks what they show.

    python docs/notebooks/execute.py                 runs all of them and stores what they show
    python docs/notebooks/execute.py text            runs one
    python docs/notebooks/execute.py --check text    runs one, and compares it to what is stored

Stored is what a reader should see and nothing that differs from run to run: no times, no names of
machines, no state of the editor. So a difference in git is one that matters. Checked is all text:
words must be equal, and numbers within 5 %, because other processors round otherwise. Pictures must
be there. A warning is a failure.

The packages that it needs come with

    pip install "relax-lrp[examples,sklearn,notebooks]"
"""

import argparse
import base64
import io
import math
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

FOLDER = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 600  # for one cell
RELATIVE, ABSOLUTE = 0.05, 0.02

_NUMBER = re.compile(r"[-+]?(?:\d+\.\d*|\.?\d+)(?:[eE][-+]?\d+)?")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def notebooks() -> list[Path]:
    """All notebooks of this folder, by name."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(notebook: nbformat.NotebookNode, folder: Path = FOLDER) -> nbformat.NotebookNode:
    """The notebook with what it shows when it is run from the top, cleaned.

    Args:
      notebook: is not changed.
      folder: where it runs.

    Raises:
      CellExecutionError: a cell raises an exception, or writes to stderr.
    """
    fresh = nbformat.from_dict(notebook)
    with tempfile.TemporaryDirectory() as settings:
        client = NotebookClient(
            fresh,
            timeout=SECONDS,
            startup_timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
        )
        kernel = client.create_kernel_manager()
        # Sockets are files of this user: a port could be reached by others.
        kernel.transport, kernel.ip = "ipc", f"{settings}/kernel"
        client.execute(env=_environment(settings))
    for cell in fresh.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise CellExecutionError(output["text"], "stderr", output["text"])
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return clean(fresh)


def smaller(picture: str) -> str:
    """A PNG with 128 colors, which is a quarter of it, in base64 as before."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        few = image.convert("RGB").quantize(128)
    written = io.BytesIO()
    few.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode("ascii")


def _environment(settings: str) -> dict[str, str]:
    """The variables of the kernel: without the flags of a test run and the user's own IPython."""
    left_out = ("XLA_FLAGS", "JAX_ENABLE_X64", "MPLBACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"IPYTHONDIR": settings, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what has no meaning to a reader; streams are joined."""
    kept = nbformat.from_dict(notebook)
    kept.metadata = nbformat.from_dict(METADATA)
    number = 0
    for cell in kept.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type != "code":
            continue
        number += 1
        cell.execution_count = number
        joined: list[nbformat.NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
                joined[-1]["text"] += output.text
                continue
            if output.output_type == "execute_result":
                output.execution_count = number
            if "data" in output:
                output.metadata = nbformat.from_dict({})
                output.data = nbformat.from_dict(_of_interest(output.data))
            joined.append(output)
        cell.outputs = joined
    return kept


def _of_interest(data: nbformat.NotebookNode) -> dict[str, str]:
    """Without addresses of objects."""
    return {
        kind: _ADDRESS.sub("", value) if kind == "text/plain" else value
        for kind, value in data.items()
    }


def differences(stored: nbformat.NotebookNode, found: nbformat.NotebookNode) -> list[str]:
    """Where two runs of a notebook show something else, one line for each."""
    result = []
    for before, after in zip(stored.cells, found.cells, strict=True):
        if before.cell_type != "code":
            continue
        kinds = [_kinds(cell) for cell in (before, after)]
        if kinds[0] != kinds[1]:
            result.append(f"cell {before.id!r} showed {kinds[0]}, and now {kinds[1]}")
            continue
        for old, new in zip(_texts(before), _texts(after), strict=True):
            if not same_text(old, new):
                result.append(f"cell {before.id!r} showed\n{old}\nand now\n{new}")
    return result


def same_text(old: str, new: str) -> bool:
    """Whether words are equal and numbers are close, whatever the space between them."""
    words = [_NUMBER.sub("#", text).split() for text in (old, new)]
    if words[0] != words[1]:
        return False
    numbers = [[float(number) for number in _NUMBER.findall(text)] for text in (old, new)]
    return all(
        math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        for a, b in zip(*numbers, strict=True)
    )


def _kinds(cell: nbformat.NotebookNode) -> list[str]:
    return [
        output.name if output.output_type == "stream" else "+".join(sorted(output.get("data", ())))
        for output in cell.outputs
    ]


def _texts(cell: nbformat.NotebookNode) -> list[str]:
    return [
        output.text if output.output_type == "stream" else output.get("data", {})["text/plain"]
        for output in cell.outputs
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 if all is well, 1 if a notebook fails or shows something else."""
    parser = argparse.ArgumentParser(description="Run the notebooks of docs/notebooks.")
    names = [path.stem for path in notebooks()]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all")
    parser.add_argument("--check", action="store_true", help="compare, and change no file")
    arguments = parser.parse_args(argv)
    if unknown := sorted(set(arguments.names) - set(names)):
        parser.error(f"no notebook {unknown[0]!r}; there are {', '.join(names)}")
    failed = False
    for name in arguments.names or names:
        path = FOLDER / f"{name}.ipynb"
        stored = nbformat.read(path, as_version=4)
        try:
            found = execute(stored)
        except CellExecutionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        if arguments.check:
            lines = differences(stored, found)
            failed = failed or bool(lines)
            print(f"{name}:", "as stored" if not lines else "\n".join(lines))
        else:
            nbformat.write(found, path)
            print(f"{name}: stored")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
