"""The account of an explanation: how much relevance each layer was given, handed on, and kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from relax import _target
from relax._display import html_lines, html_table, rich_lines, rich_table
from relax._program import Program
from relax._run import Run
from relax.rules import Epsilon
from relax.rules._base import CAUSES, Rule, describe
from relax.rules.general import unmasked

# What a layer keeps that none of its rule's own sums tell, by its kind.
_REST = {
    "softmax": "softmax",
    "normalization": "statistic",
    "activation": "activation",
    "product": "gate",
    "embedding": "constant",  # ids that are no tokens of the input, joined to them
}
_TOLD = frozenset(
    {"dense", "conv", "scale_shift", "sum", "mean", "avg_pool", "linear", "normalization"}
)
_COLUMNS = ("path", "kind", "rule", "out", "in", "absorbed", "by", "where")
_NUMBERS = range(3, 6)  # of these columns


class _Place(NamedTuple):
    """What an entry is about."""

    path: str
    kind: str
    rule: str
    where: str
    rest: str
    rounds: int  # how many scans it stands in


class Entry(NamedTuple):
    """One layer of a `Ledger`.

    Attributes:
      path, kind, rule, where: as in the plan; a kind of "constant" is no layer, but a place where
        something is added, masked or put in that does not depend on the explained input.
      out: relevance at its outputs, summed; in a scan for each round.
      into: relevance that it hands to its inputs.
      absorbed: what it keeps, by cause: bias, stabilizer, dead (denominators that are exactly
        zero), mask, softmax, statistic, activation, gate, constant, rule.
      rounding: ``out - into - sum(absorbed)``.
    """

    path: str
    kind: str
    rule: str
    where: str
    out: Any
    into: Any
    absorbed: dict[str, Any]
    rounding: Any

    @property
    def kept(self) -> Any:
        """``out - into``."""
        return self.out - self.into


class Ledger(Sequence[Entry]):
    """An account of relevance, entry by entry in order of evaluation; a pytree.

    ``explained = received + absorbed`` to rounding, and the same for each entry. Prints as a table,
    the largest leaks first, in a notebook as HTML, by rich as its table; `plot` draws it.

    Attributes:
      value: the output of the function, summed.
      explained: what of it is explained; the rest is outside of the target.
      received: relevance of the explained arguments, summed.
    """

    def __init__(
        self,
        places: tuple[_Place, ...],
        sums: Sequence[dict[str, Any]],
        value: Any,
        explained: Any,
        received: Any,
    ):
        self._places, self._sums = places, tuple(sums)
        self.value, self.explained, self.received = value, explained, received

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place, sums = self._places[index], self._sums[index]
        absorbed = {cause: sums[cause] for cause in CAUSES if cause in sums}
        rest = sums["out"] - sums["in"] - sum(absorbed.values())
        if place.rest:
            absorbed[place.rest] = absorbed.get(place.rest, 0) + rest
            rest = jnp.zeros_like(rest)
        return Entry(
            place.path,
            place.kind,
            place.rule,
            place.where,
            sums["out"],
            sums["in"],
            absorbed,
            rest,
        )

    def __iter__(self) -> Iterator[Entry]:
        return (self[i] for i in range(len(self)))

    @property
    def absorbed(self) -> Any:
        """All that is kept on the way."""
        kept = (
            _over_rounds(entry.kept, place) for entry, place in zip(self, self._places, strict=True)
        )
        return sum(kept, jnp.zeros(()))

    @property
    def outside(self) -> Any:
        """``value - explained``: outside of the target."""
        return self.value - self.explained

    @property
    def rounding(self) -> Any:
        """``explained - received - absorbed``."""
        return self.explained - self.received - self.absorbed

    def by_cause(self) -> dict[str, Any]:
        """All that is kept, by cause."""
        total: dict[str, Any] = {}
        for entry, place in zip(self, self._places, strict=True):
            for cause, kept in entry.absorbed.items():
                total[cause] = total.get(cause, 0) + _over_rounds(kept, place)
        return total

    def _rows(self) -> list[tuple[str, ...]]:
        """What is kept, the most first; entries that keep nothing are left out."""
        whole = max(abs(_number(self.explained)), abs(_number(self.received)), 1e-30)
        entries = [e for e in self if abs(_number(e.kept)) > 1e-6 * whole]
        entries.sort(key=lambda entry: -abs(_number(entry.kept)))
        return [
            (
                entry.path,
                entry.kind,
                entry.rule,
                f"{_number(entry.out):.5g}",
                f"{_number(entry.into):.5g}",
                f"{_number(entry.kept):.5g}",
                ", ".join(
                    f"{cause} {_number(kept):.4g}"
                    for cause, kept in entry.absorbed.items()
                    if abs(_number(kept)) > 1e-6 * whole
                ),
                entry.where,
            )
            for entry in entries
        ]

    def _summary(self) -> str:
        explained, received = _number(self.explained), _number(self.received)
        causes = {cause: _number(kept) for cause, kept in self.by_cause().items()}
        least = 1e-6 * max(abs(explained), abs(received))  # rounding of float32
        parts = [
            f" + {cause} {kept:.6g}"
            for cause, kept in sorted(causes.items(), key=lambda item: -abs(item[1]))
            if abs(kept) > least
        ]
        return (
            f"explained {explained:.6g} = received {received:.6g}{''.join(parts)}\n"
            f"outside of the target {_number(self.outside):.6g}, "
            f"rounding {_number(self.rounding):.1e}"
        )

    def __str__(self) -> str:
        if self._is_traced():
            return f"<account of {len(self)} places, traced>"
        table = [_COLUMNS, *self._rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(_COLUMNS))]
        lines = [
            "  ".join(
                cell.rjust(width) if i in _NUMBERS else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, self._summary()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if self._is_traced():
            return html_lines(str(self))
        return html_table(_COLUMNS, self._rows(), right=_NUMBERS, note=self._summary())

    def __rich__(self) -> Any:
        if self._is_traced():
            return rich_lines(str(self))
        return rich_table(_COLUMNS, self._rows(), right=_NUMBERS, note=self._summary())

    def _is_traced(self) -> bool:
        return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(self))

    def plot(self, axes: Any = None, *, largest: int | None = None) -> Any:
        """A bar for each layer from the output down to the input: what it hands on and keeps.

        Args:
          axes: of matplotlib, to draw on; a new figure by default.
          largest: draws only so many, those that keep the most; by default all.

        Returns:
          The axes. Needs matplotlib.
        """
        least = 1e-9 * max(abs(_number(e.out)) for e in self) if len(self) else 0.0
        entries = [e for e in self if e.kind != "constant" or abs(_number(e.kept)) > least][::-1]
        if largest is not None:
            kept_most = sorted(entries, key=lambda e: -abs(_number(e.kept)))[:largest]
            entries = [entry for entry in entries if any(entry is e for e in kept_most)]
        if axes is None:
            import matplotlib.pyplot as plt

            _, axes = plt.subplots(figsize=(7, 1 + 0.25 * len(entries)), layout="constrained")
        places = np.arange(len(entries))
        axes.barh(places, [_number(e.into) for e in entries], color="0.75", label="handed on")
        above = np.array([max(_number(e.into), 0.0) for e in entries])
        below = np.array([min(_number(e.into), 0.0) for e in entries])
        for cause in dict.fromkeys(cause for entry in entries for cause in entry.absorbed):
            kept = np.array([_number(e.absorbed.get(cause, 0.0)) for e in entries])
            if not np.any(np.abs(kept) > 1e6 * least):  # too little to be seen
                continue
            axes.barh(places, kept, left=np.where(kept >= 0, above, below), label=cause)
            above, below = above + np.maximum(kept, 0), below + np.minimum(kept, 0)
        axes.set_yticks(places, [entry.path for entry in entries], fontsize=7)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("relevance")
        axes.legend(fontsize=7)
        return axes


def _over_rounds(x: Any, place: _Place) -> Any:
    """The sum over the rounds of scans; samples of a vmap stay apart."""
    return jnp.sum(x, axis=tuple(range(-place.rounds, 0)))


def _number(x: Any) -> float:
    return float(np.sum(np.asarray(x, np.float64)))


jax.tree_util.register_pytree_node(
    Ledger,
    lambda a: ((a._sums, a.value, a.explained, a.received), a._places),
    lambda places, children: Ledger(places, *children),
)


def ledger(
    fun: Callable[..., Any],
    rules: Any = Epsilon(),
    *,
    argnums: int | Sequence[int] = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""As `lrp`, with an account of every layer: where the relevance went that did not arrive.

    $$R_\mathrm{out} = R_\mathrm{in} + \text{bias} + \text{stabilizer} + \text{softmax} + \dots$$

    for each layer and for the whole, to rounding.

    Arguments and errors: see `lrp`.

    Returns:
      A function of the arguments of ``fun`` that returns ``(relevance, ledger)``, with ``has_aux``
      ``((relevance, ledger), aux)``; a `Ledger` is a pytree of sums, so it works under jit, and
      under vmap gives one account for each sample. In a scan there is a sum for each round.

    Raises:
      ArgumentError: a layer stands inside of a shard_map.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda p, x: x @ p["w"] + p["b"]
      >>> p = {"w": jnp.array([[2.0], [1.0]]), "b": jnp.array([3.0])}
      >>> relevance, account = relax.ledger(f, relax.rules.Epsilon(0.0))(p, jnp.array([1.0, 1.0]))
      >>> print(relevance, account[0].absorbed["bias"], account.rounding)
      [2. 1.] 3.0 0.0

    Source: Bach et al. 2015, eq. (2), conservation.
    """

    @functools.wraps(fun, updated=())
    def explained(*args: Any, **kwargs: Any) -> Any:
        in_relevance = _target.gives_relevance(target)
        program = Program(
            fun, rules, argnums, None, has_aux, args, kwargs, in_relevance, counts=True
        )
        run = Run(program)
        value, aux = run.value, run.aux
        seeds = _target.seeds(target, value)
        relevance, _ = run.relprop(seeds)
        given = seeds if in_relevance else jax.tree.map(jnp.multiply, value, seeds)
        account = _account(run, value, given, relevance)
        return ((relevance, account), aux) if has_aux else (relevance, account)

    return explained


