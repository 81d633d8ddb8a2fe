"""What one call of an optimizer's op takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from regops import _C
from regops.optim._shards import Sharding
from regops.optim._state import COMPENSATION

_PLAIN = {torch.nn.Parameter, Tensor}


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
        # Parameters, gradients and each of the entries.
        self.columns: list[list[Tensor]] = [[] for _ in range(2 + len(self.entries))]
        self.streams: list[int] = []
        self.first_indices: list[int] = []

    def append(self, tensors: Iterable[Tensor]) -> None:
        """One parameter, its gradient and its entries."""
        for column, tensor in zip(self.columns, tensors, strict=True):
            column.append(tensor)

    @classmethod
    def of_all(
        cls,
        group: dict[str, Any],
        moments: Sequence[str],
        known: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
    ) -> Batch | None:
        """All of a group at once, where it is as it mostly is: in a third of a loop's time.

        Args:
            group: Of the optimizer.
            moments: State entries of the rule.
            known: The parameters that `states` belong to.
            states: The optimizer's next ones, in the order of parameters if all were stepped.

        Returns:
            None unless all parameters are plain, alike, have gradients and were stepped before.
        """
        params = group["params"]
        if not params or len(known) != len(params) or not all(map(is_, known, params)):
            return None
        if not set(map(type, params)) <= _PLAIN:
            return None
        grads = _C.uniform_gradients(params)
        if grads is None or set(map(type, grads)) != {Tensor}:
            return None
        batch = cls(group, params[0], grads[0], None, moments)
        try:
            entries = [list(map(itemgetter(entry), states)) for entry in batch.entries]
        except KeyError:
            return None
        batch.columns = [params, grads, *entries]
        return batch
