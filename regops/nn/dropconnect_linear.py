"""DropConnect as a module."""

from __future__ import annotations

from numbers import Real
from typing import Literal

import torch
from torch import Tensor, nn

import regops.functional as RF


class DropConnectLinear(nn.Linear):
    """`torch.nn.Linear` whose weights are dropped in training; an instance of torch's class, too.

    By `regops.functional.dropconnect_linear`, whose page says what each option means and costs.
    Masks follow `torch.manual_seed`; for one under a key of your own call the function.

    With inference="gaussian" evaluation returns a dimension more than training, (samples, ...,
    out_features), for samples=1 as well: apply the activation, then average over dimension 0,
    before the next layer:

        h = torch.relu(layer(x))
        h = h if layer.training else h.mean(0)

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of that of the output.
        bias: Whether there is one. (The third argument, as in torch; p is keyword-only.)
        device: Of the parameters.
        dtype: Of the parameters.
        p: Probability of dropping a weight, in [0, 1]; a tensor of one element on the CPU, if a
            schedule is to change it without recompilation of a compiled module.
        mask: "batch" or "sample": one mask for a call, or one for each example.
        drop_bias: Whether the bias is dropped as the weights are.
        inference: "mean" or "gaussian": what evaluation returns.
        samples: How many numbers an output "gaussian" draws.

    Raises:
        ValueError: p, mask, inference or samples is not one of those; p is 1 beside "gaussian".
        TypeError: bias, drop_bias, p or samples is of the wrong type.

    Example:
        >>> import torch, regops.nn
        >>> layer = regops.nn.DropConnectLinear(20, 30, p=0.5)
        >>> layer(torch.randn(128, 20)).shape
        torch.Size([128, 30])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        p: float | Tensor = 0.5,
        mask: Literal["batch", "sample"] = "batch",
        drop_bias: bool = False,
        inference: Literal["mean", "gaussian"] = "mean",
        samples: int = 1,
    ) -> None:
        for name, value, wanted in (
            ("bias", bias, bool),
            ("drop_bias", drop_bias, bool),
            ("p", p, (Real, Tensor)),
            ("samples", samples, int),
        ):
            if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
                expected = wanted.__name__ if isinstance(wanted, type) else "float | Tensor"
                got = type(value).__name__
                raise TypeError(
                    f"regops.nn.DropConnectLinear: expected {name}: {expected}, got {got}"
                )
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"regops.nn.DropConnectLinear: expected p in [0, 1], got {p}")
        if mask not in ("batch", "sample"):
            raise ValueError(
                f"regops.nn.DropConnectLinear: expected mask 'batch' or 'sample', got {mask!r}"
            )
        if inference not in ("mean", "gaussian"):
            raise ValueError(
                "regops.nn.DropConnectLinear: expected inference 'mean' or 'gaussian', got "
                f"{inference!r}"
            )
        if p == 1.0 and inference == "gaussian":
            raise ValueError(
                "regops.nn.DropConnectLinear: expected p in [0, 1) with inference='gaussian', got 1"
            )
        if samples < 1:
            raise ValueError(
                f"regops.nn.DropConnectLinear: expected samples of 1 or more, got {samples}"
            )
        super().__init__(in_features, out_features, bias, device, dtype)
        self.p: float | Tensor = p
        self.mask: Literal["batch", "sample"] = mask
        self.drop_bias = drop_bias
        self.inference: Literal["mean", "gaussian"] = inference
        self.samples = samples

    def forward(self, input: Tensor) -> Tensor:
        """Drops weights in training; in evaluation as `inference` says."""
        return RF.dropconnect_linear(
            input,
            self.weight,
            self.bias,
            self.p,
            self.training,
            mask=self.mask,
            drop_bias=self.drop_bias,
            inference=self.inference,
            samples=self.samples,
        )

    def extra_repr(self) -> str:
        """The sizes, p, and what differs from the defaults."""
        text = f"{super().extra_repr()}, p={self.p}, mask={self.mask!r}"
        if self.drop_bias:
            text += ", drop_bias=True"
        if self.inference != "mean":
            text += f", inference={self.inference!r}, samples={self.samples}"
        return text
