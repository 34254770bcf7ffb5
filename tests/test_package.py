"""The package as a whole: what importing it brings along, and that its floors hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import relax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "relax"


def test_import_brings_jax_alone():
    """No framework, no torch, no numpy-heavy extra is imported with relax."""
    code = "import relax, sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "jax" in imported
    assert not imported & {"flax", "keras", "equinox", "haiku", "torch", "optax", "matplotlib"}


def test_first_use_may_be_under_jit():
    """Everything that is remembered between calls is computed outside of the user's trace."""
    code = (
        "import jax, jax.numpy as jnp, relax\n"
        "f = lambda x: jax.nn.gelu(x)\n"
        "print(jax.jit(relax.lrp(f))(jnp.ones(2)).shape, relax.lrp(f)(jnp.ones(2)).shape)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(2,) (2,)"


def modules():
    return {path.relative_to(ROOT).as_posix(): path for path in PACKAGE.rglob("*.py")}


def floors():
    """Floor of each file, from the table of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| `(relax/[\w/]+\.py)` \|", text, flags=re.MULTILINE)
    return {path: (int(floor), order) for order, (floor, path) in enumerate(rows)}


def test_architecture_names_every_file():
    """docs/architecture.md has one line for each file and none for a file that is gone."""
    missing = {"relax/rules/__init__.py"}  # the table of the catalog, named in the text
    assert set(floors()) == set(modules()) - missing


def test_modules_import_only_downwards():
    """No import of relax at the top of a module leads to a floor above it."""
    order = floors()
    order["relax/rules/__init__.py"] = order["relax/rules/general.py"]
    for name, path in modules().items():
        if name == "relax/rules/__init__.py":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("relax"):
                continue
            for alias in node.names:
                parts = [*node.module.split("."), alias.name]
                found = [
                    candidate
                    for candidate in (
                        "/".join(parts) + ".py",
                        "/".join(parts[:-1]) + ".py",
                        "/".join(parts) + "/__init__.py",
                        "/".join(parts[:-1]) + "/__init__.py",
                    )
                    if candidate in order
                ]
                assert found, (name, parts)
                assert order[found[0]][0] <= order[name][0], (name, found[0])


def test_nothing_is_detached_and_nothing_private_is_imported():
    """No stop_gradient call and no private JAX module in the package."""
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        assert "jax._src" not in text, path
        assert "stop_gradient(" not in text, path


def test_every_public_rule_and_composite_is_documented():
    """Each has a formula or a description and names its source."""
    rules = [
        getattr(relax.rules, name)
        for name in relax.rules.__all__
        if isinstance(getattr(relax.rules, name), type)
        and issubclass(getattr(relax.rules, name), relax.rules.Rule)
    ]
    bases = {
        getattr(relax.rules, name)
        for name in relax.rules.__all__
        if name in ("Rule", "AffineRule", "ActivationRule", "ProductRule", "SoftmaxRule")
        or name == "NormalizationRule"
    }
    makers = [getattr(relax.composites, name) for name in relax.composites.__all__]
    for item in (*rules, *makers):
        if item in bases or item is relax.Composite:
            continue
        assert "Source:" in item.__doc__, item
        if isinstance(item, type):
            assert "$$" in item.__doc__, item
