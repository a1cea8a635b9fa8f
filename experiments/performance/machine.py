"""What a result file says of the machine that it was measured on."""

from __future__ import annotations

import os
import platform
from typing import Any


def machine_metadata() -> dict[str, Any]:
    """Cores that this process may use, memory (GiB), kind, and how busy the machine is now (load over a minute)."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    return {
        'cores': len(os.sched_getaffinity(0)),
        'memory_gib': round(memory, 1),
        'architecture': platform.machine(),
        'system': platform.system(),
        'load_at_start': round(os.getloadavg()[0], 2),
    }
