"""``pgembed train composer``: triplets and an encoder -> a folder that ``composer:`` reads, and what it is worth."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgembed.composers.fitting import Pairs, Plan, Weights, fit, to_onnx, torch_and_onnx
from pgembed.composers.triplets import BadLine, Triplet, read_triplets, told
from pgembed.composers.ways import WAYS, Vectors, ranks, unit
from pgembed.encoders.base import Encoder
from pgembed.encoders.composer import GRAPH, ComposerEncoder, ComposerManifest
from pgembed.errors import InvalidInput, MediaError, UnsupportedModality
from pgembed.media import MediaPolicy, MediaReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST = 30  # triplets, and so many references: below, a held-out share says nothing
FEWEST_REFERENCES = 10
HELD_OUT, KEPT_BACK = 0.2, 0.15  # shares of the references: measured on at the end, and looked at while training
CUTS = (1, 5, 10)
CHUNK = 64  # pictures at once; the vectors so far are kept after so many chunks
KEEP_EVERY = 16
Say = Callable[[str, int, int], None]  # what is done, how many, of how many


@dataclass(frozen=True)
class Measured:
    """How many of the held-out targets are among the first k, ``recall[k]``, and the weight of an untrained way."""

    recall: Mapping[int, float]
    weight: float | None = None

    def facts(self) -> dict[str, float]:
        """For a manifest."""
        weight = {} if self.weight is None else {"weight": self.weight}
        return {**weight, **{f"R@{k}": round(value, 4) for k, value in self.recall.items()}}


@dataclass(frozen=True)
class Trained:
    """What was written, the lines that could not be used, and what it is worth on triplets it was not trained on."""

    folder: Path
    manifest: ComposerManifest
    bad: Sequence[BadLine]
    held_out: int
    composer: Measured
    untrained: Mapping[str, Measured]

    @property
    def best_untrained(self) -> str:
        """The untrained way that finds most."""
        return max(self.untrained, key=lambda way: [self.untrained[way].recall[k] for k in CUTS])

    @property
    def helps(self) -> bool:
        """Whether more targets come first by it than by every untrained way."""
        return self.composer.recall[1] > self.untrained[self.best_untrained].recall[1]


def train_composer(
    triplets: Path,
    encoder: Encoder,
    folder: Path,
    *,
    space: str | None = None,
    plan: Plan | None = None,
    media: MediaPolicy | None = None,
    say: Say | None = None,
) -> Trained:
    """Train a composer for the vectors of ``encoder``, on a CSV of triplets (``pgembed.composers.triplets``).

    Lines that cannot be used are told in the result; the others are trained on. A fifth of the references, with their
    triplets, is held out and measured at the end. ``folder`` must be new; while it is made, what is done so far stands
    in ``FOLDER.part``, and a run that was cut off goes on from there. Raises MissingExtra without the extra
    ``composer``, UnsupportedModality where the encoder does not take pictures and texts, InvalidInput where there are
    too few triplets or the folder is there already.
    """
    torch_and_onnx()
    tell = say or _silent
    missing = sorted({"image", "text"} - set(encoder.modalities))
    if missing or isinstance(encoder, ComposerEncoder):
        what = f"no {missing[0]}" if missing else "vectors alone"
        raise UnsupportedModality(
            f"Encoder '{encoder.spec}' takes {what}.", "Train on one that takes pictures and texts."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"{folder} is there already.", "Name a new folder, or remove it.")
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    good, bad = read_triplets(triplets)
    data = _Data(encoder, media or MediaPolicy(any_path=True), part, tell)
    pairs, references = data.pairs(good, bad)
    _enough(triplets, pairs, references, bad)
    held_out, rest = _split(references, HELD_OUT, "held out")
    remaining: list[int] = rest.tolist()
    kept_back, train = _split([references[place] for place in remaining], KEPT_BACK, "kept back")
    kept_back, train = rest[kept_back], rest[train]
    weights = {way: _best_weight(way, pairs.chosen(rest)) for way in WAYS}
    start = _start(pairs.chosen(rest))
    found = fit(
        [pairs.chosen(train)], [pairs.chosen(kept_back)], start, plan or Plan(), part / "checkpoint.pt",
        lambda done, of: tell("training", done, of),
    )  # fmt: skip
    graph = to_onnx(found, encoder.dim)
    measured, untrained = measure(found, pairs.chosen(held_out), weights)
    made = Trained(
        folder,
        ComposerManifest(
            dim=encoder.dim,
            space=space or encoder.space,
            encoder=encoder.spec,
            fingerprint=encoder.fingerprint,
            trained_on={
                "file": triplets.name, "triplets": len(train) + len(kept_back), "pictures": len(pairs.gallery),
                "lines left out": len(bad),
            },
            measured=measured_facts(len(held_out), len(pairs.gallery), measured, untrained),
        ),
        sorted(bad, key=lambda each: each.line),
        len(held_out),
        measured,
        untrained,
    )  # fmt: skip
    write(made.manifest, graph, part)
    folder.mkdir(exist_ok=True)
    for file in (part / GRAPH, *part.glob("*.json")):
        file.replace(folder / file.name)
    shutil.rmtree(part)
    return made


def measure(found: Weights, held_out: Pairs, weights: Mapping[str, float]) -> tuple[Measured, dict[str, Measured]]:
    """What the network and the untrained ways, each with its weight, find of the held-out triplets."""

    def recall(queries: Vectors) -> dict[int, float]:
        rank = ranks(queries, held_out.gallery, held_out.reference, held_out.target)
        return {k: float((rank < k).mean()) for k in CUTS}

    picture = held_out.gallery[held_out.reference]
    untrained = {
        way: Measured(recall(compose(picture, held_out.old, held_out.new, weights[way])), weights[way])
        for way, (_, compose) in WAYS.items()
    }
    return Measured(recall(found.compose(picture, held_out.new, held_out.old))), untrained


def measured_facts(
    held_out: int, pictures: int, composer: Measured, untrained: Mapping[str, Measured]
) -> dict[str, Any]:
    """For a manifest."""
    ways = {way: each.facts() for way, each in untrained.items()}
    return {"held out": held_out, "pictures": pictures, "composer": composer.facts(), "untrained": ways}


def write(manifest: ComposerManifest, graph: bytes, folder: Path) -> None:
    """The files of a composer."""
    (folder / GRAPH).write_bytes(graph)
    manifest.write(folder)


def _silent(step: str, done: int, of: int) -> None:
    _ = step, done, of


class _Data:
    """The vectors of a CSV's pictures and words. Pictures that are encoded are kept, by their content."""

    def __init__(self, encoder: Encoder, media: MediaPolicy, part: Path, tell: Say) -> None:
        self._encoder, self._media, self._tell = encoder, media, tell
        name = hashlib.sha256(encoder.fingerprint.encode()).hexdigest()[:16]
        self._file = part / f"vectors-{name}.npz"
        self._known: dict[str, Vectors] = {}
        if self._file.exists():
            with np.load(self._file, allow_pickle=False) as kept:
                self._known = dict(zip(kept["digests"].tolist(), kept["vectors"], strict=True))

    def pairs(self, triplets: Sequence[Triplet], bad: list[BadLine]) -> tuple[Pairs, list[str]]:
        """The triplets whose pictures and words can be encoded, and the digest of each one's reference; lines of the
        others are added to ``bad``."""
        pictures, faults = self._pictures(list(dict.fromkeys(p for t in triplets for p in (t.reference, t.target))))
        words, wordless = self._words(list(dict.fromkeys(w for t in triplets for w in (t.new, t.old) if w)))
        kept: list[Triplet] = []
        for each in triplets:
            reasons = [f"{path.name} {faults[path]}" for path in (each.reference, each.target) if path in faults]
            reasons += [f"'{word}' {wordless[word]}" for word in (each.new, each.old) if word in wordless]
            if not reasons and pictures[each.reference] == pictures[each.target]:
                reasons = ["reference and target are the same picture"]
            if reasons:
                bad.append(BadLine(each.line, reasons[0]))
            else:
                kept.append(each)
        digests = list(dict.fromkeys(pictures[path] for each in kept for path in (each.reference, each.target)))
        place = {digest: number for number, digest in enumerate(digests)}
        zero = np.zeros(self._encoder.dim, dtype=np.float32)

        def stacked(vectors: Sequence[Vectors]) -> Vectors:
            return unit(np.stack(vectors)) if vectors else np.zeros((0, self._encoder.dim), dtype=np.float32)

        pairs = Pairs(
            gallery=stacked([self._known[digest] for digest in digests]),
            reference=np.array([place[pictures[each.reference]] for each in kept], dtype=np.intp),
            target=np.array([place[pictures[each.target]] for each in kept], dtype=np.intp),
            new=stacked([words[each.new] for each in kept]),
            old=stacked([words[each.old] if each.old else zero for each in kept]),
        )
        return pairs, [pictures[each.reference] for each in kept]

    def _pictures(self, paths: Sequence[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
        """The digest of each picture's file, under which its vector is known; and what is wrong with the others."""
        digests, faults, waiting = dict[Path, str](), dict[Path, str](), list[tuple[str, Any]]()
        with MediaReader(self._media) as reader:
            for number, path in enumerate(paths, start=1):
                try:
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    if digest not in self._known and all(digest != other for other, _ in waiting):
                        waiting.append((digest, reader.open(str(path), "path")))
                    digests[path] = digest
                except (OSError, MediaError) as error:
                    faults[path] = f"cannot be read: {error.message if isinstance(error, MediaError) else error}"
                if len(waiting) == CHUNK or (waiting and number == len(paths)):
                    vectors = self._encoder.encode_image([picture for _, picture in waiting])
                    self._known.update(zip((digest for digest, _ in waiting), vectors, strict=True))
                    waiting.clear()
                    if number == len(paths) or len(self._known) // CHUNK % KEEP_EVERY == 0:
                        self._keep()
                self._tell("encoding pictures", number, len(paths))
        return digests, faults

    def _keep(self) -> None:
        partial = self._file.with_name("vectors.part.npz")
        np.savez(partial, digests=np.array(list(self._known)), vectors=np.stack(list(self._known.values())))
        partial.replace(self._file)

    def _words(self, texts: Sequence[str]) -> tuple[dict[str, Vectors], dict[str, str]]:
        """Their vectors, as queries have them; and what is wrong with the others."""
        try:
            return dict(zip(texts, self._encoder.encode_text(texts, role="query"), strict=True)) if texts else {}, {}
        except InvalidInput:
            found, faults = dict[str, Vectors](), dict[str, str]()
            for text in texts:
                try:
                    found[text] = self._encoder.encode_text([text], role="query")[0]
                except InvalidInput as error:
                    faults[text] = f"cannot be encoded: {error.message}"
            return found, faults


def _enough(file: Path, pairs: Pairs, references: Sequence[str], bad: Sequence[BadLine]) -> None:
    if len(pairs) >= FEWEST and len(set(references)) >= FEWEST_REFERENCES:
        return
    raise InvalidInput(
        f"{file} has {len(pairs)} triplets that can be used, of {len(set(references))} references; at least {FEWEST} of"
        f" {FEWEST_REFERENCES} are needed.",
        f"{len(bad)} lines cannot be used:\n{told(bad)}" if bad else "Collect more.",
    )


def _split(references: Sequence[str], share: float, salt: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The places of this share of the references, all triplets of one together, and of the rest; the same each time."""
    distinct = sorted(set(references), key=lambda digest: hashlib.sha256(f"{salt} {digest}".encode()).digest())
    taken = set(distinct[: max(1, round(share * len(distinct)))])
    inside = np.array([reference in taken for reference in references])
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def _best_weight(way: str, pairs: Pairs) -> float:
    """The weight by which an untrained way finds most."""
    grid, compose = WAYS[way]
    picture = pairs.gallery[pairs.reference]
    if len(grid) == 1:
        return grid[0]
    found = [
        (
            ranks(compose(picture, pairs.old, pairs.new, weight), pairs.gallery, pairs.reference, pairs.target) == 0
        ).mean()
        for weight in grid
    ]
    return grid[int(np.argmax(found))]


def _start(pairs: Pairs) -> tuple[float, float]:
    """The weights of the new and the old words in the better of the two plain sums."""
    picture, best = pairs.gallery[pairs.reference], (-1.0, 0.0, 0.0)
    for less in (0.0, 1.0):
        for weight in WAYS["sum"][0]:
            rank = ranks(
                picture + weight * (pairs.new - less * pairs.old), pairs.gallery, pairs.reference, pairs.target
            )
            best = max(best, (float((rank == 0).mean()), weight, -less * weight))
    return best[1], best[2]
