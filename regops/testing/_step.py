"""Cases of optimizer steps: what a step is called with, made from data.

An op of `OpSpec` returns what it makes of one input; a step returns nothing and writes many
tensors. So steps have a table of their own kind, and `StepCall` holds all that a call touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import regops.random
from regops.testing._compare import Tolerance, assert_equal, assert_near
from regops.testing._inputs import Layout, lay_out, make_input

Shapes = tuple[tuple[int, ...], ...]

KEY_SEED, KEY_OFFSET = 0x0123456789ABCDEF, 0xFEDCBA9876543210  # all words and both sign bits in use


@dataclass(frozen=True)
class StepCase:
    """One set of tensors and options on which a step must agree with its reference.

    Attributes:
        name: Shows in test ids.
        shapes: Of the parameters.
        kwargs: Keyword arguments of the step, less tensors: `masters` and `emas` are made where
            `master` and `ema_decay` ask for them, `key` where random numbers are drawn;
            `grad_scale` and `found_inf` are numbers here.
        empty: Names of those of the spec's state lists that are empty in this case.
        grad_dtype: Of the gradients; None: the parameters'.
        state_dtype: Of the states; None: the type computed in.
        layouts: Of parameters, gradients and states (masters and emas lie as states), where a shape
            has the dimensions for it.
        rounded: Whether the case computes something that its reference does in another order or
            precision, so that its results are near and not equal; see `StepSpec.rounded`.
    """

    name: str
    shapes: Shapes
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    empty: tuple[str, ...] = ()
    grad_dtype: torch.dtype | None = None
    state_dtype: torch.dtype | None = None
    layouts: tuple[Layout, Layout, Layout] = ("contiguous", "contiguous", "contiguous")
    rounded: bool = False


@dataclass(frozen=True)
class StepBenchCase(StepCase):
    """One point of a benchmark: a size, options and types.

    Attributes:
        size: As in "64", "16M" or "1000x4096"; `name`, which shows in reports, has the options too.
        options: What is asked for beyond the plain step, in words; "" for that.
        dtype: Of the parameters.
        in_cache: True when all tensors together are far smaller than the last-level cache.
        scaling: As of `BenchCase`.
    """

    size: str = ""
    options: str = ""
    dtype: torch.dtype = torch.float32
    in_cache: bool = False
    scaling: bool = False

    @property
    def numel(self) -> int:
        """Number of elements of all parameters."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)


@dataclass(frozen=True)
class StepSpec:
    """All that the generic tests and benchmarks know about an optimizer step.

    Attributes:
        name: Stem of the step's schema: `torch.ops.regops.<name>`.
        functional: The public function, called as `functional(params, grads, *states, state_steps,
            **kwargs)`.
        reference: The same in plain PyTorch.
        states: Names of its state lists, in order.
        dtypes: Types of the parameters.
        cases: For tests.
        grid: Further cases, too many for a test each.
        bench_cases: For benchmarks.
        tolerance: Between step and reference on the CPU.
        rounded: For each dtype of the parameters, where a case is `rounded` and on devices that
            contract products and sums.
        bytes_moved: Bytes that one step must read and write.
        bytes_formula: The same in words, printed in reports.
        inexact: Types for which the reference itself rounds otherwise.
    """

    name: str
    functional: Callable[..., None]
    reference: Callable[..., None]
    states: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    cases: tuple[StepCase, ...]
    bench_cases: tuple[StepBenchCase, ...]
    tolerance: Tolerance
    rounded: Mapping[torch.dtype, Tolerance]
    bytes_moved: Callable[[StepBenchCase], int]
    bytes_formula: str
    grid: tuple[StepCase, ...] = ()
    inexact: tuple[torch.dtype, ...] = ()


