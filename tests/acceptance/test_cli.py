"""The command line, as a user would: each command once, its exit code, and what it says when it cannot."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer.main
from psycopg.conninfo import make_conninfo

from pgembed import Row, Text, connect, to_json
from pgembed.building import Query
from pgembed.cli.hints import as_commands
from pgembed.cli.main import app, main
from pgembed.cli.sheet import search_with_sheet
from tests.command_line import Cli
from tests.conftest import janitor, new_database, new_name
from tests.embedding_server import embedding_server
from tests.open_clip_models import make_model

ROOT = Path(__file__).parents[2]
PHOTOS = sorted((ROOT / "tests/data/photos").glob("*.jpg"))


@pytest.fixture
def cli(database_dsn: str) -> Cli:
    return Cli(database_dsn)


@pytest.fixture
def here(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs ``pgembed`` in this process, where torch is loaded but once."""
    log = logging.getLogger("pgembed")
    monkeypatch.setattr(log, "handlers", [*log.handlers])
    monkeypatch.setattr(log, "level", log.level)

    def run(*arguments: str, fails: int = 0) -> None:
        with pytest.raises(SystemExit) as done:
            main(["--dsn", database_dsn, *arguments])
        assert (done.value.code or 0) == fails

    return run


@pytest.fixture(scope="module")
def filled(server_dsn: str, template: str) -> Iterator[str]:
    """The name of a database that has a table of photographs with an embedding, filled."""
    with janitor(server_dsn, name := new_name("filled"), template):
        with psycopg.connect(dsn := make_conninfo(server_dsn, dbname=name), autocommit=True) as conn:
            conn.execute("CREATE TABLE product (id int PRIMARY KEY, title text, price numeric, photo bytea)")
            for number, photo in enumerate(PHOTOS):
                conn.execute(
                    "INSERT INTO product VALUES (%s, %s, %s, %s)", [number, photo.stem, number * 10, photo.read_bytes()]
                )
        cli = Cli(dsn)
        cli("encoder", "add", "shop", "builtin:lite")
        cli("attach", "product", "embedding", "--encoder", "shop", "--image", "photo", process=True)
        cli("worker", "--until-idle", process=True)
        yield name


@pytest.fixture
def database_dsn(request: pytest.FixtureRequest, server_dsn: str, template: str) -> Iterator[str]:
    """A fresh database; for a test that names ``shop``, a copy of the one that is filled."""
    copied = request.getfixturevalue("filled") if "shop" in request.fixturenames else template
    yield from new_database(server_dsn, copied)


@pytest.fixture
def shop(cli: Cli) -> Cli:
    """A table of photographs with an embedding, filled."""
    return cli


def test_search_finds_pictures_by_words(shop: Cli) -> None:
    rows = json.loads(shop("search", "product", "a panda", "--limit", "2", "--json", process=True))
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


def test_search_explains_how_rows_were_found(shop: Cli) -> None:
    ask = ["search", "product", "a bird", "--minus", "a dog", "--where", "price < 3", "--explain"]
    head, *rows = shop(*ask).splitlines()
    assert re.split(r" {2,}", head.strip()) == ["score", "Text('a bird')", "Text('a dog')", "id", "title", "price"]
    assert re.match(r"[-.0-9]+ +[+-]0\.\d{3} +[+-]0\.\d{3} +\d ", rows[0])
    assert any("rows in" in line for line in rows)
    found = json.loads(shop(*ask, "--json", "--recall"))
    assert (found["plan"], found["recall"]) == ("exact", 1)
    for row, parts in zip(found["found"], found["parts"], strict=True):
        assert sum(part["share"] for part in parts) == pytest.approx(row["score"], abs=1e-5)


def test_search_by_words_explains_each_leg(shop: Cli) -> None:
    ask = ["search", "product", "panda", "--words", "--limit", "3", "--explain", "--recall", "--column", "title"]
    said = shop(*ask)
    assert re.split(r" {2,}", said.splitlines()[0].strip()) == ["score", "embedding", "words", "in common", "title"]
    assert re.search(r"^0\.0\d{3} +1\. \(\S+\) +1\. \(1\.000\) +panda +panda", said, re.MULTILINE)
    assert "2 legs fused by rank." in said
    assert "Recall: 100%" in said
    found = json.loads(shop(*ask, "--json"))
    assert [leg["name"] for leg in found["legs"]] == ["embedding", "words"]
    assert found["words"][0] == ["panda"]
    assert "pgembed.hybrid(" in shop("search", "product", "panda", "--words", "--sql")
    assert "Give --explain too." in shop("search", "product", "panda", "--recall", fails=2)


