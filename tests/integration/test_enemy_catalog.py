"""A catalog written by an enemy: the worker refuses with a sentence, harms nothing, and goes on with what is in order.

The worker here is a superuser: what it does not do, no other may either.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

import pgembed
from pgembed import Text
from pgembed.encoders import EncoderPolicy
from pgembed.errors import CatalogError
from pgembed.worker import Worker, WorkerOptions
from tests.facts import facts_of_table
from tests.fakes import Connection, Log, until

OUTSIDE = "which is outside of the model directory"
ENCODER = "UPDATE pgembed.encoder SET {} WHERE name = 'shop'"
EMBEDDING = "UPDATE pgembed.embedding SET {} WHERE id = 1"
INJECTED = "bigint); DROP TABLE other; --"


def key(facts: str) -> str:
    return EMBEDDING.format(f"key_columns = '[{facts}]'")


# What the enemy writes, and what the worker says.
ENCODERS = {
    "a path": ("spec = 'onnx:/etc'", f"reads /etc, {OUTSIDE}"),
    "a path upwards": ("spec = 'onnx:{models}/../../etc'", OUTSIDE),
    "a checkpoint": ("spec = 'open_clip:ViT-B-32', settings = '{{\"checkpoint\": \"/tmp/a.pt\"}}'", OUTSIDE),
    "a pickle": (
        'spec = \'open_clip:ViT-B-32\', settings = \'{{"checkpoint": "{models}/a.pt", "allow_pickle": true}}\'',
        "may run code that comes with its model",
    ),
    "code of a model": (
        "spec = 'transformers:some/model', settings = '{{\"trust_remote_code\": true}}'",
        "may run code that comes with its model",
    ),
    "a host": (
        "spec = 'http:model', settings = '{{\"url\": \"http://169.254.169.254/v1/embeddings\"}}'",
        "sends rows to 169.254.169.254.*, which is not allowed here",
    ),
    "a huge dimension": ("dim = 1000000000", "has other dimensions here"),
    "other weights": ("fingerprint = 'ffff'", "than it was registered with"),
    "no kind": ("spec = 'nonsense'", "is not an encoder spec"),
    "an unknown kind": ("spec = 'evil:x'", "No encoder kind 'evil' is installed"),
    "settings that are none": ("settings = '[1]'", "are no JSON object"),
    "settings of another type": ('settings = \'{{"batch_size": {{"a": [1]}}}}\'', "batch_size|settings|setting"),
}
EMBEDDINGS = {
    "an open brace": (
        EMBEDDING.format("""inputs = '{"text": {"template": "{title} {", "columns": {"title": 2}, "weight": 1}}'"""),
        "has a brace without its partner",
    ),
    "a column that is not there": (
        EMBEDDING.format("""inputs = '{"text": {"template": "{nope}", "columns": {"nope": 99}, "weight": 1}}'"""),
        "reads a column that public.product does not have: 'nope'",
    ),
    "a template without columns": (
        EMBEDDING.format("""inputs = '{"text": {"template": "x", "columns": {"title": 2}, "weight": 1}}'"""),
        "The text input of public.product reads no column",
    ),
    "SQL in a template": (
        EMBEDDING.format(
            """inputs = '{"text": {"template": "{title}''); DROP TABLE other; --", "columns": {}, "weight": 1}}'"""
        ),
        "does not have: 'title'",
    ),
    "a column number that is none": (
        EMBEDDING.format("""inputs = '{"text": {"template": "{title}", "columns": {"title": "x"}, "weight": 1}}'"""),
        "invalid input syntax for type smallint",
    ),
    "a picture that is not there": (
        EMBEDDING.format(
            """inputs = '{"image": {"column": "nope", "columns": {"nope": 9}, "as": "bytes", "weight": 1}}'"""
        ),
        "The image input reads a column that public.product does not have: 'nope'",
    ),
    "an unknown modality": (
        EMBEDDING.format("""inputs = '{"smell": {"column": "title", "columns": {"title": 2}, "weight": 1}}'"""),
        "takes no smell",
    ),
    "a weight that is none": (
        EMBEDDING.format("""inputs = '{"text": {"template": "{title}", "columns": {"title": 2}, "weight": "x"}}'"""),
        "The weight of its text input is x, not a number above zero",
    ),
    "a weight without end": (
        EMBEDDING.format("""inputs = '{"text": {"template": "{title}", "columns": {"title": 2}, "weight": 1e999}}'"""),
        "The weight of its text input is 1000",
    ),
    "parts in a column": (EMBEDDING.format("""parts = '{"kind": "chunks"}'"""), "It has parts, and not the one input"),
    "inputs that are none": (EMBEDDING.format("inputs = '5'"), "jsonb|object"),
    "no inputs": (EMBEDDING.format("inputs = '{}'"), "It has no inputs"),
    "a column of words as target": (EMBEDDING.format("target = 'title'"), "has no vector column 'title'"),
    "a target that is not there": (EMBEDDING.format("target = 'nope'"), "has no vector column 'nope'"),
    "a side table of others": (EMBEDDING.format("storage = 'side', side = 'other'::regclass"), None),
    "another table": (EMBEDDING.format("relation = 'other'::regclass"), "follows"),
    "no table": (EMBEDDING.format("relation = 1, schema_name = 'x\"; DROP TABLE other; --'"), "follows"),
    "SQL as a key's type": (key(f'{{"name": "id", "attnum": 1, "type": "{INJECTED}"}}'), "follows"),
    "a key of many columns": (key('{"name": "id", "attnum": 1}, {"name": "title", "attnum": 2}'), "follows"),
}


class Enemy:
    """Tables ``product`` (embedding 1, the enemy's) and ``note`` (embedding 2, in order); in each a row waits."""

    def __init__(self, conn: Connection, dsn: str, models: Path) -> None:
        self.conn = conn
        self.dsn = dsn
        self.models = models
        self.log = Log()
        conn.execute("CREATE TABLE other (id integer PRIMARY KEY, title text); INSERT INTO other VALUES (1, 'mine')")
        db = pgembed.connect(conn)
        for table, encoder in (("product", "shop"), ("note", "lite")):
            db.add_encoder(encoder, "builtin:lite")
            conn.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, title text)".encode())
            db.attach(table, "embedding", encoder=encoder, text="{title}")
        conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
        self.insert(1)
        self.before = {table: facts_of_table(conn, table) for table in ("product", "note", "other")}

    def insert(self, number: int) -> None:
        for table in ("product", "note"):
            self.conn.execute(f"INSERT INTO {table} VALUES (%s, 'a red shoe')".encode(), [number])

    def worker(self) -> Worker:
        policy = EncoderPolicy(model_dirs=(self.models,))
        worker = Worker(lambda: psycopg.connect(self.dsn), WorkerOptions(poll=0.02, encoders=policy))
        worker.state.log = self.log
        return worker

    def run(self, sentence: str | None) -> None:
        """A worker that runs for ever does the other table's rows, and says so of this one's."""
        worker = self.worker()
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(worker.run)
            try:
                until(lambda: done.done() or (self.encoded("note") == 1 and (sentence is None or self.log.lines)))
                self.insert(2)
                until(lambda: done.done() or self.encoded("note") == 2)
            finally:
                worker.stop()
            done.result(30)

    def encoded(self, table: str) -> int:
        return self.conn.execute(f"SELECT count(embedding) FROM {table}".encode()).fetchall()[0][0]

    def assert_nothing_was_harmed(self) -> None:
        assert {table: facts_of_table(self.conn, table) for table in self.before} == self.before
        assert self.conn.execute("SELECT title FROM product UNION SELECT title FROM note").fetchall() == [
            ("a red shoe",)
        ]
        assert self.conn.execute("SELECT * FROM other").fetchall() == [(1, "mine")]
        assert self.conn.execute("SELECT * FROM pgembed.failure").fetchall() == []
        assert self.encoded("note") == 2

    def told(self) -> list[str]:
        return [line for line in self.log.lines if "product" in line or "refused" in line or "in trouble" in line]


