"""Draws the pictures of idea.md: python docs/draw_idea.py [--output docs/idea].

The first one is a network small enough to be checked by hand, the others a network that learns the
digits of scikit-learn, 8 x 8 pixels each, in a few seconds. Needs matplotlib and scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import relax
from relax import composites, rules, viz

RED, BLUE, GRAY = "#c8102e", "#1769aa", "#9a9a9a"
SMALL = {
    "hidden": jnp.array([[1.0, -1.0, 1.0], [1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]),
    "head": jnp.array([[3.0], [1.0], [-1.0]]),
}
INPUT = jnp.array([2.0, 1.0, 1.0])


def small(p, x):
    """Three inputs, three neurons, one output."""
    return jax.nn.relu(x @ p["hidden"]) @ p["head"]


def flow(axes) -> None:
    """Relevance in every connection of the small network, under LRP-0."""
    relevance, latent = relax.lrp(small, rules.Epsilon(0.0), at="hidden")(SMALL, INPUT)
    (hidden,) = map(np.asarray, latent.values())
    value = np.asarray(jax.nn.relu(INPUT @ SMALL["hidden"]))
    output = np.asarray(small(SMALL, INPUT))
    z = np.asarray(INPUT)[:, None] * np.asarray(SMALL["hidden"])
    parts = [z / z.sum(0) * hidden, hidden[:, None]]
    layers = [
        ("input x", np.asarray(INPUT), np.asarray(relevance)),
        ("hidden, behind its ReLU", value, hidden),
        ("output", output, output),
    ]
    place = lambda column, row, count: (2.4 * column, -1.0 * (row - (count - 1) / 2))
    for column, part in enumerate(parts):
        for j, k in np.ndindex(part.shape):
            start, end = place(column, j, part.shape[0]), place(column + 1, k, part.shape[1])
            drawn = part[j, k]
            color = RED if drawn > 0 else BLUE if drawn < 0 else "#e0e0e0"
            axes.plot(*zip(start, end, strict=True), color=color, lw=0.8 + abs(drawn), zorder=1)
            if drawn:
                along = 0.18 + 0.08 * k
                x, y = ((1 - along) * np.array(start) + along * np.array(end)).tolist()
                axes.text(x, y, f"{drawn:+g}", color=color, ha="center", va="center", size=8,
                          bbox={"fc": "white", "ec": "none", "pad": 0.6}, zorder=2)  # fmt: skip
    for column, (name, values, share) in enumerate(layers):
        for row, (v, r) in enumerate(zip(values, share, strict=True)):
            x, y = place(column, row, len(values))
            color = RED if r > 0 else BLUE if r < 0 else GRAY
            axes.scatter(x, y, s=1500, color="white", edgecolor=color, lw=2, zorder=3)
            axes.text(x, y + 0.08, f"{v:g}", ha="center", va="center", size=10, zorder=4)
            axes.text(x, y - 0.13, f"R = {r + 0.0:+g}", ha="center", va="center", size=7.5,
                      color=color, zorder=4)  # fmt: skip
        axes.text(2.4 * column, 1.65, name, ha="center", size=9, color="#444444")
        total = f"sum of R: {share.sum():+g}"
        axes.text(2.4 * column, -1.7, total, ha="center", size=9, color="#444444")
    axes.set_xlim(-0.7, 5.5)
    axes.set_ylim(-1.9, 1.9)
    axes.axis("off")


def currency(axes, plan) -> None:
    """The layers of a plan from left to right, their rules, and what each hands back."""
    colors = {"relevance": RED, "coefficient": "#2e7d32"}
    for column, row in enumerate(plan):
        left, width = 1.5 * column, 1.05
        box = {"boxstyle": "round,pad=0.02,rounding_size=0.08", "fc": "#f4f4f4", "ec": GRAY}
        axes.add_patch(FancyBboxPatch((left, -0.42), width, 0.84, **box))
        middle = left + width / 2
        axes.text(middle, 0.2, row.weight_path.split("/")[0] or row.name, ha="center", size=9)
        axes.text(middle, -0.02, row.kind, ha="center", size=7, color="#666666")
        rule = str(type(row.rule).__name__)
        axes.text(middle, -0.28, rule, ha="center", size=8, weight="bold")
        axes.annotate("", (left - 0.03, 0.2), (left - 0.42, 0.2), arrowprops=arrow(GRAY))
        color = colors[row.currency]
        axes.annotate("", (left - 0.42, -0.2), (left - 0.03, -0.2), arrowprops=arrow(color, 2))
        axes.text(left - 0.22, -0.52, row.currency[0].replace("r", "R"), ha="center", size=10,
                  color=color, style="italic")  # fmt: skip
    end = 1.5 * len(plan)
    axes.annotate("", (end - 0.03, 0.2), (end - 0.42, 0.2), arrowprops=arrow(GRAY))
    axes.annotate(
        "", (end - 0.42, -0.2), (end - 0.03, -0.2), arrowprops=arrow(colors["relevance"], 2)
    )
    axes.text(-0.85, 0.13, "forward", size=8, color=GRAY, ha="center")
    axes.text(-0.85, -0.27, "backward", size=8, color="#444444", ha="center")
    axes.text(end - 0.22, -0.52, "R", ha="center", size=10, color=RED, style="italic")
    axes.set_xlim(-1.3, end + 0.1)
    axes.set_ylim(-0.7, 0.55)
    axes.axis("off")


def arrow(color: str, width: float = 1.2) -> dict:
    """How an arrow is drawn."""
    return {"arrowstyle": "->", "color": color, "lw": width, "shrinkA": 0, "shrinkB": 0}


def digits_network():
    """A small convolutional network that knows digits, and digits it has not learned from."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = jnp.asarray(data.images[..., None] / 16, jnp.float32)
    labels = jnp.asarray(data.target)
    keys = jax.random.split(jax.random.key(0), 3)
    p = {
        "edges": {"w": jax.random.normal(keys[0], (3, 3, 1, 8)) / 3, "b": jnp.zeros(8)},
        "parts": {"w": jax.random.normal(keys[1], (3, 3, 8, 16)) / 8, "b": jnp.zeros(16)},
        "head": {"w": jax.random.normal(keys[2], (256, 10)) / 16, "b": jnp.zeros(10)},
    }

    def conv(layer, x, stride):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, layer["w"], (stride, stride), "SAME", dimension_numbers=numbers
        )
        return jax.nn.relu(y + layer["b"])

    def network(p, x):
        h = conv(p["parts"], conv(p["edges"], x, 1), 2)
        return h.reshape(x.shape[0], -1) @ p["head"]["w"] + p["head"]["b"]

    def loss(p, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(network(p, x)), y[:, None], 1).mean()

    @jax.jit
    def train(p, batches):
        def step(carry, rows):
            p, speed = carry
            slope = jax.grad(loss)(p, pictures[rows], labels[rows])
            speed = jax.tree.map(lambda v, g: 0.9 * v - 0.02 * g, speed, slope)
            return (jax.tree.map(jnp.add, p, speed), speed), None

        return jax.lax.scan(step, (p, jax.tree.map(jnp.zeros_like, p)), batches)[0][0]

    order = np.random.default_rng(0).integers(0, 1500, (1500, 64))
    p = train(p, jnp.asarray(order))
    right = (network(p, pictures[1500:]).argmax(1) == labels[1500:]).mean()
    return network, p, pictures[1500:], labels[1500:], float(right)


