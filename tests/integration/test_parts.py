"""Many vectors a row: parts are kept true, replaced at once, encoded once, and found with their place."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

import pgembed
from pgembed import Text, parts
from pgembed.decoding.picture import Limits
from pgembed.encoders import Encoder
from pgembed.encoders.builtin import LiteEncoder
from pgembed.errors import CatalogError, EncoderError, InvalidInput, InvalidQuery
from pgembed.parts import Part, Splitter
from tests.fakes import Connection, use_encoders, use_splitters

STORY = "a red shoe\na steam engine\na violin in a case"
OTHER = "the moon over a lake\na red rose"


class Lines(Splitter):
    """A part for each line; a line `!` breaks it, and one `?` has a place that is none."""

    modalities = frozenset({"text"})

    @classmethod
    def load(cls, options: Mapping[str, Any]) -> Self:
        if options:
            raise InvalidInput(f"lines has no option {next(iter(options))!r}.")
        return cls()

    def split(self, value: str | bytes, encoder: Encoder, limits: Limits) -> Iterator[Part]:
        assert isinstance(value, str)
        start = 0
        for line in value.split("\n"):
            if line == "!":
                raise RuntimeError("it broke")
            if line == "?":
                yield Part("line", {"start": object()}, line, line)
            if line.strip():
                yield Part("line", {"start": start, "end": start + len(line)}, line, line)
            start += len(line) + 1


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = parts.splitters()
    monkeypatch.setattr(parts, "splitters", lambda: {**installed, **use_splitters(lines=Lines)})


@pytest.fixture
def conn(database: Connection) -> Connection:
    return database


@pytest.fixture
def db(conn: Connection, database_dsn: str) -> Iterator[pgembed.Pgembed]:
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("lite", "builtin:lite")
        conn.execute("CREATE TABLE story (id bigint PRIMARY KEY, body text, price integer, photo bytea)")
        conn.execute("INSERT INTO story VALUES (1, %s, 10), (2, %s, 20), (3, NULL, 30)", [STORY, OTHER])
        db.attach("story", "passages", encoder="lite", text="body", parts="lines")
        db.work(until_idle=True)
        yield db


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that rows had encoded."""
    encoded: list[str] = []
    embed = LiteEncoder.embed_texts

    def counting(self: LiteEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
        encoded.extend(texts)
        return embed(self, texts)

    monkeypatch.setattr(LiteEncoder, "embed_texts", counting)
    return encoded


def stored(conn: Connection) -> list[tuple[int, int, str]]:
    rows = conn.execute("SELECT id, part, content FROM story_passages ORDER BY id, part").fetchall()
    return [(int(str(i)), int(str(n)), str(content)) for i, n, content in rows]


def assert_true(conn: Connection) -> None:
    """Every line of every row has its own vector, and nothing else has one."""
    bodies = conn.execute("SELECT id, body FROM story WHERE body ~ '\\S' ORDER BY id").fetchall()
    expected = [
        (i, n, line)
        for i, body in bodies
        for n, line in enumerate((line for line in str(body).split("\n") if line.strip()), start=1)
    ]
    assert stored(conn) == expected
    encoder = LiteEncoder.load("lite", {})
    vectors = conn.execute("SELECT content, vector::float4[], location, body FROM story_passages JOIN story USING (id)")
    for content, vector, location, body in vectors.fetchall():
        assert isinstance(location, dict)
        assert str(body)[location["start"] : location["end"]] == content
        assert np.allclose(np.array(vector), encoder.embed_texts([str(content)])[0], atol=1e-6)


def test_parts_are_kept_true(db: pgembed.Pgembed, conn: Connection, counted: list[str]) -> None:
    assert_true(conn)
    conn.execute("UPDATE story SET body = body || E'\\na bicycle' WHERE id = 1")
    conn.execute("UPDATE story SET body = 'a volcano' WHERE id = 2")
    conn.execute("INSERT INTO story VALUES (4, E'an anchor\\n\\na bottle', 40)")
    counted.clear()
    db.work(until_idle=True)
    assert sorted(counted) == ["a bicycle", "a bottle", "a volcano", "an anchor"]
    assert_true(conn)
    conn.execute("DELETE FROM story WHERE id = 4")
    conn.execute("UPDATE story SET id = 7 WHERE id = 1")
    conn.execute("UPDATE story SET body = '  ' WHERE id = 2")
    db.work(until_idle=True)
    assert_true(conn)
    conn.execute("TRUNCATE story")
    assert stored(conn) == []


def test_parts_that_move_keep_their_vectors(db: pgembed.Pgembed, conn: Connection, counted: list[str]) -> None:
    conn.execute("UPDATE story SET body = %s WHERE id = 1", ["a mosque\n" + STORY])
    counted.clear()
    db.work(until_idle=True)
    assert counted == ["a mosque"]
    assert_true(conn)


def test_a_row_is_found_once_by_its_best_part(db: pgembed.Pgembed, conn: Connection) -> None:
    rows = db.search("story", Text("a steam engine"), limit=10)
    assert [(row.id, row.part, row.content, row.kind) for row in rows] == [
        (1, 2, "a steam engine", "line"), (2, rows[1].part, rows[1].content, "line"),
    ]  # fmt: skip
    assert rows[0].location == {"start": 11, "end": 25}
    assert rows[0].score == pytest.approx(1, abs=1e-6)
    found = conn.execute(
        "SELECT (item).id, score, part, content, location FROM pgembed.search_parts(NULL::story,"
        " (SELECT pgembed.encode_text('lite', 'a steam engine')))"
    ).fetchall()
    assert [tuple(row) for row in found] == [
        (row.id, pytest.approx(row.score, abs=1e-9), row.part, row.content, row.location) for row in rows
    ]
    plain = conn.execute(
        "SELECT (item).id FROM pgembed.search(NULL::story, (SELECT pgembed.encode_text('lite', 'a steam engine')))"
    ).fetchall()
    assert plain == [(1,), (2,)]


def test_filters_are_on_the_rows(db: pgembed.Pgembed, conn: Connection) -> None:
    query = Text("a steam engine")
    assert [row.id for row in db.search("story", query, where="price > %s", params=[10])] == [2]
    found = conn.execute(
        "SELECT (item).id FROM pgembed.search_parts(NULL::story, (SELECT pgembed.encode_text('lite', 'a violin')),"
        " filter => 'price > $1', params => '[10]')"
    ).fetchall()
    assert found == [(2,)]


def many(conn: Connection, documents: int, lines: int) -> None:
    """Documents of so many parts, with vectors that lie around one of their document's, under an index."""
    conn.execute("SELECT setseed(0.5)")
    conn.execute("ALTER TABLE story_passages DISABLE TRIGGER ALL")
    conn.execute("SELECT pgembed.pause('story')")
    conn.execute("INSERT INTO story SELECT i, 'x', i FROM generate_series(10, %s) AS i", [documents + 9])
    conn.execute(
        "INSERT INTO story_passages SELECT i, n, 'line', '{}', 'x', '', l2_normalize((SELECT array_agg("
        "sin(i * 7.3 + d * (1 + i %% 13)) + 0.7 * (random() - 0.5)) FROM generate_series(1, 256) AS d"
        " WHERE i + n > 0)::vector)"
        " FROM generate_series(10, %s) AS i, generate_series(1, %s + i %% 5) AS n",
        [documents + 9, lines],
    )
    conn.execute("CREATE INDEX ON story_passages USING hnsw (vector vector_cosine_ops)")
    conn.execute("CREATE INDEX ON story (price)")
    conn.execute("ANALYZE story, story_passages")


@pytest.mark.parametrize("where", [None, "price > 700", "price % 10 = 3", "price = 500", "price < 0"])
def test_as_many_rows_come_back_as_match(db: pgembed.Pgembed, conn: Connection, where: str | None) -> None:
    many(conn, 1000, 12)
    for row in (20, 400, 1005):
        (vector,) = conn.execute(
            "SELECT vector::text FROM story_passages WHERE id = %s AND part = 1", [row]
        ).fetchall()[0]
        query = pgembed.Vector(json.loads(str(vector)))
        exact = db.search("story", query, where=where, limit=20, columns=["id"], exact=True)
        found = db.search("story", query, where=where, limit=20, columns=["id"])
        (matching,) = conn.execute(
            f"SELECT count(*) FROM story WHERE id > 3 AND ({where or 'true'})".encode()
        ).fetchall()[0]
        of_sql = "SELECT (item).id FROM pgembed.search_parts(NULL::story, %s::vector, 20, %s, exact => %s) AS s"
        for ids in (
            [row.id for row in exact], [row.id for row in found],
            *([i for (i,) in conn.execute(of_sql, [vector, where, way]).fetchall()] for way in (True, False)),
        ):  # fmt: skip
            assert len(set(ids)) == len(ids)
            assert len([i for i in ids if i > 3]) >= min(20, int(str(matching))) - 2
            assert len(set(ids) & {row.id for row in exact}) >= 0.9 * len(exact)


@pytest.mark.parametrize("quantization", ["half", "binary"])
def test_a_coarse_index_gives_candidates(db: pgembed.Pgembed, conn: Connection, quantization: str) -> None:
    many(conn, 1000, 12)
    conn.execute("DROP INDEX story_passages_vector_idx")
    db.build_index("story", quantization=quantization, wait=False)
    conn.execute("ANALYZE story_passages")
    found = exact = 0
    for row in range(20, 1000, 100):
        first = "SELECT vector::text FROM story_passages WHERE id = %s AND part = 1"
        (vector,) = conn.execute(first, [row]).fetchall()[0]
        query = pgembed.Vector(json.loads(str(vector)))
        best = db.search("story", query, limit=10, exact=True)
        explained = db.query("story").near(query, embedding="passages").explain()
        assert explained.index == f"story_passages_hnsw_1_{quantization}"
        of_sql = conn.execute(
            "SELECT (item).id, score, part FROM pgembed.search_parts(NULL::story, %s::vector)", [vector]
        ).fetchall()
        scores = {row.id: row.score for row in best}
        for rows in ([(row.id, row.score) for row in explained.rows], [(i, score) for i, score, _ in of_sql]):
            assert len(rows) == 10
            found += len({i for i, _ in rows} & scores.keys())
            exact += 10
            assert all(score == pytest.approx(scores[i], abs=1e-6) for i, score in rows if i in scores)
    assert found >= 0.9 * exact
    with pytest.raises(CatalogError, match="quantization is 'none', 'half' or 'binary', not 'ternary'"):
        db.build_index("story", quantization="ternary", wait=False)


def test_the_best_parts_may_count_together(db: pgembed.Pgembed, conn: Connection) -> None:
    conn.execute("INSERT INTO story VALUES (5, E'a shoe\\na boot\\na red boot', 5), (6, E'a red shoe\\nthe sky', 5)")
    db.work(until_idle=True)
    query = "(SELECT pgembed.encode_text('lite', 'a red shoe'))"
    for exact in ("true", "false"):
        rows = conn.execute(
            f"SELECT (item).id, score FROM pgembed.search_parts(NULL::story, {query}, best => 2,"
            f" exact => {exact})".encode()
        ).fetchall()
        by_hand = conn.execute(
            f"SELECT id, sum(s) FROM (SELECT id, 1 - (vector <=> {query}) AS s, row_number() OVER (PARTITION BY id"
            f" ORDER BY vector <=> {query}) AS n FROM story_passages) AS p"
            " WHERE n <= 2 GROUP BY id ORDER BY 2 DESC, 1".encode()
        ).fetchall()
        assert [row[0] for row in rows] == [row[0] for row in by_hand]
        assert [row[1] for row in rows] == pytest.approx([row[1] for row in by_hand])
    for found in (
        db.search("story", Text("a red shoe"), best=2),
        db.query("story").near(Text("a red shoe")).best(2).rows(),
        db.search("story", Text("a red shoe"), best=2, exact=True),
    ):
        assert [row.id for row in found] == [row[0] for row in by_hand]
        assert [row.score for row in found] == pytest.approx([row[1] for row in by_hand])
    nearest = {row.id: row.content for row in db.search("story", Text("a red shoe"))}
    assert {row.id: row.content for row in found} == nearest
    with pytest.raises(InvalidQuery, match="best is the number of parts"):
        db.search("story", Text("a red shoe"), best=0)
    db.attach("story", "whole", encoder="lite", text="body")
    with pytest.raises(InvalidQuery, match="holds one vector a row"):
        db.search("story", Text("a red shoe"), best=2, embedding="whole")


def test_a_row_stands_for_the_mean_of_its_parts(db: pgembed.Pgembed) -> None:
    rows = db.search("story", pgembed.Row(2), limit=2)
    assert rows[0].id == 2
    assert db.search("story", pgembed.Row(1) - 0.5 * Text("a violin"), limit=1)[0].id == 1


def test_one_broken_row_stops_no_other(db: pgembed.Pgembed, conn: Connection) -> None:
    conn.execute("INSERT INTO story VALUES (7, '?', 1), (8, '!', 1), (9, 'a rose', 1)")
    db.work(until_idle=True)
    assert {f.key[0]: f.error for f in db.failures("story")} == {
        "7": "The splitter 'lines' fails: Object of type object is not JSON serializable",
        "8": "The splitter 'lines' fails: it broke",
    }
    assert (9, 1, "a rose") in stored(conn)


def test_readers_see_all_of_a_rows_parts_or_none(db: pgembed.Pgembed, conn: Connection, database_dsn: str) -> None:
    stop = threading.Event()
    torn: list[object] = []

    def read() -> None:
        with psycopg.connect(database_dsn, autocommit=True) as own:
            while not stop.is_set():
                rows = own.execute(
                    "SELECT array_agg(content ORDER BY part) FROM story_passages WHERE id = 1"
                ).fetchall()
                lines: list[str] = rows[0][0] or []
                if lines and (len({line.split()[0] for line in lines}) > 1 or len(lines) != int(lines[0].split()[1])):
                    torn.append(lines)

    def write(step: int) -> None:
        count = 1 + step * 7 % 11
        body = "\n".join(f"{step} {count} a word {n}" for n in range(count))
        conn.execute("UPDATE story SET body = %s WHERE id = 1", [body])
        db.work(until_idle=True)

    write(0)
    reader = threading.Thread(target=read)
    reader.start()
    for step in range(1, 15):
        write(step)
    stop.set()
    reader.join()
    assert not torn
    assert_true(conn)


def test_what_cannot_be_taken_apart_is_refused(db: pgembed.Pgembed, conn: Connection) -> None:
    refused = [
        ("pgembed.attach('story', 'x', 'lite', '{\"text\": \"body\"}', parts => '{\"kind\": 3}')", "parts is the name"),
        ("pgembed.attach('story', 'x', 'lite', '{\"text\": \"body\"}', parts => '{x')", "not valid JSON"),
        ("pgembed.attach('story', 'x', 'lite', '{\"text\": \"body\"}', parts => 'lines', storage => 'column')",
         "one vector a row"),
        ("pgembed.attach('story', 'x', 'lite', '{\"text\": \"body\"}', parts => 'lines', mode => 'instant')",
         "encodes in Postgres"),
        ("pgembed.attach('story', 'x', 'lite', '{\"text\": \"body\"}', parts => 'tiles')", "parts of a picture"),
        ("pgembed.search_parts(NULL::story, '[1]'::vector, best => 0)", "best is the number of parts"),
    ]  # fmt: skip
    for call, told in refused:
        with pytest.raises(psycopg.Error, match=told):
            conn.execute(f"SELECT {call}".encode())
    with pytest.raises(InvalidInput, match="no option 'x'"):
        db.attach("story", "x", encoder="lite", text="body", parts={"kind": "lines", "x": 1})
    with pytest.raises(InvalidInput, match="no splitter 'words'"):
        db.attach("story", "x", encoder="lite", text="body", parts="words")
    with pytest.raises(CatalogError, match="takes one input apart"):
        db.attach("story", "x", encoder="lite", text="body", image="photo", parts="lines")


def test_status_counts_rows(db: pgembed.Pgembed) -> None:
    (status,) = db.status("story")
    assert (status.rows, status.ready) == (3, 2)


def test_verify_compares_every_part(db: pgembed.Pgembed, conn: Connection) -> None:
    assert db.verify("story", sample=None).ok
    conn.execute(
        "UPDATE story_passages SET vector = (SELECT vector FROM story_passages WHERE id = 2 AND part = 1)"
        " WHERE id = 1 AND part = 3"
    )
    conn.execute("DELETE FROM story_passages WHERE id = 2 AND part = 2")
    found = db.verify("story", sample=None, repair=True)
    assert (found.rows, found.matching, found.differing.keys, found.repaired) == (3, 1, [["1"], ["2"]], 2)
    db.work(until_idle=True)
    assert_true(conn)
    assert db.verify("story", sample=None).ok


def test_a_part_that_cannot_be_encoded_is_left_out(
    db: pgembed.Pgembed, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = LiteEncoder.embed_texts

    def refusing(self: LiteEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
        if "------" in texts:
            raise InvalidInput("There is no word in it.")
        return embed(self, texts)

    monkeypatch.setattr(LiteEncoder, "embed_texts", refusing)
    conn.execute("INSERT INTO story VALUES (4, E'a shoe\\n------\\na lamp', 1), (5, '------', 1)")
    db.work(until_idle=True)
    assert [row for row in stored(conn) if row[0] > 3] == [(4, 1, "a shoe"), (4, 2, "a lamp")]
    assert [f.key for f in db.failures("story")] == [["5"]]


def test_hybrid_search_takes_the_best_part(db: pgembed.Pgembed, conn: Connection) -> None:
    rows = db.hybrid("story", "violin case", limit=5)
    assert rows[0].id == 1
    assert len({row.id for row in rows}) == len(rows)
    ((told,),) = conn.execute(
        "SELECT pgembed.explain_search(NULL::story, (SELECT pgembed.encode_text('lite', 'a violin')))"
    ).fetchall()
    assert [row["key"] for row in told["rows"]][:1] == [["1"]]
    explained = db.query("story").near(Text("a violin") + Text("a case"), embedding="passages").explain(recall=True)
    assert explained.recall == 1
    assert explained.rows[0].id == 1


def test_what_is_cut_is_told(db: pgembed.Pgembed, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = LiteEncoder.embed_texts

    def refusing(self: LiteEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
        if "bad" in texts:
            raise InvalidInput("There is no word in it.")
        return embed(self, texts)

    monkeypatch.setattr(LiteEncoder, "embed_texts", refusing)

    def longer(self: LiteEncoder, texts: Sequence[str]) -> list[bool]:
        return [len(text) > 20 for text in texts]

    monkeypatch.setattr(LiteEncoder, "is_cut", longer)
    conn.execute("INSERT INTO story VALUES (4, E'a shoe\\nbad', 1), (5, 'a text of more than twenty letters', 1)")
    db.work(until_idle=True)
    db.attach("story", "whole", encoder="lite", text="body", storage="column")
    db.work(until_idle=True)
    told = {(row.target, *row.key): row.told for row in db.cuts("story")}
    assert told["passages", "4"] == "1 of 2 parts could not be encoded and are left out: There is no word in it."
    assert told["passages", "5"] == "1 of 1 parts are longer than the encoder reads: their end is left out."
    assert told["whole", "5"].startswith("Its text is longer than encoder 'builtin:lite' reads")
    assert ("passages", "1") not in told
    assert [(row.target, row.cut) for row in db.status("story")] == [("passages", 2), ("whole", 3)]
    conn.execute("UPDATE story SET body = 'short' WHERE id = 5")
    conn.execute("DELETE FROM story WHERE id = 4")
    db.work(until_idle=True)
    assert {(row.target, *row.key) for row in db.cuts("story")} == {("whole", "1"), ("whole", "2")}


@pytest.mark.parametrize("kind", ["(id)", "(id, price)", "(price, id), partitioned"])
def test_every_kind_of_table(conn: Connection, database_dsn: str, kind: str) -> None:
    """Keys of several columns, and partitions; altered in name and type, and encoded only where that is due."""
    key, _, partitioned = kind.partition(", part")
    conn.execute(
        f"CREATE TABLE story (id integer, body text, price integer, PRIMARY KEY {key})"
        f"{' PARTITION BY RANGE (price)' if partitioned else ''}".encode()
    )
    if partitioned:
        conn.execute("CREATE TABLE cheap PARTITION OF story FOR VALUES FROM (0) TO (50)")
        conn.execute("CREATE TABLE dear PARTITION OF story DEFAULT")
    conn.execute("INSERT INTO story VALUES (1, %s, 10), (2, %s, 70), (3, NULL, 30)", [STORY, OTHER])
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("lite", "builtin:lite")
        db.attach("story", "passages", encoder="lite", text="body", parts="lines")

        def assert_found(column: str = "id") -> None:
            db.work(until_idle=True)
            assert db.verify(table, sample=None).ok
            (moon,) = db.search(table, Text("the moon over a lake"), limit=1)
            assert (moon[column], moon.part, moon.content) == (type(moon[column])(2), 1, "the moon over a lake")
            lines = conn.execute("SELECT count(*) FROM story_passages").fetchall()
            assert lines == [
                (
                    sum(
                        len(body.split("\n"))
                        for (body,) in conn.execute(f"SELECT {text} FROM {table} WHERE {text} IS NOT NULL".encode())
                    ),
                )
            ]

        table, text = "story", "body"
        assert_found()
        conn.execute("UPDATE story SET body = body || E'\na bicycle', price = price + 60 WHERE id < 3")
        conn.execute("INSERT INTO story VALUES (1, 'a new one', 10) ON CONFLICT DO NOTHING")
        assert_found()
        table, text = "tale", "words"
        conn.execute("ALTER TABLE story RENAME TO tale; ALTER TABLE tale RENAME body TO words")
        conn.execute("ALTER TABLE tale RENAME id TO number")
        conn.execute("SELECT pgembed.sync('tale')")
        conn.execute("UPDATE tale SET words = words || E'\na volcano' WHERE number = 2")
        assert_found("number")
        if not partitioned:
            before = conn.execute("SELECT array_agg(xmin::text) FROM story_passages").fetchall()
            conn.execute("SELECT pgembed.unhook('tale'); ALTER TABLE tale ALTER number TYPE text")
            conn.execute("SELECT pgembed.sync('tale')")
            assert_found("number")
            assert before != conn.execute("SELECT array_agg(xmin::text) FROM story_passages").fetchall()
        conn.execute("DELETE FROM tale WHERE number::text = '1'")
        assert conn.execute("SELECT count(*) FROM story_passages WHERE content = 'a red shoe'").fetchall() == [(0,)]
        db.detach("tale")
    assert conn.execute("SELECT to_regclass('story_passages')").fetchall() == [(None,)]


@pytest.mark.parametrize("indexed", [False, True])
def test_words_are_looked_for_in_parts(db: pgembed.Pgembed, conn: Connection, indexed: bool) -> None:
    if indexed:
        conn.execute("CREATE INDEX ON story_passages USING gin (to_tsvector('english', content))")
    conn.execute("INSERT INTO story VALUES (4, E'engines are steaming\\na red wagon', 1)")
    db.work(until_idle=True)
    for where, expected in ((None, {4}), ("price > 20", set[int]())):
        rows = db.hybrid(
            "story", "engine -violins", query=None, queries=[], words_columns=["passages.content"], where=where
        )
        assert {row.id for row in rows} == expected
    explained = (
        db.query("story").near(Text("a steam engine")).hybrid("steam engine", columns=["passages.content"]).explain()
    )
    assert explained.rows[0].id == 1
    assert explained.words[0] == ["engin", "steam"]
    with pytest.raises(CatalogError, match="no column 'nothing"):
        db.hybrid("story", "engine", words_columns=["nothing.content"])


def test_words_are_looked_for_in_parts_where_the_table_has_none(conn: Connection, database_dsn: str) -> None:
    conn.execute("CREATE TABLE scan (id integer PRIMARY KEY, file bytea)")
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("lite", "builtin:lite")
        db.attach("scan", "look", encoder="lite", screenshot="file", parts="lines")
        conn.execute("INSERT INTO scan VALUES (1, ''), (2, '')")
        conn.execute(
            "INSERT INTO scan_look SELECT id, part, 'line', '{}', content, '', pgembed.encode_text('lite', content)"
            " FROM (VALUES (1, 1, 'a ship'), (1, 2, 'a harbour'), (2, 1, 'a mountain')) AS v (id, part, content)"
        )
        assert [row.id for row in db.hybrid("scan", "mountain")][:1] == [2]
        assert [row.id for row in db.hybrid("scan", "harbour", queries=[])] == [1]


def test_a_broken_encoder_marks_nothing_failed(
    db: pgembed.Pgembed, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it breaks while a row's parts are still being made."""
    conn.execute("INSERT INTO story SELECT 4, string_agg('a word ' || i, E'\n') FROM generate_series(1, 200) AS i")

    def broken(self: LiteEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
        raise RuntimeError("the model is on fire")

    with monkeypatch.context() as patched:
        patched.setattr(LiteEncoder, "embed_texts", broken)
        with pytest.raises(EncoderError, match="on a plain text too: the model is on fire"):
            db.work(until_idle=True)
    assert db.failures("story") == []
    assert conn.execute("SELECT attempts FROM pgembed.job_1").fetchall() == [(0,)]
    db.work(until_idle=True)
    assert_true(conn)


def test_parts_count_against_the_budget(db: pgembed.Pgembed, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    use_encoders(monkeypatch, {"builtin:lite": LiteEncoder.load("lite", {})})
    conn.execute("""UPDATE pgembed.encoder SET settings = '{"tokens_per_day": 100000}'""")
    conn.execute("INSERT INTO story VALUES (4, E'a shoe\\na lamp', 1)")
    before = conn.execute("SELECT coalesce(sum(tokens), 0) FROM pgembed.written").fetchall()
    assert before == [(0,)]
    db.work(until_idle=True)
    ((tokens,),) = conn.execute("SELECT sum(tokens) FROM pgembed.written").fetchall()
    assert 4 <= tokens <= 8
