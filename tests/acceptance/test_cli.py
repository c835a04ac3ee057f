"""The command line, as a user would: each command once, its exit code, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).parents[2]
PHOTOS = sorted((ROOT / "tests/data/photos").glob("*.jpg"))


class Cli:
    """Runs ``pgembed`` on one database."""

    def __init__(self, dsn: str) -> None:
        self.environment = {**os.environ, "PGEMBED_DSN": dsn, "NO_COLOR": "1", "COLUMNS": "200"}

    def __call__(self, *arguments: str, fails: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pgembed.cli", *arguments],
            env=self.environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == fails, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout if fails == 0 else done.stderr


@pytest.fixture
def cli(database_dsn: str) -> Cli:
    return Cli(database_dsn)


@pytest.fixture
def shop(cli: Cli, database: psycopg.Connection) -> Cli:
    """A table of photographs with an embedding, filled."""
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text, price numeric, photo bytea)")
    for number, photo in enumerate(PHOTOS):
        database.execute(
            "INSERT INTO product VALUES (%s, %s, %s, %s)", [number, photo.stem, number * 10, photo.read_bytes()]
        )
    cli("encoder", "add", "shop", "builtin:lite")
    cli("attach", "product", "embedding", "--encoder", "shop", "--image", "photo")
    cli("worker", "--until-idle")
    return cli


def test_search_finds_pictures_by_words(shop: Cli) -> None:
    rows = json.loads(shop("search", "product", "a panda", "--limit", "2", "--json"))
    assert rows[0]["title"] == "panda"
    assert set(rows[0]) == {"score", "id", "title", "price"}


def test_search_by_picture_with_a_filter_and_a_percent_sign(shop: Cli) -> None:
    picture = str(ROOT / "tests/data/photos/panda.jpg")
    rows = json.loads(
        shop(
            "search",
            "product",
            "--image",
            picture,
            "--where",
            "price > 0 AND title LIKE '%o%'",
            "--limit",
            "3",
            "--json",
        )
    )
    assert len(rows) == 3
    assert all("o" in row["title"] for row in rows)


def test_search_writes_contact_sheets(shop: Cli, tmp_path: Path) -> None:
    shop("search", "product", "a bird", "--contact-sheet", str(tmp_path / "out.html"))
    shop("search", "product", "a bird", "--contact-sheet", str(tmp_path / "out.png"))
    assert "data:image" in (tmp_path / "out.html").read_text()
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert ".html or .png" in shop("search", "product", "a bird", "--contact-sheet", "out.gif", fails=1).lower()


def test_search_prints_a_statement_that_runs_anywhere(shop: Cli, database: psycopg.Connection) -> None:
    statement = shop("search", "product", "a panda", "--limit", "1", "--sql")
    cursor = database.execute(statement.encode())
    assert cursor.description is not None
    row = dict(zip([column.name for column in cursor.description], cursor.fetchone() or (), strict=True))
    assert row["title"] == "panda"


def test_status_index_and_doctor(shop: Cli) -> None:
    (status,) = json.loads(shop("status", "--json"))
    assert (status["rows"], status["ready"], status["queued"], status["state"]) == (
        len(PHOTOS),
        len(PHOTOS),
        0,
        "ready",
    )
    assert "CREATE INDEX" in shop("index", "product", "--sql")
    shop("index", "product")
    findings = json.loads(shop("doctor", "--json"))
    assert all(finding["ok"] for finding in findings)


def test_doctor_says_when_nobody_works(shop: Cli, database: psycopg.Connection) -> None:
    database.execute("INSERT INTO product (id, title, photo) VALUES (200, 'new', %s)", [PHOTOS[0].read_bytes()])
    (finding,) = [finding for finding in doctor(shop) if not finding["ok"]]
    assert "no worker is connected" in str(finding["finding"])
    assert "pgembed worker" in str(finding["remedy"])


def test_pictures_as_paths_are_encoded_and_shown(cli: Cli, database: psycopg.Connection, tmp_path: Path) -> None:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, file text)")
    for number, photo in enumerate(PHOTOS[:3]):
        database.execute("INSERT INTO product VALUES (%s, %s)", [number, photo.name])
    cli("encoder", "add", "shop", "builtin:lite")
    cli("attach", "product", "embedding", "--encoder", "shop", "--image", "file", "--image-as", "path")
    cli("worker", "--until-idle", "--media-root", str(PHOTOS[0].parent), "--allow-encoder", "builtin")
    sheet = tmp_path / "sheet.html"
    cli("search", "product", "an animal", "--contact-sheet", str(sheet), "--media-root", str(PHOTOS[0].parent))
    assert sheet.read_text().count("data:image") == 3


def test_failures_and_retry(shop: Cli, database: psycopg.Connection) -> None:
    database.execute("INSERT INTO product VALUES (100, 'broken', 1, %s)", [b"\x89PNG not really"])
    shop("worker", "--until-idle")
    (failure,) = json.loads(shop("failures", "--json"))
    assert failure["key"] == ["100"]
    assert "cannot be read" in failure["error"]
    assert any(not finding["ok"] and "failures" in finding["subject"] for finding in doctor(shop))
    database.execute("UPDATE product SET photo = %s WHERE id = 100", [PHOTOS[0].read_bytes()])
    shop("worker", "--until-idle")
    assert json.loads(shop("failures", "--json")) == []
    assert shop("retry", "product").startswith("0 rows")


def doctor(cli: Cli) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "pgembed.cli", "doctor", "--json"],
        env=cli.environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    return json.loads(done.stdout)


def test_encoder_commands(shop: Cli) -> None:
    assert [row["name"] for row in json.loads(shop("encoder", "list", "--json"))] == ["shop"]
    assert json.loads(shop("encoder", "show", "shop", "--json"))["dim"] == 256
    assert "throughput" in shop("encoder", "test", "shop")
    assert "is used by" in shop("encoder", "remove", "shop", fails=1)
    shop("detach", "product")
    shop("encoder", "remove", "shop")


def test_install_version_uninstall(cli: Cli) -> None:
    assert cli("--version").startswith("0.")
    cli("install")
    version = json.loads(cli("version", "--json"))
    assert version["schema"]
    assert version["pgvector"]
    cli("uninstall")
    error = cli("status", fails=1)
    assert "not installed" in error
    assert "pgembed install" in error
    assert cli("install", "--sql").startswith("CREATE EXTENSION IF NOT EXISTS vector")


WRONG = [
    (["search", "nowhere", "a dog"], "nowhere"),
    (["search", "product"], "nothing to search for"),
    (["search", "product", "a dog", "--where", "prise < 3"], "prise"),
    (["search", "product", "--image", "/no/such/picture.jpg"], "/no/such/picture.jpg"),
    (["attach", "product", "embedding", "--encoder", "shop", "--image", "photo"], "embedding"),
    (["attach", "product", "other", "--encoder", "none", "--image", "photo"], "'none'"),
    (["attach", "product", "other", "--encoder", "shop"], "no input"),
    (["attach", "keyless", "other", "--encoder", "shop", "--text", "title"], "has no primary key"),
    (["encoder", "add", "x", "unknown:thing"], "unknown"),
    (["encoder", "add", "x", "lite"], "KIND:NAME"),
    (["worker", "--embedding", "nowhere", "--once"], "nowhere"),
]


def test_what_cannot_be_done_is_one_sentence(shop: Cli, database: psycopg.Connection) -> None:
    database.execute("CREATE TABLE keyless (title text)")
    for arguments, message in WRONG:
        *logs, error = shop(*arguments, fails=1).split("error: ")
        assert message in error, arguments
        assert all(line.startswith("{") for line in "".join(logs).splitlines())
        assert "Traceback" not in error
        assert "CONTEXT" not in error
        assert error.count("hint: ") <= 1


def test_no_server_is_said_in_a_sentence() -> None:
    error = Cli("postgresql://127.0.0.1:1/nothing")("status", fails=1)
    assert error.startswith("error: ")
    assert "PGEMBED_DSN" in error
