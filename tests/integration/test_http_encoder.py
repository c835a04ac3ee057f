"""An encoder behind HTTP under a worker: what its faults cost, and what budgets and limits hold back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.types.json import Jsonb

import pgembed
from pgembed import EncoderPolicy, Text
from pgembed.encoders.http.config import read_config
from pgembed.errors import EncoderError, EncoderUnavailable
from pgembed.worker import Summary, Worker, WorkerOptions
from tests.embedding_server import LITE, Answer, EmbeddingServer, Request, embedding_server, openai_answer
from tests.fakes import Connection, Log, until

ADD = "SELECT pgembed.add_encoder('h', 'http:m', dim => 8, modalities => '{text}', fingerprint => 'f', settings => %s)"


class Shop:
    """A table of titles with an embedding by an http encoder, and workers that may ask its server."""

    def __init__(self, conn: Connection, dsn: str, server: EmbeddingServer, **settings: Any) -> None:  # noqa: ANN401
        self.conn, self.dsn, self.server = conn, dsn, server
        self.policy = EncoderPolicy(hosts=(f"127.0.0.1:{server.port}",))
        self.settings = {"url": server.url + "/v1", "patience": 1.0, "retries": 2, "max_batch": 32, **settings}
        conn.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
        with pgembed.connect(dsn) as db:
            db.add_encoder("shop", "http:lite", settings=self.settings)
            db.attach("product", "embedding", encoder="shop", text="title")

    def insert(self, count: int, *more: str) -> None:
        self.conn.execute("INSERT INTO product SELECT n, 'dog ' || n FROM generate_series(1, %s) n", [count])
        for number, title in enumerate(more, count + 1):
            self.conn.execute("INSERT INTO product VALUES (%s, %s)", [number, title])

    def worker(self, **options: Any) -> Worker:  # noqa: ANN401
        return Worker(
            lambda: psycopg.connect(self.dsn), WorkerOptions(**{"poll": 0.02, "encoders": self.policy, **options})
        )

    def work(self, **options: Any) -> Summary:  # noqa: ANN401
        return self.worker(**options).run("until_idle")

    def one(self, query: str) -> Any:  # noqa: ANN401
        return self.conn.execute(query.encode()).fetchall()[0][0]

    @property
    def embedded(self) -> int:
        return self.one("SELECT count(embedding) FROM product")

    @property
    def failed(self) -> int:
        return self.one("SELECT count(*) FROM pgembed.failure")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    monkeypatch.setattr("pgembed.encoders.http.server.random.uniform", lambda low, high: 0.0)
    monkeypatch.setattr("pgembed.worker.state.TROUBLE_WAITS", (0.01, 0.02, 0.05))
    with embedding_server() as served:
        yield served


@pytest.fixture
def shop(database: Connection, database_dsn: str, server: EmbeddingServer) -> Shop:
    return Shop(database, database_dsn, server)


def test_rows_are_encoded_by_a_server_and_found_with_words(shop: Shop) -> None:
    shop.insert(40, "a red bicycle", "a bowl of fruit")
    assert shop.work() == Summary(written=42)
    with pgembed.connect(shop.dsn, encoders=shop.policy) as db:
        assert [row.title for row in db.search("product", Text("a red bicycle"), limit=1)] == ["a red bicycle"]
    with pgembed.connect(shop.dsn) as db, pytest.raises(EncoderError, match="--allow-host"):
        db.search("product", Text("another query"), limit=1)


def test_a_worker_that_may_not_send_rows_to_the_server_sends_none(shop: Shop) -> None:
    shop.insert(3)
    before = len(shop.server.requests)
    with pytest.raises(EncoderError, match="which is not allowed here"):
        shop.work(encoders=EncoderPolicy())
    assert (len(shop.server.requests), shop.failed) == (before, 0)


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_a_server_that_refuses_all_costs_no_row(shop: Shop, status: int) -> None:
    shop.insert(40)
    shop.server.script = lambda request: Answer(status, {"error": {"message": "no"}})
    with pytest.raises(EncoderUnavailable, match=f"HTTP {status}"):
        shop.work()
    assert (shop.embedded, shop.failed) == (0, 0)
    shop.server.script = lambda request: None
    assert shop.work() == Summary(written=40)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(body=b'{"data": [{"index": 0, "embed'), "is not JSON"),
        (Answer(body=openai_answer([[1.0] * 256] * 40), cut=True), "cannot be reached: peer closed"),
        (Answer(body=openai_answer([[1.0] * 256])), "gave 1 vectors for"),
        (Answer(body=openai_answer([[1.0] * 256] * 41)), "gave 41 vectors for"),
        (Answer(body=openai_answer([[1.0] * 128] * 40)), "gave a vector of 128 dimensions"),
        (Answer(wait=2.0), "did not answer in time"),
    ],
    ids=["half an answer", "broken off", "too few", "too many", "too short", "never"],
)
def test_a_server_that_answers_wrongly_or_never_costs_no_row(
    database: Connection, database_dsn: str, server: EmbeddingServer, answer: Answer, words: str
) -> None:
    shop = Shop(database, database_dsn, server, max_batch=40, read_timeout=0.3, timeout=0.5, retries=1)
    shop.insert(40)
    server.script = lambda request: answer if len(request.inputs) > 1 else None  # it loads, and does one plain text
    with pytest.raises(EncoderUnavailable, match=words):
        shop.work()
    assert (shop.embedded, shop.failed) == (0, 0)
    assert shop.one("SELECT count(*) FROM pgembed.job_1 WHERE attempts > 0 OR claimed_until > now()") == 0
    server.script = lambda request: None
    assert shop.work() == Summary(written=40)


def test_bad_rows_fail_alone_and_good_ones_are_paid_once(shop: Shop) -> None:
    shop.insert(100, "bad 1", "bad 2")

    def script(request: Request) -> Answer | None:
        return Answer(400, {"error": {"message": "too long"}}) if {"bad 1", "bad 2"} & set(request.inputs) else None

    shop.server.script = script
    assert shop.work() == Summary(written=100, failed=2)
    errors = shop.conn.execute("SELECT key ->> 0, error FROM pgembed.failure ORDER BY 1").fetchall()
    assert [key for key, _ in errors] == ["101", "102"]
    assert all("refuses this text: 127.0.0.1" in error and "HTTP 400: too long" in error for _, error in errors)
    assert {shop.server.sent[f"dog {n}"] for n in range(1, 101)} == {1}


def test_an_input_that_breaks_the_server_fails_after_its_attempts(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.write.random.uniform", lambda low, high: 0.01)
    shop.insert(20, "poison")
    shop.server.script = lambda request: Answer(500) if "poison" in request.inputs else None
    assert shop.work(max_attempts=2) == Summary(written=20, failed=1)
    assert "fails on this text, and not on others" in shop.one("SELECT error FROM pgembed.failure")


def test_vectors_that_are_never_finite_fail_no_row(shop: Shop) -> None:
    shop.insert(5)
    nan = [float("nan")] * 256
    shop.server.script = lambda request: Answer(
        body={"data": [{"index": n, "embedding": nan} for n in range(len(request.inputs))], "model": "lite"}
    )
    with pytest.raises(EncoderUnavailable, match="not finite for a plain text too"):
        shop.work()
    assert shop.failed == 0


def test_another_model_behind_the_same_address_is_refused(shop: Shop) -> None:
    shop.insert(3)
    answered = LITE.embed_texts(["a photo"]).tolist()[0]
    shop.server.script = lambda request: Answer(
        body={"data": [{"index": n, "embedding": answered} for n in range(len(request.inputs))], "model": "large"}
    )
    with pytest.raises(EncoderError, match="has other server here"):
        shop.work()
    assert (shop.embedded, shop.failed) == (0, 0)


def test_weights_that_change_under_one_name_are_refused(shop: Shop) -> None:
    shop.insert(3)
    shop.server.embed_texts = lambda texts: LITE.embed_texts(texts)[:, ::-1]
    with pytest.raises(EncoderError, match=r"'shop' \(http:lite\) has other weights \(its vector of a plain"):
        shop.work()
    assert (shop.embedded, shop.failed) == (0, 0)
    shop.server.embed_texts = lambda texts: LITE.embed_texts(texts) * 1.0001 + 1e-5
    with pgembed.connect(shop.dsn) as db:  # rounding is no other model, here as at a second registration
        assert db.add_encoder("shop", "http:lite", settings=shop.settings) == db.encoder("shop")
    assert shop.work() == Summary(written=3)


def test_the_key_is_not_in_the_database(
    database: Connection, database_dsn: str, server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "sk-QWERTYsecret0123456789"
    monkeypatch.setenv("SHOP_KEY", server.key)
    shop = Shop(database, database_dsn, server, key_env="SHOP_KEY")
    shop.insert(3, "bad")
    shop.server.script = lambda request: (
        Answer(422, {"detail": f"Bearer {server.key}"}) if "bad" in request.inputs else None
    )
    shop.work()
    assert shop.failed == 1
    for table in ("encoder", "embedding", "failure", "written"):
        assert "QWERTY" not in str(shop.conn.execute(f"SELECT * FROM pgembed.{table}".encode()).fetchall())


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"api_key": "sk-SECRET"}, "api_key"),
        ({"APIKey": "SECRET"}, "APIKey"),
        ({"token": "SECRET"}, "token"),
        ({"url": "http://x", "headers": {"X-Api-Key": "SECRET"}}, "headers.X-Api-Key"),
        ({"headers": {"Authorization": "SECRET"}}, "headers.Authorization"),
        ({"query_string": {"sig": "SECRET"}}, "query_string.sig"),
        ({"request": {"list": [1, {"auth": {"a": "SECRET"}}], "input": ["{text}"]}}, "request.list.auth"),
        ({"document": {"access_token": "SECRET"}}, "document.access_token"),
        ({"url": "https://user:SECRET@host/v1"}, "url"),
        ({"headers": {"X-Custom": "Bearer SECRET"}}, "headers.X-Custom"),
        ({"extra": {"x": "sk-SECRET0123456789"}}, "extra.x"),
        ({"extra": {"x": ["AIza" + "SECRET" * 4]}}, "extra.x"),
        ({"key_env": "sk-SECRET0123456789"}, "key_env"),
    ],
)
def test_a_secret_does_not_reach_the_catalog_by_sql_either(
    database: Connection, settings: dict[str, Any], place: str
) -> None:
    with pytest.raises(EncoderError):  # the same names as in Python
        read_config("http:m", "m", settings)
    with pytest.raises(psycopg.Error) as caught:
        database.execute(ADD, [Jsonb(settings)])
    assert f"encoder 'h' hold what looks like a secret, in '{place}'" in str(caught.value)
    assert "key_env" in str(caught.value.diag.message_hint)
    assert "SECRET" not in str(caught.value)
    assert database.execute("SELECT count(*) FROM pgembed.encoder").fetchone() == (0,)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        None,
        {"key_env": "SHOP_API_KEY", "key_header": "api-key"},
        {"key_file": "/run/secrets/key", "tokenizer": "/models/tokenizer.json", "max_batch_tokens": 100},
        {"api_key": None, "extra": {"task": "keys", "x": ["hf", 1, None]}, "url": "http://tei:8080/embed"},
    ],
)
def test_what_is_no_secret_is_registered_by_sql(database: Connection, settings: dict[str, Any] | None) -> None:
    database.execute(ADD, [settings if settings is None else Jsonb(settings)])
    assert database.execute("SELECT settings FROM pgembed.encoder").fetchone() == (settings or {},)


def test_an_error_names_the_settings_of_an_encoder_and_shows_no_value(database: Connection) -> None:
    database.execute(ADD, [Jsonb({"url": "http://inner.example", "query": {"user": "shop"}})])
    with pytest.raises(psycopg.Error, match=r"'h' is registered already: http:m, .* settings query, url\.") as caught:
        database.execute(ADD, [Jsonb({"url": "http://other.example"})])
    assert "example" not in str(caught.value)
    assert "shop" not in str(caught.value).replace("'shop'", "")


# Limits and budgets


@pytest.mark.parametrize("rows", [1, 25, 70])
def test_a_worker_leaves_after_so_many_rows(shop: Shop, rows: int) -> None:
    shop.insert(60)
    assert shop.worker(max_rows=rows, batch_size=10).run("forever" if rows <= 60 else "until_idle").written == min(
        rows, 60
    )
    assert shop.embedded == min(rows, 60)
    assert shop.one("SELECT count(*) FROM pgembed.job_1 WHERE claimed_until > now()") == 0
    assert shop.work().written == 60 - min(rows, 60)


def test_failed_rows_do_not_count_as_written(shop: Shop) -> None:
    shop.conn.execute(
        "INSERT INTO product SELECT n, CASE WHEN n % 2 = 0 THEN 'bad' ELSE 'dog ' || n END"
        " FROM generate_series(1, 30) n"
    )
    shop.server.script = lambda request: Answer(400) if "bad" in request.inputs else None
    summary = shop.worker(max_rows=10, batch_size=6).run("forever")
    assert (summary.written, shop.embedded) == (10, 10)


def spend(shop: Shop, ago: str) -> None:
    """Let what was spent so far have been spent earlier."""
    shop.conn.execute("UPDATE pgembed.written SET minute = minute - %s::interval", [ago])


def test_a_budget_of_rows_a_day_is_shared_by_workers(
    database: Connection, database_dsn: str, server: EmbeddingServer
) -> None:
    shop = Shop(database, database_dsn, server, rows_per_day=50)
    shop.insert(120)
    workers = [shop.worker(batch_size=7) for _ in range(3)]
    log = Log()
    for worker in workers:
        worker.state.log = log
    with ThreadPoolExecutor(3) as pool:
        summaries = list(pool.map(lambda worker: worker.run("until_idle"), workers))
    assert sum(summary.written for summary in summaries) == shop.embedded == 50
    assert len(server.sent) - 1 == 50  # and the plain text at load
    assert shop.failed == 0
    assert shop.one("SELECT state FROM pgembed.status") == "resting"
    assert any("embedding rests: the budget is spent" in line and "'rows_per_day': 50" in line for line in log.lines)
    spend(shop, "25 hours")
    assert shop.one("SELECT state FROM pgembed.status") == "ready"
    assert shop.work().written == 50
    assert shop.work().written == 0
    shop.conn.execute("UPDATE pgembed.encoder SET settings = settings || '{\"rows_per_day\": 500}'")
    assert shop.work().written == 20


def test_a_resting_embedding_goes_on_by_itself_and_holds_up_no_other(
    database: Connection, database_dsn: str, server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgembed.worker.state.BUDGET_LOOK", 0.1)
    shop = Shop(database, database_dsn, server, rows_per_day=10)
    shop.conn.execute("CREATE TABLE other (id integer PRIMARY KEY, title text)")
    shop.conn.execute("INSERT INTO other SELECT n, 'cat ' || n FROM generate_series(1, 30) n")
    shop.conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    shop.conn.execute("""SELECT pgembed.attach('other', 'embedding', 'lite', '{"text": "title"}')""")
    shop.insert(25)
    worker = shop.worker()
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        until(lambda: shop.one("SELECT count(embedding) FROM other") == 30 and shop.embedded == 10)
        spend(shop, "25 hours")
        until(lambda: shop.embedded == 20)
    finally:
        worker.stop()
        thread.join()


def test_a_budget_of_tokens_a_day(database: Connection, database_dsn: str, server: EmbeddingServer) -> None:
    shop = Shop(database, database_dsn, server, tokens_per_day=1000)
    shop.conn.execute("INSERT INTO product SELECT n, repeat('dogs', 10) || n FROM generate_series(1, 400) n")
    written = shop.work(batch_size=16).written  # each row has eleven tokens: 400 rows are 4,400
    assert 1000 / 11 <= written <= 1000 / 11 + 40
    assert shop.one("SELECT sum(tokens)::integer FROM pgembed.written") == pytest.approx(11 * written, abs=100)
    assert (shop.failed, shop.one("SELECT state FROM pgembed.status")) == (0, "resting")
    assert shop.work().written == 0


def test_what_was_encoded_and_not_written_is_spent_too(
    database: Connection, database_dsn: str, server: EmbeddingServer
) -> None:
    shop = Shop(database, database_dsn, server, rows_per_day=20)
    shop.insert(20)
    shop.conn.execute("ALTER TABLE product ADD CHECK (id > 10 OR embedding IS NULL)")
    assert shop.work() == Summary(written=10)  # the others wait for another try, which the budget does not allow
    assert shop.one("SELECT sum(rows)::integer FROM pgembed.written") == 20


def test_a_settings_budget_that_is_no_number_is_no_budget(shop: Shop) -> None:
    shop.conn.execute("UPDATE pgembed.encoder SET settings = settings || %s", [Jsonb({"tokens_per_day": None})])
    shop.insert(5)
    assert shop.one("SELECT state FROM pgembed.status") == "backfill"
    assert shop.conn.execute("SELECT rows_left, frees_at FROM pgembed._budget('shop')").fetchall() == [(None, None)]


def test_vectors_in_the_table_are_those_of_the_model(shop: Shop) -> None:
    shop.insert(3)
    shop.work()
    found = shop.conn.execute("SELECT title, embedding::real[] FROM product ORDER BY id").fetchall()
    np.testing.assert_allclose([row[1] for row in found], LITE.embed_texts([row[0] for row in found]), atol=1e-5)
