"""Train the composer that ships with ``builtin:lite``:  python -m training.composer [--choose [VENDOR …]] [--quick]

Drawings of noto, twemoji and fluent, as they are and redrawn in four styles, changed in words that CLDR's names tell:
skin tone, gender, role, any one word ("red heart" to "blue heart"), and any name for another of its kind. The encoder
has seen these drawings and knows them better than others; redrawn, and with noise that twins share, they are less
certain to it, as those of other hands are. ``--choose`` leaves each vendor out in turn and prints what each plan finds
of it. Openmoji is never read here: ``python -m benchmarks.composed`` measures on it. Vectors and checkpoints are kept
in PGEMBED_TRAINING_DIR.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from pgembed.composers.fitting import Pairs, Plan, Weights, fit, to_onnx
from pgembed.composers.training import Measured, measure, measured_facts, write
from pgembed.composers.ways import WAYS, ranks, unit
from pgembed.encoders.builtin import LiteEncoder
from pgembed.encoders.composer import ComposerManifest
from pgembed.errors import InvalidInput
from training import paths
from training.drawings import VENDORS

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
PERSON_ROLE = "1f468-200d-1f373"  # the man cook, whose subgroup is that of roles
PEOPLE = ("1f468", "1f469")  # man and woman, all that a quick run sees
FLAGS = 9  # a group: their names are countries
CHANCES = {  # of a kind of change, in a batch
    "tone": 1.0,
    "first tone": 0.5,
    "gender": 0.6,
    "gender, toned": 0.6,
    "role": 0.7,
    "role, toned": 0.7,
    "word": 0.7,
    "name": 0.7,
}
ASKED = ("tone", "gender", "role")  # what is measured
MOST_OF_A_NAME, MOST_OF_A_SUBGROUP = 60, 150  # triplets
START = (0.7, -0.7)
PLAN = Plan(steps=600, batch=256, hidden=128, alone=0.25, shared=0.5, every=100, patience=15)
CHOICES = {
    "linear": replace(PLAN, hidden=0),
    "linear, no noise": replace(PLAN, hidden=0, alone=0.0, shared=0.0),
    "with a network": PLAN,
}
CHUNK = 64
LOOKED_AT = 600  # triplets kept back of each set that is looked at while training
Change = tuple[str, str, str, str]  # reference, target, old words or nothing, new words


@dataclass(frozen=True)
class Known:
    """What CLDR says of one emoji."""

    name: str
    base: str  # the name without its skin tone
    of: str  # and its id
    tone: object
    group: int | None
    subgroup: int | None


def known() -> dict[str, Known]:
    """Every emoji of CLDR by id."""
    found: dict[str, Known] = {}
    for entry in json.loads(paths.emojibase().read_text()):
        base = _id(entry)
        for each in (entry, *entry.get("skins", ())):
            found[_id(each)] = Known(
                each["label"].lower(), entry["label"].lower(), base, each.get("tone"), entry.get("group"),
                entry.get("subgroup"),
            )  # fmt: skip
    return found


def _id(entry: dict[str, str]) -> str:
    return entry["hexcode"].lower().replace("-fe0f", "")


def changes(ids: Iterable[str], of: dict[str, Known]) -> dict[str, list[Change]]:
    """The changes between these emoji, by kind."""
    here = {each: None for each in ids if each in of}
    found: dict[str, list[Change]] = defaultdict(list)
    tones: dict[str, dict[int, str]] = defaultdict(dict)
    people: dict[tuple[str, str, object], str] = {}
    for each in here:
        tone = of[each].tone
        if isinstance(tone, int):
            tones[of[each].of][tone] = each
        match = re.fullmatch("(man|woman) (.+)", of[each].base)
        if match and (tone is None or isinstance(tone, int)):
            people[match[1], match[2], tone] = each
    for of_none, same in tones.items():
        if of_none in here:
            found["first tone"] += [(of_none, each, "", f"{TONES[tone - 1]} skin tone") for tone, each in same.items()]
        for a, b in itertools.permutations(same, 2):
            found["tone"].append((same[a], same[b], f"{TONES[a - 1]} skin tone", f"{TONES[b - 1]} skin tone"))
    roles: dict[tuple[str, object], list[tuple[str, str]]] = defaultdict(list)
    for (gender, what, tone), each in people.items():
        other = "woman" if gender == "man" else "man"
        if (other, what, tone) in people:
            found[_kind("gender", tone)].append((each, people[other, what, tone], gender, other))
        if of[each].subgroup == of[PERSON_ROLE].subgroup:
            roles[gender, tone].append((what, each))
    for (_, tone), same_people in roles.items():
        found[_kind("role", tone)] += [(x, y, a, b) for (a, x), (b, y) in itertools.permutations(same_people, 2)]
    plain = [each for each in here if of[each].tone is None and of[each].group != FLAGS]
    found["word"], found["name"] = _by_word(plain, of), _by_name(plain, of)
    return found


def _kind(what: str, tone: object) -> str:
    return what if tone is None else f"{what}, toned"


def _by_word(plain: list[str], of: dict[str, Known]) -> list[Change]:
    """Names that differ in one word: "red heart", "blue heart"."""
    rng, found = random.Random(0), list[Change]()
    rests: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for each in plain:
        words = of[each].name.split()
        for place in range(len(words) if len(words) > 1 else 0):
            rests[*words[:place], "", *words[place + 1 :]].append((each, words[place]))
    for several in rests.values():
        pairs = list(itertools.permutations(several, 2))
        found += [(x, y, a, b) for (x, a), (y, b) in rng.sample(pairs, min(len(pairs), MOST_OF_A_NAME))]
    return found


def _by_name(plain: list[str], of: dict[str, Known]) -> list[Change]:
    """Any for any of the same subgroup."""
    rng, found = random.Random(0), list[Change]()
    groups: dict[object, list[str]] = defaultdict(list)
    for each in plain:
        groups[of[each].group, of[each].subgroup].append(each)
    for several in groups.values():
        pairs = list(itertools.permutations(several, 2))
        found += [(x, y, of[x].name, of[y].name) for x, y in rng.sample(pairs, min(len(pairs), MOST_OF_A_SUBGROUP))]
    return found


def lines(picture: Image.Image, faded: float = 0.15) -> Image.Image:
    """Dark edges over somewhat faded fills."""
    x = np.asarray(picture).astype(np.float32) / 255
    edges = sum(np.abs(x - np.roll(x, 1, axis)).max(-1, keepdims=True) for axis in (0, 1))
    x = (x * (1 - faded) + faded) * (1 - np.clip(2 * edges, 0, 1))
    return Image.fromarray((x * 255).round().astype(np.uint8))


def coarse(picture: Image.Image) -> Image.Image:
    """Few pixels, faint colours."""
    faint = ImageEnhance.Color(picture).enhance(0.6)
    return faint.resize((24, 24), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)


def bold(picture: Image.Image) -> Image.Image:
    """Few and strong colours, the other way round."""
    return ImageOps.posterize(ImageOps.mirror(ImageEnhance.Color(picture).enhance(1.6)), 2)


def turned(picture: Image.Image) -> Image.Image:
    """Smaller and askew, as lines."""
    side = round(0.8 * picture.width)
    ground, corner = Image.new("RGB", picture.size, "white"), (picture.width - side) // 2
    ground.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (corner, corner))
    return lines(ground.rotate(12, Image.Resampling.BICUBIC, fillcolor="white"), 0.4)


STYLES = {"plain": lambda picture: picture, "lines": lines, "coarse": coarse, "bold": bold, "turned": turned}


def vectors(encoder: LiteEncoder, vendor: str, style: str, files: list[Path]) -> np.ndarray:
    """One vendor's drawings in one style ``(m, 256)``, encoded once and kept."""
    kept = paths.WORK / "composer" / encoder.fingerprint[:16] / f"{vendor}_{style}_{len(files)}.npy"
    if not kept.exists():
        parts = []
        for start in range(0, len(files), CHUNK):
            pictures = [STYLES[style](Image.open(file).convert("RGB")) for file in files[start : start + CHUNK]]
            parts.append(encoder.encode_image(pictures))
            print(f"\r{vendor}, {style}: {start}/{len(files)}", end="", file=sys.stderr)
        print(file=sys.stderr)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept.with_suffix(".part.npy"), np.concatenate(parts))
        kept.with_suffix(".part.npy").rename(kept)
    return np.load(kept)


