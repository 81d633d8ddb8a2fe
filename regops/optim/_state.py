"""State of a parameter: its entries, and how they come through a checkpoint unharmed.

`torch.optim.Optimizer.load_state_dict` casts what is of a floating type to the parameter's: moments
of bfloat16 parameters lose 16 bits in every resumption. Entries are wrapped before and conformed
to their own types after.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
WEIGHTS = ("master_param", "ema")
COMPENSATION = "compensation"
_ENTRIES = frozenset(("step", COMPENSATION, *MOMENTS, *WEIGHTS))


def new_entry(entry: str, param: Tensor, group: dict[str, Any]) -> Tensor:
    """An entry before the first step, of the parameter's strides."""
    if entry == "step":
        return torch.zeros((), dtype=torch.float32, device=_step_device(param))
    dtype = _dtype(entry, param, group)
    if entry in WEIGHTS:
        return param.detach().to(dtype, copy=True)
    return torch.zeros_like(param, dtype=dtype)


def check_complete(name: str, entry: str, state: dict[str, Any]) -> None:
    """Raises RuntimeError where a stepped parameter has lost a moment.

    From 0 it would be corrected for the bias of a first step by the factor of a late one.

    Args:
        name: Of the optimizer.
        entry: That is missing.
        state: Of the parameter.
    """
    step = state.get("step")
    if entry not in ("exp_avg", "exp_avg_sq") or step is None or step.is_meta:
        return
    if step > 0:
        raise RuntimeError(
            f"regops.optim.{name}: expected {entry} in the state of a parameter after "
            f"{int(step)} steps, got only {', '.join(state)}"
        )


def conform(param: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
    """Gives loaded entries their types and devices; in place.

    A state of `torch.optim.SGD` counts no steps; one with a buffer is past its first.
    """
    if state.get("momentum_buffer", param) is None:
        del state["momentum_buffer"]
    if "step" not in state and "momentum_buffer" in state:
        state["step"] = torch.ones(())
    for entry, value in state.items():
        if entry == "step":
            # A copy: where parameters share one count, each would count it up.
            value = torch.as_tensor(value, dtype=torch.float32)
            state[entry] = value.to(_step_device(param), copy=True)
        elif entry in _ENTRIES and isinstance(value, Tensor):
            # A distributed tensor is on its mesh's device already.
            value = value if hasattr(value, "device_mesh") else value.to(param.device)
            state[entry] = value.to(_dtype(entry, param, group))


class _Wrapped:
    """A tensor that `Optimizer.load_state_dict` passes on as it is."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def wrap(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state_dict whose tensors torch does not cast."""
    states = {
        index: {
            entry: _Wrapped(value) if entry in _ENTRIES and isinstance(value, Tensor) else value
            for entry, value in state.items()
        }
        if isinstance(state, dict)
        else state
        for index, state in state_dict["state"].items()
    }
    return {**state_dict, "state": states}


def unwrap(states: dict[Any, Any]) -> None:
    """Undoes `wrap`, in place."""
    for state in states.values():
        if isinstance(state, dict):
            for entry, value in state.items():
                if isinstance(value, _Wrapped):
                    state[entry] = value.value


def _dtype(entry: str, param: Tensor, group: dict[str, Any]) -> torch.dtype:
    if entry == COMPENSATION:
        return param.dtype
    real = torch.promote_types(param.dtype, torch.float32)
    small: torch.dtype | None = group["state_dtype"]
    # Who trains in float64 wants no 8 bits of moments.
    return small if small is not None and entry in MOMENTS and real == torch.float32 else real


def _step_device(param: Tensor) -> torch.device:
    # On the GPU the kernel counts: nothing waits, and a captured graph counts on.
    return param.device if param.is_cuda or param.is_meta else torch.device("cpu")
