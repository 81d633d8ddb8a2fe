"""Bytes that a call takes from the allocator, and those that forward keeps for backward.

Measured at the allocator, not asked of autograd: what a provider hides from saved-tensor hooks
counts as well. CUDA's allocator hands out blocks of 512 bytes, so 16 bytes show as 512 there.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.providers import Call, Inputs, runs
from bench.timing import Run


@dataclass(frozen=True)
class Memory:
    """Bytes beyond the inputs.

    Attributes:
        peak: The most that forward held at one time, its output included.
        state: What stays between forward and backward, without the output.
        full_peak: The most that forward and backward held at one time, all gradients included.
        extra: What of that is neither the output's nor a gradient's.
    """

    peak: int
    state: int
    full_peak: int
    extra: int


def memory(call: Call, inputs: Inputs) -> Memory:
    """Runs forward, then forward and backward once more and reports what they allocated.

    Args:
        call: The op, already called before, so that what it caches for good is not counted.
        inputs: What it is called on.
    """
    full = runs(call, inputs, ("full",))["full"]
    outputs: list[torch.Tensor] = []
    peak, held = peak_of(lambda: outputs.append(call(inputs.x)), inputs.x.device)
    output = outputs.pop().untyped_storage().nbytes()
    full_peak, _ = peak_of(full, inputs.x.device)
    gradients = sum(tensor.nbytes for tensor in inputs.differentiated)
    # Who frees the output before the last gradient is made stays below the sum of all.
    extra = max(full_peak - output - gradients, 0)
    return Memory(peak, held - output, full_peak, extra)


def peak_of(run: Run, device: torch.device) -> tuple[int, int]:
    """(the most bytes that a call held, those held afterwards), beyond those held before."""
    return _on_cuda(run, device) if device.type == "cuda" else _on_cpu(run)


def _on_cuda(run: Run, device: torch.device) -> tuple[int, int]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device) - before
    return torch.cuda.max_memory_allocated(device) - before, held


def _on_cpu(run: Run) -> tuple[int, int]:
    peak, held = _profiled(run)
    # Once in some thousand runs the profiler's trace lacks the events of a whole run: its clock
    # puts them outside of the trace.
    return (peak, held) if peak or held else _profiled(run)


def _profiled(run: Run) -> tuple[int, int]:
    # A peak depends on the order of events, which the profiler's tables drop and its trace keeps.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
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
    return peak, held
