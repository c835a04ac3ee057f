"""The side table in the statements of the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql


class Side:
    """The table that holds an embedding's vectors beside the user's, as the statements name it (alias s)."""

    def __init__(self, side: Mapping[str, Any], row_keys: Sequence[str]) -> None:
        """``side`` has its schema, its name and its key's columns; ``row_keys`` are those of the user's table."""
        self.table = sql.Identifier(side["schema"], side["table"])
        self._names: list[str] = side["keys"]
        self._row_keys = row_keys

    def keys(self, alias: str | None = None) -> sql.Composed:
        """Its key's columns."""
        return sql.SQL(", ").join(sql.Identifier(*([alias] if alias else []), name) for name in self._names)

    def same(self, alias: str, own_alias: str = "s") -> sql.Composed:
        """``s.id = j.key_1 AND …``: joins it with a table of the queue."""
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier(own_alias, name), sql.Identifier(alias, f"key_{n}"))
            for n, name in enumerate(self._names, start=1)
        )

    @property
    def without(self) -> sql.Composed:
        """That a row of the user's table, alias t, has no vector."""
        same = sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("s", name), sql.Identifier("t", row_name))
            for name, row_name in zip(self._names, self._row_keys, strict=True)
        )
        return sql.SQL("NOT EXISTS (SELECT FROM {} s WHERE {})").format(self.table, same)
