"""Bad input of a search: one sentence with the value at fault and a hint, the same from SQL, Python and the command."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

import pgembed
from pgembed import Image, Pgembed, Text, Vector
from pgembed.cli.main import main
from pgembed.errors import PgembedError
from tests.conftest import connection_to, new_database
from tests.fakes import until

DIM = 256
NO_PICTURE = b"no picture"
SHOE = "(SELECT pgembed.encode_text('lite', 'a shoe'))"


@dataclass(frozen=True)
class Shop:
    dsn: str
    conn: psycopg.Connection[Any]
    db: Pgembed


@pytest.fixture(scope="module")
def shop(server_dsn: str, template: str) -> Iterator[Shop]:
    """A table with an embedding, one with none, and one with two."""
    for dsn in new_database(server_dsn, template):
        for conn in connection_to(dsn):
            with pgembed.connect(dsn) as db:
                for table in ("product", "bare", "two"):
                    conn.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, title text, price int)".encode())
                conn.execute("INSERT INTO product VALUES (1, 'a red shoe', 10), (2, 'a blue hat', 20)")
                db.add_encoder("lite", "builtin:lite")
                for table, target in (("product", "lite"), ("two", "one"), ("two", "other")):
                    db.attach(table, target, encoder="lite", text="title")
                db.work(until_idle=True)
                yield Shop(dsn, conn, db)


@contextmanager
def working(shop: Shop) -> Iterator[None]:
    """A worker that offers to encode queries."""
    worker = shop.db.worker()
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        until(lambda: shop.conn.execute("SELECT FROM pgembed._serving('lite')").fetchall() != [])
        yield
    finally:
        worker.stop()
        thread.join()


def sentence_of_sql(shop: Shop, statement: str) -> tuple[str, str | None]:
    with pytest.raises(psycopg.Error) as raised:
        shop.conn.execute(statement.encode())
    return str(raised.value.diag.message_primary), raised.value.diag.message_hint


def sentence_of_python(shop: Shop, ask: Callable[[Pgembed], object]) -> tuple[str, str | None]:
    with pytest.raises(PgembedError) as raised:
        ask(shop.db)
    return raised.value.message, raised.value.hint


def sentence_of_command(
    shop: Shop, arguments: tuple[str, ...], stdin: str | None, streams: pytest.MonkeyPatch, capfd: Any  # noqa: ANN401
) -> tuple[str, str | None]:  # fmt: skip
    streams.setattr("sys.stdin", io.StringIO(stdin))
    with pytest.raises(SystemExit) as done:
        main(["--dsn", shop.dsn, "search", *arguments, "--json"])
    told = json.loads(capfd.readouterr().err.splitlines()[-1])
    assert done.value.code == 1
    return told["error"], told["hint"]


def in_sql(query: str = SHOE, options: str = "", table: str = "product") -> str:
    return f"SELECT pgembed.search(NULL::{table}, {query}{options})"


def filtered(condition: str) -> tuple[str, Callable[[Pgembed], object], tuple[str, ...], None]:
    return (
        in_sql(options=f", filter => '{condition}'"),
        lambda db: db.search("product", Text("a shoe"), where=condition),
        ("product", "a shoe", "--where", condition),
        None,
    )


ZERO, OTHER = json.dumps({"vector": [0] * DIM}), json.dumps({"vector": [1] * DIM, "space": "other"})
CASES: dict[str, tuple[str, str, Callable[[Pgembed], object], tuple[str, ...], str | None]] = {
    "vectors of another space": (
        r"product\.lite holds vectors of 'lite' \(space builtin:.*\); the query has vectors of space other\.",
        f"SELECT pgembed.search_several(NULL::product, '[{OTHER}]')",
        lambda db: db.search("product", Vector([1.0] * DIM, space="other")),
        ("product", "--query", "-"), OTHER,
    ),
    "a zero vector": (
        r"vector .*is zero, to which no row is near\.",
        in_sql(f"array_fill(0, ARRAY[{DIM}])::vector"),
        lambda db: db.search("product", Vector([0.0] * DIM)),
        ("product", "--query", "-"), ZERO,
    ),
    "a number that is none": (
        r"NaN not allowed in vector|Number 1 of the vector, nan, is not finite",
        in_sql(f"array_fill('NaN'::real, ARRAY[{DIM}])::vector"),
        lambda db: db.search("product", Vector([float("nan")] * DIM)),
        ("product", "--query", "-"), '{"vector": [NaN]}',
    ),
    "a sum that cancels": (
        r"vectors cancel under the weights \{1,-1\}: no direction is left\.",
        in_sql(f"(SELECT pgembed.compose(ARRAY[{SHOE}, {SHOE}], ARRAY[1, -1]))"),
        lambda db: db.search("product", Text("a shoe") - Text("a shoe")),
        ("product", "a shoe", "--minus", "a shoe", "--minus-weight", "1"), None,
    ),
    "a weight that is not finite": (
        r"weight .*is not a finite number",
        in_sql(f"(SELECT pgembed.compose(ARRAY[{SHOE}], ARRAY['NaN'::float8]))"),
        lambda db: db.search("product", float("nan") * Text("a shoe")),
        ("product", "a shoe", "--words-weight", "nan"), None,
    ),
    "an empty text": (
        r"(The text to encode with 'lite'|Text\(' '\)) is empty\.",
        in_sql("(SELECT pgembed.encode_text('lite', ' '))"),
        lambda db: db.search("product", Text(" ")),
        ("product", " "), None,
    ),
    "no rows": (
        r"(k|limit) is the number of rows wanted, at least 1, not 0\.",
        in_sql(options=", k => 0"),
        lambda db: db.search("product", Text("a shoe"), limit=0),
        ("product", "a shoe", "--limit", "0"), None,
    ),
    "fewer than no rows of words": (
        r"(k|limit) is the number of rows wanted, at least 1, not -1\.",
        "SELECT pgembed.hybrid(NULL::product, 'a shoe', k => -1)",
        lambda db: db.hybrid("product", "a shoe", limit=-1),
        ("product", "a shoe", "--words", "--limit", "-1"), None,
    ),
    "a filter that does not end": (
        "The filter 'price <' is not one condition on product: syntax error at or near", *filtered("price <")
    ),
    "a filter on no column": (
        r"The filter 'prise < 3' is not one condition on product: column \"prise\" does not exist\.",
        *filtered("prise < 3"),
    ),
    "a filter that is no condition": (
        "The filter 'price' is not one condition on product: argument of .* must be type boolean", *filtered("price")
    ),
    "a filter with a second statement": (
        "The filter 'true; DROP TABLE product' holds a semicolon.", *filtered("true; DROP TABLE product")
    ),
    "a filter with a comment": ("The filter 'true -- x' holds a comment.", *filtered("true -- x")),
    "a table without an embedding": (
        r"Table bare has no embedding\.",
        in_sql(table="bare"), lambda db: db.search("bare", Text("a shoe")), ("bare", "a shoe"), None,
    ),
    "a table with two": (
        r"Table two has several embeddings: one, other\.",
        in_sql(table="two"), lambda db: db.search("two", Text("a shoe")), ("two", "a shoe"), None,
    ),
    "words in a table with two": (
        r"Table two has several embeddings: one, other\.",
        "SELECT pgembed.hybrid(NULL::two, 'a shoe')", lambda db: db.hybrid("two", "a shoe"),
        ("two", "a shoe", "--words"), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sentence", "statement", "python", "arguments", "stdin"), CASES.values(), ids=CASES)
def test_sql_python_and_the_command_say_the_same(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capfd: Any,  # noqa: ANN401
    sentence: str, statement: str, python: Callable[[Pgembed], object], arguments: tuple[str, ...], stdin: str | None,
) -> None:  # fmt: skip
    told = [
        sentence_of_sql(shop, statement),
        sentence_of_python(shop, python),
        sentence_of_command(shop, arguments, stdin, monkeypatch, capfd),
    ]
    for message, hint in told:
        assert re.search(sentence, message)
        assert hint or message == "NaN not allowed in vector"  # pgvector's own


def test_an_unreadable_picture_is_the_same_sentence(
    shop: Shop, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any  # noqa: ANN401
) -> None:  # fmt: skip
    (file := tmp_path / "shoe.jpg").write_bytes(NO_PICTURE)
    with working(shop):
        in_sql = sentence_of_sql(shop, f"CALL pgembed.prepare_images('lite', ARRAY['{NO_PICTURE.decode()}'::bytea])")
    in_python = sentence_of_python(shop, lambda db: db.search("product", Image(NO_PICTURE)))
    by_command = sentence_of_command(shop, ("product", "--image", str(file)), None, monkeypatch, capfd)
    for message, hint in (in_sql, in_python, by_command):
        assert re.search(r"The picture .* cannot be read: it looks like text\.", message)
        assert hint


def test_a_bad_filter_is_named_in_a_transaction_and_among_others(shop: Shop) -> None:
    """In the caller's transaction, which has failed by then, Postgres's words stand beside the filter; what fails for
    another reason is told as it is."""
    with pgembed.connect(shop.conn) as db:
        with pytest.raises(PgembedError, match=r"(?s)syntax error.*filter 'price <'"), shop.conn.transaction():
            db.search("product", Text("a shoe"), where="price <")
        with pytest.raises(PgembedError, match=r"no word that .* Write it in English"), shop.conn.transaction():
            db.search("product", Text("☃"), where="price < 70")
        asked = db.query("product").near(Text("a shoe")).join("JOIN two ON two.id = product.id + %s", 1)
        with pytest.raises(PgembedError, match=r"The filter '\(two\.price < 7\) AND \(two\.prise > 1\)' is not one"):
            asked.where("two.price < %s", 7).where("two.prise > 1").rows()
        with pytest.raises(PgembedError, match=r"^function no_such\(integer\) does not exist"):
            asked.where("two.price < %s", 7).select("no_such(two.id) AS x").rows()
