"""Concepts: relevance through channels, the strongest samples, galleries and attribution graphs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import relax
from relax import composites, concepts, rules, select

RULES = {
    "epsilon": rules.Epsilon(),
    "composite": composites.epsilon_plus_flat(),
    "mapping": {"hidden": rules.Gamma(0.3)},
    "list": [("hidden", rules.AlphaBeta()), rules.ZPlus()],
    "callable": lambda layer: rules.ZPlus() if layer.kind == "conv" else None,
}


@pytest.fixture
def p(rng):
    shapes = {"stem": (3, 3, 2, 4), "body": (3, 3, 4, 5), "hidden": (5, 6), "head": (6, 3)}
    return {n: {"kernel": jnp.asarray(rng.normal(size=s))} for n, s in shapes.items()}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(3, 6, 7, 2)))


def convolve(p, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=numbers)


def network(p, x):
    h = jax.nn.relu(convolve(p["stem"], x))
    h = checkpoint_name(jax.nn.relu(convolve(p["body"], h)), "bodies")
    h = jax.nn.relu(h.mean((1, 2)) @ p["hidden"]["kernel"])
    return h @ p["head"]["kernel"]


# Relevance through each concept


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("at", ["body", "bodies"])
def test_concepts_add_up_to_the_explanation(name, at, p, x):
    """All relevance of this network passes the layer."""
    found = jax.jit(relax.crp(network, RULES[name], at=at, target=1))(p, x)
    assert found.shape == (5, *x.shape)
    whole = jax.jit(relax.lrp(network, RULES[name], target=1))(p, x)
    np.testing.assert_allclose(found.sum(0), whole, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["epsilon", "composite", "callable"])
def test_each_is_a_mask_written_out(name, p, x):
    """Some concepts, in batches, against one run with a mask each."""
    chosen = [4, 0, -3]
    given = RULES[name]
    base = [given] if name != "list" else given
    found = relax.crp(network, given, at="body", concepts=chosen, batch_size=2, target=1)(p, x)
    for row, channel in zip(found, (4, 0, 2), strict=True):
        masked = [("body", rules.Mask(jnp.eye(5)[channel])), *base]
        want = relax.lrp(network, masked, target=1)(p, x)
        np.testing.assert_allclose(row, want, rtol=1e-8, atol=1e-12)


@pytest.mark.more
def test_concepts_of_several_axes_and_of_rounds(p, x, rng):
    """Positions with channels; the rounds of a scan are an axis in front."""
    found = relax.crp(network, at="body", axis=(1, -1), target=0)(p, x)
    assert found.shape == (6, 5, *x.shape)
    by_channel = relax.crp(network, at="body", target=0)(p, x)
    np.testing.assert_allclose(found.sum(0), by_channel, rtol=1e-8, atol=1e-12)
    one = relax.crp(network, at="body", axis=(1, -1), concepts=[[2, 3]], target=0)(p, x)
    np.testing.assert_allclose(one[0], found[2, 3], rtol=1e-8, atol=1e-12)

    w = jnp.asarray(rng.normal(size=(4, 5, 5)))
    scanned = lambda w, h: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, w)[0]
    h = jnp.asarray(rng.normal(size=(2, 5)))
    each = relax.crp(scanned, at="dense")(w, h)
    whole = relax.lrp(scanned)(w, h)
    assert each.shape == (4, 5, 2, 5)
    for round_ in range(4):
        np.testing.assert_allclose(each[round_].sum(0), whole, rtol=1e-6, atol=1e-9)
    second = [("dense#1", rules.Mask(jnp.eye(5)[3]))]

    def unrolled(w, h):
        for i in range(4):
            h = jnp.tanh(h @ w[i])
        return h

    np.testing.assert_allclose(each[1, 3], relax.lrp(unrolled, second)(w, h), rtol=1e-8)


def test_nothing_that_goes_round_the_layer(rng):
    """With residual connections: by hand, the branch alone; and all that passes it is their sum."""
    w = {name: jnp.asarray(rng.normal(size=(5, 5))) for name in "abc"}
    block = lambda w, x: x + jnp.tanh(x @ w)
    network = lambda w, x: block(w["b"], block(w["a"], x)) @ w["c"]
    x = jnp.asarray(rng.normal(size=(2, 5)))
    rule = rules.Epsilon(0.1)
    each = relax.crp(network, rule, at="dense#1", target=1)(w, x)
    at_branch = relax.lrp(network, rule, at="dense#1", target=1)(w, x)[1]["dense#1"]
    _, onward = relax.vrp(lambda x: block(w["a"], x) @ w["b"], x, rules=rule)
    for concept in range(5):
        (want,) = onward(at_branch * jnp.eye(5)[concept][None])
        np.testing.assert_allclose(each[concept], want, rtol=1e-8, atol=1e-12)
    graph = concepts.flow(network, rule, at=["dense#0", "dense#1"], width=5, target=1)(w, x)
    _, onward = relax.vrp(
        lambda h: (x + h) @ w["b"], jnp.tanh(x @ w["a"]), rules={select.dense: rule}
    )
    for row, concept in enumerate(graph.concepts[0]):
        (below,) = onward(at_branch * jnp.eye(5)[concept][None])
        want = below.sum(0)[graph.concepts[1]]
        np.testing.assert_allclose(graph.edges[0][row], want, rtol=1e-8, atol=1e-12)


def test_in_a_scan_relevance_goes_to_earlier_rounds_alone(rng):
    """Round by round, against the loop written out and cut."""
    w = jnp.asarray(rng.normal(size=(3, 4, 4)))
    x = jnp.asarray(rng.normal(size=(2, 4)))
    step = lambda h, w: h + jnp.tanh(h @ w)
    scanned = lambda w, x: lax.scan(lambda h, w: (step(h, w), None), x, w)[0]
    rule = rules.Epsilon(0.1)
    each = relax.crp(scanned, rule, at="dense", target=0)(w, x)
    arrived = relax.lrp(scanned, rule, at="dense", target=0)(w, x)[1]["dense"]
    for last in range(3):

        def until(x, last=last):
            for i in range(last):
                x = step(x, w[i])
            return x @ w[last]

        _, onward = relax.vrp(until, x, rules=rule)
        for concept in range(4):
            (want,) = onward(arrived[last] * jnp.eye(4)[concept][None])
            np.testing.assert_allclose(each[last, concept], want, rtol=1e-8, atol=1e-12)


def test_gates_of_a_recurrent_cell(rng):
    """A layer of several inputs and outputs: its concepts add up to what passes it."""
    p = {"w": jnp.asarray(rng.normal(size=(3, 16))), "u": jnp.asarray(rng.normal(size=(4, 16)))}
    x = jnp.asarray(rng.normal(size=(2, 3)))

    def cell(p, x):
        h, c = jnp.ones((2, 4)), jnp.full((2, 4), 0.5)
        for _ in range(2):
            i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h

    rule = composites.arras_lstm()
    (first, *_) = relax.lrp(cell, rule, at="*")(p, x)[1]
    each = relax.crp(cell, rule, at=f"{first}#0")(p, x)
    none = relax.lrp(cell, [(f"{first}#0", rules.Mask(0.0)), rule])(p, x)
    np.testing.assert_allclose(
        each.sum(0), relax.lrp(cell, rule)(p, x) - none, rtol=1e-8, atol=1e-12
    )


def test_concepts_of_embeddings_and_of_values_of_one_name(p, rng):
    """Features of words; the second of two values of one name."""
    table = jnp.asarray(rng.normal(size=(7, 5)))
    text = lambda p, ids: jax.nn.relu(table[ids].sum(1) @ p["hidden"]["kernel"])
    ids = jnp.array([[1, 2, 3], [0, 6, 6]])
    each = relax.crp(text, rules.Epsilon(0.1), at="embed")(p, ids)
    whole = relax.lrp(text, rules.Epsilon(0.1))(p, ids)
    assert each.shape == (5, *ids.shape)
    np.testing.assert_allclose(each.sum(0), whole, rtol=1e-9, atol=1e-12)

    def twice(p, x):
        for name in ("hidden", "head"):
            x = checkpoint_name(jax.nn.relu(x @ p[name]["kernel"]), "h")
        return x

    x = jnp.asarray(rng.normal(size=(2, 5)))
    assert relax.crp(twice, at="h#1")(p, x).shape == (3, 2, 5)
    assert concepts.flow(twice, at="h")(p, x).layers == ("h#1", "h")
    with pytest.raises(relax.ArgumentError, match='The first alone is "h#0"'):
        relax.crp(twice, at="h")(p, x)


@pytest.mark.slow
def test_what_it_shares_with_lrp(p, x):
    """aux, several explained arguments, a batch by vmap, derivatives, samples alone."""
    fun = lambda x, y: (network(p, x + y), {"aux": x})
    (first, second), aux = relax.crp(fun, at="body", argnums=(0, 1), has_aux=True)(x, x)
    np.testing.assert_allclose(aux["aux"], x)
    np.testing.assert_allclose(first, second)
    explained = relax.crp(network, at="body", concepts=[1, 2])
    batched = jax.vmap(lambda x: explained(p, x[None])[:, 0], out_axes=1)(x)
    np.testing.assert_allclose(batched, explained(p, x), rtol=1e-8, atol=1e-12)
    total = lambda t: jnp.sum(explained(p, t * x)[0] ** 2)
    want = (total(1 + 1e-6) - total(1 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(total)(1.0), want, rtol=1e-5)


def test_all_channels_of_a_layer_share_what_is_above():
    """FLOPs of 64 channels: the passes above the layer are those of one run."""
    shapes = {"stem": (3, 3, 3, 8), "body": (3, 3, 8, 64), "hidden": (64, 4096), "head": (4096, 9)}
    p = {n: {"kernel": jax.ShapeDtypeStruct(s, jnp.float32)} for n, s in shapes.items()}
    x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    count = lambda f: jax.jit(f).lower(p, x).compile().cost_analysis()["flops"]
    one = count(relax.crp(network, at="body", concepts=[0], target=0))
    assert count(relax.crp(network, at="body", target=0)) < 64 * one / 4


# The strongest samples


def by_hand(p, data, path, by, reduce, normalize, k):
    """The oracle: every sample alone, all scores sorted."""
    axes = (1, 2)
    if by == "relevance":
        latent = relax.lrp(network, rules.ZPlus(), at=path, target="max")(p, data)[1][path]
    else:
        h = convolve(p["body"], jax.nn.relu(convolve(p["stem"], data)))
        latent = h if path == "body" else jax.nn.relu(h)
    latent = np.asarray(latent)
    score = latent.sum(axes) if reduce == "sum" else latent.max(axes)
    if normalize:
        score = score / np.abs(score).sum(1, keepdims=True)
    order = np.argsort(-score, axis=0, kind="stable")[:k].T
    values = np.take_along_axis(score, order.T, 0).T
    places = latent.reshape(len(latent), -1, latent.shape[-1]).argmax(1)
    return values, order, np.take_along_axis(places, order.T, 0).T


@pytest.mark.parametrize("by", ["relevance", "activation"])
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_strongest_samples(by, reduce, normalize, p, rng):
    """Streamed in batches of unequal size, for two places in one pass, against sorting all."""
    data = jnp.asarray(rng.normal(size=(11, 6, 7, 2)))
    p = p | {"head": {"kernel": jnp.abs(p["head"]["kernel"])}}
    search = concepts.maximization(
        network,
        rules.ZPlus(),
        at=["body", "bodies"],
        by=by,
        k=3,
        reduce=reduce,
        normalize=normalize,
        target="max",
    )
    state = search.run(p, [data[:4], data[4:8], data[8:]])
    assert int(state.seen) == 11
    assert set(state.top) == {"body", "bodies"}
    for path, top in state.top.items():
        values, samples, positions = by_hand(p, data, path, by, reduce, normalize, 3)
        np.testing.assert_allclose(top.values, values, rtol=1e-9)
        np.testing.assert_array_equal(top.samples, samples)
        np.testing.assert_array_equal(top.positions, positions)


def test_it_can_be_scanned_and_sharded(p, rng):
    """The state is a pytree of fixed shapes: a scan over batches, and a batch on four devices."""
    data = jnp.asarray(rng.normal(size=(3, 4, 6, 7, 2)))
    search = concepts.maximization(network, at="body", k=5, target=0)
    want = search.run(p, data)
    start = search.init(p, jax.ShapeDtypeStruct(data.shape[1:], data.dtype))
    step = lambda state, x: (search.update(state, p, x), None)
    scanned, _ = lax.scan(step, start, data)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = search.run(p, [jax.device_put(batch, rows) for batch in data])
    for got in (scanned, sharded):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), got, want)


def test_each_sample_by_its_own_label(p, rng):
    """Batches may be tuples of the last arguments; half precision is summed in float32."""
    data = jnp.asarray(rng.normal(size=(6, 6, 7, 2)))
    labels = jnp.array([0, 1, 2, 2, 1, 0])
    own = lambda p, x, labels: network(p, x)[jnp.arange(len(labels)), labels]
    search = concepts.maximization(own, at="body", k=3, argnums=1)
    state = search.run(p, [(data[:4], labels[:4]), (data[4:], labels[4:])])
    at_body = relax.lrp(network, at="body", target=labels)(p, data)[1]["body"]
    score = at_body.sum((1, 2)) / jnp.abs(at_body.sum((1, 2))).sum(1)[:, None]
    np.testing.assert_array_equal(state.top["body"].samples, jnp.argsort(-score, 0)[:3].T)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (p, data))
    top = concepts.maximization(network, at="body", k=3, target=0).run(half[0], [half[1]])
    assert top.top["body"].values.dtype == jnp.float32


def test_fewer_samples_than_k_and_samples_that_are_not_finite(p, rng):
    """Places stay empty; a sample with a NaN is left out and counted, at its own number."""
    data = jnp.asarray(rng.normal(size=(5, 6, 7, 2))).at[1, 2, 3, 0].set(jnp.nan)
    top = concepts.maximization(network, at="body", k=8, target=0).run(p, [data[:2], data[2:]])
    assert int(top.seen) == 5
    assert int(top.invalid) == 1
    found = np.asarray(top.top["body"].samples)
    assert np.all(np.sort(found[:, :4], axis=1) == [0, 2, 3, 4])
    assert np.all(found[:, 4:] == -1)
    assert np.all(np.asarray(top.top["body"].positions)[:, 4:] == -1)
    assert np.all(np.isneginf(np.asarray(top.top["body"].values)[:, 4:]))


def test_each_round_of_a_scan_has_its_own(rng):
    """Values of a layer in a scan, against the loop written out."""
    w = jnp.asarray(rng.normal(size=(3, 5, 5)))
    data = jnp.asarray(rng.normal(size=(9, 5)))
    scanned = lambda w, h: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, w)[0]

    def unrolled(w, h):
        for i in range(3):
            h = jnp.tanh(h @ w[i])
        return h

    (top,) = concepts.maximization(scanned, at="dense", k=2).run(w, [data]).top.values()
    apart = concepts.maximization(unrolled, at=["dense"], k=2).run(w, [data]).top
    assert top.samples.shape == (3, 5, 2)
    for round_, path in enumerate(("dense", "dense#1", "dense#2")):
        np.testing.assert_array_equal(top.samples[round_], apart[path].samples)
        np.testing.assert_allclose(top.values[round_], apart[path].values, rtol=1e-7)


# Pictures


@pytest.fixture
def searched(p, rng):
    data = np.asarray(rng.normal(size=(6, 6, 7, 2)))
    state = concepts.maximization(network, at="body", k=3, target="max").run(p, [jnp.asarray(data)])
    return data, state.top["body"]


def test_references(p, searched):
    """Heatmaps are those of `crp`, of that sample alone; a unit's lies in its receptive field."""
    data, top = searched
    find = lambda **options: concepts.references(
        network, rules.Epsilon(), top, data, at="body", concepts=[3, 1], target="max", **options
    )(p)
    rows = find()
    assert [[r.concept for r in row] for row in rows] == [[3] * 3, [1] * 3]
    explained = relax.crp(network, rules.Epsilon(), at="body", target="max")
    for row, concept in zip(rows, (3, 1), strict=True):
        for place, reference in enumerate(row):
            assert reference.sample == top.samples[concept, place]
            np.testing.assert_array_equal(reference.picture, data[reference.sample])
            want = explained(p, data[reference.sample][None])[concept, 0].sum(-1)
            np.testing.assert_allclose(reference.heatmap, want, rtol=1e-8, atol=1e-12)
    for row, concept in zip(find(unit=True), (3, 1), strict=True):
        for place, reference in enumerate(row):
            y, x = np.unravel_index(int(top.positions[concept, place]), (6, 7))
            outside = np.ones((6, 7), bool)
            outside[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = False
            assert np.all(reference.heatmap[outside] == 0)
            assert np.any(reference.heatmap != 0)
            box = reference.box
            assert box[1] - box[0] <= 5
            assert box[3] - box[2] <= 5


@pytest.mark.parametrize("rule", [rules.Epsilon(0.1), rules.Flat()], ids=["epsilon", "flat"])
def test_what_activates_a_concept(rule, p, searched):
    """By activation: the lower half of the network explained by itself, whatever the output is.

    What the rectifier behind the layer drops is no activation.
    """
    data, top = searched
    find = concepts.references(
        network, rule, top, data, at="body", concepts=[2], by="activation", target=0
    )
    lower = lambda x: convolve(p["body"], jax.nn.relu(convolve(p["stem"], x)))
    for reference in find(p)[0]:
        x = jnp.asarray(data[reference.sample])[None]
        only = lambda z: jnp.maximum(z, 0) * jnp.eye(5)[2][None, None, None]
        want = relax.lrp(lower, rule, target=only)(x)[0].sum(-1)
        np.testing.assert_allclose(reference.heatmap, want, rtol=1e-8, atol=1e-12)


def test_pictures_with_channels_first(p, searched):
    """The same heatmaps as with channels last."""
    data, top = searched
    options = {"at": "body", "concepts": [3], "target": "max"}
    last = concepts.references(network, rules.Epsilon(), top, data, **options)(p)
    moved = lambda p, x: network(p, jnp.moveaxis(x, 1, -1))
    turned = np.moveaxis(data, -1, 1)
    first = concepts.references(moved, rules.Epsilon(), top, turned, channel_axis=0, **options)(p)
    for a, b in zip(first[0], last[0], strict=True):
        np.testing.assert_allclose(a.heatmap, b.heatmap, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(a.picture, b.picture)
        assert a.box == b.box


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5])
def test_the_box_holds_its_share(share, rng):
    """Along either axis no more than half of the rest on either side, and it is a square."""
    heatmap = rng.normal(size=(20, 30)) ** 5
    top, bottom, left, right = concepts._gallery.bounding_box(heatmap, share)
    assert bottom - top == min(right - left, 20)
    magnitude = np.abs(heatmap)
    assert magnitude[top:bottom].sum() >= (share - 1e-9) * magnitude.sum()
    assert magnitude[:, left:right].sum() >= (share - 1e-9) * magnitude.sum()
    spot = np.zeros((20, 30))
    spot[4, 17] = -2.0
    assert concepts._gallery.bounding_box(spot, share) == (4, 5, 17, 18)
    assert concepts._gallery.bounding_box(np.zeros((20, 30)), share) == (0, 20, 0, 30)


