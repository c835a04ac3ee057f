"""What a dump would tell of a table, and of a schema: to compare before and after."""

from __future__ import annotations

from typing import Any

import psycopg

Facts = dict[str, list[tuple[Any, ...]]]

OF_TABLE = {
    "table": "SELECT relkind, relpersistence, reloptions, relrowsecurity, relreplident, relacl::text"
    " FROM pg_class WHERE oid = %s::regclass",
    "columns": "SELECT row_number() OVER (ORDER BY attnum), attname, format_type(atttypid, atttypmod), attnotnull,"
    " attstorage, attcompression, attstattarget, attidentity, attgenerated, attcollation::regcollation::text,"
    " attacl::text, attoptions, pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a LEFT JOIN pg_attrdef d"
    " ON d.adrelid = a.attrelid AND d.adnum = a.attnum WHERE attrelid = %s::regclass AND attnum > 0"
    " AND NOT attisdropped ORDER BY attnum",
    "constraints": "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass"
    " ORDER BY conname",
    "indexes": "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
    " WHERE indrelid = %s::regclass ORDER BY 1",
    "triggers": "SELECT tgname, pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE tgrelid = %s::regclass"
    " AND NOT tgisinternal ORDER BY tgname",
    "comments": "SELECT objsubid, description FROM pg_description WHERE objoid = %s::regclass ORDER BY objsubid",
    "dependents": "SELECT pg_describe_object(classid, objid, objsubid), deptype FROM pg_depend"
    " WHERE refobjid = %s::regclass AND classid <> 'pg_trigger'::regclass ORDER BY 1, 2",
}

OF_SCHEMA = {
    "relations": "SELECT relname, relkind, relpersistence FROM pg_class WHERE relnamespace = 'pgembed'::regnamespace"
    " AND relkind <> 'i' ORDER BY relname",
    "columns": "SELECT c.relname, attname, format_type(atttypid, atttypmod), attnotnull,"
    " pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid"
    " LEFT JOIN pg_attrdef d ON d.adrelid = attrelid AND d.adnum = attnum"
    " WHERE relnamespace = 'pgembed'::regnamespace AND attnum > 0 AND relkind <> 'i' ORDER BY c.relname, attnum",
    "constraints": "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'pgembed'::regnamespace ORDER BY conname",
    "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'pgembed' ORDER BY 1",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'pgembed' ORDER BY 1",
    "functions": "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace"
    " AND prokind IN ('f', 'p') ORDER BY 1",
    "aggregates": "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'pgembed'::regnamespace"
    " AND prokind = 'a' ORDER BY 1",
    "rights": "SELECT oid::regprocedure::text, proacl::text FROM pg_proc"
    " WHERE pronamespace = 'pgembed'::regnamespace ORDER BY 1",
    "tokens": "SELECT model, count(*), md5(string_agg(md5(token || vector::text), '' ORDER BY token))"
    " FROM pgembed.token GROUP BY model",
    "static text": "SELECT * FROM pgembed.static_text",
    "shipped": "SELECT * FROM pgembed.shipped_encoder",
    "version": "SELECT version_num, pgembed.version() FROM pgembed.schema_version",
}


def facts_of_table(conn: psycopg.Connection[Any], table: str) -> Facts:
    """Everything that a dump would tell of a table."""
    return {name: conn.execute(query.encode(), [table]).fetchall() for name, query in OF_TABLE.items()}


def facts_of_schema(conn: psycopg.Connection[Any]) -> Facts:
    """Everything that is in the schema pgembed."""
    return {name: conn.execute(query.encode()).fetchall() for name, query in OF_SCHEMA.items()}
