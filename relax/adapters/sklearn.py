"""Perceptrons of scikit-learn as JAX functions: what they predict, from the user's own features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from relax._errors import ArgumentError, message
from relax.adapters._params import check_params, shapes


def to_jax(
    estimator: Any, *, output: str | None = None
) -> tuple[Callable[[Any, Any], jax.Array], dict[str, dict[str, jax.Array]]]:
    r"""A fitted perceptron of scikit-learn as ``(f, params)``, so that `lrp` explains ``f``.

    $$h_0 = (x - \mathrm{center}) / \mathrm{scale}, \quad
      h_{l+1} = \phi(h_l W_l + b_l), \quad f(x) = \psi(h_{L-1} W_{L-1} + b_{L-1})$$

    The scalers of a Pipeline are part of ``f``, so that ``x`` are the features as they were
    measured; so is the scaler of a TransformedTargetRegressor, so that the value has the units of
    the target.

    Args:
      estimator: a fitted MLPRegressor or MLPClassifier; a Pipeline that ends in one, with
        StandardScaler, MinMaxScaler, MaxAbsScaler or RobustScaler in front; a
        TransformedTargetRegressor with one of these scalers around either. None of them clips.
      output: what ``f`` returns. A classifier: ``"logits"`` (the default, and what should be
        explained; ``"logit"`` is the same), before the softmax or sigmoid, or ``"probability"``,
        as ``predict_proba``. A regressor: ``"prediction"`` (the default), as ``predict``; with
        ``loss="poisson"`` also ``"log"``, the logarithm of it.

    Returns:
      ``f``, pure, of params and ``x``, one sample ``(features,)`` or many ``(samples, features)``.
      It returns ``(outputs,)`` or ``(samples, outputs)``; the axis of the outputs is there even if
      there is only one. Output k of a classifier is ``classes_[k]``, but a classifier of two
      classes has a single logit, which speaks for ``classes_[1]`` if positive and for
      ``classes_[0]`` if negative, as its relevance does.
      ``params``, a dict of dicts of arrays: ``layer0/kernel``, ``layer0/bias``, ``layer1/kernel``
      ...; of the scalers ``scaler0/center``, ``scaler0/scale``, ...; of the target's
      ``target/center`` and ``target/scale``. They are float32, or, if ``jax_enable_x64`` is set,
      of the dtype that scikit-learn holds, which is float64 unless it was fitted on float32.

    Raises:
      ArgumentError: the estimator is not fitted, is or holds something else, or has no such
        output; when ``f`` is called: ``x`` has another number of features; ``params`` lacks
        weights, or has others, or of other shapes.
      ImportError: scikit-learn is not installed.

    Example:
      >>> import numpy as np, relax
      >>> from sklearn.neural_network import MLPRegressor
      >>> from relax.adapters.sklearn import to_jax
      >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [2.0, 1.0]])
      >>> mlp = MLPRegressor(solver="lbfgs", max_iter=1000, random_state=0).fit(x, x[:, 0])
      >>> f, params = to_jax(mlp)
      >>> print(np.allclose(f(params, x)[:, 0], mlp.predict(x), atol=1e-5))
      True
      >>> print(relax.lrp(f)(params, x).shape)
      (4, 2)
    """
    parts = _parts(estimator)
    network = parts.network
    endings = _endings(network, parts.target)
    output = next(iter(endings)) if output is None else output
    output = "logits" if output == "logit" else output
    if output not in endings:
        known = " or ".join(f'"{name}"' for name in endings)
        raise ArgumentError(f"to_jax(output={output!r}): this {_name(network)} has {known}.")
    ending, phi = endings[output], _ACTIVATIONS[network.activation]
    features, depth = int(network.n_features_in_), len(network.coefs_)

    # Copies: scikit-learn goes on training in place.
    params: dict[str, dict[str, jax.Array]] = {}
    for number, (kernel, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        params[f"layer{number}"] = {"kernel": jnp.array(kernel), "bias": jnp.array(bias)}
    scalers = [f"scaler{number}" for number in range(len(parts.scalers))]
    params |= dict(zip(scalers, map(_center_and_scale, parts.scalers), strict=True))
    if parts.target is not None:
        params["target"] = _center_and_scale(parts.target)

    expected = shapes(params)

    def perceptron(params: Any, x: Any) -> jax.Array:
        check_params(params, expected)
        h = jnp.asarray(x)
        if h.ndim == 0 or h.shape[-1] != features:
            raise ArgumentError(
                f"x has shape {h.shape}; expected ({features},) or (samples, {features}), the "
                f"{features} features that the {_name(network)} was fitted on."
            )
        if not jnp.issubdtype(h.dtype, jnp.floating):  # counts; as ids they would be looked up
            h = h.astype(params["layer0"]["kernel"].dtype)
        for name in scalers:
            h = _scaled(params[name], h)
        for number in range(depth):
            h = h @ params[f"layer{number}"]["kernel"]
            h = h + _along(params[f"layer{number}"]["bias"], h)
            h = phi(h) if number < depth - 1 else ending(h)
        return _unscaled(params["target"], h) if "target" in params else h

    return perceptron, params


def feature_names(estimator: Any) -> list[str]:
    """Names of the features, in the order of the last axis of ``x`` and of its relevance.

    Args:
      estimator: as in `to_jax`.

    Returns:
      The names of the columns of the data frame it was fitted on; if there was none ``x0``,
      ``x1``, ..., as scikit-learn calls them.

    Raises:
      ArgumentError, ImportError: as `to_jax`.

    Example:
      >>> import numpy as np
      >>> from sklearn.neural_network import MLPRegressor
      >>> from relax.adapters.sklearn import feature_names
      >>> mlp = MLPRegressor(solver="lbfgs").fit(np.eye(3), np.ones(3))
      >>> print(feature_names(mlp))
      ['x0', 'x1', 'x2']
    """
    parts = _parts(estimator)
    for part in (*parts.scalers, parts.network):  # what was fitted on the data frame is the first
        names = getattr(part, "feature_names_in_", None)
        if names is not None:
            return [str(name) for name in names]
    return [f"x{number}" for number in range(int(parts.network.n_features_in_))]


class _Parts(NamedTuple):
    """What an estimator is made of.

    Attributes:
      scalers: of the features, in the order in which they are applied.
      network: a perceptron.
      target: the scaler whose inverse makes its output a prediction, or None.
    """

    scalers: list[Any]
    network: Any
    target: Any


def _parts(estimator: Any) -> _Parts:
    try:
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.pipeline import Pipeline
    except ImportError as error:
        raise ImportError(
            'relax.adapters.sklearn needs scikit-learn: pip install "relax-lrp[sklearn]".'
        ) from error

    if isinstance(estimator, MLPClassifier | MLPRegressor):
        return _Parts([], _fitted(estimator), None)
    if isinstance(estimator, Pipeline):
        *transforms, (_, last) = estimator.steps
        scalers = list(_scalers(transforms))
        inner = _parts(last)
        return inner._replace(scalers=scalers + inner.scalers)
    if isinstance(estimator, TransformedTargetRegressor):
        inner = _parts(_fitted(estimator).regressor_)
        scaler = estimator.transformer_
        if _is_identity(scaler):
            return inner
        if inner.target is not None:
            raise ArgumentError(
                message(
                    "to_jax: the target is transformed twice",
                    remedy="Explain the inner one: to_jax(estimator.regressor_).",
                )
            )
        if not isinstance(scaler, _scaler_types()) or _clips(scaler):
            raise ArgumentError(
                message(
                    f"to_jax: the target is transformed by a {_name(scaler)}{_clips(scaler)}; "
                    f"expected {_SCALERS}",
                    remedy="Explain the transformed target: to_jax(estimator.regressor_).",
                )
            )
        return inner._replace(target=scaler)
    searched = hasattr(estimator, "best_estimator_")
    raise ArgumentError(
        message(
            f"to_jax: a {_name(estimator)} is no MLPRegressor or MLPClassifier, and neither a "
            "Pipeline nor a TransformedTargetRegressor of one",
            remedy="Give its best_estimator_."
            if searched
            else "Any other model can be explained as a JAX function of your own, f(params, x).",
        )
    )


def _scalers(steps: list[tuple[str, Any]]) -> Iterator[Any]:
    """The scalers among the steps of a pipeline that stand in front of the network."""
    from sklearn.pipeline import Pipeline

    for number, (name, step) in enumerate(steps):
        if step is None or step == "passthrough":
            continue
        if isinstance(step, Pipeline):
            yield from _scalers(step.steps)
        elif not isinstance(step, _scaler_types()) or _clips(step):
            behind = number + 1
            raise ArgumentError(
                message(
                    f"to_jax: step `{name}` of the pipeline is a {_name(step)}{_clips(step)}; "
                    f"expected {_SCALERS}",
                    remedy=f"Explain what stands behind it, to_jax(pipeline[{behind}:]), at "
                    f"pipeline[:{behind}].transform(x).",
                )
            )
        else:
            yield _fitted(step)


_SCALERS = "StandardScaler, MinMaxScaler, MaxAbsScaler or RobustScaler"


def _scaler_types() -> tuple[type, ...]:
    from sklearn import preprocessing

    return tuple(getattr(preprocessing, name) for name in _SCALERS.replace(" or", ",").split(", "))


def _clips(scaler: Any) -> str:
    """A word for the error if what is out of range is clipped: no affine map."""
    return " that clips" if getattr(scaler, "clip", False) else ""


def _is_identity(transformer: Any) -> bool:
    """A FunctionTransformer of nothing: what a TransformedTargetRegressor has by default."""
    from sklearn.preprocessing import FunctionTransformer

    return (
        isinstance(transformer, FunctionTransformer)
        and transformer.func is None
        and transformer.inverse_func is None
    )


def _fitted(estimator: Any) -> Any:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise ArgumentError(
            message(
                f"to_jax: this {_name(estimator)} is not fitted",
                remedy="Call fit(x, y) first: the weights are what is explained.",
            )
        ) from None
    return estimator


def _name(estimator: Any) -> str:
    return type(estimator).__name__


def _center_and_scale(scaler: Any) -> dict[str, jax.Array]:
    """A scaler as ``(x - center) / scale``; what it does not do is not there."""
    center = scale = None
    if hasattr(scaler, "data_min_"):  # MinMaxScaler holds x * scale_ + min_
        center, scale = -scaler.min_ / scaler.scale_, 1 / scaler.scale_
    elif hasattr(scaler, "max_abs_"):
        scale = scaler.scale_
    elif hasattr(scaler, "with_centering"):
        center = scaler.center_ if scaler.with_centering else None
        scale = scaler.scale_ if scaler.with_scaling else None
    else:  # mean_ is there even if it is not subtracted
        center = scaler.mean_ if scaler.with_mean else None
        scale = scaler.scale_ if scaler.with_std else None
    found = {"center": center, "scale": scale}
    return {name: jnp.array(a) for name, a in found.items() if a is not None}


def _scaled(scaler: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    if "center" in scaler:
        x = x - _along(scaler["center"], x)
    return x / _along(scaler["scale"], x) if "scale" in scaler else x


def _unscaled(scaler: dict[str, jax.Array], y: jax.Array) -> jax.Array:
    if "scale" in scaler:
        y = y * _along(scaler["scale"], y)
    return y + _along(scaler["center"], y) if "center" in scaler else y


def _along(a: jax.Array, x: jax.Array) -> jax.Array:
    """One number for each entry of the last axis of x, said out loud: ranks may not be promoted."""
    return jnp.broadcast_to(a, x.shape)


def _identity(x: jax.Array) -> jax.Array:
    return x


def _both(logit: jax.Array) -> jax.Array:
    """Probabilities of two classes, of the one logit."""
    p = jax.nn.sigmoid(logit)
    return jnp.concatenate([1 - p, p], axis=-1)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": _identity,
    "logistic": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}


def _endings(network: Any, target: Any) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """What stands behind the last layer, by the name of the output; the default first."""
    out = network.out_activation_
    if out == "softmax":
        return {"logits": _identity, "probability": jax.nn.softmax}
    if out == "logistic":
        two = network.n_outputs_ == 1
        return {"logits": _identity, "probability": _both if two else jax.nn.sigmoid}
    if out == "exp" and target is None:
        return {"prediction": jnp.exp, "log": _identity}
    return {"prediction": jnp.exp if out == "exp" else _identity}


__all__ = ["feature_names", "to_jax"]
