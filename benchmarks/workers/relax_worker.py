"""relax, and `jax.grad` times the input: the floor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import relax
from benchmarks.passes import composite
from benchmarks.workers._jax_networks import network
from benchmarks.workers._serve import TARGET, Worker, serve

# Of the peers, and not a composite of relax under a name of its own.
RULES: dict[str, Any] = {
    "z": relax.rules.Epsilon(0.0),
    "alpha2_beta1": relax.rules.AlphaBeta(2.0, 1.0),
}


class RelaxWorker(Worker):
    def load(self, name: str, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        self.function, self.params = network(name, weights)
        self.x = jnp.asarray(x)
        self.compiled: dict[str, Callable[..., jax.Array]] = {}
        return np.asarray(jax.jit(self.function)(self.params, self.x))

    @contextlib.contextmanager
    def explanation(self, method: str) -> Iterator[Any]:
        if method not in self.compiled:
            self.compiled[method] = jax.jit(self._explain(method))
        explain = self.compiled[method]
        yield lambda: explain(self.params, self.x).block_until_ready()

    def _explain(self, method: str) -> Callable[..., jax.Array]:
        if method == "gradient":
            target = lambda x, params: self.function(params, x)[:, TARGET].sum()
            return lambda params, x: x * jax.grad(target)(x, params)
        rules = RULES[method] if method in RULES else composite(method)
        return relax.lrp(self.function, rules, target=TARGET)


if __name__ == "__main__":
    serve(RelaxWorker)
