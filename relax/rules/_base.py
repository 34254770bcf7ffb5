"""What a rule is: a frozen pytree dataclass with one method; and what it is given to work with."""

from __future__ import annotations

import dataclasses
import html
import inspect
import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from relax._errors import HyperparameterError, RuleError
from relax._numerics import divide, is_number, narrow, stabilize, wide

FLOAT16 = (float(jnp.finfo(jnp.float16).min), float(jnp.finfo(jnp.float16).max))

Currency = Literal["coefficient", "relevance"]

CAUSES = ("bias", "stabilizer", "dead", "mask")

AFFINE = frozenset({"dense", "conv", "scale_shift"})
SUMS = frozenset({"sum", "mean", "avg_pool"})
LINEAR = AFFINE | SUMS | {"linear"}
WINNERS = frozenset({"max_pool", "winner"})


class Rule:
    """Base class of all rules. A subclass is a frozen dataclass; its fields are pytree leaves.

    Attributes:
      kinds: kinds of layers the rule is meant for: a selector that matches layers of many kinds
        (such as a glob on a whole block) gives it to these.
      serves: kinds it can act on when they are addressed alone.
      takes_relevance: of the output it needs the relevance only, not the value.
    """

    kinds: ClassVar[frozenset[str]] = frozenset()
    serves: ClassVar[frozenset[str]] = frozenset()
    takes_relevance: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.serves = cls.serves | cls.kinds
        jax.tree_util.register_pytree_with_keys(
            cls, _flatten_with_keys, _unflattener(cls), _flatten
        )

    def relevance(self, layer: Any, x: Any, relevance: jax.Array) -> Any:
        """Relevance of the input ``x`` of a layer from the ``relevance`` of its output.

        The one method a rule of your own needs. ``layer(x)`` is the output with bias,
        ``layer.transpose(s)`` the transposed linear map, ``layer.positive()`` the same layer with
        the positive parts of its weights; see ``relax.rules.AffineMap``.
        """
        raise RuleError(f"{type(self).__name__} defines no method `relevance`.")

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        """What `propagate` returns, if ``arriving`` is what reaches the output of the layer."""
        return "relevance"

    def absorbed(self, layer: Any, x: Any, out: Outgoing) -> dict[str, Any]:
        """What the layer keeps of the relevance that arrives, by cause: see `relax.ledger`.

        Sums over the layer, of the causes in ``CAUSES``; what is not told is the rule's own.
        """
        return {}

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        """As `relevance`, in whichever currency `gives` announces. For rules of relax itself."""
        return self.relevance(layer, x, jax.tree.map(wide, out.relevance))

    def _repr_html_(self) -> str:
        """What it is called, what it does, and its formula, which notebooks typeset."""
        name = type(self).__name__
        about = inspect.cleandoc(type(self).__doc__ or "")
        if about.startswith(f"{name}("):  # made by dataclass: the signature
            about = ""
        line = html.escape(about.partition("\n")[0])
        formula = re.search(r"\$\$.+?\$\$", about, re.DOTALL)
        typeset = f"<div>{html.escape(formula[0])}</div>" if formula else ""
        return f"<div><code>{html.escape(describe(self))}</code> {line}{typeset}</div>"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Outgoing:
    """What arrives at the output of a layer.

    ``message`` is the relevance R of the output z, or its coefficient c with R = z c.
    ``rectified``: where z was negative no coefficient arrives, and ``value`` is 0 in its place.
    """

    value: Any
    message: Any
    currency: Currency
    rectified: bool = False

    @property
    def relevance(self) -> Any:
        if self.currency == "relevance":
            return self.message
        return jax.tree.map(pair, self.value, self.message)

    @property
    def coefficient(self) -> Any:
        """c with R = z c: exact where ``|z| >= 1e-6``, and bounded below that."""
        if self.currency == "coefficient":
            return self.message

        def exchange(z: jax.Array, r: jax.Array) -> jax.Array:
            return narrow(wide(r) / stabilize(wide(z), 1e-6, "clip"), r.dtype, 32)

        return jax.tree.map(exchange, self.value, self.message)

    def over(self, denominator: jax.Array, nowhere_zero: bool = False) -> jax.Array:
        """R / denominator, and 0 where that is exactly 0; in at least float32.

        It stays in that type until the transpose (`relax.rules.AffineMap.transpose`): the quotient
        by an epsilon of 1e-6 has no room in float16.
        """
        by = jnp.divide if nowhere_zero else divide
        if self.currency == "relevance":
            return by(wide(self.message), denominator)
        z = wide(self.value)
        if self.rectified:
            return wide(self.message) * by(z, denominator)
        masked = jnp.isinf(z)  # a logit of minus infinity: z / z is 1
        ratio = by(jnp.where(masked, 1, z), jnp.where(masked, 1, denominator))
        return wide(self.message) * ratio


