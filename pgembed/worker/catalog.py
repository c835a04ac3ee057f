"""What a worker reads of the catalog: an entry that makes no sense is refused with a sentence, and stops no other.

A catalog is data. Who may write it must not bring a worker down, or have it do to a table what nobody attached.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any, cast

import psycopg
from psycopg.rows import class_row

from pgembed.errors import CatalogError
from pgembed.worker.faults import is_lost
from pgembed.worker.queue import Work
from pgembed.worker.state import State

READ = f"SELECT {', '.join(field.name for field in fields(Work))} FROM pgembed._work"  # a later view may have more
MOST_WEIGHT = 1e30


class Catalog:
    """Reads the embeddings that are in order."""

    def __init__(self, state: State, conn: psycopg.Connection[Any]) -> None:
        self.state = state
        self.conn = conn

    def read(self) -> list[Work]:
        """Every embedding that a worker can make sense of; of the others the log tells once."""
        try:
            works = self._works(f"{READ} ORDER BY id")
        except (psycopg.DataError, psycopg.ProgrammingError, psycopg.errors.RaiseException) as error:
            if isinstance(error, psycopg.errors.InsufficientPrivilege | psycopg.errors.UndefinedTable):
                raise
            works = self._one_by_one()
        faults = {work.id: fault for work in works if (fault := fault_of(work))}
        for work in works:
            if work.id in faults:
                self.state.refuse(work.id, work.name, CatalogError(faults[work.id], _REMEDY))
            else:
                self.state.accept(work.id)
        return [work for work in works if work.id not in faults]

    def _works(self, statement: str, *values: int) -> list[Work]:
        with self.conn.transaction(), self.conn.cursor(row_factory=class_row(Work)) as cursor:
            return cursor.execute(statement.encode(), values).fetchall()

    def _one_by_one(self) -> list[Work]:
        """The same where reading them together fails, for one that is out of order."""
        works: list[Work] = []
        names = (
            "SELECT id, pg_catalog.concat_ws('.', schema_name, table_name, target) FROM pgembed.embedding ORDER BY id"
        )
        for number, name in self.conn.execute(names.encode()).fetchall():
            try:
                works += self._works(f"{READ} WHERE id = $1", number)
            except psycopg.Error as error:
                if is_lost(self.conn, error):
                    raise
                said = error.diag.message_primary or str(error)
                self.state.refuse(number, name, CatalogError(said.removesuffix(".") + ".", error.diag.message_hint))
        return works


_REMEDY = "Detach the embedding and attach it again, or put its row in the catalog right."


def fault_of(work: Work) -> str | None:
    """Why an embedding cannot be worked on, in a sentence, or None."""
    if not work.present or work.fault:
        return work.fault if work.present else None
    key_columns, key_names, settings, inputs, input_sql = (  # whatever JSON the catalog holds, or NULL
        cast("Any", value) for value in (work.key_columns, work.key_names, work.settings, work.inputs, work.input_sql)
    )
    if not isinstance(key_columns, list) or not isinstance(key_names, list):
        return "Its queue is not there, or has another key than the catalog."
    if len(cast("list[Any]", key_names)) != len(cast("list[Any]", key_columns)):
        return "The key that the catalog has is not the table's."
    if not isinstance(settings, dict):
        return f"The settings of its encoder '{work.encoder}' are no JSON object."
    if not isinstance(inputs, dict) or not input_sql:
        return "It has no inputs."
    for modality, facts in cast("dict[str, dict[str, Any]]", inputs).items():
        weight = facts.get("weight")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < MOST_WEIGHT:
            shown = str(weight)[:20]
            return f"The weight of its {modality} input is {shown}, not a number above zero and below {MOST_WEIGHT:g}."
    if work.parts is not None and (len(input_sql) != 1 or work.side is None or work.mode != "queue"):
        return "It has parts, and not the one input, the side table and the queue that these take."
    if work.fusion is not None and not _puts_all_side_by_side(work.fusion, cast("dict[str, Any]", inputs)):
        return f"Its fusion is {str(work.fusion)[:60]}, whose parts are not its inputs."
    return None


def _puts_all_side_by_side(fusion: object, inputs: Collection[str]) -> bool:
    parts = cast("dict[str, Any]", fusion).get("parts") if isinstance(fusion, dict) else None
    return isinstance(parts, list) and sorted(map(str, cast("list[Any]", parts))) == sorted(inputs)
