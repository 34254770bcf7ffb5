"""The networks of the benchmarks as PyTorch modules, with weights from arrays."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from benchmarks.workers._problems import BERT, LLAMA

Weights = dict[str, np.ndarray]


class Pictures(nn.Module):
    """Convolutions, then dense layers; laid out as torchvision's VGG."""

    def __init__(self, features: list[nn.Module], classifier: list[nn.Module]):
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def tensor(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array)))


class EndPadded(nn.Conv2d):
    """A convolution that pads one more at the end than at the start, as Flax's with a stride.

    Not a padding layer before it: rules that look at a layer's input would take zeros for data.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = (self.kernel_size[0] - 2) // 2
        return super().forward(nn.functional.pad(x, (before, before + 1) * 2))


def conv(weights: Weights, name: str, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """A convolution from a kernel ``(height, width, in, out)``."""
    kernel = weights[f"params/{name}/kernel"]
    bias = weights.get(f"params/{name}/bias")
    size, _, before, after = kernel.shape
    kind = EndPadded if stride == 2 and size > 1 else nn.Conv2d
    layer = kind(before, after, size, stride, padding, bias=bias is not None)
    layer.weight = tensor(kernel.transpose(3, 2, 0, 1))
    if bias is not None:
        layer.bias = tensor(bias)
    return layer


def dense(weights: Weights, name: str, picture: tuple[int, ...] = ()) -> nn.Linear:
    """A dense layer from a kernel ``(in, out)``.

    Behind a flattened ``(height, width, channel)`` picture its rows are reordered, since PyTorch
    flattens ``(channel, height, width)``.
    """
    kernel = weights[f"params/{name}/kernel"]
    if picture:
        kernel = kernel.reshape(*picture, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    layer = nn.Linear(*kernel.shape)
    layer.weight, layer.bias = tensor(kernel.T), tensor(weights[f"params/{name}/bias"])
    return layer


def lenet(weights: Weights) -> nn.Module:
    features = []
    for name in ("conv_1", "conv_2"):
        features += [conv(weights, name), nn.ReLU(), nn.MaxPool2d(2)]
    first = dense(weights, "dense_1", (4, 4, 50))
    return Pictures(features, [first, nn.ReLU(), dense(weights, "head")])


def vgg16(weights: Weights) -> nn.Module:
    features = []
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for layer in range(1, depth + 1):
            features += [conv(weights, f"conv_{block}_{layer}", padding=1), nn.ReLU()]
        features.append(nn.MaxPool2d(2))
    first, second = dense(weights, "dense_1", (7, 7, 512)), dense(weights, "dense_2")
    return Pictures(features, [first, nn.ReLU(), second, nn.ReLU(), dense(weights, "head")])


def norm(weights: Weights, name: str) -> nn.BatchNorm2d:
    scale = weights[f"params/{name}/scale"]
    layer = nn.BatchNorm2d(len(scale), eps=1e-5)
    layer.weight, layer.bias = tensor(scale), tensor(weights[f"params/{name}/bias"])
    layer.running_mean = torch.from_numpy(weights[f"batch_stats/{name}/mean"])
    layer.running_var = torch.from_numpy(weights[f"batch_stats/{name}/var"])
    return layer


def normalized(weights: Weights, name: str, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    """A convolution and its BatchNorm, one after the other, so that Zennit can merge them."""
    return [conv(weights, name, stride, padding), norm(weights, f"{name}_norm")]


class Sum(nn.Module):
    """The sum of a block and its shortcut; a module, to which peers can give a rule."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sum(x, dim=-1)


class Bottleneck(nn.Module):
    """The block of ResNet50."""

    def __init__(self, weights: Weights, name: str, stride: int, project: bool, total: nn.Module):
        super().__init__()
        middle = normalized(weights, f"{name}/conv", stride, padding=1 if stride == 1 else 0)
        self.branch = nn.Sequential(
            *normalized(weights, f"{name}/reduce"),
            nn.ReLU(),
            *middle,
            nn.ReLU(),
            *normalized(weights, f"{name}/expand"),
        )
        shortcut = normalized(weights, f"{name}/shortcut", stride) if project else []
        self.shortcut = nn.Sequential(*shortcut)
        self.sum = total
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.sum(torch.stack([self.shortcut(x), self.branch(x)], dim=-1)))


def resnet50(weights: Weights, total: type = Sum) -> nn.Module:
    """ResNet50; ``total``: the class of the module that sums."""
    features: list[nn.Module] = [
        *normalized(weights, "stem", 2),
        nn.ReLU(),
        nn.ConstantPad2d((0, 1, 0, 1), -float("inf")),
        nn.MaxPool2d(3, 2),
    ]
    for stage, depth in enumerate((3, 4, 6, 3)):
        for i in range(depth):
            stride = 2 if stage and not i else 1
            name = f"block_{stage}_{i}"
            features.append(Bottleneck(weights, name, stride, not i, total()))
    return Pictures([*features, nn.AdaptiveAvgPool2d(1)], [dense(weights, "head")])


def state(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in weights.items()}


class Last(nn.Module):
    """A language model: word vectors to the logits after the last position."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits[:, -1]


class Classes(nn.Module):
    """A classifier of sentences: word vectors to the logits of classes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(inputs_embeds=x).logits


def llama(weights: Weights) -> nn.Module:
    from transformers.models.llama import modeling_llama

    model = modeling_llama.LlamaForCausalLM(modeling_llama.LlamaConfig(**LLAMA))
    model.load_state_dict(state(weights))
    return Last(model)


def bert(weights: Weights) -> nn.Module:
    from transformers.models.bert import modeling_bert

    model = modeling_bert.BertForSequenceClassification(modeling_bert.BertConfig(**BERT))
    model.load_state_dict(state(weights))
    return Classes(model)


def vit(weights: Weights) -> nn.Module:
    from torchvision.models import vision_transformer

    model = vision_transformer.vit_b_16()
    model.load_state_dict(state(weights))
    return model


NETWORKS = {
    "LeNet": lenet,
    "VGG16": vgg16,
    "ResNet50": resnet50,
    "Llama": llama,
    "BERT": bert,
    "ViT": vit,
}
