"""What does an embedding cost the writers of a table? An insert and an update with and without its triggers.

    python -m benchmarks.triggers [--quick] [--json]

200,000 rows of a key, a title, a price, a stock and a picture's bytes, with an index on the price. Each form has a
table of its own, and they take turns in any order, part by part. Times are the server's own processor time, and those
of the quickest quarter of the parts: what else the machine does only ever makes them longer. Where a transaction is
one row, they are the client's, with the round trip. Commits do not wait for the disk, which would hide the triggers'
share; rows have no vectors, whose bytes an update of a row that holds them would copy.

"Of no input" means the price. The stock is in no index, so its update stays in its page, which is the cheapest update
there is: its tables, and beside pictures its figures, say what share of that looking at the row once more comes to.
Beside them stands a row trigger whose condition is ``false``, which is as little as any can cost.

The peer is the row trigger of pgai's vectorizer: AFTER INSERT OR UPDATE FOR EACH ROW, a PL/pgSQL function that compares
old and new as JSON, column by column, and inserts the key into a queue table with an index on the key. It is written
here from ``ai._vectorizer_build_trigger_definition`` and ``ai._vectorizer_create_queue_table`` of
https://github.com/timescale/pgai, projects/extension/sql/idempotent/013-vectorizer-int.sql (PostgreSQL licence).
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.common import Figure, Report, arguments, fresh_database, undisturbed

ROWS, ROWS_QUICK = 200_000, 40_000
PARTS = 20
STATEMENT = 1_000  # rows that one statement inserts or updates
PICTURES, PICTURES_QUICK = 1_000, 400
PICTURE_BYTES = 200_000
PICTURE_PARTS = 60  # each updates all the rows with pictures
WARM_UP = 2  # parts that are not counted
INSERT_TARGET, UNTOUCHED_TARGET = 4.0, 1.15

PLAIN, OURS, SIDE, PEER = "no embedding", "pgembed", "pgembed, a side table", "pgai's row trigger"
NEVER = "a row trigger that is never called"  # what Postgres takes to look whether any is
COLUMNS = "(id bigint PRIMARY KEY, title text NOT NULL, price numeric NOT NULL, stock integer, photo bytea)"
ATTACH = (
    "SELECT pgembed.attach('{table}', 'embedding', 'bench', '{{\"text\": \"title\", \"image\": \"photo\"}}',"
    " storage => '{storage}')"
)
INSTANT = (
    "SELECT pgembed.attach('{table}', 'embedding', 'lite', '{{\"text\": \"title\"}}',"
    " storage => '{storage}', mode => 'instant')"
)
PGAI = """
    CREATE TABLE queue_of_{table} (id bigint NOT NULL, queued_at timestamptz NOT NULL DEFAULT now());
    CREATE INDEX ON queue_of_{table} (id);
    CREATE TABLE vectorizer_of_{table} (source_table name, embedding_column text);
    CREATE FUNCTION enqueue_{table}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF TG_OP = 'INSERT' OR OLD.id IS DISTINCT FROM NEW.id THEN
            INSERT INTO public.queue_of_{table} (id) VALUES (NEW.id);
        ELSIF EXISTS (
            SELECT FROM jsonb_each(to_jsonb(OLD)) AS o JOIN jsonb_each(to_jsonb(NEW)) AS n ON o.key = n.key
            WHERE o.value IS DISTINCT FROM n.value
                AND o.key <> ALL (SELECT v.embedding_column FROM public.vectorizer_of_{table} AS v
                    WHERE v.source_table = '{table}')
        ) THEN
            INSERT INTO public.queue_of_{table} (id) VALUES (NEW.id);
        END IF;
        RETURN NEW;
    END
    $$;
    CREATE TRIGGER enqueue AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION enqueue_{table}()
