"""What decoding pictures in processes costs a backfill, against decoding them in the worker's threads.

The worker encodes photographs with builtin:lite: those of PGEMBED_DATA as they are, and some enlarged to 12 megapixels.
Rounds alternate. The best of each is shown, and the time of all processors (of the processes too, their start
included) is compared, which others on the machine disturb least.
"""

from __future__ import annotations

import io
import resource
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
from PIL import Image

import pgembed
from benchmarks.common import Figure, Report, arguments, data, fresh_database
from pgembed.worker import WorkerOptions
from pgembed.worker.decode import DecodeIn

MODES: tuple[DecodeIn, ...] = ("threads", "processes")
MORE = 1.1  # what processes may cost, of what threads do


def main() -> int:
    args = arguments(__doc__)
    (folder,) = data("photos")
    report = Report("decoding", as_json=args.json)
    photos = [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))]
    large = [enlarged(photo) for photo in photos[: 12 if args.quick else 48]]
    kinds = {"photographs": photos * (1 if args.quick else 5), "12 megapixels": large}
    rows: list[dict[str, Any]] = []
    figures: list[Figure] = []
    with fresh_database() as dsn, pgembed.connect(dsn) as db:
        db.add_encoder("lite", "builtin:lite")
        for kind, pictures in kinds.items():
            found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
            for _ in range(2 if args.quick else 4):
                for mode in MODES:
                    found[mode].append(backfill(db, dsn, pictures, mode))
            best = {mode: [min(values) for values in zip(*found[mode], strict=True)] for mode in MODES}
            rows += [
                {
                    "pictures": f"{len(pictures)} {kind}, {sum(map(len, pictures)) // len(pictures) // 1000} kB each",
                    "decoded in": mode,
                    "ms a picture": best[mode][0] / len(pictures) * 1000,
                    "processor ms a picture": best[mode][1] / len(pictures) * 1000,
                }
                for mode in MODES
            ]
            figures.append(Figure(kind.replace(" ", "_"), best["processes"][1] / best["threads"][1], MORE))
    report.table("Backfill with builtin:lite", rows)
    return report.finish(*figures)


def enlarged(photo: bytes) -> bytes:
    """The photograph with 4000 x 3000 pixels."""
    file = io.BytesIO()
    Image.open(io.BytesIO(photo)).convert("RGB").resize((4000, 3000)).save(file, "JPEG", quality=90)
    return file.getvalue()


def backfill(db: pgembed.Pgembed, dsn: str, pictures: list[bytes], mode: DecodeIn) -> tuple[float, float]:
    """Seconds, and seconds of processors, until all rows have their vectors; the start of processes included."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE product (id int PRIMARY KEY, photo bytea)")
        with conn.cursor() as cursor:
            cursor.executemany("INSERT INTO product VALUES (%s, %s)", list(enumerate(pictures)))
        db.attach("product", "embedding", encoder="lite", image="photo")
        began, used = time.perf_counter(), processor_seconds()
        summary = db.work(WorkerOptions(decode_in=mode), until_idle=True)
        took = time.perf_counter() - began, processor_seconds() - used
        assert summary.written == len(pictures)
        db.detach("product")
        conn.execute("DROP TABLE product")
    return took


def processor_seconds() -> float:
    """Of this process and the children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    sys.exit(main())