RULES = {
    "LRP-0": rules.Epsilon(0.0),
    "Epsilon(0.5)": rules.Epsilon(0.5),
    "Gamma(0.25)": rules.Gamma(0.25),
    "ZPlus": rules.ZPlus(),
    "AlphaBeta(2, 1)": rules.AlphaBeta(2.0, 1.0),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
}


def main(arguments: list[str] | None = None) -> int:
    """Writes the pictures; returns 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "idea")
    folder = parser.parse_args(arguments).output
    folder.mkdir(parents=True, exist_ok=True)

    figure = Figure(figsize=(7, 3.6), dpi=110)
    flow(figure.add_axes((0, 0, 1, 1)))
    figure.savefig(folder / "flow.png")

    network, p, pictures, labels, right = digits_network()
    print(f"{right:.1%} of digits that were not learned are recognized")
    chosen = int(np.flatnonzero(np.asarray(labels) == 3)[4])
    x = pictures[chosen : chosen + 1]
    found = {name: relax.lrp(network, rule, target="max")(p, x)[0] for name, rule in RULES.items()}
    heatmaps = {name: np.kron(np.asarray(r[..., 0]), np.ones((8, 8))) for name, r in found.items()}
    shown = np.kron(1 - np.asarray(x[0, ..., 0]), np.ones((8, 8)))
    number = int(labels[chosen])
    viz.figure(shown, heatmaps, title=f"a {number}").savefig(folder / "rules.png", dpi=80)

    plan = relax.layers(network, composites.epsilon_plus_flat())(p, x)
    figure = Figure(figsize=(8.5, 1.15), dpi=110)
    currency(figure.add_axes((0, 0, 1, 1)), plan)
    figure.savefig(folder / "currency.png")

    _, account = relax.ledger(network, rules.Epsilon(0.5), target="max")(p, x)
    figure = account.plot().figure
    figure.savefig(folder / "account.png", dpi=80, bbox_inches="tight")
    return 0


if __name__ == "__main__":
    sys.exit(main())
