"""What the case tables of all optimizer steps have in common: shapes, options, layouts."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from regops.testing._compare import Tolerance
from regops.testing._inputs import Layout

# 0-d, empty, one element, below a vector, odd, images, and several of the blocks kernels work in.
SHAPES = ((), (3, 0, 2), (1,), (7,), (5, 13), (2, 3, 4, 5), (3, 701))
FEW = ((5, 13), (2, 3, 4, 5))

EQUAL = Tolerance(
    0.0, 0.0, "the reference does the same operations of the same type in the same order"
)
_CONTRACTED = (
    "a product that is not rounded before its sum, normal numbers from another logarithm, or a sum "
    "of squares in another order: a few ulp a step, which ten steps add up"
)
# One rounding of a half-precision parameter that falls to the other side is one ulp.
NEAR = {
    torch.float64: Tolerance(1e-13, 1e-14, _CONTRACTED),
    torch.float32: Tolerance(1e-5, 2e-6, _CONTRACTED),
    torch.bfloat16: Tolerance(2**-6, 2**-9, _CONTRACTED + ", and its roundings"),
    torch.float16: Tolerance(2**-9, 2**-12, _CONTRACTED + ", and its roundings"),
}

# Every option alone. Each value is fields of a StepCase.
OPTIONS: dict[str, dict[str, Any]] = {
    "maximize": {"kwargs": {"maximize": True}},
    "grad-scale": {"kwargs": {"grad_scale": 1024.0}},
    "grad-scale-zero-grad": {"kwargs": {"grad_scale": 1024.0, "zero_grad": True}},
    "found-inf": {"kwargs": {"found_inf": 1.0}},
    "found-inf-zero-grad": {"kwargs": {"found_inf": 1.0, "zero_grad": True}},
    "found-none": {"kwargs": {"found_inf": 0.0}},
    "max-grad-norm": {"kwargs": {"max_grad_norm": 0.5}, "rounded": True},
    "max-grad-norm-above": {"kwargs": {"max_grad_norm": 1e6}},
    "clip-value": {"kwargs": {"clip_value": 0.3}},
    "gradient-noise": {"kwargs": {"gradient_noise": (0.3, 0.55)}, "rounded": True},
    "l1": {"kwargs": {"l1": 0.5}},
    "l2": {"kwargs": {"l2": 0.1}},
    "max-norm": {"kwargs": {"max_norm": 2.0}, "rounded": True},
    "max-norm-above": {"kwargs": {"max_norm": 1e6}},
    "ema": {"kwargs": {"ema_decay": 0.9}},
    "zero-grad": {"kwargs": {"zero_grad": True}},
    "fp32-master": {"kwargs": {"master": "fp32"}},
    "kahan": {"kwargs": {"master": "kahan"}},
    "stochastic": {"kwargs": {"master": "stochastic"}},
    "float32-gradients": {"grad_dtype": torch.float32},
    "bfloat16-states": {"state_dtype": torch.bfloat16},
    "streams": {
        "kwargs": {
            "master": "stochastic",
            "streams": (9, 2, 2**40, 5, 4, 3, 1),
            # A phase of its own for each: below, at and above a block of random words.
            "first_indices": (0, 5, 2**33 + 1, 8, 3, 6, 2**40 + 7),
        },
        "state_dtype": torch.bfloat16,
    },
}


def layout_cases() -> dict[str, dict[str, Any]]:
    """Parameter, gradient and state alike in each layout, and some mixtures."""
    alike: tuple[Layout, ...] = ("channels_last", "transposed", "reversed", "misaligned", "strided")
    cases: dict[str, dict[str, Any]] = {
        layout: {"layouts": (layout, layout, layout)} for layout in alike
    }
    cases["mixed"] = {"layouts": ("contiguous", "transposed", "channels_last")}
    cases["mixed-strided"] = {"layouts": ("strided", "misaligned", "reversed")}
    return cases


def option_grid() -> dict[str, dict[str, Any]]:
    """Combinations of options that meet in a kernel, on a few small tensors.

    A power set of all would be a hundred thousand; here every pair of the kernel's choices meets.
    """
    of_gradient: dict[str, dict[str, Any]] = {
        "": {},
        "scale-max": {"grad_scale": 8.0, "maximize": True},
        "clip-zero": {"max_grad_norm": 3.0, "clip_value": 0.4, "zero_grad": True},
        "noise-l2": {"gradient_noise": (0.1, 0.55), "l2": 0.05},
    }
    of_weight: dict[str, dict[str, Any]] = {
        "": {},
        "l1": {"l1": 0.3},
        "max-norm-ema": {"max_norm": 1.5, "ema_decay": 0.8},
        "all": {"l1": 0.1, "max_norm": 2.5, "ema_decay": 0.9},
    }
    masters = ("none", "fp32", "kahan", "stochastic")
    types = (None, torch.bfloat16)
    grid = {}
    for (before, first), (after, second), master, state in itertools.product(
        of_gradient.items(), of_weight.items(), masters, types
    ):
        name = "-".join(
            part for part in (before, after, master, "bfloat16-states" if state else "") if part
        )
        grid[name] = {
            "shapes": FEW,
            "kwargs": {**first, **second, "master": master},
            "state_dtype": state,
            "rounded": bool({"max_grad_norm", "gradient_noise", "max_norm"} & {*first, *second}),
        }
    return grid
