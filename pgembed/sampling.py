"""Samples of a table's inputs, as an embedding of it reads them: for tests of encoders and estimates."""

from __future__ import annotations

import random
from typing import Any

from psycopg import sql

from pgembed.encoders.check import Samples
from pgembed.errors import InvalidInput, MediaError
from pgembed.media import MediaPolicy, MediaReader, sources
from pgembed.plans import Call, Compute, Plan
from pgembed.worker.queue import trusted

LOOKED_AT = 10  # rows looked at for each that is taken


def samples(table: str, embedding: str | None, rows: int, media: MediaPolicy) -> Plan[Samples]:
    """Inputs of up to ``rows`` rows; pictures that cannot be read are left out. Raises InvalidInput without any."""
    work = (
        yield Call(
            sql.SQL(
                "SELECT w.schema_name, w.table_name, w.input_sql, w.inputs FROM pgembed._work w"
                " JOIN pgembed._embedding(%s::regclass, %s) e USING (id)"
            ),
            [table, embedding],
        )
    )[0]
    modalities = sorted(work["input_sql"])
    found = yield Call(
        sql.SQL("SELECT {} FROM {} t LIMIT {}").format(
            sql.SQL(", ").join(
                sql.SQL("{} AS {}").format(trusted(work["input_sql"][modality]), sql.Identifier(modality))
                for modality in modalities
            ),
            sql.Identifier(work["schema_name"], work["table_name"]),
            rows * LOOKED_AT,
        )
    )
    chosen = random.Random(0).sample(found, min(rows, len(found)))
    read: Samples = yield Compute(lambda: _read(chosen, work["inputs"], media))
    if not (read.texts or read.pictures or read.screenshots):
        raise InvalidInput(f"The table {table} has no row whose inputs can be read.", "Give another table, or none.")
    return read


def _read(rows: list[dict[str, Any]], inputs: dict[str, dict[str, Any]], media: MediaPolicy) -> Samples:
    values: dict[str, list[Any]] = {
        modality: [row[modality] for row in rows if row.get(modality) is not None]
        for modality in ("text", "image", "screenshot")
    }
    pictures: dict[str, list[Any]] = {}
    with MediaReader(media) as reader:
        for modality in ("image", "screenshot"):
            pictures[modality] = []
            for value in values[modality]:
                for source in sources(value, inputs[modality])[:1]:
                    try:
                        pictures[modality].append(reader.open(source.value, source.kind))
                    except MediaError:
                        continue
    return Samples(values["text"], pictures["image"], pictures["screenshot"])
