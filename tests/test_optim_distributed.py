"""DTensor and FSDP2: steps on local shards, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

if not dist.is_available():
    pytest.skip("torch without distributed", allow_module_level=True)

from tests import distributed_runs, processes


@pytest.mark.parametrize("size", [2, 4])
def test_steps_on_shards_are_those_of_one_process(size: int, tmp_path: Path) -> None:
    processes.start(distributed_runs.process, size, tmp_path / "store", 240.0)


def test_one_failing_process_ends_all(tmp_path: Path) -> None:
    with pytest.raises(mp.ProcessRaisedException, match="of rank 0"):
        processes.start(distributed_runs.hangs_without_timeout, 2, tmp_path / "store", 60.0)
