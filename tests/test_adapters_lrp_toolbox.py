"""Models of the LRP Toolbox: text files against naive numpy, and against its recorded numbers."""

import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import rules, select
from relax.adapters.lrp_toolbox import to_jax

RECORD = Path(__file__).parents[2] / "shared" / "reference" / "seeds" / "toolbox.npz"


def text_of(layers):
    """The format, from its description: a header, the weights row-major, the bias."""
    lines = []
    for kind, *rest in layers:
        if kind in ("Linear", "Convolution"):
            kernel, bias, *stride = rest
            lines.append(" ".join(map(str, (kind, *kernel.shape, *stride))))
            lines += [" ".join(repr(float(v)) for v in np.ravel(a)) for a in (kernel, bias)]
        else:
            lines.append(" ".join(map(str, (kind, *rest))))
    return "\n".join(lines) + "\n"


def windows(x, height, width, stride):
    """Each window of images (N, H, W, C), as (N, rows, columns, height, width, C)."""
    rows = range(0, x.shape[1] - height + 1, stride[0])
    columns = range(0, x.shape[2] - width + 1, stride[1])
    return np.stack(
        [np.stack([x[:, r : r + height, c : c + width] for c in columns], 1) for r in rows], 1
    )


def naive(layers, x):
    """The layers, window by window."""
    for kind, *rest in layers:
        if kind == "Linear":
            kernel, bias = rest
            x = x @ kernel + bias
        elif kind == "Convolution":
            kernel, bias, *stride = rest
            patches = windows(x, *kernel.shape[:2], stride)
            x = np.einsum("nrchwd,hwdf->nrcf", patches, kernel) + bias
        elif kind in ("SumPool", "MaxPool"):
            height, width, *stride = rest
            patches = windows(x, height, width, stride)
            top, sums = patches.max((3, 4)), patches.sum((3, 4)) / np.sqrt(height * width)
            x = top if kind == "MaxPool" else sums
        elif kind == "Flatten":
            x = x.reshape(len(x), -1)
        elif kind == "SoftMax":
            x = np.exp(x) / np.exp(x).sum(1, keepdims=True)
        else:
            x = {"Rect": lambda v: np.maximum(v, 0), "Tanh": np.tanh}[kind](x)
    return x


@pytest.fixture
def convolutional(rng):
    """Every kind of layer; strides and windows that differ by axis, edges that are left over."""
    return [
        ("Convolution", rng.normal(size=(3, 2, 2, 4)), rng.normal(size=4), 1, 2),
        ("Rect",),
        ("SumPool", 3, 2, 2, 1),
        ("Convolution", rng.normal(size=(1, 2, 4, 3)), rng.normal(size=3), 1, 1),
        ("Tanh",),
        ("MaxPool", 2, 2, 2, 2),
        ("Flatten",),
        ("Linear", rng.normal(size=(12, 3)), rng.normal(size=3)),
        ("SoftMax",),
    ]


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "model.txt"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("output", ["logits", "logit", "probability"])
def test_forward(convolutional, written, rng, output):
    """Number for number what naive loops give, all layers, one sample as well."""
    path = written(text_of(convolutional))
    x = rng.normal(size=(4, 12, 13, 2))
    f, params = to_jax(path, output=output)
    want = naive(convolutional if output == "probability" else convolutional[:-1], x)
    np.testing.assert_allclose(jax.jit(f)(params, x), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(f(params, x[0]), want[0], rtol=1e-12, atol=1e-12)
    pixels = rng.integers(0, 255, size=(1, 12, 13, 2))
    np.testing.assert_allclose(f(params, pixels), f(params, pixels.astype(float)), rtol=1e-12)


def test_names(convolutional, written, rng):
    """Parameters and layers are called as the Toolbox counts its modules."""
    f, params = to_jax(written(text_of(convolutional)))
    assert list(params) == ["Convolution0", "Convolution3", "Linear7"]
    for name, layer in params.items():
        kernel, bias, *_ = convolutional[int(name[-1])][1:]
        np.testing.assert_array_equal(layer["kernel"], kernel)
        np.testing.assert_array_equal(layer["bias"], bias)
    plan = relax.layers(f)(params, rng.normal(size=(1, 12, 13, 2)))
    paths = [layer.path for layer in plan]
    for name in ("Convolution0", "Rect1", "SumPool2", "Convolution3", "Tanh4", "Linear7"):
        assert any(path.split("/")[0] == name for path in paths), paths


def test_relevance(convolutional, written, rng):
    """The account of a network without biases: all of the logit arrives at the pixels."""
    unbiased = [
        (kind, rest[0], 0 * rest[1], *rest[2:])
        if kind in ("Linear", "Convolution")
        else (kind, *rest)
        for kind, *rest in convolutional
    ]
    f, params = to_jax(written(text_of(unbiased)))
    x = rng.normal(size=(3, 12, 13, 2))
    relevance = relax.lrp(f, rules.Epsilon(0.0), target=1)(params, x)
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), f(params, x)[:, 1], rtol=1e-9)


