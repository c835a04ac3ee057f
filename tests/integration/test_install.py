"""Install and uninstall: once, twice, two at once, by script, on databases of many kinds, and refused with a reason."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgembed import schema
from pgembed.embedded import binaries
from pgembed.errors import CatalogError, NotInstalled
from pgembed.worker import Worker
from tests.conftest import janitor, new_name
from tests.facts import facts_of_schema
from tests.fakes import Connection


def use(conn: Connection, dsn: str) -> None:
    """Attach, work, and see that a vector comes out."""
    conn.execute("CREATE TABLE public.product (id integer PRIMARY KEY, title text)")
    conn.execute("INSERT INTO public.product VALUES (1, 'red shoe')")
    conn.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    conn.execute("""SELECT pgembed.attach('public.product', 'embedding', 'shop', '{"text": "title"}')""")
    assert Worker(lambda: psycopg.connect(dsn)).run("until_idle").written == 1
    assert conn.execute("SELECT rows, ready FROM pgembed.status").fetchone() == (1, 1)
    assert conn.execute("SELECT bool_and(ok) FROM pgembed.doctor()").fetchone() == (True,)


def test_install_tells_the_versions(bare_database: Connection) -> None:
    before = schema.versions(bare_database)
    assert (before.schema, before.code, before.pgvector) == (None, None, None)
    versions = schema.install(bare_database)
    assert (versions.library, versions.code) == (schema.library_version(),) * 2
    assert versions.schema == schema.head()
    assert versions.pgvector is not None
    assert versions.server.split(".")[0] == str(bare_database.info.server_version // 10000)
    assert schema.versions(bare_database) == versions


def test_installing_twice_changes_nothing(bare_database: Connection) -> None:
    schema.install(bare_database)
    before = facts_of_schema(bare_database)
    schema.install(bare_database)
    assert facts_of_schema(bare_database) == before


def test_install_keeps_what_is_attached(database: Connection, database_dsn: str) -> None:
    use(database, database_dsn)
    database.execute("INSERT INTO product VALUES (2, 'blue car')")
    schema.install(database)
    assert Worker(lambda: psycopg.connect(database_dsn)).run("until_idle").written == 1
    assert database.execute("SELECT count(embedding) FROM product").fetchone() == (2,)


def test_two_installs_at_once_wait_for_each_other(bare_dsn: str) -> None:
    def install(_: int) -> schema.Versions:
        with psycopg.connect(bare_dsn, autocommit=True) as conn:
            return schema.install(conn)

    with ThreadPoolExecutor(3) as pool:
        first, second, third = pool.map(install, range(3))
    assert first == second == third


def test_an_install_that_fails_leaves_nothing(bare_database: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_shipped_encoders", lambda: b"SELECT 1 / 0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        schema.install(bare_database)
    assert bare_database.execute("SELECT to_regnamespace('pgembed')").fetchone() == (None,)
    assert bare_database.execute("SELECT count(*) FROM pg_extension WHERE extname = 'vector'").fetchone() == (0,)


def test_the_script_for_an_administrator_does_the_same(
    database: Connection, bare_dsn: str, bare_database: Connection, tmp_path: Path
) -> None:
    script = tmp_path / "install.sql"
    script.write_text(schema.install_script(), encoding="utf-8")
    command = [binaries() / "psql", "-X", "-1", "-q", "-v", "ON_ERROR_STOP=1", "-f", script, bare_dsn]
    done = subprocess.run(command, capture_output=True, text=True, env={"PGCLIENTENCODING": "UTF8"}, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert facts_of_schema(bare_database) == facts_of_schema(database)
    schema.install(bare_database)
    assert facts_of_schema(bare_database) == facts_of_schema(database)
    use(bare_database, bare_dsn)


# Databases of many kinds


def test_the_vector_extension_in_a_schema_of_its_own(bare_database: Connection, bare_dsn: str) -> None:
    bare_database.execute('CREATE SCHEMA "The Extensions"')
    bare_database.execute('CREATE EXTENSION vector SCHEMA "The Extensions"')
    schema.install(bare_database)
    use(bare_database, bare_dsn)
    assert bare_database.execute(
        'SELECT count(*) FROM product WHERE embedding OPERATOR("The Extensions".<=>)'
        " (SELECT pgembed.encode_text('shop', 'red shoe')) < 0.01"
    ).fetchone() == (1,)


def test_an_empty_search_path(bare_database: Connection, bare_dsn: str) -> None:
    bare_database.execute("SET search_path = ''")
    schema.install(bare_database)
    use(bare_database, make_conninfo(bare_dsn, options="-c search_path="))
    bare_database.execute("SELECT pgembed.encode_text('shop', 'red shoe')")
    bare_database.execute("SELECT pgembed.detach('public.product')")
    bare_database.execute("SELECT pgembed.uninstall()")


def test_functions_of_the_same_name_elsewhere_are_not_called(bare_database: Connection, bare_dsn: str) -> None:
    bare_database.execute(
        """
        CREATE FUNCTION public.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS 'SELECT ''wrong''';
        CREATE FUNCTION public.num_nonnulls(VARIADIC text[]) RETURNS integer LANGUAGE sql AS 'SELECT -1';
        CREATE TABLE public.embedding (id integer);
        CREATE TABLE public.failure (id integer)
        """
    )
    schema.install(bare_database)
    use(bare_database, bare_dsn)


@pytest.fixture
def owner(server_dsn: str) -> Iterator[str]:
    """A role without any special right."""
    name = new_name("owner")
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {name} LOGIN".encode())
        yield name
        conn.execute(f"DROP ROLE {name}".encode())


def test_the_owner_of_a_database_installs_without_being_a_superuser(server_dsn: str, owner: str) -> None:
    with janitor(server_dsn, name := new_name("owned")):
        admin_dsn = make_conninfo(server_dsn, dbname=name)
        with psycopg.connect(admin_dsn, autocommit=True) as admin:
            admin.execute("CREATE EXTENSION vector")
            admin.execute(f"GRANT CREATE ON DATABASE {name} TO {owner}".encode())
            admin.execute(f"GRANT CREATE ON SCHEMA public TO {owner}".encode())
        dsn = make_conninfo(admin_dsn, user=owner)
        with psycopg.connect(dsn, autocommit=True) as conn:
            schema.install(conn)
            use(conn, dsn)
            schema.uninstall(conn, detach_all=True)
            conn.execute("DROP OWNED BY CURRENT_USER CASCADE")


# Refused with a reason


def test_a_role_that_may_not_create_the_extension_is_told_whom_to_ask(bare_dsn: str, owner: str) -> None:
    with psycopg.connect(make_conninfo(bare_dsn, user=owner), autocommit=True) as conn:
        with pytest.raises(
            CatalogError, match=rf"vector is not in database .*, and role '{owner}' may not create it"
        ) as no:
            schema.install(conn)
        assert "Ask a superuser" in str(no.value)


class WithoutPgvector(psycopg.Connection[Any]):
    """A connection to a server that has no pgvector."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> psycopg.Cursor[Any]:  # noqa: ANN401
        if isinstance(query, str) and query.startswith("CREATE EXTENSION vector"):
            query = "CREATE EXTENSION no_such_extension"
        return super().execute(query, *args, **kwargs)