def pair(value: jax.Array, coefficient: jax.Array, nonnegative: bool = False) -> jax.Array:
    """Relevance of a value: the product with its coefficient, real also for complex values.

    ``nonnegative``: the value is known to be, and so is not the minus infinity of a mask.
    """
    if coefficient.dtype == jnp.float16:
        coefficient = jnp.clip(coefficient, *FLOAT16)  # a sum of them may be infinite
    if not nonnegative:
        value = jnp.where(jnp.isinf(value), 0, value)  # nothing through a mask
    product = value * coefficient
    if jnp.iscomplexobj(product):
        product = product.real.astype(product.dtype)
    return product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerRound:
    """A hyper-parameter, or a mask, that has a value of its own in each round of a `jax.lax.scan`.

    Args:
      values: the axis of the rounds stands in front; in nested scans one axis for each, the
        outermost first.

    Raises:
      RuleError: the layer stands in no scan, or in one of another length.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]
      >>> w, x = jnp.stack([jnp.eye(2), jnp.ones((2, 2))]), jnp.array([1.0, 2.0])
      >>> only = jnp.array([[0.0, 1.0], [1.0, 1.0]])  # the second feature of the first round
      >>> mask = relax.rules.Mask(relax.rules.PerRound(only))
      >>> print(relax.lrp(f, [("*", mask), relax.rules.Epsilon(0.0)])(w, x))
      [0. 4.]
    """

    values: Any


def static(default: Any) -> Any:
    """A field that is part of the program: no leaf, never swept or differentiated."""
    return dataclasses.field(default=default, metadata={"static": True})


def _split(rule: Any) -> tuple[list[tuple[str, Any]], tuple[tuple[str, Any], ...]]:
    if not dataclasses.is_dataclass(rule):
        raise RuleError(
            f"{type(rule).__name__} is a rule, but no dataclass.\n"
            "  Decorate it with @dataclasses.dataclass(frozen=True)."
        )
    leaves, fixed = [], []
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        is_static = field.metadata.get("static") or isinstance(value, str)
        (fixed if is_static else leaves).append((field.name, value))
    return leaves, tuple(fixed)


def _flatten(rule: Any) -> tuple[list[Any], Any]:
    leaves, fixed = _split(rule)
    return [value for _, value in leaves], (tuple(name for name, _ in leaves), fixed)


def _flatten_with_keys(rule: Any) -> tuple[list[Any], Any]:
    leaves, fixed = _split(rule)
    keyed = [(jax.tree_util.GetAttrKey(name), value) for name, value in leaves]
    return keyed, (tuple(name for name, _ in leaves), fixed)


def _unflattener(cls: type) -> Callable[[Any, Any], Any]:
    def unflatten(aux: Any, leaves: Any) -> Any:
        rule = object.__new__(cls)  # not __init__: leaves may be tracers, or mere placeholders
        names, fixed = aux
        for name, value in (*fixed, *zip(names, leaves, strict=True)):
            object.__setattr__(rule, name, value)
        return rule

    return unflatten


def known(value: Any) -> np.ndarray | None:
    """A hyper-parameter as numbers, unless it is traced."""
    value = value.values if isinstance(value, PerRound) else value
    if isinstance(value, Tracer) or not isinstance(
        value, (int, float, complex, np.generic, np.ndarray, jax.Array)
    ):
        return None
    return np.asarray(value)


def require_finite(rule: Any, *names: str, at_least: float | None = None) -> None:
    """Checks hyper-parameters that are numbers or arrays; traced ones cannot be checked."""
    for name in names:
        value = getattr(rule, name)
        value = value.values if isinstance(value, PerRound) else value
        plain = isinstance(value, (int, float, complex)) and not isinstance(value, bool)
        if not plain and not hasattr(value, "dtype"):
            raise HyperparameterError(
                f"{type(rule).__name__}({name}={value!r}): expected a number or an array."
            )
        numbers = known(value)
        if numbers is None:
            continue
        if numbers.dtype.kind not in "fiu" and not jnp.issubdtype(numbers.dtype, jnp.floating):
            raise HyperparameterError(f"{type(rule).__name__}({name}={value}) is not real.")
        if not np.all(np.isfinite(numbers)):
            raise HyperparameterError(f"{type(rule).__name__}({name}={value}) is not finite.")
        if at_least is not None and np.any(numbers < at_least):
            raise HyperparameterError(
                f"{type(rule).__name__}({name}={value}) must be at least {at_least:g}."
            )


def describe(rule: Any) -> str:
    """A rule as a person would write it: the first field, and what differs from its default."""
    if not dataclasses.is_dataclass(rule):
        return f"{type(rule).__name__}()"
    parts: list[str] = []
    in_order = True
    for position, field in enumerate(dataclasses.fields(rule)):
        value = getattr(rule, field.name)
        if position and _is_default(field.default, value):
            in_order = False
            continue
        shown = text(value)
        parts.append(shown if in_order else f"{field.name}={shown}")
    return f"{type(rule).__name__}({', '.join(parts)})"


def _is_default(default: Any, value: Any) -> bool:
    return (value is None and default is None) or (
        isinstance(value, (int, float, str, bool))
        and type(value) is type(default)
        and (value == default)
    )


def text(value: Any) -> str:
    """A hyper-parameter as a person would write it."""
    if isinstance(value, Rule):
        return describe(value)
    if isinstance(value, PerRound):
        return f"PerRound({text(value.values)})"
    if is_number(value):
        return f"{value:g}"
    if hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return getattr(value, "__name__", None) or repr(value)
