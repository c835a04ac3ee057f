"""Install and uninstall: once, twice, two at once, by script, on databases of many kinds, and refused with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgembed import schema
from pgembed.encoders.builtin import lite_static_text
from pgembed.errors import CatalogError, NotInstalled
from pgembed.worker import Worker
from tests.conftest import janitor, new_name
from tests.facts import facts_of_schema
from tests.fakes import Connection
from tests.psql import psql


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


# The script for an administrator


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install and its script with a hundredth of the tokens, for tests that are not about them."""
    side = lite_static_text()
    few = replace(side, vocabulary=side.vocabulary[:300], table=side.table[:300])
    monkeypatch.setattr(schema, "_static_texts", lambda: iter([few]))


def write_script(folder: Path, *, end: str = "") -> Path:
    script = folder / "pgembed.sql"
    script.write_text(schema.install_script().replace("\nCOMMIT;", f"\n{end}\nCOMMIT;"), encoding="utf-8")
    return script


def without_psql() -> bytes:
    """The script as another client takes it: without its first line."""
    first, rest = schema.install_script().split("\n", 1)
    assert first == r"\set ON_ERROR_STOP on"
    assert not any(line.startswith("\\") for line in rest.split("\n"))
    return rest.encode()


def test_the_script_does_what_install_does_and_a_second_time_nothing(
    database: Connection, bare_dsn: str, bare_database: Connection, tmp_path: Path
) -> None:
    script = write_script(tmp_path)
    assert script.stat().st_size < 12_000_000
    for _ in range(2):
        done = psql(bare_dsn, script)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert facts_of_schema(bare_database) == facts_of_schema(database)
    schema.install(bare_database)
    assert facts_of_schema(bare_database) == facts_of_schema(database)
    use(bare_database, bare_dsn)
    done = psql(bare_dsn, script)
    assert (done.returncode, done.stderr) == (0, "")
    bare_database.execute("INSERT INTO product VALUES (2, 'blue car')")
    assert Worker(lambda: psycopg.connect(bare_dsn)).run("until_idle").written == 1


def test_every_token_of_the_script_is_the_one_of_install(database: Connection) -> None:
    side = lite_static_text()
    assert database.execute("SELECT count(*) FROM pgembed.token").fetchone() == (sum(1 for _ in side.tokens()),)
    for _, vector in side.tokens():
        scale, numbers = schema._packed(vector)
        unpacked = (np.frombuffer(numbers, np.uint8).astype(np.float32) - 128) * np.float32(f"{scale:.9g}")
        assert np.array_equal(unpacked, vector)


def test_a_vector_that_the_script_cannot_carry_exactly_is_refused() -> None:
    with pytest.raises(ValueError, match="whole numbers from -127 to 127 times a scale"):
        schema._packed(np.array([1, 0.3333], np.float32))


@pytest.mark.usefixtures("few_tokens")
def test_the_script_in_one_transaction_of_psql(bare_dsn: str, bare_database: Connection, tmp_path: Path) -> None:
    done = psql(bare_dsn, write_script(tmp_path), "-1")
    assert done.returncode == 0
    assert schema.versions(bare_database).schema == schema.head()


@pytest.mark.usefixtures("few_tokens")
def test_a_script_that_fails_leaves_nothing(bare_dsn: str, bare_database: Connection, tmp_path: Path) -> None:
    done = psql(bare_dsn, write_script(tmp_path, end="SELECT 1 / 0;"))
    assert done.returncode == 3
    assert done.stderr.count("ERROR") == 1
    assert bare_database.execute("SELECT to_regnamespace('pgembed')").fetchone() == (None,)
    assert bare_database.execute("SELECT count(*) FROM pg_extension WHERE extname = 'vector'").fetchone() == (0,)


