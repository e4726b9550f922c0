"""The memory-lifecycle pipeline for Vidurai: SQLite to Parquet to Q-table, nightly, under Dagster."""