@dataclass
class StepCall:
    """The arguments of a call, which it writes.

    Attributes:
        params: As of the step.
        grads: As of the step.
        states: One list for each of the spec's names.
        state_steps: As of the step.
        kwargs: Keyword arguments, among them `masters`, `emas` and `key`.
    """

    params: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]
    state_steps: list[Tensor]
    kwargs: dict[str, Any]

    def run(self, step: Callable[..., None]) -> None:
        """Calls a step, or its reference."""
        step(self.params, self.grads, *self.states, self.state_steps, **self.kwargs)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the call may write, by a name that says which."""
        lists = {
            "param": self.params,
            "grad": self.grads,
            **{f"state {i}": state for i, state in enumerate(self.states)},
            "step": self.state_steps,
            "master": self.kwargs.get("masters", ()),
            "ema": self.kwargs.get("emas", ()),
        }
        return {f"{name} of {k}": one for name, each in lists.items() for k, one in enumerate(each)}

    def copy(self, layout: Layout | None = None) -> StepCall:
        """The same values in memory of their own: as they lie, or in another layout."""

        def copied(tensors: Any) -> list[Tensor]:
            if layout is not None:
                return [lay_out_if_possible(one.contiguous().clone(), layout) for one in tensors]
            return [
                torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t)
                for t in tensors
            ]

        kwargs = dict(self.kwargs)
        for name in ("masters", "emas"):
            if name in kwargs:
                kwargs[name] = copied(kwargs[name])
        return StepCall(
            copied(self.params),
            copied(self.grads),
            [copied(state) for state in self.states],
            [step.clone() for step in self.state_steps],
            kwargs,
        )

    def new_gradients(self, seed: int) -> None:
        """Fills the gradients with other values, the same by logical index in every layout."""
        for k, grad in enumerate(self.grads):
            grad.copy_(make_input(tuple(grad.shape), grad.dtype, seed=1000 * seed + k))


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The type that a step computes in, and keeps states in: float64 of float64, or float32."""
    return torch.promote_types(dtype, torch.float32)


def lay_out_if_possible(values: Tensor, layout: Layout) -> Tensor:
    """`lay_out`, or the values as they are where they lack dimensions for it."""
    least = {"channels_last": 4, "transposed": 2, "swapped_outer": 2, "strided": 1}.get(layout, 0)
    most = 4 if layout == "channels_last" else 99
    return lay_out(values, layout) if least <= values.dim() <= most else values


