"""Recurrent cells in plain JAX whose gradient times input is LRP-0: the oracle.

A gate is held; an activation is the value times its held ratio phi(z) / z. So no rule of relax, no
scan and no recognition takes part.
"""

import jax
import jax.numpy as jnp
from jax import lax


def passes(phi):
    """An activation that relevance passes."""

    def applied(z):
        return z * lax.stop_gradient(phi(z) / z)

    return applied


def gate(z):
    return lax.stop_gradient(jax.nn.sigmoid(z))


tanh = passes(jnp.tanh)


def lstm(p, carry, x, order="ifgo"):
    """``p``: w (in, 4 n), u (n, 4 n), b (4 n), the gates in the given order."""
    h, c = carry
    pieces = jnp.split(x @ p["w"] + h @ p["u"] + p["b"][None], 4, -1)
    z = dict(zip(order, pieces, strict=True))
    c = gate(z["f"]) * c + gate(z["i"]) * tanh(z["g"])
    h = gate(z["o"]) * tanh(c)
    return (h, c), h


def gru(p, h, x, reset_after=True, update_new=False):
    """``p``: w (in, 3 n), u (n, 3 n), b and c (3 n) in the order r, z, n; c inside of the reset."""
    xr, xz, xn = jnp.split(x @ p["w"] + p["b"][None], 3, -1)
    ur, uz, un = jnp.split(p["u"], 3, -1)
    cr, cz, cn = jnp.split(p["c"][None], 3, -1)
    r, z = gate(xr + h @ ur + cr), gate(xz + h @ uz + cz)
    inner = r * (h @ un + cn) if reset_after else (r * h) @ un + cn
    n = tanh(xn + inner)
    h = z * n + (1 - z) * h if update_new else (1 - z) * n + z * h
    return h, h


def simple(p, h, x):
    h = tanh(x @ p["w"] + h @ p["u"] + p["b"][None])
    return h, h


def unrolled(cell, p, carry, x, reverse=False, **how):
    """Hidden states (batch, time, n) of a sequence, one step after the other."""
    states = []
    for t in range(x.shape[1])[:: -1 if reverse else 1]:
        carry, h = cell(p, carry, x[:, t], **how)
        states.append(h)
    return jnp.stack(states[:: -1 if reverse else 1], 1)


def zeros(x, size, kind):
    h = jnp.zeros((x.shape[0], size))
    return (h, h) if kind == "lstm" else h
