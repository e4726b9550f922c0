"""Encrypted files, opened without any code of the pipeline."""

import base64
import os
import re
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow.parquet.encryption import create_decryption_properties

#: What a memory says that must not be found in the clear.
CANARY = "xylophone-of-Zanzibar"


def open_file(path: Path) -> pq.ParquetFile:
    """Open a file of an archive, with the key that its name calls for, from the file that the environment names."""
    named = re.search(r"\.key-([0-9a-f]{8})\.", path.name)
    if named is None:
        return pq.ParquetFile(path)
    keys = dict(line.split() for line in Path(os.environ["VIDURAI_ARCHIVE_KEY_FILE"]).read_text().splitlines())
    return pq.ParquetFile(path, decryption_properties=create_decryption_properties(base64.b64decode(keys[named[1]])))


def hold_canary(folder: Path) -> list[Path]:
    """The files below a folder that hold the canary, or a third of it."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and any(part.encode() in path.read_bytes() for part in (CANARY, "xylophone", "Zanzibar")):
            found.append(path)
    return found
