"""Parameters that are distributed (DTensor, as FSDP2 makes them): the step runs on local shards."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from regops._distributed import is_distributed, row_major_strides

# A shard that is no range of the whole parameter has random numbers of its own: its number is in
# the upper half of the stream, where no parameter's position reaches.
_SHARD_SHIFT = 32


class Sharding(NamedTuple):
    """Over which dimensions of which mesh a gradient's norm is summed."""

    mesh: Any
    dimensions: tuple[int, ...]


def sharding_of(param: Tensor) -> Sharding | None:
    """How a parameter is sharded; None: every process has all of it."""
    if not is_distributed(param):
        return None
    dimensions = tuple(i for i, place in enumerate(param.placements) if not place.is_replicate())
    return Sharding(param.device_mesh, dimensions)


def aligned_gradient(param: Tensor, grad: Tensor) -> Tensor:
    """A gradient distributed as its parameter; pending sums are made, and it is replaced.

    Raises:
        RuntimeError: Only one of both is distributed, or they are so over different meshes.
    """
    if not is_distributed(param) and not is_distributed(grad):
        return grad
    if not (is_distributed(param) and is_distributed(grad)):
        raise RuntimeError(
            "regops.optim: expected parameter and gradient to be both DTensors or both not, got "
            f"{type(param).__name__} and {type(grad).__name__}"
        )
    if param.device_mesh != grad.device_mesh:
        raise RuntimeError(
            "regops.optim: expected parameter and gradient on one mesh, got "
            f"{param.device_mesh} and {grad.device_mesh}"
        )
    if param.placements != grad.placements:
        grad = grad.redistribute(placements=param.placements)
        param.grad = grad
    return grad


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; itself, if it is not distributed."""
    if not is_distributed(tensor):
        return tensor
    part: Any = tensor._local_tensor
    # A collective that still runs has given out a promise.
    return part if type(part) is Tensor else part.wait() if hasattr(part, "wait") else part


def check_rows(name: str, param: Tensor) -> None:
    """Raises ValueError if rows of a parameter are split over processes; `max_norm` needs whole."""
    if is_distributed(param):
        for place in param.placements:
            if not place.is_replicate() and getattr(place, "dim", 0) != 0:
                raise ValueError(
                    f"regops.optim.{name}: expected whole rows for max_norm, got a parameter of "
                    f"shape {tuple(param.shape)} placed as {place}"
                )


def random_place(param: Tensor, position: int) -> tuple[int, int]:
    """From where a parameter takes its random numbers, so that all processes agree.

    Args:
        param: Distributed, or not.
        position: Among all parameters.

    Returns:
        Stream and index of the first element: a shard that is a range of the whole parameter, in
        row-major order, draws its slice of the one sequence; replicas draw the same.
    """
    if not is_distributed(param):
        return position, 0
    first = _range_start(param)
    if first is not None:
        return position, first
    number = 0
    coordinate = param.device_mesh.get_coordinate() or []
    for index, size, place in zip(
        coordinate, param.device_mesh.shape, param.placements, strict=False
    ):
        if not place.is_replicate():
            number = number * size + index
    return position + ((number + 1) << _SHARD_SHIFT), 0


def reduced_squares(norm: Tensor, sharding: Sharding | None) -> Tensor:
    """The square of a norm, summed over the processes that hold other shards."""
    squares = norm.square()
    for dimension in sharding.dimensions if sharding else ():
        dist.all_reduce(squares, group=sharding.mesh.get_group(dimension))  # type: ignore[union-attr]
    return squares


def _range_start(param: Any) -> int | None:
    """Index of a shard's first element in the row-major parameter, if it is a range of it."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    # A strided shard (two mesh dimensions share one of the tensor's, in the other order) is none.
    if any(type(place) not in (Shard, Replicate) for place in param.placements):
        return None
    shape, offset = compute_local_shape_and_global_offset(
        param.shape, param.device_mesh, param.placements
    )
    if 0 in shape:
        return 0
    outer = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    if tuple(shape[outer + 1 :]) != tuple(param.shape[outer + 1 :]):
        return None
    strides = row_major_strides(param.shape)
    return sum(start * stride for start, stride in zip(offset, strides, strict=True))
