"""Check that the SQL which sql/ composes holds no name and no value that nobody quoted. Called by lint_sql.

What ``EXECUTE`` runs, and ``%s`` of a ``format(...)`` that makes SQL, must be SQL already: a constant, of a type whose
text is sound, given by a function that makes SQL, a variable that holds nothing else, or what ``MADE_OF_SQL`` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pglast import ast, parse_plpgsql, parse_sql
from pglast.parser import ParseError
from pglast.stream import RawStream
from pglast.visitors import Visitor

# What format() makes with one of these in it is run, or shown to somebody who runs it.
SQL = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|JOIN|CREATE|ALTER|DROP|GRANT|REVOKE|CALL|CASE|BEGIN|NEW|OLD|AND|OR|NULL"
    r"|AS)\b|::|OPERATOR\("
)
PLACE = re.compile(r"%(?:(\d+)\$)?-?\d*([sIL%])")

GIVES_SQL = re.compile(
    r"\w+_sql|quote_ident|quote_literal|format|format_type|to_regclass|pg_get_expr|cardinality|count|vector_dims"
    r"|_dblink_schema|_filter_condition|_json_type|_key_list|_lowercase_collation|_operator_class|_owner|_rendering"
    r"|_search_keys|_side_name|_typed_key|_wide_dim|_words_text"
)
GIVES_ARGUMENT = re.compile(
    r"string_agg|array_agg|array_to_string|concat_ws|greatest|max|min|nullif|replace|substring|unnest"
)
SOUND_TYPE = re.compile(
    "bool|boolean|int[248]|smallint|integer|bigint|float8|oid|reg(class|collation|operator|procedure|role|type)"
)
NUMBER = re.compile(r"([\w()]+\.)?(attnum|dim|id|leg|n|ordinal|reltype)")
TARGET = re.compile(r"target\.(columns|distance|keys|nearest|part_rows|present|side|source)")  # of _search_target

# What a caller, a record or a subquery gives as SQL, by function; read it before you add to this.
MADE_OF_SQL: dict[str, set[str]] = {
    "_bound_value": {"types"},
    "_check_expression": {"place", "source"},
    "_coarse_sql": {"vector"},
    "_create_append_triggers": {"differs"},
    "_create_instant_triggers": {"c", "k", "parts.present", "parts.queue_keys", "parts.vector"},
    "_create_queue": {"key ->> 'type'"},  # of _key_columns, which reads the table
    "_create_trigger_function": {"body"},
    "_create_triggers": {"name"},
    "_differs_sql": {"c.comparison"},
    "_doubt_parts": {"chosen"},
    "_examine_distilled": {"encoder"},  # a command of the shell
    "_fill_gone": {"same"},
    "_fill_these": {"parts.input", "parts.vector", "same"},
    "_filter_condition": {"place", "source"},
    "_find_stale_sql": {"c", "rows"},
    "_forgive_sql": {"rows", "key ->> 'type'"},  # of _queue_key, which reads the queue's table
    "_grant": {"object.statement"},
    "_hand_over": {"object"},
    "_hybrid_filters": {"filter", "filters"},
    "_hybrid_statement": {"keys.found", "keys.joined", "keys.names", "w.*"},
    "_hybrid_words": {"condition", "joined", "named", "names", "source", "t", "words_function"},
    "_input_sql": {"value"},
    "_instant_row_body": {"present", "vector"},
    "_instant_rows_body": {"present", "vector"},
    "_make_query_role": {"setting"},
    "_key_list": {"form"},
    "_matching": {"condition", "source"},
    "_nearest_part_sql": {"distance"},
    "_objects_of": {"o.name", "o.rights"},
    "_parts_sql": {
        "NULLIF(substr(condition, length(' AND ') + 1), '')",
        "condition",
        "numbered.joined",
        "numbered.keys",
        "numbered.named",
    },
    "_part_words_sql": {"document"},
    "_planned_indexes": {"statement"},
    "_put_trigger": {"event", "name", "whom"},  # of the functions that create triggers
    "_revoke": {"object.revocation"},
    "_search_target": {"query"},
    "search_neutral": {"beside"},
    "_search_body": {"s.distance", "s.present", "s.side", "s.source"},
    "_stored_vector": {"side", "source"},
    "_sync_partition": {"copy.leaf"},
    "_take_away_sql": {"k.old", "k.same", "k.side", "k.taken"},
    "_trace": {"statement"},
    "_typed_key": {"key_column", "key ->> 'type'"},  # as that of _forgive_sql
    "_view_rows": {"pair"},
    "_view_sample": {"e"},
    "explain_hybrid": {"made.ctes", "made.joined", "made.names", "made.source"},
    "explain_search": {"keys.found", "keys.joined", "keys.told"},
    "hybrid": {"made.ctes", "made.item", "made.joined", "made.names", "made.source"},
    "reconcile": {'"where"'},  # SQL of the caller's, who runs it
}


def unquoted(statement: ast.CreateFunctionStmt, text: str) -> Iterator[str]:
    """The expressions that a function, whose text is given, puts unquoted into SQL; none where it does not parse."""
    try:
        yield from sorted(set(Function(statement, text).unquoted()))
    except ParseError:  # lint_sql says where
        return


def with_known_types(function: str) -> str:
    """The function with its types in schema public, and rows in arrays as text: the parser knows no others."""
    in_public = re.sub(r"\b(pgembed|public_+)\.", "public.", function)
    return re.sub(r"\bpublic\.\w+\[\]", "text[]", in_public)


class Function:
    """A function, with all that is assigned to its variables."""

    def __init__(self, statement: ast.CreateFunctionStmt, text: str) -> None:
        self.name: str = statement.funcname[-1].sval
        self.sound = {p.name for p in statement.parameters or () if is_sound(p.argType)}
        self.assigned: dict[str, list[ast.Node]] = {}
        self.parts: list[ast.Node] = []  # all statements and expressions
        self.executed: list[ast.Node] = []
        options = {option.defname: option.arg for option in statement.options or ()}
        if "language" in options and options["language"].sval == "plpgsql":
            self._read(parse_plpgsql(with_known_types(text)))
        elif "as" in options:
            self.parts.extend(raw.stmt for raw in parse_sql(options["as"][0].sval))
        else:
            self.parts.append(statement)

    def _read(self, node: Any) -> None:  # noqa: ANN401
        """Take in the tree of a body in PL/pgSQL. What RAISE says is no SQL."""
        if isinstance(node, list):
            for item in node:
                self._read(item)
            return
        if not isinstance(node, dict):
            return
        for kind, value in node.items():
            match kind:
                case "PLpgSQL_stmt_raise":
                    continue
                case "PLpgSQL_expr":
                    self.parts.extend(parsed(value["query"]))
                    continue
                case "PLpgSQL_var":
                    if SOUND_TYPE.fullmatch(value.get("datatype", {}).get("PLpgSQL_type", {}).get("typname", "")):
                        self.sound.add(value["refname"])
                    if "default_val" in value:
                        self._assign([value["refname"]], value["default_val"])
                case "PLpgSQL_stmt_assign":
                    target = value["expr"]["PLpgSQL_expr"]["query"].split(":=")[0].split("[")[0].strip()
                    self._assign([target], value["expr"])
                case "PLpgSQL_stmt_execsql" if value.get("into"):
                    fields = value["target"].get("PLpgSQL_row", {}).get("fields", [])
                    self._assign([field["name"] for field in fields], value["sqlstmt"])
                case "PLpgSQL_stmt_dynexecute" | "PLpgSQL_stmt_dynfors" | "PLpgSQL_stmt_open":
                    self._execute(value.get("query") or value.get("dynquery"))
                case "PLpgSQL_stmt_return_query":
                    self._execute(value.get("dynquery"))
                case _:
                    pass
            self._read(value)

    def _assign(self, names: list[str], expression: dict[str, Any]) -> None:
        (part,) = parsed(expression["PLpgSQL_expr"]["query"])
        given = part.targetList if isinstance(part, ast.SelectStmt) else part.returningClause.exprs
        for name, item in zip(names, given, strict=False):
            self.assigned.setdefault(name, []).append(item.val)

    def _execute(self, expression: dict[str, Any] | None) -> None:
        if expression:
            self.executed.extend(part.targetList[0].val for part in parsed(expression["PLpgSQL_expr"]["query"]))

    def unquoted(self) -> Iterator[str]:
        """The expressions that stand unquoted in what this function composes."""
        formats = Formats()
        for part in self.parts:
            formats(part)
        for expression in [*self.executed, *formats.inserted]:
            yield from self.unsound(expression, frozenset())

    def unsound(self, node: Any, within: frozenset[str]) -> Iterator[str]:  # noqa: ANN401
        """The parts of an expression that may be other than SQL. ``within`` are the variables that led to it."""
        match node:
            case ast.FuncCall() if GIVES_SQL.fullmatch(node.funcname[-1].sval):
                return
            case ast.FuncCall() if GIVES_ARGUMENT.fullmatch(node.funcname[-1].sval):
                parts = node.args
            case ast.CoalesceExpr() | ast.MinMaxExpr():
                parts = node.args
            case ast.CaseExpr():
                parts = [*(when.result for when in node.args), node.defresult]
            case ast.TypeCast():
                parts = () if is_sound(node.typeName) else [node.arg]
            case ast.A_Expr() if node.name[-1].sval in {"||", "+", "-"}:
                parts = [node.lexpr, node.rexpr]
            case ast.SubLink():
                parts = [node.subselect.targetList[0].val]
            case ast.A_Indirection() if isinstance(node.indirection[0], ast.A_Indices):
                parts = [node.arg]
            case ast.ColumnRef() if (name := RawStream()(node)) in within or name in self.sound:
                return
            case ast.ColumnRef() if name in self.assigned:
                parts, within = self.assigned[name], within | {name}
            case ast.A_Const() | ast.BoolExpr() | ast.BooleanTest() | None:
                return
            case _:
                shown = RawStream()(node)
                made = shown.endswith(("_sql", ").told")) or NUMBER.fullmatch(shown) or TARGET.fullmatch(shown)
                if not made and shown not in MADE_OF_SQL.get(self.name, ()):
                    yield shown
                return
        for part in parts:
            yield from self.unsound(part, within)


class Formats(Visitor):
    """Gathers what ``format(...)`` puts unquoted into SQL."""

    def __init__(self) -> None:
        super().__init__()
        self.inserted: list[ast.Node] = []

    def visit_FuncCall(self, _: Any, node: ast.FuncCall) -> None:  # noqa: ANN401
        if node.funcname[-1].sval != "format" or not node.args:
            return
        self.inserted.append(node.args[0])
        for form in filter(SQL.search, forms(node.args[0])):
            n = 0
            for place in PLACE.finditer(form):
                if place[2] != "%":
                    n = int(place[1] or n + 1)
                    if place[2] == "s":
                        self.inserted.append(node.args[n])


def forms(node: Any) -> list[str]:  # noqa: ANN401
    """What may be given to format() first: its constants, what stands between them left out."""
    match node:
        case ast.A_Const(val=ast.String(sval=form)):
            return [form]
        case ast.CaseExpr():
            return [form for result in (*(when.result for when in node.args), node.defresult) for form in forms(result)]
        case ast.A_Expr():
            return [left + right for left in forms(node.lexpr) for right in forms(node.rexpr)]
        case _:
            return [""]


def is_sound(name: ast.TypeName) -> bool:
    return bool(SOUND_TYPE.fullmatch(name.names[-1].sval)) and not name.arrayBounds


def parsed(query: str) -> list[ast.Node]:
    """The statements of an expression, an assignment or a statement in PL/pgSQL."""
    for text in ("SELECT " + query, query, "SELECT " + query.partition(":=")[2]):
        try:
            return [raw.stmt for raw in parse_sql(text)]
        except ParseError:
            continue
    raise ValueError(query)