def test_search_tells_what_the_inputs_of_rows_gave(shop: Cli) -> None:
    shop("attach", "product", "joint", "--encoder", "shop", "--image", "photo", "--text", "title")
    shop("worker", "--until-idle")
    said = shop("search", "product", "panda", "--embedding", "joint", "--explain", "--inputs", "--column", "title")
    assert re.split(r" {2,}", said.splitlines()[0].strip()) == ["score", "its image", "its text", "title"]


def test_search_writes_contact_sheets(shop: Cli, tmp_path: Path) -> None:
    shop("search", "product", "a bird", "--contact-sheet", str(tmp_path / "out.html"))
    shop("search", "product", "a bird", "--contact-sheet", str(tmp_path / "out.png"))
    assert "data:image" in (tmp_path / "out.html").read_text()
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(shop("search", "product", "a bird", "--json", "--contact-sheet", str(tmp_path / "out.html")))
    assert set(found[0]) == {"score", "id", "title", "price"}  # the pictures are in the sheet alone
    assert ".html or .png" in shop("search", "product", "a bird", "--contact-sheet", "out.gif", fails=1).lower()


def test_a_sheet_costs_no_second_search(shop: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[object] = []
    real = Query.rows
    monkeypatch.setattr(Query, "rows", lambda asked: searches.append(asked) or real(asked))
    with connect(shop.environment["PGEMBED_DSN"]) as db:
        rows, unread = search_with_sheet(
            db, db.query("product").near(Text("a panda")).limit(2), "product", Text("a panda"), tmp_path / "out.png",
            embedding=None, picture=None, media_root=None, columns=["title"],
        )  # fmt: skip
    assert len(searches) == 1
    assert (rows[0]["title"], unread) == ("panda", 0)
    assert set(rows[0]) == {"title", "score"}


def test_search_by_rows_without_words_and_by_a_file(shop: Cli, tmp_path: Path) -> None:
    def titles(*typed: str) -> list[str]:
        return [row["title"] for row in json.loads(shop("search", "product", *typed, "--json"))]

    names = [photo.stem for photo in PHOTOS]
    panda, koala = (str(names.index(name)) for name in ("panda", "koala"))
    assert titles("--like", panda, "--limit", "1") == ["panda"]
    assert titles("--like", panda, "--like", f"[{koala}]", "--limit", "2") in (["panda", "koala"], ["koala", "panda"])
    assert titles("--like", panda, "--unlike", koala, "--limit", "20")[-1] == "koala"
    plain, without = titles("a panda", "--limit", "20"), titles("a panda", "--without", "a panda bear", "--limit", "20")
    assert plain[0] == "panda" != without[0]
    sheet = tmp_path / "out.html"
    shop("search", "product", "--like", panda, "--contact-sheet", str(sheet))
    assert f"row {panda}" in sheet.read_text()
    query = tmp_path / "query.json"
    query.write_text(json.dumps(to_json(Row(int(panda)) + 0.1 * Text("an animal"))))
    assert titles("--query", str(query), "--limit", "1") == ["panda"]
    assert titles("--query", str(query), "--minus", "a panda", "--minus-weight", "3", "--limit", "1") != ["panda"]
    query.write_text('{"row": [true, null]}')
    assert "neither text nor a whole number" in shop("search", "product", "--query", str(query), fails=1)
    assert "cannot be read" in shop("search", "product", "--query", str(tmp_path / "none"), fails=2)
    assert "Row('4711') is not in product" in shop("search", "product", "--like", "4711", fails=1)
    assert "nothing to search for" in shop("search", "product", "--minus", "a", fails=2)


def test_search_by_words_and_their_vectors(shop: Cli) -> None:
    found = shop("search", "product", "panda", "--words", "--limit", "2", "--column", "title", "--json")
    rows = json.loads(found)
    assert rows[0] == {"title": "panda", "score": pytest.approx(2 / 61)}
    assert len(rows) == 2
    by_score = shop(
        "search", "product", "panda", "--words", "--method", "score", "--where", "title <> 'panda'", "--json"
    )
    assert json.loads(by_score)[0]["title"] != "panda"
    assert "--words" in shop("search", "product", "--like", "1", "--words", fails=2)


@pytest.mark.usefixtures("shop")
def test_search_gives_only_answers_and_goes_on_page_by_page(
    here: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    def search(*options: str, json_too: bool = True, fails: int = 0) -> tuple[Any, str]:
        capfd.readouterr()
        here("search", "product", "a panda", *options, *(["--json"] if json_too else []), fails=fails)
        out, told = capfd.readouterr()
        return json.loads(out) if json_too and not fails else out, told

    ask = ("--exact", "--column", "id")
    scores = [row["score"] for row in search(*ask, "--limit", "20")[0]]
    assert len(search(*ask, "--limit", "20", "--at-least", str(scores[2]))[0]) == 3
    assert search(*ask, "--at-least", "0.99")[0] == []
    assert "No row is an answer." in search(*ask, "--at-least", "0.99", json_too=False)[1]
    page, _ = search(*ask, "--limit", "5", "--page")
    found = page["rows"]
    while page["next"]:
        page, _ = search(*ask, "--limit", "5", "--after", page["next"])
        found += page["rows"]
    assert [row["score"] for row in found] == scores
    assert len({row["id"] for row in found}) == len(scores) == len(PHOTOS)
    table, told = search(*ask, "--limit", "5", "--page", json_too=False)
    (token,) = re.findall(r"^Go on: --after (\S+)$", told, re.MULTILINE)
    assert len(table.splitlines()) == 6
    assert "belongs to another query" in search("--minus", "a dog", "--after", token, fails=1)[1]
    _, by_rank = search("--words", "--at-least", "0.5", json_too=False, fails=1)
    assert "hint: Fuse by score, --method score, or leave at_least out." in by_rank
    assert "--limit 50" in search("--words", "--page", fails=1)[1]
    assert "--page" in search("--page", "--contact-sheet", "out.html", fails=2)[1]


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
    (failure,) = json.loads(shop("failures", "--rows", "--json"))
    assert failure["key"] == ["100"]
    assert "cannot be read" in failure["error"]
    (reason,) = json.loads(shop("failures", "--json"))
    assert (reason["rows"], reason["latest_key"]) == (1, ["100"])
    assert reason["reason"].startswith("The picture % cannot be read: ")
    assert "100" in shop("failures")
    assert shop("retry", "product", "--key", "99").startswith("0 rows")
    assert shop("retry", "product", "--key", "99", "--key", '["100"]', "--reason", "none").startswith("0 rows")
    assert "is not a JSON array" in shop("retry", "product", "--key", "[1", fails=2)
    assert shop("retry", "product", "--key", '["100"]', "--reason", reason["reason"]).startswith("1 row")
    shop("worker", "--until-idle")
    assert shop("retry", "product", "--key", "100").startswith("1 row")
    shop("worker", "--until-idle")
    assert any(not finding["ok"] and "failures" in finding["subject"] for finding in doctor(shop))
    database.execute("UPDATE product SET photo = %s WHERE id = 100", [PHOTOS[0].read_bytes()])
    shop("worker", "--until-idle")
    assert json.loads(shop("failures", "--json")) == []
    assert shop("retry", "product").startswith("0 rows")


def doctor(cli: Cli) -> list[dict[str, object]]:
    done = cli.run("doctor", "--json")
    assert done.returncode == 1
    return json.loads(done.stdout)


def test_encoder_commands(shop: Cli) -> None:
    assert [row["name"] for row in json.loads(shop("encoder", "list", "--json"))] == ["shop"]
    assert json.loads(shop("encoder", "show", "shop", "--json"))["dim"] == 256
    assert "English" in shop("encoder", "show", "shop")
    assert "throughput" in shop("encoder", "test", "shop")
    assert "is used by" in shop("encoder", "remove", "shop", fails=1)
    shop("detach", "product")
    shop("encoder", "remove", "shop")


def test_view_commands(shop: Cli) -> None:
    learnt = shop(
        "view", "learn", "bear", "--encoder", "shop", "--these", "a panda", "--these", "a bear", "--those", "a bird",
        "--those", "a hen", "--paired", "--components", "2",
    )  # fmt: skip
    assert "View 'bear': 2 directions in the space of 'shop', by pairs; from 2 and 2 vectors, 2 pairs." in learnt
    rows = json.loads(
        shop("view", "learn", "cheap", "--table", "product", "--these", "id < 6", "--those", "id >= 6", "--json")
    )
    assert (rows["action"], rows["method"], rows["learnt_from"]["rows"]) == (
        "view learn",
        "centroids",
        [6, len(PHOTOS) - 6],
    )
    listed = shop("view", "list")
    assert "bear" in listed
    assert f"6 and {len(PHOTOS) - 6} rows of product" in listed
    assert json.loads(shop("view", "list", "--json"))[0]["name"] == "bear"
    assert "learnt_from" in shop("view", "show", "cheap")
    plain, without, neutral = (
        json.loads(shop("search", "product", "a panda", "--limit", "12", "--json", *more))
        for more in ((), ("--without-view", "bear"), ("--neutral", "bear"))
    )
    assert plain[0]["title"] == "panda"
    scores = [{row["title"]: row["score"] for row in some} for some in (plain, without, neutral)]
    assert scores[0]["panda"] > max(scores[1]["panda"], scores[2]["panda"])
    told = shop("search", "product", "a panda", "--neutral", "bear", "--sql")
    assert "neutralize" in told
    assert "is dropped" in shop("view", "drop", "bear")
    error = shop("search", "product", "a panda", "--neutral", "bear", fails=1)
    assert "There is no view named 'bear'." in error
    assert "hint: There are: cheap" in error


def test_a_view_is_probed(cli: Cli, database: psycopg.Connection) -> None:
    database.execute("CREATE TABLE thing (id serial PRIMARY KEY, title text, colour text, kind text)")
    database.execute(
        "INSERT INTO thing (title, colour, kind) SELECT 'a ' || c || ' ' || k, c, k"
        " FROM unnest('{red,blue}'::text[]) AS c,"
        " unnest('{shoe,car,house,dress,apple,boat,bird,flower,hat,chair,door,book}'::text[]) AS k"
    )
    cli("encoder", "add", "lite", "builtin:lite")
    cli("attach", "thing", "embedding", "--encoder", "lite", "--text", "title")
    cli("worker", "--until-idle")
    cli("view", "learn", "colour", "--encoder", "lite", "--these", "red", "--those", "blue")
    arguments = (
        "view", "probe", "colour", "--table", "thing", "--attribute", "colour", "--group", "kind", "--same", "kind",
        "--ask", "title",
    )  # fmt: skip
    table = cli(*arguments)
    assert re.search(r"before +24 +2 +1.000 +0.500 +0.\d+ +no", table)
    assert re.search(r"without colour \(1\) +24 +2 +0.\d+ +0.500 +0.\d+ +yes", table)
    assert "R@1 by words, rows with colour" in table
    found = json.loads(cli(*arguments, "--json"))
    assert (found["before"]["at_chance"], found["after"]["at_chance"], found["after"]["rows"]) == (False, True, 24)
    assert found["kept"][0]["measure"] == "overlap@10 of neighbours"
    said = cli("view", "probe", "colour", "--table", "thing", "--attribute", "nothing", fails=1)
    assert "error: 'nothing' is not one expression on thing" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("--these", "a", "--those", "b"),
        ("--these", "a", "--those", "b", "--table", "t", "--encoder", "e"),
        ("--these", "a", "--these", "c", "--those", "b", "--table", "t"),
        ("--these", "a", "--those", "b", "--table", "t", "--paired"),
        ("--these", "a", "--those", "b", "--encoder", "e", "--pair", "id"),
        ("--those", "b", "--encoder", "e"),
    ],
)
def test_what_no_view_is_learnt_from_is_wrong_usage(cli: Cli, arguments: tuple[str, ...]) -> None:
    cli("view", "learn", "v", *arguments, fails=2)


