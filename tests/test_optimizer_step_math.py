"""Optimizer steps against closed forms, the papers' claims and torch's optimizers.

Longer than other files since each option has a law of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regops.functional as RF
import regops.random
from regops.testing import StepCall, StepSpec, assert_step_close, make_input, step_specs
from regops.testing._step_cases import EQUAL

SPECS = step_specs()
ALL = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
REALS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
BOTH = [
    pytest.param(torch.bfloat16, torch.float32, id="bfloat16-with-float32-gradients"),
    pytest.param(torch.bfloat16, None, id="bfloat16"),
    pytest.param(torch.float16, None, id="float16"),
    pytest.param(torch.float32, None, id="float32"),
]


def _call(spec: StepSpec, params: list[Tensor], grads: list[Tensor], **options: Any) -> StepCall:
    """A first step of given tensors; SGDW without momentum unless it is asked for."""
    real = torch.promote_types(params[0].dtype, torch.float32)
    empty = ["max_exp_avg_sqs"]
    if not options.get("momentum"):
        empty.append("momentum_buffers")
    states = [
        [] if name in empty else [torch.zeros_like(param, dtype=real) for param in params]
        for name in spec.states
    ]
    steps = [torch.zeros(()) for _ in params]
    if options.get("ema_decay") is not None:
        options["emas"] = [torch.zeros_like(param, dtype=real) for param in params]
    return StepCall(params, grads, states, steps, options)


def _normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return make_input(shape, dtype, seed=seed)


# Decay.


@REALS
@ALL
def test_decay_alone_is_a_power(spec: StepSpec, dtype: torch.dtype) -> None:
    """(1 - lr wd)^t, each step's factor and product rounded once to the type."""
    start, lr, decay = _normal(300, dtype=dtype), 0.1, 0.3
    call = _call(spec, [start.clone()], [torch.zeros(300, dtype=dtype)], lr=lr, weight_decay=decay)
    expected = start.clone()
    for _ in range(50):
        call.run(spec.functional)
        expected *= torch.tensor(1 - lr * decay, dtype=torch.float64).to(dtype)
    assert torch.equal(call.params[0], expected)
    ulps = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        call.params[0].double(), start.double() * (1 - lr * decay) ** 50, rtol=ulps, atol=0
    )


def test_half_precision_with_master_decays_as_float32_does() -> None:
    spec = SPECS["adamw_step_"]
    start = _normal(300, dtype=torch.bfloat16)
    options = {"lr": 1e-3, "weight_decay": 0.1}
    half = _call(spec, [start.clone()], [torch.zeros_like(start)], master="fp32", **options)
    half.kwargs["masters"] = [start.float()]
    single = _call(spec, [start.float()], [torch.zeros(300)], **options)
    for _ in range(100):
        half.run(spec.functional)
        single.run(spec.functional)
    assert torch.equal(half.kwargs["masters"][0], single.params[0])
    assert torch.equal(half.params[0], single.params[0].bfloat16())


# l1.


@ALL
def test_l1_alone_reaches_exact_zeros_at_the_predicted_step(spec: StepSpec) -> None:
    """In ceil(|w| / (lr l1)) steps, and stays; the numbers here are sums of powers of two."""
    start = torch.arange(-40, 41).float() / 16
    call = _call(spec, [start.clone()], [torch.zeros(81)], lr=0.25, l1=0.5, weight_decay=0.0)
    for step in range(1, 25):
        call.run(spec.functional)
        left = (start.abs() - step / 8).clamp(min=0)
        assert torch.equal(call.params[0], start.sign() * left)
        zeros = torch.ceil(start.abs() * 8) <= step
        assert torch.equal(call.params[0] == 0, zeros)
    assert (call.params[0] == 0).all()


