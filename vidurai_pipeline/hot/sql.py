"""What is said to SQLite, and what it answers."""

import sqlite3


def is_of_rows(error: sqlite3.Error) -> bool:
    """Whether an error comes of what a row holds, or of the store's own rules for it, and not of the whole store."""
    if "decode" in str(error):
        return True  # Python's own, without a code
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
    }


def quote(name: str) -> str:
    """Quote an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