def test_install_version_uninstall(cli: Cli) -> None:
    assert cli("--version").startswith("0.")
    cli("install")
    version = json.loads(cli("version", "--json"))
    assert version["schema"]
    assert version["pgvector"]
    cli("uninstall")
    error = cli("status", fails=1, process=True)
    assert "not installed" in error
    assert "pgembed install" in error
    assert cli("install", "--sql", process=True).startswith("\\set ON_ERROR_STOP on\n")


# Which encoders may be loaded

ALLOW = {"--allow-encoder", "--model-dir", "--allow-host", "--allow-model-code"}


def test_every_command_that_loads_registered_encoders_takes_the_same_options() -> None:
    taking = {
        name
        for name, command in commands().items()
        if {option for parameter in command.params for option in parameter.opts} >= ALLOW
    }
    assert taking == {
        "worker", "search", "verify", "attach", "encoder test", "encoder distill", "encoder export", "train composer",
        "tune", "eval run", "eval cir", "view learn", "view probe",
    }  # fmt: skip


def test_an_encoder_behind_a_server_is_used_where_an_option_or_the_environment_allows_it(
    cli: Cli, database: psycopg.Connection
) -> None:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text)")
    database.execute("INSERT INTO product VALUES (1, 'a red bicycle'), (2, 'a bowl of fruit')")
    attach = ["attach", "product", "embedding", "--encoder", "far", "--text", "title"]
    with embedding_server() as server:
        host = f"127.0.0.1:{server.port}"
        cli("encoder", "add", "far", "http:lite", "--settings", json.dumps({"url": server.url + "/v1"}))
        cli(*attach)
        database.execute("CREATE TABLE other (id int PRIMARY KEY, title text)")
        database.execute("INSERT INTO other VALUES (1, 'a red bicycle'), (2, 'a bowl of fruit')")
        attach[1] = "other"
        asked = len(server.requests)
        refused = [
            cli("worker", "--until-idle", fails=1),
            cli("search", "product", "a bicycle", fails=1),
            cli("encoder", "test", "far", fails=1),
            str(json.loads(cli(*attach, "--dry-run", "--json"))["problem"]),
            cli(*attach, "--dry-run"),
        ]
        assert all(f"sends rows to {host}, which is not allowed here" in one for one in refused[:-1])
        assert all(f"--allow-host {host}, or name it in PGEMBED_ALLOW_HOSTS." in one for one in refused[:-1])
        assert "has 2 rows. Nothing was changed." in refused[-1]
        assert len(server.requests) == asked
        allow = ["--allow-host", host]
        assert json.loads(cli("worker", "--until-idle", "--json", *allow))["written"] == 2
        assert json.loads(cli("search", "product", "a bicycle", "--json", *allow))[0]["id"] == 1
        assert json.loads(cli("encoder", "test", "far", "--json", *allow))["ok"]
        assert json.loads(cli(*attach, "--dry-run", "--json", *allow))["calls"] == 1
        cli.environment["PGEMBED_ALLOW_HOSTS"] = f"api.example.org, {host}"
        assert json.loads(cli("search", "product", "a bowl", "--json"))[0]["id"] == 2
        assert "is not allowed here" in cli("search", "product", "a bowl", "--allow-encoder", "builtin", fails=1)


