"""The most memory a test's own process has held. Not ru_maxrss: that begins with the size of the starting process."""

import re
from pathlib import Path


def peak_bytes() -> int:
    """High-water mark of this process's resident memory, on Linux."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None, status
    return int(found[1]) * 1024
