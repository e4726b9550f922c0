"""Vidurai's SQLite store: the only package that opens it."""
