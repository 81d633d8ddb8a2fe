"""What the optimizers take beyond torch's arguments: defaults and checks."""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from regops.functional._step import Master


class OptimizerOptions(TypedDict, total=False):
    """Keyword arguments of every optimizer beyond those of torch's, with their defaults.

    All happen in the step's one pass over parameters, gradients and state. Those marked (group) may
    also be given in a parameter group.

    Attributes:
        max_grad_norm: The gradients, all groups' together, are clipped to this 2-norm, as by
            `torch.nn.utils.clip_grad_norm_`, but not in memory. The norm is in `grad_norm` after
            the step. Shards of DTensors are summed over their mesh; no other sharding is known
            here. None.
        error_if_nonfinite: Raise RuntimeError if that norm is not finite, and step nothing; waits
            for the device. It needs `max_grad_norm`, which may be infinite. False.
        clip_value: (group) Elements of gradients are then clipped to [-clip_value, clip_value].
            None.
        decay: (group) "lr": w <- (1 - lr weight_decay) w, as torch. "independent": w <- (1 - lr /
            base_lr weight_decay) w, the paper's schedule factor, so that weight decay need not be
            tuned again with another learning rate; base_lr is the group's at construction, or
            its "base_lr". It holds for `l1` too. "lr".
        l2: (group) l2 times the weight is added to the gradient: decay as of Adam, for comparison.
            0.0.
        l1: (group) After the update weights move lr l1 towards 0 and stop there: exact zeros; with
            `weight_decay` the elastic net. 0.0.
        gradient_noise: (group) (eta, gamma): N(0, eta / (1 + t)^gamma) is added to the gradient in
            step t = 0, 1, ... (Neelakantan et al. 2015). None.
        max_norm: (group) Rows (slices along dimension 0, in parameters of two and more) longer than
            this in the 2-norm are scaled back to it. None.
        ema_decay: (group) Keep state["ema"] <- ema_decay ema + (1 - ema_decay) weight, of float32
            at least; see `averaged_parameters`. None.
        zero_grad: (group) Fill gradients with zeros in the step; `zero_grad()` is not needed then.
            False.
        master: (group) How bfloat16 and float16 parameters keep what their type cannot hold.
            "none": not at all. "fp32": state["master_param"], a float32 copy; a parameter changed
            by others overrides its copy. "kahan": state["compensation"], rounding errors in the
            parameter's type. "stochastic": by rounding up or down at random. "none".
        state_dtype: (group) torch.bfloat16: moments of 2 bytes, rounded stochastically. None:
            float32. Moments of float64 parameters are float64 in any case.
        key: Of the random numbers of `gradient_noise`, "stochastic" and bfloat16 moments: int64 of
            shape (2,), from `regops.random`. It is kept in the state_dict, and the step count is
            folded in, so a resumed run goes on bit for bit. By default it is drawn from torch's
            generator; with several processes it must be given, or copies of a parameter would
            drift apart.
    """

    max_grad_norm: float | None
    error_if_nonfinite: bool
    clip_value: float | None
    decay: Literal["lr", "independent"]
    l2: float
    l1: float
    gradient_noise: tuple[float, float] | None
    max_norm: float | None
    ema_decay: float | None
    zero_grad: bool
    master: Master
    state_dtype: torch.dtype | None
    key: Tensor | None


OPTIMIZER_DEFAULTS: dict[str, Any] = {"max_grad_norm": None, "error_if_nonfinite": False}
GROUP_DEFAULTS: dict[str, Any] = {
    "clip_value": None,
    "decay": "lr",
    "l2": 0.0,
    "l1": 0.0,
    "gradient_noise": None,
    "max_norm": None,
    "ema_decay": None,
    "zero_grad": False,
    "master": "none",
    "state_dtype": None,
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "decay": ("lr", "independent"),
    "master": ("none", "fp32", "kahan", "stochastic"),
    "state_dtype": (None, torch.bfloat16),
}


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raises what is wrong with any of the options.

    Args:
        name: Of the optimizer.
        options: A group, or keyword arguments; others than above are passed over.

    Raises:
        ValueError: A value out of range.
        TypeError: One of a wrong type.
    """
    for option, choices in _CHOICES.items():
        if option in options and options[option] not in choices:
            listed = ", ".join(repr(choice) for choice in choices)
            raise _wrong(name, option, f"one of {listed}", options[option])
    for option in ("max_grad_norm", "clip_value", "max_norm", "l1", "l2", "ema_decay"):
        value = options.get(option, 0.0)
        if value is None and option not in ("l1", "l2"):
            continue
        if not _is_number(value):
            raise _wrong(name, option, "a number", value, TypeError)
        if not 0.0 <= value <= (1.0 if option == "ema_decay" else math.inf):
            expected = "in [0, 1]" if option == "ema_decay" else "at least 0"
            raise _wrong(name, option, expected, value)
    for option in ("zero_grad", "error_if_nonfinite"):
        if not isinstance(options.get(option, False), bool):
            raise _wrong(name, option, "True or False", options[option], TypeError)
    noise = options.get("gradient_noise")
    if noise is not None:
        pair = isinstance(noise, (tuple, list)) and len(noise) == 2
        if not pair or not all(_is_number(value) for value in noise):
            raise _wrong(name, "gradient_noise", "(eta, gamma), two numbers", noise, TypeError)
        if not (0.0 <= noise[0] < math.inf and math.isfinite(noise[1])):
            raise _wrong(name, "gradient_noise", "eta at least 0 and both finite", noise)


def key_numbers(name: str, key: Tensor) -> list[int]:
    """The two numbers of a key, as they stand in groups and so in a state_dict."""
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        raise _wrong(name, "key", "an int64 tensor", getattr(key, "dtype", key), TypeError)
    if key.shape != (2,):
        raise _wrong(name, "key", "of shape (2,)", tuple(key.shape))
    return [int(number) for number in key.tolist()]


def check_group(name: str, group: dict[str, Any]) -> None:
    """Raises ValueError where a group holds what is the whole optimizer's.

    Args:
        name: Of the optimizer.
        group: With the key, if any, as `key_numbers` left it.
    """
    key = group.get("key")
    plain = key is None or (isinstance(key, list) and [type(part) for part in key] == [int, int])
    for option in sorted(OPTIMIZER_DEFAULTS.keys() & group.keys()) + ["key"] * (not plain):
        raise ValueError(
            f"regops.optim.{name}: expected {option} as an argument of the optimizer, got it in a "
            "parameter group: there is one for all groups together"
        )


def needs_key(group: dict[str, Any]) -> bool:
    """Whether random numbers are in use."""
    return bool(
        group["gradient_noise"]
        or group["state_dtype"] is not None
        or group["master"] == "stochastic"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _wrong(
    name: str, option: str, expected: str, got: object, kind: type[Exception] = ValueError
) -> Exception:
    return kind(f"regops.optim.{name}: expected {option} {expected}, got {got!r}")