def make_call(
    spec: StepSpec,
    case: StepCase,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> StepCall:
    """The arguments of a first step: parameters and gradients normal, states 0."""
    of_param, of_grad, of_state = case.layouts
    real = computed_in(dtype)
    half = dtype.itemsize == 2

    def zeros(kind: torch.dtype) -> list[Tensor]:
        return [
            lay_out_if_possible(torch.zeros(shape, dtype=kind, device=device), of_state)
            for shape in case.shapes
        ]

    def normal(kind: torch.dtype, layout: Layout, first_seed: int) -> list[Tensor]:
        return [
            lay_out_if_possible(make_input(shape, kind, device, seed=first_seed + k), layout)
            for k, shape in enumerate(case.shapes)
        ]

    kwargs = dict(case.kwargs)
    params = normal(dtype, of_param, 0)
    if half and kwargs.get("master") == "fp32":
        kwargs["masters"] = zeros(torch.float32)
        for master, param in zip(kwargs["masters"], params, strict=True):
            master.copy_(param)
    if half and kwargs.get("master") == "kahan":
        kwargs["masters"] = zeros(dtype)
    if kwargs.get("ema_decay") is not None:
        kwargs["emas"] = zeros(real)
    for name in ("grad_scale", "found_inf"):
        if name in kwargs:
            kwargs[name] = torch.tensor(kwargs[name], dtype=torch.float32, device=device)
    stochastic = half and kwargs.get("master") == "stochastic"
    if stochastic or case.state_dtype == torch.bfloat16 or kwargs.get("gradient_noise"):
        kwargs["key"] = regops.random.key(KEY_SEED, KEY_OFFSET, device)
    return StepCall(
        params,
        normal(case.grad_dtype or dtype, of_grad, 1000),
        [[] if name in case.empty else zeros(case.state_dtype or real) for name in spec.states],
        [torch.zeros((), device=device) for _ in case.shapes],
        kwargs,
    )


def step_tolerance(
    spec: StepSpec, case: StepCase, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tolerance:
    """How far a case of a table may stand from its reference, for parameters of a type."""
    if torch.device(device).type == "cpu" and not case.rounded and dtype not in spec.inexact:
        return spec.tolerance
    if case.state_dtype == torch.bfloat16:
        return spec.rounded[torch.bfloat16]  # one rounded to the other side is off by its own ulp
    if dtype == torch.float64 and "gradient_noise" in case.kwargs:
        return spec.rounded[torch.float32]  # of which normal numbers are
    return spec.rounded[dtype]


def assert_step_close(tolerance: Tolerance, actual: StepCall, expected: StepCall) -> None:
    """Raises AssertionError, naming the tensor, unless all that two calls wrote is as near."""
    written, wanted = actual.tensors(), expected.tensors()
    if not tolerance.exact and actual.kwargs.get("master") == "kahan":
        # A parameter rounded to the other side has a compensation of the other sign.
        for tensors in (written, wanted):
            for name in [name for name in tensors if name.startswith("master")]:
                tensors[name] = tensors[name] + tensors[name.replace("master", "param")].float()
    for name, got in written.items():
        if tolerance.exact:
            assert_equal(name, got, wanted[name])
        else:
            assert_near(name, got, wanted[name], tolerance.rtol, tolerance.of_largest)


def step_bytes(spec_states: tuple[str, ...], case: StepBenchCase) -> int:
    """Bytes that one step must read and write, 0-d tensors left out.

    Parameters, states, masters and averages are read and written, gradients read; once more for
    their norm; and written where they are cleared or unscaled.
    """
    real = computed_in(case.dtype).itemsize
    grad = (case.grad_dtype or case.dtype).itemsize
    state = case.state_dtype.itemsize if case.state_dtype else real
    options = case.kwargs
    each = 2 * case.dtype.itemsize + grad + 2 * state * (len(spec_states) - len(case.empty))
    if options.get("max_grad_norm") is not None:
        each += grad
    if options.get("zero_grad") or options.get("grad_scale") is not None:
        each += grad
    if case.dtype.itemsize == 2:
        each += {"fp32": 8, "kahan": 4}.get(options.get("master", "none"), 0)
    if options.get("ema_decay") is not None:
        each += 2 * real
    return each * case.numel


# Tensors of a GPT of 1.3B parameters (24 layers of width 2048, 16 heads), as its modules list them.
_WIDTH = 2048
_GPT_LAYER: Shapes = (
    *((_WIDTH,),) * 2,
    (3 * _WIDTH, _WIDTH),
    (3 * _WIDTH,),
    (_WIDTH, _WIDTH),
    *((_WIDTH,),) * 3,
    (4 * _WIDTH, _WIDTH),
    (4 * _WIDTH,),
    (_WIDTH, 4 * _WIDTH),
    (_WIDTH,),
)
GPT: Shapes = ((50304, _WIDTH), (2048, _WIDTH), *_GPT_LAYER * 24, (_WIDTH,), (_WIDTH,))


def step_bench_cases(
    plain: Mapping[str, Any],
    empty: tuple[str, ...],
    cleared: Mapping[str, Any],
    names: tuple[str, ...],
) -> tuple[StepBenchCase, ...]:
    """The sizes and options that a rule is timed on.

    Args:
        plain: Options of the plain step.
        empty: As of `StepCase`.
        cleared: Options of steps whose gradients stay 0 once they are cleared: moments that decay
            so slowly that they become denormal, which would slow everyone, in no benchmark.
        names: Of the cases, as in "16M" or "16M-clip": a size, and an option behind it.
    """
    sizes: dict[str, tuple[Shapes, bool]] = {
        "64": (((64,),), True),
        "1M": (((1 << 20,),), True),
        # The number of tensors tells what each costs.
        "1x4096": (((4096,),), True),
        "16x4096": (((4096,),) * 16, True),
        "128x4096": (((4096,),) * 128, True),
        "1000x4096": (((4096,),) * 1000, False),
        "16M": (((1 << 24,),), False),
        "1G": (((10**9,),), False),
        "GPT1.3B": (GPT, False),
    }
    clip = {"max_grad_norm": 1.0}
    everything = {**cleared, **clip, "zero_grad": True, "ema_decay": 0.999}
    single, half = torch.float32, torch.bfloat16
    # In words; options, and the types of parameters and states.
    variants: dict[str, tuple[str, dict[str, Any], torch.dtype, torch.dtype | None]] = {
        "": ("", {}, single, None),
        "clip": ("clipping", clip, single, None),
        "clip-zero-ema": ("clipping, cleared gradients, average", everything, single, None),
        "bf16-states": ("bfloat16 moments", {}, single, half),
        "bf16-all": ("bfloat16 parameters and moments", {}, half, half),
        "bf16-masters": ("bfloat16 parameters, float32 masters", {"master": "fp32"}, half, None),
    }
    cases = []
    for name in names:
        size, _, variant = name.partition("-")
        shapes, in_cache = sizes[size]
        options, kwargs, dtype, state_dtype = variants[variant]
        cases.append(
            StepBenchCase(
                name=name,
                shapes=shapes,
                kwargs={**plain, **kwargs},
                empty=empty,
                state_dtype=state_dtype,
                size=size,
                options=options,
                dtype=dtype,
                in_cache=in_cache,
                scaling=name in ("16M", "1000x4096"),
            )
        )
    return tuple(cases)
