"""What each process of test_distributed.py does when one fails: the others raise, none waits on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn import Parameter

import regops.functional as RF
import regops.random
from regops.optim import AdamW
from tests.parallel_training_runs import loss_of, model_and_batches, parallelized
from tests.processes import group

SECONDS = 5.0


def _noted(store: str, rank: int, name: str, function: Callable[[], object]) -> None:
    """Writes which error a process met."""
    try:
        function()
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    else:
        text = "no error"
    Path(f"{store}.{rank}.{name}").write_text(text)


def never_comes_to_dropout(rank: int, size: int, store: str) -> None:
    """One rank does something else when the others agree on a key."""
    with group(rank, size, store, 1.0):
        mesh = init_device_mesh("cpu", (size,))
        input = distribute_tensor(torch.ones(4, 6), mesh, [Replicate()])
        note = Path(f"{store}.1.dropout")
        if rank == 1:
            _noted(store, rank, "dropout", lambda: RF.dropout(input, 0.5))
        while not note.exists():
            time.sleep(0.1)


def dies_before_dropout(rank: int, size: int, store: str) -> None:
    """One rank is gone when the others agree on a key."""
    with group(rank, size, store, SECONDS):
        mesh = init_device_mesh("cpu", (size,))
        input = distribute_tensor(torch.ones(4, 6), mesh, [Replicate()])
        if rank == 0:
            os._exit(0)  # without a word; another code would end the others, too
        _noted(store, rank, "dropout", lambda: RF.dropout(input, 0.5))


def dies_before_a_step(rank: int, size: int, store: str) -> None:
    """One rank is gone when the others sum the gradients' norm."""
    with group(rank, size, store, SECONDS):
        mesh = init_device_mesh("cpu", (size,))
        param = Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
        param.grad = torch.ones_like(param)
        if rank == 0:
            os._exit(0)  # without a word; another code would end the others, too
        optimizer = AdamW([param], max_grad_norm=1.0)
        _noted(store, rank, "step", optimizer.step)
        assert torch.equal(param.to_local(), torch.ones_like(param.to_local()))
        assert not optimizer.state


def disagrees_in_shape(rank: int, size: int, store: str) -> None:
    """One rank's batch is larger, so its part of a sum is."""
    with group(rank, size, store, SECONDS):
        mesh = init_device_mesh("cpu", (size,))
        whole, batches = model_and_batches(1 + rank, steps=1)
        model = parallelized(whole, mesh)
        key = regops.random.key(0)
        _noted(store, rank, "shape", lambda: loss_of(model, batches[0], key).backward())
