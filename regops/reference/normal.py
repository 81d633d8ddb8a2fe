"""Standard normal numbers from the random words of a key: `csrc/math/normal.h` in PyTorch.

G. E. P. Box, M. E. Muller, "A Note on the Generation of Random Normal Deviates", Annals of
Mathematical Statistics 29 (1958).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regops.reference.philox import random_bits


def normals(key: Tensor, numel: int, first: int = 0) -> Tensor:
    """The normal number that is each element's own.

    z0 = sqrt(-2 ln u) cos(2 pi v), z1 = sqrt(-2 ln u) sin(2 pi v) with u = (word0 + 1/2) / 2^32 and
    v = word1 / 2^32. Element i takes words 2 (i div 2) and 2 (i div 2) + 1 of the key's stream, and
    of the two results z0 where i is even, z1 where it is odd.

    Args:
        key: int64 of shape (2,): seed and offset.
        numel: Number of elements.
        first: Index of the first element.

    Returns:
        float64 tensor of `numel` values; kernels compute them in float32, to a few ulp.
    """
    start = first // 2 * 2
    words = random_bits(key, (first + numel - start + 1) // 2 * 2, 32, start).reshape(-1, 2)
    # u as a float32 has it: the conversion of the word rounds.
    u = words[:, 0].float() * 2.0**-32 + 2.0**-33
    radius = (-2.0 * u.double().log()).sqrt()
    angle = words[:, 1].double() * (2.0 * math.pi / 2**32)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return pairs.reshape(-1)[first - start : first - start + numel]
