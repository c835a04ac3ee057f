"""Write benchmarks/wider_kinds.tsv: everyday words, and which classes of the data folder's photographs each is true of.

    python -m tools.make_wider_kinds PHOTOS

A word is taken where WordNet says that, in its first sense, it is true of three classes or more and of half of them at
most, and where WordNet's sense-tagged texts have it in that sense at least once; of the words of one synset, the one
that they have most. So the rule, not a result, says which words are asked.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

from training.wordnet import ancestors, folder, nouns

TARGET = Path(__file__).parent.parent / "benchmarks" / "wider_kinds.tsv"
LEAST = 3
HEAD = """\
# Words and the ImageNet classes of which they are true. Written by tools/make_wider_kinds.py, which tells the rule.
# From WordNet 3.0, Copyright 2006 by Princeton University, under the WordNet licence (NOTICE).
"""


def main() -> int:
    """Choose the words and write the file."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    with (Path(sys.argv[1]) / "labels.tsv").open() as file:
        classes = [row["file"].split("_")[0] for row in csv.DictReader(file, delimiter="\t")]
    known, of = nouns(), defaultdict(list)
    for each in classes:
        for kind in ancestors(each.removeprefix("n"), known):
            of[kind].append(each)
    counts = {key: int(count) for key, _, count in map(str.split, (folder() / "cntlist.rev").read_text().splitlines())}
    index = (line.split() for line in (folder() / "index.noun").read_text().splitlines() if not line.startswith(" "))
    first = {fields[0]: fields[-int(fields[2])] for fields in index}

    chosen = {}
    for kind, members in of.items():
        if LEAST <= len(members) <= len(classes) // 2:
            words = [
                (counts.get(key, 0), word)
                for word, key in zip(known[kind].words, known[kind].keys, strict=True)
                if word.isalpha() and word.islower() and first[word] == kind
            ]
            times, word = max(words, key=lambda each: each[0], default=(0, ""))
            if times:
                chosen[word] = members
    lines = [f"{word}\t{' '.join(members)}\n" for word, members in sorted(chosen.items())]
    TARGET.write_text(HEAD + "word\tclasses\n" + "".join(lines))
    print(f"{len(chosen)} words")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
