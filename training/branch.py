"""The drawings' own tower, trained together with the head and the token table on icon sets of many hands.

It starts as the ImageNet tower and the head that was trained on its features; the stem and the first two stages stay as
they are. A step sees emoji twice, drawn by two hands, emoji with skin tones, and other things. The loss adds up

- picture -> name, a choice among the names of all emoji;
- name -> picture, among the batch and the pictures of the last steps (cross-batch memory, Wang et al. 2020);
- CLIP's loss (Radford et al. 2021) between the pictures and captions of the batch, with search words in them;
- one hand's picture -> the other's, among the same pictures;

and a penalty that keeps the words near where distilling put them.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import re
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.drawings import Emoji, caption, emoji
from training.head import Table
from training.icons import FLAGS, SIDE, THINGS, VENDORS, Set, load, sets
from training.network import PIXELS, Head, imagenet_tower
from training.words import Words

OWN = 0.5  # weight of the drawings' own tower beside the head on the ImageNet tower's features
SEEN = 80  # pixels at which the drawings' own tower sees them
FROZEN = 2  # stages of the tower, beside its stem
MONOCHROME = ("emojione-monotone", "fluent-emoji-high-contrast", "game-icons", "mdi", "tabler", "ph", "fa7-solid",
              "lucide", "healthicons", "pinhead", "temaki", "maki")  # fmt: skip
SIDED = re.compile(r"left|right|arrow|clock|thirty|button|flag|keycap|hand|finger|fist|wards|letter|music|read")
EVERY = 100  # steps between a checkpoint and the next


@dataclass(frozen=True)
class Plan:
    """How the drawings' tower is trained."""

    steps: int = 520
    fading: int = 260  # of these steps, the last, in which the rates sink to nothing
    words: int = 300  # steps after which the words stay as they are
    side: int = SEEN
    twice: int = 25  # emoji a process and step, each drawn by two hands
    toned: int = 3
    things: int = 5
    tower_rate: float = 4e-4
    head_rate: float = 8e-4
    table_rate: float = 6e-4
    keep: float = 0.3  # how much a step away from the distilled table costs
    memory: int = 4096
    seed: int = 0


class Convolution(nn.Module):
    """A convolution and the frozen normalization after it as one: trained as the two would be, three times faster."""

    def __init__(self, convolution: nn.Conv2d, normalization: nn.Module) -> None:
        super().__init__()
        fused = fuse_conv_bn_eval(convolution, normalization)
        scale = normalization.weight / torch.sqrt(normalization.running_var + normalization.eps)
        self.weight, self.bias = nn.Parameter(convolution.weight.detach().clone()), nn.Parameter(fused.bias.detach())
        self.scale = nn.Parameter(scale.detach().clone())
        self.shape = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        self.same = isinstance(convolution, Conv2dSame)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What convolution and normalization give."""
        if self.same:
            x = pad_same(x, self.weight.shape[-2:], self.shape[0], self.shape[2])
        return F.conv2d(x, self.weight * self.scale[:, None, None, None], self.bias, *self.shape)

    def ordinary(self) -> nn.Conv2d:
        """The same as one convolution."""
        stride, padding, dilation, groups = self.shape
        out, each, *kernel = self.weight.shape
        made = (Conv2dSame if self.same else nn.Conv2d)(each * groups, out, kernel, stride, padding, dilation, groups)
        made.weight.data, made.bias.data = self.weight.data * self.scale.data[:, None, None, None], self.bias.data
        return made


def trainable(tower: nn.Module) -> nn.Module:
    """A copy of the tower with its normalization frozen in, ready to be trained from the stage ``FROZEN`` on."""
    tower = copy.deepcopy(tower).eval()
    tower.classifier = nn.Identity()
    for module in list(tower.modules()):
        children = list(module.named_children())
        for (first, convolution), (second, normalization) in itertools.pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(normalization, nn.BatchNorm2d):
                setattr(module, first, Convolution(convolution, normalization))
                setattr(module, second, normalization.act if hasattr(normalization, "act") else nn.Identity())
    for part in (tower.conv_stem, *tower.blocks[:FROZEN]):
        part.requires_grad_(False)
    return tower.to(memory_format=torch.channels_last)


class Drawer(nn.Module):
    """Pictures of things drawn -> their vectors."""

    def __init__(self, tower: nn.Module, head: Head) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """``(n, 3, side, side)`` values 0-1 -> ``(n, 256)`` of length 1."""
        x = (pictures * 2 - 1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            x = self.tower.bn1(self.tower.conv_stem(x))
            for stage in self.tower.blocks[:FROZEN]:
                x = stage(x)
        for stage in self.tower.blocks[FROZEN:]:
            x = stage(x)
        return self.head(self.tower.bn2(self.tower.conv_head(x)).mean((2, 3)))


class Drawings(nn.Module):
    """What ships for drawings: a trained drawer, beside the head on the features of the ImageNet tower.

    The two learned from different sizes of the pictures; together they find more than either.
    """

    def __init__(self, drawer: Drawer, side: int, beside: Head) -> None:
        super().__init__()
        self.tower, self.head, self.beside = copy.deepcopy(drawer.tower), drawer.head, beside
        for module in list(self.tower.modules()):
            for name, child in module.named_children():
                if isinstance(child, Convolution):
                    setattr(module, name, child.ordinary())
        self.tower.to(memory_format=torch.contiguous_format)
        self.register_buffer("shrink", shrunk(torch.eye(PIXELS)[None, None], (side, PIXELS))[0, 0])

    def forward(self, pixels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """``(n, 224, 224, 3) uint8`` and the ImageNet tower's ``(n, 1280)`` -> ``(n, 256)`` of length 1."""
        x = self.shrink @ (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1) @ self.shrink.T
        own = self.head(self.tower.forward_features(x).mean((2, 3)))
        return F.normalize(OWN * own + (1 - OWN) * self.beside(features), dim=-1)


