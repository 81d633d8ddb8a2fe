"""Cases of AdamW's step."""

from __future__ import annotations

from typing import Any

import torch

import regops.functional
import regops.reference
from regops.testing import StepBenchCase, StepCase, StepSpec, step_bench_cases, step_bytes
from regops.testing._step_cases import EQUAL, NEAR, OPTIONS, SHAPES, layout_cases, option_grid

_STATES = ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
_PLAIN = ("max_exp_avg_sqs",)  # the list that is empty without amsgrad
_RULE = {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}


def _case(name: str, amsgrad: bool = False, **fields: Any) -> StepCase:
    options = {**_RULE, **fields.pop("kwargs", {})}
    shapes = fields.pop("shapes", SHAPES)
    return StepCase(name, shapes, options, () if amsgrad else _PLAIN, **fields)


def _bytes_moved(case: StepBenchCase) -> int:
    return step_bytes(_STATES, case)


spec = StepSpec(
    name="adamw_step_",
    functional=regops.functional.adamw_step_,
    reference=regops.reference.adamw_step_,
    states=_STATES,
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    cases=(
        _case("plain"),
        _case("defaults", kwargs={"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "lr": 1e-3}),
        _case("amsgrad", amsgrad=True),
        _case("amsgrad-bfloat16-states", amsgrad=True, state_dtype=torch.bfloat16),
        _case("no-decay", kwargs={"weight_decay": 0.0}),
        _case("no-momentum", kwargs={"beta1": 0.0, "beta2": 0.0}),
        *(_case(name, **fields) for name, fields in OPTIONS.items()),
        *(_case(name, **fields) for name, fields in layout_cases().items()),
    ),
    grid=tuple(
        _case(f"{name}{'-amsgrad' if amsgrad else ''}", amsgrad, **fields)
        for name, fields in option_grid().items()
        for amsgrad in (False, True)
    ),
    # Torch's float64 root is often off by an ulp; of float32 the reference takes it in float64.
    inexact=(torch.float64,),
    bench_cases=step_bench_cases(
        {"lr": 1e-3, "weight_decay": 0.1},
        _PLAIN,
        {"beta1": 0.999, "beta2": 0.999},
        (
            "64",
            "1x4096",
            "16x4096",
            "16x4096-clip-zero-ema",
            "128x4096",
            "1M",
            "1000x4096",
            "1000x4096-clip",
            "1000x4096-clip-zero-ema",
            "16M",
            "16M-clip",
            "16M-clip-zero-ema",
            "16M-bf16-states",
            "16M-bf16-all",
            "16M-bf16-masters",
            "1G",
            "GPT1.3B",
            "GPT1.3B-clip",
        ),
    ),
    tolerance=EQUAL,
    rounded=NEAR,
    bytes_moved=_bytes_moved,
    bytes_formula=(
        "read and write parameter, exp_avg and exp_avg_sq, read gradient: 28 bytes an fp32 "
        "element; +4 with clipping, +4 with zero_grad, +8 with an average"
    ),
)
