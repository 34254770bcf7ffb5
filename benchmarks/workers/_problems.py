"""The networks that all peers explain: weights and inputs, drawn once with a seed by NumPy.

Weights of convolutional networks have the names and layouts of Flax, joined by slashes; those of
transformers have the names and layouts of their PyTorch modules. Needs NumPy only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]

LLAMA: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
BERT: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "max_position_embeddings": 128,
    "layer_norm_eps": 1e-12,
    "num_labels": 2,
}
VIT: dict[str, Any] = {"layers": 12, "width": 768, "heads": 12, "hidden": 3072, "patch": 16}

# The shape of one input.
INPUTS: dict[str, tuple[int, ...]] = {
    "LeNet": (28, 28, 1),
    "VGG16": (224, 224, 3),
    "ResNet50": (224, 224, 3),
    "Llama": (128, LLAMA["hidden_size"]),
    "BERT": (128, BERT["hidden_size"]),
    "ViT": (224, 224, 3),
}
BOX = 3.0  # pictures lie between -3 and 3


def _affine(shapes: Shapes, name: str, kernel: tuple[int, ...], bias: bool = True) -> None:
    shapes[f"params/{name}/kernel"] = kernel
    if bias:
        shapes[f"params/{name}/bias"] = kernel[-1:]


def _lenet() -> Shapes:
    shapes: Shapes = {}
    _affine(shapes, "conv_1", (5, 5, 1, 20))
    _affine(shapes, "conv_2", (5, 5, 20, 50))
    _affine(shapes, "dense_1", (800, 500))
    _affine(shapes, "head", (500, 10))
    return shapes


def _vgg16() -> Shapes:
    shapes: Shapes = {}
    before = 3
    for block, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for layer in range(1, depth + 1):
            _affine(shapes, f"conv_{block}_{layer}", (3, 3, before, width))
            before = width
    _affine(shapes, "dense_1", (7 * 7 * 512, 4096))
    _affine(shapes, "dense_2", (4096, 4096))
    _affine(shapes, "head", (4096, 1000))
    return shapes


def _resnet50() -> Shapes:
    shapes: Shapes = {}

    def normalized(name: str, kernel: tuple[int, ...]) -> None:
        _affine(shapes, name, kernel, bias=False)
        for kind, part in (("params", "scale"), ("params", "bias")):
            shapes[f"{kind}/{name}_norm/{part}"] = kernel[-1:]
        for part in ("mean", "var"):
            shapes[f"batch_stats/{name}_norm/{part}"] = kernel[-1:]

    normalized("stem", (7, 7, 3, 64))
    before = 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for i in range(depth):
            block = f"block_{stage}_{i}"
            normalized(f"{block}/reduce", (1, 1, before, width))
            normalized(f"{block}/conv", (3, 3, width, width))
            normalized(f"{block}/expand", (1, 1, width, 4 * width))
            if not i:
                normalized(f"{block}/shortcut", (1, 1, before, 4 * width))
            before = 4 * width
    _affine(shapes, "head", (2048, 1000))
    return shapes


def _torch(shapes: Shapes, name: str, out: int, into: int, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = (out, into)
    if bias:
        shapes[f"{name}.bias"] = (out,)


def _norm(shapes: Shapes, name: str, width: int, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = (width,)
    if bias:
        shapes[f"{name}.bias"] = (width,)


def _llama() -> Shapes:
    width, hidden = LLAMA["hidden_size"], LLAMA["intermediate_size"]
    keys = width // LLAMA["num_attention_heads"] * LLAMA["num_key_value_heads"]
    shapes: Shapes = {"model.embed_tokens.weight": (LLAMA["vocab_size"], width)}
    for i in range(LLAMA["num_hidden_layers"]):
        block = f"model.layers.{i}"
        for name, out in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            _torch(shapes, f"{block}.self_attn.{name}_proj", out, width, bias=False)
        _torch(shapes, f"{block}.mlp.gate_proj", hidden, width, bias=False)
        _torch(shapes, f"{block}.mlp.up_proj", hidden, width, bias=False)
        _torch(shapes, f"{block}.mlp.down_proj", width, hidden, bias=False)
        _norm(shapes, f"{block}.input_layernorm", width, bias=False)
        _norm(shapes, f"{block}.post_attention_layernorm", width, bias=False)
    _norm(shapes, "model.norm", width, bias=False)
    _torch(shapes, "lm_head", LLAMA["vocab_size"], width, bias=False)
    return shapes


def _bert() -> Shapes:
    width, hidden = BERT["hidden_size"], BERT["intermediate_size"]
    table = "bert.embeddings"
    shapes: Shapes = {
        f"{table}.word_embeddings.weight": (BERT["vocab_size"], width),
        f"{table}.position_embeddings.weight": (BERT["max_position_embeddings"], width),
        f"{table}.token_type_embeddings.weight": (2, width),
    }
    _norm(shapes, f"{table}.LayerNorm", width)
    for i in range(BERT["num_hidden_layers"]):
        block = f"bert.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            _torch(shapes, f"{block}.attention.self.{name}", width, width)
        _torch(shapes, f"{block}.attention.output.dense", width, width)
        _norm(shapes, f"{block}.attention.output.LayerNorm", width)
        _torch(shapes, f"{block}.intermediate.dense", hidden, width)
        _torch(shapes, f"{block}.output.dense", width, hidden)
        _norm(shapes, f"{block}.output.LayerNorm", width)
    _torch(shapes, "bert.pooler.dense", width, width)
    _torch(shapes, "classifier", BERT["num_labels"], width)
    return shapes


def _vit() -> Shapes:
    width, hidden, patch = VIT["width"], VIT["hidden"], VIT["patch"]
    shapes: Shapes = {
        "class_token": (1, 1, width),
        "conv_proj.weight": (width, 3, patch, patch),
        "conv_proj.bias": (width,),
        "encoder.pos_embedding": (1, (224 // patch) ** 2 + 1, width),
    }
    for i in range(VIT["layers"]):
        block = f"encoder.layers.encoder_layer_{i}"
        _norm(shapes, f"{block}.ln_1", width)
        shapes[f"{block}.self_attention.in_proj_weight"] = (3 * width, width)
        shapes[f"{block}.self_attention.in_proj_bias"] = (3 * width,)
        _torch(shapes, f"{block}.self_attention.out_proj", width, width)
        _norm(shapes, f"{block}.ln_2", width)
        _torch(shapes, f"{block}.mlp.0", hidden, width)
        _torch(shapes, f"{block}.mlp.3", width, hidden)
    _norm(shapes, "encoder.ln", width)
    _torch(shapes, "heads.head", 1000, width)
    return shapes


SHAPES = {
    "LeNet": _lenet,
    "VGG16": _vgg16,
    "ResNet50": _resnet50,
    "Llama": _llama,
    "BERT": _bert,
    "ViT": _vit,
}
ABOUT_ONE = (0.5, 1.5)


def _draw(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("/kernel"):  # Flax: what goes in comes first
        return random.standard_normal(shape, np.float32) * math.sqrt(2 / math.prod(shape[:-1]))
    if name.endswith("/var"):
        return random.uniform(*ABOUT_ONE, shape)
    if name.endswith("/scale"):  # residual branches grow the sum only slowly
        return random.uniform(*ABOUT_ONE, shape) * (0.4 if "expand" in name else 1.0)
    if name.endswith("weight") and len(shape) == 1:
        return random.uniform(*ABOUT_ONE, shape)
    if name.endswith("weight") and "embeddings" not in name:  # PyTorch: what comes out comes first
        return random.standard_normal(shape, np.float32) / math.sqrt(math.prod(shape[1:]))
    return random.standard_normal(shape, np.float32) * 0.1


def write(network: str, batch: int, folder: Path, seed: int = 0) -> dict[str, str]:
    """Writes the weights of a network and so many inputs; the two files."""
    random = np.random.default_rng(seed)
    weights = {name: _draw(random, name, shape) for name, shape in SHAPES[network]().items()}
    x = np.clip(random.standard_normal((batch, *INPUTS[network])), -BOX, BOX)
    files = {kind: folder / f"{network}_{kind}.npz" for kind in ("weights", "input")}
    np.savez(files["weights"], **{k: v.astype(np.float32) for k, v in weights.items()})
    np.savez(files["input"], x=x.astype(np.float32))
    return {kind: str(path) for kind, path in files.items()}
