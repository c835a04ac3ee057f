"""What goes wrong under a worker: it costs the row, the batch or the connection that is at fault, and nothing else."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from PIL import Image
from psycopg.conninfo import make_conninfo

from pgembed.encoders import Encoder
from pgembed.errors import CatalogError, EncoderError, EncoderMismatch, InvalidInput, NotInstalled
from pgembed.media import MediaPolicy
from pgembed.worker import Worker, WorkerOptions
from pgembed.worker.run import SESSION_SETTINGS
from tests.fakes import DIM, Connection, FakeEncoder, Log, Table, register, until


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch, storage: str) -> Table:
    return Table(database, database_dsn, monkeypatch, storage)


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits after trouble, and of rows that are tried again, a hundredth as long."""
    monkeypatch.setattr("pgembed.worker.state.TROUBLE_WAITS", (0.01, 0.02, 0.05))
    monkeypatch.setattr("pgembed.worker.run.TROUBLE_WAITS", (0.01, 0.02, 0.05, 0.05, 0.05))
    monkeypatch.setattr("pgembed.worker.write.random.uniform", lambda low, high: 0.01)


soon = pytest.mark.usefixtures("_soon")


def picture(colour: str) -> bytes:
    data = BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, "PNG")
    return data.getvalue()


class Sometimes:
    """An encoder's ``before`` that raises for a text, or for the first so many calls."""

    def __init__(self, *, bad: str = "", times: int = 0, error: Exception | None = None) -> None:
        self.bad, self.left, self.calls = bad, times, 0
        self.error = error or RuntimeError("the model is on fire")

    def __call__(self, texts: Sequence[str]) -> None:
        self.calls += 1
        if self.left > 0 or (self.bad and self.bad in texts):
            self.left -= 1
            raise self.error


# A row at fault


def test_a_text_without_known_words_fails_alone(database: Connection, database_dsn: str) -> None:
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    database.execute("INSERT INTO product VALUES (1, 'red shoe'), (2, '☃☃☃'), (3, 'blue car')")
    database.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    database.execute("""SELECT pgembed.attach('product', 'embedding', 'shop', '{"text": "title"}')""")
    summary = Worker(lambda: psycopg.connect(database_dsn)).run("until_idle")
    assert (summary.written, summary.failed) == (2, 1)
    assert database.execute("SELECT id FROM product WHERE embedding IS NULL").fetchall() == [(2,)]
    key, error, attempts = database.execute("SELECT key, error, attempts FROM pgembed.failures").fetchall()[0]
    assert (key, attempts) == (["2"], 1)
    assert "'☃☃☃' has no word" in error


def test_a_changed_or_retried_failure_is_tried_again(table: Table) -> None:
    table.insert("red shoe", "bad", "worse")
    table.encoder.before = Sometimes(bad="bad", error=ValueError("bad text"))
    table.work()
    assert table.failures() == {"2": "bad text"}
    table.conn.execute("UPDATE product SET title = 'good' WHERE id = 2")
    table.work()
    assert (table.failures(), table.true_ids()) == ({}, [1, 2, 3])
    table.conn.execute("UPDATE product SET title = 'bad' WHERE id = 3")
    table.work()
    assert table.failures() == {"3": "bad text"}
    assert table.conn.execute("SELECT pgembed.reconcile('product')").fetchone() == (0,)
    table.encoder.before = lambda texts: None
    assert table.conn.execute("SELECT pgembed.retry('product', reason => 'none such')").fetchone() == (0,)
    assert table.conn.execute("SELECT pgembed.retry('product', reason => 'bad%')").fetchone() == (1,)
    table.work()
    assert (table.failures(), table.true_ids()) == ({}, [1, 2, 3])


