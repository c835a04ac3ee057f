"""Searches built step by step: ``db.query("product").near(…).where(…).limit(…)``.

Each step gives a new query and leaves the one before as it is, so that a common start can be kept and varied. Nothing
is encoded or run before the rows, a page, the SQL or an explanation is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, Self

from psycopg import sql

from pgembed.asked import Asked, Near, Page, Rerank, Words, mixed, more_parameters, no_pages
from pgembed.errors import InvalidQuery
from pgembed.explaining import Explanation, explained, explained_fused
from pgembed.hybrid import FusedPlan, Method, prepared, run_fused
from pgembed.inputs import Expression
from pgembed.plans import Compute, Parameters, Plan
from pgembed.query import PLACE, Prefer, SearchPlan, SearchRow, Statement, check_condition, check_limit, reranked
from pgembed.searching import Searcher, checked_preference


class Building:
    """The steps that every query has."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def __repr__(self) -> str:
        parts = [f"query({self._asked.table!r})"]
        parts += [f"near({near.query!r})" for near in self._asked.nears]
        parts += [f"hybrid({self._asked.words.words!r})"] if self._asked.words else []
        parts += [f"join({join!r})" for join in self._asked.joins]
        parts += [f"where({where!r})" for where in self._asked.wheres]
        return ".".join([*parts, f"limit({self._asked.limit})"])

    def near(
        self,
        query: Expression,
        *,
        embedding: str | None = None,
        weight: float = 1.0,
        where: str | None = None,
        params: Parameters = (),
    ) -> Self:
        """Rows near to this; ``embedding`` names one of the table's where it has several.

        Said again, rows are wanted that are near to all of these, each in its embedding: ``fuse`` says how, and
        ``weight`` what this one counts beside the others. ``where`` with its ``params`` is a condition for this one
        alone: rows that do not match it get nothing here.
        """
        if not isinstance(query, Expression):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidQuery(f"A query is near to a Text, an Image or the like, not {query!r}.", 'Write Text("…").')
        near = Near(query, embedding, _weight(weight), _condition(where, params), params)
        return self._with(nears=(*self._asked.nears, near))

    def hybrid(
        self,
        words: str,
        *,
        weight: float = 1.0,
        columns: Sequence[str] | None = None,
        config: str | None = None,
        words_function: str | None = None,
        where: str | None = None,
        params: Parameters = (),
    ) -> Self:
        """Look for these words too, by full text search; without ``near`` they are also what rows are near to.

        ``columns`` says where words are looked for, ``config`` the text search configuration, and ``words_function``
        an SQL function that looks for them instead: see ``Pgembed.hybrid``. ``where`` with its ``params`` is a
        condition for the words alone.
        """
        if not isinstance(words, str) or not words.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidQuery(f"hybrid takes words to look for, not {words!r}.", 'For example .hybrid("red shoe").')
        if isinstance(columns, str):
            raise InvalidQuery(f"columns is a list of names, not {columns!r}.", f"Write columns=[{columns!r}].")
        looked_in = None if columns is None else tuple(columns)
        condition = _condition(where, params)
        return self._with(
            words=Words(words, _weight(weight), looked_in, config, words_function, condition, params),
        )

    def fuse(self, method: Method, *, depth: int = 100) -> Self:
        """How the legs, each ``near`` and ``hybrid``, become one ranking: by ``"rank"``, the sum of weight / (60 +
        rank), as where nothing is said, or by ``"score"``, the sum of weight * score. ``depth`` rows of each leg are
        the candidates."""
        if method not in ("rank", "score"):
            raise InvalidQuery(f"Legs are fused by rank or by score, not {method!r}.", 'Write .fuse("score").')
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidQuery(f"depth is a number of rows, at least 1, not {depth!r}.", "For example depth=100.")
        return self._with(method=method, fused_depth=depth)

    def weighing(self, **weights: float) -> Self:
        """Count the inputs of a row by these weights, ``.weighing(text=0.3, image=0.7)``, in an embedding with fusion
        ``"concat"``; one that is not named counts nothing."""
        return self._with(input_weights=weights)

    def where(self, condition: str, *params: Any, **named: Any) -> Self:  # noqa: ANN401
        """Only rows that match this SQL condition too, with psycopg's ``%s`` for ``params``, or ``%(name)s``."""
        check_condition(condition, has_params=bool(params or named))  # by itself, before it stands beside others
        return self._with(
            wheres=(*self._asked.wheres, _escaped(condition, bool(params or named))),
            params=more_parameters(self._asked.params, _given(params, named)),
        )

    def join(self, clause: str, *params: Any, **named: Any) -> Self:  # noqa: ANN401
        """Join another table: ``.join("JOIN brand ON brand.id = product.brand_id")``.

        Conditions and selected expressions may name its columns then, and name the searched table's by the table's
        name. A row that joins with several comes several times.
        """
        check_condition(clause, has_params=bool(params or named), what="join")
        return self._with(
            joins=(*self._asked.joins, _escaped(clause, bool(params or named))),
            joined=more_parameters(self._asked.joined, _given(params, named)),
        )

    def select(self, *columns: str) -> Self:
        """What rows hold beside the score: columns of the table, or expressions with a name, ``"b.name AS brand"``."""
        return self._with(columns=columns)

    def limit(self, rows: int) -> Self:
        """At most so many rows (10 where nothing is said)."""
        check_limit(rows)
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

    def best(self, parts: int) -> Self:
        """Of an embedding with parts count a row's so many nearest together: the score is the sum of their
        similarities, which favours rows that speak of it often. Where nothing is said the nearest counts alone."""
        return self._with(best=parts)

    def neutral(self, view: str) -> Self:
        """A view of the space that is not to count: it is taken out of query and rows, so that rows that differ in it
        alone have the same score. Without a filter, an index by ``pgembed.neutral_index_sql`` serves it."""
        return self._with(neutral=view)

    def prefer(self, prefer: Prefer) -> Self:
        """How texts are encoded where there are two ways: ``"static"``, in Postgres by what ``distill_encoder`` made,
        or ``"exact"``. Without this step as ``connect`` was told."""
        return self._with(prefer=checked_preference(prefer))

    def wide(self) -> Self:
        """Read bytea and vector columns too."""
        return self._with(wide=True)

    def rerank(self, scores: Rerank, *, depth: int = 50) -> Self:
        """Let a function order the first ``depth`` rows anew: it is handed them, and gives a number for each, the
        higher the better, which becomes their score."""
        return self._with(rerank=scores, depth=depth)

    def _with(self, **changes: Any) -> Self:  # noqa: ANN401
        made = self.__class__.__new__(self.__class__)
        made.__dict__.update(self.__dict__, _asked=self._asked.changed(changes))
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
            if asked.is_fused:
                return (yield from run_fused((yield from self._fused())))
            options = asked.options(after=asked.place())
            return asked.good((yield from self._searcher.search(asked.table, asked.known, **options)))
        if asked.after is not None:
            raise InvalidQuery("A query that is ordered anew by rerank has no pages.", "Ask for more rows at once.")
        depth = max(asked.depth, asked.limit)
        if asked.is_fused:
            rows = yield from run_fused((yield from self._fused(limit=depth)))
        else:
            rows = yield from self._searcher.search(asked.table, asked.known, **asked.options(limit=depth))
        good, rerank = asked.good(rows), asked.rerank
        scores: list[float] = (yield Compute(lambda: [float(score) for score in rerank(good)])) if good else []
        return reranked(good, scores)[: asked.limit]

    def page(self) -> Plan[Page]:
        """The rows, and where to go on after them."""
        asked = self._asked
        if asked.rerank is not None:
            raise InvalidQuery("A query that is ordered anew by rerank has no pages.", "Ask for more rows at once.")
        if asked.is_fused:
            raise no_pages()
        options = asked.options(after=asked.place(), places=True)
        rows = asked.good((yield from self._searcher.search(asked.table, asked.known, **options)))
        following = asked.token(rows) if len(rows) >= asked.limit else None
        return Page([row.without(PLACE) for row in rows], following)

    def compiled(self) -> Plan[Statement]:
        """One statement, for anybody's connection."""
        self._refuse_rerank("compiled")
        if self._asked.is_fused:
            return (yield from self._fused()).statement
        statement = (yield from self._prepared()).portable
        if self._asked.least is None:
            return statement
        good = sql.SQL("SELECT * FROM (\n{}\n) AS found WHERE score >= {}").format(statement.text, self._asked.least)
        return Statement(sql.Composed([good]), statement.values)

    def explained(self, *, recall: bool, inputs: bool, views: bool) -> Plan[Explanation]:
        """The rows, and how they were found."""
        self._refuse_rerank("explained")
        asked = self._asked
        if asked.is_fused:
            if inputs or views:
                raise InvalidQuery(
                    f"explain({'inputs' if inputs else 'views'}=True) is for a query with one leg, and this one has"
                    " several.",
                    "Explain each near by itself.",
                )
            return (yield from explained_fused((yield from self._fused(places=True)), recall=recall))
        plan = yield from self._prepared(places=True)
        query = asked.known
        return (
            yield from explained(
                self._searcher, asked.table, query, plan, good=asked.good, recall=recall, inputs=inputs, views=views
            )
        )

    def columns(self) -> Plan[tuple[str, ...]]:
        """What rows will hold beside the score."""
        return (yield from (self._fused() if self._asked.is_fused else self._prepared())).columns

    def _refuse_rerank(self, what: str) -> None:
        if self._asked.rerank is not None:
            raise InvalidQuery(f"A query that is ordered anew by rerank cannot be {what}.", "Leave rerank out.")

    def _fused(self, *, limit: int | None = None, places: bool = False) -> Plan[FusedPlan]:
        return prepared(self._searcher, self._asked.table, self._asked.fused(limit=limit, places=places))

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

    def explain(self, *, recall: bool = False, inputs: bool = False, views: bool = False) -> Explanation:
        """Run it, and tell how: the planner's estimate of the filter, how far the index was read, what each term of the
        query gave to the score of each row, the statement; of several legs, the rank and score in each, and the words
        in common.

        ``recall`` also compares all rows, and tells the share of the best that was found. ``inputs`` encodes the inputs
        of each row apart, and tells what each gave to the score of a row that has several. ``views`` tells on which
        named views of the space a row scores high, beside a sample of the table.
        """
        return self._run(self._steps.explained(recall=recall, inputs=inputs, views=views))

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

    async def explain(self, *, recall: bool = False, inputs: bool = False, views: bool = False) -> Explanation:
        """See Query.explain."""
        return await self._run(self._steps.explained(recall=recall, inputs=inputs, views=views))


def _weight(weight: float) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidQuery(f"The weight {weight!r} is not a finite number.", "For example weight=0.3.")
    return float(weight)


def _escaped(text: str, has_params: bool) -> str:
    """SQL in which percent signs are as psycopg wants them: without parameters they are taken as they are."""
    return text if has_params else re.sub("%%|%", "%%", text)


def _given(params: Sequence[Any], named: Mapping[str, Any]) -> Parameters:
    """The parameters of one clause. Raises InvalidQuery where some have names and some have none."""
    if params and named:
        raise mixed()
    return named or params


def _condition(condition: str | None, params: Parameters) -> str | None:
    """A condition of one leg, checked and escaped; None where there is none. Raises InvalidQuery."""
    if condition is None:
        if params:
            raise InvalidQuery("There are params, but no filter that names them.", "Give where='price < %s'.")
        return None
    check_condition(condition, has_params=bool(params))
    return _escaped(condition, bool(params))
