"""The doctor: what is wrong with a database, a role or a queue, and what to do about it, by whom."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import class_row

from pgembed import schema
from pgembed.catalog import Finding
from pgembed.client import connect
from pgembed.worker import Worker
from tests.fakes import Connection, FakeEncoder, Table, register

ROLE = f"pgembed_doctor_{os.getpid()}"
LAST_YEAR = "now() - interval '1 year'"


@pytest.fixture(autouse=True)
def role(server_dsn: str) -> Iterator[str]:
    """A role that may connect, and nothing more; made before the test's databases, and dropped after them."""
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {ROLE} LOGIN".encode())
        yield ROLE
        admin.execute(f"DROP ROLE {ROLE}".encode())


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(database, database_dsn, monkeypatch)


def examined(dsn: str) -> dict[str, Finding]:
    """What the doctor finds, by subject."""
    with connect(dsn) as db:
        return {finding.subject: finding for finding in db.doctor()}


def wrong(dsn: str) -> dict[str, Finding]:
    """What the doctor finds that is not well."""
    return {subject: finding for subject, finding in examined(dsn).items() if not finding.ok}


def seen_by(conn: Connection, subject: str) -> Finding:
    """What SQL alone finds of a subject."""
    with conn.cursor(row_factory=class_row(Finding)) as cursor:
        (finding,) = cursor.execute("SELECT * FROM pgembed.doctor() WHERE subject = %s", [subject]).fetchall()
    return finding


def grants(finding: Finding) -> list[str]:
    """The statements that a remedy names."""
    return re.findall(r"GRANT [^;]+;", finding.remedy or "")


def test_a_database_in_order_has_no_remedies(table: Table) -> None:
    table.insert("red shoe")
    table.work()
    found = examined(table.dsn)
    assert [(one.subject, one.remedy) for one in found.values() if not one.ok or one.remedy] == []
    parts = ["triggers", "rights", "queue", "leases", "failures", "rows", "index"]
    assert [name for name in found if "product" in name] == [f"public.product.embedding {part}" for part in parts]


# The extension


def test_a_missing_extension_is_created_by_whoever_may(bare_dsn: str) -> None:
    found = wrong(bare_dsn)
    assert set(found) == {"extension vector", "schema pgembed"}
    assert found["extension vector"].remedy == "CREATE EXTENSION vector;"
    assert found["schema pgembed"].remedy == "pgembed install"


def test_a_role_that_may_not_create_the_extension_is_told_who_may(bare_dsn: str, role: str) -> None:
    found = wrong(make_conninfo(bare_dsn, user=role))["extension vector"]
    assert found.finding == "not in this database"
    assert found.remedy is not None
    assert f"'{role}' may not create it: ask a superuser (or your provider's admin role) to run" in found.remedy


def test_an_extension_that_is_too_old_is_updated_by_its_owner(
    bare_database: Connection, bare_dsn: str, role: str
) -> None:
    bare_database.execute("CREATE EXTENSION vector")
    bare_database.execute("UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'")
    found = wrong(bare_dsn)["extension vector"]
    assert found.finding == "version 0.6.2"
    assert found.remedy == "pgembed needs 0.7 or later: ALTER EXTENSION vector UPDATE;"
    others = wrong(make_conninfo(bare_dsn, user=role))["extension vector"].remedy
    assert others is not None
    assert f"ask '{bare_database.info.user}' or a superuser" in others


@pytest.mark.parametrize(
    ("offered", "remedy"), [(None, "does not have it: install"), ("0.5.1", r"has 0\.5\.1: install a later")]
)
def test_a_server_that_has_no_pgvector_or_an_old_one(
    bare_dsn: str, monkeypatch: pytest.MonkeyPatch, offered: str | None, remedy: str
) -> None:
    version = "NULL::text" if offered is None else f"'{offered}'"
    monkeypatch.setattr(schema, "_SEEN", schema._SEEN.replace("a.default_version AS offered", f"{version} AS offered"))
    found = wrong(bare_dsn)["extension vector"]
    assert re.search(remedy, found.remedy or "")


def test_an_extension_before_iterative_scans_is_told_of(database: Connection, role: str, database_dsn: str) -> None:
    database.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    found = seen_by(database, "pgvector")
    assert (found.ok, found.finding) == (True, "version 0.7.4")
    assert found.remedy == "Filtered searches are exact, not by index, before 0.8. ALTER EXTENSION vector UPDATE;"
    database.execute(f"GRANT USAGE ON SCHEMA pgembed TO {role}".encode())
    with psycopg.connect(make_conninfo(database_dsn, user=role), autocommit=True) as conn:
        assert f"Ask {database.info.user} to run: ALTER EXTENSION" in str(seen_by(conn, "pgvector").remedy)


