"""Pictures that a table holds as URLs: fetched by the worker where it may, and only there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg
import pytest

import pgembed
from pgembed import Text
from pgembed.media import MediaPolicy
from pgembed.worker import WorkerOptions

PHOTOS = Path(__file__).parents[1] / "data/photos"
LOOPBACK = MediaPolicy(allow_urls=True, allow_http=True, allow_private=True)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def pictures() -> Iterator[str]:
    """The address of a web server on this machine that has the test photographs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(PHOTOS)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def shop(database: psycopg.Connection, database_dsn: str, pictures: str) -> Iterator[pgembed.Pgembed]:
    """A table whose pictures are URLs, one of them leading nowhere."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, photo text)")
    for number, name in enumerate(["panda.jpg", "goldfish.jpg", "nowhere.jpg"]):
        database.execute("INSERT INTO product VALUES (%s, %s)", [number, f"{pictures}/{name}"])
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("shop", "builtin:lite")
        db.attach("product", "embedding", encoder="shop", image={"column": "photo", "as": "url"})
        yield db


def test_pictures_are_fetched_and_one_that_is_not_there_fails_alone(shop: pgembed.Pgembed) -> None:
    shop.work(WorkerOptions(media=LOOPBACK, max_attempts=1), until_idle=True)
    assert shop.search("product", Text("a panda"), limit=1)[0].id == 0
    assert shop.search("product", Text("a fish"), limit=1)[0].id == 1
    (failure,) = shop.failures("product")
    assert failure.key == ["2"]
    assert "404" in failure.error


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (MediaPolicy(), "not allowed|switched on|allow-urls"),
        (MediaPolicy(allow_urls=True), "https"),
        (MediaPolicy(allow_urls=True, allow_http=True), "private|address"),
    ],
    ids=["no URLs", "no http", "no private address"],
)
def test_what_the_worker_may_not_fetch_fails_with_its_reason(
    shop: pgembed.Pgembed, media: MediaPolicy, reason: str
) -> None:
    shop.work(WorkerOptions(media=media, max_attempts=1), until_idle=True)
    failures = shop.failures("product")
    assert len(failures) == 3
    for failure in failures:
        assert any(word in failure.error for word in reason.split("|")), failure.error
