"""What the command worker tells while it runs: a bar on a terminal, lines of JSON elsewhere."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

from tests.fakes import Connection

ROOT = Path(__file__).parents[2]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def attach(database: Connection) -> None:
    """A table of products, with an embedding of their titles."""
    database.execute("CREATE TABLE product (id integer PRIMARY KEY, title text)")
    database.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    database.execute("""SELECT pgembed.attach('product', 'embedding', 'shop', '{"text": "title"}')""")


def command(dsn: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "pgembed.cli", "--dsn", dsn, "worker", "--until-idle", *options]


def test_off_a_terminal_each_batch_is_a_line_of_json_without_the_rows_texts(
    database: Connection, database_dsn: str
) -> None:
    attach(database)
    database.execute("INSERT INTO product SELECT i, 'red shoe of Rumpelstiltskin' FROM generate_series(1, 24) AS i")
    database.execute("INSERT INTO product VALUES (25, '☃☃☃')")  # of no known word: its error names it
    done = subprocess.run(
        command(database_dsn, "--batch-size", "10"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["worker starts", "batch", "batch", "batch", "worker leaves"]
    facts = {"event", "level", "timestamp", "embedding", "written", "failed", "skipped", "left", "rows_per_second"}
    batches = lines[1:-1]
    assert all(set(batch) == facts for batch in batches)
    assert {batch["embedding"] for batch in batches} == {"public.product.embedding"}
    assert sum(batch["written"] for batch in batches) == 24
    assert sum(batch["failed"] for batch in batches) == 1
    assert sum(batch["written"] + batch["failed"] + batch["skipped"] for batch in batches) == 25
    assert [batch["left"] for batch in batches] == [15, 5, 0]
    assert all(batch["rows_per_second"] > 0 for batch in batches)
    assert (lines[-1]["written"], lines[-1]["failed"]) == (24, 1)
    assert "rumpelstiltskin" not in done.stderr.lower()
    assert "☃" not in done.stderr
    assert "\\u2603" not in done.stderr
    assert done.stdout == ""


def test_on_a_terminal_a_bar_shows_how_far_it_is_how_fast_and_how_long_it_will_take(
    database: Connection, database_dsn: str
) -> None:
    attach(database)
    database.execute("INSERT INTO product SELECT i, 'red shoe number ' || i FROM generate_series(1, 5000) AS i")
    shown = on_a_terminal(command(database_dsn, "--batch-size", "20"))
    frames = re.findall(
        r"public\.product\.embedding \S+ +(\d+)/(\d+) +(?:([\d,]+)/s +)?(\d+:\d\d:\d\d) (-:--:--|\d+:\d\d:\d\d)", shown
    )
    assert len(frames) > 1, shown
    assert {total for _, total, *_ in frames} == {"5000"}
    done = [int(number) for number, *_ in frames]
    assert done == sorted(done)
    assert done[-1] == 5000
    under_way = [(rate, left) for number, _, rate, _, left in frames if 0 < int(number) < 5000]
    assert any(rate and left != "-:--:--" for rate, left in under_way), shown
    assert "{" not in shown, "lines of JSON on a terminal"
    assert "5,000 rows are encoded." in shown


def on_a_terminal(arguments: list[str]) -> str:
    """What a command shows on a terminal of 120 columns, without the codes that move and colour it."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    with subprocess.Popen(arguments, cwd=ROOT, stdin=its, stdout=its, stderr=its, env=plain | {"TERM": "xterm"}) as run:
        os.close(its)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                part = b""
            if not part:
                break
            shown += part
    os.close(ours)
    text = ESCAPES.sub("", shown.decode())
    assert run.returncode == 0, text
    return text
