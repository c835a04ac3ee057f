"""A worker's port: /healthz for probes, /metrics for Prometheus."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

import psycopg
import pytest

from pgembed.errors import InvalidInput, MissingExtra, PgembedError
from pgembed.worker import Worker
from pgembed.worker.metrics import SILENCE, serving_metrics
from tests.fakes import Connection, Table, until

pytest.importorskip("prometheus_client")


@pytest.fixture
def table(database: Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(database, database_dsn, monkeypatch)


class Port:
    """What is asked of it, and what it answers."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.number}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def figures(self) -> dict[str, float]:
        """Every figure of /metrics, by its name and labels."""
        status, text = self.get("/metrics")
        assert status == 200
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}


@pytest.fixture
def worker(table: Table) -> Worker:
    return table.worker()


@pytest.fixture
def port(worker: Worker) -> Iterator[Port]:
    with serving_metrics(worker.state, worker.connect, "127.0.0.1", 0) as number:
        yield Port(number)


NAME = '{embedding="public.product.embedding"}'


def of_rows(outcome: str) -> str:
    return f'pgembed_worker_rows_total{{embedding="public.product.embedding",outcome="{outcome}"}}'


def test_what_became_of_the_rows_is_counted(table: Table, worker: Worker, port: Port) -> None:
    def refuse(texts: Sequence[str]) -> None:
        if "bad" in texts:
            raise InvalidInput("It is bad.")

    table.encoder.before = refuse
    table.insert("red shoe", "bad", "blue car")
    before = port.figures()
    assert before[f"pgembed_queue_rows{NAME}"] == 3
    assert of_rows("written") not in before
    worker.run("until_idle")
    figures = port.figures()
    assert figures[of_rows("written")] == 2
    assert figures[of_rows("failed")] == 1
    assert figures[f"pgembed_failed_rows{NAME}"] == 1
    assert figures[f"pgembed_queue_rows{NAME}"] == 0
    assert figures["pgembed_worker_encode_seconds_total"] > 0
    assert figures["pgembed_database_up"] == 1
    table.insert("green tree")
    worker.run("until_idle")
    assert port.figures()[of_rows("written")] == 3  # it goes on over several runs


def test_how_long_the_oldest_change_waits_is_told(table: Table, port: Port) -> None:
    table.insert("red shoe")
    table.conn.execute("UPDATE pgembed.change_1 SET changed_at = now() - interval '1 hour'")
    assert 3600 <= port.figures()[f"pgembed_queue_oldest_seconds{NAME}"] < 3700


def test_figures_come_without_a_database(table: Table, worker: Worker) -> None:
    def refuse() -> psycopg.Connection[object]:
        raise psycopg.OperationalError("it is away")

    with serving_metrics(worker.state, refuse, "127.0.0.1", 0) as number:
        figures = Port(number).figures()
    assert figures["pgembed_database_up"] == 0
    assert figures["pgembed_worker_healthy"] == 1


def test_a_worker_that_comes_round_is_healthy_and_one_that_is_silent_is_not(worker: Worker, port: Port) -> None:
    status, text = port.get("/healthz")
    assert (status, json.loads(text)["status"]) == (200, "ok")
    worker.state.seen_at = time.monotonic() - SILENCE - 1
    status, text = port.get("/healthz")
    assert (status, json.loads(text)["status"]) == (503, "stuck")
    worker.state.loading = "clip"
    assert port.get("/healthz")[0] == 200
    worker.run("until_idle")
    worker.state.loading = None
    assert port.get("/healthz")[0] == 200


def test_a_lost_database_is_told(table: Table, worker: Worker, port: Port) -> None:
    worker.state.lost = "the server went away"
    status, text = port.get("/healthz")
    assert (status, json.loads(text)["database"]) == (503, "the server went away")
    worker.run("until_idle")
    assert port.get("/healthz")[0] == 200


def test_an_embedding_in_trouble_is_told_and_others_go_on(table: Table, worker: Worker, port: Port) -> None:
    def break_down(texts: Sequence[str]) -> None:
        raise RuntimeError("no memory left")

    table.encoder.before = break_down
    table.insert("red shoe")
    with table.working() as running, serving_metrics(running.state, running.connect, "127.0.0.1", 0) as number:
        until(lambda: running.state.troubles())
        status, text = Port(number).get("/healthz")
        assert status == 200
        assert "no memory left" in json.loads(text)["troubles"]["public.product.embedding"]
        assert Port(number).figures()[f"pgembed_worker_trouble{NAME}"] == 1


def test_other_paths_say_what_there_is(port: Port) -> None:
    assert port.get("/") == (404, "/metrics and /healthz are here\n")


def test_a_port_that_is_taken_is_refused_with_the_way_out(worker: Worker, port: Port) -> None:
    with (
        pytest.raises(PgembedError, match="cannot be had"),
        serving_metrics(worker.state, worker.connect, "127.0.0.1", port.number),
    ):
        pass


def test_without_the_extra_it_says_which(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with (
        pytest.raises(MissingExtra, match="'metrics'"),
        serving_metrics(worker.state, worker.connect, "127.0.0.1", 0),
    ):
        pass


def test_the_command_answers_while_it_works(table: Table) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = Port(free.getsockname()[1])
    command = [sys.executable, "-m", "pgembed.cli", "worker", "--metrics-port", str(port.number)]
    environment = {**os.environ, "PGEMBED_DSN": table.dsn}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            until(lambda: answers(port))
            assert "pgembed_worker_healthy 1.0" in port.get("/metrics")[1]
        finally:
            process.terminate()
        assert process.wait(30) == 0


def answers(port: Port) -> bool:
    try:
        return port.get("/healthz")[0] == 200
    except OSError:
        return False


def test_a_size_that_is_none_is_wrong_usage(table: Table) -> None:
    command = [sys.executable, "-m", "pgembed.cli", "worker", "--max-memory", "much"]
    ran = subprocess.run(command, env={**os.environ, "PGEMBED_DSN": table.dsn}, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "--max-memory is 'much'" in ran.stderr
