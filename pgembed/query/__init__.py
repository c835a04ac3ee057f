"""A query expression, a filter and a limit -> SQL and its parameters. No I/O: the clients run what is compiled here."""

from pgembed.query.compiler import EF_SEARCH, Compiler, Place, SearchPlan, check_limit, compile_search, to_encode
from pgembed.query.rows import SearchRow, reranked, search_row_factory
from pgembed.query.statement import Column, Prefer, Side, Statement, Target, among, quoted, unused
from pgembed.query.texts import PLACE, Chosen, Neutral, check_condition, chosen

__all__ = [
    "EF_SEARCH", "PLACE", "Chosen", "Column", "Compiler", "Neutral", "Place", "Prefer", "SearchPlan", "SearchRow",
    "Side", "Statement", "Target", "among", "check_condition", "check_limit", "chosen", "compile_search", "quoted",
    "reranked", "search_row_factory", "to_encode", "unused",
]  # fmt: skip
