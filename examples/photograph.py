"""Explains what an ImageNet classifier sees in a photograph, under several rules, as one picture.

    python examples/photograph.py
    python examples/photograph.py --image chelsea --target "tiger cat"
    python examples/photograph.py --image my.jpg --rules epsilon,epsilon_plus_flat --output my.png
    python examples/photograph.py --rules epsilon_plus_flat --ledger ledger.png

The network is EfficientNet-Lite0, unmodified Flax (see efficientnet_lite.py); all that relax needs
is one line, in ``explain``. The heatmaps show relevance summed over the color channels; red speaks
for the class, blue against it, and the full color is reached at the 99.5th percentile of each
heatmap's magnitude. A sum of relevance below the logit is no error: the biases, which hold what
batch normalization has learned, absorb the rest. It takes less than a minute on two cores; the
packages that it needs beside relax come with

    pip install "relax-lrp[examples]"
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import jax
    import numpy as np
    from matplotlib.figure import Figure

    import command_line
    import relax
    from command_line import add_output, add_rules, run_command
    from efficientnet_lite import IMAGE_SIZE, EfficientNetLite0, load_variables, preprocess
    from imagenet import (
        add_image,
        find_class_index,
        load_image,
        load_labels,
        short_name,
    )
    from relax import viz
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(
        f"photograph.py: error: the package {missing.name!r} is missing: "
        'pip install "relax-lrp[examples]"',
        file=sys.stderr,
    )
    sys.exit(2)

RULES = ("epsilon", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat")
SMALL = ("epsilon_plus_flat",)


def explain(rules: Any, variables: Any, image: jax.Array, target: int) -> np.ndarray:
    """Relevance of each pixel for a class, summed over the color channels.

    Args:
        rules: any rule or composite of relax.
        variables: the network's variables.
        image: one preprocessed photograph, ``(1, 224, 224, 3)``.
        target: the index of the class.

    Returns:
        An array ``(224, 224)``.
    """
    model = EfficientNetLite0()
    relevance = jax.jit(relax.lrp(model.apply, rules, target=target))(variables, image)
    return np.asarray(relevance[0].sum(axis=-1))


def plan(rules: Any) -> relax.Plan:
    """Every layer of the network and its rule; shapes suffice, nothing is computed."""
    model = EfficientNetLite0()
    image = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return relax.layers(model.apply, rules)(variables, image)


def account(rules: Any, variables: Any, image: jax.Array, target: int) -> relax.Ledger:
    """What every layer is given, hands on and keeps of the relevance of a class."""
    model = EfficientNetLite0()
    return jax.jit(relax.ledger(model.apply, rules, target=target))(variables, image)[1]


def save_account(path: Path, found: relax.Ledger, title: str) -> None:
    """Draws the layers that keep the most relevance, the output at the top.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(8, 6.5), dpi=120, layout="constrained")
    axes = found.plot(figure.subplots(), largest=24)
    axes.set_title(title, fontsize=10)
    figure.savefig(path)


def make_rules(name: str) -> Any:
    """The composite of that name; one that is bounded gets the bounds of a pixel."""
    low, high = (float(bound) for bound in preprocess(np.array([0, 255])))
    return command_line.make_rules(name, low=low, high=high)


def run(arguments: argparse.Namespace) -> None:
    """Classifies, explains, draws.

    Raises:
        InputError: an argument names something that does not exist or cannot be used.
    """
    if arguments.plan is not None:
        print(plan(make_rules(arguments.plan)))
        return
    start = time.perf_counter()
    labels = load_labels()
    photograph = load_image(arguments.image)
    named = None if arguments.target is None else find_class_index(arguments.target, labels)
    rules = {name: make_rules(name) for name in arguments.rules}
    for picture in filter(None, (arguments.output, arguments.ledger)):
        command_line.check_output(picture, ".png")

    variables = load_variables()
    image = preprocess(photograph)[None]
    logits = np.asarray(jax.jit(EfficientNetLite0().apply)(variables, image))[0]
    probabilities = np.asarray(jax.nn.softmax(logits))
    order = np.argsort(-probabilities)
    for index in order[:5]:
        print(f"{probabilities[index]:7.1%}  {short_name(labels[index])}")
    target = int(order[0]) if named is None else named
    name = short_name(labels[target])

    print(f"\nrelevance for {name!r}, whose logit is {logits[target]:.3f}")
    heatmaps = {}
    for rule_name, rule in rules.items():
        lap = time.perf_counter()
        heatmaps[rule_name] = explain(rule, variables, image, target)
        seconds = time.perf_counter() - lap
        print(f"  {rule_name:<26} sums to {heatmaps[rule_name].sum():9.3g}  ({seconds:.1f} s)")
    title = f"{name}, {probabilities[target]:.1%}"
    caption = f"EfficientNet-Lite0, trained on ImageNet. Photograph: {Path(arguments.image).name}"
    shown = viz.figure(photograph, heatmaps, title=title, caption=caption, smooth=True)
    shown.savefig(arguments.output, pil_kwargs={"optimize": True})
    if arguments.ledger is not None:
        first = next(iter(rules))
        found = account(rules[first], variables, image, target)
        save_account(arguments.ledger, found, f"{name} under {first}: where the relevance goes")
        print(f"\n{str(found).splitlines()[-2]}\n{arguments.ledger} written")
    print(f"\n{arguments.output} written after {time.perf_counter() - start:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="photograph.py", description="Explain an ImageNet classifier's view of a photograph."
    )
    add_image(parser, "coffee")
    choice = parser.add_mutually_exclusive_group()
    add_rules(choice, RULES)
    choice.add_argument(
        "--plan",
        metavar="NAME",
        help="print what relax would do under one function of relax.composites, and stop",
    )
    choice.add_argument(
        "--small",
        dest="rules",
        action="store_const",
        const=SMALL,
        help=f"the same as --rules {','.join(SMALL)}: the least work that shows everything works",
    )
    add_output(parser, "photograph.png", "PNG", "picture")
    parser.add_argument(
        "--ledger",
        type=Path,
        metavar="PNG",
        help="draw the account of the first rule too: what each layer keeps, and by what",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when the picture was written, 2 and a line on stderr when not."""
    return run_command(_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
