"""What relax makes of one model: six checks, each with a number and, where it fails, a reason."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import relax
from benchmarks.zoos import Model
from relax._paths import path_name

# The value beside that of f, by the largest entry of it: two programs, each rounded its own way,
# in float32. What is kept beside what was given, by the largest sum in the account.
FORWARD = 1e-5
ACCOUNT = 1e-4
HALF = 1e-2  # the same where f computes in half precision, whose numbers have eight bits
# XLA's expensive passes change neither FLOPs nor, beyond rounding, values; they take minutes.
OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


@dataclasses.dataclass
class Examined:
    """What was found.

    Attributes:
      inputs: shapes of the explained input; ``layers``: of the plan.
      forward: the largest difference of the value from that of f, by its largest entry.
      double: the same in float64, of a model that has a ``double``; only where ``forward`` is more
        than rounding usually makes. Deep networks of random parameters may magnify it at will.
      default, composite: entries of the relevance that are not zero, as a share of all: under the
        default rules, and, where there are dense layers or convolutions, under
        ``epsilon_plus_flat``.
      account: what the account does not explain, of the whole or of one layer, whichever is more,
        by the largest sum in it.
      flops, compile: those of the relevance program by those of gradient times input.
      faults: in words; empty if all is well.
    """

    inputs: str = ""
    layers: int | None = None
    forward: float | None = None
    double: float | None = None
    default: float | None = None
    composite: float | None = None
    account: float | None = None
    flops: float | None = None
    compile: float | None = None
    faults: list[str] = dataclasses.field(default_factory=list)

    def check(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """An error inside is a fault; the checks after it are made all the same."""
        try:
            yield
        except Exception as error:
            self.faults.append(f"{name}: {type(error).__name__}: {_first_line(error)}")


def examine(model: Model) -> Examined:
    """Checks one model; nothing is raised."""
    found = Examined(inputs=", ".join(_shape(leaf) for leaf in jax.tree.leaves(model.x)))
    f, params, x = model[:3]
    expected, target, plan, program = None, None, None, None
    with found.step("f"):
        expected = _run(f, params, x)
        target = _target(expected)
    if found.faults:
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # f is what the framework made of it, a softmax or a cast
        with found.step("plan"):
            plan = relax.layers(f)(params, x)
            found.layers = len(plan)
        with found.step("default"):
            program = _default(found, model, target, expected)
        if plan is not None and any(row.kind in ("dense", "conv") for row in plan):
            with found.step("composite"):
                rules = relax.composites.epsilon_plus_flat()
                relevance = _run(relax.lrp(f, rules, target=target), params, x)
                found.composite = _nonzero(found, relevance, "relevance under epsilon_plus_flat")
        with found.step("account"):
            _, account = _run(relax.ledger(f, target=target), params, x)
            _close(found, account, model)
        if program is not None:
            with found.step("cost"):
                _compare(found, model, target, plan, program)
    return found


def _target(value: Any) -> int | None:
    """That entry of the last axis which is the largest anywhere; of several outputs, all.

    A fixed entry might be one that a rectifier has set to zero everywhere.
    """
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or not leaves[0].ndim or not leaves[0].size:
        return None
    sizes = np.abs(np.nan_to_num(np.asarray(leaves[0], np.float64)))
    return int(sizes.argmax()) % sizes.shape[-1]


class _Program(NamedTuple):
    """A compiled function, its FLOPs, and the seconds of CPU time from the function to it."""

    call: Callable[..., Any]
    flops: float
    seconds: float


def _compiled(function: Callable[..., Any], *args: Any) -> _Program:
    start = time.process_time()
    program: Any = jax.jit(function).trace(*args).lower().compile(compiler_options=OPTIONS)
    seconds = time.process_time() - start
    flops = program.cost_analysis().get("flops", 0.0)  # of a program that computes nothing
    return _Program(program, flops, seconds)


def _run(function: Callable[..., Any], *args: Any) -> Any:
    return _compiled(function, *args).call(*args)


def _default(found: Examined, model: Model, target: Any, expected: Any) -> _Program:
    """Value and relevance under the default rules."""
    f, params, x = model[:3]
    program = _compiled(relax.value_and_lrp(f, target=target), params, x)
    value, relevance = program.call(params, x)
    found.forward = _apart(value, expected)
    apart = f"the value differs from that of f by {found.forward:.1e}"
    if found.forward > FORWARD and np.isfinite(found.forward) and model.double is not None:
        with jax.enable_x64(True):
            found.double = _in_double(model.double(), target)
        found.check(found.double <= FORWARD, f"{apart}, in float64 by {found.double:.1e}")
    else:
        found.check(found.forward <= FORWARD, apart)
    found.default = _nonzero(found, relevance, "relevance")
    return program


def _in_double(model: Model, target: Any) -> float:
    f, params, x = model[:3]
    value, _ = _run(relax.value_and_lrp(f, target=target), params, x)
    return _apart(value, _run(f, params, x))


def _apart(value: Any, expected: Any) -> float:
    """The largest difference of any output; infinite where the structures are others."""
    if jax.tree.structure(value) != jax.tree.structure(expected):
        return np.inf
    pairs = zip(jax.tree.leaves(value), jax.tree.leaves(expected), strict=True)
    return max((_difference(a, b) for a, b in pairs), default=0.0)


def _difference(a: Any, b: Any) -> float:
    """By the largest entry; infinite where only one of them is finite, or both are not alike."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return np.inf
    kept = a.dtype if a.dtype.kind in "fc" and a.dtype.itemsize > 4 else np.float64
    kept = np.complex128 if a.dtype.kind == "c" else kept
    a, b = a.astype(kept), b.astype(kept)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return np.inf
    if not np.all(np.isfinite(a[finite])):
        return np.inf
    scale = np.abs(b[finite]).max(initial=0.0)
    difference = np.abs(a[finite] - b[finite]).max(initial=0.0)
    return float(difference / scale) if scale else float(np.inf if difference else 0.0)


