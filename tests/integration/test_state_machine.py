"""All operations and faults in any order: once nothing waits, everything must be as tests/faults.py says.

The orders that are tried come from SEEDS, which are kept; ``--long HOURS`` goes on with others and prints each. A
failure prints its steps and its seed: put the seed into SEEDS.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from numpy.typing import NDArray

from pgembed.embedded import EmbeddedServer
from pgembed.encoders import load_encoder
from pgembed.worker import Worker, WorkerOptions
from tests.conftest import new_database, new_template
from tests.fakes import FakeEncoder, Words, deadlocks, register, until, use_splitters, vector_of
from tests.faults import Workers, alive, assert_kept, audit_jobs, crash, lasting_server, restart

SEEDS = (1, 2, 3, 4)
EXAMPLES, STEPS = 4, 25
REFUSED = "ᚠ"  # FakeEncoder is told to refuse it, and builtin:lite knows no word of it
ENDLESS = "white dog"  # some workers never return from it
LEASE = 0.2
PARTITIONS = (
    ("product_low", "FOR VALUES FROM (MINVALUE) TO (6)"),
    ("product_high", "FOR VALUES FROM (6) TO (MAXVALUE)"),
)

KEYS = st.integers(1, 12)
TITLES = st.sampled_from(["red shoe", "blue car", "green tree", ENDLESS, "black cat", None, " ", REFUSED])
BUSY = psycopg.errors.LockNotAvailable  # somebody holds it: then not


class Faults(RuleBasedStateMachine):
    """A table ``product(id, title)`` with an embedding, a transaction beside, and workers that come and go."""

    server: ClassVar[EmbeddedServer]
    template: ClassVar[str]
    forks: ClassVar[Workers]
    load: ClassVar[Callable[[FakeEncoder], None]]

    @initialize(
        storage=st.sampled_from(["column", "side", "parts"]),
        mode=st.sampled_from(["queue", "instant"]),
        stale=st.sampled_from(["keep", "null"]),
        partitioned=st.booleans(),
        rows=st.integers(0, 20),
        workers=st.integers(0, 2),
    )
    def begin(self, storage: str, mode: str, stale: str, partitioned: bool, rows: int, workers: int) -> None:
        self.making: Iterator[str] = new_database(self.server.dsn(), self.template)
        self.dsn = next(self.making)
        self.mode, self.stale, self.text, self.number = mode, stale, "title", 0
        self.partitioned = partitioned
        self.pids: list[int] = []
        self.connect()
        self.encoder = FakeEncoder()
        self.encoder.before = self.refuse
        self.load(self.encoder)
        register(self.conn, "fake", self.encoder)
        self.conn.execute("SELECT pgembed.add_encoder('lite', 'builtin:lite')")
        kind = " PARTITION BY RANGE (id)" if partitioned else ""
        self.conn.execute(f"CREATE TABLE product (id integer PRIMARY KEY, title text, spare text){kind}".encode())
        for name, bounds in PARTITIONS if partitioned else ():
            self.conn.execute(f"CREATE TABLE {name} PARTITION OF product {bounds}".encode())
        self.conn.execute("INSERT INTO product SELECT i, 'shoe ' || i FROM generate_series(1, %s) AS i", [rows])
        self.attach(storage)
        for _ in range(workers):
            self.start_worker(size=3, seconds=0.01, clock=0.0, spoilt="", hang="", name="plain")

    def attach(self, storage: str) -> None:
        """In a column, beside it, or beside it in parts, which instant mode does not make."""
        if self.mode == "instant":
            storage = storage.replace("parts", "side")
        stale = self.stale if storage == "column" and self.mode == "queue" else "keep"
        self.conn.execute(
            "SELECT pgembed.attach('product', 'embedding', %s, jsonb_build_object('text', %s::text), storage => %s,"
            " mode => %s, stale => %s, parts => %s)",
            [
                "lite" if self.mode == "instant" else "fake", self.text, storage.replace("parts", "side"), self.mode,
                stale, "words" if storage == "parts" else None,
            ],
        )  # fmt: skip
        audit_jobs(self.conn, storage)
        self.storage = storage

    def connect(self) -> None:
        """Both in this one thread: neither ever waits for the other without an end, so all deadlocks are a worker's."""
        self.conn = psycopg.connect(self.dsn, autocommit=True)
        self.beside = psycopg.connect(self.dsn)
        for conn in (self.conn, self.beside):
            conn.execute("SET lock_timeout = '150ms'; SET deadlock_timeout = '50ms'")
        self.beside.commit()

    @staticmethod
    def refuse(texts: Sequence[str]) -> None:
        if REFUSED in texts:
            raise ValueError(f"{REFUSED} is refused")

    def run(self, statement: str, *values: object, conn: psycopg.Connection[Any] | None = None) -> None:
        """A statement; ``{text}`` stands for the input's column, ``{other}`` for one that is none."""
        conn = conn or self.conn
        statement = statement.replace("{other}", "title" if self.text == "spare" else "spare")
        try:
            conn.execute(statement.replace("{text}", self.text).encode(), values or None)
        except BUSY:
            conn.rollback()

    # What an application does

    @rule(key=KEYS, title=TITLES)
    def insert(self, key: int, title: str | None) -> None:
        self.run("INSERT INTO product (id, {text}) VALUES (%s, %s) ON CONFLICT DO NOTHING", key, title)

    @rule(key=KEYS, title=TITLES)
    def upsert(self, key: int, title: str | None) -> None:
        self.run(
            "INSERT INTO product (id, {text}) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET {text} = excluded.{text}",
            key,
            title,
        )

    @rule(key=KEYS, title=TITLES, matched=st.sampled_from(["UPDATE SET {text} = w.title", "DELETE"]))
    def merge(self, key: int, title: str | None, matched: str) -> None:
        self.run(
            "MERGE INTO product AS p USING (VALUES (%s::int, %s::text), (%s, 'a merged lamp')) AS w (id, title)"
            f" ON p.id = w.id WHEN MATCHED THEN {matched}"
            " WHEN NOT MATCHED THEN INSERT (id, {text}) VALUES (w.id, w.title)",
            *(key, title, key % 12 + 1),
        )

    @rule(first=st.integers(70, 90), titles=st.lists(TITLES, min_size=1, max_size=5))
    def copy(self, first: int, titles: list[str | None]) -> None:
        try:
            with self.conn.cursor().copy(f"COPY product (id, {self.text}) FROM STDIN".encode()) as copy:
                for number, title in enumerate(titles, start=first):
                    copy.write_row((number, title))
        except (BUSY, psycopg.errors.UniqueViolation):
            pass

    @rule(key=KEYS, title=TITLES)
    def update(self, key: int, title: str | None) -> None:
        self.run("UPDATE product SET {text} = %s WHERE id = %s", title, key)

    @rule()
    def update_all(self) -> None:
        self.number += 1
        self.run("UPDATE product SET {text} = {text} || ' ' || %s::text WHERE {text} <> %s", self.number, REFUSED)

    @rule(key=KEYS)
    def update_of_no_input(self, key: int) -> None:
        self.run("UPDATE product SET {other} = 'a lamp' WHERE id = %s", key)

    @rule(key=KEYS)
    def delete(self, key: int) -> None:
        self.run("DELETE FROM product WHERE id = %s", key)

    @rule(key=KEYS, title=TITLES)
    def delete_and_put_back(self, key: int, title: str | None) -> None:
        self.run("DELETE FROM product WHERE id = %s", key)
        self.insert(key, title)

    @rule(key=KEYS, other=KEYS)
    def change_key(self, key: int, other: int) -> None:
        self.run(
            "UPDATE product SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM product WHERE id = %s)",
            *(other, key, other),
        )

    @rule()
    def truncate(self) -> None:
        self.run("TRUNCATE product")

    @rule(first=st.integers(20, 60))
    def insert_many(self, first: int) -> None:
        self.run(
            "INSERT INTO product (id, {text}) SELECT i, 'lamp ' || i FROM generate_series(%s::int, %s::int) AS i"
            " ON CONFLICT DO NOTHING",
            *(first, first + 30),
        )

    @rule(key=KEYS, title=TITLES, level=st.sampled_from(list(psycopg.IsolationLevel)[1:]))
    def change_and_wait(self, key: int, title: str | None, level: psycopg.IsolationLevel) -> None:
        """In a transaction that commits later, or never."""
        if self.beside.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self.beside.isolation_level = level
        try:
            self.run("UPDATE product SET {text} = %s WHERE id = %s", title, key, conn=self.beside)
            self.run("DELETE FROM product WHERE id = %s", key % 12 + 1, conn=self.beside)
        except psycopg.errors.SerializationFailure:
            self.beside.rollback()

    @rule(title=TITLES, level=st.sampled_from(list(psycopg.IsolationLevel)[1:]))
    def insert_and_wait(self, title: str | None, level: psycopg.IsolationLevel) -> None:
        """A row that nobody else writes: at no level is there a reason to refuse it."""
        if self.beside.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self.beside.isolation_level = level
        self.number += 1
        self.run("INSERT INTO product (id, {text}) VALUES (%s, %s)", 1000 + self.number, title, conn=self.beside)

    @rule(commits=st.booleans())
    def end_transaction(self, commits: bool) -> None:
        try:
            self.beside.commit() if commits else self.beside.rollback()
        except psycopg.errors.SerializationFailure:
            self.beside.rollback()

    @rule(key=KEYS, title=TITLES)
    def bulk_load(self, key: int, title: str | None) -> None:
        self.conn.execute("SET pgembed.instant = 'off'")
        self.upsert(key, title)
        self.conn.execute("RESET pgembed.instant")

    @rule(key=KEYS, title=TITLES)
    def what_no_trigger_sees(self, key: int, title: str | None) -> None:
        self.conn.execute("SET session_replication_role = replica")
        self.insert(key, title)
        self.delete(key % 12 + 1)
        self.conn.execute("RESET session_replication_role")
        self.run("SELECT pgembed.reconcile('product')")
        self.unseen = True

    # What an operator does

    @rule()
    def pause(self) -> None:
        self.run("SELECT pgembed.pause('product')")

    @rule()
    def resume(self) -> None:
        self.run("SELECT pgembed.resume('product')")

    @rule()
    def retry(self) -> None:
        self.run("SELECT pgembed.retry('product')")

    @rule()
    def reconcile_all(self) -> None:
        self.run("SELECT pgembed.reconcile('product', \"where\" => 'true')")

    @rule()
    def sync(self) -> None:
        self.run("SELECT pgembed.sync('product')")

    @rule(storage=st.sampled_from(["column", "side", "parts"]))
    def detach_and_attach(self, storage: str) -> None:
        """With vectors in another place, or in the same."""
        if self.beside.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            return
        before = self.storage
        try:
            with self.conn.transaction():
                if before == "column":
                    # DROP TRIGGER alone locks partitions before their table, against the order of all others
                    self.conn.execute("LOCK TABLE product IN ACCESS EXCLUSIVE MODE")
                    self.conn.execute("DROP TRIGGER audit ON product")  # which would hold the column
                self.conn.execute("SELECT pgembed.detach('product')")
                self.attach(storage)
        except BUSY:
            self.storage = before

    @rule(key=KEYS, title=TITLES)
    def unhook_change_and_sync(self, key: int, title: str | None) -> None:
        try:
            with self.conn.transaction():
                self.conn.execute("SELECT pgembed.unhook('product')")
                self.conn.execute(f"UPDATE product SET {self.text} = %s WHERE id = %s".encode(), [title, key])
                self.conn.execute("SELECT pgembed.sync('product')")
        except BUSY:
            pass

    @rule(which=st.sampled_from([0, 1]), title=TITLES)
    def take_partition_out_change_and_put_back(self, which: int, title: str | None) -> None:
        if not self.partitioned:
            return
        name, bounds = PARTITIONS[which]
        try:
            with self.conn.transaction():
                self.conn.execute(f"ALTER TABLE product DETACH PARTITION {name}".encode())
                self.conn.execute(f"UPDATE {name} SET {self.text} = %s WHERE id %% 3 = 0".encode(), [title])
                self.conn.execute(f"ALTER TABLE product ATTACH PARTITION {name} {bounds}".encode())
                self.conn.execute("SELECT pgembed.sync(%s::regclass)", [name])
        except BUSY:
            pass

    @rule()
    def rename_columns(self) -> None:
        """Another column has the input's name now."""
        if self.beside.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            return
        try:
            with self.conn.transaction():
                for before, after in (("title", "held"), ("spare", "title"), ("held", "spare")):
                    self.conn.execute(f"ALTER TABLE product RENAME {before} TO {after}".encode())
        except BUSY:
            return
        self.text = "spare" if self.text == "title" else "title"

    # What befalls workers

    @rule(
        size=st.integers(1, 5),
        seconds=st.sampled_from([0.0, 0.01, 0.1]),
        clock=st.sampled_from([0.0, 3600.0, -3600.0]),
        spoilt=st.sampled_from(["", "", "raises", "shape", "count", "nan"]),
        hang=st.sampled_from(["", "", ENDLESS]),
        name=st.sampled_from(["plain", "plain", "plain", "other"]),
    )
    def start_worker(self, size: int, seconds: float, clock: float, spoilt: str, hang: str, name: str) -> None:
        """One that is ``other`` has other weights than those registered, and must not write."""
        if len(self.pids) < 3:
            options = {"lease": LEASE, "batch_size": size, "sweep_every": 0.1}
            told = {"bad": REFUSED, "seconds": seconds, "clock": clock, "spoilt": spoilt, "hang": hang, "name": name}
            self.pids.append(self.forks.start(self.dsn, options=options, **told))

    @rule(which=st.integers(0, 2))
    def kill_worker(self, which: int) -> None:
        if which < len(self.pids) and alive(self.pids[which]):
            self.forks.kill(self.pids.pop(which))

    @rule(which=st.integers(0, 2), number=st.sampled_from([signal.SIGSTOP, signal.SIGCONT]))
    def stall_worker(self, which: int, number: int) -> None:
        """Its lease may run out while it stands still, in a transaction or not."""
        if which < len(self.pids) and alive(self.pids[which]):
            os.kill(self.pids[which], number)

    @rule()
    def cut_connections(self) -> None:
        self.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'pgembed worker' AND datname = current_database()"
        )

    @rule(end=st.sampled_from([restart, crash]))
    def end_server(self, end: Callable[[EmbeddedServer], None]) -> None:
        end(self.server)
        self.conn.close()
        self.beside.close()
        self.connect()

    @rule(seconds=st.sampled_from([0.02, 0.1, 0.3]))
    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    @rule()
    def settle(self) -> None:
        """Everything ends, and a worker does what is left: then all must be kept."""
        self.end_transaction(commits=True)
        assert all(map(alive, self.pids)), "a worker has ended by itself: its error stands in the output"
        for pid in self.pids:
            self.forks.kill(pid)
        self.pids.clear()
        self.cut_connections()  # of one that stood still in a transaction
        self.run("SELECT pgembed.resume('product')")
        if getattr(self, "unseen", False):
            self.run("SELECT pgembed.reconcile('product')")
            self.unseen = False
        until(lambda: Worker(lambda: psycopg.connect(self.dsn), WorkerOptions(poll=0.02)).run("until_idle") and True)
        keys = self.conn.execute(f"SELECT id FROM product WHERE {self.text} = %s".encode(), [REFUSED]).fetchall()
        reasons = dict(self.conn.execute("SELECT key ->> 0, error FROM pgembed.failure").fetchall())
        assert all(reasons.values())
        assert deadlocks(self.conn) == 0, told_of_deadlocks(self.server)
        assert_kept(
            self.conn,
            storage=self.storage,
            failed={str(key): reasons.get(str(key), "a reason") for (key,) in keys},
            encode=self.encode,
            text=self.text,
        )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self.mode == "instant":
            return load_encoder("builtin:lite").encode_text(list(texts))
        return np.stack([vector_of(text) for text in texts])

    def teardown(self) -> None:
        if not hasattr(self, "conn"):
            return
        try:
            self.settle()
        finally:
            self.forks.kill_all()
            self.beside.close()
            self.conn.close()
            for _ in self.making:
                pass


