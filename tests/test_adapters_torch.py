"""Modules of torch as JAX functions: against torch itself, and against Zennit's record.

They need the extra `torch`. Where there is none, this file is skipped.
"""

import collections
import importlib.util
import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import composites, rules
from relax.adapters.torch import difference, to_jax

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchax") is None:  # importing it is for relax to do
    pytest.skip("there is no torchax", allow_module_level=True)
nn, F = torch.nn, torch.nn.functional

ZENNIT = Path(__file__).parent / "data" / "zennit"


@pytest.fixture(autouse=True)
def _float64():
    """The oracles compute in float64; every network has the same weights in every run."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def shaken(module):
    """Biases, scales and running statistics as training leaves them: none is zero or one."""
    for name, x in (*module.named_parameters(), *module.named_buffers()):
        if name.endswith("running_var"):
            x.uniform_(0.5, 1.5)
        elif x.is_floating_point():
            x.data += 0.1 * torch.randn(x.shape)
    return module


def of_torch(module, x, weights=None):
    """What torch computes in eval mode, and gradient * input of it, each output weighted."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    given = torch.tensor(x, requires_grad=True)
    value = module(given)
    if weights is None:
        weights = np.linspace(0.5, 2.0, value.numel()).reshape(tuple(value.shape))
    (value * torch.tensor(weights)).sum().backward()
    for part, mode in modes.items():
        part.training = mode
    module.zero_grad()
    return value.detach().numpy(), given.grad.numpy() * x, weights