def test_failures_are_counted_by_reason_and_retried_by_reason_or_key(table: Table) -> None:
    errors = {
        "one": "The picture '/srv/a_1.png' is not there.",
        "two": "The picture '/srv/b_2.png' is not there.",
        "three": "The picture 'https://host/3.png' was answered with HTTP 404.",
        "four": "The picture 'https://host/4.png' was answered with HTTP 403.",
        "five": r"<1,234 bytes 00ff> has 1,234 bytes, more than 99.5%, in C:\pictures",
    }

    def refuse(texts: Sequence[str]) -> None:
        if bad := next((text for text in texts if text in errors), None):
            raise InvalidInput(errors[bad])

    def retried(**narrowed: str) -> int:
        given = ", ".join(f"{name} => %({name})s" for name in narrowed)
        ((count,),) = table.conn.execute(f"SELECT pgembed.retry('product', {given})".encode(), narrowed).fetchall()
        return count

    table.insert(*errors, "good")
    table.encoder.before = refuse
    table.work()
    rows = table.conn.execute("SELECT reason, rows, latest_key FROM pgembed.failure_reasons").fetchall()
    assert rows[0][:2] == ("The picture % is not there.", 2)
    reasons = {reason: count for reason, count, _ in rows}
    assert sorted(reasons.values()) == [1, 1, 1, 2]
    assert {"The picture % was answered with HTTP 404.", "The picture % was answered with HTTP 403."} < set(reasons)
    for wrong in ('{"1": 2}', '["1"]', '[["1", "2"]]', "[[null]]", "3"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"is no key of public\.product"):
            retried(keys=wrong)
    assert retried(keys="[]") == 0
    assert retried(keys='[["1"], [3], ["7"], ["1"]]', reason="The picture % is not there.") == 1
    assert retried(keys='[[3], ["4"]]') == 2
    table.work()
    assert len(table.failures()) == len(errors)
    for reason, count in reasons.items():
        assert retried(reason=reason) == count
    table.encoder.before = lambda texts: None
    table.work()
    assert (table.failures(), len(table.true_ids())) == ({}, len(errors) + 1)


def test_failures_of_deleted_rows_are_forgotten(table: Table) -> None:
    table.insert("bad")
    table.encoder.before = Sometimes(bad="bad", error=ValueError("bad text"))
    table.work()
    table.conn.execute("DELETE FROM product")
    table.work()
    assert table.failures() == {}


