"""The network of a composer, its training in torch, and its graph in ONNX.

A query is ``reference + a * new - b * old``, with the weights of the best untrained sum, and a residual that begins as
nothing: a linear map of the three, and a small network that sees their products too. The loss is the cross-entropy of
the target among the pictures of the gallery (the reference itself and other right answers left out), as in the
contrastive training of CLIP (Radford et al. 2021); the residual form is that of combiners for composed retrieval
(Baldrati et al. 2022).
"""

from __future__ import annotations

import copy
import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgembed.composers.ways import ranks
from pgembed.encoders.composer import INPUTS, OUTPUT
from pgembed.errors import MissingExtra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pgembed.composers.ways import Vectors

EXTRA = "composer"
OPSET, IR_VERSION = 17, 8  # what onnxruntime 1.20 reads, and older ones too
WARM_UP = 50  # steps
HIDDEN, BEARS_HIDDEN = 128, 5_000  # units, and how many triplets bear them
MOST_COMPARED = 8_192  # pictures of a gallery in one step's loss
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pairs:
    """n triplets over one gallery of m pictures.

    ``gallery (m, dim)``, ``new`` and ``old (n, dim)`` are of unit length (``old`` zero where there is none);
    ``reference`` and ``target (n,)`` are places in the gallery. ``chance (n,)`` says how often each triplet is drawn;
    ``concept (m,)`` numbers what a picture shows, whatever the change, for the noise that is shared by twins.
    """

    gallery: Vectors
    reference: NDArray[np.intp]
    target: NDArray[np.intp]
    new: Vectors
    old: Vectors
    chance: NDArray[np.float64] | None = None
    concept: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.reference)

    def chosen(self, places: NDArray[np.intp]) -> Pairs:
        """Some of the triplets, over the same gallery."""
        chance = None if self.chance is None else self.chance[places]
        return Pairs(
            self.gallery, self.reference[places], self.target[places], self.new[places], self.old[places], chance,
            self.concept,
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How a composer is trained. ``steps`` are at most so many: where ``patience`` looks, one every ``every`` steps,
    bring nothing better on the triplets kept back, it stops."""

    steps: int = 1_200
    batch: int = 256
    rate: float = 1e-3
    decay: float = 0.01
    hidden: int | None = None  # units of the network beside the linear map; 0: the map alone; None: by the triplets
    heat: float = 30.0  # what cosines are multiplied with
    alone: float = 0.25  # noise of each vector: a difference of two other pictures' vectors, times this
    shared: float = 0.0  # and of a concept's, the same for all its pictures
    forget_old: float = 0.1  # share of the triplets whose old words are not told
    every: int = 50
    patience: int = 6
    seed: int = 0


def torch_and_onnx() -> tuple[Any, Any]:
    """The packages of the extra. Raises MissingExtra."""
    try:
        return importlib.import_module("torch"), importlib.import_module("onnx")
    except ImportError as error:
        raise MissingExtra("Training a composer", EXTRA) from error


@dataclass(frozen=True)
class Weights:
    """A trained network: ``map (3 dim, dim)`` of reference, new and old, the untrained sum included; and two layers."""

    map: Vectors
    first: Vectors | None = None  # (5 dim, hidden)
    bias: Vectors | None = None  # (hidden,)
    second: Vectors | None = None  # (hidden, dim)

    def compose(self, reference: Vectors, new: Vectors, old: Vectors) -> Vectors:
        """Queries ``(n, dim)``, of any length, for vectors of unit length: what the graph computes."""
        found = np.concatenate([reference, new, old], axis=1) @ self.map
        if self.first is not None and self.bias is not None and self.second is not None:
            seen = _seen(np.concatenate, reference, new, old)
            found = found + np.maximum(seen @ self.first + self.bias, 0) @ self.second
        return found


def _seen(join: Any, reference: Any, new: Any, old: Any) -> Any:  # noqa: ANN401
    """What the hidden units see: the three, and the picture's products with the words, of about the same size."""
    scale = reference.shape[1] ** 0.5
    return join([reference, new, old, scale * reference * new, scale * reference * old], 1)


def fit(
    sets: Sequence[Pairs],
    kept_back: Sequence[Pairs],
    start: tuple[float, float],
    plan: Plan,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Weights:
    """Train on the sets, and return what finds most targets of ``kept_back`` first (at the worst the start).

    ``start`` is the weight of the new words and of the old ones in the untrained sum. A run that was cut off goes on
    from its checkpoint. Raises MissingExtra.
    """
    torch, _ = torch_and_onnx()
    if plan.hidden is None:
        plan = replace(plan, hidden=HIDDEN if sum(map(len, sets)) >= BEARS_HIDDEN else 0)
    run = _Run(torch, sets, kept_back, start, plan)
    made_from = run.made_from()
    if checkpoint is not None and checkpoint.exists():
        saved = _read(torch, checkpoint)
        if saved.get("made_from") == made_from:
            run.resume(saved)
    while run.step < plan.steps and run.waited < plan.patience:
        run.advance()
        if progress is not None:
            progress(run.step, plan.steps)
        if run.step % plan.every == 0 or run.step == plan.steps:
            run.look()
            if checkpoint is not None:
                partial = checkpoint.with_suffix(".part")
                torch.save({"made_from": made_from, **run.state()}, partial)
                partial.replace(checkpoint)
    return run.best


def _read(torch: Any, checkpoint: Path) -> dict[str, Any]:  # noqa: ANN401
    """A checkpoint; nothing where it cannot be read, as one that another version wrote."""
    try:
        return torch.load(checkpoint, weights_only=True)
    except Exception:
        return {}


class _Run:
    """One training: the network, where it stands, and the best that it has been."""

    def __init__(
        self,
        torch: Any,  # noqa: ANN401
        sets: Sequence[Pairs],
        kept_back: Sequence[Pairs],
        start: tuple[float, float],
        plan: Plan,
    ) -> None:
        self._torch, self._plan, self._sets, self._kept_back = torch, plan, sets, kept_back
        dim = sets[0].gallery.shape[1]
        torch.manual_seed(plan.seed)
        one = np.eye(dim, dtype=np.float32)
        self._start = np.concatenate([one, start[0] * one, start[1] * one]).astype(np.float32)
        zeros = torch.zeros
        self._parts: dict[str, Any] = {"map": zeros(3 * dim, dim)}
        if plan.hidden:
            wide = torch.randn(5 * dim, plan.hidden) / (5 * dim) ** 0.5
            self._parts |= {"first": wide, "bias": zeros(plan.hidden), "second": zeros(plan.hidden, dim)}
        for part in self._parts.values():
            part.requires_grad_(True)
        self._optimizer: Any = torch.optim.AdamW(list(self._parts.values()), lr=plan.rate, weight_decay=plan.decay)
        self._galleries = [torch.from_numpy(pairs.gallery) for pairs in sets]
        self._several = [_right_answers(pairs) for pairs in sets]
        self.step = self.waited = 0
        self.best = self.weights()
        self._best_found = self._found(self.best)

    def made_from(self) -> str:
        """A digest of the plan and the data: a checkpoint of others is not gone on from."""
        digest = hashlib.sha256(repr((self._plan, self._start[:, 0].tolist())).encode())
        for pairs in (*self._sets, *self._kept_back):
            for array in (pairs.gallery, pairs.reference, pairs.target, pairs.new, pairs.old):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        best = {
            name: self._torch.from_numpy(value.copy()) for name, value in vars(self.best).items() if value is not None
        }
        return {
            "parts": {name: part.detach() for name, part in self._parts.items()}, "best": best,
            "optimizer": self._optimizer.state_dict(), "step": self.step, "waited": self.waited,
            "found": self._best_found,
        }  # fmt: skip

    def resume(self, saved: Any) -> None:  # noqa: ANN401
        """Go on from a checkpoint."""
        with self._torch.no_grad():
            for name, part in self._parts.items():
                part.copy_(saved["parts"][name])
        self._optimizer.load_state_dict(saved["optimizer"])
        self.best = Weights(**{name: value.numpy() for name, value in saved["best"].items()})
        self.step, self.waited, self._best_found = saved["step"], saved["waited"], saved["found"]

    def weights(self) -> Weights:
        """The network of now."""
        values = {name: part.detach().numpy().copy() for name, part in self._parts.items()}
        return Weights(**(values | {"map": self._start + values["map"]}))

    def look(self) -> None:
        """Keep the network of now where it finds more than the best before."""
        now = self.weights()
        found = self._found(now)
        if found > self._best_found:
            self.best, self._best_found, self.waited = now, found, 0
        else:
            self.waited += 1

    def _found(self, weights: Weights) -> float:
        shares: list[float] = []
        for pairs in self._kept_back:
            queries = weights.compose(pairs.gallery[pairs.reference], pairs.new, pairs.old)
            rank = ranks(queries, pairs.gallery, pairs.reference, pairs.target)
            shares.append(float((1 / (1 + rank)).mean()))  # of equal R@1 the one with the better ranks
        return float(np.mean(shares))

    def advance(self) -> None:
        """One step."""
        torch, plan = self._torch, self._plan
        random = np.random.default_rng((plan.seed, self.step))
        rate = plan.rate * min(1, (self.step + 1) / WARM_UP)
        rate *= 0.5 * (1 + np.cos(np.pi * self.step / plan.steps)) + 0.01
        for group in self._optimizer.param_groups:
            group["lr"] = float(rate)
        number = int(random.integers(len(self._sets)))
        pairs = self._sets[number]
        places = random.choice(len(pairs), min(plan.batch, len(pairs)), replace=False, p=pairs.chance)
        part = pairs.chosen(places)
        gallery = self._blurred(self._galleries[number], pairs.concept, random)
        old = part.old * (random.random((len(part), 1)) >= plan.forget_old)
        new, old = (torch.from_numpy(np.asarray(each, dtype=np.float32)) for each in (part.new, old))
        queries = torch.nn.functional.normalize(self._network(gallery[part.reference], new, old), dim=1)
        among = _among(part, len(gallery), random)
        scores = plan.heat * (queries @ gallery[among].T)
        right = np.searchsorted(among, part.target)
        several = [self._several[number].get(place, []) for place in places.tolist()]
        scores = scores.masked_fill(torch.from_numpy(_hidden(part, several, among, right)), -1e4)
        loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(right))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.step += 1

    def _network(self, reference: Any, new: Any, old: Any) -> Any:  # noqa: ANN401
        torch, parts = self._torch, self._parts
        found = torch.cat([reference, new, old], 1) @ (torch.from_numpy(self._start) + parts["map"])
        if self._plan.hidden:
            seen = _seen(torch.cat, reference, new, old)
            found = found + (seen @ parts["first"] + parts["bias"]).relu() @ parts["second"]
        return found

    def _blurred(self, gallery: Any, concept: NDArray[np.intp] | None, random: np.random.Generator) -> Any:  # noqa: ANN401
        """The gallery as a worse encoder would see it: by how much is drawn anew each step."""
        plan, many = self._plan, len(gallery)
        strength = 2 * random.random()

        def differences(count: int) -> Any:  # noqa: ANN401
            return gallery[random.integers(many, size=count)] - gallery[random.integers(many, size=count)]

        noise = plan.alone * differences(many)
        if plan.shared and concept is not None:
            noise = noise + plan.shared * differences(int(concept.max()) + 1)[concept]
        return self._torch.nn.functional.normalize(gallery + strength * noise, dim=1)


def _among(part: Pairs, many: int, random: np.random.Generator) -> NDArray[np.intp]:
    """The pictures that a batch is compared with: all, or its targets and some others."""
    if many <= MOST_COMPARED:
        return np.arange(many)
    others = random.choice(many, MOST_COMPARED, replace=False)
    return np.unique(np.concatenate([part.target, others]))


def _right_answers(pairs: Pairs) -> dict[int, list[int]]:
    """The targets of the triplets that have several: the same picture and the same new words."""
    same: dict[tuple[int, bytes], set[int]] = {}
    keys = [(int(reference), new.tobytes()) for reference, new in zip(pairs.reference, pairs.new, strict=True)]
    for key, target in zip(keys, pairs.target.tolist(), strict=True):
        same.setdefault(key, set()).add(target)
    return {place: sorted(same[key]) for place, key in enumerate(keys) if len(same[key]) > 1}


def _hidden(
    part: Pairs, several: Sequence[list[int]], among: NDArray[np.intp], right: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Which of ``among`` a query is not compared with: its reference, and other right answers."""
    hidden = among[None, :] == part.reference[:, None]
    for row, targets in enumerate(several):
        if targets:
            hidden[row] |= np.isin(among, targets)
    hidden[np.arange(len(part)), right] = False
    return hidden


def to_onnx(weights: Weights, dim: int) -> bytes:
    """The graph of a network: three inputs ``(n, dim)``, one output of any length; weights in half precision,
    arithmetic in single. Raises MissingExtra."""
    _, onnx = torch_and_onnx()
    helper, numpy_helper, single = onnx.helper, importlib.import_module("onnx.numpy_helper"), onnx.TensorProto.FLOAT
    given = {name: value for name, value in vars(copy.copy(weights)).items() if value is not None}
    tensors = [numpy_helper.from_array(value.astype(np.float16), f"{name}_half") for name, value in given.items()]
    nodes = [helper.make_node("Cast", [f"{name}_half"], [name], to=single) for name in given]
    nodes += [helper.make_node("Concat", list(INPUTS), ["three"], axis=1)]
    if weights.first is None:
        nodes.append(helper.make_node("MatMul", ["three", "map"], [OUTPUT]))
    else:
        tensors.append(numpy_helper.from_array(np.float32(dim**0.5), "scale"))
        for word in ("new", "old"):
            nodes.append(helper.make_node("Mul", ["reference", word], [f"plain_{word}"]))
            nodes.append(helper.make_node("Mul", [f"plain_{word}", "scale"], [f"product_{word}"]))
        nodes += [
            helper.make_node("MatMul", ["three", "map"], ["linear"]),
            helper.make_node("Concat", [*INPUTS, "product_new", "product_old"], ["seen"], axis=1),
            helper.make_node("MatMul", ["seen", "first"], ["weighed"]),
            helper.make_node("Add", ["weighed", "bias"], ["shifted"]),
            helper.make_node("Relu", ["shifted"], ["units"]),
            helper.make_node("MatMul", ["units", "second"], ["bent"]),
            helper.make_node("Add", ["linear", "bent"], [OUTPUT]),
        ]
    values = [helper.make_tensor_value_info(name, single, ["n", dim]) for name in (*INPUTS, OUTPUT)]
    graph = helper.make_graph(nodes, "composer", values[:-1], values[-1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
