"""Values and messages as text: for a terminal, for a line, for JSON."""

import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from rich.text import Text

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PLACE = re.compile(r"\s*\nLINE (?P<line>\d+): (?P<excerpt>[^\n]*)\n(?P<indent> *)\^+")


def plain(value: Any) -> Any:
    """A value that JSON does not know, as one that it knows."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):  # a sum of integers, mostly: it stays one
        if not value.as_tuple().exponent:
            return int(value)
        # A number of JSON is a float to most who read it: more digits than that holds are kept as text.
        return float(value) if Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of whatever types DuckDB put into a value."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, default=plain, allow_nan=False)
    except (TypeError, ValueError):  # JSON knows neither NaN nor infinity, nor keys that are no text
        return json.dumps(_valid(value), indent=indent, ensure_ascii=False, default=plain, allow_nan=False)


def _valid(value: Any) -> Any:
    """The value with null for each number that JSON can't hold, and with text for keys."""
    if isinstance(value, Mapping):
        return {str(plain(name)): _valid(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cell(value: Any, null: str = "") -> str:
    """A value of a query as text."""
    if value is None:
        return null
    if isinstance(value, list | tuple | dict):
        return to_json(value)
    return str(plain(value)) if isinstance(value, datetime | date | bytes) else str(value)


def fact(value: Any) -> str:
    """A figure as people write it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)


def one_line(message: str) -> str:
    """A message of several lines as one; DuckDB's excerpt with a caret becomes the place and what stands there."""
    place = _PLACE.search(message)
    if place:
        line, excerpt, indent = place.group("line", "excerpt", "indent")
        at = excerpt[max(0, len(indent) - len(f"LINE {line}: ")) :].strip() or "the end"
        message = f"{message[: place.start()].rstrip(' .!')}, in line {line}, at: {at}{message[place.end() :]}"
    return re.sub(r"[.!]?\s*\n\s*", "; ", message.strip())


def visible(text: str) -> Text:
    """Text as a terminal may show it: no markup, and nothing in a memory can steer the terminal."""
    return Text(_CONTROLS.sub(lambda found: f"\\x{ord(found.group()):02x}", text))


def flat(text: str) -> str:
    """A cell that can't break its line."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
