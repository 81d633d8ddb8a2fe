"""Which path a call takes: C++ in eager code, dispatcher ops or a Python Function elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad


def transform_active() -> bool:
    """Whether a `torch.func` transform or forward-mode AD is running.

    A C++ autograd Function refuses to run under them, so ops take a Python one there.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def mapped_if_vmap(like: Tensor) -> Tensor:
    """A tensor on the device of `like` that every running vmap maps over; else `like` itself.

    vmap's rules are asked only about mapped tensors, but a random number drawn for one that all
    examples share is subject to vmap's `randomness` as well.
    """
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return like
    levels = [
        (interpreter.level(), _functorch.CVmapInterpreterPtr(interpreter).batchSize())
        for interpreter in _functorch.get_interpreter_stack() or ()
        if interpreter.key() == _functorch.TransformType.Vmap
    ]
    with temporarily_clear_interpreter_stack():  # else the outermost transform would wrap it
        mapped = torch.empty(*(size for _, size in levels), 0, device=like.device)
    for level, _ in levels:
        mapped = _functorch._add_batch_dim(mapped, 0, level)
    return mapped


def stack(results: Sequence[Tensor], like: Tensor) -> Tensor:
    """What vmap's rules return: the examples' results, maybe none, on dimension 0."""
    return torch.stack(tuple(results)) if results else like.new_empty((0, *like.shape))
