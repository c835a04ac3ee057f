"""How an embedding's attribute is annotated where a type checker is to know what it compares with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from sqlalchemy.orm import Mapped

T_co = TypeVar("T_co", covariant=True)

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.orm import InstrumentedAttribute
    from sqlalchemy.sql.elements import ColumnElement

    class EmbeddingAttribute(InstrumentedAttribute[T_co]):  # pyright: ignore[reportIncompatibleVariableOverride]
        # the attribute of a class, as Embedding.Comparator and EmbeddingColumn make it
        side: Table

        def distance(self, query: object) -> ColumnElement[float]: ...
        def score(self, query: object) -> ColumnElement[float]: ...
        def within(self, query: object, distance: float) -> ColumnElement[bool]: ...
        def nearest(self, query: object, k: int = 10) -> ColumnElement[bool]: ...


class EmbeddingMapped(Mapped[T_co]):
    """``embedding: EmbeddingMapped[Vector] = embedding_column(…)``: the same as ``Mapped[Vector]``, and type checkers
    know the types of ``Product.embedding.distance(…)``, ``score``, ``within``, ``nearest`` and ``side``."""

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def __get__(self, instance: None, owner: object) -> EmbeddingAttribute[T_co]: ...
        @overload
        def __get__(self, instance: object, owner: object) -> T_co: ...
        def __get__(self, instance: object | None, owner: object) -> Any: ...