def test_l1_and_decay_find_the_elastic_nets_minimum() -> None:
    """Of |w - a|^2 / 2 + l1 |w| + wd |w|^2 / 2: sign(a) max(|a| - l1, 0) / (1 + wd)."""
    spec, target, l1, decay = SPECS["sgdw_step_"], _normal(500, dtype=torch.float64), 0.4, 0.7
    call = _call(spec, [torch.zeros_like(target)], [target], lr=0.2, l1=l1, weight_decay=decay)
    for _ in range(300):
        call.grads = [call.params[0] - target]
        call.run(spec.functional)
    expected = target.sign() * (target.abs() - l1).clamp(min=0) / (1 + decay)
    torch.testing.assert_close(call.params[0], expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(call.params[0] == 0, target.abs() <= l1)


# Torch's optimizers.


def _follows(
    spec: StepSpec, optimizer: Callable[..., torch.optim.Optimizer], amsgrad: bool, **options: Any
) -> None:
    """Ten steps beside one of torch's optimizers, in float64."""
    start = [_normal(4, 5, dtype=torch.float64, seed=k) for k in range(3)]
    theirs = [torch.nn.Parameter(one.clone()) for one in start]
    torchs = optimizer(theirs)
    call = _call(spec, start, [torch.zeros_like(one) for one in start], **options)
    if amsgrad:
        call.states[2] = [torch.zeros_like(one) for one in start]
    for step in range(10):
        call.new_gradients(step)
        for one, grad in zip(theirs, call.grads, strict=True):
            one.grad = grad.clone()
        torchs.step()
        call.run(spec.functional)
    for ours, other in zip(call.params, theirs, strict=True):
        torch.testing.assert_close(ours, other.data, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("decay", ["weight_decay", "l2"])
def test_adamw_is_torchs(decay: str, amsgrad: bool, maximize: bool) -> None:
    """Decoupled decay is `AdamW`'s, l2 is `Adam`'s."""
    kind = torch.optim.AdamW if decay == "weight_decay" else torch.optim.Adam
    _follows(
        SPECS["adamw_step_"],
        lambda params: kind(
            params, 0.1, (0.8, 0.95), 1e-6, 0.3, amsgrad, maximize=maximize, foreach=False
        ),
        amsgrad,
        **{"weight_decay": 0.0, decay: 0.3},
        lr=0.1,
        beta1=0.8,
        beta2=0.95,
        eps=1e-6,
        maximize=maximize,
    )


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    "momentum",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.4},
        {"momentum": 0.9, "nesterov": True},
    ],
    ids=["plain", "momentum", "dampening", "nesterov"],
)
def test_sgdw_is_torchs_sgd(momentum: dict[str, Any], maximize: bool) -> None:
    """Without decay; and l2 is its decay."""
    for l2 in (0.0, 0.3):
        _follows(
            SPECS["sgdw_step_"],
            lambda params, l2=l2: torch.optim.SGD(
                params, 0.1, weight_decay=l2, maximize=maximize, foreach=False, **momentum
            ),
            False,
            lr=0.1,
            l2=l2,
            maximize=maximize,
            **momentum,
        )


def test_decay_does_not_depend_on_the_gradients_size_and_l2_does() -> None:
    """The paper's point: coupled, weights with large gradients are regularized less."""
    spec, steps, sizes = SPECS["adamw_step_"], 100, torch.tensor([1.0, 100.0], dtype=torch.float64)
    shrunk = {}
    for decay in ("weight_decay", "l2"):
        options = {"weight_decay": 0.0, decay: 0.1, "lr": 0.01, "beta1": 0.0}
        call = _call(spec, [torch.ones(2, dtype=torch.float64)], [sizes], **options)
        for step in range(steps):
            # Of alternating sign, so that the gradient itself moves nothing.
            call.grads = [sizes if step % 2 else -sizes]
            call.run(spec.functional)
        shrunk[decay] = 1 - call.params[0]
    expected = 1 - (1 - 0.01 * 0.1) ** steps
    torch.testing.assert_close(
        shrunk["weight_decay"], torch.full_like(sizes, expected), rtol=1e-2, atol=0
    )
    assert shrunk["l2"][0] > 20 * shrunk["l2"][1].abs()


# Limits and averages.


@ALL
def test_max_norm_limits_rows(spec: StepSpec) -> None:
    """Rows within it are as without, longer ones are brought back to it; vectors are left alone."""
    shapes, limit = ((50, 37), (6, 3, 5, 5), (700,), (3, 1500), ()), 6.0
    grads = [_normal(*shape, seed=9 + k) for k, shape in enumerate(shapes)]
    free, limited = (
        _call(spec, [_normal(*shape) for shape in shapes], grads, lr=0.1, **options)
        for options in ({}, {"max_norm": limit})
    )
    for call in (free, limited):
        call.run(spec.functional)
    for shape, before, after in zip(shapes, free.params, limited.params, strict=True):
        if len(shape) < 2:
            assert torch.equal(before, after)
            continue
        norms = before.double().flatten(1).norm(dim=1)
        short = norms <= limit
        assert torch.equal(before[short], after[short])
        factor = (limit / norms.clamp(min=limit)).reshape(-1, *[1] * (len(shape) - 1))
        torch.testing.assert_close(after.double(), before.double() * factor, rtol=2e-7, atol=0)
        assert (after.double().flatten(1).norm(dim=1) <= limit * (1 + 1e-6)).all()
    norms = free.params[0].norm(dim=1)
    assert (norms > limit).any()
    assert (norms < limit).any()