def shrunk(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """``(n, c, any, any)`` -> ``(n, c, *size)``."""
    return F.interpolate(pictures, size=size, mode="bilinear", antialias=True, align_corners=False)


def redrawn(x: torch.Tensor, inked: torch.Tensor, mirrored: torch.Tensor, side: int) -> torch.Tensor:
    """Each picture changed: ``(n, 3, 128, 128)`` values 0-1 -> ``(n, 3, side, side)``.

    Coarse, moved, turned, mirrored where ``mirrored`` allows it, with other lines and fills, in other colours, on
    another ground. Pictures of one ink (``inked``) get another ink.
    """
    n = len(x)
    some = lambda *shape: torch.rand(*shape)  # noqa: E731
    chance = lambda p: (torch.rand(n, 1, 1, 1) < p).float()  # noqa: E731
    angle, scale, stretch = (some(n) - 0.5) * 0.5, 1 + (some(n) - 0.4) * 0.5, 1 + (some(n) - 0.5) * 0.2
    flip = torch.where(mirrored & (some(n) < 0.3), -1.0, 1.0)
    cos, sin, shift = torch.cos(angle) * scale, torch.sin(angle) * scale, (some(n, 2) - 0.5) * 0.2
    theta = torch.stack([torch.stack([cos * flip, -sin * stretch, shift[:, 0]], 1),
                         torch.stack([sin * flip, cos * stretch, shift[:, 1]], 1)], 1)  # fmt: skip
    coarse = some(n) < 0.4
    order = torch.cat([coarse.nonzero()[:, 0], (~coarse).nonzero()[:, 0]])
    parts = []
    for part, through in ((x[coarse], int(torch.randint(44, 73, ()))), (x[~coarse], SIDE)):
        grid = F.affine_grid(theta[order[len(parts[0]) if parts else 0 :][: len(part)]], [len(part), 3, side, side],
                             align_corners=False)  # fmt: skip
        part = shrunk(part, (through, through)) if through < SIDE and len(part) else part
        parts.append(1 - F.grid_sample(1 - part, grid, align_corners=False))
    x = torch.cat(parts)[order.argsort()]
    colourful = 1 - inked.float()[:, None, None, None]
    ink = (1 - colourful) * chance(0.6)
    x = 1 - (1 - x) * (1 - ink * 0.7 * some(n, 3, 1, 1))
    wide = int(torch.randint(1, 3, ()))
    edge = F.pad((x[..., wide:] - x[..., :-wide]).abs().amax(1, True), (wide // 2, wide - wide // 2, 0, 0))
    edge = edge + F.pad((x[..., wide:, :] - x[..., :-wide, :]).abs().amax(1, True), (0, 0, wide // 2, wide - wide // 2))
    drawn, fade = chance(0.4) * colourful, some(n, 1, 1, 1) * chance(0.7)
    lines = 1 - drawn * ((2 + 3 * some(n, 1, 1, 1)) * edge).clamp(0, 1)
    fade = drawn * fade
    x = (x * (1 - fade) + fade) * lines
    ground = (x.amin(1, True) > 0.96).float() * chance(0.2)
    x = x + (some(n, 3, 1, 1) - 1) * ground
    turned = chance(0.6)[:, 0] * 0.15 * torch.randn(n, 3, 3)
    turned = turned - turned.mean(2, keepdim=True) + torch.eye(3)  # grey stays grey
    vivid = (0.4 + 1.0 * some(n, 1, 1)) * (1 - chance(0.08)[:, 0])
    turned = (vivid * turned + (1 - vivid) / 3) * (0.85 + 0.3 * some(n, 1, 1))
    return (torch.bmm(turned, x.flatten(2)).view_as(x) + (some(n, 1, 1, 1) - 0.5) * 0.15).clamp(0, 1)


class Pictures:
    """All pictures of the sets, by what they are of."""

    def __init__(self, sets: list[Set]) -> None:
        self.sets = sets
        self.inked = [each.name in MONOCHROME for each in sets]
        self.where: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # id -> set -> rows
        subjects: dict[str, Emoji] = {}
        for number, each in enumerate(sets):
            for row, one in enumerate(each.subjects):
                self.where[one.id][number].append(row)
                subjects[one.id] = one
        known = emoji()
        self.plain = [one for one in subjects.values() if one.id in known and not one.toned]
        self.toned = [one for one in subjects.values() if one.toned]
        self.things = [one for one in subjects.values() if one.id not in known]

    def some(self, one: Emoji, rng: random.Random, count: int = 1) -> list[tuple[int, int]]:
        """Pictures of a thing by as many hands as there are, as (set, row)."""
        hands = list(self.where[one.id])
        chosen = rng.sample(hands, count) if len(hands) >= count else rng.choices(hands, k=count)
        return [(hand, rng.choice(self.where[one.id][hand])) for hand in chosen]

    def read(self, places: list[tuple[int, int]]) -> torch.Tensor:
        """``(n, 3, 128, 128)`` values 0-1."""
        pixels = np.stack([self.sets[number].pixels[row] for number, row in places])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def average(parameters: list[nn.Parameter]) -> None:
    """Make each gradient the mean over the processes."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(mean.view_as(parameter))


def gathered(values: torch.Tensor) -> torch.Tensor:
    """The values of all processes, in one order."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def trained(
    head: Head, words: Words, now: np.ndarray, plan: Plan, folder: Path, processes: int
) -> tuple[Drawer, np.ndarray]:
    """Train a drawer that begins with a head, and the words from the table ``now`` on; returns drawer and whole table.

    Each process has a core and a batch of its own, and they share gradients: with other work on the machine, that waits
    less than one process with several cores.
    """
    for name in (*VENDORS, *FLAGS, *THINGS):
        load(name)  # drawn before the processes start
    with tempfile.TemporaryDirectory() as meeting:
        torch.multiprocessing.spawn(_train, (processes, meeting, head, words, now, plan, folder), nprocs=processes)
    drawer, table = Drawer(trainable(imagenet_tower()), Head()), Table(words, texts())
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    drawer.load_state_dict(saved["drawer"])
    table.load_state_dict(saved["table"])
    return drawer.eval(), table.whole()


def texts() -> list[str]:
    """All that captions are made of."""
    things = {one.name for each in sets() for one in each.subjects}
    return sorted(things.union(*((one.name, *one.tags) for one in emoji().values())))


def _train(
    share: int, processes: int, meeting: str, head: Head, words: Words, now: np.ndarray, plan: Plan, folder: Path
) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", rank=share, world_size=processes, init_method=f"file://{meeting}/all")
    drawer = Drawer(trainable(imagenet_tower()), head)
    train(drawer, Table(words, texts(), now), Pictures(sets()), plan, folder / "checkpoint.pt")
    dist.destroy_process_group()


def train(drawer: Drawer, table: Table, pictures: Pictures, plan: Plan, checkpoint: Path) -> None:
    """Train in place; goes on from the checkpoint where there is one."""
    scale = nn.Parameter(torch.tensor(math.log(25.0)))
    tower = [p for p in drawer.tower.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([
        {"params": tower, "lr": plan.tower_rate, "weight_decay": 0.02},
        {"params": [*drawer.head.parameters(), scale], "lr": plan.head_rate, "weight_decay": 0.05},
        {"params": list(table.parameters()), "lr": plan.table_rate, "weight_decay": 0.0},
    ])  # fmt: skip
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    labels = list(emoji().values())
    names, place = [one.name for one in labels], {one.id: i for i, one in enumerate(labels)}
    memory, memory_of = torch.zeros(0, 256), torch.zeros(0, dtype=torch.long)
    shares, share = dist.get_world_size(), dist.get_rank()
    first, start = 0, time.monotonic()
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        drawer.load_state_dict(saved["drawer"])
        table.load_state_dict(saved["table"])
        scale.data = saved["scale"]
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    shown: list[torch.Tensor] = []
    for step in range(first, plan.steps):
        seed = (plan.seed * 1_000_003 + step) * shares + share
        rng = random.Random(seed)
        torch.manual_seed(seed)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / 100, (plan.steps - step) / plan.fading)
        if step >= plan.words:
            optimizer.param_groups[2]["lr"] = 0
        twice = rng.sample(pictures.plain, plan.twice)
        toned, things = rng.sample(pictures.toned, plan.toned), rng.sample(pictures.things, plan.things)
        pairs = [pictures.some(one, rng, 2) for one in twice]
        subjects = [*twice, *toned, *things]  # of the first pictures; then come the others of `twice`
        places = [pair[0] for pair in pairs] + [pictures.some(one, rng)[0] for one in (*toned, *things)]
        places += [pair[1] for pair in pairs]
        of = [*subjects, *twice]
        seen = redrawn(
            pictures.read(places),
            torch.tensor([pictures.inked[number] for number, _ in places]),
            torch.tensor([not SIDED.search(one.name) for one in of]),
            plan.side,
        )
        drawer.train()
        drawer.tower.eval()
        vectors = drawer(seen)
        heat = scale.exp().clamp(max=60)

        texts, away = table([*names, *(caption(one, rng) for one in subjects)])
        texts, captions = texts[: len(names)], texts[len(names) :]
        emojis = [i for i, one in enumerate(of) if one.id in place]
        right = torch.tensor([place[of[i].id] for i in emojis])
        own = vectors[emojis]
        to_name = F.cross_entropy(heat * own @ texts.T, right)

        asked = torch.tensor([place[one.id] for one in (*twice, *toned)])
        among, among_of = torch.cat([own, memory]), torch.cat([right, memory_of])
        scores = heat * texts[asked] @ among.T
        same = asked[:, None] == among_of[None]
        stale = same.clone()
        stale[:, : len(own)] = False
        scores = scores.masked_fill(stale, -1e4).log_softmax(1)
        same[:, len(own) :] = False
        to_picture = -(scores * same).sum(1).div(same.sum(1)).mean()

        logits = heat * captions @ vectors[: len(subjects)].T
        diagonal = torch.arange(len(subjects))
        clip = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2

        one, other = vectors[: plan.twice], vectors[len(subjects) :]
        answers = torch.tensor([place[each.id] for each in twice])
        hands = torch.zeros(())
        for query, found in ((one, other), (other, one)):
            scores = 12 * query @ torch.cat([found, memory]).T
            stale = answers[:, None] == torch.cat([answers, memory_of])[None]
            stale[:, : len(answers)] = False
            hands = hands + F.cross_entropy(scores.masked_fill(stale, -1e4), torch.arange(len(answers))) / 2

        loss = (to_name + to_picture + 0.5 * clip + 0.6 * hands) / 2 + plan.keep * away
        optimizer.zero_grad()
        loss.backward()
        average(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        memory = torch.cat([gathered(own.detach()), memory])[: plan.memory]
        memory_of = torch.cat([gathered(right), memory_of])[: plan.memory]
        shown.append(torch.stack([to_name, to_picture, clip, hands, away]).detach())
        if share:
            continue
        if (step + 1) % 20 == 0:
            mean = " ".join(f"{value:.3f}" for value in torch.stack(shown[-20:]).mean(0))
            pace = (time.monotonic() - start) / (step + 1 - first)
            print(f"drawings {step + 1}/{plan.steps}: name, picture, caption, hand, words {mean}; "
                  f"heat {heat:.1f}; {pace:.1f} s a step", file=sys.stderr, flush=True)  # fmt: skip
        if (step + 1) % EVERY == 0 or step + 1 == plan.steps:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = {"drawer": drawer.state_dict(), "table": table.state_dict(), "scale": scale.data}
            state |= {"step": step + 1, "optimizer": optimizer.state_dict()}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)
    drawer.eval()