def error(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


class Made(nn.Module):
    """A module of some parts and a function of them and the input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


# Layers


def in_place(m, x):
    h = m.a(x)
    h += x
    h = F.relu_(h) * 1.0
    h[:, 0] *= 2
    h.mul_(h.new_tensor(1.5))
    return m.b(h)


def chosen(m, x):
    h = m.a(x)
    h = torch.where(h > 0, h, h * 0.1)
    return h.masked_fill(torch.arange(h.shape[1]) > 2, 0.0)  # a mask that torch makes


def moved(m, x):
    h = torch.cat([x, m.a(x)], -1).chunk(2, -1)[1] * 2 + torch.stack([x, x]).sum(0)
    h = F.pad(h, (1, 1))[:, 1:-1].flip(-1) + torch.roll(x, 1, -1) + x.cumsum(-1)
    return h.T.contiguous().view(6, 3).t().expand(2, 3, 6).mean(0)


def indexed(m, x):
    places = torch.tensor([2, 0, 1])
    h = m.a(x)[1:][:, places] + x[:2][:, [3, 4, 5]]
    h[..., 1] = x[0, 0]
    return h[torch.tensor([[True], [False]]).squeeze(1).nonzero().squeeze(1)]


def combined(m, x):
    h = 1 - m.a(x) - 2 * x + x / 3 + torch.add(x, x, alpha=0.5) + torch.sub(x, x, alpha=2)
    eye = torch.eye(6)
    return (
        h
        + torch.rsub(x, 1.0)
        + torch.addmm(x, x, eye)
        + torch.baddbmm(x[None], x[None], eye[None])[0]
    )


def statistics(m, x):
    h = F.normalize(x, dim=-1) + x.std(-1, keepdim=True) + x.abs().clamp(min=0.1).log()
    return h + x.pow(2).mean(-1, keepdim=True).sqrt() + x.amax(-1, keepdim=True)


def attended(m, x):
    return F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x), is_causal=True)


def masked(m, x):
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    return m.a(x, x, x, key_padding_mask=~mask, need_weights=False)[0]


def first(m, x):
    return m.a(x)[0]


def bare_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has a newer one; checkpoints have this one
        return nn.utils.weight_norm(nn.Linear(6, 4))


IMAGE, VECTOR, SEQUENCE, SOUND = (2, 3, 8, 8), (3, 6), (2, 5, 6), (2, 3, 12)
WEIGHT_NORM = nn.utils.parametrizations.weight_norm
SPECTRAL_NORM = nn.utils.parametrizations.spectral_norm
ATTENTION = {"batch_first": True}

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), VECTOR),
    "linear of sequences": (lambda: nn.Linear(6, 4, bias=False), SEQUENCE),
    "bilinear": (lambda: Made(lambda m, x: m.a(x, x), a=nn.Bilinear(6, 6, 4)), VECTOR),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, dilation=2), SOUND),
    "conv2d of groups": (lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), IMAGE),
    "conv3d": (lambda: nn.Conv3d(3, 4, 2), (1, 3, 4, 4, 4)),
    "conv same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), IMAGE),
    "conv circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), IMAGE),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1), IMAGE),
    "transposed of groups": (lambda: nn.ConvTranspose1d(3, 6, 4, 2, 1, groups=3), SOUND),
    "batch norm": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU()), VECTOR),
    "batch norm alone": (lambda: nn.BatchNorm2d(3), IMAGE),
    "layer norm": (lambda: nn.LayerNorm(6), SEQUENCE),
    "layer norm of two axes": (lambda: nn.LayerNorm((5, 6)), SEQUENCE),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3, 3)),
    "instance norm": (lambda: nn.InstanceNorm2d(3, affine=True), IMAGE),
    "rms norm": (lambda: nn.RMSNorm(6), SEQUENCE),
    **{
        name: ((lambda name=name: getattr(nn, name)()), VECTOR)
        for name in (
            *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "GELU", "SiLU", "Mish"),
            *("Softplus", "Tanh", "Sigmoid", "Hardswish", "Hardtanh"),
        )
    },
    "gelu by tanh": (lambda: nn.GELU("tanh"), VECTOR),
    "glu": (lambda: nn.GLU(), VECTOR),
    "softmax": (lambda: nn.Softmax(-1), VECTOR),
    "log softmax": (lambda: nn.LogSoftmax(-1), VECTOR),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), IMAGE),
    "max pool 1d": (lambda: nn.MaxPool1d(3), SOUND),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "adaptive to one": (lambda: nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d((2, 3)), IMAGE),
    "average pool, ceiled": (lambda: nn.AvgPool2d(3, 2, ceil_mode=True), IMAGE),
    "average pool, padded": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (1, 2, 7, 8)),
    "average pool, cut": (lambda: nn.AvgPool2d(2, 2, 1, ceil_mode=True), (1, 2, 7, 8)),
    "average pool 1d": (lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True), SOUND),
    "nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "bilinear image": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), (2, 4, 3, 3)),
    "reflection pad": (lambda: nn.ReflectionPad2d(1), IMAGE),
    "lstm": (lambda: Made(first, a=nn.LSTM(6, 4, 2, bidirectional=True, **ATTENTION)), SEQUENCE),
    "gru": (lambda: Made(first, a=nn.GRU(6, 4, **ATTENTION)), SEQUENCE),
    "rnn": (lambda: Made(first, a=nn.RNN(6, 4, **ATTENTION)), SEQUENCE),
    "lstm cell": (lambda: Made(first, a=nn.LSTMCell(6, 4)), VECTOR),
    "attention": (lambda: Made(masked, a=nn.MultiheadAttention(6, 2, **ATTENTION)), SEQUENCE),
    "encoder": (lambda: nn.TransformerEncoderLayer(6, 2, 8, **ATTENTION), SEQUENCE),
    "dot product attention": (
        lambda: Made(attended, q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 4)),
        SEQUENCE,
    ),
    "einsum": (
        lambda: Made(lambda m, x: torch.einsum("bij,bkj->bik", m.a(x), x), a=nn.Linear(6, 6)),
        SEQUENCE,
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), VECTOR),
    "weight norm": (lambda: WEIGHT_NORM(nn.Linear(6, 4)), VECTOR),
    "bare weight norm": (bare_weight_norm, VECTOR),
    "spectral norm": (lambda: SPECTRAL_NORM(nn.Linear(6, 4)), VECTOR),
    "in place": (lambda: Made(in_place, a=nn.Linear(6, 6), b=nn.Linear(6, 2)), VECTOR),
    "chosen": (lambda: Made(chosen, a=nn.Linear(6, 6)), VECTOR),
    "indexed": (lambda: Made(indexed, a=nn.Linear(6, 6)), VECTOR),
    "moved": (lambda: Made(moved, a=nn.Linear(6, 6)), VECTOR),
    "combined": (lambda: Made(combined, a=nn.Linear(6, 6)), VECTOR),
    "statistics": (lambda: Made(statistics), VECTOR),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, rng):
    """Values and derivatives are those of torch, and relevance goes through all of it."""
    make, shape = LAYERS[name]
    module, x = shaken(make()), rng.normal(size=shape)
    value, grad, weights = of_torch(module, x)
    f, params = to_jax(module)

    @jax.jit
    def both(params, x):
        got, pull_back = jax.vjp(lambda x: f(params, x), x)
        return got, x * pull_back(jnp.asarray(weights))[0]

    got, gradient_times_input = both(params, x)
    assert got.dtype == np.float64
    assert error(got, value) < 1e-11
    assert error(gradient_times_input, grad) < 1e-10
    assert "unsupported" not in {layer.kind for layer in relax.layers(f)(params, x)}


# Relevance


class Residual(nn.Module):
    """A small residual network as they are written: in place, and with a batch norm everywhere."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.block = nn.Sequential(
            collections.OrderedDict(
                conv=nn.Conv2d(4, 4, 3, padding=1, bias=False), norm=nn.BatchNorm2d(4)
            )
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.pool(F.relu(self.stem_norm(self.stem(x)), inplace=True))
        x = F.relu(x + self.block(x))
        return self.head(x.mean((2, 3)))


def jax_residual(p, x):
    """The same, written in JAX, channels first."""

    def norm(p, x):
        wide = lambda a: a.reshape(1, -1, 1, 1)
        scale = p["weight"] / jnp.sqrt(p["running_var"] + 1e-5)
        return (x - wide(p["running_mean"])) * wide(scale) + wide(p["bias"])

    conv = lambda p, x: jax.lax.conv(x, p["weight"], (1, 1), "SAME")
    x = jax.nn.relu(norm(p["stem_norm"], conv(p["stem"], x)))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = jax.nn.relu(x + norm(p["block"]["norm"], conv(p["block"]["conv"], x)))
    return x.mean((2, 3)) @ p["head"]["weight"].T + p["head"]["bias"][None]


RULES = {
    "epsilon": rules.Epsilon(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(low=-3.0, high=3.0),
    "alpha_beta": composites.epsilon_alpha2_beta1(),
    "guided": composites.guided_backprop(),
}


LONG = ("epsilon", "epsilon_plus", "alpha_beta")


@pytest.fixture(scope="module")
def residual():
    """A network, its function and parameters, an input, and one of each class."""
    torch.manual_seed(1)
    module = shaken(Residual().double())
    x = np.random.default_rng(1).normal(size=(3, 3, 6, 6))
    return module, *to_jax(module), x, np.arange(3)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in RULES]
)
def test_it_is_explained_as_the_same_network_in_jax(name, residual):
    """Batch norms are merged, choices and sums are found, under every composite."""
    _, f, params, x, target = residual
    values = [jax.jit(g)(params, x) for g in (f, jax_residual)]
    np.testing.assert_allclose(*values, rtol=1e-11, atol=1e-13)
    got, want = (
        jax.jit(relax.lrp(g, RULES[name], target=target))(params, x) for g in (f, jax_residual)
    )
    assert error(got, want) < 1e-11


