"""Which rows of the hot store and which files a statement can be about, as far as its syntax tells for certain.

Only a single SELECT from one view is looked at. DuckDB still applies the whole WHERE to what was read: it is enough
never to leave out a row that may meet it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from vidurai_pipeline.analytics.sandbox import Statement
from vidurai_pipeline.cold.listing import ArchiveFile
from vidurai_pipeline.hot.view import Comparison, RowFilter

_OPERATORS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
_MIRRORED = {"=": "=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
_HOLDS: dict[str, Callable[[int, tuple[Any, ...]], bool]] = {
    "=": lambda value, others: value == others[0],
    "<": lambda value, others: value < others[0],
    ">": lambda value, others: value > others[0],
    "<=": lambda value, others: value <= others[0],
    ">=": lambda value, others: value >= others[0],
    "IN": lambda value, others: value in others,
}
_TYPES: dict[str, type] = {"BIGINT": int, "VARCHAR": str}
_LARGEST = 2**63 - 1
Parameters = Sequence[object] | Mapping[str, object] | None


def row_filter(statement: Statement, columns: Mapping[str, str], parameters: Parameters) -> RowFilter:
    """Find the comparisons that every row of the answer must meet, and the LIMIT of a statement that has only that.

    Args:
        statement: the statement.
        columns: the columns that mean the same in the view and in the hot store, with their types.
        parameters: the statement's values.
    """
    select = _select(statement, {"memories"})
    if select is None:
        return RowFilter()
    where = select.get("where_clause")
    if where is None:
        return RowFilter(most=_bare_limit(select))
    return RowFilter(tuple(_Comparisons(columns, parameters).of(where)))


def needed_files(statement: Statement, parameters: Parameters) -> Callable[[ArchiveFile], bool]:
    """Find out by the conditions on ``year`` and ``month`` which files a statement can be about; not all must be so.

    DuckDB opens no other of those: it leaves out what the names of folders rule out.
    """
    select = _select(statement, {"history", "history_all"})
    where = select and select.get("where_clause")
    comparisons = [*_Comparisons({"year": "BIGINT", "month": "BIGINT"}, parameters).of(where)] if where else []

    def needed(file: ArchiveFile) -> bool:
        if file.month is None:
            return True
        year, month = file.month
        return all(_HOLDS[one.operator](year if one.field == "year" else month, one.values) for one in comparisons)

    return needed


def _select(statement: Statement, views: Collection[str]) -> dict[str, Any] | None:
    """The statement, if it is a single SELECT from one of some views."""
    select = statement.tree["statements"][0]["node"]
    table = select.get("from_table") or {}
    alone = statement.queries == 1 and select["type"] == "SELECT_NODE" and table.get("type") == "BASE_TABLE"
    plain = alone and table["table_name"].lower() in views and not table.get("column_name_alias")
    return select if plain and not table.get("sample") and not select.get("sample") else None


class _Comparisons:
    def __init__(self, columns: Mapping[str, str], parameters: Parameters) -> None:
        self._columns = {name.lower(): (name, _TYPES[type_]) for name, type_ in columns.items() if type_ in _TYPES}
        self._parameters = parameters

    def of(self, node: dict[str, Any]) -> Iterator[Comparison]:
        """The comparisons that are certain to hold wherever a condition does."""
        match node:
            case {"type": "CONJUNCTION_AND", "children": children}:
                for child in children:
                    yield from self.of(child)
            case {"type": "COMPARE_IN", "children": [column, *values]}:
                yield from self._compared(column, "IN", values)
            case {"type": "COMPARE_BETWEEN", "input": column, "lower": lower, "upper": upper}:
                yield from self._compared(column, ">=", [lower])
                yield from self._compared(column, "<=", [upper])
            case {"type": kind, "left": left, "right": right} if kind in _OPERATORS:
                yield from self._compared(left, _OPERATORS[kind], [right])
                yield from self._compared(right, _MIRRORED[_OPERATORS[kind]], [left])

    def _compared(self, column: dict[str, Any], operator: str, values: list[dict[str, Any]]) -> Iterator[Comparison]:
        names = column.get("column_names") or []
        if column["type"] != "COLUMN_REF" or len(names) != 1 or names[0].lower() not in self._columns:
            return
        name, type_ = self._columns[names[0].lower()]
        known = [self._value(value) for value in values]
        if known and all(_is_safe(value, type_) for value in known):
            yield Comparison(name, operator, tuple(known))

    def _value(self, node: dict[str, Any]) -> Any:
        """A literal's or a parameter's value; None for anything else."""
        match node:
            case {"type": "VALUE_CONSTANT", "literal": {"kind": "INTEGER", "text": text}}:
                return int(text)
            case {"type": "VALUE_CONSTANT", "literal": {"kind": "STRING", "text": text}}:
                return text
            case {"type": "VALUE_PARAMETER", "identifier": name}:
                parameters = self._parameters
                if isinstance(parameters, Mapping):
                    return parameters.get(name)
                place = int(name) if name.isdecimal() else 0
                return parameters[place - 1] if parameters and 0 < place <= len(parameters) else None
        return None


def _is_safe(value: object, type_: type) -> bool:
    """Whether SQLite compares a value as DuckDB does, also with text that is no valid UTF-8."""
    if type(value) is not type_:
        return False
    if isinstance(value, str):
        return value.isascii() and "\0" not in value
    return isinstance(value, int) and -_LARGEST <= value <= _LARGEST


def _bare_limit(select: dict[str, Any]) -> int | None:
    """How many rows a statement without a condition can show: any that come first."""
    plain = all(item["type"] in {"STAR", "COLUMN_REF"} for item in select["select_list"])
    groups = (select.get(part) for part in ("group_expressions", "having", "qualify"))
    if not plain or any(groups) or select.get("aggregate_handling") != "STANDARD_HANDLING":
        return None
    match select.get("modifiers"):
        case [{"type": "LIMIT_MODIFIER", "limit": limit, "offset": offset}]:
            parts = [limit, offset or {"literal": {"kind": "INTEGER", "text": "0"}}]
            literals = [part.get("literal") or {} for part in parts]
            if all(literal.get("kind") == "INTEGER" for literal in literals):
                most = sum(int(literal["text"]) for literal in literals)
                return most if 0 <= most <= _LARGEST else None
    return None
