"""Keys: where the random numbers of an op come from.

A key is an int64 tensor of two values, (seed, offset). An op that takes one is a pure function of
it: same key, same mask, on every device, thread count, instruction set, dtype and memory layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from regops import _C  # noqa: F401  (registers torch.ops.regops)
from regops._transforms import transform_active

_INT64 = 1 << 63


def key(seed: int, offset: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """A key from two numbers.

    Args:
        seed: Any integer of 64 bits, signed or unsigned.
        offset: Likewise. Keys of one seed and different offsets are independent streams.
        device: Where the key lives; every op takes a key from its input's device or from the CPU.

    Returns:
        int64 tensor of shape (2,).

    Raises:
        ValueError: A number does not fit 64 bits.

    Example:
        >>> import torch, regops.functional as RF, regops.random
        >>> x = torch.ones(1000)
        >>> key = regops.random.key(42)
        >>> torch.equal(RF.dropout(x, 0.1, key=key), RF.dropout(x, 0.1, key=key))
        True
    """
    return torch.tensor(
        [_as_int64("seed", seed), _as_int64("offset", offset)], dtype=torch.int64, device=device
    )


def new_key(device: torch.device | str = "cpu", generator: Generator | None = None) -> Tensor:
    """A fresh key from torch's random state, as an op makes one when it is given none.

    Advances the generator, so `torch.manual_seed` makes the sequence of keys reproducible.

    Args:
        device: Device whose default generator is used, and where the key lives.
        generator: Used instead of the default one; on the same device.

    Returns:
        int64 tensor of shape (2,).
    """
    return key_like(torch.empty(0, device=device), generator)


def fold_in(key: Tensor, data: int) -> Tensor:
    """A key of its own for each value of `data`: ranks, layers, steps.

    Args:
        key: int64 of shape (2,).
        data: Any integer of 64 bits.

    Returns:
        A key on the same device, a pure function of both arguments.

    Raises:
        ValueError: `data` does not fit 64 bits.

    Example:
        >>> import regops.random
        >>> rank_key = regops.random.fold_in(regops.random.key(42), 3)
    """
    folded: Tensor = torch.ops.regops.fold_in(key, _as_int64("data", data))
    return folded


def key_like(like: Tensor, generator: Generator | None = None) -> Tensor:
    """`new_key` on the device of a tensor, under functorch transforms too."""
    if transform_active():
        # functorch passes tensors only, so the generator travels in a box.
        drawn: Tensor = _NewKey.apply(like, [generator])
        return drawn
    fresh: Tensor = torch.ops.regops.new_key(like, generator=generator)
    return fresh


class _NewKey(torch.autograd.Function):
    """new_key where `torch.func` transforms are active: vmap's `randomness` decides.

    "same" draws one key for all examples, "different" folds each example's number into it, "error"
    raises as torch's own random functions do.
    """

    @staticmethod
    def forward(like: Tensor, generator: list[Generator | None]) -> Tensor:
        return key_like(like, generator[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], like: Tensor, generator: list[Generator | None]
    ) -> tuple[Tensor, int | None]:
        if info.randomness == "error":
            raise RuntimeError(
                "vmap: called random operation while in randomness error mode. Please either use "
                "the 'same' or 'different' randomness flags on vmap, pass key=, or perform the "
                "random operation out of vmap"
            )
        drawn = key_like(like, generator[0])
        if info.randomness == "same":
            return drawn, None
        return torch.stack([fold_in(drawn, i) for i in range(info.batch_size)]), 0


def _as_int64(name: str, value: int) -> int:
    if not -_INT64 <= value < 2 * _INT64:
        raise ValueError(f"regops.random: expected {name} of 64 bits, got {value}")
    return value - 2 * _INT64 if value >= _INT64 else value
