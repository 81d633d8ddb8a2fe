"""What one call of an optimizer's op takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from torch import Tensor

from regops.optim._shards import Sharding
from regops.optim._state import COMPENSATION


class Batch:
    """What one call of the op steps: parameters of a group, of one device and dtype."""

    def __init__(
        self,
        group: dict[str, Any],
        param: Tensor,
        grad: Tensor,
        sharding: Sharding | None,
        moments: Sequence[str],
    ) -> None:
        half = param.dtype.itemsize == 2
        self.group = group
        self.device, self.dtype, self.grad_dtype = param.device, param.dtype, grad.dtype
        self.sharding = sharding
        self.master = group["master"] if half else "none"  # there is nothing to keep otherwise
        self.moments = len(moments)
        self.entries: list[str] = ["step", *moments]
        if self.master == "fp32":
            self.entries.append("master_param")
        elif self.master == "kahan":
            self.entries.append(COMPENSATION)
        if group["ema_decay"] is not None:
            self.entries.append("ema")
        # itemgetter of one name gives no tuple
        self.read: Callable[[dict[str, Any]], tuple[Tensor, ...]] = (
            itemgetter(*self.entries) if len(self.entries) > 1 else lambda state: (state["step"],)
        )
        self.rows: list[tuple[Tensor, ...]] = []  # (param, grad, *entries)
        self.streams: list[int] = []
        self.first_indices: list[int] = []
