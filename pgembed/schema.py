"""Install, upgrade and remove the schema ``pgembed``: migrations (what cannot be replaced), then sql/ (what can)."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgembed.catalog import Finding
from pgembed.errors import CatalogError, NotInstalled
from pgembed.static_text import StaticText
from pgembed.vectors import pack_one, register_packed, vector_oid

if TYPE_CHECKING:
    from numpy.typing import NDArray

MINIMAL_PGVECTOR = (0, 7)
VECTOR_SCHEMA = "@extschema:vector@"  # where it stands in sql/ and migrations/
INSTALL = "pgembed install"
UPGRADE = "Upgrade the library: pip install --upgrade pgembed-multimodal"
LOCK = "SELECT pg_advisory_xact_lock(hashtext('pgembed.install'))"  # as in migrations/prepare.sql
TOKENS_A_STATEMENT = 1000
NEW_SETTINGS = (
    "ON CONFLICT (model) DO UPDATE SET settings = excluded.settings WHERE s.settings IS DISTINCT FROM excluded.settings"
)
SCRIPT_HEAD = """\
\\set ON_ERROR_STOP on
-- The line above is for psql; leave it out in another client.
--
-- pgembed {version}, schema {head}: installs it in the database that you are connected to, or upgrades what is there.
-- It is one transaction, so that a failure changes nothing, and does nothing where all is there already.
--
--     psql -f pgembed.sql postgresql://localhost/shop

BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL client_encoding = 'UTF8';
SET LOCAL client_min_messages = warning;
SET LOCAL standard_conforming_strings = on;
"""


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
        (path, role) = conn.execute(
            "SELECT pg_catalog.current_setting('search_path'), pg_catalog.current_setting('role')"
        ).fetchall()[0]
        _prepare(conn)
        for text in (*_migrations(), *_functions()):
            conn.execute(text.encode())
        for side in _static_texts():
            _load_static_text(conn, side)
        conn.execute(_shipped_encoders())
        conn.execute(
            "SELECT pg_catalog.set_config('search_path', %s, true), pg_catalog.set_config('role', %s, true)",
            [path, role],
        )
    return versions(conn)


def install_script() -> str:
    """What ``install`` runs, as a script that an administrator runs in its place.

    It is one transaction of plain SQL, with no line for psql alone but the first, so that other clients run it too.
    """
    return "\n".join([SCRIPT_HEAD.format(version=library_version(), head=head()), install_statements(), "COMMIT;\n"])


def install_statements() -> str:
    """The SQL of ``install``, for a transaction that is begun already, whose search path and role it puts back."""
    return "\n".join(
        [
            _kept("pgembed.path", "search_path"),
            _kept("pgembed.role", "role"),
            _preparation(),
            *_migrations(),
            *_functions(),
            *(_token_script(side) for side in _static_texts()),
            _shipped_encoders().decode(),
            _kept("search_path", "pgembed.path"),
            _kept("role", "pgembed.role"),
        ]
    )


def _kept(setting: str, source: str) -> str:
    """Give a setting the value of another one, for the transaction; it prints nothing."""
    value = f"pg_catalog.current_setting('{source}')"
    return f"DO $kept$ BEGIN PERFORM pg_catalog.set_config('{setting}', {value}, true); END $kept$;"


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
    """What can be seen before any function of pgembed is there: server, extension, schema; and who may mend them."""
    with conn.cursor(row_factory=class_row(_Seen)) as cursor:
        seen = cursor.execute(_SEEN.encode()).fetchall()[0]
    version = conn.info.server_version
    return [
        Finding(
            "server", version >= 140000, f"PostgreSQL {seen.server}", None if version >= 140000 else "14 or later."
        ),
        Finding("extension vector", *_examined_extension(seen)),
        Finding("schema pgembed", *_examined_schema(seen, versions(conn) if seen.readable else None)),
    ]


_SEEN = """
SELECT pg_catalog.current_setting('server_version') AS server, current_user::text AS role, d.datname::text AS database,
    pg_catalog.pg_get_userbyid(d.datdba)::text AS database_owner,
    pg_catalog.has_database_privilege(d.oid, 'CREATE') AS may_create_schema,
    x.extversion AS extension, pg_catalog.pg_get_userbyid(x.extowner)::text AS extension_owner,
    pg_catalog.pg_has_role(x.extowner, 'USAGE') AS owns_extension, a.default_version AS offered,
    r.rolsuper OR (pg_catalog.has_database_privilege(d.oid, 'CREATE') AND EXISTS (
        SELECT FROM pg_catalog.pg_available_extension_versions AS v
        WHERE v.name = a.name AND v.version = a.default_version AND (v.trusted OR NOT v.superuser)
    )) AS may_create_extension,
    pg_catalog.pg_get_userbyid(n.nspowner)::text AS schema_owner,
    pg_catalog.pg_has_role(n.nspowner, 'USAGE') AS owns_schema,
    c.oid IS NOT NULL AS has_version,
    coalesce(pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT'), true)
        AS readable
FROM pg_catalog.pg_database AS d
JOIN pg_catalog.pg_roles AS r ON r.rolname = current_user
LEFT JOIN pg_catalog.pg_extension AS x ON x.extname = 'vector'
LEFT JOIN pg_catalog.pg_available_extensions AS a ON a.name = 'vector'
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = 'pgembed'
LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'schema_version'
WHERE d.datname = pg_catalog.current_database()
"""


@dataclass(frozen=True)
class _Seen:
    """What any role can see of a database, and what this one may do there; None for what is not there."""

    server: str
    role: str
    database: str
    database_owner: str
    may_create_schema: bool
    extension: str | None
    extension_owner: str | None
    owns_extension: bool | None
    offered: str | None  # the version that the server would install
    may_create_extension: bool
    schema_owner: str | None
    owns_schema: bool | None
    has_version: bool
    readable: bool


def _examined_extension(seen: _Seen) -> tuple[bool, str, str | None]:
    needed = "pgembed needs " + ".".join(map(str, MINIMAL_PGVECTOR)) + " or later"
    found = f"version {seen.extension}" if seen.extension else "not in this database"
    if seen.extension and _numbers(seen.extension) >= MINIMAL_PGVECTOR:
        return True, found, None
    if seen.offered is None:
        return False, found, f"{needed}, and this server does not have it: install pgvector on the server."
    if _numbers(seen.offered) < MINIMAL_PGVECTOR:
        return False, found, f"{needed}, and this server has {seen.offered}: install a later pgvector on the server."
    if seen.extension is None:
        if seen.may_create_extension:
            return False, found, "CREATE EXTENSION vector;"
        ask = f"Role '{seen.role}' may not create it: ask a superuser (or your provider's admin role) to run"
        return False, found, f"{ask} CREATE EXTENSION vector; in database '{seen.database}'."
    if seen.owns_extension:
        return False, found, f"{needed}: ALTER EXTENSION vector UPDATE;"
    ask = f"ask '{seen.extension_owner}' or a superuser (or your provider's admin role) to run"
    return False, found, f"{needed}: {ask} ALTER EXTENSION vector UPDATE;"


def _examined_schema(seen: _Seen, found: Versions | None) -> tuple[bool, str, str | None]:
    if found is None:
        role = sql.Identifier(seen.role).as_string()
        grants = f"GRANT USAGE ON SCHEMA pgembed TO {role}; GRANT SELECT ON pgembed.schema_version TO {role};"
        return False, f"role '{seen.role}' may not look into it", f"Ask '{seen.schema_owner}' to run: {grants}"
    if found.schema is None and seen.has_version:
        remedy = "Load its data: pg_restore --data-only --disable-triggers. Or begin anew: DROP SCHEMA pgembed CASCADE;"
        return False, "its tables are empty: a dump was restored without its data", remedy
    if found.schema is None:
        if seen.may_create_schema:
            return False, "not installed", "pgembed install"
        database, role = (sql.Identifier(name).as_string() for name in (seen.database, seen.role))
        return (
            False,
            f"not installed, and role '{seen.role}' may not create a schema in database '{seen.database}'",
            f"Ask its owner '{seen.database_owner}' or a superuser to run pgembed install (or the script that"
            f" pgembed install --sql prints), or GRANT CREATE ON DATABASE {database} TO {role};",
        )
    finding, remedy = compared(found.schema, found.code)
    if remedy == INSTALL and not seen.owns_schema:
        ask = f"Ask role '{seen.schema_owner}', which owns the schema, or a superuser"
        remedy = f"{ask}, to run pgembed install, or the script that pgembed install --sql prints."
    return remedy is None, finding, remedy


def compared(schema: str, code: str | None) -> tuple[str, str | None]:
    """The versions of a database's schema and functions beside this library's, in words, and what to do where they are
    not the same."""
    known, library = head(), library_version()
    finding = f"schema {schema}, functions {code}; the library has schema {known}, functions {library}"
    if (schema, code) == (known, library):
        return finding, None
    return finding, UPGRADE if schema > known else INSTALL


def head() -> str:
    """The newest schema version that this library knows: the files are named after theirs."""
    return max(path.name[:4] for path in (_directory("migrations") / "versions").glob("[0-9]*.py"))


def _directory(name: str) -> Path:
    """sql/ or migrations/: inside the package in a wheel, beside it in a checkout."""
    package = Path(str(files("pgembed")))
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def _preparation() -> str:
    text = (_directory("migrations") / "prepare.sql").read_text(encoding="utf-8")
    minimal = "{" + ",".join(str(number) for number in MINIMAL_PGVECTOR) + "}"
    for name, value in {"version": library_version(), "head": head(), "pgvector": minimal}.items():
        text = text.replace(f"@pgembed:{name}@", value)
    return text


def _prepare(conn: psycopg.Connection) -> None:
    try:
        conn.execute(_preparation().encode())
    except psycopg.Error as error:
        if error.diag.source_function != "exec_stmt_raise":  # not one of its own: a timeout, a lost connection
            raise
        raise CatalogError(error.diag.message_primary or str(error), error.diag.message_hint) from error


def _migrations() -> list[str]:
    """The SQL of each version, the oldest first; it does nothing where the schema is not at the version before."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    output = io.StringIO()
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(_directory("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    written: list[str] = []
    with _within_other_migrations():
        for script in reversed(list(ScriptDirectory.from_config(config).walk_revisions())):
            before = script.down_revision
            output.seek(0)
            output.truncate()
            command.upgrade(config, f"{before}:{script.revision}" if before else script.revision, sql=True)
            text = output.getvalue()
            if before:
                condition = f"(SELECT version_num FROM pgembed.schema_version) = {_literal(str(before))}"
                written.append(_executed(text, condition))
            else:
                made = "CREATE SCHEMA IF NOT EXISTS pgembed;\n" + text
                written.append(_executed(made, "to_regclass('pgembed.schema_version') IS NULL"))
    return written


@contextmanager
def _within_other_migrations() -> Generator[None]:
    """Leave ``alembic.op`` and ``alembic.context`` to the migration that runs, if one does: Alembic has one of each."""
    from alembic import context, op

    running: list[Any] = [proxy for module in (context, op) if (proxy := getattr(module, "_proxy", None)) is not None]
    try:
        yield
    finally:
        for proxy in running:
            proxy._install_proxy()


def _functions() -> Iterator[str]:
    """The files of sql/, in the order of their names."""
    for path in sorted(_directory("sql").glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        yield f"-- {path.name}\n" + _executed(text.replace("@pgembed:version@", library_version()))


def _executed(text: str, condition: str | None = None) -> str:
    """A statement that runs SQL, with the vector extension's schema in its place, where a condition holds."""
    run = f"EXECUTE replace($sql$\n{text}$sql$, '{VECTOR_SCHEMA}', current_setting('pgembed.vector_schema'));"
    body = run if condition is None else f"IF {condition} THEN\n{run}\nEND IF;"
    return f"DO $install$ BEGIN\n{body}\nEND $install$;\n"


def _schema_version(conn: psycopg.Connection) -> str | None:
    if conn.execute("SELECT to_regclass('pgembed.schema_version')").fetchone() == (None,):
        return None
    row = conn.execute("SELECT version_num FROM pgembed.schema_version").fetchone()
    return row[0] if row else None


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor version."""
    return tuple(int(part) for part in version.split(".")[:2])


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
    conn.execute(
        "INSERT INTO pgembed.static_text AS s (model, fingerprint, dim, settings) VALUES (%s, %s, %s, %s)"
        f" {NEW_SETTINGS}".encode(),
        [side.model, side.fingerprint, side.dim, Jsonb(dict(side.settings))],
    )
    if known:
        return
    with conn.cursor() as cursor:
        oid = vector_oid(conn)
        register_packed(cursor.adapters, oid)
        with cursor.copy("COPY pgembed.token (model, token, vector) FROM STDIN WITH (FORMAT binary)") as copy:
            copy.set_types(["text", "text", oid])
            for token, vector in side.tokens():
                copy.write_row((side.model, token, pack_one(vector)))
    conn.execute("ANALYZE pgembed.token")


def _token_script(side: StaticText) -> str:
    """A static text side as SQL, for a database that does not have it."""
    model = _literal(side.model)
    facts = (model, _literal(side.fingerprint), str(side.dim), _literal(json.dumps(dict(side.settings))))
    parts = [
        "INSERT INTO pgembed.static_text AS s (model, fingerprint, dim, settings)"
        f" VALUES ({', '.join(facts)})\n{NEW_SETTINGS};\n"
    ]
    tokens = side.tokens()
    while batch := list(islice(tokens, TOKENS_A_STATEMENT)):
        rows = ",\n".join(
            f"({_literal(token)}, {scale:.9g}, '{base64.b64encode(numbers).decode()}')"
            for token, (scale, numbers) in ((token, _packed(vector)) for token, vector in batch)
        )
        parts.append(
            "INSERT INTO pgembed.token (model, token, vector)\n"
            f"SELECT {model}, t.token, pgembed._unpacked(decode(t.numbers, 'base64'), t.scale::real)\n"
            f"FROM (VALUES\n{rows}\n) AS t (token, scale, numbers)\n"
            f"WHERE NOT EXISTS (SELECT FROM pgembed.token AS k WHERE k.model = {model} AND k.token = t.token);\n"
        )
    return "".join([*parts, "ANALYZE pgembed.token;\n"])


def _packed(vector: NDArray[np.float32]) -> tuple[float, bytes]:
    """A vector ``(dim,) float32`` of whole numbers times a scale: the scale, and a byte a number, each 128 more."""
    scale = np.abs(vector).max() / np.float32(127) or np.float32(1)
    numbers = np.rint(vector / scale)
    if not np.array_equal(numbers * scale, vector):
        raise ValueError("A token's vector is not one of whole numbers from -127 to 127 times a scale.")
    return float(scale), (numbers + 128).astype(np.uint8).tobytes()


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
