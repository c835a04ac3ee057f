"""The gate: whether a picture is a drawing or a photograph, from the tower's features."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

SHRINKAGE = 0.1  # added to the variance of each feature
MISSED = 0.01  # of the drawings may pass for photographs
CERTAIN = 20.0  # the gate's logit at the middle of the drawings: nearly nothing is half of each


def photographs_mean(tower: nn.Module, samples: int = 20_000) -> torch.Tensor:
    """The mean of the features over ImageNet's photographs, as the tower's last normalization remembers it.

    That normalization makes each feature map's mean and deviation its bias and weight; taken as normal there, cut at 0
    and 6 by the activation.
    """
    last = tower.bn2
    drawn = torch.randn(samples, len(last.bias), generator=torch.Generator().manual_seed(0))
    return (drawn * last.weight.detach() + last.bias.detach()).clamp(0, 6).mean(0)


def fisher_gate(tower: nn.Module, drawn: np.ndarray, photographed: np.ndarray) -> nn.Linear:
    """Fisher's discriminant between drawings and photographs, features ``(n, 1280)`` each: above 0 for a drawing.

    The photographs at hand are cuts of a few, so they give only how features vary; what photographs are on the average
    the tower knows better. The line stands at the edge of the drawings: all but one in a hundred are on their side.
    """
    x, y = (torch.from_numpy(np.asarray(each, dtype=np.float64)) for each in (drawn, photographed))
    spread = (torch.cov(x.T) + torch.cov(y.T)) / 2 + SHRINKAGE * torch.eye(x.shape[1], dtype=torch.float64)
    direction = torch.linalg.solve(spread, x.mean(0) - photographs_mean(tower).double())
    values = x @ direction
    edge = torch.quantile(values, MISSED)
    scale = CERTAIN / (values.mean() - edge)
    gate = nn.Linear(x.shape[1], 1)
    gate.weight.data = (scale * direction).float()[None]
    gate.bias.data = -(scale * edge).float()[None]
    return gate.eval()