def test_lrp_0_is_gradient_times_input_of_torch(residual):
    """Of a network of rectifiers, by torch's own derivative."""
    module, f, params, x, target = residual
    _, want, _ = of_torch(module, x, np.eye(3)[target])
    got = jax.jit(relax.lrp(f, rules.Epsilon(0.0), target=target))(params, x)
    assert error(got, want) < 1e-10


def test_the_account_closes(residual):
    """What is explained is received or kept, and told of."""
    _, f, params, x, target = residual
    _, account = jax.jit(relax.ledger(f, composites.epsilon_plus(), target=target))(params, x)
    kept = sum(account.by_cause().values())
    np.testing.assert_allclose(account.explained, account.received + kept, rtol=1e-10)


class Recorded(nn.Module):
    """A network whose relevances Zennit recorded: the parts are named as in the record."""

    def __init__(self, data):
        super().__init__()
        for name in dict.fromkeys(key.split("/")[1] for key in data if key.startswith("param/")):
            setattr(self, name, self.part(name, data))

    def part(self, name, data):
        array = lambda key: torch.tensor(data[f"param/{name}/{key}"])
        if "bn" in name:
            part = nn.BatchNorm2d(len(array("mean")), eps=float(array("eps")))
            state = {"running_mean": array("mean"), "running_var": array("var")}
            state |= {"weight": array("scale"), "bias": array("bias")}
            part.load_state_dict(state, strict=False)
            return part
        kernel = array("kernel")
        if kernel.ndim == 2:
            part, weight = nn.Linear(*kernel.shape), kernel.T
        elif name == "deconv":
            part = nn.ConvTranspose2d(*kernel.shape[2:], 3, 2, 1, output_padding=1)
            weight = kernel.permute(2, 3, 0, 1).flip(2, 3)
        else:
            weight, options = kernel.permute(3, 2, 0, 1), self.options(name)
            inputs = weight.shape[1] * options.get("groups", 1)
            part = nn.Conv2d(inputs, weight.shape[0], weight.shape[2], **options)
        part.load_state_dict({"weight": weight, "bias": array("bias")})
        return part


