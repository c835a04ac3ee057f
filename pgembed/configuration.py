"""Encoders and embeddings declared in a file, ``pgembed.toml``: what differs from a database, and how it is made so."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from psycopg import sql

from pgembed import catalog
from pgembed.declared import MODALITIES, OPTIONS, Declared, EncoderSpec, VectorIndex, inputs_of
from pgembed.errors import CatalogError, InvalidInput
from pgembed.parts import parts_of
from pgembed.plans import Call, Plan, Within

_ENCODER_KEYS = ("spec", "settings")
_EMBEDDING_KEYS = ("encoder", *MODALITIES, *OPTIONS, "index")
_TABLE = sql.SQL("SELECT pg_catalog.to_regclass(%s)::pg_catalog.text AS name")
_ATTACHED = sql.SQL(
    "SELECT e.relation::pg_catalog.regclass::pg_catalog.text AS table_name, e.target, e.encoder,"
    " pgembed._renamed(c.oid, e.inputs) AS inputs, e.mode,"
    " e.stale, e.storage, coalesce(e.fusion ->> 'method', 'sum') AS fusion, e.parts, graph.usable AS has_index"
    " FROM pgembed.embedding AS e JOIN pgembed.encoder AS o ON o.name = e.encoder"
    " CROSS JOIN LATERAL pgembed._graph_of(e, pgembed._metric(o.metric, e.fusion)) AS graph"
    " JOIN pg_catalog.pg_class AS c ON c.oid = e.relation ORDER BY 1, 2"
)


@dataclass(frozen=True)
class Configuration:
    """What a file declares: encoders by name, and embeddings by table, as the file names it, and target."""

    encoders: Mapping[str, EncoderSpec]
    embeddings: Mapping[tuple[str, str], Declared]


@dataclass(frozen=True)
class Change:
    """One difference between a file and a database. ``told`` says what of it; ``loses_vectors`` where vectors go, to be
    encoded again or for good."""

    action: Literal["add", "alter", "remove"]
    kind: Literal["encoder", "embedding", "index"]
    name: str
    told: str
    loses_vectors: bool = False
    table: str = field(default="", repr=False)
    target: str = field(default="", repr=False)
    declared: Declared | None = field(default=None, repr=False)

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {key: value for key, value in asdict(self).items() if key not in ("table", "target", "declared")}


def read(path: Path) -> Configuration:
    """Read a file. Raises InvalidInput where it is not there, is no TOML, or says what is not known."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"There is no file {path}.", "docs/configuration.md shows one.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}.", "It is a file of TOML.") from None
    _only(path, "the file", given, ("encoders", "embeddings"))
    encoders = {name: _encoder(path, name, one) for name, one in _tables(path, "encoders", given)}
    embeddings = {
        (table, target): _embedding(path, f"{table}.{target}", one)
        for table, targets in _tables(path, "embeddings", given)
        for target, one in _tables(path, table, {table: targets})
    }
    return Configuration(encoders, embeddings)


def differences(wanted: Configuration, *, prune: bool = False) -> Plan[list[Change]]:
    """What has to change in a database, in the order in which it is done.

    Embeddings and encoders that the file does not name are left alone, or removed with ``prune``. Raises CatalogError
    for a table that is not there, and an encoder that is registered as another one.
    """
    known = {row.name: row for row in (yield from catalog.encoders())}
    changes: list[Change] = []
    for name, encoder in wanted.encoders.items():
        if name not in known:
            changes.append(Change("add", "encoder", name, encoder.spec))
        elif (known[name].spec, known[name].settings) != (encoder.spec, dict(encoder.settings)):
            raise CatalogError(
                f"Encoder '{name}' is registered as {_shown(known[name].spec, known[name].settings)}, and declared as"
                f" {_shown(encoder.spec, encoder.settings)}.",
                "Vectors of two encoders do not compare: declare the new one under another name.",
            )
    rows = yield Call(_ATTACHED)
    there = {(row["table_name"], row["target"]): row for row in rows}
    declared: dict[tuple[str, str], Declared] = {}
    for (table, target), one in wanted.embeddings.items():
        (found,) = yield Call(_TABLE, [table])
        if found["name"] is None:
            raise CatalogError(f"There is no table {table}, for which {target} is declared.", "Create it before.")
        if (found["name"], target) in declared:
            raise InvalidInput(f"{found['name']}.{target} is declared twice, as {table} too.", "Leave one out.")
        declared[found["name"], target] = one
    if prune:
        changes += [
            Change("remove", "embedding", f"{table}.{target}", f"encoder {row['encoder']}", True, table, target)
            for (table, target), row in there.items()
            if (table, target) not in declared
        ]
    for (table, target), one in declared.items():
        if one.encoder not in known and one.encoder not in wanted.encoders:
            raise CatalogError(
                f"{table}.{target} is declared with encoder '{one.encoder}', which is neither there nor declared.",
                f"Add it: [encoders.{one.encoder}]",
            )
        changes += _of_embedding(table, target, one, there.get((table, target)))
    if prune:
        used = {one.encoder for one in declared.values()}
        changes += [
            Change("remove", "encoder", name, row.spec)
            for name, row in known.items()
            if name not in wanted.encoders and name not in used
        ]
    return changes


def apply(wanted: Configuration, shown: list[Change], *, prune: bool = False) -> Plan[list[Change]]:
    """Make a database what a file declares, in one transaction, and return what is left to be built outside of it: the
    indexes. Raises CatalogError where the differences are no more those that were ``shown``."""
    return (yield Within(_applied(wanted, shown, prune)))


