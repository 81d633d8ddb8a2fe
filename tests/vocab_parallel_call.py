"""Calls of the CUDA kernels of cross-entropy over split classes, interpreted."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from regops.reference.cross_entropy import smoothed
from tests.cross_entropy_call import DTYPE_CODES, UNWRITTEN, Call, _Memory, _strides, like
from tests.cuda_library import call, interpreted
from tests.ptx import Device
from tests.vocab_parallel_problems import ShardedProblem, ShardedResults, starts

STATISTICS, NORMALIZERS = 6, 2


class _ShardCall(ctypes.Structure):
    """regops::VocabParallelCall."""

    _fields_ = (
        ("all", Call),
        ("shard", Call),
        ("first_class", ctypes.c_int64),
        ("reads_ignored", ctypes.c_bool),
        ("statistics", ctypes.c_void_p),
        ("shards", ctypes.c_int64),
        ("gathered", ctypes.c_void_p),
        ("normalizers", ctypes.c_void_p),
    )


def _of_all(problem: ShardedProblem, memory: _Memory) -> tuple[Call, Tensor]:
    """The call over all classes, and its totals."""
    options = problem.options
    rows, classes = problem.input.shape
    keep, off = smoothed(
        options.get("label_smoothing", 0.0), options.get("smoothing", "uniform"), classes
    )
    result = Call(
        dtype=DTYPE_CODES[problem.input.dtype],
        outer=rows,
        classes=classes + problem.missing,
        inner=1,
        target=memory.address(problem.target),
        ignore_index=options.get("ignore_index", -100),
        weight=memory.address(options.get("weight")),
        keep=keep,
        off=off,
        z_loss=options.get("z_loss", 0.0),
    )
    totals = torch.full((2,), UNWRITTEN, dtype=problem.real)
    call(
        memory.device,
        "regops_cross_entropy_prepare_cuda",
        ctypes.byref(result),
        ctypes.c_bool(options.get("reduction", "mean") == "mean"),
        ctypes.c_void_p(memory.address(options.get("num_items"))),
        ctypes.c_void_p(memory.address(totals, writable=True)),
        None,
    )
    result.totals = totals.data_ptr()
    return result, totals


def run_interpreted(
    problem: ShardedProblem,
    shards: int,
    device: Device | None = None,
    gradient_like: Tensor | None = None,
) -> ShardedResults:
    """All processes' parts one after the other.

    Args:
        problem: Its input may lie in any memory with class stride 1, its shards in parts of that.
        shards: Into how many its classes are split.
        device: To run on.
        gradient_like: A tensor with the strides that the gradient has; by default input's.
    """
    device = interpreted() if device is None else device
    memory, options, real = _Memory(device), problem.options, problem.real
    x, rows = problem.input, problem.input.shape[0]
    places = starts(x.shape[1], shards)
    of_all, totals = _of_all(problem, memory)
    gathered = torch.full((shards, rows, STATISTICS), UNWRITTEN, dtype=real)
    normalizers = torch.full((rows, NORMALIZERS), UNWRITTEN, dtype=real)
    loss = torch.full((rows,), UNWRITTEN, dtype=real)
    lse = torch.full((rows,), UNWRITTEN, dtype=real) if options.get("return_lse") else None
    gradient = like(x if gradient_like is None else gradient_like)
    of_all.loss = memory.address(loss, writable=True)
    of_all.lse = memory.address(lse, writable=True)
    of_all.upstream = memory.address(problem.upstream)
    of_all.upstream_stride = int(problem.upstream.dim() > 0)
    of_all.upstream_lse = memory.address(problem.upstream_lse)
    memory.address(gathered, writable=True)
    memory.address(normalizers, writable=True)
    memory.address(x)
    memory.address(gradient, writable=True)

    def shard_call(k: int) -> _ShardCall:
        first, size = places[k]
        part, of_part = x.narrow(1, first, size), gradient.narrow(1, first, size)
        result = _ShardCall(
            first_class=first,
            reads_ignored=bool(options.get("return_lse", False)),
            statistics=gathered[k].data_ptr() if rows else None,
            shards=shards,
            gathered=gathered.data_ptr(),
            normalizers=normalizers.data_ptr(),
        )
        ctypes.memmove(ctypes.byref(result.all), ctypes.byref(of_all), ctypes.sizeof(Call))
        ctypes.memmove(ctypes.byref(result.shard), ctypes.byref(of_all), ctypes.sizeof(Call))
        shard: Any = result.shard
        shard.classes = size
        shard.input, shard.input_strides = part.data_ptr(), _strides(part)
        shard.gradient, shard.gradient_strides = of_part.data_ptr(), _strides(of_part)
        if "weight" in options:
            shard.weight = options["weight"].data_ptr() + first * real.itemsize
        return result

    calls = [shard_call(k) for k in range(shards)]
    for each in calls:
        call(device, "regops_vocab_parallel_statistics_cuda", ctypes.byref(each), None)
    call(device, "regops_vocab_parallel_losses_cuda", ctypes.byref(calls[0]), None)
    for each in calls:
        call(device, "regops_vocab_parallel_gradient_cuda", ctypes.byref(each), None)
    if options.get("reduction") != "none":
        loss = loss.sum() / totals[0]
    return ShardedResults(loss, lse, gradient)
