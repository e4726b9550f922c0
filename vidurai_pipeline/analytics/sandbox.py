"""What a statement may do: read, and nothing else.

DuckDB's own settings keep a statement away from other files, the network and the settings themselves. They can't
keep it from writing where it may read, and ``WITH x AS (COPY … TO …) SELECT`` is a SELECT to DuckDB. So each
statement is parsed by DuckDB first, and what its syntax tree holds is compared with lists of what is allowed.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from vidurai_pipeline.errors import QueryError

VIEWS = "history, history_all, memories and projects"
_VIEWS = frozenset({"history", "history_all", "memories", "projects"})
#: The views that show the hot store too.
OF_BOTH_TIERS = frozenset({"memories", "projects"})
READS = "SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE and EXPLAIN"

_QUERY_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_TABLE_FUNCTIONS = frozenset(
    {
        "duckdb_columns",
        "duckdb_functions",
        "duckdb_keywords",
        "duckdb_settings",
        "duckdb_types",
        "duckdb_views",
        "generate_series",
        "json_each",
        "json_tree",
        "pg_timezone_names",
        "pragma_version",
        "range",
        "repeat",
        "repeat_row",
        "similar_memories",
        "unnest",
    }
)
# The one writes; the other plans a statement of its own, which nobody has checked.
_REFUSED = frozenset({"write_log", "json_serialize_plan"})
# Where some memories are hidden: what shows how the views are made, or figures of rows that they leave out.
_CATALOG = re.compile(r"_|duckdb_|information_schema|pg_|pragma_|sqlite_|stats$")
_GAP = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
_EXPLAIN = re.compile(
    rf"{_GAP}EXPLAIN\b(?:{_GAP}ANALYZE\b)?(?:{_GAP}\((?:\s*ANALYZE\s*,)?\s*FORMAT\s+\w+\s*\))?{_GAP}", re.I | re.S
)
_FILE_LIKE = re.compile(r"[/\\.:*]")
_SPOKEN = {"LOAD": "INSTALL or LOAD", "VARIABLE_SET": "SET", "CREATE_FUNC": "CREATE"}
_AVERAGES = frozenset({"avg", "mean"})


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement that only reads.

    Attributes:
        prefix: its EXPLAIN, if it has one.
        body: the rest.
        tree: the body's syntax tree, as DuckDB serialises it.
    """

    prefix: str
    body: str
    tree: dict[str, Any]

    @property
    def sql(self) -> str:
        """The statement as it will run."""
        return self.prefix + self.body

    @property
    def queries(self) -> int:
        """How many queries it is made of: itself, and each within it."""
        return sum(str(node.get("type")) in _QUERY_NODES for node in _nodes(self.tree))

    @property
    def quotes_at_will(self) -> bool:
        """Whether the statement makes its own error messages, of a memory's text perhaps."""
        return any(_function(node) == "error" for node in _nodes(self.tree))


def asks_for_similar(statement: Statement) -> bool:
    """Whether a statement asks for memories that are similar to a text."""
    return any(_function(node) == "similar_memories" for node in _nodes(statement.tree))


def reads_hot_store(statement: Statement) -> bool:
    """Whether a statement reads a view that shows the hot store, or may do so."""
    return any(
        str(node.get("type")) in {"BASE_TABLE", "SHOW_REF"}
        and _name(node, "table_name").strip('"').lower() in OF_BOTH_TIERS
        for node in _nodes(statement.tree)
    )


def check(connection: duckdb.DuckDBPyConnection, sql: str, *, views_only: bool = False) -> Statement:
    """Parse a statement and refuse it unless it only reads; ``AVG(salience)`` averages the levels' numbers.

    Args:
        connection: parses it.
        sql: the statement.
        views_only: whether it may ask nothing but the views: neither DuckDB's catalog nor its plans.

    Raises:
        QueryError: it is none, more than one, or does more than read.
        duckdb.ParserException: it is no SQL.
    """
    try:
        sql.encode()
    except UnicodeEncodeError:
        raise QueryError("the SQL is not valid Unicode text") from None
    statements = _statements(connection, sql)
    if len(statements) != 1:
        found = f"this text holds {len(statements)} statements" if statements else "there is no statement in this text"
        raise QueryError(found, "give one statement, such as SELECT count(*) FROM history")
    prefix = ""
    match _kind(statements[0]):
        case "SELECT":
            pass
        case "EXPLAIN" if not views_only:
            found = _EXPLAIN.match(sql)
            prefix, sql = (found.group(), sql[found.end() :]) if found else ("", "")
            if [_kind(statement) for statement in _statements(connection, sql)] != ["SELECT"]:
                raise QueryError("EXPLAIN is allowed only before a statement that reads", "for example EXPLAIN SELECT")
        case "MULTI":
            raise QueryError(
                "PIVOT without a list of its columns is not allowed here",
                "list them: PIVOT history ON salience IN ('HIGH', 'LOW') USING count(*)",
            )
        case kind:
            spoken = _SPOKEN.get(kind, kind.replace("_", " "))
            raise QueryError(f"{spoken} is not allowed here: the archive can only be read", f"use {READS}")
    tree = _parse(connection, sql)
    for node in _nodes(tree):
        _check_node(node)
    if views_only:
        _check_sources(tree)
    if any(_averages_salience(node) for node in _nodes(tree)):
        tree = _averaging_salience(connection, tree)
        sql = _unparse(connection, tree)
    return Statement(prefix, sql, tree)


