"""Dropout as a module."""

from __future__ import annotations

from torch import Tensor, nn

import regops.functional as RF


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` by `regops.functional.dropout`; an instance of torch's class, too.

    Args:
        p: Probability of dropping, in [0, 1].
        inplace: Write the result into the input.

    Raises:
        ValueError: p is outside [0, 1].

    Example:
        >>> import torch, regops.nn
        >>> regops.nn.Dropout(p=0.2)(torch.ones(3)).shape
        torch.Size([3])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        if p < 0.0 or p > 1.0:
            raise ValueError(f"regops.nn.Dropout: expected p in [0, 1], got {p}")
        super().__init__(p, inplace)

    def forward(self, input: Tensor) -> Tensor:
        """Drops in training, returns the input itself in evaluation."""
        return RF.dropout(input, self.p, self.training, self.inplace)
