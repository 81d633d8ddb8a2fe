"""What each process of test_distributed.py saves and resumes: on 2 ranks, then 4, 2 and 1."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

import regops.random
from regops.optim import AdamW
from tests.parallel_training_runs import (
    CLOSE,
    Model,
    loss_of,
    model_and_batches,
    optimizer_of,
    sharded_model,
)
from tests.processes import full

KEY = regops.random.key(13)
# Which ranks take which steps; one rank is a plain process, with a model that is not distributed.
STAGES = (([0, 1], range(0, 2)), ([0, 1, 2, 3], range(2, 4)), ([0, 1], range(4, 5)), ([0], [5]))


class Training(Protocol):
    """A run that can be stopped after any step."""

    tolerance: dict[str, float]

    def made(self, seed: int, mesh: DeviceMesh | None) -> tuple[nn.Module, AdamW]: ...

    def backward(self, model: nn.Module, step: int, mesh: DeviceMesh | None) -> None: ...


class Transformer:
    """Gradients of a loss, summed over ranks, so in another order on another number of them."""

    def __init__(self) -> None:
        self.tolerance = CLOSE
        _, self.batches = model_and_batches(4, steps=6)

    def made(self, seed: int, mesh: DeviceMesh | None) -> tuple[nn.Module, AdamW]:
        torch.manual_seed(seed)
        model = Model()
        placed = model if mesh is None else sharded_model(model, mesh)
        return placed, optimizer_of(placed, ema_decay=0.9)

    def backward(self, model: nn.Module, step: int, mesh: DeviceMesh | None) -> None:
        parts = [self.batches[step]] if mesh is None else self.batches[step].chunk(mesh.size())
        rank = 0 if mesh is None else mesh.get_local_rank()
        loss_of(model, parts[rank], regops.random.fold_in(KEY, step)).backward()


class LowPrecision:
    """Given gradients, so bit for bit: stochastic rounding, noise, masters, bfloat16 moments."""

    def __init__(self, master: str) -> None:
        self.tolerance = {"rtol": 0.0, "atol": 0.0}
        self.options: dict[str, Any] = {
            "lr": 0.1,
            "key": KEY,
            "ema_decay": 0.9,
            "gradient_noise": (0.1, 0.55),
            "state_dtype": torch.bfloat16,
            "master": master,
        }

    def made(self, seed: int, mesh: DeviceMesh | None) -> tuple[nn.Module, AdamW]:
        model = nn.ParameterDict(
            {
                f"{rows}": nn.Parameter(self._placed(value, mesh))
                for rows, value in self._values(seed).items()
            }
        )
        return model, AdamW(model.parameters(), **self.options)

    def backward(self, model: nn.Module, step: int, mesh: DeviceMesh | None) -> None:
        for name, value in self._values(100 + step).items():
            model.get_parameter(name).grad = self._placed(value, mesh)

    def _values(self, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            str(rows): torch.randn(rows, 5, generator=generator, dtype=torch.float32).bfloat16()
            for rows in (3, 7)
        }

    def _placed(self, value: Tensor, mesh: DeviceMesh | None) -> Tensor:
        if mesh is None:
            return value
        placed: Tensor = distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)
        return placed


def run(rank: int, folder: Path) -> None:
    """Each training as the uninterrupted one in this process goes."""
    torch.set_default_dtype(torch.float64)
    try:
        meshes = [DeviceMesh("cpu", ranks) if len(ranks) > 1 else None for ranks, _ in STAGES]
        trainings: dict[str, Training] = {
            "transformer": Transformer(),
            "masters": LowPrecision("fp32"),
            "kahan": LowPrecision("kahan"),
        }
        for name, training in trainings.items():
            resumed(training, rank, meshes, folder / name)
    finally:
        torch.set_default_dtype(torch.float32)


def resumed(training: Training, rank: int, meshes: list[DeviceMesh | None], folder: Path) -> None:
    whole, reference = training.made(0, None)
    for number, ((ranks, steps), mesh) in enumerate(zip(STAGES, meshes, strict=True)):
        for step in steps:
            _step(training, whole, reference, step, None)
        if rank in ranks:
            model, optimizer = training.made(number, mesh)
            group = None if mesh is None else mesh.get_group()
            if number > 0:  # another model and another option, which the checkpoint must replace
                optimizer.param_groups[0]["lr"] = 7.0
                _load(model, optimizer, folder / str(number - 1), group)
            for step in steps:
                _step(training, model, optimizer, step, mesh)
            dcp.save(
                _state(model, optimizer),
                checkpoint_id=folder / str(number),
                process_group=group,
                no_dist=group is None,
            )
            _equal(training, (model, optimizer), (whole, reference))
        dist.barrier()


def _step(
    training: Training, model: nn.Module, optimizer: AdamW, step: int, mesh: DeviceMesh | None
) -> None:
    optimizer.zero_grad()
    training.backward(model, step, mesh)
    optimizer.step()


def _state(model: nn.Module, optimizer: AdamW) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def _load(model: nn.Module, optimizer: AdamW, folder: Path, group: Any) -> None:
    state = _state(model, optimizer)
    dcp.load(state, checkpoint_id=folder, process_group=group, no_dist=group is None)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def _equal(
    training: Training, resumed: tuple[nn.Module, AdamW], expected: tuple[nn.Module, AdamW]
) -> None:
    (model, optimizer), (whole, reference) = resumed, expected
    for param, of_whole in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(full(param), of_whole.detach(), **training.tolerance)
        state, of_reference = optimizer.state[param], reference.state[of_whole]
        assert state.keys() == of_reference.keys()
        for name, value in of_reference.items():
            got = full(state[name]) if isinstance(value, Tensor) else state[name]
            assert_close = torch.testing.assert_close
            assert_close(got, value, **training.tolerance, msg=lambda text, n=name: f"{n}: {text}")
    for group, of_reference in itertools.zip_longest(
        optimizer.param_groups, reference.param_groups
    ):
        for name in group.keys() - {"params"}:
            same = group[name] == of_reference[name]
            assert same.all() if isinstance(same, Tensor) else same, name
