"""Workers as processes: killed with -9 between every two stages, slow, hung, with other clocks and other encoders."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from pgembed.errors import EncoderTimeout
from tests.fakes import Connection, FakeEncoder, Table, until
from tests.faults import Workers, alive, assert_table_kept, audit
from tests.proxy import MOMENTS, Moment, Pair, Proxy


@pytest.fixture(scope="module")
def forks() -> Iterator[Workers]:
    with Workers.ready() as workers:
        yield workers


@pytest.fixture
def workers(forks: Workers, database: Connection) -> Iterator[Workers]:
    """Makes workers; those that a test leaves are killed before its database is dropped."""
    yield forks
    forks.kill_all()


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch, storage: str) -> Table:
    made = Table(database, database_dsn, monkeypatch, storage)
    audit(database, storage)

    def refuse(texts: Sequence[str]) -> None:
        if "bad" in texts:
            raise ValueError("bad is refused")

    made.encoder.before = refuse
    return made


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_worker_that_is_killed_leaves_nothing_undone(table: Table, workers: Workers, moment: Moment) -> None:
    table.insert("red shoe", "blue car", "bad", None)
    with Proxy.before(table.dsn) as proxy:
        pids: list[int] = []

        def kill(pair: Pair) -> None:
            until(lambda: pids)  # it may be quicker than this test
            os.kill(pids[0], 9)
            pair.cut()

        proxy.at(moment, kill)
        pids.append(workers.start(proxy.dsn, options={"lease": 0.3}, bad="bad"))
        assert proxy.reached.wait(10)
        workers.join(pids[0])
    table.conn.execute("UPDATE product SET title = 'blue boat' WHERE id = 2")
    table.work()
    assert_table_kept(table, failed={"3": "bad is refused"})


def test_workers_that_are_killed_again_and_again(table: Table, workers: Workers) -> None:
    """At moments that nobody chose, three beside each other, while rows come and change."""
    pids = [workers.start(table.dsn, options={"lease": 0.2, "batch_size": 3}, seconds=0.02) for _ in range(3)]
    ends = time.monotonic() + 3
    number = 0
    while time.monotonic() < ends:
        number += 1
        table.insert(f"shoe {number}")
        table.conn.execute("UPDATE product SET title = title || ' again' WHERE id = %s", [number // 2])
        if number % 10 == 0:
            workers.kill(pids.pop(0))
            pids.append(workers.start(table.dsn, options={"lease": 0.2, "batch_size": 3}, seconds=0.02))
    for pid in pids:
        workers.kill(pid)
    table.work()
    assert len(table.true_ids()) == number
    assert_table_kept(table)


def test_a_worker_that_was_only_slow_writes_nothing_twice(table: Table, workers: Workers) -> None:
    """It stands still in the middle of a batch, as on a machine that was put to sleep, until its lease is long over."""
    table.insert("red shoe", "blue car", "green tree")
    slow = workers.start(table.dsn, options={"lease": 0.3}, seconds=0.5)
    until(lambda: table.conn.execute("SELECT claimed FROM pgembed.status").fetchone() == (3,))
    os.kill(slow, 19)  # SIGSTOP
    table.work()
    assert_table_kept(table)
    table.conn.execute("UPDATE product SET title = 'black cat' WHERE id = 1; DELETE FROM product WHERE id = 2")
    table.work()
    os.kill(slow, 18)  # SIGCONT
    table.insert("white dog")
    until(lambda: table.true_ids() == [1, 3, 4])
    time.sleep(0.6)
    assert_table_kept(table)
    workers.kill(slow)


@pytest.mark.parametrize("clock", [-3600.0, 3600.0])
def test_clocks_that_differ_by_an_hour(table: Table, workers: Workers, clock: float) -> None:
    """Leases and waits go by the server's clock: another's job is not taken up early, nor left for an hour."""
    table.insert("red shoe", "blue car")
    holder = workers.start(table.dsn, options={"lease": 2}, seconds=60)
    until(lambda: table.conn.execute("SELECT claimed FROM pgembed.status").fetchone() == (2,))
    ahead = workers.start(table.dsn, options={"lease": 2}, bad="bad", clock=clock)
    time.sleep(0.5)
    assert table.embedded_ids() == []  # the lease holds
    workers.kill(holder)
    table.insert("green tree", "bad")
    until(lambda: table.true_ids() == [1, 2, 3], seconds=10)
    until(lambda: table.failures() == {"4": "bad is refused"})
    until(lambda: table.waiting() == 0)
    workers.kill(ahead)
    assert_table_kept(table, failed={"4": "bad is refused"})


def test_two_workers_with_different_encoders_under_one_name(table: Table, workers: Workers) -> None:
    """One has other weights than those registered: it writes nothing, claims nothing for long, and holds up nobody."""
    table.insert("red shoe", "blue car")
    other = workers.start(table.dsn, options={"lease": 60}, name="other")
    time.sleep(1)
    assert table.embedded_ids() == []
    right = workers.start(table.dsn, options={"lease": 60})
    for number in range(20):
        table.insert(f"shoe {number}")
    until(lambda: table.true_ids() == list(range(1, 23)))
    assert alive(other)
    workers.kill(other)
    until(lambda: table.waiting() == 0)
    workers.kill(right)
    assert_table_kept(table)


def test_an_encoder_registered_anew_under_a_worker(table: Table, workers: Workers) -> None:
    """A worker that runs with the weights of before stops writing when others are registered."""
    table.insert("red shoe")
    old = workers.start(table.dsn)
    until(lambda: table.true_ids() == [1])
    new = FakeEncoder("new")
    table.conn.execute("UPDATE pgembed.encoder SET fingerprint = %s", [new.fingerprint])
    time.sleep(2.5)  # until it looks at the catalog again
    table.insert("blue car")
    time.sleep(0.5)
    assert table.embedded_ids() == [1]
    table.encoders["fake:plain"] = new
    table.work()
    workers.kill(old)
    assert_table_kept(table)


HUNG = """
import sys, time
import pgembed.encoders
from tests.fakes import FakeEncoder
from pgembed.cli.main import main