@pytest.mark.parametrize("command", [["encoder", "test", "odd"], ["encoder", "export", "odd", "out"]])
def test_what_a_catalog_names_is_loaded_only_where_it_is_allowed(
    cli: Cli,
    database: psycopg.Connection,
    tmp_path: Path,
    command: list[str],
    here: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    database.execute(
        "SELECT pgembed.add_encoder('odd', %s, dim => 8, modalities => '{text}', fingerprint => 'f',"
        " settings => '{\"allow_pickle\": true}')",
        [f"sentence-transformers:{tmp_path}/model"],
    )
    error = cli(*command, fails=1)
    assert f"reads {tmp_path}/model, which is outside of the model directory" in error
    assert f"--model-dir {tmp_path}, or name that folder in PGEMBED_MODEL_DIR." in error
    folder = ["--model-dir", str(tmp_path)]
    error = cli(*command, *folder, fails=1)
    assert "may run code that comes with its model" in error
    assert "--allow-model-code, or set PGEMBED_ALLOW_MODEL_CODE=1." in error
    environment = {
        "PGEMBED_ALLOW_ENCODERS": "builtin", "PGEMBED_MODEL_DIR": str(tmp_path), "PGEMBED_ALLOW_MODEL_CODE": "1",
    }  # fmt: skip
    cli.environment |= environment
    assert "--allow-encoder sentence-transformers, or name it in PGEMBED_ALLOW_ENCODERS." in cli(*command, fails=1)
    kind = ["--allow-encoder", "sentence-transformers"]
    for variables, options in ((environment, kind), ({}, [*kind, *folder, "--allow-model-code"])):
        for name in environment:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        here(*command, *options, fails=1)
        assert f"The folder '{tmp_path}/model' of 'sentence-transformers:" in capsys.readouterr().err


def test_a_registered_encoder_is_exported_as_it_is_registered(
    cli: Cli,
    database_dsn: str,
    here: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pgembed.encoders.onnx_export.BATCHES", (2,))
    monkeypatch.setattr("pgembed.encoders.onnx_export.SECONDS", 0.1)
    model = make_model(tmp_path / "model", "clip-shallow")
    with connect(database_dsn) as db:
        row = db.add_encoder("shop", f"open_clip:local-dir:{model}", space="ours")
    here("encoder", "export", "shop", str(tmp_path / "onnx"), "--json", "--model-dir", str(tmp_path))
    told = json.loads(capsys.readouterr().out)
    assert told["command"] == f"pgembed encoder add onnx onnx:{tmp_path / 'onnx'} --space ours"
    assert max(told["parity"].values()) < 1e-3
    assert "go with a spec" in cli("encoder", "export", "shop", "out", "--settings", '{"device": "cpu"}', fails=2)
    (model / "open_clip_model.safetensors").unlink()
    make_model(model, "clip-shallow", seed=5)  # other weights than those that are registered
    here("encoder", "export", "shop", str(tmp_path / "other"), "--model-dir", str(tmp_path), fails=1)
    assert f"Encoder 'shop' ({row.spec}) has other weights here" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# What a load would cost, and how much of it is done


def test_a_dry_run_tells_what_attaching_would_come_to(shop: Cli, database: psycopg.Connection) -> None:
    attach = ["attach", "product", "other", "--encoder", "shop", "--text", "{title}", "--image", "photo", "--dry-run"]
    found = json.loads(shop(*attach, "--json"))
    assert found["action"] == "estimate"
    assert (found["rows"], found["exact"], found["pictures"], found["problem"]) == (
        len(PHOTOS),
        True,
        len(PHOTOS),
        None,
    )
    assert (found["calls"], found["days"]) == (2, None)
    assert found["tokens"] > 0
    assert found["seconds"] > 0
    said = shop(*attach)
    assert re.search(rf"^text +{len(PHOTOS)} +\d+ B +~{found['tokens']}$", said, re.MULTILINE)
    assert re.search(rf"^image +{len(PHOTOS)} +[\d,]+ kB", said, re.MULTILINE)
    assert f"product has {len(PHOTOS)} rows. Nothing was changed." in said
    assert "'shop' would take 2 calls and about" in said
    assert "Advised: --storage column. No trigger, publication or crowd of indexes" in said
    assert found["storage"] == "column"
    assert database.execute("SELECT count(*) FROM pgembed.embedding").fetchone() == (1,)
    assert "has a column 'price' already" in shop(*[*attach[:2], "price", *attach[3:]], fails=1)


def test_a_worker_leaves_after_so_many_rows(cli: Cli, database: psycopg.Connection) -> None:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text)")
    database.execute("INSERT INTO product SELECT n, 'a dog' FROM generate_series(1, 7) n")
    cli("encoder", "add", "shop", "builtin:lite")
    cli("attach", "product", "embedding", "--encoder", "shop", "--text", "title")
    for written, left in ((3, 4), (3, 1), (1, 0)):
        worker = ["worker", "--until-idle", "--max-rows", "3", "--json"]
        assert json.loads(cli(*worker))["written"] == written
        assert database.execute("SELECT count(*) FROM product WHERE embedding IS NULL").fetchone() == (left,)
    assert "max-rows" in cli("worker", "--max-rows", "0", fails=2)


def test_unknown_words_are_told_once(shop: Cli) -> None:
    for more in ([], ["--where", "price >= 0"]):
        done = shop.run("search", "product", "krasnye tufli", "--limit", "100", *more, process=True)
        assert done.stderr.count("does not know most words") == 1
        assert done.returncode == 0


@pytest.mark.parametrize("typed", [["--help"], ["--version"], ["search", "--help"], []])
def test_help_and_completion_load_neither_driver_nor_models(cli: Cli, typed: list[str]) -> None:
    program = f"""
import sys
from pgembed.cli.main import main
try:
    main({typed})
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *sorted({{"numpy", "psycopg", "PIL", "httpx", "structlog", "tenacity", "asyncio"}} & set(sys.modules)))
"""
    if not typed:
        cli.environment |= {"_PGEMBED_COMPLETE": "complete_bash", "COMP_WORDS": "pgembed enc", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=cli.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "LOADED", done.stdout


def commands() -> dict[str, Any]:
    """Every command by what is typed for it: ``encoder add``."""
    group = typer.main.get_command(app)
    found: dict[str, Any] = {"": group}
    for name, command in group.commands.items():
        found[name] = command
        found |= {f"{name} {inner}": one for inner, one in getattr(command, "commands", {}).items()}
    return found


def test_every_command_has_a_help_with_examples_that_can_be_typed() -> None:
    names = commands()
    assert len(names) >= 20
    for name, command in names.items():
        assert command.help, name
        examples = re.findall(r"\$\[/\] pgembed (.+)", command.epilog.replace("\\[", "["))
        assert examples, f"pgembed {name} --help has no example"
        for example in examples:
            words = shlex.split(example.split(">")[0] if " > " in example and "'" not in example else example)
            typed = max((one for one in names if words[: len(one.split())] == one.split()), key=len)
            assert not name or typed.startswith(name), example
            names[typed].make_context(typed, words[len(typed.split()) :])  # raises where it cannot be parsed


def test_exit_codes_are_told_and_kept(cli: Cli) -> None:
    told = cli("--help", process=True)
    assert re.search(r"0 +done", told)
    assert re.search(r"2 +wrong usage", told)
    for arguments in (["status", "--no-such-option"], ["search"], ["index", "product", "--m", "many"]):
        error = cli(*arguments, fails=2, process=True)
        assert error.startswith("error: ")
        assert f"hint: See pgembed {arguments[0]} --help" in error


def test_commands_that_change_things_say_so_in_json(cli: Cli, database: psycopg.Connection) -> None:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text)")
    database.execute("INSERT INTO product VALUES (1, 'a dog'), (2, 'a cat')")
    told = [
        json.loads(cli(*line.split(), "--json"))
        for line in (
            "encoder add shop builtin:lite",
            "attach product embedding --encoder shop --text title",
            "worker --until-idle",
            "index product",
            "retry product",
            "reconcile product",
            "detach product",
            "encoder remove shop",
            "uninstall",
        )
    ]
    assert [one["action"] for one in told] == [
        "encoder add", "attach", "worker", "index", "retry", "reconcile", "detach", "encoder remove", "uninstall",
    ]  # fmt: skip
    assert told[0]["dim"] == 256
    assert (told[1]["table"], told[1]["target"]) == ("product", "embedding")
    assert (told[2]["written"], told[2]["failed"]) == (2, 0)
    assert told[4]["rows"] == 0


def test_errors_are_json_where_json_is_asked_for(cli: Cli) -> None:
    error = json.loads(cli("encoder", "show", "nothing", "--json", fails=1, process=True))
    assert "'nothing'" in error["error"]
    assert "pgembed encoder add shop builtin:lite" in error["hint"]
    error = json.loads(cli("encoder", "show", "--json", fails=2))
    assert set(error) == {"error", "hint"}


def test_notices_of_the_server_are_told(cli: Cli, database: psycopg.Connection) -> None:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text)")
    database.execute("ALTER TABLE product ENABLE ROW LEVEL SECURITY")
    cli("encoder", "add", "shop", "builtin:lite")
    attach = ["attach", "product", "embedding", "--encoder", "shop", "--text", "title"]
    done = cli.run(*attach, process=True)
    assert re.fullmatch(r"notice: Table .+ has row-level security: .+\n", done.stderr), done.stderr
    assert "notice" not in cli.run("detach", "product").stderr  # what dropping drops is nobody's news
    told = json.loads(cli.run(*attach, "--json", process=True).stderr)
    assert "row-level security" in told["notice"]


