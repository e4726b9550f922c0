"""The archival protocol: Select, Write, Verify, Purge."""
