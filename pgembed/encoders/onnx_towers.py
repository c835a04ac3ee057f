"""The sides of models as functions to export: what they compute, without what makes no difference."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def image_side(model: Any) -> Callable[[Any], Any]:  # noqa: ANN401
    """The image side. Where its vector is that of the class token, the last block is computed for that token alone."""
    tower = model.visual
    blocks: Any = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if (
        type(tower).__name__ != "VisionTransformer"
        or (tower.pool_type, tower.attn_pool) != ("tok", None)
        or type(blocks[-1]).__name__ != "ResidualAttentionBlock"
        or not tower.transformer.batch_first
    ):
        return model.encode_image
    last = blocks[-1]

    def encode(pixels: Any) -> Any:  # noqa: ANN401
        x = tower._embeds(pixels)
        for block in blocks[:-1]:
            x = block(x)
        seen = last.ln_1(x)
        x = x[:, :1] + last.ls_1(last.attention(seen[:, :1], seen, seen))
        x = x + last.ls_2(last.mlp(last.ln_2(x)))
        pooled = tower._pool(x)[0]
        return pooled if tower.proj is None else pooled @ tower.proj

    return encode


def text_side(model: Any, torch: Any) -> tuple[Callable[[Any], Any], bool]:  # noqa: ANN401
    """The text side, and whether it takes ids of any length.

    Where tokens see only those before them and the vector is that of the end, padding after the end makes no
    difference: open_clip computes it all the same, the export leaves it out.
    """
    tower = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = getattr(tower, "attn_mask", None) is not None and getattr(tower, "cls_emb", None) is None
    if tower is None or not causal or pool not in ("argmax", "eos"):
        return model.encode_text, False
    end = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
    pooled: Any = importlib.import_module("open_clip.transformer").text_global_pool

    def encode(ids: Any) -> Any:  # noqa: ANN401
        length = ids.shape[1]
        x = tower.token_embedding(ids) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = pooled(tower.ln_final(x), ids, pool, eos_token_id=end)
        projection = tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection

    return encode, True


def as_module(function: Callable[[Any], Any], model: Any, torch: Any) -> Any:  # noqa: ANN401
    """A function of a model as a module of its own."""

    class Side(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, value: Any) -> Any:  # noqa: ANN401
            return function(value)

    return Side()


def text_modules(model: Any, pad: int, dim: int, torch: Any, *, tokens: bool) -> Any:  # noqa: ANN401
    """The modules of a model of sentence-transformers as one, from ids to vectors; and to the outputs of tokens."""
    reader, *later = model.children()

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader = reader
            self.later = torch.nn.ModuleList(later)

        def forward(self, ids: Any) -> Any:  # noqa: ANN401
            features = self.reader({"input_ids": ids, "attention_mask": (ids != pad).long()})
            outputs = features["token_embeddings"]
            for module in self.later:
                features = module(features)
            vectors = features["sentence_embedding"][:, :dim]
            return (vectors, outputs) if tokens else vectors

    return Text()