@pytest.fixture(scope="module")
def forks() -> Iterator[Workers]:
    with Workers.ready() as workers:
        yield workers


def told_of_deadlocks(server: EmbeddedServer) -> str:
    """What the server's log says of them: which statement waited for which."""
    log = server.log_file.read_text(errors="replace")
    return "\n".join(line[:2000] for line in re.findall(r"(?m)^.*deadlock detected\n(?:.*\n){1,12}", log)[-2:])


def try_orders(number: int, machine: type[Faults], steps: int) -> None:
    """Try the orders of one seed."""
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=True,
        phases=(Phase.generate,),  # a failure depends on time too: a shorter order of the same kind is not sought
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(type(f"Faults_{number}", (machine,), {})), settings=chosen)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with lasting_server() as server:
        yield server


@pytest.fixture(scope="module")
def own_template(server: EmbeddedServer) -> Iterator[str]:
    yield from new_template(server.dsn())


@pytest.fixture
def machine(server: EmbeddedServer, own_template: str, forks: Workers, monkeypatch: pytest.MonkeyPatch) -> type[Faults]:
    """The machine, for this server."""
    monkeypatch.setattr("pgembed.worker.state.TROUBLE_WAITS", (0.05, 0.1, 0.1, 0.1, 0.1))
    monkeypatch.setattr("pgembed.worker.run.TROUBLE_WAITS", (0.05, 0.1, 0.1, 0.1, 0.1))
    loaded: dict[str, FakeEncoder] = {}
    builtin = load_encoder

    def load(spec: str, *given: Any, **named: Any) -> object:  # noqa: ANN401
        return loaded[spec] if spec in loaded else builtin(spec, *given, **named)

    monkeypatch.setattr("pgembed.encoders.load_encoder", load)
    monkeypatch.setattr("pgembed.parts.splitters", lambda: use_splitters(words=Words))
    facts = {
        "server": server,
        "template": own_template,
        "forks": forks,
        "load": staticmethod(lambda encoder: loaded.update({encoder.spec: encoder})),
    }
    return type("OnThisServer", (Faults,), facts)


@pytest.mark.parametrize("number", SEEDS)
def test_all_operations_and_faults_in_any_order(machine: type[Faults], number: int) -> None:
    try_orders(number, machine, STEPS)


@pytest.mark.slow
def test_for_hours(request: pytest.FixtureRequest, machine: type[Faults], capsys: pytest.CaptureFixture[str]) -> None:
    hours: float = request.config.getoption("--long")
    if not hours:
        pytest.skip("for hours: pytest --long HOURS tests/integration/test_state_machine.py -k hours")
    ends = time.monotonic() + hours * 3600
    while time.monotonic() < ends:
        number = random.SystemRandom().randrange(1 << 32)
        with capsys.disabled():
            print(f"\nseed {number}", end="", flush=True)
        try_orders(number, machine, 4 * STEPS)
