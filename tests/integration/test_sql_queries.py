"""Queries encoded from SQL by workers: through dblink on a full server, and with pgembed.prepare on both."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from PIL import Image

import pgembed
from pgembed import schema
from pgembed.encoders import Encoder, EncoderPolicy, Settings
from pgembed.errors import CatalogError, EncoderError, EncoderTimeout
from tests.fakes import Connection, FakeEncoder, Table, register, until, vector_of
from tests.roles import Shop, open_shop, role_of

CLIENTS = 50


class QueryEncoder(FakeEncoder):
    """Encodes queries in another way than rows, and notes them."""

    def __init__(self, name: str = "plain") -> None:
        super().__init__(name)
        self.queries: list[str] = []
        self.calls = 0

    def embed_query_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.before(texts)
        self.queries.extend(texts)
        self.calls += 1
        return self.after(np.stack([vector_of(f"query: {text}") for text in texts]))


def with_query_encoder(table: Table) -> QueryEncoder:
    encoder = QueryEncoder()
    table.encoders[encoder.spec] = encoder
    return encoder


@pytest.fixture
def table(full_database: Connection, full_database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """A table on the full server, where dblink is switched on."""
    full_database.execute("CALL pgembed.enable_dblink()")
    yield Table(full_database, full_database_dsn, monkeypatch)
    full_database.execute("SELECT pgembed.disable_dblink()")


@pytest.fixture
def encoder(table: Table) -> QueryEncoder:
    """The encoder of the table."""
    return with_query_encoder(table)


def encoded(conn: Connection, text: str) -> NDArray[np.float32]:
    """What encode_text gives for a text."""
    return np.array(conn.execute("SELECT pgembed.encode_text('fake', %s)::real[]", [text]).fetchall()[0][0], np.float32)


def refusal(conn: Connection, text: str) -> tuple[str, str]:
    """The message and the hint of encode_text's error."""
    with pytest.raises(psycopg.Error) as raised:
        encoded(conn, text)
    return str(raised.value.diag.message_primary), str(raised.value.diag.message_hint)


def requests(conn: Connection) -> int:
    """How many inputs lie in the table of requests."""
    return conn.execute("SELECT count(input) FROM pgembed.request").fetchall()[0][0]


def connected(dsn: str) -> Connection:
    return psycopg.connect(dsn, autocommit=True)


def until_served(conn: Connection) -> None:
    """Wait until a worker offers to encode queries."""
    until(lambda: conn.execute("SELECT count(*) FROM pgembed._serving('fake')").fetchall() != [(0,)])


full = pytest.mark.full_server


@full
def test_a_worker_encodes_a_query_as_one_and_the_cache_keeps_it(table: Table, encoder: QueryEncoder) -> None:
    with table.working():
        until_served(table.conn)
        for _ in range(3):
            assert np.allclose(encoded(table.conn, "a red shoe"), vector_of("query: a red shoe"), atol=1e-6)
    assert encoder.queries == ["a red shoe"]
    assert table.conn.execute("SELECT count(*) FROM pgembed.request").fetchone() == (0,)
    # cached, it needs no worker, and no connection
    table.conn.execute("SELECT pgembed.disable_dblink()")
    assert np.allclose(encoded(table.conn, "a red shoe"), vector_of("query: a red shoe"), atol=1e-6)


@full
@pytest.mark.parametrize("modality", ["image", "screenshot"])
def test_a_worker_encodes_a_picture(table: Table, encoder: QueryEncoder, modality: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (5, 5), (200, 30, 10)).save(file, "PNG")
    statement = f"SELECT pgembed.encode_{modality}('fake', %s)::real[]".encode()
    with table.working():
        until_served(table.conn)
        (found,) = table.conn.execute(statement, [file.getvalue()]).fetchall()[0]
        with pytest.raises(psycopg.errors.ExternalRoutineException) as raised:
            table.conn.execute(statement, [b"no picture"])
    assert np.allclose(found, vector_of("(200, 30, 10)"), atol=1e-6)
    assert "picture" in str(raised.value.diag.message_primary)


