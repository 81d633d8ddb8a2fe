"""`convert_` and `revert_` of optimizers: class, options and state, of the same object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from regops._report import ConversionReport, Left, Swapped, class_name
from regops._swaps import OPTIMIZER_SWAPS, Swap
from regops.optim._optimizer import FusedOptimizer
from regops.optim._options import (
    GROUP_DEFAULTS,
    OPTIMIZER_DEFAULTS,
    check_group,
    check_options,
)
from regops.optim._state import COMPENSATION, MOMENTS, WEIGHTS, conform

Row = Swap[Optimizer]
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def convert_optimizer(optimizer: Optimizer) -> ConversionReport:
    """`regops.convert_` of an optimizer."""
    if isinstance(optimizer, FusedOptimizer):
        return ConversionReport("convert_", (), (), ("",))
    before = type(optimizer)
    row = next((each for each in OPTIMIZER_SWAPS if each.torch_class is before), None)
    why = _why_unknown(optimizer) if row is None else _why_torchs(optimizer, row)
    if row is None or why is not None:
        return ConversionReport("convert_", (), (Left("", class_name(before), why or ""),), ())
    optimizer.__class__ = row.own_class
    assert isinstance(optimizer, FusedOptimizer)
    optimizer._torch_class = before
    optimizer._set_options({})
    for group, param, state in _states(optimizer):
        conform(param, group, state)
    _renew_step(optimizer)
    return _swapped("convert_", before, optimizer)


def revert_optimizer(optimizer: Optimizer) -> ConversionReport:
    """`regops.revert_` of an optimizer."""
    if not isinstance(optimizer, FusedOptimizer):
        return ConversionReport("revert_", (), (), ("",))
    before = type(optimizer)
    row = _row_back(optimizer)
    why = _why_unknown(optimizer) if row is None else _why_own(optimizer, row)
    if row is None or why is not None:
        return ConversionReport("revert_", (), (Left("", class_name(before), why or ""),), ())
    for group, param, state in _states(optimizer):
        _conform_to_torch(param, group, state)
        if not state:
            del optimizer.state[param]
    for attribute in (*OPTIMIZER_DEFAULTS, "grad_norm", "_averaged", "_torch_class"):
        vars(optimizer).pop(attribute, None)
    for options in (optimizer.defaults, *optimizer.param_groups):
        for option in (*GROUP_DEFAULTS, "key"):
            options.pop(option, None)
    optimizer.__class__ = row.torch_class  # type: ignore[assignment]
    _renew_step(optimizer)
    return _swapped("revert_", before, optimizer)


def _swapped(call: str, before: type, optimizer: Optimizer) -> ConversionReport:
    entry = Swapped("", class_name(before), class_name(type(optimizer)))
    return ConversionReport(call, (entry,), (), ())


# ---- what to swap --------------------------------------------------------------------------------


def _row_back(optimizer: FusedOptimizer) -> Row | None:
    """To the class that it was converted from, else to that of the same name."""
    rows = [each for each in OPTIMIZER_SWAPS if each.own_class is type(optimizer)]
    before = [each for each in rows if each.torch_class is optimizer._torch_class]
    return next(iter(before + rows), None)


def _why_unknown(optimizer: Optimizer) -> str:
    known = [row.own_class for row in OPTIMIZER_SWAPS] + [
        row.torch_class for row in OPTIMIZER_SWAPS
    ]
    for cls in type(optimizer).__mro__:
        if cls in known:
            return f"a subclass of {class_name(cls)}, whose own code may count on that class's"
    return "regops.optim has none of its rule; if it wraps an optimizer, give that one"


def _why_torchs(optimizer: Optimizer, row: Row) -> str | None:
    """Why one of torch's must stay."""
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            return "with differentiable=True a step has a derivative, and ours has none"
        # What a checkpoint of ours, loaded before, has left there is adopted.
        try:
            check_group(row.own_class.__name__, group)
            check_options(row.own_class.__name__, group)
        except (TypeError, ValueError) as error:
            return f"a parameter group has an entry that is an option of ours: {error}"
        for param in group["params"]:
            if param.dtype not in _DTYPES:
                return f"a parameter is of type {str(param.dtype).removeprefix('torch.')}"
            if param.grad is not None and param.grad.layout != torch.strided:
                return "a gradient is sparse"
    return _why_bound(optimizer) or row.why_left(optimizer)


def _why_own(optimizer: FusedOptimizer, row: Row) -> str | None:
    """Why one of ours must stay."""
    if vars(optimizer).get("_averaged"):
        return "its parameters are exchanged, inside averaged_parameters()"
    own = [(vars(optimizer), OPTIMIZER_DEFAULTS)]
    own += [(group, GROUP_DEFAULTS) for group in optimizer.param_groups]
    options = {
        f"{option}={values[option]!r}": None
        for values, defaults in own
        for option, default in defaults.items()
        if values[option] != default
    }
    if options:
        return f"torch has no {', '.join(options)}"
    return _why_bound(optimizer) or row.why_left(optimizer)


def _why_bound(optimizer: Optimizer) -> str | None:
    """Schedulers wrap `step` on the object; that wrapper is known, others are not."""
    step = vars(optimizer).get("step")
    if step is None or (
        getattr(step, "__globals__", None) is vars(lr_scheduler)
        and step.__wrapped__ is type(optimizer).step
    ):
        return None
    return "its step was replaced on the object, and would go on with the old class's"


# ---- swapping ------------------------------------------------------------------------------------


def _states(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Tensor, dict[str, Any]]]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param in optimizer.state:
                yield group, param, optimizer.state[param]


def _conform_to_torch(param: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
    """Gives a state the entries, types and devices that torch's optimizers make; in place."""
    for entry in (COMPENSATION, *WEIGHTS):  # of options that were in use once
        state.pop(entry, None)
    for entry in MOMENTS:
        if entry in state:
            state[entry] = state[entry].to(param.dtype)
    if "exp_avg" in state:
        on_device = group["capturable"] or group["fused"]
        state["step"] = state["step"].to(param.device if on_device else "cpu")
    elif state.pop("step", 1) == 0:  # SGD counts none: a buffer is that of a later step
        state.pop("momentum_buffer", None)


class _StepWrapper(lr_scheduler.LRScheduler):
    """Wraps `optimizer.step` as each scheduler of torch does at construction; schedules nothing."""

    def _initial_step(self) -> None:
        pass


def _renew_step(optimizer: Optimizer) -> None:
    """After a change of class: what torch's constructors make of its `step`."""
    optimizer._patch_step_function()
    if "step" in vars(optimizer):  # a scheduler's, which holds the old class's
        del vars(optimizer)["step"]
        _StepWrapper(optimizer)
