"""A virtual environment for each peer, made once from a list of packages by name.

They lie in `benchmarks/.environments`, each with a stamp, which lists what was installed, and the
output of pip. A list that changed makes its environment anew. pip is asked as it is configured:
where PyTorch should come without CUDA, set ``PIP_EXTRA_INDEX_URL`` to its index for CPUs.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / ".environments"


@dataclasses.dataclass(frozen=True)
class Environment:
    """What a peer needs.

    Attributes:
        requirements: packages, with all that they depend on.
        alone: packages without what they depend on, for any version of Python.
        pythons: minor versions of Python 3 that will do, best first; none: any.
    """

    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()
    pythons: tuple[int, ...] = ()


# LXT knows transformers of that version. It depends on packages for other models that are never
# imported here; Zennit asks for Python 3.12, but runs on older ones.
TORCH = Environment(
    requirements=(
        "torch==2.13.0",
        "torchvision==0.28.0",
        "numpy",
        "click",
        "matplotlib",
        "tqdm",
        "tabulate",
        "accelerate",
        "transformers==4.52.4",
        "autolrp==0.2.0",
    ),
    alone=("captum==0.9.0", "lxt==2.1", "zennit==1.0.0"),
)
ENVIRONMENTS: dict[str, Environment] = {
    "torch": TORCH,
    "innvestigate": Environment(("tensorflow==2.14.*", "innvestigate==2.1.2"), pythons=(11, 10, 9)),
    "lrp-toolbox": Environment(("lrp-toolbox",)),
    "deepexplain": Environment(("deepexplain",)),
}


class InstallError(RuntimeError):
    """An environment could not be made; ``status`` is that of the command, ``why`` pip's reason."""

    def __init__(self, peer: str, command: Sequence[str], log: Path, status: int | None):
        lines = log.read_text().splitlines() if log.exists() else []
        errors = [line for line in lines if line.startswith("ERROR")]
        self.why = (errors or lines or ["no Python of a version that will do"])[-1]
        self.status = status
        last = "\n    ".join(lines[-10:])
        super().__init__(f"cannot install {peer}: `{' '.join(command)}`\n    {last}\n({log})")


def python(name: str) -> Path:
    """The interpreter of an environment, which is made if it is not there.

    Raises:
        InstallError: with the command and the last lines of the log.
    """
    environment = ENVIRONMENTS[name]
    folder = FOLDER / name
    interpreter, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join((*environment.requirements, *environment.alone))
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    if folder.exists():
        shutil.rmtree(folder)
    FOLDER.mkdir(parents=True, exist_ok=True)
    log = FOLDER / f"{name}.log"
    log.unlink(missing_ok=True)
    print(f"installing {name} (pip's output: {log})", flush=True)
    _call(name, [_base(name, environment.pythons), "-m", "venv", str(folder)], log)
    pip = [str(interpreter), "-m", "pip", "install"]
    _call(name, [*pip, *environment.requirements], log)
    if environment.alone:
        options = ("--no-deps", "--ignore-requires-python")
        _call(name, [*pip, *options, *environment.alone], log)
    stamp.write_text(wanted)
    return interpreter


def _base(name: str, minors: tuple[int, ...]) -> str:
    """An interpreter that makes the environment: this one, if its version will do."""
    if not minors or (sys.version_info.major, sys.version_info.minor) in [(3, m) for m in minors]:
        return sys.executable
    for minor in minors:
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    raise InstallError(name, [f"python3.{minors[0]}"], FOLDER / f"{name}.log", None)


def _call(name: str, command: list[str], log: Path) -> None:
    with log.open("a") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    if status:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        raise InstallError(name, command, log, status)
