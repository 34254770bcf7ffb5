"""Records what Zennit says is the gradient of relevance in ``tests/data/zennit_gradient.json``.

Not a test and not needed to run the tests: it wants ``torch==2.13.0`` and ``zennit==1.0.0`` in an
environment of their own, and is run from anywhere as

    python tests/record/zennit_gradient.py

A perceptron with two hidden layers of rectifiers, in float64. For every rule, and for relevance
that starts with the logit or with 1, the relevance R of x, and the derivative of
``loss = sum(direction R)`` along a step of x and along a step of the parameters: by
``torch.autograd`` through `zennit.attribution.Gradient` with ``create_graph=True`` (None where it
knows no path, "error" where it raises one), and by central differences of Zennit's own relevances.
"""

import importlib.metadata
import itertools
import json
from pathlib import Path

import torch
from zennit import rules
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.types import Linear

TARGET = Path(__file__).parents[1] / "data" / "zennit_gradient.json"

RULES = {
    "epsilon": lambda: rules.Epsilon(0.1),
    "zplus": lambda: rules.ZPlus(),
    "gamma": lambda: rules.Gamma(0.25),
    "alphabeta": lambda: rules.AlphaBeta(2.0, 1.0),
}


CHOSEN = [[0.0, 1.0, 0.0]] * 2
STARTS = {
    "logit": lambda z: z * torch.tensor(CHOSEN),
    "one": lambda z: torch.tensor(CHOSEN),
}


def relevance(model, rule, start, x, create_graph):
    composite = LayerMapComposite([(Linear, rule())])
    with Gradient(model, composite, create_graph=create_graph) as attributor:
        _, result = attributor(x, start)
    return result


def along(total, variables, steps):
    """The directional derivative that autograd gives."""
    if not total.requires_grad:
        return None
    try:
        slopes = torch.autograd.grad(total, variables, retain_graph=True, allow_unused=True)
    except RuntimeError:
        return "error"
    pairs = zip(slopes, steps, strict=True)
    known = [(slope * step).sum() for slope, step in pairs if slope is not None]
    return float(sum(known)) if known else None


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(a, b) for a, b in ((5, 7), (7, 6), (6, 3))]
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    x, direction, step = torch.randn(3, 2, 5)
    parameters = list(model.parameters())
    steps = [torch.randn_like(parameter) for parameter in parameters]
    found = {}
    for (name, rule), (begin, start) in itertools.product(RULES.items(), STARTS.items()):

        def loss(moved_x, moved_parameters, rule=rule, start=start):
            with torch.no_grad():
                for parameter, s in zip(parameters, steps, strict=True):
                    parameter += moved_parameters * s
            x_now = (x + moved_x * step).requires_grad_()
            result = (direction * relevance(model, rule, start, x_now, False)).sum()
            with torch.no_grad():
                for parameter, s in zip(parameters, steps, strict=True):
                    parameter -= moved_parameters * s
            return float(result)

        variable = x.clone().requires_grad_()
        result = relevance(model, rule, start, variable, True)
        total = (direction * result).sum()
        h = 1e-6
        found[f"{name}, {begin}"] = {
            "relevance": result.tolist(),
            "x": {
                "autograd": along(total, [variable], [step]),
                "difference": (loss(h, 0) - loss(-h, 0)) / (2 * h),
            },
            "parameters": {
                "autograd": along(total, parameters, steps),
                "difference": (loss(0, h) - loss(0, -h)) / (2 * h),
            },
        }
        print(name, begin, {key: found[f"{name}, {begin}"][key] for key in ("x", "parameters")})
    plain = lambda modules: [{"w": m[0].tolist(), "b": m[1].tolist()} for m in modules]
    record = {
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "zennit")},
        "layers": plain([(m.weight, m.bias) for m in layers]),
        "steps": plain(zip(steps[::2], steps[1::2], strict=True)),
        "x": x.tolist(),
        "direction": direction.tolist(),
        "step": step.tolist(),
        "cases": found,
    }
    TARGET.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
