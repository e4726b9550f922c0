"""Which columns the cold archive's files have, and whether they can be one archive of memories."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import duckdb

from vidurai_pipeline.analytics.damage import ADVICE, ASK_ON, damage_message, find_damaged
from vidurai_pipeline.analytics.sources import group_by_schema, scan
from vidurai_pipeline.cold.listing import ArchiveFile, Listing
from vidurai_pipeline.cold.manifest import StoreManifests
from vidurai_pipeline.errors import ArchiveError, MissingKeyError
from vidurai_pipeline.hot.schema import RESERVED

REQUIRED = ("id", "verbatim", "archived_at")
BASE_COLUMNS = {
    "id": "BIGINT",
    "verbatim": "VARCHAR",
    "gist": "VARCHAR",
    "salience": "VARCHAR",
    "created_at": "VARCHAR",
    "expires_at": "VARCHAR",
    "access_count": "BIGINT",
    "outcome": "BIGINT",
    "file_path": "VARCHAR",
    "decay_reason": "VARCHAR",
    "event_type": "VARCHAR",
    "tags": "VARCHAR",
    "project_id": "BIGINT",
    "archived_at": "VARCHAR",
}
"""The columns that every archive has, whoever wrote it, with the types that the views give them."""

# A file's own column of a name that the views use is shown under another one; but files from before `content` was
# theirs have one, and those of projects are the archive's own.
_RENAMED = RESERVED - {*BASE_COLUMNS, "content", "project_name", "project_path"}

_NUMBERS = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|BOOLEAN|FLOAT|DOUBLE|DECIMAL\(.*\)")
_INTEGERS = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|BOOLEAN")
_FLOATS = re.compile(r"FLOAT|DOUBLE")
_IN_DOUBLE = re.compile(r"U?(TINY|SMALL)?INT(EGER)?|BOOLEAN|FLOAT|DOUBLE")
_TIMES = re.compile(r"DATE|TIMESTAMP.*")
_FRACTIONS = re.compile(r"FLOAT|DOUBLE|DECIMAL\(\d+,[1-9]\d*\)")

Columns = tuple[tuple[str, str], ...]


def merged_columns(
    connection: duckdb.DuckDBPyConnection, listing: Listing, manifests: StoreManifests
) -> dict[str, str]:
    """Give every column of any of the files and the type that suits all of them.

    Raises:
        ArchiveError: a file is damaged, is not of memories, or disagrees with the others; it is named.
    """
    groups: dict[Columns, list[ArchiveFile]] = {}
    try:
        found = group_by_schema(listing, listing.files, manifests)
    except MissingKeyError:
        raise
    except ArchiveError as error:
        broken = find_damaged(connection, listing, footers_only=True)
        raise ArchiveError(damage_message(listing, broken) if broken else str(error), ADVICE + ASK_ON) from None
    for group in found:
        rows = connection.execute(f"DESCRIBE FROM {scan(connection, listing, group[:1])}").fetchall()
        groups.setdefault(tuple((str(row[0]), str(row[1])) for row in rows), []).extend(group)
    samples = {columns: group[0] for columns, group in groups.items()}
    for columns, file in samples.items():
        _check_base(columns, listing.path(file))
    _refuse_fractions(connection, listing, groups)
    merged = dict(BASE_COLUMNS)
    if not samples:
        return merged
    types: dict[str, set[str]] = {}
    for name, type_ in (column for columns in samples for column in columns):
        types.setdefault(name.lower(), set()).add(type_)
    rows = connection.execute(f"DESCRIBE FROM {scan(connection, listing, list(samples.values()))}").fetchall()
    for name, type_ in ((str(row[0]), str(row[1])) for row in rows):
        if name.lower() not in BASE_COLUMNS:
            merged[name] = united(types.get(name.lower(), {type_}), type_)
    _check_nested(samples, merged, listing)
    return merged


def shown_names(names: Collection[str]) -> dict[str, str]:
    """How the views call each column of the files: as the files do, unless the views use that name themselves."""
    shown: dict[str, str] = {}
    taken = {name.lower() for name in names}
    for name in names:
        shown[name] = name
        while shown[name].lower() in _RENAMED or (shown[name] != name and shown[name].lower() in taken):
            shown[name] = f"memories_{shown[name]}"
        taken.add(shown[name].lower())
    return shown


def united(types: set[str], common: str) -> str:
    """The type in which a column is shown that holds several in several places; text suits all but nested ones.

    It holds every value of each of them as it is: floats don't hold all large integers, nor decimals each other.

    SQLite gives a value of a column without a declared type the type that it comes with: one night's rows may hold
    numbers there, the next night's blobs.

    Args:
        types: those of the places.
        common: what DuckDB makes of them, such as BLOB of numbers and blobs, although it can't cast the ones to it.
    """
    types = types - {'"NULL"'}
    if len(types) == 1 or any(map(is_nested, types)):
        return common
    if types and any(all(kind.fullmatch(type_) for type_ in types) for kind in (_INTEGERS, _FLOATS, _TIMES)):
        return common
    return "DOUBLE" if types and all(_IN_DOUBLE.fullmatch(type_) for type_ in types) else "VARCHAR"


def is_nested(type_: str) -> bool:
    """Whether a type, as DuckDB spells it, is a list, a struct, a map or a union."""
    return type_.endswith("]") or type_.startswith(("STRUCT", "MAP", "UNION"))


def _check_base(columns: Columns, path: Path) -> None:
    types = {name.lower(): type_ for name, type_ in columns}
    if missing := [name for name in REQUIRED if name not in types]:
        raise ArchiveError(
            f"{path} is not an archive of memories: it has no column {', '.join(map(repr, missing))}",
            "move it out of the archive",
        )
    for name, expected in BASE_COLUMNS.items():
        type_ = types.get(name, '"NULL"')
        fits = _NUMBERS.fullmatch(type_) if expected == "BIGINT" else not (is_nested(type_) or type_ == "BLOB")
        if type_ != '"NULL"' and not fits:
            raise ArchiveError(
                f"{path} is not an archive of memories: its column {name!r} holds {type_}, not {expected}",
                "move it out of the archive",
            )


def _refuse_fractions(
    connection: duckdb.DuckDBPyConnection, listing: Listing, groups: Mapping[Columns, list[ArchiveFile]]
) -> None:
    """Refuse files whose fractions DuckDB would round to fit an integer column without a word."""
    for columns, files in groups.items():
        for name, type_ in columns:
            if BASE_COLUMNS.get(name.lower()) != "BIGINT" or not _FRACTIONS.fullmatch(type_):
                continue
            for file in files:
                rows = scan(connection, listing, [file])
                if connection.execute(f"SELECT 1 FROM {rows} WHERE {name} <> trunc({name}) LIMIT 1").fetchall():
                    raise ArchiveError(
                        f"{listing.path(file)} is not an archive of memories: its column {name.lower()!r} holds "
                        "fractions, not integers",
                        "move it out of the archive",
                    )


def _check_nested(samples: dict[Columns, ArchiveFile], merged: dict[str, str], listing: Listing) -> None:
    """Refuse what DuckDB would only notice row by row: a list in one file, plain text in another."""
    types = {name.lower(): type_ for name, type_ in merged.items()}
    for columns, file in samples.items():
        for name, type_ in columns:
            common = types.get(name.lower(), '"NULL"')
            if '"NULL"' not in (type_, common) and is_nested(type_) != is_nested(common):
                raise ArchiveError(
                    f"{listing.path(file)} disagrees with the other files: its column {name!r} holds {type_}, theirs "
                    f"{common}",
                    "move it out of the archive",
                )