class ResnetSmall(Recorded):
    """With batch norms, an identity and a strided shortcut."""

    def options(self, name):
        stride = 2 if name in ("b2_conv1", "b2_short_conv") else 1
        return {"stride": stride, "padding": int("short" not in name)}

    def forward(self, x):
        x = F.relu(self.stem_bn(self.stem_conv(x)))
        h = F.relu(self.b1_bn1(self.b1_conv1(x)))
        x = F.relu(self.b1_bn2(self.b1_conv2(h)) + x)
        h = F.relu(self.b2_bn1(self.b2_conv1(x)))
        h = self.b2_bn2(self.b2_conv2(h))
        h += self.b2_short_bn(self.b2_short_conv(x))
        return self.dense(F.relu_(h).mean((2, 3)))


class Depthwise(Recorded):
    """Depthwise, grouped, dilated and transposed convolutions."""

    def options(self, name):
        return {
            "conv1": {"padding": 1},
            "depth": {"padding": 1, "groups": 8},
            "point": {},
            "grouped": {"padding": 1, "stride": 2, "groups": 3},
            "dilated": {"padding": 2, "dilation": 2},
        }[name]

    def forward(self, x):
        for name in ("conv1", "depth", "point"):
            x = F.relu6(getattr(self, name)(x))
        for name in ("grouped", "dilated", "deconv"):
            x = F.relu(getattr(self, name)(x))
        return self.dense(F.adaptive_avg_pool2d(x, 1).flatten(1))


SUMS = {"sums": rules.Norm()}
OF_ZENNIT = {
    "EpsilonPlusFlat": composites.epsilon_plus_flat(**SUMS),
    "EpsilonGammaBox": composites.epsilon_gamma_box(**SUMS),
    "EpsilonAlpha2Beta1": composites.epsilon_alpha2_beta1(**SUMS),
    "ExcitationBackprop": composites.excitation_backprop(**SUMS),
}


FIRST = "EpsilonPlusFlat"


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == FIRST else pytest.mark.slow) for n in OF_ZENNIT],
)
@pytest.mark.parametrize(
    ("network", "make"), [("resnet_small", ResnetSmall), ("depthwise", Depthwise)]
)
def test_zennit(network, make, name):
    """The same module of torch, explained by Zennit and by relax."""
    with np.load(ZENNIT / f"{network}.npz") as stored:
        data = dict(stored)
    f, params = to_jax(make(data))
    x = np.moveaxis(data["x"], -1, 1)
    assert error(jax.jit(f)(params, x), data["logits"]) < 1e-12
    got = jax.jit(relax.lrp(f, OF_ZENNIT[name], target=data["target"]))(params, x)
    want = data.get(f"R/{name}@canonized", data[f"R/{name}"])
    assert error(np.moveaxis(got, 1, -1), want) < 1e-9


# Names