# The schema


def test_a_role_that_may_not_create_a_schema_is_told_who_may(
    bare_database: Connection, bare_dsn: str, role: str
) -> None:
    bare_database.execute("CREATE EXTENSION vector")
    dsn = make_conninfo(bare_dsn, user=role)
    found = wrong(dsn)["schema pgembed"]
    assert f"'{role}' may not create a schema in database '{bare_database.info.dbname}'" in found.finding
    assert f"Ask its owner '{bare_database.info.user}' or a superuser to run pgembed install" in str(found.remedy)
    for statement in grants(found):
        bare_database.execute(statement.encode())
    assert wrong(dsn)["schema pgembed"].remedy == "pgembed install"
    with connect(dsn) as db:
        db.install()
    assert wrong(dsn) == {}


def test_a_schema_that_is_older_than_the_library_is_upgraded_by_its_owner(
    database: Connection, database_dsn: str, role: str
) -> None:
    database.execute("UPDATE pgembed.schema_version SET version_num = '0001'")
    found = wrong(database_dsn)["schema pgembed"]
    assert found.finding.startswith(f"schema 0001, functions {schema.library_version()}; the library has")
    assert found.remedy == "pgembed install"
    database.execute(
        f"GRANT USAGE ON SCHEMA pgembed TO {role}; GRANT SELECT ON pgembed.schema_version TO {role}".encode()
    )
    theirs = wrong(make_conninfo(database_dsn, user=role))["schema pgembed"].remedy
    assert f"Ask role '{database.info.user}', which owns the schema, or a superuser, to run pgembed install" in str(
        theirs
    )


def test_functions_of_another_version_than_the_library_are_told_of(database: Connection, database_dsn: str) -> None:
    database.execute("CREATE OR REPLACE FUNCTION pgembed.version() RETURNS text LANGUAGE sql RETURN '0.0.1'")
    found = wrong(database_dsn)["schema pgembed"]
    assert f"functions 0.0.1; the library has schema {schema.head()}" in found.finding
    assert found.remedy == "pgembed install"


def test_a_library_that_is_older_than_the_schema_is_upgraded(database: Connection, database_dsn: str) -> None:
    database.execute("UPDATE pgembed.schema_version SET version_num = '9999'")
    assert wrong(database_dsn)["schema pgembed"].remedy == (
        "Upgrade the library: pip install --upgrade pgembed-multimodal"
    )


# Rights


def refuse_bad(texts: Sequence[str]) -> None:
    if "bad" in texts:
        raise ValueError("bad text")


def test_the_grants_that_are_named_are_those_that_a_worker_needs(table: Table, role: str) -> None:
    table.conn.execute('CREATE SCHEMA "The Shop"')
    table.conn.execute('CREATE TABLE "The Shop"."Page" ("Id" uuid DEFAULT gen_random_uuid() PRIMARY KEY, "A b" text)')
    table.conn.execute("""INSERT INTO "The Shop"."Page" ("A b") VALUES ('home')""")
    register(table.conn, "bounded", bounded := FakeEncoder("bounded"))
    table.encoders[bounded.spec] = bounded
    table.conn.execute("""UPDATE pgembed.encoder SET settings = '{"rows_per_day": 10}' WHERE name = 'bounded'""")
    table.conn.execute("""SELECT pgembed.attach('"The Shop"."Page"', 'vector', 'bounded', '{"text": "A b"}')""")
    table.insert("red shoe")
    dsn = make_conninfo(table.dsn, user=role)
    subjects: list[str] = []
    while found := {name: one for name, one in wrong(dsn).items() if not name.endswith("queue")}:
        subjects += found
        for statement in [statement for one in found.values() for statement in grants(one)]:
            table.conn.execute(statement.encode())
        assert len(subjects) < 20
    assert subjects == [
        "schema pgembed",
        "rights",
        "public.product.embedding rights",
        '"The Shop"."Page".vector rights',
    ]
    assert Worker(lambda: psycopg.connect(dsn)).run("until_idle").written == 2
    assert table.true_ids() == [1]
    assert wrong(dsn) == {}
    assert table.conn.execute("SELECT sum(rows) FROM pgembed.written").fetchone() == (2,)

    table.encoder.before = refuse_bad
    table.insert("blue car", "bad", "bad")
    assert Worker(lambda: psycopg.connect(dsn)).run("until_idle").failed == 2
    assert wrong(dsn)["public.product.embedding failures"].finding == "2 failed"
    table.conn.execute("UPDATE product SET title = NULL WHERE id = 2; DELETE FROM product WHERE id = 3")
    table.conn.execute("UPDATE product SET title = 'good' WHERE id = 4")
    Worker(lambda: psycopg.connect(dsn)).run("until_idle")
    assert (table.true_ids(), table.embedded_ids(), table.failures()) == ([1, 4], [1, 4], {})
    assert wrong(dsn) == {}


