"""Dropout on DTensors, and training in groups of processes, beside one process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

if not dist.is_available():
    pytest.skip("torch without distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh

import regops.functional as RF
import regops.random
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


def test_importing_dtensor_recompiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What compiled code asks about DTensors must not become one of its guards."""
    compiled = torch.compile(RF.dropout, fullgraph=True, backend="eager")
    inputs = torch.ones(8), torch.nn.Parameter(torch.ones(8))
    key = regops.random.key(0)
    with monkeypatch.context() as before:
        before.delitem(sys.modules, "torch.distributed.tensor")
        expected = [compiled(input, 0.5, key=key) for input in inputs]
    with torch.compiler.set_stance("fail_on_recompile"):
        for input, output in zip(inputs, expected, strict=True):
            assert torch.equal(compiled(input, 0.5, key=key), output)
