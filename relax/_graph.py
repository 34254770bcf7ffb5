"""A traced function as plain data: numbered values, equations without calls, and layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from relax import _formulations, _jaxpr
from relax._order import OWN
from relax._primitives import ELEMENTWISE, RESHAPING, SHIFT, is_one_to_one


@dataclasses.dataclass(eq=False, repr=False)
class Equation:
    """One primitive applied to numbered values.

    Attributes:
      source: the jaxpr equation; ``sources`` adds the calls around it, innermost first.
      scope: names of the scopes around it, joined by ``/``.
      calls: names of the functions that were opened around it, outermost first.
      control, bodies: of a scan, cond or checkpoint: how it runs, and the programs it runs.
    """

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    sources: tuple[Any, ...]
    scope: str
    calls: tuple[str, ...]
    control: _jaxpr.Control | None = None
    bodies: tuple[Graph, ...] = ()

    @property
    def where(self) -> str:
        return _jaxpr.user_line(self.sources)

    def evaluate(self, operands: Sequence[Any]) -> list[Any]:
        source = self.sources[0]
        if source.primitive is self.primitive:
            return _jaxpr.bind(self.sources, operands, _formulations.evaluate)
        return [self.primitive.bind(*operands, **self.params)]  # a broadcast made explicit

    def compute(self, operands: Sequence[Any]) -> list[Any]:
        """As `evaluate`, outside of the names, mesh and context the equation was traced in."""
        return _jaxpr.bind_bare(self.primitive, self.params, operands)


@dataclasses.dataclass(eq=False, repr=False)
class Graph:
    """A function as a list of equations in evaluation order.

    Values are numbers: ``avals[v]`` is the shape and dtype, ``literals`` holds the known ones.
    ``depends[v]``: computed, in whatever way, from an explained input.
    """

    avals: list[Any] = dataclasses.field(default_factory=list)
    depends: list[bool] = dataclasses.field(default_factory=list)
    equations: list[Equation] = dataclasses.field(default_factory=list)
    literals: dict[int, Any] = dataclasses.field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    consts: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def new_value(self, aval: Any, depends: bool) -> int:
        self.avals.append(aval)
        self.depends.append(depends)
        return len(self.avals) - 1

    def is_float(self, value: int) -> bool:
        return jnp.issubdtype(self.avals[value].dtype, jnp.inexact)

    def shape(self, value: int) -> tuple[int, ...]:
        return tuple(self.avals[value].shape)

    def producers(self) -> dict[int, int]:
        """For each value the index of the equation that makes it."""
        return {v: i for i, eqn in enumerate(self.equations) for v in eqn.outputs}

    def consumers(self) -> list[list[int]]:
        """For each value the indices of the equations that read it; -1 for the outputs."""
        users: list[list[int]] = [[] for _ in self.avals]
        for index, equation in enumerate(self.equations):
            for value in equation.inputs:
                users[value].append(index)
        for value in self.outputs:
            users[value].append(-1)
        return users


_LIGHT = SHIFT | RESHAPING | {lax.slice_p, lax.split_p, primitives.add_jaxvals_p}
_SMALL = 8  # equations of a call that is opened for what can be known of its result


def flatten(
    closed: Any,
    explained: Sequence[bool],
    scope: tuple[str, ...] = (),
    calls: tuple[str, ...] = (),
    around: tuple[Any, ...] = (),
) -> Graph:
    """Opens every call that depends on the explained inputs, or is small; numbers all values.

    Args:
      closed: the traced function.
      explained: for each of its inputs, whether it is explained.
      scope, calls, around: for the body of an equation, what is around it; see `Equation`.
    """
    graph = Graph()
    jaxpr = closed.jaxpr
    graph.inputs = tuple(
        graph.new_value(var.aval, flag) for var, flag in zip(jaxpr.invars, explained, strict=True)
    )
    graph.consts = tuple(graph.new_value(var.aval, False) for var in jaxpr.constvars)
    if around:  # a body: what it closes over is known
        graph.literals.update(zip(graph.consts, closed.consts, strict=True))
    outputs = _open(graph, jaxpr, graph.consts + graph.inputs, scope, calls, around)
    prune(graph, outputs)
    _settle(graph)
    return graph


def _settle(graph: Graph) -> None:
    """Sums and moves right behind what they read, so that parts of one layer stand together."""
    place: dict[int, int] = {}  # of the equation that a value waits for
    order = []
    for index, equation in enumerate(graph.equations):
        waits = max((place.get(v, -1) for v in equation.inputs), default=-1)
        at = waits if equation.primitive in _LIGHT else index
        place.update((v, at) for v in equation.outputs)
        order.append((at, index))
    graph.equations = [graph.equations[index] for _, index in sorted(order)]


def prune(graph: Graph, outputs: Sequence[int]) -> None:
    """Keeps what the outputs are computed from, and equations that only have an effect.

    What nobody needs would otherwise count as a reader of what it reads.
    """
    needed = set(outputs)
    kept = []
    for equation in reversed(graph.equations):
        if not equation.outputs or not needed.isdisjoint(equation.outputs):
            kept.append(equation)
            needed.update(equation.inputs)
    graph.equations = kept[::-1]
    graph.outputs = tuple(outputs)


def _open(
    graph: Graph,
    jaxpr: Any,
    arguments: Sequence[int],
    scope: tuple[str, ...],
    calls: tuple[str, ...],
    around: tuple[Any, ...],
) -> list[int]:
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), arguments, strict=True))

    def read(atom: Any) -> int:
        if not isinstance(atom, _jaxpr.Literal):
            return env[atom]
        value = graph.new_value(atom.aval, False)
        graph.literals[value] = atom.val
        return value

    for equation in jaxpr.eqns:
        inputs = tuple(read(atom) for atom in equation.invars)
        if equation.primitive in OWN:  # relevance of relevance: the first operand as it is
            env[equation.outvars[0]] = inputs[0]
            continue
        depends = any(graph.depends[value] for value in inputs)
        inner = scope + _jaxpr.scopes(equation)
        sources = (equation, *around)
        body = _jaxpr.call_body(equation)
        if body is not None and (depends or len(body[0].jaxpr.eqns) <= _SMALL):
            closed, name = body
            consts = []
            for var, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
                value = graph.new_value(var.aval, False)
                graph.literals[value] = const
                consts.append(value)
            results = _open(graph, closed.jaxpr, (*consts, *inputs), inner, (*calls, name), sources)
            env.update(zip(equation.outvars, results, strict=True))
            continue
        if depends and equation.primitive in ELEMENTWISE:
            inputs = _explicit_broadcasts(graph, equation, inputs, inner, calls, sources)
        flags = [depends] * len(equation.outvars)
        control = _jaxpr.control(equation) if depends else None
        bodies: tuple[Graph, ...] = ()
        if control is not None:
            given = [graph.depends[value] for value in inputs]
            bodies, flags = _bodies(control, given, inner, calls, sources)
        if is_one_to_one(equation.primitive):
            flags = [graph.depends[value] for value in inputs]
        outputs = tuple(
            graph.new_value(var.aval, flag)
            for var, flag in zip(equation.outvars, flags, strict=True)
        )
        graph.equations.append(
            Equation(
                equation.primitive,
                equation.params,
                inputs,
                outputs,
                sources,
                "/".join(inner),
                calls,
                control,
                bodies,
            )
        )
        env.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bodies(
    control: _jaxpr.Control,
    depends: Sequence[bool],
    scope: tuple[str, ...],
    calls: tuple[str, ...],
    sources: tuple[Any, ...],
) -> tuple[tuple[Graph, ...], list[bool]]:
    """The programs of a control flow equation, and which of its results depend on the input."""
    given = list(depends[control.leading :])
    while True:
        bodies = tuple(flatten(body, given, scope, calls, sources) for body in control.bodies)
        results = [[body.depends[v] for v in body.outputs] for body in bodies]
        chosen = any(depends[: control.leading])
        flags = [chosen or any(each) for each in zip(*results, strict=True)]
        first = control.consts
        carried = given[first : first + control.carry]
        merged = [a or b for a, b in zip(carried, flags[: control.carry], strict=True)]
        flags[: control.carry] = merged
        if merged == carried:
            return bodies, flags
        given[first : first + control.carry] = merged


def _explicit_broadcasts(
    graph: Graph,
    equation: Any,
    inputs: tuple[int, ...],
    scope: tuple[str, ...],
    calls: tuple[str, ...],
    sources: tuple[Any, ...],
) -> tuple[int, ...]:
    """Elementwise primitives stretch axes of size one; for what depends on the input, say so."""
    shape = tuple(equation.outvars[0].aval.shape)
    result = list(inputs)
    for position, value in enumerate(inputs):
        aval = graph.avals[value]
        if not graph.depends[value] or tuple(aval.shape) == shape:
            continue
        params = {
            "shape": shape,
            "broadcast_dimensions": tuple(range(len(shape) - len(aval.shape), len(shape))),
            "sharding": None,
        }
        stretched = graph.new_value(jax.ShapeDtypeStruct(shape, aval.dtype), True)
        graph.equations.append(
            Equation(
                lax.broadcast_in_dim_p,
                params,
                (value,),
                (stretched,),
                sources,
                "/".join(scope),
                calls,
            )
        )
        result[position] = stretched
    return tuple(result)


@dataclasses.dataclass(eq=False, repr=False)
class Layer:
    """A group of equations that one rule acts on.

    Attributes:
      kind: what it is, one of the names in ``relax.select``.
      name: what it is called in the plan: ``dense``, ``conv``, ``relu``, ``add`` ...
      equations: indices of its equations, in evaluation order.
      inputs: values that carry relevance into it; ``operands``: the others it reads.
      outputs: values that carry relevance out of it (the other outputs: ``decisions``).
      shared: equations of it that are evaluated by themselves as well, for other readers.
      path: scope path; ``occurrence`` counts the layers that share it.
      weight_paths: of its weight in the arguments, if known; of all, if it has several inputs.
      scopes: of the parts of a layer of several inputs.
      closes: the equation at which it is evaluated, if that is not its last.
      begins: its first equation.
      behind: reached by the explained input through a dense layer or convolution; ``first``: it is
        one itself, and not behind any.
      details: what the rules of this kind need to know.
    """

    kind: str
    name: str
    equations: tuple[int, ...]
    inputs: tuple[int, ...]
    operands: tuple[int, ...]
    outputs: tuple[int, ...]
    details: Any = None
    shared: tuple[int, ...] = ()
    path: str = ""
    occurrence: int = 0
    weight_paths: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    closes: int | None = None
    begins: Equation | None = None
    first: bool = False
    behind: bool = False
    index: int = 0
    in_shapes: tuple[tuple[int, ...], ...] = ()
    out_shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def where(self) -> str:
        """``file.py:line`` of the user's code."""
        return "" if self.begins is None else self.begins.where

    @property
    def closing(self) -> int:
        """The equation at which it is evaluated: its inputs are there, and nobody has read it."""
        return self.equations[-1] if self.closes is None else self.closes

    @property
    def weight_path(self) -> str:
        """The paths of its weights, or nothing."""
        return ", ".join(self.weight_paths)

    @property
    def owned(self) -> tuple[int, ...]:
        """The equations that nothing but this layer evaluates."""
        return tuple(i for i in self.equations if i not in self.shared)

    @property
    def label(self) -> str:
        """The path, with the occurrence where it is not the first."""
        return f"{self.path}#{self.occurrence}" if self.occurrence else self.path


