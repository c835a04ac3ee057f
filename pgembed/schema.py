"""Install, upgrade and remove the schema ``pgembed``: migrations (what cannot be replaced), then sql/ (what can)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from importlib.resources import files
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg.types.json import Jsonb

from pgembed.catalog import Finding
from pgembed.errors import CatalogError, NotInstalled
from pgembed.static_text import StaticText
from pgembed.vectors import pack_one, register_packed, vector_oid

MINIMAL_PGVECTOR = (0, 7)
NOT_ON_SERVER = (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported)
OWN_PATH = "SET LOCAL search_path = pg_catalog, pg_temp"  # nothing that others made is called by mistake
LOCK = "SELECT pg_advisory_xact_lock(hashtext('pgembed.install'))"


@dataclass(frozen=True)
class Versions:
    """What runs where: the library's version, the schema's (None where not installed), the server's, pgvector's."""

    library: str
    schema: str | None
    code: str | None
    server: str
    pgvector: str | None


def library_version() -> str:
    """The version of this distribution."""
    return distribution_version("pgembed-multimodal")


def install(conn: psycopg.Connection) -> Versions:
    """Install or upgrade pgembed in the database of ``conn``: one transaction, idempotent, safe when two run at once.

    Raises CatalogError where the vector extension is missing and may not be created here, where it is too old, where
    the database is not UTF8, or where the schema in the database is newer than this library.
    """
    with conn.transaction():
        conn.execute(LOCK)
        vector_schema = _require_vector(conn)
        current = _schema_version(conn)
        _refuse_newer(current)
        (path,) = conn.execute("SHOW search_path").fetchall()[0]
        conn.execute(OWN_PATH)
        conn.execute(_script(vector_schema, current).encode())
        for side in _static_texts():
            _load_static_text(conn, side)
        conn.execute(_shipped_encoders())
        conn.execute("SELECT pg_catalog.set_config('search_path', %s, true)", [path])
    return versions(conn)


def install_script(vector_schema: str = "public") -> str:
    """The SQL of a first install, for an administrator to run with ``psql -1``; token tables come with COPY data."""
    parts = [
        f"CREATE EXTENSION IF NOT EXISTS vector SCHEMA {_quoted(vector_schema)};\n{LOCK};\n{OWN_PATH};\n",
        _script(_quoted(vector_schema), None),
    ]
    parts.extend(_copy_script(side) for side in _static_texts())
    parts.append(_shipped_encoders().decode())
    return "\n".join(parts)


def uninstall(conn: psycopg.Connection, *, detach_all: bool = False) -> None:
    """Remove the schema; user tables stay as they were before. Raises CatalogError while embeddings are attached,
    unless ``detach_all``, and where something outside depends on a function of pgembed."""
    with conn.transaction():
        conn.execute(LOCK)
        if _schema_version(conn) is None:
            raise NotInstalled(f"pgembed is not installed in database '{conn.info.dbname}'.", "Nothing was changed.")
        conn.execute("SELECT pgembed.uninstall(%s)", [detach_all])


def versions(conn: psycopg.Connection) -> Versions:
    """The versions of library, schema, server and pgvector; ``schema`` is None where pgembed is not installed."""
    row = conn.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    schema = _schema_version(conn)
    code = conn.execute("SELECT pgembed.version()").fetchone() if schema else None
    server = conn.execute("SHOW server_version").fetchone()
    return Versions(
        library=library_version(),
        schema=schema,
        code=code[0] if code else None,
        server=server[0] if server else "",
        pgvector=row[0] if row else None,
    )


def doctor(conn: psycopg.Connection) -> list[Finding]:
    """What can be seen before any function of pgembed is there: versions, extension, schema."""
    found = versions(conn)
    right = found.schema == head() and found.code == found.library
    return [
        Finding("server", int(found.server.split(".")[0].split()[0]) >= 14, f"PostgreSQL {found.server}", None),
        Finding(
            "extension vector",
            found.pgvector is not None and _numbers(found.pgvector) >= MINIMAL_PGVECTOR,
            f"version {found.pgvector}" if found.pgvector else "not in this database",
            "pgembed needs 0.7 or later: CREATE EXTENSION vector; or ALTER EXTENSION vector UPDATE;"
            if found.pgvector is None or _numbers(found.pgvector) < MINIMAL_PGVECTOR
            else None,
        ),
        Finding(
            "schema pgembed",
            right,
            f"schema {found.schema}, functions {found.code}; the library has schema {head()}, functions {found.library}"
            if found.schema
            else "not installed",
            None if right else "pgembed install",
        ),
    ]


def head() -> str:
    """The newest schema version that this library knows."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(_directory("migrations"))).get_current_head() or ""


def _directory(name: str) -> Path:
    """sql/ or migrations/: inside the package in a wheel, beside it in a checkout."""
    package = Path(str(files("pgembed")))
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def _script(vector_schema: str, current: str | None) -> str:
    text = "CREATE SCHEMA IF NOT EXISTS pgembed;\n" + _migrations(current)
    for path in sorted(_directory("sql").glob("*.sql")):
        text += f"\n{path.read_text(encoding='utf-8')}"
    return text.replace("@extschema:vector@", vector_schema).replace("@pgembed:version@", library_version())


