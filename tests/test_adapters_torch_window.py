"""Which releases of torch and torchax the adapter takes; none of these tests needs either."""

import importlib.metadata
import subprocess
import sys

import pytest

import relax
from relax.adapters.torch import to_jax
from relax.adapters.torch._window import check_versions

WORKS = {"torch": "2.9.1", "torchax": "0.0.13"}


@pytest.fixture
def installed(monkeypatch):
    """A function that pretends that exactly these packages are installed."""

    def pretend(versions):
        def version(name):
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({}, "there is no torch and no torchax"),
        ({"torch": "2.9.1"}, "there is torch 2.9.1 and no torchax"),
        ({"torchax": "0.0.13"}, "there is no torch and torchax 0.0.13"),
        (WORKS | {"torch": "2.13.0"}, "there is torch 2.13.0 and torchax 0.0.13"),
        (WORKS | {"torch": "2.13.0+cpu"}, "there is torch 2.13.0[+]cpu and"),
        (WORKS | {"torch": "2.15.0.dev20260101"}, "there is torch 2.15.0.dev20260101"),
        (WORKS | {"torch": "2.7.1"}, "there is torch 2.7.1"),
        (WORKS | {"torch": "3.0"}, "there is torch 3.0"),
        (WORKS | {"torchax": "0.0.12"}, "there is torch 2.9.1 and torchax 0.0.12"),
        (WORKS | {"torchax": "0.0.14"}, "torchax 0.0.14"),
        (WORKS | {"torchax": "0.1"}, "torchax 0.1"),
        (WORKS | {"torch": "unknown"}, "there is torch unknown"),
    ],
)
def test_what_does_not_work_is_refused(installed, versions, words):
    """The error names what is installed, what is needed, and the command."""
    installed(versions)
    with pytest.raises(ImportError, match=words) as error:
        to_jax(object())
    text = str(error.value)
    assert "needs torch >= 2.9, < 2.13 and torchax >= 0.0.13, < 0.0.14" in text
    assert 'pip install "relax-lrp[torch]"' in text


@pytest.mark.parametrize("version", ["2.9", "2.9.0", "2.9.1+cu128", "2.10.0", "2.12.1", "2.12"])
def test_what_works_is_taken(installed, version):
    """The last digits and the build do not matter."""
    installed(WORKS | {"torch": version})
    check_versions()


def test_nothing_is_imported_before_a_module_is_given():
    """Importing relax and its adapters imports neither torch nor torchax."""
    code = (
        "import sys, relax.adapters.torch; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'torchax')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tensor_of_another_library_is_no_explained_argument():
    """What has a dtype that numpy does not know is named, with the remedy."""

    class Tensor:
        shape, ndim, dtype = (2,), 1, "float33"

    with pytest.raises(relax.ArgumentError, match=r"(?s)`x` is a Tensor of .*numpy.asarray"):
        relax.lrp(lambda x: x)(Tensor())
