"""Cross-entropy as a module."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

import regops.functional as RF
from regops._swaps import LEFT_MODULES, MODULE_SWAPS, Swap
from regops.functional.cross_entropy import check_ignore_index


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` by `regops.functional.cross_entropy`; also of torch's class.

    The deprecated `size_average` and `reduce` are not taken.

    Args:
        weight: Weight of each class, (C), of the logits' dtype or float32.
        ignore_index: Rows with this class index add nothing.
        reduction: "none", "mean" or "sum".
        label_smoothing: Share of the target that is spread evenly, in [0, 1].
        smoothing: Over all classes, "uniform", or over the "others".
        z_loss: Weight of lse^2.
        entropy_weight: Weight of the confidence penalty.
        inplace_backward: Let the gradient take the memory of the logits.

    Raises:
        ValueError: `reduction` or `smoothing` is none of the names above.
        RuntimeError: `label_smoothing` is outside [0, 1].

    Example:
        >>> import torch, regops.nn
        >>> loss = regops.nn.CrossEntropyLoss(label_smoothing=0.1)
        >>> loss(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Literal["none", "mean", "sum"] = "mean",
        label_smoothing: float = 0.0,
        *,
        smoothing: Literal["uniform", "others"] = "uniform",
        z_loss: float = 0.0,
        entropy_weight: float = 0.0,
        inplace_backward: bool = False,
    ) -> None:
        check_ignore_index("nn.CrossEntropyLoss", ignore_index)
        if not isinstance(ignore_index, int):
            raise TypeError(
                "regops.nn.CrossEntropyLoss: expected ignore_index: int, got "
                f"{type(ignore_index).__name__}; logits and target are for the call of the module"
            )
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(
                'regops.nn.CrossEntropyLoss: expected reduction "none", "mean" or "sum", got '
                f"{reduction!r}"
            )
        if smoothing not in ("uniform", "others"):
            raise ValueError(
                'regops.nn.CrossEntropyLoss: expected smoothing "uniform" or "others", got '
                f"{smoothing!r}"
            )
        if not 0.0 <= label_smoothing <= 1.0:
            raise RuntimeError(
                "regops.nn.CrossEntropyLoss: expected label_smoothing in [0, 1], got "
                f"{label_smoothing}"
            )
        super().__init__(
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        self.smoothing: Literal["uniform", "others"] = smoothing
        self.z_loss = z_loss
        self.entropy_weight = entropy_weight
        self.inplace_backward = inplace_backward

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        target_b: Tensor | None = None,
        lam: float | Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """The loss; the keyword arguments are those of `regops.functional.cross_entropy`."""
        return RF.cross_entropy(
            input,
            target,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
            smoothing=self.smoothing,
            z_loss=self.z_loss,
            entropy_weight=self.entropy_weight,
            target_b=target_b,
            lam=lam,
            num_items=num_items,
            inplace_backward=self.inplace_backward,
        )

    def extra_repr(self) -> str:
        """The hyper-parameters that are not torch's defaults and ours."""
        shown = {
            "ignore_index": (self.ignore_index, -100),
            "reduction": (self.reduction, "mean"),
            "label_smoothing": (self.label_smoothing, 0.0),
            "smoothing": (self.smoothing, "uniform"),
            "z_loss": (self.z_loss, 0.0),
            "entropy_weight": (self.entropy_weight, 0.0),
            "inplace_backward": (self.inplace_backward, False),
        }
        return ", ".join(
            f"{name}={value!r}" for name, (value, default) in shown.items() if value != default
        )


# ---- what convert_ swaps and leaves --------------------------------------------------------------


def _why_left(module: nn.CrossEntropyLoss) -> str | None:
    weight = module.weight
    if weight is not None and weight.dtype not in _DTYPES:
        return f"its weight is of type {str(weight.dtype).removeprefix('torch.')}"
    try:  # attributes may have been set since torch checked them, which is less strict, too
        CrossEntropyLoss(
            weight,
            module.ignore_index,
            module.reduction,  # type: ignore[arg-type]
            module.label_smoothing,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return None


_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_OPTIONS = {
    "smoothing": "uniform",
    "z_loss": 0.0,
    "entropy_weight": 0.0,
    "inplace_backward": False,
}
MODULE_SWAPS.append(Swap(nn.CrossEntropyLoss, CrossEntropyLoss, _OPTIONS, _why_left))
LEFT_MODULES += [
    ((nn.NLLLoss,), lambda module: "it takes log-probabilities, the op here logits"),
    (
        (nn.modules.loss._Loss, nn.AdaptiveLogSoftmaxWithLoss),
        lambda module: "no op here computes this loss",
    ),
]
