"""How many processes share the work of this machine; nothing here needs torch."""

import os


def default_workers(device: str = "cpu") -> int:
    """One process for each core that this process may use, at most 16; one where they would share an accelerator."""
    if device != "cpu":
        return 1
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
