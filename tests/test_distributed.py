"""Dropout on DTensors, and training in groups of processes, beside one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

if not dist.is_available():
    pytest.skip("torch without distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh

from regops import _distributed
from tests import (
    checkpoint_runs,
    dropout_shard_runs,
    failing_runs,
    parallel_training_runs,
    processes,
)


def _all(rank: int, size: int, store: str) -> None:
    """All checks in one process, as starting one costs seconds."""
    with processes.group(rank, size, store):
        mesh = init_device_mesh("cpu", (size,))
        dropout_shard_runs.run(mesh, rank)
        parallel_training_runs.run(mesh, rank)
        if size == 4:
            checkpoint_runs.run(rank, Path(f"{store}.checkpoints"))


@pytest.mark.parametrize("size", [2, 4])
def test_processes_do_what_one_does(size: int, tmp_path: Path) -> None:
    processes.start(_all, size, tmp_path / "store", 240.0)


@pytest.mark.parametrize(
    ("function", "name", "message"),
    [
        (failing_runs.never_comes_to_dropout, "dropout", "Timed out waiting 1000ms"),
        (failing_runs.dies_before_dropout, "dropout", "by peer"),
        (failing_runs.dies_before_a_step, "step", "by peer"),
    ],
)
def test_the_others_of_a_missing_process_raise(
    function: Callable[[int, int, str], None], name: str, message: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    processes.start(function, 2, store, 60.0)
    error = Path(f"{store}.1.{name}").read_text()
    assert error.startswith("RuntimeError")  # DistBackendError and gloo's own
    assert message in error


def test_shapes_that_disagree_end_all(tmp_path: Path) -> None:
    """Gloo ends the process that is sent too much; the others see its connection close."""
    with pytest.raises(mp.ProcessExitedException, match="SIGABRT"):
        processes.start(failing_runs.disagrees_in_shape, 2, tmp_path / "store", 60.0)


def test_plain_tensors_need_no_look_at_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a guard of compiled code, which fails once anything imports DTensor."""
    monkeypatch.setattr(_distributed, "sys", None)
    assert not _distributed.is_distributed(torch.ones(1))
    assert not _distributed.is_distributed(torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(AttributeError, match="modules"):
        _distributed.is_distributed([])