def test_the_gallery_is_drawn(p, searched):
    """A picture and a heatmap for each reference, at the size of its box."""
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="extra `examples` not installed")
    data, top = searched
    rows = concepts.references(
        network, rules.Epsilon(), top, data, at="body", concepts=[3, 1], target="max"
    )(p)
    figure = concepts.gallery(rows, picture=lambda x: x[..., 0], names=["three", "one"])
    drawn = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(drawn) == 12
    first = rows[0][0]
    window = slice(*first.box[:2]), slice(*first.box[2:])
    np.testing.assert_array_equal(drawn[0], first.picture[..., 0][window])
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), first.heatmap[window])
    pyplot.close(figure)
    with pytest.raises(relax.ArgumentError, match="no references"):
        concepts.gallery([[]])
    with pytest.raises(relax.ArgumentError, match="1 names for 2 rows"):
        concepts.gallery(rows, names=["one"])


# Attribution graphs


@pytest.mark.parametrize("name", ["epsilon", "list"])
def test_edges_add_up_to_what_the_lower_concepts_have(name, p, x):
    """With every concept of the upper layer, and what a concept hands on is what it has."""
    found = jax.jit(
        concepts.flow(network, RULES[name], at=["stem", "hidden", "body"], width=6, target=1)
    )(p, x)
    assert found.layers == ("hidden", "body", "stem")
    latent = relax.lrp(network, RULES[name], at=["stem", "hidden", "body"], target=1)(p, x)[1]
    for i, path in enumerate(found.layers):
        whole = latent[path].sum(tuple(range(latent[path].ndim - 1)))
        order = np.asarray(found.concepts[i])
        assert sorted(order) == list(range(len(whole)))
        np.testing.assert_allclose(found.relevance[i], whole[order], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.total[i], whole.sum(), rtol=1e-9)
        magnitude = np.abs(np.asarray(found.relevance[i]))
        assert np.all(magnitude[:-1] >= magnitude[1:])
    for i, edges in enumerate(found.edges):
        np.testing.assert_allclose(edges.sum(0), found.relevance[i + 1], rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(edges.sum(1), found.relevance[i], rtol=1e-4, atol=1e-5)


def test_the_strongest_few(p, x):
    """A part of the whole graph; edges one by one, as text, and in a picture."""
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="extra `examples` not installed")
    make = lambda width, size: concepts.flow(
        network, at=["bodies", "stem"], width=width, batch_size=size, target=1
    )(p, x)
    whole, few = make(5, None), make(2, 1)
    assert few.edges[0].shape == (2, 2)
    np.testing.assert_array_equal(few.concepts[0], whole.concepts[0][:2])
    np.testing.assert_allclose(few.edges[0], whole.edges[0][:2, :2], rtol=1e-8, atol=1e-12)
    edges = list(few)
    assert len(edges) == 4
    assert edges[1].upper == ("bodies", int(few.concepts[0][0]))
    assert edges[1].lower == ("stem", int(few.concepts[1][1]))
    assert float(edges[1].relevance) == float(few.edges[0][0, 1])
    text = str(few)
    assert text.startswith(f"bodies: {float(few.total[0]):.4g}")
    assert f"{int(few.concepts[1][0])} {float(few.edges[0][0, 0]):+.3g}" in text
    axes = few.plot()
    assert len(axes.lines) == 4
    assert len(axes.collections) == 4
    widths = [line.get_linewidth() for line in axes.lines]
    shares = np.abs(np.asarray(few.edges[0])).ravel()
    np.testing.assert_allclose(widths, 6 * shares / shares.max(), rtol=1e-6)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["bodies", "stem"]
    pyplot.close(axes.figure)


