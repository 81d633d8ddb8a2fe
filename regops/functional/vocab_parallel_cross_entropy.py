"""Cross-entropy of logits that are distributed, maybe over their classes (tensor parallelism).

M. Shoeybi, M. Patwary, R. Puri, P. LeGresley, J. Casper, B. Catanzaro, "Megatron-LM: Training
Multi-Billion Parameter Language Models Using Model Parallelism", 2019, section 3: no process ever
has all logits of a row, and processes exchange a few sums over them instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from regops._distributed import row_major_strides


class _Place(NamedTuple):
    """Where the logits of this process are among all.

    Attributes:
        mesh: Of processes.
        class_dimension: That of the mesh which the classes are split over, or None.
        batch_dimensions: Those that the batch is split over.
        classes: Of all processes.
        first_class: Of this process.
    """

    mesh: DeviceMesh
    class_dimension: int | None
    batch_dimensions: tuple[int, ...]
    classes: int
    first_class: int

    def outputs(self, by_row: bool) -> list[Replicate | Shard]:
        """Placements of results: what is split as the batch is, and else whole."""
        return [
            Shard(0) if by_row and dimension in self.batch_dimensions else Replicate()
            for dimension in range(self.mesh.ndim)
        ]


class _Options(NamedTuple):
    ignore_index: int
    reduction: str
    label_smoothing: float
    smoothing: str
    z_loss: float
    return_lse: bool


def distributed_cross_entropy(
    input: DTensor,
    target: Tensor,
    weight: Tensor | None,
    num_items: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    *,
    smoothing: str,
    z_loss: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    """`regops.functional.cross_entropy` of a DTensor; see there.

    Args:
        input: Logits, in each dimension of the mesh whole, split over the batch (Shard(0)) or, in
            one of them, over the classes (Shard(1), or Shard(0) of a single example).
        target: Class indices of all examples: a tensor that is the same in every process, or a
            DTensor on the same mesh.
        weight: As `target`.
        num_items: As `target`; a Partial one is added up.
        ignore_index: As there, like all that follows.
        reduction: As there.
        label_smoothing: As there.
        smoothing: As there.
        z_loss: As there.
        return_lse: As there.

    Returns:
        Loss and lse, the latter of size 0 where it is not asked for, as DTensors: whole, or by row
        and then split as the batch is.
    """
    for name, value in (("target", target), ("weight", weight)):
        if not isinstance(value, Tensor) and (value is not None or name == "target"):
            kind = type(value).__name__
            raise TypeError(f"regops.cross_entropy: expected {name}: Tensor, got {kind}")
    local = input.to_local()
    place = _place(input, local)
    class_dim = 1 if input.dim() > 1 else 0
    shape = [size for dim, size in enumerate(input.shape) if dim != class_dim]
    local_shape = [size for dim, size in enumerate(local.shape) if dim != class_dim]
    # A view where classes are neighbours in memory, as those of transposed (N, d1, C) are.
    rows = local.movedim(class_dim, -1).reshape(math.prod(local_shape), local.shape[class_dim])
    labels = _target(input, target, place).reshape(-1)
    whole_weight = None if weight is None else _whole("weight", weight, place.mesh)
    items = None if num_items is None else _whole("num_items", num_items, place.mesh)
    options = _Options(ignore_index, reduction, label_smoothing, smoothing, z_loss, return_lse)
    loss, lse, _, _ = _VocabParallelCrossEntropy.apply(
        rows, labels, whole_weight, items, place, options
    )
    if reduction == "none":
        loss = _distributed(loss.reshape(local_shape), shape, place, by_row=True)
    else:
        loss = _distributed(loss, [], place, by_row=False)
    if return_lse:
        lse = _distributed(lse.reshape(local_shape), shape, place, by_row=True)
    return loss, lse


def check_distributed_options(**options: object) -> None:
    """Raises NotImplementedError for what only whole rows have.

    Args:
        options: Those of `regops.functional.cross_entropy`, None or False where they are off.
    """
    asked = [name for name, value in options.items() if value]
    if asked:
        raise NotImplementedError(
            "regops.cross_entropy: for a DTensor, expected class indices as target and, of the "
            "options, weight, ignore_index, reduction, label_smoothing, smoothing, z_loss, "
            f"num_items and return_lse, got {', '.join(asked)}"
        )


# ---- placements ----------------------------------------------------------------------------------


def _place(input: DTensor, local: Tensor) -> _Place:
    class_dim = 1 if input.dim() > 1 else 0
    over_classes, over_batch = [], []
    for dimension, placement in enumerate(input.placements):
        if type(placement) is Shard and placement.dim == class_dim:
            over_classes.append(dimension)
        elif type(placement) is Shard and placement.dim == 0:
            over_batch.append(dimension)
        elif not placement.is_replicate():
            raise _unsupported(input)
    if len(over_classes) > 1:
        raise _unsupported(input)
    local_shape, offsets = _part(input.shape, input.device_mesh, input.placements)
    if tuple(local.shape) != tuple(local_shape):
        raise ValueError(
            f"regops.cross_entropy: expected input of shape {tuple(input.shape)}, placed as "
            f"{input.placements}, to have a part of shape {tuple(local_shape)} here, got "
            f"{tuple(local.shape)}"
        )
    return _Place(
        input.device_mesh,
        over_classes[0] if over_classes else None,
        tuple(over_batch),
        input.shape[class_dim],
        offsets[class_dim],
    )


# A constant of the process, where a compiler would take the process's number as unknown.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _part(
    shape: torch.Size, mesh: DeviceMesh, placements: tuple[Placement, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return compute_local_shape_and_global_offset(shape, mesh, placements)


def _unsupported(input: DTensor) -> NotImplementedError:
    batch = "" if input.dim() == 1 else " or Shard(0)"
    classes = f"Shard({min(input.dim(), 2) - 1})"
    return NotImplementedError(
        f"regops.cross_entropy: expected input of shape {tuple(input.shape)} to be placed as "
        f"Replicate(){batch}, and as {classes}, the classes, in one dimension of the mesh at most, "
        f"got {input.placements}"
    )


def _check_mesh(name: str, tensor: DTensor, mesh: DeviceMesh) -> None:
    if tensor.device_mesh != mesh:
        raise ValueError(
            f"regops.cross_entropy: expected {name} on the input's mesh {mesh}, got "
            f"{tensor.device_mesh}"
        )


def _whole(name: str, tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    _check_mesh(name, tensor, mesh)
    return tensor.full_tensor()


def _target(input: DTensor, target: Tensor, place: _Place) -> Tensor:
    """This process's part of the target."""
    if input.dim() > 1:
        shape = (input.shape[0], *input.shape[2:])
        if tuple(target.shape) != shape:
            raise ValueError(
                f"regops.cross_entropy: expected target of shape {shape}, that of all processes, "
                f"for input of shape {tuple(input.shape)}, got {tuple(target.shape)}; "
                "DTensor.from_local makes one of parts"
            )
    if not isinstance(target, DTensor):
        if not place.batch_dimensions:
            return target
        target = DTensor.from_local(
            target, place.mesh, [Replicate()] * place.mesh.ndim, run_check=False
        )
    _check_mesh("target", target, place.mesh)
    return target.redistribute(placements=place.outputs(by_row=True)).to_local()


