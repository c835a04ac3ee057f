"""What both clients have of views: their methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pgembed.inputs import Expression
from pgembed.plans import Plan
from pgembed.views import learning, measuring
from pgembed.views.learning import Method, ViewRow
from pgembed.views.measuring import SAMPLE, Probing

if TYPE_CHECKING:
    from pgembed.searching import Searcher

T = TypeVar("T")


class Views:
    """The methods of ``Pgembed`` about views of a space."""

    _searcher: Searcher

    def _run(self, plan: Plan[T]) -> T:
        raise NotImplementedError

    def views(self) -> list[ViewRow]:
        """Every view, by name."""
        return self._run(learning.views())

    def view(self, name: str) -> ViewRow:
        """One view. Raises CatalogError for an unknown one."""
        return self._run(learning.view(name))

    def add_view(self, name: str, encoder: str, directions: Sequence[Sequence[float]]) -> ViewRow:
        """Keep directions ``(k, dim)`` of an encoder's space under a name, made orthonormal. Raises CatalogError."""
        return self._run(learning.add_view(name, encoder, directions, "given", {}))

    def learn_view(
        self,
        name: str,
        *,
        these: str | Sequence[Expression],
        those: str | Sequence[Expression],
        table: str | None = None,
        embedding: str | None = None,
        encoder: str | None = None,
        pair: str | bool | None = None,
        components: int = 1,
        method: Method | None = None,
        params: Sequence[Any] = (),
    ) -> ViewRow:
        """Learn a view from two sets, and keep it under a name; it points from ``those`` to ``these``.

        From rows: ``table``, and SQL conditions with ``$1``, ``$2``, … for ``params``; ``pair`` is an SQL expression,
        equal for the rows of a pair. From captions: ``encoder``, and lists of Text(…), Image(…) or sums of them;
        ``pair=True`` pairs them in their order.

        ``method`` is ``"centroids"`` (difference of the means of unit vectors; the default), ``"pairs"`` (first
        principal components of the differences of pairs; the default with ``pair``; Bolukbasi et al. 2016) or
        ``"inlp"`` (``components`` directions of linear classifiers, each on what those before it leave; Ravfogel et
        al. 2020).
        Raises CatalogError where the name is taken, a set is empty or both are alike; InvalidInput.
        """
        plan = learning.learn_view(
            self._searcher, name, these, those, table=table, embedding=embedding, encoder=encoder, pair=pair,
            components=components, method=method, params=params,
        )  # fmt: skip
        return self._run(plan)

    def drop_view(self, name: str) -> None:
        """Forget a view. Raises CatalogError for an unknown one."""
        self._run(learning.drop_view(name))

    def probe_view(
        self,
        name: str,
        table: str,
        attribute: str,
        *,
        embedding: str | None = None,
        where: str | None = None,
        params: Sequence[Any] = (),
        group: str | None = None,
        fit: str | None = None,
        same: str | None = None,
        ask: str | None = None,
        sample: int = SAMPLE,
        seed: int = 0,
    ) -> Probing:
        """What a linear probe reads of an attribute before and after the view is taken out, and what recall is left.

        ``attribute`` is an SQL expression: its values are the classes, rows where it is NULL are not probed. The probe
        is cross-validated, rows with an equal ``group`` in one fold; or fitted where the condition ``fit`` holds and
        measured on the others. ``same`` is what should be kept: how often the nearest row has the same value is told.
        ``ask`` gives words for a row, by which it is looked for: R@1 and R@10, of the rows with the same ``same``, of
        the row itself without. ``where`` is a filter with ``$1``, … for ``params``; of what matches, ``sample`` rows
        are read, whose vectors come to this process. Raises CatalogError, InvalidInput.
        """
        plan = measuring.probe_view(
            self._searcher, name, table, attribute, embedding=embedding, where=where, params=params, group=group,
            fit=fit, same=same, ask=ask, sample=sample, seed=seed,
        )  # fmt: skip
        return self._run(plan)


class AsyncViews:
    """The same methods for asyncio."""

    _searcher: Searcher

    async def _run(self, plan: Plan[T]) -> T:
        raise NotImplementedError

    async def views(self) -> list[ViewRow]:
        """See Views.views."""
        return await self._run(learning.views())

    async def view(self, name: str) -> ViewRow:
        """See Views.view."""
        return await self._run(learning.view(name))

    async def add_view(self, name: str, encoder: str, directions: Sequence[Sequence[float]]) -> ViewRow:
        """See Views.add_view."""
        return await self._run(learning.add_view(name, encoder, directions, "given", {}))

    async def learn_view(
        self,
        name: str,
        *,
        these: str | Sequence[Expression],
        those: str | Sequence[Expression],
        table: str | None = None,
        embedding: str | None = None,
        encoder: str | None = None,
        pair: str | bool | None = None,
        components: int = 1,
        method: Method | None = None,
        params: Sequence[Any] = (),
    ) -> ViewRow:
        """See Views.learn_view."""
        plan = learning.learn_view(
            self._searcher, name, these, those, table=table, embedding=embedding, encoder=encoder, pair=pair,
            components=components, method=method, params=params,
        )  # fmt: skip
        return await self._run(plan)

    async def drop_view(self, name: str) -> None:
        """See Views.drop_view."""
        await self._run(learning.drop_view(name))

    async def probe_view(
        self,
        name: str,
        table: str,
        attribute: str,
        *,
        embedding: str | None = None,
        where: str | None = None,
        params: Sequence[Any] = (),
        group: str | None = None,
        fit: str | None = None,
        same: str | None = None,
        ask: str | None = None,
        sample: int = SAMPLE,
        seed: int = 0,
    ) -> Probing:
        """See Views.probe_view."""
        plan = measuring.probe_view(
            self._searcher, name, table, attribute, embedding=embedding, where=where, params=params, group=group,
            fit=fit, same=same, ask=ask, sample=sample, seed=seed,
        )  # fmt: skip
        return await self._run(plan)