def boundary(graph: Graph, indices: Sequence[int], tracked: Sequence[bool]) -> tuple[Any, Any]:
    """Values that enter a group of equations: those that carry relevance, and the others."""
    made = {value for i in indices for value in graph.equations[i].outputs}
    inputs: dict[int, None] = {}
    operands: dict[int, None] = {}
    for i in indices:
        for value in graph.equations[i].inputs:
            if value not in made:
                (inputs if tracked[value] else operands)[value] = None
    return tuple(inputs), tuple(operands)


def computing(
    graph: Graph, indices: Sequence[int], value: int, known: Sequence[int] = ()
) -> list[int]:
    """Those of some equations that a value is computed by, in evaluation order.

    ``known``: values that need not be computed.
    """
    wanted, found = {value}, []
    for index in sorted(indices, reverse=True):
        equation = graph.equations[index]
        if not wanted.isdisjoint(equation.outputs):
            wanted.update(v for v in equation.inputs if v not in known)
            found.append(index)
    return found[::-1]


def replay(
    graph: Graph,
    indices: Sequence[int],
    values: dict[int, Any],
    wanted: Sequence[int],
    evaluate: Callable[[Equation, Sequence[Any]], list[Any]] = Equation.evaluate,
) -> list[Any]:
    """Evaluates a group of equations on the given values."""
    env = dict(values)
    for i in indices:
        equation = graph.equations[i]
        operands = [env[v] if v in env else graph.literals[v] for v in equation.inputs]
        env.update(zip(equation.outputs, evaluate(equation, operands), strict=True))
    return [env[value] for value in wanted]