@full
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "SERIALIZABLE"])
def test_the_index_serves_a_query_whether_it_is_cached_or_not(
    table: Table, encoder: QueryEncoder, isolation: str
) -> None:
    table.insert(*(f"row {n}" for n in range(50)))
    table.work()
    table.conn.execute("CREATE INDEX ON product USING hnsw (embedding vector_cosine_ops)")
    search = (
        "EXPLAIN (ANALYZE, COSTS off) SELECT id FROM product"
        " ORDER BY embedding <=> (SELECT pgembed.encode_text('fake', 'new')) LIMIT 3"
    )
    with table.working():
        until_served(table.conn)
        for _ in range(2):
            with table.conn.transaction():
                table.conn.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
                table.conn.execute("SET LOCAL enable_seqscan = off")
                plan = "\n".join(line for (line,) in table.conn.execute(search.encode()).fetchall())
            assert re.search(r"Index Scan using product_embedding_idx .*rows=3", plan), plan
    assert encoder.queries == ["new"]


@full
def test_many_clients_that_ask_for_the_same_have_it_encoded_once(table: Table, encoder: QueryEncoder) -> None:
    together = threading.Barrier(CLIENTS)

    def ask(number: int) -> bool:
        with connected(table.dsn) as conn:
            together.wait(60)
            mine = encoded(conn, f"own {number}") if number % 10 == 0 else vector_of("")
            return np.allclose(encoded(conn, "the same"), vector_of("query: the same"), atol=1e-6) and mine.any()

    table.conn.execute(
        f"ALTER DATABASE {table.conn.info.dbname} SET pgembed.encode_timeout = '1 min'".encode()  # a busy machine
    )
    with table.working(), ThreadPoolExecutor(CLIENTS) as pool:
        until_served(table.conn)
        assert all(pool.map(ask, range(CLIENTS)))
    assert sorted(encoder.queries) == sorted(["the same", *(f"own {n}" for n in range(0, CLIENTS, 10))])


@full
def test_an_error_reaches_who_asked_and_is_not_kept(table: Table, encoder: QueryEncoder) -> None:
    def refuse(texts: Sequence[str]) -> None:
        if "bad" in texts:
            raise ValueError("the tokenizer\nknows no such word")

    encoder.before = refuse
    with table.working():
        until_served(table.conn)
        message, hint = refusal(table.conn, "bad")
        assert message == "The text of 3 characters could not be encoded with 'fake': the tokenizer knows no such word."
        assert "tried again" in hint
        assert requests(table.conn) == 0
        with pytest.raises(psycopg.errors.ExternalRoutineException, match="text number 2 of 3"):
            table.conn.execute("CALL pgembed.prepare('fake', ARRAY['good', 'bad', 'better'])")
        assert sorted(encoder.queries) == ["better", "good"]  # one that fails spoils no other
        encoder.before = lambda texts: None
        assert np.allclose(encoded(table.conn, "bad"), vector_of("query: bad"), atol=1e-6)


@full
@pytest.mark.parametrize("data", [b"\xff\x84", b"\x00", b"x" * 1_000_001])
def test_no_input_ends_the_worker(table: Table, encoder: QueryEncoder, data: bytes) -> None:
    """Whoever may ask may also call what encode_text calls, with bytes that are no text."""

    def refuse(texts: Sequence[str]) -> None:
        if texts != ["a red shoe"]:
            raise KeyError("\0\ud800")

    encoder.before = refuse
    with table.working():
        until_served(table.conn)
        table.conn.execute("SELECT pgembed._request('fake', 'text', %s, 60)", [data])
        hashed = "SELECT state FROM pgembed._answer_of('fake', pgembed.input_hash('fake', %s, 'text', %s))"
        until(lambda: table.conn.execute(hashed, [encoder.fingerprint, data]).fetchone() == ("failed",))
        assert np.allclose(encoded(table.conn, "a red shoe"), vector_of("query: a red shoe"), atol=1e-6)


