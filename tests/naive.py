"""Every rule once more, as naive as can be: plain numpy on one sample and an explicit matrix.

Letters as in the papers: input ``x`` (n,), weights ``w`` (n, m), bias ``b`` (m,), relevance ``r``
of the output (m,). Each function returns the relevance of the input (n,). All of them say the same:
a table of contributions (n, m), divided by its stabilized total (m,), shares out ``r``.
"""

import jax
import numpy as np


def plus(a):
    return np.maximum(a, 0)


def minus(a):
    return np.minimum(a, 0)


def additive(z, epsilon):
    return np.where(z >= 0, z + epsilon, z - epsilon)


def clip(z, epsilon):
    return np.where(z >= 0, 1, -1) * np.maximum(np.abs(z), epsilon)


def scale(z, epsilon):
    return additive(z, epsilon * np.sqrt(np.mean(z**2)))


def share(contributions, total, r, epsilon=1e-6, stabilizer=additive):
    """Shares of ``r``; what stands over an exact zero gets nothing."""
    denominator = stabilizer(total, epsilon)
    known = denominator != 0
    return contributions[:, known] @ (r[known] / denominator[known])


def epsilon(x, w, b, r, zero_bias=False, bias_share=0.0, epsilon=1e-6, **how):
    contributions = x[:, None] * w
    bias = 0 * b if zero_bias else b
    total = contributions.sum(0) + bias
    connected = w != 0
    absorbed = bias + epsilon * np.where(total >= 0, 1, -1)
    counts = np.maximum(connected.sum(0), 1)  # an output may see nothing but padding
    contributions = contributions + bias_share * connected * absorbed / counts
    return share(contributions, total, r, epsilon, **how)


def epsilon_of_sum(x, w, b, r, bias_share, epsilon):
    """A sum of two slices of x: every feature of both takes the same part of what is absorbed."""
    total = x @ w
    absorbed = epsilon * np.where(total >= 0, 1, -1)
    part = bias_share * (absorbed * r / (total + absorbed)).sum() / (2 * len(total))
    return share(x[:, None] * w, total, r, epsilon) + part * w.sum(1)


def zplus(x, w, b, r, zero_bias=False, **how):
    x, w = x[:, None], w
    contributions = plus(x) * plus(w) + minus(x) * minus(w)
    return share(contributions, contributions.sum(0) + (0 if zero_bias else plus(b)), r, **how)


def zminus(x, w, b, r, zero_bias=False, **how):
    x, w = x[:, None], w
    contributions = plus(x) * minus(w) + minus(x) * plus(w)
    return share(contributions, contributions.sum(0) + (0 if zero_bias else minus(b)), r, **how)


def alphabeta(x, w, b, r, alpha=2.0, beta=1.0, **how):
    return alpha * zplus(x, w, b, r, **how) - beta * zminus(x, w, b, r, **how)


def gamma(x, w, b, r, gamma=0.25, zero_bias=False, **how):
    x, z = x[:, None], x @ w + b
    bias = 0 * b if zero_bias else b
    u, v = w + gamma * plus(w), w + gamma * minus(w)
    above, below = plus(x) * u + minus(x) * v, plus(x) * v + minus(x) * u
    return share(
        above, above.sum(0) + bias + gamma * plus(bias), np.where(z > 0, r, 0), **how
    ) + share(below, below.sum(0) + bias + gamma * minus(bias), np.where(z < 0, r, 0), **how)


def textbook_gamma(x, w, b, r, gamma=0.25, zero_bias=False, **how):
    contributions = x[:, None] * (w + gamma * plus(w))
    bias = 0 * b if zero_bias else b
    return share(contributions, contributions.sum(0) + bias + gamma * plus(bias), r, **how)


def wsquare(x, w, b, r, zero_bias=False, **how):
    return share(w**2, (w**2).sum(0) + (0 if zero_bias else b**2), r, **how)


def flat(x, w, b, r, **how):
    connected = (w != 0).astype(w.dtype)
    return share(connected, connected.sum(0), r, **how)


def zbox(x, w, b, r, low=-1.0, high=1.0, **how):
    x, low, high = (np.broadcast_to(a, x.shape)[:, None] for a in (x, low, high))
    contributions = x * w - low * plus(w) - high * minus(w)
    return share(contributions, contributions.sum(0), r, **how)


def gradient(x, w, b, r):
    return w @ r


def explicit(function, x):
    """The matrix and the bias of an affine function, inputs and outputs in row-major order."""
    z = function(x)
    w = np.asarray(jax.jacobian(function)(x)).reshape(z.size, x.size).T
    b = np.asarray(function(np.zeros_like(x))).ravel()
    return w, b


def on_function(rule, function, x, r, **how):
    """A rule on any affine function, however it is written: the rule on its explicit matrix."""
    w, b = explicit(function, x)
    return rule(np.ravel(x), w, b, np.ravel(r), **how).reshape(x.shape)


def on_samples(rule, x, w, b, r, **how):
    """A rule on every sample of a batch."""
    return np.stack([rule(one, w, b, s, **how) for one, s in zip(x, r, strict=True)])


def mlp(rule, layers, x, r=None, upper=None, **how):
    """Relevance of every sample's ``x`` in a network ``relu(... relu(x w + b) ...) w + b``.

    ReLUs pass relevance unchanged. ``upper``: a rule for all but the first layer.
    """
    inputs = [x]
    for w, b in layers:
        inputs.append(plus(inputs[-1] @ w + b))
    last_w, last_b = layers[-1]
    relevance = inputs[-2] @ last_w + last_b if r is None else r
    for depth in reversed(range(len(layers))):
        one, told = (rule, how) if upper is None or depth == 0 else (upper, {})
        relevance = on_samples(one, inputs[depth], *layers[depth], relevance, **told)
    return relevance
