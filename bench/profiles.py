"""How much a run measures: a smoke test, the default, or everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from bench.providers import Point
from bench.steps import StepPoint
from regops.testing import BenchCase, OpSpec, StepBenchCase, StepSpec


@dataclass(frozen=True)
class Profile:
    """Which points to measure, and for how long.

    Attributes:
        name: As given to `--bench-profile`.
        dtypes: Types of the main input, where the op has them.
        smallest: Elements of the smallest case, or what the case gives as such.
        largest: Elements of the largest case, likewise, by kind of device.
        budget_s: Seconds of timing for one op, direction, dtype and size, all providers together.
        min_rounds: Durations recorded for every provider, whatever the budget says; three of
            long calls whose share of it fewer fill.
        epochs: Of the training example.
        max_rounds: The most rounds, for sizes that would fit thousands into the budget.
    """

    name: str
    dtypes: tuple[torch.dtype, ...]
    smallest: int
    largest: Mapping[str, int]
    budget_s: float
    min_rounds: int
    epochs: int
    max_rounds: int = 200

    def points(self, spec: OpSpec | StepSpec, device: str) -> Iterator[Point | StepPoint]:
        """What this profile measures of an op or a step on a device, smallest first."""
        largest = self.largest[torch.device(device).type]
        for dtype in self.dtypes:
            for point in _points(spec, dtype, device):
                if self.smallest <= _elements(point.case) <= largest:
                    yield point


def _points(
    spec: OpSpec | StepSpec, dtype: torch.dtype, device: str
) -> Iterator[Point | StepPoint]:
    if isinstance(spec, StepSpec):
        yield from (
            StepPoint(spec, case, device) for case in spec.bench_cases if case.dtype == dtype
        )
    elif dtype in spec.dtypes:
        yield from (
            Point(spec, case, dtype, device)
            for case in spec.bench_cases
            if case.dtypes is None or dtype in case.dtypes
        )


def _elements(case: BenchCase | StepBenchCase) -> int:
    return (case.elements if isinstance(case, BenchCase) else 0) or case.numel


_MEGA = 1 << 20
_BOTH = (torch.float32, torch.bfloat16)
_ALL = (*_BOTH, torch.float16)

# The largest CPU size of the default is the first whose buffers (128 MiB in float32) exceed any
# last-level cache but a server socket's. On CUDA 256M elements are 0.5-1 GiB a buffer, so that the
# launch and the tail of the last wave are below a percent of the time; models have more parameters.
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", (torch.float32,), 1 << 16, {"cpu": _MEGA, "cuda": _MEGA}, 0.2, 3, 2),
        Profile("default", _BOTH, 1, {"cpu": 16 * _MEGA, "cuda": 2048 * _MEGA}, 2.0, 7, 40),
        Profile("full", _ALL, 1, {"cpu": 64 * _MEGA, "cuda": 2048 * _MEGA}, 5.0, 15, 40),
    )
}