WORKER = f"""
    GRANT USAGE ON SCHEMA pgembed TO {ROLE};
    GRANT ALL ON ALL TABLES IN SCHEMA pgembed TO {ROLE};
    GRANT EXECUTE ON FUNCTION pgembed._keep_searches(), pgembed._take_requests,
        pgembed._note_requests, pgembed._answer_request, pgembed._charge,
        pgembed._tidy_requests TO {ROLE};
    GRANT ALL ON product TO {ROLE};
"""


LACKING = {
    "rights": [
        "SELECT ON pgembed._work",
        "SELECT ON pgembed.embedding",
        "INSERT ON pgembed.failure",
        "UPDATE ON pgembed.written",
    ],
    "public.product.embedding rights": [
        *(f"{right} ON pgembed.change_1" for right in ("SELECT", "UPDATE", "DELETE")),
        *(f"{right} ON pgembed.job_1" for right in ("SELECT", "INSERT", "UPDATE", "DELETE")),
    ],
}


def test_each_right_that_a_worker_lacks_is_named(table: Table, role: str) -> None:
    table.conn.execute(WORKER.encode())
    table.conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
    dsn = make_conninfo(table.dsn, user=role)
    assert wrong(dsn) == {}
    for subject, rights in LACKING.items():
        for right in rights:
            table.conn.execute(f"REVOKE {right} FROM {role}".encode())
            (found,) = wrong(dsn).values()
            assert found.subject == subject
            assert found.finding == f"{role} lacks {right.replace(' ON ', ' on ')}"
            assert f"A worker run as {role} needs that. Ask {table.conn.info.user} to run: " in str(found.remedy)
            assert grants(found) == [f"GRANT {right} TO {role};"]
            table.conn.execute(grants(found)[0].encode())
    assert wrong(dsn) == {}


def test_rights_on_columns_are_enough(table: Table, role: str) -> None:
    table.conn.execute("ALTER TABLE product ADD COLUMN secret text")
    table.conn.execute(WORKER.encode())
    table.conn.execute(f"REVOKE ALL ON product FROM {role}; GRANT SELECT (id) ON product TO {role}".encode())
    dsn = make_conninfo(table.dsn, user=role)
    found = wrong(dsn)["public.product.embedding rights"]
    assert found.finding == f"{role} lacks SELECT (title, embedding), UPDATE (embedding) on public.product"
    for statement in grants(found):
        table.conn.execute(statement.encode())
    table.insert("red shoe")
    assert Worker(lambda: psycopg.connect(dsn)).run("until_idle").written == 1


def test_a_role_whose_rows_are_filtered_is_told_of(table: Table, role: str) -> None:
    table.conn.execute(WORKER.encode())
    table.conn.execute("ALTER TABLE product ENABLE ROW LEVEL SECURITY")
    dsn = make_conninfo(table.dsn, user=role)
    found = wrong(dsn)["public.product.embedding rights"]
    assert found.finding == f"row-level security filters what {role} sees"
    assert f"ALTER ROLE {role} BYPASSRLS;" in str(found.remedy)
    table.conn.execute(f"ALTER ROLE {role} BYPASSRLS".encode())
    assert "public.product.embedding rights" not in wrong(dsn)


# The queue


def claim(table: Table, until: str) -> None:
    """A job whose lease ends then."""
    table.conn.execute(f"INSERT INTO pgembed.job_1 (key_1, claimed_until) VALUES (1, {until})".encode())


def test_a_lease_that_ran_out_is_told_apart_from_workers_that_are_not_there(table: Table) -> None:
    table.conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
    claim(table, LAST_YEAR)
    found = wrong(table.dsn)
    assert set(found) == {"public.product.embedding queue", "public.product.embedding leases"}
    assert "no worker is connected" in found["public.product.embedding queue"].finding
    assert "No worker runs." in str(found["public.product.embedding queue"].remedy)
    leases = found["public.product.embedding leases"]
    assert re.fullmatch(r"1 claimed by a worker that did not finish, the first ran out 36\d days .*ago", leases.finding)
    assert "is gone, and the next takes them up: pgembed worker" in str(leases.remedy)
    with psycopg.connect(table.dsn, application_name="pgembed worker"):
        (leases,) = wrong(table.dsn).values()
    assert leases.subject == "public.product.embedding leases"
    assert "The workers that are connected do not take them up" in str(leases.remedy)
    assert "pgembed worker --embedding product.embedding" in str(leases.remedy)