"""


@dataclass(frozen=True)
class Form:
    """A way to keep a table's vectors true: what is put on the table, whose name is ``{table}``."""

    name: str
    setup: str = ""
    partitioned: bool = False

    def create(self, conn: psycopg.Connection[Any], table: str) -> None:
        """Make the table."""
        part = f"; CREATE TABLE {table}_all PARTITION OF {table} DEFAULT" if self.partitioned else ""
        by = " PARTITION BY RANGE (id)" if self.partitioned else ""
        conn.execute(f"CREATE TABLE {table} {COLUMNS}{by}{part}".encode())
        conn.execute(f"CREATE INDEX ON {table} (price)".encode())
        filled = f"{table}_all" if self.partitioned else table
        conn.execute(f"ALTER TABLE {filled} SET (autovacuum_enabled = off)".encode())  # it would slow any of them
        conn.execute(self.setup.format(table=table).encode())


IDLE = """
    CREATE FUNCTION never_{table}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER never AFTER UPDATE ON {table} FOR EACH ROW WHEN (false) EXECUTE FUNCTION never_{table}()
"""

# Instant mode encodes the texts themselves, with the built-in encoder, which the others leave to workers.
FORMS = (
    Form(PLAIN),
    Form(OURS, ATTACH.replace("{storage}", "column")),
    Form(SIDE, ATTACH.replace("{storage}", "side")),
    Form("pgembed, partitioned table", ATTACH.replace("{storage}", "column"), partitioned=True),
    Form("pgembed, instant", INSTANT.replace("{storage}", "column")),
    Form("pgembed, instant, a side table", INSTANT.replace("{storage}", "side")),
    Form(PEER, PGAI),
    Form(NEVER, IDLE),
)


@dataclass
class Step:
    """Something that writers do: ``{table}``, and ``{low}`` to ``{high}``, the keys of one statement."""

    name: str
    statement: str
    rows: int = STATEMENT  # that one statement is for; with one, the client's time is taken
    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])  # of each part, by form

    def ratio(self, form: str) -> float:
        """How many times as long a form takes as the table without an embedding."""
        return undisturbed(self.seconds[form]) / undisturbed(self.seconds[PLAIN])


