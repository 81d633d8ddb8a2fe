"""The table of cases that tests and benchmarks share.

One module per op (`regops/testing/<op>.py`) holds an `OpSpec` named `spec`: how to call the op, its
reference and torch's version, on which inputs, to what tolerance and why, and how many bytes the
operation must move. `specs()` finds them all, so a new op is tested and timed by adding data. An
optimizer step, which writes many tensors, has a `StepSpec` instead, found by `step_specs()`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from regops.testing._compare import (
    Results,
    Tolerance,
    assert_close,
    differentiated,
    outputs_of,
    reference_copies,
    results,
)
from regops.testing._inputs import Layout, lay_out, make_input
from regops.testing._step import (
    StepBenchCase,
    StepCall,
    StepCase,
    StepSpec,
    assert_step_close,
    make_call,
    step_bench_cases,
    step_bytes,
    step_tolerance,
)

__all__ = [
    "BenchCase",
    "Case",
    "Direction",
    "Layout",
    "OpSpec",
    "Results",
    "StepBenchCase",
    "StepCall",
    "StepCase",
    "StepSpec",
    "Tolerance",
    "assert_close",
    "assert_step_close",
    "differentiated",
    "lay_out",
    "make_call",
    "make_input",
    "outputs_of",
    "reference_copies",
    "results",
    "specs",
    "step_bench_cases",
    "step_bytes",
    "step_specs",
    "step_tolerance",
]

# "forward" records the graph, "full" is that and backward; "inference" is forward under no_grad;
# "step" is an optimizer's.
Direction = Literal["forward", "backward", "full", "inference", "step"]


@dataclass(frozen=True)
class Case:
    """One set of inputs on which an op must agree with its reference.

    Attributes:
        name: Shows in test ids.
        shape: Shape of the main input.
        kwargs: Keyword arguments of the op, the same for op, reference and torch; or plain data of
            which the spec's `arguments` makes them.
        layout: Memory layout of the main input; see `make_input`.
    """

    name: str
    shape: tuple[int, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = "contiguous"


@dataclass(frozen=True)
class BenchCase:
    """One point of a benchmark: a size, and whether its buffers stay in the CPU's cache.

    Attributes:
        name: Shows in reports, as in "16M" or "512x32768".
        shape: Shape of the main input.
        kwargs: As of `Case`.
        in_cache: True when input and output together are far smaller than the last-level cache, so
            that no share of memory bandwidth can be read from the time.
        ceiling: Whose time is the least that can be hoped for: a copy's, of as many bytes as the op
            must move, or that of one of the spec's `ceilings`.
        elements: By which profiles choose. 0: those of the main input; more where that says little
            of how long a call takes, as of a layer whose weights are larger.
        dtypes: Those timed; by default all that the profile has.
        directions: Those timed; by default the spec's.
        scaling: Whether it is timed with fewer threads too.
    """

    name: str
    shape: tuple[int, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    in_cache: bool = False
    ceiling: str = "copy"
    elements: int = 0
    dtypes: tuple[torch.dtype, ...] | None = None
    directions: tuple[Direction, ...] = ()
    scaling: bool = False

    @property
    def numel(self) -> int:
        """Number of elements of the main input."""
        return torch.Size(self.shape).numel()


def plain_arguments(
    case: Case | BenchCase, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """A case's keyword arguments as they stand."""
    return dict(case.kwargs)


@dataclass(frozen=True)
class OpSpec:
    """All that the generic tests and benchmarks know about an op.

    Attributes:
        name: Stem of the op's files in every layer.
        functional: The public function, called as `functional(input, **arguments)`; it returns a
            tensor or a tuple of tensors. It and `reference` also take `key=`, for ops that draw
            random numbers.
        reference: The same op in plain PyTorch.
        eager: torch's own op, with the same arguments less `key`.
        schemas: Names of the dispatcher ops (`torch.ops.regops.<name>`) behind it.
        keyed: Whether the op draws random numbers.
        dtypes: Types of the main input.
        cases: For tests. The options of the first are those of the tests of layouts and compiling.
        bench_cases: For benchmarks.
        tolerance: For each dtype of the main input, between the op and its reference.
        bytes_moved: Bytes that must be read and written, from (case, itemsize, direction).
        bytes_formula: The same in words, printed in reports.
        arguments: Makes the keyword arguments of a call from (case, dtype, device), always of the
            same values. Tensors among them that require grad are differentiated as the input is.
        elementwise: Whether the output has the input's shape and strides, and its values depend on
            no layout, to the bit.
        reproducible: Whether results do not depend on the thread count, to the bit.
        layout_shape: Shape on which every layout is tried.
        grid: Further cases, too many for a test each: one test compares them with the reference.
        opcheck: Arguments of a dispatcher op from (its name, input, the call's keyword arguments);
            by default the input and those, in order.
        opcheck_cases: Names of the cases that are opchecked; by default every one of at most 2000
            elements.
        rival_tolerance: For other providers than regops in benchmarks; by default `tolerance`.
        directions: What benchmarks time.
        ceilings: What is left of the op without its regularization, by name: in benchmarks it shows
            the least time that the op can take. Called as `eager` is; it must equal the reference
            with `training=False`.
        flops: Operations of the matrix products that must be made, from (case, direction); None of
            an op without any.
    """

    name: str
    functional: Callable[..., Any]
    reference: Callable[..., Any]
    eager: Callable[..., Any]
    schemas: tuple[str, ...]
    keyed: bool
    dtypes: tuple[torch.dtype, ...]
    cases: tuple[Case, ...]
    bench_cases: tuple[BenchCase, ...]
    tolerance: Mapping[torch.dtype, Tolerance]
    bytes_moved: Callable[[BenchCase, int, Direction], int]
    bytes_formula: str
    arguments: Callable[[Case | BenchCase, torch.dtype, torch.device | str], dict[str, Any]] = (
        plain_arguments
    )
    elementwise: bool = False
    reproducible: bool = True
    layout_shape: tuple[int, ...] = (2, 24, 9, 16)
    grid: tuple[Case, ...] = ()
    opcheck: Callable[[str, Tensor, Mapping[str, Any]], tuple[Any, ...]] = (
        lambda _, input, arguments: (input, *arguments.values())
    )
    opcheck_cases: tuple[str, ...] | None = None
    rival_tolerance: Mapping[torch.dtype, Tolerance] | None = None
    directions: tuple[Direction, ...] = ("forward", "backward", "full")
    ceilings: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    flops: Callable[[BenchCase, Direction], int] | None = None


def _modules() -> list[ModuleType]:
    return [
        importlib.import_module(f"{__name__}.{found.name}")
        for found in pkgutil.iter_modules(__path__)
        if not found.name.startswith("_")
    ]


def specs() -> dict[str, OpSpec]:
    """Every op's spec by name, found by listing this package's modules."""
    found = [module.spec for module in _modules() if isinstance(module.spec, OpSpec)]
    return {spec.name: spec for spec in found}


def step_specs() -> dict[str, StepSpec]:
    """Every optimizer step's spec by name, found likewise."""
    found = [module.spec for module in _modules() if isinstance(module.spec, StepSpec)]
    return {spec.name: spec for spec in found}
