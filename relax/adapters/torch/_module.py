"""A module of torch as a function of JAX, and how far the two are apart."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relax._errors import ArgumentError, UnsupportedOperationError, message
from relax._jaxpr import is_library, machinery
from relax.adapters.torch._window import check_versions


def to_jax(
    module: Any,
    *,
    output: str | int | Callable[[Any], Any] | None = None,
    method: str = "forward",
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A module of PyTorch as ``(f, params)``, so that `lrp` explains ``f``; it stays as it is.

    ``f(params, *args, **kwargs)`` is ``module(*args, **kwargs)`` in eval mode, with JAX arrays for
    tensors: the module's own Python code, run by torchax. It is pure, and can be compiled, mapped
    and differentiated as any function of JAX. Layers bear the names of the modules,
    ``layer1/0/conv1`` for what torch calls ``layer1.0.conv1``.

    Args:
      module: any `torch.nn.Module`, in whatever mode and on whatever device.
      output: what ``f`` returns of what the module returns. None: all of it. A name: that field, as
        ``"logits"`` of a Hugging Face model; ``"logit"`` finds it too. An int: that entry. A
        callable: what it makes of it, computed by torch, such as ``lambda out: out.logits[:, -1]``.
      method: which method of the module is meant.

    Returns:
      ``f``. It takes JAX or numpy arrays where the module takes tensors, integer ones for tokens,
      and passes everything else as it is; it returns arrays in the tuples, lists and dictionaries
      that the module returns. Python code runs once for each shape, under `jax.jit` and `lrp`.
      ``params``: copies of all floating-point parameters and buffers, a dictionary for each module,
      ``params["layer1"]["0"]["conv1"]["weight"]``. What is tied is there once, under its first
      name. They are in torch's own layout and dtypes; without ``jax_enable_x64`` float64 becomes
      float32. Integers and booleans, such as positions and masks, are constants of ``f``.

    Raises:
      ImportError: torch or torchax is missing, or not of a release that works.
      ArgumentError: this is no module, has weights that hold no numbers yet, or cannot be copied.
        When ``f`` is called: ``params`` lacks weights, or has others, or of other shapes; an
        argument is a tensor of torch; the code asks for the value of something that depends on the
        input; there is no such output, or it is no array.
      UnsupportedOperationError: torchax has no such operation.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> from torch import nn
      >>> from relax.adapters.torch import to_jax
      >>> module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
      >>> f, params = to_jax(module)
      >>> print(relax.lrp(f, target=0)(params, jnp.ones((5, 3))).shape)
      (5, 3)
      >>> print([layer.path for layer in relax.layers(f)(params, jnp.ones((5, 3)))])
      ['0', '1/relu', '2']
    """
    check_versions()
    from relax.adapters.torch._copies import Copies, name_of, unwrapped
    from relax.adapters.torch._environment import Environment, running
    from relax.adapters.torch._library import OperatorNotFound
    from relax.adapters.torch._values import argument, arrays, chosen

    module = unwrapped(module)
    if not callable(getattr(module, method, None)):
        raise ArgumentError(f"to_jax(method={method!r}): a {name_of(module)} has no such method.")
    copies = Copies(module)

    def function(params: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = jax.tree.map(argument, (args, kwargs))
        environment = Environment()
        own = copies.filled(params, environment)
        # The module itself where it can be: its hooks are part of what it computes.
        call = own if method == "forward" else getattr(own, method)
        try:
            with running(environment):
                args, kwargs = jax.tree.map(environment.wrap, (args, kwargs))
                return arrays(chosen(call(*args, **kwargs), output))
        except _NOT_KNOWN as error:
            raise ArgumentError(
                message(
                    "The code of the module asks for the value of something that depends on the "
                    "input, to choose what it does or how large something is",
                    where=_where(error),
                    path=environment.innermost,
                    remedy="Give what it asks for as an argument that is no array, or write the "
                    "choice as torch.where.",
                )
            ) from error
        except OperatorNotFound as error:
            raise UnsupportedOperationError(
                message(
                    f"torchax cannot run this: {error}",
                    where=_where(error),
                    path=environment.innermost,
                    remedy="Write it with other operations of torch, or call a function of JAX in "
                    "its place: torchax.interop.call_jax.",
                )
            ) from error

    function.__name__ = function.__qualname__ = name_of(module)
    return function, copies.params


def difference(
    module: Any,
    *args: Any,
    output: str | int | Callable[[Any], Any] | None = None,
    method: str = "forward",
    **kwargs: Any,
) -> float:
    """How far JAX is from torch: the largest difference of a value, relative to the largest value.

    It should be a few roundings, 1e-6 in float32. torchax is young, and few of its operations have
    been compared with torch in all their options; this compares yours.

    Args:
      module, output, method: as in `to_jax`.
      *args, **kwargs: inputs, as ``f`` takes them.

    Returns:
      The largest over all arrays that ``f`` returns. The module is run by torch in eval mode,
      without gradients, and is in its own mode again afterwards.

    Raises:
      ArgumentError, ImportError, UnsupportedOperationError: as `to_jax`, and ``f``.

    Example:
      >>> import numpy as np
      >>> from torch import nn
      >>> from relax.adapters.torch import difference
      >>> print(difference(nn.Sequential(nn.Linear(3, 4), nn.GELU()), np.ones((5, 3))) < 1e-5)
      True
    """
    f, params = to_jax(module, output=output, method=method)
    got = jax.jit(lambda params: f(params, *args, **kwargs))(params)
    from relax.adapters.torch._copies import unwrapped
    from relax.adapters.torch._library import torch
    from relax.adapters.torch._values import arrays, chosen, tensor_like

    module = unwrapped(module)
    like = next(iter(module.parameters()), torch.zeros(()))
    given, named = jax.tree.map(lambda x: tensor_like(x, like), (args, kwargs))
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            call = module if method == "forward" else getattr(module, method)
            want = arrays(chosen(call(*given, **named), output))
    finally:
        for part, mode in modes.items():
            part.training = mode
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max((_apart(np.asarray(a), np.asarray(b)) for a, b in pairs), default=0.0)


def _apart(got: np.ndarray, want: np.ndarray) -> float:
    wide = np.complex128 if np.iscomplexobj(want) else np.float64
    got, want = got.astype(wide), want.astype(wide)
    same = (got == want) | (np.isnan(got) & np.isnan(want))  # infinities too
    apart, scale = np.abs(np.where(same, 0, got - want)), np.abs(want[np.isfinite(want)])
    return float(apart.max(initial=0.0) / max(scale.max(initial=0.0), np.finfo(np.float64).tiny))


# What JAX raises where a number is wanted of a value that is being traced.
_NOT_KNOWN = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _where(error: BaseException) -> str:
    """``file.py:line`` of the code of the module: the innermost frame that is the user's own.

    Without one it is the innermost of a library that is none of those that run it.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(machinery())
    ]
    own = [frame for frame in frames if not is_library(frame.filename)]
    chosen = (own or frames)[-1:]
    return "".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in chosen)
