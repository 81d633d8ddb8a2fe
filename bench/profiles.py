"""How much a run measures: a smoke test, the default, everything, or what is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from bench.ceilings import CeilingPoint, CeilingSpec
from bench.providers import Point
from bench.setting import USUAL, Setting
from bench.steps import StepPoint
from regops.testing import BenchCase, OpSpec, StepBenchCase, StepSpec

AnyPoint = Point | StepPoint | CeilingPoint
AnySpec = OpSpec | StepSpec | CeilingSpec


@dataclass(frozen=True)
class Selection:
    """What was asked for by name, if anything: it is timed whatever the profile's limits are.

    Attributes:
        ops: Names of ops, as in "dropout"; none for all.
        sizes: Names of sizes, as in "16M"; none for the profile's.
        dtypes: Names of types, as in "float32"; none for the profile's.
        devices: As in "cpu" or "cuda:1".
        providers: Names, as in "eager"; none for all.
    """

    ops: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    providers: tuple[str, ...] = ()


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
        examples: Those trained end to end, with their arguments.
        scaling: Whether some sizes are timed with fewer threads too, and small ones as CUDA graphs.
        patience_s: Seconds of a whole run for timing again what others disturbed.
        max_rounds: The most rounds, for sizes that would fit thousands into the budget.
    """

    name: str
    dtypes: tuple[torch.dtype, ...]
    smallest: int
    largest: Mapping[str, int]
    budget_s: float
    min_rounds: int
    examples: Mapping[str, tuple[str, ...]]
    scaling: bool = True
    patience_s: float = 60.0
    max_rounds: int = 200

    def points(self, spec: AnySpec, selection: Selection) -> Iterator[AnyPoint]:
        """What this profile measures of an op, a step or the machine: smallest first."""
        for device in selection.devices:
            for point in self._candidates(spec, selection, device):
                yield from (replace(point, setting=setting) for setting in self._settings(point))

    def _candidates(self, spec: AnySpec, selection: Selection, device: str) -> Iterator[AnyPoint]:
        dtypes = tuple(getattr(torch, name) for name in selection.dtypes) or self.dtypes
        if isinstance(spec, CeilingSpec):
            yield from spec.points(dtypes, device)
            return
        largest = self.largest[torch.device(device).type]
        for dtype in dtypes:
            for point in _points(spec, dtype, device):
                if selection.sizes:
                    if point.case.name in selection.sizes:
                        yield point
                elif self.smallest <= _elements(point.case) <= largest:
                    yield point

    def _settings(self, point: AnyPoint) -> Iterator[Setting]:
        yield USUAL
        if not self.scaling or isinstance(point, CeilingPoint):
            return
        if torch.device(point.device).type == "cuda":
            # A step is not among them: torch's optimizers are replayed only if they were made so.
            if isinstance(point, Point) and point.case.in_cache:
                yield Setting(graph=True)
        elif point.case.scaling and point.dtype == torch.float32:
            most = torch.get_num_threads()
            yield from (Setting(1 << power) for power in range(16) if 1 << power < most)


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

_SHORT_EXAMPLES = {"digits": ("--epochs=2",)}
_EXAMPLES = {
    "digits": (),
    "char_lm": ("--steps=40",),
    "convnet": (),
}

# The largest CPU size of the default is the first whose buffers (128 MiB in float32) exceed any
# last-level cache but a server socket's. On CUDA 256M elements are 0.5-1 GiB a buffer, so that the
# launch and the tail of the last wave are below a percent of the time; models have more parameters.
PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "smoke",
            (torch.float32,),
            1 << 16,
            {"cpu": _MEGA, "cuda": _MEGA},
            budget_s=0.2,
            min_rounds=3,
            examples=_SHORT_EXAMPLES,
            scaling=False,
            patience_s=5.0,
        ),
        Profile(
            "default",
            _BOTH,
            1,
            {"cpu": 16 * _MEGA, "cuda": 2048 * _MEGA},
            budget_s=2.0,
            min_rounds=7,
            examples=_EXAMPLES,
        ),
        Profile(
            "full",
            _ALL,
            1,
            {"cpu": 1024 * _MEGA, "cuda": 2048 * _MEGA},
            budget_s=5.0,
            min_rounds=15,
            examples=_EXAMPLES,
        ),
    )
}
