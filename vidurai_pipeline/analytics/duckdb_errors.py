"""DuckDB's errors, said so that a user can act on them, and without a memory's text.

While it reads rows, DuckDB quotes the value that it could not use. Errors end up in logs and terminals, so of those
only what DuckDB says itself is kept, up to the first place where a value could stand.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from vidurai_pipeline.analytics.damage import ADVICE, ASK_ON
from vidurai_pipeline.analytics.sandbox import VIEWS
from vidurai_pipeline.cold.listing import Listing
from vidurai_pipeline.errors import MORE_MEMORY, ArchiveError, PipelineError, QueryError

# These come before the first row is read: all they can quote is the statement.
_STATIC = (
    "Parser Error",
    "Syntax Error",
    "Binder Error",
    "Catalog Error",
    "Resource In Use Error",
)
_LIMITS = {
    "Out of Memory Error": MORE_MEMORY,
    "INTERRUPT Error": "the query was stopped",
}
_PARAMETERS = re.compile(r"Invalid Input Error: (Values were not provided|.*prepared statement|.*parameter)", re.I)
_FILE = re.compile(r'(?:reading|read|open) file "([^"]*)"', re.I)
_MISFIT = re.compile(r'failed to cast column "([^"]*)" from type (.+?) to (.+?):')
_PLACE = re.compile(r"\n\nLINE \d+: ([^\n]*)\n *\^+\s*$")
_CANDIDATES = re.compile(r"\n\t?Candidate functions:\n(?:\t[^\n]*\n?)+")
_TEXT_MISUSED = re.compile(
    r"No function matches .*\((?:.*, )?(?:VARCHAR|STRING_LITERAL)\b"
    r"|Cannot compare values of type (?:VARCHAR and|.* and type VARCHAR) "
)
_TYPED = (
    "times and salience are text: use created_ts, expires_ts and archived_ts (TIMESTAMP in UTC) and salience_score "
    "(CRITICAL 5 to NOISE 1) instead"
)
_UNKNOWN_COLUMN = re.compile(r'does not have a column named "([^"]*)"')
_VALUE = re.compile(r"['\"(:\[{\d]|with value|\n|(?<=specifier )")


def names_a_file(message: str) -> bool:
    """Whether the error is about a file, which may have been withdrawn since the archive was listed."""
    return _FILE.search(message) is not None or (
        message.startswith(("IO Error", "Invalid Input Error: No magic")) or "Failed to open local file" in message
    )


def may_be_damage(message: str) -> bool:
    """Whether a file's content may be the cause though the error names none."""
    if about_the_statement(message):
        return False
    kind = message.partition(": ")[0]
    return kind in {"IO Error", "INTERNAL Error", "Serialization Error"} or (
        # an error that is none of DuckDB's kinds comes from the depths of the Parquet reader
        not kind.endswith("Error")
        or "arquet" in message
        # Arrow reads the encrypted files
        or "the stream registered as" in message
    )


def about_the_statement(message: str) -> bool:
    """Whether the error is of a kind that DuckDB raises before it reads rows, usually."""
    return message.startswith(_STATIC)


def explain(
    message: str,
    *,
    listing: Listing,
    columns: Sequence[str] = (),
    sql: str = "",
    bound: bool = True,
    quotes_at_will: bool = False,
) -> PipelineError:
    """Make the error that the user reads.

    Args:
        message: DuckDB's message.
        listing: the archive's files.
        columns: the columns of the view that the statement asks.
        sql: the statement.
        bound: whether DuckDB accepts the statement as such, so that only rows can have caused the error.
        quotes_at_will: whether the statement makes its own error messages.
    """
    message = message.strip()
    kind, _, said = message.partition(": ")
    if limit := _LIMITS.get(kind):
        return QueryError(limit)
    if _PARAMETERS.match(message) or (not bound and about_the_statement(message)):
        return QueryError(_static(message, columns), _TYPED if _TEXT_MISUSED.search(message) else None)
    if found := _about_a_file(message, listing):
        return found
    if kind in {"IO Error", "Permission Error"}:
        return ArchiveError(f"the archive in {listing.base} can't be read: {_safe(said)}")
    place = _place(message, sql)
    if quotes_at_will:
        return QueryError(
            f"the query called error(); its message is not shown{place}", "errors never hold a memory's text"
        )
    return QueryError(
        f"{kind if kind.endswith('Error') else 'Error'}: {_safe(said or kind)}{place}",
        "the value is not shown, because errors never hold a memory's text; try_cast and TRY give NULL instead",
    )


def _about_a_file(message: str, listing: Listing) -> ArchiveError | None:
    named = _FILE.search(message)
    file = listing.named(named.group(1)) if named else None
    if file is None:  # a memory may speak of files, too
        return None
    path = listing.path(file)
    if misfit := _MISFIT.search(message):
        name, found, wanted = misfit.groups()
        return ArchiveError(
            f"{path} disagrees with the other files: its column {name!r} holds {found} that is not {wanted}",
            "ask without that column, and move the file out of the archive only if another program wrote it",
        )
    return ArchiveError(f"{path} is not a readable Parquet file", ADVICE + ASK_ON)


def _static(message: str, columns: Sequence[str]) -> str:
    text = _CANDIDATES.sub("\n", message)
    if "Table with name" in text:
        text = text.replace("does not exist!", f"does not exist: the views are {VIEWS}.", 1)
    if unknown := _UNKNOWN_COLUMN.search(text):  # DuckDB names candidates only where no table is named
        candidates = get_close_matches(unknown.group(1).lower(), columns, cutoff=0.4) or columns
        text = text.replace(unknown.group(), f"{unknown.group()}\nCandidates: {', '.join(candidates)}", 1)
    text = re.sub(r"\n+Please try installing.*", " (extensions can't be loaded here)", text, flags=re.S)
    return re.sub(r"\n\s*\n+", "\n", text)


def _safe(said: str) -> str:
    """Keep DuckDB's words up to where a value could stand."""
    return _VALUE.split(said, maxsplit=1)[0].strip().rstrip(",") or "a value can't be used this way"


def _place(message: str, sql: str) -> str:
    """The place in the statement, if the message really ends with one: a value may look like it."""
    found = _PLACE.search(message)
    if not found or found.group(1).removeprefix("...").removesuffix("...") not in sql:
        return ""
    return found.group().replace("\n\n", "\n", 1).rstrip()
