"""From a query expression to rows: look the embedding up, encode what Postgres cannot, compile, run."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from psycopg import sql

from pgembed import catalog
from pgembed.catalog import EncoderRow
from pgembed.composing import holds_change, without_changes
from pgembed.encoders import Encoder, EncoderPolicy, load_encoder, load_registered
from pgembed.encoders.composer import ComposerEncoder
from pgembed.errors import CatalogError, InvalidInput, InvalidQuery
from pgembed.fusing import folded
from pgembed.inputs import Expression, Image, Input, Row, Screenshot, Text, Vector
from pgembed.media import MediaPolicy, MediaReader
from pgembed.plans import Call, Compute, Plan
from pgembed.query import (
    Column,
    Compiler,
    Prefer,
    SearchPlan,
    SearchRow,
    Side,
    Target,
    to_encode,
)
from pgembed.regions import blend, cut
from pgembed.rounds import REMEMBERED, Rounds
from pgembed.views.resolving import found_views, views_in, with_views, without_view
from pgembed.worker import VerifyOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

TARGET = sql.SQL(
    "SELECT e.schema_name, e.table_name, e.target, e.key_columns, o.*,"
    " (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('name', a.attname, 'wide', t.typname IN"
    " ('bytea', 'vector', 'halfvec', 'sparsevec')) ORDER BY a.attnum)"
    " FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
    " WHERE a.attrelid = e.relation AND a.attnum > 0 AND NOT a.attisdropped) AS columns,"
    " n.nspname AS vector_schema,"
    " pg_catalog.row_security_active(e.relation) AS row_security,"
    " CASE e.storage WHEN 'side' THEN (SELECT pg_catalog.jsonb_build_object('schema', m.nspname, 'table', s.relname,"
    " 'keys', (SELECT pg_catalog.jsonb_agg(k.side_name ORDER BY k.ordinal) FROM pgembed._side_keys(e) AS k))"
    " FROM pg_catalog.pg_class s JOIN pg_catalog.pg_namespace m ON m.oid = s.relnamespace WHERE s.oid = e.side)"
    " END AS side,"
    " e.parts IS NOT NULL AS split,"
    " pgembed._index_quantization(e, pgembed._metric(o.metric, e.fusion)) AS quantization,"
    " pgembed._shares(e.inputs, e.fusion) AS shares, e.fusion -> 'parts' AS parts,"
    " pgembed._metric(o.metric, e.fusion) AS metric_of_vectors,"
    " v.typname = 'halfvec' AS half, graph.rows, graph.usable AS graph, graph.partial"
    " FROM pgembed._embedding(%s::regclass, %s) e JOIN pgembed.encoder o ON o.name = e.encoder"
    " CROSS JOIN LATERAL pgembed._vectors_of(e) AS place"
    " JOIN pg_catalog.pg_attribute va ON va.attrelid = place.relation AND va.attname = place.column_name"
    " JOIN pg_catalog.pg_type v ON v.oid = va.atttypid JOIN pg_catalog.pg_namespace n ON n.oid = v.typnamespace"
    " CROSS JOIN LATERAL pgembed._graph_of(e, pgembed._metric(o.metric, e.fusion)) AS graph"
)


@dataclass(frozen=True)
class _Known:
    """What the catalog says of a table's embedding."""

    compiler: Compiler
    encoder: EncoderRow
    read_at: float


def checked_preference(prefer: Prefer | None) -> Prefer | None:
    """How texts are encoded where there are two ways. Raises InvalidInput for a third."""
    if prefer not in (None, "exact", "static"):
        raise InvalidInput(
            f"prefer is {prefer!r}, which is no way to encode a query.",
            "Ways: exact, the encoder itself; static, the token vectors that were distilled from it.",
        )
    return prefer


