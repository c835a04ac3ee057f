"""Training on the tower's features: the head for drawings together with the token table, and the gate.

The loss is the symmetric cross-entropy of CLIP (Radford et al. 2021) over a batch of emoji, each with one picture and
one caption. Captions move the vectors of the words in them; a penalty keeps each near where distilling put it, so that
the words keep what they know of one another.
"""

from __future__ import annotations

import hashlib
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from training.drawings import Emoji, caption, emoji
from training.network import Head
from training.words import Words

EVERY = 200  # steps between a checkpoint and the next


@dataclass(frozen=True)
class Plan:
    """How the head is trained."""

    steps: int = 3600
    plain: int = 192  # emoji a batch without skin tone, and with one
    toned: int = 64
    rate: float = 1.5e-3
    table_rate: float = 1e-3
    keep: float = 0.3  # how much a step away from the distilled table costs
    names: float = 0.0  # weight of the choice among the names of all emoji, beside the batch's captions
    seed: int = 0


REFIT = Plan(steps=2600, plain=224, toned=32, table_rate=0.0, keep=0.0, names=1.0)  # to a table that is finished


class Table(nn.Module):
    """The token vectors in training: those of the words that captions are made of.

    They are kept near the vectors of ``words``, and begin there, or in the whole table ``now``.
    """

    def __init__(self, words: Words, texts: Iterable[str], now: np.ndarray | None = None) -> None:
        super().__init__()
        self.words = words
        self.rows = sorted({i for text in texts for i in words.ids(text)})
        self.place = {row: place for place, row in enumerate(self.rows)}
        start = torch.from_numpy(words.table[self.rows])
        self.register_buffer("start", start)
        self.register_buffer("size", start.square().sum(1).clamp(min=1e-2))
        self.known: dict[str, list[int]] = {}
        self.vectors = nn.EmbeddingBag.from_pretrained(
            start.clone() if now is None else torch.from_numpy(now[self.rows]), freeze=False, mode="sum"
        )

    def forward(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The texts' vectors ``(n, 256)``, and how far their words are from the start, relative to their length."""
        for text in texts:
            if text not in self.known:
                self.known[text] = [self.place[i] for i in self.words.ids(text)]
        ids = [self.known[text] for text in texts]
        flat = torch.tensor([i for each in ids for i in each])
        offsets = torch.tensor(np.cumsum([0] + [len(each) for each in ids[:-1]]))
        used = flat.unique()
        moved = self.vectors.weight[used] - self.start[used]
        return F.normalize(self.vectors(flat, offsets), dim=-1), (moved.square().sum(1) / self.size[used]).mean()

    def whole(self) -> np.ndarray:
        """The whole table, trained vectors in their places."""
        table = self.words.table.copy()
        table[self.rows] = self.vectors.weight.detach().numpy()
        return table


def train_head(
    pictures: list[tuple[list[Emoji], np.ndarray]],
    words: Words,
    plan: Plan,
    checkpoint: Path,
    head: Head | None = None,
    now: np.ndarray | None = None,
) -> tuple[Head, np.ndarray]:
    """Train head and table, anew or from a head and a table on; goes on from the checkpoint where there is one.

    Returns the head and the table.
    """
    torch.manual_seed(plan.seed)
    captions = {text for one in emoji().values() for text in (one.name, *one.tags)}
    head, table, scale = head or Head(), Table(words, captions, now), nn.Parameter(torch.tensor(math.log(20.0)))
    names, named = [one.name for one in emoji().values()], {key: i for i, key in enumerate(emoji())}
    optimizer = torch.optim.AdamW(
        [
            {"params": [*head.parameters(), scale], "lr": plan.rate, "weight_decay": 0.05},
            {"params": list(table.parameters()), "lr": plan.table_rate, "weight_decay": 0.0},
        ]
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    where: dict[str, list[tuple[int, int]]] = defaultdict(list)  # emoji id -> its (file, row)s
    kinds: dict[str, Emoji] = {}
    for number, (each, _) in enumerate(pictures):
        for row, one in enumerate(each):
            where[one.id].append((number, row))
            kinds[one.id] = one
    plain = [one for one in kinds.values() if not one.toned]
    toned = [one for one in kinds.values() if one.toned]
    made_from = f"{plan} {_digest(pictures)} {hashlib.sha256(table.whole().tobytes()).hexdigest()}"
    first, start = 0, time.monotonic()
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved.get("made_from") == made_from:
            head.load_state_dict(saved["head"])
            table.load_state_dict(saved["table"])
            scale.data = saved["scale"]
            optimizer.load_state_dict(saved["optimizer"])
            first = saved["step"]
    for step in range(first, plan.steps):
        rng = random.Random(plan.seed * 1_000_003 + step)
        torch.manual_seed(plan.seed * 1_000_003 + step)  # a run that goes on drops out what one without a break would
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / 100) * (0.495 * (1 + math.cos(math.pi * step / plan.steps)) + 0.01)
        batch = rng.sample(plain, min(plan.plain, len(plain))) + rng.sample(toned, min(plan.toned, len(toned)))
        chosen = [rng.choice(where[one.id]) for one in batch]
        seen = torch.from_numpy(np.stack([pictures[number][1][row] for number, row in chosen])).float()
        text, away = table([*(caption(one, rng) for one in batch), *(names if plan.names else ())])
        vectors, heat = head(seen), scale.exp().clamp(max=50)
        logits = heat * (text[: len(batch)] @ vectors.T)
        right = torch.arange(len(batch))
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        if plan.names:
            right = torch.tensor([named[one.id] for one in batch])
            loss = loss + plan.names * F.cross_entropy(heat * (vectors @ text[len(batch) :].T), right)
        optimizer.zero_grad()
        (loss + plan.keep * away).backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        if (step + 1) % EVERY == 0 or step + 1 == plan.steps:
            left = (time.monotonic() - start) / (step + 1 - first) * (plan.steps - step - 1)
            print(f"head {step + 1}/{plan.steps}: loss {loss:.3f}, table moved {away:.3f}, {left:.0f} s left",
                  file=sys.stderr)  # fmt: skip
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = {"head": head.state_dict(), "table": table.state_dict(), "scale": scale.data}
            state |= {"made_from": made_from, "step": step + 1, "optimizer": optimizer.state_dict()}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)
    return head.eval(), table.whole()


def _digest(pictures: list[tuple[list[Emoji], np.ndarray]]) -> str:
    """Tells whether a checkpoint was made from the same pictures: from a sample of their features."""
    digest = hashlib.sha256()
    for each, features in pictures:
        digest.update("".join(one.id for one in each).encode())
        digest.update(np.ascontiguousarray(features[::97]).tobytes())
    return digest.hexdigest()