HINTS = [
    (
        "Attach one: SELECT pgembed.attach('shop.product', 'embedding', encoder => '...', inputs => '...');",
        "Attach one: pgembed attach shop.product embedding --encoder ENCODER --text '{column}' --image COLUMN",
    ),
    ("Detach it: SELECT pgembed.detach('\"My Table\"', ...);", "Detach it: pgembed detach '\"My Table\"'"),
    ("Or: SELECT pgembed.remove_encoder(...).", "Or: pgembed encoder remove."),
    ("Say which: embedding => 'a'.", "Say which: --embedding a."),
    (
        "See SELECT * FROM pgembed.failures; then SELECT pgembed.retry('product', 'embedding');",
        "See pgembed failures, then pgembed retry product --embedding embedding",
    ),
    ("SELECT pgembed.forget(3);", "SELECT pgembed.forget(3);"),
    ("For example: limit=10.", "For example: --limit 10."),
    ("Ask for more rows at once: .limit(50)", "Ask for more rows at once: --limit 50"),
    ('Fuse by score, .fuse("score"), or', "Fuse by score, --method score, or"),
]


@pytest.mark.parametrize(("sql", "command"), HINTS)
def test_hints_name_commands(sql: str, command: str) -> None:
    assert as_commands(sql) == command


def test_piped_tables_are_neither_broken_nor_coloured(shop: Cli, database: psycopg.Connection) -> None:
    database.execute("UPDATE product SET title = repeat('long ', 100) WHERE title = 'panda'")
    shop.environment |= {"COLUMNS": "40"}
    del shop.environment["NO_COLOR"]
    said = shop("search", "product", "a panda", "--limit", "2", process=True) + shop("status", process=True)
    assert "\x1b" not in said
    assert ("long " * 100).strip() in said
    assert "public" not in said
    assert len(said.splitlines()) == 5


