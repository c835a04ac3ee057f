"""The client for asyncio: ``connect_async()`` gives an AsyncPgembed, which runs the plans of client.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pgembed import catalog, distilling, indexing, sampling, schema
from pgembed.building import Asked, AsyncQuery
from pgembed.calibration import Calibration, calibrate
from pgembed.catalog import EncoderRow, FailedRow, FailureReason, FailureRow, Finding, InputSpec, LeftOver, StatusRow
from pgembed.client import Pgembed, RoleKind, mode_of
from pgembed.connections import AsyncConnections, AsyncSource, Connections, conninfo
from pgembed.distilling import Distilled
from pgembed.encoders import Encoder, EncoderPolicy, Settings
from pgembed.encoders.check import EncoderReport, check_encoder
from pgembed.estimate import Estimate, estimate
from pgembed.hybrid import Fused, LegFilter, Method, Rerank, hybrid
from pgembed.inputs import Expression, Input
from pgembed.media import MediaPolicy
from pgembed.plans import Parameters, Plan, run_async
from pgembed.query import Prefer, SearchRow
from pgembed.searching import Searcher
from pgembed.told import in_own_words
from pgembed.views.client import AsyncViews
from pgembed.worker import Progress, Summary, Verification, Worker, WorkerOptions, verify
from pgembed.worker.verification import SAMPLE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")


def connect_async(
    database: AsyncSource | None = None,
    *,
    media: MediaPolicy | None = None,
    encoders: EncoderPolicy | None = None,
    prefer: Prefer | None = None,
) -> AsyncPgembed:
    """The same for asyncio: ``async with pgembed.connect_async() as db: await db.search(…)``."""
    source = conninfo(database) if database is None or isinstance(database, str) else database
    return AsyncPgembed(AsyncConnections(source), Searcher(media, encoders, prefer))


class AsyncPgembed(AsyncViews):
    """The same methods for asyncio; models run in threads, so that the event loop goes on."""

    def __init__(self, connections: AsyncConnections, searcher: Searcher) -> None:
        self._connections = connections
        self._searcher = searcher

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that were opened here."""
        await self._connections.close()

    async def install(self) -> schema.Versions:
        """See Pgembed.install."""
        return await asyncio.to_thread(self._in_sync, Pgembed.install)

    async def uninstall(self, *, detach_all: bool = False) -> None:
        """See Pgembed.uninstall."""
        await asyncio.to_thread(self._in_sync, lambda db: db.uninstall(detach_all=detach_all))

    async def versions(self) -> schema.Versions:
        """See Pgembed.versions."""
        return await asyncio.to_thread(self._in_sync, Pgembed.versions)

    async def doctor(self) -> list[Finding]:
        """See Pgembed.doctor."""
        return await asyncio.to_thread(self._in_sync, Pgembed.doctor)

    async def grant(self, kind: RoleKind, role: str) -> list[LeftOver]:
        """See Pgembed.grant."""
        return await self._run(catalog.grant(kind, role))

    async def revoke(self, kind: RoleKind, role: str) -> list[LeftOver]:
        """See Pgembed.revoke."""
        return await self._run(catalog.revoke(kind, role))

    async def encoders(self) -> list[EncoderRow]:
        """See Pgembed.encoders."""
        return await self._run(catalog.encoders())

    async def encoder(self, name: str) -> EncoderRow:
        """See Pgembed.encoder."""
        return await self._run(catalog.encoder(name))

    async def load_encoder(self, name: str) -> Encoder:
        """See Pgembed.load_encoder."""
        return await asyncio.to_thread(self._searcher.load, await self.encoder(name))

    async def encode(self, name: str, inputs: Sequence[Input]) -> Mapping[Input, NDArray[np.float32]]:
        """See Pgembed.encode."""
        return await asyncio.to_thread(self._searcher.encode, await self.encoder(name), inputs)

    async def test_encoder(
        self, name: str, *, table: str | None = None, embedding: str | None = None, rows: int = 32
    ) -> EncoderReport:
        """See Pgembed.test_encoder."""
        encoder = await self.load_encoder(name)
        taken = None
        if table is not None:
            taken = await self._run(sampling.samples(table, embedding, rows, self._searcher.media))
        return await asyncio.to_thread(check_encoder, encoder, taken)

    async def add_encoder(
        self, name: str, spec: str, *, settings: Settings | None = None, space: str | None = None
    ) -> EncoderRow:
        """See Pgembed.add_encoder."""
        return await self._run(catalog.add_encoder(name, spec, settings, space))

    async def remove_encoder(self, name: str) -> None:
        """See Pgembed.remove_encoder."""
        await self._run(catalog.remove_encoder(name))

    async def distill_encoder(
        self,
        name: str,
        *,
        texts: str | None = None,
        embedding: str | None = None,
        log: Sequence[str] | None = None,
        words: Sequence[str] | None = None,
        limit: int = distilling.LIMIT,
        held_out: float = 0.1,
        seed: int = 0,
        on_progress: distilling.Say | None = None,
    ) -> Distilled:
        """See Pgembed.distill_encoder; ``on_progress`` is called in a thread."""
        sources = distilling.Sources(texts, embedding, log, words)
        row, found = await self._run(distilling.read(name, sources, limit, seed))

        def trained() -> distilling.Trained:
            model = self._searcher.load(row)
            return distilling.train(model, name, found, limit=limit, held_out=held_out, seed=seed, say=on_progress)

        return await self._run(distilling.store(row, await asyncio.to_thread(trained)))

    async def drop_distilled(self, name: str) -> None:
        """See Pgembed.drop_distilled."""
        await self._run(distilling.drop(name))

    async def attach(
        self,
        table: str,
        target: str,
        *,
        encoder: str,
        text: InputSpec | None = None,
        image: InputSpec | None = None,
        screenshot: InputSpec | None = None,
        stale: str = "keep",
        storage: str | None = None,
        mode: str = "queue",
        fusion: str = "sum",
        parts: str | Mapping[str, Any] | None = None,
    ) -> int:
        """See Pgembed.attach."""
        inputs: Mapping[str, InputSpec | None] = {"text": text, "image": image, "screenshot": screenshot}
        return await self._run(catalog.attach(table, target, encoder, inputs, stale, storage, mode, fusion, parts))

    async def estimate(
        self, table: str, target: str, *, encoder: str, fusion: str = "sum", **inputs: InputSpec | None
    ) -> Estimate:
        """See Pgembed.estimate."""
        return await self._run(estimate(table, target, encoder, inputs, self._searcher.load, fusion))

    async def detach(self, table: str, target: str | None = None) -> None:
        """See Pgembed.detach."""
        await self._run(catalog.detach(table, target))
        self._searcher.forget()

    async def picture_column(self, table: str, target: str | None = None) -> str | None:
        """See Pgembed.picture_column."""
        return await self._run(catalog.picture_column(table, target))

    async def status(self, table: str | None = None) -> list[StatusRow]:
        """See Pgembed.status."""
        return await self._run(catalog.status(table))

    async def failures(self, table: str | None = None, *, limit: int = 100) -> list[FailureRow]:
        """See Pgembed.failures."""
        return await self._run(catalog.failures(table, limit))

    async def cuts(self, table: str | None = None, *, limit: int = 100) -> list[catalog.CutRow]:
        """See Pgembed.cuts."""
        return await self._run(catalog.cuts(table, limit))

    async def failure_reasons(self, table: str | None = None) -> list[FailureReason]:
        """See Pgembed.failure_reasons."""
        return await self._run(catalog.failure_reasons(table))

    async def retry(
        self,
        table: str,
        target: str | None = None,
        *,
        reason: str | None = None,
        keys: Sequence[Sequence[str]] | None = None,
    ) -> int:
        """See Pgembed.retry."""
        return await self._run(catalog.retry(table, target, reason, keys))

    async def reconcile(self, table: str, target: str | None = None, *, where: str | None = None) -> int:
        """See Pgembed.reconcile."""
        return await self._run(catalog.reconcile(table, target, where))

    async def requeue(self, table: str, keys: Sequence[Sequence[str]], target: str | None = None) -> int:
        """See Pgembed.requeue."""
        return await self._run(catalog.requeue(table, keys, target))

    async def verify(
        self,
        table: str,
        target: str | None = None,
        *,
        sample: int | None = SAMPLE,
        repair: bool = False,
        media: MediaPolicy | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Verification:
        """See Pgembed.verify; ``on_progress`` is called in a thread."""
        identity = await self._run(catalog.embedding_id(table, target))
        options = self._searcher.verify_options(sample=sample, repair=repair, media=media)
        with in_own_words():
            return await asyncio.to_thread(verify, self._connections.new, identity, options, on_progress)

    async def wait(self, table: str, target: str | None = None, *, timeout: float = 60.0) -> list[FailedRow]:
        """See Pgembed.wait."""
        return await self._run(catalog.wait(table, target, timeout))

    async def pause(self, table: str, target: str | None = None) -> int:
        """See Pgembed.pause."""
        return await self._run(catalog.pause(table, target))

    async def resume(self, table: str, target: str | None = None) -> int:
        """See Pgembed.resume."""
        return await self._run(catalog.resume(table, target))

    async def unhook(self, table: str) -> int:
        """See Pgembed.unhook."""
        return await self._run(catalog.unhook(table))

    async def sync(self, table: str | None = None, *, requeue: bool = True) -> int:
        """See Pgembed.sync."""
        return await self._run(catalog.sync(table, requeue=requeue))

    async def work(
        self,
        options: WorkerOptions | None = None,
        *,
        until_idle: bool = False,
        once: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Summary:
        """See Pgembed.work; a cancelled task stops the worker after the batch in hand."""
        options = options or WorkerOptions(encoders=self._searcher.policy)
        worker = Worker(self._connections.new, options, on_progress=on_progress)
        task = asyncio.create_task(asyncio.to_thread(worker.run, mode_of(until_idle, once)))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            worker.stop()
            await task
            raise

    async def prepare(self, encoder: str, texts: Sequence[str], *, timeout: float = 60.0) -> None:
        """See Pgembed.prepare."""
        await asyncio.to_thread(self._in_sync, lambda db: db.prepare(encoder, texts, timeout=timeout))

    async def index_statement(self, table: str, target: str | None = None, **options: Any) -> str:  # noqa: ANN401
        """See Pgembed.index_statement."""
        return await self._run(catalog.index_statement(table, target, **(indexing.USUAL | options)))

    async def build_index(self, table: str, target: str | None = None, **options: Any) -> None:  # noqa: ANN401
        """See Pgembed.build_index."""
        self._connections.refuse_open_transaction()
        await asyncio.to_thread(self._in_sync, lambda db: db.build_index(table, target, **options))

    def query(self, table: str) -> AsyncQuery:
        """See Pgembed.query."""
        return AsyncQuery(Asked(table), self._searcher, self._run)

    async def calibrate(
        self,
        table: str,
        absent: Sequence[Expression],
        present: Sequence[Expression] = (),
        *,
        alpha: float = 0.1,
        embedding: str | None = None,
        where: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Calibration:
        """See Pgembed.calibrate."""
        plan = calibrate(
            self._searcher, table, absent, present, alpha=alpha, embedding=embedding, where=where, weights=weights
        )
        return await self._run(plan)

    async def search(
        self,
        table: str,
        query: Expression,
        *,
        where: str | None = None,
        params: Parameters = (),
        limit: int = 10,
        embedding: str | None = None,
        columns: Sequence[str] | None = None,
        wide: bool = False,
        exact: bool = False,
        weights: Mapping[str, float] | None = None,
        prefer: Prefer | None = None,
        neutral: str | None = None,
        best: int = 1,
    ) -> list[SearchRow]:
        """See Pgembed.search."""
        plan = self._searcher.search(
            table, query, where=where, params=params, limit=limit, embedding=embedding, columns=columns, wide=wide,
            exact=exact, weights=weights, prefer=prefer, neutral=neutral, best=best,
        )  # fmt: skip
        return await self._run(plan)

    async def hybrid(
        self,
        table: str,
        words: str | None,
        *,
        query: Expression | None = None,
        queries: Sequence[Expression] | None = None,
        embedding: str | None = None,
        embeddings: Sequence[str] | None = None,
        where: str | None = None,
        params: Parameters = (),
        filters: Sequence[LegFilter] | None = None,
        limit: int = 10,
        weights: Sequence[float] | None = None,
        method: Method = "rank",
        depth: int = 100,
        columns: Sequence[str] | None = None,
        words_columns: Sequence[str] | None = None,
        config: str | None = None,
        words_function: str | None = None,
        wide: bool = False,
        exact: bool = False,
        prefer: Prefer | None = None,
        rerank: Rerank | None = None,
    ) -> list[SearchRow]:
        """See Pgembed.hybrid."""
        fused = Fused(
            words,
            queries=queries if query is None else [query, *(queries or [])],
            embeddings=embeddings if embedding is None else [embedding, *(embeddings or [])],
            where=where, params=params, filters=filters, limit=limit, weights=weights, method=method, depth=depth,
            columns=columns, words_columns=words_columns, config=config, words_function=words_function,
            wide=wide, exact=exact, prefer=prefer,
        )  # fmt: skip
        return await self._run(hybrid(self._searcher, table, fused, rerank))

    async def _run(self, plan: Plan[T]) -> T:
        with in_own_words():
            async with self._connections.get() as conn:
                return await run_async(conn, self._connections.first(plan))

    def _in_sync(self, call: Callable[[Pgembed], T]) -> T:
        """Run a rare call on a synchronous connection of its own, in a thread."""
        with self._connections.new() as conn:
            conn.autocommit = True
            return call(Pgembed(Connections(conn, told=True), self._searcher))
