"""Philox4x32-10 in NumPy and in PyTorch, and the bits that an element draws from it.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. The same
generator as `csrc/math/philox.h`, written to be read; `docs/randomness.md` states the contract.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
DOMAIN_VARIATES = 0x7265676F70733031  # "regops01"
DOMAIN_FOLD_IN = 0x7265676F70733032  # "regops02"
_WORD = 0xFFFFFFFF

Words = npt.NDArray[np.uint32]


def philox4x32_numpy(
    key: int, counter_low: npt.NDArray[np.uint64], counter_high: int | npt.NDArray[np.uint64]
) -> Words:
    """Blocks of four 32-bit words.

    Args:
        key: 64 bits.
        counter_low: Lower 64 bits of each counter, of any shape.
        counter_high: Upper 64 bits, of the same shape or one for all.

    Returns:
        uint32 array of the counters' shape and a last dimension of 4.
    """
    low = np.asarray(counter_low, np.uint64)
    high = np.broadcast_to(np.asarray(counter_high, np.uint64), low.shape)
    word = np.uint64(_WORD)
    shift = np.uint64(32)
    c0, c1, c2, c3 = low & word, low >> shift, high & word, high >> shift
    k0, k1 = key & _WORD, key >> 32 & _WORD
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * np.uint64(MULTIPLIER_0), c2 * np.uint64(MULTIPLIER_1)
        c0, c1, c2, c3 = (
            (product_1 >> shift) ^ c1 ^ np.uint64(k0),
            product_1 & word,
            (product_0 >> shift) ^ c3 ^ np.uint64(k1),
            product_0 & word,
        )
        k0, k1 = k0 + WEYL_0 & _WORD, k1 + WEYL_1 & _WORD
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def philox4x32(key: Tensor, counter_low: Tensor, counter_high: Tensor) -> Tensor:
    """The same in PyTorch, on any device.

    Args:
        key: int64, 0-d: 64 bits in two's complement, as all arguments here.
        counter_low: int64, of any shape.
        counter_high: int64, 0-d or of the same shape.

    Returns:
        int64 tensor of the counters' shape and a last dimension of 4, of values in [0, 2^32).
    """
    # A product of two 32-bit numbers may wrap into the sign: `>> 32` smears it, `& _WORD` cleans.
    c0, c1 = counter_low & _WORD, counter_low >> 32 & _WORD
    c2 = (counter_high & _WORD).expand_as(c0)
    c3 = (counter_high >> 32 & _WORD).expand_as(c0)
    k0, k1 = key & _WORD, key >> 32 & _WORD
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (
            (product_1 >> 32 & _WORD) ^ c1 ^ k0,
            product_1 & _WORD,
            (product_0 >> 32 & _WORD) ^ c3 ^ k1,
            product_0 & _WORD,
        )
        k0, k1 = k0 + WEYL_0 & _WORD, k1 + WEYL_1 & _WORD
    return torch.stack([c0, c1, c2, c3], dim=-1)


def random_bits(key: Tensor, numel: int, bits: int, first: int = 0) -> Tensor:
    """The random bits that are each element's own.

    Element i takes half-word i mod 8 of block i div 8, or, of 32 bits, word i mod 4 of block
    i div 4. Words are cut into half-words lower half first.

    Args:
        key: int64 of shape (2,): seed and offset.
        numel: Number of elements.
        bits: 16 or 32.
        first: Index of the first element.

    Returns:
        int64 tensor of `numel` values in [0, 2^bits).
    """
    per_block = 128 // bits
    start = first // per_block
    blocks = torch.arange(start, -(-(first + numel) // per_block), device=key.device)
    words = philox4x32(key[0] ^ DOMAIN_VARIATES, blocks, key[1])
    if bits == 16:
        words = torch.stack([words & 0xFFFF, words >> 16], dim=-1)
    skipped = first - start * per_block
    return words.reshape(-1)[skipped : skipped + numel]


def fold_in(key: Tensor, data: int) -> Tensor:
    """The key of sub-stream `data` of a key's stream; see `regops.random.fold_in`."""
    counter = torch.tensor(data, device=key.device)
    words = philox4x32(key[0] ^ DOMAIN_FOLD_IN, counter, key[1])
    return torch.stack([words[0] | words[1] << 32, words[2] | words[3] << 32])
