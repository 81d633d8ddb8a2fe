"""The table of cases that tests and benchmarks share.

One module per op (`regops/testing/<op>.py`) holds an `OpSpec` named `spec`: how to call the op, its
reference and torch's version, on which inputs, to what tolerance and why, and how many bytes the
operation must move. `specs()` finds them all, so a new op is tested and timed by adding data.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Direction = Literal["forward", "backward", "full"]
Layout = Literal[
    "contiguous",
    "channels_last",
    "transposed",
    "swapped_outer",
    "reversed",
    "misaligned",
    "strided",
    "expanded",
]


@dataclass(frozen=True)
class Tolerance:
    """How far a result may stand from its reference, and why no less can be asked."""

    rtol: float
    atol: float
    reason: str


@dataclass(frozen=True)
class Case:
    """One set of inputs on which an op must agree with its reference.

    Attributes:
        name: Shows in test ids.
        shape: Shape of the main input.
        kwargs: Keyword arguments of the op, the same for op, reference and torch.
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
        name: Shows in reports, as in "16M".
        shape: Shape of the main input.
        kwargs: Keyword arguments of the op.
        in_cache: True when input and output together are far smaller than the last-level cache, so
            that no share of memory bandwidth can be read from the time.
    """

    name: str
    shape: tuple[int, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    in_cache: bool = False

    @property
    def numel(self) -> int:
        """Number of elements of the main input."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class OpSpec:
    """All that the generic tests and benchmarks know about an op.

    Attributes:
        name: Stem of the op's files in every layer.
        functional: The public function, called as `functional(input, **kwargs)`. It and
            `reference` also take `key=`, for ops that draw random numbers.
        reference: The same op in plain PyTorch.
        eager: torch's own op, with the same arguments less `key`.
        schemas: Names of the dispatcher ops (`torch.ops.regops.<name>`) behind it.
        keyed: Whether the op draws random numbers.
        dtypes: Types of the main input.
        cases: For tests.
        bench_cases: For benchmarks.
        tolerance: For each dtype, between the op and its reference.
        bytes_moved: Bytes that must be read and written, from (numel, itemsize, direction).
        bytes_formula: The same in words, printed in reports.
    """

    name: str
    functional: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    schemas: tuple[str, ...]
    keyed: bool
    dtypes: tuple[torch.dtype, ...]
    cases: tuple[Case, ...]
    bench_cases: tuple[BenchCase, ...]
    tolerance: Mapping[torch.dtype, Tolerance]
    bytes_moved: Callable[[int, int, Direction], int]
    bytes_formula: str


def specs() -> dict[str, OpSpec]:
    """Every op's spec by name, found by listing this package's modules."""
    modules = [
        importlib.import_module(f"{__name__}.{found.name}")
        for found in pkgutil.iter_modules(__path__)
    ]
    return {module.spec.name: module.spec for module in modules}


def make_input(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    layout: Layout = "contiguous",
    seed: int = 0,
) -> Tensor:
    """A tensor of standard normal values, equal by logical index for every layout.

    Args:
        shape: Its shape.
        dtype: Its type; the values are drawn in float32 and rounded to it.
        device: Where it ends; the values are drawn on the CPU, so they do not depend on it.
        layout: "contiguous"; "channels_last" (4-d); "transposed" (memory order of the last two
            dimensions swapped); "swapped_outer" (of the first two); "reversed" (of all);
            "misaligned" (storage begins one element past an allocation); "strided" (every second
            element of a larger tensor); "expanded" (stride 0 in the first dimension).
        seed: Of the values.

    Returns:
        A leaf tensor that does not require grad.
    """
    generator = torch.Generator().manual_seed(seed)
    if layout == "expanded":
        row = torch.randn(shape[1:], generator=generator).to(dtype).to(device)
        return row.expand(shape)
    values = torch.randn(shape, generator=generator).to(dtype).to(device)
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "swapped_outer":
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "reversed":
        backwards = tuple(reversed(range(values.dim())))
        return values.permute(backwards).contiguous().permute(backwards)
    if layout == "misaligned":
        storage = torch.empty(values.numel() + 1, dtype=dtype, device=device)
        return storage[1:].view(shape).copy_(values)
    if layout == "strided":
        storage = torch.empty((*shape[:-1], 2 * shape[-1]), dtype=dtype, device=device)
        return storage[..., ::2].copy_(values)
    return values