@pytest.fixture
def enemy(database: Connection, database_dsn: str, tmp_path: Path) -> Enemy:
    models = tmp_path / "models"
    models.mkdir()
    (models / "a.pt").write_bytes(b"no weights")
    return Enemy(database, database_dsn, models)


@pytest.mark.parametrize("case", ENCODERS)
def test_an_encoder_that_is_not_allowed_is_not_loaded(enemy: Enemy, case: str) -> None:
    written, sentence = ENCODERS[case]
    written = written.replace("{{", "{").replace("}}", "}").replace("{models}", str(enemy.models))
    enemy.conn.execute(ENCODER.format(written).encode())
    enemy.run(sentence)
    enemy.assert_nothing_was_harmed()
    assert enemy.encoded("product") == 0
    told = enemy.told()
    assert 1 <= len(told) <= 3  # once a try, and it waits before the next
    assert all(re.search(sentence, line) for line in told)
    assert enemy.conn.execute("SELECT queued FROM pgembed.status WHERE id = 1").fetchone() == (2,)
    enemy.conn.execute("DELETE FROM pgembed.change_1; DELETE FROM pgembed.job_1")


def test_detach_drops_no_column_but_one_of_vectors(enemy: Enemy) -> None:
    enemy.conn.execute(EMBEDDING.format("target = 'title'").encode())
    with pgembed.connect(enemy.conn) as db:
        with pytest.raises(CatalogError, match=r"Column title of public\.product is text, and holds no vectors"):
            db.detach("product")
        with pytest.raises(CatalogError, match="it is not dropped"):
            db.uninstall(detach_all=True)
    enemy.conn.execute(EMBEDDING.format("target = 'embedding'").encode())
    with pgembed.connect(enemy.conn) as db:
        db.detach("product")
    assert enemy.conn.execute("SELECT title FROM product").fetchall() == [("a red shoe",)]