@ALL
def test_average_of_constant_weights(spec: StepSpec) -> None:
    """e_t = (1 - d^t) w."""
    w = _normal(300, dtype=torch.float64)
    options = {"lr": 0.0, "ema_decay": 0.9}
    call = _call(spec, [w.clone()], [torch.ones_like(w)], **options)
    for _ in range(20):
        call.run(spec.functional)
    assert torch.equal(call.params[0], w)
    torch.testing.assert_close(call.kwargs["emas"][0], (1 - 0.9**20) * w, rtol=1e-13, atol=0)


@ALL
def test_average_is_of_the_weights_before_they_are_rounded(spec: StepSpec) -> None:
    w = torch.ones(300, dtype=torch.bfloat16)
    call = _call(spec, [w], [torch.ones_like(w)], lr=1e-3, weight_decay=0.0, ema_decay=0.0)
    call.run(spec.functional)
    assert (w == 1).all()
    torch.testing.assert_close(call.kwargs["emas"][0], torch.full((300,), 0.999))


# Gradients on their way in.


def _clipped(grads: list[Tensor], clip: Callable[[list[Tensor]], object]) -> list[Tensor]:
    """Copies of gradients that one of torch's functions has clipped."""
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    clip(params)  # type: ignore[arg-type]
    return [param.grad for param in params if param.grad is not None]


@pytest.mark.parametrize("special", [None, math.inf, -math.inf, math.nan])
@REALS
@ALL
def test_norm_clipping_is_torchs(spec: StepSpec, dtype: torch.dtype, special: float | None) -> None:
    """`clip_grad_norm_` and a step, infinite and nan norms included; the gradients are not written.

    An infinite norm makes 0 of what is finite and nan of what is not; a nan makes all nan.
    """
    shapes, limit = ((40, 30), (7,), ()), 0.5
    grads = [_normal(*shape, dtype=dtype, seed=k) for k, shape in enumerate(shapes)]
    if special is not None:
        grads[1][3] = special
    before = [grad.clone() for grad in grads]
    clipped = _clipped(grads, lambda params: torch.nn.utils.clip_grad_norm_(params, limit))
    ours, theirs = (
        _call(spec, [_normal(*shape, dtype=dtype) for shape in shapes], each, lr=0.1, **options)
        for each, options in ((grads, {"max_grad_norm": limit}), (clipped, {}))
    )
    for call in (ours, theirs):
        call.run(spec.functional)
    few = 8 * torch.finfo(dtype).eps
    for one, other in zip(ours.params, theirs.params, strict=True):
        torch.testing.assert_close(one, other, rtol=few, atol=few, equal_nan=True)
    for grad, copy in zip(grads, before, strict=True):
        assert torch.equal(grad.nan_to_num(7.0), copy.nan_to_num(7.0))


@pytest.mark.parametrize(("dtype", "grad_dtype"), BOTH)
@ALL
def test_under_the_limit_clipping_changes_no_bit(
    spec: StepSpec, dtype: torch.dtype, grad_dtype: torch.dtype | None
) -> None:
    grads = [_normal(700, dtype=grad_dtype or dtype, seed=3)]
    norm = RF.grad_norm(grads).item()
    plain, *others = (
        _call(spec, [_normal(700, dtype=dtype)], grads, **options)
        for options in ({}, {"max_grad_norm": norm * 1.001}, {"max_grad_norm": math.inf})
    )
    plain.run(spec.functional)
    for call in others:
        call.run(spec.functional)
        assert_step_close(EQUAL, call, plain)


