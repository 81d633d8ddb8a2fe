"""What optimizers step in a benchmark: all providers the same parameters.

A step changes what it is called on. All providers share parameters and gradients, and what they can
of their state: memory for one, on the same pages for everyone. Each is verified from the same
start; after that values do not matter to the time, for none can become denormal or infinite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.libraries import Peer, peers_on
from bench.peers import PEERS
from bench.setting import USUAL, Setting, cache_state, lacking
from regops.testing import Direction, StepBenchCase, StepCall, StepSpec, make_call

# regops again, with moments of float32 beside those of bfloat16.
FLOAT_STATES = "float32-states"


@dataclass(frozen=True, eq=False)
class StepPoint:
    """A step of some parameters on one device: what a set of providers is compared on."""

    spec: StepSpec
    case: StepBenchCase
    device: str
    setting: Setting = USUAL

    directions: tuple[Direction, ...] = ("step",)

    @property
    def op(self) -> str:
        """Name of the rule, as in "adamw"."""
        return self.spec.name.removesuffix("_step_")

    @property
    def cache(self) -> str:
        """Where its tensors are when a turn begins, as of `bench.summary.Row`."""
        return cache_state(self.case.in_cache, self.device)

    @property
    def too_large(self) -> str | None:
        """Why the device has no room for it, if it has none."""
        # Start, work, three results of float64 and the temporaries of comparing them, or a copy.
        return lacking(100 * self.case.numel, torch.device(self.device))

    @property
    def ceiling(self) -> str:
        """Who moves as many bytes and does nothing else."""
        return "copy" if torch.device(self.device).type == "cuda" else "stream"

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Other libraries that do this step on this device."""
        float_only = self.case.dtype == torch.float32 and self.case.state_dtype is None
        peers = PEERS.get(self.op, {}) if float_only else {}
        return peers_on(self.device, peers, self.case.kwargs)

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of all, installed or not."""
        names = ["eager", "foreach", "fused"]
        # Compiling a list takes a minute for a hundred tensors and does not merge their kernels.
        if len(self.case.shapes) == 1 and not self.case.options:
            names.append("compile")
        names.append("regops")
        if self.case.state_dtype is not None and self.case.dtype == torch.float32:
            names.append(FLOAT_STATES)
        return (*names, self.ceiling, *self.peers)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.case.dtype

    @property
    def size(self) -> str:
        """As in "16M-clip"."""
        return self.case.name

    def flops(self, direction: Direction) -> int:
        """It makes no products."""
        return 0

    def bytes_moved(self, direction: Direction) -> int:
        """Bytes that the step must read and write."""
        return self.spec.bytes_moved(self.case)

    def group(self, direction: Direction) -> str:
        """Name of the benchmark group, as in "adamw-step-float32-16M-clip-cpu"."""
        return self.setting.group(self.op, direction, self.dtype_name, self.case.name, self.device)

    @property
    def dtype_name(self) -> str:
        """As in "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def facts(self) -> dict[str, Any]:
        """What is on record beside the times."""
        return {
            "kwargs": dict(self.case.kwargs),
            "tensors": len(self.case.shapes),
            "numel": self.case.numel,
            "bytes_formula": self.spec.bytes_formula,
        }


class Workload:
    """What all providers of a point step.

    Attributes:
        start: Parameters and gradients as they are before the first step.
        params: Of whom each holds its gradient.
        masters: Their float32 copies, for those who step these in their place; or empty.
    """

    def __init__(self, point: StepPoint) -> None:
        self.start: StepCall = make_call(point.spec, point.case, point.case.dtype, point.device)
        self.params = [torch.nn.Parameter(param.clone()) for param in self.start.params]
        for param, grad in zip(self.params, self.start.grads, strict=True):
            param.grad = grad.clone()
        self.masters: list[torch.nn.Parameter] = []
        if "masters" in self.start.kwargs:
            self.masters = [torch.nn.Parameter(one.clone()) for one in self.start.kwargs["masters"]]
            for master in self.masters:
                master.grad = torch.zeros_like(master)
        lists = dict(zip(point.spec.states, self.start.states, strict=True))
        lists["emas"] = self.start.kwargs.get("emas", [])
        self._shared = {
            (name.removesuffix("s"), tensors[0].dtype): tensors
            for name, tensors in lists.items()
            if tensors
        }

    def shared(self, name: str, dtype: torch.dtype) -> list[Tensor]:
        """State under a name, a tensor for each parameter."""
        if (name, dtype) not in self._shared:
            self._shared[name, dtype] = [
                torch.zeros(one.shape, dtype=dtype, device=one.device) for one in self.params
            ]
        return self._shared[name, dtype]

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """Has an optimizer make its state, and gives it what is shared in that one's place."""
        optimizer.step()
        for index, param in enumerate(optimizer.param_groups[0]["params"]):
            state = optimizer.state[param]
            for name, value in state.items():
                if name == "step":
                    value.zero_()
                elif isinstance(value, Tensor) and value.shape == param.shape:
                    state[name] = self.shared(name, value.dtype)[index]

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the start; state becomes 0, and masters their parameters."""
        of_start = self.start.kwargs.get("masters", self.start.params)
        for (name, _), tensors in self._shared.items():
            for tensor, begin in zip(tensors, of_start, strict=True):
                if name == "master_param":
                    tensor.copy_(begin)
                else:
                    tensor.zero_()
        for param, begin in zip(self.params, self.start.params, strict=True):
            param.copy_(begin)
        for master, begin in zip(self.masters, of_start, strict=False):
            master.copy_(begin)

    @torch.no_grad()
    def fill_gradients(self, factor: float) -> None:
        """Those of the start, times a power of 2."""
        for param, begin in zip(self.params, self.start.grads, strict=True):
            assert param.grad is not None
            param.grad.copy_(begin).mul_(factor)