@pytest.mark.parametrize("mode", ["queue", "instant"])
@pytest.mark.parametrize("stale", ["keep", "null"])
def test_no_column_but_one_of_vectors_is_written_to(enemy: Enemy, mode: str, stale: str) -> None:
    enemy.conn.execute("CREATE TABLE mine (id integer PRIMARY KEY, title text)")
    with pgembed.connect(enemy.conn) as db:
        db.attach(
            "mine", "embedding", encoder="lite", text="{title}", mode=mode, stale=stale if mode == "queue" else "keep"
        )
    enemy.conn.execute(
        "SET pgembed.instant = 'off'; INSERT INTO mine VALUES (1, 'a red shoe'); RESET pgembed.instant;"
        "UPDATE pgembed.embedding SET target = 'title' WHERE id = 3; INSERT INTO pgembed.missed VALUES (3)"
    )
    for statement in ("SELECT pgembed.sync('mine')", "CALL pgembed.fill('mine')"):
        told = "no vectors: it is not written to" if mode == "instant" or "sync" in statement else "by workers"
        with pytest.raises(psycopg.Error, match=told):
            enemy.conn.execute(statement)
    enemy.run(None)  # its workers come by the table that is told to be out of date
    enemy.conn.execute("INSERT INTO mine VALUES (2, 'a blue hat'); UPDATE mine SET title = 'a red boot' WHERE id = 1")
    rows = enemy.conn.execute("SELECT id, title FROM mine ORDER BY id").fetchall()
    assert rows == [(1, "a red boot"), (2, "a blue hat")]


def test_no_table_but_its_side_table_is_written_to(enemy: Enemy) -> None:
    enemy.conn.execute(
        "CREATE TABLE mine (id integer PRIMARY KEY, title text); INSERT INTO mine VALUES (1, 'a red shoe')"
    )
    enemy.conn.execute("CREATE TABLE theirs (id integer PRIMARY KEY, vector vector)")
    with pgembed.connect(enemy.conn) as db:
        db.attach("mine", "embedding", encoder="lite", text="{title}", storage="side", mode="instant")
        enemy.conn.execute("UPDATE pgembed.embedding SET side = 'theirs'::regclass WHERE id = 3")
        with pytest.raises(
            psycopg.Error, match=r"stand in public\.mine_embedding; public\.theirs, .*, is not written to"
        ):
            enemy.conn.execute("CALL pgembed.fill('mine')")
        with pytest.raises(CatalogError, match="theirs, which the catalog names, is not looked at"):
            db.reconcile("mine")
        db.sync("mine")
    enemy.conn.execute("CALL pgembed.fill('mine')")
    assert enemy.conn.execute("SELECT count(*) FROM theirs").fetchone() == (0,)
    assert enemy.conn.execute("SELECT count(*) FROM mine_embedding").fetchone() == (1,)


@pytest.mark.parametrize("settings", ["5", "[1]", '{"rows_per_day": "x", "tokens_per_day": {"a": 1}}'])
def test_settings_that_make_no_sense_stop_neither_status_nor_search(enemy: Enemy, settings: str) -> None:
    enemy.conn.execute("UPDATE pgembed.encoder SET settings = %s WHERE name = 'shop'", [settings])
    enemy.run(None)
    with pgembed.connect(enemy.conn) as db:
        assert [row.ready for row in db.status()][1] == 2
        assert db.search("note", Text("red shoe"), limit=1)[0].title == "a red shoe"
        assert [row.settings for row in db.encoders() if row.name == "shop"] == [json.loads(settings)]
        db.doctor()


@pytest.mark.parametrize("case", EMBEDDINGS)
def test_an_embedding_that_makes_no_sense_stops_neither_status_nor_search_of_others(enemy: Enemy, case: str) -> None:
    enemy.conn.execute(EMBEDDINGS[case][0].encode())
    with pgembed.connect(enemy.conn) as db:
        assert len(db.status()) == 2
        assert db.search("note", Text("red shoe")) == []
        assert db.failures() == []
        db.doctor()


@pytest.mark.parametrize("case", EMBEDDINGS)
def test_an_embedding_that_makes_no_sense_is_left_alone(enemy: Enemy, case: str) -> None:
    statement, sentence = EMBEDDINGS[case]
    enemy.conn.execute(statement.encode())
    enemy.run(None if sentence == "follows" else sentence)
    enemy.assert_nothing_was_harmed()
    if sentence == "follows":  # the catalog is put right, by what the table's trigger says
        assert enemy.encoded("product") == 2
        assert enemy.told() == []
        return
    assert enemy.encoded("product") == 0
    if sentence is not None:
        told = [line for line in enemy.log.lines if "refused" in line or "in trouble" in line]
        assert len(told) == 1, enemy.log.lines
        assert re.search(sentence, told[0])
    assert enemy.conn.execute("SELECT count(*) FROM pgembed.change_1").fetchone() != (0,) or enemy.conn.execute(
        "SELECT count(*) FROM pgembed.job_1"
    ).fetchone() != (0,)