def test_a_narrow_terminal_gets_one_line_a_row(shop: Cli, database: psycopg.Connection) -> None:
    database.execute("UPDATE product SET title = repeat('long ', 100)")
    for arguments in (["search", "product", "a panda", "--limit", "3"], ["status"]):
        lines = on_terminal(shop, *arguments).splitlines()
        assert len(lines) == (4 if arguments[0] == "search" else 2)
        assert all(len(line) <= 80 for line in lines)
    assert "product.embedding  shop" in "\n".join(lines)


def on_terminal(cli: Cli, *arguments: str) -> str:
    """What the command prints to a terminal of 80 columns."""
    control, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in cli.environment.items() if name != "COLUMNS"} | {"TERM": "dumb"}
    with subprocess.Popen(
        [sys.executable, "-m", "pgembed.cli", *arguments], env=environment, stdout=terminal, stderr=terminal
    ) as running:
        os.close(terminal)
        said = b""
        with suppress(OSError):  # the end of a terminal is an error
            while part := os.read(control, 65536):
                said += part
        assert running.wait(timeout=60) == 0, said
    os.close(control)
    return said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("attach ", ["product", "unrelated"]),
        ("search ", ["product"]),
        ("search product --embedding ", ["embedding"]),
        ("search product words --column ", ["embedding", "id", "photo", "price", "title"]),
        ("encoder show s", ["shop"]),
        ("enc", ["encoder"]),
    ],
)
def test_names_are_completed_from_the_database(
    cli: Cli, database: psycopg.Connection, typed: str, expected: list[str]
) -> None:
    database.execute("CREATE TABLE product (id int PRIMARY KEY, title text, price numeric, photo bytea)")
    database.execute("CREATE TABLE unrelated (id int)")
    database.execute("SELECT pgembed.add_encoder('shop', 'builtin:lite')")
    database.execute("SELECT pgembed.attach('product', 'embedding', 'shop', '{\"image\": \"photo\"}')")
    done = complete(cli, typed)
    assert done.stdout.split() == expected
    assert done.stderr == ""


