"""The only file that knows the inside of a jaxpr: tracing, calls, binding, names, source lines."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.core
from jax import lax
from jax.extend import core, source_info_util
from jax.extend.core import primitives as jaxpr_primitives

Literal = core.Literal
DropVar = core.DropVar
jaxpr_as_fun = core.jaxpr_as_fun

# Calls whose body stands for them, and the parameter that holds the body. A user's own derivative
# (custom_jvp, custom_vjp) must never override a rule, so these are opened as well.
_CALLS: dict[Any, str] = {
    jaxpr_primitives.jit_p: "jaxpr",
    jaxpr_primitives.closed_call_p: "call_jaxpr",
    jaxpr_primitives.custom_jvp_call_p: "call_jaxpr",
    jaxpr_primitives.custom_vjp_call_p: "call_jaxpr",
}

# Loops that have no reverse mode.
ENDLESS: dict[Any, str] = {
    jaxpr_primitives.while_p: "lax.while_loop (or lax.fori_loop with a dynamic trip count)",
}


class Control(NamedTuple):
    """A primitive that runs other programs: a scan, a cond or switch, a checkpoint, a shard_map.

    Attributes:
      kind: ``"scan"``, ``"cond"``, ``"checkpoint"`` or ``"shard_map"``.
      bodies: the programs; all but a switch have one.
      leading: operands that no body takes: the index of a branch.
      consts, carry: how many operands of a scan are constants, and how many are carried.
      options: the keyword arguments of the public function that rebuilds it.
    """

    kind: str
    bodies: tuple[Any, ...]
    leading: int = 0
    consts: int = 0
    carry: int = 0
    options: Any = None


def _scan(params: dict[str, Any]) -> Control:
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    if "ft_in" in params:  # from jax 0.11 on
        consts, carry, _ = params["ft_in"].unpack()
        counts = len(list(consts)), len(list(carry))
    else:
        counts = params["num_consts"], params["num_carry"]
    return Control("scan", (params["jaxpr"],), 0, *counts, options)


def _cond(params: dict[str, Any]) -> Control:
    return Control("cond", tuple(params["branches"]), 1, options={})


def _checkpoint(params: dict[str, Any]) -> Control:
    options = {name: params[name] for name in ("policy", "prevent_cse")}
    return Control("checkpoint", (core.ClosedJaxpr(params["jaxpr"], ()),), options=options)


def _shard_map(params: dict[str, Any]) -> Control:
    options = {name: params[name] for name in ("mesh", "in_specs", "out_specs", "check_vma")}
    options["axis_names"] = params["newly_manual_axes"]
    return Control("shard_map", (core.ClosedJaxpr(params["jaxpr"], ()),), options=options)


_SHARD_MAP = "shard_map"  # JAX gives the primitive no public object

_CONTROL: dict[Any, Callable[[dict[str, Any]], Control]] = {
    jaxpr_primitives.scan_p: _scan,
    jaxpr_primitives.cond_p: _cond,
    jaxpr_primitives.remat_p: _checkpoint,
}


def control(equation: Any) -> Control | None:
    """The programs an equation runs, or None if it is an operation."""
    if equation.primitive.name == _SHARD_MAP:
        return _shard_map(equation.params)
    unpack = _CONTROL.get(equation.primitive)
    return None if unpack is None else unpack(equation.params)


def run(
    control: Control,
    equations: Sequence[Any],
    functions: Sequence[Callable[..., Any]],
    operands: Sequence[Any],
    extra: Any,
) -> tuple[list[Any], Any]:
    """Runs programs as an equation would, through the public functions of JAX.

    Args:
      control: the equation's own.
      equations: it and the calls around it, innermost first.
      functions: for each body ``(operands, extra) -> (results, more)``.
      operands: of the equation.
      extra: a pytree for the functions; what is scanned over, under a scan.

    Returns:
      The results of the equation, and ``more``; stacked, under a scan.
    """
    with _context(equations):
        if control.kind == "scan":
            first, last = control.consts, control.consts + control.carry
            consts = list(operands[:first])

            def step(carry: Any, xs: Any) -> Any:
                slices, extra = xs
                results, more = functions[0]([*consts, *carry, *slices], extra)
                return results[: control.carry], (results[control.carry :], more)

            start, scanned = list(operands[first:last]), list(operands[last:])
            carry, (stacked, more) = lax.scan(step, start, (scanned, extra), **control.options)
            return [*carry, *stacked], more
        if control.kind == "cond":
            index, *rest = operands
            return lax.switch(index, functions, rest, extra)
        if control.kind == "shard_map":
            mapped = jax.shard_map(
                lambda *args: tuple(functions[0](args, ())[0]), **control.options
            )
            return list(mapped(*operands)), []
        return jax.checkpoint(functions[0], **control.options)(list(operands), extra)


_NETWORKS = os.path.join(os.path.dirname(__file__), "cli", "networks", "")  # stand for a user's own
_PACKAGES = frozenset({"site-packages", "dist-packages"})
_LIBRARIES = tuple({sysconfig.get_paths()[key] for key in ("purelib", "platlib", "stdlib")})


def trace(fun: Callable[..., Any], leaves: Sequence[Any]) -> core.ClosedJaxpr:
    """Traces ``fun`` to a jaxpr, afresh.

    ``jax.make_jaxpr`` remembers a function by identity and would return the constants of the
    first call for a model that was updated in place since; a new lambda is never remembered.
    """
    return jax.make_jaxpr(lambda *args: fun(*args))(*leaves)


def constants(closed: core.ClosedJaxpr) -> Iterator[Any]:
    """The arrays in a program, and in the calls in it, in order."""
    yield from closed.consts
    is_program = lambda a: isinstance(a, core.ClosedJaxpr | core.Jaxpr)
    for equation in closed.jaxpr.eqns:
        for held in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if isinstance(held, core.Jaxpr):
                held = core.ClosedJaxpr(held, ())
            if isinstance(held, core.ClosedJaxpr):
                yield from constants(held)


def hoisted(
    fun: Callable[..., Sequence[Any]], arguments: Sequence[Any]
) -> tuple[Callable[..., list[Any]], list[Any], list[Any]]:
    """A function with the traced values that it closes over as further arguments.

    Returns:
      The function, those values, and shapes and dtypes of the results.
    """
    closed = jax.make_jaxpr(lambda *args: fun(*args))(*arguments)
    moving = [isinstance(const, jax.core.Tracer) for const in closed.consts]

    def function(*flat: Any) -> list[Any]:
        more = iter(flat[len(arguments) :])
        consts = [
            next(more) if moves else const
            for const, moves in zip(closed.consts, moving, strict=True)
        ]
        whole = core.ClosedJaxpr(closed.jaxpr, consts)
        return core.jaxpr_as_fun(whole)(*flat[: len(arguments)])

    traced = [c for c, moves in zip(closed.consts, moving, strict=True) if moves]
    results = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.out_avals]
    return function, traced, results


def split(
    fun: Callable[..., Sequence[Any]], arguments: Sequence[Any]
) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]], list[bool]]:
    """What a function computes without its arguments, computed now; and the rest of it.

    Args:
      fun: returns a flat list of arrays.
      arguments: shapes and dtypes.

    Returns:
      The results, None where they depend on the arguments; a function from the arguments to those
      that do, in order; and for each result whether it is computed already.
    """
    closed = trace(fun, arguments)
    known: dict[int, Any] = {}
    moving: set[int] = set()
    later: list[tuple[Sequence[Any], list[int], list[int]]] = []
    numbers = itertools.count()

    def add(array: Any) -> int:
        number = next(numbers)
        known[number] = array
        return number

    def walk(jaxpr: Any, arguments: Sequence[int], around: tuple[Any, ...]) -> list[int]:
        own = dict(zip((*jaxpr.constvars, *jaxpr.invars), arguments, strict=True))
        read = lambda atom: add(atom.val) if isinstance(atom, Literal) else own[atom]
        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            sources = (equation, *around)
            moves = not moving.isdisjoint(inputs)
            if moves and equation.primitive is jaxpr_primitives.jit_p:
                body = equation.params["jaxpr"]
                inside = [*map(add, body.consts), *inputs]
                own.update(zip(equation.outvars, walk(body.jaxpr, inside, sources), strict=True))
                continue
            outputs = [next(numbers) for _ in equation.outvars]
            own.update(zip(equation.outvars, outputs, strict=True))
            if moves:
                moving.update(outputs)
                later.append((sources, inputs, outputs))
            else:
                results = bind(sources, [known[number] for number in inputs])
                known.update(zip(outputs, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    rows = [next(numbers) for _ in closed.jaxpr.invars]
    moving.update(rows)
    outputs = walk(closed.jaxpr, [*map(add, closed.consts), *rows], ())
    stays = [number not in moving for number in outputs]

    def rest(arguments: Sequence[Any]) -> list[Any]:
        env = known | dict(zip(rows, arguments, strict=True))
        for sources, inputs, made in later:
            env.update(zip(made, bind(sources, [env[n] for n in inputs]), strict=True))
        return [env[n] for n, fixed in zip(outputs, stays, strict=True) if not fixed]

    return [known.get(number) for number in outputs], rest, stays


def is_own_derivative(equation: Any) -> bool:
    """Whether an equation of a graph stands in the body of a custom_jvp of two arguments."""
    around = equation.sources[1:2]
    return any(
        e.primitive is jaxpr_primitives.custom_jvp_call_p and len(e.invars) == 2 for e in around
    )


def call_body(equation: Any) -> tuple[core.ClosedJaxpr, str] | None:
    """The body and the name of a call that can be opened; None for any other equation."""
    parameter = _CALLS.get(equation.primitive)
    if parameter is None:
        return None
    body = equation.params[parameter]
    name = equation.params.get("name") or body.jaxpr.debug_info.func_name
    return body, str(name)


def bind(
    equations: Sequence[Any],
    operands: Sequence[Any],
    evaluate: Callable[..., list[Any]] | None = None,
) -> list[Any]:
    """Evaluates an equation as JAX would, under its own name stack and context.

    ``equations`` are the equation and the calls around it, innermost first: the body of a call
    does not inherit the name stack around it, so that is put together here.
    """
    equation = equations[0]
    with _context(equations):
        return (evaluate or bind_bare)(equation.primitive, equation.params, operands)


@contextlib.contextmanager
def _context(equations: Sequence[Any]) -> Iterator[None]:
    """The name stack, source line and context an equation was traced in."""
    names = source_info_util.current_name_stack()
    for outer in reversed(equations):
        names = names + outer.source_info.name_stack
    equation = equations[0]
    traceback = equation.source_info.traceback
    with source_info_util.user_context(traceback, name_stack=names), equation.ctx.manager:
        yield


def bind_bare(primitive: Any, params: dict[str, Any], operands: Sequence[Any]) -> list[Any]:
    """Evaluates a primitive, under whatever names and context are in force."""
    results = primitive.bind(*operands, **primitive.get_bind_params(params))
    return list(results) if primitive.multiple_results else [results]


@contextlib.contextmanager
def evaluation() -> Iterator[None]:
    """Computes numbers now, whatever jit, vmap or shard_map surrounds the call."""
    with (
        jax.core.eval_context(),
        jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())),
    ):
        yield


def scopes(equation: Any) -> tuple[str, ...]:
    """The named scopes an equation stands in; the marks of transformations are left out."""
    stack = equation.source_info.name_stack.stack
    return tuple(entry.name for entry in stack if type(entry).__name__ == "Scope")


def is_library(file_name: str) -> bool:
    """Whether a file belongs to an installed library, not to the user."""
    return file_name.startswith(_LIBRARIES) or not _PACKAGES.isdisjoint(Path(file_name).parts)


def machinery() -> tuple[str, ...]:
    """The folders of what runs a model and is no part of it: relax, JAX, and torch on it.

    By the modules that are loaded: a folder of the user's may have the name of one of them.
    """
    modules = (sys.modules.get(name) for name in ("relax", "jax", "jaxlib", "torch", "torchax"))
    files = (getattr(module, "__file__", None) for module in modules)
    return tuple(os.path.join(os.path.dirname(file), "") for file in files if file)


def user_line(equations: Sequence[Any]) -> str:
    """``file.py:line`` of the user's code that made an equation, or nothing.

    ``equations`` are the equation and the calls around it, innermost first. The first frame outside
    the machinery and outside installed libraries wins; without one, the first of a library.
    """
    fallback, run_it = "", machinery()
    for equation in equations:
        traceback = equation.source_info.traceback
        for frame in traceback.frames if traceback is not None else ():
            name = frame.file_name
            own = name.startswith(_NETWORKS)
            if name.startswith((*run_it, "<frozen")) and not own:
                continue
            place = f"{Path(name).name}:{frame.line_num}"
            if own or not is_library(name):
                return place
            if not fallback and name.endswith(".py"):
                fallback = place
    return fallback


def short_name(primitive: Any) -> str:
    """A primitive's name as users know it."""
    name = str(primitive.name)
    return {"add_any": "add", "add_jaxvals": "add"}.get(name, name)
