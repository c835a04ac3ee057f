"""Keeps the schema of this version as SQL, with data in it, for the tests of later versions' upgrades.

Run it before a migration is added: ``python -m tests.migration.keep_version`` writes versions/<schema version>.sql.xz.
It needs no more of pgembed than the first version had, and uses what later ones brought where that is there.
"""

from __future__ import annotations

import lzma
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from pgembed import schema
from pgembed.embedded import EmbeddedServer, binaries
from tests.fakes import DIM, FakeEncoder, vector_of

KEPT = Path(__file__).parent / "versions"
TITLES = {1: "a red shoe", 2: "two dogs", 3: "a boat", 4: "bad", 5: None, 6: "a frog"}
TOKENS = ("dog", "red", "shoe", "boat")  # all that is kept of the built-in encoder's


def make(conn: psycopg.Connection[Any]) -> None:
    """Attach to tables what this version can, in every state that an upgrade may find."""
    encoder = FakeEncoder()
    conn.execute(
        "SELECT pgembed.add_encoder('fake', %s, dim => %s, modalities => '{text}', fingerprint => %s)",
        [encoder.spec, DIM, encoder.fingerprint],
    )
    conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    conn.execute("DELETE FROM pgembed.token WHERE token <> ALL (%s)", [list(TOKENS)])
    attach(conn, "product", "fake")  # embedding 1, and so on
    attach(conn, "paused", "fake")
    attach(conn, "filling", "fake")
    conn.execute("UPDATE pgembed.embedding SET state = 'ready' WHERE id < 3")
    for table, keys in {"product": (1, 2), "filling": (1, 2), "paused": (1, 2, 3, 4)}.items():
        for key in keys:
            write(conn, f"UPDATE {table} SET embedding = %s::text::vector WHERE id = %s", key)
    # Of product row 1 is done and 5 has no text; 2 has changed since; 3 is in the hands of a worker that is gone; 4 has
    # failed; 6 is new.
    conn.execute("DELETE FROM pgembed.change_1 WHERE key_1 < 6; UPDATE product SET title = 'a cat' WHERE id = 2")
    conn.execute(
        "INSERT INTO pgembed.job_1 (key_1, attempts, claimed_until) VALUES (3, 1, now() - interval '1 minute');"
        """INSERT INTO pgembed.failure (embedding, key, error, attempts) VALUES (1, '["4"]', 'bad is refused', 5);"""
        "INSERT INTO pgembed.written (embedding, minute, rows) VALUES (1, date_trunc('minute', now()), 2)"
    )
    # All of paused is done but row 6; of filling the backfill is at row 2.
    conn.execute("DELETE FROM pgembed.change_2 WHERE key_1 < 6; DELETE FROM pgembed.change_3")
    if has_column(conn, "paused"):
        conn.execute("UPDATE pgembed.embedding SET paused = true WHERE id = 2")
    else:
        conn.execute("UPDATE pgembed.embedding SET state = 'paused' WHERE id = 2")
    if has_column(conn, "backfill_after"):
        conn.execute("""UPDATE pgembed.embedding SET backfill_after = '["2"]' WHERE id = 3""")
    else:
        conn.execute("""INSERT INTO pgembed.backfill (embedding, after) VALUES (3, '["2"]')""")
    if knows(conn, "storage"):
        attach(conn, "beside", "fake", ", storage => 'side'")
        conn.execute("UPDATE pgembed.embedding SET state = 'ready' WHERE id = 4; DELETE FROM pgembed.change_4")
        for key in (1, 2, 3, 4, 6):
            write(conn, "INSERT INTO beside_embedding (vector, id) VALUES (%s::text::vector, %s)", key)
        conn.execute("UPDATE beside SET title = 'a cat' WHERE id = 2")
    if knows(conn, "mode"):
        attach(conn, "instant", "lite", ", mode => 'instant'")
        conn.execute("UPDATE pgembed.embedding SET state = 'ready' WHERE id = 5; UPDATE instant SET title = 'a dog'")
    conn.execute(
        "INSERT INTO pgembed.query_cache (encoder, input_hash, vector) SELECT name,"
        " pgembed.input_hash(name, fingerprint, 'text', convert_to('a shoe', 'UTF8')), %s::text::vector"
        " FROM pgembed.encoder WHERE name = 'fake'",
        [str(vector_of("a shoe").tolist())],
    )


def has_column(conn: psycopg.Connection[Any], name: str) -> bool:
    """Whether the catalog of this version has a column."""
    query = "SELECT FROM pg_attribute WHERE attrelid = 'pgembed.embedding'::regclass AND attname = %s"
    return conn.execute(query, [name]).fetchone() is not None


def knows(conn: psycopg.Connection[Any], option: str) -> bool:
    """Whether attach has an option in this version."""
    query = "SELECT FROM pg_proc WHERE oid = 'pgembed.attach'::regproc AND %s = ANY (proargnames)"
    return conn.execute(query, [option]).fetchone() is not None


def attach(conn: psycopg.Connection[Any], table: str, encoder: str, options: str = "") -> None:
    """Make a table, attach to it, and fill it."""
    conn.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, title text)".encode())
    conn.execute(
        f"SELECT pgembed.attach('{table}', 'embedding', %s, '{{\"text\": \"title\"}}'{options})".encode(), [encoder]
    )
    conn.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)".encode(), list(TITLES.items()))


def write(conn: psycopg.Connection[Any], statement: str, key: int) -> None:
    """Write a row's vector, as a worker does."""
    conn.execute(statement.encode(), [str(vector_of(str(TITLES[key])).tolist()), key])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer.start(Path(folder) / "data") as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("CREATE EXTENSION vector")
            version = schema.install(conn).schema
            make(conn)
        dump = subprocess.run(
            [binaries() / "pg_dump", "--no-owner", server.dsn()], capture_output=True, check=True
        ).stdout
    KEPT.mkdir(exist_ok=True)
    path = KEPT / f"{version}.sql.xz"
    path.write_bytes(lzma.compress(dump, preset=9))
    print(path, len(dump), path.stat().st_size)


if __name__ == "__main__":
    main()