@full
def test_a_vector_that_is_none_is_an_error(table: Table, encoder: QueryEncoder) -> None:
    with table.working():
        until_served(table.conn)
        for factor, told in ((0.0, "zeros"), (np.nan, "not finite")):
            encoder.after = lambda vectors, factor=factor: vectors * np.float32(factor)
            assert told in refusal(table.conn, f"query {told}")[0]
    assert table.conn.execute("SELECT count(*) FROM pgembed.query_cache").fetchone() == (0,)


@full
def test_without_a_worker_it_is_an_error_at_once(table: Table) -> None:
    table.conn.execute("SET pgembed.encode_timeout = '1 h'")
    message, hint = refusal(table.conn, "a red shoe")
    assert "no worker is running" in message
    assert "a red shoe" not in message  # errors are logged
    assert "pgembed worker" in hint
    assert requests(table.conn) == 0


@full
def test_when_the_time_is_over_the_statement_ends_and_the_answer_is_kept_for_the_next(
    table: Table, encoder: QueryEncoder
) -> None:
    ready = threading.Event()
    encoder.before = lambda texts: ready.wait(60) and None
    with table.working():
        until_served(table.conn)
        table.conn.execute("SET pgembed.encode_timeout = '300 ms'")
        message, _ = refusal(table.conn, "late")
        assert message.startswith("The text of 4 characters got no vector from 'fake' within 0.3 s")
        assert message.endswith("A worker has it in hand.")
        assert requests(table.conn) == 0  # nobody waits for it any more
        # a statement that is cancelled ends although nobody answers it
        table.conn.execute("SET pgembed.encode_timeout = '1 min'")
        canceller = threading.Timer(0.5, table.conn.cancel)
        canceller.start()
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            encoded(table.conn, "cancelled")
        assert time.monotonic() - began < 20, "not only when the minute was over"
        canceller.join()
        assert table.conn.execute("SELECT public.dblink_get_connections()").fetchone() == (None,)
        ready.set()
        assert np.allclose(encoded(table.conn, "late"), vector_of("query: late"), atol=1e-6)
        until(lambda: "cancelled" in encoder.queries)
    assert encoder.queries.count("late") == 1


@full
@pytest.mark.parametrize("value", ["soon", "-1 s", "1 fortnight"])
def test_a_timeout_that_is_none_is_an_error(table: Table, value: str) -> None:
    table.conn.execute("SELECT set_config('pgembed.encode_timeout', %s, false)", [value])
    assert f"is '{value}', which is no length of time" in refusal(table.conn, "a red shoe")[0]


@full
def test_another_worker_takes_up_what_one_that_died_had_in_hand(table: Table, encoder: QueryEncoder) -> None:
    stuck = threading.Event()
    calls: list[int] = []

    def wait_the_first_time(texts: Sequence[str]) -> None:
        calls.append(len(texts))
        if len(calls) == 1:
            stuck.wait(60)

    encoder.before = wait_the_first_time
    claimed = "SELECT claimed_by FROM pgembed.request WHERE claimed_by IS NOT NULL"
    with connected(table.dsn) as other, ThreadPoolExecutor(1) as pool, table.working():
        until_served(table.conn)
        other.execute("SET pgembed.encode_timeout = '1 min'")
        asked = pool.submit(encoded, other, "a red shoe")
        until(lambda: calls)
        table.conn.execute(f"SELECT pg_terminate_backend(({claimed}))".encode())
        with table.working():
            assert np.allclose(asked.result(60), vector_of("query: a red shoe"), atol=1e-6)
            stuck.set()


