"""What each process of test_optim_distributed.py does: steps on shards, beside one process's."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn import Parameter

import regops.random
from regops.optim import SGDW, AdamW
from tests.processes import full, group, raises

KEY = regops.random.key(7)
SHAPES = [(7, 5), (6,), (3, 2, 4), (1, 9), (2, 3), ()]


def process(rank: int, size: int, store: str) -> None:
    """All checks in one process, as starting one costs seconds."""
    with group(rank, size, store):
        mesh = init_device_mesh("cpu", (size,))
        for optimizer in (AdamW, SGDW):
            fully_sharded(mesh, rank, optimizer)
        placements: list[Any] = [[Shard(0)], [Shard(1)], [Replicate()]]
        meshes = [mesh] * 3
        if size == 4:
            square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
            placements += [[Replicate(), Shard(0)], [Shard(0), Replicate()], [Shard(0), Shard(1)]]
            placements += [[Shard(0), Shard(0)], [Replicate(), Shard(1)]]
            meshes += [square] * 5
        for of_mesh, placed in zip(meshes, placements, strict=True):
            placed_steps(of_mesh, placed)
        row_norms(mesh)
        pending_gradients(mesh)
        averages(mesh)
        keyless()
        failing_process(mesh, rank)


def hangs_without_timeout(rank: int, size: int, store: str) -> None:
    """One process fails before a collective that the others wait in."""
    with group(rank, size, store, seconds=5.0):
        param = Parameter(distribute_tensor(torch.ones(4), init_device_mesh("cpu", (size,))))
        param.grad = param.detach().clone()
        if rank == 0:
            raise ValueError("of rank 0")
        AdamW([param], max_grad_norm=1.0).step()


# ---- FSDP2 ---------------------------------------------------------------------------------------


def fully_sharded(mesh: DeviceMesh, rank: int, optimizer: Any) -> None:
    """A sharded model, each process with its part of the batch, beside the whole one."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(8, 13), nn.LayerNorm(13), nn.Linear(13, 5))
    model = copy.deepcopy(whole)
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    kwargs: dict[str, Any] = {"lr": 0.05, "max_grad_norm": 0.3, "ema_decay": 0.9, "max_norm": 1.0}
    kwargs |= {"momentum": 0.9} if optimizer is SGDW else {}
    kwargs |= {"gradient_noise": (1e-3, 0.55), "key": KEY, "error_if_nonfinite": True}
    sharded = optimizer(model.parameters(), **kwargs)
    reference = optimizer(whole.parameters(), **kwargs)
    batches = torch.randn(6, 4 * mesh.size(), 8)
    for step, batch in enumerate(batches):
        if step == 3:  # in the middle of training, through a checkpoint
            saved = copy.deepcopy(get_optimizer_state_dict(model, sharded))
            sharded = optimizer(model.parameters(), **{**kwargs, "lr": 7.0})
            set_optimizer_state_dict(model, sharded, saved)
        for each, model_of, input in (
            (sharded, model, batch.chunk(mesh.size())[rank]),
            (reference, whole, batch),
        ):
            each.zero_grad()
            model_of(input).square().mean().backward()
            each.step()
        torch.testing.assert_close(sharded.grad_norm, reference.grad_norm, rtol=1e-5, atol=0)
        assert sharded.grad_norm > 0.3  # it clips
    for param, expected in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(full(param), expected.detach())
        state, of_expected = sharded.state[param], reference.state[expected]
        assert state["step"] == 6
        assert isinstance(state["ema"], DTensor)
        torch.testing.assert_close(full(state["ema"]), of_expected["ema"])


# ---- any placement -------------------------------------------------------------------------------


