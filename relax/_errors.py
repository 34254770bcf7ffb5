"""Every error relax raises, and the one place that words them."""

from __future__ import annotations


class RelaxError(Exception):
    """Base class of every error that relax raises on purpose."""


class UnsupportedOperationError(RelaxError, NotImplementedError):
    """An operation that depends on the explained input has no relevance rule."""


class UnmatchedSelectorError(RelaxError, ValueError):
    """A selector, or a path given as ``at=``, matches no layer of the function."""


class TargetError(RelaxError, ValueError):
    """``target`` does not fit the value of the function."""


class ArgumentError(RelaxError, TypeError):
    """``argnums`` or an explained argument cannot be explained."""


class RuleError(RelaxError, TypeError):
    """A rule was given to a layer that it cannot serve, or is no rule at all."""


class HyperparameterError(RelaxError, ValueError):
    """A hyper-parameter given as a Python number is not finite or contradicts another."""


class StoreError(RelaxError, RuntimeError):
    """A store is of another job, damaged, being written by somebody else, or cannot be written."""


class RelaxWarning(UserWarning):
    """The result is well defined but most likely not what was meant."""


def message(what: str, *, where: str = "", path: str = "", remedy: str = "") -> str:
    """Words an error: what happened, at which line of the user's, in which layer, what to do."""
    place = " at " + where if where else ""
    layer = f" ({path})" if path else ""
    advice = f"\n  {remedy}" if remedy else ""
    return f"{what}{place}{layer}.{advice}"
