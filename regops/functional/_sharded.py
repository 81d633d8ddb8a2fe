"""Dropout of DTensors: each rank draws its slice of the one mask of the whole tensor.

Imported when the first DTensor comes. It tells DTensor how to run regops::dropout: below autograd,
on the local tensor, with the logical indices of its elements. The gradient is the same op on
whatever placement the gradient has, so backward needs no communication, nor does its backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from regops._distributed import is_distributed, row_major_strides

# All ranks have the same mask and the same scale > 0, so these reductions of the dropped parts are
# the dropped reductions. A product is not: it would have the scale once for each rank.
_REDUCTIONS = ("sum", "avg", "max", "min")


@torch.library.register_torch_dispatch("regops::dropout", DTensor)  # type: ignore[untyped-decorator]
def _dropout(
    cls: type[DTensor], op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> DTensor:
    input, p, key = args
    if is_distributed(key):
        raise TypeError(
            "regops.dropout: expected key: a Tensor that is equal on all ranks, got a DTensor"
        )
    if not all(_passes_through(place) for place in input.placements):
        # As torch's ops that no pending reduction passes through.
        reduced = [each if _passes_through(each) else Replicate() for each in input.placements]
        input = input.redistribute(placements=reduced)
    local = input.to_local()
    output = _dropped(local, input, p, key)
    stride = input.stride()
    if output.stride() != local.stride():  # the local tensor has gaps, the output none
        stride = torch.empty_strided(input.shape, stride, device="meta").clone().stride()
    return DTensor.from_local(
        output,
        input.device_mesh,
        input.placements,
        run_check=False,
        shape=input.shape,
        stride=stride,
    )


@torch.library.register_torch_dispatch("regops::dropout.tensor_p", DTensor)  # type: ignore[untyped-decorator]
def _dropout_tensor_p(
    cls: type[DTensor], op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> DTensor:
    raise NotImplementedError(
        "regops.dropout: expected p: float where an argument is a DTensor, got a Tensor"
    )


def _passes_through(placement: Any) -> bool:
    if type(placement) is Partial:  # not torch's masked one, of embeddings: it serves one reduction
        return placement.reduce_op in _REDUCTIONS
    return not placement.is_partial()


def _dropped(local: Tensor, input: DTensor, p: float, key: Tensor) -> Tensor:
    """The local tensor with its slice of the mask."""
    coordinate = input.device_mesh.get_coordinate()
    if coordinate is None:  # a rank outside of the mesh, where the local tensor is empty
        return torch.empty_like(local)
    strides, offset, shape = row_major_strides(input.shape), 0, local.shape
    for dim in reversed(range(input.ndim)):
        blocks = _blocks(dim, input, coordinate)
        offset = offset + blocks.start * strides[dim]
        if blocks.number > 1:  # one dimension more, of blocks; the last first, as it shifts others
            local = local.unflatten(dim, (blocks.number, -1))
            strides.insert(dim, blocks.step * strides[dim])
    output: Tensor = torch.ops.regops.dropout_shard(local, p, key, offset, strides)
    return output if local.shape == shape else output.reshape(shape)


class _Blocks(NamedTuple):
    """Ranges of one length: from start, start + step, ..."""

    start: int
    number: int
    step: int


def _blocks(dim: int, input: DTensor, coordinate: Sequence[int]) -> _Blocks:
    """Which indices of a dimension this rank has.

    Raises:
        NotImplementedError: They are not ranges of one length at one distance.
    """
    size, runs = input.shape[dim], [(0, input.shape[dim])]  # first index and length
    for index, parts, place in zip(
        coordinate, input.device_mesh.shape, input.placements, strict=True
    ):
        if not isinstance(place, (Shard, _StridedShard)) or place.dim != dim:
            continue
        chosen = []
        for piece, first in _pieces(place, size):
            length, start = Shard.local_shard_size_and_offset(piece, parts, index)
            chosen += _slice(runs, first + start, length)
        runs, size = _joined(chosen), sum(length for _, length in chosen)
    if len(runs) == 1:
        return _Blocks(runs[0][0], 1, 0)
    steps = {after[0] - before[0] for before, after in itertools.pairwise(runs)}
    if len(steps) > 1 or len({length for _, length in runs}) > 1:
        raise NotImplementedError(
            f"regops.dropout: expected shards of dimension {dim} that are ranges of one length at "
            f"one distance, got {input.placements} of shape {tuple(input.shape)}: redistribute "
            "the input"
        )
    return _Blocks(runs[0][0], len(runs), steps.pop())


def _pieces(place: Any, size: int) -> list[tuple[int, int]]:
    """Length and first index of each piece that is split among the ranks."""
    if not isinstance(place, _StridedShard):
        return [(size, 0)]
    count = int(place.split_factor)
    return [Shard.local_shard_size_and_offset(size, count, piece) for piece in range(count)]


def _slice(runs: list[tuple[int, int]], start: int, length: int) -> list[tuple[int, int]]:
    """A range of the runs one after another."""
    if len(runs) == 1:  # without a comparison, which a symbolic size would have to answer
        return [(runs[0][0] + start, length)]
    chosen = []
    for first, size in runs:
        begin, end = max(start, 0), min(start + length, size)
        if begin < end:
            chosen.append((first + begin, end - begin))
        start -= size
    return chosen


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same with neighbours made one and, unless all are, without the empty."""
    if len(runs) == 1:
        return runs
    joined: list[tuple[int, int]] = []
    for first, length in runs:
        if length == 0:
            continue
        if joined and sum(joined[-1]) == first:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((first, length))
    return joined or [(0, 0)]
