"""Searches built step by step: ``db.query("product").near(…).where(…).limit(…)``.

Each step gives a new query and leaves the one before as it is, so that a common start can be kept and varied. Nothing
is encoded or run before the rows, a page, the SQL or an explanation is asked for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Self, cast

from psycopg import sql

from pgembed.errors import InvalidQuery
from pgembed.explaining import Explanation, explained
from pgembed.inputs import Expression
from pgembed.plans import Compute, Parameters, Plan
from pgembed.query import PLACE, Place, SearchPlan, SearchRow, Statement, check_condition, reranked
from pgembed.searching import Searcher
from pgembed.shown import shortened

Rerank = Callable[[Sequence[SearchRow]], Sequence[float]]


@dataclass(frozen=True)
class Page:
    """Rows, best first, and ``next``: what ``after`` takes to go on after them; None where there are no more."""

    rows: list[SearchRow]
    next: str | None

    def __iter__(self) -> Iterator[SearchRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Asked:
    """What a query asks for so far."""

    table: str
    query: Expression | None = None
    embedding: str | None = None
    wheres: tuple[str, ...] = ()
    params: Parameters = ()
    joins: tuple[str, ...] = ()
    joined: Parameters = ()
    columns: tuple[str, ...] | None = None
    wide: bool = False
    exact: bool = False
    neutral: str | None = None
    limit: int = 10
    least: float | None = None
    after: str | None = None
    rerank: Rerank | None = field(default=None, compare=False)
    depth: int = 0

    @property
    def known(self) -> Expression:
        """What is near to what. Raises InvalidQuery where that was not said."""
        if self.query is None:
            raise InvalidQuery(
                f"The query of {self.table} is near to nothing yet.", 'Say to what: .near(Text("a red shoe"))'
            )
        return self.query

    def options(self, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """What the compiler takes."""
        if self.params and self.joined and isinstance(self.params, Mapping) != isinstance(self.joined, Mapping):
            raise _mixed()
        where = " AND ".join(f"({one})" for one in self.wheres) if len(self.wheres) > 1 else "".join(self.wheres)
        return {
            "embedding": self.embedding, "where": where or None, "params": self.params, "limit": self.limit,
            "columns": self.columns, "wide": self.wide, "exact": self.exact, "joins": self.joins, "joined": self.joined,
            "neutral": self.neutral,
        } | more  # fmt: skip

    def good(self, rows: list[SearchRow]) -> list[SearchRow]:
        """Those with the least score wanted, or a higher one."""
        return rows if self.least is None else [row for row in rows if row.score >= self.least]

    def mark(self) -> str:
        """What a page's token is known by: all that decides which rows come, in which order."""
        inputs = self.query.inputs if self.query is not None else ()
        contents = [(getattr(one, "content", None), repr(getattr(one, "mask", None))) for one in inputs]
        parts = (
            self.table, repr(self.query), contents, self.embedding, self.wheres, repr(self.params), self.joins,
            repr(self.joined), *([] if self.neutral is None else [self.neutral]),
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def place(self) -> Place | None:
        """Where ``after`` goes on. Raises InvalidQuery for what is no token of this query."""
        if self.after is None:
            return None
        try:
            mark, distance, shown, *key = json.loads(base64.urlsafe_b64decode(self.after.encode()))
            place = Place(float(distance), tuple(map(str, key)), int(shown))
        except (ValueError, TypeError, OverflowError, RecursionError, AttributeError):
            raise InvalidQuery(f"{shortened(repr(self.after))} is no page.", "Give what page().next gave.") from None
        if not 0 < place.shown < 2**31:
            raise InvalidQuery(f"{self.after!r} is no page.", "Give what page().next gave.")
        if mark != self.mark():
            raise InvalidQuery(
                f"The page {self.after!r} belongs to another query of {self.table}, or one with another filter.",
                "Ask for its first page again.",
            )
        return place

    def token(self, rows: Sequence[SearchRow]) -> str:
        """Where a page of these rows ends."""
        before = self.place()
        distance, *key = [rows[-1][name] for name in rows[-1] if name.startswith(PLACE)]
        shown = (before.shown if before else 0) + len(rows)
        content = json.dumps([self.mark(), distance, shown, *map(str, key)], separators=(",", ":"))
        return base64.urlsafe_b64encode(content.encode()).decode()


class Building:
    """The steps that every query has."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def __repr__(self) -> str:
        parts = [f"query({self._asked.table!r})"]
        if self._asked.query is not None:
            parts.append(f"near({self._asked.query!r})")
        parts += [f"join({join!r})" for join in self._asked.joins]
        parts += [f"where({where!r})" for where in self._asked.wheres]
        return ".".join([*parts, f"limit({self._asked.limit})"])

    def near(self, query: Expression, *, embedding: str | None = None) -> Self:
        """Rows near to this; ``embedding`` names one of the table's where it has several."""
        if not isinstance(query, Expression):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidQuery(f"A query is near to a Text, an Image or the like, not {query!r}.", 'Write Text("…").')
        return self._with(query=query, embedding=embedding)

    def where(self, condition: str, *params: Any, **named: Any) -> Self:  # noqa: ANN401
        """Only rows that match this SQL condition too, with psycopg's ``%s`` for ``params``, or ``%(name)s``."""
        check_condition(condition, has_params=bool(params or named))  # by itself, before it stands beside others
        return self._with(
            wheres=(*self._asked.wheres, _escaped(condition, bool(params or named))),
            params=_more(self._asked.params, params, named),
        )

    def join(self, clause: str, *params: Any, **named: Any) -> Self:  # noqa: ANN401
        """Join another table: ``.join("JOIN brand ON brand.id = product.brand_id")``.

        Conditions and selected expressions may name its columns then, and name the searched table's by the table's
        name. A row that joins with several comes several times.
        """
        check_condition(clause, has_params=bool(params or named), what="join")
        return self._with(
            joins=(*self._asked.joins, _escaped(clause, bool(params or named))),
            joined=_more(self._asked.joined, params, named),
        )

    def select(self, *columns: str) -> Self:
        """What rows hold beside the score: columns of the table, or expressions with a name, ``"b.name AS brand"``."""
        return self._with(columns=columns)

    def limit(self, rows: int) -> Self:
        """At most so many rows (10 where nothing is said)."""
        return self._with(limit=rows)

    def after(self, page: str | None) -> Self:
        """Go on after a page: what its ``next`` is. None, which is no page's, is the start."""
        return self._with(after=page)

    def at_least(self, score: float) -> Self:
        """Only rows with this score or a higher one, so that no row is an answer too. ``db.calibrate`` finds the score
        that your own queries call for."""
        if not isinstance(score, Real) or not math.isfinite(score):
            raise InvalidQuery(f"at_least takes a finite score, not {score!r}.", "For example .at_least(0.3).")
        return self._with(least=float(score))

    def exact(self) -> Self:
        """Compare all rows that match, and use no vector index."""
        return self._with(exact=True)

    def neutral(self, view: str) -> Self:
        """A view of the space that is not to count: it is taken out of query and rows, so that rows that differ in it
        alone have the same score. Without a filter, an index by ``pgembed.neutral_index_sql`` serves it."""
        return self._with(neutral=view)

    def wide(self) -> Self:
        """Read bytea and vector columns too."""
        return self._with(wide=True)

    def rerank(self, scores: Rerank, *, depth: int = 50) -> Self:
        """Let a function order the first ``depth`` rows anew: it is handed them, and gives a number for each, the
        higher the better, which becomes their score."""
        return self._with(rerank=scores, depth=depth)

    def _with(self, **changes: Any) -> Self:  # noqa: ANN401
        made = self.__class__.__new__(self.__class__)
        made.__dict__.update(self.__dict__, _asked=replace(self._asked, **changes))
        return made


class Steps:
    """The plans of a query, which both clients run."""

    def __init__(self, searcher: Searcher, asked: Asked) -> None:
        self._searcher = searcher
        self._asked = asked

    def rows(self) -> Plan[list[SearchRow]]:
        """The rows, best first."""
        asked = self._asked
        if asked.rerank is None:
            options = asked.options(after=asked.place())
            return asked.good((yield from self._searcher.search(asked.table, asked.known, **options)))
        if asked.after is not None:
            raise InvalidQuery("A query that is ordered anew by rerank has no pages.", "Ask for more rows at once.")
        depth = max(asked.depth, asked.limit)
        rows = yield from self._searcher.search(asked.table, asked.known, **asked.options(limit=depth))
        good, rerank = asked.good(rows), asked.rerank
        scores: list[float] = (yield Compute(lambda: [float(score) for score in rerank(good)])) if good else []
        return reranked(good, scores)[: asked.limit]

    def page(self) -> Plan[Page]:
        """The rows, and where to go on after them."""
        asked = self._asked
        if asked.rerank is not None:
            raise InvalidQuery("A query that is ordered anew by rerank has no pages.", "Ask for more rows at once.")
        options = asked.options(after=asked.place(), places=True)
        rows = asked.good((yield from self._searcher.search(asked.table, asked.known, **options)))
        following = asked.token(rows) if len(rows) >= asked.limit else None
        return Page([row.without(PLACE) for row in rows], following)

    def compiled(self) -> Plan[Statement]:
        """One statement, for anybody's connection."""
        self._refuse_rerank("compiled")
        statement = (yield from self._prepared()).portable
        if self._asked.least is None:
            return statement
        good = sql.SQL("SELECT * FROM (\n{}\n) AS found WHERE score >= {}").format(statement.text, self._asked.least)
        return Statement(sql.Composed([good]), statement.values)

    def explained(self) -> Plan[Explanation]:
        """The rows, and how they were found."""
        self._refuse_rerank("explained")
        asked = self._asked
        plan = yield from self._prepared(places=True)
        return (yield from explained(self._searcher, asked.table, asked.known, plan))

    def columns(self) -> Plan[tuple[str, ...]]:
        """What rows will hold beside the score."""
        return (yield from self._prepared()).columns

    def _refuse_rerank(self, what: str) -> None:
        if self._asked.rerank is not None:
            raise InvalidQuery(f"A query that is ordered anew by rerank cannot be {what}.", "Leave rerank out.")

    def _prepared(self, **more: Any) -> Plan[SearchPlan]:  # noqa: ANN401
        asked = self._asked
        return self._searcher.prepare(asked.table, asked.known, **asked.options(after=asked.place(), **more))


class Query(Building):
    """A search that is built step by step; each step gives a new one. Iterate over it, or ask for ``rows()``.

    All that runs it raises InvalidQuery, CatalogError or MediaError, as ``search`` does.
    """

    def __init__(self, asked: Asked, searcher: Searcher, run: Callable[[Plan[Any]], Any]) -> None:
        super().__init__(asked)
        self._searcher, self._run = searcher, run

    @property
    def _steps(self) -> Steps:
        return Steps(self._searcher, self._asked)

    def rows(self) -> list[SearchRow]:
        """The rows, best first: ``row.score``, ``row.id``, …"""
        return self._run(self._steps.rows())

    def __iter__(self) -> Iterator[SearchRow]:
        return iter(self.rows())

    def first(self) -> SearchRow | None:
        """The best row, or None."""
        return next(iter(self.limit(1).rows()), None)

    def page(self) -> Page:
        """The rows, and ``next``, with which ``after`` goes on: pages never show a row twice, and with ``exact()`` miss
        none. With an index they miss what it misses. Where joins give a row several times, all of these come on one
        page, which may be longer than ``limit`` then."""
        return self._run(self._steps.page())

    def compile(self) -> Statement:
        """The statement, for anybody's connection: ``conn.execute(statement.text, statement.params)``. Texts and
        pictures that Postgres cannot encode by itself are encoded here."""
        return self._run(self._steps.compiled())

    def explain(self) -> Explanation:
        """Run it, and tell how: the planner's estimate of the filter, how far the index was read, what each term of the
        query gave to the score of each row, the statement."""
        return self._run(self._steps.explained())

    @property
    def columns(self) -> tuple[str, ...]:
        """What rows hold beside the score."""
        return self._run(self._steps.columns())


class AsyncQuery(Building):
    """See Query; what runs it is awaited, and ``async for`` goes over its rows."""

    def __init__(self, asked: Asked, searcher: Searcher, run: Callable[[Plan[Any]], Awaitable[Any]]) -> None:
        super().__init__(asked)
        self._searcher, self._run = searcher, run

    @property
    def _steps(self) -> Steps:
        return Steps(self._searcher, self._asked)

    async def rows(self) -> list[SearchRow]:
        """See Query.rows."""
        return await self._run(self._steps.rows())

    async def __aiter__(self) -> AsyncIterator[SearchRow]:
        for row in await self.rows():
            yield row

    async def first(self) -> SearchRow | None:
        """See Query.first."""
        return next(iter(await self.limit(1).rows()), None)

    async def page(self) -> Page:
        """See Query.page."""
        return await self._run(self._steps.page())

    async def compile(self) -> Statement:
        """See Query.compile."""
        return await self._run(self._steps.compiled())

    async def explain(self) -> Explanation:
        """See Query.explain."""
        return await self._run(self._steps.explained())


def _mixed() -> InvalidQuery:
    return InvalidQuery(
        "Some parameters have names and some have none.", "Write %s throughout, or %(name)s throughout."
    )


def _escaped(text: str, has_params: bool) -> str:
    """SQL in which percent signs are as psycopg wants them: without parameters they are taken as they are."""
    return text if has_params else re.sub("%%|%", "%%", text)


def _more(before: Parameters, params: Sequence[Any], named: Mapping[str, Any]) -> Parameters:
    """The parameters of one more clause. Raises InvalidQuery where some have names and some have none."""
    if not params and not named:
        return before
    if (params and named) or (before and isinstance(before, Mapping) != bool(named)):
        raise _mixed()
    if not named:
        return (*cast("Sequence[Any]", before), *params)
    known = dict(cast("Mapping[str, Any]", before or {}))
    if twice := [name for name in named if name in known and known[name] != named[name]]:
        raise InvalidQuery(f"The parameter {twice[0]!r} was given before, with another value.", "Use another name.")
    return {**known, **named}