def test_a_server_without_pgvector_is_told_of(bare_dsn: str) -> None:
    with WithoutPgvector.connect(bare_dsn, autocommit=True) as conn:
        with pytest.raises(CatalogError, match=r"and this server does not have it\. Install pgvector on"):
            schema.install(conn)
        assert conn.execute("SELECT to_regnamespace('pgembed')").fetchone() == (None,)


def test_an_old_pgvector_is_refused(bare_database: Connection) -> None:
    bare_database.execute("CREATE EXTENSION vector")
    bare_database.execute("UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'")
    with pytest.raises(CatalogError, match=r"pgvector 0\.6\.2 is too old; pgembed needs 0\.7"):
        schema.install(bare_database)


def test_a_database_that_is_not_utf8_is_refused(server_dsn: str) -> None:
    name = new_name("latin")
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0".encode()
        )
        try:
            with (
                psycopg.connect(make_conninfo(server_dsn, dbname=name), autocommit=True) as conn,
                pytest.raises(CatalogError, match=f"The encoding of database '{name}' is LATIN1; pgembed needs UTF8"),
            ):
                schema.install(conn)
        finally:
            admin.execute(f"DROP DATABASE {name}".encode())


def test_a_schema_newer_than_the_library_is_refused(database: Connection) -> None:
    database.execute("UPDATE pgembed.schema_version SET version_num = '9999'")
    with pytest.raises(CatalogError, match=rf"is version 9999; this library knows up to {schema.head()}") as refused:
        schema.install(database)
    assert "pip install --upgrade" in str(refused.value)


# Uninstall


def test_uninstall_removes_everything(database: Connection, database_dsn: str) -> None:
    use(database, database_dsn)
    with pytest.raises(psycopg.Error, match=r"Embeddings are attached: public\.product\.embedding"):
        schema.uninstall(database)
    schema.uninstall(database, detach_all=True)
    assert schema.versions(database).schema is None
    assert database.execute(
        "SELECT count(*) FROM pg_depend WHERE refobjid::regclass::text LIKE 'pgembed%'"
    ).fetchone() == (0,)
    with pytest.raises(NotInstalled, match="pgembed is not installed in database"):
        schema.uninstall(database)
    schema.install(database)
