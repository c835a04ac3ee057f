"""Pictures that a table holds as URLs: fetched by the worker where it may, and only there."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg
import pytest
import trustme

import pgembed
from pgembed import Text
from pgembed.media import MediaPolicy
from pgembed.worker import WorkerOptions

PHOTOS = Path(__file__).parents[1] / "data/photos"
BOTH = pytest.mark.parametrize("storage", ["column", "side"], indirect=True)
LOOPBACK = MediaPolicy(allow_urls=True, allow_http=True, allow_private=True)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        """A path that begins with /moved/ leads to where the rest says."""
        if not self.path.startswith("/moved/"):
            return super().do_GET()
        self.send_response(302)
        self.send_header("Location", self.path.removeprefix("/moved/"))
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None


@contextmanager
def web_server(certificate: trustme.LeafCert | None = None) -> Iterator[int]:
    """A web server on this machine that has the test photographs, over https where it has a certificate; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(PHOTOS)))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def pictures() -> Iterator[str]:
    """The address of a web server without a certificate."""
    with web_server() as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def shop(database: psycopg.Connection, database_dsn: str, pictures: str, storage: str) -> Iterator[pgembed.Pgembed]:
    """A table whose pictures are URLs, one of them leading nowhere."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, photo text)")
    for number, name in enumerate(["panda.jpg", "goldfish.jpg", "nowhere.jpg"]):
        database.execute("INSERT INTO product VALUES (%s, %s)", [number, f"{pictures}/{name}"])
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("shop", "builtin:lite")
        db.attach("product", "embedding", encoder="shop", image={"column": "photo", "as": "url"}, storage=storage)
        yield db


@BOTH
def test_pictures_are_fetched_and_one_that_is_not_there_fails_alone(shop: pgembed.Pgembed) -> None:
    shop.work(WorkerOptions(media=LOOPBACK, max_attempts=1), until_idle=True)
    assert shop.search("product", Text("a panda"), limit=1)[0].id == 0
    assert shop.search("product", Text("a fish"), limit=1)[0].id == 1
    (failure,) = shop.failures("product")
    assert failure.key == ["2"]
    assert "404" in failure.error


@BOTH
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


# Certificates

SECURE = MediaPolicy(allow_urls=True, allow_private=True)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that nobody knows yet."""
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the authority known, as a person does who runs a worker."""
    authority.cert_pem.write_to_path(str(tmp_path / "authorities.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authorities.pem"))


@contextmanager
def secure_shop(dsn: str, certificate: trustme.LeafCert, host: str = "localhost") -> Iterator[pgembed.Pgembed]:
    """A table with one picture, by https."""
    with web_server(certificate) as port, pgembed.connect(dsn) as db, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE product (id int PRIMARY KEY, photo text)")
        conn.execute("INSERT INTO product VALUES (1, %s)", [f"https://{host}:{port}/panda.jpg"])
        db.add_encoder("shop", "builtin:lite")
        db.attach("product", "embedding", encoder="shop", image={"column": "photo", "as": "url"})
        yield db


def failure(db: pgembed.Pgembed) -> str:
    """The error of the one row, which is given up at once: trying again would not help."""
    db.work(WorkerOptions(media=SECURE, max_attempts=5), until_idle=True)
    (found,) = db.failures("product")
    assert found.attempts == 1
    return found.error


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_picture_is_fetched_by_https_from_a_host_whose_certificate_is_trusted(
    database_dsn: str, authority: trustme.CA, host: str
) -> None:
    with secure_shop(database_dsn, authority.issue_cert("localhost", "127.0.0.1"), host) as db:
        assert db.work(WorkerOptions(media=SECURE), until_idle=True).written == 1
        assert db.search("product", Text("a panda"), limit=1)[0].id == 1


@pytest.mark.usefixtures("trusted")
def test_https_that_leads_to_http_is_followed_only_where_http_is_read(
    database: psycopg.Connection, database_dsn: str, authority: trustme.CA, pictures: str
) -> None:
    with secure_shop(database_dsn, authority.issue_cert("localhost")) as db:
        database.execute("UPDATE product SET photo = replace(photo, 'panda.jpg', %s)", [f"moved/{pictures}/panda.jpg"])
        error = failure(db)
        assert "is at http:, and only https: is read" in error
        assert "moved" in error
        assert db.retry("product") == 1
        assert db.work(WorkerOptions(media=LOOPBACK), until_idle=True).written == 1


@pytest.mark.usefixtures("trusted")
def test_a_list_of_https_urls_is_the_mean_of_its_parts(
    database: psycopg.Connection, database_dsn: str, authority: trustme.CA
) -> None:
    with web_server(authority.issue_cert("localhost")) as port, pgembed.connect(database_dsn) as db:
        panda, fish = (f"https://localhost:{port}/{name}.jpg" for name in ("panda", "goldfish"))
        database.execute("CREATE TABLE product (id int PRIMARY KEY, photos text[])")
        for number, urls in enumerate([[panda], [fish], [panda, None, fish], [panda, f"{fish}x"]]):
            database.execute("INSERT INTO product VALUES (%s, %s)", [number, urls])
        db.add_encoder("shop", "builtin:lite")
        db.attach("product", "embedding", encoder="shop", image={"column": "photos", "as": "url"})
        assert db.work(WorkerOptions(media=SECURE, max_attempts=1), until_idle=True).written == 3
        (failed,) = db.failures("product")
        assert failed.error.startswith("Number 2 of the list: The picture")
        mean = (
            "SELECT embedding <=> pgembed.compose(ARRAY[(SELECT embedding FROM product WHERE id = 0),"
            " (SELECT embedding FROM product WHERE id = 1)]) < 1e-6 FROM product WHERE id = 2"
        )
        assert database.execute(mean).fetchone() == (True,)


def test_a_certificate_of_an_unknown_authority_fails_the_row_and_a_retry_after_it_is_named_succeeds(
    database_dsn: str, authority: trustme.CA, request: pytest.FixtureRequest
) -> None:
    with secure_shop(database_dsn, authority.issue_cert("localhost")) as db:
        error = failure(db)
        assert error.startswith("The certificate of the host 'localhost' is not trusted (unable to get local issuer")
        assert "SSL_CERT_FILE=FILE" in error
        request.getfixturevalue("trusted")
        assert db.retry("product") == 1
        assert db.work(WorkerOptions(media=SECURE), until_idle=True).written == 1


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_certificate_for_another_name_fails_the_row(database_dsn: str, authority: trustme.CA, host: str) -> None:
    with secure_shop(database_dsn, authority.issue_cert("pictures.example"), host) as db:
        assert failure(db) == (
            f"The certificate of the host '{host}' is for another name."
            " Write the URL with the name that the certificate is for."
        )


@pytest.mark.usefixtures("trusted")
def test_a_certificate_that_has_expired_fails_the_row(database_dsn: str, authority: trustme.CA) -> None:
    expired = authority.issue_cert("localhost", not_after=datetime(2001, 1, 1, tzinfo=UTC))
    with secure_shop(database_dsn, expired) as db:
        assert failure(db).startswith("The certificate of the host 'localhost' has expired. Whoever runs the host")


def test_a_file_of_certificates_that_is_not_there_is_named(
    database_dsn: str, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/authorities.pem")
    with secure_shop(database_dsn, authority.issue_cert("localhost")) as db:
        db.work(WorkerOptions(media=SECURE, max_attempts=1), until_idle=True)
        (found,) = db.failures("product")
        assert found.error.startswith(
            "SSL_CERT_FILE is '/nowhere/authorities.pem', where no certificates can be read: No such file or directory."
        )
