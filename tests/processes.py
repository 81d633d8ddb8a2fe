"""Groups of processes on this machine: how tests start them, and what they share inside."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor import DTensor

# What processes run; the server that they are forked from imports it once.
_RUNS = (
    "torch._dynamo",
    "tests.checkpoint_runs",
    "tests.distributed_runs",
    "tests.dropout_shard_runs",
    "tests.failing_runs",
)


def start(function: Callable[[int, int, str], None], size: int, store: Path, limit: float) -> None:
    """Runs `function(rank, size, store)` in processes until all ended or one failed.

    Then, or after `limit` seconds, ends the others.

    Raises:
        ProcessRaisedException: One raised; with its traceback.
        AssertionError: Some still ran at the limit.
    """
    # The server has no threads that a fork would lose.
    multiprocessing.set_forkserver_preload(list(_RUNS))
    context = mp.start_processes(
        function, args=(size, str(store)), nprocs=size, join=False, start_method="forkserver"
    )
    end = time.monotonic() + limit
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < end, f"processes still run after {limit} s"
    finally:
        for each in context.processes:
            if each.is_alive():
                each.kill()
            each.join()


@contextlib.contextmanager
def group(rank: int, size: int, store: str, seconds: float = 60.0) -> Iterator[None]:
    """This process as one of a gloo group, in which a collective waits so long for the others."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=seconds),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every process."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def raises(kind: type[Exception], message: str, function: Callable[[], Any]) -> None:
    """As pytest.raises, without pytest, which is not in the processes."""
    try:
        function()
    except kind as error:
        assert message in str(error), error  # noqa: PT017
    else:
        raise AssertionError(f"expected {kind.__name__}: {message}")
