"""The archive's Parquet files: the only package that opens, lists, writes, renames or removes one.

What touches a file can raise an ``ArchiveError``: it names the file and says what to do. Docstrings name only errors
that mean something else, or that promise something.
"""