@pytest.mark.slow
def test_a_graph_under_vmap(p, x):
    """One graph for each sample; they are a pytree."""
    find = concepts.flow(network, at=["body", "stem"], width=2, target=0)
    many = jax.vmap(lambda x: find(p, x[None]))(x)
    assert str(many) == "<attribution graphs: body, stem>"
    for i in range(3):
        one = find(p, x[i : i + 1])
        np.testing.assert_array_equal(many.concepts[0][i], one.concepts[0])
        np.testing.assert_allclose(many.edges[0][i], one.edges[0], rtol=1e-8, atol=1e-12)


# Errors


def test_errors(p, x, searched):
    """What is wrong, and what there is."""
    for options, words in (
        ({"at": ["body", "stem"]}, "one layer or value, and names 'body', 'stem'"),
        ({"at": "body", "axis": 4}, r"axis 4 of `body`: its value has shape \(3, 6, 7, 5\)"),
        ({"at": "body", "concepts": [5]}, r"there are \(5,\), got \[5\]"),
        ({"at": "body", "concepts": [1.5]}, "expected integers"),
        ({"at": "body", "concepts": [[1, 2]]}, r"shape \(K,\)"),
        ({"at": "body", "axis": (1, 3), "concepts": [1]}, r"\(K, 2\)"),
        ({"at": "body", "axis": (3, -1)}, "named twice"),
        ({"at": "body", "axis": 1.0}, "axis=1.0"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            relax.crp(network, **options)(p, x)
    with pytest.raises(relax.UnmatchedSelectorError, match="Nearest"):
        relax.crp(network, at="boddy")(p, x)
    for options in ({"by": "gradient"}, {"reduce": "mean"}, {"k": 0}):
        with pytest.raises(relax.ArgumentError, match=next(iter(options))):
            concepts.maximization(network, at="body", **options)
    with pytest.raises(relax.ArgumentError, match="no batch"):
        concepts.maximization(network, at="body").run(p, [])
    with pytest.raises(relax.ArgumentError, match="no iterable"):
        concepts.maximization(network, at="body").run(p, 3)
    with pytest.raises(relax.ArgumentError, match="two layers"):
        concepts.flow(network, at="body")(p, x)
    with pytest.raises(relax.ArgumentError, match="width"):
        concepts.flow(network, at="body", width=0)
    data, top = searched
    with pytest.raises(relax.ArgumentError, match="by='output'"):
        concepts.references(network, None, top, data, at="body", concepts=[0], by="output")
    for share in (0, 1.5):
        with pytest.raises(relax.ArgumentError, match="share"):
            concepts.references(network, None, top, data, at="body", concepts=[0], share=share)
    flat = concepts.references(
        network, rules.Epsilon(), top, data.reshape(6, -1), at="body", concepts=[0]
    )
    with pytest.raises(relax.ArgumentError, match="a picture has"):
        flat(p)
    state = concepts.maximization(network, at="body").init(p, x)
    for wrong, words in ((state, "state.top"), (top._replace(samples=top.samples[:2]), r"\(2,\)")):
        with pytest.raises(relax.ArgumentError, match=words):
            concepts.references(network, rules.Epsilon(), wrong, data, at="body", concepts=[0])(p)
    folded = lambda p, x: network(p, x.reshape(-1, 6, 7, 2)).reshape(3, 2, 3).sum(1)
    with pytest.raises(relax.ArgumentError, match=r"\(3, 12, 7, 2\).*\(6, 6, 7, 5\)"):
        concepts.maximization(folded, at="body").init(p, jnp.ones((3, 12, 7, 2)))
    empty = concepts.maximization(network, at="body").init(p, x).top["body"]
    find = concepts.references(network, rules.Epsilon(), empty, data, at="body", concepts=[0])
    with pytest.raises(relax.ArgumentError, match="no sample"):
        find(p)
