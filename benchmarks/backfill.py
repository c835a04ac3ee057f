"""How fast does a worker fill a table? Pictures a second of all of it against the encoder alone.

    python -m benchmarks.backfill [--quick] [--json]

The photographs of PGEMBED_DATA/photos, repeated to 5,000 rows, and the emoji of openmoji, as bytea in tables, with
builtin:lite on one core. The encoder alone has the same pictures decoded and prepared in memory, on one core, in
batches of the same size: what the worker does besides (reading rows, decoding, preparing, writing vectors, the queue)
has the other core, which it shares with Postgres. Both take turns, a table at a time; the figure is the ratio of the
fastest table of each, since others on the machine only ever slow it. The worker's time is from its start to its end on
a table that was just attached; it has the encoder loaded.

"Encoder busy" is the share of the time in which the encoder had pictures to encode. "Undisturbed" is that share of what
it encodes a second of its own processor time: what a machine would do that does nothing else, and has a core for each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.common import Figure, Report, arguments, data, fresh_database, p50
from pgembed.encoders.builtin import LiteEncoder
from pgembed.media import decode_picture
from pgembed.worker import Worker

TARGET = 0.90
WARM_UP = 8  # rows
ALONE, WORKER = "the encoder alone", "the worker"


@dataclass(frozen=True)
class Pictures:
    """Files, and how many rows hold them: so many tables of so many rows each."""

    name: str
    files: Sequence[Path]
    tables: int
    rows: int

    def of_table(self, number: int) -> list[bytes]:
        """What the rows of a table hold: the files one after another, and again from the first."""
        places = range(number * self.rows, (number + 1) * self.rows)
        return [self.files[place % len(self.files)].read_bytes() for place in places]


def main() -> int:
    """Run it; gives the exit status."""
    options = arguments(__doc__)
    report = Report("backfill", as_json=options.json)
    folders = data("photos", "emoji/openmoji")
    photos, emoji = sorted(folders[0].glob("*.jpg")), sorted(folders[1].glob("*.png"))
    if options.quick:
        sets = (Pictures("photos", photos, 4, 160), Pictures("emoji", emoji, 4, 160))
    else:
        sets = (Pictures("photos", photos, 5, 1_000), Pictures("emoji", emoji, 4, len(emoji) // 4))
    encoder = LiteEncoder(threads=1)
    figures: list[Figure] = []
    for pictures in sets:
        with encoding() as busy:
            seconds = measure(encoder, pictures, busy)
        undisturbed = {
            how: pictures.rows * len(taken) / busy.processor[how] * busy.seconds[how] / sum(taken)
            for how, taken in seconds.items()
        }
        report.table(
            f"{pictures.name}: {pictures.tables} table(s) of {pictures.rows:,} rows",
            [
                {
                    "how": how,
                    "pictures/s": pictures.rows / min(taken),
                    "median": pictures.rows / p50(taken),
                    "total s": sum(taken),
                    "encoder busy": busy.seconds[how] / sum(taken),
                    "undisturbed": undisturbed[how],
                }
                for how, taken in seconds.items()
            ],
        )
        name = "ratio" if pictures.name == "photos" else pictures.name
        figures.append(Figure(name, min(seconds[ALONE]) / min(seconds[WORKER]), TARGET, at_least=True))
    return report.finish(*figures)


@dataclass
class Busy:
    """Seconds in which pictures were encoded, by who is at work."""

    now: str = ""
    seconds: dict[str, float] = field(default_factory=lambda: {"": 0.0, ALONE: 0.0, WORKER: 0.0})
    processor: dict[str, float] = field(default_factory=lambda: {"": 0.0, ALONE: 0.0, WORKER: 0.0})


@contextmanager
def encoding() -> Iterator[Busy]:
    """Take the time that the encoder works, also within a worker."""
    busy = Busy()
    embed = LiteEncoder.embed_pixels

    def timed(self: LiteEncoder, pixels: Sequence[Any]) -> Any:  # noqa: ANN401
        start, processor = time.perf_counter(), time.thread_time()
        try:
            return embed(self, pixels)
        finally:
            busy.seconds[busy.now] += time.perf_counter() - start
            busy.processor[busy.now] += time.thread_time() - processor

    LiteEncoder.embed_pixels = timed
    try:
        yield busy
    finally:
        LiteEncoder.embed_pixels = embed


def measure(encoder: LiteEncoder, pictures: Pictures, busy: Busy) -> dict[str, list[float]]:
    """Seconds that each table took, by both."""
    seconds: dict[str, list[float]] = {ALONE: [], WORKER: []}
    with fresh_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("""SELECT pgembed.add_encoder('lite', 'builtin:lite', settings => '{"threads": 1}')""")
        worker = Worker(lambda: psycopg.connect(dsn))
        fill(conn, "warm_up", pictures.of_table(0)[:WARM_UP])
        worker.run("until_idle")
        for number in range(pictures.tables):
            rows = pictures.of_table(number)
            pixels = [encoder.preprocess(decode_picture(row)) for row in rows]
            busy.now = ALONE
            start = time.perf_counter()
            for first in range(0, len(pixels), encoder.batch_size):
                encoder.embed_pixels(pixels[first : first + encoder.batch_size])
            seconds[ALONE].append(time.perf_counter() - start)
            del pixels
            fill(conn, f"picture_{number}", rows)
            busy.now = WORKER
            start = time.perf_counter()
            written = worker.run("until_idle").written
            seconds[WORKER].append(time.perf_counter() - start)
            assert written == len(rows), written
    return seconds


def fill(conn: psycopg.Connection[Any], table: str, pictures: Sequence[bytes]) -> None:
    """Make a table whose rows hold these pictures, and attach an embedding of them."""
    conn.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, photo bytea NOT NULL)".encode())
    with conn.cursor().copy(f"COPY {table} (id, photo) FROM STDIN WITH (FORMAT binary)".encode()) as copy:
        copy.set_types(["int4", "bytea"])
        for number, picture in enumerate(pictures):
            copy.write_row((number, picture))
    inputs = """{"image": {"column": "photo"}}"""
    conn.execute("SELECT pgembed.attach(%s::regclass, 'embedding', 'lite', %s)", [table, inputs])
    conn.execute(f"VACUUM (ANALYZE) {table}".encode())
    conn.execute("CHECKPOINT")


if __name__ == "__main__":
    sys.exit(main())
