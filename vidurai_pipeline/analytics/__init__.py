"""The history view: SQL and search over the cold archive."""