def test_layers_bear_the_names_of_modules(residual):
    """In the plan, in selectors, and in the account; what has no module has that around it."""
    module, f, params, x, _ = residual
    plan = relax.layers(f, {"block/conv": rules.ZPlus(), "stem/weight": rules.Gamma(0.1)})
    rows = {row.path: row for row in plan(params, x)}
    assert list(rows) == [
        *("stem", "relu", "pool/reduce_window_max", "block/conv", "add", "relu#1", "mean", "head")
    ]
    assert set(dict(module.named_modules())) >= {"block.conv", "stem", "head"}
    assert isinstance(rows["block/conv"].rule, rules.ZPlus)
    assert isinstance(rows["stem"].rule, rules.Gamma)
    assert [rows[name].weight_path for name in ("stem", "block/conv", "head")] == [
        *("stem/weight", "block/conv/weight", "head/weight")
    ]
    assert all(row.where.startswith("test_adapters_torch.py:") for row in rows.values())
    with pytest.raises(relax.UnmatchedSelectorError, match="block/conv"):
        relax.layers(f, {"block.convolution": rules.ZPlus()})(params, x)
    relevance, latent = jax.jit(relax.lrp(f, at="block/conv"))(params, x)
    assert (relevance.shape, latent["block/conv"].shape) == (x.shape, (3, 4, 3, 3))


def test_a_scope_around_f_stays_outside(residual):
    """Names of a user's own come first."""
    _, f, params, x, _ = residual

    def named(params, x):
        with jax.named_scope("vision"):
            return f(params, x)

    paths = [row.path for row in relax.layers(named)(params, x)]
    assert paths[0] == "vision/stem"
    assert paths[-1] == "vision/head"


def test_a_module_that_is_used_twice_has_two_layers():
    """Under its first name; the parameters are there once."""
    shared = nn.Linear(6, 6)
    module = nn.Sequential(shared, nn.ReLU(), shared)
    f, params = to_jax(module)
    assert {name: set(part) for name, part in params.items()} == {"0": {"weight", "bias"}}
    x = np.ones((2, 6))
    assert [row.path for row in relax.layers(f)(params, x)] == ["0", "1/relu", "0#1"]
    value, _, weights = of_torch(module, x)
    assert error(f(params, x), value) < 1e-12
    got = jax.grad(lambda p: (f(p, x) * weights).sum())(params)["0"]["weight"]
    module.zero_grad()
    (module(torch.tensor(x)) * torch.tensor(weights)).sum().backward()
    assert error(got, shared.weight.grad.numpy()) < 1e-12


# Parameters


