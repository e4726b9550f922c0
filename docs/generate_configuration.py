"""Writes ``docs/configuration.md`` from the settings themselves: ``make docs``."""

import sys
import types
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ByteSize, SecretStr
from pydantic.fields import FieldInfo

from vidurai_pipeline.settings import RetentionRule, Settings

_HEAD = """\
# Configuration

<!-- Written by `make docs` from vidurai_pipeline/settings.py: change it there. -->

Every setting is an environment variable, and each has a default that works. An empty variable counts as unset. A value
that can't be used ends a command with one line that names the variable. `~` stands for your home folder.

| variable | value | default | meaning |
|---|---|---|---|
"""
_TAIL = """
Dagster's own:

| variable | default | meaning |
|---|---|---|
| `DAGSTER_HOME` | `dagster` in Vidurai's folder | where Dagster keeps its settings (`dagster.yaml`) and its history |
"""
_KINDS = {
    Path: "path",
    int: "whole number",
    float: "number",
    str: "text",
    SecretStr: "text, kept secret",
    bool: "`true` or `false`",
    ByteSize: "size, such as `500MB` or `2GiB`",
    RetentionRule: "rules, such as `NOISE=90d`",
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def configuration_page() -> str:
    """The page in Markdown: a row for each field of the settings, in their order."""
    rows = [
        f"| `VIDURAI_{name.upper()}` | {_value(field)} | {_default(field)} | {_cell(field.description or '')} |\n"
        for name, field in Settings.model_fields.items()
    ]
    return _HEAD + "".join(rows) + _TAIL


def _value(field: FieldInfo) -> str:
    limits = [
        f"{sign} {bound:g}"
        for limit in field.metadata
        for name, sign in _BOUNDS.items()
        if (bound := getattr(limit, name, None)) is not None
    ]
    return ", ".join([_kind(field.annotation), *limits])


def _kind(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(member) for member in get_args(annotation) if member is not type(None))
    if origin is not None:
        return _kind(get_args(annotation)[0])
    if issubclass(annotation, Enum):
        return " or ".join(f"`{member.value}`" for member in annotation)
    return _KINDS[annotation]


def _default(field: FieldInfo) -> str:
    default = field.default
    if default in (None, ()):
        return "see meaning"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, Enum):
        return f"`{default.value}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(configuration_page())
