"""How much memory a run has needed."""

import resource
import sys
from pathlib import Path

import jax


def peak_bytes() -> int:
    """Returns the most bytes that a device of this process has held; where devices do not tell, the process itself."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(stat.get("peak_bytes_in_use", 0) for stat in stats) or peak_resident_bytes()


def is_exhausted(error: Exception) -> bool:
    """Returns whether an error says that the memory of a device does not suffice."""
    return "RESOURCE_EXHAUSTED" in str(error)


def peak_resident_bytes() -> int:
    """Returns the most memory that this process has held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # Not `ru_maxrss` on Linux, which a new process inherits from the one that started it.
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024