def test_other_ways_to_write_it(written, rng):
    """The legacy form, Matlab's exponents and spaces, Windows' line ends, numpy 2: one model."""
    kernel, bias = rng.normal(size=(3, 2)).round(3), rng.normal(size=2).round(3)
    layers = [("Linear", kernel, bias), ("Tanh",), ("Linear", np.ones((2, 1)), np.ones(1))]
    plain = text_of(layers)
    rows = "\n".join(" ".join(map(str, row)) for row in kernel.tolist())
    flat = " ".join(map(str, kernel.ravel().tolist()))
    legacy = plain.replace(flat, rows)
    head, tail = plain.split(flat)
    matlab = head + "".join(f"{v:e} " for v in kernel.ravel()) + tail.replace("Tanh", "Tanh ")
    numpy_2 = head + " ".join(f"np.float64({v})" for v in kernel.ravel().tolist()) + tail
    x = rng.normal(size=(5, 3))
    for text in (plain, legacy, matlab, numpy_2, plain.replace("\n", "\r\n"), plain + "\n\n"):
        f, params = to_jax(written(text))
        np.testing.assert_array_equal(params["Linear0"]["kernel"], kernel)
        np.testing.assert_allclose(f(params, x), naive(layers, x), rtol=1e-12)


def test_float32(written, rng):
    f, params = to_jax(written(text_of([("Linear", rng.normal(size=(3, 2)), np.zeros(2))])))
    single = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    assert f(single, jnp.ones((1, 3), jnp.float32)).dtype == jnp.float32