def test_given_norm_takes_the_place_of_the_computed_one() -> None:
    spec, grads = SPECS["sgdw_step_"], [_normal(50)]
    call = _call(spec, [torch.zeros(50)], grads, lr=1.0, max_grad_norm=1.0)
    call.kwargs["grad_norm"] = torch.tensor(4.0, dtype=torch.float64)
    call.run(spec.functional)
    torch.testing.assert_close(call.params[0], -grads[0] / 4)


@pytest.mark.parametrize("special", [None, math.inf, -math.inf, math.nan])
@REALS
@ALL
def test_value_clipping_is_torchs(
    spec: StepSpec, dtype: torch.dtype, special: float | None
) -> None:
    """`clip_grad_value_` and a step, to the bit; the gradients are not written."""
    grads = [_normal(700, dtype=dtype, seed=1)]
    if special is not None:
        grads[0][5] = special
    clipped = _clipped(grads, lambda params: torch.nn.utils.clip_grad_value_(params, 0.4))
    ours, theirs = (
        _call(spec, [_normal(700, dtype=dtype)], each, **options)
        for each, options in ((grads, {"clip_value": 0.4}), (clipped, {}))
    )
    for call in (ours, theirs):
        call.run(spec.functional)
        call.grads = []
    assert_step_close(EQUAL, ours, theirs)


@pytest.mark.parametrize(("dtype", "grad_dtype"), BOTH)
@ALL
def test_grad_scale_divides_gradients_in_memory_too(
    spec: StepSpec, dtype: torch.dtype, grad_dtype: torch.dtype | None
) -> None:
    """As torch's fused optimizers; by powers of two, so that the bits are those of the quotient."""
    grads = _normal(700, dtype=grad_dtype or dtype, seed=1)
    scaled, plain = (
        _call(spec, [_normal(700, dtype=dtype)], [each], max_grad_norm=0.5)
        for each in (grads * 64, grads.clone())
    )
    scaled.kwargs["grad_scale"] = torch.tensor(64.0)
    for call in (scaled, plain):
        call.run(spec.functional)
    assert_step_close(EQUAL, scaled, plain)


