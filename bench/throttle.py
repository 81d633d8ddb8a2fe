"""Whether the processor ran slower than at its best while something was timed.

A processor that grows warm, or that a neighbour heats, lowers its clock: everything takes longer,
and what is bound by arithmetic more so than what is bound by memory. No counter tells on every
machine. So a fixed piece of arithmetic is timed around each measurement, on the device that is
measured; what it takes longer than in the run's fast moments is the slowdown.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

# On a shared machine that is quiet otherwise the arithmetic took up to 1.25 times as long in every
# tenth trial.
THROTTLED = 1.3

# Not all of them are interrupted.
_TRIALS = 20

# Of CUDA enough for every multiprocessor.
_ELEMENTS = {"cpu": 1 << 13, "cuda": 1 << 20}


class SpeedProbe:
    """Seconds that a fixed piece of arithmetic takes now: the least of some trials.

    Args:
        device: Where; one thread of the CPU.
    """

    def __init__(self, device: torch.device):
        self._device = device
        count = _ELEMENTS[device.type]
        if device.type == "cuda":
            self._values = torch.full((count,), 0.5, dtype=torch.float64, device=device)
            self._out = torch.empty_like(self._values)
        else:
            # Not torch's, which may wait for threads whose cores others have.
            self._array = np.full(count, 0.5)
            self._result = np.empty_like(self._array)

    def __call__(self) -> float:
        """Takes a millisecond or two."""
        trial = self._on_cuda if self._device.type == "cuda" else self._on_cpu
        return min(trial() for _ in range(_TRIALS))

    def _on_cpu(self) -> float:
        start = time.perf_counter()
        np.sin(self._array, out=self._result)
        return time.perf_counter() - start

    def _on_cuda(self) -> float:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        torch.sin(self._values, out=self._out)
        end.record()
        torch.cuda.synchronize(self._device)
        return start.elapsed_time(end) * 1e-3


def at_full_speed(probes: Sequence[float]) -> float:
    """What the arithmetic takes in a run's fast moments; the fastest of all may be a fluke."""
    return float(np.percentile(probes, 20))
