"""A worker's three stages run side by side, and none gets further ahead than the queues between them hold.

Nothing here is a matter of time: the encoder and the writer wait until they are let go.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any, Self

import pytest

from pgembed.worker.load import Loader
from pgembed.worker.pipes import STAGE_DEPTH
from pgembed.worker.write import write_rows
from tests.fakes import Table, until

ROWS = 20  # more batches, of one row, than all queues hold
AHEAD = STAGE_DEPTH + 1  # batches of a stage that nobody takes: a queue full, and one in hand


class Gate:
    """Holds up whoever enters until it is let go, one at a time or for good."""

    def __init__(self) -> None:
        self.entered = 0
        self._passes = threading.Semaphore(0)

    def __call__(self, _texts: Sequence[str] = ()) -> None:
        self.entered += 1
        assert self._passes.acquire(timeout=60), "nobody let it go"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()  # where a test fails, too

    def let_go(self, times: int = 1000) -> None:
        """Let so many enter and leave."""
        self._passes.release(times)


class LoaderWatch:
    """How many batches were loaded each time that the loader came round: after each one, and while it waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded = 0
        self.seen: list[int] = []
        read, renew = Loader._batches, Loader._renew

        def count(loader: Loader, *arguments: Any) -> Any:  # noqa: ANN401
            self.loaded += 1
            return read(loader, *arguments)

        def look(loader: Loader) -> None:
            self.seen.append(self.loaded)
            renew(loader)

        monkeypatch.setattr(Loader, "_batches", count)
        monkeypatch.setattr(Loader, "_renew", look)

    def until_it_waits(self) -> int:
        """Wait until it came round three times, from now on, without another batch; returns how many it has loaded.

        Twice is not enough: once while it waited, just before there was room, and once when it had put its batch there.
        """
        start = len(self.seen)
        until(lambda: any(len(list(same)) > 2 for _, same in itertools.groupby(self.seen[start:])))
        return self.loaded


@pytest.fixture
def table(database: Any, database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Table:  # noqa: ANN401
    table = Table(database, database_dsn, monkeypatch)
    table.conn.execute("UPDATE pgembed.embedding SET state = 'ready'")
    table.conn.execute("INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(1, %s) AS i", [ROWS])
    return table


def test_batches_are_loaded_while_one_is_encoded_and_no_more_than_the_queue_holds(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.encoder.before = gate = Gate()
    loader = LoaderWatch(monkeypatch)
    with table.working(batch_size=1), gate:
        until(lambda: gate.entered == 1)
        assert loader.until_it_waits() == 1 + AHEAD
        gate.let_go(1)
        until(lambda: gate.entered == 2)
        assert loader.until_it_waits() == 2 + AHEAD
        assert table.conn.execute("SELECT count(claimed_until) FROM pgembed.job_1").fetchone() <= (2 + AHEAD,)
        gate.let_go()
        until(lambda: len(table.true_ids()) == ROWS)


def test_a_batch_is_written_while_the_next_is_encoded(table: Table) -> None:
    table.encoder.before = gate = Gate()
    with table.working(batch_size=1), gate:
        for number in range(1, 4):
            until(lambda number=number: gate.entered == number)
            until(lambda number=number: table.true_ids() == list(range(1, number)))
            gate.let_go(1)
        gate.let_go()
        until(lambda: len(table.true_ids()) == ROWS)


def test_batches_are_encoded_while_one_is_written_and_no_more_than_the_queue_holds(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    def write(*arguments: Any) -> int:  # noqa: ANN401
        gate()
        return write_rows(*arguments)

    monkeypatch.setattr("pgembed.worker.write.write_rows", write)
    loader = LoaderWatch(monkeypatch)
    with table.working(batch_size=1), gate:
        until(lambda: gate.entered == 1)
        until(lambda: len(table.encoder.seen) == 1 + AHEAD)
        assert loader.until_it_waits() == 1 + AHEAD + AHEAD
        assert len(table.encoder.seen) == 1 + AHEAD
        gate.let_go()
        until(lambda: len(table.true_ids()) == ROWS)


def test_a_worker_that_is_stopped_gives_back_what_its_queues_hold(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.encoder.before = gate = Gate()
    loader = LoaderWatch(monkeypatch)
    with table.working(batch_size=1) as worker, gate:
        until(lambda: gate.entered == 1)
        loader.until_it_waits()
        worker.stop()
        gate.let_go()
    assert table.true_ids() == [1]
    assert table.conn.execute("SELECT count(*), count(claimed_until) FROM pgembed.job_1").fetchone() == (ROWS - 1, 0)