def test_broken_pictures_missing_files_and_paths_outside_the_root_fail_alone(table: Table, tmp_path: Path) -> None:
    root = tmp_path / "media"
    root.mkdir()
    (root / "red.png").write_bytes(picture("red"))
    (root / "cut.png").write_bytes(picture("red")[:40])
    (tmp_path / "secret.png").write_bytes(picture("blue"))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    paths = ["red.png", "cut.png", "none.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "", None]
    table.conn.execute("CREATE TABLE photo (id integer PRIMARY KEY, path text, bytes bytea)")
    for number, path in enumerate(paths):
        table.conn.execute("INSERT INTO photo VALUES (%s, %s)", [number, path])
    table.conn.execute(
        """SELECT pgembed.attach('photo', 'vector', 'fake', '{"image": {"column": "path", "as": "path"}}')"""
    )
    options = {"media": MediaPolicy(media_root=root), "max_attempts": 1}
    summary = table.work(**options)
    assert (summary.written, summary.failed) == (2, 5)
    assert table.conn.execute("SELECT id FROM photo WHERE vector IS NOT NULL").fetchall() == [(0,)]
    assert set(table.failures()) == {"1", "2", "3", "4", "5"}

    table.conn.execute("SELECT pgembed.attach('photo', 'of_bytes', 'fake', '{\"image\": \"bytes\"}')")
    for number, content in enumerate([picture("red"), picture("red")[:40], b"", b"not a picture", None]):
        table.conn.execute("UPDATE photo SET bytes = %s WHERE id = %s", [content, number])
    table.work(**options)
    assert table.conn.execute("SELECT id FROM photo WHERE of_bytes IS NOT NULL").fetchall() == [(0,)]


@pytest.mark.column_only
def test_a_row_that_the_database_refuses_fails_alone(table: Table) -> None:
    table.conn.execute("SELECT pgembed.detach('product')")
    table.insert("red shoe", "refused", "blue car", "kept", "checked")
    table.attach()
    table.conn.execute("ALTER TABLE product ADD CHECK (title <> 'checked' OR embedding IS NULL)")
    table.conn.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.title = 'refused' THEN RAISE EXCEPTION 'row % is final', NEW.id; END IF;
            IF NEW.title = 'kept' THEN RETURN NULL; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON product FOR EACH ROW EXECUTE FUNCTION refuse();
        """
    )
    summary = table.work(max_attempts=1)
    assert (summary.written, summary.failed) == (2, 3)
    assert table.true_ids() == [1, 3]
    failures = table.failures()
    assert failures["2"] == "row 2 is final"
    assert failures["4"] == "A trigger of public.product kept the row as it was."
    assert "violates check constraint" in failures["5"]


@soon
def test_transient_failures_back_off_and_end_in_a_failure(table: Table) -> None:
    table.insert("red shoe", "bad")
    table.encoder.before = broken = Sometimes(bad="bad", error=ConnectionError("no route"))
    table.worker().run("once")
    attempts, error, later = table.conn.execute(
        "SELECT attempts, error, available_at > now() - interval '1 s' FROM pgembed.job_1"
    ).fetchall()[0]
    assert (attempts, error, later) == (1, "no route", True)
    assert table.failures() == {}
    table.work(max_attempts=3)
    assert table.failures() == {"2": "no route"}
    assert table.conn.execute("SELECT attempts FROM pgembed.failures").fetchone() == (3,)
    assert broken.calls < 20


def test_backoff_doubles(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.worker.write.random.uniform", lambda low, high: (low + high) / 2)
    table.insert("bad")
    table.encoder.before = Sometimes(bad="bad", error=ConnectionError("no route"))
    waits: list[float] = []
    for _ in range(3):
        table.worker().run("once")
        (wait,) = table.conn.execute(
            "SELECT extract(epoch FROM available_at - clock_timestamp())::float8 FROM pgembed.job_1"
        ).fetchall()[0]
        waits.append(wait)
        table.conn.execute("UPDATE pgembed.job_1 SET available_at = now()")
    np.testing.assert_allclose(waits, [1, 2, 4], atol=0.5)


# An encoder at fault


Vectors = NDArray[np.float32]
NOT_FINITE: Callable[[Vectors], Vectors] = lambda vectors: vectors * np.nan  # noqa: E731
NARROW: Callable[[Vectors], Vectors] = lambda vectors: vectors[:, 1:]  # noqa: E731


@soon
@pytest.mark.parametrize(
    ("trouble", "message"),
    [("raises", "the model is on fire"), ("nan", "not finite"), ("narrow", r"shape \(2, 7\)")],
)
def test_a_broken_encoder_marks_nothing_failed(table: Table, trouble: str, message: str) -> None:
    table.insert("red shoe", "blue car")
    broken = Sometimes(times=10**9)
    if trouble == "raises":
        table.encoder.before = broken
    else:
        table.encoder.after = {"nan": NOT_FINITE, "narrow": NARROW}[trouble]
    with pytest.raises(EncoderError, match=message):
        table.work()
    assert table.failures() == {}
    assert table.conn.execute("SELECT attempts, claimed_until FROM pgembed.job_1").fetchall() == [(0, None)] * 2
    table.encoder.before, table.encoder.after = (lambda texts: None), (lambda vectors: vectors)
    assert table.work().written == 2


@soon
def test_an_encoder_that_comes_back_is_used_again(table: Table) -> None:
    table.insert("red shoe", "blue car")
    table.encoder.before = Sometimes(times=3)
    with table.working():
        until(lambda: table.true_ids() == [1, 2])
    assert table.failures() == {}


def test_a_batch_that_only_fails_together_is_done_in_parts(table: Table) -> None:
    def too_many(texts: Sequence[str]) -> None:
        if len(texts) > 3:
            raise MemoryError("out of memory")

    table.encoder.before = too_many
    table.conn.execute("INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(1, 16) AS i")
    assert table.work().written == 16


@soon
def test_one_embeddings_trouble_does_not_stop_another(table: Table) -> None:
    table.encoders["fake:broken"] = broken = FakeEncoder("broken")
    broken.before = Sometimes(times=10**9, error=KeyError("weights"))
    register(table.conn, "broken", broken)
    table.conn.execute("CREATE TABLE page (id integer PRIMARY KEY, title text)")
    table.conn.execute("""SELECT pgembed.attach('page', 'embedding', 'broken', '{"text": "title"}')""")
    table.conn.execute("INSERT INTO page VALUES (1, 'home')")
    with table.working():
        for title in ("red shoe", "blue car", "green tree"):
            table.insert(title)
            time.sleep(0.1)
        until(lambda: table.true_ids() == [1, 2, 3])
    assert table.failures() == {}
    with pytest.raises(EncoderError, match="weights"):
        table.worker().run("once")


@pytest.mark.parametrize(("what", "value"), [("fingerprint", "0" * 64), ("dimensions", 9), ("normalization", False)])
def test_an_encoder_unlike_the_registered_one_writes_nothing(table: Table, what: str, value: object) -> None:
    table.insert("red shoe")
    other = FakeEncoder()
    setattr(other, {"fingerprint": "fingerprint", "dimensions": "dim", "normalization": "normalized"}[what], value)
    table.encoders["fake:plain"] = other
    registered = {"fingerprint": hashlib.sha256(b"plain").hexdigest()[:12], "dimensions": DIM, "normalization": True}
    with pytest.raises(
        EncoderMismatch, match=f"has other {what} here .{str(value)[:12]}.*registered with .{registered[what]}.;"
    ):
        table.work()
    assert table.embedded_ids() == []
    assert table.failures() == {}


def test_an_encoder_that_cannot_be_loaded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> Encoder:
        raise OSError("weights.bin is not there")

    monkeypatch.setattr("pgembed.encoders.load_encoder", load)
    table.insert("red shoe")
    with pytest.raises(EncoderError, match=r"'fake' \(fake:plain\) could not be loaded: weights.bin"):
        table.worker().run("once")


# The database at fault


@soon
def test_a_worker_whose_connections_are_ended_goes_on(table: Table) -> None:
    def end_connections(texts: Sequence[str]) -> None:
        table.encoder.before = lambda texts: None
        table.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgembed worker'"
        )

    table.encoder.before = end_connections
    table.insert("red shoe", "blue car")
    with table.working():  # with a lease of a minute: what was in hand must be given back
        until(lambda: table.true_ids() == [1, 2], seconds=20)
        table.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgembed worker'"
        )
        table.insert("green tree")
        until(lambda: table.true_ids() == [1, 2, 3], seconds=20)


@soon
def test_a_database_that_stays_away_ends_a_run_to_idle_and_not_one_without_end(table: Table, database_dsn: str) -> None:
    away = make_conninfo(database_dsn, dbname="no_such_database")
    with pytest.raises(psycopg.OperationalError, match="no_such_database"):
        Worker(lambda: psycopg.connect(away)).run("until_idle")
    where = [away]
    worker = Worker(lambda: psycopg.connect(where[0]), WorkerOptions(poll=0.02))
    table.insert("red shoe")
    thread = threading.Thread(target=worker.run)
    thread.start()
    time.sleep(0.2)
    where[0] = database_dsn
    until(lambda: table.true_ids() == [1])
    worker.stop()
    thread.join(10)
    assert not thread.is_alive()


@soon
def test_a_worker_without_the_right_to_write_marks_nothing_failed(table: Table) -> None:
    table.conn.execute("DROP ROLE IF EXISTS pgembed_reader")
    table.conn.execute("CREATE ROLE pgembed_reader LOGIN")
    try:
        table.conn.execute("GRANT USAGE ON SCHEMA pgembed TO pgembed_reader")
        table.conn.execute("GRANT ALL ON ALL TABLES IN SCHEMA pgembed TO pgembed_reader")
        table.conn.execute("GRANT SELECT ON product TO pgembed_reader")
        table.insert("red shoe", "blue car")
        reader = Worker(lambda: psycopg.connect(make_conninfo(table.dsn, user="pgembed_reader")))
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table product"):
            reader.run("until_idle")
        assert table.failures() == {}
        assert table.conn.execute("SELECT count(*) FROM pgembed.job_1 WHERE claimed_until > now()").fetchone() == (0,)
        assert table.work().written == 2
    finally:
        table.conn.execute("DROP OWNED BY pgembed_reader")
        table.conn.execute("DROP ROLE pgembed_reader")


@soon
def test_a_table_that_is_locked_for_long_does_not_stop_another(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SESSION_SETTINGS, "lock_timeout", "100ms")
    table.conn.execute("CREATE TABLE page (id integer PRIMARY KEY, title text)")
    table.attach("page")
    table.conn.execute("INSERT INTO page VALUES (1, 'home')")
    with psycopg.connect(table.dsn) as other, table.working():
        other.execute("LOCK TABLE page")
        table.insert("red shoe")
        until(lambda: table.true_ids() == [1])
        other.rollback()
        until(
            lambda: table.conn.execute(f"SELECT count(embedding) FROM {table.rows('page')}".encode()).fetchone() == (1,)
        )
    assert table.failures() == {}


@soon
def test_a_statement_that_takes_too_long_is_told_and_costs_no_row(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here for a trigger on where the vectors go."""
    monkeypatch.setitem(SESSION_SETTINGS, "statement_timeout", "300ms")
    place = "product" if table.storage == "column" else "product_embedding"
    table.conn.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); END $$"
    )
    table.insert("red shoe")
    table.conn.execute(
        f"CREATE TRIGGER dawdle BEFORE INSERT OR UPDATE ON {place} FOR EACH ROW EXECUTE FUNCTION dawdle()".encode()
    )
    worker = table.worker()
    worker.state.log = log = Log()
    with table.running(worker):
        until(lambda: any("canceling statement due to statement timeout" in line for line in log.lines))
        assert all(line.startswith("embedding in trouble") for line in log.lines)
        table.conn.execute(f"DROP TRIGGER dawdle ON {place}".encode())
        until(lambda: table.true_ids() == [1])
        until(lambda: table.waiting() == 0)
    assert table.failures() == {}


