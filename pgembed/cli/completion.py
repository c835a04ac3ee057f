"""Names from the database for the shell's Tab key. A person waits for them: so there is little time, and no error."""

from __future__ import annotations

from typing import LiteralString

import typer

SECONDS = 2  # libpq's least for connecting
ANY_TABLE = """
SELECT c.oid::pg_catalog.regclass::text FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT IN ('information_schema', 'pgembed')
    AND NOT pg_catalog.starts_with(n.nspname, 'pg_')"""
ATTACHED_TABLE = "SELECT DISTINCT relation::pg_catalog.regclass::text FROM pgembed.embedding"
EMBEDDING = "SELECT target FROM pgembed.embedding WHERE relation = pg_catalog.to_regclass(%(table)s)"
COLUMN = """
SELECT attname FROM pg_catalog.pg_attribute
WHERE attrelid = pg_catalog.to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped"""
ENCODER = "SELECT name FROM pgembed.encoder"
VIEW = "SELECT name FROM pgembed.direction"
ROLE = "SELECT rolname::text FROM pg_catalog.pg_roles WHERE NOT pg_catalog.starts_with(rolname, 'pg_')"


def any_table(ctx: typer.Context, incomplete: str) -> list[str]:
    """Tables that an embedding could be attached to."""
    return _names(ctx, ANY_TABLE, incomplete)


def attached_table(ctx: typer.Context, incomplete: str) -> list[str]:
    """Tables with an embedding."""
    return _names(ctx, ATTACHED_TABLE, incomplete)


def embedding(ctx: typer.Context, incomplete: str) -> list[str]:
    """The embeddings of the table that was typed before."""
    return _names(ctx, EMBEDDING, incomplete)


def column(ctx: typer.Context, incomplete: str) -> list[str]:
    """The columns of the table that was typed before."""
    return _names(ctx, COLUMN, incomplete)


def encoder(ctx: typer.Context, incomplete: str) -> list[str]:
    """The registered encoders."""
    return _names(ctx, ENCODER, incomplete)


def view(ctx: typer.Context, incomplete: str) -> list[str]:
    """The views of spaces."""
    return _names(ctx, VIEW, incomplete)


def role(ctx: typer.Context, incomplete: str) -> list[str]:
    """The roles of the server, but for its own."""
    return _names(ctx, ROLE, incomplete)


def _names(ctx: typer.Context, statement: LiteralString, incomplete: str) -> list[str]:
    import psycopg

    from pgembed.connections import conninfo

    try:
        address = conninfo(ctx.find_root().params.get("dsn"))
        options = f"-c statement_timeout={SECONDS}s"
        with psycopg.connect(address, connect_timeout=SECONDS, options=options) as conn:
            rows = conn.execute(statement, {"table": _table(ctx)}).fetchall()
    except Exception:  # whatever is wrong, the command itself will say it
        return []
    return sorted(name for (name,) in rows if name.startswith(incomplete))


def _table(ctx: typer.Context) -> str | None:
    """The table that was typed: parsed, or left as it is where an option before the cursor has no value yet."""
    return ctx.params.get("table") or next(iter(ctx.args), None)
