"""The statements that declared embeddings come to: calls of pgembed's SQL functions, to be run or written down.

Tables are named as Postgres reads them, quoted where they must be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from pgembed import catalog
from pgembed.declared import Declared, EncoderSpec
from pgembed.encoders import load_encoder


def attach(table: str, target: str, declared: Declared) -> sql.Composed:
    """``SELECT pgembed.attach(…)`` for a table that is there."""
    return sql.SQL("SELECT pgembed.attach({})").format(_declared(table, target, declared))


def alter(table: str, target: str, declared: Declared) -> sql.Composed:
    """``SELECT pgembed.alter(…)``, which attaches anew what is not so already."""
    return sql.SQL("SELECT pgembed.alter({})").format(_declared(table, target, declared))


def is_attached(table: str, target: str, declared: Declared) -> sql.Composed:
    """``SELECT pgembed.is_attached(…)``: whether ``alter`` would leave all as it is."""
    return sql.SQL("SELECT pgembed.is_attached({})").format(_declared(table, target, declared))


def detach(table: str, target: str, *, if_attached: bool = False) -> sql.Composed:
    """``SELECT pgembed.detach(…)``; with ``if_attached`` nothing happens where there is nothing to detach."""
    statement = sql.SQL("SELECT pgembed.detach({}, {})").format(relation(table), target)
    if not if_attached:
        return statement
    return statement + sql.SQL(
        " WHERE EXISTS (SELECT FROM pgembed.embedding WHERE relation = {}::oid AND target = {})"
    ).format(relation(table), target)


def add_encoder(encoder: EncoderSpec, facts: Mapping[str, Any] | None = None) -> sql.Composed:
    """``SELECT pgembed.add_encoder(…)``. ``facts`` are those of a model that SQL does not know by itself."""
    named = {**({"settings": dict(encoder.settings)} if encoder.settings else {}), **(facts or {})}
    told = sql.SQL("").join(
        sql.SQL(", {} => {}").format(sql.Identifier(name), Jsonb(value) if isinstance(value, dict) else value)
        for name, value in named.items()
    )
    return sql.SQL("SELECT pgembed.add_encoder({}, {}{})").format(encoder.name, encoder.spec, told)


def facts_for_script(encoder: EncoderSpec) -> dict[str, Any]:
    """What a script has to tell of an encoder; its model is loaded, unless it ships with pgembed."""
    ships = encoder.spec == "builtin:lite" and not encoder.settings
    return {} if ships else catalog.facts(load_encoder(encoder.spec, encoder.settings))


def remove_encoder(name: str) -> sql.Composed:
    """``SELECT pgembed.remove_encoder(…)``."""
    return sql.SQL("SELECT pgembed.remove_encoder({})").format(name)


def relation(table: str) -> sql.Composed:
    """A table as an argument of a function."""
    return sql.SQL("{}::regclass").format(table)


def _declared(table: str, target: str, declared: Declared) -> sql.Composed:
    arguments: list[sql.Composable] = [
        relation(table),
        *map(sql.Literal, (target, declared.encoder, declared.inputs)),
        *(
            sql.SQL("{} => {}").format(sql.Identifier(name), sql.Literal(value))
            for name, value in declared.unusual.items()
        ),
    ]
    return sql.SQL(", ").join(arguments)
