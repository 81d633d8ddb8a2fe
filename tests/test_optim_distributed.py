"""DTensor and FSDP2: steps on local shards, in processes of their own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

if not dist.is_available():
    pytest.skip("torch without distributed", allow_module_level=True)

from tests import distributed_runs


def _run(function: Callable[[int, int, str], None], size: int, store: Path, limit: float) -> None:
    """Runs processes until all ended or one failed; then, or after the limit, ends the others."""
    # The server imports torch once, and has no threads that a fork would lose.
    multiprocessing.set_forkserver_preload([distributed_runs.__name__])
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


@pytest.mark.parametrize("size", [2, 4])
def test_steps_on_shards_are_those_of_one_process(size: int, tmp_path: Path) -> None:
    _run(distributed_runs.process, size, tmp_path / "store", 240.0)


def test_one_failing_process_ends_all(tmp_path: Path) -> None:
    with pytest.raises(mp.ProcessRaisedException, match="of rank 0"):
        _run(distributed_runs.hangs_without_timeout, 2, tmp_path / "store", 60.0)