def _migrations(current: str | None) -> str:
    """The SQL that takes the schema from version ``current`` (None: nothing there) to the newest."""
    from alembic import command
    from alembic.config import Config

    if current == head():
        return ""
    output = io.StringIO()
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(_directory("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, f"{current}:head" if current else "head", sql=True)
    return output.getvalue()


def _schema_version(conn: psycopg.Connection) -> str | None:
    if conn.execute("SELECT to_regclass('pgembed.schema_version')").fetchone() == (None,):
        return None
    row = conn.execute("SELECT version_num FROM pgembed.schema_version").fetchone()
    return row[0] if row else None


def _refuse_newer(current: str | None) -> None:
    if current is not None and current > head():
        raise CatalogError(
            f"The schema pgembed in this database is version {current}; this library knows up to {head()}.",
            "Upgrade the library: pip install --upgrade pgembed-multimodal",
        )


def _require_vector(conn: psycopg.Connection) -> str:
    """Find or create the vector extension; give its schema, quoted."""
    encoding = conn.execute("SHOW server_encoding").fetchone()
    if encoding != ("UTF8",):
        raise CatalogError(
            f"The encoding of database '{conn.info.dbname}' is {encoding and encoding[0]}; pgembed needs UTF8.",
            "Make a database with ENCODING 'UTF8'.",
        )
    row = _vector(conn)
    if row is None:
        try:
            with conn.transaction():
                conn.execute(_create_vector(conn))
        except (*NOT_ON_SERVER, psycopg.errors.InsufficientPrivilege) as error:
            missing = isinstance(error, NOT_ON_SERVER)
            raise CatalogError(
                f"The extension vector is not in database '{conn.info.dbname}', and "
                + ("this server does not have it." if missing else f"role '{conn.info.user}' may not create it."),
                "Install pgvector on the server, then run this again."
                if missing
                else "Ask a superuser (or your provider's admin role) to run CREATE EXTENSION vector; there once.",
            ) from error
        row = _vector(conn)
    schema, installed = row or ("public", "0.0")
    if _numbers(installed) < MINIMAL_PGVECTOR:
        raise CatalogError(f"pgvector {installed} is too old; pgembed needs 0.7.", "ALTER EXTENSION vector UPDATE;")
    return schema


def _create_vector(conn: psycopg.Connection) -> LiteralString:
    """In the first schema of the search path, as anyone would; in public where the path is empty."""
    row = conn.execute("SELECT current_schema() IS NULL").fetchone()
    return "CREATE EXTENSION vector SCHEMA public" if row == (True,) else "CREATE EXTENSION vector"


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor version."""
    return tuple(int(part) for part in version.split(".")[:2])


def _vector(conn: psycopg.Connection) -> tuple[str, str] | None:
    return conn.execute(
        "SELECT quote_ident(nspname), extversion FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace"
        " WHERE extname = 'vector'"
    ).fetchone()


def _static_texts() -> Iterator[StaticText]:
    """The static text sides that ship with this library."""
    from pgembed.encoders.builtin import lite_static_text

    yield lite_static_text()


def _shipped_encoders() -> bytes:
    """The statement that tells SQL of the encoders that it may register without Python's help."""
    from pgembed.encoders.builtin import LiteEncoder

    encoder = LiteEncoder.load("lite", {})
    facts = (
        _literal(encoder.spec),
        str(encoder.dim),
        "ARRAY[" + ", ".join(_literal(modality) for modality in sorted(encoder.modalities)) + "]",
        _literal(encoder.metric),
        str(encoder.normalized),
        _literal(encoder.fingerprint),
        _literal(encoder.static_text or ""),
    )
    return (
        "INSERT INTO pgembed.shipped_encoder (spec, dim, modalities, metric, normalized, fingerprint, static_text)\n"
        f"VALUES ({', '.join(facts)})\n"
        "ON CONFLICT (spec) DO UPDATE SET dim = excluded.dim, modalities = excluded.modalities,"
        " metric = excluded.metric, normalized = excluded.normalized, fingerprint = excluded.fingerprint,"
        " static_text = excluded.static_text;\n"
    ).encode()


def _load_static_text(conn: psycopg.Connection, side: StaticText) -> None:
    known = conn.execute("SELECT 1 FROM pgembed.static_text WHERE model = %s", [side.model]).fetchone()
    if known:
        return
    conn.execute(
        "INSERT INTO pgembed.static_text (model, fingerprint, dim, settings) VALUES (%s, %s, %s, %s)",
        [side.model, side.fingerprint, side.dim, Jsonb(dict(side.settings))],
    )
    with conn.cursor() as cursor:
        oid = vector_oid(conn)
        register_packed(cursor.adapters, oid)
        with cursor.copy("COPY pgembed.token (model, token, vector) FROM STDIN WITH (FORMAT binary)") as copy:
            copy.set_types(["text", "text", oid])
            for token, vector in side.tokens():
                copy.write_row((side.model, token, pack_one(vector)))
    conn.execute("ANALYZE pgembed.token")


def _copy_script(side: StaticText) -> str:
    row = (side.model, side.fingerprint, str(side.dim), json.dumps(dict(side.settings)))
    values = ", ".join(_literal(value) for value in row)
    lines = [
        f"INSERT INTO pgembed.static_text (model, fingerprint, dim, settings) VALUES ({values});",
        "COPY pgembed.token (model, token, vector) FROM stdin;",
    ]
    for token, vector in side.tokens():
        numbers = ",".join(format(float(value), ".9g") for value in vector)
        escaped = token.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
        lines.append(f"{side.model}\t{escaped}\t[{numbers}]")
    lines.append("\\.\n")
    return "\n".join(lines)


def _quoted(name: str) -> str:
    if name == "public":
        return name
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