def _distributed(local: Tensor, shape: Sequence[int], place: _Place, by_row: bool) -> Tensor:
    placements: list[Any] = place.outputs(by_row)
    if not shape:
        return DTensor.from_local(local, place.mesh, placements, run_check=False)
    return DTensor.from_local(
        local,
        place.mesh,
        placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=tuple(row_major_strides(torch.Size(shape))),
    )


# ---- the op --------------------------------------------------------------------------------------


def _arguments(
    input: Tensor, target: Tensor, weight: Tensor | None, num_items: Tensor | None, o: _Options
) -> tuple[Any, ...]:
    """Those that all three ops take: as those of regops::cross_entropy."""
    numbers = (o.ignore_index, o.reduction, o.label_smoothing, o.smoothing, o.z_loss)
    return input, target, weight, None, None, num_items, *numbers, 0.0, o.return_lse, False


def _gathered(statistics: Tensor, place: _Place) -> Tensor:
    """The statistics of all shards, in their order.

    A maximum and sums are not to be had of one all-reduce. A gather of 24 bytes a row is as cheap,
    and every process then adds up the same numbers in the same order, so that losses are equal bit
    for bit. A process with another number of rows ends in the backend's own error.
    """
    if place.class_dimension is None:
        return statistics.unsqueeze(0)
    # torch 2.13 renamed it.
    gather: Callable[..., Tensor] = getattr(funcol, "all_gather_single", funcol.all_gather_tensor)
    group = (place.mesh, place.class_dimension)
    gathered: Tensor = funcol.wait_tensor(gather(statistics, 0, group))
    return gathered.view(place.mesh.size(place.class_dimension), *statistics.shape)


