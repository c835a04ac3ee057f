"""Short texts cut out of longer ones, as queries are short: sentences, headings, and runs of a few words."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

SENTENCE_WORDS = 40  # longer ones, and texts without sentences, are cut into runs
SHORTEST, LONGEST = 3, 12  # words of a run
WHOLE_WORDS = 12  # a text of no more stays whole as well
BAG_WORDS = 4  # words of a list that are put together at most
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\s*\n+\s*")


def pieces_of(text: str, most: int, chance: random.Random) -> list[str]:
    """Up to ``most`` different pieces of a text: half of them sentences, the first among them, half runs of words."""
    words = text.split()
    if not words:
        return []
    found = [" ".join(words)] if len(words) <= WHOLE_WORDS else []
    sentences = [" ".join(part.split()) for part in _SENTENCE_END.split(text)]
    sentences = [one for one in sentences if SHORTEST <= len(one.split()) <= SENTENCE_WORDS]
    later = sentences[1:]
    chance.shuffle(later)
    found += [*sentences[:1], *later][: max(1, most // 2)]
    for _ in range(2 * most):
        if len(found) >= most or len(words) <= SHORTEST:
            break
        length = chance.randint(SHORTEST, min(LONGEST, len(words) - 1))
        first = chance.randint(0, len(words) - length)
        run = " ".join(words[first : first + length])
        if run not in found:
            found.append(run)
    return list(dict.fromkeys(found))[:most]


def bags_of(words: Sequence[str], count: int, chance: random.Random) -> list[str]:
    """So many texts of one to four words of a list, put together at random."""
    return [" ".join(chance.sample(words, min(len(words), chance.randint(1, BAG_WORDS)))) for _ in range(count)]