@full
def test_a_worker_that_may_not_load_the_encoder_leaves_it_to_others(
    table: Table, encoder: QueryEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(spec: str, settings: Settings | None = None, *, policy: EncoderPolicy) -> Encoder:
        if policy.kinds == ():
            raise EncoderError("Encoder 'fake:plain' is of a kind that is not allowed here.", "Allow it.")
        return encoder

    monkeypatch.setattr("pgembed.encoders.load_encoder", load)
    table.conn.execute("SET pgembed.encode_timeout = '1 min'")
    with table.working(encoders=EncoderPolicy(kinds=())):
        until_served(table.conn)
        assert "a kind that is not allowed here." in refusal(table.conn, "a red shoe")[0]
        assert "no worker is running" in refusal(table.conn, "a red shoe")[0]
        with table.working(encoders=EncoderPolicy(kinds=("fake",))):
            until_served(table.conn)
            assert np.allclose(encoded(table.conn, "a red shoe"), vector_of("query: a red shoe"), atol=1e-6)


@full
def test_queries_count_in_the_budget_of_an_encoder(table: Table, encoder: QueryEncoder) -> None:
    table.conn.execute("UPDATE pgembed.encoder SET settings = '{\"rows_per_day\": 2}'")
    with table.working():
        until_served(table.conn)
        for text in ("one", "two", "one"):
            encoded(table.conn, text)
        assert "The budget of encoder 'fake' is spent" in refusal(table.conn, "three")[0]
    assert encoder.queries == ["one", "two"]
    assert table.conn.execute("SELECT rows_left FROM pgembed._budget('fake')").fetchone() == (0,)


@full
def test_queries_go_before_rows_and_several_into_one_call(table: Table, encoder: QueryEncoder) -> None:
    """Rows stand at the encoder when queries come: these are encoded after the call that runs, before the next."""
    order: list[str] = []
    at_rows, go_on = threading.Event(), threading.Event()

    def note(texts: Sequence[str]) -> None:
        order.append(" ".join(sorted(texts)) if texts[0].startswith("query") else "rows")
        if len(order) == 1:
            at_rows.set()
            go_on.wait(60)

    encoder.before = note
    table.insert(*(f"row {n}" for n in range(encoder.batch_size * 3)))
    with table.working(), ThreadPoolExecutor(1) as pool:
        assert at_rows.wait(60)
        asked = pool.submit(
            lambda: connected(table.dsn).execute("CALL pgembed.prepare('fake', ARRAY['query 1', 'query 2'])")
        )
        until(lambda: table.conn.execute("SELECT count(claimed_by) FROM pgembed.request").fetchone() == (2,))
        go_on.set()
        asked.result(60)
    assert order[:2] == ["rows", "query 1 query 2"]


@full
def test_doctor_tells_whether_encode_text_works(table: Table, encoder: QueryEncoder) -> None:
    def told() -> tuple[bool, str, str | None]:
        statement = "SELECT ok, finding, remedy FROM pgembed.doctor() WHERE subject = 'encoder ''fake'' in SQL'"
        return table.conn.execute(statement.encode()).fetchall()[0]

    ok, finding, remedy = told()
    assert (ok, "no worker" in finding, "pgembed worker" in str(remedy)) == (False, True, True)
    with table.working():
        until_served(table.conn)
        assert told() == (True, "workers are asked for what is not cached", None)
        table.conn.execute("ALTER SERVER pgembed_query OPTIONS (SET port '1')")
        ok, finding, remedy = told()
        assert (ok, "through dblink" in finding, "enable_dblink" in str(remedy)) == (False, True, True)
    table.conn.execute("CALL pgembed.enable_dblink(); ")
    table.conn.execute("SELECT pgembed.disable_dblink()")
    ok, finding, _ = told()
    assert (ok, "pgembed.prepare('fake'" in finding, "enable_dblink" in finding) == (True, True, True)


@full
def test_a_way_that_does_not_lead_back_is_refused_and_leaves_nothing_behind(table: Table) -> None:
    for host, port in (("127.0.0.1", 1), ("/nowhere", None)):
        with pytest.raises(psycopg.Error) as raised:
            table.conn.execute("CALL pgembed.enable_dblink(%s, %s)", [host, port])
        assert raised.value.sqlstate == "08001"
        assert f"at {host}: could not establish connection" in str(raised.value.diag.message_primary)
        left = "SELECT count(*) FROM pg_foreign_server UNION ALL SELECT count(*) FROM pg_roles WHERE rolname ~ %s"
        assert table.conn.execute(left.encode(), [f"^pgembed_query_{oid_of(table.conn)}$"]).fetchall() == [(0,), (0,)]


@full
def test_uninstall_takes_the_server_and_the_role_away(full_database: Connection) -> None:
    oid = oid_of(full_database)
    full_database.execute("CALL pgembed.enable_dblink()")
    schema.uninstall(full_database)
    left = "SELECT count(*) FROM pg_foreign_server UNION ALL SELECT count(*) FROM pg_roles WHERE rolname = %s"
    assert full_database.execute(left.encode(), [f"pgembed_query_{oid}"]).fetchall() == [(0,), (0,)]


def oid_of(conn: Connection) -> int:
    return conn.execute("SELECT oid::bigint FROM pg_database WHERE datname = current_database()").fetchall()[0][0]


# Without dblink: prepare, on the embedded server


@pytest.fixture
def plain(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table on the embedded server, which has no dblink."""
    return Table(database, database_dsn, monkeypatch)


def test_prepare_has_texts_encoded_that_encode_text_then_finds(plain: Table) -> None:
    encoder = with_query_encoder(plain)
    texts = [f"query {n}" for n in range(300)]
    with plain.working(), pgembed.connect(plain.dsn) as db:
        until_served(plain.conn)
        db.prepare("fake", texts)
        db.prepare("fake", texts[:10])
        plain.conn.execute("CALL pgembed.prepare('fake', ARRAY[]::text[])")
    assert np.allclose(encoded(plain.conn, "query 299"), vector_of("query: query 299"), atol=1e-6)
    assert sorted(encoder.queries) == sorted(texts)
    assert encoder.calls < len(texts) / 2
    message, hint = refusal(plain.conn, "another")
    assert "has no vector cached for the text of 7 characters" in message
    assert all(way in hint for way in ("CALL pgembed.prepare('fake', ARRAY['…'])", "enable_dblink()", "in Python"))


def test_prepare_has_pictures_encoded(plain: Table) -> None:
    file = io.BytesIO()
    Image.new("RGB", (5, 5), (200, 30, 10)).save(file, "PNG")
    with plain.working():
        until_served(plain.conn)
        plain.conn.execute("CALL pgembed.prepare_images('fake', %s)", [[file.getvalue()]])
    found = plain.conn.execute("SELECT pgembed.encode_image('fake', %s)::real[]", [file.getvalue()]).fetchall()[0][0]
    assert np.allclose(found, vector_of("(200, 30, 10)"), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("prepare('fake', ARRAY['a red shoe'])", "no worker is running that makes some with 'fake'"),
        ("prepare('other', ARRAY['a red shoe'])", "No encoder named 'other'"),
        ("prepare('fake', ARRAY['a red shoe', ' '])", "The text to encode with 'fake' is empty."),
        ("prepare('fake', ARRAY['a red shoe', NULL])", "The text to encode with 'fake' is null."),
        ("prepare_images('fake', ARRAY['']::bytea[])", "The image to encode with 'fake' is empty."),
        ("prepare_images('fake', ARRAY['x']::bytea[], 'text')", "There are no pictures of modality 'text'."),
        ("enable_dblink()", "This server does not have the extension dblink."),
    ],
)
def test_what_cannot_be_prepared_is_an_error(plain: Table, call: str, told: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        plain.conn.execute(f"CALL pgembed.{call}".encode())
    assert told in str(raised.value.diag.message_primary)
    assert raised.value.diag.message_hint
    assert requests(plain.conn) == 0


def test_prepare_cannot_stand_in_a_transaction(plain: Table) -> None:
    with pytest.raises(psycopg.errors.InvalidTransactionTermination), plain.conn.transaction():
        plain.conn.execute("CALL pgembed.prepare('fake', ARRAY['a red shoe'])")


def test_prepare_tells_when_the_time_is_over(plain: Table) -> None:
    encoder = with_query_encoder(plain)
    ready = threading.Event()
    encoder.before = lambda texts: ready.wait(60) and None
    with plain.working(), pgembed.connect(plain.dsn) as db:
        until_served(plain.conn)
        with pytest.raises(CatalogError, match=r"text number 1 of 2 got no vector from 'fake' within 0.3\d* s"):
            db.prepare("fake", ["a red shoe", "a blue car"], timeout=0.3)
        ready.set()


def test_the_cache_is_bounded_and_the_oldest_goes(plain: Table) -> None:
    with_query_encoder(plain)
    plain.conn.execute(f"ALTER DATABASE {plain.conn.info.dbname} SET pgembed.query_cache_size = 5".encode())
    with plain.working():
        until_served(plain.conn)
        for n in range(8):
            plain.conn.execute(f"CALL pgembed.prepare('fake', ARRAY['query {n}'])".encode())
        until(lambda: plain.conn.execute("SELECT count(*) <= 5 FROM pgembed.query_cache").fetchone() == (True,))
    encoded(plain.conn, "query 7")
    refusal(plain.conn, "query 0")


def test_an_encoder_that_does_not_return_from_a_query_makes_the_worker_leave(plain: Table) -> None:
    encoder = with_query_encoder(plain)
    stuck = threading.Event()
    encoder.before = lambda texts: stuck.wait(60) and None
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(plain.worker(encode_timeout=0.3).run)
        until_served(plain.conn)
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="The worker that had it in hand is gone"):
            plain.conn.execute("CALL pgembed.prepare('fake', ARRAY['a red shoe'], '2 s')")
        with pytest.raises(EncoderTimeout, match="not returned from queries"):
            running.result(30)
        stuck.set()


# Rights: an enemy who may read and ask, and nothing else


@pytest.fixture
def shop(shop_password: str, full_database_dsn: str, full_database: Connection) -> Iterator[Shop]:
    """The shop, whose owner is no superuser; a superuser has switched dblink on."""
    shop = open_shop(full_database, full_database_dsn, shop_password)
    register(full_database, "fake", FakeEncoder())
    full_database.execute("CALL pgembed.enable_dblink()")
    yield shop
    full_database.execute("SELECT pgembed.disable_dblink()")


DENIED = [
    "SELECT * FROM pgembed.request",
    "SELECT * FROM pgembed.query_cache",
    "INSERT INTO pgembed.query_cache VALUES ('fake', '\\x00', '[1]')",
    "SELECT pgembed._take_requests('{fake}', 10)",
    "SELECT pgembed._answer_request('fake', '\\x00', '[1]', NULL)",
    "SELECT * FROM dblink('pgembed_query', 'SELECT current_user') AS t (a text)",
    "SELECT dblink_connect('pgembed_query')",
    "SELECT dblink_connect('mine', 'pgembed_query')",
    "SELECT dblink_connect_u('mine', 'user=postgres')",
    "CREATE USER MAPPING FOR CURRENT_USER SERVER pgembed_query",
    "ALTER SERVER pgembed_query OPTIONS (SET host 'evil.example')",
    "SELECT pgembed.disable_dblink()",
    "CALL pgembed.enable_dblink()",
]


@full
def test_a_reader_asks_and_can_do_nothing_else_with_what_it_is_asked_by(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = QueryEncoder()
    monkeypatch.setattr("pgembed.encoders.load_encoder", lambda spec, settings=None, *, policy=None: encoder)
    dsn = shop.dsn_of("worker")
    worker = pgembed.worker.Worker(lambda: psycopg.connect(dsn), pgembed.worker.WorkerOptions(poll=0.02))
    with ThreadPoolExecutor(1) as pool, shop.as_role("reader") as reader:
        running = pool.submit(worker.run)
        try:
            until_served(shop.admin)
            assert np.allclose(encoded(reader, "a secret"), vector_of("query: a secret"), atol=1e-6)
            reader.execute("CALL pgembed.prepare('fake', ARRAY['another'])")
            assert np.allclose(encoded(reader, "another"), vector_of("query: another"), atol=1e-6)
            wrong = [statement for statement in DENIED if allowed(reader, statement)]
            assert wrong == []
            # the password of the mapping
            assert reader.execute("SELECT usename, umoptions FROM pg_user_mappings").fetchall() == [
                (role_of("owner"), None)
            ]
            # a connection of the reader's own in the server's place, to have queries of others go there
            reader.execute("SELECT dblink_connect('pgembed_query', %s)", [shop.dsn_of("reader")])
            assert "has a dblink connection named pgembed_query" in refusal(reader, "a third")[0]
            reader.execute("SELECT dblink_disconnect('pgembed_query')")
        finally:
            worker.stop()
        running.result(30)
    with shop.as_role("writer") as writer, pytest.raises(psycopg.errors.InsufficientPrivilege):
        encoded(writer, "a secret")


def allowed(conn: Connection, statement: str) -> bool:
    try:
        conn.execute(statement.encode())
    except psycopg.Error as error:
        return not re.search(
            "permission denied|must be owner|for the owner of pgembed|user mapping not found", str(error)
        )
    return True


@full
def test_the_role_that_dblink_connects_as_may_ask_and_nothing_else(shop: Shop) -> None:
    role = f"pgembed_query_{oid_of(shop.admin)}"
    flags = "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = %s"
    assert shop.admin.execute(flags.encode(), [role]).fetchone() == (False,) * 5
    assert shop.admin.execute("SELECT count(*) FROM pg_auth_members WHERE member = %s::regrole", [role]).fetchone() == (
        0,
    )
    tables = (
        "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relnamespace IN ('pgembed'::regnamespace,"
        " 'shop'::regnamespace) AND c.relkind IN ('r', 'v') AND has_any_column_privilege(%s, c.oid,"
        " 'SELECT, INSERT, UPDATE, REFERENCES')"
    )
    assert shop.admin.execute(tables.encode(), [role]).fetchall() == []
    definers = (
        "SELECT p.proname::text FROM pg_proc AS p WHERE p.prosecdef AND has_function_privilege(%s, p.oid, 'EXECUTE')"
        " ORDER BY 1"
    )
    assert shop.admin.execute(definers.encode(), [role]).fetchall() == [("_answer_of",), ("_request",)]


@full
def test_a_server_that_somebody_else_made_is_not_asked(shop: Shop) -> None:
    shop.admin.execute("SELECT pgembed.disable_dblink()")
    shop.run("GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO {reader}")
    with shop.as_role("reader") as reader:
        reader.execute("CREATE SERVER pgembed_query FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host '127.0.0.1')")
        reader.execute("CREATE USER MAPPING FOR PUBLIC SERVER pgembed_query OPTIONS (user 'x', password 'y')")
        assert "makes none in SQL" in refusal(shop.admin, "a secret")[0]
    shop.run("DROP SERVER pgembed_query CASCADE")
    shop.run("REVOKE USAGE ON FOREIGN DATA WRAPPER dblink_fdw FROM {reader}")


@full
def test_the_text_of_a_query_is_in_no_table_when_it_is_answered(table: Table, encoder: QueryEncoder) -> None:
    with table.working():
        until_served(table.conn)
        encoded(table.conn, "zebracorn")
    found: list[Any] = []
    for (name,) in table.conn.execute(
        "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relnamespace = 'pgembed'::regnamespace"
        " AND c.relkind IN ('r', 'v')"
    ).fetchall():
        rows = table.conn.execute(
            f"SELECT t::text FROM {name} AS t WHERE t::text ~ 'zebracorn|{b'zebracorn'.hex()}'".encode()
        )
        found += rows.fetchall()
    assert found == []


# What others may plant or hold


@full
def test_nothing_planted_in_a_schema_is_called(table: Table, encoder: QueryEncoder) -> None:
    """An operator or a function whose types fit better than those of pg_catalog would be taken in place of these."""
    conn = table.conn
    conn.execute(
        "CREATE TABLE public.loot (what text); GRANT ALL ON public.loot TO PUBLIC;"
        "CREATE FUNCTION public.evil(float8, numeric) RETURNS float8 LANGUAGE plpgsql AS 'BEGIN"
        " INSERT INTO public.loot VALUES (current_query()); RETURN $1 + $2::float8; END';"
        "CREATE OPERATOR public.+ (leftarg = float8, rightarg = numeric, function = public.evil);"
        "CREATE OPERATOR public.* (leftarg = float8, rightarg = numeric, function = public.evil);"
        "CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO public.loot VALUES ($1); RETURN pg_catalog.format($1, $2); END';"
        "CREATE FUNCTION public.format(text, text, text) RETURNS text LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO public.loot VALUES ($1); RETURN pg_catalog.format($1, $2, $3); END'"
    )
    conn.execute("SELECT pgembed.disable_dblink()")
    conn.execute("CALL pgembed.enable_dblink()")
    with table.working():
        until_served(conn)
        assert np.allclose(encoded(conn, "my secret"), vector_of("query: my secret"), atol=1e-6)
        conn.execute("CALL pgembed.prepare('fake', ARRAY['another secret'])")
    assert "no vector cached" not in refusal(conn, "")[0]
    assert conn.execute("SELECT what FROM public.loot").fetchall() == []


@full
def test_whoever_holds_a_request_in_a_transaction_holds_up_nobody_else(table: Table, encoder: QueryEncoder) -> None:
    conn = table.conn
    conn.execute("SET pgembed.encode_timeout = '3 s'")
    with table.working(), connected(table.dsn) as other, other.transaction():
        until_served(conn)
        other.execute("SELECT pgembed._request('fake', 'text', 'a trap', 3600)")
        start = time.monotonic()
        assert refusal(conn, "a trap")[0]
        assert time.monotonic() - start < 10
        assert np.allclose(encoded(conn, "another"), vector_of("query: another"), atol=1e-6)


@full
def test_a_flood_for_one_encoder_leaves_the_others_alone(table: Table, encoder: QueryEncoder) -> None:
    conn = table.conn
    conn.execute(
        "SELECT pgembed.add_encoder('dead', 'test:dead', dim => 8, modalities => '{text}', fingerprint => 'dead')"
    )
    conn.execute("SELECT pgembed._request('dead', 'text', int4send(n), 3600) FROM generate_series(1, 1000) AS n")
    assert conn.execute("SELECT state FROM pgembed._request('dead', 'text', 'more', 1)").fetchone() == ("full",)
    with table.working():
        until_served(conn)
        assert np.allclose(encoded(conn, "a red shoe"), vector_of("query: a red shoe"), atol=1e-6)


@full
def test_an_encoder_that_is_registered_anew_gives_no_vector_of_the_old_one(table: Table, encoder: QueryEncoder) -> None:
    conn = table.conn
    with table.working():
        until_served(conn)
        encoded(conn, "before")
        conn.execute("UPDATE pgembed.encoder SET fingerprint = 'of other weights' WHERE name = 'fake'")
        assert refusal(conn, "after")[0]
    assert conn.execute("SELECT count(*) FROM pgembed.query_cache").fetchone() == (1,)
