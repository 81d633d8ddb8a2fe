"""Parameters and moments of 16 bits, beside the oracle and what they are for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import regops.random
import regops.reference
from regops.optim import SGDW, AdamW
from tests.optimizer_runs import assert_same, make_params, run


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("master", ["none", "fp32", "kahan", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_steps_are_the_oracles(
    dtype: torch.dtype, master: str, state_dtype: torch.dtype | None
) -> None:
    options: dict[str, Any] = {"master": master, "gradient_noise": (0.1, 0.55)}
    params = make_params(dtype)
    expected = [param.detach().clone() for param in params]
    key = regops.random.key(3, 4)
    optimizer = AdamW(params, lr=0.1, state_dtype=state_dtype, key=key, ema_decay=0.9, **options)
    of_moments = state_dtype or torch.float32
    moments = [[torch.zeros_like(w, dtype=of_moments) for w in expected] for _ in range(2)]
    steps = [torch.zeros(()) for _ in expected]
    masters: list[Tensor] = []
    if dtype != torch.float32 and master in ("fp32", "kahan"):
        fresh = {"fp32": lambda w: w.float().clone(), "kahan": torch.zeros_like}[master]
        masters = [fresh(w) for w in expected]
    if dtype == torch.float32:
        options["master"] = "none"
    emas = [w.float().clone() for w in expected]
    for step in range(3):
        run(params, optimizer, [step])
        grads = [param.grad for param in params if param.grad is not None]
        regops.reference.adamw_step_(
            expected,
            grads,
            *moments,
            [],
            steps,
            lr=0.1,
            key=key,
            masters=masters,
            emas=emas,
            ema_decay=0.9,
            **options,
        )
    # The oracle's rounding differs in the last bit: then a stochastic one may fall otherwise.
    tolerance = {"rtol": 2**-6, "atol": 2**-7} if state_dtype or dtype != torch.float32 else {}
    for param, other in zip(params, expected, strict=True):
        torch.testing.assert_close(param.detach(), other, **tolerance)


@pytest.mark.parametrize("master", ["fp32", "kahan", "stochastic"])
def test_small_steps_are_not_lost_in_low_precision(master: str) -> None:
    """A step is a hundredth of what bfloat16 resolves at 1: plain steps stand still."""
    moved = {}
    for each in ("none", master):
        param = Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = SGDW([param], lr=2.0**-14, master=each)
        for _ in range(128):
            param.grad = torch.ones_like(param)
            optimizer.step()
        moved[each] = 1.0 - param.detach().double().mean().item()
    assert moved["none"] == 0.0
    assert moved[master] == pytest.approx(128 * 2.0**-14, rel=0.05)


def test_a_parameter_changed_by_others_overrides_its_master() -> None:
    param = Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = SGDW([param], lr=0.5, master="fp32")
    run([param], optimizer, [0])
    with torch.no_grad():
        param.fill_(3.0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert_same([param], [torch.full((4,), 2.5, dtype=torch.bfloat16)])
    assert_same([optimizer.state[param]["master_param"]], [torch.full((4,), 2.5)])