def test_malformed_files(written):
    """What is wrong, and on which line."""
    for text, words in (
        ("", "is empty"),
        ("Linear 2 2\n1 2 3 4\n0 0\nSigmoid\n", "line 4: `Sigmoid` is no layer; expected .*Tanh"),
        ("Linear 2\n1 2\n0\n", "line 1: `Linear 2`; expected `Linear inputs outputs`"),
        ("Linear 2 -2\n1 2\n0\n", "line 1: `Linear 2 -2`"),
        ("Linear 2 2.0\n1 2\n0\n", "line 1: .*2 positive integers"),
        ("Tanh 3\n", "line 1: `Tanh 3`; nothing follows"),
        ("Tanh\nLinear 2 2\n1 2 3\n0 0\n", "line 3: 3 numbers; the weights of Linear1 has 4"),
        ("Linear 3 2\n1 2\n3 4\n0\n", "line 4: 1 numbers; row 3 of the weights"),
        ("Linear 2 2\n1 2 x 4\n0 0\n", "line 2: `x` is no number"),
        ("Linear 2 2\n1 2 nan 4\n0 0\n", "line 2: .*not finite"),
        ("Linear 2 2\n1 2 3 4\n0 0 0\n", "line 3: 3 numbers; the bias of Linear0 has 2"),
        ("Linear 2 2\n1 2 3 4\n", "line 2: the file ends, and the bias of Linear0, 2 numbers,"),
        ("Linear 2 2\n", "line 1: the file ends, and the weights of Linear0, 4 numbers,"),
        ("Convolution 1 1 1 2 1 1\n1\n0 0", "line 2: 1 numbers; the filters of Convolution0 has 2"),
        ("SumPool 2 2 2\n", "line 1: .*expected `SumPool height width stride stride`"),
        ("Tanh\n\nTanh\n", "line 2: a blank line"),
        (
            "Linear 1 2\n1 2\n0 0\nTanh\nLinear 3 1\n1 2 3\n0\n",
            "line 5: Linear2 takes 3 .* gives 2",
        ),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            to_jax(written(text))


def test_pickles_are_refused(tmp_path):
    """Whatever they are called; nothing in them runs."""

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    for name, content in (
        ("model.nn", pickle.dumps(Trap())),
        ("model.txt", pickle.dumps(Trap())),
        ("oldest.nn", pickle.dumps(Trap(), protocol=0)),
        ("latin.txt", "Bögen".encode("latin1")),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(relax.ArgumentError, match=r"nothing is ever unpickled\.\n.*model_io"):
            to_jax(path)
    array = tmp_path / "model.npy"
    np.save(array, np.ones(3))
    with pytest.raises(relax.ArgumentError, match="an array of numpy"):
        to_jax(array)
    with pytest.raises(FileNotFoundError):
        to_jax(tmp_path / "missing.txt")


def test_what_does_not_fit(convolutional, written, rng):
    f, params = to_jax(written(text_of(convolutional)))
    for shape, words in (
        ((12, 13), r"shape \(12, 13\); expected \(samples, height, width, channels\), or"),
        ((1, 12, 13, 3), r"Convolution0 \(line 1\) takes 2 channels"),
        ((1, 2, 13, 2), "Convolution0 .* windows of 3 x 2"),
        ((1, 3, 13, 2), "SumPool2 .* windows of 3 x 2"),
        ((1, 16, 13, 2), r"Linear7 \(line 12\) takes 12 features"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            f(params, rng.normal(size=shape))
    path = written("Linear 2 2\n1 2 3 4\n0 0\n")
    with pytest.raises(relax.ArgumentError, match="ends in Linear, not in SoftMax"):
        to_jax(path, output="probability")
    with pytest.raises(relax.ArgumentError, match='"logits" or "probability"'):
        to_jax(path, output="prediction")
    f, params = to_jax(path)
    with pytest.raises(relax.ArgumentError, match=r"expected \(samples, features\), or"):
        f(params, rng.normal(size=(1, 1, 2)))


def test_params_that_are_not_those_of_the_model(written):
    """What is missing, unknown or of another shape, by name; any width of floats will do."""
    f, params = to_jax(written("Linear 2 3\n1 2 3 4 5 6\n0 0 0\nRect\nLinear 3 1\n1 1 1\n0\n"))
    first, x = params["Linear0"], np.ones((1, 2))
    for given, words in (
        (None, "params is a NoneType; expected the dict"),
        ({"Linear0": first}, r"params lacks `Linear2`.\n  It has Linear0\."),
        (params | {"Linear0": None}, r"params\['Linear0'\] is a NoneType; expected the dict"),
        (params | {"Linear0": {"kernel": first["kernel"]}}, r"\['Linear0'\] lacks `bias`"),
        (params | {"Linear1": first}, "has `Linear1`, which is no weight of the model"),
        (
            params | {"Linear0": first | {"bias": jnp.zeros(1)}},
            r"\['Linear0'\]\['bias'\] has shape \(1,\); the model has \(3,\)",
        ),
        (
            params | {"Linear0": first | {"bias": [0.0, 0.0, 0.0]}},
            r"\['bias'\] is a list; expected an array",
        ),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            f(given, x)
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    np.testing.assert_allclose(f(narrow, x), f(params, x), rtol=1e-2)
    assert jax.eval_shape(f, jax.eval_shape(lambda p: p, narrow), x).shape == (1, 1)


@pytest.mark.skipif(not RECORD.exists(), reason="the record is not here")
def test_the_toolbox_own_numbers(written):
    """Its two networks, by way of a file: its logits, its relevance."""
    with np.load(RECORD) as stored:
        kinds = {net: [str(k) for k in stored[f"{net}/module_names"]] for net in ("xor", "lenet")}
        for net, names in kinds.items():
            layers, number = [], 0
            for kind in names:
                if kind in ("Linear", "Convolution"):
                    stride = (1, 1) if kind == "Convolution" else ()
                    kernel, bias = stored[f"{net}/W{number}"], stored[f"{net}/B{number}"]
                    layers.append((kind, kernel, bias, *stride))
                    number += 1
                else:
                    layers.append((kind, 2, 2, 2, 2) if kind == "SumPool" else (kind,))
            f, params = to_jax(written(text_of(layers)))
            x = stored[f"{net}/x"]
            np.testing.assert_allclose(f(params, x), stored[f"{net}/logits"], rtol=1e-9, atol=1e-9)
            if net == "xor":
                g, _ = to_jax(written(text_of(layers)), output="probability")
                np.testing.assert_allclose(g(params, x), stored["xor/probs"], rtol=1e-9)
            affine = select.dense | select.conv
            explain = relax.lrp(f, {affine: rules.Epsilon(1e-16)}, target="max")
            want = stored[f"{net}/R_argmax/simple"]
            got = jax.jit(explain)(params, x)
            assert np.abs(got - want).max() < 1e-8 * np.abs(want).max()
