"""How large a dense factor may be on a device, and whether all of them fit into its memory."""

from __future__ import annotations

import math
import os

import torch

__all__ = ["ONE_HOT", "dense_limit", "memory_of", "shown"]

ONE_HOT = 256  # a table of more rows than that keeps the diagonal of Ā, which is all there is
_MOST = 16384  # d³ operations an inverse, whatever the memory
_COPIES = 8  # of a factor: two sides of the moment, symmetrised, damped, inverted, in use, spare
_SHARE = 8  # of the memory that one layer's factor may take


def memory_of(device: torch.device) -> int:
    """Bytes that there are on a device: its own, or this process's share of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    found = 2**34
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                found = min(found, soft)
    except (ImportError, ValueError, OSError, AttributeError):  # another system: 16 GiB it is
        pass
    return int(found)


def dense_limit(device: torch.device, dtype: torch.dtype) -> int:
    """The largest side of a factor that is kept dense: 8192 in float32 of 32 GiB."""
    entries = memory_of(device) / (_SHARE * _COPIES * dtype.itemsize)
    return min(_MOST, math.isqrt(max(int(entries), 1)))


def shown(size: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