class Searcher:
    """Prepares and runs searches; holds the encoders that queries have needed so far."""

    def __init__(self, media: MediaPolicy | None, policy: EncoderPolicy | None, prefer: Prefer | None = None) -> None:
        self.prefer: Prefer | None = checked_preference(prefer)
        self.media = media or MediaPolicy(any_path=True)
        self.policy = policy or EncoderPolicy.from_environment()
        self._encoders: dict[str, Encoder] = {}  # by fingerprint, or by the spec that a query named
        self._known: dict[tuple[str, str | None, Prefer | None], _Known] = {}
        self._lock = threading.Lock()
        self.rounds = Rounds()

    def forget(self) -> None:
        """Read the catalog anew at the next search."""
        self._known.clear()

    def load(self, row: EncoderRow) -> Encoder:
        """The model of a registered encoder. Raises EncoderMismatch where it is not the registered one."""
        with self._lock:
            if row.fingerprint not in self._encoders:
                self._encoders[row.fingerprint] = load_registered(
                    row.name,
                    row.spec,
                    row.settings,
                    fingerprint=row.fingerprint,
                    dim=row.dim,
                    normalized=row.normalized,
                    policy=self.policy,
                )
            return self._encoders[row.fingerprint]

    def verify_options(self, *, sample: int | None, repair: bool, media: MediaPolicy | None) -> VerifyOptions:
        """What a verification may load and read: any path is for the person who asks, not for what rows name."""
        media = media or replace(self.media, any_path=False)
        return VerifyOptions(sample=sample, repair=repair, media=media, encoders=self.policy)

    def prepare(
        self,
        table: str,
        query: Expression,
        *,
        embedding: str | None = None,
        prefer: Prefer | None = None,
        neutral: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Plan[SearchPlan]:
        """Look up the embedding, encode the inputs that need a model here, and compile (Compiler.compile's options).

        ``neutral`` names a view that is taken out of query and rows.
        """
        known = yield from self._known_of(table, embedding, prefer)
        if names := views_in(query, neutral):
            views = yield from found_views(known.compiler.target, names)
            query = with_views(query, views)
            if neutral is not None:
                if (target := known.compiler.target).parts:
                    raise InvalidQuery(
                        f"The inputs of {target.name} stand side by side, and no view is taken out of such rows.",
                        "Use views in the query, or an embedding that sums its inputs.",
                    )
                query, options["neutral"] = without_view(query, views[neutral])
        if holds_change(query):
            query = yield from self._without_changes(known, query)
        inputs = to_encode(known.compiler.target, query)
        vectors = (yield from self.encoded(known.encoder, inputs)) if inputs else None
        return known.compiler.compile(query, vectors, **options)

    def search(self, table: str, query: Expression, **options: Any) -> Plan[list[SearchRow]]:  # noqa: ANN401
        """Prepare and run a search; where the index gave too few rows, run it again over all that match."""
        plan = yield from self.prepare(table, query, **options)
        return (yield from self.rounds.run(plan))

    def vectors(
        self, table: str, queries: Sequence[Expression], *, embedding: str | None = None
    ) -> Plan[list[NDArray[np.float32]]]:
        """The vector of each query to an embedding, ``(dim,) float32``; all their inputs are one call of the model.

        Rows are read under the caller's rights. Raises InvalidQuery, CatalogError, MediaError.
        """
        known = yield from self._known_of(table, embedding)
        asked: list[Expression] = []
        for query in queries:
            if names := views_in(query):
                query = with_views(query, (yield from found_views(known.compiler.target, names)))
            asked.append((yield from self._without_changes(known, query)) if holds_change(query) else query)
        in_sql = (Vector, Row, Text) if known.compiler.target.prefer == "static" else (Vector, Row)
        inputs = dict.fromkeys(item for query in asked for item in query.inputs if not isinstance(item, in_sql))
        encoded = (yield from self.encoded(known.encoder, tuple(inputs))) if inputs else dict[Input, Any]()
        found: list[NDArray[np.float32]] = []
        for query in asked:
            vector = known.compiler.vector(query, encoded)
            if vector is None:
                statement = known.compiler.vectors([query], encoded)
                rows: list[dict[str, list[float]]] = yield Call(statement.text, statement.params)
                vector = np.array(next(iter(rows[0].values())), dtype=np.float32)
            found.append(vector)
        return found

    def target(self, table: str, embedding: str | None = None) -> Plan[Target]:
        """What the catalog says of a table's embedding."""
        return (yield from self._known_of(table, embedding)).compiler.target

    def _known_of(self, table: str, embedding: str | None, prefer: Prefer | None = None) -> Plan[_Known]:
        prefer = checked_preference(prefer) or self.prefer
        known = self._known.get((table, embedding, prefer))
        if known is None or time.monotonic() - known.read_at > REMEMBERED:
            known = yield from self._look_up(table, embedding, prefer)
        return known

    def _look_up(self, table: str, embedding: str | None, prefer: Prefer | None) -> Plan[_Known]:
        rows = yield Call(TARGET, [table, embedding])
        if not rows:
            raise CatalogError(
                f"The vectors of {table} are gone: their column or side table was dropped.",
                "Detach the embedding and attach it again; pgembed doctor tells more.",
            )
        row = rows[0]
        encoder = EncoderRow(**{field.name: row[field.name] for field in fields(EncoderRow) if field.name in row})
        target = Target(
            schema=row["schema_name"],
            table=row["table_name"],
            column=row["target"],
            encoder=encoder.name,
            space=encoder.space,
            dim=encoder.dim * max(1, len(row["shares"] or ())),
            columns=tuple(Column(column["name"], column["wide"]) for column in row["columns"]),
            keys=tuple(key["name"] for key in row["key_columns"]),
            metric=row["metric_of_vectors"],
            static_text=encoder.static_text is not None or prefer == "static",
            prefer="static" if encoder.static_text is None and prefer == "static" else None,
            vector_schema=row["vector_schema"],
            row_security=row["row_security"],
            half=row["half"],
            rows=row["rows"],
            graph=row["graph"],
            partial=tuple(row["partial"]),
            split=row["split"],
            quantization=row["quantization"],
            parts=tuple(zip(row["parts"], row["shares"], strict=True)) if row["shares"] else (),
            side=row["side"] and Side(row["side"]["schema"], row["side"]["table"], tuple(row["side"]["keys"])),
        )
        known = _Known(Compiler(target), encoder, time.monotonic())
        self._known[table, embedding, prefer] = known
        return known

    def _without_changes(self, known: _Known, query: Expression) -> Plan[Expression]:
        """The query with what composers make of its parts; rows are read under the caller's rights, as in a search."""
        target = known.compiler.target

        def vectors(queries: Sequence[Expression]) -> Plan[list[NDArray[Any]]]:
            inputs = tuple(dict.fromkeys(item for query in queries for item in to_encode(target, query)))
            encoded = (yield from self.encoded(known.encoder, inputs)) if inputs else dict[Input, Any]()
            statement = known.compiler.vectors(queries, encoded)
            row: dict[str, list[float]] = (yield Call(statement.text, statement.values))[0]
            found = [np.array(numbers, dtype=np.float32) for numbers in row.values()]
            return [folded(vector, target.shares) for vector in found] if target.parts else found

        def composer(by: str) -> Plan[ComposerEncoder]:
            if ":" in by:
                found: Encoder = yield Compute(lambda: self._load_spec(by))
                space = found.space
            else:
                row = yield from catalog.encoder(by)
                found, space = (yield Compute(lambda: self.load(row))), row.space
            if not isinstance(found, ComposerEncoder):
                raise InvalidQuery(f"'{by}' is an encoder, not a composer.", "Train one: pgembed train composer --help")
            found.check_target(by, space, target.name, target.encoder, target.space, target.encoder_dim)
            return found

        return (yield from without_changes(query, target.space, vectors, composer))

    def _load_spec(self, spec: str) -> Encoder:
        """What a query names by its spec: under the same policy as what the catalog names."""
        with self._lock:
            if spec not in self._encoders:
                self._encoders[spec] = load_encoder(spec, policy=self.policy)
            return self._encoders[spec]

    def encoded(self, row: EncoderRow, inputs: Sequence[Input]) -> Plan[Mapping[Input, NDArray[np.float32]]]:
        """The vectors of texts and pictures, ``(dim,)`` each, by the model of a registered encoder."""
        return (yield Compute(lambda: self.encode(row, inputs)))

    def encode(self, row: EncoderRow, inputs: Sequence[Input]) -> Mapping[Input, NDArray[np.float32]]:
        """The vectors of texts and pictures, each kind in one call of the model."""
        encoder = self.load(row)
        vectors: dict[Input, NDArray[np.float32]] = {}
        texts = [item for item in inputs if isinstance(item, Text)]
        if texts:
            vectors.update(zip(texts, encoder.encode_text([item.text for item in texts], role="query"), strict=True))
        pictures = [item for item in inputs if isinstance(item, Image | Screenshot)]
        with MediaReader(self.media) as reader:
            for modality, encode in (("image", encoder.encode_image), ("screenshot", encoder.encode_screenshot)):
                chosen = [item for item in pictures if item.modality == modality]
                if chosen:
                    opened = [reader.open(item.source, item.kind) for item in chosen]
                    parts = {
                        item: cut(picture, item.box, item.mask and reader.open(item.mask.source, item.mask.kind))
                        for item, picture in zip(chosen, opened, strict=True)
                        if item.box or item.mask
                    }
                    encoded = encode([*opened, *parts.values()], role="query")
                    vectors.update(zip(chosen, encoded, strict=False))
                    for item, part in zip(parts, encoded[len(chosen) :], strict=True):
                        vectors[item] = blend(part, vectors[item])
        return vectors