INSERT = (
    "INSERT INTO {table} SELECT i, 'product number ' || i, i % 100, 1, NULL FROM generate_series({low}, {high}) AS i"
)
UPDATE = "UPDATE {table} SET %s WHERE id BETWEEN {low} AND {high}"


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__)
    report = Report("triggers", as_json=options.json)
    rows = ROWS_QUICK if options.quick else ROWS
    pictures = PICTURES_QUICK if options.quick else PICTURES
    price, stock = UPDATE % "price = price + 1", UPDATE % "stock = stock + 1"
    insert = Step("insert, 1,000 rows a statement", INSERT)
    touched = Step("update of an input", UPDATE % "title = title || '.'")
    untouched = Step("update of no input", price)
    unindexed = Step("update of no input and no index", stock)
    single_update = Step("update of no input, one row a statement and a transaction", price, 1)
    single_insert = Step("insert, one row a statement and a transaction", INSERT, 1)
    with_pictures = Step("update of no input beside pictures of 200 kB", price)
    unindexed_pictures = Step("update of no input and no index beside pictures of 200 kB", stock)
    peer_pictures = Step("update of no input beside pictures of 200 kB, the peer", price)
    with fresh_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        conn.execute(
            "SELECT pgembed.add_encoder('bench', 'bench:bench', dim => 256, modalities => '{text,image}',"
            " fingerprint => 'bench')"
        )
        conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
        version = conn.info.server_version
        tables = {form.name: f"product_{number}" for number, form in enumerate(FORMS)}
        for form in FORMS:
            form.create(conn, tables[form.name])
        for step in (insert, touched, untouched, unindexed):
            run(conn, step, tables, range(1, rows + 1))
        run(conn, single_update, tables, range(1, rows // 10 + 1))
        run(conn, single_insert, tables, range(rows + 1, rows + rows // 10 + 1))
        for table in tables.values():
            conn.execute(f"TRUNCATE {table}".encode())
        fill_with_pictures(conn, list(tables.values()), pictures)
        ours = {form: table for form, table in tables.items() if form != PEER}
        all_rows = range(1, pictures + 1)
        run(conn, with_pictures, ours, all_rows, repeat=PICTURE_PARTS)
        run(conn, unindexed_pictures, ours, all_rows, repeat=PICTURE_PARTS)
        run(conn, peer_pictures, {form: tables[form] for form in (PLAIN, PEER)}, all_rows, repeat=PARTS // 2)
    for step in (
        insert,
        single_insert,
        touched,
        untouched,
        single_update,
        unindexed,
        with_pictures,
        unindexed_pictures,
        peer_pictures,
    ):
        report.table(
            f"{step.name}: µs a row",
            [
                {
                    "form": form.name,
                    "µs": undisturbed(step.seconds[form.name]) * 1e6,
                    "times": step.ratio(form.name),
                }
                for form in FORMS
                if form.name in step.seconds
            ],
        )
    figures = [
        Figure("ratio", insert.ratio(OURS), INSERT_TARGET),
        Figure("side", insert.ratio(SIDE), INSERT_TARGET),
        Figure("untouched", untouched.ratio(OURS), UNTOUCHED_TARGET),
        Figure("untouched_side", untouched.ratio(SIDE), UNTOUCHED_TARGET),
    ]
    if version >= 170000:  # older servers cannot tell by its TOAST pointer that a picture was not touched
        figures += [
            Figure("untouched_pictures", with_pictures.ratio(OURS), UNTOUCHED_TARGET),
            Figure("untouched_pictures_side", with_pictures.ratio(SIDE), UNTOUCHED_TARGET),
            Figure("unindexed_pictures", unindexed_pictures.ratio(OURS), UNTOUCHED_TARGET),
            Figure("unindexed_pictures_side", unindexed_pictures.ratio(SIDE), UNTOUCHED_TARGET),
        ]
    return report.finish(*figures)


def run(conn: psycopg.Connection[Any], step: Step, tables: dict[str, str], keys: range, repeat: int = 0) -> None:
    """Do it to the rows of these keys in each form's table, a part of one after a part of the other; ``repeat`` has so
    many parts, each of all the rows."""
    order = random.Random(step.name)
    for table in tables.values():
        conn.execute(f"VACUUM (ANALYZE) {table}".encode())
    conn.execute("CHECKPOINT")
    size = len(keys) // PARTS
    parts = [keys] * repeat or [keys[start : start + size] for start in range(0, len(keys), size)]
    for number, part in enumerate(parts):
        for form, table in order.sample(list(tables.items()), len(tables)):
            clock = time.perf_counter if step.rows == 1 else partial(processor_time, conn.info.backend_pid)
            start = clock()
            write(conn, step, table, part)
            seconds = clock() - start
            if number >= WARM_UP:
                step.seconds.setdefault(form, []).append(seconds / len(part))


def write(conn: psycopg.Connection[Any], step: Step, table: str, keys: range) -> None:
    """The statements that do it to these keys' rows."""
    for low in range(keys.start, keys.stop, step.rows):
        high = min(low + step.rows, keys.stop) - 1
        conn.execute(step.statement.format(table=table, low=low, high=high).encode())


def fill_with_pictures(conn: psycopg.Connection[Any], tables: Sequence[str], count: int) -> None:
    """Put rows with bytes that do not shrink into each table."""
    conn.execute(
        "CREATE TABLE noise AS SELECT i, decode(string_agg(md5(i || ' ' || j), ''), 'hex') AS photo"
        f" FROM generate_series(1, 20) AS i, generate_series(1, {PICTURE_BYTES // 16}) AS j GROUP BY i".encode()
    )
    for table in tables:
        conn.execute(
            f"INSERT INTO {table} SELECT n, 'picture ' || n, 1, 1, photo FROM generate_series(1, {count}) AS n"
            " JOIN noise ON i = 1 + n % 20".encode()
        )
        conn.execute(f"VACUUM (ANALYZE) {table}".encode())
    conn.execute("CHECKPOINT")


def processor_time(pid: int) -> float:
    """Seconds that a process of this machine has run; where the system does not tell, those that went by."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