def test_completion_is_silent_where_there_is_no_server() -> None:
    done = complete(Cli("postgresql://127.0.0.1:1/nothing"), "search ")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
    cli = Cli("")
    cli.environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"  # whatever shell runs this
    assert "complete" in cli("--show-completion", "bash", process=True)


def complete(cli: Cli, typed: str) -> subprocess.CompletedProcess[str]:
    """What the shell offers where Tab is pressed after ``typed``."""
    position = len(typed.split()) + typed.endswith(" ")
    asked = {"_PGEMBED_COMPLETE": "complete_bash", "COMP_WORDS": f"pgembed {typed}", "COMP_CWORD": str(position)}
    return subprocess.run(
        [sys.executable, "-m", "pgembed.cli"],
        env=cli.environment | asked, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


WRONG = [
    (["search", "nowhere", "a dog"], "nowhere"),
    (["search", "product", "a dog", "--where", "prise < 3"], "prise"),
    (["search", "product", "--image", "/no/such/picture.jpg"], "/no/such/picture.jpg"),
    (["attach", "product", "embedding", "--encoder", "shop", "--image", "photo"], "embedding"),
    (["attach", "product", "other", "--encoder", "none", "--image", "photo"], "'none'"),
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


WRONG_USAGE = [
    (["search", "product"], "nothing to search for"),
    (["attach", "product", "other", "--encoder", "shop"], "no input"),
    (["worker", "--once", "--until-idle"], "exclude each other"),
    (["encoder", "add", "x", "builtin:lite", "--settings", "{"], "is not JSON"),
]


def test_what_makes_no_sense_is_wrong_usage(cli: Cli) -> None:
    for arguments, message in WRONG_USAGE:
        assert message in cli(*arguments, fails=2)


def test_no_server_is_said_in_a_sentence() -> None:
    error = Cli("postgresql://127.0.0.1:1/nothing")("status", fails=1, process=True)
    assert error.startswith("error: ")
    assert "PGEMBED_DSN" in error