def _over_batch(numbers: Tensor, place: _Place) -> Tensor:
    for dimension in place.batch_dimensions:
        numbers = funcol.wait_tensor(funcol.all_reduce(numbers, "sum", (place.mesh, dimension)))
    return numbers


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Loss, lse, and what backward needs of them, of this process's rows; reduced over all rows."""

    @staticmethod
    def forward(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        num_items: Tensor | None,
        place: _Place,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        op = torch.ops.regops
        arguments = _arguments(input, target, weight, num_items, options)
        reduced = options.reduction != "none"
        try:
            statistics, totals = op.cross_entropy_shard_statistics(
                *arguments, place.classes, place.first_class
            )
        except IndexError as error:
            # A target out of range. The processes with the other classes of these rows raise, too;
            # those with other rows wait for their sums.
            if reduced and place.batch_dimensions:
                real = torch.promote_types(input.dtype, torch.float32)
                _over_batch(input.new_ones(3, dtype=real), place)
            if place.batch_dimensions:
                raise IndexError(f"{error} of this rank's part of the batch") from None
            raise
        loss, lse, normalizers = op.cross_entropy_shard_losses(
            *arguments, place.classes, _gathered(statistics, place), totals
        )
        if reduced:
            loss, divisor = loss.sum(), totals[0]
            if place.batch_dimensions:
                numbers = torch.stack((loss, divisor, torch.zeros_like(loss)))
                numbers = _over_batch(numbers, place)
                if numbers.is_cpu and not torch.compiler.is_compiling() and numbers[2] != 0.0:
                    raise IndexError(
                        "regops.cross_entropy: expected targets in range, got one out of it on "
                        "another rank of the batch"
                    )
                loss = numbers[0]
                if options.reduction == "mean" and num_items is None:
                    divisor = numbers[1]
                    totals = torch.stack((divisor, totals[1]))
            loss = loss / divisor
        return loss, lse, normalizers, totals

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, target, weight, num_items, ctx.place, ctx.options = inputs
        normalizers, totals = output[2:]
        ctx.save_for_backward(input, target, weight, num_items, normalizers, totals)
        ctx.set_materialize_grads(False)
        constants = (normalizers, totals) if ctx.options.return_lse else output[1:]
        ctx.mark_non_differentiable(*constants)

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_lse: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        if grad_loss is None and grad_lse is None:
            return (None,) * 6
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "regops.cross_entropy: expected create_graph=False for a DTensor, whose loss can "
                "be differentiated once"
            )
        input, target, weight, num_items, normalizers, totals = ctx.saved_tensors
        gradient = torch.ops.regops.cross_entropy_shard_backward(
            *_arguments(input, target, weight, num_items, ctx.options),
            ctx.place.classes,
            ctx.place.first_class,
            normalizers,
            totals,
            grad_loss,
            grad_lse,
        )
        return (gradient, None, None, None, None, None)