def test_a_lease_that_runs_or_ran_out_just_now_is_none_that_ran_out(table: Table) -> None:
    table.conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
    claim(table, "now() - interval '1 minute'")
    with psycopg.connect(table.dsn, application_name="pgembed worker"):
        assert wrong(table.dsn) == {}


def test_workers_that_leave_changes_where_they_are_are_told_of(table: Table) -> None:
    table.conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
    table.conn.execute(f"INSERT INTO pgembed.change_1 (key_1, changed_at) VALUES (1, {LAST_YEAR})".encode())
    with psycopg.connect(table.dsn, application_name="pgembed worker"):
        (queue,) = wrong(table.dsn).values()
    assert "workers are connected" in queue.finding
    assert "do not keep up" in str(queue.remedy)
    assert "No worker runs" not in str(queue.remedy)


def test_what_waits_in_a_paused_queue_is_told_of(table: Table) -> None:
    table.conn.execute("SELECT pgembed.pause('product')")
    assert wrong(table.dsn) == {}
    claim(table, LAST_YEAR)
    (queue,) = wrong(table.dsn).values()
    statement = re.search(r"SELECT pgembed\.resume[^;]*;", str(queue.remedy))
    assert statement is not None
    table.conn.execute(statement[0].encode())
    table.insert("red shoe")
    assert table.work().written == 1


def test_a_queue_that_is_gone_is_told_of(table: Table) -> None:
    table.conn.execute("DROP TABLE pgembed.job_1")
    (queue,) = wrong(table.dsn).values()
    assert queue.finding == "pgembed.change_1 and pgembed.job_1 are not both there"
    assert queue.remedy == "SELECT pgembed.sync('product');"


@pytest.mark.parametrize(
    ("damage", "finding", "mend"),
    [
        (
            "UPDATE pgembed.embedding SET inputs = '{}'",
            "it makes no sense to workers: see their log",
            "SELECT pgembed.detach('product'); SELECT pgembed.attach('product', 'embedding', 'fake',"
            ' \'{"text": "title"}\')',
        ),
        (
            "ALTER TABLE product ALTER COLUMN embedding TYPE text",
            "Table product has no vector column 'embedding'.",
            "ALTER TABLE product ALTER COLUMN embedding TYPE vector(8) USING embedding::vector",
        ),
    ],
    ids=["its inputs", "its column"],
)
def test_an_embedding_that_workers_can_do_nothing_with_is_told_of(
    table: Table, damage: str, finding: str, mend: str
) -> None:
    table.insert("red shoe")
    table.conn.execute(damage.encode())
    catalog = seen_by(table.conn, "public.product.embedding catalog")
    assert not catalog.ok
    assert catalog.finding == finding
    assert catalog.remedy == "Detach it and attach it again, or put its row in pgembed.embedding right."
    table.conn.execute(mend.encode())
    table.work()
    assert wrong(table.dsn) == {}
    assert table.true_ids() == [1]


def test_disabled_triggers_and_a_table_that_is_gone_are_told_of(table: Table) -> None:
    table.conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
    table.conn.execute("ALTER TABLE product DISABLE TRIGGER USER")
    (triggers,) = wrong(table.dsn).values()
    assert triggers.finding == "0 enabled"
    assert triggers.remedy == "Make them anew: SELECT pgembed.sync('product');"
    table.conn.execute("DROP TABLE product")
    (gone,) = wrong(table.dsn).values()
    assert (gone.subject, gone.remedy) == ("public.product.embedding", "SELECT pgembed.forget(1);")


# The index


def test_a_missing_and_an_invalid_index_are_told_of(table: Table) -> None:
    table.conn.execute("ALTER TABLE product DISABLE TRIGGER USER")
    table.conn.execute("INSERT INTO product SELECT i, NULL, '[1,2,3,4,5,6,7,8]' FROM generate_series(1, 1000) AS i")
    table.conn.execute("ALTER TABLE product ENABLE TRIGGER USER")
    table.conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
    (missing,) = wrong(table.dsn).values()
    assert missing.subject == "public.product.embedding index"
    assert missing.finding == "no vector index, 1000 vectors"
    made = r"pgembed index product, or in psql: SELECT pgembed.index_sql('product', 'embedding') \gexec"
    assert missing.remedy == made

    ((statement,),) = table.conn.execute("SELECT pgembed.index_sql('product')").fetchall()
    table.conn.execute(statement.encode())
    assert wrong(table.dsn) == {}
    ((name,),) = table.conn.execute(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'product'::regclass AND NOT indisprimary"
    ).fetchall()
    table.conn.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", [name])
    (invalid,) = wrong(table.dsn).values()
    assert invalid.finding == f"only an invalid vector index, {name}"
    assert f"DROP INDEX {name}; SELECT pgembed.index_sql('product', 'embedding')" in str(invalid.remedy)
