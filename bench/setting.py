"""How a point is timed: threads, launches, where its buffers are; and whether there is room."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Setting:
    """How a point is timed, where it is not as usual.

    Attributes:
        threads: Of the CPU; None for as many as torch takes by itself.
        graph: Whether replays of a CUDA graph are timed, which no launch from Python slows.
    """

    threads: int | None = None
    graph: bool = False

    def group(self, *names: str) -> str:
        """Name of a benchmark group, from those of its op, direction, dtype, size and device."""
        threads = [f"{self.threads}-threads"] if self.threads else []
        return "-".join((*names, *threads, *(["graph"] if self.graph else [])))


USUAL = Setting()


def cache_state(hot: bool, device: str) -> str:
    """As of `bench.summary.Row`: what no cache holds is flushed from it where the clock does so."""
    return "hot" if hot else "flushed" if torch.device(device).type == "cuda" else "memory"


def lacking(needed: int, device: torch.device) -> str | None:
    """Why a device has no room for so many bytes, in words; None if it has."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed <= total:
        return None
    return f"{needed >> 30} GiB needed, there are {total >> 30}"