@pytest.mark.parametrize("found", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("zero_grad", [False, True])
@ALL
def test_found_inf_skips_the_step(spec: StepSpec, zero_grad: bool, found: float) -> None:
    """Nothing is written and no step counted; gradients are cleared where that is asked for."""
    grads = [torch.full((700,), torch.inf)]
    options = {"ema_decay": 0.9, "max_grad_norm": 1.0, "zero_grad": zero_grad}
    call = _call(spec, [_normal(700)], grads, **options)
    call.kwargs["grad_scale"] = torch.tensor(8.0)
    call.kwargs["found_inf"] = torch.tensor(found)
    before = call.copy()
    call.run(spec.functional)
    if zero_grad:
        before.grads[0].zero_()
    assert_step_close(EQUAL, call, before)


@pytest.mark.parametrize(("dtype", "grad_dtype"), BOTH)
@ALL
def test_zero_grad_clears_and_changes_nothing_else(
    spec: StepSpec, dtype: torch.dtype, grad_dtype: torch.dtype | None
) -> None:
    grads = _normal(700, dtype=grad_dtype or dtype, seed=1)
    clearing, plain = (
        _call(spec, [_normal(700, dtype=dtype)], [grads.clone()], zero_grad=clear, clip_value=0.5)
        for clear in (True, False)
    )
    for call in (clearing, plain):
        call.run(spec.functional)
    assert torch.equal(clearing.grads[0], torch.zeros_like(grads))
    assert not clearing.grads[0].signbit().any()
    assert torch.equal(plain.grads[0], grads)
    clearing.grads = plain.grads
    assert_step_close(EQUAL, clearing, plain)


# Low precision.


def _low_precision_error(spec: StepSpec, dtype: torch.dtype, master: str) -> float:
    """Distance from a float64 run after 400 steps, each far smaller than a gap of the type."""
    start, options = _normal(2000, dtype=dtype), {"lr": 2e-4, "weight_decay": 0.0}
    low = _call(spec, [start.clone()], [torch.zeros_like(start)], master=master, **options)
    if master == "fp32":
        low.kwargs["masters"] = [start.float()]
    if master == "kahan":
        low.kwargs["masters"] = [torch.zeros_like(start)]
    exact = _call(spec, [start.double()], [torch.zeros(2000, dtype=torch.float64)], **options)
    drift = _normal(2000, seed=5).sign()
    for step in range(400):
        grad = (drift * (1 + 0.5 * math.sin(step))).to(dtype)
        low.grads, exact.grads = [grad], [grad.double()]
        low.kwargs["key"] = regops.random.key(step)
        low.run(spec.functional)
        exact.run(spec.functional)
    weight = low.params[0].double()
    if master == "kahan":
        weight += low.kwargs["masters"][0].double()
    if master == "fp32":
        assert torch.equal(low.kwargs["masters"][0].to(dtype), low.params[0])
        weight = low.kwargs["masters"][0].double()
    return (weight - exact.params[0]).abs().mean().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@ALL
def test_masters_follow_the_exact_run(spec: StepSpec, dtype: torch.dtype) -> None:
    """Rounded to nearest, most weights stay where they are: 0.08 off of a way of 0.08."""
    masters = ("none", "fp32", "kahan", "stochastic")
    error = {master: _low_precision_error(spec, dtype, master) for master in masters}
    assert error["fp32"] < 1e-6
    assert error["kahan"] < (1e-3 if dtype == torch.bfloat16 else 1e-4)
    assert error["fp32"] < error["none"] / 1000
    assert error["kahan"] < error["none"] / 20
    assert error["stochastic"] < error["none"] / 2


@ALL
def test_parameter_changed_outside_overrides_its_master(spec: StepSpec) -> None:
    """As by a checkpoint that was loaded, or an initialization after the optimizer was made."""
    start = _normal(700, dtype=torch.bfloat16)
    options = {"lr": 1e-3, "weight_decay": 0.1, "master": "fp32"}
    call = _call(spec, [start.clone()], [torch.zeros_like(start)], **options)
    call.kwargs["masters"] = [start.float() * (1 + 2**-10)]
    call.params[0][100:200] = 3.0
    kept = call.kwargs["masters"][0].clone()
    kept[100:200] = 3.0
    kept[kept.bfloat16() != call.params[0]] = call.params[0].float()[
        kept.bfloat16() != call.params[0]
    ]
    call.run(spec.functional)
    factor = torch.tensor(1 - 1e-3 * 0.1, dtype=torch.float64).float()
    assert torch.equal(call.kwargs["masters"][0], kept * factor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_gradients_that_overflow_float16_when_squared(dtype: torch.dtype) -> None:
    """Torch's moments of such parameters are of their type: inf and nan in float16."""
    spec = SPECS["adamw_step_"]
    for size in (3e4, 1e-6):
        w = torch.ones(64, dtype=dtype)
        call = _call(spec, [w], [torch.full_like(w, size)], lr=0.5, weight_decay=0.0, eps=1e-12)
        call.run(spec.functional)
        torch.testing.assert_close(w.float(), torch.full((64,), 0.5), rtol=0.01, atol=0)


def test_no_gradient_and_no_eps_give_nan_as_torch_does() -> None:
    """0 / 0."""
    spec = SPECS["adamw_step_"]
    call = _call(spec, [torch.ones(9)], [torch.zeros(9)], eps=0.0)
    call.run(spec.functional)
    assert call.params[0].isnan().all()


# Sizes.


@pytest.mark.slow
@pytest.mark.parametrize("in_one_piece", [True, False])
def test_more_than_2_to_the_31_elements(in_one_piece: bool) -> None:
    """Indices that 32 bits, signed or not, cannot hold, in 4 GiB.

    The gradient is the weight itself, or one element that stands for all.
    """
    spec, size, window = SPECS["sgdw_step_"], (1 << 31) + 4099, 5000
    weight = torch.ones(size, dtype=torch.bfloat16)
    grad = weight if in_one_piece else torch.ones(1, dtype=torch.bfloat16).expand(size)
    marks = (0, (1 << 31) - window // 2, size - window)
    for first in marks:
        weight[first : first + window] = _normal(window, dtype=torch.bfloat16, seed=first % 97)
    options = {"lr": 0.3, "master": "stochastic", "key": regops.random.key(8)}
    expected = []
    for first in marks:
        part = weight[first : first + window].clone()
        call = _call(spec, [part], [grad[first : first + window].clone()], **options)
        call.kwargs["first_indices"] = [first]
        call.run(spec.reference)
        expected.append(part)
    _call(spec, [weight], [grad], **options).run(spec.functional)
    for first, part in zip(marks, expected, strict=True):
        assert torch.equal(weight[first : first + window], part)
