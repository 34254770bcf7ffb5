"""The network of the language model example once more: a tiny one on file, and two references.

`naive_logits` is what it computes, in float64 and loops; `modified_gradient` is what its relevance
is, by automatic differentiation of a network in which some derivatives are changed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from tokenizers import pre_tokenizers

import smollm2
from next_tokens import ENDS
from smollm2 import Config

CONFIG = Config(
    vocabulary=263,
    context=64,
    blocks=2,
    width=32,
    heads=4,
    key_heads=2,
    hidden=64,
    rotary_base=100.0,
    epsilon=1e-5,
)
MERGES = ["1 2", "Ġ t", "h e", "Ġt he"]


def tiny_tensors():
    """Name to array, as the file has them: weights are (out, in)."""
    rng = np.random.default_rng(0)
    c, size = CONFIG, CONFIG.width // CONFIG.heads

    def weight(*shape):
        return rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

    tensors = {"token_embd": weight(c.vocabulary, c.width), "output_norm": weight(c.width) + 1}
    for number in range(c.blocks):
        tensors |= {
            f"blk.{number}.attn_norm": weight(c.width) + 1,
            f"blk.{number}.attn_q": weight(c.heads * size, c.width),
            f"blk.{number}.attn_k": weight(c.key_heads * size, c.width),
            f"blk.{number}.attn_v": weight(c.key_heads * size, c.width),
            f"blk.{number}.attn_output": weight(c.width, c.heads * size),
            f"blk.{number}.ffn_norm": weight(c.width) + 1,
            f"blk.{number}.ffn_gate": weight(c.hidden, c.width),
            f"blk.{number}.ffn_up": weight(c.hidden, c.width),
            f"blk.{number}.ffn_down": weight(c.width, c.hidden),
        }
    return {f"{name}.weight": array for name, array in tensors.items()}


def write_gguf(path, tensors, pre="smollm"):
    """The tensors, the sizes and a vocabulary of bytes; the embedding has eight bits a weight."""
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(CONFIG.vocabulary)
    writer.add_context_length(CONFIG.context)
    writer.add_block_count(CONFIG.blocks)
    writer.add_embedding_length(CONFIG.width)
    writer.add_head_count(CONFIG.heads)
    writer.add_head_count_kv(CONFIG.key_heads)
    writer.add_feed_forward_length(CONFIG.hidden)
    writer.add_rope_freq_base(CONFIG.rotary_base)
    writer.add_layer_norm_rms_eps(CONFIG.epsilon)
    special = [*ENDS, "<|im_start|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*special, *letters, *(pair.replace(" ", "") for pair in MERGES)])
    writer.add_token_types(
        [TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * (CONFIG.vocabulary - len(special))
    )
    writer.add_token_merges(MERGES)
    for name, array in tensors.items():
        kind = GGMLQuantizationType.Q8_0 if name == "token_embd.weight" else None
        writer.add_tensor(name, array if kind is None else quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded_tensors():
    """The tensors as they are after the eight bits of the file."""
    kind, tensors = GGMLQuantizationType.Q8_0, tiny_tensors()
    embedding = quantize(tensors["token_embd.weight"], kind)
    return tensors | {"token_embd.weight": dequantize(embedding, kind)}


def naive_logits(tensors, ids):
    """The network in float64 and loops; rotations are products with complex numbers."""
    w = {name.removesuffix(".weight"): np.float64(array) for name, array in tensors.items()}
    c, size, count = CONFIG, CONFIG.width // CONFIG.heads, len(ids)

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.epsilon) * w[name]

    def rotated(x, heads):
        x = x.reshape(count, heads, size)
        turns = c.rotary_base ** -(np.arange(0, size, 2) / size)
        angle = np.arange(count)[:, None, None] * turns
        return (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)

    x = w["token_embd"][ids]
    for block in [f"blk.{number}" for number in range(c.blocks)]:
        h = norm(x, f"{block}.attn_norm")
        query = rotated(h @ w[f"{block}.attn_q"].T, c.heads)
        key = rotated(h @ w[f"{block}.attn_k"].T, c.key_heads)
        value = (h @ w[f"{block}.attn_v"].T).reshape(count, c.key_heads, size)
        mixed = np.zeros((count, c.heads, size))
        for here in range(count):
            for head in range(c.heads):
                shared = head // (c.heads // c.key_heads)
                scores = (query[here, head] * key[: here + 1, shared].conj()).sum(-1).real
                weights = np.exp(scores / np.sqrt(size))
                mixed[here, head] = weights @ value[: here + 1, shared] / weights.sum()
        x = x + mixed.reshape(count, -1) @ w[f"{block}.attn_output"].T
        h = norm(x, f"{block}.ffn_norm")
        gate, up = h @ w[f"{block}.ffn_gate"].T, h @ w[f"{block}.ffn_up"].T
        x = x + gate / (1 + np.exp(-gate)) * up @ w[f"{block}.ffn_down"].T
    return norm(x, "output_norm") @ w["token_embd"].T


@jax.custom_vjp
def halved(x):
    """The identity, whose derivative is a half."""
    return x


halved.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent / 2,))


def modified_logits(variables, config, x, conservative):
    """The network from its embedded tokens on, whose gradient times x is relevance.

    That is AttnLRP as its authors write it down for PyTorch: norms and the sigmoid of silu count as
    constants, and products halve the derivative. For CP-LRP attention and gates are constants.
    """
    hold, half = jax.lax.stop_gradient, (lambda z: z) if conservative else halved

    def norm(x, name, group):
        mean_square = jnp.mean(x**2, axis=-1, keepdims=True)
        return x * hold(jax.lax.rsqrt(mean_square + config.epsilon)) * group[name]["scale"][None]

    count, size, group = len(x), config.width // config.heads, config.heads // config.key_heads
    later = jnp.triu(jnp.full((1, count, count), -jnp.inf, x.dtype), 1)
    for number in range(config.blocks):
        block = variables["params"][f"blocks_{number}"]
        weights = block["attention"]
        h = norm(x, "attention_norm", block)
        query, key, value = (
            jnp.einsum("tc,chd->thd", h, weights[name]["kernel"])
            for name in ("query", "key", "value")
        )
        query, key = (smollm2.rotate(z[None], config.rotary_base)[0] for z in (query, key))
        key, value = (jnp.repeat(z, group, axis=1) for z in (key, value))
        scores = half(jnp.einsum("thd,shd->hts", query, key)) / size**0.5
        attention = jax.nn.softmax(scores + later, axis=-1)
        attention = hold(attention) if conservative else attention
        mixed = half(jnp.einsum("hts,shd->thd", attention, value))
        x = x + jnp.einsum("thd,hdc->tc", mixed, weights["out"]["kernel"])
        weights = block["feed_forward"]
        h = norm(x, "feed_forward_norm", block)
        gate = h @ weights["gate"]["kernel"]
        gate = gate * hold(jax.nn.sigmoid(gate))
        gate = hold(gate) if conservative else gate
        x = x + half(gate * (h @ weights["up"]["kernel"])) @ weights["down"]["kernel"]
    embedding = variables["params"]["embed"]["embedding"]
    return norm(x, "norm", variables["params"]) @ embedding.T


def modified_gradient(model, ids, seeds, conservative):
    """Relevance as gradient times input of `modified_logits`."""

    def chosen(x):
        logits = modified_logits(model.variables, model.network.config, x, conservative)
        return sum(seed.sign * logits[seed.position, seed.token] for seed in seeds)

    x = model.variables["params"]["embed"]["embedding"][ids]
    return np.asarray((x * jax.jit(jax.grad(chosen))(x)).sum(axis=-1))
