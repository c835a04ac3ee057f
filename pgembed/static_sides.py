"""Copy an encoder's static text side into Postgres, and keep it only where SQL then encodes texts as Python does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from pgembed.encoders import Encoder, Role
from pgembed.errors import EncoderError, InvalidInput
from pgembed.plans import Call, Plan
from pgembed.static_text import StaticText

TOKENS_A_STATEMENT = 2_000
SAMPLED_TOKENS = 200
TOLERANCE = 1e-5
ROLES: tuple[Role, ...] = ("query", "document")
TEXTS = (
    "a red shoe", "Two Dogs, one CAT", "it's 3.14 ÷ 2 = 1.57!", "naïve café déjà-vu", "ΑΣ Σίσυφος ΟΔΟΣ", "İstanbul ǅ ß",
    "東京タワー ラーメン", "한국어", "пример текста", "tab\tand\nline", "zero\u200bwidth \ufeffmark", "emoji 👩🏽‍🚀 ok",
    "(brackets) [UNK] {braces} <tags>", "x" * 101, "antidisestablishmentarianism", "e\u0301 ffi № ½ ①",
    "a_b-c/d\\e|f~g`h^",
)  # fmt: skip


def stored(encoder: Encoder) -> Plan[None]:
    """Write the token vectors of an encoder whose text side is static, unless they are there, and check what SQL makes.

    Run it within a transaction, which the error undoes. Raises EncoderError for a tokenizer that SQL cannot follow,
    and with the first text of a sample on which the tokens or the vectors differ.
    """
    side = encoder.static_side()
    if side is None:
        return
    if side.settings.get("tokenizer") != "wordpiece":
        raise EncoderError(
            f"The text side of '{encoder.spec}' cannot be computed in SQL: its tokenizer is"
            f" {side.settings.get('tokenizer')!r}, not WordPiece.",
            "Let its static_side() be None; texts are then encoded in Python.",
        )
    pooling = side.settings.get("pooling", "sum")
    if pooling not in ("sum", "mean") or not side.settings.get("normalize", True):
        raise EncoderError(
            f"The text side of '{encoder.spec}' cannot be computed in SQL: its pooling is {pooling!r}"
            f"{'' if side.settings.get('normalize', True) else ' without normalization'}, and SQL makes the normalized"
            " sum, or mean, of token vectors.",
            "Let its static_side() be None; texts are then encoded in Python.",
        )
    known = yield Call(sql.SQL("SELECT 1 AS known FROM pgembed.static_text WHERE model = %s"), [side.model])
    if not known:
        yield from written(side)
    yield from checked(
        encoder.spec, side, lambda text, role: encoder.encode_text([text], role=role)[0],
        hint="Correct its settings, or let its static_side() be None; texts are then encoded in Python.",
    )  # fmt: skip


def written(side: StaticText) -> Plan[None]:
    """Write a static text side that is not there yet, with its token vectors."""
    yield Call(
        sql.SQL("INSERT INTO pgembed.static_text (model, fingerprint, dim, settings) VALUES (%s, %s, %s, %s)"),
        [side.model, side.fingerprint, side.dim, Jsonb(dict(side.settings))],
    )
    tokens = side.tokens()
    while batch := list(islice(tokens, TOKENS_A_STATEMENT)):
        yield Call(
            sql.SQL(
                "INSERT INTO pgembed.token (model, token, vector)"
                " SELECT %s, t.token, t.numbers::real[]::{} FROM unnest(%s::text[], %s::text[]) AS t (token, numbers)"
            ).format((yield from _vector_type())),
            [side.model, [token for token, _ in batch], [_numbers(vector) for _, vector in batch]],
        )
    yield Call(sql.SQL("ANALYZE pgembed.token"))


def _vector_type() -> Plan[sql.Identifier]:
    """The type ``vector``, with the schema in which its extension is."""
    rows = yield Call(
        sql.SQL(
            "SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
            " WHERE e.extname = 'vector'"
        )
    )
    return sql.Identifier(rows[0]["nspname"], "vector")


def _numbers(vector: np.ndarray[Any, Any]) -> str:
    return "{" + ",".join(f"{number:.9g}" for number in vector.tolist()) + "}"


def checked(
    name: str, side: StaticText, encode: Callable[[str, Role], np.ndarray[Any, Any]], *, hint: str
) -> Plan[None]:
    """Raise EncoderError with the first text of a sample of which SQL makes another vector than ``encode``, or other
    tokens. In both roles: SQL encodes queries and, in instant mode, rows."""
    for text in _sample(side):
        rows = yield Call(
            sql.SQL(
                "SELECT pgembed.static_tokens(%(model)s, %(text)s) AS tokens,"
                " pgembed.static_vector(%(model)s, %(text)s)::text AS vector"
            ),
            {"model": side.model, "text": text},
        )
        found = None if rows[0]["vector"] is None else np.array(rows[0]["vector"][1:-1].split(","), dtype=np.float32)
        for role in ROLES:
            try:
                vector = encode(text, role)
                tokens = side.split(text)
            except InvalidInput:
                vector, tokens = None, []
            if rows[0]["tokens"] != tokens:
                difference = f"{rows[0]['tokens']} in SQL and {tokens} in Python"
            elif (found is None) != (vector is None):
                difference = f"it has a vector only in {'Python' if found is None else 'SQL'}"
            elif found is not None and vector is not None and float(np.abs(found - vector).max()) > TOLERANCE:
                difference = f"the vectors differ by {float(np.abs(found - vector).max()):.2g}"
            else:
                continue
            raise EncoderError(
                f"The static text side of '{name}' is not the same in SQL: for the {role} {text!r}, {difference}.",
                hint,
            )


def _sample(side: StaticText) -> Iterator[str]:
    """Texts that tokenizers are known to differ on, and the vocabulary's own pieces, evenly spread."""
    yield from TEXTS
    step = max(1, len(side.vocabulary) // SAMPLED_TOKENS)
    prefix = side.settings.get("continuing_prefix", "##")
    pieces = side.vocabulary[1::step]
    for token in pieces:
        yield token.removeprefix(prefix)
    for start in range(0, len(pieces), 8):
        yield " ".join(token.removeprefix(prefix) for token in pieces[start : start + 8])