class Drawings:
    """The triplets of each vendor and style, and which of their changes each is."""

    def __init__(self, *, few: bool = False) -> None:
        self.encoder = LiteEncoder.load("lite", {"threads": torch.get_num_threads()})
        self._known, self._words = known(), dict[str, np.ndarray | None]()
        self.sets: dict[tuple[str, str], Pairs] = {}
        self.kinds: dict[str, np.ndarray] = {}
        for vendor in VENDORS:
            files = [f for f in sorted((paths.data() / "emoji" / vendor).glob("*.png")) if f.stem in self._known]
            if few:
                files = [f for f in files if f.stem[:5] in PEOPLE and self._known[f.stem].tone in (None, 1, 5)]
            for style in STYLES:
                self.sets[vendor, style] = self._pairs(vendor, files, vectors(self.encoder, vendor, style, files))

    def _pairs(self, vendor: str, files: list[Path], gallery: np.ndarray) -> Pairs:
        place = {file.stem: number for number, file in enumerate(files)}
        found = [
            (kind, change)
            for kind, each in changes(place, self._known).items()
            for change in each
            if self._word(change[2]) is not None and self._word(change[3]) is not None
        ]
        kinds = np.array([kind for kind, _ in found])
        self.kinds[vendor] = kinds
        chance = np.array([CHANCES[kind] / (kinds == kind).sum() for kind in kinds.tolist()])
        concepts = {name: n for n, name in enumerate(dict.fromkeys(map(self._concept, place)))}
        old, new = (np.stack([self._word(change[side]) for _, change in found]) for side in (2, 3))
        reference, target = (np.array([place[change[side]] for _, change in found]) for side in (0, 1))
        concept = np.array([concepts[self._concept(each)] for each in place])
        return Pairs(unit(gallery), reference, target, new, old, chance / chance.sum(), concept)

    def _concept(self, emoji: str) -> str:
        return re.sub("^(man|woman|person) ", "", self._known[emoji].base)

    def _word(self, text: str) -> np.ndarray | None:
        if not text:
            return np.zeros(self.encoder.dim, dtype=np.float32)
        if text not in self._words:
            try:
                self._words[text] = self.encoder.encode_text([text], role="query")[0]
            except InvalidInput:
                self._words[text] = None  # a sign
        return self._words[text]