def _statements(connection: duckdb.DuckDBPyConnection, sql: str) -> list[duckdb.Statement]:
    with connection.cursor() as cursor:
        return cursor.extract_statements(sql)


def _kind(statement: duckdb.Statement) -> str:
    try:
        return statement.type.name
    except ValueError:  # the Python client has no name for every kind, such as UPDATE EXTENSIONS
        return "this statement"


def _parse(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    with connection.cursor() as cursor:
        row = cursor.execute("SELECT json_serialize_sql($sql)", {"sql": sql}).fetchall()[0]
    try:
        tree = json.loads(row[0])
    except RecursionError:
        raise QueryError("the statement is nested too deeply") from None
    if tree["error"]:
        raise QueryError(f"the statement can't be checked: {tree['error_message']}")
    return tree


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _name(node: dict[str, Any], key: str) -> str:
    path = (node.get("qualified_name") or {}).get("path") or [node.get(key, "")]
    return str(path[-1])


def _function(node: dict[str, Any]) -> str:
    return _name(node, "function_name").lower() if "function_name" in node else ""


def _check_node(node: dict[str, Any]) -> None:
    kind = str(node.get("type", ""))
    if kind.endswith("_NODE") and kind not in _QUERY_NODES:
        verb = kind.removesuffix("_NODE").removesuffix("_QUERY").replace("_", " ")
        raise QueryError(f"{verb} is not allowed here, not even within a query: the archive can only be read")
    if kind == "TABLE_FUNCTION" and (name := _function(node["function"])) not in _TABLE_FUNCTIONS:
        raise QueryError(f"the table function {name!r} is not allowed here", f"ask the views {VIEWS}")
    if kind in {"BASE_TABLE", "SHOW_REF"} and _FILE_LIKE.search(name := _name(node, "table_name")):
        raise QueryError(f"{name!r} is a file, and files can't be read here", f"ask the views {VIEWS}")
    path = (node.get("qualified_name") or {}).get("path") or []
    elsewhere = len(path) > 1 and str(path[0]).lower() not in {"main", "temp"}
    if kind in {"BASE_TABLE", "SHOW_REF"} and elsewhere and (name := str(path[-1]).lower()) in OF_BOTH_TIERS:
        # In the archive's own database a view of this name only stands for the one that is made when it is asked for.
        raise QueryError(f"the view `{name}` belongs to no database", f"write FROM {name}")
    if (name := _function(node)) in _REFUSED:
        raise QueryError(f"the function {name!r} is not allowed here: the archive can only be read")


def _check_sources(tree: dict[str, Any]) -> None:
    ctes = {entry["key"].lower() for node in _nodes(tree) for entry in (node.get("cte_map") or {}).get("map", ())}
    for node in _nodes(tree):
        table = _name(node, "table_name").strip('"').lower() if node.get("type") in {"BASE_TABLE", "SHOW_REF"} else ""
        path = (node.get("qualified_name") or {}).get("path") or []
        own = table in _VIEWS or table in ctes
        if _CATALOG.match(_function(node)) or (table and (_CATALOG.match(table) or not own or len(path) > 1)):
            raise QueryError(f"{table or _function(node)!r} can't be read here", f"ask the views {VIEWS}")


def _averaging_salience(connection: duckdb.DuckDBPyConnection, tree: dict[str, Any]) -> dict[str, Any]:
    """Rewrite ``AVG(salience)``, which DuckDB refuses, to the average of the levels' numbers.

    The argument is wrapped in the macro ``salience_score``, which leaves anything but text alone; DISTINCT, FILTER,
    ORDER BY and OVER stay where they are, and so does the column's name.
    """
    template = _parse(connection, "SELECT salience_score(NULL)")
    for node in _nodes(tree):
        items = node.get("select_list")
        for item in items if isinstance(items, list) else []:
            if not item.get("alias") and any(_averages_salience(part) for part in _nodes(item)):
                alone = json.loads(json.dumps(template))
                alone["statements"][0]["node"]["select_list"] = [item]
                item["alias"] = _unparse(connection, alone).removeprefix("SELECT ")
    for node in list(_nodes(tree)):
        if _averages_salience(node):
            call = json.loads(json.dumps(template["statements"][0]["node"]["select_list"][0]))
            call["arguments"][0]["expression"] = node["arguments"][0]["expression"]
            node["arguments"][0]["expression"] = call
    return tree


def _averages_salience(node: dict[str, Any]) -> bool:
    if _function(node) not in _AVERAGES or len(node.get("arguments") or ()) != 1:
        return False
    return any(
        str(part["column_names"][-1]).lower() == "salience"
        for part in _nodes(node["arguments"][0])
        if part.get("column_names")
    )


def _unparse(connection: duckdb.DuckDBPyConnection, tree: dict[str, Any]) -> str:
    with connection.cursor() as cursor:
        return str(cursor.execute("SELECT json_deserialize_sql($tree)", {"tree": json.dumps(tree)}).fetchall()[0][0])