@pytest.mark.column_only
def test_a_dropped_vector_column_is_the_embeddings_trouble(table: Table) -> None:
    table.insert("red shoe")
    table.conn.execute("ALTER TABLE product DROP COLUMN embedding")
    with pytest.raises(CatalogError, match=r"Table product has no vector column 'embedding'\."):
        table.work()
    assert table.failures() == {}


@pytest.mark.column_only
def test_a_vector_column_of_another_width_is_the_embeddings_trouble(table: Table) -> None:
    table.insert("red shoe", "blue car")
    table.conn.execute("ALTER TABLE product ALTER COLUMN embedding TYPE vector(9)")
    with pytest.raises(psycopg.errors.DataException, match="expected 9 dimensions, not 8"):
        table.work()
    assert table.failures() == {}


def test_a_value_that_cannot_be_read_fails_its_row_alone(table: Table) -> None:
    if table.conn.info.server_version < 180000:
        pytest.skip("generated columns that are computed when read came with PostgreSQL 18")
    table.conn.execute(
        "CREATE TABLE ratio (id integer PRIMARY KEY, n integer,"
        " share text GENERATED ALWAYS AS ((100 / n)::text) VIRTUAL)"
    )
    table.conn.execute("INSERT INTO ratio VALUES (1, 4), (2, 0), (3, 5)")
    table.conn.execute("""SELECT pgembed.attach('ratio', 'embedding', 'fake', '{"text": "share"}')""")
    table.work(max_attempts=1)
    assert table.conn.execute("SELECT id FROM ratio WHERE embedding IS NOT NULL ORDER BY id").fetchall() == [(1,), (3,)]
    assert table.failures() == {"2": "division by zero"}


def test_a_database_without_pgembed_is_told_of(bare_dsn: str) -> None:
    with pytest.raises(NotInstalled, match="pgembed install"):
        Worker(lambda: psycopg.connect(bare_dsn)).run("until_idle")


def test_a_model_that_fails_once_fails_no_row(table: Table) -> None:
    """As one may while it warms up: a row that is alone in its batch is tried once more before it is blamed."""
    left = [NOT_FINITE]
    table.encoder.after = lambda vectors: left.pop()(vectors) if left else vectors
    table.insert("red shoe")
    assert table.work().written == 1
    assert table.failures() == {}
    assert table.true_ids() == [1]
