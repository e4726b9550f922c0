"""Encrypted files as one table, which Arrow reads and decrypts.

DuckDB can read files that Arrow encrypted, but it fails where a filter goes down to the file or a column is nested
(2.0.1: "Computed AES tag differs"). So Arrow reads them, and DuckDB hands it the columns and filters of a query.
"""

import re
from collections.abc import Sequence
from functools import reduce
from operator import and_
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem
from pyarrow.parquet import encryption

from vidurai_pipeline.cold.files import archive_errors
from vidurai_pipeline.cold.listing import FILE, MONTH, STORE, YEAR, ArchiveFile, Listing


class _FrugalDataset(ds.FileSystemDataset):
    """Reads ahead little: what Arrow holds does not count towards DuckDB's limit."""

    def scanner(self, **options: Any) -> ds.Scanner:
        return super().scanner(**{"batch_readahead": 2, "fragment_readahead": 1, **options})


def open_dataset(listing: Listing, files: Sequence[ArchiveFile]) -> ds.Dataset:
    """Open files of one key and the same columns; ``FILE``, ``YEAR``, ``MONTH`` and ``STORE`` are added to these."""
    first = listing.path(files[0])
    with archive_errors(first), listing.keys.open(first) as parquet:
        schema = parquet.schema_arrow.remove_metadata()
    for name, type_ in ((FILE, pa.string()), (YEAR, pa.int32()), (MONTH, pa.int32()), (STORE, pa.string())):
        schema = schema.append(pa.field(name, type_))
    properties = encryption.create_decryption_properties(listing.keys.get(first))
    parquet_format = ds.ParquetFileFormat(
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(decryption_properties=properties)
    )
    disk = LocalFileSystem()
    fragments = [
        parquet_format.make_fragment(str(listing.path(file)), disk, partition_expression=_place(listing, file))
        for file in files
    ]
    return _FrugalDataset(fragments, schema, parquet_format, disk)


def _place(listing: Listing, file: ArchiveFile) -> ds.Expression:
    path = f"{listing.root}/{file.relative}"
    values: dict[str, Any] = {FILE: path} | ({STORE: file.store} if file.store else {})
    for name, folder in ((YEAR, "year"), (MONTH, "month")):
        if found := re.findall(rf"/{folder}=(\d+)(?=/)", path):
            values[name] = pa.scalar(int(found[-1]), pa.int32())
    return reduce(and_, (ds.field(name) == value for name, value in values.items()))
