"""Check the files of sql/: they parse, bodies included, can be applied again, quote, and are laid out in one way.

    python -m tools.lint_sql [FILE ...]

Prints ``file:line: what is wrong`` for each finding, and exits with 1 if there is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pglast import ast, parse_plpgsql, parse_sql
from pglast.enums import DefElemAction
from pglast.parser import ParseError, scan

from tools.lint_quoting import unquoted, with_known_types

VECTOR_SCHEMA = "@extschema:vector@"
STAND_IN = "public".ljust(len(VECTOR_SCHEMA), "_")  # of equal length: positions stay what they are in the file
MAX_COLUMNS = 120
MAX_COLUMNS_OF_TEXT = 160  # where a message or a statement to format stands across column 120
MAX_LINES = 500
EXCUSE = re.compile(r"\A(--.*\n)*--.*\blong because\b", re.IGNORECASE)

# Words that are never names here; all reserved words are checked besides.
KEYWORDS = re.compile(
    "atomic|begin|between|by|cascade|commit|cursor|definer|delete|elsif|exists|extension|foreach|function|immutable|insert"
    "|invoker|language|loop|over|parallel|partition|perform|procedure|raise|replace|returns|revoke|schema|security|setof"
    "|stable|strict|trigger|truncate|update|values|volatile|while|within|without",
    re.IGNORECASE,
)
LOWER_CASE = frozenset({"true", "false", "current_user", "session_user", "current_catalog"})  # values, written as such
QUOTE = "write %I or %L, or have a function quote it whose name ends in _sql (tools/lint_quoting.py)"
AGAIN = "sql/ is applied at every install: write CREATE OR REPLACE, IF EXISTS, or put it into a migration"


@dataclass(frozen=True, order=True)
class Finding:
    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Source:
    """A file of SQL, or the body of a function in it, which begins in line ``first_line``."""

    path: Path
    text: str
    first_line: int = 1

    def finding(self, position: int, text: str) -> Finding:
        """A finding at a character of the text."""
        return Finding(self.path, self.first_line + self.text.count("\n", 0, max(position, 0)), text)


def lint(path: Path) -> list[Finding]:
    """All findings in one file."""
    text = path.read_text(encoding="utf-8")
    source = Source(path, text.replace(VECTOR_SCHEMA, STAND_IN))
    findings = list(check_lines(path, text))
    try:
        statements = parse_sql(source.text)
    except ParseError as error:
        return [*findings, source.finding(position_of(error), f"does not parse: {error.args[0]}")]
    findings.extend(check_words(source))
    findings.extend(check_indentation(source))
    for raw in statements:
        start = statement_start(source.text, raw.stmt_location)
        end = raw.stmt_location + raw.stmt_len if raw.stmt_len else len(source.text)
        findings.extend(check_statement(source, raw.stmt, start, end))
    return sorted(findings)


def check_lines(path: Path, text: str) -> Iterator[Finding]:
    lines = text.split("\n")
    if lines[-1] or (len(lines) > 1 and not lines[-2]):
        yield Finding(path, len(lines), "must end with one line end")
    if len(lines) > MAX_LINES and not EXCUSE.search(text):
        yield Finding(path, 1, f"has {len(lines)} lines: split it, or say at its head that it is 'long because ...'")
    for number, line in enumerate(lines, start=1):
        if len(line) > (MAX_COLUMNS_OF_TEXT if in_constant(line, MAX_COLUMNS) else MAX_COLUMNS):
            yield Finding(path, number, f"has {len(line)} columns; {MAX_COLUMNS} is the most outside of constants")
        if line != line.rstrip():
            yield Finding(path, number, "has spaces at its end")
        if "\t" in line:
            yield Finding(path, number, "has a tab; indent with 4 spaces")


def in_constant(line: str, column: int) -> bool:
    """Whether a line of code has a text constant at this column."""
    return not line.lstrip().startswith("--") and line[:column].count("'") % 2 == 1


def check_words(source: Source) -> Iterator[Finding]:
    """Key words are in upper case."""
    for token in scan(source.text):
        word = source.text[token.start : token.end + 1]
        reserved = token.kind == "RESERVED_KEYWORD"
        if not (reserved or KEYWORDS.fullmatch(word)) or word == word.upper() or word.startswith('"'):
            continue
        if word.lower() in LOWER_CASE or is_name(source.text, token.start, token.end):
            continue
        yield source.finding(token.start, f"key word '{word}' must be in upper case")


def is_name(text: str, start: int, end: int) -> bool:
    """Whether a word is part of a qualified name, a function that is called, or an argument's name."""
    before, after = text[:start].rstrip(), text[end + 1 :].lstrip(" ")
    word_before = re.search(r"(\w+)$", before)
    called = after.startswith("(") and text[start : end + 1].islower() and not (word_before and word_before[1] == "IN")
    return before.endswith((".", "%")) or after.startswith((".", "=>")) or called


