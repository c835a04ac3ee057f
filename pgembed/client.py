"""The client: ``connect()`` gives a Pgembed. The one for asyncio, in client_async.py, runs the same plans."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import psycopg

from pgembed import catalog, distilling, indexing, sampling, schema
from pgembed.building import Asked, Query
from pgembed.calibration import Calibration, calibrate
from pgembed.catalog import EncoderRow, FailedRow, FailureReason, FailureRow, Finding, InputSpec, LeftOver, StatusRow
from pgembed.configuration import Configured
from pgembed.connections import Connections, SyncSource, conninfo
from pgembed.distilling import Distilled
from pgembed.encoders import Encoder, EncoderPolicy, Settings
from pgembed.encoders.check import EncoderReport, check_encoder
from pgembed.estimate import Estimate, estimate
from pgembed.hybrid import Fused, LegFilter, Method, Rerank, hybrid
from pgembed.inputs import Expression, Input
from pgembed.media import MediaPolicy
from pgembed.plans import Parameters, Plan, run
from pgembed.query import Prefer, SearchRow
from pgembed.searching import Searcher
from pgembed.told import in_own_words
from pgembed.views.client import Views
from pgembed.worker import Progress, Summary, Verification, Worker, WorkerOptions, verify
from pgembed.worker.verification import SAMPLE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
WorkMode = Literal["forever", "until_idle", "once"]
RoleKind = Literal["owner", "worker", "writer", "reader"]


def connect(
    database: SyncSource | None = None,
    *,
    media: MediaPolicy | None = None,
    encoders: EncoderPolicy | None = None,
    prefer: Prefer | None = None,
) -> Pgembed:
    """A client for a database: a connection string, a psycopg connection or pool, or None for PGEMBED_DSN,
    DATABASE_URL or libpq's own variables.

    ``media`` says which pictures queries may name (default: any path and bytes, no URL), and ``encoders`` what may be
    loaded (default: every kind installed, files below the model directory, no server). ``prefer="static"`` has texts of
    searches encoded in Postgres, by what ``distill_encoder`` made, nearly as the model would. Raises InvalidInput for a
    string that is no connection string; the connection itself is made at the first call.
    """
    source = conninfo(database) if database is None or isinstance(database, str) else database
    return Pgembed(Connections(source), Searcher(media, encoders, prefer))


class Pgembed(Views, Configured):
    """A database with pgembed in it. Use it as a context manager, or close() it."""

    def __init__(self, connections: Connections, searcher: Searcher) -> None:
        self._connections = connections
        self._searcher = searcher

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that were opened here."""
        self._connections.close()

    def install(self) -> schema.Versions:
        """Install or upgrade the schema ``pgembed``; doing it again changes nothing. Raises CatalogError."""
        return self._with(schema.install)

    def uninstall(self, *, detach_all: bool = False) -> None:
        """Remove the schema. Raises CatalogError while embeddings are attached, unless ``detach_all``."""
        self._with(lambda conn: schema.uninstall(conn, detach_all=detach_all))

    def versions(self) -> schema.Versions:
        """The versions of library, schema, server and pgvector."""
        return self._with(schema.versions)

    def doctor(self) -> list[Finding]:
        """What is well and what is not, each with what to do."""
        found = self._with(schema.doctor)
        return found if any(not finding.ok for finding in found) else [*found, *self._run(catalog.doctor())]

    def grant(self, kind: RoleKind, role: str) -> list[LeftOver]:
        """Give a role what an owner, a worker, a writer or a reader needs, for embeddings of now and later.

        Returns the statements that are for others to run, each with whom to ask. Raises CatalogError.
        """
        return self._run(catalog.grant(kind, role))

    def revoke(self, kind: RoleKind, role: str) -> list[LeftOver]:
        """Take back what ``grant`` gave; returns what is for others to take back. Raises CatalogError."""
        return self._run(catalog.revoke(kind, role))

    def encoders(self) -> list[EncoderRow]:
        """Every registered encoder."""
        return self._run(catalog.encoders())

    def encoder(self, name: str) -> EncoderRow:
        """One registered encoder. Raises CatalogError for an unknown one."""
        return self._run(catalog.encoder(name))

    def load_encoder(self, name: str) -> Encoder:
        """The model of a registered encoder, loaded here. Raises EncoderMismatch where it is not the registered one."""
        return self._searcher.load(self.encoder(name))

    def encode(self, name: str, inputs: Sequence[Input]) -> Mapping[Input, NDArray[np.float32]]:
        """The vectors ``(dim,)`` of texts and pictures by a registered encoder, loaded here, as queries have them.

        Raises EncoderMismatch, MediaError.
        """
        return self._searcher.encode(self.encoder(name), inputs)

    def test_encoder(
        self, name: str, *, table: str | None = None, embedding: str | None = None, rows: int = 32
    ) -> EncoderReport:
        """Encode samples with a registered encoder and check what comes out: its own samples, or a table's rows."""
        encoder = self.load_encoder(name)
        taken = None
        if table is not None:
            taken = self._run(sampling.samples(table, embedding, rows, self._searcher.media))
        return check_encoder(encoder, taken)

    def add_encoder(
        self, name: str, spec: str, *, settings: Settings | None = None, space: str | None = None
    ) -> EncoderRow:
        """Register an encoder. Raises EncoderError, MissingExtra, or CatalogError where the name is taken."""
        return self._run(catalog.add_encoder(name, spec, settings, space))

    def remove_encoder(self, name: str) -> None:
        """Remove an encoder that no embedding uses. Raises CatalogError."""
        self._run(catalog.remove_encoder(name))

    def distill_encoder(
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
        """Give a text encoder a static side, so that SQL makes vectors of queries without a worker, where it is asked
        to: ``prefer => 'static'``. It replaces the one before, and tells how near it comes on texts held out.

        Learns from the texts of ``texts`` (``TABLE.COLUMN``), of ``embedding`` (``TABLE.TARGET``), from queries of a
        ``log`` and from ``words``; without any, from the encoder's own embeddings and its tokenizer's words. At most
        ``limit`` texts are encoded. ``on_progress`` is told of a step, how much is done, and of how much. Raises
        InvalidInput where there are too few texts, CatalogError for an encoder without text, or static already.
        """
        sources = distilling.Sources(texts, embedding, log, words)
        row, found = self._run(distilling.read(name, sources, limit, seed))
        model = self._searcher.load(row)
        trained = distilling.train(model, name, found, limit=limit, held_out=held_out, seed=seed, say=on_progress)
        return self._run(distilling.store(row, trained))

    def drop_distilled(self, name: str) -> None:
        """Take the static side that was distilled from an encoder away. Raises CatalogError where there is none."""
        self._run(distilling.drop(name))

    def attach(
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
        """Attach an embedding: make a place for its vectors and keep them true; returns the embedding's id.

        ``storage`` is ``"column"``, a vector column ``target`` in the table, or ``"side"``, a table
        ``<table>_<target>`` beside it, which is where parts stand: then writing vectors fires no trigger of the table
        and makes no row versions.
        ``mode`` is ``"queue"``, where workers encode, or for texts of an encoder with a static text side ``"instant"``:
        a row then has its vector in the transaction that writes it.

        ``fusion`` of several inputs is ``"sum"``, by their weights, or ``"concat"``: side by side, in a vector as many
        times as wide, so that a query may say how much each counts.

        ``parts`` takes the input apart, so that a row has many vectors: ``"chunks"`` of a text, ``"pages"`` of a
        document, ``"tiles"`` of a picture, or a mapping with options, ``{"kind": "chunks", "tokens": 200}``.

        ``text`` is a column or a template (``"{title}. {body}"``), ``image`` and ``screenshot`` a bytea column, an oid
        column of large objects, or ``{"column": "photo", "as": "path"}`` (or ``"url"``) for a text column; an array of
        any of these is a list, with the mean of its parts. A mapping may give a ``weight`` too.
        Raises CatalogError where the table, its columns or the encoder do not fit; nothing is changed then.
        """
        inputs = {"text": text, "image": image, "screenshot": screenshot}
        return self._run(catalog.attach(table, target, encoder, inputs, stale, storage, mode, fusion, parts))

    def estimate(
        self, table: str, target: str, *, encoder: str, fusion: str = "sum", **inputs: InputSpec | None
    ) -> Estimate:
        """What ``attach`` with these arguments would come to; nothing is changed. Refuses what attach refuses."""
        return self._run(estimate(table, target, encoder, inputs, self._searcher.load, fusion))

    def detach(self, table: str, target: str | None = None) -> None:
        """Detach an embedding; the table is as it was before. Raises CatalogError."""
        self._run(catalog.detach(table, target))
        self._searcher.forget()

    def picture_column(self, table: str, target: str | None = None) -> str | None:
        """The column that an embedding reads pictures from, or None."""
        return self._run(catalog.picture_column(table, target))

    def status(self, table: str | None = None) -> list[StatusRow]:
        """How every embedding stands, or those of one table."""
        return self._run(catalog.status(table))

    def failures(self, table: str | None = None, *, limit: int = 100) -> list[FailureRow]:
        """Rows that were given up, the latest first."""
        return self._run(catalog.failures(table, limit))

    def cuts(self, table: str | None = None, *, limit: int = 100) -> list[catalog.CutRow]:
        """Rows of which not all is in their vectors, the latest first, with what is left out: the end of a text that is
        longer than its encoder reads, or a part that could not be encoded."""
        return self._run(catalog.cuts(table, limit))

    def failure_reasons(self, table: str | None = None) -> list[FailureReason]:
        """Why rows were given up, and how many for each reason; the one that most have first."""
        return self._run(catalog.failure_reasons(table))

    def retry(
        self,
        table: str,
        target: str | None = None,
        *,
        reason: str | None = None,
        keys: Sequence[Sequence[str]] | None = None,
    ) -> int:
        """Put failed rows back into the queue: those whose error is LIKE ``reason``, those with these keys, each its
        columns as texts; returns how many."""
        return self._run(catalog.retry(table, target, reason, keys))

    def reconcile(self, table: str, target: str | None = None, *, where: str | None = None) -> int:
        """Queue rows that no trigger saw: those without a vector, or all that match; returns how many."""
        return self._run(catalog.reconcile(table, target, where))

    def requeue(self, table: str, keys: Sequence[Sequence[str]], target: str | None = None) -> int:
        """Queue rows by their keys, each its columns as texts, that do not wait already; returns how many."""
        return self._run(catalog.requeue(table, keys, target))

    def verify(
        self,
        table: str,
        target: str | None = None,
        *,
        sample: int | None = SAMPLE,
        repair: bool = False,
        media: MediaPolicy | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Verification:
        """Encode ``sample`` rows again, or all where it is None, and compare: the report tells what does not match.

        Rows that wait in the queue, or were given up, are counted apart. ``repair`` queues what does not match; nothing
        else is written. ``media`` says what rows may name, as for a worker (default: the client's, without its paths
        but those below a root). ``on_progress`` is told of rows done and about how many there are. It works on a
        connection of its own. Raises EncoderMismatch where the model is not the registered one, CatalogError.
        """
        identity = self._run(catalog.embedding_id(table, target))
        options = self._searcher.verify_options(sample=sample, repair=repair, media=media)
        with in_own_words():
            return verify(self._connections.new, identity, options, on_progress)

    def wait(self, table: str, target: str | None = None, *, timeout: float = 60.0) -> list[FailedRow]:
        """Wait until every row that was committed before the call has its vector; returns those that failed.

        ``timeout`` is in seconds; WaitTimeout is raised when it is over. Raises CatalogError in a transaction that has
        changed the table itself, or that sees one snapshot (REPEATABLE READ).
        """
        return self._run(catalog.wait(table, target, timeout))

    def prepare(self, encoder: str, texts: Sequence[str], *, timeout: float = 60.0) -> None:
        """Have workers encode query texts, so that ``pgembed.encode_text`` finds them in SQL.

        Waits until all are there, ``timeout`` seconds at most, on a connection of its own. Raises CatalogError where
        the time is over, no worker is running, or a text cannot be encoded.
        """
        with in_own_words(), self._connections.new() as conn:
            conn.autocommit = True
            run(conn, catalog.prepare(encoder, texts, timeout))

    def pause(self, table: str, target: str | None = None) -> int:
        """Have workers leave a table's embeddings alone until ``resume``; returns how many were not paused before."""
        return self._run(catalog.pause(table, target))

    def resume(self, table: str, target: str | None = None) -> int:
        """Go on with what was paused; returns how many had been."""
        return self._run(catalog.resume(table, target))

    def unhook(self, table: str) -> int:
        """Take pgembed's triggers off a table, for a migration that changes a column they name; ``sync`` puts them
        back. Returns how many embeddings the table has."""
        return self._run(catalog.unhook(table))

    def sync(self, table: str | None = None, *, requeue: bool = True) -> int:
        """Put a table's embeddings right after it was altered: triggers, queue, vector column; its rows are queued
        again unless ``requeue`` is false. Returns how many it has. Without a table it follows renames, as every worker
        does when it starts, and returns how many embeddings were out of date. Raises CatalogError where an input is
        gone."""
        return self._run(catalog.sync(table, requeue=requeue))

    def worker(
        self, options: WorkerOptions | None = None, *, on_progress: Callable[[Progress], None] | None = None
    ) -> Worker:
        """A worker on this database, with connections of its own; its ``run()`` works and its ``stop()`` ends that."""
        options = options or WorkerOptions(encoders=self._searcher.policy)
        return Worker(self._connections.new, options, on_progress=on_progress)

    def work(
        self,
        options: WorkerOptions | None = None,
        *,
        until_idle: bool = False,
        once: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Summary:
        """Work in this thread: for ever, until nothing waits, or one batch of each embedding."""
        return self.worker(options, on_progress=on_progress).run(mode_of(until_idle, once))

    def index_statement(self, table: str, target: str | None = None, **options: Any) -> str:  # noqa: ANN401
        """The statement that builds an embedding's vector index, for another tool to run: ``m``, ``ef_construction``
        and ``quantization`` as of ``build_index``."""
        return self._run(catalog.index_statement(table, target, **(indexing.USUAL | options)))

    def build_index(
        self,
        table: str,
        target: str | None = None,
        *,
        m: int = 16,
        ef_construction: int = 64,
        quantization: str = "none",
        memory: str | None = None,
        wait: bool = True,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Build the vector index without blocking writers, once the queue is empty (``wait``).

        ``quantization`` of an embedding with parts is ``"none"``, ``"half"`` or ``"binary"``: the index is smaller, and
        what it gives is compared by the full vectors.
        Raises InvalidInput where the caller's connection has a transaction open: the build would wait for its end.
        """
        self._connections.refuse_open_transaction()
        with self._connections.new() as conn:  # a read on the caller's might leave a transaction open
            conn.autocommit = True
            own = Pgembed(Connections(conn, told=True), self._searcher)
            statement = own.index_statement(
                table, target, m=m, ef_construction=ef_construction, quantization=quantization
            )
            while wait and (waiting := indexing.waiting(own.status(table), target)):
                if on_progress is not None:
                    on_progress(f"waiting for {waiting} rows", 0, 0)
                time.sleep(0.5)
        indexing.build_index(self._connections.new, table, target, statement, on_progress=on_progress, memory=memory)

    def query(self, table: str) -> Query:
        """A search that is built step by step, and run when its rows, a page, its SQL or an explanation is asked for:
        ``db.query("product").near(Text("a red shoe")).where("price < %s", 50).limit(5).rows()``."""
        return Query(Asked(table), self._searcher, self._run)

    def calibrate(
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
        """From which score on a row is an answer, for ``db.query(…).at_least(score)``: of new queries like ``absent``,
        to which the table has none, at most the share ``alpha`` will be given one. ``present`` are queries that have
        one, of which it tells how many keep it. Raises InvalidInput where there are too few queries for alpha."""
        plan = calibrate(
            self._searcher, table, absent, present, alpha=alpha, embedding=embedding, where=where, weights=weights
        )
        return self._run(plan)

    def search(
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
        """The ``limit`` rows nearest to a query, best first: ``row.score``, ``row.id``, ``row.title``, …

        ``where`` is SQL on the table's columns with psycopg's ``%s`` or ``%(name)s`` for ``params``; as many rows come
        back as match, up to ``limit``. ``columns`` chooses what is read; without it all but bytea and vector columns,
        and those too where ``wide``. ``exact`` uses no vector index. ``weights`` say how much each input of a row
        counts, ``{"text": 0.3, "image": 0.7}``, in an embedding with fusion ``"concat"``. ``prefer`` is as of
        ``connect``. ``neutral`` names a view that is not to count: it is taken out of query and rows. Of an
        embedding with parts ``best`` count together; a row tells its nearest: ``row.part``, ``row.kind``,
        ``row.location``, ``row.content``. Raises InvalidQuery, CatalogError, MediaError.
        """
        plan = self._searcher.search(
            table, query, where=where, params=params, limit=limit, embedding=embedding, columns=columns, wide=wide,
            exact=exact, weights=weights, prefer=prefer, neutral=neutral, best=best,
        )  # fmt: skip
        return self._run(plan)

    def hybrid(
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
        """The ``limit`` rows that words and vectors together put highest, best first, as ``pgembed.hybrid`` finds them.

        ``words`` are looked for by full text search and, where neither ``query`` nor ``queries`` says otherwise, by
        their vector. Each of ``queries`` searches the embedding of its place in ``embeddings``; an empty list leaves
        the words alone. ``weights`` has one for each query, in order, that of the words last; so has ``filters``, each
        a condition beside ``where``, ``("price < %s", [50])`` where it has parameters, or None. ``method`` is
        ``"rank"`` (reciprocal rank fusion) or ``"score"`` (weighted sum), over ``depth`` rows of each.
        ``words_columns`` says where words are looked for, ``config`` the text search configuration. ``rerank`` is
        called with the words and the first ``depth`` rows and gives their scores, the higher the better: see
        ``pgembed.rerank``. The rest is as of ``search``. Raises InvalidQuery, CatalogError, MediaError.
        """
        fused = Fused(
            words,
            queries=queries if query is None else [query, *(queries or [])],
            embeddings=embeddings if embedding is None else [embedding, *(embeddings or [])],
            where=where, params=params, filters=filters, limit=limit, weights=weights, method=method, depth=depth,
            columns=columns, words_columns=words_columns, config=config, words_function=words_function,
            wide=wide, exact=exact, prefer=prefer,
        )  # fmt: skip
        return self._run(hybrid(self._searcher, table, fused, rerank))

    def _run(self, plan: Plan[T]) -> T:
        return self._with(lambda conn: run(conn, self._connections.first(plan)))

    def _with(self, call: Callable[[psycopg.Connection[Any]], T]) -> T:
        with in_own_words(), self._connections.get() as conn:
            return call(conn)


def mode_of(until_idle: bool, once: bool) -> WorkMode:
    """How long a worker works."""
    return "until_idle" if until_idle else "once" if once else "forever"