encoder = FakeEncoder()
encoder.before = lambda texts: time.sleep(3600) if "endless" in texts else None
pgembed.encoders.load_encoder = lambda *_, **__: encoder
sys.argv = ["pgembed", "--dsn", sys.argv[1], "worker", "--encode-timeout", "1"]
main()
"""


def test_an_encoder_that_never_returns_ends_its_worker_with_an_error(table: Table) -> None:
    """So that who looks after it starts another, its rows are free at once, and nobody thinks that all is well."""
    table.insert("red shoe", "endless")
    done = subprocess.run([sys.executable, "-c", HUNG, table.dsn], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "Encoder 'fake:plain' has not returned from a batch of 2 rows of public.product.embedding" in done.stderr
    assert table.conn.execute("SELECT claimed FROM pgembed.status").fetchone() == (0,)
    assert table.failures() == {}
    table.work()
    assert_table_kept(table)


def test_a_row_at_which_the_encoder_hangs_is_given_up_when_it_was_alone(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgembed.worker.watch.random.uniform", lambda low, high: 0.01)
    table.insert("endless", "red shoe", "blue car")
    over = threading.Event()
    table.encoder.before = lambda texts: over.wait(60) if "endless" in texts else None
    ended = 0
    while table.waiting():
        try:
            table.work(batch_size=1, encode_timeout=0.3, max_attempts=3)
        except EncoderTimeout:
            ended += 1
    assert ended == 3
    assert_table_kept(table, failed={"1": "The encoder did not return within 0.3 seconds."})
    over.set()


def test_an_embedding_detached_while_its_rows_are_encoded_for_long(table: Table) -> None:
    """Longer than the lease is renewed after: the worker goes on with others."""
    table.conn.execute("CREATE TABLE page (id integer PRIMARY KEY, title text)")
    table.attach("page")
    for number in range(1, 9):
        table.conn.execute("INSERT INTO page VALUES (%s, 'home')", [number])
    encoding, over = threading.Event(), threading.Event()

    def wait(texts: Sequence[str]) -> None:
        if "home" in texts:
            encoding.set()
            over.wait(30)

    table.encoder.before = wait
    with table.working(batch_size=1, lease=0.3):
        assert encoding.wait(10)
        time.sleep(0.3)
        table.conn.execute("SELECT pgembed.detach('page')")
        time.sleep(0.5)
        over.set()
        table.insert("red shoe")
        until(lambda: table.true_ids() == [1])
    assert_table_kept(table)
