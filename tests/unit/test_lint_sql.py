"""The check of sql/: what it must find, and what it must let pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.lint_sql import lint, main

GOOD = """\
-- The nearest one. Called by search.
CREATE OR REPLACE FUNCTION pgembed.nearest(v @extschema:vector@.vector) RETURNS float8
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog
AS $$
DECLARE
    rows pgembed.embedding[]; -- a name, not a key word
BEGIN
    IF v IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'select a vector';
    END IF;
    RETURN (SELECT min(e.vector OPERATOR(@extschema:vector@.<=>) v) FROM pgembed.other AS e WHERE true);
END
$$;
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "10_file.sql"


def test_good_file_passes(file: Path) -> None:
    file.write_text(GOOD)
    assert lint(file) == []


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("END\n$$", "END IF\n$$", 5, "body does not parse"),
        ("RETURNS float8", "RETURNS RETURNS float8", 2, "does not parse"),
        ("    RETURN (SELECT", "    RETURN (select", 12, "'select' must be in upper case"),
        ("    IF v", "   IF v", 9, "indented by 3"),
        ("    IF v", "\tIF v", 9, "tab"),
        ("THEN\n", "THEN  \n", 9, "spaces at its end"),
        ("CREATE OR REPLACE", "CREATE", 2, "CREATE OR REPLACE"),
        ("SET search_path = pg_catalog\n", "", 2, "SECURITY DEFINER"),
        ("-- The nearest one. Called by search.\n", "", 1, "no comment above"),
        ("-- The nearest", "-- " + "very " * 30 + "near", 1, "columns"),
        ("$$;\n", "$$;\n\n", 16, "one line end"),
        ("-- The nearest", "-- \n" * 500 + "-- The nearest", 1, "long because"),
    ],
)
def test_fault_is_found_in_its_line(file: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1))
    assert [found for found in lint(file) if words in found.text and found.line == line], lint(file)


def test_table_belongs_into_a_migration(file: Path) -> None:
    file.write_text("CREATE TABLE pgembed.thing (id integer);\n")
    assert ["migration" in found.text for found in lint(file)] == [True]


def test_body_in_plain_sql_is_parsed(file: Path) -> None:
    file.write_text("-- One.\nCREATE OR REPLACE FUNCTION one() RETURNS integer\nLANGUAGE sql\nAS $$ SELEC 1 $$;\n")
    assert ["body does not parse" in found.text for found in lint(file)] == [True]


COMPOSES = """\
-- One that composes. Called by attach.
CREATE OR REPLACE FUNCTION pgembed.composes(relation regclass, target text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    given text := quote_ident(target);
BEGIN
    EXECUTE format('SELECT %I, %s FROM %s', target, given, relation);
    RAISE EXCEPTION USING MESSAGE = format('FROM where is %s?', target);
END
$$;
"""
RETURNS = """\
-- One that gives SQL. Called by attach.
CREATE OR REPLACE FUNCTION pgembed.gives_sql(key jsonb) RETURNS text
LANGUAGE sql
RETURN format('SELECT %I', key ->> 'name');
"""


@pytest.mark.parametrize(
    ("text", "old", "new", "unquoted"),
    [
        (COMPOSES, "", "", None),
        (COMPOSES, "SELECT %I", "SELECT %s", "target"),
        (COMPOSES, "quote_ident(target)", "target", "target"),
        (COMPOSES, "quote_ident(target)", "CASE WHEN true THEN 'a' ELSE 'b' || target END", "target"),
        (COMPOSES, "EXECUTE format('SELECT %I, %s FROM %s', target, given, relation)", "EXECUTE target", "target"),
        (COMPOSES, "EXECUTE format(", "EXECUTE format(target || ", "target"),
        (COMPOSES, "EXECUTE format(", "given := (SELECT e.target FROM e); EXECUTE format(", "e.target"),
        (COMPOSES, "    EXECUTE", "    SELECT 1, e.spec INTO target, given FROM e;\n    EXECUTE", "e.spec"),
        (RETURNS, "", "", None),
        (RETURNS, "%I", "%s", "key ->> 'name'"),
    ],
)
def test_what_nobody_quoted_does_not_get_into_sql(
    file: Path, text: str, old: str, new: str, unquoted: str | None
) -> None:
    assert old in text
    file.write_text(text.replace(old, new, 1))
    assert [found.text.partition(" into SQL")[0] for found in lint(file)] == ([f"puts {unquoted}"] if unquoted else [])


def test_exit_status_tells_whether_all_is_well(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(GOOD)
    assert main([str(file)]) == 0
    file.write_text("SELEC 1;\n")
    assert main([str(file)]) == 1
    assert f"{file}:1: does not parse" in capsys.readouterr().out
