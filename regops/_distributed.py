"""DTensors, recognized without importing them: that takes most of a second."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import Parameter

# Of these compiled code must not look at sys.modules: it would be compiled again when anything,
# as Inductor does, imports DTensor.
_PLAIN = (Tensor, Parameter)


def is_distributed(value: object) -> TypeGuard[Any]:
    """Whether a value is a DTensor; does not import them."""
    if type(value) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def agreed(key: Tensor, mesh: Any) -> Tensor:
    """One key for all ranks of a mesh, whatever their random states: that of its first rank.

    One broadcast of 16 bytes for each dimension of the mesh, the first dimension first: the
    broadcasts of the next ones then start from ranks that have the key. Every rank must call it.

    Args:
        key: int64 of shape (2,), of this rank, on the mesh's kind of device.
        mesh: A DeviceMesh. A rank outside of it keeps its key, for a tensor of which it has none.

    Returns:
        int64 tensor of shape (2,).
    """
    from torch.distributed._functional_collectives import broadcast, wait_tensor

    if mesh.get_coordinate() is not None:
        for dimension, size in enumerate(mesh.shape):
            if size > 1:
                key = wait_tensor(broadcast(key, 0, (mesh, dimension)))
    return key


def row_major_strides(shape: torch.Size) -> list[int]:
    """Of the logical index of each element, which masks are functions of."""
    strides = [1] * len(shape)
    for dim in reversed(range(len(shape) - 1)):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return strides