def _total(tree: Any) -> jax.Array:
    leaves = [jnp.asarray(a) for a in jax.tree.leaves(tree)]
    floats = [a for a in leaves if jnp.issubdtype(a.dtype, jnp.inexact)]
    wide = (a.astype(jnp.promote_types(a.dtype, jnp.float32)).real for a in floats)
    return sum((jnp.sum(a) for a in wide), jnp.zeros(()))


def _tells(rule: Rule, kind: str) -> bool:
    """Whether a rule of relax names all that it keeps, so that the rest is rounding."""
    own = type(unmasked(rule))
    told = own.absorbed is not Rule.absorbed and kind in _TOLD
    return told and own.__module__.startswith("relax.rules.")


def _account(run: Run, value: Any, given: Any, relevance: Any) -> Ledger:
    program, places, sums = run.program, [], []
    for place, section, unit, layer, causes in program.accounts:
        rounds = len(section.lengths)
        found = {kind: run.totals[place, (kind, unit)] for kind in ("out", "in", *causes)}
        if layer is not None:
            rule = program.rules[layer.index]
            rest = "" if _tells(rule, layer.kind) else _REST.get(layer.kind, "rule")
            told = layer.label, layer.kind, describe(rule), layer.where
            places.append(_Place(*told, rest, rounds))
        else:
            equation = section.graph.equations[unit[1]]
            kind, name = ("named value" if causes else "constant"), equation.primitive.name
            name = equation.params["name"] if causes else name
            path = f"{equation.scope}/{name}" if equation.scope else name
            rule = "Mask" if causes else ""
            places.append(_Place(path, kind, rule, equation.where, "constant", rounds))
        sums.append(found)
    outputs = program.graph.outputs[: program.traced.count]
    pairs = zip(outputs, jax.tree.leaves(given), strict=True)
    constants = [part for v, part in pairs if not program.facts.tracked[v]]
    if constants:  # no layer made them, so none is given their relevance
        places.append(_Place("output", "constant", "", "", "constant", 0))
        sums.append({"out": _total(constants), "in": jnp.zeros(())})
    return Ledger(tuple(places), sums, _total(value), _total(given), _total(relevance))
