"""Views in the catalog: learnt, listed, dropped. Each call is a plan, which both clients run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from pgembed import catalog
from pgembed.errors import InvalidInput
from pgembed.inputs import Expression, Image, Input, Screenshot, Text
from pgembed.plans import Call, Compute, Plan
from pgembed.shown import shortened
from pgembed.views.probing import Vectors, nullspace

if TYPE_CHECKING:
    from pgembed.searching import Searcher

Method = Literal["centroids", "pairs", "inlp"]
MOST_ROWS = 20_000  # that are read to learn by inlp
_VIEW = sql.SQL("SELECT v.* FROM pgembed.views AS v JOIN pgembed._view(%s) AS d ON d.name = v.name")


@dataclass(frozen=True)
class ViewRow:
    """A view: a row of ``pgembed.views``. ``directions`` is how many it has, ``learnt_from`` from what it has them."""

    name: str
    encoder: str
    space: str
    directions: int
    method: str
    learnt_from: dict[str, Any]
    created_at: datetime


def views() -> Plan[list[ViewRow]]:
    """Every view, by name."""
    rows = yield Call(sql.SQL("SELECT * FROM pgembed.views ORDER BY name"))
    return [ViewRow(**row) for row in rows]


def view(name: str) -> Plan[ViewRow]:
    """One view; the error for an unknown one names those there are."""
    return ViewRow(**(yield Call(_VIEW, [name]))[0])


def drop_view(name: str) -> Plan[None]:
    """Forget a view."""
    yield Call(sql.SQL("SELECT pgembed.drop_view(%s)"), [name])


def add_view(
    name: str, encoder: str, vectors: Sequence[Sequence[float]] | Vectors, method: str, learnt_from: dict[str, Any]
) -> Plan[ViewRow]:
    """Keep directions under a name; SQL makes them orthonormal. Raises InvalidInput for what is no ``(k, dim)``."""
    try:
        given = np.atleast_2d(np.asarray(vectors, dtype=np.float64))
    except (TypeError, ValueError):
        given = np.empty(0)
    if given.ndim != 2 or not given.size:
        raise InvalidInput(
            f"{shortened(repr(vectors))} are no directions of a view.", "Give lists of numbers, one for each direction."
        )
    yield Call(
        sql.SQL("SELECT pgembed.add_view(%s, %s, %s, %s, %s)"),  # what is no number or date takes the argument's type
        [name, encoder, _texts(given), method, Jsonb(learnt_from)],
    )
    return (yield from view(name))


def learn_view(
    searcher: Searcher,
    name: str,
    these: str | Sequence[Expression],
    those: str | Sequence[Expression],
    *,
    table: str | None,
    embedding: str | None,
    encoder: str | None,
    pair: str | bool | None,
    components: int,
    method: Method | None,
    params: Sequence[Any],
) -> Plan[ViewRow]:
    """What ``Pgembed.learn_view`` does, which says what the arguments are."""
    method = method or ("pairs" if pair else "centroids")
    if method not in ("centroids", "pairs", "inlp"):
        raise InvalidInput(f"There is no method {method!r} of learning a view.", "Methods: centroids, pairs, inlp.")
    if (method == "pairs") is not bool(pair):
        raise InvalidInput(
            f"The method {method} {'needs' if method == 'pairs' else 'takes no'} pairs.",
            "Pairs come from pair=…: an SQL expression for rows, True for captions in order.",
        )
    if isinstance(components, bool) or components < 1:
        raise InvalidInput(f"components is the number of directions wanted, at least 1, not {components!r}.")
    if table is not None:
        if not isinstance(these, str) or not isinstance(those, str) or pair is True or encoder is not None:
            raise InvalidInput(
                "A view of a table is learnt from filters, and its encoder is the embedding's.",
                "Give these= and those= as SQL conditions, pair= as an SQL expression, and no encoder=.",
            )
        return (yield from _from_rows(name, these, those, table, embedding, pair, components, method, params))
    if encoder is None or isinstance(these, str) or isinstance(those, str) or isinstance(pair, str):
        raise InvalidInput(
            "A view is learnt from rows, table= with SQL conditions, or from captions, encoder= with lists of Text(…).",
            "For example encoder='lite', these=[Text('a man')], those=[Text('a woman')].",
        )
    return (yield from _from_captions(searcher, name, these, those, encoder, bool(pair), components, method))


def _from_rows(
    name: str,
    these: str,
    those: str,
    table: str,
    embedding: str | None,
    pair: str | bool | None,
    components: int,
    method: Method,
    params: Sequence[Any],
) -> Plan[ViewRow]:
    given = Jsonb(list(params)) if params else None
    if method != "inlp":
        yield Call(
            sql.SQL("SELECT pgembed.learn_view(%s, %s::regclass, %s, %s, %s, %s, %s, %s)"),
            [name, table, these, those, embedding, pair or None, components, given],
        )
        return (yield from view(name))
    yield Call(sql.SQL("SELECT pgembed._check_new_view(%s)"), [name])
    target = (yield Call(sql.SQL("SELECT * FROM pgembed._vectors_target(%s::regclass, %s)"), [table, embedding]))[0]
    rows = yield Call(
        sql.SQL(
            "SELECT is_one, vector::float4[] AS vector FROM pgembed._view_rows(%s::regclass, %s, %s, %s, NULL, %s)"
            " ORDER BY pg_catalog.md5(vector::text) LIMIT %s"
        ),
        [table, these, those, embedding, given, MOST_ROWS],
    )
    labels = [row["is_one"] for row in rows]
    for one, condition in ((True, these), (False, those)):
        if one not in labels:
            raise InvalidInput(
                f"No row of {table} with a vector matches {condition!r}.",
                "A view is learnt from two sets of rows that have their vectors.",
            )
    vectors = np.array([row["vector"] for row in rows], dtype=np.float64)
    source = {
        "table": table, "embedding": target["target"], "these": these, "those": those,
        "rows": [sum(labels), len(labels) - sum(labels)], **({"params": list(params)} if params else {}),
    }  # fmt: skip
    return (yield from _by_inlp(name, target["encoder"], vectors, labels, components, source))


def _from_captions(
    searcher: Searcher,
    name: str,
    these: Sequence[Expression],
    those: Sequence[Expression],
    encoder: str,
    paired: bool,
    components: int,
    method: Method,
) -> Plan[ViewRow]:
    for expression in (*these, *those):
        if not isinstance(expression, Expression):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"A view is learnt from Text(…), Image(…) and the like, not {expression!r}.")
    if not these or not those:
        raise InvalidInput("One of the two sets of captions is empty.", "Give one caption of each at least.")
    row = yield from catalog.encoder(encoder)
    yield Call(sql.SQL("SELECT pgembed._check_new_view(%s)"), [name])
    inputs = list(dict.fromkeys(item for expression in (*these, *those) for item in expression.inputs))
    needed: list[Input] = [item for item in inputs if isinstance(item, Text | Image | Screenshot)]
    encoded = (yield from searcher.encoded(row, needed)) if needed else dict[Input, Any]()
    sets = [[expression.resolve(encoded.__getitem__) for expression in some] for some in (these, those)]
    source = {"these": [shortened(repr(each)) for each in these], "those": [shortened(repr(each)) for each in those]}
    if method == "inlp":
        labels = [True] * len(these) + [False] * len(those)
        vectors = np.stack([*sets[0], *sets[1]]).astype(np.float64)
        return (yield from _by_inlp(name, encoder, vectors, labels, components, source))
    yield Call(
        sql.SQL("SELECT pgembed.learn_view_from(%s, %s, %s, %s, %s, %s, %s)"),
        [name, encoder, *(_texts(np.stack(some)) for some in sets), paired, components, Jsonb(source)],
    )
    return (yield from view(name))


def _by_inlp(
    name: str, encoder: str, vectors: Vectors, labels: Sequence[bool], components: int, source: dict[str, Any]
) -> Plan[ViewRow]:
    found: Vectors = yield Compute(lambda: nullspace(vectors, labels, components))
    if len(found) < components:
        raise InvalidInput(
            f"The two sets differ in {len(found)} directions only, and {components} were wanted.",
            f"Ask for {len(found)}, or give other sets." if len(found) else "Give two sets that differ.",
        )
    return (yield from add_view(name, encoder, found, "inlp", source))


def _texts(vectors: Any) -> str:  # noqa: ANN401
    """Vectors ``(n, dim)`` as Postgres writes an array of them."""
    return "{" + ",".join('"[' + ",".join(f"{number:.9g}" for number in vector) + ']"' for vector in vectors) + "}"
