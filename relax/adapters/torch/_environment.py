"""Where the code of a module runs: torchax, with the names of modules.

torchax runs a module's own Python code with tensors that hold JAX arrays. Here operations stand in
the scope of the module that calls them, and a tensor of torch that the code makes, or that is no
parameter or buffer, is a constant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import source_info_util

from relax.adapters.torch._library import Operator, View, slow_attention, tensor, torch, tree
from relax.adapters.torch._operations import ADDED, REPLACED


def as_array(x: Any) -> jax.Array:
    """A copy of a tensor of torch, wherever it is: torch goes on training in place."""
    x = x.detach().cpu()
    if x.is_sparse:
        x = x.to_dense()
    x = x.resolve_conj().resolve_neg()
    if x.dtype is torch.bfloat16:  # numpy has none of its own
        return jnp.array(x.contiguous().view(torch.int16).numpy().view(jnp.bfloat16))
    return jnp.array(x.numpy())


class Environment(tensor.Environment):
    """For one call of one module."""

    def __init__(self) -> None:
        with jax.ensure_compile_time_eval():  # it makes a key of random numbers
            super().__init__()
        for function, own in ADDED.items():
            self._ops[function] = Operator(function, own, True, True, False, False)
        self._stack: list[tuple[str, Any]] = [("", source_info_util.current_name_stack())]
        self.innermost = ""

    def _get_op_or_decomp(self, func: Any) -> Any:
        """As torchax, but in the scope of the module instead of the operation's."""
        known = super()._get_op_or_decomp(func)
        plain = REPLACED.get(known.torch_op)
        function = known.func if plain is None else plain(known.func)
        if known.is_view_op:
            function = self._with_whole_operands(function)
        return dataclasses.replace(known, func=self._in_scope(function))

    def _in_scope(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def named(*args: Any, **kwargs: Any) -> Any:
            with source_info_util.set_name_stack(self._stack[-1][1]):
                return function(*args, **kwargs)

        return named

    def _with_whole_operands(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What writes into a view, or looks at a part of it, takes no other view."""

        def whole(x: Any, *args: Any, **kwargs: Any) -> Any:
            others, named = self.v2t_iso((args, kwargs))
            return function(x, *others, **named)

        return whole

    def watch(self, module: Any) -> None:
        """Puts what each part of a module does into a scope of its name.

        ``innermost`` is then the part that is running, or in which an error was raised.
        """
        for name, part in module.named_modules():
            path = name.replace(".", "/")
            part.register_forward_pre_hook(functools.partial(self._enter, path), prepend=True)
            part.register_forward_hook(self._leave, always_call=True)

    def _enter(self, path: str, *_: Any) -> None:
        outside = self._stack[0][1]
        self._stack.append((path, outside.extend(path) if path else outside))
        self.innermost = path

    def _leave(self, *_: Any) -> None:
        self._stack.pop()
        if sys.exception() is None:  # otherwise it is where the error was
            self.innermost = self._stack[-1][0]

    def t2j_iso(self, torchtensors: Any) -> Any:
        """As torchax, but a tensor of torch is a constant instead of an error.

        Those without axes are left to torchax, which takes them as numbers: they do not decide the
        dtype of a sum.
        """

        def known(x: Any) -> Any:
            return self.wrap(as_array(x)) if x.ndim and not is_ours(x) else x

        return super().t2j_iso(tree.tree_map_only(torch.Tensor, known, torchtensors))

    def wrap(self, x: Any) -> Any:
        """An array as a tensor of this environment; anything else as it is."""
        return tensor.Tensor(x, self) if isinstance(x, jax.Array) else x


def is_ours(x: Any) -> bool:
    """Whether a tensor holds a JAX array."""
    return isinstance(x, tensor.Tensor | View)


def unwrap(x: Any) -> jax.Array:
    """The array of a tensor, whichever kind it is."""
    return x.jax() if isinstance(x, tensor.Tensor | View) else as_array(x)


@contextlib.contextmanager
def running(environment: Environment) -> Iterator[None]:
    """Runs torch on JAX arrays; the flags of both are as before when it ends.

    torch adds biases of lower rank and has 64-bit integers: what JAX says to either is no news.
    """
    with (
        slow_attention(),
        torch.no_grad(),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Explicitly requested dtype")
        with environment:
            yield
