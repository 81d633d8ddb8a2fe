"""Dropout as a module."""

from __future__ import annotations

from numbers import Real

from torch import Tensor, nn

import regops.functional as RF
from regops._swaps import LEFT_MODULES, MODULE_SWAPS, Swap


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` by `regops.functional.dropout`; an instance of torch's class, too.

    Args:
        p: Probability of dropping, in [0, 1]; a tensor of one element, if a schedule is to change
            it (`dropout.p.fill_(0.2)`) without recompilation of a compiled module.
        inplace: Write the result into the input.

    Raises:
        ValueError: p is outside [0, 1], or a tensor of several elements or of integers.
        TypeError: p is neither a number nor a tensor.

    Example:
        >>> import torch, regops.nn
        >>> regops.nn.Dropout(p=0.2)(torch.ones(3)).shape
        torch.Size([3])
    """

    p: float | Tensor  # type: ignore[assignment]

    def __init__(self, p: float | Tensor = 0.5, inplace: bool = False) -> None:
        if isinstance(p, bool) or not isinstance(p, (Real, Tensor)):
            got = type(p).__name__
            raise TypeError(f"regops.nn.Dropout: expected p: float | Tensor, got {got}")
        if isinstance(p, Tensor) and not (p.numel() == 1 and p.is_floating_point()):
            raise ValueError(
                "regops.nn.Dropout: expected p of one element and a floating-point dtype, got "
                f"shape {list(p.shape)} and {p.dtype}"
            )
        if not (getattr(p, "is_meta", False) or 0.0 <= p <= 1.0):
            raise ValueError(f"regops.nn.Dropout: expected p in [0, 1], got {p}")
        super().__init__(p, inplace)  # type: ignore[arg-type]

    def forward(self, input: Tensor, *, key: Tensor | None = None) -> Tensor:
        """Drops in training, returns the input itself in evaluation.

        Args:
            input: Of any shape.
            key: As of `regops.functional.dropout`; by default a new one is drawn.
        """
        return RF.dropout(input, self.p, self.training, self.inplace, key=key)


# ---- what convert_ swaps and leaves --------------------------------------------------------------


def _why_attention(module: nn.MultiheadAttention) -> str | None:
    if not module.dropout:
        return None
    return f"its dropout={module.dropout} is inside torch's scaled_dot_product_attention"


def _why_recurrent(module: nn.RNNBase) -> str | None:
    if not module.dropout or module.num_layers == 1:
        return None
    return f"its dropout={module.dropout} is inside torch's recurrent kernel"


def _why_dropout(module: nn.Dropout) -> str | None:
    if not isinstance(module.p, Tensor):
        return None
    return "its p is a tensor, which torch's compilers, for one, do not take"


MODULE_SWAPS.append(Swap(nn.Dropout, Dropout, why_left=_why_dropout))
LEFT_MODULES += [
    ((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), lambda module: "it drops whole channels"),
    ((nn.AlphaDropout, nn.FeatureAlphaDropout), lambda module: "it drops to another value than 0"),
    ((nn.modules.dropout._DropoutNd,), lambda module: "no op here does what it does"),
    ((nn.MultiheadAttention,), _why_attention),
    ((nn.RNNBase,), _why_recurrent),
]
