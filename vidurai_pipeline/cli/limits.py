"""What the operating system holds a process to: one that answers questions, one that reads the whole archive.

DuckDB's own limit counts its buffers. A single value is made outside of them, and a statement can ask for one of many
gigabytes: ``repeat('x', 3000000000)``, ``range(500000000)``, ``lpad``, ``printf``, ``replace``.
"""

import os
import re
import sys
from pathlib import Path

#: Bytes for what is no buffer: a batch of rows on its way to the user; and each thread's stack.
_BESIDE = 256 * 1024 * 1024
_THREAD = 16 * 1024 * 1024


def bound_memory(limit: int, threads: int | None) -> None:
    """Let this process take no more than twice a limit of DuckDB's, and something, beside what it has now.

    For processes whose only work is a question: what asks for more, in any library, gets an error. Only Linux counts
    this way; elsewhere nothing is done.

    Args:
        limit: DuckDB's, in bytes.
        threads: DuckDB's; None for one for each core.
    """
    if sys.platform != "linux":
        return
    import resource  # noqa: PLC0415  (not everywhere)

    taken = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    most = (int(taken[1]) * 1024 if taken else 0) + 2 * limit + _BESIDE + (threads or os.cpu_count() or 1) * _THREAD
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [most, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))


def lower_priority() -> None:
    """Let other processes go first, at the processor and, where Linux schedules reads, at the disk."""
    os.nice(10)
