"""The archive's Parquet files: the only package that opens, lists, writes, renames or removes one."""