def _values(seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def _fits(shape: torch.Size, placements: Any) -> bool:
    return all(place.is_replicate() or place.dim < len(shape) for place in placements)


def placed_steps(mesh: DeviceMesh, placements: Any) -> None:
    """Distributed parameters beside a plain one; where shards are ranges, bit for bit."""
    kwargs: dict[str, Any] = {"lr": 0.1, "gradient_noise": (0.1, 0.55), "key": KEY}
    kwargs |= {"state_dtype": torch.bfloat16, "ema_decay": 0.9}
    for dtype, master, clip in (
        (torch.float32, "none", None),
        (torch.float32, "none", 0.5),
        (torch.bfloat16, "stochastic", None),
        (torch.bfloat16, "fp32", None),
        (torch.bfloat16, "kahan", None),
    ):
        kwargs["master"] = master
        params = [
            Parameter(distribute_tensor(value, mesh, placements))
            if _fits(value.shape, placements) and k != 1
            else Parameter(value.clone())
            for k, value in enumerate(_values(0, dtype))
        ]
        whole = [Parameter(value.clone()) for value in _values(0, dtype)]
        optimizer = AdamW(params, max_grad_norm=clip, **kwargs)
        reference = AdamW(whole, max_grad_norm=clip, **kwargs)
        for step in range(1, 4):
            for param, expected, value in zip(params, whole, _values(step, dtype), strict=True):
                expected.grad = value.clone()
                param.grad = (
                    distribute_tensor(value, mesh, placements)
                    if isinstance(param, DTensor)
                    else value.clone()
                )
            optimizer.step()
            reference.step()
            if clip is not None:
                torch.testing.assert_close(optimizer.grad_norm, reference.grad_norm)
        ranges = all(place.is_replicate() or place.dim == 0 for place in placements)
        for param, expected in zip(params, whole, strict=True):
            values = full(param)
            assert values.isfinite().all()
            everywhere = [torch.empty_like(values) for _ in range(dist.get_world_size())]
            dist.all_gather(everywhere, values.contiguous())
            assert all(torch.equal(values, other) for other in everywhere)  # also replicas
            if ranges or not isinstance(param, DTensor):
                # The factor of clipping is a sum in another order.
                tolerance = {"rtol": 0.0, "atol": 0.0} if clip is None else {}
                torch.testing.assert_close(values, expected.detach(), **tolerance)


def row_norms(mesh: DeviceMesh) -> None:
    """Rows must be whole."""
    value = torch.full((8, 8), 3.0)
    param = Parameter(distribute_tensor(value, mesh, [Shard(0)]))
    param.grad = torch.zeros_like(param)
    AdamW([param], max_norm=2.0, weight_decay=0.0).step()
    torch.testing.assert_close(full(param), value.renorm(2, 0, 2.0))
    param = Parameter(distribute_tensor(value, mesh, [Shard(1)]))
    param.grad = torch.zeros_like(param)
    optimizer = AdamW([param], max_norm=2.0)
    raises(ValueError, "expected whole rows for max_norm", optimizer.step)
    assert not optimizer.state
    torch.testing.assert_close(full(param), value)


def pending_gradients(mesh: DeviceMesh) -> None:
    """A gradient that is still to be summed is, and one of another kind is an error."""
    param = Parameter(distribute_tensor(torch.ones(4), mesh, [Replicate()]))
    param.grad = DTensor.from_local(torch.ones(4), mesh, [Partial()])
    SGDW([param], lr=0.5, max_grad_norm=1e9).step()
    torch.testing.assert_close(full(param), torch.full((4,), 1.0 - 0.5 * mesh.size()))
    param = Parameter(torch.ones(4))
    optimizer = SGDW([param], lr=0.5)
    param.grad = distribute_tensor(torch.ones(4), mesh, [Replicate()])
    raises(RuntimeError, "both DTensors or both not", optimizer.step)


def averages(mesh: DeviceMesh) -> None:
    """Averages are swapped on shards."""
    param = Parameter(distribute_tensor(torch.ones(5), mesh, [Shard(0)]))
    optimizer = SGDW([param], lr=1.0, ema_decay=0.5)
    param.grad = torch.ones_like(param)
    optimizer.step()
    with optimizer.averaged_parameters():
        torch.testing.assert_close(full(param), torch.full((5,), 0.5))
    torch.testing.assert_close(full(param), torch.zeros(5))


def keyless() -> None:
    """Random numbers need a key that all processes share."""
    param = Parameter(torch.ones(2))
    raises(ValueError, "expected key=", lambda: AdamW([param], gradient_noise=(0.1, 0.5)))
    optimizer = AdamW([param])
    added = {"params": [Parameter(torch.ones(2))], "gradient_noise": (0.1, 0.5)}
    raises(ValueError, "expected key=", lambda: optimizer.add_param_group(added))
    assert len(optimizer.param_groups) == 1


def failing_process(mesh: DeviceMesh, rank: int) -> None:
    """A norm that is not finite is so on every process: all raise, and nobody waits."""
    param = Parameter(distribute_tensor(torch.ones(8), mesh, [Shard(0)]))
    local = torch.full((8 // mesh.size(),), float("nan") if rank == 0 else 1.0)
    param.grad = DTensor.from_local(local, mesh, [Shard(0)])
    optimizer = AdamW([param], max_grad_norm=1.0, error_if_nonfinite=True)
    raises(RuntimeError, "expected gradients of finite norm", optimizer.step)
    torch.testing.assert_close(full(param), torch.ones(8))
