"""What ImageNet's 1,000 classes are in words: vectors that their names, and the names of wider kinds, find.

The wider kinds come from WordNet, of which ImageNet's classes are synsets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo

from training.wordnet import ancestors, nouns

DEFINITION = 0.3  # of a class's vector at the start, beside its name
KEEP, SHARPNESS, STEPS, RATE = 1.0, 20.0, 300, 3e-3
WIDEST = 500  # classes of a kind; what is true of more says nothing


def class_names() -> list[str]:
    """The first name of each class."""
    classes = ImageNetInfo()
    return [classes.index_to_description(i, detailed=False).split(",")[0] for i in range(1000)]


def class_vectors(words: Callable[[list[str]], np.ndarray]) -> torch.Tensor:
    """What the classes are in words ``(1000, 256)``, each of length 1.

    A class begins as its first name and a part of its definition. Then it is moved, not far, until its name finds it
    among the classes, it finds its name among the names, and the first name of each wider kind finds its members: a sum
    of all these words finds kinds no better and names worse.
    """
    classes, known = ImageNetInfo(), nouns()
    names = [classes.index_to_description(i, detailed=False) for i in range(1000)]
    described = [classes.index_to_description(i, detailed=True) for i in range(1000)]
    defined = [text.removeprefix(name).lstrip(": ") or name for name, text in zip(names, described, strict=True)]
    above = [ancestors(synset.removeprefix("n"), known) for synset in classes.label_names()]
    kinds = [kind for kind in sorted(set().union(*above)) if 2 <= sum(kind in each for each in above) <= WIDEST]
    member = torch.tensor([[kind in each for each in above] for kind in kinds]).float()
    share = member / member.sum(1, keepdim=True)

    named = torch.from_numpy(words(class_names()))
    wider = torch.from_numpy(words([known[kind].words[0] for kind in kinds]))
    start = F.normalize(named + DEFINITION * torch.from_numpy(words(defined)), dim=-1)
    vectors, right = start.clone().requires_grad_(), torch.arange(1000)
    optimizer = torch.optim.Adam([vectors], lr=RATE)
    for _ in range(STEPS):
        now = F.normalize(vectors, dim=-1)
        scores = SHARPNESS * named @ now.T
        found = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
        found = found - (F.log_softmax(SHARPNESS * wider @ now.T, dim=1) * share).sum(1).mean()
        optimizer.zero_grad()
        (found + KEEP * (now - start).square().sum(1).mean()).backward()
        optimizer.step()
    return F.normalize(vectors.detach(), dim=-1)