class Holding(nn.Module):
    """Everything that a module may hold: tied weights, buffers, tensors that nobody registered."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)
        self.register_buffer("positions", torch.arange(5))
        self.register_buffer("mask", torch.tensor([True, True, False, True]))
        self.loose = torch.linspace(0.0, 1.0, 4)
        self.listed = [torch.linspace(1.0, 2.0, 4), {"deep": torch.tensor(3.0)}]

    def forward(self, ids):
        x = self.embed(ids) * self.scale + self.loose + self.listed[0] * self.listed[1]["deep"]
        x = x.masked_fill(~self.mask, 0.0) + self.positions[: ids.shape[1], None]
        return self.out(x + torch.linspace(0, 1, 4))


def test_params_are_what_is_learned():
    """Floating-point parameters and buffers by module; the tied once; all else is a constant."""
    module = Holding()
    bare, params = to_jax(module)
    f = jax.jit(bare)
    ids = np.array([[0, 3, 6]])
    want = module(torch.tensor(ids)).detach().numpy()
    assert jax.tree.map(jnp.shape, params) == {"embed": {"weight": (7, 4)}, "scale": (4,)}
    assert error(f(params, ids), want) < 1e-12
    relevance = jax.jit(relax.lrp(bare, target=lambda z: z.at[:, :-1].set(0)))(params, ids)
    assert relevance.shape == ids.shape
    doubled = f(params | {"scale": 2 * params["scale"]}, ids)
    module.scale *= 2
    assert error(doubled, module(torch.tensor(ids)).detach().numpy()) < 1e-12
    grad = jax.grad(lambda p: f(p, ids).sum())(params)["embed"]["weight"]
    module.scale /= 2
    module(torch.tensor(ids)).sum().backward()
    assert error(grad, module.embed.weight.grad.numpy()) < 1e-12
    with pytest.raises(relax.ArgumentError, match="params lacks `scale`"):
        f({"embed": params["embed"]}, ids)


def test_params_are_copies():
    """torch goes on training in place, and f does not notice; nor does it the other way round."""
    module = Residual().double()
    f, params = to_jax(module)
    x = np.ones((1, 3, 8, 8))
    before = np.asarray(f(params, x))
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(torch.tensor(x)).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(f(params, x), before)
    assert error(to_jax(module)[0](to_jax(module)[1], x), before) > 1e-3


def test_dtypes():
    """Those of torch; without 64 bits in JAX float64 becomes float32."""
    linear = nn.Linear(3, 2)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        module = linear.to(dtype)
        _, params = to_jax(module)
        name = str(dtype).removeprefix("torch.")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {name}
        want = module.weight.detach().double().numpy()
        np.testing.assert_array_equal(np.asarray(params["weight"], np.float64), want)
    with jax.enable_x64(False):
        module = nn.Linear(3, 2, dtype=torch.float64)
        f, params = to_jax(module)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
        x = np.ones((2, 3), np.float32)
        want = module(torch.tensor(x).double()).detach().numpy()
        np.testing.assert_allclose(f(params, x), want, rtol=1e-6, atol=1e-6)


# Nothing is left behind


def test_the_module_stays_as_it_is():
    """Mode, numbers, flags, gradients, hooks: all as before, after an explanation and an error."""
    module = shaken(Residual())
    module.block.eval()
    module.stem.weight.requires_grad_(False)
    module(torch.ones(2, 3, 8, 8)).sum().backward()
    numbers = {name: x.clone() for name, x in module.state_dict().items()}
    state = lambda: (
        [
            (name, part.training, len(part._forward_hooks), len(part._forward_pre_hooks))
            for name, part in module.named_modules()
        ],
        [
            (name, id(x), x.requires_grad, x.device, x.grad is None)
            for name, x in module.named_parameters()
        ],
        sorted(vars(module)),
    )
    before = state()
    f, params = to_jax(module)
    x = np.ones((1, 3, 8, 8))
    jax.jit(relax.lrp(f))(params, x)
    with pytest.raises(TypeError):
        f(params, x, "too much")
    assert state() == before
    assert all(torch.equal(x, numbers[name]) for name, x in module.state_dict().items())
    assert module.training


def test_torch_and_jax_stay_as_they_are(residual):
    """Flags, defaults and the environment; torch computes and differentiates as ever."""

    def flags():
        return (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.accelerator.is_available(),
            torch.overrides._get_current_function_mode_stack(),
            torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
            os.environ.get("ENABLE_RUNTIME_UPTIME_TELEMETRY"),
            jax.config.jax_enable_x64,
            jax.config.jax_numpy_rank_promotion,
            jax.config.jax_default_matmul_precision,
            list(warnings.filters),
        )

    _, _, _, x, _ = residual
    before = flags()
    f, params = to_jax(residual[0])
    relax.lrp(f)(params, x)
    with pytest.raises(relax.ArgumentError):
        f(params, torch.ones(1))
    assert flags() == before
    with pytest.raises((TypeError, ValueError), match=r"rank|broadcast"):
        jnp.ones((2, 3)) + jnp.ones(3)
    a = torch.ones(3, requires_grad=True)
    (a * 2).sum().backward()
    assert type(a.grad) is torch.Tensor
    assert a.grad.tolist() == [2, 2, 2]
    generator = torch.get_rng_state()
    relax.lrp(f)(params, x)
    assert torch.equal(torch.get_rng_state(), generator)


def test_importing_torchax_turns_nothing_off():
    """torchax would leave the fused path of torch off for the whole process."""
    assert torch.backends.mha.get_fastpath_enabled()
    f, params = to_jax(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 1)
    )
    assert jax.eval_shape(f, params, np.ones((1, 3, 6))).shape == (1, 3, 6)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_module_that_changes_itself_is_pure():
    """What it writes down is gone after the call: no value of one trace is seen by the next."""

    def counting(m, x):
        m.calls += 1
        m.seen.append(x)
        m.last = m.a(x)
        return m.last * m.calls + len(m.seen)

    module = Made(counting, a=nn.Linear(3, 2))
    module.calls, module.seen = 0, []
    f, params = to_jax(module)
    x = np.ones((2, 3))
    first = f(params, x)
    with jax.checking_leaks():
        np.testing.assert_array_equal(jax.jit(f)(params, x), first)
    assert (module.calls, module.seen, hasattr(module, "last")) == (0, [], False)


# As a function of JAX


def test_transformations(residual):
    """jit, vmap, grad and checkpoint; no second trace on a second call."""
    _, f, params, x, _ = residual
    explain = relax.lrp(f, rules.Gamma(0.1), target=0)
    want = jax.jit(explain)(params, x)
    traces = []

    @jax.jit
    def compiled(params, x):
        traces.append(1)
        return explain(params, x)

    for scale in (1.0, 2.0):
        got = compiled(params, scale * x)
    assert len(traces) == 1
    np.testing.assert_allclose(compiled(params, x), want, rtol=1e-9, atol=1e-12)
    assert not np.allclose(got, want)
    each = jax.jit(jax.vmap(lambda x: explain(params, x[None])[0]))(x)
    np.testing.assert_allclose(each, want, rtol=1e-9, atol=1e-12)
    again = jax.jit(relax.lrp(jax.checkpoint(f), rules.Gamma(0.1), target=0))(params, x)
    np.testing.assert_allclose(again, want, rtol=1e-9, atol=1e-12)
    slope = jax.jit(jax.grad(lambda x: (explain(params, x) ** 2).sum()))(x)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0


# Outputs and arguments

Pair = collections.namedtuple("Pair", "scores other")


def test_outputs():
    """All of it, a field, an entry, or what a callable makes of it; and methods by name."""
    module = Made(
        lambda m, x, double=False: {
            "logits": m.a(x) * (2 if double else 1),
            "none": None,
            "states": (x, [x + 1]),
        },
        a=nn.Linear(3, 2),
    )
    x = np.ones((2, 3))
    want = module.a(torch.tensor(x)).detach().numpy()
    f, params = to_jax(module)
    whole = f(params, x)
    assert jax.tree.map(jnp.shape, whole) == {"logits": (2, 2), "states": ((2, 3), [(2, 3)])}
    for output in ("logits", "logit", lambda out: out["logits"]):
        np.testing.assert_allclose(to_jax(module, output=output)[0](params, x), want, rtol=1e-12)
    of_last = to_jax(module, output=lambda out: out["logits"][:, -1].sum())[0]
    np.testing.assert_allclose(of_last(params, x), want[:, -1].sum(), rtol=1e-12)
    np.testing.assert_allclose(
        to_jax(module, output="logits")[0](params, x, double=True), 2 * want, rtol=1e-12
    )
    pair = Made(lambda m, x: Pair(m.a(x), x), a=module.a)
    g, params = to_jax(pair)
    assert isinstance(g(params, x), Pair)
    for output in (0, "scores"):
        np.testing.assert_allclose(to_jax(pair, output=output)[0](params, x), want, rtol=1e-12)


class Methods(nn.Linear):
    """A module with more than one thing to ask for."""

    def features(self, x):
        return torch.relu(self(x))


def test_another_method():
    """Which itself may call the module."""
    module = Methods(3, 2)
    x = np.array([[1.0, -2.0, 3.0]])
    f, params = to_jax(module, method="features")
    want = module.features(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(f(params, x), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, pytest.param(torch.compile, marks=pytest.mark.slow)]
)
def test_wrappers_are_taken_off(wrap):
    """Of torch.compile, whose import takes long, and of data parallelism."""
    module = nn.Linear(3, 2)
    x = np.ones((1, 3))
    want = module(torch.tensor(x)).detach().numpy()
    f, params = to_jax(wrap(module))
    assert set(params) == {"weight", "bias"}
    np.testing.assert_allclose(f(params, x), want, rtol=1e-12)


def test_difference():
    """A few roundings; what torch and JAX do not agree on is found; the module keeps its mode."""
    module = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.GELU()).float()
    module[0].eval()
    x = np.ones((2, 6), np.float32)
    assert difference(module, x) < 1e-6
    assert [part.training for part in module.modules()] == [True, False, True, True]
    # A module that computes something else at every call.
    drifting = Made(lambda m, x: m.next(x), a=nn.Linear(1, 1))
    drifting.next = lambda x, seen=[]: (seen.append(1), {"y": x * len(seen)})[1]
    assert difference(drifting, x, output="y") == pytest.approx(0.5)
    embed = nn.Embedding(5, 3)
    assert difference(embed, np.array([[1, 4]], np.int32)) < 1e-12
    assert difference(Made(lambda m, x: x * float("nan")), x) == 0


# Errors


def asks(m, x):
    h = m.a(x)
    if h.sum() > 0:
        return h
    return -h


def test_control_flow_that_depends_on_the_input():
    """Under a trace it is an error, with the place and the remedy; outside of one it runs."""
    module = Made(lambda m, x: m.inner(x), inner=Made(asks, a=nn.Linear(3, 2)))
    f, params = to_jax(module)
    x = np.ones((2, 3))
    value = module(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(f(params, x), value, rtol=1e-12)
    words = r"(?s)asks for the value .* at test_adapters_torch.py:\d+ \(inner\).*torch.where"
    for call in (jax.jit(f), relax.lrp(f)):
        with pytest.raises(relax.ArgumentError, match=words):
            call(params, x)
    for function in (
        lambda m, x: x[x > 0],
        lambda m, x: x.nonzero(),
        lambda m, x: x[: int(x.sum())],
        lambda m, x: x * float(x.max()),
        lambda m, x: torch.tensor(x.max().item()),
    ):
        f, params = to_jax(Made(function, a=nn.Linear(3, 2)))
        with pytest.raises(relax.ArgumentError, match="asks for the value"):
            jax.jit(f)(params, x)


def test_an_operation_that_torchax_has_not():
    """It is named, with its place and a remedy."""
    f, params = to_jax(nn.Sequential(nn.Identity(), nn.AdaptiveMaxPool2d(2)))
    with pytest.raises(
        relax.UnsupportedOperationError, match=r"(?s)adaptive_max_pool2d.* \(1\).*call_jax"
    ):
        f(params, np.ones((1, 3, 4, 4)))


def test_errors():
    """What is wrong, and what to do."""
    linear = nn.Linear(3, 2)
    f, params = to_jax(linear)
    held = Made(lambda m, x: x)
    held.lock = open(os.devnull)  # noqa: SIM115
    cached = Made(lambda m, x: {"logits": x, "cache": object()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated
        script = torch.jit.script(linear)
    for call, words in (
        (lambda: to_jax(f), "a function is no torch.nn.Module"),
        (lambda: to_jax(nn.Linear), "a type is no torch.nn.Module"),
        (lambda: to_jax(script), r"(?s)ScriptModule.*scripted or traced from"),
        (lambda: to_jax(nn.LazyLinear(2)), r"(?s)`weight` has no shape.*Call the module once"),
        (lambda: to_jax(nn.Linear(3, 2, device="meta")), r"(?s)meta device.*Load the weights"),
        (lambda: to_jax(held), r"(?s)cannot be copied.*TextIOWrapper.*Detach"),
        (lambda: to_jax(linear, method="encode"), "a Linear has no such method"),
        (lambda: f(params, torch.ones(2, 3)), r"(?s)tensor of torch, of shape \(2, 3\).*numpy"),
        (lambda: f(params, x=[torch.ones(2)]), "tensor of torch"),
        (lambda: relax.lrp(f)(params, torch.ones(2, 3)), "a Tensor of torch"),
        (lambda: f({}, np.ones((2, 3))), r"params lacks `bias`.\n  It has nothing"),
        (lambda: f(params | {"b": 1.0}, np.ones((2, 3))), "has `b`, which is no weight"),
        (
            lambda: f(params | {"weight": np.ones((2, 1))}, np.ones((2, 3))),
            r"params\['weight'\] has shape \(2, 1\); the model has \(2, 3\)",
        ),
        (lambda: f(params | {"bias": torch.ones(2)}, np.ones((2, 3))), "'bias'.* is a Tensor; exp"),
        (lambda: call_with(cached, None), r'(?s)"logits", "cache", in which there is a object'),
        (lambda: call_with(cached, "scores"), 'returned a dict of "logits", "cache"'),
        (lambda: call_with(cached, 0), "returned a dict"),
        (lambda: call_with(linear, "logits"), "returned a Tensor"),
        (lambda: call_with(linear, "logit"), "returned a Tensor"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()
    held.lock.close()


def call_with(module, output):
    f, params = to_jax(module, output=output)
    return f(params, np.ones((2, 3)))
