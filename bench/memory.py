"""Bytes that forward takes from the allocator, and those it keeps for backward.

Measured at the allocator, not asked of autograd: what a provider hides from saved-tensor hooks
counts as well. CUDA's allocator hands out blocks of 512 bytes, so 16 bytes show as 512 there.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.providers import Call


@dataclass(frozen=True)
class Memory:
    """Bytes beyond the input.

    Attributes:
        peak: The most that forward held at one time, its output included.
        state: What stays between forward and backward, without the output.
    """

    peak: int
    state: int


def forward_memory(call: Call, x: Tensor) -> Memory:
    """Runs forward once more and reports what it allocated.

    Args:
        call: The op, already called before, so that what it caches for good is not counted.
        x: Its input, which requires grad.
    """
    return _on_cuda(call, x) if x.is_cuda else _on_cpu(call, x)


def _on_cuda(call: Call, x: Tensor) -> Memory:
    torch.cuda.synchronize(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device)
    y = call(x)
    torch.cuda.synchronize(x.device)
    kept = torch.cuda.memory_allocated(x.device) - before
    peak = torch.cuda.max_memory_allocated(x.device) - before
    return Memory(peak=peak, state=kept - y.untyped_storage().nbytes())


def _on_cpu(call: Call, x: Tensor) -> Memory:
    # A peak depends on the order of events, which the profiler's tables drop and its trace keeps.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        y = call(x)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    )
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return Memory(peak=peak, state=held - y.untyped_storage().nbytes())
