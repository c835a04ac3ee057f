"""What a query that is built step by step asks for so far, and its pages."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pgembed.errors import InvalidQuery
from pgembed.hybrid import Fused, Method
from pgembed.inputs import Expression, Text
from pgembed.plans import Parameters
from pgembed.query import PLACE, Place, Prefer, SearchRow
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
class Near:
    """A leg of vectors: what rows are near to, in which embedding, what it weighs beside others, and which rows."""

    query: Expression
    embedding: str | None = None
    weight: float = 1.0
    where: str | None = None  # for this leg alone
    params: Parameters = ()


@dataclass(frozen=True)
class Words:
    """The leg of words, and where and how they are looked for."""

    words: str
    weight: float = 1.0
    columns: tuple[str, ...] | None = None
    config: str | None = None
    function: str | None = None
    where: str | None = None  # for this leg alone
    params: Parameters = ()


@dataclass(frozen=True)
class Asked:
    """What a query asks for so far."""

    table: str
    nears: tuple[Near, ...] = ()
    words: Words | None = None
    method: Method | None = None
    fused_depth: int = 100
    wheres: tuple[str, ...] = ()
    params: Parameters = ()
    joins: tuple[str, ...] = ()
    joined: Parameters = ()
    columns: tuple[str, ...] | None = None
    wide: bool = False
    exact: bool = False
    neutral: str | None = None
    best: int = 1
    prefer: Prefer | None = None
    limit: int = 10
    least: float | None = None
    after: str | None = None
    input_weights: Mapping[str, float] | None = None
    rerank: Rerank | None = field(default=None, compare=False)
    depth: int = 0

    def changed(self, changes: Mapping[str, Any]) -> Asked:
        """The same but for these; what dataclasses.replace does, in a tenth of the time, which a quick search feels."""
        made = object.__new__(Asked)
        made.__dict__.update(self.__dict__, **changes)
        return made

    @property
    def known(self) -> Expression:
        """What is near to what. Raises InvalidQuery where that was not said."""
        if not self.nears:
            raise InvalidQuery(
                f"The query of {self.table} is near to nothing yet.", 'Say to what: .near(Text("a red shoe"))'
            )
        return self.nears[0].query

    @property
    def is_fused(self) -> bool:
        """Whether there are several legs, or words."""
        return len(self.nears) > 1 or self.words is not None

    def fused(self, *, limit: int | None = None, places: bool = False) -> Fused:
        """The search that several legs are. Raises InvalidQuery for steps that it cannot have."""
        if self.after is not None:
            raise no_pages()
        method = self.method or "rank"
        if self.least is not None and method == "rank":
            raise InvalidQuery(
                f"at_least({self.least:g}) is for scores, and fused by rank a score only tells the place.",
                'Fuse by score, .fuse("score"), or leave at_least out.',
            )
        if self.input_weights is not None:
            raise InvalidQuery(
                "weighing is for a query to one embedding, and this one has several legs.",
                "Attach the inputs apart, and give each near a weight.",
            )
        if self.neutral is not None:
            raise InvalidQuery(
                "neutral is for a query to one embedding, and this one has several legs.",
                'Take the view out of a query: near(query.without(View("…"))).',
            )
        if self.best > 1:
            raise InvalidQuery(
                "best is for a query to one embedding, and this one has several legs.", "Leave best out."
            )
        words = self.words
        nears = self.nears or ((Near(Text(words.words)),) if words else ())
        legs = (*nears, words) if words else nears
        options = self.options()
        return Fused(
            words.words if words else None,
            queries=[near.query for near in nears],
            embeddings=[near.embedding for near in nears],
            where=options["where"],
            params=self.params,
            filters=[leg.where and (leg.where, leg.params) for leg in legs] if any(leg.where for leg in legs) else None,
            limit=self.limit if limit is None else limit,
            weights=[leg.weight for leg in legs],
            method=method,
            depth=self.fused_depth,
            columns=self.columns,
            words_columns=words.columns if words else None,
            config=words.config if words else None,
            words_function=words.function if words else None,
            wide=self.wide,
            exact=self.exact,
            joins=self.joins,
            joined=self.joined,
            least=self.least,
            places=places,
            prefer=self.prefer,
        )

    def options(self, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """What the compiler takes."""
        wheres, params = self.wheres, self.params
        if not self.is_fused and self.nears and (near := self.nears[0]).where is not None:  # the only leg's
            wheres, params = (*wheres, near.where), more_parameters(params, near.params)
        if params and self.joined and isinstance(params, Mapping) != isinstance(self.joined, Mapping):
            raise mixed()
        where = " AND ".join(f"({one})" for one in wheres) if len(wheres) > 1 else "".join(wheres)
        return {
            "embedding": self.nears[0].embedding if self.nears else None,
            "where": where or None, "params": params, "limit": self.limit, "prefer": self.prefer,
            "columns": self.columns, "wide": self.wide, "exact": self.exact, "joins": self.joins, "joined": self.joined,
            "weights": self.input_weights, "neutral": self.neutral, "best": self.best,
        } | more  # fmt: skip

    def good(self, rows: list[SearchRow]) -> list[SearchRow]:
        """Those with the least score wanted, or a higher one."""
        return rows if self.least is None else [row for row in rows if row.score >= self.least]

    def mark(self) -> str:
        """What a page's token is known by: all that decides which rows come, in which order."""
        near = self.nears[0] if self.nears else None
        inputs = near.query.inputs if near else ()
        contents = [(getattr(one, "content", None), repr(getattr(one, "mask", None))) for one in inputs]
        parts = (
            self.table, repr(near and near.query), contents, near and (near.embedding, near.where, repr(near.params)),
            self.wheres, repr(self.params), self.joins, repr(self.joined),
            self.input_weights and sorted(self.input_weights.items()), self.neutral, self.best,
            self.prefer,
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


def no_pages() -> InvalidQuery:
    """What to raise where pages of several legs are asked for."""
    return InvalidQuery("A query with several legs has no pages.", "Ask for more rows at once: .limit(50)")


def more_parameters(before: Parameters, given: Parameters) -> Parameters:
    """The parameters of one more clause too. Raises InvalidQuery where some have names and some have none."""
    if not given:
        return before
    if before and isinstance(before, Mapping) != isinstance(given, Mapping):
        raise mixed()
    if not isinstance(given, Mapping):
        return (*cast("Sequence[Any]", before), *given)
    known = dict(cast("Mapping[str, Any]", before or {}))
    if twice := [name for name in given if name in known and known[name] != given[name]]:
        raise InvalidQuery(f"The parameter {twice[0]!r} was given before, with another value.", "Use another name.")
    return {**known, **given}


def mixed() -> InvalidQuery:
    """What to raise where parameters have names and have none."""
    return InvalidQuery(
        "Some parameters have names and some have none.", "Write %s throughout, or %(name)s throughout."
    )