def _applied(wanted: Configuration, shown: list[Change], prune: bool) -> Plan[list[Change]]:
    changes = yield from differences(wanted, prune=prune)
    if changes != shown:
        raise CatalogError("The database was changed meanwhile, and differs otherwise now.", "Look again: pgembed plan")
    for change in changes:
        match change.kind, change.action:
            case "encoder", "add":
                encoder = wanted.encoders[change.name]
                yield from catalog.add_encoder(encoder.name, encoder.spec, encoder.settings, None)
            case "encoder", "remove":
                yield from catalog.remove_encoder(change.name)
            case "embedding", _:
                if change.action != "add":
                    yield from catalog.detach(change.table, change.target)
                if (one := change.declared) is not None:
                    options = {key: getattr(one, key) for key in OPTIONS}
                    yield from catalog.attach(change.table, change.target, one.encoder, one.given, **options)
            case _:
                pass
    return [change for change in changes if change.kind == "index"]


def _of_embedding(table: str, target: str, one: Declared, row: Mapping[str, Any] | None) -> Iterator[Change]:
    def change(action: Literal["add", "alter"], kind: Literal["embedding", "index"], told: str) -> Change:
        return Change(action, kind, f"{table}.{target}", told, action == "alter", table, target, one)

    has_index = row is not None and row["has_index"]
    if row is None:
        yield change("add", "embedding", f"encoder {one.encoder}, {one.inputs}")
    else:
        was = {"encoder": row["encoder"], "inputs": inputs_of(row["inputs"])} | {key: row[key] for key in OPTIONS}
        was["parts"] = parts_of(row["parts"])
        told = [f"{key} {old} → {getattr(one, key)}" for key, old in was.items() if old != getattr(one, key)]
        if told:
            has_index = False  # it goes with the vectors
            yield change("alter", "embedding", ", ".join(told))
    if one.index is not None and not has_index:
        yield change("add", "index", f"m {one.index.m}, ef_construction {one.index.ef_construction}")


def _encoder(path: Path, name: str, given: Mapping[str, Any]) -> EncoderSpec:
    _only(path, f"encoder {name}", given, _ENCODER_KEYS)
    spec, settings = given.get("spec"), given.get("settings", {})
    if not isinstance(spec, str) or not isinstance(settings, dict):
        raise InvalidInput(
            f"{path}: encoder {name} has no spec, or settings that are no table.",
            f'Write [encoders.{name}] and below it spec = "builtin:lite".',
        )
    return EncoderSpec(name, spec, cast("dict[str, Any]", settings))


def _embedding(path: Path, name: str, given: Mapping[str, Any]) -> Declared:
    _only(path, f"embedding {name}", given, _EMBEDDING_KEYS)
    encoder = given.get("encoder")
    if not isinstance(encoder, str):
        raise InvalidInput(f"{path}: embedding {name} has no encoder.", 'Write encoder = "lite", a name.')
    options = {key: given.get(key, usual) for key, usual in OPTIONS.items()}
    return Declared(
        encoder, inputs_of({key: given.get(key) for key in MODALITIES}), index=_index(path, name, given), **options
    )


def _index(path: Path, name: str, given: Mapping[str, Any]) -> VectorIndex | None:
    index = given.get("index", False)
    if isinstance(index, bool):
        return VectorIndex() if index else None
    if isinstance(index, dict):
        options = cast("dict[str, Any]", index)
        _only(path, f"the index of {name}", options, ("m", "ef_construction"))
        if all(isinstance(value, int) and not isinstance(value, bool) for value in options.values()):
            return VectorIndex(**options)
    raise InvalidInput(f"{path}: the index of {name} is {index!r}.", "Write index = true, or { m = 16 }.")


def _tables(path: Path, name: str, given: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tables of TOML below a name. Raises InvalidInput for what is none."""
    part = given.get(name, {})
    if not isinstance(part, dict):
        raise InvalidInput(f"{path}: {name} is {part!r}, and no table.", "docs/configuration.md shows a file.")
    for key, value in cast("dict[str, Any]", part).items():
        if not isinstance(value, dict):
            raise InvalidInput(
                f"{path}: {name}.{key} is {value!r}, and no table.",
                f"Write [{'encoders.NAME' if name == 'encoders' else 'embeddings.TABLE.TARGET'}].",
            )
        yield key, cast("dict[str, Any]", value)


def _only(path: Path, what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := [key for key in given if key not in known]:
        raise InvalidInput(f"{path}: {what} has the unknown key {unknown[0]!r}.", f"Known: {', '.join(known)}.")


def _shown(spec: str, settings: Mapping[str, Any]) -> str:
    return f"{spec} with {json.dumps(dict(settings))}" if settings else spec


class Configured:
    """What ``Pgembed`` does with a configuration."""

    _run: Callable[[Plan[Any]], Any]
    build_index: Callable[..., None]

    def differences(self, wanted: Configuration, *, prune: bool = False) -> list[Change]:
        """How the database differs from a configuration, in the order in which ``apply`` makes it the same; with
        ``prune`` also by what the configuration does not name. Raises CatalogError, InvalidInput."""
        return self._run(differences(wanted, prune=prune))

    def apply(self, wanted: Configuration, shown: list[Change], *, prune: bool = False) -> None:
        """Make the database what a configuration declares: ``shown``, what ``differences`` gave, in one transaction,
        then the indexes, which block no writers. Raises CatalogError where it differs otherwise by now."""
        for change in self._run(apply(wanted, shown, prune=prune)):
            index = (change.declared and change.declared.index) or VectorIndex()
            self.build_index(change.table, change.target, m=index.m, ef_construction=index.ef_construction, wait=False)