def _nonzero(found: Examined, relevance: Any, what: str) -> float:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(relevance)]
    found.check(all(np.isfinite(leaf).all() for leaf in leaves), f"{what} is not finite")
    share = sum(np.count_nonzero(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    found.check(share > 0, f"{what} is zero everywhere")
    return float(share)


def _close(found: Examined, account: relax.Ledger, model: Model) -> None:
    """Each entry, and the whole, to rounding."""
    scale = max(abs(float(account.explained)), abs(float(account.received)))
    rounding = {"the whole": abs(float(account.rounding))}
    for entry in account:
        sums = (entry.out, entry.into, *entry.absorbed.values())
        scale = max([scale, *(np.abs(np.asarray(s)).max(initial=0.0) for s in sums)])
        rounding[entry.path] = float(np.abs(np.asarray(entry.rounding)).max(initial=0.0))
    most = max(rounding, key=lambda name: rounding[name])
    found.account = float(rounding[most] / scale if scale else rounding[most])
    closed = found.account <= ACCOUNT or (found.account <= HALF and _is_half(model))
    found.check(closed, f"the account is open by {found.account:.1e} at {most}")


def _is_half(model: Model) -> bool:
    """Whether anything in f has a type of sixteen bits."""
    text = str(jax.make_jaxpr(model.f)(model.params, model.x))
    return "bf16[" in text or ":f16[" in text


def _compare(found: Examined, model: Model, target: Any, plan: Any, program: _Program) -> None:
    gradient = _gradient(model, target, plan)
    if gradient is None:
        return
    base = _compiled(gradient, model.params, model.x)
    found.flops = program.flops / base.flops if base.flops > 0 else None
    found.compile = program.seconds / base.seconds


def _gradient(model: Model, target: Any, plan: Any) -> Callable[..., Any] | None:
    """Value and gradient times input.

    Tokens have no gradient: that of the table they are looked up in takes the same passes. None if
    there are tokens and no such table among the parameters.
    """
    f, params, x = model[:3]
    flat, tree = jax.tree_util.tree_flatten_with_path((params, x))
    tables = {row.weight_path for row in plan or () if row.kind == "embedding"}
    count = len(jax.tree.leaves(params))
    floats = [i for i in range(count, len(flat)) if jnp.issubdtype(flat[i][1].dtype, jnp.inexact)]
    looked_up = [i for i in range(count) if path_name(flat[i][0][1:]) in tables]
    if len(floats) < len(flat) - count and not looked_up:
        return None
    places = [*floats, *looked_up]

    def explain(params: Any, x: Any) -> Any:
        leaves = jax.tree.leaves((params, x))

        def value_of(chosen: Sequence[Any]) -> Any:
            put = dict(zip(places, chosen, strict=True))
            whole = [put.get(i, leaf) for i, leaf in enumerate(leaves)]
            return _floats(f(*jax.tree.unflatten(tree, whole)))

        value, pull = jax.vjp(value_of, [leaves[i] for i in places])
        (gradients,) = pull(_mask(value, target))
        of_x = zip(floats, gradients, strict=False)
        return value, [leaves[i] * g for i, g in of_x], gradients[len(floats) :]

    return explain


def _floats(value: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(value) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _mask(value: Sequence[Any], target: int | None) -> list[Any]:
    if target is None:
        return [jnp.ones_like(leaf) for leaf in value]
    return [jnp.zeros_like(leaf).at[..., target].set(1) for leaf in value]


def _shape(leaf: Any) -> str:
    kind = "" if jnp.issubdtype(leaf.dtype, jnp.inexact) else " tokens"
    return ("x".join(map(str, leaf.shape)) or "()") + kind


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else ""
