"""Keys: where the random numbers of an op come from.

A key is an int64 tensor of two values, (seed, offset). An op that takes one is a pure function of
it: same key, same mask, on every device, thread count, instruction set, dtype and memory layout.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Generator, Tensor

from regops import _C  # noqa: F401  (registers torch.ops.regops)
from regops._distributed import agreed, is_distributed
from regops._transforms import mapped_if_vmap, stack

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
        TypeError: A number is not an integer.
        ValueError: It does not fit 64 bits.

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
        TypeError: `data` is not an integer; `key` is not an int64 tensor.
        ValueError: `data` does not fit 64 bits; `key` is not of shape (2,).

    Example:
        >>> import regops.random
        >>> rank_key = regops.random.fold_in(regops.random.key(42), 3)
    """
    if not isinstance(key, Tensor):
        raise TypeError(f"regops.random: expected key: Tensor, got {type(key).__name__}")
    folded: Tensor = torch.ops.regops.fold_in(key, _as_int64("data", data))
    return folded


def key_like(like: Tensor, generator: Generator | None = None) -> Tensor:
    """`new_key` on the device of a tensor; under vmap, one key or one an example.

    Of a DTensor, one key for its mesh: a collective, which all its ranks must call.
    """
    if is_distributed(like):
        return agreed(new_key(like.device, generator), like.device_mesh)
    fresh: Tensor = torch.ops.regops.new_key(mapped_if_vmap(like), generator=generator)
    return fresh


def key_for(
    input: Tensor, key: Tensor | None, generator: Generator | None = None, used: bool = True
) -> Tensor:
    """The key of an op's call, on the input's device: the one passed in, or else a new one.

    Where it will not be `used`, as with p = 1, any will do and none is drawn, as by torch.
    """
    if key is None and used:
        return key_like(input, generator)
    if key is None:
        return torch.zeros(2, dtype=torch.int64, device=input.device)
    moves = key.device != input.device and key.device.type == "cpu"
    return key.to(input.device) if moves else key


@torch.library.register_vmap("regops::new_key")  # type: ignore[untyped-decorator]
def _new_key_vmap(
    info: Any, in_dims: tuple[Any, ...], like: Tensor, *, generator: Generator | None = None
) -> tuple[Tensor, int | None]:
    """As torch's random functions: vmap's `randomness` decides.

    "same" draws one key for all examples, "different" folds each example's number into it, "error"
    raises.
    """
    if info.randomness == "error":
        raise RuntimeError(
            "vmap: called random operation while in randomness error mode. Please either use the "
            "'same' or 'different' randomness flags on vmap, pass key=, or perform the random "
            "operation out of vmap"
        )
    drawn: Tensor = torch.ops.regops.new_key(like, generator=generator)
    if info.randomness == "same":
        return drawn, None
    return stack([fold_in(drawn, i) for i in range(info.batch_size)], drawn), 0


@torch.library.register_vmap("regops::fold_in")  # type: ignore[untyped-decorator]
def _fold_in_vmap(
    info: Any, in_dims: tuple[int | None, None], key: Tensor, data: int
) -> tuple[Tensor, int | None]:
    if in_dims[0] is None:
        return fold_in(key, data), None
    keys = key.movedim(in_dims[0], 0)
    return stack([fold_in(one, data) for one in keys], key.new_empty(2)), 0


def _as_int64(name: str, value: int) -> int:
    if type(value) is not int:  # compilers would take operator.index for a reason to specialize
        try:
            value = operator.index(value)
        except TypeError:
            got = type(value).__name__
            raise TypeError(f"regops.random: expected {name} of type int, got {got}") from None
    if not -_INT64 <= value < 2 * _INT64:
        raise ValueError(f"regops.random: expected {name} of 64 bits, got {value}")
    return value - 2 * _INT64 if value >= _INT64 else value
