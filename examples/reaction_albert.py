"""The ALBERT of RXNMapper in Flax, with the trained weights that a package on PyPI carries.

The network is a plain ``flax.linen`` module: nothing in it knows that relevance will be propagated
through it. It is an ALBERT (Lan et al., 2020, arXiv:1909.11942) of 770 thousand parameters, whose
only layer is applied twelve times. From a million chemical reactions, written as SMILES, it has
learned to fill in masked tokens, and by the way which atom of a product comes from where (Schwaller
et al., 2021, doi:10.1126/sciadv.abe4166). The weights come with the package ``rxnmapper`` (MIT).
"""

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from torch_checkpoint import load_checkpoint

PACKAGE = "rxnmapper"
WEIGHTS = "pytorch_model.bin"
# Stand before a reaction, after it, and in the place of a token that is to be filled in.
START, END, MASK = "[CLS]", "[SEP]", "[MASK]"


class WeightsError(ValueError):
    """The files of the network are missing, or are not the ones that are wanted."""


class Config(NamedTuple):
    """The sizes of a network of this kind."""

    vocabulary: int
    context: int
    segments: int
    embedding: int
    width: int
    heads: int
    hidden: int
    repeats: int
    epsilon: float


class Layer(nn.Module):
    """Attention, then two dense layers at each position; each adds to x and normalizes after."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From ``(batch, position, width)`` to the same."""
        c = self.config
        mixed = nn.MultiHeadDotProductAttention(c.heads, name="attention")(x)
        x = nn.LayerNorm(c.epsilon, name="attention_norm")(x + mixed)
        hidden = nn.gelu(nn.Dense(c.hidden, name="up")(x), approximate=False)
        return nn.LayerNorm(c.epsilon, name="norm")(x + nn.Dense(c.width, name="down")(hidden))


class ReactionAlbert(nn.Module):
    """Fills in tokens: ids ``(batch, position)`` in, logits of what stands at each position out."""

    config: Config

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """Logits ``(batch, position, vocabulary)``; each position sees all others."""
        c = self.config
        embed = nn.Embed(c.vocabulary, c.embedding, name="tokens")
        positions = nn.Embed(c.context, c.embedding, name="positions")
        segments = nn.Embed(c.segments, c.embedding, name="segments")
        x = embed(ids) + positions(jnp.arange(ids.shape[1])[None])
        x = x + segments(jnp.zeros_like(ids))  # A reaction is all of the first segment.
        x = nn.LayerNorm(c.epsilon, name="embedding_norm")(x)
        x = nn.Dense(c.width, name="widen")(x)
        layer = Layer(c, name="layer")
        for _ in range(c.repeats):
            x = layer(x)
        x = nn.gelu(nn.Dense(c.embedding, name="narrow")(x), approximate=False)
        x = nn.LayerNorm(c.epsilon, name="head_norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (c.vocabulary,), jnp.float32)
        return embed.attend(x) + bias[None, None]


_KEYS = {
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "segments": "type_vocab_size",
    "embedding": "embedding_size",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "repeats": "num_hidden_layers",
    "epsilon": "layer_norm_eps",
}
_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
_MODULES = {
    "tokens": "albert.embeddings.word_embeddings",
    "positions": "albert.embeddings.position_embeddings",
    "segments": "albert.embeddings.token_type_embeddings",
    "embedding_norm": "albert.embeddings.LayerNorm",
    "widen": "albert.encoder.embedding_hidden_mapping_in",
    "layer/attention/query": f"{_LAYER}.attention.query",
    "layer/attention/key": f"{_LAYER}.attention.key",
    "layer/attention/value": f"{_LAYER}.attention.value",
    "layer/attention/out": f"{_LAYER}.attention.dense",
    "layer/attention_norm": f"{_LAYER}.attention.LayerNorm",
    "layer/up": f"{_LAYER}.ffn",
    "layer/down": f"{_LAYER}.ffn_output",
    "layer/norm": f"{_LAYER}.full_layer_layer_norm",
    "narrow": "predictions.dense",
    "head_norm": "predictions.LayerNorm",
    "": "predictions",
}
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
# What classifies whole reactions, and the embedding and the bias of the head once more.
_UNUSED = ("albert.pooler.", "predictions.decoder.")


class ReactionModel(NamedTuple):
    """A trained network, with its tokens in the order of their ids."""

    network: ReactionAlbert
    variables: dict[str, Any]
    tokens: list[str]


def find_folder() -> Path:
    """The folder of the network in the package ``rxnmapper``, which is not imported.

    Its ``__init__`` would import PyTorch and more, which nothing here needs and which need not be
    installed.

    Raises:
        WeightsError: the package is not installed, or holds no such folder.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in Path(folder).glob(f"models/transformers/albert*/{WEIGHTS}"):
            return path.parent
    raise WeightsError("the weights are missing: pip install --no-deps rxnmapper")


def load(folder: str | os.PathLike[str] | None = None) -> ReactionModel:
    """The trained network, from the folder in ``rxnmapper`` or from another of the same kind.

    Raises:
        WeightsError: there is no folder, or it does not hold a network of this kind.
        CheckpointError: its checkpoint cannot be read.
        OSError: a file cannot be opened.
    """
    folder = find_folder() if folder is None else Path(folder)
    config = config_from_fields(json.loads((folder / "config.json").read_text("utf-8")))
    tokens = (folder / "vocab.txt").read_text("utf-8").splitlines()
    if len(tokens) != config.vocabulary:
        raise WeightsError(f"there are {len(tokens)} tokens, not {config.vocabulary}")
    variables = variables_from_checkpoint(load_checkpoint(folder / WEIGHTS), config)
    return ReactionModel(ReactionAlbert(config), variables, tokens)


def config_from_fields(fields: Mapping[str, Any]) -> Config:
    """The sizes that a configuration of Hugging Face names.

    Raises:
        WeightsError: it lacks one of them, or is that of another kind of network.
    """
    wanted = {"model_type": "albert", "hidden_act": "gelu", "num_hidden_groups": 1}
    for key, value in wanted.items():
        if fields.get(key) != value:
            raise WeightsError(f"the network has {key} {fields.get(key)!r}, not {value!r}")
    missing = ", ".join(key for key in _KEYS.values() if key not in fields)
    if missing:
        raise WeightsError(f"the configuration has no {missing}")
    return Config(**{name: fields[key] for name, key in _KEYS.items()})


def variables_from_checkpoint(state: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    """The variables of ``ReactionAlbert`` made of the state dict of an ``AlbertForMaskedLM``.

    Args:
        state: name to array, as ``load_checkpoint`` gives it.
        config: the sizes of the network.

    Raises:
        WeightsError: an array is missing, has another size than the network needs, or is left.
    """
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(ReactionAlbert(config).init, jax.random.key(0), ids)
    left = {name for name in state if not name.startswith(_UNUSED)}
    variables = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        _, *modules, kind = path
        name = f"{_MODULES['/'.join(modules)]}.{_LEAVES[kind]}"
        if name not in state:
            raise WeightsError(f"the checkpoint has no {name}")
        array = state[name]
        if array.size != leaf.size:
            raise WeightsError(f"{name} has shape {array.shape}, the network {leaf.shape}")
        if kind == "kernel":
            array = array.T  # PyTorch keeps (out, in), Flax (in, out), with either cut into heads.
        variables[path] = jnp.asarray(array.reshape(leaf.shape), leaf.dtype)
        left.discard(name)
    if left:
        raise WeightsError(f"the network has no place for {', '.join(sorted(left))}")
    return traverse_util.unflatten_dict(variables)