def trained(drawings: Drawings, plan: Plan, vendors: Iterable[str], name: str) -> Weights:
    """A network trained on these vendors' drawings; a tenth of their concepts is looked at while training."""
    train, kept_back = [], []
    for (vendor, style), pairs in drawings.sets.items():
        if vendor in vendors:
            assert pairs.concept is not None
            back = np.isin(pairs.concept[pairs.target], np.arange(0, pairs.concept.max() + 1, 10))
            train.append(pairs.chosen(np.flatnonzero(~back)))
            if style == "lines":
                kept_back.append(pairs.chosen(np.flatnonzero(back)[:: max(1, back.sum() // LOOKED_AT)]))
    train = [replace(pairs, chance=pairs.chance / pairs.chance.sum()) for pairs in train]

    def progress(done: int, of: int) -> None:
        print(f"\r{name}: {done}/{of}", end="" if done % plan.every else "\n", file=sys.stderr)

    checkpoint = paths.WORK / "composer" / f"{re.sub('[^a-z]+', '-', name)}.pt"
    return fit(train, kept_back, START, plan, checkpoint, progress)


def found(weights: Weights, drawings: Drawings, vendor: str) -> dict[str, float]:
    """R@1 of a vendor's skin tones, genders and roles, over all its styles."""
    hits: dict[str, list[float]] = defaultdict(list)
    for style in STYLES:
        pairs = drawings.sets[vendor, style]
        for kind in ASKED:
            chosen = pairs.chosen(np.flatnonzero(drawings.kinds[vendor] == kind)[::3])
            queries = weights.compose(chosen.gallery[chosen.reference], chosen.new, chosen.old)
            hits[kind].append(float((ranks(queries, chosen.gallery, chosen.reference, chosen.target) == 0).mean()))
    return {kind: round(float(np.mean(each)), 3) for kind, each in hits.items()}


def left_out(drawings: Drawings, plan: Plan, vendor: str, name: str) -> tuple[Measured, dict[str, Measured], int]:
    """What a network that never saw a vendor's drawings finds of them, redrawn as lines, beside the untrained ways."""
    others = [each for each in VENDORS if each != vendor]
    weights = trained(drawings, plan, others, f"{name} without {vendor}")
    print(f"{name}, without {vendor}: {found(weights, drawings, vendor)}")
    pairs = drawings.sets[vendor, "lines"]
    chosen = pairs.chosen(np.flatnonzero(np.isin(drawings.kinds[vendor], ASKED))[::3])
    best = {}
    for way, (grid, compose) in WAYS.items():
        other = drawings.sets[others[0], "lines"]
        some = other.chosen(np.flatnonzero(np.isin(drawings.kinds[others[0]], ASKED))[::9])
        hits = [
            (ranks(compose(some.gallery[some.reference], some.old, some.new, w), some.gallery, some.reference,
                   some.target) == 0).mean()
            for w in grid
        ]  # fmt: skip
        best[way] = grid[int(np.argmax(hits))]
    return *measure(weights, chosen, best), len(chosen)


def main(arguments: list[str] | None = None) -> int:
    """Train, and write the shipped files."""
    parser = argparse.ArgumentParser(prog="python -m training.composer", description=__doc__)
    parser.add_argument(
        "--choose", nargs="*", choices=VENDORS, help="leave each of these vendors (default: all) out, compare the plans"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps, written to the working folder")
    parser.add_argument("--out", type=Path, help="where the files go (default: pgembed/encoders/lite_composer)")
    parser.add_argument("--threads", type=int, default=2, help="cores to use (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    drawings = Drawings(few=chosen.quick)
    if chosen.choose is not None:
        for (name, plan), vendor in itertools.product(CHOICES.items(), chosen.choose or VENDORS):
            left_out(drawings, plan, vendor, name)
        return 0
    plan = replace(PLAN, steps=20, every=10) if chosen.quick else PLAN
    composer, untrained, many = left_out(drawings, plan, VENDORS[0], "composer")
    weights = trained(drawings, plan, VENDORS, "composer")
    out = chosen.out or (paths.WORK / "quick-composer" if chosen.quick else paths.SHIPPED.parent / "lite_composer")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    encoder, pairs = drawings.encoder, drawings.sets[VENDORS[0], "lines"]
    manifest = ComposerManifest(
        dim=encoder.dim, space=encoder.space, encoder=encoder.spec, fingerprint=encoder.fingerprint,
        trained_on={"drawings": [*VENDORS], "styles": [*STYLES], "triplets": sum(map(len, drawings.sets.values()))},
        measured={
            **measured_facts(many, len(pairs.gallery), composer, untrained),
            "of": f"skin tones, genders and roles of {VENDORS[0]} redrawn as lines, by the same without {VENDORS[0]}",
        },
    )  # fmt: skip
    write(manifest, to_onnx(weights, encoder.dim), out)
    print(f"made {out}: {sum(file.stat().st_size for file in out.iterdir()) / 2**20:.2f} MB, R@1 {composer.facts()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
