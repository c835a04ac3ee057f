"""What an embedding would come to, told before it is attached: counts, tokens, calls, time; and nothing is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

import pgembed
from pgembed import EncoderPolicy
from pgembed.client import Pgembed
from pgembed.errors import CatalogError, InvalidInput
from pgembed.estimate import InputEstimate
from tests.embedding_server import embedding_server
from tests.facts import facts_of_schema
from tests.fakes import Connection


@pytest.fixture
def db(database: Connection, database_dsn: str) -> Iterator[Pgembed]:
    picture = BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text, body text, photo bytea, path text)")
    database.execute(
        "INSERT INTO product SELECT n, CASE WHEN n %% 4 > 0 THEN repeat('word ', 8) END, NULL,"
        " CASE WHEN n %% 2 = 0 THEN %s::bytea END, CASE WHEN n <= 3 THEN 'a.png' END FROM generate_series(1, 400) n",
        [picture.getvalue()],
    )
    database.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
    with pgembed.connect(database_dsn) as connected:
        yield connected


def test_rows_tokens_pictures_calls_and_time_are_told(db: Pgembed, database: Connection) -> None:
    before = facts_of_schema(database)
    found = db.estimate("product", "embedding", encoder="lite", text="{title}{body}", image="photo")
    assert (found.rows, found.exact, found.texts, found.pictures) == (400, True, 300, 200)
    assert found.inputs[1] == InputEstimate("text", 300, 39.0, 300 * 10)
    assert found.inputs[0].mean_bytes == pytest.approx(75, abs=10)
    assert found.tokens == 3000
    assert found.calls == 300 // 64 + 1 + 200 // 64 + 1
    assert found.seconds is not None
    assert 0.1 < found.seconds < 60
    assert (found.days, found.problem) == (None, None)
    assert facts_of_schema(database) == before
    assert database.execute("SELECT count(*) FROM pgembed.embedding").fetchone() == (0,)


def test_a_large_table_is_sampled(db: Pgembed, database: Connection) -> None:
    database.execute("UPDATE pg_class SET reltuples = 2000000 WHERE relname = 'product'")
    (modality, rows, present, exact, mean, sample), *_ = database.execute(
        "SELECT * FROM pgembed.estimate('product', 'v', 'lite', '{\"text\": \"title\"}', 2000000)"
    ).fetchall()
    assert (modality, rows, exact) == ("text", 2_000_000, False)
    assert present == pytest.approx(1_500_000, rel=0.05)
    assert mean == 39.0
    assert set(sample) == {("word " * 8).strip()}


def test_an_empty_table_and_empty_columns_come_to_nothing(db: Pgembed, database: Connection) -> None:
    database.execute("CREATE TABLE nothing (id integer PRIMARY KEY, title text)")
    found = db.estimate("nothing", "embedding", encoder="lite", text="title")
    assert (found.rows, found.texts, found.tokens, found.calls, found.seconds) == (0, 0, 0, 0, 0.0)
    assert db.estimate("product", "embedding", encoder="lite", text="body").calls == 0


def test_pictures_by_path_are_counted(db: Pgembed) -> None:
    found = db.estimate("product", "embedding", encoder="lite", image={"column": "path", "as": "path"})
    assert found.inputs == [InputEstimate("image", 3, None, None)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": "titel"}, "has no column 'titel'"),
        ({"text": "title", "target": "photo"}, "has a column 'photo' already"),
        ({"text": "title", "table": "pgembed.encoder"}, "a system table"),
        ({"text": "title", "encoder": "none"}, "No encoder named 'none'"),
        ({"sound": "title"}, "takes no sound"),
    ],
)
def test_what_attach_refuses_is_refused(db: Pgembed, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(CatalogError, match=words):
        db.estimate(**{"table": "product", "target": "embedding", "encoder": "lite", **arguments})
    with pytest.raises(InvalidInput, match="was given no input"):
        db.estimate("product", "embedding", encoder="lite")


def test_a_server_is_sent_no_row_and_its_limits_tell_the_time(db: Pgembed, database_dsn: str) -> None:
    with embedding_server() as server:
        settings = {
            "url": server.url + "/v1",
            "max_batch": 10,
            "requests_per_minute": 60,
            "rows_per_day": 100,
            "tokens_per_day": 1000,
        }
        db.add_encoder("shop", "http:lite", settings=settings)
        with pgembed.connect(database_dsn, encoders=EncoderPolicy(hosts=(f"127.0.0.1:{server.port}",))) as allowed:
            found = allowed.estimate("product", "embedding", encoder="shop", text="title")
        assert (found.calls, found.seconds) == (30, pytest.approx(30, rel=0.1))
        assert found.days == pytest.approx(3)
        assert {value for request in server.posts() for value in request.inputs} == {"a photo"}
        refused = db.estimate("product", "embedding", encoder="shop", text="title")
    assert (refused.texts, refused.tokens, refused.calls, refused.seconds) == (300, 3000, None, None)
    assert refused.problem is not None
    assert "--allow-host" in refused.problem


def test_the_asynchronous_client_tells_the_same(db: Pgembed, database_dsn: str) -> None:
    async def ask() -> tuple[int, int]:
        async with pgembed.connect_async(database_dsn) as asynchronous:
            found = await asynchronous.estimate("product", "embedding", encoder="lite", text="title")
            return found.rows, found.tokens

    assert asyncio.run(ask()) == (400, 3000)


def test_storage_is_advised_by_what_an_update_of_the_row_sets_off(db: Pgembed, database: Connection) -> None:
    def advice() -> tuple[str, str]:
        (row,) = database.execute("SELECT storage, reason FROM pgembed.advise_storage('product')").fetchall()
        found = db.estimate("product", "embedding", encoder="lite", text="{title}")
        assert (found.storage, found.storage_reason) == row
        return row

    assert advice()[0] == "column"
    for name in "abcde":
        database.execute(f"CREATE INDEX {name} ON product (body)".encode())
    assert advice() == (
        "side",
        "To write a vector in a column updates the row, with an entry in each of its 6 indexes.",
    )
    told: list[str] = []
    database.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
    db_notices = "SELECT pgembed.attach('product', 'embedding', 'lite', '{\"text\": \"{title}\"}')"
    database.execute(db_notices)
    assert "each of its 6 indexes" in told[0]
    database.execute("SELECT pgembed.detach('product')")
    database.execute("CREATE PUBLICATION news FOR TABLE product")
    assert "which is published: news" in advice()[1]
    database.execute(
        "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER audit BEFORE UPDATE ON product FOR EACH ROW EXECUTE FUNCTION log()"
    )
    assert "which fires its triggers: audit" in advice()[1]
    database.execute("DROP PUBLICATION news; DROP TRIGGER audit ON product; DROP INDEX a")
    assert advice()[0] == "column"