def check_indentation(source: Source) -> Iterator[Finding]:
    """Lines that begin outside of comments and constants are indented by steps of 4."""
    inside: set[int] = set()
    for token in scan(source.text):
        first = source.text.count("\n", 0, token.start)
        inside.update(range(first + 1, first + 1 + source.text.count("\n", token.start, token.end)))
    for number, line in enumerate(source.text.split("\n")):
        spaces = len(line) - len(line.lstrip(" "))
        if number == 0 or number in inside:
            continue
        if spaces % 4 and not line.lstrip().startswith("--"):
            yield source.finding(position_of_line(source.text, number), f"is indented by {spaces}; use steps of 4")


def check_statement(source: Source, statement: ast.Node, start: int, end: int) -> Iterator[Finding]:
    if not can_be_repeated(statement):
        yield source.finding(start, f"{type(statement).__name__}: {AGAIN}")
    lines_above = source.text[:start].rstrip(" ").split("\n")
    creates = isinstance(statement, ast.CreateFunctionStmt | ast.ViewStmt | ast.DefineStmt)
    if creates and not (len(lines_above) > 1 and lines_above[-2].startswith("--")):
        yield source.finding(start, "has no comment above it that says what it is for")
    if isinstance(statement, ast.CreateFunctionStmt):
        yield from check_function(source, statement, start, end)
        for expression in unquoted(statement, source.text[start:end]):
            yield source.finding(start, f"puts {expression} into SQL as it is: {QUOTE}")


def can_be_repeated(statement: ast.Node) -> bool:
    match statement:
        case ast.CreateFunctionStmt() | ast.ViewStmt() | ast.DefineStmt() | ast.CreateTrigStmt():
            return bool(statement.replace)
        case ast.DropStmt():
            return bool(statement.missing_ok)
        case ast.InsertStmt():
            return statement.onConflictClause is not None
        case _:
            repeatable = (
                ast.GrantStmt | ast.CommentStmt | ast.DoStmt | ast.AlterFunctionStmt | ast.AlterDefaultPrivilegesStmt
            )
            return isinstance(statement, repeatable)


def check_function(source: Source, function: ast.CreateFunctionStmt, start: int, end: int) -> Iterator[Finding]:
    options = {option.defname: option for option in function.options or ()}
    sets = [option.arg for option in function.options or () if option.defname == "set"]
    if "security" in options and options["security"].arg.boolval:
        path = [item for item in sets if item.name == "search_path" and item.kind is not DefElemAction.DEFELEM_UNSPEC]
        if not path:
            yield source.finding(start, "SECURITY DEFINER without SET search_path lets the caller choose what it runs")
    if "as" not in options:
        return
    language = options["language"].arg.sval if "language" in options else "sql"
    body, offset = body_of(source.text, start, end)
    inner = Source(source.path, body, source.first_line + source.text.count("\n", 0, offset))
    try:
        if language == "plpgsql":
            parse_plpgsql(with_known_types(source.text[start:end]))
        elif language == "sql":
            parse_sql(body)
    except ParseError as error:
        where = position_of(error) if language == "sql" else 0
        yield inner.finding(where, f"the body does not parse: {error.args[0]}")
        return
    yield from check_words(inner)
    yield from check_indentation(inner)


def body_of(text: str, start: int, end: int) -> tuple[str, int]:
    """The text between the dollar quotes of a function, and where it begins."""
    match = re.compile(r"\$(\w*)\$(.*?)\$\1\$", re.DOTALL).search(text, start, end)
    return (match[2], match.start(2)) if match else ("", start)


def statement_start(text: str, location: int) -> int:
    """Where a statement begins, past the blank lines and comments that the parser counts as part of it."""
    match = re.compile(r"(\s+|--[^\n]*|/\*.*?\*/)*", re.DOTALL).match(text, location)
    return match.end() if match else location


def position_of(error: ParseError) -> int:
    """The character at which the parser stopped; 0 where it does not say."""
    return next((part for part in error.args[1:] if isinstance(part, int)), 0)


def position_of_line(text: str, number: int) -> int:
    """The position of the first character of a line, lines counted from 0."""
    return sum(len(line) + 1 for line in text.split("\n")[:number])


def main(arguments: list[str]) -> int:
    root = Path(__file__).resolve().parent.parent
    paths = [Path(argument) for argument in arguments] or sorted(root.glob("sql/*.sql"))
    if not paths:
        print("sql/ holds no files", file=sys.stderr)
        return 1
    findings = [finding for path in paths for finding in lint(path)]
    for finding in findings:
        print(finding)
    if not findings:
        print(f"{len(paths)} files of SQL: all well")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
