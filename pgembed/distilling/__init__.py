"""``pgembed encoder distill``: a static side for any text encoder, so that SQL makes query vectors without a worker.

What is read here, trained in ``training``, and stored here again are three steps: a model takes minutes, and no
connection waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from pgembed.catalog import EncoderRow
from pgembed.distilling.training import LIMIT, Agreement, Say, Texts, Trained, train
from pgembed.errors import InvalidInput
from pgembed.plans import Call, Plan, Within
from pgembed.query import quoted
from pgembed.static_sides import checked, written
from pgembed.worker.queue import trusted

__all__ = ["LIMIT", "Agreement", "Distilled", "Say", "Sources", "Texts", "Trained", "drop", "read", "store", "train"]


@dataclass(frozen=True)
class Sources:
    """Where texts come from: ``texts`` is ``TABLE.COLUMN``, ``embedding`` is ``TABLE.TARGET`` and has the texts that
    this embedding reads, ``log`` holds queries and ``words`` words. Without any: the embeddings of the encoder that
    read text, and the words of the tokenizer."""

    texts: str | None = None
    embedding: str | None = None
    log: Sequence[str] | None = field(default=None, repr=False)
    words: Sequence[str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Distilled:
    """A distilled static side, as it was stored."""

    encoder: str
    model: str
    tokenizer: str
    tokens: int
    texts: int
    agreement: Agreement


def read(name: str, sources: Sources, limit: int, seed: int) -> Plan[tuple[EncoderRow, Texts]]:
    """The encoder, and the texts of its sources; at most ``limit`` rows of each table, drawn by ``seed``.

    Rows are read under the rights of the connection's role. Raises CatalogError for an encoder that has no use for a
    static side, and where a table or column is not there.
    """
    found = yield Call(sql.SQL("SELECT e.* FROM pgembed._distillable(%s) e"), [name])
    row = EncoderRow(**{one.name: found[0][one.name] for one in fields(EncoderRow) if one.name in found[0]})
    named = (sources.texts, sources.embedding, sources.log, sources.words)
    if all(source is None for source in named):
        long: list[str] = []
        for work in (yield from _works("w.encoder = %s", [name])):
            long += yield from _rows(_table_of(work), _input_of(work), limit, seed)
        return row, Texts(long=long, own_words=True)
    long = []
    if sources.texts is not None:
        table, column = _split(sources.texts, "texts", "COLUMN")
        relation = yield from _relation(table, column)
        long += yield from _rows(relation, sql.SQL("t.{}").format(quoted(column)), limit, seed)
    if sources.embedding is not None:
        table, target = _split(sources.embedding, "embedding", "TARGET")
        works = yield from _works("w.id = (SELECT id FROM pgembed._embedding(%s::regclass, %s))", [table, target])
        if not works:
            raise InvalidInput(
                f"The embedding {sources.embedding} reads no text.", "Name a column of texts instead: TABLE.COLUMN."
            )
        long += yield from _rows(_table_of(works[0]), _input_of(works[0]), limit, seed)
    return row, Texts(long=long, queries=sources.log or (), words=sources.words or ())


def store(row: EncoderRow, trained: Trained) -> Plan[Distilled]:
    """Write a trained side into the catalog, in one transaction, in place of the one before.

    Raises EncoderError where SQL makes other vectors of texts with it than Python, CatalogError where the encoder was
    changed meanwhile, or this role may not write the catalog.
    """
    return (yield Within(_stored(row, trained)))


def drop(name: str) -> Plan[None]:
    """Take the distilled side of an encoder away. Raises CatalogError where it has none."""
    yield Call(sql.SQL("SELECT pgembed.drop_distilled(%s)"), [name])


def _stored(row: EncoderRow, trained: Trained) -> Plan[Distilled]:
    side = trained.side
    known = yield Call(sql.SQL("SELECT 1 AS known FROM pgembed.static_text WHERE model = %s"), [side.model])
    if not known:
        yield from written(side)
    yield from checked(
        side.model, side, lambda text, _: side.encode([text])[0],
        hint="That is a fault of pgembed: report the text. Nothing was changed.",
    )  # fmt: skip
    agreement = {**asdict(trained.agreement), "tokenizer": trained.tokenizer}
    yield Call(
        sql.SQL("SELECT pgembed.set_distilled(%s, %s, %s, %s, %s)"),
        [row.name, side.model, row.fingerprint, trained.texts, Jsonb(agreement)],
    )
    return Distilled(
        encoder=row.name,
        model=side.model,
        tokenizer=trained.tokenizer,
        tokens=len(side.vocabulary) - 1,
        texts=trained.texts,
        agreement=trained.agreement,
    )


def _works(where: str, params: list[Any]) -> Plan[list[dict[str, Any]]]:
    """Embeddings that read text, with the SQL of what they read."""
    return (
        yield Call(
            sql.SQL(
                "SELECT w.schema_name, w.table_name, w.input_sql FROM pgembed._work w"
                " WHERE w.present AND w.input_sql ? 'text' AND {} ORDER BY w.id"
            ).format(trusted(where)),
            params,
        )
    )


def _table_of(work: dict[str, Any]) -> sql.Identifier:
    return quoted(work["schema_name"], work["table_name"])


def _input_of(work: dict[str, Any]) -> sql.SQL:
    return trusted(work["input_sql"]["text"].replace("%", "%%"))


def _relation(table: str, column: str) -> Plan[sql.Identifier]:
    """A table by its name as SQL writes it; the server's error where there is none. Raises InvalidInput where it has
    no such column."""
    rows = yield Call(
        sql.SQL(
            "SELECT n.nspname AS schema_name, c.relname AS table_name, ARRAY(SELECT a.attname::text"
            " FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " ORDER BY a.attnum) AS columns FROM pg_catalog.pg_class c"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s::regclass"
        ),
        [table],
    )
    if column not in rows[0]["columns"]:
        raise InvalidInput(f"Table {table} has no column {column!r}.", f"It has: {', '.join(rows[0]['columns'])}.")
    return _table_of(rows[0])


def _rows(table: sql.Identifier, text: sql.Composable, limit: int, seed: int) -> Plan[list[str]]:
    """Different texts of a table, at most so many, the same ones for the same seed wherever they stand."""
    rows = yield Call(
        sql.SQL(
            'SELECT text FROM (SELECT DISTINCT ({})::text COLLATE "C" AS text FROM {} t) AS found'
            " WHERE pg_catalog.btrim(text, E' \\t\\r\\n') <> '' ORDER BY pg_catalog.md5(text || %s), text LIMIT %s"
        ).format(text, table),
        [str(seed), limit],
    )
    return [row["text"] for row in rows]


def _split(named: str, what: str, second: str) -> tuple[str, str]:
    table, dot, name = named.rpartition(".")
    if not dot or not table or not name:
        raise InvalidInput(
            f"{what} is {named!r}, which is not TABLE.{second}.",
            f"For example: --{what} product.{'title' if second == 'COLUMN' else 'embedding'}",
        )
    return table, name[1:-1].replace('""', '"') if name[0] == name[-1] == '"' and len(name) > 2 else name
