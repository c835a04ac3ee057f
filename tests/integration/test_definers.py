"""Every function of the schema: what runs with the rights of another is pinned down, owned and granted narrowly."""

from __future__ import annotations

from itertools import product

import psycopg
import pytest

from tests.fakes import Connection
from tests.roles import Shop, open_shop, role_of

pytestmark = pytest.mark.full_server

# SECURITY DEFINER functions that roles call, and the kinds that may; triggers call the others, and nobody else does.
CALLED = {
    "_cached(text,bytea)": {"reader"},  # one vector, for who knows the input that it is of
    "_wait_for(integer,timestamp with time zone)": {"writer", "reader"},  # a word: done, late or own
    "_request(text,text,bytea,double precision)": {"reader"},  # puts an input into a table that nobody reads
    "_answer_of(text,bytea)": {"reader"},  # one vector, for who knows the input that it is of
    "_ask_worker(text,text,bytea,double precision)": {"reader"},  # the same, through dblink
    "_take_requests(text[],integer)": {"worker"},  # what it is to encode
    "_note_requests(text,text,boolean)": {"worker"},
    "_answer_request(text,bytea,vector,text)": {"worker"},
    "_charge(text,bigint,bigint)": {"worker"},
    "_tidy_requests()": {"worker"},
    "_dblink_trouble()": set(),  # the owner's
    "_keep_searches()": {"worker"},  # writes functions that it makes from the catalog alone
}
FOR_PUBLIC: set[str] = set()  # none has a reason to be
FUNCTIONS = """
SELECT replace(p.oid::regprocedure::text, 'pgembed.', ''), p.prosecdef, p.proconfig, pg_get_userbyid(p.proowner)::text,
    p.prorettype = 'trigger'::regtype,
    (SELECT DISTINCT pg_get_userbyid(c.relowner)::text FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE t.tgfoid = p.oid),
    ARRAY(SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END
        FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a WHERE a.grantee <> p.proowner)
FROM pg_proc AS p WHERE p.pronamespace = 'pgembed'::regnamespace
"""


ATTACH = "SELECT pgembed.attach('shop.{}', 'embedding', 'lite', '{{\"text\": \"title\"}}'{})"
FORMS = (
    "",
    ", storage => 'side'",
    ", stale => 'null'",
    ", mode => 'instant'",
    ", storage => 'side', mode => 'instant'",
)
KINDS = ("", " PARTITION BY RANGE (id)")


@pytest.fixture
def shop(shop_password: str, full_database_dsn: str, full_database: Connection) -> Shop:
    return open_shop(full_database, full_database_dsn, shop_password)


@pytest.fixture
def shop_of_all_forms(shop: Shop) -> Shop:
    """Embeddings of all forms, of tables of the owner and of the superuser, attached by both; all kinds granted."""
    with shop.as_role("owner") as owner:
        for number, (kind, form) in enumerate(product(KINDS, FORMS)):
            for name, conn in ((f"of_owner_{number}", owner), (f"of_superuser_{number}", shop.admin)):
                conn.execute(f"CREATE TABLE shop.{name} (id integer PRIMARY KEY, title text){kind}".encode())
                conn.execute(ATTACH.format(name, form).encode())
    return shop


def test_what_runs_with_anothers_rights_is_pinned_down_owned_and_granted_narrowly(shop_of_all_forms: Shop) -> None:
    shop = shop_of_all_forms
    owner, superuser = role_of("owner"), shop.admin.info.user
    wrong: list[str] = []
    definers: set[str] = set()
    triggers = 0
    for name, definer, settings, owned_by, is_trigger, table_owner, granted in shop.admin.execute(FUNCTIONS.encode()):
        if not definer:
            continue
        definers.add(name)
        triggers += is_trigger
        if "search_path=pg_catalog, pg_temp" not in (settings or []):
            wrong.append(f"{name} has {settings}")
        # one that writes a side table runs as its owner, who may have put triggers of his own on it
        owners = {owner, table_owner} if is_trigger else {owner}
        if owned_by not in owners or (table_owner == owner and owned_by == superuser):
            wrong.append(f"{name} is owned by {owned_by}")
        kinds = {role_of(kind) for kind in CALLED.get(name, ())} | ({"PUBLIC"} if name in FOR_PUBLIC else set())
        if set(granted) != kinds:
            wrong.append(f"{name} is granted to {granted}")
    assert "\n".join(wrong) == ""
    assert set(CALLED) < definers
    assert triggers == len(definers) - len(CALLED) > 50


def test_nothing_of_the_schema_is_for_everybody(shop_of_all_forms: Shop) -> None:
    public = (
        "SELECT c.relname FROM pg_class AS c, aclexplode(c.relacl) AS a WHERE a.grantee = 0"
        " AND c.relnamespace = 'pgembed'::regnamespace UNION ALL SELECT n.nspname FROM pg_namespace AS n,"
        " aclexplode(n.nspacl) AS a WHERE a.grantee = 0 AND n.nspname = 'pgembed'"
    )
    assert shop_of_all_forms.admin.execute(public.encode()).fetchall() == []


def test_only_the_owner_may_create_in_the_schema(shop: Shop) -> None:
    may = (
        "SELECT pg_get_userbyid(a.grantee) FROM pg_namespace AS n, aclexplode(n.nspacl) AS a"
        " WHERE n.nspname = 'pgembed' AND a.privilege_type = 'CREATE'"
    )
    assert shop.admin.execute(may.encode()).fetchall() == [(role_of("owner"),)]


HIJACKED = """
CREATE FUNCTION shop.evil() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO shop.seen VALUES (current_user);
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END
$$;
CREATE FUNCTION shop.evil(value integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO shop.seen VALUES (current_user);
    RETURN true;
END
$$;
CREATE TABLE shop.seen (role text);
GRANT INSERT ON shop.seen TO PUBLIC;
CREATE DOMAIN shop.number AS integer CHECK (shop.evil(VALUE));
CREATE TABLE shop.trap (id shop.number PRIMARY KEY, title text);
"""


@pytest.mark.parametrize("form", ["", ", storage => 'side'"])
def test_a_tables_owner_gets_no_rights_by_what_he_puts_on_his_table(shop: Shop, form: str) -> None:
    """A superuser attaches: what the triggers do must not run the owner's code with a superuser's rights."""
    shop.admin.execute("SELECT * FROM pgembed.revoke_role('owner', %s)", [role_of("owner")])
    with shop.as_role("owner") as conn:
        conn.execute(HIJACKED.encode())
        shop.admin.execute(ATTACH.format("trap", form).encode())
        if form:
            conn.execute(
                "CREATE TRIGGER evil BEFORE DELETE ON shop.trap_embedding FOR EACH ROW EXECUTE FUNCTION shop.evil()"
            )
        conn.execute("INSERT INTO shop.trap VALUES (1, 'a dog'), (2, 'a cat')")
        vector = f"SELECT '[{','.join(['1'] * 256)}]'"
        if form:
            conn.execute(f"INSERT INTO shop.trap_embedding SELECT id, ({vector})::vector FROM shop.trap".encode())
        conn.execute("UPDATE shop.trap SET id = 3 WHERE id = 1; DELETE FROM shop.trap WHERE id = 2")
        assert conn.execute("SELECT DISTINCT role FROM shop.seen").fetchall() == [(role_of("owner"),)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("CREATE TRIGGER again AFTER INSERT ON shop.seen EXECUTE FUNCTION pgembed._keep_searches()")