@pytest.mark.usefixtures("few_tokens")
def test_another_client_runs_the_script_and_finds_the_vector_extension_where_it_is(bare_dsn: str) -> None:
    with psycopg.connect(bare_dsn, autocommit=True) as conn:
        conn.execute('CREATE SCHEMA "The Extensions"; CREATE EXTENSION vector SCHEMA "The Extensions"')
        settings = "SELECT current_setting('search_path'), current_setting('client_min_messages')"
        before = conn.execute(settings).fetchone()
        conn.execute(without_psql())
        assert conn.execute(settings).fetchone() == before
        by_script = facts_of_schema(conn)
        assert any("The Extensions" in definition for (definition,) in by_script["functions"])
        conn.execute("SELECT pgembed.uninstall()")
        schema.install(conn)
        assert facts_of_schema(conn) == by_script


@pytest.mark.usefixtures("few_tokens")
def test_a_script_and_an_install_at_once_wait_for_each_other(
    bare_dsn: str, bare_database: Connection, tmp_path: Path
) -> None:
    script = write_script(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        first, second = (pool.submit(psql, bare_dsn, script) for _ in range(2))
        pool.submit(schema.install, bare_database).result()
        assert (first.result().returncode, second.result().returncode) == (0, 0)


@pytest.mark.usefixtures("few_tokens")
@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ("UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'", r"pgvector 0\.6\.2 is too old"),
        ("UPDATE pgembed.schema_version SET version_num = '9999'", "is version 9999; pgembed .* knows up to"),
    ],
    ids=["old pgvector", "newer schema"],
)
def test_the_script_refuses_what_install_refuses(database: Connection, change: str, refusal: str) -> None:
    database.execute(change.encode())
    with pytest.raises(psycopg.Error, match=refusal):
        database.execute(without_psql())


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
def owner(own_server_dsn: str) -> Iterator[str]:
    """A role without any special right, and with the superuser's password, where the server asks for one."""
    name = new_name("owner")
    password = conninfo_to_dict(own_server_dsn).get("password")
    with psycopg.connect(own_server_dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password)))
        yield name
        conn.execute(f"DROP ROLE {name}".encode())


def test_the_owner_of_a_database_installs_without_being_a_superuser(own_server_dsn: str, owner: str) -> None:
    with janitor(own_server_dsn, name := new_name("owned")):
        admin_dsn = make_conninfo(own_server_dsn, dbname=name)
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
        if isinstance(query, bytes):
            query = query.replace(b"CREATE EXTENSION vector SCHEMA", b"CREATE EXTENSION no_such_extension SCHEMA")
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


@pytest.mark.parametrize("name", ["it's", 'say "so"', "a$b", "back\\slash", "100%"])
def test_the_vector_extension_in_a_schema_whose_name_needs_quotes_is_refused(
    bare_database: Connection, name: str
) -> None:
    bare_database.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    bare_database.execute(sql.SQL("CREATE EXTENSION vector SCHEMA {}").format(sql.Identifier(name)))
    with pytest.raises(CatalogError, match=r"in schema .*, whose name has a quote, \$, % or \\") as refused:
        schema.install(bare_database)
    assert "SET SCHEMA" in str(refused.value)


def test_a_lock_that_is_not_had_in_time_is_no_refusal(bare_database: Connection, bare_dsn: str) -> None:
    with psycopg.connect(bare_dsn) as other:
        other.execute(schema.LOCK)
        bare_database.execute("SET lock_timeout = '10ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            schema.install(bare_database)


def test_a_database_that_is_not_utf8_is_refused(own_server_dsn: str) -> None:
    name = new_name("latin")
    with psycopg.connect(own_server_dsn, autocommit=True) as admin:
        admin.execute(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0".encode()
        )
        try:
            with (
                psycopg.connect(make_conninfo(own_server_dsn, dbname=name), autocommit=True) as conn,
                pytest.raises(CatalogError, match=f"The encoding of database '{name}' is LATIN1; pgembed needs UTF8"),
            ):
                schema.install(conn)
        finally:
            admin.execute(f"DROP DATABASE {name}".encode())


def test_a_schema_newer_than_the_library_is_refused(database: Connection) -> None:
    database.execute("UPDATE pgembed.schema_version SET version_num = '9999'")
    with pytest.raises(CatalogError, match=rf"is version 9999; pgembed .* knows up to {schema.head()}\.") as refused:
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
