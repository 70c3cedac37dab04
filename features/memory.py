"""Memory that this process may use."""

import os
import resource
from pathlib import Path

_CONTROL_GROUP = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Limit of a container, of the second and of the first version of control groups."""


def usable_bytes() -> int:
    """Bytes of the machine's memory, or of the lowest limit of the container or the process."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limits += [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    for path in _CONTROL_GROUP:
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limit for limit in limits if limit > 0)
