"""Records Zennit's relevances of single layers in ``tests/data/zennit_layers.npz``.

Not a test and not needed to run the tests: it wants ``torch==2.13.0`` and ``zennit==1.0.0`` (Python
3.11.11 or later) in an environment of their own, and is run from anywhere as

    python tests/record/zennit_layers.py

All numbers are float64, all layouts PyTorch's: inputs N C spatial (linear: ... C), weights O I/g
spatial, transposed I O/g spatial. For each layer ``<name>`` of ``meta["layers"]`` the file holds

    <name>/x, <name>/weight, <name>/bias (absent: none), <name>/R_out   the layer and what arrives
    <name>/R   relevance of the input, one per entry of meta["cases"], stacked

``meta["cases"]`` is a list of ``[rule, zero_bias]``; a layer without bias has those with
``zero_bias`` false only. ``nonnegative`` layers have inputs >= 0, a third of them exactly zero.
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch
from zennit import rules

TARGET = Path(__file__).parents[1] / "data" / "zennit_layers.npz"

RULES = {
    "epsilon": lambda zero: rules.Epsilon(1e-6, zero_params=zero),
    "epsilon1": lambda zero: rules.Epsilon(1.0, zero_params=zero),
    "norm": lambda zero: rules.Norm(1e-6),  # has no zero_params
    "zplus": lambda zero: rules.ZPlus(zero_params=zero),
    "gamma.25": lambda zero: rules.Gamma(0.25, zero_params=zero),
    "gamma.5": lambda zero: rules.Gamma(0.5, zero_params=zero),
    "ab21": lambda zero: rules.AlphaBeta(2.0, 1.0, zero_params=zero),
    "ab10": lambda zero: rules.AlphaBeta(1.0, 0.0, zero_params=zero),
    "zbox": lambda zero: rules.ZBox(-3.0, 3.0, zero_params=zero),
    "wsquare": lambda zero: rules.WSquare(zero_params=zero),
    "flat": lambda zero: rules.Flat(zero_params=zero),
}
CASES = [(rule, False) for rule in RULES] + [(rule, True) for rule in RULES if rule != "norm"]

MODULES = {
    "conv1d": torch.nn.Conv1d,
    "conv2d": torch.nn.Conv2d,
    "conv3d": torch.nn.Conv3d,
    "convT1d": torch.nn.ConvTranspose1d,
    "convT2d": torch.nn.ConvTranspose2d,
    "convT3d": torch.nn.ConvTranspose3d,
}
SHAPES = {1: (2, 4, 7), 2: (2, 4, 5, 4), 3: (1, 4, 3, 4, 3)}
PLAIN = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def layers():
    """Name, kind, geometry, whether it has a bias, and whether its input is non-negative."""
    yield "linear", "linear", {}, True, False
    yield "linear_tokens", "linear", {}, True, True
    yield "linear_plain", "linear", {}, False, False
    for kind in MODULES:
        dims = int(kind[-2])
        deep = dims == 3
        uneven = [2, 1, 1][:dims]
        yield f"{kind}_padded", kind, {"padding": [1, 0, 1][:dims]}, True, True
        yield f"{kind}_strided", kind, {"stride": 2, "padding": uneven, "groups": 2}, True, False
        yield f"{kind}_dilated", kind, {"dilation": 1 if deep else 2, "padding": 1}, True, False
        yield f"{kind}_depthwise", kind, {"padding": 1, "groups": 4}, False, True
        yield f"{kind}_plain", kind, {"stride": [1, 2, 2][-dims:]}, False, False


def build(kind, geometry, bias):
    """The layer with random parameters, its geometry in full, and an input."""
    if kind == "linear":
        return torch.nn.Linear(5, 4, bias=bias), {}, torch.randn(2, 3, 5)
    dims = int(kind[-2])
    spread = lambda value: value if isinstance(value, list) else [value] * dims
    full = {key: spread(geometry.get(key, default)) for key, default in PLAIN.items()}
    full["groups"] = full["groups"][0]
    kernel = [3, 2, 2][:dims]
    outputs = 4 if full["groups"] == 4 else 6
    transposed = kind.startswith("convT")
    if transposed:
        full["output_padding"] = [s - 1 for s in full["stride"]]
    layer = MODULES[kind](4, outputs, kernel, bias=bias, **full)
    return layer, full, torch.randn(*SHAPES[dims])


def relevance(layer, rule, x, relevance_out):
    x = x.clone().requires_grad_()
    handles = rule.register(layer)
    (result,) = torch.autograd.grad(layer(x), x, relevance_out)
    handles.remove()
    return result.detach().numpy()


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    arrays, described = {}, []
    for name, kind, geometry, bias, nonnegative in layers():
        layer, full, x = build(kind, geometry, bias)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
        if nonnegative:
            x = torch.where(torch.rand_like(x) < 1 / 3, torch.zeros_like(x), x.abs())
        relevance_out = torch.randn_like(layer(x))
        cases = [case for case in CASES if bias or not case[1]]
        results = [
            relevance(layer, RULES[rule]("bias" if zero else None), x, relevance_out)
            for rule, zero in cases
        ]
        arrays |= {f"{name}/x": x, f"{name}/R_out": relevance_out, f"{name}/R": np.stack(results)}
        arrays |= {f"{name}/{key}": value.detach() for key, value in layer.named_parameters()}
        described.append(
            {"name": name, "kind": kind, "nonnegative": nonnegative, "cases": len(cases), **full}
        )
    versions = {package: importlib.metadata.version(package) for package in ("torch", "zennit")}
    meta = {"layers": described, "cases": CASES, "versions": versions}
    stored = {key: np.asarray(value) for key, value in arrays.items()}
    np.savez_compressed(TARGET, meta=json.dumps(meta), **stored)
    count = sum(layer["cases"] for layer in described)
    print(f"{count} cases of {len(described)} layers in {TARGET.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
