"""Cases of SGDW's step."""

from __future__ import annotations

from typing import Any

import torch

import regops.functional
import regops.reference
from regops.testing import StepBenchCase, StepCase, StepSpec, step_bench_cases, step_bytes
from regops.testing._step_cases import EQUAL, NEAR, OPTIONS, SHAPES, layout_cases, option_grid

_STATES = ("momentum_buffers",)
_RULE = {"lr": 0.05, "weight_decay": 0.1}
_MOMENTUM = {"momentum": 0.9}


def _case(name: str, **fields: Any) -> StepCase:
    options = {**_RULE, **fields.pop("kwargs", {})}
    shapes = fields.pop("shapes", SHAPES)
    empty = () if options.get("momentum") else _STATES
    return StepCase(name, shapes, options, empty, **fields)


def _with_momentum(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "kwargs": {**_MOMENTUM, **fields.get("kwargs", {})}}


def _bytes_moved(case: StepBenchCase) -> int:
    return step_bytes(_STATES, case)


spec = StepSpec(
    name="sgdw_step_",
    functional=regops.functional.sgdw_step_,
    reference=regops.reference.sgdw_step_,
    states=_STATES,
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    cases=(
        _case("plain"),
        _case("momentum", kwargs=_MOMENTUM),
        _case("dampening", kwargs={**_MOMENTUM, "dampening": 0.5}),
        _case("nesterov", kwargs={**_MOMENTUM, "nesterov": True}),
        *(_case(name, **_with_momentum(fields)) for name, fields in OPTIONS.items()),
        *(_case(name, **_with_momentum(fields)) for name, fields in layout_cases().items()),
    ),
    grid=tuple(
        _case(f"{name}{suffix}", **{**fields, "kwargs": {**fields["kwargs"], **rule}})
        for name, fields in option_grid().items()
        for suffix, rule in {"": {}, "-nesterov": {**_MOMENTUM, "nesterov": True}}.items()
        if rule or not fields["state_dtype"]  # without momentum there is no state
    ),
    bench_cases=step_bench_cases(
        {**_MOMENTUM, "lr": 1e-3, "weight_decay": 0.1},
        (),
        {},
        (
            "64",
            "1x4096",
            "16x4096",
            "128x4096",
            "1M",
            "1000x4096",
            "16M",
            "16M-clip",
            "1G",
            "GPT1.3B",
            "GPT1.3B-clip",
        ),
    ),
    tolerance=EQUAL,
    rounded=NEAR,
    bytes_moved=_bytes_moved,
    bytes_formula=(
        "read and write parameter and momentum buffer, read gradient: 20 bytes an fp32 element; "
        "+4 with clipping, +4 with zero_grad, +8 with an average"
    ),
)
